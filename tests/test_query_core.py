"""What is served is the model's own score; filters, the dial and reasons hold to it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from common.artifact import Manifest, ModelArtifact
from common.errors import ArtifactError, InputError
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state
from common.protocol import ModelPlan, TrainingPlan
from common.queries.asking import Query, Ranking
from common.queries.filters import Filters
from common.scoring import re_rank
from server.query.choosing import best_rows, search
from server.query.core import ServedModel
from server.query.index import ExactIndex, Index, Int8Index

SIZE = 3000


def products() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "item_id": [f"p{i:04d}" for i in range(SIZE)],
            "category": rng.choice([f"c{i}" for i in range(40)], SIZE),
            "brand": np.array(["A", "B", "C", None], dtype=object)[rng.integers(0, 4, SIZE)],
            "price": np.where(rng.random(SIZE) < 0.1, np.nan, rng.gamma(2.0, 5.0, SIZE)),
        }
    )


def served(make_index: Callable[[np.ndarray], Index] = ExactIndex, **more: object) -> ServedModel:
    rng = np.random.default_rng(1)
    catalogue = Catalogue.of(products(), ContentSpec(features=("category", "brand")))
    plan = ModelPlan.model_validate(
        {"dimension": 16, "learned_items": 1000, "content_scale": 0.7, **more}
    )
    state = initial_state(plan, SIZE)
    state = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in state.items()}
    counts = rng.pareto(1.2, SIZE) + 0.01
    state["popularity"] = (counts / counts.sum()).astype(np.float32)
    manifest = Manifest(
        version="m",
        server_round=1,
        data_columns=(),
        config={"plan": TrainingPlan(model=plan).model_dump(mode="json")},
        code_digest="0",
        privacy=None,
        catalogue_fingerprint=catalogue.fingerprint,
    )
    artifact = ModelArtifact(state, catalogue.item_ids, manifest)
    stock = {"shop": np.arange(0, SIZE, 3)}
    return ServedModel.of(7, artifact, catalogue, make_index=make_index, stock=stock)


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return served()


HISTORY = {"p0003": 1.0, "p0500": 0.5, "p2999": 2.0}


def test_attributes_that_the_model_knows_nothing_of_are_told_of(model: ServedModel) -> None:
    # The answer was the same as without them, and whoever sent an age took it for one with it.
    query = Query(HISTORY, {"age": "35-44"})
    answer, bare = model.recommend(query), model.recommend(Query(HISTORY))
    assert (answer.scores, bare.notes) == (bare.scores, ())
    assert "attributes: they do not count" in answer.notes[0]
    knowing = served(customer_rows=64)
    assert knowing.recommend(query).notes == ()
    assert knowing.recommend(query).scores != knowing.recommend(Query(HISTORY)).scores


def test_what_reasons_have_in_common_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # For a history of thousands it took two thirds of the time of each of the products.
    model = served(groups="category*brand", learned_items=6)
    answer = model.recommend(Query(HISTORY, k=5, reasons=True))
    alone = [model.explain(item, HISTORY, {}) for item in answer.item_ids]
    again = "common.queries.reasons.learned_history"
    monkeypatch.setattr(again, lambda *_: pytest.fail("again for each product"))
    assert list(answer.reasons) == alone


def plain_scores(model: ServedModel, history: dict[str, float]) -> np.ndarray:
    dense = np.zeros((1, SIZE), np.float32)
    for item, weight in history.items():
        dense[0, model.rows_of[item]] = weight
    whole = GlobalModel(model.model.plan, model.model.catalogue, model.artifact.arrays)
    scores: np.ndarray = whole.scores(sparse.csr_matrix(dense))[0]
    return scores


@pytest.mark.parametrize("history", [{}, HISTORY])
def test_the_list_is_the_model_s_own(model: ServedModel, history: dict[str, float]) -> None:
    answer = model.recommend(Query(history, k=30))
    scores = plain_scores(model, history)
    scores[[model.rows_of[item] for item in history]] = -np.inf
    order = np.argsort(-scores, kind="stable")[:30]
    np.testing.assert_allclose(answer.scores, scores[order], rtol=1e-4, atol=1e-4)
    assert len(set(answer.item_ids) & set(model.model.catalogue.item_ids[order])) >= 29
    assert answer.score_kept == 1.0
    assert not set(answer.item_ids) & set(history)


def test_what_was_bought_is_never_listed_and_counts_by_its_own_weight(model: ServedModel) -> None:
    """Three products of a history hardly ever come among the best: nothing told of them there."""
    answer = model.recommend(Query(HISTORY, k=SIZE))
    assert len(answer.item_ids) == SIZE - len(HISTORY)
    assert not set(answer.item_ids) & set(HISTORY)
    turned = dict(reversed(HISTORY.items()))
    assert model.recommend(Query(turned, k=30)) == model.recommend(Query(HISTORY, k=30))


def test_attributes_count_where_the_model_has_a_table_of_them() -> None:
    known = served(customer_rows=64)
    plain, old = (known.recommend(Query(HISTORY, a, k=5)) for a in ({}, {"age": "65+"}))
    assert plain.scores != old.scores
    for item, score in zip(old.item_ids, old.scores, strict=True):
        assert known.explain(item, HISTORY, {"age": "65+"}).score == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("dial", [0.2, 0.6])
def test_the_dial_chooses_among_ten_times_as_many_of_all_and_of_the_tail(
    model: ServedModel, dial: float
) -> None:
    k, scores = 7, plain_scores(model, HISTORY)
    scores[[model.rows_of[item] for item in HISTORY]] = -np.inf
    by_score = np.argsort(-scores, kind="stable")
    best = {*by_score[: 10 * k], *by_score[model.tail[by_score]][: 10 * k]}
    rows = np.array([row for row in by_score if row in best])
    expected = re_rank(rows[None, :], scores[rows][None, :], k, dial, model.exposure)[0][0]
    answer = model.recommend(Query(HISTORY, k=k, tail_dial=dial))
    assert list(answer.item_ids) == [f"p{row:04d}" for row in expected]
    # Of a thousand of the best many are of the tail: none comes twice.
    many = model.recommend(Query(HISTORY, k=100, tail_dial=dial))
    assert len(set(many.item_ids)) == 100


def test_what_the_dial_cost_is_told_above_the_lowest_candidate() -> None:
    rows, exposure = np.arange(4), np.array([8, 4, 2, 0])
    scores = np.array([5.0, 4.0, 3.0, 1.0], np.float32)
    query = Query(k=2, tail_dial=1.0)
    found = Ranking.of(rows, scores, query, exposure, np.array([False, False, True, True]))
    assert found.rows.tolist() == [3, 2]
    # Of 5 + 4 above 1 + 1, 3 + 1 are left.
    assert found.score_kept == pytest.approx(2 / 7)
    assert (found.tail_share, found.tail_share_undialled) == (1.0, 0.0)


@pytest.mark.parametrize("more", [{}, {"groups": "category*brand", "learned_items": 60}])
def test_compiled_loops_find_what_plain_ones_find(
    more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = served(ExactIndex, **more)
    rng = np.random.default_rng(5)
    chosen = [rng.choice(SIZE, size, replace=False) for size in (0, 1, 3, 40, 2000)]
    histories = [
        {f"p{i:04d}": float(w) for i, w in zip(r, rng.random(len(r)), strict=True)} for r in chosen
    ]
    queries = [Query(h, k=25, tail_dial=d) for h in histories for d in (0.0, 0.5)]
    expected = [plain.recommend(query) for query in queries]
    like = plain.similar("p0003", 10)
    monkeypatch.setattr("server.query.dots._COMPILED_FROM", 0)
    compiled = served(ExactIndex, **more)
    for query, answer in zip(queries, expected, strict=True):
        found = compiled.recommend(query)
        assert found.item_ids == answer.item_ids
        np.testing.assert_allclose(found.scores, answer.scores, rtol=1e-5, atol=1e-5)
    assert compiled.similar("p0003", 10).item_ids == like.item_ids


def test_products_that_nobody_knows_are_told_back_and_do_not_count(model: ServedModel) -> None:
    with_unknown = model.recommend(Query({**HISTORY, "nothing": 5.0}))
    assert with_unknown.unknown == ("nothing",)
    assert with_unknown.scores == model.recommend(Query(HISTORY)).scores


def test_filters_hold_together(model: ServedModel) -> None:
    table = model.model.catalogue.products.set_index("item_id")
    filters = Filters(category="c3", price_from=4.0, price_to=12.0, merchant_id="shop")
    answer = model.recommend(Query(HISTORY, k=500, filters=filters))
    chosen = table.loc[list(answer.item_ids)]
    row = np.arange(SIZE)
    wanted = (
        (table["category"] == "c3") & table["price"].between(4.0, 12.0) & (row % 3 == 0)
    ).to_numpy()
    assert len(chosen) == wanted.sum() > 3
    assert set(answer.item_ids) == set(table.index[wanted])
    first = answer.item_ids[0]
    without = model.recommend(
        Query(HISTORY, k=500, filters=Filters(exclude=frozenset((first, "nothing"))))
    )
    assert first not in without.item_ids
    level = answer.scores[1]
    best = model.recommend(Query(HISTORY, k=SIZE, filters=Filters(minimum_score=level)))
    assert min(best.scores) >= level


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        (Filters(category="x"), "category 'x'"),
        (Filters(brand="x"), "brand 'x'"),
        (Filters(merchant_id="x"), "shop 'x'"),
    ],
)
def test_a_filter_for_what_there_is_not_is_refused(
    model: ServedModel, filters: Filters, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        model.recommend(Query(filters=filters))


def test_prices_and_the_least_score_are_part_of_what_is_asked_for(model: ServedModel) -> None:
    plain = model.recommend(Query(HISTORY, k=5))
    price = model.product(plain.item_ids[1])["price"] or model.product(plain.item_ids[2])["price"]
    found = model.recommend(Query(HISTORY, filters=Filters(price_from=price, price_to=price)))
    assert {model.product(item)["price"] for item in found.item_ids} == {price}
    least = Filters(minimum_score=plain.scores[2])
    assert model.recommend(Query(HISTORY, k=5, filters=least)).item_ids == plain.item_ids[:3]


@pytest.mark.parametrize("least", [1e300, -1e300])
def test_a_least_score_that_no_score_can_have_is_compared_without_a_warning(
    model: ServedModel, least: float
) -> None:
    # As a float32 it is infinite, and numpy wrote lines of our code into the service's log.
    found = model.recommend(Query(HISTORY, k=5, filters=Filters(minimum_score=least)))
    assert len(found.item_ids) == (5 if least < 0 else 0)


def test_the_dial_turns_lists_to_the_tail_and_says_what_it_cost(model: ServedModel) -> None:
    answers = [model.recommend(Query(HISTORY, tail_dial=dial)) for dial in (0.0, 0.3, 0.6, 1.0)]
    shares = [answer.tail_share for answer in answers]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]
    kept = [answer.score_kept for answer in answers]
    assert kept == sorted(kept, reverse=True)
    assert 0.0 <= kept[-1] < kept[0] == 1.0
    assert {answer.tail_share_undialled for answer in answers} == {shares[0]}


def test_the_dial_reaches_the_tail_where_popularity_decides(model: ServedModel) -> None:
    popularity = {"popularity": model.artifact.arrays["popularity"] * 0 + 1e-9}
    head = np.flatnonzero(~model.tail)
    popularity["popularity"][head] = 1.0 / len(head)
    loud = replace(model.artifact, arrays={**model.artifact.arrays, **popularity})
    quiet = {name: a if name == "popularity" else a * 1e-3 for name, a in loud.arrays.items()}
    loud = replace(loud, arrays=quiet)
    found = ServedModel.of(1, loud, model.model.catalogue)
    k = len(head) // 20
    assert found.recommend(Query(HISTORY, k=k)).tail_share == 0.0
    assert found.recommend(Query(HISTORY, k=k, tail_dial=1.0)).tail_share == 1.0


def test_similar_products_owe_nothing_to_popularity(model: ServedModel) -> None:
    other = model.artifact.arrays["popularity"][::-1].copy()
    turned = replace(model.artifact, arrays={**model.artifact.arrays, "popularity": other})
    turned_model = ServedModel.of(1, turned, model.model.catalogue)
    assert turned_model.recommend(Query({"p0007": 1.0})).item_ids != (
        model.recommend(Query({"p0007": 1.0})).item_ids
    )
    parts = {
        item: model.explain(item, {"p0007": 1.0}, {}) for item in model.model.catalogue.item_ids
    }
    common = {
        item: found.total("history-content")
        + found.total("history-learned")
        + float(model.expected[model.rows_of[item]])  # taken off the one product's content
        for item, found in parts.items()
        if item != "p0007"
    }
    best = sorted(common, key=lambda item: -common[item])[:5]
    answer = model.similar("p0007", 5)
    assert list(answer.item_ids) == best
    assert answer.scores == pytest.approx([common[item] for item in best], rel=1e-4)


def test_similar_products_leave_out_the_product_itself(model: ServedModel) -> None:
    answer = model.similar("p0007", 5)
    assert len(answer.item_ids) == 5
    assert "p0007" not in answer.item_ids
    with pytest.raises(InputError, match="'none'"):
        model.similar("none", 5)


def test_reasons_add_up_to_the_score_that_was_served(model: ServedModel) -> None:
    answer = model.recommend(Query(HISTORY))
    for item, score in zip(answer.item_ids[:5], answer.scores, strict=False):
        found = model.explain(item, HISTORY, {})
        size = sum(abs(part.value) for part in found.parts)
        assert sum(part.value for part in found.parts) == pytest.approx(
            found.score, abs=1e-9 * size
        )
        assert found.score == pytest.approx(score, abs=1e-5 * size)


def test_without_a_product_the_score_changes_by_its_stated_part(model: ServedModel) -> None:
    found = model.explain("p0100", HISTORY, {})
    without = model.explain("p0100", {k: v for k, v in HISTORY.items() if k != "p0500"}, {})
    own = sum(part.value for part in found.parts if part.label == "p0500")
    assert found.score - without.score == pytest.approx(own, abs=1e-9)


def test_a_model_of_another_catalogue_is_refused() -> None:
    whole = served()
    other = Catalogue.of(products().head(10))
    with pytest.raises(ArtifactError, match="belongs to catalogue"):
        ServedModel.of(1, whole.artifact, other)


@pytest.mark.parametrize("dial", [0.0, 0.6])
def test_eight_bits_find_what_32_find_with_exact_scores(dial: float) -> None:
    exact, coarse = served(), served(Int8Index.of)
    rng = np.random.default_rng(2)
    for _ in range(20):
        history = {f"p{i:04d}": 1.0 for i in rng.choice(SIZE, 8, replace=False)}
        query = Query(history, tail_dial=dial)
        a, b = exact.recommend(query), coarse.recommend(query)
        assert b.item_ids == a.item_ids
        np.testing.assert_allclose(b.scores, a.scores, rtol=1e-5, atol=1e-4)
        least = Query(history, k=SIZE, filters=Filters(minimum_score=a.scores[-1] - 1e-4))
        assert coarse.recommend(least).item_ids == exact.recommend(least).item_ids


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.sampled_from([1, 3, 64, 70]),
    st.integers(1, 12),
    st.sampled_from([0.0, 1.0, 4.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_search_over_codes_finds_the_best_of_any_vectors(
    seed: int, size: int, width: int, k: int, spread: float
) -> None:
    """Also where lengths differ by orders of magnitude, and codes of the short say nothing."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((size, width)).astype(np.float32)
    vectors *= rng.lognormal(0.0, spread, (size, 1)).astype(np.float32)
    vectors[rng.random(vectors.shape) < 0.5] = 0.0
    rest = rng.standard_normal(size).astype(np.float32)
    rest[rng.random(size) < 0.3] = -np.inf
    vector = rng.standard_normal(width).astype(np.float32)
    index = Int8Index.of(vectors)
    learned = index.scores(vector)
    rows, found = search(index, vector, rest + learned, learned, k)
    truth = rest + (vectors.astype(np.float64) @ vector)
    best = np.sort(truth[truth > -np.inf])[::-1][:k]
    tolerance = 1e-5 * (1 + np.abs(vectors).max() * np.abs(vector).sum())
    np.testing.assert_allclose(found, best, rtol=0, atol=tolerance)
    np.testing.assert_allclose(truth[rows], best, rtol=0, atol=tolerance)
    assert len(set(rows.tolist())) == len(rows)


def test_threads_that_answer_at_once_do_not_disturb_each_other(model: ServedModel) -> None:
    rng = np.random.default_rng(3)
    asked = [{f"p{i:04d}": 1.0 for i in rng.choice(SIZE, 5, replace=False)} for _ in range(200)]
    alone = [model.recommend(Query(history)) for history in asked]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda history: model.recommend(Query(history)), asked)) == alone


@given(
    st.lists(st.integers(-5, 5), min_size=0, max_size=60),
    st.integers(0, 25),
    st.integers(1, 4000),
)
@settings(max_examples=60, deadline=None)
def test_the_best_rows_are_those_of_a_full_sort(values: list[int], k: int, repeat: int) -> None:
    scores = np.resize(np.array(values or [0], np.float32), repeat)
    scores[::7] = -np.inf
    order = np.argsort(-scores, kind="stable")[:k]
    expected = order[scores[order] > -np.inf]
    assert best_rows(scores, k).tolist() == expected.tolist()


@pytest.mark.parametrize("width", [1, 16, 64, 65, 200])
def test_codes_are_off_by_less_than_their_step(width: int) -> None:
    rng = np.random.default_rng(width)
    vectors = rng.normal(size=(50, width)).astype(np.float32)
    vectors[3] = 0.0
    index, vector = Int8Index.of(vectors), rng.normal(size=width).astype(np.float32)
    step = np.abs(vectors).max(axis=1) / 127
    bound = step / 2 * np.abs(vector).sum() * 1.01 + 1e-5
    off = np.abs(index.scores(vector) - vectors.astype(np.float64) @ vector)
    assert (off <= bound).all()
    rows = np.arange(50)
    assert (off <= index.errors(rows, vector) + 1e-6 * (1 + np.abs(vectors).max())).all()
    assert index.error(vector) == pytest.approx(float(index.errors(rows, vector).max()))
    assert not index.scores(np.zeros(width, np.float32)).any()
    rows = np.array([4, 2])
    np.testing.assert_allclose(index.exact(rows, vector), vectors[rows] @ vector, rtol=1e-6)
