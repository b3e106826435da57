"""A model trained on one version of the catalogue goes on with the next."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from common.blocks import learned_names
from common.catalogue.catalogue_versions import carry_over, with_popularity
from common.errors import ArtifactError
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state, state_spec
from common.protocol import ITEMS, POPULARITY, SPECTRUM, Arrays, ModelPlan
from common.queries.filters import Filters, Table

SPEC = ContentSpec(features=("type", "brand", "type*brand"), content_width=256, hash_rows=16)
PLANS = {
    "all": ModelPlan(dimension=3, popularity_exponent=0),
    "few": ModelPlan(dimension=3, learned_items=7),
    "features": ModelPlan(dimension=3, learned_items=7, feature_rows=16, customer_rows=4),
    "groups": ModelPlan(dimension=3, learned_items=4, groups="type"),
    "tower": ModelPlan(dimension=3, learned_items=7, tower="mlp", hidden=5),
}


def catalogue_of(names: list[int]) -> Catalogue:
    """Return products whose content follows from their number alone."""
    frame = pd.DataFrame(
        {
            "item_id": [f"i{k:03}" for k in names],
            "type": [f"t{k % 5}" for k in names],
            "brand": [f"b{k % 3}" for k in names],
        }
    )
    return Catalogue.of(frame, SPEC)


def trained(plan: ModelPlan, catalogue: Catalogue, seed: int = 0) -> Arrays:
    """Return a state in which every array says something and every product was bought."""
    stream = np.random.default_rng(seed)
    shapes = state_spec(plan, catalogue.size)
    state = {k: stream.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    state[SPECTRUM] = np.sort(stream.random(plan.dimension))[::-1].astype(np.float32)
    rates = stream.pareto(1.5, catalogue.size) + 0.01
    state[POPULARITY] = (rates / rates.sum()).astype(np.float32)
    return state


def histories(catalogue: Catalogue, names: list[int], seed: int = 1) -> sparse.csr_matrix:
    """Return (4, n) histories of the named products, the same whatever the catalogue."""
    stream = np.random.default_rng(seed)
    rows = catalogue.rows([f"i{k:03}" for k in names])
    bought = np.zeros((4, catalogue.size), np.float32)
    bought[:, rows] = stream.random((4, len(names))) < 0.4
    return sparse.csr_matrix(bought)


@pytest.mark.parametrize("name", PLANS)
def test_the_same_catalogue_changes_nothing(name: str) -> None:
    plan, catalogue = PLANS[name], catalogue_of(list(range(20)))
    state = trained(plan, catalogue)
    found = carry_over(state, catalogue.item_ids, catalogue, plan, before=catalogue)
    assert found.keys() == state.keys()
    assert all(np.array_equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("name", [name for name in PLANS if name != "groups"])
@given(st.sets(st.integers(0, 60), min_size=8, max_size=25), st.sets(st.integers(100, 160)))
@settings(max_examples=12, deadline=None)
def test_added_products_leave_the_scores_of_kept_ones(
    name: str, kept: set[int], added: set[int]
) -> None:
    plan, names = PLANS[name], sorted(kept)
    # Some of the added come before the kept in the order of rows, and some after.
    old, new = catalogue_of(names), catalogue_of([*names, *added, *(k + 61 for k in added)])
    state = trained(plan, old)
    after = GlobalModel(plan, new, carry_over(state, old.item_ids, new, plan))
    before = GlobalModel(plan, old, state)
    rows = new.rows(old.item_ids)
    mine, theirs = (m.parts(histories(m.catalogue, names)) for m in (before, after))
    for part in ("content", "learned"):
        np.testing.assert_allclose(theirs[part][:, rows], mine[part], atol=2e-4)
    growth = new.size / old.size
    np.testing.assert_allclose(
        theirs["popularity"][:, rows], mine["popularity"] * growth, rtol=1e-5
    )
    fresh = np.setdiff1d(np.arange(new.size), rows)
    assert not after.popularity_bias[fresh].any()
    if not plan.feature_rows and plan.tower == "linear":
        assert not theirs["learned"][:, fresh].any()


@given(st.permutations(range(20)), st.integers(1, 19))
@settings(max_examples=15, deadline=None)
def test_what_is_kept_keeps_its_row_and_what_goes_leaves_its_popularity(
    order: list[int], count: int
) -> None:
    plan, old = PLANS["all"], catalogue_of(list(range(20)))
    new = catalogue_of([*order[:count], 77])
    state = trained(plan, old)
    found = carry_over(state, old.item_ids, new, plan)
    rows = old.rows(new.item_ids)
    assert np.array_equal(found[ITEMS][rows >= 0], state[ITEMS][rows[rows >= 0]])
    assert not found[ITEMS][rows < 0].any()
    assert found[POPULARITY].sum() == pytest.approx(1.0, abs=1e-5)
    ratio = found[POPULARITY][rows >= 0] / state[POPULARITY][rows[rows >= 0]]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def rows_by_name(state: Arrays, plan: ModelPlan, catalogue: Catalogue) -> dict[str, np.ndarray]:
    names = learned_names(plan, state[POPULARITY], catalogue)
    return {str(name): state[ITEMS][k] for k, name in enumerate(names)}


@given(st.sets(st.integers(0, 60), min_size=6, max_size=30), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_rows_of_groups_go_with_their_values(names: set[int], seed: int) -> None:
    plan, old = PLANS["groups"], catalogue_of(list(range(25)))
    new = catalogue_of(sorted(names))
    state = trained(plan, old, seed)
    found = carry_over(state, old.item_ids, new, plan, before=old)
    assert found[ITEMS].shape == state[ITEMS].shape
    earlier, later = rows_by_name(state, plan, old), rows_by_name(found, plan, new)
    shared = earlier.keys() & later.keys()
    if not shared:
        assert np.array_equal(found[ITEMS], initial_state(plan, new.size)[ITEMS])
        return
    for name, row in later.items():
        assert np.array_equal(row, earlier.get(name, np.zeros(3)))


@pytest.mark.parametrize("name", ["few", "groups"])
@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_rows_follow_a_new_popularity(name: str, seed: int) -> None:
    plan, catalogue = PLANS[name], catalogue_of(list(range(30)))
    state, other = trained(plan, catalogue), trained(plan, catalogue, seed)
    found = with_popularity(state, other[POPULARITY], catalogue, plan)
    assert np.array_equal(found[POPULARITY], other[POPULARITY])
    earlier, later = rows_by_name(state, plan, catalogue), rows_by_name(found, plan, catalogue)
    if earlier.keys() & later.keys():
        for item, row in later.items():
            assert np.array_equal(row, earlier.get(item, np.zeros(3)))


def test_nothing_in_common_starts_anew() -> None:
    plan, old, new = PLANS["all"], catalogue_of([1, 2, 3, 4]), catalogue_of([5, 6, 7, 8])
    found = carry_over(trained(plan, old), old.item_ids, new, plan)
    assert np.array_equal(found[ITEMS], initial_state(plan, 4)[ITEMS])
    assert not found[POPULARITY].any()


def test_a_model_of_another_plan_is_refused() -> None:
    old = catalogue_of(list(range(9)))
    wider = PLANS["all"].model_copy(update={"dimension": 4})
    with pytest.raises(ArtifactError, match="does not fit the plan"):
        carry_over(trained(PLANS["all"], old), old.item_ids, old, wider)


@pytest.mark.parametrize("before", [None, catalogue_of([1, 2, 3])])
def test_groups_need_the_catalogue_that_they_were_made_of(before: Catalogue | None) -> None:
    plan, old = PLANS["groups"], catalogue_of(list(range(9)))
    with pytest.raises(ArtifactError, match="the very catalogue"):
        carry_over(trained(plan, old), old.item_ids, old, plan, before=before)


@pytest.mark.parametrize("filters", [Filters(), Filters(category="t0"), Filters(minimum_score=-9)])
def test_a_retired_product_is_never_served(filters: Filters) -> None:
    products = catalogue_of([0, 5, 10]).products.rename(columns={"type": "category"})
    table = Table.of(products.assign(retired=[False, True, False]), {})
    scores = np.zeros(3, np.float32)
    table.hide(scores, filters, {})
    assert np.isfinite(scores).tolist() == [True, False, True]
