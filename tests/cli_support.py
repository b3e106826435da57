"""A command line as people call it, in this process: the same errors, the same exit status."""

import json
from typing import Any

import pytest
import typer

from common.cli import run


def status_of(app: typer.Typer, *words: object) -> int:
    """Run a command line; return its exit status."""
    try:
        run(lambda: app([str(word) for word in words]))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def document_of(
    capsys: pytest.CaptureFixture[str], app: typer.Typer, *words: object
) -> dict[str, Any]:
    """Run a command line with ``--json``; return the document that it prints."""
    capsys.readouterr()
    assert status_of(app, *words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
