"""A command line as people call it, in this process: the same errors, the same exit status."""

import json
import logging
from typing import Any

import pytest
import typer

from common.cli import run


def status_of(app: typer.Typer, *words: object) -> int:
    """Run a command line; return its exit status."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        run(lambda: app([str(word) for word in words]))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    finally:
        # One that logs for weeks puts its own in their place, to a stderr that ends with the test:
        # each line of a later one's would be a stack trace.
        root.handlers[:] = handlers
    return 0


def document_of(
    capsys: pytest.CaptureFixture[str], app: typer.Typer, *words: object
) -> dict[str, Any]:
    """Run a command line with ``--json``; return the document that it prints."""
    capsys.readouterr()
    assert status_of(app, *words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
