"""Flower's own floor: clients that do nothing but send arrays of given shapes back."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common.bundle import FlowerApp
from server.settings import EVENTS_FILE
from simulations.engine.flower import Outcome, run_app

FLOOR = FlowerApp(Path(__file__).resolve().parent / "floor_app", ("floor",))


def run_floor(
    shapes: Mapping[str, tuple[int, ...]], *, shops: int, rounds: int, cpus: int | None = None
) -> Outcome:
    """Run the floor on Flower's simulation engine; ``cpus`` clients at a time.

    Raises
    ------
    RunError
        If the run did not complete.
    """
    with tempfile.TemporaryDirectory(prefix="ft-floor-") as name:
        events = Path(name) / EVENTS_FILE
        return run_app(
            FLOOR,
            shops=shops,
            run_config={"rounds": rounds, "min-shops": shops, "shapes": json.dumps(dict(shapes))},
            environment={"FEDTAIL_FLOOR_EVENTS": str(events)},
            events_file=events,
            cpus=cpus,
        )
