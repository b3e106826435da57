"""Both interfaces over a real process: the same answers, clear refusals, nothing of content out."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli_support import status_of
from client.__main__ import app as client_app
from common.artifact import load_model, save_model
from common.errors import ConfigError, InputError, UnavailableError
from query_support import Place, Running, make_place, running
from registry_support import PRIVACY as WHOLE
from server.__main__ import app
from server.operating.authority import make_authority
from server.query.client import Client
from server.query.registry_service import ServeSettings, find_catalogue, make_service
from server.query.requests import RecommendRequest
from server.query.security import Keys
from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc

pytestmark = pytest.mark.e2e
SECRET = "p0003-secret-taste"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Running]:
    with running(place) as found:
        yield found


@pytest.fixture(scope="module")
def keyed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A service that wants a key, and one that it knows."""
    keys = tmp_path_factory.mktemp("keyed") / "keys.json"
    key = Keys(keys).add("till")
    with running(place, "--keys", str(keys)) as found:
        yield found, key


@pytest.fixture
def rest(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.rest, timeout=30) as client:
        yield client


@pytest.fixture
def stub(service: Running) -> Iterator[Any]:
    with grpc.insecure_channel(service.grpc) as channel:
        yield wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]


def test_rest_and_grpc_answer_alike(rest: httpx.Client, stub: Any) -> None:
    body = {"history": [{"item_id": "p0003"}, {"item_id": "p0100", "weight": 0.5}], "k": 7}
    over_rest = rest.post("/v1/recommend", json=body).raise_for_status().json()
    over_grpc = stub.Recommend(
        wire.RecommendRequest(
            history=[
                wire.HistoryProduct(item_id="p0003"),
                wire.HistoryProduct(item_id="p0100", weight=0.5),
            ],
            k=7,
        )
    )
    ids = [item["item_id"] for item in over_rest["items"]]
    assert ids == [item.item_id for item in over_grpc.items]
    assert len(ids) == 7
    assert [item["score"] for item in over_rest["items"]] == [i.score for i in over_grpc.items]
    assert over_grpc.items[0].product["title"].startswith("Product ")
    assert over_rest["items"][0]["product"]["price"] > 0


def test_reasons_add_up_over_the_wire(rest: httpx.Client) -> None:
    body = {"history": [{"item_id": f"p{i:04d}"} for i in range(0, 300, 11)], "reasons": True}
    for item in rest.post("/v1/recommend", json=body).json()["items"]:
        parts = [part["value"] for part in item["reasons"]["parts"]]
        assert sum(parts) == pytest.approx(item["reasons"]["score"], rel=1e-9, abs=1e-9)
        assert item["reasons"]["score"] == pytest.approx(item["score"], rel=1e-4, abs=1e-4)


def test_a_batch_is_answered_by_one_version(rest: httpx.Client) -> None:
    one = {"history": [{"item_id": "p0009"}], "k": 3}
    found = rest.post("/v1/recommend/batch", json={"requests": [one, {"k": 2}]}).json()
    assert [len(answer["items"]) for answer in found["responses"]] == [3, 2]
    assert {answer["version"] for answer in found["responses"]} == {found["version"]}
    alone = rest.post("/v1/recommend", json=one).json()
    assert found["responses"][0] == alone


def test_models_and_their_promise_can_be_read(rest: httpx.Client, stub: Any) -> None:
    listed = rest.get("/v1/models").json()["models"]
    assert listed[0]["private"]
    assert listed[0]["served"]
    promise = rest.get("/v1/models/0/privacy").json()
    assert promise["words"].startswith("Privacy: epsilon")
    over_grpc = stub.Privacy(wire.PrivacyRequest())
    assert over_grpc.statement == promise["words"]
    assert json.loads(over_grpc.statement_json)["epsilon"] == listed[0]["epsilon"]
    assert MessageToDict(stub.ListModels(wire.ListModelsRequest()))["models"][0]["version"] == 1
    assert rest.get("/v1/models/99/privacy").status_code == 404


@pytest.mark.parametrize(
    "odd",
    [
        {"private": True},
        WHOLE | {"epsilon": "four"},
        WHOLE | {"epsilon": True},
        WHOLE | {"epsilon": 10**400},
        WHOLE | {"accountant": "prv"},
    ],
)
def test_what_force_published_is_told_of_as_far_as_it_goes(
    tmp_path: Path, odd: dict[str, Any]
) -> None:
    place = make_place(tmp_path)
    first = load_model(tmp_path / "model-1")
    manifest = first.manifest.model_copy(update={"privacy": odd})
    save_model(tmp_path / "odd", first.arrays, first.item_ids, manifest)
    place.registry.publish(tmp_path / "odd", force=True)
    assert status_of(app, "registry", "list", tmp_path / "registry") == 0
    assert status_of(app, "registry", "show", tmp_path / "registry") == 0
    settings = ServeSettings(registry=str(tmp_path / "registry"), catalogue=tmp_path / "catalogue")
    service = make_service(settings)
    assert [found.version for found in service.models().models] == [2, 1]
    found = service.privacy(0)
    assert found["statement"] == odd
    assert "statement is incomplete" in found["words"]


LONG = {"history": [{"item_id": "p0001"}] * 10_000, "k": 1000, "reasons": True}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/recommend", {"k": -1}, "k: "),
        ("/v1/recommend", {"k": 10**9}, "k: "),
        ("/v1/recommend", {"tail_dial": 2}, "tail_dial"),
        ("/v1/recommend", {"history": [{"item_id": "p1", "weight": -1}]}, "weight"),
        ("/v1/recommend", {"filters": {"category": "nothing"}}, "category"),
        ("/v1/recommend", {"filters": {"price_from": 3, "price_to": 2}}, "price_from"),
        ("/v1/recommend", {"filters": {"price_from": 3, "price_to": 2}}, "filters: price_from"),
        ("/v1/recommend", {"histroy": []}, "histroy: there is no such field"),
        # In words of JSON, not of Python.
        ("/v1/recommend", {"history": ["p1"]}, "history.0: should be an object"),
        ("/v1/recommend", {"history": {"p1": 1}}, "history: should be a list"),
        ("/v1/recommend", {"history": [{"item_id": "p"}] * 10_001}, "more than 10000 entries"),
        # Each pair of a product and one of the history is a part: ten million take a minute.
        ("/v1/recommend", LONG, "more than 200000 parts"),
        ("/v1/recommend/batch", {"requests": [{**LONG, "k": 11}] * 2}, "more than 200000 parts"),
        ("/v1/recommend/batch", {"requests": []}, "requests: needs 1 at least"),
        ("/v1/recommend", {"user_id": "u1"}, "ask at the shop"),
        ("/v1/explain", {"item_id": "p0001", "user_id": "u1"}, "ask at the shop"),
        ("/v1/similar", {"item_id": "nothing"}, "no product"),
        ("/v1/similar", {}, "item_id"),
        ("/v1/recommend/batch", {"requests": []}, "requests"),
    ],
)
def test_what_is_wrong_is_named(rest: httpx.Client, path: str, body: Any, words: str) -> None:
    answer = rest.post(path, json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_a_body_that_is_no_json_is_told_so_and_where(rest: httpx.Client) -> None:
    # "7: JSON decode error" looked like a field called 7.
    headers = {"content-type": "application/json"}
    answer = rest.post("/v1/recommend", content=b'{"k": 1', headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"] == "request: is no JSON from character 8 on"


def test_a_body_that_does_not_say_that_it_is_json_is_told_so(rest: httpx.Client) -> None:
    # What curl -d sends by itself: the text spoke of "a valid dictionary".
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = rest.post("/v1/recommend", content=b'{"k": 2}', headers=kind)
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/v1/nothing"])
def test_head_is_answered_as_get_without_a_body(rest: httpx.Client, path: str) -> None:
    # Monitors ask like that, and took 405 for a service that is down.
    head, get = rest.head(path), rest.get(path)
    assert head.status_code == get.status_code
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.content == b""


def test_large_and_broken_bodies_are_refused(rest: httpx.Client) -> None:
    assert rest.post("/v1/recommend", content=b"x" * (10 * 2**20)).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(10):
            yield b"[" * 2**20

    assert rest.post("/v1/recommend", content=endless()).status_code == 413
    many = {"history": [{"item_id": "p0001"}] * 50_000}
    assert rest.post("/v1/recommend", json=many).status_code in (413, 422)
    assert rest.post("/v1/recommend", content=b"{").status_code == 422
    assert rest.post("/v1/recommend", json={"history": [{"item_id": "x" * 300}]}).status_code == 422
    assert rest.get("/v1/nothing").status_code == 404
    assert rest.get("/healthz").text == "ok\n"


def test_grpc_refuses_with_its_own_codes(stub: Any) -> None:
    for request, code in (
        (wire.RecommendRequest(k=-1), grpc.StatusCode.INVALID_ARGUMENT),
        (
            wire.RecommendRequest(history=[wire.HistoryProduct(item_id="x" * (5 * 2**20))]),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            stub.Recommend(request)
        assert failure.value.code() == code
    with pytest.raises(grpc.RpcError) as failure:
        # Long past: gRPC counts in milliseconds, and an answer may take less than one.
        stub.Recommend(wire.RecommendRequest(), timeout=-1.0)
    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_health_and_reflection_are_there(service: Running) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    with grpc.insecure_channel(service.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "fedtail.v1.Recommender" in names


def test_nothing_of_a_request_is_logged_or_counted(rest: httpx.Client, service: Running) -> None:
    body = {"history": [{"item_id": SECRET}], "attributes": {"age": SECRET}}
    assert rest.post("/v1/recommend", json=body).status_code == 200
    assert rest.post("/v1/recommend", json={**body, SECRET: 1}).status_code == 422
    assert rest.post("/v1/similar", json={"item_id": SECRET}).status_code == 422
    metrics = rest.get("/metrics").text
    assert 'fedtail_requests_total{interface="rest",method="similar"' in metrics
    assert SECRET not in metrics
    log = "".join(service.log)
    assert "interface=rest method=recommend status=ok" in log
    # Without its time a line is of no use to whoever is called in the night.
    lines = [line for line in service.log if "interface=rest" in line]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} INFO ", line) for line in lines)
    assert "p0003" not in log
    assert "Traceback" not in log


def test_keys_and_rates(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = Keys(keys).add("shop-a")
    assert key not in keys.read_text()
    with running(place, "--keys", str(keys), "--rate", "0.001", "--burst", "5") as service:
        with httpx.Client(base_url=service.rest) as client:
            answer = client.post("/v1/recommend", json={})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            good = {"Authorization": f"Bearer {key}"}
            assert client.post("/v1/recommend", json={}, headers=good).status_code == 200
            assert client.get("/healthz").status_code == 200
            batch: dict[str, Any] = {"requests": [{}] * 10}
            assert client.post("/v1/recommend/batch", json=batch, headers=good).status_code == 429
            Keys(keys).remove("shop-a")
            assert client.post("/v1/recommend", json={}, headers=good).status_code == 401
            Keys(keys).add("shop-b")
            codes = [client.post("/v1/recommend", json={}).status_code for _ in range(6)]
            assert codes[-1] == 429
        with grpc.insecure_channel(service.grpc) as channel:
            stub = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.RpcError) as failure:
                stub.Recommend(wire.RecommendRequest())
            assert failure.value.code() in (
                grpc.StatusCode.UNAUTHENTICATED,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_a_key_is_read_alike_over_both_interfaces(scheme: str, keyed: tuple[Running, str]) -> None:
    service, key = keyed
    words = f"{scheme} {key}"  # Case and spaces say nothing: RFC 9110, 11.1.
    headers = {"Authorization": words}
    assert httpx.get(f"{service.rest}/v1/models", headers=headers).status_code == 200
    with grpc.insecure_channel(service.grpc) as channel:
        asked: Any = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        answer = asked.ListModels(
            wire.ListModelsRequest(), metadata=(("authorization", words),), timeout=30
        )
    assert answer.models


def test_a_new_version_is_taken_and_a_damaged_one_refused(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with (
        running(place) as service,
        httpx.Client(base_url=service.rest, timeout=30) as client,
    ):

        def version_becomes(wanted: int) -> bool:
            for _ in range(100):
                if client.post("/v1/recommend", json={}).json()["version"] == wanted:
                    return True
                time.sleep(0.1)
            return False

        place.publish(2)
        assert version_becomes(2)
        before = client.post("/v1/recommend", json={"k": 5}).json()
        version = place.publish(3)
        damaged = place.root / "registry" / "models"
        folder = damaged / place.registry.record(version).folder
        # Damaged before it was looked at or after: version 2 or 3 is served, never a mixture.
        (folder / "model.safetensors").write_bytes(b"rubbish")
        place.registry.pin(2)
        assert version_becomes(2)
        assert client.post("/v1/recommend", json={"k": 5}).json() == before
        assert client.get("/metrics").text.count("fedtail_model_version 2.0") == 1


@pytest.mark.parametrize("name", ["requirements.json", "requirements.lock"])
def test_a_key_that_is_made_takes_nothing_else_away(tmp_path: Path, name: str) -> None:
    beside = tmp_path / ("requirements.lock" if name.endswith("json") else "requirements.txt")
    beside.write_text("numpy==2")
    keys = Keys(tmp_path / name)
    made = {keys.add(holder): holder for holder in ("till", "page")}
    assert {key: keys.name_of(key) for key in made} == made
    assert beside.read_text() == "numpy==2"


def test_keys_that_cannot_be_looked_at_are_the_service_s_own_trouble(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    keys = Keys(folder / "keys.json")
    key = keys.add("till")
    assert keys.name_of(key) == "till"
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(ConfigError, match=r"cannot read the keys in .*: Not a directory"):
        keys.name_of(key)


@pytest.mark.parametrize("name", ["laden²", "магазин", "½"])
def test_a_name_that_python_takes_for_one_of_letters_names_a_key(tmp_path: Path, name: str) -> None:
    keys = Keys(tmp_path / "keys.json")
    assert keys.name_of(keys.add(name)) == name
    keys.remove(name)
    assert keys.list() == ()


def test_a_service_without_any_key_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A misspelt file counts as one that is still to be made.
    make_place(tmp_path)
    settings = ServeSettings(
        registry=str(tmp_path / "registry"),
        catalogue=tmp_path / "catalogue",
        keys=tmp_path / "key.json",
    )
    make_service(settings)
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "key.json holds no key yet" in said
    (tmp_path / "key.json").write_text("no keys")
    with pytest.raises(ConfigError, match="is not a file of keys"):
        make_service(settings)


@pytest.mark.parametrize("pair", [("one.crt", "other.key"), ("one.key", "one.crt")])
def test_a_certificate_and_a_key_that_do_not_belong_together_are_named(
    place: Place, tmp_path: Path, pair: tuple[str, str]
) -> None:
    for name in ("one", "other"):
        key, certificate = make_authority(name)
        (tmp_path / f"{name}.key").write_bytes(key)
        (tmp_path / f"{name}.crt").write_bytes(certificate)
    first, second = (str(tmp_path / name) for name in pair)
    command = [sys.executable, "-m", "server", "serve", str(place.root / "registry")]
    command += ["--catalogue", str(place.root / "catalogue"), "--port", "0", "--grpc-port", "0"]
    command += ["--tls-cert", first, "--tls-key", second]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"{first} and {second} are no certificate with its own private key" in done.stderr
    assert "is it taken" not in done.stderr


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(
    place: Place, option: str, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # gRPC listened at another one in its place: 65536 less.
    served = (place.root / "registry", "--catalogue", place.root / "catalogue")
    for command in ((app, "serve", *served), (client_app, "serve", place.root)):
        assert status_of(*command, option, port) == 2
        assert "is not in the range 0<=x<=65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    "listed", ['{"corner": "p0003"}', '{"corner": {"p0003": 1}}', "[]", "{", "[" * 10_000]
)
def test_a_stock_of_another_form_is_refused(place: Place, tmp_path: Path, listed: str) -> None:
    stock = tmp_path / "stock.json"
    find = find_catalogue(place.root / "catalogue", stock)
    stock.write_text('{"corner": ["p0003", "p9999"], "harbour": []}')
    known = find(place.catalogue.fingerprint)[1]
    assert {shop: rows.tolist() for shop, rows in known.items()} == {"corner": [3], "harbour": []}
    stock.write_text(listed)
    with pytest.raises(ConfigError, match="is not JSON of merchant_id -> item_ids"):
        find(place.catalogue.fingerprint)


def test_a_port_that_is_taken_is_an_error_of_one_line(place: Place, service: Running) -> None:
    port = service.rest.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "server", "serve", str(place.root / "registry")]
    command += ["--catalogue", str(place.root / "catalogue"), "--grpc-port", "0", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "cannot listen on" in done.stderr
    assert "Traceback" not in done.stderr
    command = [*command[:-1], "0", "--host", "192.0.2.7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "or no address of this machine" in done.stderr


def test_what_of_a_history_is_unknown_is_told_of_one_product_as_of_a_list(
    service: Running,
) -> None:
    """A reason said nothing of a mistyped product: it was that of another history."""
    history = {"p0003": 1.0, "p003": 1.0}
    for url in (service.rest, f"grpc://{service.grpc}"):
        with Client(url) as client:
            assert client.recommend(history).unknown_items == ("p003",)
            assert client.explain("p0100", history).unknown_items == ("p003",)
            assert client.explain("p0100", {"p0003": 1.0}).unknown_items == ()
    command = [sys.executable, "-m", "server", "query", *history, "--explain", "p0100"]
    done = subprocess.run(
        [*command, "--url", service.rest], capture_output=True, text=True, timeout=60, check=True
    )
    assert "not in the catalogue: p003" in done.stdout


def test_the_client_library_and_the_command_line_ask_alike(service: Running) -> None:
    command = [sys.executable, "-m", "server", "query", "p0003", "p0100=0.5", "-k", "5"]
    done = subprocess.run(
        [*command, "--url", service.rest, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    with Client(service.rest) as client:
        answer = client.recommend({"p0003": 1.0, "p0100": 0.5}, k=5)
        assert json.loads(done.stdout) == answer.model_dump(mode="json")
        batch = client.recommend_batch([RecommendRequest(k=2)])
        assert len(batch.responses[0].items) == 2
        assert client.explain(answer.items[0].item_id, {"p0003": 1.0}).parts
        assert client.models().models[0].version == answer.version
        assert len(client.similar("p0003", k=4).items) == 4
        with pytest.raises(InputError, match="no product"):
            client.similar("nothing")
        with pytest.raises(InputError, match="k: "):
            client.recommend(k=-1)
    # A product that is named twice counts with both weights, as in a request.
    twice = [*command[:4], "p0003=0.5", "p0003", "p0100=0.5", "-k", "5", "--url", service.rest]
    done = subprocess.run(
        [*twice, "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    with Client(service.rest) as client:
        answer_of_both = client.recommend({"p0003": 1.5, "p0100": 0.5}, k=5)
    assert json.loads(done.stdout) == answer_of_both.model_dump(mode="json")
    with Client("http://127.0.0.1:9", timeout=1) as client, pytest.raises(UnavailableError):
        client.models()
    table = subprocess.run(
        [*command, "--url", service.rest, "--why"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert answer.items[0].item_id in table
    assert "because of p0003" in table or "how popular" in table
