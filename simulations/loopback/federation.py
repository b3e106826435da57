"""A whole federation on loopback, from keys to recommendations; of it nothing is left but a folder.

Gateway, SuperLink, SuperExec and three shops are real processes, started by the command lines that
an operator and a shop's engineer would type.
"""

import json
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from common.errors import ConfigError, RunError
from common.features import read_catalogue
from common.programs.processes import listens, terminated_as_exit
from common.queries.asking import Query
from server.catalogue.versions import Catalogues
from server.operating.gateway import find_nginx
from server.query.core import ServedModel
from server.registry.versions import Registry
from simulations.documents import Document
from simulations.loopback import shops as local_shops
from simulations.loopback.deployment import LocalDeployment, LocalShop, change
from simulations.loopback.postgres import Postgres, find_postgres, running
from simulations.loopback.programs import TOKEN, Programs
from simulations.progress import Watcher

logger = logging.getLogger(__name__)

ROUNDS = 2
SHOWN = 8
_CONNECT_SECONDS = 120.0
_HOME_SECONDS = 60.0


def run_local_federation(
    out: Path,
    watcher: Watcher,
    *,
    rounds: int = ROUNDS,
    hold: Callable[[LocalDeployment], object] | None = None,
) -> Document:
    """Bring a federation up, train, publish, recommend, and take it down again.

    Parameters
    ----------
    out
        A new or empty folder, where everything is written.
    rounds
        Of training.
    hold
        Called when all is shown and before it is taken down.

    Returns
    -------
    dict
        ``folder, address, shops, privacy, at_a_shop, from_the_registry, listening, left, seconds``.

    Raises
    ------
    ConfigError
        If the folder is in use.
    RunError
        If a program is not installed, a step failed, or something was left behind.
    """
    find_nginx()
    find_postgres()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is in use: give a folder that is new or empty, or move it away")
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        terminated_as_exit(),
        Programs(out, watcher.step) as programs,
        running({TOKEN: programs.token}) as postgres,
    ):
        story = _Story(LocalDeployment(out, programs), postgres, watcher)
        try:
            document = story.tell(rounds)
            if hold is not None:
                hold(story.deployment)
        finally:
            watcher.stage("taking everything down")
            story.end()
    document["left"] = left_behind(programs, [*document["listening"].values(), postgres.port])
    if document["left"]:
        raise RunError(f"left behind: {', '.join(document['left'])}")
    return {**document, "seconds": round(time.monotonic() - started, 1)}


def left_behind(programs: Programs, ports: list[int]) -> list[str]:
    """Return, in words, processes that still run and ports that still answer."""
    processes = [f"process {p.pid}" for p in programs.running() if psutil.pid_exists(p.pid)]
    return processes + [f"port {port}" for port in ports if listens(port)]


class _Story:
    """The steps, in the order in which people would take them."""

    def __init__(self, deployment: LocalDeployment, postgres: Postgres, watcher: Watcher) -> None:
        self.deployment, self._postgres, self._watcher = deployment, postgres, watcher

    def tell(self, rounds: int) -> Document:
        """Take all steps; return what is worth showing."""
        here, watcher = self.deployment, self._watcher
        watcher.stage("reading three local markets of Complete Journey")
        markets = local_shops.load_markets()
        watcher.stage("the operator makes a federation and publishes the catalogue")
        here.init("loopback")
        tables = here.folder / "products"
        tables.mkdir()
        markets.products.to_parquet(tables / "products.parquet", index=False)
        here.publish(tables, *local_shops.CONTENT)
        watcher.stage("three shops make their folders, approve the code and are enrolled")
        shops = self._make_shops(markets)
        watcher.stage("the services and the three shops' clients start")
        here.up()
        for shop in shops:
            here.open(shop)
        for shop in shops:
            here.wait_until_connected(shop, _CONNECT_SECONDS)
        watcher.stage("the federation trains, and publishes the model", rounds + 3)
        change(here.operator / "plan.toml", {"min_shops": len(shops)})
        here.server("train", "--rounds", str(rounds), told=watcher.step)
        watcher.stage("the model comes home, and a shop adapts it to its own data")
        for shop in shops:
            self._wait_for_model(shop)
        chosen = shops[0]
        here.client(chosen, "adapt")
        watcher.stage("asking for recommendations")
        return {
            "folder": str(here.folder),
            "address": here.address,
            "listening": self._listening(),
            "shops": {shop.name: self._told(shop, markets) for shop in shops},
            "at_a_shop": self._at(chosen, markets),
            "from_the_registry": self._from_registry(markets),
        }

    def end(self) -> None:
        """End the shops, then the services; say so if one did not end well."""
        for name, status in self.deployment.programs.end_all().items():
            if status not in (0, 128 + signal.SIGTERM):
                logger.warning("program=%s event=ended status=%d", name, status)

    def _make_shops(self, markets: local_shops.Markets) -> list[LocalShop]:
        here = self.deployment
        in_csv, in_parquet, in_database = local_shops.MARKETS
        shops = [here.add_shop(in_csv), here.add_shop(in_parquet)]
        local_shops.write_csv(markets.sales[in_csv], shops[0].folder / "data")
        local_shops.write_parquet(markets.sales[in_parquet], shops[1].folder / "data")
        password = local_shops.fill_database(markets.sales[in_database], self._postgres)
        more = local_shops.DATABASE.format(url=self._postgres.url("reader"), merchant=in_database)
        secret = {local_shops.PASSWORD_VARIABLE: password}
        shops.append(here.add_shop(in_database, {"data": None}, more, secret))
        for shop in shops:
            here.admit(shop)
        return shops

    def _wait_for_model(self, shop: LocalShop) -> None:
        self.deployment.programs.wait_until(
            lambda: (shop.folder / "models" / "current").exists(),
            f"the model's coming home to {shop.name}",
            _HOME_SECONDS,
        )

    def _told(self, shop: LocalShop, markets: local_shops.Markets) -> Document:
        """Return what a shop's own ledger says was spent, and on how many customers' data."""
        ledger = json.loads(self.deployment.client(shop, "ledger show", "--json"))
        return {
            "data": dict(zip(local_shops.MARKETS, ("CSV", "Parquet", "PostgreSQL"), strict=True))[
                shop.name
            ],
            "customers": int(markets.sales[shop.name]["user_id"].nunique()),
            "ledger": ledger,
        }

    def _at(self, shop: LocalShop, markets: local_shops.Markets) -> Document:
        user = markets.customer_of(shop.name)
        words = ("--user", user, "--count", str(SHOWN), "--json")
        answer: Document = json.loads(self.deployment.client(shop, "recommend", *words))
        return answer

    def _from_registry(self, markets: local_shops.Markets) -> Document:
        """Answer a basket with the published model: the registry needs no shop for that."""
        here = self.deployment
        record, artifact = Registry(here.operator / "registry").read()
        catalogue = read_catalogue(Catalogues(here.operator / "catalogue").current())
        model = ServedModel.of(record.version, artifact, catalogue)
        titles = markets.products.set_index("item_id")["title"]
        basket = markets.basket()
        found = model.recommend(Query(dict.fromkeys(basket, 1.0), k=SHOWN))
        return {
            "version": record.version,
            "privacy": artifact.manifest.privacy,
            "basket": [{"item_id": item, "title": str(titles[item])} for item in basket],
            "recommendations": [
                {"rank": rank, "item_id": item, "title": str(titles[item]), "score": score}
                for rank, (item, score) in enumerate(
                    zip(found.item_ids, found.scores, strict=True), start=1
                )
            ],
        }

    def _listening(self) -> dict[str, int]:
        """Return program -> port of all that our processes listen at, and hold it to loopback."""
        found: dict[str, int] = {}
        for process in self.deployment.programs.running():
            for connection in process.net_connections(kind="inet"):
                if connection.status != psutil.CONN_LISTEN:
                    continue
                if connection.laddr.ip not in ("127.0.0.1", "::1"):
                    raise RunError(f"{process.name()} listens at {connection.laddr.ip}")
                found[f"{process.name()}:{connection.laddr.port}"] = connection.laddr.port
        return found
