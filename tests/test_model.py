"""The embedding model's promises: parts that add up, separability, and what may travel."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from common.blocks import LearnedBlock, gains, learned_count, learned_rows
from common.errors import ArtifactError, ProtocolError
from common.features import Catalogue, ContentSpec
from common.model import (
    CUSTOMERS,
    FEATURES,
    LOCAL_NAMES,
    GlobalModel,
    attribute_matrix,
    check_may_travel,
    initial_state,
    state_spec,
    trained_names,
    trained_spec,
)
from common.protocol import ITEMS, POPULARITY, SPECTRUM, Arrays, ModelPlan, TrainingPlan

N = 30
SPEC = ContentSpec(features=("type",), content_width=128, hash_rows=16)
PLANS = {
    "plain": ModelPlan(dimension=4),
    "few": ModelPlan(dimension=4, learned_items=9),
    "scaled": ModelPlan(dimension=4, content_scale=0.3, learned_scale=2.0),
    "features": ModelPlan(dimension=4, feature_rows=16, customer_rows=8),
    "narrow": ModelPlan(dimension=40),
    "mlp": ModelPlan(dimension=4, tower="mlp", hidden=8, customer_rows=8),
}
LINEAR = [name for name, plan in PLANS.items() if plan.tower == "linear"]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    items = [f"i{k:02}" for k in range(N)]
    return Catalogue.of(
        pd.DataFrame({"item_id": items, "type": [f"t{k % 5}" for k in range(N)]}), SPEC
    )


def random_state(plan: ModelPlan, seed: int = 0) -> Arrays:
    """Return a state in which every array says something."""
    stream = np.random.default_rng(seed)
    state = {k: stream.normal(size=s).astype(np.float32) for k, s in state_spec(plan, N).items()}
    state[SPECTRUM] = np.sort(stream.random(plan.dimension))[::-1].astype(np.float32)
    rates = stream.pareto(1.5, N) + 0.01
    state[POPULARITY] = (rates / rates.sum()).astype(np.float32)
    return state


def random_history(customers: int = 6, seed: int = 1) -> sparse.csr_matrix:
    stream = np.random.default_rng(seed)
    bought = stream.random((customers, N)) < 0.25
    return sparse.csr_matrix((bought * stream.uniform(0.1, 1.0, bought.shape)).astype(np.float32))


@pytest.mark.parametrize("name", PLANS)
def test_the_specs_and_the_first_state_agree(name: str) -> None:
    plan = PLANS[name]
    whole, trained = state_spec(plan, N), trained_spec(plan, N)
    assert set(whole) == {POPULARITY, SPECTRUM, *trained}
    assert all(whole[key] == shape for key, shape in trained.items())
    assert trained_names(TrainingPlan(model=plan)) == tuple(trained)
    state = initial_state(plan, N)
    assert {key: array.shape for key, array in state.items()} == whole
    assert all(array.dtype == np.float32 for array in state.values())
    again = initial_state(plan, N)
    assert all(np.array_equal(state[key], again[key]) for key in state)
    other = initial_state(plan.model_copy(update={"seed": 1}), N)
    assert not np.array_equal(state[ITEMS], other[ITEMS])


@pytest.mark.parametrize("name", PLANS)
def test_no_shape_or_name_is_a_shops_own(name: str) -> None:
    assert not LOCAL_NAMES.intersection(state_spec(PLANS[name], N))
    assert not LOCAL_NAMES.intersection(trained_spec(PLANS[name], N))


@pytest.mark.parametrize("name", sorted(LOCAL_NAMES))
def test_local_state_may_not_travel(name: str) -> None:
    check_may_travel(random_state(PLANS["features"]))
    with pytest.raises(ArtifactError, match=name):
        check_may_travel({ITEMS: 0, name: 0})


@pytest.mark.parametrize("learned_items", [0, 9, 1000])
def test_item_rows_start_orthonormal(learned_items: int) -> None:
    plan = ModelPlan(dimension=8, learned_items=learned_items)
    items = initial_state(plan, N)[ITEMS]
    assert len(items) == learned_count(plan, N) == (9 if learned_items == 9 else N)
    np.testing.assert_allclose(items.T @ items, np.eye(8), atol=1e-5)


def test_learned_rows_are_the_most_popular_and_ties_go_to_the_earlier() -> None:
    popularity = np.array([1, 3, 2, 3, 2, 2, 0], np.float32)
    assert learned_rows(popularity, 2).tolist() == [1, 3]
    assert learned_rows(popularity, 4).tolist() == [1, 2, 3, 4]
    assert learned_rows(np.zeros(5, np.float32), 2).tolist() == [0, 1]
    assert learned_rows(popularity, 99).tolist() == list(range(7))


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_gains_have_geometric_mean_one_and_follow_popularity(
    values: list[float], exponent: float
) -> None:
    popularity = np.array(values, np.float32)
    found = gains(popularity, exponent)
    assert found.dtype == np.float32
    assert np.log(found.astype(np.float64)).mean() == pytest.approx(0, abs=1e-4)
    assert (np.diff(found[np.argsort(popularity)]) >= -1e-6).all()


def test_without_an_exponent_every_product_gains_the_same() -> None:
    np.testing.assert_array_equal(gains(np.array([0, 5, 100], np.float32), 0.0), np.ones(3))


def test_rates_are_over_the_learned_products() -> None:
    state = random_state(PLANS["few"])
    block = LearnedBlock.of(PLANS["few"], state[POPULARITY])
    assert block.rates.sum() == pytest.approx(1, abs=1e-6)
    assert state[POPULARITY][block.rows].min() >= np.delete(state[POPULARITY], block.rows).max()
    empty = LearnedBlock.of(PLANS["few"], np.zeros(N, np.float32))
    assert not empty.rates.any()


@pytest.mark.parametrize("name", PLANS)
def test_parts_add_up_to_scores(name: str, catalogue: Catalogue) -> None:
    plan = PLANS[name]
    model = GlobalModel(plan, catalogue, random_state(plan))
    history = random_history()
    parts = model.parts(history)
    total = plan.content_scale * parts["content"] + parts["learned"] + parts["popularity"]
    np.testing.assert_allclose(model.scores(history), total, rtol=1e-5, atol=1e-5)


def test_scores_follow_the_formula(catalogue: Catalogue) -> None:
    plan = PLANS["features"]
    state, history = random_state(plan), random_history(1)
    model = GlobalModel(plan, catalogue, state)
    x = history.toarray().ravel().astype(np.float64)
    p = state[POPULARITY].astype(np.float64)
    g = gains(state[POPULARITY], plan.popularity_exponent).astype(np.float64)
    c = catalogue.content.toarray().astype(np.float64)
    v = state[ITEMS] + catalogue.feature_ids.toarray().astype(np.float64) @ state[FEATURES]
    k = x.sum()
    scale = state[SPECTRUM] / state[SPECTRUM].max()
    u = scale * ((x / g) @ v - k * (p / g) @ v)
    expected = c @ (x @ c - k * p @ c) + g * (v @ u) + p * N
    np.testing.assert_allclose(model.scores(history)[0], expected, rtol=1e-4, atol=1e-3)


def test_even_groups_follow_the_formula(catalogue: Catalogue) -> None:
    """Groups of unequal sizes, and products of a group that has no row."""
    kinds = np.array([min(k % 7, 4) for k in range(N)])
    frame = catalogue.products.assign(type=[f"t{k}" for k in kinds])
    wares = Catalogue.of(frame, SPEC)
    plan = ModelPlan(dimension=3, groups="type", learned_items=4, group_weights="even")
    state, history = random_state(plan), random_history(5)
    model = GlobalModel(plan, wares, state)
    p = state[POPULARITY].astype(np.float64)
    weight = p / p.mean() + 0.05
    mass = np.bincount(kinds, weight)
    learned = np.sort(np.argsort(-mass)[:4])
    inside = np.isin(kinds, learned)
    gain = np.zeros(5)
    gain[learned] = gains(mass[learned].astype(np.float32), plan.popularity_exponent)
    vectors = np.zeros((5, 3))
    vectors[learned] = state[ITEMS]
    x = history.toarray().astype(np.float64)
    counts = x @ (np.eye(5)[kinds] * inside[:, None])
    rates = np.where(np.isin(np.arange(5), learned), mass, 0.0) / mass[learned].sum()
    with np.errstate(divide="ignore"):
        own = np.where(gain > 0, 1 / gain, 0.0)[:, None] * vectors
    scale = state[SPECTRUM] / state[SPECTRUM].max()
    u = scale * (counts @ own - np.outer(counts.sum(axis=1), rates @ own))
    of_products = (gain[:, None] * vectors)[kinds] * (weight / mass[kinds])[:, None]
    np.testing.assert_allclose(model.learned_part(history), u @ of_products.T, rtol=1e-4, atol=1e-5)
    # No more entries than what was bought: a long list of groups costs nothing.
    assert model.block.project(history).nnz <= history.nnz


@pytest.mark.parametrize("name", LINEAR)
def test_a_product_taken_from_a_history_takes_exactly_its_share(
    name: str, catalogue: Catalogue
) -> None:
    plan = PLANS[name]
    model = GlobalModel(plan, catalogue, random_state(plan))
    history = random_history(1)
    whole = model.parts(history)
    for product in history.indices:
        one = sparse.csr_matrix((1, N), dtype=np.float32).tolil()
        one[0, product] = history[0, product]
        share = model.parts(sparse.csr_matrix(one))
        without = model.parts(sparse.csr_matrix(history - sparse.csr_matrix(one)))
        for part in ("content", "learned"):
            size = np.abs(whole[part]).max() + 1e-3
            np.testing.assert_allclose(
                whole[part] - without[part], share[part], atol=2e-5 * size, rtol=0
            )
        np.testing.assert_array_equal(whole["popularity"], without["popularity"])


def test_the_expected_basket_leaves_nothing_of_itself(catalogue: Catalogue) -> None:
    model = GlobalModel(PLANS["plain"], catalogue, random_state(PLANS["plain"]))
    basket = sparse.csr_matrix(7 * model.state[POPULARITY][None, :])
    assert np.abs(model.content_profiles(basket)).max() < 1e-4
    assert np.abs(model.customer_vectors(basket)).max() < 1e-4


def test_a_shop_may_expect_another_basket(catalogue: Catalogue) -> None:
    model = GlobalModel(PLANS["plain"], catalogue, random_state(PLANS["plain"]))
    history = random_history()
    own = model.content_part(history, np.zeros(128, np.float32))
    content = catalogue.content.toarray()
    np.testing.assert_allclose(own, history @ content @ content.T, rtol=1e-4, atol=1e-5)
    assert not np.allclose(own, model.content_part(history))


def test_products_without_a_learned_row_are_scored_by_the_rest(catalogue: Catalogue) -> None:
    model = GlobalModel(PLANS["few"], catalogue, random_state(PLANS["few"]))
    parts = model.parts(random_history())
    others = np.setdiff1d(np.arange(N), model.block.rows)
    assert not parts["learned"][:, others].any()
    assert parts["learned"][:, model.block.rows].any()
    assert parts["content"][:, others].any()


def test_a_new_customer_has_the_popularity_part_alone(catalogue: Catalogue) -> None:
    model = GlobalModel(PLANS["plain"], catalogue, random_state(PLANS["plain"]))
    scores = model.scores(sparse.csr_matrix((2, N), dtype=np.float32))
    np.testing.assert_array_equal(scores, np.repeat(model.popularity_bias[None, :], 2, axis=0))


def test_the_tower_is_two_relu_layers(catalogue: Catalogue) -> None:
    plan = PLANS["mlp"]
    state = random_state(plan)
    model = GlobalModel(plan, catalogue, state)
    linear = GlobalModel(
        plan.model_copy(update={"tower": "linear"}),
        catalogue,
        {name: a for name, a in state.items() if not name.startswith("tower")},
    )
    layers = []
    for k in range(3):
        weight, bias = (torch.tensor(state[f"tower.{k}.{kind}"]) for kind in ("weight", "bias"))
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        layers.append(layer)
    tower = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    history = random_history()
    pooled = linear.customer_vectors(history) / linear.spectrum
    with torch.no_grad():
        expected = tower(torch.tensor(pooled)).numpy() * model.spectrum
    np.testing.assert_allclose(model.customer_vectors(history), expected, rtol=1e-3, atol=1e-3)


def test_customer_attributes_move_scores(catalogue: Catalogue) -> None:
    plan = PLANS["features"]
    state = random_state(plan)
    model = GlobalModel(plan, catalogue, state)
    ages = np.array(["19-24", "", "65+"], dtype=object)
    jobs = np.array(["", "", "nurse"], dtype=object)
    matrix = attribute_matrix({"age": ages, "occupation": jobs}, 3, 8)
    assert np.asarray(matrix.sum(axis=1)).ravel().tolist() == [1.0, 0.0, 2.0]
    history = sparse.csr_matrix(np.repeat(random_history(1).toarray(), 3, axis=0))
    moved = model.customer_vectors(history, matrix) - model.customer_vectors(history)
    expected = (matrix @ state[CUSTOMERS]) * model.spectrum
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    assert not moved[1].any()
    assert moved[0].any()


def test_attributes_do_not_depend_on_the_order_of_columns_or_other_customers() -> None:
    ages = np.array(["19-24", "", "65+"], dtype=object)
    jobs = np.array(["cook", "x", "nurse"], dtype=object)
    whole = attribute_matrix({"age": ages, "job": jobs}, 3, 50).toarray()
    turned = attribute_matrix({"job": jobs, "age": ages}, 3, 50).toarray()
    np.testing.assert_array_equal(whole, turned)
    one = attribute_matrix({"age": ages[2:], "job": jobs[2:]}, 1, 50).toarray()
    np.testing.assert_array_equal(whole[2:], one)


@pytest.mark.parametrize("fault", ["shape", "missing", "nan", "type"])
def test_a_state_that_does_not_fit_is_refused(fault: str, catalogue: Catalogue) -> None:
    plan = PLANS["plain"]
    state = random_state(plan)
    if fault == "shape":
        state[ITEMS] = state[ITEMS][:-1]
    elif fault == "missing":
        del state[SPECTRUM]
    elif fault == "nan":
        state[ITEMS][0, 0] = np.nan
    else:
        state[ITEMS] = state[ITEMS].astype(np.float64)
    with pytest.raises(ProtocolError):
        GlobalModel(plan, catalogue, state)


def test_a_plan_that_hashes_otherwise_than_the_catalogue_is_refused(catalogue: Catalogue) -> None:
    plan = ModelPlan(dimension=4, feature_rows=17)
    model = GlobalModel(plan, catalogue, random_state(plan))
    with pytest.raises(ProtocolError, match="17 feature rows"):
        model.scores(random_history())
