"""Who takes part, what a good reply is, and the round loop.

Our own loop over Flower's ``Grid``: a run is one ``JOIN``, one ``RELEASE`` and a ``TRAIN`` a
round, and a round may hold more exchanges than one (:meth:`Federation.exchange`). Everything that
the loop decides follows from the seed and the shops' public keys, not from who answers first.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import ProtocolError, RunError
from common.features import Feature
from common.protocol import (
    HEADER,
    JOIN,
    NO_FINGERPRINT,
    POPULARITY,
    PROTOCOL_VERSION,
    PUBLIC_WEIGHT,
    RELEASE,
    STATE,
    TRAIN,
    UPDATE,
    WEIGHT,
    Arrays,
    ReplyHeader,
    RoundHeader,
    TrainingPlan,
    check_arrays,
    check_names,
)
from common.rng import derive
from server.aggregation import Aggregator, Contribution, popularity_rates, weighted_mean
from server.checkpoints import Checkpoint
from server.exchange import Exchange
from server.heads import LedgerHeads
from server.settings import RunSettings

logger = logging.getLogger(__name__)

_MESSAGE_TYPES = {
    JOIN: f"{MessageType.QUERY}.{JOIN}",
    RELEASE: f"{MessageType.TRAIN}.{RELEASE}",
    TRAIN: f"{MessageType.TRAIN}.{TRAIN}",
}
# A shop that says one of these will say it again: it is not asked any more in this run.
_FINAL = frozenset(("over-budget", "refused-config", "wrong-catalogue", "wrong-protocol"))
_FIRST_POLL, _LAST_POLL = 0.02, 1.0

Shapes = Mapping[str, tuple[int, ...]]
Event = dict[str, object]


@dataclass(frozen=True)
class Job:
    """One run: its name, plan, settings and the shapes of what travels.

    ``trained`` are the arrays of ``shapes`` that shops send deltas of; ``features`` the public ones
    of the catalogue.
    """

    run_name: str
    plan: TrainingPlan
    settings: RunSettings
    catalogue_fingerprint: str
    shapes: Shapes
    trained: Sequence[str]
    features: Sequence[Feature] = ()


class Federation:
    """The server's side of one run.

    Parameters
    ----------
    grid
        Flower's, or one in this process.
    job
        What is run.
    aggregate
        How the accepted updates become one.
    heads
        What is remembered of the shops' ledgers, over runs; None remembers nothing.
    save
        Called with the checkpoint of every round, 0 being the state before training.
    report
        Called with public facts: ``join``, ``release``, ``round`` and ``end`` events.
    """

    def __init__(
        self,
        grid: Grid,
        job: Job,
        *,
        save: Callable[[Checkpoint], object],
        report: Callable[[Event], object],
        aggregate: Aggregator = weighted_mean,
        heads: LedgerHeads | None = None,
    ) -> None:
        self._grid, self._job, self._aggregate = grid, job, aggregate
        # A plan without privacy charges nothing: ledgers are none of its business.
        self._heads = heads if job.plan.private else None
        self._save, self._report = save, report
        self._asked_to_join: set[int] = set()
        self._shops: dict[int, str] = {}

    def run(self, initial: Arrays, resume: Checkpoint | None = None) -> Arrays:
        """Run the plan from its start, or from ``resume``, and return the last round's state.

        Raises
        ------
        RunError
            If too few shops connect, join or release.
        """
        plan, optimizer = self._job.plan, self._job.settings.optimizer(self._job.plan)
        self._wait_for_shops()
        self._join(0 if resume is None else resume.server_round + 1)
        if resume is None:
            state = self._release(initial)
            memory = optimizer.start({name: self._job.shapes[name] for name in self._job.trained})
            self._checkpoint(0, state, memory)
            done = 0
        else:
            state, memory, done = resume.state, resume.memory, resume.server_round
        for server_round in range(done + 1, plan.rounds + 1):
            started = time.monotonic()
            if server_round > done + 1:
                self._join(server_round)
            exchange = self.exchange(
                TRAIN,
                server_round,
                self._sample(server_round),
                state,
                {name: self._job.shapes[name] for name in self._job.trained},
            )
            if enough := self._has_quorum(exchange):
                mean = self._aggregate(exchange.contributions)
                state, memory = optimizer.apply(
                    state, mean, memory, exchange.accepted, server_round
                )
            self._checkpoint(server_round, state, memory)
            self._tell(
                "round",
                server_round,
                started,
                exchange,
                kept_old_model=not enough,
                shops=exchange.failed,
            )
        self._report({"event": "end", "server_round": plan.rounds})
        return state

    def exchange(
        self,
        kind: str,
        server_round: int,
        nodes: Sequence[int],
        state: Arrays,
        expected: Shapes,
    ) -> Exchange:
        """Send one message to each node and return the checked replies, in shop order."""
        header = RoundHeader(
            run_id=self._job.run_name,
            server_round=server_round,
            plan_json=self._job.plan.model_dump_json(),
            catalogue_fingerprint=self._job.catalogue_fingerprint,
        )
        shared = {STATE: ArrayRecord({n: Array(a) for n, a in state.items()})} if state else {}
        messages = [
            Message(
                RecordDict({HEADER: self._header_for(node, header), **shared}),
                node,
                _MESSAGE_TYPES[kind],
                group_id=str(server_round),
            )
            for node in nodes
        ]
        result = Exchange(asked=len(nodes))
        seen: set[str] = set()
        max_norm = self._job.settings.max_update_norm if kind == TRAIN else 0.0
        for node, reply in self._replies(messages):
            code = self._take(node, reply, server_round, expected, max_norm, seen, result)
            if code != "ok":
                result.declined[code] += 1
        if late := len(nodes) - result.accepted - sum(result.declined.values()):
            result.declined["late"] = late
        result.contributions.sort(key=lambda c: c.shop)
        if self._heads is not None and kind != JOIN:
            # Only a reply that was charged speaks for a ledger: one that joins may be an old copy.
            self._heads.remember(result.ledger_heads)
        return result

    def _header_for(self, node: int, header: RoundHeader) -> ConfigRecord:
        """Return the header with the last known head of the node's own shop."""
        if self._heads is not None and node in self._shops:
            header = header.model_copy(update={"ledger_head": self._heads.of(self._shops[node])})
        return ConfigRecord(header.model_dump())

    def _take(
        self,
        node: int,
        reply: Message,
        server_round: int,
        expected: Shapes,
        max_norm: float,
        seen: set[str],
        result: Exchange,
    ) -> str:
        """Check one reply; keep it if it is good; return its code."""
        if reply.has_error():
            # The text is the shop's or Flower's; only that it happened is of use here.
            logger.warning("reply=error code=%d", reply.error.code)
            return "error"
        try:
            header = _reply_header(reply, server_round)
            result.headers[node] = header
            if header.status != "ok":
                if header.status in _FINAL:
                    self._shops.pop(node, None)
                return header.status
            if header.shop != self._shops.get(node, header.shop) or header.shop in seen:
                raise ProtocolError("a node answers for another shop")
            seen.add(header.shop)
            if header.catalogue_fingerprint != self._job.catalogue_fingerprint:
                raise ProtocolError("a shop answers for another catalogue")
            arrays = _arrays(reply, expected)
            check_arrays(arrays, expected, max_norm=max_norm)
        except ProtocolError as error:
            logger.warning("reply=rubbish reason=%s", error)
            return "rubbish"
        result.accepted_nodes[node] = header.shop
        result.contributions.append(Contribution(header.shop, PUBLIC_WEIGHT, arrays))
        return "ok"

    def _replies(self, messages: Sequence[Message]) -> Iterable[tuple[int, Message]]:
        """Yield (node, reply) as they come, until all are there or the time is up."""
        sent = set(self._grid.push_messages(messages))
        waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        waiting = {key: node for key, node in waiting.items() if key in sent}
        deadline = time.monotonic() + self._job.settings.timeout_seconds
        poll = _FIRST_POLL
        while waiting:
            got = False
            for reply in self._grid.pull_messages(list(waiting)):
                got = True
                # An error reply may come from the SuperLink, so the sender's id is no guide.
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    yield node, reply
            if time.monotonic() >= deadline:
                return
            if waiting and not got:
                time.sleep(poll)
            poll = _FIRST_POLL if got else min(poll * 1.2, _LAST_POLL)

    def _wait_for_shops(self) -> None:
        settings = self._job.settings
        deadline = time.monotonic() + settings.wait_seconds
        while len(connected := list(self._grid.get_node_ids())) < settings.min_shops:
            if time.monotonic() >= deadline:
                raise RunError(
                    f"{len(connected)} shops connected within {settings.wait_seconds:g} s; "
                    f"the run needs {settings.min_shops}"
                )
            time.sleep(_FIRST_POLL)

    def _join(self, server_round: int) -> None:
        """Ask every node that was not asked yet whether its shop takes part."""
        started = time.monotonic()
        connected = set(self._grid.get_node_ids())
        self._shops = {node: shop for node, shop in self._shops.items() if node in connected}
        new = sorted(connected - self._asked_to_join)
        if not new:
            return
        exchange = self.exchange(JOIN, server_round, new, {}, {})
        # A shop that did not answer may be asked again; one that declined may not.
        self._asked_to_join |= set(exchange.headers)
        taken = set(self._shops.values())
        self._shops |= {n: s for n, s in exchange.accepted_nodes.items() if s not in taken}
        shops = {h.shop: h.status for h in exchange.headers.values() if h.shop != NO_FINGERPRINT}
        self._tell("join", server_round, started, exchange, shops=shops)
        if not self._shops:
            raise RunError(f"no shop takes part: {exchange.reasons}")

    def _release(self, initial: Arrays) -> Arrays:
        started = time.monotonic()
        shape = {POPULARITY: self._job.shapes[POPULARITY]}
        exchange = self.exchange(RELEASE, 0, self._everyone(), {}, shape)
        self._tell("release", 0, started, exchange, shops=exchange.failed)
        if not self._has_quorum(exchange):
            raise RunError(
                f"{exchange.accepted} of {exchange.asked} shops released their popularity, too "
                f"few to train on: {exchange.reasons}"
            )
        job = self._job
        return initial | {
            POPULARITY: popularity_rates(job.plan, exchange.contributions, job.features)
        }

    def _everyone(self) -> list[int]:
        return sorted(self._shops, key=lambda node: self._shops[node])

    def _sample(self, server_round: int) -> list[int]:
        if not (nodes := self._everyone()):
            raise RunError(f"round {server_round}: no shop takes part any more")
        count = math.ceil(self._job.settings.clients_per_round * len(nodes))
        stream = derive(
            self._job.settings.seed, purpose="client-sampling", server_round=server_round
        )
        chosen = stream.choice(len(nodes), size=count, replace=False)
        return [nodes[i] for i in np.sort(chosen)]

    def _has_quorum(self, exchange: Exchange) -> bool:
        needed = math.ceil(self._job.settings.quorum * exchange.asked)
        return exchange.accepted >= max(needed, 1)

    def _checkpoint(self, server_round: int, state: Arrays, memory: Arrays) -> None:
        job = self._job
        self._save(
            Checkpoint(
                server_round=server_round,
                run_name=job.run_name,
                plan=job.plan,
                settings_json=job.settings.identity(),
                catalogue_fingerprint=job.catalogue_fingerprint,
                state=state,
                memory=memory,
            )
        )

    def _tell(
        self, event: str, server_round: int, started: float, exchange: Exchange, **more: object
    ) -> None:
        facts: Event = {
            "event": event,
            "server_round": server_round,
            "seconds": round(time.monotonic() - started, 4),
            "asked": exchange.asked,
            "accepted": exchange.accepted,
            "declined": dict(sorted(exchange.declined.items())),
            **more,
        }
        logger.info("%s", json.dumps(facts))
        self._report(facts)


def _reply_header(reply: Message, server_round: int) -> ReplyHeader:
    """Return the checked header of a reply."""
    content = reply.content
    check_names(set(content) - {UPDATE}, (HEADER, WEIGHT))
    try:
        header = ReplyHeader.model_validate(dict(content.config_records[HEADER]))
        weights = dict(content.metric_records[WEIGHT])
    except (KeyError, ValueError) as error:
        raise ProtocolError("the header of a reply is not valid") from error
    if header.version != PROTOCOL_VERSION or header.server_round != server_round:
        raise ProtocolError(f"a reply of version {header.version}, round {header.server_round}")
    if weights != {WEIGHT: PUBLIC_WEIGHT}:
        raise ProtocolError("a reply with metrics other than the public weight")
    return header


def _arrays(reply: Message, expected: Shapes) -> Arrays:
    """Decode the arrays of a reply; shapes are compared before memory is given out."""
    records = reply.content.array_records
    if not expected:
        check_names(records, ())
        return {}
    check_names(records, (UPDATE,))
    check_names(records[UPDATE], expected)
    arrays: Arrays = {}
    for name, array in records[UPDATE].items():
        if tuple(array.shape) != tuple(expected[name]):
            raise ProtocolError(f"array {name!r} has shape {tuple(array.shape)}")
        try:
            arrays[name] = array.numpy()
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise ProtocolError(f"array {name!r} cannot be decoded") from error
    return arrays
