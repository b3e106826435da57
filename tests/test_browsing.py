"""What the page asks beside recommendations, over a real service's application."""

import asyncio
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi import FastAPI

from common.catalogue.content_columns import RETIRED
from common.errors import ConfigError
from common.queries.asking import Query
from common.queries.filters import Filters
from common.queries.words import Words
from query_support import Place, make_place, products, write_model
from report_support import run_of, sums, whole_run
from server.query.answering import Host, Metrics, Service
from server.query.answers import reasons_of, recommend
from server.query.browsing import About, PriceBand, about_from, choices, find
from server.query.messages import _texts, fill
from server.query.registry_service import ServeSettings, make_service
from server.query.report import ReportArm, read_report
from server.query.requests import RecommendRequest
from server.query.rest import rest_app
from server.query.security import RateLimit
from server.query.wire import fedtail_pb2 as wire
from simulations.documents import to_json
from simulations.report.building import build_report
from simulations.report.draws import shown
from test_query_core import served


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = make_place(tmp_path_factory.mktemp("browsed"))
    model = write_model(made.root / "model-2", made.catalogue, 2)
    figures = {"shops": 2, "customers": 9.5, "customers_error": 1.0, "figures": {"ndcg@20": None}}
    made.registry.publish(model, evaluation={"together": figures, "shops": {"north": figures}})
    other = write_model(made.root / "model-3", made.catalogue, 3)
    made.registry.publish(other, evaluation={"anything": 1})
    (made.root / "stock.json").write_text(json.dumps({"corner": ["p0001"], "market": ["p0002"]}))
    (made.root / "report.json").write_text(to_json(build_report(whole_run())), encoding="utf-8")
    return made


def settings(place: Place) -> ServeSettings:
    root = place.root
    return ServeSettings(
        registry=str(root / "registry"), catalogue=root / "catalogue", stock=root / "stock.json"
    )


@dataclass(frozen=True)
class Local:
    """Asks an application without a network."""

    app: FastAPI

    def get(self, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._ask("GET", path, **more))

    def post(self, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._ask("POST", path, **more))

    async def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
            return await client.request(method, path, **more)


@pytest.fixture(scope="module")
def client(place: Place) -> Local:
    about = about_from(place.root / "report.json")
    return Local(rest_app(make_service(settings(place)), about))


def test_products_hold_every_word_and_the_popular_come_first(client: Local, place: Place) -> None:
    teas = place.catalogue.products.query("category == 'tea' and brand == 'A'")
    found = client.get("/v1/products", params={"query": "TEA a", "limit": 50}).json()
    assert found["total"] == len(teas)
    assert {one["item_id"] for one in found["products"]} <= set(teas["item_id"])
    listed = client.post("/v1/recommend", json={"k": 50}).json()["items"]
    popular = client.get("/v1/products", params={"limit": 50}).json()
    # Without a history popularity is all that counts in a linear model without demographics.
    assert popular["total"] == place.catalogue.size
    ids = [one["item_id"] for one in popular["products"]]
    assert set(ids) & {one["item_id"] for one in listed}
    assert not popular["products"][0]["tail"]
    assert client.get("/v1/products", params={"query": "ea"}).json()["total"] == 0
    assert client.get("/v1/products", params={"query": "."}).json()["total"] == 400
    assert client.get("/v1/products", params={"limit": 51}).status_code == 422
    assert client.get("/v1/products", params={"query": "x" * 201}).status_code == 422


def test_what_is_written_alike_is_found_alike(tmp_path: Path) -> None:
    # An accent as a character of its own (as macOS types it), letters as wide as Chinese ones.
    titles = ["Caf\u00e9", "Cafe\u0301", "TEA", "\uff34\uff25\uff21", "Stra\u00dfe"]
    frame = products(60).assign(title=[*titles, *(f"Product {i}" for i in range(55))])
    make_place(tmp_path, frame=frame.assign(category=[f"c{i % 2}" for i in range(60)]))
    where = ServeSettings(registry=str(tmp_path / "registry"), catalogue=tmp_path / "catalogue")
    page = Local(rest_app(make_service(where)))
    for query, rows in (
        *((text, {0, 1}) for text in ("caf\u00e9", "cafe\u0301", "CAFE\u0301")),
        *((text, {2, 3}) for text in ("tea", "\uff54\uff45\uff41", "tea TEA")),
        ("STRASSE", {4}),
    ):
        found = page.get("/v1/products", params={"query": query}).json()["products"]
        assert {int(one["item_id"][1:]) for one in found} == rows, query


def test_a_word_that_is_said_a_hundred_times_is_looked_for_once() -> None:
    # Of 200 characters that a question may have, a hundred words took as many passes.
    looked: list[str] = []

    class Text(str):
        def __contains__(self, word: object) -> bool:
            looked.append(str(word))
            return super().__contains__(str(word))

    words = served().words
    words = dataclasses.replace(words, texts=[Text(text) for text in words.texts])
    assert len(words.find("c1 " * 60))
    assert len(looked) == len(words.texts)


def test_a_model_that_is_switched_to_has_its_texts_already(monkeypatch: pytest.MonkeyPatch) -> None:
    # Put together by the first search, they kept all searches waiting: 0.2 s at 20,000 products.
    model = served()
    monkeypatch.setattr(Words, "of", lambda *_: pytest.fail("while somebody waits"))
    assert find(model, "c1", 5).total


@pytest.mark.parametrize(("bought", "words"), [(8, "1 smaller part"), (9, "2 smaller parts")])
def test_one_part_that_is_left_is_not_spoken_of_as_many(bought: int, words: str) -> None:
    history = {f"p{row:04d}": 1.0 for row in range(bought)}
    found = reasons_of("p0100", served().explain("p0100", history, {}))
    assert found.parts[-1].label == words


def test_what_a_path_does_not_take_is_refused(client: Local) -> None:
    # With ?q=milk the most popular products were taken for what had been found.
    for found in (
        client.get("/v1/products", params={"q": "milk"}),
        client.post("/v1/recommend", params={"k": 5}, json={}),
    ):
        assert found.status_code == 422
        assert "there is no such field" in found.json()["error"]
    assert "query.q" in client.get("/v1/products?q=milk").json()["error"]


def test_a_path_with_a_slash_too_many_leads_nowhere(client: Local) -> None:
    # The redirection named plain http, whatever a proxy in front speaks, and keys went along.
    found = client.get("/v1/models/")
    assert (found.status_code, found.json()) == (404, {"error": "Not Found"})


def test_the_document_says_in_which_form_health_is_told(client: Local) -> None:
    told = client.get("/openapi.json").json()["paths"]["/healthz"]["get"]["responses"]
    assert {code: list(of["content"]) for code, of in told.items()} == {
        "200": ["text/plain"],
        "503": ["text/plain"],
    }
    assert client.get("/healthz").headers["content-type"].startswith("text/plain")
    assert "500" in client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["responses"]


def test_the_document_names_503_where_there_is_no_answer_without_a_model() -> None:
    # It stood with every path, of which some answer all the same.
    host = cast(Host, SimpleNamespace(ready=False, records=list, pinned=lambda: None))
    waiting = Local(rest_app(Service(host, Metrics(host), RateLimit(1e6, 1e6))))
    bodies = {"similar": {"item_id": "a"}, "explain": {"item_id": "a"}, "batch": {"requests": [{}]}}
    for path, operations in waiting.get("/openapi.json").json()["paths"].items():
        ((method, operation),) = operations.items()
        place = path.replace("{version}", "0")
        body = bodies.get(path.rpartition("/")[2], {})
        found = waiting.get(place) if method == "get" else waiting.post(place, json=body)
        assert str(found.status_code) in operation["responses"], path
        assert ("503" in operation["responses"]) == (found.status_code == 503), path


def test_numbers_are_the_same_over_both_interfaces() -> None:
    # Fifteen digits are not all that a number of 32 bits, or a sum, has.
    told = _texts({"weight": float(np.float32(9.99)), "price": 0.1 + 0.2, "size": 4.99})
    assert told == {"weight": "9.989999771118164", "price": "0.30000000000000004", "size": "4.99"}


def test_choices_are_what_filters_take(client: Local, place: Place) -> None:
    found = client.get("/v1/choices").json()
    products = place.catalogue.products
    counts = products["category"].value_counts()
    assert found["categories"] == [
        {"value": value, "products": int(counts[value])} for value in sorted(counts.index)
    ]
    assert [one["value"] for one in found["brands"]] == ["A", "B"]
    assert found["prices"] == {"low": products["price"].min(), "high": products["price"].max()}
    assert found["shops"] == ["corner", "market"]
    assert found["behaviors"]["view"] < found["behaviors"]["purchase"] == 1.0


def test_what_is_listed_no_more_is_nothing_to_filter_by(tmp_path: Path) -> None:
    frame = products(60)
    frame["category"] = ["milk"] * 30 + ["bread"] * 29 + ["gone"]
    frame["price"] = [2.0] * 59 + [99.0]
    frame[RETIRED] = [k < 10 or k == 59 for k in range(60)]
    place = make_place(tmp_path, frame=frame)
    where = ServeSettings(
        registry=str(tmp_path / "registry"), catalogue=tmp_path / "catalogue", stock=None
    )
    model = make_service(where).model()
    found = choices(model)
    told = {choice.value: choice.products for choice in found.categories}
    assert told == {"milk": 20, "bread": 29}
    assert found.prices == PriceBand(low=2.0, high=2.0)
    for value, count in told.items():
        assert len(model.recommend(Query(k=60, filters=Filters(category=value))).item_ids) == count
    assert place.catalogue.size == 60


def test_whole_numbers_are_whole_in_a_column_that_lacks_some(tmp_path: Path) -> None:
    brand: list[Any] = [69 if k % 3 else None for k in range(60)]
    aisle: list[Any] = [7 if k % 3 else None for k in range(60)]
    frame = (
        products(60)
        .drop(columns=["title", "brand", "category", "price"])
        .assign(
            brand=brand,
            category=[12.5 if k % 2 else 12.0 for k in range(60)],
            aisle=pd.array(aisle, dtype="Int64"),
            gtin=[9_007_199_254_740_993 + k for k in range(60)],
            far=1e300,
            organic=True,
        )
    )
    assert frame["brand"].dtype == float
    make_place(tmp_path, frame=frame)
    where = ServeSettings(
        registry=str(tmp_path / "registry"), catalogue=tmp_path / "catalogue", stock=None
    )
    service = make_service(where)
    asked, model = RecommendRequest(k=50), service.model()
    reply = fill(wire.RecommendResponse(), model, model.recommend(asked.query()))
    items = json.loads(recommend(model, asked).model_dump_json())["items"]
    for over_rest, over_grpc in zip(items, reply.items, strict=True):
        row = int(over_rest["item_id"][1:])
        known: dict[str, Any] = {"gtin": 9_007_199_254_740_993 + row, "far": 1e300, "organic": 1}
        known |= {"brand": 69, "aisle": 7} if row % 3 else {"brand": None, "aisle": None}
        known |= {"category": 12.5 if row % 2 else 12}
        # Read from JSON, 69.0 is a float and would be shown as one.
        assert {name: repr(value) for name, value in over_rest["product"].items()} == {
            name: repr(value) for name, value in known.items()
        }
        told = {name: f"{value:.15g}" for name, value in known.items() if value is not None}
        assert dict(over_grpc.product) == {**told, "gtin": str(known["gtin"])}
    page = Local(rest_app(service))
    found = page.get("/v1/products", params={"query": "69 12", "limit": 50}).json()
    assert {one["product"]["brand"] for one in found["products"]} == {69}
    offered = page.get("/v1/choices").json()
    assert [choice["value"] for choice in offered["brands"]] == ["69"]
    assert [choice["value"] for choice in offered["categories"]] == ["12", "12.5"]
    body = {"k": 50, "filters": {"brand": "69", "category": "12"}}
    listed = page.post("/v1/recommend", json=body).json()["items"]
    assert len(listed) == sum(row % 3 != 0 and row % 2 == 0 for row in range(60))
    assert "12" in page.get("/v1/models/0/map").json()["titles"]


def test_released_figures_are_of_all_shops_together(client: Local) -> None:
    found = client.get("/v1/evaluations").json()["evaluations"]
    assert [one["version"] for one in found] == [3, 2, 1]
    assert [one["released"] is None for one in found] == [True, False, True]
    assert found[1]["released"]["shops"] == 2
    assert "north" not in json.dumps(found)


def test_a_report_is_told_without_its_shops(client: Local, place: Place) -> None:
    written = json.loads((place.root / "report.json").read_text(encoding="utf-8"))
    told = client.get("/v1/report").json()["report"]
    assert told["arms"]["federated-dp"]["metrics"] == written["arms"]["federated-dp"]["metrics"]
    assert told["arms"]["local"]["quintiles"] == written["arms"]["local"]["quintiles"]
    assert told["rounds"]["federated"][1]["ndcg@20"] == pytest.approx(0.12)
    assert set(told["arms"]["local"]) == {
        "metrics", "quintiles", "vs_local", "level_share", "privacy",
    }  # fmt: skip
    assert client.get("/v1/about").json() == {"where": "federation", "merchant_id": None}


def test_figures_over_several_draws_are_told_as_the_answer_judges_them(tmp_path: Path) -> None:
    # Else the served page says .0917 of an arm where the report's own says .0915.
    *others, private = whole_run().arms
    further = [{key: sums(np.full(40, 0.1), 0.01) for key in private.shops}]
    run = run_of(*others, dataclasses.replace(private, further_draws=further))
    written = build_report(run)
    (tmp_path / "report.json").write_text(to_json(written), encoding="utf-8")
    told = read_report(tmp_path / "report.json").arms["federated-dp"]
    first = written["arms"]["federated-dp"]
    assert told == ReportArm.model_validate({**shown(first), "draws": None})
    assert told.metrics != first["metrics"]


def test_a_shop_says_that_it_is_one(place: Place) -> None:
    about = About(where="shop", merchant_id="corner")
    client = Local(rest_app(make_service(settings(place)), about))
    assert client.get("/v1/about").json() == {"where": "shop", "merchant_id": "corner"}
    assert client.get("/v1/report").json() == {"report": None}
    assert "page/app.js" in client.get("/").text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("{}", "is no report of a simulation: seed"),
        ("[", "is no report of a simulation"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        about_from(path)
