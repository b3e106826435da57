"""A run whose code a shop has not approved, with real processes from end to end."""

import json
from pathlib import Path

import pytest

from client.joining.approval import Approvals
from client.shop_folder import ShopFolder
from common.bundle import FlowerApp, build, digest, stage
from deployment_support import SECONDS, deployed
from server.operating.services import control

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

_PROJECT = """\
[project]
name = "stranger"
version = "0.1.0"

[tool.flwr.app]
publisher = "stranger"
fab-include = ["stranger/**/*.py"]

[tool.flwr.app.components]
serverapp = "stranger.server:app"
clientapp = "stranger.client:app"
"""
# Whoever only imports it has executed it.
_CLIENT = """\
from pathlib import Path

Path({mark!r}).write_text("executed")

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
    return Message(RecordDict(), reply_to=message)
"""
# Asks until a shop answers without an error, and writes down what came.
_SERVER = """\
import json
import time

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    node = 0
    while not node:
        node = next(iter(grid.get_node_ids()), 0)
        time.sleep(0.5)
    for _ in range(100):
        question = Message(RecordDict(), dst_node_id=node, message_type="query")
        (reply,) = grid.send_and_receive([question], timeout=600)
        with open({replies!r}, "a") as file:
            file.write(json.dumps(reply.error.code if reply.has_error() else 0) + "\\n")
        if not reply.has_error():
            return
"""


def stranger(folder: Path, mark: Path, replies: Path) -> FlowerApp:
    package = folder / "stranger"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PROJECT)
    (package / "__init__.py").write_text("")
    (package / "client.py").write_text(_CLIENT.format(mark=str(mark)))
    (package / "server.py").write_text(_SERVER.format(replies=str(replies)))
    return FlowerApp(folder, ("stranger",))


def test_unapproved_code_is_refused_before_it_runs_and_runs_once_it_is_approved(
    tmp_path: Path,
) -> None:
    mark, replies = tmp_path / "executed", tmp_path / "replies"
    app = stranger(tmp_path / "app", mark, replies)
    name = digest(build(app))
    with deployed(tmp_path / "federation", ("north",), {}) as federation:
        (shop,) = federation.shops.values()
        folder, link = ShopFolder(shop.folder), control(federation.federation)
        (tmp_path / "staged").mkdir()
        run = link.submit(stage(app, tmp_path / "staged"), {})
        # The digest that a shop computes is the one that Flower names the run's code by.
        assert link.run(run).bundle == name

        def answered(count: int) -> bool:
            return replies.exists() and len(replies.read_text().splitlines()) >= count

        federation.programs.wait_until(lambda: answered(2), "two refusals", 2 * SECONDS)
        assert not mark.exists()
        assert not list(folder.flower.rglob("*stranger*"))
        # Flower's code for a bundle that is not valid.
        assert {json.loads(line) for line in replies.read_text().splitlines()} == {7}
        refused = [json.loads(line) for line in folder.refusals.read_text().splitlines()]
        assert [(r["digest"], r["run"]) for r in refused] == [(name, run)]
        assert name in (folder.logs / "run.log").read_text()

        # No restart: the next message of the same run finds it approved.
        Approvals(folder.approvals).decide("approve", name, "the test")
        federation.programs.wait_until(mark.exists, "the approved code", SECONDS)
        federation.programs.wait_until(
            lambda: link.status(run) == "finished:completed", "the run's end", SECONDS
        )
        assert json.loads(replies.read_text().splitlines()[-1]) == 0
        assert not federation.paid(shop)
