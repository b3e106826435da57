"""Run an experiment: data, arms, federations on Flower's engine, and the folder that shows it all.

Everything is written into a draft folder beside the goal and renamed when it is whole. A run that
was interrupted goes on from its draft: finished federations are not trained again, and one in the
middle goes on at its round.
"""

import fcntl
import gc
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from client.privacy.ledger import Ledger
from client.privacy.plan import code_digest
from common.accounting import Spend, epsilon
from common.artifact import Manifest, save_model
from common.config import nearest
from common.errors import ConfigError, InputError, RunError
from common.features import CROSS, write_catalogue
from common.protocol import TrainingPlan, shop_key
from common.schema import ShopEvents
from common.statement import statement
from server.checkpoints import Checkpoint, read_checkpoint, rounds
from simulations.arms import (
    Knowledge,
    ShopOutcome,
    at_home,
    by_global_model,
    by_popularity,
    global_model,
    pooled_ease,
    untrained,
)
from simulations.experiment import TRAINED_BY, Experiment, server_config, training_plan
from simulations.flower import CHECKPOINTS, EVENTS_FILE, run_federation
from simulations.machine import PeakMemory, machine_facts
from simulations.page import render_report
from simulations.recommendations import RecommendationWriter
from simulations.report import (
    ArmPrivacy,
    ArmResult,
    RunResult,
    ShopResult,
    build_report,
    write_report,
)
from simulations.world import World, build_world

logger = logging.getLogger(__name__)

_FEDERATED = ("federated", "federated-dp")
_IDENTITY = "experiment.json"
_WORK = "work"


class Watcher(Protocol):
    """Shown how far a run is."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Begin a stage of ``total`` steps, or of unknown length."""

    def step(self, text: str = "") -> None:
        """Finish one step of the stage."""


@dataclass
class Trained:
    """One federation that has ended.

    Attributes
    ----------
    plan
        What was run.
    folder
        Of its checkpoints.
    declined
        Shop key -> code of the shops that took no part.
    """

    plan: TrainingPlan
    folder: Path
    seconds: float
    peak_mb: float
    declined: Mapping[str, str] = field(default_factory=dict)

    def checkpoint(self, server_round: int) -> Checkpoint:
        """Return the state after a round."""
        return read_checkpoint(self.folder, server_round)


def run_experiment(experiment: Experiment, out: Path, watcher: Watcher) -> dict[str, Any]:
    """Run an experiment into the new folder ``out`` and return its report.

    Raises
    ------
    ConfigError
        If the folder is in use, or holds the draft of another experiment.
    RunError
        If a federation failed.
    """
    with _draft(experiment, out) as folder:
        watcher.stage("reading data")
        world = build_world(experiment, watcher.step)
        _check_caps(experiment, world)
        runner = _Runner(experiment, world, folder, watcher)
        document = runner.run()
        if (folder / _WORK).exists():  # arms that train nothing together leave none
            shutil.rmtree(folder / _WORK)
        return document


@contextmanager
def _draft(experiment: Experiment, out: Path) -> Iterator[Path]:
    """Give the draft folder of ``out``, ours alone; rename it when the run is whole."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is in use: give a folder that is new or empty, or move it away")
    draft = out.with_name(f".{out.name}.partial")
    try:
        draft.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make a folder beside {out}: {error.strerror}") from error
    identity = json.dumps(experiment.facts() | {"code": code_digest()}, sort_keys=True)
    with (draft / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another run writes into {out} at this moment") from error
        known = draft / _IDENTITY
        if known.exists() and known.read_text(encoding="utf-8") != identity:
            raise ConfigError(
                f"{draft} holds an interrupted run of another experiment or code: finish that "
                "one, or remove the folder"
            )
        known.write_text(identity, encoding="utf-8")
        try:
            yield draft
        except InputError:
            if not (draft / _WORK).exists():  # nothing was begun that could go on
                shutil.rmtree(draft)
            raise
        (draft / ".lock").unlink()
        if out.exists():
            out.rmdir()
        draft.rename(out)


def _check_caps(experiment: Experiment, world: World) -> None:
    known = [shop.merchant_id for shop in world.shops]
    for merchant_id in experiment.privacy.caps:
        if merchant_id not in known:
            hint = nearest(merchant_id, known)
            raise ConfigError(f"privacy.caps: no merchant is called {merchant_id!r}; {hint}")


class _Runner:
    """All arms of one experiment on one world."""

    def __init__(
        self, experiment: Experiment, world: World, folder: Path, watcher: Watcher
    ) -> None:
        self._experiment, self._world = experiment, world
        self._folder, self._watcher = folder, watcher
        self._trained: dict[str, Trained] = {}
        self._notes: list[str] = []
        self._ledgers = folder / "ledgers"
        self._ledgers.mkdir(exist_ok=True)

    def run(self) -> dict[str, Any]:
        """Run every arm and write the folder; return the report."""
        arms = self._experiment.run.arms
        needed = [name for name in _FEDERATED if any(_source(arm) == name for arm in arms)]
        if needed:
            write = self._folder / _WORK / "catalogue"
            if not write.exists():
                write.parent.mkdir(exist_ok=True)
                write_catalogue(self._world.catalogue, write)
        for name in needed:
            self._trained[name] = self._federate(name)
            self._save_model(name)
        results = []
        with RecommendationWriter(self._folder / "recommendations.parquet") as writer:
            for arm in arms:
                results.append(self._evaluate(arm, writer))
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

    # --- one arm -------------------------------------------------------------------------------

    def _evaluate(self, arm: str, writer: RecommendationWriter) -> ArmResult:
        shops: dict[str, ShopResult] = {}
        trained = self._trained.get(_source(arm))
        self._watcher.stage(f"arm {arm}", len(self._world.shops))
        item_ids = self._world.catalogue.item_ids
        with PeakMemory() as memory:
            for outcome, events in zip(
                self._outcomes(arm, trained), self._world.shops, strict=True
            ):
                for name, lists in (("all", outcome.all_products), ("tail", outcome.tail_products)):
                    writer.write(
                        arm,
                        "all" if name == "all" else "tail",
                        events.merchant_id,
                        events.user_ids,
                        lists.rows,
                        lists.scores,
                        item_ids,
                    )
                shops[events.merchant_id] = self._shop_result(outcome, events, trained)
                self._watcher.step()
            history = [] if trained is None or arm in TRAINED_BY else self._by_round(trained)
        seconds, peak = memory.seconds, memory.peak_mb
        if trained is not None:
            seconds, peak = seconds + trained.seconds, max(peak, trained.peak_mb)
        return ArmResult(arm, shops, _privacy(trained), seconds, peak, history)

    def _outcomes(self, arm: str, trained: Trained | None) -> Iterator[ShopOutcome]:
        world, home = self._world, self._experiment.home
        if arm == "popularity":
            return by_popularity(world)
        if trained is not None:
            plan = trained.plan
            if arm in TRAINED_BY:
                state = trained.checkpoint(plan.rounds).state
                return by_global_model(world, global_model(world, plan.model, state))

            def known(server_round: int) -> Knowledge:
                state = trained.checkpoint(server_round).state
                return Knowledge(global_model(world, plan.model, state), {})

            settings = home.federated_dp if plan.private else home.federated
            return at_home(
                world, settings, lambda: known(plan.tuning_round), lambda: known(plan.rounds)
            )
        if arm == "centralized":
            settings, model = home.centralized, untrained(world)

            def pooled(tuning: bool) -> Knowledge:
                period = world.validation if tuning else world.test
                ease = pooled_ease(world, period, home.pooled_ridge, settings.max_customers)
                return Knowledge(model, {"pooled_ease": ease})

            return at_home(world, settings, lambda: pooled(True), lambda: pooled(False))
        alone = Knowledge(untrained(world), {})
        settings = home.local if arm == "local" else home.home_only()
        return at_home(world, settings, lambda: alone, lambda: alone)

    def _shop_result(
        self, outcome: ShopOutcome, events: ShopEvents, trained: Trained | None
    ) -> ShopResult:
        customers = int(
            np.count_nonzero(np.diff(self._world.test.history[events.merchant_id].indptr))
        )
        reason = "" if customers > 1 else f"{customers or 'no'} customer: it sent little but noise"
        if trained is None:
            return ShopResult(outcome.sums, home_weights=outcome.weights)
        code = trained.declined.get(shop_key(events.merchant_id), "")
        spent = None
        if trained.plan.private:
            spent = self._spent(events.merchant_id)
        return ShopResult(
            outcome.sums,
            epsilon=spent,
            took_part=not code,
            reason=_REASONS.get(code, code) if code else reason,
            home_weights=outcome.weights,
        )

    def _spent(self, merchant_id: str) -> float:
        path = self._ledgers / ledger_name(merchant_id)
        if not path.exists():
            return 0.0
        with Ledger.open(path) as ledger:
            found = ledger.epsilon(self._experiment.privacy.target_delta)
        return max((e.value for e in found.values()), default=0.0)

    def _by_round(self, trained: Trained) -> list[dict[str, float]]:
        """Measure the global model of each round: by the analyst, outside all messages."""
        found = []
        chosen = sorted({round(r) for r in np.linspace(0, trained.plan.rounds, 7)})
        self._watcher.stage("quality by round", len(chosen))
        for server_round in range(trained.plan.rounds + 1):
            facts = {"round": float(server_round)}
            if trained.plan.private:
                facts["epsilon"] = _plan_epsilon(trained.plan, server_round)
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

    # --- one federation ------------------------------------------------------------------------

    def _federate(self, name: str) -> Trained:
        split = self._world.split
        plan = training_plan(
            self._experiment,
            name,
            validation_from=split.validation_from,
            train_until=split.train_until,
        )
        plan = self._with_groups_that_exist(name, plan)
        shops = self._write_shops(name, plan)
        server = self._folder / _WORK / name / "server"
        self._watcher.stage(f"training {name} on Flower", plan.rounds + 2)
        checkpoints = server / CHECKPOINTS
        with PeakMemory() as memory:
            if not _is_finished(checkpoints, plan):
                run_federation(
                    plan,
                    shops_folder=shops,
                    shops=len(self._world.shops),
                    server_folder=server,
                    catalogue_folder=self._folder / _WORK / "catalogue",
                    run_config=server_config(self._experiment, name),
                    on_event=self._show,
                )
        if not _is_finished(checkpoints, plan):
            raise RunError(f"the {name} run ended without the model of its last round")
        declined = _declined(_events(checkpoints / EVENTS_FILE))
        return Trained(plan, checkpoints, memory.seconds, memory.peak_mb, declined)

    def _with_groups_that_exist(self, name: str, plan: TrainingPlan) -> TrainingPlan:
        """Learn other groups, or single products, where the products lack the plan's columns."""
        model, catalogue = plan.model, self._world.catalogue
        named = model.groups.split(CROSS) if model.groups else []
        if all(column in catalogue.products.columns for column in named):
            return plan
        fitting = [f for f in catalogue.features if len(f.values) <= model.learned_items]
        chosen = max(fitting, key=lambda f: len(f.values)).name if fitting else ""
        self._notes.append(
            f"the products have no columns for the groups {model.groups} that {name} learns: it "
            f"learns {chosen or 'single products'} instead"
        )
        model = model.model_copy(update={"groups": chosen})
        return plan.model_copy(update={"model": model})

    def _show(self, event: Mapping[str, Any]) -> None:
        if event.get("event") in ("release", "round"):
            accepted, asked = event.get("accepted"), event.get("asked")
            self._watcher.step(f"round {event.get('server_round')}: {accepted} of {asked} shops")

    def _write_shops(self, name: str, plan: TrainingPlan) -> Path:
        """Lay out every shop's own folder: its training records, settings and ledger's place."""
        root = self._folder / _WORK / name / "shops"
        if (root / ".whole").exists():
            return root
        shutil.rmtree(root, ignore_errors=True)
        for number, shop in enumerate(self._world.shops):
            data = root / str(number) / "data"
            data.mkdir(parents=True)
            _write_tables(self._world, shop.merchant_id, data)
            settings = self._settings(shop.merchant_id, plan)
            lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
            (data.parent / "shop.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (root / ".whole").touch()
        return root

    def _settings(self, merchant_id: str, plan: TrainingPlan) -> dict[str, Any]:
        privacy = self._experiment.privacy
        ledger = self._ledgers if plan.private else self._folder / _WORK / "no-ledgers"
        ledger.mkdir(exist_ok=True)
        planned = privacy.cap_epsilon or privacy.target_epsilon
        return {
            "merchant_id": merchant_id,
            "data": "data",
            "catalogue": "../../../catalogue",
            "ledger": os.path.relpath(
                ledger / ledger_name(merchant_id), self._folder / _WORK / "a" / "shops" / "0"
            ),
            "cap_epsilon": privacy.caps.get(merchant_id, planned),
            "cap_delta": privacy.target_delta,
            "unit": plan.unit,
            "noise": "seeded",
            "insecure_seeded_noise": True,
            "noise_seed": self._experiment.run.seed,
            "allow_unprotected": not plan.private,
        }

    def _save_model(self, name: str) -> None:
        trained = self._trained[name]
        target = self._folder / "models" / name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        last = trained.checkpoint(trained.plan.rounds)
        built_in = not self._experiment.data.path
        promise = statement(trained.plan, noise="seeded", catalogue_from_purchases=built_in)
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

    def _warnings(self) -> list[str]:
        found = [*self._world.dataset.notes, *self._notes]
        if self._trained:
            found.append("noise is seeded so that the run can be repeated: it protects nobody")
        return found


_REASONS = {
    "over-budget": "the plan costs more than the shop's cap: it took no part",
    "refused-config": "the shop's settings refuse the plan",
    "ledger-error": "the shop's ledger could not be trusted or written",
    "data-error": "the shop's data were refused",
}


def ledger_name(merchant_id: str) -> str:
    """Return the file name of a shop's ledger: its id, percent-encoded."""
    return f"{quote(merchant_id, safe='')}.sqlite"


def _source(arm: str) -> str:
    return TRAINED_BY.get(arm, arm)


def _privacy(trained: Trained | None) -> ArmPrivacy | None:
    if trained is None or not trained.plan.private:
        return None
    plan = trained.plan
    return ArmPrivacy(plan.target_delta, plan.unit, plan.trust, statement(plan, noise="seeded"))


def _plan_epsilon(plan: TrainingPlan, server_round: int) -> float:
    """Return ε of the release and the rounds up to one."""
    spends = [Spend(plan.popularity_noise_multiplier, 1.0, 1)]
    if server_round:
        steps = server_round * plan.local_steps
        spends.append(Spend(plan.noise_multiplier, plan.sample_rate, steps))
    return epsilon(spends, plan.target_delta).value


def _write_tables(world: World, merchant_id: str, folder: Path) -> None:
    """Write what one shop may train on as the contract's tables: nothing of the test weeks."""
    tables = world.dataset.tables
    frame = tables.interactions
    merchants = frame["merchant_id"].cat
    own = np.zeros(len(frame), dtype=bool)
    if merchant_id in merchants.categories:
        own = merchants.codes.to_numpy() == merchants.categories.get_loc(merchant_id)
    kept = frame[own & (frame["timestamp"].to_numpy() < world.split.train_until)]
    for column in ("merchant_id", "user_id", "item_id", "behavior"):
        kept = kept.assign(**{column: kept[column].astype(str)})
    kept.to_parquet(folder / "interactions.parquet", index=False)
    if tables.customers is not None:
        people = tables.customers
        if "merchant_id" in people:
            people = people[people["merchant_id"] == merchant_id]
        people[people["user_id"].isin(set(kept["user_id"]))].to_parquet(
            folder / "customers.parquet", index=False
        )


def _is_finished(checkpoints: Path, plan: TrainingPlan) -> bool:
    return plan.rounds in rounds(checkpoints)


def _events(path: Path) -> list[dict[str, Any]]:
    """Return what the server told of a run, from its start and over all interruptions.

    A crash may have cut a line short: it tells nothing.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _declined(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return shop key -> code of the shops that took no part in any training."""
    codes: dict[str, str] = {}
    for event in events:
        if event.get("event") == "join":
            codes.update(event.get("shops", {}))
    return {shop: code for shop, code in codes.items() if code != "ok"}
