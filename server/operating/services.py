"""``up``: the services of a federation in the foreground, kept running, and ended together."""

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.addresses import split_address
from common.disk import write_whole
from common.errors import ConfigError, FedtailError, RunError
from common.programs.processes import environment, listens, terminated_as_exit, tool
from common.programs.supervisor import Program, Supervisor, set_aside
from server.operating import authority, gateway
from server.operating.control import Control
from server.operating.folder import Federation
from server.operating.shops import Shops, reconcile
from server.variables import SERVER_VARIABLE, SUPERLINK_VARIABLE, UP_VARIABLE

logger = logging.getLogger(__name__)

SUPERLINK, SUPEREXEC, GATEWAY = "superlink", "superexec", "gateway"
_READY_SECONDS = 90.0
_LOCK_TRIES = 10
#: Between two tries to tell SuperLink who is enrolled.
_TELL_EVERY = 2.0


def control(federation: Federation) -> Control:
    """Return the Control API of the federation's SuperLink, which need not be up."""
    log = _log(federation, SUPERLINK)
    return Control(
        _elsewhere() or federation.superlink_address,
        environment(federation.flower_home, {}),
        root_certificates=federation.authority.certificate,
        explain=lambda: f"is `python -m server up` running? SuperLink's log: {log}",
    )


def up(federation: Federation) -> None:
    """Run the services until a signal or an error ends them; everything started ends with them.

    Raises
    ------
    ConfigError, RunError
        If something is missing, taken or expired, or a service does not come up.
    """
    if elsewhere := _elsewhere():
        raise ConfigError(
            f"{SUPERLINK_VARIABLE}={elsewhere} names a SuperLink in a container: unset it, for "
            "`up` starts one of its own"
        )
    check_files(federation)
    nginx = gateway.find_nginx()
    token = Supervisor(UP_VARIABLE, str(federation.folder))
    with _alone(federation), terminated_as_exit(), token as supervisor:
        gateway.end(neutral_folder(federation))
        _check_ports(federation)
        _write_gateway(federation, nginx)
        try:
            _start(federation, supervisor, nginx)
            logger.info(
                "federation=%r event=up address=%s",
                federation.settings.name,
                federation.settings.address,
            )
            supervisor.watch(_Looks(federation, supervisor).looked)
        finally:
            _up_file(federation).unlink(missing_ok=True)


def is_up(federation: Federation) -> bool:
    """Whether ``up`` runs on this folder, or its SuperLink answers in a container."""
    if elsewhere := _elsewhere():
        host, port = split_address(elsewhere)
        return listens(port, host)
    lock = _lock_file(federation)
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _elsewhere() -> str | None:
    """Return where SuperLink runs in a container, ``host:port``; None where `up` starts it."""
    if not (address := os.environ.get(SUPERLINK_VARIABLE)):
        return None
    try:
        split_address(address)
    except ValueError as error:
        raise ConfigError(f"{SUPERLINK_VARIABLE}={address!r}: {error}") from error
    return address


def read_up(federation: Federation) -> dict[str, Any]:
    """Return what ``up`` wrote of itself: processes and ports; empty while it is not up."""
    if not is_up(federation):
        return {}
    with suppress(OSError, json.JSONDecodeError):
        found: dict[str, Any] = json.loads(_up_file(federation).read_text(encoding="utf-8"))
        return found
    return {}


def check_files(federation: Federation) -> None:
    """Raise :class:`ConfigError` if a file is missing, damaged, expired, or open to others."""
    for pair in (federation.gateway, federation.superlink):
        authority.check(pair, federation.authority.certificate)
        ends, soon = authority.expiry(pair.certificate), timedelta(days=authority.SOON_DAYS)
        if ends < authority.now() + soon:
            logger.warning(
                "certificate=%s event=expires_soon at=%s do='python -m server renew'",
                pair.certificate,
                ends.isoformat(timespec="minutes"),
            )
    host, _ = split_address(federation.settings.address)
    if not authority.names(federation.gateway, host):
        # Every shop would refuse it, each by itself: address was changed, or is mistyped.
        logger.warning(
            "certificate=%s event=names_another_host address=%s names=%s",
            federation.gateway.certificate,
            federation.settings.address,
            ",".join(authority.hosts_of(federation.gateway)),
        )
    secret = federation.superexec_secret
    if not secret.is_file() or not secret.read_bytes().strip():
        raise ConfigError(f"{secret} is missing or empty: restore it, or make a new folder")
    if not (federation.folder / "server.toml").is_file():
        raise ConfigError(f"{federation.folder / 'server.toml'} is missing: restore it")
    private = [secret, federation.gateway.key, federation.superlink.key]
    if federation.authority.key.exists():  # It may be kept elsewhere.
        private.append(federation.authority.key)
    for path in private:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(f"{path} has mode {mode:04o}: others can read it. chmod 600 {path}")
    Shops(federation.shops).all()


def _start(federation: Federation, supervisor: Supervisor, nginx: str) -> None:
    empty = neutral_folder(federation)
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir(mode=0o700)
    port = federation.settings.superlink_port

    supervisor.start(superlink(federation, empty))
    supervisor.wait_until(SUPERLINK, lambda: listens(port), _READY_SECONDS)
    # Before the gateway opens: a shop that was removed meanwhile finds the door shut.
    reconcile(Shops(federation.shops), control(federation))
    supervisor.start(superexec(federation, empty))
    supervisor.start(_gateway(federation, nginx, empty))
    host, gate = split_address(federation.settings.gateway.listen)
    supervisor.wait_until(GATEWAY, lambda: listens(gate, _reachable(host)), _READY_SECONDS)
    _write_up(federation, supervisor)


def superlink(federation: Federation, folder: Path) -> Program:
    """Return the federation's SuperLink, to run in an empty folder."""
    pair = federation.superlink
    command = [
        tool("flower-superlink"),
        "--host", "127.0.0.1",
        "--port", str(federation.settings.superlink_port),
        "--ssl-ca-certfile", str(federation.authority.certificate),
        "--ssl-certfile", str(pair.certificate),
        "--ssl-keyfile", str(pair.key),
        "--enable-supernode-auth",
        "--isolation", "process",
        "--superexec-auth-secret-file", str(federation.superexec_secret),
        "--database", str(federation.state / "superlink.db"),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    env = environment(federation.flower_home, {})
    return Program(SUPERLINK, command, env, folder, _log(federation, SUPERLINK))


def superexec(federation: Federation, folder: Path) -> Program:
    """Return the executor of the server's app, to run in an empty folder."""
    command = [
        tool("flower-superexec"),
        "--runtime-api-address", federation.superlink_address,
        "--root-certificates", str(federation.authority.certificate),
        "--superexec-auth-secret-file", str(federation.superexec_secret),
    ]  # fmt: skip
    # The server's app inherits it: this is how it finds the operator's folder.
    env = environment(federation.flower_home, {SERVER_VARIABLE: str(federation.folder)})
    return Program(SUPEREXEC, command, env, folder, _log(federation, SUPEREXEC))


def _gateway(federation: Federation, nginx: str, folder: Path) -> Program:
    command = [nginx, "-c", str(_gateway_file(federation)), "-e", "stderr"]
    env = environment(federation.flower_home, {})
    log = _log(federation, GATEWAY)
    return Program(GATEWAY, command, env, folder, log, clear=lambda: gateway.end(folder))


def _write_gateway(federation: Federation, nginx: str) -> None:
    settings = federation.settings.gateway
    text = gateway.render(
        listen=settings.listen,
        certificate=federation.gateway.certificate,
        key=federation.gateway.key,
        authority=federation.authority.certificate,
        upstream=federation.superlink_address,
        upstream_name="localhost",
        state=federation.state / "nginx",
        access_log=federation.logs / "access.log",
        error_log="stderr",
        body_limit_mb=settings.body_limit_mb,
        requests_per_second=settings.requests_per_second,
        connections=settings.connections,
        user=gateway.worker_user(),
    )
    set_aside(federation.logs / "access.log")
    folder = _gateway_file(federation).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    write_whole(_gateway_file(federation), text.encode())
    gateway.check(nginx, _gateway_file(federation))


class _Looks:
    """What is to be done while the services run: nothing of it may end them."""

    def __init__(self, federation: Federation, supervisor: Supervisor) -> None:
        self._federation, self._supervisor = federation, supervisor
        # When SuperLink is to be told who is enrolled; None while it knows.
        self._tell_at: float | None = None

    def looked(self, names: list[str]) -> None:
        """See to what follows when programs were started again, and to what is still to be done."""
        now = time.monotonic()
        if names:
            logger.warning("programs=%s event=started_again", ",".join(names))
            self._write()
        if SUPERLINK in names:
            # Shops that came or went while it was away.
            self._tell_at = now
        if self._tell_at is not None and now >= self._tell_at:
            self._tell_at = None if self._tell() else now + _TELL_EVERY

    def _write(self) -> None:
        try:
            _write_up(self._federation, self._supervisor)
        except OSError as error:
            logger.warning(
                "file=%s event=not_written reason=%s", _up_file(self._federation), error.strerror
            )

    def _tell(self) -> bool:
        """Tell SuperLink who is enrolled; return whether it could be told."""
        if not listens(self._federation.settings.superlink_port):
            return False
        try:
            reconcile(Shops(self._federation.shops), control(self._federation))
        except (FedtailError, OSError) as error:
            logger.warning("program=%s event=not_told reason=%s", SUPERLINK, error)
            return False
        return True


def _write_up(federation: Federation, supervisor: Supervisor) -> None:
    programs = {
        name: {"pid": supervisor.pid(name), "restarts": supervisor.restarts(name)}
        for name in (SUPERLINK, SUPEREXEC, GATEWAY)
    }
    document = {
        "pid": os.getpid(),
        "programs": programs,
        "superlink": federation.superlink_address,
        "gateway": federation.settings.gateway.listen,
    }
    write_whole(_up_file(federation), json.dumps(document, indent=2).encode())


@contextmanager
def _alone(federation: Federation) -> Iterator[None]:
    """Hold the folder's lock, which the system frees whatever becomes of us."""
    federation.state.mkdir(mode=0o700, exist_ok=True)
    federation.logs.mkdir(mode=0o700, exist_ok=True)
    with _lock_file(federation).open("wb") as file:
        for attempt in range(_LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # A command that only looks whether we are up holds it for a moment.
                if attempt == _LOCK_TRIES - 1:
                    raise RunError(
                        f"`python -m server up` runs on {federation.folder} already"
                    ) from error
                time.sleep(0.1)
        # Of one that was killed outright.
        _up_file(federation).unlink(missing_ok=True)
        yield


def _check_ports(federation: Federation) -> None:
    places = (
        ("superlink_port", "127.0.0.1", federation.settings.superlink_port),
        ("gateway.listen", *split_address(federation.settings.gateway.listen)),
    )
    with ExitStack() as probes:
        for key, host, port in places:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            probe = probes.enter_context(socket.socket(family))
            # As the services do: a connection that lingers after a restart is in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                # Until all are looked at: the services may be in each other's way, too.
                probe.listen()
            except OSError as error:
                other = ", or end what uses it" if error.errno == errno.EADDRINUSE else ""
                raise RunError(
                    f"cannot listen at {host}:{port} ({error.strerror}): change {key} in "
                    f"{federation.folder / 'federation.toml'}{other}"
                ) from error


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound to


def neutral_folder(federation: Federation) -> Path:
    """Return the empty folder that the services work in."""
    return federation.state / "empty"


def _log(federation: Federation, name: str) -> Path:
    return federation.logs / f"{name}.log"


def _gateway_file(federation: Federation) -> Path:
    return federation.state / "nginx" / "nginx.conf"


def _up_file(federation: Federation) -> Path:
    return federation.state / "up.json"


def _lock_file(federation: Federation) -> Path:
    return federation.state / "up.lock"
