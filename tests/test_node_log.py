"""What a shop's engineer reads: of a connection that does not come about, and of each run."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from client.joining import watching
from client.joining.node_log import APP_SIGNS, NodeLog, Sign
from client.joining.watching import HELD_SECONDS, State, Watch
from client.rounds.replying import Answer, Node, reply_to
from client.settings import FederationSettings
from client.shop_folder import ShopFolder
from common.programs.supervisor import Supervisor
from common.protocol import NO_FINGERPRINT

ROOT = Path(__file__).resolve().parent.parent
URL = "https://federation.example:8443/v1/fleet/"
REFUSED = (
    "Failed to initialize the connection to the SuperLink.\n[code: 2004] Failed to activate.\n"
)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    folder = ShopFolder(tmp_path)
    folder.state.mkdir()
    federation = FederationSettings(
        address="federation.example:8443", ca=tmp_path / "ca.crt", key=tmp_path / "node.key"
    )
    monkeypatch.setattr(Supervisor, "pid", lambda *_: None)
    monkeypatch.setattr(watching, "obstacle", lambda *_: "")
    supervisor = Supervisor("FEDTAIL_TEST", str(tmp_path))
    state = State("corner", federation.address)
    return Watch(
        tmp_path / "a shop.toml", folder, federation, supervisor, state, tmp_path / "models"
    )


def signs(tmp_path: Path, text: str) -> list[Sign]:
    path = tmp_path / "supernode.log"
    path.write_text("")
    log = NodeLog(path)
    path.write_text(text)
    return log.news()


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("send-node-heartbeat", "unknown-key"),
        ("pull-messages", "unknown-key"),
        ("activate-node", "clock"),
    ],
)
def test_who_is_refused_when_connected_was_removed(tmp_path: Path, call: str, kind: str) -> None:
    said = f"ERROR: Client error '401 Unauthorized' for url '{URL}{call}'\n"
    assert [sign.kind for sign in signs(tmp_path, said)] == [kind]


def test_a_removed_shop_hears_so_as_long_as_it_is(
    watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch.look([Sign("connected")])
    gone = f"httpx.HTTPStatusError: Client error '401 Unauthorized' for url '{URL}pull-messages'\n"
    with caplog.at_level(logging.WARNING, "client.joining.watching"):
        for text in (gone, REFUSED, REFUSED):
            watch.look(signs(tmp_path, text))
    # Once in words, not at each attempt.
    (said,) = [record.getMessage() for record in caplog.records]
    assert "does not know this shop's key" in said
    assert f"client key new '{tmp_path / 'a shop.toml'}'" in said
    assert str(tmp_path / "node.pub") in said
    assert watch.state.problem in said
    watch.look([Sign("connected")])
    assert watch.state.connected
    watch.look(signs(tmp_path, REFUSED))
    assert "last connection" in watch.state.problem


def test_a_refusal_that_lasts_is_of_the_key(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("client.joining.watching.time.monotonic", lambda: now)
    watch.look(signs(tmp_path, REFUSED))
    assert "up to a minute" in watch.state.problem
    assert "not enrolled" in watch.state.problem
    now += 2 * HELD_SECONDS
    watch.look(signs(tmp_path, REFUSED))
    assert "does not know this shop's key" in watch.state.problem


def test_a_wrong_clock_is_named(watch: Watch, tmp_path: Path) -> None:
    said = f"[code] Client error '401 Unauthorized' for url '{URL}activate-node'\n"
    watch.look(signs(tmp_path, said))
    assert "clock" in watch.state.problem


def test_a_run_is_seen_at_the_shop(
    watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A whole run went by without a word, and a refused one was told in Flower's log alone.
    caplog.set_level(logging.INFO, logger="client.joining.watching")
    asked = "\x1b[92mINFO \x1b[0m: Receiving: {} message (ID: 4ce7)\n"
    kinds = ("query.join", "train.release", "train.update", "query.sum_open", "query.home")
    watch.look(signs(tmp_path, "".join(map(asked.format, kinds))))
    assert caplog.messages == [
        "a run asks whether this shop takes part",
        "a run asks for its popularity, with noise",
        "a run asks for a round of training",
        "a run asks to keep the finished model",
    ]

    caplog.clear()
    log = tmp_path / "superexec.log"
    reader = NodeLog(log, APP_SIGNS)
    log.write_text("Start `flwr-clientapp` process\n")
    name = "client.rounds.replying"
    record = reply_to("join", {}, Node({}, {}, {}), lambda *_: Answer())
    assert record[0].status != "ok"
    (told,) = [entry for entry in caplog.records if entry.name == name]
    with log.open("a") as file:
        file.write(told.getMessage() + "\nTraceback (most recent call last):\n  [code: 2001]\n")
    caplog.clear()
    watch.tell(reader.news(), log)
    (said,) = caplog.messages
    assert said.startswith(f"Answered {record[0].status}: ")
    assert "superexec.log" in said

    caplog.clear()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "current").symlink_to("20261129-114036-9734")
    watch.tell([], log)
    watch.tell([], log)
    (said,) = caplog.messages
    assert "20261129-114036-9734 came home" in said
    assert "client adapt" in said


@pytest.mark.parametrize("server_round", [3, -1])
def test_a_refusal_is_told_whatever_round_the_server_named(
    tmp_path: Path, server_round: int, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "superexec.log"
    reader = NodeLog(log, APP_SIGNS)
    header = {
        "run_id": "run",
        "server_round": server_round,
        "plan_json": "",
        "catalogue_fingerprint": NO_FINGERPRINT,
    }
    reply, _ = reply_to("update", header, Node({}, {}, {}), lambda *_: Answer())
    assert (reply.status, reply.server_round) == ("refused-config", server_round)
    log.write_text(caplog.messages[0] + "\n")
    (sign,) = reader.news()
    assert sign.about.startswith("refused-config reason=this node has no shop")


@pytest.mark.parametrize("loaded", ["client.rounds.replying", "client.training"])
def test_a_refusal_is_told_whatever_its_exchange_had_loaded(tmp_path: Path, loaded: str) -> None:
    # Opacus sets up all logging: of a round of training, no refusal was ever told.
    log = tmp_path / "superexec.log"
    reader = NodeLog(log, APP_SIGNS)
    code = (
        f"import {loaded}, logging\n"
        "from client.rounds.replying import Answer, Node, reply_to\n"
        "reply_to('update', {}, Node({}, {}, {}), lambda *_: Answer())\n"
        "logging.getLogger('client.units').warning('data=read records=none: of other days')\n"
    )
    with log.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stderr=file, check=True, cwd=ROOT)
    failed, warned = reader.news()
    assert failed.kind == "failed"
    assert failed.about.startswith("wrong-protocol reason=")
    assert warned == Sign("warned", "of other days")


def test_what_makes_a_shop_send_noise_alone_is_told(
    watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A column that a table got made all rows another merchant's; the run went by without a word.
    with caplog.at_level(logging.WARNING, "client.joining.watching"):
        watch.tell([Sign("warned", "the shop takes part with noise alone")], tmp_path / "log")
    assert caplog.messages == ["the shop takes part with noise alone"]
