import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from client.privacy import budget
from client.privacy import ledger as ledger_module
from client.privacy.ledger import CAP, DP_SGD, HISTOGRAM, Event, Ledger
from common import accounting, composition
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
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match="not as it was written"):
            ledger.verify()
        with pytest.raises(LedgerError, match="not as it was written"):
            ledger.epsilon(DELTA)
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


_KILLED = """
import os, random, signal, sys, time
from client.privacy.ledger import *
from common.accounting import Spend, epsilon
path, seed = sys.argv[1], int(sys.argv[2])
choose = random.Random(seed)
epsilon([Spend(4.0, 1.0, 2)], 1e-5)
for attempt in range(40):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            with Ledger.open(path) as ledger:
                event = Event("dp-sgd", 400.0, 1.0, 2, "customer", parameters={"note": "x" * 900})
                head = ledger.charge(event, cap_epsilon=99.0, delta=1e-5)
            os.write(writing, head.encode() + b"\\n")
    time.sleep(choose.uniform(0.0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        promised = [line.strip() for line in lines]
    hashes = [entry.hash for entry in Ledger.read(path, known_head=(promised or ["0" * 64])[-1])]
    place = hashes.index(promised[0]) if promised else len(hashes)
    # At most the one entry that was never acknowledged follows those that were.
    assert hashes[place : place + len(promised)] == promised
    assert len(hashes) - place - len(promised) in (0, 1), (hashes, promised)
print(len(hashes))
"""


def test_a_kill_at_any_instant_loses_no_entry_and_leaves_a_whole_chain(tmp_path: Path) -> None:
    process = python(_KILLED, tmp_path / "l", 1)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert int(out) > 0
    charge(tmp_path / "l", ROUND, 50.0)


_FULL = """
import resource, shutil, sys
from client.privacy.ledger import *
from common.errors import LedgerError
path, size = sys.argv[1], int(sys.argv[2])
event = Event("dp-sgd", 40.0, 1.0, 2, "customer", parameters={"note": "x" * 3000})
# Down to nothing: then not even the journal can be written that a change begins with.
for limit in (100, size, size + 4096, size + 8192, size + 20000):
    copy = f"{path}-{limit}"
    shutil.copy(path, copy)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    written, refused = [Ledger.read(copy)[-1].hash], 0
    for _ in range(12):
        try:
            with Ledger.open(copy) as ledger:
                written.append(ledger.charge(event, cap_epsilon=50.0, delta=1e-5))
        except LedgerError:
            refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert refused, limit
    with Ledger.open(copy, known_head=written[-1]) as ledger:
        assert [entry.hash for entry in ledger.verify()] == written
        ledger.charge(event, cap_epsilon=50.0, delta=1e-5)  # with room again, it goes on
    print(limit, len(written))
"""


def test_a_disk_that_fills_up_during_a_charge_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l"
    charge(path, ROUND, 50.0)
    process = python(_FULL, path, path.stat().st_size)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    lengths = [int(line.split()[1]) for line in out.splitlines()]
    assert lengths[0] == 1
    assert lengths[-1] > 1


def test_a_clock_that_jumps_changes_no_order_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([2026, 1970, 9999, 2026, 2001])

    class Clock:
        @staticmethod
        def now(zone: tzinfo) -> datetime:
            return datetime(next(times), 1, 1, tzinfo=zone)

    monkeypatch.setattr(ledger_module, "datetime", Clock)
    heads = [charge(tmp_path / "l", replace(ROUND, server_round=i), 50.0) for i in range(5)]
    entries = Ledger.read(tmp_path / "l", known_head=heads[-1])
    assert [entry.hash for entry in entries] == heads
    assert [entry.event.server_round for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry.at[:4] for entry in entries] == ["2026", "1970", "9999", "2026", "2001"]


def test_a_file_that_was_cut_off_never_passes_for_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "l"
    head = [charge(path, replace(r, parameters={"x": "y" * 999}), 50.0) for r in rounds(12)][-1]
    whole = path.read_bytes()
    for size in [0, 1, 100, 1024, *range(4096, len(whole), 4096), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(LedgerError):
            Ledger.read(path, known_head=head)
        with pytest.raises(LedgerError), Ledger.open(path, known_head=head) as ledger:
            ledger.charge(ROUND, cap_epsilon=50.0, delta=DELTA)
        assert path.read_bytes() == whole[:size]
    path.write_bytes(whole)
    assert len(Ledger.read(path, known_head=head)) == 12


@pytest.mark.parametrize(
    "content", [b"x" * 5000, b"SQLite format 3\0" + b"\7" * 5000, b"\0" * 8192]
)
def test_a_file_replaced_by_garbage_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l"
    path.write_bytes(content)
    for known_head in ("a" * 64, NO_FINGERPRINT):
        with pytest.raises(LedgerError):
            Ledger.read(path, known_head=known_head)
        with pytest.raises(LedgerError):
            Ledger.open(path, known_head=known_head)
    assert path.read_bytes() == content


@pytest.mark.parametrize("value", ["'{'", "'null'", "x'00'"])
def test_an_entry_that_cannot_even_be_read_is_named(tmp_path: Path, value: str) -> None:
    path = tmp_path / "l"
    for event in rounds(3):
        charge(path, event, 50.0)
    connection = sqlite3.connect(path)
    connection.executescript(
        f"DROP TRIGGER events_no_update; UPDATE events SET parameters = {value} WHERE seq = 2"
    )
    connection.close()
    with pytest.raises(LedgerError, match="entry 2 of the ledger"):
        Ledger.read(path)


def test_an_infinite_noise_multiplier_is_no_valid_entry(tmp_path: Path) -> None:
    path = tmp_path / "l"
    charge(path, ROUND, 50.0)
    connection = sqlite3.connect(path)
    connection.executescript(
        "DROP TRIGGER events_no_update; UPDATE events SET noise_multiplier = 9e999"
    )
    connection.close()
    with pytest.raises(LedgerError, match="entry 1 of the ledger"):
        Ledger.read(path)


def test_a_ledger_that_may_only_be_read_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "l"
    head = charge(path, ROUND, 50.0)
    path.chmod(0o444)
    assert [entry.hash for entry in Ledger.read(path, known_head=head)] == [head]


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
