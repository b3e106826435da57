import inspect
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import cli
from flwr.supernode import start_client_internal as inside

from client import node
from client.joining.approval import Approvals
from client.node import Guard, check_flower, guard_intake
from common.bundle import digest
from common.errors import RunError

CODE = b"bundle"
HASH = digest(CODE)


def message(run_id: int) -> Message:
    metadata = Metadata(
        run_id=run_id,
        message_id="m",
        src_node_id=1,
        dst_node_id=2,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=3600.0,
        message_type="query",
        src_task_id=1,
        dst_task_id=1,
    )
    return make_message(metadata, content=RecordDict())


class Node:
    """A SuperNode's side of the intake, and a server that sends what it likes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.approvals = Approvals(folder / "approved.jsonl")
        self.refusals = folder / "refused.jsonl"
        self.content, self.named = CODE, HASH
        self.events: list[str] = []
        self.replies: list[Message] = []
        self.runs: dict[int, Any] = {}
        monkeypatch.setattr(inside, "_insert_message", lambda m, _s, _o: self.replies.append(m))
        self.guarded = Guard(self.approvals, self.refusals).around(self.intake)

    def intake(self, **arguments: Any) -> int | None:
        """As Flower's: the code comes with the first message of a run, and is read and kept."""
        received = arguments["receive"]()
        run_id = int(received[0].metadata.run_id)
        if arguments["state"].get_run(run_id) is None:
            run = arguments["get_run"](run_id)
            fab = arguments["get_fab"](run.fab_hash, run_id)
            self.events.append(f"stored {fab.content.decode()}")
            self.runs[run_id] = run
        self.events.append("task")
        return run_id

    def get_run(self, run_id: int) -> Any:
        self.events.append("asked")
        return SimpleNamespace(run_id=run_id, fab_hash=self.named)

    def get_fab(self, fab_hash: str, _run_id: int) -> Fab:
        self.events.append("fetched")
        return Fab(fab_hash, self.content, {})

    def pull(self, run_id: int = 7, received: bool = True, **changes: Any) -> int | None:
        arguments: dict[str, Any] = {
            "state": SimpleNamespace(get_run=self.runs.get),
            "object_store": object(),
            "node_config": {},
            "receive": lambda: (message(run_id), object()) if received else None,
            "get_run": self.get_run,
            "get_fab": self.get_fab,
            "pull_object": None,
            "confirm_message_received": None,
            "trusted_entities": None,
        }
        return self.guarded(**(arguments | changes))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_an_unapproved_bundle_is_refused_before_it_is_even_fetched(shop: Node) -> None:
    assert shop.pull() == 7
    assert shop.events == ["asked"]
    (reply,) = shop.replies
    assert reply.error.code == ErrorCode.INVALID_FAB
    assert reply.error.reason == f"this shop has not approved the bundle {HASH}"
    assert reply.metadata.reply_to_message_id == "m"
    noted = json.loads(shop.refusals.read_text())
    assert (noted["digest"], noted["run"], noted["reason"]) == (HASH, "7", "not approved")


def test_an_approved_bundle_is_taken_in_as_flower_does(shop: Node) -> None:
    shop.approvals.decide("approve", HASH, "ann")
    assert shop.pull() == 7
    assert shop.pull() == 7
    assert shop.events == ["asked", "fetched", "stored bundle", "task", "task"]
    assert not shop.replies
    assert not shop.refusals.exists()


def test_approval_counts_from_the_next_message_on_and_so_does_its_revocation(shop: Node) -> None:
    shop.pull()
    shop.approvals.decide("approve", HASH, "ann")
    shop.pull()
    assert shop.events[-1] == "task"
    shop.approvals.decide("revoke", HASH, "ann")
    shop.pull()
    shop.pull()
    assert shop.events.count("task") == 1
    assert len(shop.replies) == 3
    # Once for each run, and again after the revocation.
    assert len(shop.refusals.read_text().splitlines()) == 2


def test_other_bytes_under_an_approved_digest_are_refused(shop: Node) -> None:
    shop.approvals.decide("approve", HASH, "ann")
    shop.content = b"another bundle"
    assert shop.pull() == 7
    assert shop.events == ["asked", "fetched"]
    assert len(shop.replies) == 1
    assert "not those" in json.loads(shop.refusals.read_text())["reason"]


@pytest.mark.parametrize("named", ["", "sha", HASH.upper()])
def test_a_run_without_a_digest_is_refused(shop: Node, named: str) -> None:
    shop.approvals.decide("approve", HASH, "ann")
    shop.named = named
    shop.pull()
    assert shop.events == ["asked"]
    assert len(shop.replies) == 1


def test_what_is_no_digest_can_forge_no_line_of_the_log(
    shop: Node, caplog: pytest.LogCaptureFixture
) -> None:
    shop.named = "\x1b[2Jabc\nINFO : SuperNode ID: 5" + "x" * 1000
    shop.pull()
    noted = json.loads(shop.refusals.read_text())["digest"]
    assert noted.startswith("\\x1b[2Jabc\\nINFO")
    assert len(noted) == 80
    (said,) = caplog.messages
    assert said.isprintable()


def test_approvals_that_cannot_be_read_approve_nothing(shop: Node) -> None:
    shop.approvals.decide("approve", HASH, "ann")
    with shop.approvals.path.open("a") as file:
        file.write("{")
    shop.pull()
    assert shop.events == ["asked"]
    # What is wrong with the file is the shop's own business.
    assert shop.replies[0].error.reason == f"this shop has not approved the bundle {HASH}"
    assert "line 2" in json.loads(shop.refusals.read_text())["reason"]


def test_a_refusal_needs_no_room_on_the_disk(shop: Node) -> None:
    shop.refusals.mkdir()
    assert shop.pull() == 7
    assert len(shop.replies) == 1


def test_no_message_and_a_run_that_ended_are_flowers_business(shop: Node) -> None:
    def ended(_: int) -> Any:
        raise RunNotRunningException

    assert shop.pull(received=False) is None
    assert shop.pull(get_run=ended) is None
    assert not shop.replies


def test_the_wrapped_function_is_the_one_that_flower_calls() -> None:
    check_flower()
    source = inspect.getsource(inside.start_client_internal)
    assert source.count(f"{node._INTAKE}(") == 1
    # By keyword, and through the module's own name.
    assert f"run_id = {node._INTAKE}(\n                state=state," in source


def test_it_is_put_into_flowers_module(shop: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, node._INTAKE, before := getattr(inside, node._INTAKE))
    guard_intake(shop.approvals, shop.refusals)
    assert getattr(inside, node._INTAKE) is not before


def test_both_guards_stand_before_flowers_node_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the second the text of an error could leave, with a path or a name in it."""
    before = {name: getattr(inside, name) for name in (node._INTAKE, node._PUSH)}
    for name, function in before.items():
        monkeypatch.setattr(inside, name, function)  # Put back at the end.
    monkeypatch.setattr(sys, "argv", [])
    started: dict[str, object] = {}

    def start() -> None:
        started.update({name: getattr(inside, name) for name in before})

    monkeypatch.setattr(cli, "flower_supernode", start)
    node.main(["--approved", str(tmp_path / "approved"), "--refused", str(tmp_path / "refused")])
    assert started.keys() == before.keys()
    assert all(started[name] is not function for name, function in before.items())


def test_another_flower_is_refused(shop: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before = getattr(inside, node._INTAKE)
    with monkeypatch.context() as patch:
        patch.setattr(node, "package_version", "1.42.0")
        with pytest.raises(RunError, match=r"1\.42\.0.*requirements\.lock"):
            guard_intake(shop.approvals, shop.refusals)
    with monkeypatch.context() as patch:
        patch.setattr(inside, node._INTAKE, lambda state, receive: None)
        with pytest.raises(RunError, match="Nothing was started"):
            guard_intake(shop.approvals, shop.refusals)
    assert getattr(inside, node._INTAKE) is before
