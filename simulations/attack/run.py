"""``simulations attack``: an experiment's federations with bad shops in them, defended or not."""

import json
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse

from common.datasets import Dataset
from common.errors import ConfigError
from common.protocol import POPULARITY
from common.rng import derive
from common.wording import counted
from server.defence.choice import Defence
from simulations.arm_plans import plan_notes
from simulations.arms import OwnEases
from simulations.attack.attackers import Conspiracy
from simulations.attack.measure import METRICS, USES, changes, mean_figures, measure_model
from simulations.attack.page import render_attack
from simulations.attack.poisoned import Poisoned, Remembered
from simulations.attack.settings import PUSHES, AttackName
from simulations.documents import Document, plain, to_json, write_text
from simulations.engine.in_process import run_in_process
from simulations.evaluating import who_was_away
from simulations.experiment import Experiment, section_of
from simulations.federating import Federator, Trained
from simulations.finished_parts import finished_parts, tables_of
from simulations.machine import machine_facts
from simulations.progress import Watcher
from simulations.world import World, build_world

_PARTS, _DOCUMENT = ".attack", "attack.json"
#: What a defence must keep of what there is without an attack.
MOST_LOST = {"ndcg@20": 0.02, "tail_ndcg@20": 0.05}
#: Of customers; what a pushed product may reach at most, or twice its share without an attack.
MOST_SHOWN = 0.002


def run_attack(experiment: Experiment, out: Path, watcher: Watcher) -> Document:
    """Attack an experiment's federations into ``out`` and return ``attack.json``'s document.

    An interrupted command goes on where it stopped: finished runs are kept.

    Raises
    ------
    ConfigError
        If the folder is in use by something else, or there is nothing to attack.
    """
    if experiment.privacy.trust == "federation":
        raise ConfigError(
            "what a shop adds to a secure sum is seen by nobody, and no rule can look at it: set "
            'privacy.trust = "shop"'
        )
    published = {"publish_stock": experiment.attack.publish_stock}
    privacy = experiment.privacy.model_copy(update=published)
    experiment = experiment.model_copy(update={"privacy": privacy})
    with _folder(experiment, out) as folder:
        watcher.stage("reading data")
        world = build_world(experiment, watcher.step)
        document = _Attack(experiment, world, folder, watcher).run()
        write_text(out / "attack.html", render_attack(document))
        write_text(out / _DOCUMENT, to_json(document))
    shutil.rmtree(folder)
    return document


class _Attack:
    """All runs of one command, each done once."""

    def __init__(
        self, experiment: Experiment, world: World, folder: Path, watcher: Watcher
    ) -> None:
        self._experiment, self._settings = experiment, experiment.attack
        self._folder, self._watcher = folder, watcher
        self._seed = experiment.run.seed
        self._eases, self._shops = OwnEases(), Remembered()
        for name in self._settings.defences:
            defence = Defence(name, self._settings.bad_share)
            if not defence.holds(len(world.shops)):
                # Said before hours of other defences' runs, not when this one's turn comes.
                raise ConfigError(
                    f"attack.defences: {name!r} takes {defence.fewest} shops at least, and there "
                    f"are {len(world.shops)}: leave it out of attack.defences"
                )
        order = derive(self._seed, purpose="bad-shops").permutation(len(world.shops))
        self._order = [int(place) for place in order]
        worst = {world.shops[k].merchant_id for k in self._bad(max(self._settings.shares))}
        # Figures are of customers whose shops are never bad, the same ones everywhere.
        honest = {name: who for name, who in world.measured.items() if name not in worst}
        if not honest:
            raise ConfigError("no shop is left to measure at: measure more, or make fewer bad")
        # With a published stock table a bad shop can push what it says it stocks alone: it says
        # that of everything, as shops do that are not named.
        self._world = replace(
            world, measured=honest, dataset=without_stock_of(world.dataset, worst)
        )
        self._targets: list[int] = []
        # Who took no part in which federation, in words, each once.
        self._away: dict[str, None] = {}
        # What each run took, also where an interrupted command had finished it.
        self._seconds: dict[str, float] = {}

    def run(self) -> Document:
        """Return the whole document."""
        results: list[Document] = []
        clean: dict[str, Document] = {}
        for federation in self._settings.federations:
            clean[federation], found = self._attacked(federation)
            results += found
        catalogue = self._world.catalogue
        notes = plan_notes(self._experiment, self._settings.federations, self._world)
        document: Document = plain(
            {
                "format_version": 1,
                "clean": {
                    federation: {
                        defence: {
                            use: self._clean_figures(found, of_defence["none"][use])
                            for use, found in uses.items()
                        }
                        for defence, uses in of_defence.items()
                    }
                    for federation, of_defence in clean.items()
                },
                "attacks": results,
                "targets": [
                    {
                        "item_id": catalogue.item_ids[t],
                        "customers": int(self._world.test.counts[t]),
                        "rank": int((self._world.test.counts > self._world.test.counts[t]).sum()),
                    }
                    for t in self._targets
                ],
                "limits": {"most_lost": MOST_LOST, "most_shown": MOST_SHOWN},
                "measured": {
                    "shops": len(self._world.measured),
                    "customers": sum(map(len, self._world.asked.values())),
                },
                "data": self._world.facts(),
                "warnings": [
                    *self._world.dataset.notes,
                    *notes,
                    *self._alike(),
                    *self._away,
                ],
                "experiment": self._experiment.facts() | {"attack": self._settings.model_dump()},
                "seed": self._seed,
                "machine": machine_facts(),
                "seconds": sum(self._seconds.values()),
            }
        )
        return document

    def _clean_figures(self, found: Document, before: Document) -> Document:
        """Return what there is without an attack, the targets' exposure in the mean."""
        places = range(len(self._targets))
        mean = mean_figures([found] * len(places), places)
        return {**_without_customers(mean), **changes(mean, before, self._seed)}

    def _attacked(self, federation: str) -> tuple[dict[str, Document], list[Document]]:
        """Return, of a federation, each defence's uses without an attack, and all attacks.

        One defence after the other: its runs have most to ask again of what shops were asked.
        """
        settings = self._settings
        clean: dict[str, Document] = {}
        found: list[tuple[int, Document]] = []
        for defence in sorted(settings.defences, key=lambda name: name != "none"):
            run = self._clean(federation, defence)
            self._targets = self._targets or run["targets"]
            clean[defence] = run["uses"]
            if defence == "none":
                _refuse_nothing_to_lose(federation, run["uses"])
            cells = [(share, attack) for share in settings.shares for attack in settings.attacks]
            for place, (share, attack) in enumerate(cells):
                full = share in settings.full_shares
                everything = full and attack in settings.full_attacks
                if everything or defence in ("none", settings.chosen):
                    rows = self._attack(federation, attack, share, defence, clean["none"])
                    found += [(place, row) for row in rows]
        return clean, [row for _, row in sorted(found, key=lambda one: one[0])]

    def _attack(
        self, federation: str, attack: AttackName, share: float, defence: str, without: Document
    ) -> Iterator[Document]:
        """Yield what an attack did to each use of the model, over all targets.

        ``without`` is what each use is with neither attack nor defence.
        """
        targets = self._targets if attack in PUSHES else self._targets[:1]
        runs = [
            self._run(federation, defence, attack, share, place)["uses"]
            for place, _ in enumerate(targets)
        ]
        for use in self._arms(federation):
            before = without[use]
            found = mean_figures([run[use] for run in runs], range(len(runs)))
            was_shown = float(np.mean(before["er@20"][: len(runs)]))
            changed = changes(found, before, self._seed)
            change = changed["change"]
            limit = max(2 * was_shown, MOST_SHOWN)
            pushes = attack in PUSHES
            kept = all(change[metric] >= -lost for metric, lost in MOST_LOST.items())
            yield {
                "federation": federation,
                "use": use,
                "attack": attack,
                "share": share,
                "bad_shops": len(self._bad(share)),
                "defence": defence,
                **({} if pushes else {"er@20": None}),
                **{
                    k: v
                    for k, v in _without_customers(found).items()
                    if pushes or not k.startswith("er")
                },
                "er@20_without": was_shown if pushes else None,
                "er@20_limit": limit if pushes else None,
                **changed,
                "held": kept and (not pushes or found["er@20"] <= limit),
            }

    def _clean(self, federation: str, defence: str) -> Document:
        return self._run(federation, defence, None, 0.0, 0)

    def _run(
        self, federation: str, defence: str, attack: AttackName | None, share: float, place: int
    ) -> Document:
        """Train and measure once, or read what was found before."""
        name = f"{federation}-{defence}-{attack or 'clean'}-{share:g}-{place}"
        path = self._folder / f"{name}.json"
        if not path.exists():
            started = time.monotonic()
            work = self._folder / "work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            trained = self._train(work, name, federation, defence, attack, share, place)
            if not self._targets:
                self._targets = self._draw(trained)
            self._watcher.stage(f"measuring {name}")
            uses = measure_model(
                self._experiment,
                self._world,
                trained,
                self._arms(federation),
                self._targets,
                self._eases,
            )
            away = who_was_away(self._world, trained)
            spent = time.monotonic() - started
            part = {"targets": self._targets, "uses": uses, "away": away, "seconds": spent}
            write_text(path, to_json(part))
            shutil.rmtree(work)
        found: Document = json.loads(path.read_text(encoding="utf-8"))
        self._seconds[name] = found["seconds"]
        if found["away"]:
            self._away[f"{federation}: {found['away']}"] = None
        return found

    def _train(
        self,
        work: Path,
        name: str,
        federation: str,
        defence: str,
        attack: AttackName | None,
        share: float,
        place: int,
    ) -> Trained:
        experiment = _defended(self._experiment, federation, defence)
        self._watcher.stage(name)
        shared = self._folder / "shared"
        federator = Federator(experiment, self._world, work, self._watcher, shared)
        plan = federator.plan(federation)
        if attack is None:
            honest = partial(run_in_process, keep=True, clients=self._shops)
            return federator.federate(federation, honest)
        bad = self._bad(share)
        own = [self._world.test.history[self._world.shops[k].merchant_id] for k in bad]
        conspiracy = Conspiracy(
            attack,
            plan,
            self._world.catalogue,
            self._targets[place],
            sparse.csr_matrix(sparse.vstack(own)),
        )
        clients = Poisoned(conspiracy, frozenset(bad), self._seed, self._shops)
        return federator.federate(federation, partial(run_in_process, keep=True, clients=clients))

    def _arms(self, federation: str) -> dict[str, str]:
        """Return the arm of each use of a federation's model that is measured."""
        return {use: USES[federation][use] for use in self._settings.uses}

    def _bad(self, share: float) -> list[int]:
        """Return the numbers of the bad shops, at least one."""
        count = max(1, round(share * len(self._order)))
        return sorted(self._order[:count])

    def _alike(self) -> list[str]:
        """Return what to know of shares that make the same shops bad."""
        by_count: dict[int, list[str]] = {}
        for share in self._settings.shares:
            by_count.setdefault(len(self._bad(share)), []).append(f"{share:g}")
        return [
            f"attack.shares {' and '.join(shares)} are {count} of {len(self._order)} shops alike: "
            "their rows are of the same attacks, done again"
            for count, shares in by_count.items()
            if len(shares) > 1
        ]

    def _draw(self, trained: Trained) -> list[int]:
        """Return the targets, drawn from the band of released popularity."""
        released = trained.checkpoint(0).state[POPULARITY]
        order = np.argsort(-released, kind="stable")
        low, high = (round(edge * len(order)) for edge in self._settings.band)
        inside = order[low:high]
        inside = np.sort(inside[self._world.test.tail[inside]])
        if len(inside) < self._settings.targets:
            raise ConfigError(
                f"attack.band holds {counted(len(inside), 'tail product')}, fewer than "
                "attack.targets: widen it, or push fewer"
            )
        stream = derive(self._seed, purpose="pushed-products")
        chosen = stream.choice(inside, size=self._settings.targets, replace=False)
        return [int(row) for row in chosen]


def without_stock_of(dataset: Dataset, merchants: Collection[str]) -> Dataset:
    """Return a dataset whose stock table, if there is one, does not name some merchants."""
    if (stock := dataset.tables.stock) is None:
        return dataset
    named = stock[~stock["merchant_id"].astype(str).isin(list(merchants))]
    return replace(dataset, tables=replace(dataset.tables, stock=named))


def _refuse_nothing_to_lose(federation: str, uses: Document) -> None:
    """Refuse to attack what is 0, or was asked of nobody: no change could be told."""
    for use, found in uses.items():
        if nothing := [metric for metric in METRICS if not found[metric]]:
            raise ConfigError(
                f"{' and '.join(nothing)} of {federation} ({use}) cannot fall: without an attack "
                "nothing that customers of honest shops bought in the test weeks is found. "
                "Measure at more shops or customers, or leave that use out of attack.uses"
            )


def _without_customers(found: Document) -> Document:
    return {name: value for name, value in found.items() if name != "per_customer"}


def _defended(experiment: Experiment, federation: str, defence: str) -> Experiment:
    """Return the experiment with a defence in the settings of a federation's server."""
    name = section_of(experiment, federation)
    section = getattr(experiment, name)
    server = {**section.server, "defence": defence, "bad-share": experiment.attack.bad_share}
    return experiment.model_copy(update={name: section.model_copy(update={"server": server})})


@contextmanager
def _folder(experiment: Experiment, out: Path) -> Iterator[Path]:
    """Give the folder of the finished runs, ours alone while it is open."""
    folder = out / _PARTS
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not folder.exists())):
        raise ConfigError(f"{out} is in use: give a folder that is new or empty")
    facts = experiment.facts() | {"attack": experiment.attack.model_dump(mode="json")}
    facts |= tables_of([experiment.data.path])
    with finished_parts(folder, "attack", facts):
        yield folder
