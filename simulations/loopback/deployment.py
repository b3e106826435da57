"""A federation on loopback: an operator's folder, shops' folders, and the commands of both.

Every step is one of the command lines that an operator or a shop's engineer would type, run as a
program of its own (:mod:`simulations.loopback.programs`).
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from common.config import ConfigValue, toml_value
from common.errors import RunError
from common.programs.processes import free_port
from server.catalogue.versions import Catalogues
from server.operating import gateway
from server.operating.folder import open_federation
from server.operating.services import neutral_folder
from simulations.loopback.programs import Background, Programs

_UP_SECONDS = 120.0
_UP = "up"


@dataclass(frozen=True)
class LocalShop:
    """A shop's folder.

    Attributes
    ----------
    name
        Its merchant_id.
    secrets
        Variables that its own commands need, such as a database's password.
    """

    name: str
    folder: Path
    secrets: Mapping[str, str]

    @property
    def settings(self) -> Path:
        """Its shop.toml."""
        return self.folder / "shop.toml"


class LocalDeployment:
    """An operator and shops on this machine.

    Parameters
    ----------
    folder
        ``operator`` and ``shops`` are made in it.
    programs
        Runs the command lines.
    host
        Where the gateway listens: loopback, or another address of this machine.
    """

    def __init__(self, folder: Path, programs: Programs, host: str = "127.0.0.1") -> None:
        self.folder, self.programs, self._host = folder.resolve(), programs, host
        self.operator = self.folder / "operator"
        self.gateway_port, self.superlink_port = free_port(), free_port()
        self.shops: dict[str, LocalShop] = {}

    @property
    def address(self) -> str:
        """Of the gateway, as shops know it."""
        return f"{self._host}:{self.gateway_port}"

    def server(self, *words: str, told: Callable[[str], object] = lambda _: None) -> str:
        """Run one of the operator's commands; return what it wrote to stdout."""
        return self.programs.run("server", *words, "--federation", str(self.operator), told=told)

    def client(self, shop: LocalShop, command: str, *words: str) -> str:
        """Run one of a shop's commands, of one word or two; return what it wrote to stdout."""
        return self.programs.run(
            "client", *command.split(), str(shop.settings), *words, extra=shop.secrets
        )

    def init(self, name: str) -> None:
        """Make the operator's folder, with a gateway on loopback alone."""
        self.programs.run(
            "server", "init", str(self.operator), "--name", name, "--address", self.address,
            "--superlink-port", str(self.superlink_port),
        )  # fmt: skip
        change(self.operator / "federation.toml", {"listen": self.address})

    def publish(self, products: Path, *content: str) -> None:
        """Publish a folder's products table as the catalogue."""
        words = [word for name in content for word in ("--content", name)]
        self.server("catalogue", "publish", str(products), *words)

    def add_shop(
        self,
        name: str,
        changes: Mapping[str, ConfigValue | None] | None = None,
        more: str = "",
        secrets: Mapping[str, str] | None = None,
    ) -> LocalShop:
        """Make a shop's folder with the operator's catalogue and authority in it.

        Parameters
        ----------
        changes
            Keys of its shop.toml, and their new values; None takes a key out.
        more
            Appended to it.
        secrets
            See :class:`LocalShop`.
        """
        shop = LocalShop(name, self.folder / "shops" / name, dict(secrets or {}))
        self.programs.run(
            "client", "init", str(shop.folder), "--merchant", name, "--address", self.address
        )
        shutil.copy(self.operator / "ca" / "ca.crt", shop.folder / "ca.crt")
        published = Catalogues(self.operator / "catalogue").current()
        shutil.copytree(published, shop.folder / "catalogue")
        change(shop.settings, changes or {})
        with shop.settings.open("a", encoding="utf-8") as file:
            file.write(more)
        self.shops[name] = shop
        return shop

    def admit(self, shop: LocalShop) -> None:
        """Have the shop approve the code that is installed here, and the operator enrol it."""
        self.client(shop, "approve", "--own-code")
        self.server("enrol", shop.name, str(shop.folder / "keys" / "node.pub"))

    def up(self) -> Background:
        """Start the operator's services; return when shops can reach them."""
        # nginx does not show it, and goes on where `up` was killed outright.
        self.programs.at_end(lambda: gateway.end(neutral_folder(open_federation(self.operator))))
        started = self.programs.start(_UP, "server", "up", "--federation", str(self.operator))
        self.programs.wait_until(lambda: bool(self.services()), "the services' start", _UP_SECONDS)
        return started

    def services(self) -> dict[str, Any]:
        """Return what ``server up`` wrote of its processes and ports; empty while it is not up."""
        path = self.operator / "state" / "up.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return found if psutil.pid_exists(found["pid"]) else {}

    def open(self, shop: LocalShop, within: Sequence[str] = ()) -> Background:
        """Start a shop's client, which connects in its own time; see :meth:`Programs.start`."""
        return self.programs.start(
            f"shop-{shop.name}",
            "client",
            "run",
            str(shop.settings),
            extra=shop.secrets,
            within=within,
        )

    def wait_until_connected(self, shop: LocalShop, seconds: float) -> None:
        """Wait for the federation to let an open shop in; see :meth:`Programs.wait_until`."""
        self.programs.wait_until(
            lambda: bool(self.state(shop).get("connected")), f"{shop.name}'s connection", seconds
        )

    def state(self, shop: LocalShop) -> dict[str, Any]:
        """Return what ``client run`` notes of itself; empty while it does not run."""
        try:
            found: dict[str, Any] = json.loads(
                (shop.folder / "state" / "run.json").read_text(encoding="utf-8")
            )
        except FileNotFoundError:
            return {}
        return found if psutil.pid_exists(found["pid"]) else {}

    def close(self, shop: LocalShop) -> int:
        """End a shop's client; return the status with which it ended."""
        return self.programs.end(f"shop-{shop.name}")

    def down(self) -> int:
        """End the operator's services; return the status with which they ended."""
        return self.programs.end(_UP)


def change(path: Path, values: Mapping[str, ConfigValue | None]) -> None:
    """Give keys of a commented TOML file other values, each where it stands; None takes one out.

    Raises
    ------
    RunError
        If a key does not stand in exactly one line.
    """
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        lines = text.split("\n")
        found = [number for number, line in enumerate(lines) if line.startswith(f"{key} = ")]
        if len(found) != 1:
            raise RunError(f"{path} has {len(found)} lines with the key {key!r}, not one")
        lines[found[0]] = "" if value is None else f"{key} = {toml_value(value)}"
        text = "\n".join(lines)
    path.write_text(text, encoding="utf-8")
