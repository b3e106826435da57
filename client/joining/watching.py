"""What becomes of a shop's programs, and of its connection: kept running, noted, and said."""

import json
import logging
import os
import shlex
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from client.joining.approval import Approvals
from client.joining.keys import public_path
from client.joining.node_log import APP_SIGNS, NodeLog, Sign
from client.joining.programs import EXECUTOR, NODE, superexec, supernode
from client.joining.reaching import obstacle
from client.settings import RUN_VARIABLE, FederationSettings
from client.shop_folder import CURRENT, ShopFolder
from common.programs.processes import carriers
from common.programs.supervisor import Supervisor
from common.protocol import EVALUATE, HOME, JOIN, RELEASE, SUM_KEYS, TRAIN

logger = logging.getLogger(__name__)

#: A federation gives up a node that it no longer hears of after a minute.
HELD_SECONDS = 90.0
_CLIENT = "flwr-clientapp"
_LOOK_EVERY = 1.0
# Longer than Flower needs to notice that a node is gone.
_PROBE_EVERY = 15.0
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


class Watch:
    """Starts the programs, and says what happens to them.

    Attributes
    ----------
    state
        What ``run.json`` says at this moment.
    """

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
        self._typed = shlex.quote(str(settings))  # As it stands in a command.
        self._supervisor, self.state = supervisor, state
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
        node = supernode(self._settings, self._folder, self._federation, self.state.port, empty)
        log = NodeLog(node.log)
        executor = superexec(self._folder, self.state.port, empty)
        answers = NodeLog(executor.log, APP_SIGNS)
        if not Approvals(self._folder.approvals).approved():
            logger.warning(
                "no code is approved, so every run is refused: python -m client approve %s "
                "--own-code",
                self._typed,
            )
        logger.info("%s connects to %s", self.state.shop, self.state.address)
        self._supervisor.start(node)
        self._supervisor.start(executor)
        try:
            while True:
                again = self._supervisor.step()
                if NODE in again:
                    self._lost_node()
                self.look(log.news())
                self.tell(answers.news(), executor.log)
                time.sleep(_LOOK_EVERY)
        finally:
            self._file.unlink(missing_ok=True)

    def look(self, signs: list[Sign]) -> None:
        """Note what the SuperNode's log says, and say what is new of it."""
        before = asdict(self.state)
        for sign in signs:
            if sign.kind == "connected":
                self.state.connected, self.state.problem = True, ""
                self._refused, self._unknown = None, False
            elif sign.kind == "refused":
                logger.warning(
                    "Refused the code of a run, which is not approved here. To see what is known "
                    "of it: python -m client approve %s --list  (digest %s)",
                    self._typed,
                    sign.about,
                )
            elif sign.kind == "asked":
                if sign.about in _ASKED:
                    logger.info("a run asks %s", _ASKED[sign.about])
            else:
                self.state.connected = False
                self.state.problem = self._words(sign)
        self.state.programs = {name: self._supervisor.pid(name) for name in (NODE, EXECUTOR)}
        if asdict(self.state) == before:
            return
        self._write()
        if self.state.connected and not before["connected"]:
            logger.info("connected to %s; waiting for runs. Ctrl-C ends it", self.state.address)
        elif self.state.problem and self.state.problem != before["problem"]:
            logger.warning("not connected: %s. Trying again", self.state.problem)

    def tell(self, answers: list[Sign], log: Path) -> None:
        """Say what became of what a run asked for: a refusal, or what was odd, and a model."""
        for sign in answers:
            if sign.kind == "warned":
                logger.warning("%s", sign.about)
                continue
            status, _, why = sign.about.partition(" reason=")
            logger.warning("Answered %s: %s (more in %s)", status, why or "see there", log)
        if (newest := self._newest()) != self._home:
            self._home = newest
            logger.info(
                "the model %s came home; to use it here: python -m client adapt %s",
                newest,
                self._typed,
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
            return f"port {self.state.port} was taken by another program: start again"
        if (now := time.monotonic()) - self._probed > _PROBE_EVERY or not self.state.problem:
            self._probed = now
            if found := obstacle(self._federation.address, self._federation.ca):
                return found
            return f"{self._federation.address} answers, but not as a federation does"
        return self.state.problem

    def _refused_key(self, sign: Sign) -> str:
        now = time.monotonic()
        self._refused = now if self._refused is None else self._refused
        self._unknown |= sign.kind == "unknown-key" or now - self._refused > HELD_SECONDS
        public = public_path(self._federation.key)
        if not self._unknown:
            return (
                "the federation still holds this shop's last connection, for up to a minute, or "
                f"its operator has not enrolled {public}"
            )
        return (
            "the federation does not know this shop's key: its operator removed it, or has not "
            f"enrolled it. Give them {public}; a key that was removed is never admitted again, and "
            f"`python -m client key new {self._typed}` makes another"
        )

    def _lost_node(self) -> None:
        """End what works for a SuperNode that is gone: nobody could take its answer."""
        self.state.connected = False
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
            temporary.write_text(json.dumps(asdict(self.state), indent=2), encoding="utf-8")
            temporary.replace(self._file)
        except OSError as error:
            logger.warning("cannot write %s: %s", self._file, error.strerror)
