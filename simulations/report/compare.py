"""Runs side by side: read their reports, say what differs, show every arm."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from simulations.documents import Document, write_text
from simulations.report.page import render_comparison
from simulations.report.reading import read_report

_KEPT = (
    "metrics",
    "customers_with_targets",
    "customers_with_tail_targets",
    "vs_local",
    "vs_better",
    "level_share",
    "way",
    "privacy",
    "seconds",
    "peak_mb",
    "home_weights",
)


def compare(folders: Sequence[Path], out: Path | None = None) -> Document:
    """Put the runs in ``folders`` side by side.

    Parameters
    ----------
    folders
        Output folders of runs, in the order to show them.
    out
        Folder to write ``compare.html`` into; None writes nothing.

    Returns
    -------
    dict
        ``runs`` (``name``, ``folder``, ``answer``, ``warnings``, ``arms``), and ``changed``: every
        setting, or fact of the data, that is not the same in all runs, by run name. For
        :func:`simulations.report.tables.comparison_table`, or to print as JSON.

    Raises
    ------
    ConfigError
        If a folder is given twice.
    DataError
        If a folder holds no report, or one that cannot be read or lacks something.
    """
    documents = {name: read_report(folder) for name, folder in _names(folders).items()}
    settings = {
        name: {
            "seed": document["seed"],
            **_flat(document["experiment"]),
            **{f"data facts: {key}": value for key, value in _flat(document["data"]).items()},
        }
        for name, document in documents.items()
    }
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    changed = {
        key: {name: values.get(key) for name, values in settings.items()}
        for key in keys
        if len({json.dumps(values.get(key)) for values in settings.values()}) > 1
    }
    comparison: Document = {
        "runs": [
            {
                "name": name,
                "folder": str(folder),
                "answer": documents[name]["answer"],
                "warnings": documents[name]["warnings"],
                "arms": {
                    arm: {key: values[key] for key in _KEPT} | {"draws": values.get("draws")}
                    for arm, values in documents[name]["arms"].items()
                },
            }
            for name, folder in _names(folders).items()
        ],
        "changed": changed,
    }
    if out is not None:
        write_text(out / "compare.html", render_comparison(comparison))
    return comparison


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the shortest names that tell the folders apart: their own, or their paths."""
    places = [folder.resolve() for folder in folders]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise ConfigError(f"{twice[0]} is given twice: name each run once")
    own = [place.name for place in places]
    names = own if len(set(own)) == len(own) else [str(folder) for folder in folders]
    return dict(zip(names, folders, strict=True))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": entry for name, entry in _flat(value).items()}
        else:
            flat[key] = value
    return flat
