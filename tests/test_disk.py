"""Files that must last: whole or as they were, for nobody else's eyes, and on the disk."""

import os
import stat
from pathlib import Path

import pytest

from common.disk import write_whole


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_is_for_whom_its_mode_says_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    before = os.umask(0o077)
    try:
        write_whole(path, b"old", mode=mode)
        path.chmod(0o666)
        write_whole(path, b"new", mode=mode)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_nobody_else_reads_what_is_not_whole_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "common.disk.os.fsync", lambda handle: seen.append(os.fstat(handle).st_mode)
    )
    write_whole(tmp_path / "file", b"new", mode=0o644)
    # The file while it is a draft, then the folder with its name.
    assert stat.S_IMODE(seen[0]) == 0o600
    assert [stat.S_ISDIR(mode) for mode in seen] == [False, True]


@pytest.mark.parametrize("fails_at", ["os.fsync", "os.fdopen", "Path.replace"])
def test_what_cannot_be_written_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"common.disk.{fails_at}", fails)
        with pytest.raises(OSError, match="No space"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
