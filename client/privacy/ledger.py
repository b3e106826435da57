"""A shop's privacy ledger: one SQLite file of append-only facts, over the shop's whole life.

What training will cost is written and synced *before* the training: a crash can waste budget,
never hide spending. ε is never stored; it is derived from the facts each time. The hash of each
row covers the row before it, so that nothing can be changed or cut out unseen; a head that someone
else remembers (:meth:`Ledger.verify`) tells a restored old copy too.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from client.privacy.budget import check_fits, epsilon_of
from client.privacy.events import (
    CAP,
    DP_SGD,
    EVENT_FIELDS,
    HISTOGRAM,
    SESSION,
    Entry,
    Event,
    canonical,
    entry_hash,
)
from common.accounting import Epsilon
from common.disk import sync
from common.errors import LedgerError, SecureSumError
from common.protocol import NO_FINGERPRINT

__all__ = ["CAP", "DP_SGD", "HISTOGRAM", "Entry", "Event", "Ledger"]


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
_NAMES = tuple(name.strip() for name in _COLUMNS.split(","))
_WAIT_SECONDS = 60.0


class Ledger:
    """The ledger of one shop; use as a context manager. One writer at a time, over processes."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, known_head: str = NO_FINGERPRINT
    ) -> None:
        self._connection, self._path, self._known_head = connection, path, known_head

    @classmethod
    def open(cls, path: Path | str, *, known_head: str = NO_FINGERPRINT) -> Self:
        """Open a ledger, creating it where there is none.

        Parameters
        ----------
        known_head
            A head that someone remembers of this ledger: it must be there then, and nothing is
            created. :meth:`check` and :meth:`charge` look for it in the chain.

        Raises
        ------
        LedgerError
            If the file is no ledger or cannot be written, or is gone.
        """
        path = Path(path)
        if known_head != NO_FINGERPRINT:
            return cls.open_existing(path, known_head=known_head)
        try:
            made = [folder for folder in path.absolute().parents if not folder.exists()]
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
                # Each folder that is new as well is a name in the one above it.
                for folder in (path.parent, *(folder.parent for folder in made)):
                    sync(folder)
        except (OSError, sqlite3.Error) as error:
            connection.close()
            raise LedgerError(f"{path} is no ledger or cannot be written: {error}") from error
        return cls(connection, path)

    @classmethod
    def open_existing(cls, path: Path, *, known_head: str = NO_FINGERPRINT) -> Self:
        """Open a ledger that must be there; see :meth:`open`."""
        return cls(_connect_existing(path, known_head), path, known_head)

    @classmethod
    def read(cls, path: Path | str, *, known_head: str = NO_FINGERPRINT) -> list[Entry]:
        """Return the verified entries of a ledger without changing it; none where there is none.

        Raises
        ------
        LedgerError
            If the file is no ledger, an entry is not as it was written, or the known head is not
            there.
        """
        path = Path(path)
        if known_head == NO_FINGERPRINT and not (path.exists() and path.stat().st_size):
            return []
        with cls.open_existing(path, known_head=known_head) as ledger:
            return ledger.verify()

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

    def epsilon(self, delta: float) -> dict[str, Epsilon]:
        """Return unit -> ε of everything in the ledger.

        ε of different units do not add up: each is reported for itself.

        Raises
        ------
        LedgerError
            If the ledger was tampered with: what it says then may be less than what was spent.
        """
        return epsilon_of([entry.event for entry in self.verify()], delta)

    def check(self, remaining: Sequence[Event], *, cap_epsilon: float, delta: float) -> None:
        """Raise :class:`BudgetError` unless all of ``remaining`` fits under the cap.

        Raises
        ------
        LedgerError
            If the ledger was tampered with, or is an older copy.
        """
        past = [entry.event for entry in self.verify()]
        check_fits(past, remaining, cap_epsilon, delta)

    def charge(
        self, event: Event, *, cap_epsilon: float, delta: float, remaining: Sequence[Event] = ()
    ) -> str:
        """Write ``event`` if it and the ``remaining`` plan fit under the cap; return the head.

        A round that is done again is charged again. The entry also keeps the cap it was admitted
        under; a cap higher than the last entry's, or at a larger δ, which admits more, is logged
        first, as an event of its own.

        The session of a secure sum is charged once. Its masks hide one vector: a second one under
        them would show the difference of the two, under the noise of one shop's share alone. The
        shop's sessions see to that; here is what remembers if their file was put back.

        Raises
        ------
        SecureSumError
            If the event's session was charged before.
        BudgetError
            If everything so far, this event and the rest of the plan cost more than the cap.
            Nothing is written then.
        LedgerError
            If the entry could not be written and synced, or the ledger was tampered with.
        """
        with self._writing():
            past = self.verify()
            if (session := event.parameters.get(SESSION)) is not None and any(
                entry.event.parameters.get(SESSION) == session for entry in past
            ):
                raise SecureSumError("the ledger was charged for a vector of this session already")
            check_fits([entry.event for entry in past], [event, *remaining], cap_epsilon, delta)
            cap: dict[str, object] = {"cap_epsilon": cap_epsilon, "cap_delta": delta}
            if before := _raised_from(
                past[-1].event.parameters if past else {}, cap_epsilon, delta
            ):
                raised = replace(event, mechanism=CAP, steps=0, parameters={**cap, **before})
                self._insert(raised)
            return self._insert(replace(event, parameters={**event.parameters, **cap}))

    def entry(self, head: str) -> Entry | None:
        """Return the entry with this hash, if it is there."""
        with _as_ledger_error("read"):
            row = self._connection.execute(
                f"SELECT {_COLUMNS} FROM events WHERE hash = ?",  # noqa: S608 - a constant
                (head,),
            ).fetchone()
            return _entry(row) if row else None

    def verify(self) -> list[Entry]:
        """Check the whole chain and return its entries.

        The whole of it, each time: 10,000 entries take a third of a second. A known head that the
        ledger was opened with must be in the chain, else this is an older copy.

        Raises
        ------
        LedgerError
            Naming the first entry that is not as it was written.
        """
        entries = self.events()
        head, heads = NO_FINGERPRINT, {NO_FINGERPRINT}
        for position, entry in enumerate(entries, start=1):
            try:
                right = entry_hash(position, entry.at, entry.event, head)
            except (TypeError, ValueError) as error:
                raise _tampered(entry.seq) from error
            if (entry.seq, entry.prev_hash, entry.hash) != (position, head, right):
                raise _tampered(entry.seq)
            head = entry.hash
            heads.add(head)
        if self._known_head not in heads:
            raise _older_copy(self._path, self._known_head)
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
        row = self._connection.execute(
            "SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        seq, prev_hash = (int(row[0]) + 1, str(row[1])) if row else (1, NO_FINGERPRINT)
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        new = entry_hash(seq, at, event, prev_hash)
        values = {name: getattr(event, name) for name in EVENT_FIELDS}
        values |= {"parameters": canonical(event.parameters)}
        values |= {"seq": seq, "at": at, "prev_hash": prev_hash, "hash": new}
        self._connection.execute(
            f"INSERT INTO events ({_COLUMNS}) "  # noqa: S608 - constants
            f"VALUES ({', '.join(':' + name for name in _NAMES)})",
            values,
        )
        return new


def _entry(row: tuple[object, ...]) -> Entry:
    values = dict(zip(_NAMES, row, strict=True))
    own = {name: values.pop(name) for name in ("seq", "at", "prev_hash", "hash")}
    try:
        values["parameters"] = json.loads(str(values["parameters"]))
    except (ValueError, RecursionError) as error:
        raise _tampered(own["seq"]) from error
    return Entry(event=Event(**values), **own)  # type: ignore[arg-type]


def _raised_from(
    before: Mapping[str, object], cap_epsilon: float, delta: float
) -> dict[str, object]:
    """Return what to log of the cap before, the last entry's; nothing if it was not raised."""
    epsilon_before, delta_before = before.get("cap_epsilon"), before.get("cap_delta")
    if not isinstance(epsilon_before, int | float):
        return {}
    if isinstance(delta_before, int | float) and delta > delta_before:
        return {"raised_from": epsilon_before, "raised_from_delta": delta_before}
    return {"raised_from": epsilon_before} if cap_epsilon > epsilon_before else {}


def _connect_existing(path: Path, known_head: str) -> sqlite3.Connection:
    """Open a ledger that must be there: for writing events where that is allowed."""
    if not path.exists():
        raise _older_copy(path, known_head)
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            timeout=_WAIT_SECONDS,
            isolation_level=None,
            uri=True,
        )
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger {path} cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        # What a kill left half written is rolled back here, as at every opening.
        found = connection.execute("SELECT name FROM sqlite_master WHERE name = 'events'")
        there = found.fetchone() is not None
    except sqlite3.Error as error:
        connection.close()
        raise LedgerError(f"{path} is no ledger or cannot be read: {error}") from error
    if not there:
        connection.close()
        if known_head == NO_FINGERPRINT:
            raise LedgerError(f"{path} is no ledger: it has no table of events")
        raise _older_copy(path, known_head)
    return connection


def _tampered(seq: object) -> LedgerError:
    return LedgerError(
        f"entry {seq} of the ledger is not as it was written: stop training, keep the file, and "
        "restore the last good copy from its backup"
    )


def _older_copy(path: Path, known_head: str) -> LedgerError:
    return LedgerError(
        f"the ledger {path} is missing, emptied, an older copy or another shop's: the federation "
        f"remembers an entry {known_head} that it does not hold. Nothing was written, and this "
        "shop takes part in nothing until the newest ledger is back: keep the file as it is, "
        "restore the newest backup, and check it with python -m client ledger verify --known-head"
    )


@contextmanager
def _as_ledger_error(act: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, ValueError) as error:
        raise LedgerError(f"the ledger cannot be {act}: {error}") from error
