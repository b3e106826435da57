"""Runs submitted, followed, taken up again, and published once; SuperLink is a fake here."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from common.bundle import digest
from common.config import ConfigValue
from common.errors import ArtifactError, ConfigError, RunError
from common.protocol import FIRST_OF_THESE_PLANS, PROTOCOL_VERSION
from operator_support import new_federation
from registry_support import PLAN, PRIVACY, model
from server.operating.control import Node, Submitted
from server.operating.sum_roster import Members
from server.registry.stores import FolderStore
from server.registry.versions import Registry
from server.training import request
from server.training.plan import run_defaults
from server.training.records import RunRecord, Runs, new_events, new_name, now, reporting
from server.training.run import Standing, Training, failure, standing
from server.training.status import status

BUNDLE = "b" * 64


class FakeLink:
    """A SuperLink whose runs do what they are told."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] = {}
        self.submitted: list[dict[str, ConfigValue]] = []
        self.stopped: list[str] = []
        self.on_look: Callable[[], object] = lambda: None
        self.bundle = BUNDLE
        self.text = ""

    def submit(self, app: Path, run_config: Mapping[str, ConfigValue]) -> str:
        assert (app / "server" / "app.py").exists()
        self.submitted.append(dict(run_config))
        run_id = str(len(self.submitted))
        self.statuses[run_id] = "running"
        return run_id

    def run(self, run_id: str) -> Submitted:
        self.on_look()
        return Submitted(self.statuses[run_id], "", self.bundle)

    def unfinished(self) -> list[str]:
        return [n for n, word in self.statuses.items() if not word.startswith("finished")]

    def stop(self, run_id: str) -> None:
        self.stopped.append(run_id)
        self.statuses[run_id] = "finished:stopped"

    def log(self, run_id: str) -> str:
        return self.text


class Notes:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[Mapping[str, Any]] = []

    def stage(self, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        self.lines.append(text)

    def rounds(self, count: int) -> None:
        self.lines.append(f"{count} rounds")

    def event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)


class World:
    """A folder of runs, its registry, a fake SuperLink, and what was shown."""

    def __init__(self, root: Path) -> None:
        self.runs, self.registry = Runs(root / "runs"), str(root / "registry")
        self.link, self.view, self.up = FakeLink(), Notes(), True

    @property
    def training(self) -> Training:
        return Training(self.runs, self.link, lambda: self.up, self.registry, self.view)

    def record(self, name: str = "", **values: Any) -> RunRecord:
        config: dict[str, ConfigValue] = {"plan": PLAN.model_dump_json(), "quorum": 0.5}
        facts = {"config": config, "bundle": BUNDLE, "catalogue": "f" * 64, "created_at": now()}
        return RunRecord.model_validate({"name": name or new_name(), **facts, **values})

    def tell(self, record: RunRecord, *events: dict[str, Any]) -> None:
        folder = self.runs.folder(record.name)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rounds.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    def finish(self, record: RunRecord, **values: Any) -> None:
        model(self.runs.folder(record.name) / "model", **values)
        self.link.statuses[record.attempts[-1]] = "finished:completed"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_run_is_submitted_followed_and_published(world: World) -> None:
    record = world.training.submit(world.record())
    assert world.link.submitted == [{**record.config, "run-name": record.name}]
    assert world.runs.read(record.name).attempts == ("1",)
    world.tell(record, {"event": "start", "server_round": 0})

    def look() -> None:
        if record.name not in [p.parent.name for p in world.runs.root.glob("*/model")]:
            world.tell(record, {"event": "round", "server_round": 1}, {"event": "end"})
            world.finish(record)

    world.link.on_look = look
    record = world.training.follow(record, 0)
    assert [e["event"] for e in world.view.events] == ["start", "round", "end"]
    assert (record.ended, world.view.lines[-1]) == ("completed", "3 rounds")
    record, new = world.training.publish(record, force=False)
    assert (new, record.published) == (True, 1)
    assert world.runs.read(record.name).published == 1


def test_a_run_of_the_protocol_before_can_be_looked_at_and_one_of_the_next_cannot(
    world: World,
) -> None:
    ours = (FIRST_OF_THESE_PLANS, PROTOCOL_VERSION)
    for version in range(ours[0] - 1, ours[1] + 2):
        config: dict[str, ConfigValue] = {
            "plan": PLAN.model_copy(update={"version": version}).model_dump_json()
        }
        record = world.runs.save(world.record(config=config))
        if version in range(ours[0], ours[1] + 1):
            assert world.runs.read(record.name).plan.version == version
        else:
            with pytest.raises(ArtifactError, match=f"protocol version {version}"):
                world.runs.read(record.name)


def test_a_model_is_published_once_whatever_its_run_remembers(world: World) -> None:
    record = world.training.submit(world.record())
    world.finish(record)
    first, new = world.training.publish(record, force=False)
    assert (first.published, new) == (1, True)
    # As if the command had died between the registry and its own note.
    again, new = world.training.publish(record, force=False)
    assert (again.published, new) == (1, False)
    other = world.training.submit(world.record())
    world.finish(other, value=2.0)
    assert world.training.publish(other, force=False)[0].published == 2
    assert world.training.publish(record, force=False) == (again, False)
    assert Registry(world.registry).versions() == [1, 2]


def test_what_has_objections_is_published_by_force_alone(world: World) -> None:
    record = world.training.submit(world.record())
    world.finish(record, privacy=PRIVACY | {"noise": "seeded"})
    with pytest.raises(RunError, match=r"finished, and .* seeded(.|\n)*--resume"):
        world.training.publish(record, force=False)
    assert world.runs.read(record.name).published is None
    assert world.training.publish(record, force=True)[0].published == 1
    assert Registry(world.registry).record(1).forced


def test_a_publishing_that_failed_can_be_made_up_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = world.training.submit(world.record())
    world.finish(record)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", full)
        with pytest.raises(RunError, match=r"not published: .*No space left(.|\n)*--resume"):
            world.training.publish(record, force=False)
    assert Registry(world.registry).versions() == []
    reachable, world.registry = world.registry, "nosuch://place"
    with pytest.raises(RunError, match=r"not published: cannot use nosuch:(.|\n)*--resume"):
        world.training.publish(record, force=False)
    world.registry = reachable
    assert world.training.publish(record, force=False)[0].published == 1


def test_a_released_evaluation_goes_with_the_model(world: World) -> None:
    record = world.training.submit(world.record())
    world.finish(record)
    figures = {"shops": 2, "figures": {"ndcg@20": {"mean": 0.25}}}
    (world.runs.folder(record.name) / "evaluation.json").write_text(json.dumps(figures))
    world.training.publish(record, force=False)
    assert Registry(world.registry).record(1).evaluation == figures


def test_a_run_that_failed_says_the_server_s_own_error_first(world: World) -> None:
    record = world.training.submit(world.record())
    world.link.statuses["1"] = "finished:failed"
    world.link.text = "Traceback\ncommon.errors.RunError: no shop takes part: 3 over-budget\nbye"
    with pytest.raises(RunError, match=r"failed: no shop takes part: 3 over-budget\n") as error:
        world.training.follow(record, 0)
    # An operator who asked for less in plan.toml, and resumed, asked for the same again.
    assert re.search(r"--resume .* began with; after a change of plan", str(error.value))
    assert world.runs.read(record.name).reason == "no shop takes part: 3 over-budget"
    assert failure("a\nb", "it ended") == "it ended\nThe end of its log:\na\nb"
    assert failure("", "it ended") == "it ended"
    assert failure("common.errors.A: x\ncommon.errors.B: y: z\n", "") == "y: z"


def test_ctrl_c_stops_the_run_and_says_how_to_go_on(world: World) -> None:
    record = world.training.submit(world.record())

    def interrupt() -> None:
        world.link.on_look = lambda: None
        raise KeyboardInterrupt

    world.link.on_look = interrupt
    with pytest.raises(RunError, match=f"is stopped(.|\n)*--resume {record.name}"):
        world.training.follow(record, 0)
    assert world.link.stopped == ["1"]
    record = world.runs.read(record.name)
    assert record.ended == "stopped"
    assert world.training.take_up(record) == (record, False)
    record = world.training.submit(record)
    assert (record.attempts, record.ended) == (("1", "2"), "")
    assert world.link.submitted[0] == world.link.submitted[1]


def test_a_run_whose_command_was_killed_is_followed_and_not_submitted(world: World) -> None:
    record = world.training.submit(world.record())
    assert world.training.take_up(world.runs.read(record.name)) == (record, True)
    with pytest.raises(RunError, match=f"{record.name} goes on.*--resume {record.name}"):
        world.training.take_up(world.record())
    assert world.link.stopped == []
    world.link.statuses["1"] = "finished:failed"
    found, going = world.training.take_up(record)
    assert (found.ended, going) == ("failed", False)


@pytest.mark.parametrize("ended", ["", "failed"])
def test_a_run_that_superlink_no_longer_knows_is_taken_up_again(world: World, ended: str) -> None:
    record = world.runs.save(
        world.training.submit(world.record()).model_copy(update={"ended": ended})
    )
    # As after a move to a new folder, or the loss of SuperLink's database.
    world.link.statuses.clear()

    def unknown() -> None:
        raise RunError("SuperLink at 127.0.0.1:9092 refused: Run 1 not found")

    world.link.on_look = unknown
    found, going = world.training.take_up(record)
    assert (found.ended, going) == ("failed", False)
    assert "Run 1 not found" in found.reason
    assert world.runs.read(record.name) == found


def test_figures_are_not_promised_of_a_run_that_does_not_ask_for_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = new_federation(tmp_path / "operator")
    world.runs = Runs(federation.runs)
    monkeypatch.setattr(request, "control", lambda _: world.link)
    monkeypatch.setattr(request, "is_up", lambda _: True)
    record = world.training.submit(world.record())

    def ask() -> None:
        request.train(federation, request.Request(resume=record.name, evaluate=True), world.view)

    # It was begun without, and what goes on cannot be told any more.
    world.link.on_look = lambda: world.link.statuses.update({"1": "finished:failed"})
    with pytest.raises(ConfigError, match=r"goes on .* without .* Ctrl-C .* --evaluate"):
        ask()
    assert world.runs.read(record.name) == record
    # It ends while nobody looks: its figures would have been asked for within it.
    world.link.on_look = lambda: None
    world.finish(record)
    with pytest.raises(ConfigError, match="is finished: figures are asked for within it"):
        ask()
    assert "evaluate" not in world.runs.read(record.name).config
    assert not Registry(federation.registry).versions()


def test_a_run_of_sums_goes_on_with_fewer_shops_once_its_roster_has_fewer(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = new_federation(tmp_path / "operator")
    world.runs = Runs(federation.runs)
    plan = PLAN.model_copy(update={"trust": "federation", "honest_shops": 2})
    config = {**run_defaults(), "plan": plan.model_dump_json()}
    record = world.record(config=config)
    monkeypatch.setattr(request, "control", lambda _: world.link)
    monkeypatch.setattr(request, "is_up", lambda _: True)
    monkeypatch.setattr(request, "build", bytes)
    monkeypatch.setattr(world.link, "bundle", digest(b""))
    monkeypatch.setattr(request, "members", lambda _: Members(("a", "b"), "d" * 64, (), ()))
    monkeypatch.setattr(request, "_standing", lambda _: Standing(("a", "b", "c", "d"), ()))
    world.runs.save(record)
    for needed in (4, 3):
        monkeypatch.setattr(request, "needed_shops", lambda *_, n=needed: n)
        world.link.on_look = lambda: world.link.statuses.update(
            dict.fromkeys(world.link.statuses, "finished:failed")
        )
        with pytest.raises(RunError, match="--resume"):
            request.train(federation, request.Request(resume=record.name), world.view)
    assert [config["min-shops"] for config in world.link.submitted] == [4, 3]
    # min_shops is 2: who raises it gets no further.
    monkeypatch.setattr(request, "_standing", lambda _: Standing(("a", "b"), ("c", "d")))
    with pytest.raises(RunError, match=r"needs 3 \(so many of the roster every secure sum takes\)"):
        request.train(federation, request.Request(resume=record.name), world.view)


def test_an_attempt_that_nobody_recorded_is_stopped(world: World) -> None:
    record = world.training.submit(world.record())
    world.link.statuses |= {"1": "finished:failed", "77": "running"}
    world.training.take_up(record)
    assert world.link.stopped == ["77"]


def test_a_damaged_record_is_in_no_other_run_s_way_unless_it_may_go_on(world: World) -> None:
    record = world.training.submit(world.record("run-1"))
    (world.runs.folder("run-1") / "run.json").write_text("{")
    later = world.record("run-2")
    # It may be that very run which goes on: nobody can tell.
    with pytest.raises(ArtifactError, match=r"run-1/run\.json cannot be read"):
        world.training.take_up(later)
    world.link.statuses[record.attempts[-1]] = "finished:failed"
    assert world.training.take_up(later) == (later, False)
    assert not world.link.stopped


def test_other_code_than_was_said_is_stopped(world: World) -> None:
    world.link.bundle = "c" * 64
    with pytest.raises(RunError, match="bundle that was sent is c"):
        world.training.submit(world.record())
    assert world.link.stopped == ["1"]


def test_superlink_may_be_away_while_it_is_started_again(world: World) -> None:
    record = world.training.submit(world.record())
    looks: list[int] = []

    def away() -> None:
        looks.append(1)
        if len(looks) == 1:
            raise RunError("it does not answer")
        world.link.statuses["1"] = "finished:completed"

    world.link.on_look = away
    assert world.training.follow(record, 0).ended == "completed"
    world.up, looks[:] = False, []
    with pytest.raises(RunError, match=r"server up(.|\n)*--resume"):
        world.training.follow(record, 0)


def test_too_few_shops_are_named() -> None:
    nodes = [Node(1, "a", b"", "online"), Node(2, "b", b"", "offline"), Node(3, "x", b"", "online")]
    found = standing(["a", "b", "c"], nodes)
    assert (found.connected, found.missing) == (("a",), ("b", "c"))
    found.check(1)
    with pytest.raises(RunError, match=r"1 of 3 shops are connected.*needs 2.*Not connected: b, c"):
        found.check(2)
    with pytest.raises(RunError, match=r"1 shop is enrolled.*needs 2 \(server\.min_shops.*enrol"):
        standing(["a"], []).check(2)


def test_records_are_whole_or_say_so(world: World) -> None:
    with pytest.raises(ConfigError, match="there are none yet"):
        world.runs.read("run-1")
    record = world.runs.save(world.record("run-1"))
    assert (world.runs.read("run-1"), world.runs.last()) == (record, record)
    assert record.plan == PLAN
    with pytest.raises(ConfigError, match="did you mean 'run-1'"):
        world.runs.read("run-2")
    with pytest.raises(ConfigError, match="no folder name"):
        world.runs.read("../run-1")
    (world.runs.folder("run-1") / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json cannot be read"):
        world.runs.read("run-1")


def test_a_round_whose_event_a_kill_prevented_counts_as_done(world: World, tmp_path: Path) -> None:
    federation = new_federation(tmp_path / "operator")
    world.runs = Runs(federation.runs)
    record = world.runs.save(world.record("run-1", attempts=("1", "2"), ended="stopped"))
    done = []
    told = (("start", 0), ("round", 1), ("start", 2), ("round", 3), ("end", 3), ("start", 1))
    for event, server_round in told:
        world.tell(record, {"event": event, "server_round": server_round})
        done.append(status(federation)["run"]["rounds_done"])
    # The last attempt begins where the checkpoint that is left ends.
    assert done == [0, 1, 2, 3, 3, 1]


def test_what_may_not_be_read_of_a_run_hides_no_other_part(world: World, tmp_path: Path) -> None:
    federation = new_federation(tmp_path / "operator")
    world.runs = Runs(federation.runs)
    world.runs.save(world.record("run-1"))
    # As where a container left files of another user.
    (world.runs.folder("run-1") / "rounds.jsonl").mkdir()
    found = status(federation)
    assert found["run"]["error"].startswith("cannot read ")
    assert found["run"]["error"].endswith("run-1/rounds.jsonl: Is a directory")
    assert found["certificates"]
    assert "error" not in found["registry"]


def test_a_fault_of_the_machine_s_that_names_no_file_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise TimeoutError("the share did not answer")

    federation = new_federation(tmp_path / "operator")
    monkeypatch.setattr("server.training.status._registry", gone)
    assert status(federation)["registry"] == {"error": "the share did not answer"}


def test_one_command_trains_at_a_time(world: World) -> None:
    with world.runs.training(), pytest.raises(ConfigError, match="at work"), world.runs.training():
        pass
    with world.runs.training():
        pass


def test_events_are_read_whole_lines_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    assert new_events(path, 0) == ([], 0)
    path.write_text('{"a": 1}\n{"b": {"a": 2}\n[3]\n{"half')
    events, offset = new_events(path, 0)
    assert events == [{"a": 1}]
    with path.open("a") as file:
        file.write('": 4}\n')
    assert new_events(path, offset) == ([{"half": 4}], path.stat().st_size)


def test_an_event_is_no_part_of_half_a_line_before_it(tmp_path: Path) -> None:
    # The start of the next attempt was lost with it.
    path = tmp_path / "rounds.jsonl"
    for number in (1, 2):
        with reporting(path) as report:
            report({"event": "start", "server_round": number})
        with path.open("a") as file:
            file.write('{"event": "round", "server_r')
    assert [event["server_round"] for event in new_events(path, 0)[0]] == [1, 2]
    with reporting(path) as report:
        report({"event": "end"})
    text = path.read_text()
    assert (text.count("\n"), text.endswith("\n")) == (5, True)


def test_a_copy_of_a_runs_folder_is_no_run(world: World) -> None:
    # A backup whose name sorts last was "the last run", and in the way while its own run went on.
    first = world.training.submit(world.record("run-1"))
    shutil.copytree(world.runs.folder("run-1"), world.runs.folder("run-1.old"))
    later = world.runs.save(world.record("run-1-b"))
    assert world.runs.names() == ["run-1", "run-1-b"]
    assert world.runs.last() == later
    assert world.training.take_up(first) == (first, True)
    with pytest.raises(ConfigError, match=r"run-1\.old is a copy of run 'run-1': name that one"):
        world.runs.read("run-1.old")
    # Renamed, it was said to be a copy of a run that nobody could name.
    world.runs.folder("run-1-b").rename(world.runs.folder("big"))
    with pytest.raises(ConfigError, match=r"big is run 'run-1-b' under another name: .* back"):
        world.runs.read("big")
