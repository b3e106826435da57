"""`run`: a shop's SuperNode and its executor, kept running in the foreground, and ended together.

The SuperNode speaks with the federation and takes in approved code only (:mod:`client.node`). The
executor starts one process for each message, in which that code meets the shop's data. Both are
Flower's own, and speak with each other on loopback.
"""

import fcntl
import json
import logging
import logging.handlers
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from client.joining.approval import Approvals
from client.joining.keys import check_private_key, make_secret, public_path, read_own
from client.joining.node_log import APP_SIGNS, NodeLog, Sign
from client.joining.reaching import check_authority, obstacle
from client.joining.starting import EXAMPLE_ADDRESS
from client.settings import RUN_VARIABLE, SHOP_KEY, FederationSettings, read_settings
from client.shop_folder import CURRENT, ShopFolder
from common.bundle import FEDERATION
from common.errors import ConfigError
from common.processes import carriers, environment, free_port, terminated_as_exit, tool
from common.protocol import EVALUATE, HOME, JOIN, RELEASE, SUM_KEYS, TRAIN
from common.supervisor import Program, Supervisor

logger = logging.getLogger(__name__)

NODE, EXECUTOR = "supernode", "superexec"
_CLIENT = "flwr-clientapp"
# How `client.node` ends for a reason of its own; Flower's log has lines of another form.
_OWN_ERROR = "error: "
_LOOK_EVERY = 1.0
_LARGEST_LOG = 4 * 1024 * 1024
# Longer than Flower needs to notice that a node is gone.
_PROBE_EVERY = 15.0
# A federation gives up a node that it no longer hears of after a minute.
_HELD_SECONDS = 90.0
# What a run asks for, in words; the later exchanges of a secure sum are not told.
_ASKED = {
    JOIN: "whether this shop takes part",
    RELEASE: "for its popularity, with noise",
    TRAIN: "for a round of training",
    SUM_KEYS: "for this shop's part in a secure sum",
    EVALUATE: "for figures of the finished model",
    HOME: "to keep the finished model",
}


@dataclass
class State:
    """What ``run`` notes while it runs, in ``state/run.json``."""

    shop: str
    address: str
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    connected: bool = False
    problem: str = ""
    port: int = 0
    programs: dict[str, int | None] = field(default_factory=dict)


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
        _Watch(settings.resolve(), folder, federation, supervisor, state, shop.models).run()


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
    check_private_key(federation.key)
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
    read_own(path, "the shop's secret")


class _Watch:
    """Starts the programs, and says what happens to them."""

    def __init__(
        self,
        settings: Path,
        folder: ShopFolder,
        federation: FederationSettings,
        supervisor: Supervisor,
        state: State,
        models: Path,
    ) -> None:
        self._settings, self._folder, self._federation = settings, folder, federation
        self._supervisor, self._state = supervisor, state
        self._current = models / CURRENT
        self._home = self._newest()
        self._probed = 0.0
        # Since when its key is refused, and whether the federation is known not to know it.
        self._refused: float | None = None
        self._unknown = False

    def run(self) -> None:
        """Return only by an exception: that of a signal, or of a program that is beyond help."""
        empty = self._folder.state / "empty"
        shutil.rmtree(empty, ignore_errors=True)
        empty.mkdir(mode=0o700)
        self._folder.flower.mkdir(mode=0o700, exist_ok=True)
        node = supernode(self._settings, self._folder, self._federation, self._state.port, empty)
        log = NodeLog(node.log)
        executor = superexec(self._folder, self._state.port, empty)
        answers = NodeLog(executor.log, APP_SIGNS)
        if not Approvals(self._folder.approvals).approved():
            logger.warning(
                "no code is approved, so every run is refused: python -m client approve %s "
                "--own-code",
                self._settings,
            )
        logger.info("%s connects to %s", self._state.shop, self._state.address)
        self._supervisor.start(node)
        self._supervisor.start(executor)
        try:
            while True:
                again = self._supervisor.step()
                if NODE in again:
                    self._lost_node()
                self._look(log.news())
                self._tell(answers.news(), executor.log)
                time.sleep(_LOOK_EVERY)
        finally:
            self._file.unlink(missing_ok=True)

    def _look(self, signs: list[Sign]) -> None:
        before = asdict(self._state)
        for sign in signs:
            if sign.kind == "connected":
                self._state.connected, self._state.problem = True, ""
                self._refused, self._unknown = None, False
            elif sign.kind == "refused":
                logger.warning(
                    "Refused the code of a run, which is not approved here. To see what is known "
                    "of it: python -m client approve %s --list  (digest %s)",
                    self._settings,
                    sign.about,
                )
            elif sign.kind == "asked":
                if sign.about in _ASKED:
                    logger.info("a run asks %s", _ASKED[sign.about])
            else:
                self._state.connected = False
                self._state.problem = self._words(sign)
        self._state.programs = {name: self._supervisor.pid(name) for name in (NODE, EXECUTOR)}
        if asdict(self._state) == before:
            return
        self._write()
        if self._state.connected and not before["connected"]:
            logger.info("connected to %s; waiting for runs. Ctrl-C ends it", self._state.address)
        elif self._state.problem and self._state.problem != before["problem"]:
            logger.warning("not connected: %s. Trying again", self._state.problem)

    def _tell(self, answers: list[Sign], log: Path) -> None:
        """Say what became of what a run asked for: a refusal with its reason, a model."""
        for sign in answers:
            status, _, why = sign.about.partition(" reason=")
            logger.warning("Answered %s: %s (more in %s)", status, why or "see there", log)
        if (newest := self._newest()) != self._home:
            self._home = newest
            logger.info(
                "the model %s came home; to use it here: python -m client adapt %s",
                newest,
                self._settings,
            )

    def _newest(self) -> str:
        """Return the name of the model that came home last; nothing where there is none."""
        try:
            return self._current.readlink().name
        except OSError:
            return ""

    def _words(self, sign: Sign) -> str:
        """Return what stands between this shop and the federation."""
        if sign.kind in ("unknown-key", "still-online"):
            return self._refused_key(sign)
        if sign.kind == "clock":
            return (
                "the federation refuses this shop's signature: set this machine's clock, which may "
                "be 300 s behind the federation's at most, and not ahead of it"
            )
        if sign.kind == "busy-port":
            return f"port {self._state.port} was taken by another program: start again"
        if (now := time.monotonic()) - self._probed > _PROBE_EVERY or not self._state.problem:
            self._probed = now
            if found := obstacle(self._federation.address, self._federation.ca):
                return found
            return f"{self._federation.address} answers, but not as a federation does"
        return self._state.problem

    def _refused_key(self, sign: Sign) -> str:
        now = time.monotonic()
        self._refused = now if self._refused is None else self._refused
        self._unknown |= sign.kind == "unknown-key" or now - self._refused > _HELD_SECONDS
        public = public_path(self._federation.key)
        if not self._unknown:
            return (
                "the federation still holds this shop's last connection, for up to a minute, or "
                f"its operator has not enrolled {public}"
            )
        return (
            "the federation does not know this shop's key: its operator removed it, or has not "
            f"enrolled it. Give them {public}; a key that was removed is never admitted again, and "
            f"`python -m client key new {self._settings}` makes another"
        )

    def _lost_node(self) -> None:
        """End what works for a SuperNode that is gone: nobody could take its answer."""
        self._state.connected = False
        for process in carriers(RUN_VARIABLE, str(self._folder.root)):
            with suppress(psutil.Error):
                if any(_CLIENT in part for part in process.cmdline()[:3]):
                    process.kill()

    @property
    def _file(self) -> Path:
        return self._folder.state / "run.json"

    def _write(self) -> None:
        temporary = self._file.with_suffix(".tmp")
        # A full disk must not end a shop that is connected.
        try:
            temporary.write_text(json.dumps(asdict(self._state), indent=2), encoding="utf-8")
            temporary.replace(self._file)
        except OSError as error:
            logger.warning("cannot write %s: %s", self._file, error.strerror)


def supernode(
    settings: Path, folder: ShopFolder, federation: FederationSettings, port: int, empty: Path
) -> Program:
    """Return the guarded SuperNode of a shop."""
    command = [sys.executable, "-P", "-m", "client.node"]
    command += ["--approved", str(folder.approvals), "--refused", str(folder.refusals)]
    command += ["--superlink", federation.address, "--root-certificates", str(federation.ca)]
    command += ["--auth-supernode-private-key", str(federation.key)]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(folder.secret)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--node-config", f"{SHOP_KEY}={_quoted(str(settings))}"]
    own_code = {"PYTHONPATH": str(FEDERATION.folder)}
    log = folder.logs / "supernode.log"
    return Program(
        NODE,
        command,
        environment(folder.flower, own_code),
        empty,
        log,
        final=lambda _: refusal(log),
    )


def refusal(log: Path) -> str | None:
    """Return why our own part of a SuperNode that ended would not start; None if it did."""
    try:
        last = log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return None
    return last.removeprefix(_OWN_ERROR) if last.startswith(_OWN_ERROR) else None


def superexec(folder: ShopFolder, port: int, empty: Path) -> Program:
    """Return the executor of a shop."""
    # Without TLS: it never leaves loopback, and the secret shows who asks.
    command = [tool("flower-superexec"), "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]
    command += ["--superexec-auth-secret-file", str(folder.secret)]
    return Program(
        EXECUTOR, command, environment(folder.flower, {}), empty, folder.logs / "superexec.log"
    )


def _quoted(text: str) -> str:
    """Return a TOML string that Flower finds whole: it looks for the next quotation mark."""
    return json.dumps(text, ensure_ascii=False).replace('\\"', "\\u0022").replace("\x7f", "\\u007f")


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
    places: list[tuple[logging.Logger, logging.Handler]] = [(logger, kept), (logger, shown)]
    places.append((logging.getLogger("common.supervisor"), kept))
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
