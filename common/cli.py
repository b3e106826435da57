"""What the command lines share: errors are one line, and the status says whose fault it was."""

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import FedtailError


def run(command: Callable[[], object]) -> None:
    """Run a command line; exit with 2 for bad input and 1 for a failure."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        command()
    except FedtailError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)


def print_json(document: Mapping[str, Any]) -> None:
    """Write one JSON document to stdout; a number that is not finite becomes null."""
    text = json.dumps(_finite(document), indent=2, allow_nan=False, ensure_ascii=False)
    sys.stdout.write(text + "\n")


def _finite(value: Any) -> Any:  # noqa: ANN401 - a JSON value
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
