"""Reasons are the score: on 10,000 random queries, and when a product of the history goes.

Tolerances. The parts are float64 and add up to the explained score within 1e-12 of the sum of their
sizes. What was served was computed in float32: within 1e-5 of the same sum. Both hold with the tail
dial and filters, which choose products and leave scores as they are, and with 8-bit vectors, whose
listed scores are computed anew from the exact ones.
"""

import math
import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from client.home.ease import Ease
from client.home.personalization import HomeModel
from client.home.reasons import explain_home
from client.home_settings import MIXED
from common.explanation import Explanation
from common.model import GlobalModel
from common.queries.asking import Query
from common.queries.filters import Filters
from server.query.answers import recommend
from server.query.core import ServedModel
from server.query.index import ExactIndex, Index, Int8Index
from server.query.requests import RecommendRequest
from test_query_core import SIZE, served

QUERIES = 10_000
_EXACT, _SERVED = 1e-12, 1e-5
#: Models whose scores come apart: products or groups learned, centred or not, with attributes.
KINDS: tuple[tuple[Callable[[np.ndarray], Index], dict[str, object]], ...] = (
    (ExactIndex, {"customer_rows": 16}),
    (Int8Index.of, {"customer_rows": 16, "centred": False}),
    (ExactIndex, {"groups": "category*brand", "learned_items": 60}),
    (ExactIndex, {"groups": "category*brand", "learned_items": 60, "group_weights": "even"}),
    (Int8Index.of, {"popularity_exponent": 0.3}),
)


@cache
def all_models() -> tuple[ServedModel, ...]:
    return tuple(served(make_index, **plan) for make_index, plan in KINDS)


@pytest.fixture(params=range(len(KINDS)))
def model(request: pytest.FixtureRequest) -> ServedModel:
    number: int = request.param
    return all_models()[number]


def size_of(found: Explanation) -> float:
    return math.fsum(abs(part.value) for part in found.parts) + 1.0


def assert_adds_up(found: Explanation, score: float) -> None:
    size = size_of(found)
    total = math.fsum(part.value for part in found.parts)
    assert total == pytest.approx(found.score, abs=_EXACT * size)
    assert score == pytest.approx(found.score, abs=_SERVED * size)


def random_query(rng: np.random.Generator) -> Query:
    """Draw behaviours' weights, weights of long ago, unknown products, none, many."""
    count = int(rng.choice([0, 1, 2, 5, 20, 60]))
    items = [f"p{i:04d}" for i in rng.choice(SIZE + 20, count, replace=False)]
    weights = rng.choice([0.1, 0.3, 0.5, 1.0], count) * 2.0 ** -rng.choice([0, 0.5, 4, 20], count)
    low = float(rng.uniform(0, 20))
    filters = Filters(
        category=f"c{rng.integers(40)}" if rng.random() < 0.3 else None,
        brand=str(rng.choice(["A", "B", "C"])) if rng.random() < 0.2 else None,
        price_from=low if rng.random() < 0.2 else None,
        merchant_id="shop" if rng.random() < 0.2 else None,
        exclude=frozenset(f"p{i:04d}" for i in rng.choice(SIZE, 3)),
    )
    people = {"gender": "F", "age": f"{rng.integers(2, 7)}0s"} if rng.random() < 0.5 else {}
    return Query(
        history=dict(zip(items, weights.tolist(), strict=True)),
        attributes=people,
        k=int(rng.integers(1, 4)),
        tail_dial=float(rng.choice([0.0, 0.0, 0.3, 1.0])),
        filters=filters,
        reasons=bool(rng.random() < 0.5),
    )


@pytest.mark.parametrize(
    "queries", [100, pytest.param(QUERIES // len(KINDS), marks=pytest.mark.slow)]
)
def test_reasons_add_up_on_random_queries(model: ServedModel, queries: int) -> None:
    rng = np.random.default_rng(queries)
    explained = 0
    for _ in range(queries):
        query = random_query(rng)
        answer = model.recommend(query)
        for place, (item, score) in enumerate(zip(answer.item_ids, answer.scores, strict=True)):
            found = (
                answer.reasons[place]
                if query.reasons
                else model.explain(item, query.history, query.attributes)
            )
            assert_adds_up(found, score)
            explained += 1
    assert explained > queries


def test_reasons_as_answered_add_up_too(model: ServedModel) -> None:
    history = [{"item_id": f"p{i:04d}", "weight": 0.5} for i in range(0, SIZE, 40)]
    body: dict[str, Any] = {"history": history, "k": 20, "reasons": True, "tail_dial": 0.4}
    for item in recommend(model, RecommendRequest.model_validate(body)).items:
        assert item.reasons is not None
        parts = [part.value for part in item.reasons.parts]
        assert len(parts) <= 9  # the small ones are told as one
        size = sum(map(abs, parts)) + 1.0
        assert math.fsum(parts) == pytest.approx(item.reasons.score, abs=_EXACT * size)


def test_reasons_of_a_long_history_are_not_all_held_at_once(model: ServedModel) -> None:
    # 40,000 pairs of products: all their parts at a time take 13 MB, those of 10,000 times 1,000
    # gigabytes.
    history = [{"item_id": f"p{i:04d}"} for i in range(400)]
    request = RecommendRequest.model_validate({"history": history, "k": 100, "reasons": True})
    recommend(model, request.model_copy(update={"history": request.history[:1]}))
    tracemalloc.start()
    try:
        answer = recommend(model, request)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(item.reasons is not None for item in answer.items)
    assert most < 4e6


def test_attributes_that_read_alike_both_count(model: ServedModel) -> None:
    # Both are labelled "a b c"; where one took the other's place, the parts missed it.
    people = {"a b": "c", "a": "b c"}
    answer = model.recommend(Query({"p0003": 1.0}, attributes=people, k=3, reasons=True))
    for found, score in zip(answer.reasons, answer.scores, strict=True):
        assert_adds_up(found, score)


def labelled(found: Explanation, label: str) -> float:
    return math.fsum(part.value for part in found.parts if part.label == label)


@given(
    st.integers(0, len(KINDS) - 1),
    st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=30, unique=True),
    st.integers(0, SIZE - 1),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_without_a_product_the_score_loses_exactly_its_part(
    kind: int, rows: list[int], item: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model, target = all_models()[kind], f"p{item:04d}"
    weights = rng.choice([0.1, 0.5, 1.0, 3.0], len(rows)) * 2.0 ** -rng.uniform(0, 12, len(rows))
    history = dict(zip((f"p{row:04d}" for row in rows), weights.tolist(), strict=True))
    people = {"gender": "M"} if rng.random() < 0.5 else {}
    found = model.explain(target, history, people)
    for gone in history:
        rest = {name: weight for name, weight in history.items() if name != gone}
        without = model.explain(target, rest, people)
        lost = found.score - without.score
        assert lost == pytest.approx(labelled(found, gone), abs=_EXACT * size_of(found))
        # And no other part moves.
        for other in (*rest, "everywhere", "gender M"):
            kept = labelled(found, other)
            assert labelled(without, other) == pytest.approx(kept, abs=_EXACT * size_of(found))


def test_two_purchases_of_a_product_are_one_part() -> None:
    twice = [{"item_id": "p0003"}, {"item_id": "p0100"}, {"item_id": "p0003", "weight": 0.5}]
    query = RecommendRequest.model_validate({"history": twice}).query()
    for model in all_models():
        found = model.explain("p0200", query.history, {})
        lost = found.score - model.explain("p0200", {"p0100": 1.0}, {}).score
        assert lost == pytest.approx(labelled(found, "p0003"), abs=_EXACT * size_of(found))


def home_of(model: GlobalModel) -> HomeModel:
    rng = np.random.default_rng(3)
    dense = np.where(rng.random((30, SIZE)) < 0.01, 1.0, 0.0).astype(np.float32)
    how = MIXED.model_copy(
        update={
            "start": {
                **MIXED.start,
                "learned": 0.3,
                "popularity": 0.2,
                "own_learned": 0.5,
                "kin": 0.4,
                "shared_learned": 0.6,
            },
            "own_dimension": 4,
        }
    )
    return HomeModel.fit(model, sparse.csr_matrix(dense), how)


def test_at_home_too_a_product_s_part_is_what_the_score_loses() -> None:
    rng = np.random.default_rng(4)
    for served_model in all_models():
        home = home_of(served_model.model)
        assert all(isinstance(ease, Ease) for ease in home.eases.values())
        scales = home.part_scales
        for _ in range(10):
            rows = np.sort(rng.choice(SIZE, 8, replace=False))
            weights = rng.choice([0.1, 0.5, 1.0], 8).astype(np.float32)
            target = int(rng.integers(SIZE))
            history = row_of(rows, weights)
            found = explain_home(home, home.mixing_weights, scales, history, target)
            assert_adds_up(found, float(home.scores(history)[0, target]))
            for place in range(8):
                rest = row_of(np.delete(rows, place), np.delete(weights, place))
                without = explain_home(home, home.mixing_weights, scales, rest, target)
                part = labelled(found, f"p{rows[place]:04d}")
                # EASE and the shop's own low-rank model are kept in float32.
                assert found.score - without.score == pytest.approx(
                    part, abs=_SERVED * size_of(found)
                )


def row_of(rows: np.ndarray, weights: np.ndarray) -> sparse.csr_matrix:
    return sparse.csr_matrix((weights, (np.zeros_like(rows), rows)), shape=(1, SIZE))
