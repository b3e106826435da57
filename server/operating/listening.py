"""What the running services listen at, found in the system's own table."""

import ipaddress
from contextlib import suppress
from dataclasses import dataclass

import psutil

from common.programs.processes import carriers
from server.operating import gateway
from server.operating.folder import Federation
from server.operating.services import GATEWAY, SUPEREXEC, SUPERLINK, neutral_folder
from server.variables import UP_VARIABLE

_SERVES = {
    SUPERLINK: "Flower's Fleet, Control and Runtime APIs, over TLS",
    GATEWAY: "POST /v1/fleet/* over TLS; all else is refused",
}


@dataclass(frozen=True)
class Listener:
    """A port at which a process of ours accepts connections."""

    program: str
    pid: int
    address: str
    port: int

    @property
    def outside(self) -> bool:
        """Whether other machines can reach it."""
        return not ipaddress.ip_address(self.address).is_loopback

    @property
    def serves(self) -> str:
        """What is to be had there."""
        return _SERVES.get(self.program, "unknown")


def listeners(federation: Federation) -> list[Listener]:
    """Return what the processes that ``up`` started listen at.

    Processes that share a port, as nginx's do, are one listener.
    """
    found: dict[tuple[str, int], Listener] = {}
    family = carriers(UP_VARIABLE, str(federation.folder))
    family += gateway.family(neutral_folder(federation))
    for process in sorted(family, key=lambda one: one.pid, reverse=True):
        with suppress(psutil.Error):
            program = _program(process)
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    ip, port = connection.laddr
                    found[ip, port] = Listener(program, process.pid, ip, port)
    return sorted(found.values(), key=lambda one: (one.port, one.address))


def _program(process: psutil.Process) -> str:
    if process.name() == "nginx":
        return GATEWAY
    words = " ".join(process.cmdline())
    return next((name for name in (SUPERLINK, SUPEREXEC) if f"flower-{name}" in words), words[:60])
