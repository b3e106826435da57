"""What an exact private step costs beside plain training and stock Opacus, in one interleaved run.

All train the same embedding table on the same batches with the same loss, each table read once on
concatenated ids, on one thread. A round is ``LOCAL_STEPS`` steps and one flush of the noise that is
still owed; the time of a private step is a round's divided by its steps. Times are processor
seconds: on an idle machine those of the clock, and on a busy one still the work's own.
"""

import ctypes
import gc
import logging
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Self

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import client.privacy
from client.privacy.noise import SystemNoise
from common.errors import RunError
from simulations.bench import step_variants as bench_variants
from simulations.bench.step_variants import (
    DIMENSION,
    HISTORY,
    LENGTH,
    NEGATIVES,
    PHYSICAL_BATCH,
    TARGETS,
    VARIANTS,
    Exact,
)
from simulations.machine import machine_facts

LOCAL_STEPS = 20
ITEMS = (10_000, 100_000, 1_000_000)
BATCHES = (64, 256, 1024)
CURVE = (10_000, 100_000, 1_000_000, 2_000_000, 4_000_000)
_CURVE_BATCH = 256
_MEMORY_STEPS = 3
# Processes of each memory measurement, of which the median counts: heaps differ a little.
_MEMORY_REPEATS = 3
# mallopt(3): blocks of 64 KB and more are given back to the system as soon as they are free.
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 1 << 16
_MEGABYTE = 2**20
# Whose instructions are watched: what the variants are, and what moves the parameters.
_WATCHED = (client.privacy.__path__[0], torch.optim.__path__[0], bench_variants.__file__)
# Ghost holds some tables and a square of each unit's reads.
_GHOST_TABLES = 6

Progress = Callable[[str], None]
# As sys.settrace calls it.
TraceFunction = Callable[[FrameType, str, Any], Any]

logger = logging.getLogger(__name__)


def bench_step(
    *,
    items: Sequence[int] = ITEMS,
    batches: Sequence[int] = BATCHES,
    curve: Sequence[int] = CURVE,
    rounds: int = 5,
    seed: int = 0,
    progress: Progress = logger.info,
) -> dict[str, Any]:
    """Measure all cells, and the curve of our step alone.

    Parameters
    ----------
    items, batches
        Products of the tables and customers of the batches: a cell for each pair.
    curve
        Products of the tables that our step is measured on, with batches of 256.
    rounds
        Rounds of each cell; a ratio is the median over them.

    Returns
    -------
    dict
        ``cells``, ``curve``, ``setting``, ``machine``. Ratios are ours over theirs, but
        ``ratio_to_ghost`` says how many times faster ours is; null where ghost does not fit. Memory
        is the peak above the model, with all that a variant keeps beside it.
    """
    with _one_thread():
        pairs = [(size, batch) for size in items for batch in batches]
        progress("memory of all cells")
        memories = _memories(pairs, seed)
        cells = []
        for (size, batch), memory in zip(pairs, memories, strict=True):
            progress(f"{size:,} products, batches of {batch}")
            cells.append({**_cell(size, batch, rounds, seed), **memory})
        points = []
        for size in curve:
            progress(f"curve: {size:,} products")
            points.append(_point(size, seed))
    setting = {
        "history": HISTORY,
        "targets": TARGETS,
        "negatives": NEGATIVES,
        "dimension": DIMENSION,
        "local_steps": LOCAL_STEPS,
        "physical_batch": PHYSICAL_BATCH,
        "rounds": rounds,
        "seed": seed,
        "threads": 1,
        "clock": "processor seconds",
        "noise": SystemNoise.name,
    }
    return {"cells": cells, "curve": points, "setting": setting, "machine": machine_facts()}


def _cell(items: int, batch: int, rounds: int, seed: int) -> dict[str, Any]:
    names = [name for name in VARIANTS if name != "ghost" or _ghost_fits(items, batch)]
    running = {name: VARIANTS[name](items, batch) for name in names}
    draws = _batches(items, batch, seed)
    for name in names:
        for _ in range(2):
            running[name].step(next(draws))
        running[name].flush()
    times: dict[str, list[float]] = {name: [] for name in ("flush", "single", *names)}
    for number in range(rounds):
        taken = dict.fromkeys(names, 0.0)
        for _ in range(LOCAL_STEPS):
            ids = next(draws)
            for name in ("exact", "plain", "sparse"):
                taken[name] += _timed(running[name].step, ids)
        flush = _timed(running["exact"].flush)
        times["flush"].append(flush)
        for name in ("plain", "sparse"):
            times[name].append(taken[name] / LOCAL_STEPS)
        times["exact"].append((taken["exact"] + flush) / LOCAL_STEPS)
        # A round of one step: nearly all rows are owed one step's noise.
        single = _timed(running["exact"].step, next(draws))
        times["single"].append(single + _timed(running["exact"].flush))
        if "ghost" in names and number < 3:
            times["ghost"].append(_timed(running["ghost"].step, next(draws)))
    ratios = {
        name: statistics.median(
            ours / other for ours, other in zip(times["exact"], times[name], strict=True)
        )
        for name in ("plain", "sparse")
    }
    medians = {name: statistics.median(found) for name, found in times.items() if found}
    ghost = medians.get("ghost")
    return {
        "items": items,
        "batch": batch,
        "ratio_to_plain": ratios["plain"],
        "ratio_to_sparse": ratios["sparse"],
        "ratio_to_ghost": ghost / medians["exact"] if ghost else None,
        "milliseconds": {
            name: medians[name] * 1e3 for name in (*names, "flush") if name in medians
        },
        "one_step_a_round": {
            "milliseconds": medians["single"] * 1e3,
            "ratio_to_plain": medians["single"] / medians["plain"],
        },
    }


def _point(items: int, seed: int) -> dict[str, Any]:
    ours = Exact(items, _CURVE_BATCH)
    draws = _batches(items, _CURVE_BATCH, seed)
    steps, flushes, touched = [], [], []
    ours.step(next(draws))
    for _ in range(2):
        for _ in range(LOCAL_STEPS):
            ids = next(draws)
            touched.append(len(torch.unique(ids)))
            steps.append(_timed(ours.step, ids))
        flushes.append(_timed(ours.flush))
    step, flush = statistics.median(steps), statistics.median(flushes)
    return {
        "items": items,
        "batch": _CURVE_BATCH,
        "rows_touched": round(statistics.mean(touched)),
        "step_milliseconds": step * 1e3,
        "flush_milliseconds": flush * 1e3,
        "milliseconds": (step + flush / LOCAL_STEPS) * 1e3,
    }


def _timed(act: Callable[..., None], *arguments: Tensor) -> float:
    started = time.process_time()
    act(*arguments)
    return time.process_time() - started


def _batches(items: int, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(items, (batch, LENGTH), generator=generator)


def _ghost_fits(items: int, batch: int) -> bool:
    numbers = _GHOST_TABLES * items * DIMENSION + batch * LENGTH * (LENGTH + 6 * DIMENSION)
    return 4 * numbers < psutil.virtual_memory().available / 2


def _memories(pairs: Sequence[tuple[int, int]], seed: int) -> list[dict[str, float | None]]:
    """Return the peak memory of each variant for pairs of products and batch.

    Each is measured in processes of its own, in which nothing else has run before.
    """
    found: list[dict[str, float | None]] = _apart("spawn", _peaks, pairs, seed)
    return found


def _peaks(pairs: Sequence[tuple[int, int]], seed: int) -> list[dict[str, float | None]]:
    return [
        {
            "peak_mb" if name == "exact" else f"peak_mb_{name}": None
            if name == "ghost" and not _ghost_fits(items, batch)
            else statistics.median(
                _apart("fork", peak_megabytes, name, items, batch, seed)
                for _ in range(_MEMORY_REPEATS)
            )
            for name in VARIANTS
        }
        for items, batch in pairs
    ]


def _apart(start: str, act: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    """Return what ``act`` finds in a process of its own, started in one of Python's ways."""
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    # The contexts that there are all have one.
    child = context.Process(target=_send, args=(sender, act, *arguments))  # type: ignore[attr-defined]
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        child.join()
        raise RunError(
            f"a process ended with {child.exitcode} before it said what it measured: "
            "-9 is what a machine without enough memory does"
        ) from error
    finally:
        child.join()


def _send(sender: Connection, act: Callable[..., Any], *arguments: object) -> None:
    with _one_thread():
        sender.send(act(*arguments))


def peak_megabytes(name: str, items: int, batch: int, seed: int) -> float:
    """Return the peak of this process while a variant trains, above the process and its table.

    What a variant keeps beside the table, counters or buffers, is above it too; the code of
    libraries, which is mapped as it is first run, is not. Linux' own peak is some 0.2 MB too low:
    each processor tells of its pages 32 at a time. So memory is counted at each instruction, too.
    """
    draws = _batches(items, batch, seed)
    allocator = ctypes.CDLL(None)
    allocator.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    for watch in (nullcontext(), _Watch()):
        # Libraries take memory of their own at their first call, and so do compiled loops: of one
        # batch, and of several that make one step.
        warm = VARIANTS[name](100, 2)
        with watch:
            for _ in range(2):  # Ours reads what has moved from its second step on.
                warm.step(next(_batches(100, PHYSICAL_BATCH + 1, seed)))
            warm.flush()
    del warm
    gc.collect()
    allocator.malloc_trim(0)
    before = _own_bytes()
    variant = VARIANTS[name](items, batch)
    # Linux counts a new peak from here: making a start value is no part of training.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    watched = _Watch()
    with watched:
        for _ in range(_MEMORY_STEPS):
            variant.step(next(draws))
        variant.flush()
    mapped = _kernel_bytes("RssFile") + _kernel_bytes("RssShmem")
    peak = max(watched.peak, _kernel_bytes("VmHWM") - mapped)
    return (peak - before - 4 * items * DIMENSION) / _MEGABYTE


class _Watch(TorchDispatchMode):
    """Counts the process's own memory before each watched instruction, and after each of torch.

    Whatever an expression has made on the way is then still there.

    Attributes
    ----------
    peak
        The most so far, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.peak = 0

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call] # torch's
        self._traced_before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.settrace(self._traced_before)
        super().__exit__(*raised)  # type: ignore[no-untyped-call] # torch's

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        found = func(*args, **(kwargs or {}))
        self.peak = max(self.peak, _own_bytes())
        return found

    def _trace(self, frame: FrameType, *event: object) -> TraceFunction | None:  # noqa: ARG002
        if not frame.f_code.co_filename.startswith(_WATCHED):
            return None
        frame.f_trace_opcodes = True
        self.peak = max(self.peak, _own_bytes())
        return self._trace


def _own_bytes() -> int:
    """Return what memory the process has besides what it maps of files.

    Exact from Linux 6.16, which adds up what each processor has yet to tell.
    """
    return _kernel_bytes("RssAnon")


def _kernel_bytes(name: str) -> int:
    """Return a count of this process's memory that Linux keeps."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # What stock Opacus says of its generators and of a backward hook.
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def targets_missed(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each cell and target that it does not meet; for people and tests."""
    missed = []
    for cell in cells:
        bounds = {
            "ratio_to_plain": 1.0 if cell["items"] >= 1_000_000 else 2.0,
            "ratio_to_sparse": 3.5,
        }
        here = f"{cell['items']:,} products, batches of {cell['batch']}"
        missed += [
            f"{here}: {name} {cell[name]:.2f} is above {bound}"
            for name, bound in bounds.items()
            if cell[name] > bound
        ]
        if cell["ratio_to_ghost"] is not None and cell["ratio_to_ghost"] < 5:
            missed.append(f"{here}: ratio_to_ghost {cell['ratio_to_ghost']:.2f} is below 5")
        if cell["peak_mb"] > cell["peak_mb_plain"]:
            missed.append(
                f"{here}: peak_mb {cell['peak_mb']:.1f} is above {cell['peak_mb_plain']:.1f}"
            )
    return missed
