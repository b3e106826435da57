"""A shop's privacy ledger: one SQLite file of append-only facts, over the shop's whole life.

What training will cost is written and synced *before* the training: a crash can waste budget,
never hide spending. ε is never stored; it is derived from the facts each time. The hash of each
row covers the row before it, so that nothing can be changed or cut out unseen; a head that someone
else remembers (:meth:`Ledger.verify`) tells a restored old copy too.
"""

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from common.accounting import Epsilon, Spend, epsilon, fits
from common.errors import BudgetError, LedgerError
from common.protocol import NO_FINGERPRINT

logger = logging.getLogger(__name__)

HISTOGRAM = "gaussian-histogram"
DP_SGD = "dp-sgd"
#: The logged act of raising the cap: costs nothing, has no steps.
CAP = "cap"

_COLUMNS = (
    "seq, at, mechanism, noise_multiplier, sample_rate, steps, unit, relation, run_id, "
    "server_round, code_digest, parameters, prev_hash, hash"
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY CHECK (seq > 0),
    at TEXT NOT NULL,
    mechanism TEXT NOT NULL,
    noise_multiplier REAL NOT NULL CHECK (noise_multiplier >= 0),
    sample_rate REAL NOT NULL CHECK (sample_rate > 0 AND sample_rate <= 1),
    steps INTEGER NOT NULL CHECK (steps >= 0),
    unit TEXT NOT NULL,
    relation TEXT NOT NULL,
    run_id TEXT NOT NULL,
    server_round INTEGER NOT NULL,
    code_digest TEXT NOT NULL,
    parameters TEXT NOT NULL,
    prev_hash TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE
);
CREATE TRIGGER IF NOT EXISTS events_no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS events_no_delete BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Event:
    """One fact: what a release or a round of private training does to the data.

    Attributes
    ----------
    mechanism
        ``gaussian-histogram``, ``dp-sgd`` or ``cap``.
    steps
        Times that the mechanism is applied; 0 costs nothing.
    relation
        How neighbouring data sets differ, by one ``unit``.
    parameters
        Whatever else is worth keeping, as plain JSON values.
    """

    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    unit: str
    relation: str = "add-or-remove"
    run_id: str = ""
    server_round: int = 0
    code_digest: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An event as it stands in the ledger."""

    seq: int
    at: str
    event: Event
    prev_hash: str
    hash: str


_NAMES = tuple(name.strip() for name in _COLUMNS.split(","))
_EVENT_FIELDS = tuple(entry.name for entry in fields(Event))
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


class Ledger:
    """The ledger of one shop; use as a context manager. One writer at a time, over processes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a ledger, creating it where there is none.

        Raises
        ------
        LedgerError
            If the file is no ledger or cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the ledger {path} cannot be opened: {error}") from error
        try:
            # EXTRA syncs the folder too once the rollback journal is gone: only then is a
            # committed row sure to outlive a power cut.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            if new:
                _sync_folder(path.parent)
        except (OSError, sqlite3.Error) as error:
            connection.close()
            raise LedgerError(f"{path} is no ledger or cannot be written: {error}") from error
        return cls(connection)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def events(self) -> list[Entry]:
        """Return all entries, oldest first."""
        with _as_ledger_error("read"):
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM events ORDER BY seq"  # noqa: S608 - a constant
            ).fetchall()
            return [_entry(row) for row in rows]

    def head(self) -> str:
        """Return the hash of the last entry, 64 hex digits; zeros where there is none."""
        with _as_ledger_error("read"):
            row = self._connection.execute(
                "SELECT hash FROM events ORDER BY seq DESC LIMIT 1"
            ).fetchone()
        return str(row[0]) if row else NO_FINGERPRINT

    def append(self, event: Event) -> str:
        """Write one event, synced, whatever it costs; return the new head."""
        with self._writing():
            return self._insert(event)

    def epsilon(self, delta: float, *, extra: Sequence[Event] = ()) -> dict[str, Epsilon]:
        """Return unit -> ε of everything in the ledger, and of ``extra`` on top.

        ε of different units do not add up: each is reported for itself.
        """
        return epsilon_of([entry.event for entry in self.events()] + list(extra), delta)

    def check(self, remaining: Sequence[Event], *, cap_epsilon: float, delta: float) -> None:
        """Raise :class:`BudgetError` unless all of ``remaining`` fits under the cap."""
        _check(self.events(), remaining, cap_epsilon, delta)

    def charge(
        self, event: Event, *, cap_epsilon: float, delta: float, remaining: Sequence[Event] = ()
    ) -> str:
        """Write ``event`` if it and the ``remaining`` plan fit under the cap; return the head.

        A round that is done again is charged again. The entry also keeps the cap it was admitted
        under; a cap higher than the last entry's is logged first, as an event of its own.

        Raises
        ------
        BudgetError
            If everything so far, this event and the rest of the plan cost more than the cap.
            Nothing is written then.
        LedgerError
            If the entry could not be written and synced, or the ledger was tampered with.
        """
        with self._writing():
            past = self.verify()
            _check(past, [event, *remaining], cap_epsilon, delta)
            cap: dict[str, object] = {"cap_epsilon": cap_epsilon, "cap_delta": delta}
            before = past[-1].event.parameters.get("cap_epsilon") if past else None
            if isinstance(before, int | float) and cap_epsilon > before:
                raised = replace(
                    event, mechanism=CAP, steps=0, parameters={**cap, "raised_from": before}
                )
                self._insert(raised)
            return self._insert(replace(event, parameters={**event.parameters, **cap}))

    def verify(self, *, known_head: str = NO_FINGERPRINT) -> list[Entry]:
        """Check the whole chain and return its entries.

        Parameters
        ----------
        known_head
            A head that someone saw before: it must be in the chain, else this is an older copy.

        Raises
        ------
        LedgerError
            Naming the first entry that is not as it was written.
        """
        entries = self.events()
        head, heads = NO_FINGERPRINT, {NO_FINGERPRINT}
        for position, entry in enumerate(entries, start=1):
            right = _hash(position, entry.at, entry.event, head)
            if (entry.seq, entry.prev_hash, entry.hash) != (position, head, right):
                raise LedgerError(
                    f"entry {entry.seq} of the ledger is not as it was written: stop training, "
                    "keep the file, and restore the last good copy from its backup"
                )
            head = entry.hash
            heads.add(head)
        if known_head not in heads:
            raise LedgerError(
                f"the ledger does not hold the known head {known_head[:12]}…: this is an older "
                "copy, or another shop's; restore the newest one before training on"
            )
        return entries

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the only write lock; commit and sync at the end, or change nothing."""
        with _as_ledger_error("written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _insert(self, event: Event) -> str:
        row = self._connection.execute("SELECT COUNT(*) FROM events").fetchone()
        seq, prev_hash = int(row[0]) + 1, self.head()
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        new = _hash(seq, at, event, prev_hash)
        values = {name: getattr(event, name) for name in _EVENT_FIELDS}
        values |= {"parameters": _canonical(event.parameters)}
        values |= {"seq": seq, "at": at, "prev_hash": prev_hash, "hash": new}
        self._connection.execute(
            f"INSERT INTO events ({_COLUMNS}) "  # noqa: S608 - constants
            f"VALUES ({', '.join(':' + name for name in _NAMES)})",
            values,
        )
        return new


def epsilon_of(events: Sequence[Event], delta: float) -> dict[str, Epsilon]:
    """Return unit -> ε of these events together; units do not add up."""
    units = sorted({event.unit for event in events if event.steps})
    return {unit: epsilon(_spends(events, unit), delta) for unit in units}


def _check(entries: Sequence[Entry], remaining: Sequence[Event], cap: float, delta: float) -> None:
    past = [entry.event for entry in entries]
    for unit in sorted({event.unit for event in remaining}):
        _check_unit(past, [e for e in remaining if e.unit == unit], unit, cap, delta)


def _check_unit(
    past: Sequence[Event], planned: Sequence[Event], unit: str, cap: float, delta: float
) -> None:
    def cost(count: int) -> float:
        return epsilon(_spends([*past, *planned[:count]], unit), delta).value

    if fits(_spends([*past, *planned], unit), delta, cap):
        return
    fitting = how_many_fit(past, planned, unit=unit, cap_epsilon=cap, delta=delta)
    rounds = sum(event.mechanism == DP_SGD for event in planned[:fitting])
    wanted = sum(event.mechanism == DP_SGD for event in planned)
    raise BudgetError(
        f"per {unit}, epsilon {cost(0):.4g} is spent so far and {cost(len(planned)):.4g} would be "
        f"with the rest of this plan, above the cap of {cap:.4g} at delta {delta:g}: {rounds} of "
        f"its {wanted} rounds fit; take a cheaper plan, or raise the shop's own cap_epsilon"
    )


def how_many_fit(
    past: Sequence[Event],
    planned: Sequence[Event],
    *,
    unit: str,
    cap_epsilon: float,
    delta: float,
) -> int:
    """Return how many of the ``planned`` events, in their order, fit under the cap.

    ε grows with every event: a handful of prefixes are composed, not all.
    """

    def under(count: int) -> bool:
        return fits(_spends([*past, *planned[:count]], unit), delta, cap_epsilon)

    if not under(0):
        return 0
    fitting, over = 0, len(planned) + 1
    while over - fitting > 1:
        middle = (fitting + over) // 2
        fitting, over = (middle, over) if under(middle) else (fitting, middle)
    return fitting


def _spends(events: Sequence[Event], unit: str) -> list[Spend]:
    return [
        Spend(event.noise_multiplier, event.sample_rate, event.steps)
        for event in events
        if event.unit == unit and event.steps
    ]


def _canonical(value: object) -> str:
    return _ENCODER.encode(value)


def _hash(seq: int, at: str, event: Event, prev_hash: str) -> str:
    facts = {name: getattr(event, name) for name in _EVENT_FIELDS}
    # As SQLite's REAL and INTEGER columns give them back.
    for name in ("noise_multiplier", "sample_rate"):
        facts[name] = float(facts[name])
    facts |= {"seq": seq, "at": at, "prev_hash": prev_hash}
    return hashlib.sha256(_canonical(facts).encode()).hexdigest()


def _entry(row: tuple[object, ...]) -> Entry:
    values = dict(zip(_NAMES, row, strict=True))
    own = {name: values.pop(name) for name in ("seq", "at", "prev_hash", "hash")}
    values["parameters"] = json.loads(str(values["parameters"]))
    return Entry(event=Event(**values), **own)  # type: ignore[arg-type]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_ledger_error(act: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, ValueError) as error:
        raise LedgerError(f"the ledger cannot be {act}: {error}") from error
