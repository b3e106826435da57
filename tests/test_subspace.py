"""Federated subspace iteration against the power method on pooled records and planted tastes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.privacy.noise import SeededNoise
from client.training import train_round
from common.blocks import LearnedBlock
from common.features import Catalogue
from common.model import GlobalModel, initial_state, state_spec, trained_spec
from common.protocol import ITEMS, POPULARITY, SPECTRUM, Arrays, ModelPlan, TrainingPlan
from common.schema import ShopEvents
from server.aggregation import Contribution, weighted_mean
from server.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from server.subspace import SubspaceOptimizer, centre, denoise

N, TASTES, SHOPS = 60, 4, 5


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.of(pd.DataFrame({"item_id": [f"i{k:02}" for k in range(N)]}))


def planted(customers: int = 80, seed: int = 0) -> tuple[list[ShopEvents], np.ndarray]:
    """Return shops whose customers each have one of a few tastes, and the tastes (TASTES, N)."""
    stream = np.random.default_rng(seed)
    popularity = (np.arange(N) + 3.0) ** -0.5
    kind = np.arange(N) % TASTES
    shares = np.stack([np.where(kind == t, 8.0, 1.0) * popularity for t in range(TASTES)])
    shares /= shares.sum(axis=1, keepdims=True)
    shops = []
    for shop in range(SHOPS):
        taste = stream.integers(0, TASTES, customers)
        items = [stream.choice(N, 9, replace=False, p=shares[t]) for t in taste]
        users = np.repeat(np.arange(customers), 9)
        shops.append(
            ShopEvents(
                merchant_id=f"m{shop}",
                user_ids=np.arange(customers).astype(str),
                users=users.astype(np.int32),
                items=np.concatenate(items).astype(np.int32),
                timestamps=np.zeros(len(users), np.int64),
                weights=np.ones(len(users), np.float32),
            )
        )
    return shops, shares


def plan_of(dimension: int = TASTES - 1, *, private: bool = False, **changes: Any) -> TrainingPlan:
    model = ModelPlan(dimension=dimension, **changes.pop("model", {}))
    return TrainingPlan(
        private=private,
        noise_multiplier=changes.pop("noise_multiplier", 1.0),
        learning_rate=0.7,
        batch_normalizer=50.0,
        model=model,
        **changes,
    )


def popularity_of(shops: list[ShopEvents]) -> np.ndarray:
    counts = np.sum([np.bincount(s.items, minlength=N) for s in shops], axis=0) + 0.0
    rates: np.ndarray = (counts / counts.sum()).astype(np.float32)
    return rates


def federate(
    plan: TrainingPlan,
    shops: list[ShopEvents],
    catalogue: Catalogue,
    rounds: int,
    momentum: float = 0.0,
) -> tuple[Arrays, Arrays]:
    optimizer = SubspaceOptimizer(plan, momentum)
    memory = optimizer.start(trained_spec(plan.model, N))
    state = initial_state(plan.model, N) | {POPULARITY: popularity_of(shops)}
    for server_round in range(1, rounds + 1):
        replies = []
        for number, shop in enumerate(shops):
            stream = np.random.default_rng([number, server_round])
            noise = SeededNoise(np.random.default_rng([number, server_round, 1]))
            delta = train_round(plan, server_round, state, shop, catalogue, noise, stream)
            replies.append(Contribution(shop.merchant_id, 1.0, delta))
        state, memory = optimizer.apply(
            state, weighted_mean(replies), memory, len(shops), server_round
        )
    return state, memory


def pooled_rows(plan: TrainingPlan, shops: list[ShopEvents]) -> np.ndarray:
    """Return (U, L) float64 rows of all customers, less what the plan takes off."""
    block = LearnedBlock.of(plan.model, popularity_of(shops))
    gain, rates = block.gain.astype(float), block.rates.astype(float)
    rows = np.concatenate([s.matrix(N).toarray() for s in shops])[:, block.rows] / gain
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) ** plan.model.row_exponent
    expected = np.outer(rows @ gain, rates / gain) * float(plan.model.centred)
    popular = rates / gain / np.linalg.norm(rates / gain)
    expected += (1 - plan.model.popular_share) * np.outer(rows @ popular, popular)
    centred: np.ndarray = rows - expected
    return centred


def overlap(left: np.ndarray, right: np.ndarray) -> float:
    """Return how much of the span of ``right`` lies in that of ``left``: 1 for all of it."""
    a, b = np.linalg.qr(left)[0], np.linalg.qr(right)[0]
    return float(np.linalg.norm(a.T @ b) ** 2 / b.shape[1])


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"centred": False},
        {"learned_items": 25},
        {"row_exponent": 0.3},
        {"centred": False, "popular_share": 0.3, "learned_items": 25},
    ],
)
def test_a_round_is_one_step_of_the_power_method_on_pooled_rows(
    model: dict[str, Any], catalogue: Catalogue
) -> None:
    plan = plan_of(model=model)
    shops, _ = planted()
    rows = pooled_rows(plan, shops)
    vectors = initial_state(plan.model, N)[ITEMS].astype(float)
    for rounds in (1, 2):
        basis, values, _ = np.linalg.svd(rows.T @ (rows @ vectors), full_matrices=False)
        state, _ = federate(plan, shops, catalogue, rounds)
        np.testing.assert_allclose(state[SPECTRUM], values, rtol=1e-3)
        np.testing.assert_allclose(state[ITEMS] @ state[ITEMS].T, basis @ basis.T, atol=1e-3)
        vectors = basis


def test_what_units_leave_away_along_the_released_popularity_is_put_back(
    catalogue: Catalogue,
) -> None:
    model = {"centred": False, "popular_share": 0.4, "row_exponent": 0.0}
    plan, (shops, _) = plan_of(N, model=model), planted()
    state, _ = federate(plan, shops, catalogue, 2)
    histories = np.concatenate([shop.matrix(N).toarray() for shop in shops])
    pseudo = GlobalModel(plan.model, catalogue, state).pseudo_customers(shops[0].matrix(N))
    gram, found = histories.T @ histories, pseudo.T @ pseudo
    assert np.linalg.norm(found - gram) < 1e-3 * np.linalg.norm(gram)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_the_spectrum_is_that_of_all_units_however_few_a_step_samples(
    rate: float, catalogue: Catalogue
) -> None:
    # It was that of the sampled ones: so much less did what all customers have in common count
    # beside a shop's own.
    plan = plan_of(sample_rate=rate)
    shops, _ = planted()
    rows = pooled_rows(plan, shops)
    values = np.linalg.eigvalsh(rows.T @ rows)[:-4:-1]
    found = [federate(plan, shops, catalogue, rounds)[0][SPECTRUM] for rounds in range(8, 13)]
    np.testing.assert_allclose(np.mean(found, axis=0), values, rtol=0.1)


def test_rounds_end_at_the_leading_eigenvectors(catalogue: Catalogue) -> None:
    plan = plan_of()
    shops, _ = planted()
    rows = pooled_rows(plan, shops)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    state, _ = federate(plan, shops, catalogue, 12)
    assert overlap(state[ITEMS], vectors[:, -3:]) > 0.999
    np.testing.assert_allclose(state[SPECTRUM], values[:-4:-1], rtol=0.01)


@pytest.mark.parametrize(("private", "bound"), [(False, 0.85), (True, 0.75)])
def test_planted_tastes_are_recovered(private: bool, bound: float, catalogue: Catalogue) -> None:
    plan = plan_of(private=private, noise_multiplier=1.0, max_grad_norm=0.3)
    shops, shares = planted()
    state, _ = federate(plan, shops, catalogue, 8, momentum=0.7 if private else 0.0)
    gain = LearnedBlock.of(plan.model, state[POPULARITY]).gain
    truth = ((shares - shares.mean(axis=0)) / gain).T
    chance = overlap(initial_state(plan.model, N)[ITEMS], truth[:, :3])
    found = overlap(state[ITEMS], truth[:, :3])
    assert chance < 0.3
    assert found > bound
    # A new customer of one taste is shown products of that taste.
    model = GlobalModel(plan.model, catalogue, state)
    shop = planted(60, seed=9)[0][0]
    history = shop.matrix(N)
    lift = model.parts(history)["learned"]
    kinds = np.arange(N) % TASTES
    own = np.stack([history @ (kinds == t) for t in range(TASTES)]).argmax(axis=0)
    liked = np.stack([lift[:, kinds == t].mean(axis=1) for t in range(TASTES)]).argmax(axis=0)
    assert (own == liked).mean() > 0.75


def test_momentum_averages_noise_away(catalogue: Catalogue) -> None:
    plan = plan_of(private=True, noise_multiplier=4.0, max_grad_norm=0.3)
    shops, _ = planted()
    rows = pooled_rows(plan, shops)
    best = np.linalg.eigh(rows.T @ rows)[1][:, -3:]
    forgetful, _ = federate(plan, shops, catalogue, 8)
    lasting, _ = federate(plan, shops, catalogue, 8, momentum=0.8)
    assert overlap(lasting[ITEMS], best) > overlap(forgetful[ITEMS], best) + 0.05


def test_memory_is_kept_in_the_present_basis(catalogue: Catalogue) -> None:
    plan, shops = plan_of(), planted()[0]
    rows = pooled_rows(plan, shops)
    state, memory = federate(plan, shops, catalogue, 10, momentum=0.6)
    # At a fixed point each round adds the same image of the same basis.
    mean = memory["sum"] / memory["sum_weight"]
    block = LearnedBlock.of(plan.model, state[POPULARITY])
    step = plan.learning_rate / plan.batch_normalizer / SHOPS
    expected = step * rows.T @ (rows @ state[ITEMS])
    error = np.linalg.norm(centre(mean, block) - expected) / np.linalg.norm(expected)
    assert error < 0.05


def test_momentum_zero_remembers_nothing() -> None:
    plan, shops = plan_of(), planted()[0]
    optimizer = SubspaceOptimizer(plan, 0.0)
    state = initial_state(plan.model, N) | {POPULARITY: popularity_of(shops)}
    delta = {ITEMS: np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)}
    fresh = optimizer.start(trained_spec(plan.model, N))
    used = {name: array + 5.0 for name, array in fresh.items()}
    first, second = (optimizer.apply(state, delta, m, SHOPS, 1)[0] for m in (fresh, used))
    assert np.array_equal(first[ITEMS], second[ITEMS])
    assert np.array_equal(first[SPECTRUM], second[SPECTRUM])


def test_the_basis_is_orthonormal_and_the_spectrum_falls(catalogue: Catalogue) -> None:
    for private in (False, True):
        state, _ = federate(plan_of(private=private), planted()[0], catalogue, 3, 0.5)
        np.testing.assert_allclose(state[ITEMS].T @ state[ITEMS], np.eye(3), atol=1e-5)
        assert (np.diff(state[SPECTRUM]) <= 0).all()
        assert (state[SPECTRUM] >= 0).all()
        assert all(array.dtype == np.float32 for array in state.values())


def test_the_order_of_the_shops_does_not_matter() -> None:
    plan, shops = plan_of(), planted()[0]
    optimizer = SubspaceOptimizer(plan, 0.5)
    state = initial_state(plan.model, N) | {POPULARITY: popularity_of(shops)}
    memory = optimizer.start(trained_spec(plan.model, N))
    stream = np.random.default_rng(0)
    replies = [
        Contribution(f"m{k}", 1.0, {ITEMS: stream.normal(size=(N, 3)).astype(np.float32)})
        for k in range(SHOPS)
    ]
    found = [
        optimizer.apply(state, weighted_mean(order), memory, SHOPS, 1)
        for order in (replies, replies[::-1])
    ]
    for left, right in zip(*found, strict=True):
        assert all(np.array_equal(left[k], right[k]) for k in left)


def test_memory_survives_a_checkpoint(tmp_path: Path, catalogue: Catalogue) -> None:
    plan, shops = plan_of(private=True), planted()[0]
    state, memory = federate(plan, shops, catalogue, 2, momentum=0.6)
    whole = Checkpoint(2, "run", plan, "{}", catalogue.fingerprint, "system", state, memory)
    write_checkpoint(tmp_path, whole)
    back = read_checkpoint(tmp_path, 2)
    optimizer = SubspaceOptimizer(plan, 0.6)
    delta = {ITEMS: np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)}
    expected = optimizer.apply(state, delta, memory, SHOPS, 3)
    for left, right in zip(
        expected, optimizer.apply(back.state, delta, back.memory, SHOPS, 3), strict=True
    ):
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[k], right[k]) for k in left)


def test_centring_takes_each_units_expected_basket_off() -> None:
    stream = np.random.default_rng(0)
    plan = ModelPlan(dimension=3)
    block = LearnedBlock.of(plan, stream.dirichlet(np.ones(12)).astype(np.float32))
    rows, vectors = stream.random((7, 12)), stream.normal(size=(7, 3))
    update = rows.T @ vectors
    sizes = rows @ block.gain
    exact = (rows - np.outer(sizes, block.rates / block.gain)).T @ vectors
    np.testing.assert_allclose(centre(update, block), exact, rtol=1e-5, atol=1e-6)


def test_the_spectrum_is_freed_of_what_noise_adds() -> None:
    stream = np.random.default_rng(0)
    noise, rows = 0.2, 400
    signal = np.zeros((rows, 3))
    signal[:3, :3] = np.diag([30.0, 10.0, 0.0])
    values = [
        np.linalg.svd(signal + stream.normal(0, noise, signal.shape), compute_uv=False)
        for _ in range(50)
    ]
    cleaned = np.mean([denoise(v, noise, rows) for v in values], axis=0)
    np.testing.assert_allclose(cleaned[:2], [30.0, 10.0], rtol=0.01)
    assert cleaned[2] < 1.5 < np.mean(values, axis=0)[2]
    np.testing.assert_array_equal(denoise(np.array([3.0]), 0.0, rows), [3.0])


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("norms", [(), (0.1, 0.2)])
def test_noise_alone_has_hardly_any_energy(
    momentum: float, norms: tuple[float, ...], catalogue: Catalogue
) -> None:
    plan = plan_of(
        private=True,
        noise_multiplier=2.0,
        max_grad_norm=0.4,
        local_steps=3,
        first_norms=norms,
        model={"centred": False},
    )
    nobody = [shop.select(np.zeros(len(shop), dtype=bool)) for shop in planted()[0]]
    open_plan = plan.model_copy(update={"private": False})
    ratios = []
    for seed in range(6):
        optimizers = [SubspaceOptimizer(p, momentum) for p in (plan, open_plan)]
        state = initial_state(plan.model, N)
        memories = [o.start(trained_spec(plan.model, N)) for o in optimizers]
        for server_round in (1, 2, 3):
            replies = []
            for number, shop in enumerate(nobody):
                noise = SeededNoise(np.random.default_rng([seed, number, server_round]))
                stream = np.random.default_rng(0)
                delta = train_round(plan, server_round, state, shop, catalogue, noise, stream)
                replies.append(Contribution(shop.merchant_id, 1.0, delta))
            mean = weighted_mean(replies)
            found = [
                o.apply(state, mean, m, SHOPS, server_round)
                for o, m in zip(optimizers, memories, strict=True)
            ]
            state, memories = found[0][0], [memory for _, memory in found]
            cleaned, raw = (np.square(f[0][SPECTRUM]).sum() for f in found)
            ratios.append(float(cleaned / raw))
    # Of 60 rows a direction of three takes somewhat more than its share.
    assert np.mean(ratios) < 0.25


def test_a_round_that_was_never_applied_does_not_shift_the_clipping_norms() -> None:
    plan = plan_of(private=True, max_grad_norm=0.4, first_norms=(0.01, 0.02))
    optimizer = SubspaceOptimizer(plan)
    memory = optimizer.start(trained_spec(plan.model, N))
    state = initial_state(plan.model, N) | {POPULARITY: popularity_of(planted()[0])}
    delta = {ITEMS: np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)}
    noise = plan.learning_rate * plan.noise_multiplier / plan.batch_normalizer / SHOPS**0.5
    for server_round, norm in ((1, 0.01), (2, 0.02), (3, 0.4), (7, 0.4)):
        found, after = optimizer.apply(state, delta, memory, SHOPS, server_round)
        assert after["sum_squares"] == pytest.approx(norm**2)
        assert optimizer.noise(SHOPS, np.ones(1), after["sum_squares"]) == pytest.approx(
            noise * norm
        )
        assert np.isfinite(found[SPECTRUM]).all()


def test_rows_with_more_noise_than_planned_leave_less_of_the_spectrum() -> None:
    plan = plan_of(private=True, max_grad_norm=0.4)
    optimizer = SubspaceOptimizer(plan)
    memory = optimizer.start(trained_spec(plan.model, N))
    state = initial_state(plan.model, N) | {POPULARITY: popularity_of(planted()[0])}
    delta = {ITEMS: np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)}
    noise, left = [], []
    for times in (None, float(SHOPS), 9.0 * SHOPS):
        noise.append(optimizer.noise(SHOPS, np.ones(1), np.ones(1), times))
        new, _ = optimizer.apply(state, delta, memory, SHOPS, 1, times)
        left.append(float(new[SPECTRUM].sum()))
    # Under trust "shop" the sum holds the noise of all shops: the plan says so itself.
    assert noise[0] == noise[1] == pytest.approx(noise[2] / 3)
    assert left[0] == left[1] > left[2]


@pytest.mark.parametrize("dimension", [59, 60, 75])
def test_a_catalogue_may_be_smaller_than_the_dimension(
    dimension: int, catalogue: Catalogue
) -> None:
    plan = plan_of(dimension)
    shops, _ = planted(20)
    state, memory = federate(plan, shops, catalogue, 2)
    assert {k: v.shape for k, v in state.items()} == state_spec(plan.model, N)
    assert memory["sum"].shape == state[ITEMS].shape
    rows = pooled_rows(plan, shops)
    values = np.linalg.eigvalsh(rows.T @ rows)[::-1]
    np.testing.assert_allclose(state[SPECTRUM][:10], values[:10], rtol=0.05)


def test_shops_without_customers_leave_a_finite_state(catalogue: Catalogue) -> None:
    plan = plan_of()
    nobody = planted()[0][0].select(np.zeros(80 * 9, dtype=bool))
    optimizer = SubspaceOptimizer(plan, 0.5)
    state = initial_state(plan.model, N)
    memory = optimizer.start(trained_spec(plan.model, N))
    noise, stream = SeededNoise(np.random.default_rng(0)), np.random.default_rng(0)
    delta = train_round(plan, 1, state, nobody, catalogue, noise, stream)
    state, memory = optimizer.apply(state, delta, memory, 1, 1)
    assert all(np.isfinite(a).all() for a in [*state.values(), *memory.values()])
    scores = GlobalModel(plan.model, catalogue, state).scores(planted()[0][0].matrix(N))
    assert np.isfinite(scores).all()


def test_rows_of_groups_are_not_centred_by_products_popularity() -> None:
    """A group's row is no product's: the expected basket has nothing to take off it."""
    stream = np.random.default_rng(2)
    rates = stream.dirichlet(np.ones(9)).astype(np.float32)
    state = {ITEMS: np.eye(5, 2, dtype=np.float32), POPULARITY: rates}
    delta = {ITEMS: stream.normal(size=(5, 2)).astype(np.float32)}
    found = []
    for centred in (False, True):
        model = ModelPlan(dimension=2, learned_items=5, groups="type", centred=centred)
        optimizer = SubspaceOptimizer(TrainingPlan(private=False, rounds=1, model=model))
        new, _ = optimizer.apply(state, delta, optimizer.start({ITEMS: (5, 2)}), 3, 1)
        found.append(new[ITEMS])
    assert np.array_equal(found[0], found[1])
