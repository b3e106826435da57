"""A shop's own low-rank model: exact, deterministic, and of whatever customers there are."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from client.home.low_rank import own_low_rank
from client.home.personalization import HomeModel
from client.home_settings import HomeSettings
from common.features import Catalogue, ContentSpec
from common.model import LOCAL_NAMES, GlobalModel, initial_state
from common.protocol import ITEMS, POPULARITY, SPECTRUM, ModelPlan

N = 40


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    frame = pd.DataFrame(
        {"item_id": [f"i{k:02}" for k in range(N)], "type": [f"t{k % 4}" for k in range(N)]}
    )
    return Catalogue.of(frame, ContentSpec(features=("type",), content_width=64))


def bought(customers: int, seed: int = 0) -> sparse.csr_matrix:
    stream = np.random.default_rng(seed)
    taste = stream.integers(0, 4, customers)
    chance = np.where(np.arange(N) % 4 == taste[:, None], 0.5, 0.1)
    return sparse.csr_matrix((stream.random((customers, N)) < chance).astype(np.float32))


def test_its_vectors_span_what_the_centred_rows_say(catalogue: Catalogue) -> None:
    histories = bought(200)
    model = own_low_rank(catalogue, histories, 5)
    block = model.block
    rows = block.training_rows(histories, 0.5).toarray().astype(float)
    rows -= np.outer(rows @ block.gain, block.rates / block.gain)
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    found = np.asarray(model.state[ITEMS], dtype=float)
    np.testing.assert_allclose(model.state[SPECTRUM], values[:5] ** 2, rtol=1e-4)
    # The same directions, each up to its sign.
    np.testing.assert_allclose(np.abs(right[:5] @ found), np.eye(5), atol=1e-3)


def test_it_finds_tastes_that_popularity_does_not_know(catalogue: Catalogue) -> None:
    model = own_low_rank(catalogue, bought(300), 4)
    asked = bought(50, seed=9)
    scores = model.learned_part(asked)
    kind = np.asarray(asked @ np.eye(4, dtype=np.float32)[np.arange(N) % 4]).argmax(axis=1)
    by_kind = np.stack([scores[:, np.arange(N) % 4 == k].mean(axis=1) for k in range(4)], axis=1)
    assert (by_kind.argmax(axis=1) == kind).mean() > 0.9


def test_with_groups_it_knows_products_that_nobody_has_bought() -> None:
    """Ten tastes for 40 types of 50 products: what was bought tells of types, not of products."""
    products, types, stream = 2000, 40, np.random.default_rng(3)
    kind = np.arange(products) % types
    frame = pd.DataFrame(
        {"item_id": [f"i{k:04}" for k in range(products)], "type": [f"t{k:02}" for k in kind]}
    )
    wide = Catalogue.of(frame, ContentSpec(features=("type",), content_width=64))

    def shop(customers: int) -> tuple[sparse.csr_matrix, np.ndarray]:
        taste = stream.integers(0, 10, customers)
        liked = kind % 10 == taste[:, None]
        chance = np.where(liked, 0.03, 0.001)
        return sparse.csr_matrix((stream.random(liked.shape) < chance).astype(np.float32)), liked

    bought, _ = shop(60)
    asked, liked = shop(200)
    never = np.asarray(bought.sum(axis=0)).ravel() == 0
    assert never.sum() > 500

    def order(groups: str) -> float:
        scores = own_low_rank(wide, bought, 9, groups).learned_part(asked)[:, never]
        return float(
            np.mean(
                [
                    (s[g].mean() - s[~g].mean()) / s.std()
                    for s, g in zip(scores, liked[:, never], strict=True)
                    if s.std() > 0
                ]
            )
        )

    assert order("type") > 1.5
    model = own_low_rank(wide, bought, 9, "type")
    assert model.state[ITEMS].shape == (types, 9)
    block = model.block
    rows = (bought @ np.eye(types, dtype=np.float32)[kind]) / block.gain
    rows /= np.sqrt(np.linalg.norm(rows, axis=1, keepdims=True)).clip(min=1e-9)
    rows = rows - np.outer(rows @ block.gain, block.rates / block.gain)
    _, values, _ = np.linalg.svd(rows)
    np.testing.assert_allclose(model.state[SPECTRUM], values[:9] ** 2, rtol=1e-3)


@pytest.mark.parametrize("customers", [0, 1, 2, 7])
def test_few_customers_give_few_dimensions_and_no_error(
    catalogue: Catalogue, customers: int
) -> None:
    histories = bought(customers)
    model = own_low_rank(catalogue, histories, 6)
    assert np.isfinite(model.learned_part(bought(3, 1))).all()
    assert np.count_nonzero(model.state[SPECTRUM]) <= max(customers - 1, 0)
    again = own_low_rank(catalogue, histories, 6)
    np.testing.assert_array_equal(again.state[ITEMS], model.state[ITEMS])


def test_it_is_a_part_of_a_shops_mixture_and_never_leaves_it(catalogue: Catalogue) -> None:
    plan = ModelPlan(dimension=1, learned_items=1)
    nothing = GlobalModel(plan, catalogue, initial_state(plan, N))
    histories = bought(60)
    start = {"content": 0.3, "own_learned": 2.0}
    home = HomeModel.fit(nothing, histories, HomeSettings(start=start, own_dimension=4))
    part = home.parts(histories, start)["own_learned"]
    expected = own_low_rank(catalogue, histories, 4).learned_part(histories)
    np.testing.assert_array_equal(part, expected)
    assert home.part_scales["own_learned"] == pytest.approx(float(part.std()), rel=1e-3)
    assert "own_learned" in LOCAL_NAMES


def test_the_federations_directions_are_rows_beside_the_shops_own(catalogue: Catalogue) -> None:
    """With the pooled customers' own model as the prior, few customers find what all would."""
    everyone, few = bought(2000), bought(25, seed=4)
    prior = own_low_rank(catalogue, everyone, 3)
    truth = np.linalg.qr(prior.lifted_vectors.astype(float))[0]

    def off(strength: float) -> float:
        """How much of the fitted directions is none of everyone's."""
        model = own_low_rank(catalogue, few, 3, prior=prior, strength=strength)
        found = np.linalg.qr(model.lifted_vectors.astype(float))[0]
        return float(np.square(found - truth @ (truth.T @ found)).sum())

    assert off(3.0) < 0.6 * off(0.0)
    assert off(1000.0) < 0.15 * off(0.0)
    alone = own_low_rank(catalogue, few, 3)
    nothing = own_low_rank(catalogue, few, 3, prior=prior, strength=0.0)
    np.testing.assert_array_equal(nothing.state[ITEMS], alone.state[ITEMS])


def test_as_much_energy_as_asked_for_stands_beside_the_shops(catalogue: Catalogue) -> None:
    """One direction of the shop's own, told again by the federation: its energy doubles."""
    histories = bought(300)
    alone = own_low_rank(catalogue, histories, 1, "type")
    twice = own_low_rank(catalogue, histories, 1, "type", prior=alone, strength=1.0)
    energy = [float(model.state[SPECTRUM][0]) for model in (alone, twice)]
    assert energy[1] == pytest.approx(2.0 * energy[0], rel=0.02)


@pytest.mark.parametrize("groups", ["", "type"])
@pytest.mark.parametrize("customers", [3, 40])
def test_both_together_are_the_singular_vectors_of_one_matrix(
    groups: str, customers: int, catalogue: Catalogue
) -> None:
    """Dense, from the sentences that say what it is: weights do not count, and energies do."""
    stream, kind = np.random.default_rng(8), np.arange(N) % 4
    rare = np.where(kind == 3, 0.02, 1.0) * stream.uniform(0.2, 1.8, N)
    everyone = sparse.csr_matrix(bought(500, 5).toarray() * (stream.random((500, N)) < rare))
    prior = own_low_rank(catalogue, everyone.astype(np.float32), 3, groups)
    histories = bought(customers, seed=6)
    histories.data = stream.uniform(0.1, 1.0, histories.nnz).astype(np.float32)
    model = own_low_rank(catalogue, histories, 4, groups, prior=prior, strength=2.0, power=0.7)
    binary = histories.copy()
    binary.data[:] = 1.0
    block = model.block
    rows = block.training_rows(binary, 0.5).toarray().astype(float)
    rows -= np.outer(rows @ block.gain, block.rates / block.gain)
    told = sparse.csr_matrix(prior.pseudo_customers(histories, 0.7))
    beside = np.asarray(block.project(told).toarray(), dtype=float)
    if groups:
        released = (binary.sum(axis=0), prior.state[POPULARITY])
        mass = np.array([np.bincount(kind, np.asarray(one).ravel()) for one in released])
        here, there = np.maximum(mass / mass.mean(axis=1, keepdims=True), 0.05)
        assert there.min() == 0.05
        beside *= here / there
    units = beside / np.linalg.norm(beside, axis=1, keepdims=True)
    energy = 2.0 * np.square(rows @ units.T).sum()
    beside *= np.sqrt(energy / np.square(beside).sum())
    _, values, right = np.linalg.svd(np.vstack([rows, beside]), full_matrices=False)
    count = min(4, min(customers + 3, rows.shape[1]) - 1)
    found = np.asarray(model.state[ITEMS], dtype=float)
    spectrum = np.asarray(model.state[SPECTRUM], dtype=float)
    np.testing.assert_allclose(spectrum[:count], values[:count] ** 2, rtol=1e-3)
    expected = right[:count].T * values[:count] ** 2 @ right[:count]
    np.testing.assert_allclose(
        found * spectrum @ found.T, expected, atol=1e-3 * np.abs(expected).max()
    )


def test_the_exponent_is_that_of_the_block(catalogue: Catalogue) -> None:
    histories = bought(100)
    gains = [
        own_low_rank(catalogue, histories, 2, popularity_exponent=exponent).block.gain
        for exponent in (0.3, 0.6)
    ]
    # Log gains are the exponent times log popularity, less their mean.
    np.testing.assert_allclose(np.log(gains[1]), 2.0 * np.log(gains[0]), atol=1e-4)
    how = HomeSettings(start={"own_learned": 1.0}, own_exponent=0.6)
    home = HomeModel.fit(own_low_rank(catalogue, histories, 2), histories, how)
    assert home.own_learned is not None
    np.testing.assert_array_equal(home.own_learned.block.gain, gains[1])


def test_an_untrained_prior_says_nothing(catalogue: Catalogue) -> None:
    histories = bought(50)
    plan = ModelPlan(dimension=2)
    state = initial_state(plan, N) | {SPECTRUM: np.zeros(2, np.float32)}
    nothing = GlobalModel(plan, catalogue, state)
    model = own_low_rank(catalogue, histories, 3, prior=nothing, strength=5.0)
    alone = own_low_rank(catalogue, histories, 3)
    np.testing.assert_allclose(model.state[SPECTRUM], alone.state[SPECTRUM], rtol=1e-4)
