"""Small programs in place of Flower's: what ends, why, and that nothing is left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.errors import RunError
from common.programs.processes import carriers, environment, free_port, listens
from common.programs.supervisor import Program, Supervisor, set_aside

pytestmark = pytest.mark.e2e

VARIABLE = "FEDTAIL_TEST_TOKEN"
WAIT_SECONDS = 60.0


@pytest.fixture
def token() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    def make(code: str, name: str = "small", **settings: object) -> Program:
        return Program(
            name,
            [sys.executable, "-c", code],
            environment(tmp_path / "flwr", {}),
            tmp_path,
            tmp_path / f"{name}.log",
            **settings,  # type: ignore[arg-type]
        )

    return make


def step_until(supervisor: Supervisor, there: Callable[[], bool]) -> list[str]:
    again, until = [], time.monotonic() + WAIT_SECONDS
    while not there():
        assert time.monotonic() < until
        again += supervisor.step()
        time.sleep(0.02)
    return again


SLEEP = "import time; time.sleep(600)"
#: Starts a process that would outlive it, as Flower's executor does.
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"


def test_all_ends_together_also_what_programs_started(
    program: Callable[..., Program], token: str
) -> None:
    with Supervisor(VARIABLE, token) as supervisor:
        supervisor.start(program(PARENT))
        supervisor.start(program(SLEEP, "other"))
        step_until(supervisor, lambda: len(carriers(VARIABLE, token)) == 3)
        # The parent dies at its signal; its child is found by the token alone.
    assert carriers(VARIABLE, token) == []


def test_what_dies_is_started_again_after_longer_and_longer_pauses(
    program: Callable[..., Program], token: str
) -> None:
    with Supervisor(VARIABLE, token) as supervisor:
        supervisor.start(program("raise SystemExit(3)"))
        began = time.monotonic()
        again = step_until(supervisor, lambda: supervisor.restarts("small") == 2)
        assert again == ["small", "small"]
        # Half a second, then one.
        assert time.monotonic() - began >= 1.5
        first = None
        supervisor.start(program(SLEEP, "steady"))
        first = supervisor.pid("steady")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        step_until(supervisor, lambda: supervisor.pid("steady") not in (None, first))


def test_what_cannot_be_started_again_now_is_tried_later(
    program: Callable[..., Program], token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine without memory, which killed it, or on a full disk.
    tries: list[float] = []
    with Supervisor(VARIABLE, token) as supervisor:
        # On a busy machine a try takes a while until it fails: the pause is counted from then on.
        supervisor.start(program(SLEEP, clear=lambda: time.sleep(0.0 if tries else 0.2)))
        first = supervisor.pid("small")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        step_until(supervisor, lambda: supervisor.pid("small") is None)
        with monkeypatch.context() as patched:

            def fails(*_: object, **__: object) -> None:
                tries.append(time.monotonic())
                raise OSError(12, "Cannot allocate memory")

            patched.setattr(subprocess, "Popen", fails)
            step_until(supervisor, lambda: len(tries) == 2)
        assert tries[1] - tries[0] >= 1.0
        assert supervisor.pid("small") is None
        step_until(supervisor, lambda: supervisor.pid("small") not in (None, first))
        assert supervisor.restarts("small") == 1


def test_some_ends_are_final_and_say_why(program: Callable[..., Program], token: str) -> None:
    def final(status: int) -> str | None:
        return "nobody enrolled this shop" if status == 3 else None

    with Supervisor(VARIABLE, token) as supervisor:
        supervisor.start(program("raise SystemExit(3)", final=final))
        supervisor.start(program(SLEEP, "other"))
        with pytest.raises(RunError, match=r"small ended \(status 3\): nobody enrolled"):
            step_until(supervisor, lambda: False)
    assert carriers(VARIABLE, token) == []


def test_a_program_that_does_not_come_up_is_said_with_the_end_of_its_log(
    program: Callable[..., Program], token: str
) -> None:
    port = free_port()
    assert not listens(port)
    with Supervisor(VARIABLE, token) as supervisor:
        supervisor.start(program("print('port taken', flush=True); raise SystemExit(4)"))
        with pytest.raises(RunError, match=r"small ended \(status 4\)\nport taken"):
            supervisor.wait_until("small", lambda: listens(port), WAIT_SECONDS)
        supervisor.start(program(SLEEP, "slow"))
        with pytest.raises(RunError, match=r"slow was not ready in 0\.2 s"):
            supervisor.wait_until("slow", lambda: listens(port), 0.2)


def test_what_ignores_its_signal_is_killed_and_what_hides_is_cleared(
    program: Callable[..., Program], token: str
) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('deaf', flush=True); time.sleep(600)"
    )
    cleared: list[str] = []
    small = program(deaf, clear=lambda: cleared.append("now"))
    with Supervisor(VARIABLE, token, grace_seconds=0.3) as supervisor:
        supervisor.start(small)
        assert cleared == ["now"]
        supervisor.wait_until("small", lambda: "deaf" in small.tail(), WAIT_SECONDS)
        pid = supervisor.pid("small")
    assert not psutil.pid_exists(pid or 0)
    assert cleared == ["now", "now"]


def test_the_next_one_ends_what_a_killed_one_left(
    program: Callable[..., Program], token: str
) -> None:
    left = program(SLEEP)
    orphan = subprocess.Popen(left.command, env={**left.environment, VARIABLE: token})
    try:
        # For a moment after its start a process shows no environment.
        while not carriers(VARIABLE, token):
            time.sleep(0.01)
        with Supervisor(VARIABLE, token):
            assert orphan.wait(WAIT_SECONDS) == -signal.SIGKILL
    finally:
        orphan.kill()
        orphan.wait()


def test_logs_and_files_are_for_their_owner_and_do_not_grow_for_ever(
    program: Callable[..., Program], token: str, tmp_path: Path
) -> None:
    small = program(f"open('made', 'w').write('x'); print('again', flush=True); {SLEEP}")
    with Supervisor(VARIABLE, token) as supervisor:
        supervisor.start(small)
        supervisor.wait_until("small", lambda: "again" in small.tail(), WAIT_SECONDS)
    for name in ("small.log", "made"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    set_aside(small.log)
    assert small.log.exists()
    with small.log.open("ab") as log:
        log.truncate(64 * 1024 * 1024)
    set_aside(small.log)
    assert not small.log.exists()
    assert small.log.with_suffix(".log.1").exists()
    set_aside(small.log)
