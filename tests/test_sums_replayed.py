"""Secure sums in a deployed federation where somebody says again what was said before.

Real processes behind the gateway. A hostile shop sends vectors, shares, signatures and keys of an
earlier run under headers of this one; a hostile server sends requests of this stage, of an earlier
round and of an earlier run to honest shops.
"""

import json
from collections.abc import Iterator

import pytest

from client.privacy.events import SHARED_HISTOGRAM, SHARED_STEP
from common.protocol import SUM_KEYS, SUM_MASKED, SUM_STAGES
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
    assert run.likeness() > 0.9
    training = run.of("round")
    assert (training["accepted"], training["kept_old_model"]) == (0, True), run.said
    assert "spread over all of 32 bits" in training["reason"]
    # What left is paid for, whatever became of it.
    for name in SHOPS:
        assert run.paid(name) == [(0, SHARED_HISTOGRAM, 3, 0), (1, SHARED_STEP, 3, 0)]
    town.check_accounts()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (SUM_MASKED, "a shop's vector was not under the masks that it had agreed on"),
        # Nobody can open them: the seed of what hides this shop's own vector is lost.
        ("sum_shares", "1 shares of a secret that takes 3"),
    ],
)
def test_a_release_with_an_old_vector_or_old_shares_ends_the_run_in_words(
    town: Summing, stage: str, words: str
) -> None:
    ben = town.shops["ben"]
    town.plant_faults(ben, {f"{stage} 0": "replay"})
    run = town.run()
    assert town.done(ben) == [[stage, 0, "replay"]], run.said
    assert run.status == 1, run.said
    assert words in run.said
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
    expected = 3 * len(SUM_STAGES) * ["same"]
    expected += len(SUM_STAGES) * ["earlier round"] + len(SUM_STAGES) * ["earlier run"]
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
