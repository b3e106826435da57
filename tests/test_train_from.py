"""A later run trains on what is new: records before ``train_from`` are as good as not there."""

from dataclasses import replace

import numpy as np
import pytest

from client.rounds.popularity_release import release_popularity
from client.training import train_round
from common.features import Catalogue
from common.protocol import ITEMS, POPULARITY, plan_digest
from test_training import DAY, N, NoNoise, plan_of, shop, state_of, trained
from test_training import catalogue as catalogue  # a fixture

CUT = 4 * DAY


@pytest.mark.parametrize("unit", ["customer", "basket"])
@pytest.mark.parametrize("name", ["linear", "split", "softmax split", "customers", "mlp"])
def test_rounds_know_nothing_of_older_records(name: str, unit: str, catalogue: Catalogue) -> None:
    if unit == "basket" and name in ("customers", "mlp"):
        return  # baskets use no attributes
    plan = plan_of(name, private=True, unit=unit, train_from=CUT)
    events = shop()
    old = events.timestamps < CUT
    assert 0 < old.sum() < len(events)
    other = replace(
        events,
        items=np.where(old, 0, events.items).astype(np.int32),
        weights=np.where(old, 9.0, events.weights).astype(np.float32),
    )
    new = trained(plan, events, catalogue)
    for array, delta in trained(plan, other, catalogue).items():
        assert np.array_equal(delta, new[array]), array
    everything = trained(plan.model_copy(update={"train_from": 0}), events, catalogue)
    assert not np.allclose(new[ITEMS], everything[ITEMS])


@pytest.mark.parametrize("unit", ["customer", "basket"])
@pytest.mark.parametrize("name", ["split", "softmax split"])
def test_a_unit_that_bought_long_ago_moves_no_other_units_draws(
    name: str, unit: str, catalogue: Catalogue
) -> None:
    # The clipped sum without noise: only what the one unit adds may be gone.
    plan = plan_of(name, private=True, unit=unit, train_from=CUT, max_grad_norm=0.05)
    events = shop(10)
    codes = events.users if unit == "customer" else events.sessions
    assert codes is not None
    bound = plan.learning_rate * plan.max_grad_norm / plan.batch_normalizer

    def update(timestamps: np.ndarray) -> np.ndarray:
        some, stream = replace(events, timestamps=timestamps), np.random.default_rng(3)
        found = train_round(plan, 1, state_of(plan), some, catalogue, NoNoise(), stream)
        return np.concatenate([array.ravel() for array in found.values()]).astype(np.float64)

    whole = update(events.timestamps)
    recent = np.unique(codes[events.timestamps >= CUT])
    moves = []
    for own in recent:
        aged = np.where(codes == own, 0, events.timestamps)
        moves.append(np.linalg.norm(whole - update(aged)))
    # What is released lies on a grid. Had the others drawn anew, they would all have moved.
    assert max(moves) <= 1.01 * bound
    assert max(moves) > 0.9 * bound


def test_popularity_is_of_older_records_too() -> None:
    plan = plan_of("linear", private=True, train_from=CUT)
    events = shop()
    whole = plan.model_copy(update={"train_from": 0})
    found = [release_popularity(p, events, N, NoNoise())[POPULARITY] for p in (plan, whole)]
    assert np.array_equal(found[0], found[1])


def test_it_goes_with_the_rounds_for_tuning(catalogue: Catalogue) -> None:
    plan = plan_of("linear", train_from=CUT, validation_from=CUT + 2 * DAY, tuning_round=1)
    events = shop()
    window = events.since(CUT).before(CUT + 2 * DAY)
    assert 0 < len(window) < len(events.since(CUT))
    only = trained(plan_of("linear"), window, catalogue)
    assert np.array_equal(trained(plan, events, catalogue, 1)[ITEMS], only[ITEMS])


def test_it_is_one_of_the_plans_public_constants() -> None:
    assert plan_digest(plan_of("linear")) != plan_digest(plan_of("linear", train_from=CUT))


def test_a_shop_without_anything_new_sends_noise_alone(catalogue: Catalogue) -> None:
    plan = plan_of("linear", private=True, train_from=10**9)
    events = shop()
    empty = replace(events, items=np.zeros_like(events.items))
    first, again = (trained(plan, e, catalogue)[ITEMS] for e in (events, empty))
    assert np.array_equal(first, again)
    assert np.count_nonzero(first) > 0.9 * first.size
