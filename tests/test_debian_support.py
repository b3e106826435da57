"""On a new machine the suite's workers install what they need, one after the other."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from debian_support import install


def test_two_workers_install_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As apt does, it refuses to run where another one does.
    apt = tmp_path / "apt-get"
    held = tmp_path / "lock"
    apt.write_text(f"#!/bin/sh\nmkdir {held} || exit 100\nsleep 0.2\nrmdir {held}\n")
    apt.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with ThreadPoolExecutor(2) as workers:
        assert list(workers.map(install, ("one", "another"))) == [True, True]
