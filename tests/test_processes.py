"""What processes do to others of the same machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.settings import RUN_VARIABLE
from common.programs.processes import finished

_NICENESS = "import os; import client.app; print(os.nice(0))"
_GROUP = Path("/proc/self/autogroup")


def test_words_that_are_no_text_are_no_failure() -> None:
    code = r"import os; os.write(1, b'caf\xe9'); os.write(2, b'\xff')"
    done = finished([sys.executable, "-I", "-S", "-c", code], seconds=60.0, what="a program")
    assert (done.stdout, done.stderr, done.returncode) == ("caf\ufffd", "\ufffd", 0)


def _app(code: str, run: str | None) -> str:
    env = {key: value for key, value in os.environ.items() if key != RUN_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env if run is None else {**env, RUN_VARIABLE: run},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    return done.stdout.strip()


def test_a_shops_training_gives_way_and_a_simulation_does_not(tmp_path: Path) -> None:
    here = os.nice(0)
    assert int(_app(_NICENESS, str(tmp_path))) == min(here + 10, 19)
    # Simulated clients have nobody to give way to.
    assert int(_app(_NICENESS, None)) == here


@pytest.mark.skipif(not _GROUP.exists(), reason="this kernel has no niceness of sessions")
def test_it_gives_way_to_other_sessions_too(tmp_path: Path) -> None:
    code = f"import client.app; print(open('{_GROUP}').read())"
    assert _app(code, str(tmp_path)).endswith(f"nice {min(os.nice(0) + 10, 19)}")


@pytest.mark.skipif(not _GROUP.exists(), reason="this kernel has no niceness of sessions")
def test_who_starts_it_does_not_give_way(tmp_path: Path) -> None:
    """The program that starts a process a message would start the next ones ever later."""
    code = (
        "import subprocess, sys; from pathlib import Path; "
        f"group = Path('{_GROUP}'); before = group.read_text(); "
        "subprocess.run([sys.executable, '-c', 'import client.app'], check=True); "
        "print(group.read_text() == before)"
    )
    assert _app(code, str(tmp_path)) == "True"
