"""Five shops of real processes that share sums, four of them with faults at hand.

Such a shop's node and executor are started as its client starts them, but for the program in which
the approved code runs: that one looks, before and after each message, whether it is to die there,
to say again what it said in an earlier run, or to sign with a key that is not its own.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from client.joining.keys import make_keys
from client.joining.roster import accept
from client.privacy.ledger import Ledger
from client.settings import RUN_VARIABLE, read_settings
from common.artifact import load_model
from common.bundle import FEDERATION
from common.config import ConfigValue
from common.programs.processes import carriers, finished
from common.protocol import POPULARITY
from deployment_support import ITEMS, SECONDS, Deployed, sales
from faults_support import start_by_hand
from server.operating.services import control
from server.operating.sum_roster import write_roster
from simulations.loopback.deployment import LocalShop, change
from simulations.loopback.programs import Programs

SHOPS = ("ada", "ben", "cleo", "dan", "eve")
#: Runs by its own command lines alone, and has no faults.
ALWAYS_WELL = "eve"
THRESHOLD = 3
#: A promise that is nearly none, so that what was summed can be told from what was not.
PLAN: Mapping[str, ConfigValue] = {
    "trust": "federation",
    "honest_shops": THRESHOLD,
    "target_epsilon": 200.0,
    "rounds": 0,
    "dimension": 2,
    "groups": "",
    "learned_items": 0,
    "wait_seconds": 4 * SECONDS,
    "timeout_seconds": 2 * SECONDS,
}
SHOP: Mapping[str, ConfigValue | None] = {"cap_epsilon": 10_000.0}
_RUN_SECONDS = 1500.0

#: In place of Flower's own program: the app is the approved one, what becomes of it is not.
_FAULTY = """#!{python}
import json, os, pathlib, pickle, signal, sys
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp

home = pathlib.Path({home!r})
honest = ClientApp.__call__

def die():
    for pid in json.loads((home / "pids").read_text()):
        os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

def forge():
    import client.rounds.secure_participation as part
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    key = load_ssh_private_key((home / "forged.key").read_bytes(), None)
    honest = part.Identity
    part.Identity = lambda shop, _, roster: honest(shop, key, roster)

def faulty(self, message, context):
    stage = message.metadata.message_type.rpartition(".")[2]
    number = message.metadata.group_id
    fault = json.loads((home / "faults.json").read_text()).get(stage + " " + number, "")
    if fault:
        with (home / "done").open("a") as done:
            done.write(json.dumps([stage, int(number), fault]) + "\\n")
    if fault == "die before":
        die()
    if fault == "forge":
        forge()
    reply = honest(self, message, context)
    if fault == "die after":
        die()
    if "said" in reply.content.config_records:
        kept = home / ("said-" + stage + number)
        if fault == "replay":
            reply.content["said"] = ConfigRecord({{"said": kept.read_text()}})
        else:
            kept.write_text(str(reply.content.config_records["said"]["said"]))
    if "update" in reply.content.array_records:
        kept = home / ("vector-" + number)
        if fault == "replay":
            old = pickle.loads(kept.read_bytes())
            reply.content["update"] = ArrayRecord({{n: Array(a) for n, a in old.items()}})
        else:
            arrays = reply.content.array_records["update"]
            kept.write_bytes(pickle.dumps({{n: a.numpy() for n, a in arrays.items()}}))
    return reply

ClientApp.__call__ = faulty
from flwr.supernode.cli import flwr_clientapp
sys.exit(flwr_clientapp())
"""


class Summing(Deployed):
    """A federation whose shops' nodes are started by hand, so that faults can be planted."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        super().__init__(folder, programs)
        self._started: dict[str, list[subprocess.Popen[bytes]]] = {}

    def prepare(self) -> None:
        """Lay out all folders, hand out the roster, and start everything."""
        self.make(SHOPS, PLAN)
        roster = Path(write_roster(self.federation)["roster"])
        for shop in self.shops.values():
            change(shop.settings, SHOP)
            with shop.settings.open("a", encoding="utf-8") as file:
                file.write("\n[secure_sum]\n")
            if shop.name != ALWAYS_WELL:
                accept(shop.settings, read_settings(shop.settings), roster)
                self.plant_faults(shop, {})
        self.client(self.shops[ALWAYS_WELL], "roster", str(roster), "--accept")
        self.up()
        for shop in self.shops.values():
            if shop.name == ALWAYS_WELL:
                self.open(shop)
            else:
                self.begin(shop)
        self.all_online()

    # --- shops -----------------------------------------------------------------------------------

    def begin(self, shop: LocalShop) -> None:
        """Start a shop's node and executor, with the program that looks for faults."""
        script = _FAULTY.format(python=sys.executable, home=str(shop.folder))
        started, _ = start_by_hand(self, shop, script)
        self._started[shop.name] = started
        (shop.folder / "pids").write_text(json.dumps([process.pid for process in started]))

    def end(self, shop: LocalShop) -> None:
        """Kill what is left of a shop's programs."""
        for process in carriers(RUN_VARIABLE, str(shop.folder.resolve())):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self._started.pop(shop.name, []):
            started.kill()
            started.wait()

    def heal(self) -> None:
        """Take all faults away, and have every shop there."""
        for name in self._started:
            self.plant_faults(self.shops[name], {})
        self.all_online()

    def all_online(self) -> None:
        """Start whatever died anew, once SuperLink has given it up; wait until all are there."""
        link = control(self.federation)
        for name, started in list(self._started.items()):
            if all(process.poll() is None for process in started):
                continue
            shop = self.shops[name]
            self.end(shop)
            self.programs.wait_until(
                lambda name=name: all(  # type: ignore[misc]
                    n.status != "online" for n in link.nodes() if n.name == name
                ),
                f"the end of {name}'s old connection",
                SECONDS,
            )
            self.begin(shop)
        for name in self.shops:
            self.wait_until_online(name, SECONDS)

    def plant_faults(self, shop: LocalShop, faults: Mapping[str, str]) -> None:
        """Have a shop do what ``faults`` say: ``stage round`` -> what."""
        (shop.folder / "faults.json").write_text(json.dumps(dict(faults)))
        (shop.folder / "done").write_text("")
        if "forge" in faults.values() and not (shop.folder / "forged.key").exists():
            make_keys(shop.folder / "forged.key")

    def done(self, shop: LocalShop) -> list[list[Any]]:
        """Return (stage, round, fault) of the faults that came to pass."""
        return [json.loads(line) for line in (shop.folder / "done").read_text().splitlines()]

    def has_said(self, shop: LocalShop, stage: str) -> bool:
        """Whether there is something that a shop could say again."""
        return (shop.folder / f"said-{stage}").exists()

    # --- runs ------------------------------------------------------------------------------------

    def run(self, *words: str, code: Path = FEDERATION.folder) -> "Run":
        """Train and return what became of it.

        Parameters
        ----------
        code
            The checkout whose command is given: it may be another operator's.
        """
        command = (sys.executable, "-m", "server", "train", *words)
        done = finished(
            [*command, "--federation", str(self.operator)],
            env=self.programs.environment({}),
            cwd=code,
            seconds=_RUN_SECONDS,
            what="training",
        )
        # Run names are times, and sort as such.
        events = self.events()
        name = events[-1]["run"] if events else ""
        said = done.stderr + done.stdout
        return Run(self, done.returncode, said, name, [e for e in events if e["run"] == name])


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, as it ended."""

    federation: Summing
    status: int
    said: str
    name: str
    events: list[dict[str, Any]]

    def of(self, kind: str) -> dict[str, Any]:
        """Return the run's last event of a kind."""
        return [e for e in self.events if e["event"] == kind][-1]

    def paid(self, shop: str) -> list[tuple[int, str, int, int]]:
        """Return (round, mechanism, m, c) of all that a shop's ledger was charged for in it."""
        settings = read_settings(self.federation.shops[shop].settings)
        events = [e.event for e in Ledger.read(settings.ledger) if e.event.steps]
        return [
            (
                e.server_round,
                e.mechanism,
                int(str(e.parameters["honest_shops"])),
                int(str(e.parameters["colluding_shops"])),
            )
            for e in events
            if e.run_id == self.name
        ]

    def payers(self, server_round: int) -> set[str]:
        """Return the shops that paid for a round."""
        return {name for name in SHOPS if any(r == server_round for r, *_ in self.paid(name))}

    def likeness(self, without: Collection[str] = ()) -> float:
        """Return how much the released popularity looks like what shops sold.

        Whatever is unmasked wrongly is spread evenly over all numbers of 32 bits.
        """
        found = load_model(self.federation.operator / "runs" / self.name / "model").arrays
        return float(np.corrcoef(found[POPULARITY], sold(set(SHOPS) - {*without}))[0, 1])


def sold(shops: Collection[str]) -> np.ndarray:
    """Return (n,) float64: what customers bought, each of norm 1, in the catalogue's order."""
    total = np.zeros(ITEMS)
    for number, name in enumerate(SHOPS):
        if name not in shops:
            continue
        frame: pd.DataFrame = sales(name, number)
        for _, group in frame.groupby("user_id"):
            places = [int(item[1:]) for item in set(group["item_id"])]
            total[places] += 1 / np.sqrt(len(places))
    return total


@contextmanager
def summing(folder: Path) -> Iterator[Summing]:
    """Yield a federation of five that is up, all shops connected; all of it ends with the block."""
    with Programs(folder) as programs:
        federation = Summing(folder, programs)
        try:
            federation.prepare()
            yield federation
        finally:
            for shop in federation.shops.values():
                federation.end(shop)
