"""Audit an experiment: attacks on its own steps and trainings, held against what they promise.

Nothing here proves privacy: an audit can refute a claim, or fail to.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.protocol import TrainingPlan
from common.schema import ShopEvents
from server.settings import read_run_config
from simulations.arm_plans import asked_plan, fitting_plan, plan_notes
from simulations.audit.canaries import STEPS, TRAINING, audit_step, audit_training
from simulations.audit.membership import LEVELS, Trial, membership
from simulations.audit.page import render_audit
from simulations.audit.recovery import active_customers, recovery
from simulations.audit.sums import SHARES, audit_sums
from simulations.documents import Document, plain, to_json, write_text
from simulations.engine.in_process import run_defaults
from simulations.experiment import Experiment, server_config
from simulations.finished_parts import finished_parts, tables_of
from simulations.machine import machine_facts
from simulations.progress import Watcher
from simulations.report.building import REPORT, write_report
from simulations.report.page import render_report
from simulations.report.reading import read_report
from simulations.world import World, build_world

logger = logging.getLogger(__name__)

Part = Callable[[], list[Document]]

_PARTS = ".audit"
_AUDIT = "audit.json"
_FEWEST_SHOPS = 2
_ATTACKED = ("federated", "federated-dp")
# Sections that decide what is trained: an audit of a run must be of the same ones.
_TRAINED_WITH = ("data", "split", "privacy", "content", "federated", "federated-dp")


def run_audit(experiment: Experiment, out: Path, watcher: Watcher) -> Document:
    """Audit an experiment into ``out`` and return ``audit.json``'s document.

    ``out`` is a new folder, or that of a run of the same experiment, whose report then shows the
    audit too. An interrupted audit goes on where it stopped: finished parts are kept.

    Raises
    ------
    ConfigError
        If the folder is in use by something else, or the experiment can't be audited.
    DataError
        If the folder holds a run's report that cannot be read or lacks something.
    """
    if experiment.privacy.unit != "customer":
        raise ConfigError(
            f'the attacks are on customers: set privacy.unit = "customer", not '
            f'"{experiment.privacy.unit}"'
        )
    with _folder(experiment, out) as folder:
        watcher.stage("reading data")
        world = build_world(experiment, watcher.step)
        if (out / REPORT).exists():
            _check_same_data(world, read_report(out), out)
        document = _Audit(experiment, world, folder, watcher).run()
        write_text(out / "audit.html", render_audit(document))
        add_to_report(out, document)
        write_text(out / _AUDIT, to_json(document))
    shutil.rmtree(folder)
    return document


def add_to_report(folder: Path, audit: Document) -> bool:
    """Put an audit into the report of a run's folder; return whether there is one."""
    if not (folder / REPORT).exists():
        return False
    report = read_report(folder)
    report["audit"] = audit
    write_report(folder, report, render_report(report))
    return True


class _Audit:
    """One audit: its parts, each done once."""

    def __init__(
        self, experiment: Experiment, world: World, folder: Path, watcher: Watcher
    ) -> None:
        self._experiment, self._world = experiment, world
        self._folder, self._watcher = folder, watcher
        self._settings, self._seed = experiment.audit, experiment.run.seed
        until = world.split.train_until
        past = [shop.before(until) for shop in world.shops]
        self._shops = [shop for shop in past if len(active_customers(shop)) > 1]
        if len(self._shops) < _FEWEST_SHOPS:
            raise ConfigError(
                "shops that have two customers with records before the test weeks: "
                f"{len(self._shops)}; an audit needs {_FEWEST_SHOPS}"
            )

    def run(self) -> Document:
        """Return the document of the whole audit."""
        seconds = 0.0
        found: dict[str, list[Document]] = {"canaries": [], "membership": [], "recovery": []}
        shared = self._experiment.privacy.trust == "federation"
        # Sums are audited under a plan of the audit's own.
        notes = [] if shared else plan_notes(self._experiment, _ATTACKED, self._world)
        for kind, name, part in self._sum_parts() if shared else self._parts():
            path = self._folder / f"{name}.json"
            if not path.exists():
                self._watcher.stage(f"{kind}: {name}")
                started = time.monotonic()
                records = part()
                spent = time.monotonic() - started
                write_text(path, to_json({"records": records, "seconds": spent}))
            done = json.loads(path.read_text(encoding="utf-8"))
            found[kind] += done["records"]
            seconds += done["seconds"]
        document: Document = plain(
            {
                "format_version": 1,
                **found,
                "data": self._world.facts(),
                "warnings": [*self._world.dataset.notes, *notes],
                "experiment": self._experiment.facts() | {"audit": self._settings.model_dump()},
                "seed": self._seed,
                "machine": machine_facts(),
                "seconds": seconds,
            }
        )
        return document

    def _parts(self) -> Iterator[tuple[str, str, Part]]:
        """Yield (kind, name, what to do) of every part, in the document's order."""
        for claim in self._settings.claims:
            for step in STEPS:
                yield "canaries", f"{step}-{claim:g}", self._canaries(step, claim)
            yield "canaries", f"{TRAINING}-{claim:g}", self._training_canaries(claim)
        for name, trial in self._trials():
            for level in LEVELS:
                yield "membership", f"{name}-{level}", self._membership(trial, level)
        for arm in _ATTACKED:
            for customers in self._settings.recovery_customers:
                if all(len(active_customers(shop)) < customers for shop in self._shops):
                    continue
                yield "recovery", f"{arm}-of-{customers}", self._recovery(arm, customers)

    def _sum_parts(self) -> Iterator[tuple[str, str, Part]]:
        """Yield the parts where no update of a single shop is there to attack, but sums alone."""
        for claim in self._settings.claims:
            for way in SHARES:
                yield "canaries", f"{way}-{claim:g}", self._sum_canaries(way, claim)

    def _canaries(self, step: str, claim: float) -> Part:
        return lambda: [audit_step(step, claim, self._settings, self._seed)]

    def _training_canaries(self, claim: float) -> Part:
        shop = min(self._shops, key=_products)
        catalogue = self._world.catalogue
        return lambda: [
            audit_training(claim, shop, catalogue, self._settings, self._seed, self._watcher.step)
        ]

    def _sum_canaries(self, way: str, claim: float) -> Part:
        shop = min(self._shops, key=_products)
        catalogue, step = self._world.catalogue, self._watcher.step
        return lambda: [audit_sums(way, claim, shop, catalogue, self._settings, self._seed, step)]

    def _trials(self) -> Iterator[tuple[str, Trial]]:
        target, other = self._experiment.privacy.target_epsilon, self._settings.also_epsilon
        for epsilon in dict.fromkeys(value for value in (target, other) if value):
            yield f"federated-dp-{epsilon:g}", self._trial("federated-dp", epsilon)
        yield "federated", self._trial("federated", target)

    def _trial(self, arm: str, epsilon: float) -> Trial:
        plan = self._plan(arm, epsilon)
        if not plan.private and plan.rounds > self._settings.control_rounds:
            # Every round reads all training weeks: a short control has no rounds to tune on.
            shorter = {"rounds": self._settings.control_rounds, "tuning_round": 0}
            plan = plan.model_copy(update=shorter)
        config = {**run_defaults(), **server_config(self._experiment, arm)}
        _, settings = read_run_config({**config, "plan": plan.model_dump_json()})
        return Trial(arm, plan, settings.optimizer(plan))

    def _plan(self, arm: str, epsilon: float) -> TrainingPlan:
        changed = self._experiment.privacy.model_copy(update={"target_epsilon": epsilon})
        experiment = self._experiment.model_copy(update={"privacy": changed})
        # As a run on these products would train.
        return fitting_plan(asked_plan(experiment, arm, self._world), self._world)

    def _membership(self, trial: Trial, level: Any) -> Part:  # noqa: ANN401 - one of LEVELS
        return lambda: membership(
            trial,
            level,
            self._shops[: self._settings.shops],
            self._world.catalogue,
            models=self._settings.models,
            seed=self._seed,
            progress=self._watcher.step,
        )

    def _recovery(self, arm: str, customers: int) -> Part:
        # One round, of which the update reads all records that the shop has.
        plan = self._plan(arm, self._experiment.privacy.target_epsilon)
        plan = plan.model_copy(update={"tuning_round": 0})
        return lambda: [
            recovery(
                arm,
                plan,
                self._shops,
                self._world.catalogue,
                customers=customers,
                trials=self._settings.recovery_shops,
                seed=self._seed,
                progress=self._watcher.step,
            )
        ]


def _products(shop: ShopEvents) -> int:
    return len(set(shop.items.tolist()))


@contextmanager
def _folder(experiment: Experiment, out: Path) -> Iterator[Path]:
    """Give the folder of this audit's finished parts, ours alone while it is open."""
    folder = out / _PARTS
    if (out / _AUDIT).exists():
        raise ConfigError(f"{out} holds an audit: remove its {_AUDIT} to audit again")
    if (out / REPORT).exists():
        _check_same(experiment, read_report(out), out)
    elif out.exists() and (not out.is_dir() or (any(out.iterdir()) and not folder.exists())):
        raise ConfigError(
            f"{out} is in use: give a folder that is new or empty, or that of a run of this "
            "experiment"
        )
    facts = experiment.facts() | {"audit": experiment.audit.model_dump(mode="json")}
    facts |= tables_of([experiment.data.path])
    with finished_parts(folder, "audit", facts):
        yield folder


def _check_same(experiment: Experiment, report: Document, out: Path) -> None:
    mine, theirs = experiment.facts(), report["experiment"]
    for section in _TRAINED_WITH:
        if mine.get(section) != theirs.get(section):
            raise ConfigError(
                f"{out} holds a run of an experiment with another [{section}]: audit it with the "
                "file and the --set values of the run, or give another folder"
            )
    # The seed deals customers to shops, and draws a part of them.
    if experiment.run.seed != report["seed"]:
        raise ConfigError(
            f"{out} holds a run with run.seed = {report['seed']}, not {experiment.run.seed}: audit "
            "it with the file and the --set values of the run, or give another folder"
        )


def _check_same_data(world: World, report: Document, out: Path) -> None:
    """Refuse tables that are others than when the run read them: a folder's name says nothing."""
    mine, theirs = plain(world.facts()), report["data"]
    # Whom the arms were measured at is none of an audit's settings.
    other = [key for key in mine if key != "measured" and mine[key] != theirs.get(key)]
    if other:
        raise ConfigError(
            f"{out} holds a run on other data than there are now ({', '.join(other)} differ): "
            "audit it with the tables of the run, or give another folder"
        )
