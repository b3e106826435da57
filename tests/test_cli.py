"""What all command lines share: an error is one line, whoever is at fault."""

import errno
import os
from pathlib import Path

import pytest

from common.cli import run


def fail(error: OSError) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        # A full disk names no file: what to do is all that helps.
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "Make room, then say the same command"),
        (FileExistsError(errno.EEXIST, "File exists", "out"), "error: File exists: out\n"),
        (OSError("no route"), "error: no route\n"),
        (OSError(errno.EROFS, "Read-only", "model-1", None, "models/.new"), ": models/.new\n"),
    ],
)
def test_the_machines_faults_are_one_line(
    error: OSError, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(lambda: fail(error))
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert said.count("\n") == 1
    assert words in said


def test_a_page_that_cannot_be_written_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        run(lambda: (tmp_path / "file" / "page.html").write_text(""))
    assert str(tmp_path / "file") in capsys.readouterr().err
