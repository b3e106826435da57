"""docker-compose.yml as an engine would read it: merged, and with its variables filled in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host inside a container."""

    source: Path
    target: str
    read_only: bool
    must_exist: bool


@dataclass(frozen=True)
class Compose:
    """The whole file."""

    document: dict[str, Any]

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """Each service, merged."""
        return dict(self.document["services"])

    def of(self, *profiles: str) -> list[str]:
        """Return the names of the services of these profiles."""
        return [
            name
            for name, service in self.services.items()
            if set(service["profiles"]) & {*profiles}
        ]

    def secret(self, name: str) -> Path:
        """Return the file that holds a secret."""
        return ROOT / str(self.document["secrets"][name]["file"])


def read_compose(environment: Mapping[str, str] | None = None) -> Compose:
    """Read the file with variables from ``environment``, or their defaults."""
    return Compose(_filled(YAML(typ="safe").load(COMPOSE_FILE), environment or {}))


def mounts(service: Mapping[str, Any]) -> list[Mount]:
    """Return what a service sees of the host, secrets aside."""
    return [
        Mount(
            ROOT / volume["source"],
            volume["target"],
            bool(volume.get("read_only")),
            volume["bind"]["create_host_path"] is False,
        )
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]


def hidden(service: Mapping[str, Any]) -> set[str]:
    """Return the folders of a service that are covered by an empty one."""
    return {v["target"] for v in service.get("volumes", []) if v["type"] == "tmpfs"}


def words(service: Mapping[str, Any]) -> list[str]:
    """Return the whole command line of a service."""
    return [str(word) for word in [*service.get("entrypoint", []), *service.get("command", [])]]


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: environment.get(m[1]) or m[2] or "", value)
    if isinstance(value, dict):
        return {key: _filled(inner, environment) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, environment) for inner in value]
    return value
