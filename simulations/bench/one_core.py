"""Measuring on one core: alone in a process with one thread on one processor, and in turns."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np

from simulations.bench.served import on_processor

_SLOWER_KERNEL = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def in_turns(
    acts: Mapping[str, Callable[[int], object]], rounds: int, draw: np.random.Generator
) -> dict[str, list[float]]:
    """Return the seconds of each act, a turn a round, in another order each round."""
    times: dict[str, list[float]] = {name: [] for name in acts}
    names = list(acts)
    for turn in range(-2, rounds):  # The first two rounds warm up.
        draw.shuffle(names)
        for name in names:
            started = time.process_time()
            acts[name](turn)
            if turn >= 0:
                times[name].append(time.process_time() - started)
    return times


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median over the rounds: what slows one turn slows its neighbours, too."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
    """Measure in a process of its own: one thread, on one processor, the fastest kernel."""
    with (
        quiet_environment(),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        on_processor(max(os.sched_getaffinity(0))),
    ):
        return pool.submit(measure, *arguments).result()


@contextmanager
def quiet_environment() -> Iterator[None]:
    """Let what is started have one thread, and no kernel forced upon it that is slower."""
    before = {name: os.environ.get(name) for name in (*_SLOWER_KERNEL, *_ONE_THREAD)}
    for name in _SLOWER_KERNEL:
        os.environ.pop(name, None)
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def kernel() -> list[dict[str, Any]]:
    """Return which kernels of linear algebra this process runs."""
    from threadpoolctl import threadpool_info

    np.ones((2, 2), np.float32) @ np.ones(2, np.float32)
    return [
        {name: found.get(name) for name in ("internal_api", "version", "architecture")}
        | {"threads": found.get("num_threads")}
        for found in threadpool_info()
    ]
