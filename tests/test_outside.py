"""Parts that count otherwise for some products.

Those of which the federation has learned nothing, and the shop's own best sellers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import sparse

from client.home.adaptation import AdaptedFacts, arrays_of, home_of
from client.home.personalization import HomeModel
from client.home.reasons import explain_home
from client.home_settings import HomeSettings
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state
from common.protocol import POPULARITY, ModelPlan

N = 12
LEARNED = [2, 5, 7]
START = {"content": 0.5, "shared_ease": 1.0, "own_ease": 0.7, "kin": 0.3, "own_popularity": 0.2}
OUTSIDE = {"shared_ease": 0.0, "own_ease": 3.0, "kin": 0.5}
BEST = {"content": 1.8, "kin": 1.3}


def model_of(**changes: object) -> GlobalModel:
    """Return a model that has learned the three most popular of twelve products."""
    frame = pd.DataFrame(
        {"item_id": [f"i{k:02}" for k in range(N)], "type": [f"t{k % 4}" for k in range(N)]}
    )
    catalogue = Catalogue.of(frame, ContentSpec(features=("type",)))
    plan = ModelPlan.model_validate({"dimension": 2, "learned_items": 3, **changes})
    rates = np.full(N, 0.05, np.float32)
    rates[LEARNED] = [0.2, 0.3, 0.15]
    return GlobalModel(plan, catalogue, initial_state(plan, N) | {POPULARITY: rates})


def histories() -> sparse.csr_matrix:
    stream = np.random.default_rng(1)
    return sparse.csr_matrix((stream.random((20, N)) < 0.3).astype(np.float32))


def settings_of(outside: Mapping[str, float], **changes: object) -> HomeSettings:
    return HomeSettings.model_validate(
        {"start": START, "outside": outside, "ease_lambda": 5.0, "shared_lambda": 5.0, **changes}
    )


def fitted(outside: Mapping[str, float], **changes: object) -> HomeModel:
    return HomeModel.fit(model_of(), histories(), settings_of(outside, **changes))


def most_bought(count: int) -> list[int]:
    """Return the products that most of the shop's customers have bought; the first of equals."""
    customers = (histories().toarray() > 0).sum(axis=0)
    return sorted(range(N), key=lambda item: (-customers[item], item))[:count]


def test_the_learned_block_is_what_the_plan_learns() -> None:
    assert list(np.flatnonzero(model_of().in_block)) == LEARNED
    grouped = model_of(groups="type", learned_items=2)
    kinds = {int(row) % 4 for row in np.flatnonzero(grouped.in_block)}
    assert len(kinds) == 2
    assert grouped.in_block.sum() == 6


def test_parts_are_multiplied_outside_the_block_alone() -> None:
    plain, split = fitted({}), fitted(OUTSIDE)
    assert split.part_scales == plain.part_scales
    before, after = plain.parts(histories(), START), split.parts(histories(), START)
    others = np.setdiff1d(np.arange(N), LEARNED)
    for name in START:
        np.testing.assert_array_equal(after[name][:, LEARNED], before[name][:, LEARNED])
        factor = OUTSIDE.get(name, 1.0)
        np.testing.assert_allclose(after[name][:, others], factor * before[name][:, others])
    assert not after["shared_ease"][:, others].any()
    assert split.scores(histories())[:, LEARNED].tolist() == (
        plain.scores(histories())[:, LEARNED].tolist()
    )


def test_parts_are_multiplied_for_the_shops_own_best_sellers_alone() -> None:
    best = most_bought(4)
    assert set(best) & set(LEARNED)  # Both factors meet somewhere, and not everywhere.
    assert set(best) - set(LEARNED)
    plain, split = fitted(OUTSIDE), fitted(OUTSIDE, best_sellers=4, best=BEST)
    assert split.part_scales == plain.part_scales
    assert sorted(np.flatnonzero(split.is_best)) == sorted(best)
    before, after = plain.parts(histories(), START), split.parts(histories(), START)
    others = np.setdiff1d(np.arange(N), best)
    for name in START:
        np.testing.assert_array_equal(after[name][:, others], before[name][:, others])
        factor = BEST.get(name, 1.0)
        np.testing.assert_allclose(after[name][:, best], factor * before[name][:, best], rtol=1e-6)


def test_what_nobody_bought_is_no_best_seller() -> None:
    few = histories().toarray()
    few[:, 3:] = 0.0
    how = settings_of({}, best_sellers=8, best=BEST)
    home = HomeModel.fit(model_of(), sparse.csr_matrix(few), how)
    assert list(np.flatnonzero(home.is_best)) == [0, 1, 2]


def test_a_stored_mixture_knows_its_best_sellers() -> None:
    start = {"content": 0.5, "kin": 0.3, "own_popularity": 0.2}
    how = settings_of({}, start=start, best_sellers=4, best=BEST)
    home = HomeModel.fit(model_of(), histories(), how)
    known: dict[str, Any] = {
        "settings": how,
        "part_scales": dict(home.part_scales),
        "mixing_weights": dict(home.mixing_weights),
    }
    facts = AdaptedFacts.model_construct(None, **known)
    again = home_of(arrays_of(home, {}), facts, model_of())
    np.testing.assert_array_equal(again.scores(histories()), home.scores(histories()))
    plainly = {**known, "settings": how.model_copy(update={"best": {}})}
    other = home_of(arrays_of(home, {}), AdaptedFacts.model_construct(None, **plainly), model_of())
    assert not np.allclose(other.scores(histories()), home.scores(histories()))


@pytest.mark.parametrize("item", range(N))
def test_reasons_add_up_for_every_product(item: int) -> None:
    home = fitted(OUTSIDE, best_sellers=4, best=BEST)
    for user in range(5):
        history = histories()[[user]]
        found = explain_home(home, home.mixing_weights, home.part_scales, history, item)
        score = float(home.scores(history)[0, item])
        assert sum(part.value for part in found.parts) == pytest.approx(score, abs=1e-4)


def test_popularity_counts_alike_everywhere() -> None:
    with pytest.raises(ValidationError, match="own_popularity counts alike"):
        HomeSettings(start=START, outside={"own_popularity": 2.0})
    with pytest.raises(ValidationError, match="own_popularity counts alike"):
        HomeSettings(start=START, best_sellers=3, best={"own_popularity": 2.0})


def test_best_sellers_are_counted() -> None:
    with pytest.raises(ValidationError, match="say how many"):
        HomeSettings(start=START, best={"kin": 2.0})


def test_without_anything_learned_nothing_is_outside() -> None:
    how = HomeSettings(start=START, outside=OUTSIDE)
    assert how.without("learned", "shared_ease").outside == {}
    assert how.without("popularity").outside == OUTSIDE
