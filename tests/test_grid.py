"""What leaves lies on a grid that public constants alone decide."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.noise import SeededNoise, SystemNoise
from client.rounds.popularity_release import release_popularity
from client.training import train_round
from common.errors import PrivacyError
from common.features import Catalogue
from common.grid import delta_step, is_swallowed, on_grid, popularity_step
from common.protocol import POPULARITY, TrainingPlan
from test_training import N, catalogue, plan_of, shop, state_of

__all__ = ["catalogue"]


def off_grid(values: np.ndarray, step: float) -> float:
    return float(np.abs(np.remainder(values.astype(np.float64), step)).max())


@pytest.mark.parametrize("customers", [0, 3, 24])
@pytest.mark.parametrize("name", ["linear", "mlp", "sampled", "momentum"])
def test_every_released_value_is_a_multiple_whatever_the_data(
    name: str, customers: int, catalogue: Catalogue
) -> None:
    plan = plan_of(name, private=True, max_grad_norm=0.3, first_norms=(0.02,))
    for server_round, norm in ((1, 0.02), (2, 0.3)):
        step = delta_step(plan, server_round)
        std = plan.noise_multiplier * norm * plan.learning_rate / plan.batch_normalizer
        std *= plan.local_steps**0.5
        # A power of two, far below the noise.
        assert math.frexp(step)[0] == 0.5
        assert std / 2048 < step <= std / 1024
        for noise in (SystemNoise(), SeededNoise(np.random.default_rng(customers))):
            stream = np.random.default_rng(1)
            delta = train_round(
                plan, server_round, state_of(plan), shop(customers), catalogue, noise, stream
            )
            for array, values in delta.items():
                assert values.dtype == np.float32
                assert off_grid(values, step) == 0.0, array
            # Of all values together: half of them are odd multiples, but five may all be even.
            everything = np.concatenate([values.ravel() for values in delta.values()])
            assert off_grid(everything, 2 * step) > 0.0
            counts = release_popularity(plan, shop(customers), N, noise)[POPULARITY]
            assert off_grid(counts, popularity_step(plan)) == 0.0


@pytest.mark.parametrize("name", ["linear", "mlp", "sampled", "momentum"])
def test_no_start_value_rounds_what_a_shop_adds_to_it(
    name: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leaves, before it is put on the grid, is finer than float32 is beside the start values.

    They are the server's: a grid of theirs would round sums whose noise is not there yet.
    """
    monkeypatch.setattr("client.training.delta_step", lambda *_: 0.0)
    plan, stream = plan_of(name, private=True), np.random.default_rng(1)
    state = {array: values + np.float32(48.0) for array, values in state_of(plan).items()}
    noise = SeededNoise(np.random.default_rng(2))
    delta = train_round(plan, 1, state, shop(24), catalogue, noise, stream)
    for array, values in delta.items():
        assert off_grid(values, float(np.spacing(np.float32(32.0)))) > 0.0, array


def test_a_weight_swallows_noise_as_soon_as_float32_is_coarser_there_than_the_grid() -> None:
    plan = plan_of("linear", private=True)
    step = delta_step(plan, 1)
    assert not is_swallowed(plan, 1, step * (2**24 - 1))
    assert is_swallowed(plan, 1, step * 2**24)


def test_without_privacy_there_is_no_grid() -> None:
    plan = plan_of("linear", private=False, noise_multiplier=1.0, popularity_noise_multiplier=1.0)
    assert delta_step(plan, 1) == popularity_step(plan) == 0.0


@given(
    st.floats(-1e4, 1e4),
    st.integers(-60, 10).map(lambda exponent: math.ldexp(1.0, exponent)),
)
def test_the_nearest_multiple_is_taken_and_float32_holds_it(value: float, step: float) -> None:
    found = on_grid(np.array([value]), step)
    exact = float(np.rint(value / step) * step)
    assert found.dtype == np.float32
    if abs(exact) < step * 2**24:
        assert float(found[0]) == exact
        assert abs(float(found[0]) - value) <= step / 2
    assert off_grid(found, step) == 0.0


def test_noise_below_what_float32_holds_is_refused() -> None:
    plan = TrainingPlan(noise_multiplier=1.0, max_grad_norm=1e-30, learning_rate=1e-9)
    with pytest.raises(PrivacyError, match="too small"):
        delta_step(plan, 1)
