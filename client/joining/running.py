"""`run`: a shop's client in the foreground, alone in its folder, and all that it needs there."""

import fcntl
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client.joining.approval import Approvals
from client.joining.keys import check_pair, make_secret, read_own
from client.joining.reaching import check_authority
from client.joining.starting import EXAMPLE_ADDRESS
from client.joining.watching import State, Watch
from client.settings import RUN_VARIABLE, FederationSettings, read_settings
from client.shop_folder import ShopFolder
from common.errors import ConfigError
from common.programs.processes import free_port, terminated_as_exit
from common.programs.supervisor import Supervisor

_LARGEST_LOG = 4 * 1024 * 1024


def run_shop(settings: Path) -> None:
    """Run a shop's client until a signal ends it; everything that it started ends with it.

    Raises
    ------
    ConfigError
        If something is missing or wrong on this machine, or the shop runs already.
    RunError
        If a program ended for good.
    """
    folder = ShopFolder.of(settings)
    shop = read_settings(settings)
    federation = check_files(settings, folder, shop.federation)
    token = Supervisor(RUN_VARIABLE, str(folder.root))
    with _alone(folder), terminated_as_exit(), _log_file(folder), token as supervisor:
        state = State(shop.merchant_id, federation.address, port=free_port())
        Watch(settings.resolve(), folder, federation, supervisor, state, shop.models).run()


def check_files(
    settings: Path, folder: ShopFolder, federation: FederationSettings | None
) -> FederationSettings:
    """Return the federation's settings if all that it needs is on this machine.

    Raises
    ------
    ConfigError
        Naming the file, and what to do.
    """
    if federation is None:
        raise ConfigError(
            f"{settings} has no [federation] section: add address, ca and key, as "
            "`python -m client init` writes them"
        )
    if federation.address == EXAMPLE_ADDRESS:
        raise ConfigError(f"{settings}: put the federation's own address in place of the example")
    check_authority(federation.ca)
    check_pair(federation.key)
    _own_secret(folder.secret)
    Approvals(folder.approvals).approved()
    return federation


def _own_secret(path: Path) -> None:
    """Check the executor's secret; a shop that came from a backup gets a new one."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            make_secret(path)
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {error.strerror}") from error
    read_own(path, "the shop's secret", "remove it, and the next `run` makes another")


@contextmanager
def _alone(folder: ShopFolder) -> Iterator[None]:
    """Refuse a second `run` of the same shop."""
    lock = folder.state / "run.lock"
    try:
        for place in (folder.state, folder.logs):
            place.mkdir(mode=0o700, exist_ok=True)
        file = lock.open("ab")
    except OSError as error:
        raise ConfigError(f"cannot write {lock}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder.root} runs already: its state is in {folder.state / 'run.json'}"
            ) from error
        # Of one that was killed outright.
        (folder.state / "run.json").unlink(missing_ok=True)
        yield


@contextmanager
def _log_file(folder: ShopFolder) -> Iterator[None]:
    """Say what happens on the terminal and in a file, which has the programs' ends too."""
    path = folder.logs / "run.log"
    path.touch(mode=0o600)
    words = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    kept = _LogFile(path, maxBytes=_LARGEST_LOG, backupCount=1, encoding="utf-8", delay=True)
    shown = logging.StreamHandler(sys.stderr)
    told = logging.getLogger(Watch.__module__)
    places: list[tuple[logging.Logger, logging.Handler]] = [(told, kept), (told, shown)]
    places.append((logging.getLogger(Supervisor.__module__), kept))
    for place, handler in places:
        handler.setFormatter(words)
        place.addHandler(handler)
        place.setLevel(logging.INFO)
        place.propagate = False
    try:
        yield
    finally:
        for place, handler in places:
            place.removeHandler(handler)
            place.setLevel(logging.NOTSET)
            place.propagate = True
        with suppress(OSError):  # What a full disk did not take is lost.
            kept.close()


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that a full disk keeps from being written, but nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Stay silent: the same words go to the terminal."""
