"""Defences on planted arrays: what all keep to, and what sets each apart."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, ProtocolError, RunError
from common.protocol import HEADER, POPULARITY, Arrays, TrainingPlan
from federation_support import FaultyGrid, make_job, make_settings, same, start_state, toy_app
from server.aggregation import Contribution, sum_popularity, weighted_mean
from server.defence.choice import Defence
from server.defence.rules import RULES, _bounds, _shared_bounds
from server.job import Event
from server.strategy import Federation

SHOPS, ROWS, WIDTH = 20, 12, 3
EVERY = pytest.mark.parametrize("name", RULES)


def contributions(shops: list[Arrays]) -> list[Contribution]:
    return [Contribution(f"shop-{k:03}", 1.0, arrays) for k, arrays in enumerate(shops)]


def honest(seed: int = 0, shops: int = SHOPS) -> list[Arrays]:
    """Deltas around one mean; the last rows are moved by two shops alone."""
    stream = np.random.default_rng(seed)
    signal = np.random.default_rng(99).normal(size=(ROWS, WIDTH))
    found = []
    for shop in range(shops):
        table = signal + 0.1 * stream.normal(size=(ROWS, WIDTH))
        if shop >= 2:
            table[-3:] = 0.0
        found.append({"table": table.astype(np.float32), "bias": signal[:, 0].astype(np.float32)})
    return found


def poisoned(bad: int, length: float) -> list[Contribution]:
    """The honest shops' deltas, the last ``bad`` of them replaced by one long row each."""
    shops = honest()
    for shop in range(SHOPS - bad, SHOPS):
        table = np.zeros((ROWS, WIDTH), np.float32)
        table[-1] = length
        shops[shop] = {"table": table, "bias": np.full(ROWS, -length, np.float32)}
    return contributions(shops)


@EVERY
def test_shops_that_agree_are_believed(name: str) -> None:
    agreed = honest()[0]
    found = Defence(name, 0.2).update(contributions([agreed] * SHOPS))  # type: ignore[arg-type]
    for key, array in agreed.items():
        assert found[key] == pytest.approx(array, rel=1e-6)
        assert found[key].dtype == np.float64
        assert found[key].shape == array.shape


@EVERY
@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(SHOPS)))
def test_the_order_of_answers_changes_no_bit(name: str, order: list[int]) -> None:
    defence = Defence(name, 0.2)  # type: ignore[arg-type]
    given_shops = contributions(honest())
    assert same(defence.update(given_shops), defence.update([given_shops[k] for k in order]))


@EVERY
def test_what_a_few_bad_shops_can_do_is_bounded_however_loud_they_are(name: str) -> None:
    defence = Defence(name, 0.2)  # type: ignore[arg-type]
    clean = defence.update(contributions(honest()))
    moved = [
        np.linalg.norm(defence.update(poisoned(4, length))["table"] - clean["table"])
        for length in (1e3, 1e6)
    ]
    assert moved[1] == pytest.approx(moved[0], rel=1e-3)
    # The mean of the same deltas is moved as far as they like.
    plain = weighted_mean(poisoned(4, 1e6))["table"] - clean["table"]
    assert moved[1] < 1e-3 * np.linalg.norm(plain)


@EVERY
def test_too_few_shops_are_refused(name: str) -> None:
    defence = Defence(name, 0.25)  # type: ignore[arg-type]
    assert not defence.holds(2)
    with pytest.raises(ProtocolError, match="too few"):
        defence.update(contributions(honest(shops=2)))
    with pytest.raises(ConfigError, match="min_shops to"):
        make_settings(defence=name, min_shops=2).defender(TrainingPlan())
    with pytest.raises(ConfigError, match="only their sum"):
        make_settings(defence=name, min_shops=20).defender(
            TrainingPlan(trust="federation", honest_shops=13)
        )


@EVERY
def test_settings_that_ask_too_few_shops_in_a_round_are_refused(name: str) -> None:
    fewest = Defence(name, 0.25).fewest  # type: ignore[arg-type]
    asked: dict[str, object] = {"defence": name, "clients_per_round": 0.3}
    with pytest.raises(ConfigError, match=r"clients_per_round = 0\.3 asks of") as refused:
        make_settings(**asked, min_shops=fewest).defender(TrainingPlan())
    least = int(str(refused.value).split("min_shops to ")[1].split()[0])
    assert make_settings(**asked, min_shops=least).defender(TrainingPlan()).name == name
    with pytest.raises(ConfigError, match="clients_per_round"):
        make_settings(**asked, min_shops=least - 1).defender(TrainingPlan())


def test_bad_shops_are_the_share_that_is_written() -> None:
    # .07 * 100 is a little more than 7, as floats have it: an eighth would have been held bad.
    assert Defence("tail-aware", 0.07).bad(100) == 7
    for shops in range(5, 101):
        for percent in range(1, 50):
            most = {"krum": shops - 3, "median": shops - 1}
            for name, spare in most.items():
                bad = Defence(name, percent / 100).bad(shops)  # type: ignore[arg-type]
                assert bad == min(-(-percent * shops // 100), spare // 2)


def test_nobody_pays_where_the_rule_would_take_no_answer() -> None:
    job = make_job(rounds=3, defence="tail-aware", min_shops=3)
    events: list[Event] = []

    def refusing(shop: int, kind: str, at: int, reply: Message) -> Message:
        if shop and (kind, at) in where:
            header = reply.content.config_records[HEADER]
            header["status"] = "over-budget"
        return reply

    where: list[tuple[str, int]] = [("join", 0)]
    grid = FaultyGrid(toy_app(), 3, fault=refusing)
    federation = Federation(grid, job, save=lambda _: None, report=events.append)
    with pytest.raises(
        RunError, match='1 shop would be asked, and defence = "tail-aware" needs 3: no'
    ):
        federation.run(start_state())
    assert {kind for _, kind, _ in grid.sent} == {"join"}
    events.clear()
    # Two of three drop out of round 1 for good: the third is asked for no more.
    where[:] = [("update", 1)]
    grid = FaultyGrid(toy_app(), 3, fault=refusing)
    Federation(grid, job, save=lambda _: None, report=events.append).run(start_state())
    assert [at for _, kind, at in grid.sent if kind == "update"] == [1, 1, 1]
    told = [event.get("reason") for event in events if event["event"] == "round"]
    assert told == [None] + 2 * ['1 shop would be asked, and defence = "tail-aware" needs 3']


def test_a_shop_without_which_the_rule_takes_no_answer_is_waited_for() -> None:
    """Two of three are a quorum; rounds that ask none of them would all be over at once."""
    grid = FaultyGrid(toy_app(), 3)
    get_node_ids, away, looks, asked = grid.get_node_ids, dict[int, int](), list[int](), list[Any]()

    def report(event: Event) -> None:
        if event["event"] == "round":
            asked.append(event["asked"])
            if not away:
                away.update([grid.nodes.popitem()])

    def returning() -> list[int]:
        looks.append(len(grid.nodes))
        if looks.count(2) == 5:
            grid.nodes.update(away)
        return list(get_node_ids())

    grid.get_node_ids = returning  # type: ignore[method-assign]
    job = make_job(rounds=3, defence="tail-aware", min_shops=3, wait_seconds=30.0)
    Federation(grid, job, save=lambda _: None, report=report).run(start_state())
    assert asked == [3, 3, 3]


@EVERY
def test_counts_are_summed_by_the_same_rule(name: str) -> None:
    counts = np.array([30.0, 2.0, 1.0, 0.5])
    shops = contributions([{POPULARITY: counts.astype(np.float32)}] * SHOPS)
    assert Defence(name, 0.2).counts(shops) == pytest.approx(SHOPS * counts)  # type: ignore[arg-type]


@EVERY
@pytest.mark.parametrize("width", [1, 4])
def test_what_is_left_of_pure_noise_is_what_the_rule_says(name: str, width: int) -> None:
    stream = np.random.default_rng(7)
    draws = stream.normal(size=(40, 4000, width)).astype(np.float32)
    defence = Defence(name, 0.2)  # type: ignore[arg-type]
    left = defence.update(contributions([{"x": each} for each in draws]))["x"].var() * 40
    assert left == pytest.approx(defence.noise(40, width), rel=0.08)


def test_what_multi_krum_leaves_of_the_noise_of_few_shops_is_what_it_says() -> None:
    draws = np.random.default_rng(7).normal(size=(10, 4000, 4)).astype(np.float32)
    rule = Defence("multi-krum", 0.3)
    left = rule.update(contributions([{"x": each} for each in draws]))["x"].var() * 10
    assert rule.noise(10, 4) == 10 / 7
    assert left == pytest.approx(10 / 7, rel=0.05)


def test_no_defence_is_the_mean_and_the_sum() -> None:
    shops = contributions(honest())
    assert same(Defence().update(shops), weighted_mean(shops))
    counts = contributions([{POPULARITY: np.arange(3, dtype=np.float32)}] * 4)
    assert np.array_equal(Defence().counts(counts), sum_popularity(counts))


def test_median_and_trimmed_mean_of_known_numbers() -> None:
    shops = contributions([{"x": np.array([v], np.float32)} for v in (-90, 1, 2, 4, 1000)])
    assert Defence("median", 0.2).update(shops)["x"] == pytest.approx([2.0])
    assert Defence("trimmed-mean", 0.2).update(shops)["x"] == pytest.approx([7 / 3])


def test_krum_takes_the_shop_in_the_middle_of_the_crowd() -> None:
    values = (0.0, 1.0, 1.1, 1.2, 2.1, 60.0, 60.0)
    shops = contributions([{"x": np.array([v], np.float32)} for v in values])
    # Of 7 shops with 1 bad, the 4 nearest count: 1.1 has the crowd around it.
    assert Defence("krum", 0.1).update(shops)["x"] == pytest.approx([1.1])
    within = contributions([{"x": np.array([v], np.float32)} for v in (*values[:5], 2.0, 60.0)])
    expected = np.mean([0.0, 1.0, 1.1, 1.2, 2.1, 2.0])
    assert Defence("multi-krum", 0.1).update(within)["x"] == pytest.approx([expected])


def test_norm_bound_shortens_to_the_median_norm_and_leaves_the_rest() -> None:
    shops = contributions([{"x": np.array([v, 0], np.float32)} for v in (1, 2, 3, 4, 500)])
    mean = (1 + 2 + 3 + 3 + 3) / 5
    assert Defence("norm-bound", 0.2).update(shops)["x"] == pytest.approx([mean, 0.0])


def test_tail_aware_keeps_rows_that_few_shops_move_and_a_median_drops_them() -> None:
    shops = contributions(honest())
    plain = weighted_mean(shops)["table"]
    kept = Defence("tail-aware", 0.2).update(shops)["table"]
    along = (kept[-3:] * plain[-3:]).sum(axis=1) / (plain[-3:] ** 2).sum(axis=1)
    assert along.min() > 0.4
    assert np.abs(Defence("median", 0.2).update(shops)["table"][-3:]).max() == 0.0
    assert np.abs(Defence("trimmed-mean", 0.2).update(shops)["table"][-3:]).max() == 0.0


def test_tail_aware_gives_a_row_no_more_than_bad_shops_typical_rows_where_norm_bounds_do() -> None:
    """Four may be bad; beside the row's two honest shops a third spends all that it has on it."""
    shops = honest()
    typical = np.median(np.linalg.norm(shops[5]["table"], axis=1)[:-3])
    quiet = np.zeros((ROWS, WIDTH), np.float32)
    quiet[-1, 0] = np.linalg.norm(shops[5]["table"])  # All of an honest norm on one row.
    attacked = [*shops[:-1], {**shops[-1], "table": quiet}]
    clean, found = (
        {
            name: Defence(name, 0.2).update(contributions(each))["table"][-1]
            for name in ("norm-bound", "tail-aware")
        }
        for each in (shops, attacked)
    )
    moved = {name: np.linalg.norm(found[name] - clean[name]) * SHOPS for name in found}
    assert np.linalg.norm(found["tail-aware"]) * SHOPS < 4.1 * typical
    assert moved["tail-aware"] < 2 * typical
    assert moved["norm-bound"] > 2.5 * typical


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), bad=st.integers(1, 9))
def test_whatever_bad_shops_say_of_a_row_it_comes_to_what_as_many_typical_rows_do(
    seed: int, bad: int
) -> None:
    stream = np.random.default_rng(seed)
    norms = stream.lognormal(0, 2, (SHOPS, 30)) * (stream.random((SHOPS, 30)) < 0.2)
    each = _bounds(norms, bad)
    bounds = _shared_bounds(norms, each, bad)
    # At least what every shop may have for itself, and together no more than bad shops had there.
    assert (bounds >= each * (1 - 1e-9)).all()
    together = np.sort(np.minimum(norms, bounds), axis=0)[-bad:].sum(axis=0)
    assert (together <= bad * each * (1 + 1e-9)).all()
    # It is the longest such bound: one that is longer by little is too long, or cuts nothing.
    longer = np.sort(np.minimum(norms, 1.01 * bounds), axis=0)[-bad:].sum(axis=0)
    assert ((longer > bad * each) | (bounds >= norms.max(axis=0)) | (bounds == each)).all()


def test_the_bound_of_a_row_that_one_shop_moves_alone_is_what_bad_ones_may_do_together() -> None:
    norms = np.zeros((10, 4))
    norms[:, 0] = 1.0  # What is typical.
    norms[0, 1:] = 2.5, 3.5, 1e12
    norms[1, 1:] = 0.0, 1.5, 2.0
    bounds = _shared_bounds(norms, _bounds(norms, 3), 3)
    assert np.minimum(norms, bounds).sum(axis=0)[1:] == pytest.approx([2.5, 3.0, 3.0])


@pytest.mark.parametrize("movers", range(SHOPS - 4))
def test_what_is_typical_is_an_honest_shops_however_few_of_them_move_anything(movers: int) -> None:
    stream = np.random.default_rng(movers)
    norms = np.zeros((SHOPS, 30))
    norms[:movers] = stream.lognormal(0, 1, (movers, 30)) * (stream.random((movers, 30)) < 0.5)
    norms[:, 0] = 0.0
    largest = max((np.median(own[own > 0]) for own in norms[:movers]), default=0.0)
    norms[-4:, 0] = 1e6
    assert _bounds(norms, 4)[0] <= largest


def test_what_is_typical_is_what_shops_that_move_anything_do_and_not_all_shops() -> None:
    """Seven of twenty move something, four may be bad: a row that one of them moves is kept."""
    norms = np.zeros((SHOPS, 8))
    norms[:7, :7] = 2 * np.eye(7)
    assert _bounds(norms, 4).tolist() == [2.0] * 8


def test_a_whole_update_is_no_longer_than_the_second_longest_where_one_shop_may_be_bad() -> None:
    """Each row is moved by two shops alike, so only the whole tells who says more than others."""
    pairs = [(0, 1)] * 9 + [(0, 4)] * 7 + [(1, 2), (2, 3), (3, 4)] * 2
    tables = {name: np.zeros((5, len(pairs), 2), np.float32) for name in ("a", "b")}
    for row, (one, other) in enumerate(pairs):
        # The two say it at right angles: no direction is anybody's common work.
        tables["a" if row % 3 else "b"][one, row, 0] = 1.0
        tables["a" if row % 3 else "b"][other, row, 1] = 1.0
    rows = np.array([sum(shop in pair for pair in pairs) for shop in range(5)])
    assert rows.tolist() == [16, 11, 4, 4, 9]
    factors = np.minimum(1.0, np.sqrt(11 / rows))
    found = Defence("tail-aware", 0.1).update(
        contributions([{name: table[shop] for name, table in tables.items()} for shop in range(5)])
    )
    for name, table in tables.items():
        expected = (factors[:, None, None] * table).mean(axis=0)
        assert found[name] == pytest.approx(expected, rel=1e-6)


def test_a_count_that_few_shops_tell_of_is_held_to_a_typical_one() -> None:
    stream = np.random.default_rng(2)
    shops = [
        {POPULARITY: np.append(stream.uniform(1, 3, 9), 0.0).astype(np.float32)}
        for _ in range(SHOPS)
    ]
    for shop in shops[:2]:
        shop[POPULARITY][-1] = 1e9
    found = Defence("tail-aware", 0.2).counts(contributions(shops))
    assert 0 < found[-1] < 2 * 3
    assert found[:-1] == pytest.approx(sum_popularity(contributions(shops))[:-1], rel=0.15)


def _run(factors: dict[int, float], **changes: object) -> tuple[Arrays, list[Event]]:
    """Run six toy shops, the updates of some of them times a factor."""

    def fault(shop: int, exchange: str, _round: int, reply: Message) -> Message:
        if shop in factors and exchange == "update":
            update = reply.content.array_records["update"]
            for name, array in update.items():
                update[name] = Array(array.numpy() * np.float32(factors[shop]))
        return reply

    events: list[Event] = []
    known: dict[str, object] = {"max_update_norm": 0.0, "server_optimizer": "none"}
    job = make_job(2, private=False, timeout_seconds=60.0, **known, **changes)
    grid = FaultyGrid(toy_app(), 6, fault=fault)
    federation = Federation(grid, job, save=lambda _: None, report=events.append)
    return federation.run(start_state()), events


def test_the_federation_runs_its_settings_rule_and_waits_for_enough_shops() -> None:
    table = "item_embedding"
    calm = _run({}, defence="tail-aware", min_shops=3)[0][table]
    loud = _run({0: 1e6}, defence="tail-aware", min_shops=3)[0][table]
    assert np.abs(loud - calm).max() < 20
    assert np.abs(_run({0: 1e6})[0][table]).max() > 1e4
    # Three of six answer well: a quorum, but too few for Krum.
    _, events = _run(dict.fromkeys((3, 4, 5), np.nan), defence="krum", min_shops=5)
    assert [e["kept_old_model"] for e in events if e["event"] == "round"] == [True, True]
