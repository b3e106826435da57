"""Run an experiment: data, arms, federations on Flower's engine, and the folder that shows it all.

Everything is written into a draft folder beside the goal and renamed when it is whole. A run that
was interrupted goes on from its draft: finished federations are not trained again, and one in the
middle goes on at its round.
"""

import gc
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.artifact import Manifest, save_model
from common.code import code_digest
from common.errors import ConfigError
from common.features import write_catalogue
from common.metrics import MetricSums
from common.schema import ShopEvents
from common.statement import statement
from simulations.arms import OwnEases, ShopOutcome, by_global_model, global_model
from simulations.evaluating import (
    FEDERATED,
    arm_outcomes,
    evaluate_arm,
    paid_again,
    spent_by_round,
    trained_by,
)
from simulations.experiment import Experiment, check_mixtures
from simulations.federating import WORK, Federator, Trained
from simulations.finished_parts import LOCK, finished_parts, tables_of
from simulations.machine import machine_facts
from simulations.progress import Watcher
from simulations.report.building import ArmResult, RunResult, build_report, write_report
from simulations.report.draws import noise_seed
from simulations.report.page import render_report
from simulations.report.recommendations import RecommendationWriter
from simulations.world import World, build_world

logger = logging.getLogger(__name__)

_IDENTITY = "experiment.json"
#: The products that the models know, as a service or a shop reads them.
CATALOGUE = "catalogue"


def run_experiment(experiment: Experiment, out: Path, watcher: Watcher) -> dict[str, Any]:
    """Run an experiment into the new folder ``out`` and return its report.

    Raises
    ------
    ConfigError
        If the folder is in use, or holds the draft of another experiment, or an arm has nothing
        to recommend by.
    RunError
        If a federation failed.
    """
    check_mixtures(experiment, experiment.run.arms)
    with draft_folder(experiment, out) as folder:
        watcher.stage("reading data")
        world = build_world(experiment, watcher.step)
        runner = _Runner(experiment, world, folder, watcher)
        document = runner.run()
        if (folder / WORK).exists():  # arms that train nothing together leave none
            shutil.rmtree(folder / WORK)
        return document


@contextmanager
def draft_folder(
    experiment: Experiment, out: Path, begun: Sequence[str] = (WORK,)
) -> Iterator[Path]:
    """Give the draft folder of ``out``, ours alone; rename it when the run is whole.

    ``begun`` are patterns of what is there once anything was begun that could go on: without it,
    what was refused or interrupted leaves nothing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is in use: give a folder that is new or empty, or move it away")
    if out.is_symlink() or out.exists():
        try:  # as at the end, when all has been done
            out.rmdir()
            out.mkdir()  # what comes now may still be refused
        except OSError as error:
            raise ConfigError(
                f"{out} can't be replaced by what is finished ({error.strerror}): give a folder "
                "that is new"
            ) from error
    draft = out.with_name(f".{out.name}.partial")
    facts = experiment.facts() | tables_of([experiment.data.path])

    def is_begun(folder: Path) -> bool:
        return any(any(folder.glob(pattern)) for pattern in begun)

    with finished_parts(draft, "run", facts, identity=_IDENTITY, out=out, begun=is_begun):
        yield draft
        (draft / LOCK).unlink()
        if out.exists():
            out.rmdir()
        draft.rename(out)


class _Runner:
    """All arms of one experiment on one world."""

    def __init__(
        self, experiment: Experiment, world: World, folder: Path, watcher: Watcher
    ) -> None:
        self._experiment, self._world = experiment, world
        self._folder, self._watcher = folder, watcher
        self._trained: dict[str, Trained] = {}
        self._further: dict[str, list[Trained]] = {}
        self._eases = OwnEases()
        self._federator = Federator(experiment, world, folder, watcher)

    def run(self) -> dict[str, Any]:
        """Run every arm and write the folder; return the report."""
        arms = self._experiment.run.arms
        sources = {arm: trained_by(self._experiment, arm) for arm in arms}
        needed = [name for name in FEDERATED if name in sources.values()]
        for name in needed:  # a plan that can't be kept is refused before anything is trained
            self._federator.plan(name)
        for name in needed:
            self._trained[name] = self._federator.federate(name)
            self._save_model(name)
            if (plan := self._trained[name].plan).private:
                if above := paid_again(self._world, plan, self._federator.ledgers):
                    self._federator.notes.append(f"{name}: {above}")
                self._further[name] = [*self._with_other_noise(name)]
        results = []
        with RecommendationWriter(self._folder / "recommendations.parquet") as writer:
            for arm in arms:
                results.append(self._evaluate(arm, sources[arm], writer))
                gc.collect()
        self._watcher.stage("writing the report")
        run = RunResult(
            arms=results,
            data=self._world.facts(),
            machine=machine_facts(),
            experiment=self._experiment.facts(),
            seed=self._experiment.run.seed,
            n_items=self._world.catalogue.size,
            warnings=self._warnings(),
        )
        document = build_report(run)
        write_report(self._folder, document, render_report(document))
        return document

    def _with_other_noise(self, name: str) -> Iterator[Trained]:
        """Train a private arm again and again, in this process, each with noise of its own."""
        from simulations.engine.in_process import run_in_process  # Slow: the apps themselves.

        run, work = self._experiment.run, self._folder / WORK
        for draw in range(2, run.noise_draws + 1):
            # Ledgers and all in a folder that does not stay: what is kept is of the first draw.
            federator = Federator(
                self._experiment,
                self._world,
                work / f"draw-{draw}",
                self._watcher,
                shared=work,
                noise_seed=noise_seed(run.seed, draw),
            )
            federator.plan(name)
            label = f"{name} with noise {draw} of {run.noise_draws}"
            trained = federator.federate(name, run_in_process, label)
            if missing := len(trained.declined.keys() - self._trained[name].declined.keys()):
                self._federator.notes.append(
                    f"{label}: {missing} of {len(self._world.shops)} shops took no part that did "
                    "in the first: the run was interrupted, and caps had no room for rounds paid "
                    "twice"
                )
            yield trained

    # --- one arm -------------------------------------------------------------------------------

    def _evaluate(self, arm: str, source: str | None, writer: RecommendationWriter) -> ArmResult:
        trained = self._trained[source] if source else None
        self._watcher.stage(f"arm {arm}", len(self._world.measured))

        def seen(shop: ShopEvents, outcome: ShopOutcome) -> None:
            users = shop.user_ids[self._world.asked[shop.merchant_id]]
            item_ids = self._world.catalogue.item_ids
            lists = (("all", outcome.all_products), ("tail", outcome.tail_products))
            for name, found in lists:
                writer.write(
                    arm,
                    "all" if name == "all" else "tail",
                    shop.merchant_id,
                    users,
                    found.rows,
                    found.scores,
                    item_ids,
                )
            self._watcher.step()

        ledgers = self._federator.ledgers
        result = evaluate_arm(
            self._experiment, self._world, arm, trained, ledgers, self._eases, seen
        )
        if source in self._further and result.privacy:
            further = [
                self._measured(arm, draw, number)
                for number, draw in enumerate(self._further[source], 2)
            ]
            result = replace(result, further_draws=further)
        if trained is None or arm != source:
            return result
        return replace(result, rounds=self._by_round(trained))

    def _measured(self, arm: str, trained: Trained, draw: int) -> dict[str, MetricSums]:
        """Return what a model with other noise gives each measured shop."""
        label = f"arm {arm} with noise {draw} of {self._experiment.run.noise_draws}"
        self._watcher.stage(label, len(self._world.measured))
        sums = {}
        for outcome in arm_outcomes(self._experiment, self._world, arm, trained, self._eases):
            sums[outcome.merchant_id] = outcome.sums
            self._watcher.step()
        gc.collect()
        return sums

    def _by_round(self, trained: Trained) -> list[dict[str, float]]:
        """Measure the global model of each round: by the analyst, outside all messages."""
        found = []
        chosen = sorted({round(r) for r in np.linspace(0, trained.plan.rounds, 7)})
        self._watcher.stage("quality by round", len(chosen))
        private = trained.plan.private
        spent = (
            spent_by_round(self._world, trained.plan, self._federator.ledgers) if private else []
        )
        for server_round in range(trained.plan.rounds + 1):
            facts = {"round": float(server_round)}
            if private:
                facts["epsilon"] = spent[server_round]
            if server_round in chosen:
                state = trained.checkpoint(server_round).state
                model = global_model(self._world, trained.plan.model, state)
                sums = [o.sums for o in by_global_model(self._world, model)]
                pooled = sums[0]
                for more in sums[1:]:
                    pooled = pooled.merge(more)
                facts.update({k: v for k, v in pooled.summary().items() if k.endswith("ndcg@20")})
                self._watcher.step()
            found.append(facts)
        return found

    def _save_model(self, name: str) -> None:
        trained = self._trained[name]
        target = self._folder / "models" / name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        last = trained.checkpoint(trained.plan.rounds)
        built_in = not self._experiment.data.path
        named = self._experiment.split.train_until or self._world.dataset.train_until
        promise = statement(
            trained.plan,
            noise="seeded",
            catalogue_from_purchases=built_in,
            # Where validation weeks begin follows from the first record in any case.
            dates_from_records=not named or trained.plan.tuning_round > 0,
        )
        manifest = Manifest(
            version=f"{name}-{trained.plan.rounds}",
            server_round=trained.plan.rounds,
            data_columns=tuple(map(str, self._world.catalogue.products.columns)),
            config={
                "plan": trained.plan.model_dump(mode="json"),
                "content": self._world.catalogue.spec.model_dump(mode="json"),
            },
            code_digest=code_digest(),
            privacy=promise if trained.plan.private else None,
            catalogue_fingerprint=self._world.catalogue.fingerprint,
        )
        save_model(target, last.state, self._world.catalogue.item_ids, manifest)
        if not (self._folder / CATALOGUE).exists():
            # Without its catalogue a model can't be asked anything.
            write_catalogue(self._world.catalogue, self._folder / CATALOGUE)

    def _warnings(self) -> list[str]:
        found = [*self._world.dataset.notes, *self._federator.notes]
        if self._trained:
            found.append("noise is seeded so that the run can be repeated: it protects nobody")
        private = any(trained.plan.private for trained in self._trained.values())
        if private and self._experiment.run.noise_draws == 1:
            found.append(
                "intervals cover the draw of customers, not that of the noise: where a gain is "
                "near 0, another draw may answer otherwise (run.noise_draws = 5 asks several)"
            )
        return found
