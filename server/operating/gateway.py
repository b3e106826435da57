"""The gateway's configuration: nginx, TLS only, nothing but Flower's fleet paths.

Flower serves its Fleet, Control and Runtime APIs at one port, and the Control API asks nobody who
they are: whoever reaches it can have every shop run code. So shops are let to ``/v1/fleet/`` alone.
``templates/gateway.conf.jinja`` says why each limit is what it is.
"""

import os
import pwd
import re
import shutil
from contextlib import suppress
from pathlib import Path

import jinja2
import psutil

from common.errors import ConfigError, RunError
from common.programs.processes import finished

_TEMPLATE = Path(__file__).resolve().parent / "templates" / "gateway.conf.jinja"
# What nginx would read as more than one word, or as the end of a directive.
_UNSAFE = re.compile(r"[\s;{}'\"\\$#]")
_TAKES_NO = "nginx takes no spaces, quotes or any of ; { } \\ $ # there"
_WORKERS = ("www-data", "nobody")
_CHECK_SECONDS = 60.0


def check_path(folder: Path) -> None:
    """Refuse a folder whose gateway could never be started.

    Raises
    ------
    ConfigError
        If its path cannot stand in nginx's configuration.
    """
    if _UNSAFE.search(str(folder)):
        raise ConfigError(f"the folder is {str(folder)!r}: {_TAKES_NO}. Choose another")


def render(
    *,
    listen: str,
    certificate: str | Path,
    key: str | Path,
    authority: str | Path,
    upstream: str,
    upstream_name: str,
    state: str | Path,
    access_log: str | Path,
    error_log: str | Path,
    body_limit_mb: int = 8,
    requests_per_second: int = 200,
    connections: int = 300,
    workers: int = 1,
    user: str = "",
    health: bool = False,
) -> str:
    """Return nginx's whole configuration.

    Parameters
    ----------
    listen
        ``address:port``.
    certificate, key
        What shops are shown, PEM.
    authority
        The certificate that SuperLink's must be signed by, PEM.
    upstream
        SuperLink's ``host:port``.
    upstream_name
        The name that SuperLink's certificate must bear.
    state
        A folder that nginx may write to.
    access_log, error_log
        Files, or ``/dev/stdout`` and ``stderr`` in a container.
    user
        Whom the workers become; only for a gateway that is started by root.
    health
        Also answer ``/health`` with 200.

    Raises
    ------
    ConfigError
        If a value cannot stand in nginx's configuration.
    """
    values = {
        "listen": listen,
        "certificate": str(certificate),
        "key": str(key),
        "authority": str(authority),
        "upstream": upstream,
        "upstream_name": upstream_name,
        "state": str(state),
        "access_log": str(access_log),
        "error_log": str(error_log),
        "user": user,
    }
    for name, value in values.items():
        if _UNSAFE.search(value):
            raise ConfigError(
                f"the gateway's {name} is {value!r}: {_TAKES_NO}. Choose another folder or name"
            )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - not HTML; the values are checked above
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        **values,
        body_limit_mb=body_limit_mb,
        requests_per_second=requests_per_second,
        connections=connections,
        workers=workers,
        health=health,
    )


def find_nginx() -> str:
    """Return nginx's path; :class:`RunError` if it is not installed."""
    # Debian keeps it out of an ordinary user's PATH.
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    if (found := shutil.which("nginx", path=path)) is None:
        raise RunError("nginx is not installed: apt-get install nginx-light")
    return found


def worker_user() -> str:
    """Return whom nginx's workers should become: nobody else if we are not root."""
    if os.geteuid() != 0:
        return ""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in _WORKERS if name in known), "")


def check(nginx: str, config: Path) -> None:
    """Have nginx itself read its configuration; :class:`RunError` with its words if it refuses."""
    done = finished(
        [nginx, "-t", "-q", "-c", str(config), "-e", "stderr"],
        seconds=_CHECK_SECONDS,
        what="nginx's check of its configuration",
    )
    if done.returncode:
        raise RunError(f"nginx refuses its configuration {config}\n{done.stderr.strip()}")


def family(folder: Path) -> list[psutil.Process]:
    """Return nginx's processes that were started in this folder.

    nginx writes its title over its environment, where others carry a token; and its workers go on,
    and hold the port, when their master is killed outright.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "nginx" and process.cwd() == str(folder):
                found.append(process)
    return found


def end(folder: Path) -> None:
    """Kill nginx's processes that were started in this folder."""
    left = family(folder)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
