"""What many shops on one machine take of it: memory by program, and seconds a round.

Everything runs as it is deployed, one gateway for all. Memory is proportional set size: what
processes share is divided among them, so that sums are what the machine has to have.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
import psutil

from client.settings import RUN_VARIABLE
from common.config import ConfigValue
from simulations.bench.deployment import Progress, running, train
from simulations.loopback.deployment import LocalDeployment
from simulations.machine import machine_facts

COUNTS = (5, 10, 25)
#: A shop's own programs, in the order in which a message passes through them.
SHOP = ("client run", "supernode", "shop superexec", "clientapp")
SERVER = ("server up", "gateway", "superlink", "server superexec", "serverapp")
_ITEMS, _WIDTH = 1_000, 4
_CUSTOMERS, _BOUGHT = 12, 5
# A look takes time of the shops' own: at most a fifth of all.
_PAUSE, _PAUSE_OF_A_LOOK = 1.0, 4.0
# Of command lines, with whether a shop's environment goes with it.
_PROGRAMS: Mapping[tuple[str, bool], str] = {
    ("client.node", True): "supernode",
    ("flower-superexec", True): "shop superexec",
    ("flwr-clientapp", True): "clientapp",
    ("flower-superexec", False): "server superexec",
    ("flwr-serverapp", False): "serverapp",
    ("flower-superlink", False): "superlink",
    ("nginx", False): "gateway",
    ("client run", False): "client run",
    ("server up", False): "server up",
}


def bench_shops(
    progress: Progress, *, counts: tuple[int, ...] = COUNTS, rounds: int = 5
) -> dict[str, Any]:
    """Train with so many tiny shops on this machine, and say what they and the server take.

    Returns
    -------
    dict
        For each count what :func:`figures` says, ``seconds_per_round``, how many answers were
        ``missed`` (a machine that is too busy loses one now and then) and the machine's ``load``;
        and the machine.
    """
    return {
        "shops": {str(count): _crowd(progress, count, rounds) for count in counts},
        "rounds": rounds,
        "machine": machine_facts(),
    }


def figures(peaks: Mapping[int, tuple[str, float, float]]) -> dict[str, Any]:
    """Return what programs took, from the peaks of their processes.

    Parameters
    ----------
    peaks
        Process id -> program, MB in proportion, MB resident.

    Returns
    -------
    dict
        ``programs``: name -> ``mb`` and ``rss_mb``, medians of the processes' peaks; ``shop_mb``:
        of a shop that works at a message, and of one that waits; ``server_mb``.
    """
    programs = {
        name: {
            "processes": len(found),
            "mb": round(statistics.median(one[0] for one in found), 1),
            "rss_mb": round(statistics.median(one[1] for one in found), 1),
        }
        for name in (*SHOP, *SERVER)
        if (found := [(mb, rss) for kind, mb, rss in peaks.values() if kind == name])
    }

    def total(names: Iterable[str]) -> float:
        return round(sum(float(programs[n]["mb"]) for n in names if n in programs), 1)

    # The gateway's master and workers are one program each.
    gateway = sum(mb for kind, mb, _ in peaks.values() if kind == "gateway")
    others = total(name for name in SERVER if name != "gateway")
    return {
        "programs": programs,
        "shop_mb": {"working": total(SHOP), "waiting": total(SHOP[:-1])},
        "server_mb": round(others + gateway, 1),
    }


def program_of(command: list[str], of_a_shop: bool) -> str:
    """Return which of our programs a command line is; empty for any other."""
    words = " ".join(command)
    return next(
        (
            name
            for (part, shops_own), name in _PROGRAMS.items()
            if part in words and (of_a_shop or not shops_own)
        ),
        "",
    )


def _crowd(progress: Progress, count: int, rounds: int) -> dict[str, Any]:
    plan: dict[str, ConfigValue] = {"rounds": rounds, "dimension": _WIDTH}
    sales = {f"shop-{k:02}": _sales(f"shop-{k:02}", k) for k in range(count)}
    before = psutil.virtual_memory().available
    with running(progress, _ITEMS, plan, sales) as here:
        progress(f"{count} shops train")
        with _Watch(here) as watch:
            _, events = train(here)
    told = [event for event in events if event["event"] == "round"]
    return {
        "seconds_per_round": statistics.median(event["seconds"] for event in told),
        "missed": sum(count - event["accepted"] for event in told),
        **figures(watch.peaks),
        "all_mb": round(watch.most, 1),
        "machine_mb": round((before - watch.least_available) / 1e6, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def _sales(shop: str, number: int) -> pd.DataFrame:
    stream = np.random.default_rng(number)
    bought = stream.integers(_ITEMS, size=(_CUSTOMERS, _BOUGHT))
    frame = pd.DataFrame(
        [(f"u{u}", f"i{item:07d}") for u, items in enumerate(bought) for item in items],
        columns=["user_id", "item_id"],
    ).drop_duplicates()
    return frame.assign(merchant_id=shop, timestamp=1_700_000_000, behavior="purchase")


class _Watch:
    """Looks at all processes of a federation while a training runs.

    Attributes
    ----------
    peaks
        See :func:`figures`.
    most
        MB in proportion of all processes together, at one look.
    least_available
        Bytes that the machine had left.
    """

    def __init__(self, here: LocalDeployment) -> None:
        self._here, self._over = here, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peaks: dict[int, tuple[str, float, float]] = {}
        self.most, self.least_available = 0.0, psutil.virtual_memory().available

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = _PAUSE
        while not self._over.wait(pause):
            started = time.monotonic()
            self._look()
            pause = max(_PAUSE, _PAUSE_OF_A_LOOK * (time.monotonic() - started))

    def _look(self) -> None:
        total = 0.0
        for process in {*self._here.programs.running(), *self._gateway()}:
            try:
                kind = program_of(process.cmdline(), RUN_VARIABLE in process.environ())
                memory = process.memory_full_info()
            except (psutil.Error, OSError):
                continue
            mb, rss = memory.pss / 1e6, memory.rss / 1e6
            total += mb
            _, most, most_rss = self.peaks.get(process.pid, (kind, 0.0, 0.0))
            self.peaks[process.pid] = (kind, max(mb, most), max(rss, most_rss))
        self.most = max(self.most, total)
        self.least_available = min(self.least_available, psutil.virtual_memory().available)

    def _gateway(self) -> list[psutil.Process]:
        """Return nginx and its workers, which write over their environment; none once it ended."""
        try:
            gateway = psutil.Process(int(self._here.services()["programs"]["gateway"]["pid"]))
            return [gateway, *gateway.children()]
        except (psutil.Error, OSError, KeyError):
            return []
