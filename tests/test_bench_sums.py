"""The bench of secure sums: what it counts is what a federation really moves."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.serde import message_to_proto
from typer.testing import CliRunner

from common.errors import ConfigError, RunError
from common.model import state_spec
from common.protocol import SUM_MASKED, SUM_OPEN, SUM_STAGES
from federation_support import FaultyGrid
from secure_rounds_support import ITEM_COUNT, PLAN, SHOPS, Town, make_town
from simulations.__main__ import app
from simulations.bench import secagg_plus, sum_arms
from simulations.bench import sums as bench_sums_module
from simulations.bench.metered import Meter
from simulations.bench.secagg_plus import secagg_plus_exchange
from simulations.bench.sum_arms import Cell, secure_exchange
from simulations.bench.sums import ARMS, bench_sums, growth, make_cell, missed

TINY = 4096 / 2**20


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    return make_town(tmp_path, monkeypatch)


def weighed(town: Town, monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """Stage -> bytes to and from the shops in the round of a real run: its own apps."""
    to_shops, from_shops = Counter[str](), Counter[str]()

    def fault(_shop: int, kind: str, at: int, reply: Message) -> Message:
        if at == 1 and kind in SUM_STAGES:
            from_shops[kind] += len(message_to_proto(reply).SerializeToString())
        return reply

    answer = FaultyGrid.answer

    def watched(self: FaultyGrid, message: Message) -> Message | None:
        kind = message.metadata.message_type.split(".")[1]
        if message.metadata.group_id == "1" and kind in SUM_STAGES:
            to_shops[kind] += len(message_to_proto(message).SerializeToString())
        return answer(self, message)

    monkeypatch.setattr(FaultyGrid, "answer", watched)
    town.train(PLAN.model_copy(update={"rounds": 1}), fault)
    return to_shops, from_shops


def test_the_bytes_counted_are_those_that_the_federations_own_apps_move(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PLAN.model_copy(update={"rounds": 1})
    monkeypatch.setattr(Cell, "plan", plan)
    shapes = state_spec(plan.model, ITEM_COUNT)
    cell = Cell(shapes, SHOPS, SHOPS)
    meter = secure_exchange(cell, tmp_path / "shops-of-the-bench", noisy=False).meter
    to_shops, from_shops = weighed(town, monkeypatch)
    # The bench sums all that is sent, a round the trained arrays alone: popularity is not.
    from_shops[SUM_MASKED] += 4 * ITEM_COUNT * SHOPS
    for counted, real in ((meter.to_shops, to_shops), (meter.from_shops, from_shops)):
        # What it can open is asked where there is reason: not here.
        assert set(counted) == set(real) == set(SUM_STAGES) - {SUM_OPEN}
        for stage in counted:
            # Numbers of nodes and messages are longer or shorter by some digits, and so is a
            # signature by up to four, of which every shop is shown every other's.
            assert abs(counted[stage] - real[stage]) <= SHOPS * (24 + 8 * SHOPS), stage
            assert real[stage] > SHOPS * 200


def test_the_bench_says_bytes_and_seconds_of_every_cell_and_arm() -> None:
    arguments = ["bench", "secure-sum", "--json", "--shops", "3", "--shops", "4"]
    for size in (TINY, 4 * TINY):
        arguments += ["--sizes", str(size)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    document = json.loads(result.stdout)
    cells = document["cells"]
    assert [(c["megabytes"], c["shops"]) for c in cells] == [
        (TINY, 3), (TINY, 4), (4 * TINY, 3), (4 * TINY, 4)
    ]  # fmt: skip
    for cell in cells:
        sent = 4 * cell["numbers"]
        assert sent == cell["megabytes"] * 2**20
        for arm in ARMS:
            one = cell[arm]
            assert one["bytes"] == pytest.approx(one["bytes_to_shop"] + one["bytes_from_shop"])
            assert min(one["bytes_to_shop"], one["bytes_from_shop"]) > sent
            assert one["shop_seconds"] > 0
            assert one["server_seconds"] > 0
        assert cell["plain"]["bytes"] < 2 * sent + 2000
        # Numbers of 64 bits up; 32 in ours.
        assert cell["secagg_plus"]["bytes_from_shop"] > 2 * sent
        assert cell["secure_sum"]["bytes_from_shop"] < sent + 6000
        assert cell["secure_sum"]["noise_seconds"] > 0
        assert cell["secure_sum"]["noise"] == "drawn"
        assert cell["fully_timed_shops"] == cell["shops"]
    assert document["growth"]["plain"]["bytes"]["with_shops"] == pytest.approx(0, abs=0.01)
    # At so few numbers what is beside them weighs more than they do: nothing is kept silent.
    assert len(document["missed"]) == sum(c["bytes_over_plain"] > 1.5 for c in cells) > 0
    assert document["machine"]["cpus"] > 0


def test_noise_that_is_not_drawn_is_extrapolated_and_shown_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_sums_module, "NOISE_MEGABYTES", TINY)
    small, large = bench_sums([TINY, 8 * TINY], [3])["cells"]
    assert [cell["secure_sum"]["noise"] for cell in (small, large)] == ["drawn", "extrapolated"]
    assert "drawn" not in large["secure_sum"]
    assert large["secure_sum"]["noise_seconds"] == pytest.approx(8 * small["secure_sum"]["drawn"])


def test_what_is_measured_is_kept_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cells.json"
    first = bench_sums([TINY], [3], keep=file)["cells"]

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(bench_sums_module, "plain_exchange", never)
    assert bench_sums([TINY], [3], keep=file)["cells"] == json.loads(json.dumps(first))
    with pytest.raises(AssertionError, match="again"):
        bench_sums([TINY], [3, 4], keep=file)
    measured = json.loads(file.read_text())
    elsewhere = measured["machine"] | {"cpus": 10**6}
    for machine, words in ((elsewhere, "another cpus: go on there"), ([], "holds nothing")):
        file.write_text(json.dumps(measured | {"machine": machine}))
        with pytest.raises(ConfigError, match=words):
            bench_sums([TINY], [3], keep=file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="holds nothing"):
        bench_sums([TINY], [3], keep=file)


@pytest.mark.parametrize("shops", [3, 7])
def test_stand_ins_send_as_much_and_the_sums_are_still_right(tmp_path: Path, shops: int) -> None:
    """Each exchange holds its sum against the right one, and raises otherwise."""
    whole = make_cell(TINY, shops)
    few = Cell(whole.shapes, shops, 1)
    assert whole.timed == shops
    first = secure_exchange(whole, tmp_path / "whole", noisy=False).meter
    second = secure_exchange(few, tmp_path / "few", noisy=True).meter
    masked = [meter.from_shops[SUM_MASKED] / shops for meter in (first, second)]
    assert masked[0] == pytest.approx(masked[1], abs=8)
    flowers = [secagg_plus_exchange(cell) for cell in (whole, few)]
    up = [sum(meter.from_shops.values()) / shops for meter in flowers]
    assert up[0] == pytest.approx(up[1], rel=0.02)


def test_secrets_that_are_not_put_together_are_charged_like_those_that_are() -> None:
    sharing, secret = secagg_plus._Sharing(), bytes(range(32))
    for size in (32, 306):
        real = create_shares(bytes(size), 3, 5)
        assert {len(share) for share in real} == {len(s) for s in sharing.create(bytes(size), 3, 5)}
    assert sharing.combine(create_shares(secret, 3, 5)[1:4]) == secret
    for _ in range(2):
        assert sharing.combine(sharing.create(secret, 3, 5)[:3]) == secret
    assert sharing.seconds_left_out == pytest.approx(2 * sharing._seconds[0])


def test_what_does_not_add_up_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(clipped: np.ndarray, _noise: np.ndarray, _bound: int) -> np.ndarray:
        return (clipped + 1).astype(np.uint32)

    monkeypatch.setattr(sum_arms, "to_words", wrong)
    with pytest.raises(RunError, match="does not add up"):
        secure_exchange(make_cell(TINY, 3), tmp_path / "shops", noisy=False)


def test_seconds_are_told_apart_by_whose_they_are() -> None:
    meter = Meter()
    with meter.whole():
        with meter.shop(2, "train"):
            sum(range(300_000))
        with meter.shop(3, "train"):
            sum(range(600_000))
    shops = [meter.shops[node]["train"] for node in (2, 3)]
    assert shops[1] > shops[0] > 0
    assert meter.server_seconds == pytest.approx(meter.all_seconds - sum(shops))
    assert meter.server_seconds < shops[1]
    before = meter.server_seconds
    meter.leave_out(3, "train", shops[1])
    assert meter.shops[3]["train"] == 0
    assert meter.server_seconds == pytest.approx(before)


def cell_of(size: float, shops: int) -> dict[str, object]:
    one = {"bytes": size * (1 + shops), "shop_seconds": size * shops, "server_seconds": size**2}
    return {"megabytes": size, "shops": shops, "bytes_over_plain": size, **dict.fromkeys(ARMS, one)}


def test_growth_is_the_exponent_and_what_is_too_large_is_named() -> None:
    cells = [cell_of(size, shops) for size in (1.0, 4.0) for shops in (3, 9)]
    found = growth(cells)["secure_sum"]
    assert found["shop_seconds"] == pytest.approx({"with_megabytes": 1, "with_shops": 1})
    assert found["server_seconds"] == pytest.approx({"with_megabytes": 2, "with_shops": 0})
    assert found["bytes"]["with_shops"] == pytest.approx(math.log(10 / 4) / math.log(3))
    assert growth(cells[:1])["plain"]["bytes"] == {"with_megabytes": None, "with_shops": None}
    assert [line[:14] for line in missed(cells)] == ["4 MB, 3 shops:", "4 MB, 9 shops:"]


def test_sizes_that_make_no_sum_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 shops"):
        bench_sums([1.0], [2])
