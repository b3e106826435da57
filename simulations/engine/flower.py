"""Run one Flower app on Flower's simulation engine, and end everything that was started.

Each run has a SuperLink of its own (:mod:`simulations.engine.superlink`). The bundle is built from
a clean copy of the code, so neither the name of the checkout nor what else lies in it matters.
"""

import logging
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.bundle import FEDERATION, FlowerApp, stage
from common.config import ConfigValue, flat_toml
from common.errors import RunError
from common.programs.processes import end_carriers
from common.protocol import TrainingPlan
from server.settings import EVENTS_FILE
from server.training.records import new_events
from server.variables import ROSTER_FILE, SERVER_VARIABLE
from simulations.engine.superlink import Link, superlink
from simulations.machine import usable_cpus

logger = logging.getLogger(__name__)

Event = dict[str, Any]

#: Below the server's folder.
CHECKPOINTS = "checkpoints"

_TAIL_LINES = 40
_STATUS_EVERY = 30.0
_LONGEST_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Outcome:
    """What a completed run left behind.

    Attributes
    ----------
    events
        The app's own, each with ``after_seconds``: when it was seen, counted from the call.
    seconds
        From the call until everything was ended.
    """

    events: list[Event]
    seconds: float

    def of(self, kind: str) -> list[Event]:
        """Return the events of one kind (``join``, ``release``, ``round``)."""
        return [event for event in self.events if event["event"] == kind]


def run_app(
    app: FlowerApp,
    *,
    shops: int,
    run_config: Mapping[str, ConfigValue],
    environment: Mapping[str, str],
    events_file: Path,
    on_event: Callable[[Event], object] = lambda _: None,
    cpus: int | None = None,
) -> Outcome:
    """Run ``app`` with ``shops`` simulated nodes until it has completed.

    Parameters
    ----------
    app
        What to run.
    shops
        Number of nodes; node ``i`` finds ``partition-id = i`` in its node config.
    run_config
        Overrides of the app's ``[tool.flwr.app.config]``.
    environment
        Variables for the app's own processes: where shops and server find their settings.
    events_file
        JSON lines that the app appends to; each new line is passed to ``on_event``.
    on_event
        Called in this thread, with each event.
    cpus
        Clients that run at a time; default: the processors this process may use.

    Raises
    ------
    RunError
        If the run did not complete; the message ends with the tail of its log.
    """
    started = time.monotonic()
    seen = events_file.stat().st_size if events_file.exists() else 0
    workers = cpus or usable_cpus()
    with tempfile.TemporaryDirectory(prefix="ft-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        with superlink(root, environment) as link:
            bundle = stage(app, root)
            link.wait_until_ready()
            run_id = link.submit(bundle, run_config, shops, workers)
            logger.info("run=started shops=%d workers=%d", shops, workers)
            events = _follow(link, run_id, events_file, seen, on_event, started)
    return Outcome(events, time.monotonic() - started)


def run_federation(
    plan: TrainingPlan,
    *,
    shops_folder: Path,
    shops: int,
    server_folder: Path,
    catalogue_folder: Path,
    run_config: Mapping[str, ConfigValue] | None = None,
    on_event: Callable[[Event], object] = lambda _: None,
    cpus: int | None = None,
) -> Outcome:
    """Run the federation's own server and clients on simulated nodes.

    Parameters
    ----------
    plan
        The public plan.
    shops_folder
        ``<i>/shop.toml`` for ``i`` from 0 to ``shops - 1``.
    shops
        Number of shops.
    server_folder
        Where ``server.toml`` is written and ``checkpoints`` and their ``rounds.jsonl`` appear; a
        run that was interrupted goes on from what is there.
    catalogue_folder
        The published catalogue.
    run_config
        Changes to the defaults in pyproject.toml, ``plan`` and ``min-shops`` aside.
    on_event
        Called with each public event of the server: ``join``, ``release``, ``round``.
    cpus
        Clients that run at a time.

    Raises
    ------
    RunError
        If the run did not complete.
    """
    files = federation_files(plan, shops_folder, shops, server_folder, catalogue_folder, run_config)
    return run_app(
        FEDERATION,
        shops=shops,
        run_config=files.run_config,
        environment=files.environment,
        events_file=files.events,
        on_event=on_event,
        cpus=cpus,
    )


@dataclass(frozen=True)
class FederationFiles:
    """What the federation's apps are told, on whatever engine they run."""

    run_config: Mapping[str, ConfigValue]
    environment: Mapping[str, str]
    events: Path


def federation_files(
    plan: TrainingPlan,
    shops_folder: Path,
    shops: int,
    server_folder: Path,
    catalogue_folder: Path,
    run_config: Mapping[str, ConfigValue] | None,
) -> FederationFiles:
    """Write the server's settings; see :func:`run_federation` for the arguments."""
    checkpoints = server_folder / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    home: dict[str, ConfigValue] = {
        "checkpoints": CHECKPOINTS,
        "catalogue": str(catalogue_folder.resolve()),
    }
    if plan.trust == "federation":
        home["roster"] = str((shops_folder / ROSTER_FILE).resolve())
    (server_folder / "server.toml").write_text(flat_toml(home), encoding="utf-8")
    return FederationFiles(
        run_config={"min-shops": shops, **(run_config or {}), "plan": plan.model_dump_json()},
        environment={
            "FEDTAIL_SHOPS": str(shops_folder.resolve()),
            SERVER_VARIABLE: str(server_folder.resolve()),
        },
        events=checkpoints / EVENTS_FILE,
    )


def end_leftovers(server_folder: Path) -> None:
    """End what a runner that was killed outright left training: it could not do so itself."""
    end_carriers(SERVER_VARIABLE, str(server_folder.resolve()))


def _follow(
    link: Link,
    run_id: str,
    events_file: Path,
    seen: int,
    on_event: Callable[[Event], object],
    started: float,
) -> list[Event]:
    """Pass on events until the run has ended; return them all."""
    events: list[Event] = []
    ended = engine_seen = False
    next_look = time.monotonic()
    next_status = next_look + _STATUS_EVERY
    while True:
        new, seen = new_events(events_file, seen)
        for event in new:
            event["after_seconds"] = time.monotonic() - started
            ended = ended or event["event"] == "end"
            events.append(event)
            on_event(event)
        now = time.monotonic()
        if now > started + _LONGEST_SECONDS:
            raise RunError(f"the run took longer than it was given\n{link.control.log(run_id)}")
        if now >= next_look:
            link.check_alive()
            next_look = now + (0.1 if ended else 1.0)
            running = link.engine_runs()
            engine_seen = engine_seen or running
            if (engine_seen and not running) or now >= next_status:
                status = link.control.status(run_id)
                next_status = time.monotonic() + _STATUS_EVERY
                if status == "finished:completed":
                    return events
                if status.startswith("finished"):
                    raise RunError(_failure(status, link.control.log(run_id)))
        time.sleep(0.05)


def _failure(status: str, log: str) -> str:
    """Return what to say of a run that failed: our own error first, if there is one."""
    own = re.findall(r"^common\.errors\.\w+: (.+)$", log, flags=re.MULTILINE)
    tail = "\n".join(log.splitlines()[-_TAIL_LINES:])
    reason = own[-1] if own else f"it ended as {status!r}"
    return f"the federation's run failed: {reason}\nThe end of its log:\n{tail}"
