"""Secure sums in a deployed federation where somebody says again what was said before.

Real processes behind the gateway. A hostile shop sends vectors, shares, signatures and keys of an
earlier run under headers of this one; a hostile server sends requests of this stage, of an earlier
round and of an earlier run to honest shops.
"""

import json
from collections.abc import Iterator

import pytest

from client.privacy.events import SHARED_HISTOGRAM, SHARED_STEP
from common.protocol import SUM_KEYS, SUM_MASKED, SUM_OPEN, SUM_SHARES, SUM_STAGES
from malice_support import AGAIN, MODE, malicious_code
from sums_deployed_support import SHOPS, Summing, summing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Summing]:
    """Make one deployment, and have every shop say once what it may say again."""
    with summing(tmp_path_factory.mktemp("town")) as federation:
        first = federation.run("--rounds", "1")
        assert first.status == 0, first.said
        yield federation


@pytest.fixture(autouse=True)
def _everyone_is_well(town: Summing) -> None:
    town.heal()


def test_old_shares_and_signatures_are_done_without_and_an_old_vector_is_in_no_model(
    town: Summing,
) -> None:
    ben, cleo, dan = (town.shops[name] for name in ("ben", "cleo", "dan"))
    town.plant_faults(ben, {"sum_masked 1": "replay"})
    town.plant_faults(cleo, {"sum_view 0": "replay"})
    town.plant_faults(dan, {"sum_unmask 0": "replay"})
    run = town.run("--rounds", "1")
    assert town.done(ben) == [["sum_masked", 1, "replay"]], run.said
    assert town.done(cleo) == [["sum_view", 0, "replay"]], run.said
    assert town.done(dan) == [["sum_unmask", 0, "replay"]], run.said
    assert run.status == 0, run.said
    assert "Traceback" not in run.said
    # Three right shares of each secret are enough, and all five vectors are in the sum.
    release = run.of("release")
    assert (release["asked"], release["accepted"]) == (5, 5), run.said
    assert release["declined"] == {"rubbish": 1}
    assert "dan: wrong-shares: it gave or sealed shares that it had not committed to" in run.said
    assert run.likeness() > 0.9
    training = run.of("round")
    assert (training["accepted"], training["kept_old_model"]) == (0, True), run.said
    assert "spread over all of 32 bits" in training["reason"]
    # What left is paid for, whatever became of it; dan is not asked again.
    assert training["asked"] == 4
    for name in SHOPS:
        paid = [(0, SHARED_HISTOGRAM, 3, 0), (1, SHARED_STEP, 3, 0)]
        assert run.paid(name) == (paid[:1] if name == "dan" else paid)
    town.check_accounts()


def test_a_shop_whose_shares_nobody_can_open_is_left_out_before_anyone_pays(
    town: Summing,
) -> None:
    """As those of another session: without them the seed of its own mask would be lost."""
    ben = town.shops["ben"]
    town.plant_faults(ben, {f"{SUM_SHARES} 0": "replay"})
    run = town.run("--rounds", "1")
    assert town.done(ben) == [[SUM_SHARES, 0, "replay"]], run.said
    assert run.status == 0, run.said
    assert "ben: disputed: too many shops cannot open the shares that it seals" in run.said
    assert "Traceback" not in run.said
    release, training = run.of("release"), run.of("round")
    assert (release["asked"], release["accepted"]) == (5, 4), run.said
    assert release["declined"] == {"disputed": 1}
    assert (training["asked"], training["accepted"]) == (4, 4), run.said
    assert run.payers(0) == run.payers(1) == set(SHOPS) - {"ben"}
    assert run.likeness({"ben"}) > 0.9
    left_out = json.loads(town.server("status", "--json"))["run"]["sums"]["left_out"]
    assert [*left_out] == ["ben"]
    town.check_accounts()


def test_a_release_with_an_old_vector_ends_the_run_in_words(town: Summing) -> None:
    ben = town.shops["ben"]
    town.plant_faults(ben, {f"{SUM_MASKED} 0": "replay"})
    run = town.run()
    assert town.done(ben) == [[SUM_MASKED, 0, "replay"]], run.said
    assert run.status == 1, run.said
    assert "a shop's vector was not under the masks that it had agreed on" in run.said
    assert "Traceback" not in run.said
    assert run.of("release")["accepted"] == 0
    assert run.payers(0) == set(SHOPS)
    town.check_accounts()


def test_a_server_that_sends_old_requests_again_gets_old_answers_or_none(town: Summing) -> None:
    code = malicious_code(town)
    (town.operator / MODE).write_text("again")
    first = town.run("--rounds", "1", code=code)
    second = town.run(code=code)
    lines = [json.loads(line) for line in (town.operator / AGAIN).read_text().splitlines()]
    # In three sums each request again; the first sum's once more in its run, and in the next run.
    # What shops can open is asked in the releases alone.
    in_round = [stage for stage in SUM_STAGES if stage != SUM_OPEN]
    expected = (2 * len(SUM_STAGES) + len(in_round)) * ["same"]
    expected += len(in_round) * ["earlier round"] + len(SUM_STAGES) * ["earlier run"]
    assert sorted(line["what"] for line in lines) == sorted(expected), (first.said, second.said)
    for line in lines:
        assert line["asked"] == 5, line
        assert line["gained"] == 0, line
        # The same answer as before, but for the keys of a session, which begins once, and for its
        # vector, which is made once; of a session that a later one replaced nothing at all.
        answers = line["what"] == "same" and line["stage"] not in (SUM_KEYS, SUM_MASKED)
        assert line["same"] == (5 if answers else 0), line
        assert line["declined"] == ({} if answers else {"sum-refused": 5}), line
    for run, rounds in ((first, 1), (second, 0)):
        assert run.status == 0, run.said
        assert "Traceback" not in run.said
        assert (run.of("release")["accepted"], run.of("release")["declined"]) == (5, {})
        assert run.likeness() > 0.9
        paid = [(0, SHARED_HISTOGRAM, 3, 0), (1, SHARED_STEP, 3, 0)][: rounds + 1]
        for name in SHOPS:
            assert run.paid(name) == paid
    assert not first.of("round")["kept_old_model"]
    assert first.of("round")["accepted"] == 5
    town.check_accounts()
