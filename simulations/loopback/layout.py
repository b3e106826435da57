"""The folders of a federation on loopback, laid out by calls: for tests and measurements.

The command lines do the same (:mod:`simulations.loopback.deployment`); a process for each step and
shop would take longer than all that is tested or measured afterwards.
"""

import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache

import pandas as pd

from client.joining.approval import Approvals
from client.joining.starting import start_shop
from common.bundle import FEDERATION, FlowerApp, build, digest
from common.config import ConfigValue
from server.catalogue.publishing import publish
from server.catalogue.versions import Catalogues
from server.operating.folder import make_federation, open_federation
from server.operating.shops import Shops
from simulations.loopback.deployment import LocalDeployment, LocalShop, change


def lay_out_operator(
    deployment: LocalDeployment, plan: Mapping[str, ConfigValue], products: pd.DataFrame
) -> None:
    """Make the operator's folder, with these keys of plan.toml and this catalogue."""
    make_federation(
        deployment.operator, "local", deployment.address, superlink_port=deployment.superlink_port
    )
    change(deployment.operator / "federation.toml", {"listen": deployment.address})
    change(deployment.operator / "plan.toml", plan)
    folder = deployment.folder / "products"
    folder.mkdir()
    products.to_parquet(folder / "products.parquet", index=False)
    publish(Catalogues(deployment.operator / "catalogue"), folder)


def lay_out_shop(
    deployment: LocalDeployment,
    name: str,
    sales: pd.DataFrame,
    changes: Mapping[str, ConfigValue | None] | None = None,
    more: str = "",
    apps: Sequence[FlowerApp] = (FEDERATION,),
) -> LocalShop:
    """Make a shop's folder, with its code approved and its key enrolled.

    Parameters
    ----------
    changes, more
        As :meth:`LocalDeployment.add_shop` takes them.
    apps
        What the shop has approved.
    """
    shop = LocalShop(name, deployment.folder / "shops" / name, {})
    start_shop(shop.folder, name, deployment.address)
    shutil.copy(deployment.operator / "ca" / "ca.crt", shop.folder / "ca.crt")
    published = Catalogues(deployment.operator / "catalogue").current()
    shutil.copytree(published, shop.folder / "catalogue")
    change(shop.settings, changes or {})
    with shop.settings.open("a", encoding="utf-8") as file:
        file.write(more)
    sales.to_csv(shop.folder / "data" / "interactions.csv", index=False)
    for app in apps:
        Approvals(shop.folder / "approved.jsonl").decide("approve", digest_of(app), "local")
    Shops(open_federation(deployment.operator).shops).enrol(name, shop.folder / "keys" / "node.pub")
    deployment.shops[name] = shop
    return shop


@lru_cache(maxsize=4)
def digest_of(app: FlowerApp) -> str:
    """Return the digest of an app of this checkout."""
    return digest(build(app))
