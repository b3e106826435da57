"""What a run was measured on."""

import os
import platform
import threading
import time
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import psutil

_PACKAGES = ("flwr", "opacus", "torch", "numpy")


def machine_facts() -> dict[str, Any]:
    """Return processors, memory in GB, system and the versions that matter."""
    return {
        "cpus": usable_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def usable_cpus() -> int:
    """Return how many processors this process may use: a container is often given fewer."""
    return len(os.sched_getaffinity(0))


class PeakMemory:
    """Watches time and the resident memory of this process and all that it started.

    Attributes
    ----------
    seconds, peak_mb
        So far.
    """

    _EVERY = 0.5

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._process = psutil.Process()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._started = time.monotonic()
        self.peak_mb = 0.0

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self._started

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(self._EVERY):
            self._look()

    def _look(self) -> None:
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        self.peak_mb = max(self.peak_mb, total / 2**20)
