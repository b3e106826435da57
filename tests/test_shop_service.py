"""A shop's own service: a real process over the shop's own data, asked over REST and gRPC.

What it answers is held to ``python -m client recommend``, which :mod:`test_home` holds to the
model.
"""

import errno
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import psycopg
import pytest

import postgres_support
from cli_support import status_of
from client.__main__ import app
from client.data import source as home_source
from client.home import host as home_host
from client.home.adapted_state import FACTS, STATE, read_facts
from client.home.adapting import adapt
from client.home.answers import HomeAnswers
from client.home.host import HomeHost
from client.home.recommending import Request, recommend
from client.shop_folder import ShopFolder
from common.errors import ArtifactError, InputError, UnavailableError
from common.protocol import ModelPlan
from common.queries.asking import Query
from home_support import START, HomeShop, N, purchases
from query_support import Running, started
from server.query.browsing import find
from server.query.client import Client
from server.query.product_map import ProductMap, map_products
from server.query.security import Keys
from server.query.viewing import Views, map_body
from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc

pytestmark = pytest.mark.e2e
#: All parts that a shop's mixture may have.
EVERY_PART = (
    "[home.mixed]\nown_expectation = 0.5\n[home.mixed.start]\ncontent = 0.4\n"
    "shared_ease = 1.0\nown_ease = 0.3\nown_learned = 0.5\nlearned = 0.3\n"
    "popularity = 0.1\nown_popularity = 0.2\n"
)
DATABASE = (
    '[database.interactions]\ntable = "orders"\n'
    'columns = { user_id = "who", item_id = "item", timestamp = "at" }\n'
    'constants = { behavior = "purchase" }\n'
)


@contextmanager
def serving(shop: HomeShop, *arguments: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "client", "serve", str(shop.folder), *arguments]
    with started(command) as found:
        yield found


@contextmanager
def asking(service: Running) -> Iterator[Callable[..., Any]]:
    """Yield what posts to the service and returns the answer's document."""
    with httpx.Client(base_url=service.rest, timeout=30) as client:

        def post(path: str = "recommend", **body: Any) -> Any:
            return client.post(f"/v1/{path}", json=body).raise_for_status().json()

        yield post


def made(root: Path, text: str = EVERY_PART) -> HomeShop:
    shop = HomeShop(root)
    shop.configure(text)
    shop.model()
    shop.sell(purchases())
    return shop


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> HomeShop:
    shop = made(tmp_path_factory.mktemp("served-shop"))
    adapt(shop.path, shop.settings)
    return shop


@pytest.fixture(scope="module")
def service(adapted: HomeShop) -> Iterator[Running]:
    with serving(adapted) as found:
        yield found


def expected(shop: HomeShop, **fields: Any) -> dict[str, Any]:
    return recommend(shop.path, shop.settings, Request(**fields))


def same(answer: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether both list the same products with the very same scores."""
    listed = [(item["rank"], item["item_id"], item["score"]) for item in answer["items"]]
    others = [
        (item["rank"], item["item_id"], item["score"]) for item in document["recommendations"]
    ]
    return listed == others and bool(listed)


# --- the same answers ------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["u00", "u03", "u17", "nobody"])
@pytest.mark.parametrize("dial", [0.0, 0.4, 1.0])
def test_answers_are_those_of_the_command_line(
    adapted: HomeShop, service: Running, user: str, dial: float
) -> None:
    with asking(service) as ask:
        answer = ask(user_id=user, k=12, tail_dial=dial)
    document = expected(adapted, user_id=user, count=12, tail_dial=dial)
    assert same(answer, document)
    assert answer["known_customer"] == document["known"] == (user != "nobody")
    assert answer["notes"] == document["notes"]
    assert answer["adapted_at"] == document["model"]["fitted_at"]


def test_the_command_itself_prints_what_the_service_answers(
    adapted: HomeShop, service: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(app, "recommend", adapted.path, "--user", "u05", "-k", "7", "--json") == 0
    with asking(service) as ask:
        assert same(ask(user_id="u05", k=7), json.loads(capsys.readouterr().out))


def test_a_guest_is_answered_as_on_the_command_line(adapted: HomeShop, service: Running) -> None:
    with asking(service) as ask:
        answer = ask(history=[{"item_id": "i03"}, {"item_id": "i08"}, {"item_id": "what"}], k=9)
        assert same(answer, expected(adapted, history=("i03", "i08"), count=9))
        assert answer["unknown_items"] == ["what"]
        why = ask("explain", item_id="i10", history=[{"item_id": "i03"}, {"item_id": "what"}])
        assert why["unknown_items"] == ["what"]
        for kind in range(5):
            # Of its kind, whatever sells best.
            alike = ask("similar", item_id=f"i{10 + kind}", k=1)["items"]
            assert {int(item["item_id"][1:]) % 5 for item in alike} == {kind}
            assert f"i{10 + kind}" not in {item["item_id"] for item in alike}
        one = {"user_id": "u03", "k": 4}
        batch = ask("recommend/batch", requests=[one, {"k": 3}])
        assert batch["responses"][0] == ask(**one)


def test_grpc_answers_as_rest_does(service: Running) -> None:
    with asking(service) as ask, grpc.insecure_channel(service.grpc) as channel:
        stub: Any = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        over_rest = ask(user_id="u03", k=5, reasons=True)
        over_grpc = stub.Recommend(wire.RecommendRequest(user_id="u03", k=5, reasons=True))
        assert [i.item_id for i in over_grpc.items] == [i["item_id"] for i in over_rest["items"]]
        assert [i.score for i in over_grpc.items] == [i["score"] for i in over_rest["items"]]
        assert over_grpc.known_customer
        assert over_grpc.adapted_at == over_rest["adapted_at"]
        first = over_grpc.items[0]
        alone = stub.Explain(wire.ExplainRequest(item_id=first.item_id, user_id="u03"))
        assert alone == wire.Explained.FromString(first.reasons.SerializeToString())


def test_reasons_name_every_part_and_add_up(adapted: HomeShop, service: Running) -> None:
    with asking(service) as ask:
        answer = ask(user_id="u03", k=20, reasons=True)
        document = expected(adapted, user_id="u03", count=20, why=True)
        assert same(answer, document)
        kinds = set()
        for item, entry in zip(answer["items"], document["recommendations"], strict=True):
            reasons = item["reasons"]
            values = [part["value"] for part in reasons["parts"]]
            assert sum(values) == pytest.approx(reasons["score"], rel=1e-9, abs=1e-9)
            size = sum(abs(part["value"]) for part in entry["reasons"])
            assert reasons["score"] == pytest.approx(item["score"], abs=2e-5 * size)
            kinds |= {part["kind"] for part in entry["reasons"]}
        assert {"neighbours", "popularity", "history-content"} <= kinds
        # Somebody without a history gets what sells, here and everywhere: two parts, all named.
        for item in ask(user_id="nobody", k=5, reasons=True)["items"]:
            parts = {part["label"]: part["value"] for part in item["reasons"]["parts"]}
            assert set(parts) == {"at this shop", "everywhere"}
            assert sum(parts.values()) == pytest.approx(item["score"], rel=1e-5)


def test_a_basket_counts_beside_what_the_shop_knows(service: Running) -> None:
    with asking(service) as ask:
        plain = ask(user_id="u03", k=N)
        first = plain["items"][0]["item_id"]
        more = ask(user_id="u03", history=[{"item_id": first}], k=N)
        assert first not in [item["item_id"] for item in more["items"]]
        scores = {item["item_id"]: item["score"] for item in plain["items"]}
        assert any(item["score"] != scores[item["item_id"]] for item in more["items"])


def test_filters_hold_and_only_the_own_shop_can_be_named(service: Running) -> None:
    with asking(service) as ask, httpx.Client(base_url=service.rest) as client:
        plain = [item["item_id"] for item in ask(user_id="u03", k=8)["items"]]
        filters = {"exclude": plain[:2], "merchant_id": "corner"}
        kept = [item["item_id"] for item in ask(user_id="u03", k=6, filters=filters)["items"]]
        assert kept == plain[2:]
        wrong = {"user_id": "u03", "filters": {"merchant_id": "other"}}
        answer = client.post("/v1/recommend", json=wrong)
        assert answer.status_code == 422
        assert "no stock is known of a shop 'other'" in answer.json()["error"]


def test_the_page_is_told_whose_service_it_is(service: Running) -> None:
    with httpx.Client(base_url=service.rest) as client:
        about = client.get("/v1/about").json()
        assert (about["where"], about["merchant_id"]) == ("shop", "corner")
        models = client.get("/v1/models").json()["models"]
        assert [(m["version"], m["name"], m["served"]) for m in models] == [(1, "run-1", True)]
        assert client.get("/v1/models/0/privacy").json()["version"] == 1


# --- nothing leaves, nothing stays -----------------------------------------------------------


def test_only_this_machine_is_listened_to(adapted: HomeShop, service: Running) -> None:
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.Process(service.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1", "127.0.0.1"]
    command = [sys.executable, "-m", "client", "serve", str(adapted.folder), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--keys" in done.stderr
    # A page from elsewhere whose own name was made to point here.
    foreign = httpx.post(
        f"{service.rest}/v1/recommend", json={"user_id": "u03"}, headers={"Host": "shop.example"}
    )
    assert foreign.status_code == 400
    assert "items" not in foreign.text


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="IPv6 is off here")
def test_a_shop_is_asked_at_its_ipv6_address_too(adapted: HomeShop) -> None:
    with serving(adapted, "--host", "::1") as service:
        assert service.rest.startswith("http://[::1]:")
        for url in (service.rest, f"grpc://{service.grpc}"):
            with Client(url) as client:
                assert client.recommend(user_id="u03", k=3).known_customer
        foreign = httpx.get(f"{service.rest}/v1/models", headers={"Host": "[::2]:80"})
        assert foreign.status_code == 400


def test_keys_are_asked_for_where_there_are_some(adapted: HomeShop, tmp_path: Path) -> None:
    key = Keys(tmp_path / "keys.json").add("till")
    with serving(adapted, "--host", "0.0.0.0", "--keys", str(tmp_path / "keys.json")) as service:
        url = service.rest.replace("0.0.0.0", "127.0.0.1")
        assert httpx.post(f"{url}/v1/recommend", json={"user_id": "u03"}).status_code == 401
        good = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{url}/v1/recommend", json={"user_id": "u03"}, headers=good)
        assert answer.json()["known_customer"]


def test_nothing_of_content_is_logged_or_written(adapted: HomeShop, service: Running) -> None:
    def held() -> dict[str, float]:
        root = adapted.folder.parent
        return {str(path): path.stat().st_mtime for path in root.rglob("*")}

    before = held()
    with asking(service) as ask:
        ask(user_id="u21", k=5, reasons=True)
        ask(user_id="secret-person", history=[{"item_id": "i42"}], k=5)
        ask("explain", item_id="i07", user_id="u21")
    assert held() == before
    text = "".join(service.log)
    assert "method=recommend status=ok" in text
    for word in ("u21", "secret-person", "i42", "i07"):
        assert word not in text
    metrics = httpx.get(f"{service.rest}/metrics").text
    assert "secret-person" not in metrics


# --- at once ---------------------------------------------------------------------------------


class Orders:
    """The shop's orders, wherever they are kept."""

    def __init__(self, shop: HomeShop) -> None:
        self.shop = shop

    def buy(self, user: str, item: str) -> None:
        raise NotImplementedError


class InFiles(Orders):
    def buy(self, user: str, item: str) -> None:
        with (self.shop.folder / "data" / "interactions.csv").open("a") as file:
            file.write(f"{user},{item},{START},corner,purchase\n")


class InSqlite(Orders):
    def __init__(self, shop: HomeShop) -> None:
        super().__init__(shop)
        with sqlite3.connect(shop.folder / "shop.db") as database:
            database.execute("CREATE TABLE orders (who TEXT, item TEXT, at INTEGER)")
            database.executemany("INSERT INTO orders VALUES (?, ?, ?)", purchases())
        shop.configure(f'[database]\nurl = "sqlite:///shop.db"\n{DATABASE}', data=None)

    def buy(self, user: str, item: str) -> None:
        with sqlite3.connect(self.shop.folder / "shop.db") as database:
            database.execute("INSERT INTO orders VALUES (?, ?, ?)", (user, item, START))


class InPostgres(Orders):
    def __init__(self, shop: HomeShop, server: postgres_support.Postgres) -> None:
        super().__init__(shop)
        self._connection = psycopg.connect(server.url(), password=server.password, autocommit=True)
        self._connection.execute("CREATE TABLE orders (who TEXT, item TEXT, at BIGINT)")
        self._connection.execute("CREATE INDEX ON orders (who)")
        with self._connection.cursor() as cursor:
            cursor.executemany("INSERT INTO orders VALUES (%s, %s, %s)", purchases())
        password = f'password_env = "SHOP_PASSWORD"\n{DATABASE}'
        shop.configure(f'[database]\nurl = "{server.url()}"\n{password}', data=None)

    def buy(self, user: str, item: str) -> None:
        self._connection.execute("INSERT INTO orders VALUES (%s, %s, %s)", (user, item, START))

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(params=["folder", "sqlite", "postgres"])
def orders(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Orders]:
    shop = made(tmp_path, "")
    if request.param == "folder":
        yield InFiles(shop)
    elif request.param == "sqlite":
        yield InSqlite(shop)
    else:
        with postgres_support.running() as server:
            monkeypatch.setenv("SHOP_PASSWORD", server.password)
            found = InPostgres(shop, server)
            yield found
            found.close()


def test_a_purchase_of_a_second_ago_counts(orders: Orders) -> None:
    shop = orders.shop
    adapt(shop.path, shop.settings)
    with serving(shop) as service, asking(service) as ask:
        before = ask(user_id="u03", k=N)
        assert same(before, expected(shop, user_id="u03", count=N))
        bought = before["items"][0]["item_id"]
        orders.buy("u03", bought)
        after = ask(user_id="u03", k=N)
        left = [item["item_id"] for item in after["items"]]
        assert bought not in left
        scores = {item["item_id"]: item["score"] for item in before["items"]}
        assert any(item["score"] != scores[item["item_id"]] for item in after["items"])
        assert same(after, expected(shop, user_id="u03", count=N))
        # Somebody who was nobody a moment ago.
        assert not ask(user_id="fresh")["known_customer"]
        orders.buy("fresh", "i12")
        fresh = ask(user_id="fresh", k=5)
        assert fresh["known_customer"]
        assert same(fresh, expected(shop, user_id="fresh", count=5))


def test_data_that_can_t_be_read_are_no_fault_of_who_asks(tmp_path: Path) -> None:
    shop = made(tmp_path, "")
    InSqlite(shop)
    with serving(shop) as service, httpx.Client(base_url=service.rest, timeout=30) as client:
        (shop.folder / "shop.db").rename(shop.folder / "away.db")
        answer = client.post("/v1/recommend", json={"user_id": "u03"})
        assert answer.status_code == 503
        assert "python -m client check" in answer.json()["error"]
        (shop.folder / "away.db").rename(shop.folder / "shop.db")
        assert client.post("/v1/recommend", json={"user_id": "u03"}).json()["known_customer"]
        assert "u03" not in "".join(service.log)


# --- another model ---------------------------------------------------------------------------


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def test_a_table_that_the_machine_does_not_give_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that is replaced by another between the look for it and its opening."""
    shop = made(tmp_path, "")
    host = HomeHost(shop.path)
    host.refresh()
    (shop.folder / "data" / "mapping.csv").write_text("item_id,catalogue_item_id\ni01,i01\n")
    shop.configure('[catalogue_mapping]\ntable = "data/mapping.csv"')
    answers = HomeAnswers(1, host.current().ready, shop.settings)

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "interactions.csv")

    monkeypatch.setattr(home_source, "read_interactions", gone)
    monkeypatch.setattr(home_source, "read_mapping", gone)
    with pytest.raises(UnavailableError, match="can't be read now"):
        answers.recommend(Query(user_id="u03"))
    with pytest.raises(UnavailableError, match="can't be read now"):
        answers.own_numbers(["i01"])


@pytest.mark.slow
def test_models_and_adaptations_are_taken_without_dropping_a_request(tmp_path: Path) -> None:
    shop = made(tmp_path, "")
    answers: list[dict[str, Any]] = []
    failed: list[str] = []
    stop = threading.Event()
    with serving(shop) as service, httpx.Client(base_url=service.rest, timeout=30) as client:

        def ask() -> None:
            with httpx.Client(base_url=service.rest, timeout=30) as own:
                while not stop.is_set():
                    answer = own.post("/v1/recommend", json={"user_id": "u03", "k": 5})
                    if answer.status_code == 200:
                        answers.append(answer.json())
                    else:
                        failed.append(answer.text)

        def now() -> dict[str, Any]:
            found: dict[str, Any] = client.post(
                "/v1/recommend", json={"user_id": "u03", "k": 5}
            ).json()
            return found

        asking_ = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking_:
            thread.start()
        try:
            wanted = [expected(shop, user_id="u03", count=5)]
            assert same(now(), wanted[0])
            shop.model("run-22")
            wanted.append(expected(shop, user_id="u03", count=5))
            until(lambda: now()["version"] == 2)
            adapt(shop.path, shop.settings)
            wanted.append(expected(shop, user_id="u03", count=5))
            until(lambda: now()["adapted_at"] is not None)
            # Damaged: refused, and the one before goes on.
            good = now()
            kept = read_facts(ShopFolder.of(shop.path).adapted)
            assert kept is not None
            _damage(kept[0])
            until(lambda: "model=refused" in "".join(service.log))
            assert now() == good
            # Another model comes home; the adaptation is damaged still.
            shop.model("run-333")
            time.sleep(2.5)
            assert now() == good
            adapt(shop.path, shop.settings)
            wanted.append(expected(shop, user_id="u03", count=5))
            until(lambda: now()["version"] == 3)
        finally:
            stop.set()
            for thread in asking_:
                thread.join()
        assert failed == []
        # Each answer is wholly of one of the four.
        for answer in answers:
            assert any(same(answer, document) for document in wanted)
        assert {answer["version"] for answer in answers} == {1, 2, 3}


def _damage(folder: Path) -> None:
    """Damage an adaptation as a bad copy would: another file in place of the one that was read."""
    data = bytearray((folder / STATE).read_bytes())
    data[-1] ^= 1
    (folder / "draft").write_bytes(data)
    (folder / "draft").replace(folder / STATE)
    assert (folder / FACTS).exists()


def test_a_shop_without_a_model_waits_for_one(tmp_path: Path) -> None:
    shop = made(tmp_path, "")
    shutil.move(shop.folder / "models", shop.folder / "later")
    with serving(shop) as service, httpx.Client(base_url=service.rest, timeout=30) as client:
        assert client.get("/healthz").status_code == 503
        assert client.post("/v1/recommend", json={}).status_code == 503
        assert client.get("/v1/models").json() == {"models": []}
        assert "no model has come home yet" in "".join(service.log)
        shutil.move(shop.folder / "later", shop.folder / "models")
        until(lambda: client.get("/healthz").status_code == 200)
        assert client.post("/v1/recommend", json={"user_id": "u03"}).json()["known_customer"]


def test_own_product_numbers_are_taken_and_shown(tmp_path: Path) -> None:
    shop = made(tmp_path, "")
    shop.sell([(user, item.replace("i", "own-"), at) for user, item, at in purchases()])
    mapping = [f"own-{k:02},i{k:02}" for k in range(N)]
    (shop.folder / "map.csv").write_text("\n".join(["item_id,catalogue_item_id", *mapping]))
    shop.configure('[catalogue_mapping]\ntable = "map.csv"\n')
    with serving(shop) as service, asking(service) as ask:
        answer = ask(user_id="u03", k=5)
        assert same(answer, expected(shop, user_id="u03", count=5))
        first = answer["items"][0]
        assert first["own_item_ids"] == [first["item_id"].replace("i", "own-")]
        without = ask(user_id="u03", k=4, filters={"exclude": first["own_item_ids"]})
        assert without["items"][0]["item_id"] == answer["items"][1]["item_id"]
        why = ask("explain", item_id=first["own_item_ids"][0], user_id="u03")
        assert why["score"] == pytest.approx(first["score"], rel=1e-4)
        guest = ask(history=[{"item_id": "own-03"}, {"item_id": "i03"}], k=3)
        assert guest["unknown_items"] == ["i03"]


def test_what_the_shop_alone_sells_is_served_and_shown(tmp_path: Path) -> None:
    shop = made(tmp_path, "")
    shop.sell([*purchases(), *(("u03", f"house-{k}", START) for k in range(2))])
    rows = [f"house-{k},t{k % 5},House {k}" for k in range(6)]
    (shop.folder / "data" / "products.csv").write_text("\n".join(["item_id,type,title", *rows]))
    with serving(shop) as service, asking(service) as ask:
        answer = ask(user_id="u03", k=N + 6)
        assert same(answer, expected(shop, user_id="u03", count=N + 6))
        listed = {item["item_id"] for item in answer["items"]}
        assert {item for item in listed if item.startswith("house")} == {
            f"house-{k}" for k in range(2, 6)
        }
        for item in answer["items"]:
            assert item["outside_catalogue"] == item["item_id"].startswith("house")
        with grpc.insecure_channel(service.grpc) as channel:
            stub: Any = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            over_grpc = stub.Recommend(wire.RecommendRequest(user_id="u03", k=N + 6))
        marked = {item.item_id for item in over_grpc.items if item.outside_catalogue}
        assert marked == {f"house-{k}" for k in range(2, 6)}
        why = ask("explain", item_id="house-3", user_id="u03")
        assert "everywhere, as its like" in {part["label"] for part in why["parts"]}
        with httpx.Client(base_url=service.rest, timeout=60) as client:
            found = client.get("/v1/products", params={"query": "house 3"}).json()
            assert "house-3" in json.dumps(found)
            laid = client.get("/v1/models/0/map", params={"most": 100, "include": "house-3"}).json()
            assert laid["catalogue_products"] == N + 6
            assert "house-3" in laid["item_ids"]


def test_other_products_of_a_shop_are_found_and_laid_out_at_once(tmp_path: Path) -> None:
    # The model keeps its number: what was made of it by number would be that of other products.
    shop, maps = made(tmp_path, ""), Views[ProductMap](map_products)
    trees = Views[object](lambda _: object())
    host = HomeHost(shop.path)
    for name, count in (("House", 6), ("Palace", 3), ("Cottage", 5)):
        own = [f"house-{k}" for k in range(count)]
        shop.sell([*purchases(), *((f"u{u}", item, START) for u in range(10, 20) for item in own)])
        rows = [f"{item},t{k % 5},{name} {k}" for k, item in enumerate(own)]
        table = "\n".join(["item_id,type,title", *rows])
        (shop.folder / "data" / "products.csv").write_text(table)
        host.refresh()
        model = host.current()
        assert model.version == 1
        assert "words" in vars(model)  # Made before anyone waits for them.
        assert find(model, name, 10).total == count
        assert find(model, "", 50).total == N + count
        laid = map_body(model, maps.of(1, model.model), 1000, ())
        assert laid.laid_out == len(set(laid.item_ids)) == N + count
        assert trees.of(1, model.model) is trees.of(1, model.model)


def test_a_product_that_is_mapped_from_now_on_is_the_catalogue_s(tmp_path: Path) -> None:
    shop = HomeShop(tmp_path)
    shop.model()
    shop.sell(purchases())
    (shop.folder / "data" / "products.csv").write_text("item_id,type\nq1,t1\nq2,t2\n")
    mapping = shop.folder / "mapping.csv"
    mapping.write_text("item_id,catalogue_item_id\ni00,i00\n")
    shop.configure('[catalogue_mapping]\ntable = "mapping.csv"\n')
    host = HomeHost(shop.path)
    host.refresh()
    assert {"q1", "q2"} <= set(host.current().recommend(Query(k=N + 2)).item_ids)
    mapping.write_text("item_id,catalogue_item_id\ni00,i00\nq1,i05\n")
    host.refresh()
    answer = host.current().recommend(Query(k=N + 2))
    assert "q1" not in answer.item_ids
    assert answer.own_item_ids[answer.item_ids.index("i05")] == ("q1",)


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_the_machine_refused_once_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, wrapped: bool
) -> None:
    shop = HomeShop(tmp_path)
    shop.model()
    host = HomeHost(shop.path)

    def refused(*_: object) -> None:
        error = OSError(errno.EMFILE, "Too many open files")
        if not wrapped:
            raise error
        raise ArtifactError("it cannot be read") from error

    with monkeypatch.context() as patch:
        patch.setattr(home_host, "get_ready", refused)
        with suppress(OSError):
            host.refresh()
    assert not host.ready
    # No file has changed since.
    host.refresh()
    assert host.ready


def test_a_model_that_is_half_written_is_no_version(tmp_path: Path) -> None:
    shop = HomeShop(tmp_path)
    folder = shop.model()
    # As a model is while it comes home, and what is left of one that comes home once more.
    shutil.copytree(folder, folder.with_name(f".{folder.name}.0a1b2c3d"))
    host = HomeHost(shop.path)
    host.refresh()
    assert host.current().version == 1
    assert [(found.version, found.folder) for found in host.records()] == [(1, folder)]


def test_models_are_told_of_while_the_settings_are_damaged(tmp_path: Path) -> None:
    shop = made(tmp_path, "")
    host = HomeHost(shop.path)
    host.refresh()
    before = host.records()
    shop.path.write_text("merchant_id = [")
    host.refresh()
    assert host.refused
    # The service goes on with what it has, and so do its models and their privacy statements.
    assert host.records() == before
    assert [record.version for record in before] == [host.current().version]


def test_a_tower_that_is_not_linear_is_served_without_reasons(tmp_path: Path) -> None:
    # The command line answers from it; the service would not start, for the reasons it lacks.
    shop = HomeShop(tmp_path)
    shop.model(model=ModelPlan(dimension=3, tower="mlp", hidden=8))
    shop.sell(purchases())
    host = HomeHost(shop.path)
    host.refresh()
    assert not host.refused
    listed = host.current().recommend(Query(user_id="u03", k=3)).item_ids
    found = expected(shop, user_id="u03", count=3)["recommendations"]
    assert list(listed) == [item["item_id"] for item in found]
    with pytest.raises(InputError, match="cannot be taken apart"):
        list(host.current().recommend(Query(user_id="u03", reasons=True)).reasons)
