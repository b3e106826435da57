import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from client.privacy import budget
from client.privacy.events import EVALUATED, SESSION, SHARED_STEP, entry_hash
from client.privacy.ledger import CAP, DP_SGD, Ledger
from common import accounting
from common.accountants import composition
from common.accounting import Spend
from common.errors import BudgetError, LedgerError, SecureSumError
from common.protocol import NO_FINGERPRINT
from common.statement import at_most
from ledger_support import DELTA, HIST, ROUND, charge, cost, rounds


def test_what_is_written_comes_back_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        assert ledger.head() == NO_FINGERPRINT
        assert ledger.epsilon(DELTA) == {}
        first = ledger.append(HIST)
    with Ledger.open(path, known_head=first) as ledger:
        assert ledger.head() == first
        second = ledger.append(ROUND)
        entries = ledger.verify()
        assert [entry.event for entry in entries] == [HIST, ROUND]
        assert [entry.hash for entry in entries] == [first, second]
        assert ledger.epsilon(DELTA)["customer"].value == cost(HIST, ROUND)
    written = datetime.fromisoformat(entries[0].at)
    assert str(written.tzinfo) == "UTC"


def test_however_it_is_opened_an_entry_is_synced_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after an update has left must not take back the entry that pays for it."""
    folders: list[Path] = []
    monkeypatch.setattr("client.privacy.ledger.sync", folders.append)
    path = tmp_path / "shop" / "privacy" / "l"
    head = charge(path, ROUND, 20.0)
    # The ledger's name, and those of the folders that were made for it.
    synced = [path.parent, path.parent.parent, tmp_path]
    assert folders == synced
    for opened in (
        Ledger.open(path),
        Ledger.open(path, known_head=head),
        Ledger.open_existing(path),
    ):
        with opened as ledger:
            # 3 is EXTRA: file, journal and, once the journal is gone, their folder.
            assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (3,)
            assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert folders == synced


def test_the_table_has_the_columns_of_the_contract(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "l").close()
    connection = sqlite3.connect(tmp_path / "l")
    names = [row[1] for row in connection.execute("PRAGMA table_info(events)")]
    connection.close()
    wanted = (
        "seq, at, mechanism, noise_multiplier, sample_rate, steps, unit, relation, run_id, "
        "server_round, code_digest, parameters, prev_hash, hash"
    )
    assert ", ".join(names) == wanted


def test_a_plan_is_admitted_whole_or_not_at_all(tmp_path: Path) -> None:
    path, plan = tmp_path / "l", [HIST, *rounds(4)]
    cap = cost(*plan)
    with pytest.raises(BudgetError) as refusal:
        charge(path, plan[0], cap - 0.01, plan[1:])
    assert "3 of its 4 rounds fit" in str(refusal.value)
    with Ledger.open(path) as ledger:
        assert ledger.events() == []
        ledger.check(plan, cap_epsilon=cap, delta=DELTA)
        with pytest.raises(BudgetError):
            ledger.check(plan, cap_epsilon=cap - 0.01, delta=DELTA)
    for position, event in enumerate(plan):
        charge(path, event, cap, plan[position + 1 :])
    with Ledger.open(path) as ledger:
        assert ledger.epsilon(DELTA)["customer"].value == cap


def test_what_has_no_rounds_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "l"
    evaluation = replace(HIST, mechanism=EVALUATED)
    cap = cost(evaluation) - 0.01
    with pytest.raises(BudgetError, match="the released evaluation does not fit; release it for"):
        charge(path, evaluation, cap)
    with pytest.raises(BudgetError, match=r"the rest of this plan.*: it does not fit; take a"):
        charge(path, HIST, cap)
    with Ledger.open(path) as ledger:
        assert ledger.events() == []


def test_a_redone_round_is_charged_again_and_may_be_one_too_many(tmp_path: Path) -> None:
    path, plan = tmp_path / "l", rounds(3)
    cap = cost(*plan)
    charge(path, plan[0], cap, plan[1:])
    with pytest.raises(BudgetError, match="2 of its 3 rounds fit") as refusal:
        charge(path, plan[0], cap, plan[1:])
    assert f"{at_most(cost(plan[0]))} is spent so far" in str(refusal.value)
    charge(path, plan[0], cap)
    charge(path, plan[0], cap)
    with pytest.raises(BudgetError, match="0 of its 1 rounds fit"):
        charge(path, plan[0], cap)
    with Ledger.open(path) as ledger:
        assert len(ledger.verify()) == 3


def test_a_session_is_not_charged_twice_whatever_was_charged_since(tmp_path: Path) -> None:
    """Sessions that are put back may be older than the last one: each would get a second vector."""
    path = tmp_path / "l"
    sums = [replace(ROUND, mechanism=SHARED_STEP, parameters={SESSION: name}) for name in "ab"]
    for event in (*sums, ROUND):
        charge(path, event, 20.0)
    for event in sums:
        with pytest.raises(SecureSumError, match="already"):
            charge(path, event, 20.0)
    assert len(Ledger.read(path)) == 3


def test_an_admitted_event_keeps_its_cap_and_a_raised_cap_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "l"
    for cap in (20.0, 20.0, 30.0, 25.0):
        charge(path, ROUND, cap)
    with Ledger.open(path) as ledger:
        events = [entry.event for entry in ledger.verify()]
        assert ledger.epsilon(DELTA)["customer"].value == cost(*[ROUND] * 4)
    assert [event.mechanism for event in events] == [DP_SGD, DP_SGD, CAP, DP_SGD, DP_SGD]
    assert events[2].steps == 0
    assert events[2].parameters == {"cap_epsilon": 30.0, "cap_delta": DELTA, "raised_from": 20.0}
    assert events[3].parameters == {"plan": "p", "cap_epsilon": 30.0, "cap_delta": DELTA}


def test_a_larger_delta_raises_the_cap_and_is_logged(tmp_path: Path) -> None:
    """The same cap at a larger delta admits what was over it: as much a raise as another number."""
    path, cap = tmp_path / "l", cost(ROUND)
    charge(path, ROUND, cap)
    with pytest.raises(BudgetError):
        charge(path, ROUND, cap)
    with Ledger.open(path) as ledger:
        ledger.charge(ROUND, cap_epsilon=cap, delta=1e-2)
        ledger.charge(ROUND, cap_epsilon=cap, delta=1e-2)
        events = [entry.event for entry in ledger.verify()]
    assert [event.mechanism for event in events] == [DP_SGD, CAP, DP_SGD, DP_SGD]
    assert events[1].steps == 0
    assert events[1].parameters == {
        "cap_epsilon": cap,
        "cap_delta": 1e-2,
        "raised_from": cap,
        "raised_from_delta": DELTA,
    }


def test_units_are_composed_apart(tmp_path: Path) -> None:
    path, basket = tmp_path / "l", replace(ROUND, unit="basket")
    cap = cost(ROUND, ROUND)
    for event in (ROUND, basket, ROUND, basket):
        charge(path, event, cap)
    with pytest.raises(BudgetError, match="per basket"):
        charge(path, basket, cap)
    with Ledger.open(path) as ledger:
        assert {u: e.value for u, e in ledger.epsilon(DELTA).items()} == {
            "basket": cap,
            "customer": cap,
        }


def test_entries_cannot_be_changed_through_sqlite(tmp_path: Path) -> None:
    charge(tmp_path / "l", ROUND, 50.0)
    connection = sqlite3.connect(tmp_path / "l")
    for statement in ("UPDATE events SET steps = 0", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE events SET steps = 1 WHERE seq = 2",
        "UPDATE events SET parameters = '{}' WHERE seq = 1",
        "UPDATE events SET noise_multiplier = 9 WHERE seq = 3",
        "DELETE FROM events WHERE seq = 2",
        "DELETE FROM events WHERE seq = 1",
    ],
)
def test_tampering_is_found_and_stops_training(tmp_path: Path, tampering: str) -> None:
    path = tmp_path / "l"
    for event in rounds(3):
        charge(path, event, 50.0)
    connection = sqlite3.connect(path)
    connection.executescript(
        f"DROP TRIGGER events_no_update; DROP TRIGGER events_no_delete;{tampering}"
    )
    connection.close()
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match="not as it was written"):
            ledger.verify()
        with pytest.raises(LedgerError, match="not as it was written"):
            ledger.epsilon(DELTA)
    with pytest.raises(LedgerError, match="not as it was written"):
        charge(path, ROUND, 50.0)


def test_no_column_of_an_entry_is_changed_unseen(tmp_path: Path) -> None:
    """With another unit or no steps an entry would cost nothing."""
    changed = {
        "seq": 9,
        "at": "2001-01-01T00:00:00+00:00",
        "mechanism": CAP,
        "noise_multiplier": 9.0,
        "sample_rate": 0.5,
        "steps": 0,
        "unit": "basket",
        "relation": "replace",
        "run_id": "b",
        "server_round": 7,
        "code_digest": "d" * 64,
        "parameters": "{}",
        "prev_hash": "e" * 64,
        "hash": "f" * 64,
    }
    whole, path = tmp_path / "whole", tmp_path / "l"
    charge(whole, ROUND, 50.0)
    for column, value in changed.items():
        shutil.copy(whole, path)
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(events)")]
        assert columns == list(changed)
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute(f"UPDATE events SET {column} = ?", (value,))
        connection.close()
        with pytest.raises(LedgerError, match="not as it was written"):
            Ledger.read(path)


def test_an_entry_that_is_written_anew_under_a_hash_of_its_own_breaks_the_chain(
    tmp_path: Path,
) -> None:
    """Only the entry after it tells: the newest head, which others remember, is as it was."""
    path = tmp_path / "l"
    heads = [charge(path, event, 50.0) for event in rounds(3)]
    entry = Ledger.read(path)[1]
    cheaper = replace(entry.event, steps=0)
    new = entry_hash(entry.seq, entry.at, cheaper, entry.prev_hash)
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER events_no_update")
    with connection:
        connection.execute("UPDATE events SET steps = 0, hash = ? WHERE seq = 2", (new,))
    connection.close()
    with pytest.raises(LedgerError, match="entry 3"):
        Ledger.read(path, known_head=heads[-1])


def test_a_ledger_that_is_gone_is_no_new_one_to_who_remembers_it(tmp_path: Path) -> None:
    path = tmp_path / "l"
    head = charge(path, ROUND, 50.0)
    for gone in (path.unlink, path.touch):
        gone()
        assert Ledger.read(path) == []
        with pytest.raises(LedgerError, match="missing, emptied"):
            Ledger.read(path, known_head=head)


def test_a_restored_old_copy_does_not_know_the_newest_head(tmp_path: Path) -> None:
    path = tmp_path / "l"
    charge(path, ROUND, 50.0)
    old = path.read_bytes()
    head = charge(path, ROUND, 50.0)
    path.write_bytes(old)
    assert len(Ledger.read(path)) == 1
    with pytest.raises(LedgerError, match="older copy"):
        Ledger.read(path, known_head=head)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(b"not a database, but long enough to be read as one" * 20)
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.open(path)
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path)


def test_a_value_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        with pytest.raises(LedgerError):
            ledger.append(replace(ROUND, parameters={"x": float("nan")}))
        assert ledger.events() == []


@pytest.mark.slow  # It measures time: a slow moment of the machine must not fail the suite.
def test_ten_thousand_entries_are_accounted_in_a_second(tmp_path: Path) -> None:
    path = tmp_path / "l"
    prices = [(20.0, 0.1), (30.0, 0.05), (25.0, 0.1), (40.0, 1.0), (35.0, 0.2)]
    with Ledger.open(path) as ledger, ledger._writing():
        for i in range(10_000):
            sigma, rate = prices[i % 5]
            ledger._insert(replace(ROUND, noise_multiplier=sigma, sample_rate=rate))
    cost(ROUND)  # Accountants are slow to load.
    seconds = []
    for attempt in range(3):
        accounting._epsilon.cache_clear()
        composition._rdp_of_step.cache_clear()
        before = time.process_time()
        with Ledger.open(path) as ledger:
            found = ledger.epsilon(DELTA)["customer"]
        read = time.process_time() - before
        assert not found.upper_bound
        # A charge verifies the chain too, and composes what was spent with what is to come.
        event = replace(ROUND, noise_multiplier=20.0, sample_rate=0.1, server_round=attempt)
        before = time.process_time()
        charge(path, event, 50.0, [event] * 100)
        seconds.append((read, time.process_time() - before))
    assert min(read for read, _ in seconds) < 1
    assert min(charged for _, charged in seconds) < 1


def test_a_refusal_composes_a_handful_of_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, asked = rounds(200), []

    def counting(spends: Sequence[Spend], delta: float, cap: float) -> bool:
        asked.append(len(spends))
        return accounting.fits(spends, delta, cap)

    monkeypatch.setattr(budget, "fits", counting)
    charge(tmp_path / "l", plan[0], cost(*plan[:150]), plan[1:150])
    assert len(asked) == 1
    with pytest.raises(BudgetError, match="149 of its 200 rounds fit"):
        charge(tmp_path / "l", plan[0], cost(*plan[:150]), plan[1:])
    assert len(asked) <= 12
