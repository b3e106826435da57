"""Bad shops under noise: what they say together in one direction, on planted counts."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message

from common.protocol import POPULARITY, Arrays
from federation_support import FaultyGrid, make_job, start_state, toy_app
from server.aggregation import Contribution
from server.defence import blocks, rules
from server.defence.choice import Defence
from server.defence.directions import cut_directions
from server.defence.rules import RULES, Sent
from server.strategy import Federation
from server.subspace import update_noise

SHOPS, BAD, PRODUCTS, NOISE = 50, 4, 1000, 1.1
RULE = Defence("tail-aware", 0.2)


def counts(seed: int = 0) -> np.ndarray:
    """Return (K, n) what shops of very different sizes sell, with noise."""
    stream = np.random.default_rng(seed)
    popular = 400 / (5 + np.arange(PRODUCTS)) ** 0.9
    sizes = stream.lognormal(0, 1, SHOPS)
    sold = stream.poisson(sizes[:, None] * popular * 0.03).astype(np.float64)
    return sold + NOISE * stream.normal(size=sold.shape)


def told(values: np.ndarray, sends: np.ndarray | None = None) -> list[Contribution]:
    found = []
    for k, own in enumerate(values):
        rows = {} if sends is None else {POPULARITY: sends[k]}
        kept = own if sends is None else own[sends[k]]
        arrays: Arrays = {POPULARITY: kept.astype(np.float32)}
        found.append(Contribution(f"shop-{k:03}", 1.0, arrays, rows))
    return found


def loud(shape: str) -> np.ndarray:
    """Return (BAD, n) what bad shops say: far above all bounds, and in concert."""
    stream = np.random.default_rng(3)
    if shape == "above":
        return 1e4 * stream.random((BAD, PRODUCTS))
    if shape == "below":
        return np.full((BAD, PRODUCTS), -1e4)
    return np.tile(1e4 * np.sign(stream.normal(size=PRODUCTS)), (BAD, 1))


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_and_shops_of_other_sizes_have_no_direction(seed: int) -> None:
    stream = np.random.default_rng(seed)
    pure = NOISE * stream.normal(size=(SHOPS, PRODUCTS))
    kept = pure.copy()
    assert cut_directions(kept, None, NOISE, 12) == 0
    assert np.array_equal(kept, pure)
    sized = np.outer(stream.lognormal(0, 1, SHOPS), 30 * stream.random(PRODUCTS))
    assert cut_directions(sized + pure, None, NOISE, 12) == 0
    # Half the noise that there is: noise itself stands out.
    assert cut_directions(pure.copy(), None, NOISE / 2, 12) == 12


def test_a_planted_direction_is_found_and_cut_to_what_honest_shops_say() -> None:
    stream = np.random.default_rng(1)
    values = stream.normal(size=(SHOPS, PRODUCTS)) + 30 / (1 + np.arange(PRODUCTS))
    direction = np.sign(stream.normal(size=PRODUCTS)) / PRODUCTS**0.5
    values[:BAD] += 40 * direction
    before = values.copy()
    assert 1 <= cut_directions(values, None, 1.0, 10) <= 3
    assert (before @ direction)[:BAD].min() > 35
    # What is left is what the mean had of it, and what noise says.
    assert np.abs((values @ direction)[:BAD]).max() < 12
    # Next to nothing else changes.
    changed = values - before
    changed[:BAD] -= np.outer(changed[:BAD] @ direction, direction)
    assert np.linalg.norm(changed[:BAD], axis=1).max() < 0.6 * PRODUCTS**0.5
    assert np.linalg.norm(changed[BAD:], axis=1).max() < 4


def test_known_noise_changes_next_to_nothing_without_an_attack() -> None:
    told_all = told(counts())
    plain, held = RULE.counts(told_all), RULE.counts(told_all, NOISE)
    assert np.linalg.norm(held - plain) < 0.03 * np.linalg.norm(plain)


@pytest.mark.parametrize("shape", ["above", "below", "signs"])
def test_what_adds_up_over_products_is_bounded_where_the_noise_is_known(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to less than twice what their saying nothing would."""
    values = counts()
    clean = RULE.counts(told(values), NOISE)

    def moved() -> float:
        """Return how far from a multiple of what it was the sum is."""
        found = RULE.counts(told(values), NOISE)
        return float(np.linalg.norm(found - found @ clean / (clean @ clean) * clean))

    values[:BAD] = 0
    silent = moved()
    values[:BAD] = loud(shape)
    held = moved()
    monkeypatch.setattr(rules, "cut_directions", _no_direction)
    free = moved()
    assert held < 2 * silent
    assert held < 0.7 * free


def test_what_hides_below_the_energy_of_one_shop_is_cut_where_the_noise_is_known() -> None:
    """Each bad shop's own noise holds more than what it says together with the others."""
    values = counts()
    direction = np.sign(np.random.default_rng(3).normal(size=PRODUCTS)) / PRODUCTS**0.5
    clean = [RULE.counts(told(values), noise) @ direction for noise in (NOISE, 0.0)]
    values[:BAD] += 0.9 * NOISE * PRODUCTS**0.5 * direction
    known, unknown = (RULE.counts(told(values), noise) @ direction for noise in (NOISE, 0.0))
    assert known - clean[0] < 0.5 * (unknown - clean[1])


def test_noise_of_few_numbers_holds_in_one_direction_what_theory_says() -> None:
    """Of 50 shops and 9 products it is the shops that make noise long: root of 50 and of 9."""
    values = np.random.default_rng(12).normal(size=(SHOPS, 9)) + 90 / (1 + np.arange(9))
    assert cut_directions(values.copy(), None, 1.0, 10) == 0
    direction = np.array([0, 0, 0, 1, -1, 1, -1, 1, -1]) / 6**0.5
    values[:BAD] += 7 * direction  # 14 in all, of the 10.1 that noise may hold
    before = values @ direction
    assert cut_directions(values, None, 1.0, 10) >= 1
    assert (before[:BAD] - values[:BAD] @ direction).min() > 2


def test_what_is_left_of_a_direction_is_the_largest_that_some_honest_shop_says() -> None:
    """Two of ten may be bad, so it is the third largest, whatever its sign."""
    said = np.array([100.0, -100, 8, -6, -2, 0, 0, 0, 0, 0])
    profile, direction = np.eye(20)[:2]
    values = 30 * profile + np.outer(said, direction)
    assert cut_directions(values, None, 1e-3, 2) >= 1
    said[:2] = 8, -8
    assert values == pytest.approx(30 * profile + np.outer(said, direction), abs=1e-6)


def test_no_more_directions_are_cut_than_shops_may_be_bad() -> None:
    stream = np.random.default_rng(13)
    values = stream.normal(size=(SHOPS, PRODUCTS))
    values[0, ::2] += 3.0
    values[1, 1::2] += 3.0
    for bad in (1, 2):
        kept = values.copy()
        assert cut_directions(kept, None, 1.0, bad) == bad
        assert np.linalg.matrix_rank(kept - values, tol=1e-6) == bad


def test_no_row_is_longer_than_its_bound_and_the_order_of_answers_changes_no_bit() -> None:
    values = counts()
    values[:BAD] = loud("signs")
    # One product's count is spared by the direction: it stands at its bound, and no higher.
    values[:BAD, -1] = 1e9
    found = RULE.counts(told(values), NOISE)
    others = np.sort(np.abs(values[BAD:, -1]))
    assert abs(found[-1]) < np.abs(values[BAD:, -1]).sum() + BAD * others[-5]
    shuffled = told(values)
    np.random.default_rng(5).shuffle(shuffled)
    assert np.array_equal(found, RULE.counts(shuffled, NOISE))


def test_where_shops_send_what_they_stock_only_that_is_held_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = counts()
    stream = np.random.default_rng(6)
    sends = stream.random(values.shape) < np.linspace(1, 0.3, PRODUCTS)
    sends[:BAD] = True
    sends[:, -1] = False
    clean = RULE.counts(told(values, sends), NOISE)
    assert np.isnan(clean[-1])
    assert not np.isnan(clean[:-1]).any()
    values[:BAD] = loud("above")
    held = RULE.counts(told(values, sends), NOISE)
    monkeypatch.setattr(rules, "cut_directions", _no_direction)
    free = RULE.counts(told(values, sends), NOISE)
    # Of products that are hardly bought there is next to nothing but what the bad shops say.
    cold = slice(PRODUCTS // 2, -1)
    assert abs((held - clean)[cold].sum()) < 0.6 * abs((free - clean)[cold].sum())


def test_the_federation_tells_its_rule_the_plans_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    rule = RULES["tail-aware"]

    def spied(shops: Sent, bad: int) -> Arrays:
        asked.append(shops.noise)
        return rule(shops, bad)

    def noisy(_shop: int, exchange: str, _round: int, reply: Message) -> Message:
        if private and exchange in ("release", "update"):
            reply.content.config_records["header"]["noise"] = "seeded"
        return reply

    monkeypatch.setitem(RULES, "tail-aware", spied)
    settings: dict[str, object] = {"defence": "tail-aware", "min_shops": 3}
    job = make_job(2, private=False, max_update_norm=0.0, server_optimizer="none", **settings)
    for private in (False, True):
        changed = {"private": private, "noise_multiplier": 0.5, "first_norms": (0.25,)}
        told_job = replace(job, plan=job.plan.model_copy(update=changed))
        grid = FaultyGrid(toy_app(), 6, fault=noisy)
        Federation(grid, told_job, save=_nothing, report=_nothing).run(start_state())
    assert asked[:3] == [0, 0, 0]
    plan = told_job.plan
    expected = [0.01, update_noise(plan, 1), update_noise(plan, 2)]
    # Rows of two numbers keep more of their noise than single ones.
    assert asked[3] == pytest.approx(expected[0] * RULE.noise(6, 1) ** 0.5, rel=0.2)
    assert [a / b for a, b in zip(asked[4:], expected[1:], strict=True)] == pytest.approx(
        [0.9, 0.9], abs=0.1
    )
    assert 0 < asked[4] < asked[5]


def _nothing(_: object) -> None:
    pass


def _no_direction(*_: object) -> int:
    return 0


def test_cutting_a_direction_puts_nothing_where_a_shop_sends_nothing() -> None:
    stream = np.random.default_rng(4)
    sends = stream.random((20, 300)) < 0.6
    values = np.where(sends, stream.normal(size=sends.shape), 0.0)
    values[:3] += np.where(sends[:3], 8.0, 0.0)
    before = values.copy()
    assert cut_directions(values, sends, 1.0, 5) >= 1
    assert not np.array_equal(values, before)
    assert not values[~sends].any()


def _own_tastes(stream: np.random.Generator) -> np.ndarray:
    """Return (K, n) what shops say without noise: a common profile, and a few products each."""
    values = np.outer(stream.lognormal(0, 0.5, SHOPS), 30 / (1 + np.arange(PRODUCTS)))
    own = stream.random(values.shape) < 0.05
    return values + np.where(own, stream.normal(size=values.shape), 0.0)


def test_without_noise_what_several_shops_alone_say_is_cut_and_what_each_says_is_not() -> None:
    stream = np.random.default_rng(8)
    values = _own_tastes(stream)
    kept = values.copy()
    assert cut_directions(kept, None, 0.0, 10) == 0
    assert np.array_equal(kept, values)
    # As long as the longest of the others, and all in one direction.
    direction = stream.normal(size=PRODUCTS) / PRODUCTS**0.5
    values[:6] = values[BAD:].mean(axis=0) + 10 * direction
    before = values.copy()
    assert cut_directions(values, None, 0.0, 10) >= 1
    assert (before @ direction)[:6].min() > 8
    assert np.abs((values @ direction)[:6]).max() < 6
    assert np.linalg.norm(values[6:] - before[6:], axis=1).max() < 3


@pytest.mark.parametrize("together", [1, 2, 3])
def test_without_noise_two_shops_may_sell_the_same_and_a_third_is_too_many(together: int) -> None:
    """Two stores of one place are heard; of three that say one thing each may be pushing it."""
    values = np.tile(30 / (1 + np.arange(PRODUCTS)), (SHOPS, 1))
    own = np.zeros((SHOPS, PRODUCTS))
    own[np.arange(SHOPS), 500 + np.arange(SHOPS)] = 10.0
    own[:together] = own[0]
    values += own
    assert (cut_directions(values, None, 0.0, 10) > 0) == (together == 3)


def test_bad_shops_do_not_hide_behind_a_direction_that_divides_honest_ones() -> None:
    """Half of the shops sell one half of the products; nobody sticks out in that."""
    stream = np.random.default_rng(9)
    values = _own_tastes(stream)
    values[::2, ::2] += 0.45
    direction = stream.normal(size=PRODUCTS) / PRODUCTS**0.5
    honest = values[:6] @ direction
    values[:6] += 14 * direction
    cut_directions(values, None, 0.0, 10)
    assert np.abs(values[:6] @ direction - honest).max() < 7


def test_blocks_of_numbers_come_to_what_one_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = np.random.default_rng(10)
    sends = stream.random((SHOPS, PRODUCTS)) < 0.8
    found = []
    for block in (1 << 22, 7 * SHOPS):
        monkeypatch.setattr(blocks, "_NUMBERS", block)
        for mask in (None, sends):
            values = np.random.default_rng(11).normal(size=sends.shape)
            values += 30 / (1 + np.arange(PRODUCTS))
            values = values if mask is None else values * mask
            values[:BAD] += 5.0 if mask is None else 5.0 * mask[:BAD]
            assert cut_directions(values, mask, 1.0, 10) >= 1
            found.append(values)
    assert found[0] == pytest.approx(found[2], abs=1e-9)
    assert found[1] == pytest.approx(found[3], abs=1e-9)


def test_a_row_that_cutting_a_direction_makes_longer_is_held_to_its_bound_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agreed = told(np.full((SHOPS, PRODUCTS), 7.0))
    before = RULE.counts(agreed)

    def lengthened(values: np.ndarray, *_: object) -> int:
        values *= 3
        return 1

    monkeypatch.setattr(rules, "cut_directions", lengthened)
    assert RULE.counts(agreed) == pytest.approx(before, rel=1e-5)


def test_what_cutting_a_direction_leaves_of_a_row_is_no_more_than_bad_typical_rows() -> None:
    """The bad shops say one thing but for its sign: what is cut of one lands with the others."""
    stream = np.random.default_rng(0)
    tables = stream.normal(size=(20, 400, 4)) * (stream.random((20, 400, 1)) < 0.1)
    together = 0.3 * stream.normal(size=(400, 4))
    tables[:BAD] = np.array([1, -1, -1, -1])[:, None, None] * together
    tables[:, -1] = 0.0
    tables[0, -1, 0] = 1e6  # No honest shop moves this row, and of the bad ones a single one.
    shops = [
        Contribution(f"shop-{k:03}", 1.0, {"table": each.astype(np.float32)})
        for k, each in enumerate(tables)
    ]
    norms = np.linalg.norm(tables, axis=2)
    typical = np.median([np.median(own[own > 0]) for own in norms])
    assert np.linalg.norm(RULE.update(shops)["table"][-1]) * 20 <= BAD * typical * (1 + 1e-6)
