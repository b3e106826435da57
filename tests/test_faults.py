"""What breaks, breaks in view: processes die and fall silent, and no budget is lost from sight."""

from pathlib import Path

import pytest

from deployment_support import SECONDS
from faults_support import charged, check_ended_well, end_of, fragile, patience

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_a_shop_killed_before_a_run_is_done_without(tmp_path: Path) -> None:
    with fragile(tmp_path, home=True) as federation:
        south = federation.shops["south"]
        # SuperLink still takes it for connected, and asks it.
        federation.kill(south)
        federation.train()
        status, said = end_of(federation)
        check_ended_well(federation, status, said)
        assert [e["accepted"] for e in federation.events("round")] == [1], said
        assert federation.paid(south) == []
        assert federation.brought_home(federation.shops["north"])
        assert not federation.brought_home(south)


def test_a_shop_killed_while_it_trains_and_started_again_at_once(tmp_path: Path) -> None:
    with fragile(tmp_path) as federation:
        south = federation.shops["south"]
        federation.train()
        federation.wait_for("release", 0)
        federation.wait_for_app(south)
        federation.kill(south)
        federation.open(south)
        status, said = end_of(federation)
        check_ended_well(federation, status, said)
        (training,) = federation.events("round")
        assert training["declined"] == {"error": 1}, said
        assert "south: error" in said
        # Where it paid for the round that it died in, that stays paid.
        first = training["run"]
        paid = charged(federation, south, first)
        assert paid in ([0], [0, 1])
        # The federation still held its last connection; now it is let in, and trains again.
        federation.wait_until_connected(south, SECONDS)
        federation.train()
        status, said = end_of(federation)
        check_ended_well(federation, status, said, runs=2)
        last = federation.events("round")[-1]
        assert last["accepted"] == 2, said
        # Killed after a run: what it was charged for is on its disk.
        federation.kill(south)
        assert charged(federation, south, first) == paid
        assert charged(federation, south, last["run"]) == [0, 1]
        federation.check_accounts()


def test_superlink_killed_while_a_run_goes_on(tmp_path: Path) -> None:
    with fragile(tmp_path, plan={"rounds": 2}, home=True) as federation:
        federation.train()
        federation.wait_for("release", 0)
        before = federation.kill_service("superlink")
        status, said = end_of(federation)
        check_ended_well(federation, status, said)
        assert federation.service_pid("superlink") != before
        assert federation.services()["programs"]["superlink"]["restarts"] == 1
        assert [e["server_round"] for e in federation.events("round")] == [1, 2], said
        assert not any(e["kept_old_model"] for e in federation.events("round")), said


def test_a_shop_that_never_answers(tmp_path: Path) -> None:
    with fragile(tmp_path, plan={"timeout_seconds": patience()}) as federation:
        south = federation.shops["south"]
        # Its node goes on to say that it is there; what it is asked is never worked at.
        federation.pause(federation.shop_pid(south, "superexec"))
        federation.train()
        status, said = end_of(federation)
        check_ended_well(federation, status, said)
        assert federation.events("join")[0]["declined"] == {"late": 1}
        assert [e["accepted"] for e in federation.events("round")] == [1], said
        assert "south: late" in said
        assert federation.paid(south) == []


def test_a_run_in_which_no_shop_answers_ends_with_a_clear_word(tmp_path: Path) -> None:
    with fragile(tmp_path, plan={"timeout_seconds": 15.0}) as federation:
        for shop in federation.shops.values():
            federation.pause(federation.shop_pid(shop, "superexec"))
        federation.train()
        status, said = end_of(federation)
        assert status == 1
        assert "no shop takes part: 2 late" in said
        assert "Traceback" not in said
        assert federation.versions() == []
        assert all(federation.paid(shop) == [] for shop in federation.shops.values())
