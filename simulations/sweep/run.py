"""Quality against ε and against customers a shop: one experiment at many points.

What does not depend on the promise (``local``, ``home-only``, ``centralized``, ``federated``) is
run once for each setting of the data, and every point of ε and unit is held against it. A point
that is finished is kept; one that was cut short is run again from its start, so that its ledgers
show what an undisturbed run costs.
"""

import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulations.arms import OwnEases
from simulations.documents import plain, write_text
from simulations.evaluating import evaluate_arm, trained_by
from simulations.experiment import Experiment, check_mixtures
from simulations.federating import Federator, Trained
from simulations.finished_parts import tables_of
from simulations.machine import machine_facts
from simulations.progress import Watcher
from simulations.report.answer import all_shops, away_words, privacy_words
from simulations.report.building import ArmResult, RunResult, build_report
from simulations.sweep.figures import arm_figures, sweep_document
from simulations.sweep.page import render_sweep
from simulations.sweep.plan import Point, Sweep
from simulations.sweep.store import SweepFolder, sweep_folder
from simulations.world import World, build_world

#: Arms that all points of a setting are held against.
BASELINES = ("local", "home-only", "federated", "centralized")
PRIVATE = "federated-dp"


def run_sweep(sweep: Sweep, out: Path, watcher: Watcher) -> dict[str, Any]:
    """Run what is not finished of a sweep into ``out``; return and write its document.

    ``sweep.json`` grows with each finished point, ``sweep.html`` with each finished setting.

    Raises
    ------
    ConfigError
        If the folder is in use, or holds another sweep.
    RunError
        If a federation failed.
    """
    tables = tables_of(setting.experiment.data.path for setting in sweep.settings)
    with sweep_folder(sweep.facts() | tables, out) as folder:
        runner = _Runner(sweep, folder, watcher)
        for number in range(len(sweep.settings)):
            runner.run_setting(number)
        folder.end_work()
        return runner.show()


class _Runner:
    def __init__(self, sweep: Sweep, folder: SweepFolder, watcher: Watcher) -> None:
        self._sweep, self._folder, self._watcher = sweep, folder, watcher
        self._eases, self._shared = OwnEases(), folder.folder

    def run_setting(self, number: int) -> None:
        """Run the points of one setting that are not finished."""
        missing = [p for p in self._sweep.of(number) if self._finished(p) is None]
        if not missing:
            return
        setting = self._sweep.settings[number]
        self._watcher.stage(f"reading data {setting.label}".rstrip())
        world, self._eases = build_world(setting.experiment, self._watcher.step), OwnEases()
        for point in missing:  # a plan that can't be kept is refused before anything is trained
            check_mixtures(self._sweep.point_experiment(point), (*BASELINES, PRIVATE))
            with self._federator(self._sweep.point_experiment(point), world, point.name) as one:
                one.plan(PRIVATE)
        self._shared = self._folder.fresh_work(f"shared-{number:02d}")
        baselines, notes = self._baselines(number, world)
        self._folder.write(
            _setting_name(number), self._report(setting.experiment, world, baselines, number, notes)
        )
        for point in missing:
            self._watcher.stage(f"point {point.name}: {self._how_far()}", len(world.measured))
            self._run_point(point, world, baselines)
            self._write()
            gc.collect()
        self.show()
        shutil.rmtree(self._shared)

    def show(self) -> dict[str, Any]:
        """Write and return what is known so far, and its page."""
        document = self._write()
        write_text(self._folder.folder / "sweep.html", render_sweep(document))
        return document

    def _write(self) -> dict[str, Any]:
        settings = [self._folder.read(_setting_name(n)) for n in range(len(self._sweep.settings))]
        points = [self._finished(point) for point in self._sweep.points]
        document: dict[str, Any] = plain(sweep_document(self._sweep, settings, points))
        self._folder.write("sweep", document)
        return document

    def _baselines(self, number: int, world: World) -> tuple[list[ArmResult], list[str]]:
        """Return the arms without privacy, measured now or before, and what to know of them."""
        name, experiment = _setting_name(number), self._sweep.settings[number].experiment
        with self._federator(experiment, world, name) as federator:
            trained: dict[str, Trained] = {}
            results = []
            for arm in BASELINES:
                if (source := trained_by(experiment, arm)) and source not in trained:
                    federator.plan(source)
                result = self._folder.read_arm(name, arm)
                if result is None:
                    result = self._measure(experiment, world, arm, federator, trained)
                    self._folder.write_arm(name, result)
                results.append(result)
                gc.collect()
        return results, federator.notes

    def _run_point(self, point: Point, world: World, baselines: list[ArmResult]) -> None:
        started = time.monotonic()
        experiment = self._sweep.point_experiment(point)
        with self._federator(experiment, world, point.name) as federator:
            federator.plan(PRIVATE)
            result = self._measure(experiment, world, PRIVATE, federator, {})
        arms = [*baselines, result]
        report = self._report(experiment, world, arms, point.setting, federator.notes)
        self._folder.write(
            _point_name(point),
            {
                **report,
                "arms": {PRIVATE: report["arms"][PRIVATE]},
                "setting": point.setting,
                "unit": point.unit,
                "epsilon": point.epsilon,
                "seconds": time.monotonic() - started,
            },
        )

    @contextmanager
    def _federator(self, experiment: Experiment, world: World, name: str) -> Iterator[Federator]:
        """Give what trains, in a folder of its own that is gone at the end."""
        work = self._folder.fresh_work(name)
        yield Federator(experiment, world, work, self._watcher, self._shared)
        shutil.rmtree(work)

    def _measure(
        self,
        experiment: Experiment,
        world: World,
        arm: str,
        federator: Federator,
        trained: dict[str, Trained],
    ) -> ArmResult:
        """Train what the arm needs, unless it is among ``trained``, and measure the arm.

        What it needs has been planned.
        """
        source = trained_by(experiment, arm)
        if source and source not in trained:
            trained[source] = federator.federate(source)
        self._watcher.stage(f"arm {arm}", len(world.measured))
        return evaluate_arm(
            experiment,
            world,
            arm,
            trained[source] if source else None,
            federator.ledgers,
            self._eases,
            lambda _shop, _outcome: self._watcher.step(),
        )

    def _report(
        self,
        experiment: Experiment,
        world: World,
        arms: list[ArmResult],
        number: int,
        notes: list[str],
    ) -> dict[str, Any]:
        """Return what is kept of the report on these arms; ``notes`` are of their training."""
        run = RunResult(
            arms=arms,
            data=world.facts(),
            machine=machine_facts(),
            experiment=experiment.facts(),
            seed=experiment.run.seed,
            n_items=world.catalogue.size,
            warnings=[*world.dataset.notes, *notes],
        )
        report = build_report(run)
        setting = self._sweep.settings[number]
        away = [
            f"{setting.label + ', ' if setting.label else ''}{name} "
            f"{privacy_words(arm['privacy'])}: {words}"
            for name, arm in report["arms"].items()
            if (words := away_words(all_shops(arm)))
        ]
        return {
            "curve": setting.curve,
            "label": setting.label,
            "seed": report["seed"],
            "data": report["data"],
            "machine": report["machine"],
            "warnings": [*report["warnings"], *away],
            "arms": {name: arm_figures(arm) for name, arm in report["arms"].items()},
        }

    def _finished(self, point: Point) -> dict[str, Any] | None:
        return self._folder.read(_point_name(point))

    def _how_far(self) -> str:
        """Return how many points are finished, and how long the others take at their pace."""
        found = [self._finished(point) for point in self._sweep.points]
        took = [document["seconds"] for document in found if document is not None]
        words = f"{len(took)} of {len(found)} are finished"
        if len(took) in (0, len(found)):
            return words
        left = sum(took) / len(took) * (len(found) - len(took)) / 60
        return f"{words}, {f'about {left:.0f} min' if left >= 1 else 'less than a minute'} left"


def _setting_name(number: int) -> str:
    return f"settings/{number:02d}"


def _point_name(point: Point) -> str:
    return f"points/{point.name}"
