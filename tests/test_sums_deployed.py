"""Secure sums in a deployed federation: real processes, keys, ledgers and gateway, and faults."""

import json
from collections.abc import Iterator

import pytest

from client.privacy.events import SHARED_HISTOGRAM, SHARED_STEP
from malice_support import GAINED, MODE, malicious_code
from server.registry.versions import Registry
from sums_deployed_support import SHOPS, THRESHOLD, Summing, summing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Summing]:
    """Make one deployment for all: what is tested are runs, which share nothing but the ledgers."""
    with summing(tmp_path_factory.mktemp("town")) as federation:
        yield federation


@pytest.fixture(autouse=True)
def _everyone_is_well(town: Summing) -> None:
    town.heal()


def test_a_clean_run_ends_in_a_model_and_charges_everyone_for_a_share_of_its_noise(
    town: Summing,
) -> None:
    run = town.run("--rounds", "1")
    assert run.status == 0, run.said
    assert "Traceback" not in run.said
    for kind in ("join", "release", "round", "home"):
        assert (run.of(kind)["asked"], run.of(kind)["accepted"]) == (5, 5), run.said
    assert not run.of("round")["kept_old_model"]
    for name in SHOPS:
        assert run.paid(name) == [(0, SHARED_HISTOGRAM, 3, 0), (1, SHARED_STEP, 3, 0)]
        assert town.brought_home(town.shops[name]) == run.name
    assert run.likeness() > 0.9
    town.check_accounts()
    _, artifact = Registry(town.operator / "registry").read()
    privacy = artifact.manifest.privacy
    assert privacy is not None
    assert (privacy["trust"], privacy["honest_shops"], privacy["colluding_shops"]) == (
        "federation", 3, 0,
    )  # fmt: skip
    status = json.loads(town.server("status", "--json"))["run"]
    assert status["sums"] == {
        "honest_shops": 3, "colluding_shops": 0, "survivors": [5, 5], "left_out": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "accepted", "unpaid"),
    [
        ("sum_keys: die after", "sum_masked: die before", 3, {"ben", "dan"}),
        ("sum_shares: die after", "sum_view: die after", 4, {"ben"}),
        # Its vector is paid for and lost, and what hid the others' from it is still in their sum.
        ("sum_masked: die after", "sum_unmask: die after", 4, set()),
    ],
)
def test_shops_that_die_at_any_stage_are_done_without(
    town: Summing, first: str, second: str, accepted: int, unpaid: set[str]
) -> None:
    dying = {"ben": first.split(": "), "dan": second.split(": ")}
    for name, (stage, fault) in dying.items():
        town.plant_faults(town.shops[name], {f"{stage} 0": fault})
    run = town.run()
    for name, (stage, fault) in dying.items():
        assert town.done(town.shops[name]) == [[stage, 0, fault]], run.said
        assert f"{name}: error" in run.said
    assert run.status == 0, run.said
    assert "Traceback" not in run.said
    release = run.of("release")
    assert (release["asked"], release["accepted"]) == (5, accepted), run.said
    assert release["declined"] == {"error": 2}
    assert run.payers(0) == set(SHOPS) - unpaid
    # Who died before its vector was there is not in the sum, who died later is.
    assert run.likeness({"ben"} if accepted == 4 else {"ben", "dan"}) > 0.9
    town.check_accounts()


def test_shops_that_say_again_what_they_said_or_sign_with_another_key_are_left_out(
    town: Summing,
) -> None:
    ben, dan = town.shops["ben"], town.shops["dan"]
    if not town.has_said(dan, "sum_keys"):
        town.run()
    town.plant_faults(ben, {"sum_keys 0": "forge"})
    town.plant_faults(dan, {"sum_keys 0": "replay"})
    run = town.run()
    assert run.status == 0, run.said
    assert "Traceback" not in run.said
    assert town.done(ben) == [["sum_keys", 0, "forge"]]
    assert town.done(dan) == [["sum_keys", 0, "replay"]]
    release = run.of("release")
    assert (release["asked"], release["accepted"]) == (5, 3), run.said
    assert release["declined"] == {"rubbish": 2}
    assert run.payers(0) == set(SHOPS) - {"ben", "dan"}
    assert run.likeness({"ben", "dan"}) > 0.9
    town.check_accounts()


def test_too_few_survivors_and_nothing_is_unmasked(town: Summing) -> None:
    gone = ("ada", "ben", "dan")
    assert len(SHOPS) - len(gone) < THRESHOLD
    for name in gone:
        town.plant_faults(town.shops[name], {"sum_view 0": "die after"})
    run = town.run()
    assert run.status == 1
    assert "2 shops signed; 3 are needed, and with fewer nothing is unmasked" in run.said
    assert "Traceback" not in run.said
    # Whoever's vector has left has paid: a ledger never knows what becomes of it.
    assert run.payers(0) == set(SHOPS)
    assert run.of("release")["accepted"] == 0
    town.check_accounts()


@pytest.mark.parametrize(
    ("malice", "refusing", "words"),
    [
        ("rosters", 3, "2 shops showed keys; 3 are needed"),
        ("invented", 5, "0 shops shared; 3 are needed"),
    ],
)
def test_a_server_with_another_roster_gets_no_sum_and_nobody_pays(
    town: Summing, malice: str, refusing: int, words: str
) -> None:
    code = malicious_code(town)
    (town.operator / MODE).write_text(malice)
    run = town.run(code=code)
    assert run.status == 1, run.said
    assert words in run.said
    assert "sum-refused: what it was shown of a secure sum is not what it holds" in run.said
    assert "Traceback" not in run.said
    assert run.of("join")["accepted"] == 5
    assert run.of("release")["declined"] == {"sum-refused": refusing}
    assert run.of("release")["accepted"] == 0
    assert run.payers(0) == set()
    town.check_accounts()


def test_a_server_that_tells_shops_different_survivors_gains_nothing(town: Summing) -> None:
    code = malicious_code(town)
    (town.operator / MODE).write_text("views")
    run = town.run("--rounds", "1", code=code)
    # Three of five see the same, and are enough: what comes of it is the sum and nothing else.
    assert run.of("release")["accepted"] == 5, run.said
    assert run.of("release")["declined"] == {"rubbish": 2, "sum-refused": 2}
    assert run.likeness() > 0.9
    # No three of them see the same: there is no sum, and the run goes on without the round.
    training = run.of("round")
    assert (training["accepted"], training["kept_old_model"]) == (0, True)
    assert training["declined"] == {"rubbish": 3, "sum-refused": 3}
    assert "2 shops signed; 3 are needed, and with fewer nothing is unmasked" in run.said
    assert run.status == 0, run.said
    assert "Traceback" not in run.said
    # Whoever was lured has said nothing of its shares, in neither round.
    assert (town.operator / GAINED).read_text() == ""
    assert run.payers(0) == run.payers(1) == set(SHOPS)
    town.check_accounts()
