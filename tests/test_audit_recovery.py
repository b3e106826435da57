import numpy as np
import pytest
from scipy import sparse

from audit_support import shops, trial, world
from common.protocol import ITEMS, POPULARITY
from simulations.audit.recovery import Knowledge, recover, recovery


@pytest.mark.parametrize("customers", [1, 2, 5])
def test_updates_without_noise_come_apart_by_customer(customers: int) -> None:
    stream = np.random.default_rng(customers)
    plan = trial("federated").plan
    size = world().catalogue.size
    bought = [np.sort(stream.choice(size, 40, replace=False)) for _ in range(customers)]
    update, histogram = np.zeros((size, 32)), np.zeros(size)
    for rows in bought:
        update[rows] += np.outer(stream.uniform(0.5, 2.0, 40), stream.normal(size=32))
        histogram[rows] += 40**-0.5
    state = {POPULARITY: np.full(size, 1 / size, np.float32)}
    known = Knowledge(np.full(size, 0.01), 40)
    guesses = recover(
        plan,
        state,
        {POPULARITY: histogram.astype(np.float32)},
        {ITEMS: update.astype(np.float32)},
        customers,
        known,
        world().catalogue,
    )
    assert sorted(map(tuple, guesses)) == sorted(map(tuple, bought))


def test_what_is_known_elsewhere_is_popularity() -> None:
    known = Knowledge.of(shops()[1:], world().catalogue.size)
    whole = sparse.vstack([s.matrix(world().catalogue.size) for s in shops()[1:]])
    counts = np.asarray(whole.sum(axis=0)).ravel()
    assert known.products == round(whole.sum() / whole.shape[0])
    worst, best = counts[known.favourites()].min(), np.sort(counts)[-known.products]
    assert worst == best


@pytest.mark.parametrize(("arm", "found"), [("federated", True), ("federated-dp", False)])
def test_products_are_recovered_without_privacy_alone(arm: str, found: bool) -> None:
    plan = trial(arm).plan.model_copy(update={"tuning_round": 0})
    record = recovery(arm, plan, shops(), world().catalogue, customers=3, trials=2, seed=1)
    assert (record["precision"] > 0.95 and record["recall"] > 0.95) == found
    assert record["precision"] - record["prior_precision"] == pytest.approx(
        record["gain_precision"]
    )
    if not found:
        assert abs(record["gain_precision"]) < 0.1
