"""Parts that count otherwise for products of which the federation has learned nothing."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy import sparse

from client.home_reasons import explain_home
from client.home_settings import HomeSettings
from client.personalization import HomeModel
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state
from common.protocol import POPULARITY, ModelPlan

N = 12
LEARNED = [2, 5, 7]
START = {"content": 0.5, "shared_ease": 1.0, "own_ease": 0.7, "kin": 0.3, "own_popularity": 0.2}
OUTSIDE = {"shared_ease": 0.0, "own_ease": 3.0, "kin": 0.5}


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


def fitted(outside: Mapping[str, float]) -> HomeModel:
    how = HomeSettings(start=START, outside=dict(outside), ease_lambda=5.0, shared_lambda=5.0)
    return HomeModel.fit(model_of(), histories(), how)


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


@pytest.mark.parametrize("item", range(N))
def test_reasons_add_up_inside_and_outside(item: int) -> None:
    home = fitted(OUTSIDE)
    for user in range(5):
        history = histories()[[user]]
        found = explain_home(home, home.mixing_weights, home.part_scales, history, item)
        score = float(home.scores(history)[0, item])
        assert sum(part.value for part in found.parts) == pytest.approx(score, abs=1e-4)


def test_popularity_counts_alike_everywhere() -> None:
    with pytest.raises(ValidationError, match="own_popularity counts alike"):
        HomeSettings(start=START, outside={"own_popularity": 2.0})


def test_without_anything_learned_nothing_is_outside() -> None:
    how = HomeSettings(start=START, outside=OUTSIDE)
    assert how.without("learned", "shared_ease").outside == {}
    assert how.without("popularity").outside == OUTSIDE
