"""One federation of an experiment: each shop's folder laid out, then trained."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from client.joining.keys import make_keys
from client.privacy.ledger import Ledger
from common.accounting import epsilon, fits, plan_spends
from common.config import parse, toml_value
from common.errors import ConfigError, RunError
from common.features import write_catalogue
from common.planning import check_start
from common.protocol import TrainingPlan, shop_key
from common.secure_sum.members import roster_text, threshold
from common.statement import at_most
from server.checkpoints import Checkpoint, read_checkpoint, rounds
from server.settings import EVENTS_FILE, RunSettings
from server.training.plan import run_defaults
from server.training.records import new_events
from server.variables import ROSTER_FILE
from simulations.arm_plans import asked_plan, fitting_plan, plan_notes
from simulations.engine.flower import CHECKPOINTS, Outcome, end_leftovers, run_federation
from simulations.experiment import Experiment, server_config
from simulations.machine import PeakMemory
from simulations.progress import Watcher
from simulations.world import World

#: Folder of a draft that holds what is gone when the run is whole.
WORK = "work"
#: In place of the code of a shop that was never heard under its own name.
UNHEARD = "unheard"
#: Characters of a percent-encoded merchant id for which its ledger, and SQLite's journal beside it
#: (``.sqlite-journal``), have names of 255 bytes at most, as file systems allow.
LONGEST_NAME = 255 - len(".sqlite-journal")


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


class Federator:
    """Runs the federations of one experiment in its draft folder.

    Catalogue and shops' tables are written into ``shared``, once for all that is given it; they
    follow from the world alone. ``noise_seed`` is of the private plans' noise and of the sampling
    that goes with it; the experiment's own where it is not named.

    Attributes
    ----------
    ledgers
        Folder of the shops' ledgers of private plans.
    notes
        What a reader of the report must know of the training.
    """

    def __init__(
        self,
        experiment: Experiment,
        world: World,
        folder: Path,
        watcher: Watcher,
        shared: Path | None = None,
        noise_seed: int | None = None,
    ) -> None:
        self._noise_seed = experiment.run.seed if noise_seed is None else noise_seed
        self._experiment, self._world = experiment, world
        self._work, self._watcher = folder / WORK, watcher
        self._shared = shared or self._work
        self.ledgers = folder / "ledgers"
        self.ledgers.mkdir(parents=True, exist_ok=True)
        self.notes: list[str] = []
        self._plans: dict[str, TrainingPlan] = {}

    def plan(self, name: str) -> TrainingPlan:
        """Make the plan of an arm's federation; :meth:`federate` runs it.

        Raises
        ------
        ConfigError
            If the plan asks for what this version or these data don't have, or can't be kept.
        """
        plan = asked_plan(self._experiment, name, self._world)
        if plan.half_life_days != (known := self._world.half_life_days):
            raise ConfigError(
                f"{name} trains with a half_life_days of {plan.half_life_days:g}, and customers' "
                f"histories are made with that of [federated], {known:g}, for all arms alike: give "
                "both sections the same"
            )
        if plan.unit == "basket" and "session_id" not in self._world.dataset.tables.interactions:
            raise ConfigError(
                'privacy.unit = "basket" needs interactions with a session_id column: add it, or '
                'set privacy.unit = "customer"'
            )
        if plan.trust == "federation":
            # Asked before anything is trained: with so few shops no sum would be unmasked.
            threshold(len(self._world.shops), plan.honest_shops, plan.colluding_shops)
        if plan.private:
            self._check_ledgers()
            self._check_promise(name, plan)
        self.notes += plan_notes(self._experiment, [name], self._world)
        plan = fitting_plan(plan, self._world)
        check_start(plan, self._world.catalogue.size)
        self._check_server(name, plan)
        self._plans[name] = plan
        return plan

    def _check_server(self, name: str, plan: TrainingPlan) -> None:
        """Refuse what the server would, before other arms are trained for nothing."""
        defaults = {key: value for key, value in run_defaults().items() if key != "plan"}
        defaults["min-shops"] = len(self._world.shops)
        config = {**defaults, **server_config(self._experiment, name)}
        given = {key.replace("-", "_"): value for key, value in config.items()}
        settings = parse(RunSettings, given, f"{name}.server")
        settings.defender(plan)
        settings.optimizer(plan)

    def _check_ledgers(self) -> None:
        """Refuse a shop whose ledger's name no file can have, before anything is trained."""
        for shop in self._world.shops:
            if len(quote(shop.merchant_id, safe="")) > LONGEST_NAME:
                raise ConfigError(
                    f"merchant_id {shop.merchant_id!r} is too long: percent-encoded, as the name "
                    f"of the shop's ledger, it has {len(quote(shop.merchant_id, safe=''))} "
                    f"characters, and a file's name has room for {LONGEST_NAME}. Give the shop a "
                    f"shorter one in all tables: {LONGEST_NAME} plain letters, or "
                    f"{LONGEST_NAME // 6} Cyrillic ones, are enough"
                )

    def _check_promise(self, name: str, plan: TrainingPlan) -> None:
        """Refuse a plan that no shop could pay for."""
        caps = {shop.merchant_id: self._cap(shop.merchant_id) for shop in self._world.shops}
        spends, delta = plan_spends(plan), plan.target_delta
        if not fits(spends, delta, max(caps.values())):
            cost = at_most(epsilon(spends, delta).value)
            raise ConfigError(
                f"no shop could take part in {name}: it costs ε = {cost}, above every shop's cap "
                f"(privacy.cap_epsilon, privacy.caps: {max(caps.values()):g} at most). Raise the "
                "cap, or lower privacy.target_epsilon"
            )

    def _cap(self, merchant_id: str) -> float:
        privacy = self._experiment.privacy
        # Room for rounds that an interruption makes a shop pay twice.
        return privacy.caps.get(merchant_id, privacy.cap_epsilon or 2 * privacy.target_epsilon)

    def federate(
        self, name: str, engine: Callable[..., Outcome] | None = None, label: str = ""
    ) -> Trained:
        """Run the federation of an arm, or what is left of it.

        Parameters
        ----------
        engine
            What runs it, in place of the experiment's own.
        label
            What it is called while it runs, if not by its arm's name.

        Raises
        ------
        RunError
            If it failed.
        """
        plan = self._plans[name]
        catalogue = self._shared / "catalogue"
        if not catalogue.exists():
            self._shared.mkdir(parents=True, exist_ok=True)
            # Public: rows travel from the shops that stock them.
            published = self._experiment.privacy.publish_stock
            stock = self._world.dataset.tables.stock if published else None
            write_catalogue(self._world.catalogue, catalogue, stock)
        shops = self._write_shops(name, plan)
        server = self._work / name / "server"
        run, where = (engine, "") if engine else _engine(self._experiment.run.engine)
        self._watcher.stage(f"training {label or name} {where}".rstrip(), plan.rounds + 2)
        checkpoints = server / CHECKPOINTS
        end_leftovers(server)
        if rounds(checkpoints):
            self.notes.append(
                f"{label or name}: the run was interrupted, so seconds and memory are those of "
                "what was left of the training"
            )
        with PeakMemory() as memory:
            if not _is_finished(checkpoints, plan):
                run(
                    plan,
                    shops_folder=shops,
                    shops=len(self._world.shops),
                    server_folder=server,
                    catalogue_folder=catalogue,
                    run_config=server_config(self._experiment, name),
                    on_event=self._show,
                )
        if not _is_finished(checkpoints, plan):
            raise RunError(f"the {name} run ended without the model of its last round")
        declined = who_declined(
            new_events(checkpoints / EVENTS_FILE, 0)[0],
            [shop_key(shop.merchant_id) for shop in self._world.shops],
        )
        return Trained(plan, checkpoints, memory.seconds, memory.peak_mb, declined)

    def _show(self, event: Mapping[str, Any]) -> None:
        if event.get("event") in ("release", "round"):
            accepted, asked = event.get("accepted"), event.get("asked")
            self._watcher.step(f"round {event.get('server_round')}: {accepted} of {asked} shops")

    def _write_shops(self, name: str, plan: TrainingPlan) -> Path:
        """Lay out every shop's own folder: its settings, which name its tables and ledger."""
        root = self._work / name / "shops"
        if (root / ".whole").exists():
            return root
        shutil.rmtree(root, ignore_errors=True)
        self._write_tables()
        keys: list[tuple[str, Path]] = []
        for number, shop in enumerate(self._world.shops):
            home = root / str(number)
            home.mkdir(parents=True)
            settings = self._settings(shop.merchant_id, plan)
            if plan.private:
                # A shop that takes no part has a ledger too: it shows that nothing was spent.
                Ledger.open(self.ledgers / ledger_name(shop.merchant_id)).close()
            for key, place in (
                ("data", self._shared / "tables" / str(number)),
                ("catalogue", self._shared / "catalogue"),
            ):
                settings[key] = os.path.relpath(place, home)
            lines = [f"{key} = {toml_value(value)}" for key, value in settings.items()]
            lines.append("[behavior_weights]")
            weights = self._experiment.data.behaviors
            lines += [f"{toml_value(name)} = {weight}" for name, weight in weights.items()]
            if plan.trust == "federation":
                keys.append((shop.merchant_id, make_keys(home / "node.key")))
                lines += ["[secure_sum]", 'key = "node.key"', f'roster = "../{ROSTER_FILE}"']
            (home / "shop.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if keys:
            roster = roster_text((name, _public_key(path)) for name, path in keys)
            (root / ROSTER_FILE).write_text(roster, encoding="ascii")
        (root / ".whole").touch()
        return root

    def _write_tables(self) -> None:
        """Write every shop's own training records, unless they are there."""
        root = self._shared / "tables"
        if (root / ".whole").exists():
            return
        shutil.rmtree(root, ignore_errors=True)
        for number, shop in enumerate(self._world.shops):
            (root / str(number)).mkdir(parents=True)
            write_tables(self._world, shop.merchant_id, root / str(number))
        (root / ".whole").touch()

    def _settings(self, merchant_id: str, plan: TrainingPlan) -> dict[str, Any]:
        privacy = self._experiment.privacy
        # A run without privacy leaves a note in a ledger that nobody looks at; a shop's name may be
        # too long for a file's there.
        ledger = (
            self.ledgers / ledger_name(merchant_id)
            if plan.private
            else self._work / "unprotected" / f"{shop_key(merchant_id)}.sqlite"
        )
        ledger.parent.mkdir(exist_ok=True)
        return {
            "merchant_id": merchant_id,
            "ledger": os.path.relpath(ledger, self._work / "a" / "shops" / "0"),
            "cap_epsilon": self._cap(merchant_id),
            "cap_delta": privacy.target_delta,
            "rating_scale": self._experiment.data.rating_scale,
            "unit": plan.unit,
            "noise": "seeded",
            "insecure_seeded_noise": True,
            "noise_seed": self._noise_seed,
            "allow_unprotected": not plan.private,
        }


def _engine(name: str) -> tuple[Callable[..., Outcome], str]:
    """Return what runs a federation, and where in words."""
    if name == "flower":
        return run_federation, "on Flower"
    from simulations.engine.in_process import run_in_process  # Slow: the apps themselves.

    return run_in_process, "in this process"


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    key = load_ssh_public_key(path.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def ledger_name(merchant_id: str) -> str:
    """Return the file name of a shop's ledger: its id, percent-encoded."""
    return f"{quote(merchant_id, safe='')}.sqlite"


def write_tables(world: World, merchant_id: str, folder: Path) -> None:
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


def who_declined(events: Sequence[Mapping[str, Any]], shops: Iterable[str]) -> dict[str, str]:
    """Return shop key -> code of those of ``shops`` that took no part.

    They declined, failed in every exchange, or were never heard under their own name: who can't
    read its settings does not know whose they are.
    """
    joined: dict[str, str] = {}
    failures: Counter[str] = Counter()
    exchanges = 0
    for event in events:
        said = event.get("shops", {})
        if event.get("event") == "join":
            joined.update(said)
        elif event.get("event") in ("release", "round"):
            exchanges += 1
            failures.update(said.keys())
            joined.update({s: code for s, code in said.items() if failures[s] == exchanges})
    never = {shop for shop, count in failures.items() if count == exchanges}
    declined = {shop: code for shop, code in joined.items() if code != "ok"}
    unheard = dict.fromkeys((shop for shop in shops if shop not in joined), UNHEARD)
    return unheard | {s: c for s, c in declined.items() if s in never or s not in failures}
