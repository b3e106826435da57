"""Splits in time: what training may read, what validation and testing ask for."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from common.errors import ConfigError
from common.schema import ShopEvents

#: Share of the time span that is training where nothing else is said.
TRAIN_SHARE = 0.75
# Epoch seconds, 1973-03-03: records that all end before it were read in a wrong unit.
_EARLIEST_LAST = 10**8


@dataclass(frozen=True)
class TimeSplit:
    """Three periods of time, cut at the same moments for every shop.

    Fitting reads what is before ``validation_from``, tuning asks for what lies between the two,
    and testing, after training on everything before ``train_until``, for what comes then.
    """

    validation_from: int
    train_until: int

    def fit(self, events: ShopEvents) -> ShopEvents:
        """Return the records to fit on while tuning."""
        return events.before(self.validation_from)

    def validation(self, events: ShopEvents) -> ShopEvents:
        """Return the records to tune on."""
        return events.before(self.train_until).since(self.validation_from)

    def train(self, events: ShopEvents) -> ShopEvents:
        """Return the records to fit on at last: ``fit`` and ``validation`` together."""
        return events.before(self.train_until)

    def test(self, events: ShopEvents) -> ShopEvents:
        """Return the records to test on."""
        return events.since(self.train_until)


def split_in_time(
    first: int, last: int, train_until: int | None = None, *, validation_share: float = 0.2
) -> TimeSplit:
    """Cut a time span once for all shops.

    Parameters
    ----------
    first, last
        Timestamps of the first and last record of all shops, epoch seconds.
    train_until
        Where testing begins; default: after :data:`TRAIN_SHARE` of the span.
    validation_share
        Share of the training span, at its end, that tuning asks for.

    Raises
    ------
    ConfigError
        If nothing would be left to train on, or to test on. Of the two parts of the training
        span either may be empty: records may all be of its beginning or its end.
    """
    if not 0 < validation_share < 1:
        raise ConfigError(f"split.validation_share is {validation_share}; it lies between 0 and 1")
    if train_until is None:
        train_until = first + round(TRAIN_SHARE * (last - first))
    if first == last:
        raise ConfigError(
            f"all records are of one moment, {iso(first)}: nothing comes after it to test on. "
            "Does the column 'timestamp' hold when each record happened?"
        )
    if not first < train_until <= last:
        raise ConfigError(
            f"split.train_until is {iso(train_until)}, outside the records' times: choose one "
            f"after {iso(first)} and not after {iso(last)}, so that both training and testing "
            "have records"
        )
    span = max(1, round(validation_share * (train_until - first)))
    return TimeSplit(validation_from=train_until - span, train_until=train_until)


def doubt_of_times(timestamps: np.ndarray) -> str:
    """Return why (N,) times are hardly seconds since 1970; nothing where they may be.

    Dates as numbers (20240131) and days since 1900 or 1970 all end within the first years after
    1970: taken as seconds they would keep their order, and cut the periods anywhere.
    """
    if not len(timestamps) or (last := int(timestamps.max())) >= _EARLIEST_LAST:
        return ""
    return (
        f"read as seconds since 1970, all times of column 'timestamp' are before {iso(last + 1)}. "
        "What to do: write dates like 2024-01-31, not 20240131, a number of days or a "
        "spreadsheet's number; or as whole seconds since 1970 UTC"
    )


def iso(moment: int) -> str:
    """Return epoch seconds as ISO 8601 in UTC; the number itself where no calendar goes so far."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(moment)
