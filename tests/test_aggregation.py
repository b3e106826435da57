import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.popularity import rates
from common.protocol import POPULARITY, TrainingPlan
from server.aggregation import (
    Contribution,
    OptimizerName,
    ServerOptimizer,
    popularity_rates,
    senders,
    summed_rates,
    weighted_mean,
)


def _contributions(values: list[float], weights: list[float]) -> list[Contribution]:
    return [
        Contribution(f"shop-{i}", w, {"x": np.array([v, -v], np.float32)})
        for i, (v, w) in enumerate(zip(values, weights, strict=True))
    ]


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(0.1, 10)), min_size=1, max_size=12
    ),
    st.randoms(),
)
def test_the_mean_is_the_weighted_mean_and_its_bits_do_not_depend_on_the_order(
    pairs: list[tuple[float, float]], random: "st.DataObject"
) -> None:
    values, weights = [p[0] for p in pairs], [p[1] for p in pairs]
    contributions = _contributions(values, weights)
    mean = weighted_mean(contributions)["x"]
    shuffled = list(contributions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert np.array_equal(weighted_mean(shuffled)["x"], mean)
    expected = np.average(np.array(values, np.float32).astype(float), weights=weights)
    assert mean == pytest.approx(np.array([expected, -expected]), rel=1e-9, abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.integers(2, 6))
def test_the_optimizers_follow_algorithm_2_of_reddi_et_al(delta: list[float], rounds: int) -> None:
    step = np.array(delta)
    for name in ("none", "momentum", "adam", "yogi"):
        optimizer = ServerOptimizer(name, 0.3, 0.9, 0.99, 0.01)
        state = {"x": np.zeros(3, np.float32), "fixed": np.ones(2, np.float32)}
        memory = optimizer.start({"x": (3,)})
        x, m, v = np.zeros(3), np.zeros(3), np.full(3, 0.01**2)
        for _ in range(rounds):
            state, memory = optimizer.apply(state, {"x": step}, memory)
            if name == "none":
                move = step
            elif name == "momentum":
                move = m = 0.9 * m + step
            else:
                m = 0.9 * m + 0.1 * step
                v = (
                    0.99 * v + 0.01 * step**2
                    if name == "adam"
                    else v - 0.01 * step**2 * np.sign(v - step**2)
                )
                move = m / (np.sqrt(v) + 0.01)
            x = (x + 0.3 * move).astype(np.float32).astype(float)
        assert state["x"] == pytest.approx(x, rel=1e-5, abs=1e-6)
        assert np.array_equal(state["fixed"], np.ones(2))
        assert state["x"].dtype == np.float32


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_adaptive_steps_do_not_follow_the_scale_of_a_coordinate(name: OptimizerName) -> None:
    optimizer = ServerOptimizer(name, 0.1, 0.9, 0.99, 1e-6)
    state, memory = {"x": np.zeros(2, np.float32)}, optimizer.start({"x": (2,)})
    for _ in range(5):
        state, memory = optimizer.apply(state, {"x": np.array([1e-2, 1.0])}, memory)
    assert state["x"][0] == pytest.approx(state["x"][1], rel=0.05)


def _counts(rows: list[list[float]]) -> list[Contribution]:
    return [
        Contribution(f"shop-{i}", 1.0, {POPULARITY: np.array(row, np.float32)})
        for i, row in enumerate(rows)
    ]


def test_popularity_is_summed_over_shops_and_scaled_to_rates() -> None:
    plan = TrainingPlan(private=False)
    found = popularity_rates(plan, _counts([[3.0, 1.0, 6.0, 0.0]] * 4))
    assert found == pytest.approx([0.3, 0.1, 0.6, 0.0], rel=1e-6)
    assert found.dtype == np.float32


def test_noisy_popularity_is_shrunk_and_never_negative_or_undefined() -> None:
    plan = TrainingPlan(popularity_noise_multiplier=2.0)
    found = popularity_rates(plan, _counts([[3.0, 1.4, 10.0, -9.0]] * 4))
    assert found.sum() == pytest.approx(1.0)
    assert found.min() >= 0
    assert found[2] == found.max()
    drowned = popularity_rates(
        TrainingPlan(popularity_noise_multiplier=100.0), _counts([[-1.0, -2.0, -3.0]])
    )
    assert np.isfinite(drowned).all()


def test_counts_are_shrunk_by_the_noise_of_all_shops_whatever_their_weights() -> None:
    plan = TrainingPlan(popularity_noise_multiplier=2.0)
    own = np.array([30.0, 1.4, 10.0, 7.0], np.float32)
    four = [Contribution(f"s{k}", 1.0 + k, {POPULARITY: own}) for k in range(4)]
    # Four draws of noise add up to one of twice the standard deviation.
    expected = rates(4.0 * own, 2.0 * 2.0, ())
    np.testing.assert_allclose(popularity_rates(plan, four), expected, rtol=1e-6)
    found = summed_rates(plan, 4.0 * own, 4, (), np.array([4.0, 4.0, 4.0, 1.0]))
    expected = rates(4.0 * own, np.array([4.0, 4.0, 4.0, 2.0]), ())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_shop_that_names_no_rows_is_a_sender_of_each() -> None:
    whole = Contribution("a", 1.0, {"x": np.ones((3, 2), np.float32)})
    some = np.array([True, False, True])
    part = Contribution("b", 1.0, {"x": np.ones((2, 2), np.float32)}, {"x": some})
    for shops in ([whole, part], [part, whole]):
        count = senders(shops, "x")
        assert count is not None
        assert count.tolist() == [2, 1, 2]
    assert senders([whole], "x") is None
