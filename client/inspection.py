"""A ledger looked at: grouped for people, verified, and exported whole."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from client.privacy.budget import epsilon_of
from client.privacy.events import EVENT_FIELDS, Entry, Event, canonical
from client.privacy.ledger import Ledger
from client.settings import read_settings
from common.accounting import Epsilon
from common.disk import write_whole
from common.errors import ConfigError, LedgerError
from common.protocol import NO_FINGERPRINT

Format = Literal["csv", "jsonl"]
DEFAULT_DELTA = 1e-5
# How a text begins that a spreadsheet runs.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Place:
    """Where a ledger lies, and the cap that holds for it; ``cap`` is None where nobody said."""

    ledger: Path
    cap: float | None
    delta: float
    shop: str = ""

    @classmethod
    def of(cls, path: Path, delta: float | None = None) -> "Place":
        """Return the ledger of a ``shop.toml``, or the ledger that ``path`` itself is.

        Raises
        ------
        ConfigError
            If there is no such file, or the settings are wrong.
        """
        if path.suffix == ".toml":
            settings = read_settings(path)
            return cls(
                settings.ledger,
                settings.cap_epsilon,
                settings.cap_delta if delta is None else delta,
                settings.merchant_id,
            )
        if not path.is_file():
            raise ConfigError(f"there is no ledger {path}: name a ledger or a shop.toml")
        return cls(path, None, DEFAULT_DELTA if delta is None else delta)


def show(place: Place) -> dict[str, Any]:
    """Return a verified ledger's events in groups, ε for each unit, the cap and what is left.

    Returns
    -------
    dict
        ``shop, ledger, entries, head, delta, cap_epsilon``, ``units`` (unit -> ``epsilon, method,
        upper_bound, left``) and ``groups``: events of one run, mechanism and price.

    Raises
    ------
    LedgerError
        If an entry is not as it was written.
    """
    entries = ledger_entries(place.ledger)
    costs = epsilon_of([entry.event for entry in entries], place.delta)
    return {
        "shop": place.shop,
        "ledger": str(place.ledger),
        "entries": len(entries),
        "head": entries[-1].hash if entries else NO_FINGERPRINT,
        "delta": place.delta,
        "cap_epsilon": place.cap,
        "units": {unit: _of_unit(cost, place.cap) for unit, cost in costs.items()},
        "groups": _groups(entries),
    }


def verify(place: Place, known_head: str = "") -> dict[str, Any]:
    """Check a ledger's whole chain and say where it ends.

    Raises
    ------
    ConfigError
        If there is no ledger.
    LedgerError
        Naming the first entry that is not as it was written, or the head that is not there.
    """
    if not place.ledger.is_file() and not known_head:
        raise ConfigError(f"there is no ledger {place.ledger}: nothing was charged yet")
    with Ledger.open_existing(place.ledger, known_head=known_head or NO_FINGERPRINT) as ledger:
        entries = ledger.verify()
    return {
        "ok": True,
        "ledger": str(place.ledger),
        "entries": len(entries),
        "head": entries[-1].hash if entries else NO_FINGERPRINT,
        "known_head": known_head or None,
    }


def export(place: Place, file_format: Format) -> str:
    """Return a verified ledger as CSV or JSON lines, with the columns of its table.

    A text that a spreadsheet would run as a formula has an apostrophe before it in CSV: the name of
    a run is the server's choice. JSON lines hold what the ledger holds.

    Raises
    ------
    ConfigError
        If there is no ledger.
    LedgerError
        As :func:`ledger_entries`.
    """
    if not place.ledger.is_file():
        raise ConfigError(f"there is no ledger {place.ledger}: nothing was charged yet")
    rows = [_row(entry) for entry in ledger_entries(place.ledger)]
    if file_format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ("seq", "at", *EVENT_FIELDS, "prev_hash", "hash"))
    writer.writeheader()
    for row in rows:
        cells = {**row, "parameters": canonical(row["parameters"])}
        writer.writerow({name: _inert(cell) for name, cell in cells.items()})
    return text.getvalue()


def ledger_entries(path: Path) -> list[Entry]:
    """Return the verified entries of a ledger; none where there is no such file.

    Raises
    ------
    LedgerError
        If an entry is not as it was written, or the file is none: also an empty one, which must not
        look like a ledger that nothing was charged to.
    """
    if path.is_file() and not path.stat().st_size:
        raise LedgerError(
            f"{path} is empty (0 bytes): it is not a ledger, and does not say what was spent. "
            "Restore its newest backup; delete it only if this shop never took part in a run"
        )
    return Ledger.read(path)


def write_export(path: Path, text: str) -> None:
    """Write a new file whole or not at all.

    Raises
    ------
    ConfigError
        If it exists already, or cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path} exists already: name another file")
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _inert(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell


def _row(entry: Entry) -> dict[str, Any]:
    event = {name: getattr(entry.event, name) for name in EVENT_FIELDS}
    return {
        "seq": entry.seq,
        "at": entry.at,
        **event,
        "prev_hash": entry.prev_hash,
        "hash": entry.hash,
    }


def _of_unit(cost: Epsilon, cap: float | None) -> dict[str, Any]:
    return {
        "epsilon": cost.value,
        "method": cost.method,
        "upper_bound": cost.upper_bound,
        "left": None if cap is None else max(cap - cost.value, 0.0),
    }


def _groups(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        event = entry.event
        key = (event.run_id, event.mechanism, event.unit, event.noise_multiplier)
        groups.setdefault((*key, event.sample_rate, _noise(event)), []).append(entry)
    return [_group(found) for found in groups.values()]


def _group(entries: Sequence[Entry]) -> dict[str, Any]:
    first, last = entries[0], entries[-1]
    event = first.event
    rounds = [entry.event.server_round for entry in entries]
    return {
        "run_id": event.run_id,
        "mechanism": event.mechanism,
        "unit": event.unit,
        "noise_multiplier": event.noise_multiplier,
        "sample_rate": event.sample_rate,
        "noise": _noise(event),
        "events": len(entries),
        "steps": sum(entry.event.steps for entry in entries),
        "first_round": min(rounds),
        "last_round": max(rounds),
        "since": first.at,
        "until": last.at,
    }


def _noise(event: Event) -> str:
    found: Mapping[str, object] = event.parameters
    return str(found.get("noise", ""))
