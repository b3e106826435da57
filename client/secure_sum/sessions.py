"""A shop's sessions on its own disk: what it answered is there before it is sent.

Each message is served by a process of its own, so what a shop must remember between the stages of a
session lies in one SQLite file of the shop's. An answer leaves only once the state that holds it is
written and synced: a shop that is killed and starts anew says the same again, or nothing, never
something else. A session that a later one has replaced keeps its number and no secrets.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from client.secure_sum.party import Identity, Masks, Party, begin, look, mask, see, share, unmask
from common.errors import LedgerError, SecureSumError
from common.secure_sum.messages import (
    KEYS,
    MASKED,
    OPEN,
    SHARES,
    UNMASK,
    VIEW,
    KeysRequest,
    MaskedRequest,
    OpenRequest,
    Said,
    SharesRequest,
    UnmaskRequest,
    ViewRequest,
    parse,
)
from common.secure_sum.shown import Shown, alike

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (id BLOB PRIMARY KEY, party TEXT);
"""
_WAIT_SECONDS = 60.0

R = TypeVar("R", bound=Said)


class Sessions:
    """All sessions of one shop; use as a context manager."""

    def __init__(self, path: Path, me: Identity) -> None:
        self._path, self._me = path, me

    def begin(self, text: str, check: Callable[[KeysRequest], None]) -> str:
        """Answer a session's first request.

        Parameters
        ----------
        text
            A :class:`~common.secure_sum.messages.KeysRequest`, unchecked.
        check
            Raises if the shop takes no part in such a session.

        Raises
        ------
        SecureSumError
            If the session is not new to this shop, or it takes no part in it.
        """
        request = parse(KeysRequest, text)
        check(request)
        party, answer = begin(request.session, self._me)
        party = party.after(KEYS, request, answer)
        with self._writing() as connection:
            identity = request.session.id
            if connection.execute("SELECT 1 FROM sessions WHERE id = ?", (identity,)).fetchone():
                raise SecureSumError("this session began before: a sum that is redone is a new one")
            # A server runs one sum at a time: what an older one still holds is of no more use.
            connection.execute("UPDATE sessions SET party = NULL")
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?)", (identity, party.model_dump_json())
            )
        return answer.model_dump_json()

    def share(self, text: str) -> str:
        """Answer with sealed shares; see :func:`client.secure_sum.party.share`."""
        return self._answer(SHARES, parse(SharesRequest, text), share)

    def open(self, text: str) -> str:
        """Answer with whose shares do not open; see :func:`client.secure_sum.party.look`."""
        return self._answer(OPEN, parse(OpenRequest, text), look)

    def mask(self, text: str, shown: Shown = alike) -> tuple[Party, Masks]:
        """Return the masks of the session's one vector; asked again, they are refused.

        Two vectors under the same masks would show their difference. For ``shown`` see
        :func:`client.secure_sum.party.mask`.
        """
        request = parse(MaskedRequest, text)
        with self._writing() as connection:
            party = self._load(connection, request.session)
            party.said(MASKED, request)
            party, masks = mask(party, request, self._me, shown)
            self._store(connection, party)
        return party, masks

    def see(self, text: str) -> str:
        """Answer with a signed view; see :func:`client.secure_sum.party.see`."""
        return self._answer(VIEW, parse(ViewRequest, text), see)

    def unmask(self, text: str) -> str:
        """Answer with shares; see :func:`client.secure_sum.party.unmask`."""
        return self._answer(UNMASK, parse(UnmaskRequest, text), unmask)

    def peek(self, session: bytes) -> Party:
        """Return what is remembered of a session."""
        with self._writing() as connection:
            return self._load(connection, session)

    def _answer(
        self,
        stage: str,
        request: R,
        step: Callable[[Party, R, Identity], tuple[Party, Said]],
    ) -> str:
        with self._writing() as connection:
            party = self._load(connection, request.session)  # type: ignore[attr-defined]
            if (said := party.said(stage, request)) is not None:
                return said
            party, answer = step(party, request, self._me)
            self._store(connection, party)
        return answer.model_dump_json()

    def _load(self, connection: sqlite3.Connection, session: bytes) -> Party:
        row = connection.execute("SELECT party FROM sessions WHERE id = ?", (session,)).fetchone()
        if row is None or row[0] is None:
            raise SecureSumError("this shop knows no such session, or a later one replaced it")
        party = parse(Party, row[0])
        if party.session.roster_digest != self._me.roster.digest:
            # Places on it say whose share is whose, and its keys who has signed.
            raise SecureSumError("this shop has accepted another roster since the session began")
        return party

    @staticmethod
    def _store(connection: sqlite3.Connection, party: Party) -> None:
        connection.execute(
            "UPDATE sessions SET party = ? WHERE id = ?",
            (party.model_dump_json(), party.session.id),
        )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the only write lock; commit and sync at the end, or change nothing."""
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            self._path.touch(mode=0o600)
            with (
                self._alone(),
                closing(
                    sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None)
                ) as connection,
            ):
                connection.execute("PRAGMA synchronous = EXTRA")
                # Secrets that are no longer needed are overwritten, not only unlinked: here, and
                # in the journal, which holds what was here before each change.
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("PRAGMA journal_mode = PERSIST")
                connection.execute(_SCHEMA)
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    # A full disk may have undone it already.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"the sessions {self._path} cannot be written: {error}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the sessions against other processes of the shop, and overwrite the journal last.

        A journal that is done with begins with zeros: nobody rolls it back. One that a kill left is
        rolled back at the opening, before its mode can be set, and so unlinked: held open from
        before, it is overwritten all the same.
        """
        journal = self._path.with_name(f"{self._path.name}-journal")
        with ExitStack() as opened:
            lock = self._path.with_name(f"{self._path.name}.lock").open("ab")
            fcntl.flock(opened.enter_context(lock), fcntl.LOCK_EX)
            left = opened.enter_context(journal.open("r+b")) if journal.exists() else None
            try:
                yield
            finally:
                if left is not None and not os.fstat(left.fileno()).st_nlink:
                    _overwrite(left)
                if journal.exists():
                    with journal.open("r+b") as file:
                        # Unless it is to be rolled back: what could not be, at the next opening.
                        if not file.read(1).strip(b"\0"):
                            _overwrite(file)


def _overwrite(file: BinaryIO) -> None:
    """Write zeros over all of a file, synced."""
    file.seek(0)
    file.write(bytes(os.fstat(file.fileno()).st_size))
    file.flush()
    os.fsync(file.fileno())
