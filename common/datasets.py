"""Built-in data sets and folders of tables."""

import time
from dataclasses import dataclass, field

from common.complete_journey import TRAIN_UNTIL, Merchants, complete_journey_frames
from common.schema import Tables
from common.validation import validate_tables


@dataclass(frozen=True)
class Dataset:
    """A data set that experiments run on.

    Attributes
    ----------
    train_until
        Epoch seconds where testing begins; None where the data set does not say.
    notes
        What a report on this data must say.
    """

    name: str
    tables: Tables
    train_until: int | None = None
    notes: list[str] = field(default_factory=list)


def load_complete_journey(merchants: Merchants = "market") -> Dataset:
    """Return Complete Journey with local markets, or single stores, as merchants."""
    interactions, products, customers, notes = complete_journey_frames(merchants)
    tables = validate_tables(interactions, products, customers, now=int(time.time()))
    return Dataset("complete-journey", tables, TRAIN_UNTIL, notes)
