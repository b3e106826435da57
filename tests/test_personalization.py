"""What a shop learns at home: EASE in its dual form, a linear mixture, and its tuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from client.data.periods import ShopPeriod
from client.home.adaptation import AdaptedFacts, arrays_of, home_of
from client.home.ease import Ease
from client.home.personalization import HomeModel, mix
from client.home.weight_search import Candidates, choose_weights, tune
from client.home_settings import HomeSettings
from common.errors import ConfigError
from common.features import Catalogue, ContentSpec
from common.metrics import evaluate, tail_mask
from common.model import LOCAL_NAMES, GlobalModel, initial_state
from common.protocol import POPULARITY, ModelPlan
from common.scoring import top_k

N = 40
START = {"content": 0.5, "learned": 0.3, "own_ease": 2.0, "popularity": 0.2, "own_popularity": 0.1}


def bought(customers: int, seed: int = 0, share: float = 0.2, n: int = N) -> sparse.csr_matrix:
    """Return (customers, n) weighted histories with tastes: products come in four kinds."""
    stream = np.random.default_rng(seed)
    taste = stream.integers(0, 4, customers)
    chance = np.where(np.arange(n) % 4 == taste[:, None], 2.5 * share, 0.5 * share)
    weights = stream.choice([0.5, 1.0], (customers, n))
    return sparse.csr_matrix(
        ((stream.random((customers, n)) < chance) * weights).astype(np.float32)
    )


@pytest.fixture(scope="module")
def model() -> GlobalModel:
    frame = pd.DataFrame(
        {"item_id": [f"i{k:02}" for k in range(N)], "type": [f"t{k % 4}" for k in range(N)]}
    )
    catalogue = Catalogue.of(frame, ContentSpec(features=("type",), content_width=64))
    plan = ModelPlan(dimension=3)
    rates = np.random.default_rng(4).dirichlet(np.ones(N)).astype(np.float32)
    return GlobalModel(plan, catalogue, initial_state(plan, N) | {POPULARITY: rates})


def settings_of(**changes: Any) -> HomeSettings:
    return HomeSettings.model_validate({"start": START, "ease_lambda": 5.0, **changes})


# --- EASE ------------------------------------------------------------------------------------


def primal(x: np.ndarray, ridge: float) -> np.ndarray:
    """Return Steck's B = I - P / diag(P), with P the inverse of XᵀX + λI."""
    p = np.linalg.inv(x.T @ x + ridge * np.eye(x.shape[1]))
    weights: np.ndarray = np.eye(x.shape[1]) - p / np.diag(p)
    return weights


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([0.5, 20.0, 500.0]))
@settings(max_examples=25, deadline=None)
def test_the_dual_form_is_ease(seed: int, customers: int, ridge: float) -> None:
    histories = bought(customers, seed)
    ease = Ease.fit(histories, ridge, 1000)
    binary = (histories.toarray() > 0).astype(float)
    asked = bought(5, seed + 1)
    expected = (asked.toarray() > 0) @ primal(binary, ridge)
    np.testing.assert_allclose(ease.scores(asked), expected, rtol=2e-3, atol=2e-4)


def test_more_customers_than_one_block_are_one_ease(monkeypatch: pytest.MonkeyPatch) -> None:
    """All other tests' customers fit into one block; a large shop's do not."""
    monkeypatch.setattr("client.home.ease._BLOCK", 16)
    histories, asked = bought(50), bought(5, 1)
    expected = (asked.toarray() > 0) @ primal((histories.toarray() > 0).astype(float), 20.0)
    found = Ease.fit(histories, 20.0, 1000).scores(asked)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_each_ease_has_the_ridge_of_its_own_setting(model: GlobalModel) -> None:
    start = {"own_ease": 1.0, "shared_ease": 1.0}
    how = settings_of(start=start, ease_lambda=5.0, shared_lambda=70.0)
    eases = cast(Mapping[str, Ease], HomeModel.fit(model, bought(9), how).eases)
    assert {name: ease.ridge for name, ease in eases.items()} == {
        "own_ease": 5.0,
        "shared_ease": 70.0,
    }


@pytest.mark.parametrize("customers", [0, 1, 30])
def test_pseudo_customers_join_the_shops_own(customers: int) -> None:
    histories, asked = bought(customers), bought(5, 1)
    prior = np.random.default_rng(2).normal(size=(6, N)).astype(np.float32)
    ease = Ease.fit(histories, 10.0, 1000, prior)
    x = np.concatenate([(histories.toarray() > 0).astype(float), prior])
    expected = (asked.toarray() > 0) @ primal(x, 10.0)
    np.testing.assert_allclose(ease.scores(asked), expected, rtol=2e-3, atol=2e-4)
    if customers:
        alone = Ease.fit(histories, 10.0, 1000).scores(asked)
        assert np.abs(alone - expected).max() > 0.01


def test_only_the_customers_with_most_products_are_taken() -> None:
    histories = bought(30)
    counts = np.diff(histories.indptr)
    most = histories[np.sort(np.argsort(-counts, kind="stable")[:8])]
    few, exact = Ease.fit(histories, 10.0, 8), Ease.fit(most, 10.0, 1000)
    assert few.customers.shape == (8, N)
    np.testing.assert_array_equal(few.scores(histories), exact.scores(histories))


def test_a_product_does_not_speak_for_itself() -> None:
    ease = Ease.fit(bought(30), 10.0, 1000)
    one = sparse.identity(N, np.float32, format="csr")
    np.testing.assert_allclose(np.diag(ease.scores(one)), 0, atol=1e-5)


# --- the mixture -----------------------------------------------------------------------------


def test_a_mixed_score_is_the_weighted_sum_of_scaled_parts(model: GlobalModel) -> None:
    histories = bought(25)
    home = HomeModel.fit(model, histories, settings_of())
    parts = home.parts(histories, START)
    assert set(parts) == set(START)
    expected = sum(START[n] / home.part_scales[n] * parts[n] for n in START)
    np.testing.assert_allclose(home.scores(histories), expected, rtol=1e-4, atol=1e-5)
    for name in ("content", "learned", "own_ease"):
        assert parts[name].std() / home.part_scales[name] == pytest.approx(1.0, rel=1e-3)


def test_customers_who_have_not_come_yet_change_no_scale(model: GlobalModel) -> None:
    # Those who first came in a simulation's test weeks moved every list of those who were there.
    histories = bought(25)
    more = sparse.csr_matrix(
        sparse.vstack([sparse.csr_matrix((9, N), dtype=np.float32), histories])
    )
    there, later = (HomeModel.fit(model, rows, settings_of()) for rows in (histories, more))
    assert there.part_scales == pytest.approx(later.part_scales, rel=1e-6)


def test_a_mixed_score_is_linear_in_the_history(model: GlobalModel) -> None:
    histories = bought(25)
    start = {**START, "shared_ease": 1.0}
    home = HomeModel.fit(model, histories, settings_of(start=start, shared_lambda=20.0))
    history = sparse.csr_matrix(histories[3])
    nothing = home.scores(sparse.csr_matrix((1, N), dtype=np.float32))
    total = nothing.astype(np.float64)
    for product in history.indices:
        one = sparse.csr_matrix(
            ([history[0, product]], ([0], [product])), shape=(1, N), dtype=np.float32
        )
        total += home.scores(one) - nothing
    assert history.nnz > 3
    np.testing.assert_allclose(home.scores(history), total, rtol=1e-3, atol=1e-3)


def test_an_unused_part_is_never_computed(model: GlobalModel) -> None:
    home = HomeModel.fit(model, bought(25), settings_of(start={"content": 1.0, "own_ease": 0.0}))
    broken = replace(home, eases={})
    np.testing.assert_array_equal(broken.scores(bought(3)), home.scores(bought(3)))


def test_a_part_that_nobody_knows_names_the_nearest(model: GlobalModel) -> None:
    with pytest.raises(ConfigError, match="own_ease"):
        HomeModel.fit(model, bought(5), settings_of(start={"own_eese": 1.0}))


def test_own_popularity_counts_customers_of_an_average_product_as_one(model: GlobalModel) -> None:
    histories = bought(25)
    home = HomeModel.fit(model, histories, settings_of())
    counts = np.asarray((histories > 0).sum(axis=0)).ravel()
    np.testing.assert_allclose(home.own_popularity[0], counts / counts.mean(), rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_expected_basket_is_the_shops_own_and_the_released_one_blended(
    model: GlobalModel, share: float
) -> None:
    start, released = {**START, "kin": 1.0}, model.state[POPULARITY]
    for histories in (bought(25), bought(0)):
        counts = np.asarray((histories > 0).sum(axis=0)).ravel()
        basket = released
        if counts.any():  # nobody's purchases say nothing of what is expected
            basket = share * counts / counts.sum() + (1 - share) * released
        home = HomeModel.fit(model, histories, settings_of(start=start, own_expectation=share))
        expected = model.catalogue.content.T @ basket
        np.testing.assert_allclose(home.expected_content, expected, rtol=1e-5, atol=1e-7)
        assert home.kin is not None
        np.testing.assert_allclose(
            home.kin.expected, model.catalogue.kin.T @ basket, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("customers", [0, 1])
def test_a_shop_of_nobody_or_of_one_has_finite_scores(model: GlobalModel, customers: int) -> None:
    start = {**START, "shared_ease": 1.0}
    home = HomeModel.fit(model, bought(customers), settings_of(start=start))
    assert np.isfinite(home.scores(bought(4, 1))).all()
    assert home.scores(bought(0)).shape == (0, N)
    no_targets = sparse.csr_matrix((customers, N), dtype=np.float32)
    assert tune(home, bought(customers), no_targets, np.ones(N, bool), settings_of()) == START


def test_what_a_shop_learns_alone_is_declared_local(model: GlobalModel) -> None:
    start = {**START, "shared_ease": 1.0}
    home = HomeModel.fit(model, bought(5), settings_of(start=start))
    own = {field.name for field in fields(home)} - {"model", "eases", "expected_content"}
    assert own | set(home.eases) <= LOCAL_NAMES


def test_a_part_that_says_nothing_while_weights_are_chosen_gets_none(model: GlobalModel) -> None:
    histories = bought(60)
    silent = replace(model, state={**model.state, "spectrum": np.zeros(3, np.float32)})
    settings_ = settings_of(rounds=0)
    targets = bought(60, 1)
    targets = sparse.csr_matrix(targets - targets.multiply(histories > 0))
    for known, expected in ((model, START["learned"]), (silent, 0.0)):
        home = HomeModel.fit(known, histories, settings_)
        weights = tune(home, histories, targets, np.ones(N, bool), settings_)
        assert weights == {**START, "learned": expected}


# --- candidates ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [25, 40, 120])
def test_the_pool_ranks_as_the_whole_catalogue_does(n: int) -> None:
    stream = np.random.default_rng(n)
    history = bought(15, n=n)
    parts = {
        "a": stream.normal(size=(15, n)).astype(np.float32),
        "b": stream.normal(size=(15, n)).astype(np.float32),
        "flat": stream.random((1, n)).astype(np.float32),
    }
    tail = stream.random(n) < 0.7
    pool = Candidates.of(parts, history, tail)
    for weights in ({"a": 1.0, "b": 0.5, "flat": 2.0}, {"a": 0.0, "b": 1.0, "flat": 0.0}):
        scores = mix(parts, weights, {"b": 2.0}, history.shape)
        everything, tails = pool.lists(weights, {"b": 2.0})
        exact = top_k(scores, 20, exclude=history)[0]
        np.testing.assert_array_equal(everything, exact)
        np.testing.assert_array_equal(tails, top_k(scores, 20, exclude=history, allowed=tail)[0])


def test_a_large_catalogue_loses_next_to_nothing_in_the_pool() -> None:
    stream = np.random.default_rng(1)
    parts = {name: stream.normal(size=(10, 3000)).astype(np.float32) for name in ("a", "b")}
    history = sparse.csr_matrix((10, 3000), dtype=np.float32)
    weights = {"a": 1.0, "b": 0.7}
    # The head is far ahead in every part: the best of all hold none of the tail.
    tail = np.arange(3000) >= 600
    for part in parts.values():
        part[:, ~tail] += 10
    scores = mix(parts, weights, {}, history.shape)
    lists = Candidates.of(parts, history, tail).lists(weights, {})
    for found, allowed in zip(lists, (None, tail), strict=True):
        exact = top_k(scores, 20, allowed=allowed)[0]
        shared = [len(np.intersect1d(f, e)) for f, e in zip(found, exact, strict=True)]
        assert np.mean(shared) > 19


# --- tuning ----------------------------------------------------------------------------------


def objective(
    home: HomeModel,
    weights: dict[str, float],
    history: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    tail: np.ndarray,
) -> float:
    """Return the objective from the ranking of the whole catalogue."""
    scores = replace(home, mixing_weights=weights).scores(history)
    everything, tails = (
        top_k(scores, 20, exclude=history, allowed=mask)[0] for mask in (None, tail)
    )
    values = evaluate(everything, tails, targets, tail).summary()
    reference = settings_of().reference
    return float(np.nansum([values[metric] / size for metric, size in reference.items()]))


def later(history: sparse.csr_matrix, seed: int) -> sparse.csr_matrix:
    """Return targets that follow the customers' tastes and are new to them."""
    stream = np.random.default_rng(seed)
    kinds = np.stack([np.asarray(history[:, k::4].sum(axis=1)).ravel() for k in range(4)])
    liked = np.arange(history.shape[1]) % 4 == kinds.argmax(axis=0)[:, None]
    new = liked & (stream.random(history.shape) < 0.3) & ~(history.toarray() > 0)
    return sparse.csr_matrix(new.astype(np.float32))


def test_weights_are_chosen_around_what_came_before_and_by_those_who_are_asked(
    model: GlobalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fitted on what is asked for, too, a part recalls it and takes all the weight.
    period = ShopPeriod(bought(30), bought(30, seed=1))
    tail, stock, asked = np.arange(N) % 2 == 0, np.arange(N) < 30, np.array([2, 5, 7])
    how, others = settings_of(), {"pooled_ease": Ease.fit(bought(30), 5.0, 100)}
    fitted: list[tuple[Any, ...]] = []
    tuned: list[tuple[Any, ...]] = []
    home = HomeModel.fit(model, period.history, how)

    def fit(*args: Any) -> HomeModel:
        fitted.append(args)
        return home

    def own_ease(ridge: float) -> Ease:
        return Ease.fit(period.history, ridge, 100)

    def search(*args: Any) -> dict[str, float]:
        tuned.append(args)
        return {"content": 7.0}

    monkeypatch.setattr(HomeModel, "fit", fit)
    monkeypatch.setattr("client.home.weight_search.tune", search)
    for some in (None, asked):
        more: dict[str, Any] = {"others": others, "own_ease": own_ease}
        found = choose_weights(model, period, tail, how, stock=stock, asked=some, **more)
        assert found == {"content": 7.0}
    for args in fitted:
        expected = (model, period.history, how, others, own_ease, stock)
        assert all(one is other for one, other in zip(args, expected, strict=True))
    for (mixture, history, targets, *rest), rows in zip(tuned, (slice(None), asked), strict=True):
        assert mixture is home
        np.testing.assert_array_equal(history.toarray(), period.history[rows].toarray())
        np.testing.assert_array_equal(targets.toarray(), period.targets[rows].toarray())
        assert all(one is other for one, other in zip(rest, (tail, how, stock), strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_tuning_never_ends_below_its_start(model: GlobalModel, seed: int) -> None:
    history = bought(40, seed)
    targets, tail = later(history, seed), tail_mask(np.asarray(history.sum(axis=0)).ravel())
    settings = settings_of(rounds=2, confidence=0.0)
    home = HomeModel.fit(model, history, settings)
    weights = tune(home, history, targets, tail, settings)
    assert list(weights) == list(START)
    before, after = (objective(home, w, history, targets, tail) for w in (START, weights))
    assert after >= before - 1e-9


def test_tuning_finds_the_part_that_knows(model: GlobalModel) -> None:
    history = bought(80)
    targets, tail = later(history, 1), tail_mask(np.asarray(history.sum(axis=0)).ravel())
    start = {"content": 0.05, "own_popularity": 4.0}
    settings = settings_of(start=start, rounds=3)
    home = HomeModel.fit(model, history, settings)
    weights = tune(home, history, targets, tail, settings)
    # Kinds are content: popularity only stands in the way.
    ratio = weights["content"] / max(weights["own_popularity"], 1e-9)
    assert ratio > 4 * start["content"] / start["own_popularity"]
    gain = objective(home, weights, history, targets, tail) / objective(
        home, start, history, targets, tail
    )
    assert gain > 1.2


def test_little_evidence_moves_nothing(model: GlobalModel) -> None:
    history = bought(40)
    # Three customers bought something new: whatever helps them is mostly luck.
    targets = later(history, 1).tolil()
    targets[3:] = 0
    settings = settings_of(confidence=50.0)
    home = HomeModel.fit(model, history, settings)
    tail = np.ones(N, bool)
    assert tune(home, history, sparse.csr_matrix(targets), tail, settings) == START


def test_one_customer_moves_nothing(model: GlobalModel) -> None:
    history = bought(12)
    targets = later(history, 1)
    busiest = np.diff(targets.indptr).argmax()
    keep = sparse.diags_array((np.arange(12) == busiest).astype(np.float32))
    only = sparse.csr_matrix(keep @ targets)
    only.eliminate_zeros()
    assert only.nnz
    settings = settings_of(confidence=0.0)
    home = HomeModel.fit(model, history, settings)
    assert tune(home, history, only, np.ones(N, bool), settings) == START


@dataclass(frozen=True)
class Parts:
    """A home model of given parts."""

    given: dict[str, np.ndarray]
    part_scales: Mapping[str, float] = field(default_factory=dict)

    def parts(self, history: sparse.csr_matrix, names: list[str]) -> dict[str, np.ndarray]:
        """The numbers of customers stand in their histories."""
        rows = history[:, [0]].toarray().ravel().astype(int)
        return {n: self.given[n][rows] if len(self.given[n]) > 1 else self.given[n] for n in names}


def tuned(given: dict[str, np.ndarray], targets: np.ndarray, tail: int, **changes: Any) -> Any:
    """Return the weights for customers of whom each has product 0, and its number for a weight."""
    history = np.zeros(targets.shape, np.float32)
    history[:, 0] = np.arange(len(targets))
    how = {"rounds": 1, "confidence": 0.0, "start": {"content": 1.0, "ease": 0.5}, **changes}
    chosen = settings_of(**how)
    home = cast(HomeModel, Parts(given))
    rare = np.arange(targets.shape[1]) >= tail
    return tune(home, sparse.csr_matrix(history), sparse.csr_matrix(targets), rare, chosen)


@pytest.mark.parametrize(("reference", "expected"), [(0.5, 2.0), (4.0, 0.5)])
def test_what_few_are_asked_counts_by_its_own_mean_and_reference(
    reference: float, expected: float
) -> None:
    """A weight that brings ten customers' tail product first costs ninety theirs of the head."""
    content, ease = np.zeros((2, 1, 30), np.float32)
    # Of the head 2 is asked for and 3 threatens; of the tail 10 is, and 11 stands before it.
    content[0, [2, 3, 11, 10]] = 3.0, 2.0, 1.0, 0.5
    ease[0, [3, 10]] = 0.75, 0.6
    targets = np.zeros((100, 30), np.float32)
    targets[:90, 2] = targets[90:, 10] = 1
    parts, sizes = {"content": content, "ease": ease}, {"ndcg@20": 1.0, "tail_ndcg@20": reference}
    found = tuned(parts, targets, 6, factors=(4.0,), reference=sizes)
    assert found == {"content": 1.0, "ease": expected}


def _nearer_with_each_doubling() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return parts and targets: what is wanted comes one place nearer as ``ease`` weighs more."""
    content, ease = np.zeros((2, 1, 30), np.float32)
    content[0, [12, 11, 10]] = 1.5, 1.0, 0.5
    ease[0, 10] = 0.6
    targets = np.zeros((9, 30), np.float32)
    targets[:, 10] = 1
    return {"content": content, "ease": ease}, targets


def test_factors_are_of_what_a_weight_began_the_round_with() -> None:
    """Twice as much helps, and four times more so: eight times was not to be tried."""
    found = tuned(*_nearer_with_each_doubling(), 6, factors=(2.0, 4.0))
    assert found == {"content": 1.0, "ease": 2.0}


def test_a_later_try_must_beat_the_best_one_and_rounds_go_on_from_it() -> None:
    """What is wanted comes one place nearer with each doubling: at 1, at 2, and not before."""
    parts, targets = _nearer_with_each_doubling()
    assert tuned(parts, targets, 6, factors=(4.0, 2.0)) == {"content": 1.0, "ease": 2.0}
    assert tuned(parts, targets, 6, factors=(2.0,)) == {"content": 1.0, "ease": 1.0}
    assert tuned(parts, targets, 6, factors=(2.0,), rounds=2) == {"content": 1.0, "ease": 2.0}


def test_a_weight_is_tried_beside_those_that_were_chosen_before_it() -> None:
    """Half of the customers are served by more of one part, half by more of the other."""
    content, ease, base = np.zeros((3, 1, 30), np.float32)
    content[0, 10], ease[0, 20], base[0, [11, 21]] = 0.3, 0.6, 1.0
    targets = np.zeros((40, 30), np.float32)
    targets[:20, 10] = targets[20:, 20] = 1
    start = {"content": 1.0, "ease": 0.5, "popularity": 1.0}
    parts = {"content": content, "ease": ease, "popularity": base}
    found = tuned(parts, targets, 6, factors=(4.0,), start=start)
    assert found == {"content": 4.0, "ease": 2.0, "popularity": 1.0}


@pytest.mark.parametrize(("confidence", "expected"), [(3.0, 2.0), (3.6, 0.5)])
def test_a_weight_moves_by_standard_errors_of_the_mean_over_customers(
    confidence: float, expected: float
) -> None:
    """Ten customers of a hundred gain alike: a mean of 3.3 of its standard errors."""
    content, ease = np.zeros((100, 30), np.float32), np.zeros((1, 30), np.float32)
    content[:, 3], ease[0, 10] = 1.0, 0.6
    targets = np.zeros((100, 30), np.float32)
    targets[:10, 10] = targets[10:, 3] = 1
    content[10:, 3] = 5.0
    only = {"ndcg@20": 1.0}
    parts = {"content": content, "ease": ease}
    found = tuned(parts, targets, 3, factors=(4.0,), reference=only, confidence=confidence)
    assert found["ease"] == expected


def test_a_part_that_is_flat_for_some_customers_alone_is_not_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.home.weight_search._POOL_BYTES", 1)
    content = np.random.default_rng(0).random((1, 30), np.float32)
    ease = np.random.default_rng(1).random((9, 30), np.float32)
    ease[0] = 0
    ease[1] = 1
    targets = np.zeros((9, 30), np.float32)
    targets[:, 10] = 1
    for flat in (ease, np.repeat(np.arange(9, dtype=np.float32)[:, None], 30, axis=1)):
        parts = {"content": content, "ease": flat}
        assert tuned(parts, targets, 6, factors=(1.0,))["ease"] == 0.5
    parts = {"content": content, "ease": np.ones((9, 30), np.float32)}
    assert tuned(parts, targets, 6, factors=(1.0,))["ease"] == 0


def test_weights_are_tried_on_what_the_shop_stocks_alone() -> None:
    stream = np.random.default_rng(0)
    tail, stock = np.arange(200) >= 40, stream.random(200) < 0.4
    parts = {"content": stream.normal(size=(5, 200)).astype(np.float32)}
    pool = Candidates.of(parts, sparse.csr_matrix((5, 200), dtype=np.float32), tail, 50, stock)
    everything, tails = pool.lists({"content": 1.0}, {})
    assert stock[everything].all()
    assert (stock & tail)[tails].all()


# --- groups that the federation learned, dealt to products here ---------------------------------


def test_own_shares_deal_a_groups_score_by_what_sells_here(model: GlobalModel) -> None:
    plan = ModelPlan(dimension=3, groups="type", learned_items=4, group_weights="even")
    state = initial_state(plan, N) | {POPULARITY: model.state[POPULARITY]}
    grouped, histories = GlobalModel(plan, model.catalogue, state), bought(50)
    counts = np.asarray((histories > 0).sum(axis=0), dtype=np.float64).ravel()
    kinds = np.arange(N) % 4
    released = model.state[POPULARITY].astype(np.float64) * N
    whole = grouped.learned_part(histories)
    for share in (0.0, 0.3, 1.0):
        settings = settings_of(start={"learned": 1.0}, own_shares=share)
        home = HomeModel.fit(grouped, histories, settings)
        found = home.parts(histories, ["learned"])["learned"]
        weight = share * counts / counts.mean() + (1 - share) * released
        weight = weight / weight.mean() + 0.05
        for kind in range(4):
            inside = kinds == kind
            # Each group keeps what it has; who among its products has how much of it changes.
            total = whole[:, inside].sum(axis=1, keepdims=True)
            np.testing.assert_allclose(
                found[:, inside],
                total * weight[inside] / weight[inside].sum(),
                rtol=1e-4,
                atol=1e-5,
            )
    assert np.array_equal(grouped.learned_part(histories), whole)  # The released one is as it was.
    plain = HomeModel.fit(model, histories, settings_of(own_shares=1.0))
    assert plain.model is model


def test_a_stored_mixture_deals_groups_as_the_one_that_was_fitted(model: GlobalModel) -> None:
    plan = ModelPlan(dimension=3, groups="type", learned_items=4, group_weights="even")
    state = initial_state(plan, N) | {POPULARITY: model.state[POPULARITY]}
    grouped, histories = GlobalModel(plan, model.catalogue, state), bought(50)
    settings = settings_of(start={"learned": 1.0, "own_learned": 0.5}, own_shares=0.6)
    home = HomeModel.fit(grouped, histories, settings)
    known: dict[str, Any] = {  # What else the facts say plays no part here.
        "settings": settings,
        "part_scales": dict(home.part_scales),
        "mixing_weights": dict(home.mixing_weights),
        "own_plan": None if home.own_learned is None else home.own_learned.plan,
    }
    facts = AdaptedFacts.model_construct(None, **known)
    again = home_of(arrays_of(home, {}), facts, grouped)
    np.testing.assert_array_equal(again.scores(histories), home.scores(histories))
    plainly = settings.model_copy(update={"own_shares": 0.0})
    other = home_of(arrays_of(home, {}), facts.model_copy(update={"settings": plainly}), grouped)
    assert not np.allclose(other.scores(histories), home.scores(histories))
