"""Cold start measured: a customer, a product and a shop that the federation does not know yet.

Each case hides something from a federation's training, trains it as ``simulations run`` does, and
asks for what was hidden. Popularity is what each must be better than.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.config import nearest
from common.errors import ConfigError
from simulations.arm_plans import plan_notes
from simulations.cold_start.customers import FOLDS, cold_customers, hidden_customers
from simulations.cold_start.customers import records_of as records_of_customers
from simulations.cold_start.measure import Case, Models, train, without
from simulations.cold_start.page import render_cold_start
from simulations.cold_start.products import cold_products, new_products
from simulations.cold_start.products import records_of as records_of_products
from simulations.cold_start.shops import cold_shops, new_shops
from simulations.documents import Document, plain, to_json, write_text
from simulations.experiment import Experiment
from simulations.federating import WORK
from simulations.machine import machine_facts
from simulations.progress import Watcher
from simulations.run import draft_folder
from simulations.world import World, build_world

#: Of these the experiment's own arms are trained; popularity is as the first of them releases it.
TRAINED = ("federated-dp", "federated")
CASES = ("customer", "product", "shop")
_TRAINING = "training"
# A finished case, and a federation that was begun.
_BEGUN = (f"{_TRAINING}/*.json", f"{_TRAINING}/**/{WORK}")


def run_cold_start(
    experiment: Experiment, out: Path, watcher: Watcher, cases: Sequence[str] = CASES
) -> Document:
    """Measure every case into the new folder ``out`` and return ``cold-start.json``'s document.

    An interrupted run goes on from its draft: finished cases and trainings are kept.

    Parameters
    ----------
    cases
        Which of :data:`CASES`.

    Raises
    ------
    ConfigError
        If the folder is in use, the experiment trains no model together, or there are too few
        shops to leave one out.
    RunError
        If a federation failed.
    """
    if unknown := sorted(set(cases) - set(CASES)):
        raise ConfigError(f"no case is called {unknown[0]!r}; {nearest(unknown[0], CASES)}")
    arms = tuple(name for name in TRAINED if name in experiment.run.arms)
    if not arms:
        raise ConfigError(f"run.arms names no model to train: add {' or '.join(TRAINED)}")
    with draft_folder(experiment, out, _BEGUN) as folder:
        watcher.stage("reading data")
        world = build_world(experiment, watcher.step)
        if len(world.shops) < 2:
            raise ConfigError("a shop that joins needs another one that was there: give two shops")
        found = _ColdStart(experiment, world, folder, watcher, arms).run(cases)
        document: Document = plain(found)
        write_text(folder / "cold-start.json", to_json(document))
        write_text(folder / "cold-start.html", render_cold_start(document))
        shutil.rmtree(folder / _TRAINING, ignore_errors=True)
        return document


class _ColdStart:
    """All cases of one experiment, each done once."""

    def __init__(
        self,
        experiment: Experiment,
        world: World,
        folder: Path,
        watcher: Watcher,
        arms: tuple[str, ...],
    ) -> None:
        self._experiment, self._world = experiment, world
        self._folder, self._watcher, self._arms = folder / _TRAINING, watcher, arms
        # Who took no part in a case's trainings, in words, each once.
        self._away: set[str] = set()

    def run(self, names: Sequence[str]) -> Document:
        """Return the document of some kinds of cases."""
        parts: dict[str, Callable[[], Iterator[Case]]] = {
            "customer": self._customers,
            "product": self._products,
            "shop": self._shops,
        }
        cases: list[Document] = []
        away: list[str] = []
        seconds = 0.0
        for name in (name for name in CASES if name in names):
            done = self._part(name, parts[name])
            cases += done["cases"]
            away += done["away"]
            seconds += done["seconds"]
        notes = plan_notes(self._experiment, self._arms, self._world)
        return {
            "format_version": 1,
            "seed": self._experiment.run.seed,
            "cases": cases,
            "arms_trained": list(self._arms),
            "data": self._world.facts(),
            "warnings": [*self._world.dataset.notes, *notes, *away],
            "machine": machine_facts(),
            "experiment": self._experiment.facts(),
            "seconds": seconds,
        }

    def _part(self, name: str, make: Callable[[], Iterator[Case]]) -> Document:
        path = self._folder / f"{name}.json"
        if not path.exists():
            started = time.monotonic()
            self._away.clear()
            size, seed = self._world.catalogue.size, self._experiment.run.seed
            cases = [case.document(size, seed) for case in make()]
            seconds = time.monotonic() - started
            found = {"cases": cases, "away": sorted(self._away), "seconds": seconds}
            write_text(path, to_json(found))
            shutil.rmtree(self._folder / name, ignore_errors=True)
        done: Document = json.loads(path.read_text(encoding="utf-8"))
        return done

    def _customers(self) -> Iterator[Case]:
        def folds() -> Iterator[tuple[Mapping[str, np.ndarray], World, Mapping[str, Models]]]:
            for fold in range(FOLDS):
                hidden = hidden_customers(self._world, fold, self._experiment.run.seed)
                left_out = records_of_customers(self._world, hidden)
                seen, models = self._trained(f"customer/{fold}", left_out)
                self._watcher.stage(f"customers without a history, {fold + 1} of {FOLDS}")
                yield hidden, seen, models

        yield cold_customers(self._experiment, self._world, folds())

    def _products(self) -> Iterator[Case]:
        new = new_products(self._world, self._experiment.run.seed)
        seen, models = self._trained("product", records_of_products(self._world, new))
        self._watcher.stage("products that nobody has bought")
        yield cold_products(self._experiment, self._world, seen, new, models)

    def _shops(self) -> Iterator[Case]:
        names = new_shops(self._world)
        merchants = self._world.dataset.tables.interactions["merchant_id"].astype(str)
        seen, models = self._trained("shop", merchants.isin(names).to_numpy())
        self._watcher.stage("shops that have just joined")
        yield from cold_shops(self._experiment, self._world, seen, models)

    def _trained(self, name: str, left_out: np.ndarray) -> tuple[World, Mapping[str, Models]]:
        seen = without(self._world, self._experiment, left_out)
        case = name.split("/")[0]
        if not seen.shops:
            raise ConfigError(
                f"of the case {case} no shop is left to train with: what it asks about is hidden, "
                "and there are no other records. Give more customers, or name the other cases "
                "(--case)"
            )
        self._watcher.stage(f"training for: {name}")
        folder = self._folder / name
        models = train(self._experiment, seen, folder, self._watcher, self._arms)
        self._away |= {f"{case}, {arm}: {m.away}" for arm, m in models.items() if m.away}
        return seen, models
