"""Whom and what the served model does not know yet: no history, a new product, a new shop."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import httpx
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from client.home.personalization import HomeModel
from client.home_settings import MIXED
from common.artifact import Manifest, ModelArtifact
from common.catalogue.catalogue_versions import carry_over
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state
from common.popularity import of_like
from common.protocol import ModelPlan, TrainingPlan
from common.queries.asking import Query
from common.queries.filters import Filters
from query_support import Place, Running, make_place, running
from server.query.core import ServedModel
from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc
from simulations.cold_start.shops import _served

OLD, ADDED = 200, 20
SPEC = ContentSpec(features=("category", "brand"))


def products() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "item_id": [f"p{i:04d}" for i in range(OLD)] + [f"q{i:04d}" for i in range(ADDED)],
            "category": rng.choice(["tea", "coffee", "bread"], OLD + ADDED),
            "brand": rng.choice(["A", "B"], OLD + ADDED),
        }
    )


def served(**more: object) -> ServedModel:
    """Return a model trained before the products ``q...`` were added; tea sells best by far."""
    rng = np.random.default_rng(1)
    table = products()
    old, new = Catalogue.of(table.head(OLD), SPEC), Catalogue.of(table, SPEC)
    plan = ModelPlan.model_validate(
        {"dimension": 4, "content_scale": 0.7, "customer_rows": 16, **more}
    )
    state = initial_state(plan, OLD)
    state = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in state.items()}
    counts = rng.uniform(0.5, 1.5, OLD) * np.where(table["category"][:OLD] == "tea", 8.0, 1.0)
    state["popularity"] = (counts / counts.sum()).astype(np.float32)
    carried = carry_over(state, old.item_ids, new, plan)
    manifest = Manifest(
        version="m",
        server_round=1,
        data_columns=(),
        config={"plan": TrainingPlan(model=plan).model_dump(mode="json")},
        code_digest="0",
        privacy=None,
        catalogue_fingerprint=new.fingerprint,
    )
    artifact = ModelArtifact(carried, new.item_ids, manifest)
    return ServedModel.of(1, artifact, new, stock={"new-shop": np.arange(0, OLD + ADDED, 2)})


HISTORY = {"p0003": 1.0, "p0050": 0.5}


def test_a_product_outside_the_training_rows_is_scored_by_content_alone() -> None:
    model = served()
    whole, catalogue = model.model, model.model.catalogue
    answer = model.recommend(Query(HISTORY, k=OLD + ADDED))
    scores = dict(zip(answer.item_ids, answer.scores, strict=True))
    added = [item for item in scores if item.startswith("q")]
    assert len(added) == ADDED
    dense = np.zeros((1, catalogue.size), np.float32)
    for item, weight in HISTORY.items():
        dense[0, model.rows_of[item]] = weight
    content = 0.7 * whole.content_part(sparse.csr_matrix(dense))[0]
    known = np.array([item.startswith("p") for item in catalogue.item_ids])
    like = of_like(whole.popularity_bias, known, catalogue.features)
    for item in added:
        row = model.rows_of[item]
        assert not whole.lifted_vectors[row].any()
        assert scores[item] == pytest.approx(float(content[row] + like[row]), abs=1e-4)
        found = model.explain(item, HISTORY, {"age": "20s"})
        assert {part.label for part in found.parts if part.kind == "popularity"} == {
            "everywhere, as its like"
        }
        assert found.total("history-learned") == found.total("attribute") == 0.0
        assert found.score == pytest.approx(scores[item], abs=1e-4)
    # Content that sells lifts its new products, too, and no other product's score moves.
    tea = catalogue.products["category"].to_numpy() == "tea"
    assert like[~known & tea].min() > 2 * like[~known & ~tea].max()
    assert not whole.popularity_of_like[known].any()
    assert model.tail[~known].all()


def test_at_a_shop_a_new_product_sells_as_its_like(served_model: ServedModel) -> None:
    model = served_model.model
    rng = np.random.default_rng(2)
    tea = model.catalogue.products["category"].to_numpy() == "tea"
    bought = (rng.random((40, model.catalogue.size)) < np.where(tea, 0.4, 0.05)).astype(np.float32)
    bought[:, OLD:] = 0.0
    home = HomeModel.fit(model, sparse.csr_matrix(bought), MIXED)
    fresh = np.arange(model.catalogue.size) >= OLD
    own = home.own_popularity[0]
    assert own[fresh & tea].min() > 2 * own[fresh & ~tea].max() > 0
    counts = bought.sum(axis=0)
    np.testing.assert_allclose(
        own[~fresh], counts[~fresh] * (len(counts) / counts.sum()), rtol=1e-5
    )


def test_a_case_of_cold_start_serves_who_has_no_history_as_a_shop_does(
    served_model: ServedModel,
) -> None:
    # It left out what products of which nothing was released take from their like.
    model = served_model.model
    bought = sparse.csr_matrix(np.eye(40, model.catalogue.size, dtype=np.float32))
    home = HomeModel.fit(model, bought, MIXED)
    nobody = sparse.csr_matrix((1, model.catalogue.size), dtype=np.float32)
    found = _served(home, nobody)(slice(0, 1))[0]
    assert model.popularity_of_like.any()
    np.testing.assert_array_equal(found, home.own_popularity[0] + model.popularity_part)


@pytest.fixture(scope="module")
def served_model() -> ServedModel:
    return served()


def test_without_any_history_the_list_is_what_sells(served_model: ServedModel) -> None:
    answer = served_model.recommend(Query(k=30))
    order = np.argsort(-served_model.model.popularity_part, kind="stable")[:30]
    assert list(answer.item_ids) == [str(served_model.model.catalogue.item_ids[r]) for r in order]


def test_attributes_alone_move_the_list_where_the_model_has_tables(
    served_model: ServedModel,
) -> None:
    nothing = served_model.recommend(Query(k=30))
    young, old = (
        served_model.recommend(Query(attributes={"age": age, "gender": "F"}, k=30))
        for age in ("20s", "60s")
    )
    assert len({nothing.item_ids, young.item_ids, old.item_ids}) == 3
    without = served(customer_rows=0)
    plain = without.recommend(Query(k=30))
    assert without.recommend(Query(attributes={"age": "20s"}, k=30)).item_ids == plain.item_ids


def test_a_new_shop_is_served_what_it_stocks(served_model: ServedModel) -> None:
    query = Query(HISTORY, k=20, filters=Filters(merchant_id="new-shop"))
    answer = served_model.recommend(query)
    rows = [served_model.rows_of[item] for item in answer.item_ids]
    assert len(rows) == 20
    assert not any(row % 2 for row in rows)
    # Nothing of the shop but its stock is in the answer: the scores are everybody's.
    whole = served_model.recommend(replace(query, filters=Filters(), k=OLD + ADDED))
    assert dict(zip(whole.item_ids, whole.scores, strict=True)).items() >= (
        dict(zip(answer.item_ids, answer.scores, strict=True)).items()
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Running]:
    with running(place) as found:
        yield found


@pytest.mark.e2e
def test_features_only_are_answered_over_rest_and_grpc(service: Running) -> None:
    people = {"age": "25-34", "gender": "F", "occupation": "student"}
    body: dict[str, Any] = {"attributes": people, "k": 5}
    with httpx.Client(base_url=service.rest, timeout=60) as rest:
        over_rest = rest.post("/v1/recommend", json=body).raise_for_status().json()
    with grpc.insecure_channel(service.grpc) as channel:
        stub = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        over_grpc = stub.Recommend(wire.RecommendRequest(attributes=people, k=5))
    ids = [item["item_id"] for item in over_rest["items"]]
    assert len(ids) == 5
    assert ids == [item.item_id for item in over_grpc.items]


def test_a_model_that_released_nothing_invents_nothing() -> None:
    catalogue = Catalogue.of(products(), SPEC)
    plan = ModelPlan(dimension=2)
    model = GlobalModel(plan, catalogue, initial_state(plan, catalogue.size))
    assert not model.popularity_part.any()
