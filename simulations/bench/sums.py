"""What a secure sum costs: bytes and seconds beside a plain exchange and Flower's own SecAgg+.

All three exchange the same arrays with the same number of shops, in turns, through one grid that
turns every message into Flower's protobuf and back. Seconds are processor seconds, of one shop and
of the server, with the encoding of messages and without training, network and Flower's polls.

Where all shops together would take too long, one does all of a shop's work, and the others leave
out the masks among themselves, which cancel in the sum: what they send has the same size, the
server's work is the same, and the sums are held against the right ones.
"""

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.protocol import ITEMS
from simulations.bench.metered import Meter
from simulations.bench.secagg_plus import secagg_plus_exchange
from simulations.bench.sum_arms import Cell, plain_exchange, secure_exchange
from simulations.documents import to_json, write_text
from simulations.machine import machine_facts

MEGABYTES = (1.0, 4.0, 16.0, 64.0)
SHOPS = (3, 10, 30, 94)
ARMS = ("plain", "secure_sum", "secagg_plus")
#: Up to so many megabytes the noise is drawn; beyond, its time is a multiple of the largest drawn.
NOISE_MEGABYTES = 4.0
#: At most so many times a plain exchange's bytes.
MOST_BYTES = 1.5
_WIDTH = 16
_NUMBER_BYTES = 4
# Megabytes of masks up to which all shops of a cell do all of their work, and cells run thrice.
_ALL_MASKS = 600.0
_REPEATS = 3


def bench_sums(
    megabytes: Sequence[float] = MEGABYTES,
    shops: Sequence[int] = SHOPS,
    progress: Callable[[str], object] = lambda _: None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Measure all sizes with all numbers of shops.

    Parameters
    ----------
    keep
        File of what is measured so far: what it holds is not measured again.

    Returns
    -------
    dict
        ``cells``: for each size and number of shops ``plain``, ``secure_sum`` and ``secagg_plus``
        with bytes and seconds a shop and round; ``growth``: exponents of each with size and shops;
        ``missed``: what is not as cheap as it should be; and the machine.

    Raises
    ------
    ConfigError
        If a size or a number of shops makes no sum, or ``keep`` is of another machine.
    """
    if min(shops) < 3 or min(megabytes) <= 0:
        raise ConfigError("a sum takes 3 shops at least, and arrays of some size")
    machine = machine_facts()
    kept = _kept(keep, machine)
    for size in sorted(megabytes):
        for count in sorted(shops):
            if (size, count) in kept:
                continue
            progress(f"{size:g} MB, {count} shops")
            drawn = any(s == size and "drawn" in c["secure_sum"] for (s, _), c in kept.items())
            noisy = size <= NOISE_MEGABYTES and not drawn
            kept[size, count] = _measure(size, count, progress, noisy=noisy)
            if keep is not None:
                write_text(keep, to_json({"cells": [*kept.values()], "machine": machine}))
    cells = [kept[size, count] for size in sorted(megabytes) for count in sorted(shops)]
    _tell_noise(cells)
    return {
        "cells": cells,
        "growth": growth(cells),
        "missed": missed(cells),
        "machine": machine,
    }


def missed(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cells whose secure sum takes more than its share of bytes, in words."""
    return [
        f"{cell['megabytes']:g} MB, {cell['shops']} shops: {cell['bytes_over_plain']:.3f} times "
        f"plain bytes, more than {MOST_BYTES:g}"
        for cell in cells
        if cell["bytes_over_plain"] > MOST_BYTES
    ]


def growth(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return arm -> figure -> the exponent p in size^p and in shops^p, at the grid's far edges.

    ``with_megabytes`` goes from the smallest size to the largest at the most shops,
    ``with_shops`` from the fewest shops to the most at the largest size; 0 is no growth, 1 is
    growth in proportion.
    """
    by_place = {(cell["megabytes"], cell["shops"]): cell for cell in cells}
    sizes, counts = ([*sorted({place[k] for place in by_place})] for k in (0, 1))
    corners = {
        "with_megabytes": ((sizes[0], counts[-1]), (sizes[-1], counts[-1])),
        "with_shops": ((sizes[-1], counts[0]), (sizes[-1], counts[-1])),
    }
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for arm in ARMS:
        found[arm] = {}
        for figure in ("bytes", "shop_seconds", "server_seconds"):
            found[arm][figure] = {}
            for name, (low, high) in corners.items():
                times = math.log(max(high[0] / low[0], high[1] / low[1]))
                values = [by_place[place][arm][figure] for place in (low, high)]
                there = times > 0 and min(values) > 0
                found[arm][figure][name] = (
                    math.log(values[1] / values[0]) / times if there else None
                )
    return found


def lines(result: dict[str, Any]) -> list[str]:
    """Return what was measured for people, a line a cell and arm, and how it grows."""
    found = []
    for cell in result["cells"]:
        for arm in ARMS:
            one = cell[arm]
            noise = one.get("noise_seconds")
            found.append(
                f"{cell['megabytes']:g} MB, {cell['shops']} shops, {arm}: "
                f"{one['bytes'] / 2**20:.2f} MB ({one['bytes'] / cell['plain']['bytes']:.3f} times "
                f"plain), {one['shop_seconds']:.3f} s a shop, {one['server_seconds']:.3f} s at the "
                "server" + ("" if noise is None else f", noise {noise:.1f} s ({one['noise']})")
            )
    for arm, figures in result["growth"].items():
        found += [f"growth of {arm}, {figure}: {grown}" for figure, grown in figures.items()]
    return found


def make_cell(megabytes: float, shops: int) -> Cell:
    """Return a cell of the grid."""
    rows = max(round(megabytes * 2**20 / _NUMBER_BYTES / _WIDTH), 1)
    few = shops * shops * megabytes <= _ALL_MASKS
    return Cell({ITEMS: (rows, _WIDTH)}, shops, shops if few else 1)


def _kept(file: Path | None, machine: Mapping[str, Any]) -> dict[tuple[float, int], dict[str, Any]]:
    if file is None or not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        kept = {(cell["megabytes"], cell["shops"]): cell for cell in found["cells"]}
        other = [name for name, value in machine.items() if found["machine"][name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} holds nothing that this bench measured") from error
    if other:  # seconds of two machines side by side would say nothing
        raise ConfigError(
            f"{file} was measured with another {', '.join(other)}: go on there, or keep what is "
            "measured here in another file"
        )
    return kept


def _tell_noise(cells: Sequence[dict[str, Any]]) -> None:
    """Say of each cell what its noise takes: it depends on the size, not on the shops."""
    drawn = {c["numbers"]: c["secure_sum"]["drawn"] for c in cells if "drawn" in c["secure_sum"]}
    for cell in cells:
        secure = cell["secure_sum"]
        numbers = max((n for n in drawn if n <= cell["numbers"]), default=None)
        if numbers is None:
            secure["noise_seconds"], secure["noise"] = None, "not drawn"
            continue
        secure["noise_seconds"] = drawn[numbers] * cell["numbers"] / numbers
        secure["noise"] = "extrapolated" if numbers < cell["numbers"] else "drawn"


def _measure(
    megabytes: float, shops: int, progress: Callable[[str], object], *, noisy: bool
) -> dict[str, Any]:
    cell = make_cell(megabytes, shops)
    repeats = _REPEATS if cell.timed == shops else 1
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    drawn: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ft-sums-") as name:
        for repeat in range(repeats):
            progress(f"  plain, {repeat + 1} of {repeats}")
            runs["plain"].append(_figures(cell, plain_exchange(cell)))
            progress(f"  secure sum, {repeat + 1} of {repeats}")
            # Once is enough: it is told apart, and takes longer than all else together.
            draws = noisy and repeat == 0
            secure = secure_exchange(cell, Path(name) / str(repeat), noisy=draws)
            if secure.noise_seconds is not None:
                drawn["drawn"] = secure.noise_seconds
            runs["secure_sum"].append(_figures(cell, secure.meter))
            progress(f"  SecAgg+, {repeat + 1} of {repeats}")
            runs["secagg_plus"].append(_figures(cell, secagg_plus_exchange(cell)))
    medians: dict[str, Any] = {
        arm: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for arm, found in runs.items()
    }
    medians["secure_sum"] |= drawn
    return {
        "megabytes": megabytes,
        "numbers": cell.length,
        "shops": shops,
        "threshold": cell.threshold,
        "fully_timed_shops": cell.timed,
        "repeats": repeats,
        "bytes_over_plain": medians["secure_sum"]["bytes"] / medians["plain"]["bytes"],
        "secagg_plus_bytes_over_plain": medians["secagg_plus"]["bytes"] / medians["plain"]["bytes"],
        **medians,
    }


def _figures(cell: Cell, meter: Meter) -> dict[str, float]:
    """Return what one exchange took, for a shop: bytes are a mean over all, seconds of the timed.

    Stages' own figures are those of the shops that do all of a shop's work.
    """
    timed = [meter.shops[node] for node, shop in cell.nodes.items() if shop < cell.timed]
    down = sum(meter.to_shops.values()) / cell.shops
    up = sum(meter.from_shops.values()) / cell.shops
    return {
        "bytes": down + up,
        "bytes_to_shop": down,
        "bytes_from_shop": up,
        "shop_seconds": statistics.fmean(sum(stages.values()) for stages in timed),
        "server_seconds": meter.server_seconds,
    }
