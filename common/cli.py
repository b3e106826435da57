"""What the command lines share: errors are one line, and the status says whose fault it was."""

import errno
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import FedtailError

logger = logging.getLogger(__name__)

_NARROWEST = 100


def run(command: Callable[[], object]) -> None:
    """Run a command line; exit with 2 for bad input and 1 for a failure, the machine's too."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        command()
    except FedtailError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
    except OSError as error:
        # A full disk, a folder that is a file, a port that is taken: the machine's, not a bug's.
        logger.debug("what failed", exc_info=True)
        # Of two, as of a link, the second is what could not be written.
        named = error.filename2 or error.filename
        place = f": {named}" if named else ""
        room = ". Make room, then say the same command again"
        full = room if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        sys.stderr.write(f"error: {error.strerror or error}{place}{full}\n")
        sys.exit(1)


def log_for_weeks(*names: str) -> None:
    """Let these loggers tell what they do, and each line of the log when it was."""
    words = "%(asctime)s %(levelname)s %(name)s %(message)s"
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(words, "%Y-%m-%dT%H:%M:%S%z"))
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout; a number that is not finite becomes null."""
    text = json.dumps(_finite(document), indent=2, allow_nan=False, ensure_ascii=False)
    sys.stdout.write(text + "\n")


def print_document(
    document: dict[str, Any], table: Callable[[dict[str, Any]], Any], *, as_json: bool
) -> None:
    """Print a document as JSON, or as what ``table`` makes of it for people."""
    if as_json:
        print_json(document)
        return
    terminal().print(table(document))


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Yield what shows the present stage on stderr: a spinner, or a line where nobody looks."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: console.print(f"{text} ...", markup=False, highlight=False)
        return
    with console.status("") as status:
        yield lambda text: status.update(escape(f"{text} ..."))


def terminal() -> Console:
    """Return a console for stdout that is wide enough for a table."""
    console = Console()
    return console if console.width >= _NARROWEST else Console(width=_NARROWEST)


def plain_table(title: str | None = None) -> Table:
    """Return a table of the look that all of the command lines' tables have."""
    return Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)


def _finite(value: Any) -> Any:  # noqa: ANN401 - a JSON value
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
