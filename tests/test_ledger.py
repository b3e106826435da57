import os
import resource
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from client.privacy.ledger import CAP, DP_SGD, HISTOGRAM, Event, Ledger
from common.accounting import Spend, epsilon
from common.errors import BudgetError, LedgerError
from common.protocol import NO_FINGERPRINT

DELTA = 1e-5
Process = subprocess.Popen[str]
HIST = Event(HISTOGRAM, 4.0, 1.0, 1, "customer", run_id="a", code_digest="c" * 64)
ROUND = Event(DP_SGD, 4.0, 1.0, 2, "customer", run_id="a", parameters={"plan": "p"})


def cost(*events: Event) -> float:
    return epsilon([Spend(e.noise_multiplier, e.sample_rate, e.steps) for e in events], DELTA).value


def rounds(n: int) -> list[Event]:
    return [replace(ROUND, server_round=i) for i in range(1, n + 1)]


def charge(path: Path, event: Event, cap: float, remaining: list[Event] | None = None) -> str:
    with Ledger.open(path) as ledger:
        return ledger.charge(event, cap_epsilon=cap, delta=DELTA, remaining=remaining or [])


def python(code: str, *arguments: object, fails_above: int | None = None) -> Process:
    """Start Python; ``fails_above`` is the size in bytes that no file can outgrow."""

    def limit() -> None:
        if fails_above is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fails_above, fails_above))

    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


def test_what_is_written_comes_back_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        assert ledger.head() == NO_FINGERPRINT
        assert ledger.epsilon(DELTA) == {}
        first = ledger.append(HIST)
    with Ledger.open(path) as ledger:
        assert ledger.head() == first
        second = ledger.append(ROUND)
        entries = ledger.verify(known_head=first)
        assert [entry.event for entry in entries] == [HIST, ROUND]
        assert [entry.hash for entry in entries] == [first, second]
        assert ledger.epsilon(DELTA)["customer"].value == cost(HIST, ROUND)
    written = datetime.fromisoformat(entries[0].at)
    assert str(written.tzinfo) == "UTC"


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


def test_a_redone_round_is_charged_again_and_may_be_one_too_many(tmp_path: Path) -> None:
    path, plan = tmp_path / "l", rounds(3)
    cap = cost(*plan)
    charge(path, plan[0], cap, plan[1:])
    with pytest.raises(BudgetError, match="2 of its 3 rounds fit") as refusal:
        charge(path, plan[0], cap, plan[1:])
    assert f"{cost(plan[0]):.4g} is spent so far" in str(refusal.value)
    charge(path, plan[0], cap)
    charge(path, plan[0], cap)
    with pytest.raises(BudgetError, match="0 of its 1 rounds fit"):
        charge(path, plan[0], cap)
    with Ledger.open(path) as ledger:
        assert len(ledger.verify()) == 3


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
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="not as it was written"):
        ledger.verify()
    with pytest.raises(LedgerError, match="not as it was written"):
        charge(path, ROUND, 50.0)


def test_a_restored_old_copy_does_not_know_the_newest_head(tmp_path: Path) -> None:
    path = tmp_path / "l"
    charge(path, ROUND, 50.0)
    old = path.read_bytes()
    head = charge(path, ROUND, 50.0)
    path.write_bytes(old)
    with Ledger.open(path) as ledger:
        ledger.verify()
        with pytest.raises(LedgerError, match="older copy"):
            ledger.verify(known_head=head)


def test_two_processes_at_once_lose_nothing_and_stay_under_the_cap(tmp_path: Path) -> None:
    path, fits = tmp_path / "l", 7
    cap = cost(*rounds(fits))
    code = """
import sys
from client.privacy.ledger import *
from common.errors import BudgetError
event = Event("dp-sgd", 4.0, 1.0, 2, "customer")
done = 0
for _ in range(6):
    with Ledger.open(sys.argv[1]) as ledger:
        try:
            ledger.charge(event, cap_epsilon=float(sys.argv[2]), delta=1e-5)
            done += 1
        except BudgetError:
            pass
print(done)
"""
    both = [python(code, path, cap) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum(int(out) for out, _ in outputs) == fits
    with Ledger.open(path) as ledger:
        assert len(ledger.verify()) == fits


def test_what_was_written_before_a_kill_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "l"
    code = """
import sys
from client.privacy.ledger import *
with Ledger.open(sys.argv[1]) as ledger:
    while True:
        print(ledger.append(Event("dp-sgd", 4.0, 1.0, 2, "customer")), flush=True)
"""
    process = python(code, path)
    assert process.stdout is not None
    seen = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    seen += [line.strip() for line in process.communicate()[0].splitlines() if len(line) == 65]
    with Ledger.open(path) as ledger:
        hashes = [entry.hash for entry in ledger.verify(known_head=seen[-1])]
        assert hashes[: len(seen)] == seen
        ledger.append(ROUND)


def test_a_full_disk_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l"
    charge(path, ROUND, 50.0)
    size = path.stat().st_size
    code = """
import sys
from client.privacy.ledger import *
from common.errors import LedgerError
event = Event("dp-sgd", 4.0, 1.0, 2, "customer", parameters={"note": "x" * 3000})
with Ledger.open(sys.argv[1]) as ledger:
    try:
        for _ in range(9):
            ledger.append(event)
            print("written")
    except LedgerError as error:
        print("refused")
"""

    out, err = python(code, path, fails_above=size).communicate(timeout=60)
    *written, last = out.split()
    assert last == "refused", err
    with Ledger.open(path) as ledger:
        assert len(ledger.verify()) == 1 + len(written)


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


def test_a_thousand_entries_are_accounted_quickly(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Ledger.open(path) as ledger:
        with ledger._writing():
            for _ in range(1000):
                ledger._insert(replace(ROUND, sample_rate=0.1, steps=1, noise_multiplier=20.0))
        before = os.times().user
        assert ledger.charge(ROUND, cap_epsilon=100.0, delta=DELTA)
        assert os.times().user - before < 5
