"""What a deployed round costs beside Flower's own, and what many shops take of one machine.

Everything runs as it is deployed: TLS, the gateway, a node and an executor for each shop, a fresh
process for each message. Both apps use the same services and shops, one after the other.
"""

import json
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from client.running import RUN_VARIABLE
from common.bundle import FEDERATION, stage
from common.config import ConfigValue
from common.errors import RunError
from common.features import read_catalogue
from common.model import state_spec
from common.processes import carriers, terminated_as_exit
from common.protocol import TrainingPlan
from server.catalogues import Catalogues
from server.federation import open_federation
from server.operating import control
from server.run_records import Runs
from server.variables import UP_VARIABLE
from simulations.bench import train_seconds
from simulations.flower import FLOOR
from simulations.local_deployment import LocalDeployment
from simulations.local_layout import lay_out_operator, lay_out_shop
from simulations.local_programs import Programs
from simulations.machine import machine_facts

#: What a client of ours has loaded when it trains, beside torch.
IMPORTS = "numpy pandas pandas.api.types pydantic scipy.sparse pyarrow safetensors.numpy"
#: name -> products, width: 0.3 and 100 MB of arrays.
SIZES: Mapping[str, tuple[int, int]] = {"small": (5_000, 16), "large": (250_000, 100)}
_SECONDS = 600.0
_SAMPLE_SECONDS = 2.0

Progress = Callable[[str], object]


def bench_deployment(
    progress: Progress, *, shops: int = 3, rounds: int = 4, sizes: tuple[str, ...] = tuple(SIZES)
) -> dict[str, Any]:
    """Time rounds of shops without customers, and of clients that only send the arrays back.

    A shop without customers trains on nothing but still draws its noise; that is timed by itself
    and taken off.

    Returns
    -------
    dict
        For each size ``ratio`` (seconds a round beyond training over the floor's),
        ``seconds_per_round`` and ``megabytes``; and the machine.
    """
    return {
        "sizes": {
            name: _compare(progress, name, *SIZES[name], shops=shops, rounds=rounds)
            for name in sizes
        },
        "shops": shops,
        "rounds": rounds,
        "machine": machine_facts(),
    }


def bench_nodes(
    progress: Progress, *, counts: tuple[int, ...] = (5, 25), rounds: int = 5
) -> dict[str, Any]:
    """Train with so many shops on this machine, and say what they and the server take of it.

    Returns
    -------
    dict
        For each count the seconds a round, and memory (MB, shared pages divided among those who
        share them): of a shop that waits, of one that works, and of the server at its most.
    """
    return {
        "shops": {str(count): _crowd(progress, count, rounds) for count in counts},
        "rounds": rounds,
        "machine": machine_facts(),
    }


def _compare(
    progress: Progress, name: str, items: int, width: int, *, shops: int, rounds: int
) -> dict[str, Any]:
    plan: dict[str, ConfigValue] = {"rounds": rounds, "dimension": width, "learned_items": 0}
    with _running(progress, items, plan, shops) as here:
        progress(f"{name}: {rounds} rounds of ours")
        record, ours = _train(here)
        catalogue = read_catalogue(Catalogues(here.operator / "catalogue").current())
        shapes = state_spec(record.model, catalogue.size)
        progress(f"{name}: {rounds} rounds of the floor")
        floor = _floor(here, shapes, shops=shops, rounds=rounds)
    progress(f"{name}: training alone")
    training = train_seconds(record, catalogue) * math.ceil(shops / (psutil.cpu_count() or 1))
    seconds = {"federation": ours, "training": training, "floor": floor}
    return {
        "ratio": (ours - training) / floor,
        "seconds_per_round": seconds,
        "megabytes": sum(math.prod(shape) for shape in shapes.values()) * 4 / 1e6,
    }


def _crowd(progress: Progress, count: int, rounds: int) -> dict[str, Any]:
    plan: dict[str, ConfigValue] = {"rounds": rounds, "dimension": 4, "learned_items": 0}
    with _running(progress, 1_000, plan, count) as here:
        waiting = statistics.median(_memory(RUN_VARIABLE, s.folder) for s in here.shops.values())
        progress(f"{count} shops train")
        with _Watch(here) as watch:
            _, seconds = _train(here)
    return {
        "seconds_per_round": seconds,
        "shop_waiting_mb": round(waiting, 1),
        "shop_working_mb": round(watch.shop, 1),
        "server_mb": round(watch.server, 1),
    }


@contextmanager
def _running(
    progress: Progress, items: int, plan: Mapping[str, ConfigValue], shops: int
) -> Iterator[LocalDeployment]:
    """Yield a federation of shops without customers, all connected."""
    nobody = pd.DataFrame(
        columns=["merchant_id", "user_id", "item_id", "timestamp", "behavior"], dtype=str
    )
    products = pd.DataFrame({"item_id": [f"i{k:07d}" for k in range(items)], "category": "any"})
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as name:
        folder = Path(name)
        with terminated_as_exit(), Programs(folder) as programs:
            here = LocalDeployment(folder, programs)
            progress(f"laying out {shops} shops and {items} products")
            common: dict[str, ConfigValue] = {"min_shops": shops, "groups": ""}
            lay_out_operator(here, {**common, **plan}, products)
            for number in range(shops):
                lay_out_shop(here, f"shop-{number:02}", nobody, apps=(FEDERATION, FLOOR))
            progress(f"starting the services and {shops} shops")
            here.up()
            for shop in here.shops.values():
                here.open(shop)
            for shop in here.shops.values():
                here.wait_until_connected(shop, _SECONDS)
            yield here


def _train(here: LocalDeployment) -> tuple[TrainingPlan, float]:
    """Train; return the plan, and the median seconds of the rounds but the first."""
    here.server("train")
    runs = Runs(here.operator / "runs")
    record = runs.last()
    assert record is not None
    return record.plan, per_round(runs.events(record.name), len(here.shops))


def _floor(
    here: LocalDeployment, shapes: Mapping[str, tuple[int, ...]], *, shops: int, rounds: int
) -> float:
    """Have the same shops send arrays back; return the median seconds of a round."""
    path = here.folder / "floor.jsonl"
    link = control(open_federation(here.operator))
    with tempfile.TemporaryDirectory(dir=here.folder) as name:
        config: dict[str, ConfigValue] = {
            "rounds": rounds,
            "min-shops": shops,
            "shapes": json.dumps(dict(shapes)),
            "events": str(path),
            "imports": IMPORTS,
        }
        run = link.submit(stage(FLOOR, Path(name)), config)
    deadline = time.monotonic() + _SECONDS * rounds
    while not (status := link.run(run).status).startswith("finished"):
        if time.monotonic() > deadline:
            raise RunError("the floor's run took longer than it was given")
        time.sleep(1.0)
    if status != "finished:completed":
        raise RunError(f"the floor's run ended as {status!r}\n{link.log(run)[-2000:]}")
    return per_round([json.loads(line) for line in path.read_text().splitlines()], shops)


def per_round(events: list[dict[str, Any]], shops: int) -> float:
    """Return the median seconds of the rounds but the first, which loads what the others have.

    Raises
    ------
    RunError
        If a shop is missing in a round.
    """
    rounds = [event for event in events if event["event"] == "round"]
    if any(event["accepted"] != shops for event in rounds):
        raise RunError(f"not every shop answered in every round: {rounds}")
    return statistics.median(float(event["seconds"]) for event in rounds[1:])


class _Watch:
    """Samples memory while a training runs."""

    def __init__(self, here: LocalDeployment) -> None:
        self._here, self._over = here, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.shop = self.server = 0.0

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        # One shop stands for all: to look at each would take longer than a round.
        first = next(iter(self._here.shops.values()))
        while not self._over.wait(_SAMPLE_SECONDS):
            self.shop = max(self.shop, _memory(RUN_VARIABLE, first.folder))
            self.server = max(self.server, _memory(UP_VARIABLE, self._here.operator))


def _memory(variable: str, folder: Path) -> float:
    """Return the MB of all processes that carry a folder's token."""
    total = 0
    for process in carriers(variable, str(folder)):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e6
