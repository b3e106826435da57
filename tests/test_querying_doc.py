"""Every example of docs/querying.md, run as it stands there against real servers.

curl is curl. grpcurl is grpcurl where it is installed; elsewhere :mod:`grpcurl_stand_in` parses the
very command line and asks the server by reflection, knowing no more of its contract than grpcurl.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from client.home.adapting import adapt
from home_support import HomeShop, purchases
from query_support import Place, make_place, products, running, started
from server.query.security import Keys

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "querying.md").read_text(encoding="utf-8")
#: Ids, categories and brands that the document takes from the demo's catalogue.
NAMED = {
    "1029743": ("FLUID MILK PRODUCTS", "Private"),
    "1106523": ("FLUID MILK PRODUCTS", "Private"),
    "1082185": ("TROPICAL FRUIT", "National"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def commands() -> list[str]:
    """Return each documented command; a line that goes on in quotes or after ``\\`` is one."""
    found, open_ = [], ""
    for line in "".join(blocks("bash")).splitlines():
        open_ = f"{open_}\n{line}" if open_ else line
        if open_.endswith("\\") or open_.count("'") % 2:
            continue
        found.append(open_)
        open_ = ""
    assert not open_
    return found


def catalogue_of_the_document() -> pd.DataFrame:
    frame = products()
    frame["category"] = frame["category"].map(
        {"tea": "FLUID MILK PRODUCTS", "coffee": "TROPICAL FRUIT", "bread": "BREAD"}
    )
    frame["brand"] = frame["brand"].map({"A": "Private", "B": "National"})
    frame.loc[::2, "price"] = 12345.67
    frame["package_size"] = ["1 GA", None] * (len(frame) // 2)
    for row, (item, (category, brand)) in enumerate(NAMED.items()):
        frame.loc[row, ["item_id", "category", "brand"]] = [item, category, brand]
    return frame


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("documented"), frame=catalogue_of_the_document())


@pytest.fixture(scope="module")
def addresses(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yield documented address -> where that server really is, and the key."""
    root = tmp_path_factory.mktemp("documented-shop")
    shop = HomeShop(root)
    shop.model()
    shop.sell(purchases())
    adapt(shop.path, shop.settings)
    key = Keys(root / "keys.json").add("till")
    with ExitStack() as stack:
        open_ = stack.enter_context(running(place))
        keyed = stack.enter_context(running(place, "--keys", str(root / "keys.json")))
        own = [sys.executable, "-m", "client", "serve", str(shop.folder)]
        home = stack.enter_context(started(own))
        ports = ((open_, 8080, 50051), (keyed, 8082, 50052), (home, 8090, 50060))
        found = {"$FEDTAIL_KEY": key}
        for service, rest, grpc in ports:
            found[f"localhost:{rest}"] = service.rest.removeprefix("http://")
            found[f"localhost:{grpc}"] = service.grpc
        yield found


def placed(text: str, addresses: dict[str, str]) -> str:
    for written, real in addresses.items():
        text = text.replace(written, real)
    return text


def run(command: str, addresses: dict[str, str]) -> str:
    """Run one command of the document and return what it prints; it must succeed."""
    program, *rest = shlex.split(placed(command.replace("\\\n", " "), addresses))
    known = {
        "curl": ["curl", "--fail-with-body"],
        "grpcurl": ["grpcurl"]
        if shutil.which("grpcurl")
        else [sys.executable, str(ROOT / "tests" / "grpcurl_stand_in.py")],
        "python": [sys.executable],
    }
    if program == "python" and "--url" not in rest:
        # Its own default is the documented address.
        rest += ["--url", f"http://{addresses['localhost:8080']}"]
    done = subprocess.run(
        [*known[program], *rest],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "FEDTAIL_KEY": addresses["$FEDTAIL_KEY"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def one(words: str) -> str:
    """Return the one documented command that holds these words."""
    found = [command for command in commands() if words in command]
    assert len(found) == 1, (words, found)
    return found[0]


def ids(answer: dict[str, Any]) -> list[str]:
    return [str(item.get("item_id") or item["itemId"]) for item in answer["items"]]


@pytest.mark.parametrize("command", commands())
def test_it_runs_as_it_is_written(command: str, addresses: dict[str, str]) -> None:
    printed = run(command, addresses)
    if command.startswith("curl") and not re.search("healthz|metrics", command):
        assert json.loads(printed)
    assert printed.strip()


def test_every_endpoint_has_an_example(addresses: dict[str, str]) -> None:
    document = httpx.get(f"http://{addresses['localhost:8080']}/openapi.json").json()
    asked = "\n".join(command for command in commands() if command.startswith("curl"))
    for path in [*document["paths"], "/metrics", "/openapi.json"]:
        if path.startswith("/page") or path == "/":
            continue
        example = f"localhost:8080{path.replace('{version}', '0')}"
        assert re.search(rf"{re.escape(example)}(?=[\s'?])", asked + "\n"), path
    contract = (ROOT / "server/query/wire/fedtail.proto").read_text()
    calls = "\n".join(command for command in commands() if command.startswith("grpcurl"))
    for name in re.findall(r"rpc (\w+)", contract):
        assert f"localhost:50051 fedtail.v1.Recommender/{name}\n" in calls + "\n", name


def test_curl_and_grpcurl_are_answered_alike(addresses: dict[str, str]) -> None:
    over_rest = json.loads(
        run(
            one(
                "curl -s localhost:8080/v1/recommend -H 'Content-Type: "
                'application/json\' \\\n  -d \'{"history": [{"item_id": '
                '"1029743"}, {'
            ),
            addresses,
        )
    )
    over_grpc = json.loads(run(one("-max-time 5"), addresses))
    assert ids(over_rest) == ids(over_grpc)
    assert len(ids(over_rest)) == 5
    columns = [item["product"] for item in over_rest["items"]]
    assert None in [one["package_size"] for one in columns]
    assert 12345.67 in [one["price"] for one in columns]
    for shown, item in zip(columns, over_grpc["items"], strict=True):
        known = {name: value for name, value in shown.items() if value is not None}
        assert item["product"].keys() == known.keys()
        assert float(item["product"]["price"]) == known["price"]
    for item in over_rest["items"]:
        parts = [part["value"] for part in item["reasons"]["parts"]]
        assert sum(parts) == pytest.approx(item["reasons"]["score"], abs=1e-9)


def test_the_options_do_what_is_said_of_them(addresses: dict[str, str]) -> None:
    answer = json.loads(run(one('"minimum_score"'), addresses))
    assert answer["items"]
    for item in answer["items"]:
        assert (item["product"]["category"], item["product"]["brand"]) == NAMED["1106523"]
        assert item["score"] >= -5
    assert not {"1029743", "1106523"} & set(ids(answer))


def test_the_shop_answers_for_its_customer(addresses: dict[str, str]) -> None:
    over_rest = json.loads(run(one("curl -s localhost:8090"), addresses))
    over_grpc = json.loads(run(one("localhost:50060"), addresses))
    assert over_rest["known_customer"]
    assert ids(over_rest) == ids(over_grpc)
    assert not {item for user, item, _ in purchases() if user == "u17"} & set(ids(over_rest))


def test_without_the_key_there_is_no_answer(addresses: dict[str, str]) -> None:
    answer = httpx.get(f"http://{addresses['localhost:8082']}/v1/models")
    assert answer.status_code == 401


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_examples_run(
    code: str, addresses: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    exec(compile(placed(code, addresses), "docs/querying.md", "exec"), names)
    printed = capsys.readouterr().out
    if "fruit" in names:
        assert len(code.strip().splitlines()) <= 10
        assert len(names["answer"].items) == 5
        assert printed.count("because of") >= 1
        assert {item.product["category"] for item in names["fruit"].items} == {"TROPICAL FRUIT"}
        assert len(names["alike"].items) == 3
    else:
        assert "[3, 5]" in printed
        assert "Privacy: epsilon" in printed
        assert sum(part.value for part in names["why"].parts) == pytest.approx(names["why"].score)
