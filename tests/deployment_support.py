"""A deployed federation of real processes on loopback, small and quick, with faults at hand.

The services, the shops' clients and the trainings are the project's own command lines. What happens
before them (folders, keys, approval, enrolment) is called here instead of being started: a process
for each would cost more time than all the rest.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from client.privacy.ledger import Ledger
from client.settings import RUN_VARIABLE, read_settings
from common.config import ConfigValue
from common.programs.processes import carriers
from common.protocol import shop_key
from server.operating.folder import Federation, open_federation
from server.operating.services import control
from server.registry.versions import Registry
from simulations.loopback.deployment import LocalDeployment, LocalShop
from simulations.loopback.layout import lay_out_operator, lay_out_shop
from simulations.loopback.programs import Background, Programs

#: Wide: each exchange starts a process for each shop, and the machine may be busy.
SECONDS = 240.0
ITEMS, CUSTOMERS = 30, 12
#: plan.toml of the tests: as little as there is of everything, and no long waits for the dead.
PLAN: Mapping[str, ConfigValue] = {
    "rounds": 2,
    "dimension": 2,
    "groups": "",
    "learned_items": 0,
    "wait_seconds": 60.0,
    "timeout_seconds": 120.0,
}
#: shop.toml: room for some runs.
SHOP: Mapping[str, ConfigValue] = {"cap_epsilon": 60.0}

Event = dict[str, Any]


class Deployed(LocalDeployment):
    """A :class:`LocalDeployment` with planted shops, handles on its processes, and its files."""

    def make(self, shops: Sequence[str], plan: Mapping[str, ConfigValue]) -> None:
        """Lay out the operator's and the shops' folders: approved, enrolled, nothing started."""
        lay_out_operator(self, {"min_shops": len(shops), **PLAN, **plan}, products_table())
        for number, name in enumerate(shops):
            self.plant(name, number)

    def plant(
        self,
        name: str,
        number: int,
        changes: Mapping[str, ConfigValue | None] | None = None,
        more: str = "",
    ) -> LocalShop:
        """Lay out one more shop with planted sales: approved and enrolled."""
        return lay_out_shop(self, name, sales(name, number), {**SHOP, **(changes or {})}, more)

    @property
    def federation(self) -> Federation:
        """The operator's folder."""
        return open_federation(self.operator)

    def start(self) -> None:
        """Start the services and all shops; return when all are connected."""
        self.up()
        for shop in self.shops.values():
            self.open(shop)
        for shop in self.shops.values():
            self.wait_until_connected(shop, SECONDS)

    def wait_until_online(self, name: str, seconds: float) -> None:
        """Wait until SuperLink knows of a shop's node, whoever started it."""
        link = control(self.federation)
        self.programs.wait_until(
            lambda: any(n.name == name and n.status == "online" for n in link.nodes()),
            f"{name}'s connection",
            seconds,
        )

    # --- processes -------------------------------------------------------------------------------

    def service_pid(self, name: str) -> int:
        """Return the process id of ``superlink``, ``superexec`` or ``gateway``."""
        return int(self.services()["programs"][name]["pid"])

    def shop_pid(self, shop: LocalShop, name: str) -> int:
        """Return the process id of a shop's ``supernode`` or ``superexec``."""
        return int(self.state(shop)["programs"][name])

    def processes(self, shop: LocalShop) -> list[psutil.Process]:
        """Return all that a shop's client has started and that runs, its apps included."""
        return carriers(RUN_VARIABLE, str(shop.folder))

    def client_apps(self, shop: LocalShop) -> list[psutil.Process]:
        """Return the processes in which the shop's data are read at this moment."""
        found = []
        for process in self.processes(shop):
            with suppress(psutil.Error):
                if any("flwr-clientapp" in part for part in process.cmdline()[:3]):
                    found.append(process)
        return found

    def kill(self, shop: LocalShop) -> None:
        """Kill a shop's client and all it started, as a power cut would: nobody cleans up."""
        program = self.programs.take(f"shop-{shop.name}")
        program.process.kill()
        program.process.wait()
        for process in self.processes(shop):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def pause(self, pid: int) -> None:
        """Stop a process where it stands: it is there, and answers nothing."""
        os.kill(pid, signal.SIGSTOP)

    def kill_service(self, name: str) -> int:
        """Kill one of the services, which ``server up`` starts again; return the old process id."""
        pid = self.service_pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    # --- training --------------------------------------------------------------------------------

    def train(self, *words: str) -> Background:
        """Start a training; :meth:`finish` waits for its end."""
        return self.programs.start(
            "train", "server", "train", *words, "--federation", str(self.operator)
        )

    def finish(self, seconds: float = 5 * SECONDS) -> tuple[int, str]:
        """Return the status with which the training ended, and all that it said."""
        training = self.programs.take("train")
        status = training.process.wait(seconds)
        return status, training.log.read_text(encoding="utf-8")

    def trained(self, *words: str) -> str:
        """Train, and return what was said; an AssertionError tells it where it failed."""
        self.train(*words)
        status, said = self.finish()
        assert status == 0, said
        return said

    def events(self, kind: str = "") -> list[Event]:
        """Return the public events of all runs, the oldest run first; of one kind, or all."""
        found = []
        for path in sorted((self.operator / "runs").glob("*/rounds.jsonl")):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            run = path.parent.name
            found += [{**json.loads(line), "run": run} for line in lines if line.endswith("\n")]
        return [event for event in found if kind in ("", event["event"])]

    def wait_for(self, kind: str, server_round: int) -> Event:
        """Wait until the training that goes on has told of this; return the event."""

        def found() -> list[Event]:
            return [e for e in self.events(kind) if e["server_round"] == server_round]

        self.programs.wait_until(lambda: bool(found()), f"{kind} {server_round}", SECONDS)
        return found()[-1]

    def wait_for_app(self, shop: LocalShop) -> psutil.Process:
        """Wait until the shop works at a message; return the process that does."""
        self.programs.wait_until(
            lambda: bool(self.client_apps(shop)), f"{shop.name} at work", SECONDS
        )
        return self.client_apps(shop)[0]

    # --- files -----------------------------------------------------------------------------------

    def take_catalogue(self, shop: LocalShop) -> None:
        """Unpack what the operator exports into a shop's folder."""
        shutil.rmtree(shop.folder / "catalogue")
        self.server("catalogue", "export", str(shop.folder / "catalogue"))

    def paid(self, shop: LocalShop) -> list[tuple[str, int]]:
        """Return (run, round) of all that the shop's ledger was charged for, in order."""
        entries = Ledger.read(read_settings(shop.settings).ledger)
        return [(e.event.run_id, e.event.server_round) for e in entries if e.event.steps]

    def check_accounts(self) -> None:
        """Hold every shop's ledger to the releases that the server has taken from it.

        At most so many shops' replies were taken for a round as have paid for it, and every head of
        a ledger that the server remembers stands in that shop's chain.
        """
        paid = {name: set(self.paid(shop)) for name, shop in self.shops.items()}
        for event in self.events():
            if event["event"] not in ("release", "round"):
                continue
            what = (event["run"], event["server_round"])
            payers = [name for name in paid if what in paid[name]]
            assert len(payers) >= event["accepted"], (event, paid)
        heads = self.operator / "ledger-heads.json"
        known = json.loads(heads.read_text(encoding="utf-8")) if heads.exists() else {}
        for name, shop in self.shops.items():
            chain = {e.hash for e in Ledger.read(read_settings(shop.settings).ledger)}
            head = _find(known, shop_key(name))
            assert head is None or head in chain, name

    def versions(self) -> list[int]:
        """Return the versions of the registry, each read and checked whole."""
        registry = Registry(self.operator / "registry")
        for version in registry.versions():
            registry.read(version)
        return registry.versions()

    def brought_home(self, shop: LocalShop) -> str:
        """Return the name of the model that came home to a shop last; empty where none has."""
        pointer = shop.folder / "models" / "current"
        return pointer.resolve().name if pointer.exists() else ""


def _find(known: Any, key: str) -> str | None:
    """Return the head of a shop, however deep in the file it stands."""
    if isinstance(known, Mapping):
        if isinstance(found := known.get(key), str):
            return found
        return next((f for v in known.values() if (f := _find(v, key)) is not None), None)
    return None


@contextmanager
def deployed(
    folder: Path,
    shops: Sequence[str] = ("north", "south"),
    plan: Mapping[str, ConfigValue] | None = None,
    *,
    start: bool = True,
    host: str = "127.0.0.1",
) -> Iterator[Deployed]:
    """Yield a federation that is up, its shops connected; all of it ends with the block.

    Parameters
    ----------
    plan
        Keys of plan.toml over :data:`PLAN`.
    start
        Whether to start anything: a test may want to change files first.
    host
        Where the gateway listens.
    """
    with Programs(folder) as programs:
        federation = Deployed(folder, programs, host)
        federation.make(shops, plan or {})
        if start:
            federation.start()
        yield federation


def products_table() -> pd.DataFrame:
    """Return thirty products in five categories."""
    return pd.DataFrame(
        {
            "item_id": [f"i{k:02}" for k in range(ITEMS)],
            "title": [f"Product {k}" for k in range(ITEMS)],
            "category": [f"c{k % 5}" for k in range(ITEMS)],
        }
    )


def sales(name: str, number: int) -> pd.DataFrame:
    """Return planted sales: each customer buys within one category, and one product elsewhere."""
    stream = np.random.default_rng(number)
    rows = []
    for customer in range(CUSTOMERS):
        own = [k for k in range(ITEMS) if k % 5 == customer % 5]
        bought = [*stream.choice(own, 4, replace=False), stream.integers(ITEMS)]
        rows += [(f"u{customer}", f"i{k:02}", 1_700_000_000 + 86_400 * n)
                 for n, k in enumerate(bought)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return frame.assign(merchant_id=name, behavior="purchase").drop_duplicates(
        ["user_id", "item_id"]
    )
