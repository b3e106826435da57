"""Run the federation's own ServerApp and ClientApp inside this process: no Ray, no network.

The apps, their settings files, ledgers and checkpoints are those of
:mod:`simulations.engine.flower`; only the grid between them is ours. It answers one message at a
time, in the thread that waits for it, so at most one shop's training is in memory. With linear
algebra on one thread (``OMP_NUM_THREADS=1``, which Flower's engine sets for its workers) the
figures are those of Flower's engine to the last bit: a test holds that.
"""

import os
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from client.data.records import forget
from common.bundle import FEDERATION
from common.config import ConfigValue
from common.protocol import TrainingPlan
from server.app import app as server_app
from server.training.records import new_events
from simulations.engine.flower import Event, Outcome, federation_files

# The environment of the apps: no variable of an outer run may reach them.
_OURS = "FEDTAIL_"

#: Answers a message as a node: the clients' app, or one that stands before it.
Answers = Callable[[Message, Context], Message]


class InProcessGrid(Grid):
    """Calls the ClientApp of a node when its reply is waited for.

    Parameters
    ----------
    app
        The clients' app, or what stands before it; one instance serves all nodes.
    nodes
        Node id -> number of its shop.
    run_config
        What Flower would tell each client of the run.
    """

    def __init__(
        self, app: Answers, nodes: Mapping[int, int], run_config: Mapping[str, ConfigValue]
    ) -> None:
        # Messages are stamped with the identity of the process that makes them.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._app, self.nodes = app, dict(nodes)
        self._contexts = {
            node: Context(
                1,
                node,
                {"partition-id": shop, "num-partitions": len(nodes)},
                RecordDict(),
                dict(run_config),
            )
            for node, shop in nodes.items()
        }
        self._waiting: dict[str, Message] = {}
        self._count = 0

    def answer(self, message: Message) -> Message | None:
        """Return a node's reply; None: there will never be one."""
        return self._app(message, self._contexts[message.metadata.dst_node_id])

    def choose(self, waiting: list[str]) -> list[str]:
        """Return which of the waiting messages are answered now."""
        return waiting[:1]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages, and give each its id."""
        ids = []
        for message in messages:
            self._count += 1
            ids.append(str(self._count))
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to some of the messages."""
        chosen = self.choose([i for i in message_ids if i in self._waiting])
        replies = [self.answer(self._waiting.pop(i)) for i in chosen]
        return [reply for reply in replies if reply is not None]

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self.nodes)

    def set_run(self, run: Run) -> None:
        """Refuse: there is no SuperLink here to ask for a run."""
        raise NotImplementedError

    @property
    def run(self) -> Run:
        """Refuse: see :meth:`set_run`."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; the federation makes its own."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Refuse: the federation pushes and pulls."""
        raise NotImplementedError


def run_in_process(
    plan: TrainingPlan,
    *,
    shops_folder: Path,
    shops: int,
    server_folder: Path,
    catalogue_folder: Path,
    run_config: Mapping[str, ConfigValue] | None = None,
    on_event: Callable[[Event], object] = lambda _: None,
    clients: Answers = client_app,
    keep: bool = False,
) -> Outcome:
    """Run the federation's server and clients here.

    The arguments are those of :func:`simulations.engine.flower.run_federation`, and two more:
    ``clients`` may stand before the clients' app, as a shop would that sends something else.
    ``keep`` holds on to what was read of the shops' records: for another run with the same shops.
    An event is passed on when the next exchange begins, or the run ends.

    Raises
    ------
    FedtailError
        Whatever the server's app raised.
    """
    files = federation_files(plan, shops_folder, shops, server_folder, catalogue_folder, run_config)
    return run_apps(
        shops=shops,
        run_config=files.run_config,
        environment=files.environment,
        events_file=files.events,
        on_event=on_event,
        clients=clients,
        keep=keep,
    )


def run_apps(
    *,
    shops: int,
    run_config: Mapping[str, ConfigValue],
    environment: Mapping[str, str],
    events_file: Path,
    on_event: Callable[[Event], object] = lambda _: None,
    clients: Answers = client_app,
    keep: bool = False,
) -> Outcome:
    """Run both apps here; :func:`simulations.engine.flower.run_app` runs one on Flower's engine.

    Raises
    ------
    FedtailError
        Whatever the server's app raised.
    """
    started = time.monotonic()
    config = {**run_defaults(), **run_config}
    offset = events_file.stat().st_size if events_file.exists() else 0
    events: list[Event] = []

    def look() -> None:
        nonlocal offset
        found, offset = new_events(events_file, offset)
        for event in found:
            event["after_seconds"] = time.monotonic() - started
            events.append(event)
            on_event(event)

    class Reporting(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            look()
            return super().push_messages(messages)

    with _environment(environment), _one_thread():
        grid = Reporting(clients, {shop + 2: shop for shop in range(shops)}, config)
        # Ledgers and checkpoints know a run by its number: as on Flower, no two share one.
        context = Context(secrets.randbits(62), 1, {}, RecordDict(), config)
        try:
            server_app(grid, context)
        finally:
            if not keep:
                forget()
    look()
    return Outcome(events, time.monotonic() - started)


def run_defaults() -> dict[str, ConfigValue]:
    """Return the run defaults that Flower would read from the bundle."""
    text = (FEDERATION.folder / "pyproject.toml").read_text(encoding="utf-8")
    values: dict[str, Any] = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    return values


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Show the apps these variables and no others of ours; put back what was there."""
    before = {key: value for key, value in os.environ.items() if key.startswith(_OURS)}
    for key in before:
        del os.environ[key]
    os.environ.update(values)
    try:
        yield
    finally:
        for key in values:
            os.environ.pop(key, None)
        os.environ.update(before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, as Flower's workers do: how sums are cut up decides last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
