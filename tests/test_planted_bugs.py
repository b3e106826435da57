"""Mistakes that ruin privacy, planted one by one: the suite must notice each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from planting import BUGS, VARIABLE

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "privacy.md"


def run(tests: list[str], planted: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, VARIABLE: planted, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "planting", *tests]
    command += ["-p", "no:cacheprovider", "--no-header"]
    return subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str) -> None:
    found = run([BUGS[name].caught_by], name)
    # 1: a test failed. Anything else is no catch: no such test, or a bug that could not be planted.
    assert found.returncode == 1, found.stdout + found.stderr
    assert re.search(r"^FAILED", found.stdout, flags=re.MULTILINE), found.stdout


@pytest.mark.slow
def test_without_a_bug_the_same_tests_pass() -> None:
    found = run(sorted({bug.caught_by for bug in BUGS.values()}), "")
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_page_names_the_test_that_catches_each() -> None:
    listed = PAGE.read_text(encoding="utf-8").split("<!-- planted bugs -->")[1]
    rows = [f"| {bug.what} | `{bug.caught_by}` |" for bug in BUGS.values()]
    assert [line for line in listed.splitlines() if line.startswith("| ")] == [
        "| mistake | caught by |",
        *rows,
    ]
