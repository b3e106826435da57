import fcntl
import json
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.secure_sum.party import Party, begin
from client.secure_sum.sessions import Sessions
from common.errors import LedgerError, SecureSumError
from common.protocol import shop_key
from common.secure_sum.members import roster_text
from common.secure_sum.messages import (
    Advertisement,
    KeysRequest,
    SharesAnswer,
    UnmaskAnswer,
    ViewAnswer,
    parse,
)
from secure_sum_support import make_identity, make_roster, make_session, node_key
from server.secure_sum.collecting import Collector

NAMES = sorted(shop_key(f"m{k}") for k in range(4))
NUMBERS = {shop_key(f"m{k}"): k for k in range(4)}
VECTOR = np.arange(5, dtype=np.uint32)


def take_part(_: KeysRequest) -> None:
    """Agree to any session."""


class Room:
    """Four shops with sessions on disk, and one collector; each step opens the files anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.roster = folder, make_roster(4)
        self.collector = Collector(make_session(self.roster, 5, 3), self.roster)

    @property
    def first(self) -> str:
        return KeysRequest(session=self.collector.session).model_dump_json()

    def of(self, shop: str) -> Sessions:
        number = NUMBERS[shop]
        return Sessions(self.folder / f"s{number}.sqlite", make_identity(number, self.roster))

    def keys(self) -> None:
        for shop in NAMES:
            said = self.of(shop).begin(self.first, take_part)
            self.collector.take_keys(shop, parse(Advertisement, said))

    def shares(self) -> None:
        request = self.collector.shares_request().model_dump_json()
        for shop in NAMES:
            self.collector.take_shares(shop, parse(SharesAnswer, self.of(shop).share(request)))

    def masked(self, among: list[str] = NAMES) -> None:
        for shop in among:
            request = self.collector.masked_request(shop).model_dump_json()
            _, masks = self.of(shop).mask(request)
            self.collector.take_masked(shop, masks.hide(VECTOR))

    def views(self) -> None:
        request = self.collector.view_request().model_dump_json()
        for shop in self.collector.contributors:
            self.collector.take_view(shop, parse(ViewAnswer, self.of(shop).see(request)))

    def unmask(self) -> None:
        request = self.collector.unmask_request().model_dump_json()
        for shop in self.collector.signers:
            said = self.of(shop).unmask(request)
            self.collector.take_unmask(shop, parse(UnmaskAnswer, said))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_sum_over_shops_that_start_anew_before_every_stage(room: Room) -> None:
    room.keys()
    room.shares()
    room.masked(NAMES[:3])
    room.views()
    room.unmask()
    assert np.array_equal(room.collector.sum(), VECTOR * np.uint32(3))


def test_the_same_request_gets_the_same_answer_another_one_gets_none(room: Room) -> None:
    room.keys()
    me = room.of(NAMES[0])
    request = room.collector.shares_request()
    once = me.share(request.model_dump_json())
    assert me.share(request.model_dump_json()) == once
    other = request.model_copy(update={"advertisements": request.advertisements[:3]})
    with pytest.raises(SecureSumError, match="already"):
        me.share(other.model_dump_json())
    room.shares()
    room.masked()
    view = room.collector.view_request()
    once = me.see(view.model_dump_json())
    assert me.see(view.model_dump_json()) == once
    fewer = view.model_copy(update={"contributors": tuple(NAMES[:3])})
    with pytest.raises(SecureSumError, match="already"):
        me.see(fewer.model_dump_json())
    room.views()
    last = room.collector.unmask_request()
    once = me.unmask(last.model_dump_json())
    assert me.unmask(last.model_dump_json()) == once
    fewer_signed = last.model_copy(update={"signatures": dict(list(last.signatures.items())[:3])})
    with pytest.raises(SecureSumError, match="already"):
        me.unmask(fewer_signed.model_dump_json())


def test_a_session_hides_one_vector_only(room: Room) -> None:
    room.keys()
    room.shares()
    request = room.collector.masked_request(NAMES[0]).model_dump_json()
    room.of(NAMES[0]).mask(request)
    with pytest.raises(SecureSumError, match="already"):
        room.of(NAMES[0]).mask(request)


def test_stages_come_in_their_order(room: Room) -> None:
    room.keys()
    request = room.collector.shares_request()
    room.shares()
    me = room.of(NAMES[0])
    early = {"session": room.collector.session.id.hex()}
    with pytest.raises(SecureSumError, match="does not follow"):
        me.see(json.dumps({**early, "contributors": NAMES}))
    with pytest.raises(SecureSumError, match="does not follow"):
        me.unmask(json.dumps({**early, "signatures": {}}))
    room.masked()
    with pytest.raises(SecureSumError, match="does not follow"):
        me.unmask(json.dumps({**early, "signatures": {}}))
    with pytest.raises(SecureSumError, match="no such session"):
        room.of(NAMES[1]).share(request.model_copy(update={"session": bytes(32)}).model_dump_json())


def test_a_session_begins_once_and_a_later_one_ends_it(room: Room) -> None:
    room.keys()
    me = room.of(NAMES[0])
    with pytest.raises(SecureSumError, match="began before"):
        me.begin(room.first, take_part)
    later = KeysRequest(session=make_session(room.roster, 5, 3))
    me.begin(later.model_dump_json(), take_part)
    with pytest.raises(SecureSumError, match="later one"):
        me.share(room.collector.shares_request().model_dump_json())
    with pytest.raises(SecureSumError, match="began before"):
        me.begin(room.first, take_part)


def test_a_shop_that_takes_no_part_remembers_nothing(room: Room) -> None:
    def refuse(_: KeysRequest) -> None:
        raise SecureSumError("not with us")

    with pytest.raises(SecureSumError, match="not with us"):
        room.of(NAMES[0]).begin(room.first, refuse)
    with pytest.raises(SecureSumError, match="no such session"):
        room.of(NAMES[0]).peek(room.collector.session.id)


def test_the_answer_is_on_disk_before_it_leaves(room: Room) -> None:
    """A second connection, opened when the answer is there, reads what the shop will say again."""
    room.keys()
    request = room.collector.shares_request().model_dump_json()
    said = room.of(NAMES[0]).share(request)
    path = room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite"
    assert path.stat().st_mode & 0o077 == 0
    with sqlite3.connect(path) as connection:
        (text,) = connection.execute("SELECT party FROM sessions").fetchone()
    assert '"stage":"shares"' in text
    assert said.replace('"', '\\"') in text


def test_sessions_and_their_journal_are_for_their_owner_alone(tmp_path: Path) -> None:
    room = Room(tmp_path / "sums")
    room.keys()
    assert room.folder.stat().st_mode & 0o077 == 0
    path = room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite"
    for file in (path, path.with_name(f"{path.name}-journal")):
        assert file.stat().st_mode & 0o077 == 0


def test_a_state_is_synced_before_its_answer_leaves(room: Room) -> None:
    """A shop that a power cut sets back would answer a second time, and otherwise."""
    with room.of(NAMES[0])._writing() as connection:
        # 3 is EXTRA: file, journal and their folder.
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)


def test_one_process_at_a_time_has_the_sessions_and_their_journal(room: Room) -> None:
    """SQLite's own lock ends with its commit: the journal that a second process has begun by then,
    its head still zeros, would be overwritten as one that is done with."""
    me = room.of(NAMES[0])
    with me._writing():
        lock = room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite.lock"
        with lock.open("ab") as second, pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open("ab") as second:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_kill_between_answer_and_disk_leaves_the_stage_before(room: Room) -> None:
    """A process that dies inside the transaction has said nothing: the next one may be asked."""
    room.keys()
    number = NUMBERS[NAMES[0]]
    request = room.collector.shares_request().model_dump_json()
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import client.secure_sum.sessions as sessions\n"
        "from common.secure_sum.members import read_roster\n"
        "from secure_sum_support import make_identity\n"
        "sessions.Sessions._store = staticmethod(lambda *a: os._exit(9))\n"
        "sessions.share = lambda party, request, me: (party, request)\n"
        "me = make_identity(0, read_roster(Path(sys.argv[3])))\n"
        "one = sessions.Sessions(Path(sys.argv[1]), me)\n"
        "one.share(sys.argv[2])\n"
    )
    path, roster = room.folder / f"s{number}.sqlite", room.folder / "roster"
    roster.write_text(roster_text((f"m{k}", node_key(k).public_key()) for k in range(4)))
    found = subprocess.run(
        [sys.executable, "-c", program, str(path), request, str(roster)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": "tests:.", "PATH": "/usr/bin"},
    )
    assert found.returncode == 9, found.stderr
    assert room.of(NAMES[0]).peek(room.collector.session.id).stage == "keys"
    room.shares()


def test_secrets_of_an_ended_session_are_not_in_the_file(room: Room) -> None:
    room.keys()
    shop = NAMES[0]
    party = room.of(shop).peek(room.collector.session.id)
    path = room.folder / f"s{NUMBERS[shop]}.sqlite"
    secrets = [party.seed, party.mask_secret, party.sealing_secret]
    assert all(secret.hex().encode() in path.read_bytes() for secret in secrets)
    room.shares()
    room.masked()
    room.views()
    room.unmask()
    assert not any(secret.hex().encode() in path.read_bytes() for secret in secrets)


def test_secrets_of_a_session_that_a_later_one_ended_are_in_no_file(room: Room) -> None:
    room.keys()
    room.shares()
    shop = NAMES[0]
    party = room.of(shop).peek(room.collector.session.id)
    later = KeysRequest(session=make_session(room.roster, 5, 3))
    room.of(shop).begin(later.model_dump_json(), take_part)
    secrets = [party.seed, party.mask_secret, party.sealing_secret, party.kept_shares]
    files = list(room.folder.glob(f"s{NUMBERS[shop]}.sqlite*"))
    assert len(files) > 1
    for path in files:
        assert not any(secret.hex().encode() in path.read_bytes() for secret in secrets)


def test_a_file_that_cannot_be_written_stops_the_shop(room: Room, tmp_path: Path) -> None:
    identity = make_identity(0, room.roster)
    with pytest.raises(LedgerError, match="cannot be written"):
        Sessions(tmp_path / "none" / "there" / "s.sqlite", identity).begin(room.first, take_part)
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 20)
    with pytest.raises(LedgerError, match="cannot be written"):
        Sessions(tmp_path / "text", identity).begin(room.first, take_part)
    assert begin(room.collector.session, identity)[0].stage == "keys"


def test_what_masks_are_made_of_is_gone_once_they_are_made(room: Room) -> None:
    room.keys()
    room.shares()
    shop = NAMES[0]
    party = room.of(shop).peek(room.collector.session.id)
    path = room.folder / f"s{NUMBERS[shop]}.sqlite"
    assert len(party.seed) == len(party.mask_secret) == 32
    room.masked([shop])
    for secret in (party.seed, party.mask_secret):
        assert secret.hex().encode() not in path.read_bytes()


def test_what_is_gone_from_the_file_is_gone_from_its_journal_too(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal holds the pages before each change: unlinked, its bytes would stay on the disk."""
    room.keys()
    room.shares()
    me = room.of(NAMES[0])
    party = me.peek(room.collector.session.id)
    path = room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite"
    journal, kept = path.with_name(f"{path.name}-journal"), path.with_name("kept")
    secrets, seen = [s.hex().encode() for s in (party.seed, party.mask_secret)], []
    store = Sessions._store

    def keep(connection: sqlite3.Connection, changed: Party) -> None:
        store(connection, changed)
        os.link(journal, kept)
        seen.append(kept.read_bytes())

    monkeypatch.setattr(Sessions, "_store", staticmethod(keep))
    me.mask(room.collector.masked_request(NAMES[0]).model_dump_json())
    assert all(secret in seen[0] for secret in secrets)
    for file in (path, kept):
        assert not any(secret in file.read_bytes() for secret in secrets), file


def kill_in_commit(path: Path) -> bytes:
    """Kill a process that has begun to write to the file; return its journal, which counts now."""
    # What does not fit the cache is written at once, as in a commit.
    program = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('PRAGMA cache_size = 1')\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "connection.execute('UPDATE sessions SET party = NULL')\n"
        "rows = [(bytes([k]), 'x' * 4000) for k in range(64)]\n"
        "connection.executemany('INSERT INTO sessions VALUES (?, ?)', rows)\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    journal = path.with_name(f"{path.name}-journal").read_bytes()
    assert journal[0]
    return journal


def test_what_a_process_killed_in_a_commit_left_is_overwritten_once_it_is_rolled_back(
    room: Room,
) -> None:
    """SQLite unlinks such a journal, with the secrets in it, before it can be told to keep it."""
    room.keys()
    me = room.of(NAMES[0])
    path = room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite"
    party = me.peek(room.collector.session.id)
    left = kill_in_commit(path)
    secrets = [s.hex().encode() for s in (party.seed, party.mask_secret, party.sealing_secret)]
    assert all(secret in left for secret in secrets)
    with path.with_name(f"{path.name}-journal").open("rb") as journal:
        assert me.peek(room.collector.session.id) == party
        assert not journal.read().strip(b"\0")


def test_a_journal_that_is_still_to_be_rolled_back_is_not_overwritten(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the half of a change that reached the file would stay there."""
    room.keys()
    me = room.of(NAMES[0])
    path = room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite"
    party = me.peek(room.collector.session.id)
    left = kill_in_commit(path)

    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", refuse)
        with pytest.raises(LedgerError, match="cannot be written"):
            me.peek(room.collector.session.id)
    assert path.with_name(f"{path.name}-journal").read_bytes() == left
    assert me.peek(room.collector.session.id) == party


def test_a_roster_that_changes_within_a_session_ends_it_for_the_shop(room: Room) -> None:
    """By the new roster's places a shop would seal shares for others than the old one counted."""
    room.keys()
    room.shares()
    request = room.collector.masked_request(NAMES[0]).model_dump_json()
    later = Sessions(room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite", make_identity(0, make_roster(5)))
    with pytest.raises(SecureSumError, match="another roster"):
        later.mask(request)
    room.masked()
    with pytest.raises(SecureSumError, match="another roster"):
        later.see(room.collector.view_request().model_dump_json())
    room.views()
    with pytest.raises(SecureSumError, match="another roster"):
        later.unmask(room.collector.unmask_request().model_dump_json())


def test_on_a_full_disk_a_shop_says_nothing_and_stays_where_it_was(room: Room) -> None:
    room.keys()
    me = room.of(NAMES[0])
    request = room.collector.shares_request().model_dump_json()
    path = room.folder / f"s{NUMBERS[NAMES[0]]}.sqlite"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python turns the signal into an error, as of a disk that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        with pytest.raises(LedgerError, match="cannot be written"):
            me.share(request)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert me.peek(room.collector.session.id).stage == "keys"
    room.shares()
    room.masked()
    room.views()
    room.unmask()
    assert np.array_equal(room.collector.sum(), VECTOR * np.uint32(4))


def test_a_file_that_is_gone_within_a_session_ends_it_for_the_shop(room: Room) -> None:
    """The others do without it; begun again, the session has other keys than they were shown."""
    room.keys()
    room.shares()
    shop = NAMES[0]
    (room.folder / f"s{NUMBERS[shop]}.sqlite").unlink()
    with pytest.raises(SecureSumError, match="no such session"):
        room.of(shop).mask(room.collector.masked_request(shop).model_dump_json())
    shown = {a.shop: a for a in room.collector.shares_request().advertisements}
    again = parse(Advertisement, room.of(shop).begin(room.first, take_part))
    assert again.mask_key != shown[shop].mask_key
    with pytest.raises(SecureSumError, match="own keys"):
        room.of(shop).share(room.collector.shares_request().model_dump_json())
    room.masked(NAMES[1:])
    room.views()
    room.unmask()
    assert np.array_equal(room.collector.sum(), VECTOR * np.uint32(3))
