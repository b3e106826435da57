"""A command line as people call it, in this process: the same errors, the same exit status."""

import typer

from common.cli import run


def status_of(app: typer.Typer, *words: object) -> int:
    """Run a command line; return its exit status."""
    try:
        run(lambda: app([str(word) for word in words]))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0
