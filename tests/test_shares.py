"""How a group's score is dealt to products: a posterior of own counts around what is known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from client.home.adaptation import AdaptedFacts, arrays_of, home_of
from client.home.low_rank import own_low_rank
from client.home.personalization import HomeModel
from client.home.reasons import explain_home
from client.home.shares import dealt, posterior_counts
from client.home_settings import HomeSettings
from common.features import Catalogue, ContentSpec
from common.model import LOCAL_NAMES, GlobalModel, initial_state
from common.protocol import ITEMS, POPULARITY, SPECTRUM, ModelPlan

N, TYPES = 400, 20
START = {"learned": 0.5, "own_learned": 0.4, "shared_learned": 1.0, "own_popularity": 0.1}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    frame = pd.DataFrame(
        {"item_id": [f"i{k:03}" for k in range(N)], "type": [f"t{k % TYPES:02}" for k in range(N)]}
    )
    return Catalogue.of(frame, ContentSpec(features=("type",), content_width=64))


def rates(spread: float, seed: int = 0) -> np.ndarray:
    return np.asarray(np.exp(spread * np.random.default_rng(seed).standard_normal(20_000)))


def bought(customers: int, seed: int = 0) -> sparse.csr_matrix:
    """Customers of four tastes, each for five of the types, one product of each type best."""
    stream = np.random.default_rng(seed)
    kind = np.arange(N) % TYPES
    likes = kind // 5 == stream.integers(0, 4, customers)[:, None]
    chance = np.where(likes, 0.12, 0.01) * np.where(np.arange(N) < TYPES, 3.0, 1.0)
    return sparse.csr_matrix((stream.random((customers, N)) < chance).astype(np.float32))


def released(catalogue: Catalogue, histories: sparse.csr_matrix) -> GlobalModel:
    """Return a model of groups as a federation without noise learns it of these customers."""
    plan = ModelPlan(dimension=4, groups="type", learned_items=TYPES, group_weights="even")
    counts = np.asarray((histories > 0).sum(axis=0), dtype=np.float64).ravel()
    found = own_low_rank(catalogue, histories, 4, "type")
    state = initial_state(plan, N) | {
        POPULARITY: (counts / counts.sum()).astype(np.float32),
        ITEMS: found.state[ITEMS],
        SPECTRUM: found.state[SPECTRUM],
    }
    return GlobalModel(plan, catalogue, state)


@pytest.mark.parametrize("shape", [0.7, 5.0])
def test_the_posterior_is_that_of_the_gamma_that_rates_came_from(shape: float) -> None:
    """Planted: mean 2, this shape; then the best guess is known in closed form."""
    stream = np.random.default_rng(1)
    counts = stream.poisson(stream.gamma(shape, 2.0 / shape, 40_000)).astype(np.float64)
    found = posterior_counts(counts, np.ones(40_000))
    best = 2.0 * (counts + shape) / (2.0 + shape)
    np.testing.assert_allclose(found, best, rtol=0.03, atol=0.02)


def test_an_exact_prior_takes_over_and_one_that_noise_drowned_counts_little() -> None:
    truth = rates(1.0)
    counts = np.random.default_rng(2).poisson(truth).astype(np.float64)
    exact = posterior_counts(counts, truth)
    assert np.median(np.abs(exact / truth - 1.0)) < 0.05
    drowned = posterior_counts(counts, rates(1.0, seed=5))
    alone = posterior_counts(counts, np.ones(len(truth)))
    errors = [float(np.mean((guess - truth) ** 2)) for guess in (exact, drowned, alone, counts)]
    assert errors[0] < 0.1 * errors[2]
    assert errors[2] <= errors[1] < errors[3]


def test_noise_between_them_is_weighed_against_the_shops_own_counts() -> None:
    truth = rates(0.8)
    stream = np.random.default_rng(3)
    counts = stream.poisson(truth).astype(np.float64)
    noisy = truth * np.exp(0.4 * stream.standard_normal(len(truth)))
    both = posterior_counts(counts, noisy)
    alone = posterior_counts(counts, np.ones(len(truth)))
    error = [float(np.mean((np.log(guess) - np.log(truth)) ** 2)) for guess in (both, noisy, alone)]
    assert error[0] < 0.9 * min(error[1:])


def test_products_that_the_shop_does_not_sell_do_not_count() -> None:
    truth = rates(0.5)
    stock = np.arange(len(truth)) % 2 == 0
    counts = np.where(stock, np.random.default_rng(4).poisson(truth), 0).astype(np.float64)
    inside = posterior_counts(counts[stock], np.ones(int(stock.sum())))
    np.testing.assert_allclose(
        posterior_counts(counts, np.ones(len(truth)), stock)[stock], inside, rtol=1e-6
    )
    # Taken for products that nobody wants, they would make the rest stray further than it does.
    assert not np.allclose(posterior_counts(counts, np.ones(len(truth)))[stock], inside, rtol=0.05)


def test_without_any_sale_or_any_release_there_is_still_an_order() -> None:
    none = posterior_counts(np.zeros(5), np.arange(5.0))
    assert np.isfinite(none).all()
    assert (np.diff(none) > 0).all()
    counts = np.array([3.0, 0.0, 1.0])
    np.testing.assert_allclose(
        posterior_counts(counts, np.zeros(3)), posterior_counts(counts, np.ones(3)), rtol=1e-4
    )


def test_a_groups_taste_goes_to_its_products_by_their_weights(catalogue: Catalogue) -> None:
    model = released(catalogue, bought(300))
    weights = np.random.default_rng(0).random(N).astype(np.float32) + 0.1
    found = dealt(model, weights).learned_part(bought(20, 1))
    by_weight = found / weights
    for kind in range(TYPES):  # Over its weight, each product has what its group has.
        inside = by_weight[:, np.arange(N) % TYPES == kind]
        np.testing.assert_allclose(inside, inside[:, :1] @ np.ones((1, inside.shape[1])), rtol=1e-3)
    # With the block's own popularity for weights all is as it was, up to a floor under each.
    own = model.state[POPULARITY] * N + 0.05
    np.testing.assert_allclose(
        dealt(model, own).learned_part(bought(20, 1)),
        model.learned_part(bought(20, 1)) * N * 1.05 / TYPES,
        rtol=1e-3,
        atol=1e-4,
    )


def settings_of(**more: object) -> HomeSettings:
    how = {"own_dimension": 4, "own_groups": "type", "share_exponent": 0.5, "start": START}
    return HomeSettings.model_validate({**how, **more})


def test_it_is_off_by_default_and_local(catalogue: Catalogue) -> None:
    histories = bought(100)
    home = HomeModel.fit(released(catalogue, bought(300)), histories, settings_of())
    assert home.shares is None
    assert {"shares", "shared_learned"} <= LOCAL_NAMES


def test_even_takes_nothing_from_the_release_and_released_does(catalogue: Catalogue) -> None:
    histories, start = bought(60), {"own_learned": 1.0}
    models = [released(catalogue, bought(300, seed)) for seed in (0, 7)]

    def shares(prior: str) -> list[np.ndarray]:
        how = settings_of(share_prior=prior, start=start)
        homes = [HomeModel.fit(model, histories, how) for model in models]
        assert all(home.shares is not None for home in homes)
        return [home.shares for home in homes if home.shares is not None]

    first, second = shares("even")
    np.testing.assert_array_equal(first, second)
    first, second = shares("released")
    assert not np.allclose(first, second, rtol=0.01)
    plain = HomeModel.fit(models[0], histories, settings_of(start=start))
    other = HomeModel.fit(models[0], histories, settings_of(start=start, share_prior="even"))
    assert not np.allclose(
        plain.parts(histories, start)["own_learned"], other.parts(histories, start)["own_learned"]
    )


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_shares_are_of_what_the_shop_stocks_1_in_the_mean_and_to_their_power(
    catalogue: Catalogue, exponent: float
) -> None:
    """Of what it does not stock a count of 0 tells nothing, and it takes no part in the mean."""
    model, histories, stock = released(catalogue, bought(300)), bought(60), np.arange(N) % 3 > 0
    histories = sparse.csr_matrix(histories.multiply(stock))
    counts = np.asarray((histories > 0).sum(axis=0), dtype=np.float64).ravel()
    for name, prior in (("released", model.popularity_part), ("even", np.ones(N))):
        how = settings_of(share_prior=name, share_exponent=exponent)
        home = HomeModel.fit(model, histories, how, stock=stock)
        assert home.shares is not None
        expected = posterior_counts(counts, prior, stock)
        expected = (expected / expected[stock].mean()) ** exponent
        np.testing.assert_allclose(home.shares, expected, rtol=1e-4)


def test_the_more_is_known_of_a_product_the_less_its_own_count_tells() -> None:
    """Planted: rates of mean m and shape m, so that a count moves all by as much of it."""
    stream = np.random.default_rng(9)
    mean = np.where(np.arange(20_000) % 2, 0.5, 8.0)
    counts = stream.poisson(stream.gamma(mean)).astype(np.float64)
    found = posterior_counts(counts, mean)
    np.testing.assert_allclose(found, (counts + mean) / 2, rtol=0.1)


def test_a_stored_mixture_answers_and_explains_as_the_one_that_was_fitted(
    catalogue: Catalogue,
) -> None:
    model, histories = released(catalogue, bought(300)), bought(60, 1)
    settings = settings_of(share_prior="released")
    home = HomeModel.fit(model, histories, settings)
    assert home.own_learned is not None
    assert home.shared_learned is not None
    known: dict[str, Any] = {
        "settings": settings,
        "part_scales": dict(home.part_scales),
        "mixing_weights": dict(home.mixing_weights),
        "own_plan": home.own_learned.plan,
        "shared_plan": home.shared_learned.plan,
    }
    facts = AdaptedFacts.model_construct(None, **known)
    again = home_of(arrays_of(home, {}), facts, model)
    np.testing.assert_array_equal(again.scores(histories), home.scores(histories))
    for row, item in ((0, 3), (5, 250)):
        asked = histories[[row]]
        found = explain_home(again, again.mixing_weights, again.part_scales, asked, item)
        assert found.score == pytest.approx(float(home.scores(asked)[0, item]), rel=1e-4)
        assert found.score == pytest.approx(sum(part.value for part in found.parts), rel=1e-6)


def test_without_a_trained_block_the_shared_model_is_the_shops_own() -> None:
    how = settings_of().without("learned", "shared_ease", "shared_learned")
    assert how.start == {"own_learned": 1.4, "own_popularity": 0.1}
