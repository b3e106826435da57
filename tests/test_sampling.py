"""Units are sampled as the plan says and the ledger is charged: by nothing else."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from client.privacy.plan import planned_events
from client.training import train_round
from common.features import Catalogue, ContentSpec
from common.protocol import Arrays, TrainingPlan
from common.schema import ShopEvents
from test_training import N, plan_of, shop, state_of


class Watched:
    """No noise; a sample that is given beforehand, and what was asked for is kept."""

    name = "seeded"

    def __init__(self, sample: np.ndarray | None = None) -> None:
        self._sample = sample
        self.asked: list[tuple[int, float]] = []

    def normal(self, shape: int | Sequence[int], std: float) -> np.ndarray:
        return np.zeros(shape)

    def fill(self, values: np.ndarray) -> None:
        values[...] = 0.0

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        self.asked.append((n, rate))
        return np.ones(n, dtype=bool) if self._sample is None else self._sample


@pytest.fixture(scope="module")
def products() -> Catalogue:
    frame = pd.DataFrame({"item_id": [f"i{k:02}" for k in range(N)], "type": "a"})
    return Catalogue.of(frame, ContentSpec(features=("type",), hash_rows=16))


def update(plan: TrainingPlan, events: ShopEvents, products: Catalogue, noise: Watched) -> Arrays:
    stream = np.random.default_rng(3)
    return train_round(plan, 1, state_of(plan), events, products, noise, stream)


@pytest.mark.parametrize("customers", [0, 1, 24])
@pytest.mark.parametrize("unit", ["customer", "basket"])
def test_every_step_samples_at_the_rate_that_the_ledger_is_charged(
    customers: int, unit: str, products: Catalogue
) -> None:
    plan = plan_of("linear", private=True, unit=unit, sample_rate=0.3, local_steps=3)
    noise, events = Watched(), shop(customers)
    update(plan, events, products, noise)
    codes = events.users if unit == "customer" else events.sessions
    assert codes is not None
    charged = planned_events(plan, "run")[1]
    assert len(noise.asked) == charged.steps == 3
    # The rate is the plan's whoever is there: one that followed their number would tell it.
    assert noise.asked == [(len(np.unique(codes)), charged.sample_rate)] * 3


def test_who_is_not_in_the_sample_adds_nothing(products: Catalogue) -> None:
    plan = plan_of("linear", private=True, max_grad_norm=0.1, sample_rate=0.5)
    events = shop(20)
    sample = np.arange(20) % 3 == 0
    sampled = update(plan, events, products, Watched(sample))
    # The others keep their places without any record.
    alone = update(plan, events.select(sample[events.users]), products, Watched())
    everyone = update(plan, events, products, Watched())
    for name, delta in sampled.items():
        np.testing.assert_array_equal(delta, alone[name])
        assert not np.array_equal(delta, everyone[name])
