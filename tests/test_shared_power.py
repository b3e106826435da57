"""How much the weaker of the federation's directions count at home: ``shared_power``."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import sparse

from client.home.adaptation import AdaptedFacts, arrays_of, home_of
from client.home.ease import Ease
from client.home.low_rank import own_low_rank
from client.home.personalization import HomeModel
from client.home.reasons import explain_home
from client.home_settings import ALONE, MIXED, HomeSettings
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state, weighed
from common.protocol import ITEMS, POPULARITY, SPECTRUM, ModelPlan

N = 24
ENERGIES = np.array([8.0, 4.0, 2.0, 1.0, 0.0], np.float32)
START = {"content": 0.5, "shared_ease": 2.0, "own_ease": 0.5, "own_popularity": 0.1}


def model_of(**changes: object) -> GlobalModel:
    """Return a model of five directions with planted energies, the last one without any."""
    frame = pd.DataFrame(
        {"item_id": [f"i{k:02}" for k in range(N)], "type": [f"t{k % 4}" for k in range(N)]}
    )
    catalogue = Catalogue.of(frame, ContentSpec(features=("type",)))
    plan = ModelPlan.model_validate({"dimension": 5, "popularity_exponent": 0.0, **changes})
    rates = np.random.default_rng(4).dirichlet(np.full(N, 5.0)).astype(np.float32)
    state = initial_state(plan, N) | {POPULARITY: rates, SPECTRUM: ENERGIES}
    return GlobalModel(plan, catalogue, state)


def histories(customers: int = 20, seed: int = 1) -> sparse.csr_matrix:
    stream = np.random.default_rng(seed)
    return sparse.csr_matrix((stream.random((customers, N)) < 0.3).astype(np.float32))


def settings_of(**changes: object) -> HomeSettings:
    return HomeSettings.model_validate(
        {"start": START, "ease_lambda": 5.0, "shared_lambda": 5.0, **changes}
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"popularity_exponent": 0.3}, {"learned_items": 9, "popular_share": 0.3, "centred": 0}],
)
def test_by_default_nothing_is_weighed(changes: dict[str, Any]) -> None:
    model, own = model_of(**changes), histories()
    whole = model.block.project(own)
    trained = model.block.training_rows(own, model.plan.row_exponent)
    ratio = float(whole.multiply(whole).sum()) / float(trained.multiply(trained).sum())
    vectors = model.item_vectors
    if (left := model.plan.popular_share) < 1.0:
        popular = model.block.popular  # type: ignore[union-attr]
        vectors = vectors + np.outer(popular, popular @ vectors) * np.float32(1.0 / left - 1.0)
    as_before = (model.block.lift(vectors, N) * np.sqrt(np.maximum(ENERGIES, 0.0) * ratio)).T
    np.testing.assert_array_equal(model.pseudo_customers(own), as_before)
    np.testing.assert_array_equal(
        model.pseudo_customers(own, settings_of().shared_power), as_before
    )
    assert MIXED.shared_power == ALONE.shared_power == 0.5
    home = HomeModel.fit(model, own, settings_of(prior_strength=3.0))
    prior = as_before * np.float32(3.0**0.5)
    expected = Ease.fit(own, 5.0, 3000).with_prior(np.ascontiguousarray(prior))
    np.testing.assert_array_equal(
        home.eases["shared_ease"].scores(histories(5, 2)), expected.scores(histories(5, 2))
    )


@pytest.mark.parametrize("power", [0.25, 0.5, 0.7, 1.0])
def test_a_direction_is_as_long_as_its_share_of_the_strongest_to_the_power(power: float) -> None:
    model, own = model_of(), histories()
    lengths, before = (np.linalg.norm(model.pseudo_customers(own, p), axis=1) for p in (power, 0.5))
    assert lengths[0] == pytest.approx(before[0], rel=1e-5)
    np.testing.assert_allclose(lengths / lengths[0], (ENERGIES / 8.0) ** power, rtol=1e-5)
    # The directions are what they were.
    rows = model.pseudo_customers(own, power)[:4] / lengths[:4, None]
    np.testing.assert_allclose(
        rows, model.pseudo_customers(own)[:4] / before[:4, None], rtol=1e-4, atol=1e-6
    )


def test_without_any_energy_there_is_none() -> None:
    for energies in (np.zeros(3, np.float32), np.array([-1.0, 0.0], np.float32), np.zeros(0)):
        assert not weighed(energies, 0.7).any()


def test_what_is_below_none_counts_as_none() -> None:
    found = weighed(np.array([4.0, 1.0, -2.0], np.float32), 0.75)
    np.testing.assert_allclose(found, [4.0, 0.5, 0.0], rtol=1e-6)


def test_a_shop_fits_its_ease_beside_the_weighed_directions() -> None:
    model, own, asked = model_of(), histories(), histories(5, 2)
    home = HomeModel.fit(model, own, settings_of(shared_power=0.8, prior_strength=2.0))
    prior = model.pseudo_customers(own, 0.8) * np.sqrt(2.0)
    x = np.concatenate([(own.toarray() > 0).astype(float), prior])
    p = np.linalg.inv(x.T @ x + 5.0 * np.eye(N))
    expected = asked.toarray() @ (np.eye(N) - p / np.diag(p))
    found = home.eases["shared_ease"].scores(asked)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    plain = HomeModel.fit(model, own, settings_of(prior_strength=2.0))
    assert np.abs(plain.eases["shared_ease"].scores(asked) - found).max() > 0.01


def test_the_low_rank_model_stands_beside_them_too() -> None:
    """Above .5 more of the directions' energy is the strongest one's."""
    model, own = model_of(), histories(3)
    strongest = np.asarray(model.state[ITEMS])[:, 0]

    def found(power: float) -> float:
        fitted = own_low_rank(
            model.catalogue, own, 1, prior=model, strength=1e4, popularity_exponent=0.0, power=power
        )
        vector = np.asarray(fitted.state[ITEMS])[:, 0]
        return float(fitted.state[SPECTRUM][0]) * float(strongest @ vector) ** 2

    assert found(1.0) > 1.2 * found(0.5)
    start = {"shared_learned": 1.0}
    some, other = (
        HomeModel.fit(model, own, settings_of(start=start, own_dimension=2, shared_power=power))
        for power in (0.5, 0.9)
    )
    assert some.shared_learned is not None
    assert other.shared_learned is not None
    assert not np.allclose(
        some.shared_learned.state[SPECTRUM], other.shared_learned.state[SPECTRUM]
    )


@pytest.mark.parametrize("item", range(0, N, 3))
def test_reasons_add_up(item: int) -> None:
    home = HomeModel.fit(model_of(), histories(), settings_of(shared_power=0.7))
    for user in range(5):
        history = histories()[[user]]
        found = explain_home(home, home.mixing_weights, home.part_scales, history, item)
        score = float(home.scores(history)[0, item])
        assert sum(part.value for part in found.parts) == pytest.approx(score, abs=1e-4)


def test_a_stored_mixture_answers_the_same() -> None:
    how = settings_of(shared_power=0.7)
    home = HomeModel.fit(model_of(), histories(), how)
    eases = {name: ease for name, ease in home.eases.items() if isinstance(ease, Ease)}
    known: dict[str, Any] = {
        "settings": HomeSettings.model_validate_json(how.model_dump_json()),
        "part_scales": dict(home.part_scales),
        "mixing_weights": dict(home.mixing_weights),
        "ridges": {name: ease.ridge for name, ease in eases.items()},
    }
    facts = AdaptedFacts.model_construct(None, **known)
    assert facts.settings.shared_power == 0.7
    again = home_of(arrays_of(home, eases), facts, model_of())
    np.testing.assert_array_equal(again.scores(histories()), home.scores(histories()))


def test_settings_that_were_stored_without_it_are_what_they_were() -> None:
    stored = settings_of().model_dump(mode="json")
    del stored["shared_power"]
    assert HomeSettings.model_validate(stored) == settings_of()


@pytest.mark.parametrize("power", [0.0, -0.5, 1.1, float("nan")])
def test_it_lies_above_0_and_is_1_at_most(power: float) -> None:
    with pytest.raises(ValidationError, match="shared_power"):
        settings_of(shared_power=power)
