"""Commands that run for long: how each shows what it found, and what an interruption says."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import RunError
from simulations.__main__ import app

# The command, what does its work, and what reads its file.
COMMANDS = {
    "run": ("simulations.run.run_experiment", "simulations.experiment.read_experiment"),
    "sweep": ("simulations.sweep.run.run_sweep", "simulations.sweep.plan.read_sweep"),
    "audit": ("simulations.audit.run.run_audit", "simulations.experiment.read_experiment"),
    "attack": ("simulations.attack.run.run_attack", "simulations.experiment.read_experiment"),
    "cold-start": (
        "simulations.cold_start.run.run_cold_start",
        "simulations.experiment.read_experiment",
    ),
}


@pytest.fixture(params=sorted(COMMANDS))
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    monkeypatch.setattr(COMMANDS[name][1], lambda path, changes: (path.name, changes))
    return name


def test_the_document_alone_is_on_stdout(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def work(asked: object, out: Path, watcher: object, *_: object) -> dict[str, object]:
        seen.append((asked, out))
        watcher.stage("at work")  # type: ignore[attr-defined]
        return {"found": [1, float("nan")]}

    monkeypatch.setattr(COMMANDS[command][0], work)
    options = ["--set", "run.seed=3", "--out", str(tmp_path / "out"), "--json"]
    found = CliRunner().invoke(app, [command, "an.toml", *options])
    assert found.exception is None
    assert json.loads(found.stdout) == {"found": [1, None]}
    assert "at work" in found.stderr
    assert seen == [(("an.toml", ["run.seed=3"]), tmp_path / "out")]


def test_an_interruption_says_how_to_go_on(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[command][0], interrupted)
    found = CliRunner().invoke(app, [command, "an.toml", "--out", str(tmp_path / "out")])
    assert isinstance(found.exception, RunError)
    assert "goes on where it stopped" in str(found.exception)


def test_the_page_is_named_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A long path was broken in two, and what stood in brackets was taken for a style.
    monkeypatch.setattr(COMMANDS["sweep"][1], lambda path, changes: (path.name, changes))
    nothing = {"title": "", "points": [], "settings": [], "warnings": [], "answer": []}
    monkeypatch.setattr(COMMANDS["sweep"][0], lambda *_: nothing)
    out = tmp_path / ("a long way to " * 9) / "[draft]"
    found = CliRunner().invoke(app, ["sweep", "a.toml", "--out", str(out)])
    assert found.exception is None
    assert f"The page to look at: {out / 'sweep.html'}\n" in found.stdout
