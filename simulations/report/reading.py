"""A finished run's ``report.json``, read again and checked for what is shown of it."""

import json
from pathlib import Path
from typing import Any

from common.errors import DataError
from simulations.documents import Document
from simulations.report.building import FORMAT_VERSION, REPORT

_NEEDED = (
    "format_version",
    "seed",
    "data",
    "machine",
    "experiment",
    "warnings",
    "rounds",
    "arms",
    "answer",
)
_NEEDED_OF_ARMS = (
    "metrics",
    "customers_with_targets",
    "customers_with_tail_targets",
    "quintiles",
    "per_shop",
    "vs_local",
    "vs_better",
    "level_share",
    "way",
    "home_weights",
    "privacy",
    "seconds",
    "peak_mb",
)


def read_report(folder: Path) -> Document:
    """Return the report of the run that wrote a folder.

    Raises
    ------
    DataError
        If the folder holds no report, or one that cannot be read or lacks something.
    """
    path = folder / REPORT
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name the output folders of finished runs"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): run the experiment again") from error
    report: Document = document if isinstance(document, dict) else {}
    missing = [key for key in _NEEDED if key not in report]
    arms = report.get("arms", {})
    for name, arm in arms.items() if isinstance(arms, dict) else [("", None)]:
        if not isinstance(arm, dict):
            missing.append(f"arms.{name}".rstrip("."))
            continue
        missing += [f"arms.{name}.{key}" for key in _NEEDED_OF_ARMS if key not in arm]
    if missing or report["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{path} is not a report of version {FORMAT_VERSION} (missing {missing}): run the "
            "experiment again with this code"
        )
    return report
