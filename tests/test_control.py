"""What the operator's commands ask of SuperLink when the machine is in trouble."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import RunError
from common.programs.processes import environment
from server.operating import control as controlling
from server.operating.control import Control


def control(folder: Path) -> Control:
    return Control("127.0.0.1:1", environment(folder / "flwr", {}))


def test_superlink_can_be_asked_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    control(tmp_path)
    config = tmp_path / "flwr" / "config.toml"
    known = config.read_bytes()
    monkeypatch.setattr(Path, "write_text", full)
    # A shop that is removed has to be refused whatever room there is: nothing new is written.
    with pytest.raises(RunError, match="does not answer"):
        control(tmp_path).nodes()
    assert config.read_bytes() == known
    assert sorted(path.name for path in config.parent.iterdir()) == ["config.toml", "empty"]


def test_a_command_of_flower_s_that_hangs_is_a_failure_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "flwr-that-hangs"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setattr(controlling, "tool", lambda _: str(slow))
    monkeypatch.setattr(controlling, "_SECONDS", 0.2)
    asked: list[Any] = [lambda c: c.log("1"), lambda c: c.submit(tmp_path, {})]
    for ask in asked:
        with pytest.raises(RunError, match=r"`flwr (log|run)` did not end within 0\.2 s"):
            ask(control(tmp_path))
