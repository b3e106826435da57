"""The operator's folder: what it holds, how it is made, and its settings."""

import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.addresses import Address, split_address
from common.config import parse, read_toml, toml_value
from common.disk import write_whole
from common.errors import ConfigError
from common.protocol import Frozen
from server.operating import authority
from server.operating.authority import Pair
from server.operating.default_plan import DEFAULT_PLAN, PLAN_FILE
from server.variables import ROSTER_FILE

SETTINGS_FILE = "federation.toml"
#: Environment: the folder, for every command of the server.
FEDERATION_VARIABLE = "FEDTAIL_FEDERATION"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
#: SuperLink's name on a private network of containers.
SUPERLINK_HOST = "superlink"

_NAME = re.compile(r"[^\x00-\x1f]{1,64}")
_FOLDERS = ("ca", "tls", "secrets", "shops", "catalogue", "runs", "registry", "state", "logs")


Port = Annotated[int, Field(ge=1, le=65535)]


class GatewaySettings(Frozen):
    """What the gateway bears; :mod:`server.operating.gateway` says why so much.

    Attributes
    ----------
    listen
        Where it listens; shops reach it at the federation's address.
    body_limit_mb
        Larger requests are refused.
    requests_per_second
        For each address that shops come from.
    connections
        For each address that shops come from.
    """

    listen: Address
    body_limit_mb: int = Field(8, ge=6, le=1024)
    requests_per_second: int = Field(200, ge=1)
    connections: int = Field(300, ge=1)


class FederationSettings(Frozen):
    """``federation.toml``.

    Attributes
    ----------
    address
        Where shops reach the gateway; the host stands in its certificate.
    superlink_port
        SuperLink's, on loopback only.
    registry
        Of models: a folder, relative to this one, or an fsspec URL.
    """

    name: str = Field(min_length=1, max_length=64, pattern=f"^{_NAME.pattern}$")
    address: Address
    superlink_port: Port
    registry: str = Field(min_length=1)
    gateway: GatewaySettings


@dataclass(frozen=True)
class Federation:
    """An operator's folder that was found whole enough to read its settings."""

    folder: Path
    settings: FederationSettings

    @property
    def authority(self) -> Pair:
        """The certificate authority."""
        return Pair(self.folder / "ca" / "ca.key", self.folder / "ca" / "ca.crt")

    @property
    def gateway(self) -> Pair:
        """What the gateway shows to shops."""
        return self._server("gateway")

    @property
    def superlink(self) -> Pair:
        """What SuperLink shows to the gateway and to us."""
        return self._server("superlink")

    @property
    def superexec_secret(self) -> Path:
        """What SuperLink knows its SuperExec by."""
        return self.folder / "secrets" / "superexec"

    @property
    def shops(self) -> Path:
        """Folder of the enrolled shops' public keys."""
        return self.folder / "shops"

    @property
    def roster(self) -> Path:
        """Who may take part in secure sums: the file that is handed out to shops."""
        return self.folder / ROSTER_FILE

    @property
    def plan(self) -> Path:
        """The plan of the next runs."""
        return self.folder / PLAN_FILE

    @property
    def catalogue(self) -> Path:
        """Folder of the catalogue's versions."""
        return self.folder / "catalogue"

    @property
    def runs(self) -> Path:
        """Folder of the training runs."""
        return self.folder / "runs"

    @property
    def registry(self) -> str:
        """The registry's folder or URL."""
        where = self.settings.registry
        return where if "://" in where else str(self.folder / where)

    @property
    def state(self) -> Path:
        """Folder of what the running services need."""
        return self.folder / "state"

    @property
    def logs(self) -> Path:
        """Folder of the services' logs."""
        return self.folder / "logs"

    @property
    def flower_home(self) -> Path:
        """Flower's own folder."""
        return self.folder / "flwr"

    @property
    def superlink_address(self) -> str:
        """SuperLink's ``host:port`` on this machine."""
        return f"127.0.0.1:{self.settings.superlink_port}"

    def _server(self, name: str) -> Pair:
        return Pair(self.folder / "tls" / f"{name}.key", self.folder / "tls" / f"{name}.crt")


def open_federation(folder: Path) -> Federation:
    """Return the operator's folder.

    Raises
    ------
    ConfigError
        If there is none, or its settings are not valid.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder.absolute()} is no federation's folder: it has no {SETTINGS_FILE}. Go to that "
            f"folder, or name it with --federation DIR or {FEDERATION_VARIABLE}; `python -m server "
            "init DIR` makes one"
        )
    return Federation(folder.resolve(), parse(FederationSettings, read_toml(path), str(path)))


def make_federation(
    folder: Path, name: str, address: str, *, superlink_port: int, hosts: Sequence[str] = ()
) -> Federation:
    """Make an operator's folder, whole or not at all; never over anything.

    Parameters
    ----------
    address
        Where shops will reach the gateway.
    hosts
        More names and addresses at which the gateway is reached.

    Raises
    ------
    ConfigError
        If something is there already, or a value is not valid.
    """
    folder = folder.absolute()
    if folder == Path.cwd():
        raise ConfigError(f"{folder} is the folder that you are in: name a new one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty: nothing was written. Give a new folder")
    host, port = _checked(folder, name, address, hosts)
    if port == superlink_port:
        raise ConfigError(
            f"--address and --superlink-port both have the port {port}: the gateway and SuperLink "
            "listen on this machine at once; give SuperLink another"
        )
    listen = f"[::]:{port}" if ":" in host else f"0.0.0.0:{port}"
    text = _settings_toml(name, address, listen, superlink_port)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Its folders are for us alone from the first moment on: mkdtemp makes it 0700.
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}") from error
    try:
        for part in _FOLDERS:
            (new / part).mkdir(mode=0o700)
        write_whole(new / SETTINGS_FILE, text.encode())
        write_whole(new / PLAN_FILE, DEFAULT_PLAN.encode())
        write_whole(new / "server.toml", _SERVER_TOML.encode())
        write_whole(new / "secrets" / "superexec", secrets.token_hex(32).encode())
        made = open_federation(new)
        key, certificate = authority.make_authority(f"{name} authority")
        write_whole(made.authority.key, key)
        write_whole(made.authority.certificate, certificate, mode=0o644)
        _issue(made, made.gateway, [host, *hosts, *LOOPBACK_HOSTS])
        _issue(made, made.superlink, [SUPERLINK_HOST, *LOOPBACK_HOSTS])
        new.replace(folder)
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return open_federation(folder)


def _checked(folder: Path, name: str, address: str, hosts: Sequence[str]) -> tuple[str, int]:
    """Return host and port of the address, once everything that `up` will need is of use."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: give one line of 1 to 64 characters")
    from server.operating.gateway import check_path

    check_path(folder)
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise ConfigError(f"--address {address!r}: {error}") from error
    for other in hosts:
        try:
            split_address(f"[{other}]:1" if ":" in other else f"{other}:1")
        except ValueError as error:
            raise ConfigError(f"--host {other!r}: give a name or an IP address alone") from error
    return host, port


def renew(federation: Federation) -> list[Path]:
    """Issue new server certificates, and a new authority's where it ends before they would.

    Returns
    -------
    list of Path
        The certificates that were replaced. If the authority's is among them, shops need it.
    """
    renewed = []
    root = federation.authority
    left = authority.expiry(root.certificate) - authority.now()
    if left.days < authority.SERVER_DAYS:
        write_whole(root.certificate, authority.renew_authority(root), mode=0o644)
        renewed.append(root.certificate)
    for pair in (federation.gateway, federation.superlink):
        _issue(federation, pair, authority.hosts_of(pair))
        renewed.append(pair.certificate)
    return renewed


def _issue(federation: Federation, pair: Pair, hosts: Sequence[str]) -> None:
    key, certificate = authority.issue(federation.authority, list(dict.fromkeys(hosts)))
    write_whole(pair.key, key)
    write_whole(pair.certificate, certificate, mode=0o644)


def _settings_toml(name: str, address: str, listen: str, superlink_port: int) -> str:
    return _SETTINGS_TOML.format(
        name=toml_value(name),
        address=toml_value(address),
        listen=toml_value(listen),
        superlink_port=superlink_port,
    )


_SETTINGS_TOML = """\
# The federation that this folder runs. `python -m server up` starts it.

name = {name}

# Where shops reach the gateway, host:port. The host stands in the gateway's certificate: after a
# change, make a new folder, or have a certificate that names the new host in tls/.
address = {address}

# Flower's SuperLink, on loopback alone. Whoever reaches this port can have every shop run code, so
# nothing but the gateway's fleet paths may lead to it, and nobody else should work on this machine.
superlink_port = {superlink_port}

# The registry of models: a folder, relative to this one, or an fsspec URL.
registry = "registry"

[gateway]
# Where it listens: 0.0.0.0 is every IPv4 interface of this machine, [::] every IPv6 one.
listen = {listen}
# Larger requests are refused. Flower sends arrays in chunks of 5 MiB.
body_limit_mb = 8
# For each address that shops come from; several shops behind one router count together.
requests_per_second = 200
connections = 300
"""

_SERVER_TOML = """\
# Where the server's side of a run finds its files: relative to this folder.
runs = "runs"
catalogues = "catalogue"
ledger_heads = "ledger-heads.json"
roster = "roster"
"""
