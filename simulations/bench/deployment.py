"""What a deployed round costs beside Flower's own: TLS, gateway, nodes, a process a message.

Three apps take turns on the same services and shops: ours; a floor that sends back the arrays it
was sent, in clients that load what ours load; and Flower alone, the same without any imports.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Array

from client.privacy.ledger import Ledger
from client.privacy.plan import planned_events
from common.array_checks import check_arrays
from common.bundle import FEDERATION, stage
from common.config import ConfigValue
from common.errors import RunError
from common.features import Catalogue, read_catalogue, write_catalogue
from common.model import initial_state, state_spec, trained_spec
from common.programs.processes import terminated_as_exit
from common.protocol import Arrays, RoundHeader, TrainingPlan
from server.aggregation import Contribution, weighted_mean
from server.catalogue.versions import Catalogues
from server.checkpoints import Checkpoint, write_checkpoint
from server.operating.folder import open_federation
from server.operating.services import control
from server.subspace import SubspaceOptimizer
from server.training.records import Runs
from simulations.bench.floor import FLOOR
from simulations.bench.rounds import all_shops_seconds, bench_plan, lay_out, train_seconds
from simulations.loopback.deployment import LocalDeployment
from simulations.loopback.layout import lay_out_operator, lay_out_shop
from simulations.loopback.programs import Programs
from simulations.machine import machine_facts, usable_cpus

#: name -> products, width: 0.3 and 100 MB of arrays.
SIZES: Mapping[str, tuple[int, int]] = {"small": (5_000, 16), "large": (250_000, 100)}
_SECONDS = 1_200.0
_REPEATS = 3
_OURS = ("__main__", "client", "common", "server", "simulations")
# A round of a client of ours, as its process goes through it; what it has loaded at the end.
_ROUND = """
import json, os, sys
import client.app
from client.rounds.participation import answer
from client.rounds.replying import Node
from common.model import initial_state
from common.protocol import parse_plan
headers = json.load(sys.stdin)
plan = parse_plan(headers[-1]["plan_json"])
for kind, header in zip(("release", "update"), headers):
    reply, _ = answer(kind, header, lambda: initial_state(plan.model, 3), Node({}, {}, os.environ))
    if reply.status != "ok":
        sys.exit(reply.status)
json.dump(sorted(sys.modules), sys.stdout)
"""

Progress = Callable[[str], object]
#: Rounds, seconds each, of every repetition.
Times = list[list[float]]


def bench_deployment(
    progress: Progress,
    *,
    shops: int = 3,
    rounds: int = 3,
    repeats: int = 2,
    sizes: tuple[str, ...] = tuple(SIZES),
) -> dict[str, Any]:
    """Time rounds of shops without customers, and of clients that only send the arrays back.

    A shop without customers trains on nothing but still draws its noise, and the server still turns
    the update into a model; both are timed by themselves and taken off.

    Returns
    -------
    dict
        ``sizes``, each a :func:`summary`; ``load``: of the machine, before and after; and what it
        is.
    """
    before = os.getloadavg()[0]
    found = {
        name: _compare(progress, name, *SIZES[name], shops=shops, rounds=rounds, repeats=repeats)
        for name in sizes
    }
    return {
        "sizes": found,
        "shops": shops,
        "rounds": rounds,
        "repeats": repeats,
        "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        "machine": machine_facts(),
    }


def summary(
    times: Mapping[str, Times], costs: Mapping[str, float], shops: int, cpus: int
) -> dict[str, Any]:
    """Return what rounds of the three apps say.

    Parameters
    ----------
    times
        ``federation``, ``floor`` and ``flower``, measured in turns.
    costs
        Seconds of :func:`parts`, each once, on one thread.
    cpus
        Shops' processes that run at a time.

    Returns
    -------
    dict
        ``ratio``: ours beyond training and the server's optimiser over the floor's, the median of
        the repetitions; ``ratio_whole``: with them; ``ratio_to_flower``: beyond them, over Flower
        without imports; ``seconds_per_round``, medians; ``beyond_the_floor``: seconds of
        :func:`parts`.
    """
    learning = all_shops_seconds(costs["training"], shops, cpus) + costs["optimizer"]
    means = {name: [statistics.fmean(one) for one in found] for name, found in times.items()}

    def ratio(other: str, off: float) -> float:
        pairs = zip(means["federation"], means[other], strict=True)
        return statistics.median((ours - off) / theirs for ours, theirs in pairs)

    return {
        "ratio": ratio("floor", learning),
        "ratio_whole": ratio("floor", 0.0),
        "ratio_to_flower": ratio("flower", learning),
        "seconds_per_round": {
            **{name: statistics.median(chain(*found)) for name, found in times.items()},
            "learning": learning,
        },
        "beyond_the_floor": dict(costs),
    }


def _compare(
    progress: Progress,
    name: str,
    items: int,
    width: int,
    *,
    shops: int,
    rounds: int,
    repeats: int,
) -> dict[str, Any]:
    plan: dict[str, ConfigValue] = {"rounds": rounds, "dimension": width}
    times: dict[str, Times] = {"federation": [], "floor": [], "flower": []}
    nobody = pd.DataFrame(
        columns=["merchant_id", "user_id", "item_id", "timestamp", "behavior"], dtype=str
    )
    with running(progress, items, plan, {f"shop-{k}": nobody for k in range(shops)}) as here:
        catalogue = read_catalogue(Catalogues(here.operator / "catalogue").current())
        modules = here.folder / "modules.txt"
        modules.write_text("\n".join(modules_of_a_round()), encoding="utf-8")
        for number in range(repeats):
            progress(f"{name}: ours, {number + 1} of {repeats}")
            record, events = train(here)
            times["federation"].append(round_seconds(events, shops))
            shapes = state_spec(record.model, catalogue.size)
            for app, imports in (("floor", f"@{modules}"), ("flower", "")):
                progress(f"{name}: {app}, {number + 1} of {repeats}")
                times[app].append(_echo(here, shapes, imports, rounds))
    progress(f"{name}: the parts by themselves")
    return {
        **summary(times, parts(record, catalogue, shops), shops, usable_cpus()),
        "rounds_seconds": times,
        "megabytes": sum(math.prod(shape) for shape in shapes.values()) * 4 / 1e6,
    }


@contextmanager
def running(
    progress: Progress,
    items: int,
    plan: Mapping[str, ConfigValue],
    sales: Mapping[str, pd.DataFrame],
) -> Iterator[LocalDeployment]:
    """Yield a federation of shops with these sales, all connected; nothing of it is left."""
    products = pd.DataFrame({"item_id": [f"i{k:07d}" for k in range(items)], "category": "any"})
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as name:
        folder = Path(name)
        with terminated_as_exit(), Programs(folder) as programs:
            here = LocalDeployment(folder, programs)
            progress(f"laying out {len(sales)} shops and {items} products")
            common: dict[str, ConfigValue] = {
                "min_shops": len(sales),
                "groups": "",
                "learned_items": 0,
            }
            lay_out_operator(here, {**common, **plan}, products)
            for shop, own in sales.items():
                lay_out_shop(here, shop, own, {"cap_epsilon": 100.0}, apps=(FEDERATION, FLOOR))
            progress(f"starting the services and {len(sales)} shops")
            here.up()
            for opened in here.shops.values():
                here.open(opened)
            for opened in here.shops.values():
                here.wait_until_connected(opened, _SECONDS)
            yield here


def train(here: LocalDeployment) -> tuple[TrainingPlan, list[dict[str, Any]]]:
    """Train; return the plan, and what the server told of the run."""
    here.server("train")
    runs = Runs(here.operator / "runs")
    record = runs.last()
    assert record is not None
    return record.plan, runs.events(record.name)


def _echo(
    here: LocalDeployment, shapes: Mapping[str, tuple[int, ...]], imports: str, rounds: int
) -> list[float]:
    """Have the same shops send arrays back; return the seconds of each round."""
    link = control(open_federation(here.operator))
    with tempfile.TemporaryDirectory(dir=here.folder) as name:
        path = Path(name) / "rounds.jsonl"
        config: dict[str, ConfigValue] = {
            "rounds": rounds,
            "min-shops": len(here.shops),
            "shapes": json.dumps(dict(shapes)),
            "events": str(path),
            "imports": imports,
        }
        run = link.submit(stage(FLOOR, Path(name)), config)
        deadline = time.monotonic() + _SECONDS
        while not (status := link.run(run).status).startswith("finished"):
            if time.monotonic() > deadline:
                raise RunError("the floor's run took longer than it was given")
            time.sleep(1.0)
        if status != "finished:completed":
            raise RunError(f"the floor's run ended as {status!r}\n{link.log(run)[-2000:]}")
        lines = path.read_text(encoding="utf-8").splitlines()
    return round_seconds([json.loads(line) for line in lines], len(here.shops))


def round_seconds(events: list[dict[str, Any]], shops: int) -> list[float]:
    """Return how long each round of a run's events took.

    Raises
    ------
    RunError
        If a round went on without one of the shops: it would be too cheap.
    """
    rounds = [event for event in events if event["event"] == "round"]
    if any(event["accepted"] != shops for event in rounds):
        raise RunError(f"not every shop answered in every round: {rounds}")
    return [float(event["seconds"]) for event in rounds]


def modules_of_a_round() -> list[str]:
    """Return the modules of others that a client of ours has loaded when a round is over."""
    plan = bench_plan(1, 2)
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as name:
        catalogue = lay_out(Path(name), 3, 1)
        shop = Path(name) / "shops" / "0" / "shop.toml"
        headers = [
            RoundHeader(
                run_id="bench",
                server_round=number,
                plan_json=plan.model_dump_json(),
                catalogue_fingerprint=catalogue.fingerprint,
            ).model_dump()
            for number in (0, 1)
        ]
        done = subprocess.run(
            [sys.executable, "-c", _ROUND],
            input=json.dumps(headers),
            env=os.environ | {"FEDTAIL_SHOP": str(shop), "OMP_NUM_THREADS": "1"},
            cwd=FEDERATION.folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RunError(f"a round in a process of its own failed\n{done.stderr[-2000:]}")
    modules: list[str] = json.loads(done.stdout)
    return [module for module in modules if module.partition(".")[0] not in _OURS]


def parts(plan: TrainingPlan, catalogue: Catalogue, shops: int) -> dict[str, float]:
    """Return what ours does beyond the floor: name -> seconds, each by itself.

    At a shop: read the catalogue and check its fingerprint, decode and check the state, charge the
    ledger, train, encode. At the server: decode and check the replies, their mean, the optimiser,
    the checkpoint.
    """
    state = initial_state(plan.model, catalogue.size)
    spec = trained_spec(plan.model, catalogue.size)
    arrays = {name: np.ones(shape, np.float32) for name, shape in spec.items()}
    sent, answered = (
        {name: Array(array) for name, array in one.items()} for one in (state, arrays)
    )
    optimizer = SubspaceOptimizer(plan, 1.0)
    memory = optimizer.start(spec)
    shapes = state_spec(plan.model, catalogue.size)
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as name:
        folder = Path(name)
        write_catalogue(catalogue, folder / "catalogue")
        replies = [Contribution(f"{k}", 1.0, arrays) for k in range(shops)]
        mean = weighted_mean(replies)
        done = Checkpoint(1, "bench", plan, "{}", catalogue.fingerprint, "system", state, memory)
        return {
            "read_catalogue": _timed(lambda: read_catalogue(folder / "catalogue").fingerprint),
            "check_state": _timed(lambda: check_arrays(_decoded(sent), shapes, max_norm=0.0)),
            "ledger": _timed(lambda: _charge(plan, folder / "ledger.sqlite")),
            "training": train_seconds(plan, catalogue),
            "encode": _timed(lambda: [Array(array) for array in arrays.values()]),
            "check_replies": _timed(lambda: check_arrays(_decoded(answered), spec, max_norm=0.0))
            * shops,
            "mean": _timed(lambda: weighted_mean(replies)),
            "optimizer": _timed(lambda: optimizer.apply(state, mean, memory, shops, 1)),
            "checkpoint": _timed(lambda: write_checkpoint(folder / "checkpoints", done)),
        }


def _decoded(arrays: Mapping[str, Array]) -> Arrays:
    return {name: array.numpy() for name, array in arrays.items()}


def _charge(plan: TrainingPlan, path: Path) -> None:
    event, *remaining = planned_events(plan, "bench", first_round=1, noise="system")
    with Ledger.open(path) as ledger:
        ledger.charge(event, cap_epsilon=1e6, delta=1e-5, remaining=remaining)


def _timed(act: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
