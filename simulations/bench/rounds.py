"""What a round of the federation costs beyond training, side by side with Flower's own floor."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from client.privacy.noise import SeededNoise
from client.training import train_round
from common.accounting import calibrate
from common.features import Catalogue, write_catalogue
from common.model import initial_state, state_spec
from common.protocol import ModelPlan, TrainingPlan
from common.rng import derive
from common.schema import ShopEvents
from simulations.bench.floor import run_floor
from simulations.engine.flower import Outcome, run_federation
from simulations.machine import machine_facts, usable_cpus

_SHOP = """merchant_id = "shop-{number}"
data = "data"
catalogue = "../../catalogue"
ledger = "ledger.sqlite"
cap_epsilon = 100.0
noise = "seeded"
insecure_seeded_noise = true
"""
_REPEATS = 7
_SHOPS = 20
# Complete Journey's.
_PRODUCTS, _DIMENSION = 20_794, 16
_INTERACTIONS = "merchant_id,user_id,item_id,timestamp,behavior\n"


def bench_round(
    *,
    rounds: int = 10,
    repeats: int = 2,
    progress: Callable[[str], object] = lambda _: None,
) -> dict[str, object]:
    """Time rounds of shops without customers, and of clients that only send arrays back, in turns.

    A shop without customers trains on nothing, but still draws its noise: that part is timed by
    itself and taken off. What is left is what ours adds to Flower: checks, ledger, averaging,
    checkpoint. The floor exchanges the same arrays.

    Parameters
    ----------
    rounds
        Of every run; the first round of each is left out, since it loads libraries.
    repeats
        Runs of each.

    Returns
    -------
    dict
        ``ratio``: seconds a round beyond training over the floor's, the median of the turns;
        ``seconds_per_round`` (medians) of both and of training, ``megabytes`` sent to each shop,
        the seconds of the stages of the runs, and the machine.
    """
    plan = bench_plan(rounds, _DIMENSION)
    shapes = state_spec(plan.model, _PRODUCTS)
    turns: list[dict[str, float]] = []
    stages: dict[str, list[dict[str, float]]] = {"federation": [], "floor": []}
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as name:
        folder = Path(name)
        catalogue = lay_out(folder, _PRODUCTS, _SHOPS)
        for number in range(repeats):
            progress(f"floor, {number + 1} of {repeats}")
            floor = run_floor(shapes, shops=_SHOPS, rounds=rounds)
            progress(f"federation, {number + 1} of {repeats}")
            ours = run_federation(
                plan,
                shops_folder=folder / "shops",
                shops=_SHOPS,
                server_folder=folder / f"server-{number}",
                catalogue_folder=folder / "catalogue",
            )
            one = train_seconds(plan, catalogue)
            turns.append(
                {
                    "federation": _per_round(ours),
                    "training": all_shops_seconds(one, _SHOPS, usable_cpus()),
                    "floor": _per_round(floor),
                }
            )
            stages["federation"].append(_stages(ours))
            stages["floor"].append(_stages(floor))
    elements = sum(math.prod(shape) for shape in shapes.values())
    return {
        "ratio": statistics.median(
            (turn["federation"] - turn["training"]) / turn["floor"] for turn in turns
        ),
        "seconds_per_round": {
            part: statistics.median(turn[part] for turn in turns) for part in turns[0]
        },
        "stages": stages,
        "megabytes": elements * 4 / 1e6,
        "shops": _SHOPS,
        "rounds": rounds,
        "repeats": repeats,
        "private": plan.private,
        "machine": machine_facts(),
    }


def lay_out(folder: Path, catalogue_size: int, shops: int) -> Catalogue:
    """Write ``catalogue`` and ``shops/<i>`` without customers below ``folder``."""
    items = [f"item-{i:07d}" for i in range(catalogue_size)]
    catalogue = Catalogue.of(pd.DataFrame({"item_id": items, "category": "any"}))
    write_catalogue(catalogue, folder / "catalogue")
    for number in range(shops):
        data = folder / "shops" / str(number) / "data"
        data.mkdir(parents=True)
        (data / "interactions.csv").write_text(_INTERACTIONS, encoding="utf-8")
        settings = _SHOP.format(number=number)
        (data.parent / "shop.toml").write_text(settings, encoding="utf-8")
    return catalogue


def bench_plan(rounds: int, dimension: int) -> TrainingPlan:
    """Return the default plan with so many rounds of this width, and its noise."""
    plan = TrainingPlan(rounds=rounds, model=ModelPlan(dimension=dimension))
    popularity, steps = calibrate(
        plan.target_epsilon, plan.target_delta, plan.popularity_share, plan.sample_rate, rounds
    )
    return plan.model_copy(
        update={"popularity_noise_multiplier": popularity, "noise_multiplier": steps}
    )


def train_seconds(plan: TrainingPlan, catalogue: Catalogue) -> float:
    """Return the seconds that one shop without customers trains, on one thread."""
    nobody = np.empty(0, np.int32)
    events = ShopEvents(
        merchant_id="nobody",
        user_ids=np.empty(0, object),
        users=nobody,
        items=nobody,
        timestamps=np.empty(0, np.int64),
        weights=np.empty(0, np.float32),
    )
    state = initial_state(plan.model, catalogue.size)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for _ in range(_REPEATS):
        stream = derive(0, purpose="bench")
        started = time.perf_counter()
        train_round(plan, 1, state, events, catalogue, SeededNoise(stream), stream)
        times.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return statistics.median(times)


def all_shops_seconds(one: float, shops: int, cpus: int) -> float:
    """Return the seconds in which all shops do what takes one of them ``one``, ``cpus`` at once."""
    return one * max(1.0, shops / cpus)


def _per_round(outcome: Outcome) -> float:
    return statistics.median(float(e["seconds"]) for e in outcome.of("round")[1:])


def _stages(outcome: Outcome) -> dict[str, float]:
    """Return the seconds until the first round ended, of the other rounds, and of the end."""
    rounds = [float(event["after_seconds"]) for event in outcome.of("round")]
    return {
        "start_and_first_round": rounds[0],
        "other_rounds": rounds[-1] - rounds[0],
        "end": outcome.seconds - rounds[-1],
        "all": outcome.seconds,
    }
