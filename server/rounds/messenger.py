"""One exchange: a message to each of some nodes, and the checked replies."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.catalogue.stock import stock_fingerprint
from common.errors import ProtocolError, RunError
from common.protocol import (
    EVALUATE,
    HEADER,
    HOME,
    JOIN,
    MANIFEST,
    NO_FINGERPRINT,
    PUBLIC_WEIGHT,
    RELEASE,
    SAID,
    STATE,
    SUM_KEYS,
    SUM_MASKED,
    SUM_OPEN,
    SUM_SHARES,
    SUM_STAGES,
    SUM_UNMASK,
    SUM_VIEW,
    TRAIN,
    UPDATE,
    Arrays,
    ReplyHeader,
    RoundHeader,
)
from common.stocked_rows import ByRow, sent_shapes
from server.aggregation import Contribution
from server.job import Job, Sent, Shapes
from server.rounds.bounds import largest
from server.rounds.exchange import Exchange
from server.rounds.heads import LedgerHeads
from server.rounds.pulling import pull
from server.rounds.replies import reply_arrays, reply_header, reply_text, reply_vector
from server.rounds.roster import Roster

logger = logging.getLogger(__name__)

_MESSAGE_TYPES = {
    JOIN: f"{MessageType.QUERY}.{JOIN}",
    RELEASE: f"{MessageType.TRAIN}.{RELEASE}",
    TRAIN: f"{MessageType.TRAIN}.{TRAIN}",
    HOME: f"{MessageType.QUERY}.{HOME}",
    EVALUATE: f"{MessageType.QUERY}.{EVALUATE}",
    SUM_MASKED: f"{MessageType.TRAIN}.{SUM_MASKED}",
    **{
        stage: f"{MessageType.QUERY}.{stage}"
        for stage in (SUM_KEYS, SUM_SHARES, SUM_OPEN, SUM_VIEW, SUM_UNMASK)
    },
}
#: Exchanges that a shop pays for: what comes back is made of its records.
_CHARGED = frozenset((RELEASE, TRAIN, EVALUATE, SUM_MASKED))
#: Exchanges after the training: what a shop says there says nothing of whether it trains.
_AFTER = frozenset((HOME, EVALUATE))
#: Exchanges with every node that is connected, whether its shop takes part or not.
_OPEN = frozenset((JOIN, *_AFTER))
# A shop that says one of these will say it again: it is not asked any more in this run.
_FINAL = frozenset(
    (
        *("over-budget", "refused-config", "no-secure-sum"),
        *("wrong-catalogue", "wrong-stock", "wrong-protocol"),
    )
)
# What a node comes to that says nothing well-formed of its shop.
_UNHEARD = frozenset(("error", "unapproved", "rubbish", "late"))
_FIRST_POLL, _LAST_POLL = 0.02, 1.0
# Replies that are pulled at a time where each is taken in before the next: they are in memory
# together, with what Flower holds of them.
_FEW = 4
# Bytes of a reply beside its arrays and its text, generously.
_BESIDE = 1 << 20


@dataclass(frozen=True)
class Masked:
    """What is done with masked vectors: each is taken in as it comes, and none is kept.

    Attributes
    ----------
    lengths
        Shop -> numbers in its vector.
    take
        Called with a shop and its vector, (length,) uint32; raises :class:`ProtocolError` for
        rubbish.
    """

    lengths: Mapping[str, int]
    take: Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class _Asked:
    """What one exchange asks for; see :meth:`Messenger.exchange`."""

    kind: str
    server_round: int
    expected: Shapes
    rows: Callable[[str], ByRow] | None
    masked: Masked | None
    most_chars: int


class Messenger:
    """Sends what a job says, and takes what comes back.

    Parameters
    ----------
    grid
        Flower's, or one in this process.
    job
        What is run.
    roster
        Who speaks for which shop.
    heads
        What is remembered of the shops' ledgers, over runs; None remembers nothing.
    """

    def __init__(self, grid: Grid, job: Job, roster: Roster, heads: LedgerHeads | None) -> None:
        self._grid, self._job, self._roster = grid, job, roster
        # A plan without privacy charges nothing: ledgers are none of its business.
        self._heads = heads if job.plan.private else None

    def prepare(self) -> None:
        """Find out whether what shops say can be kept, before any of them pays for saying it."""
        if self._heads is not None:
            self._heads.save()

    def exchange(
        self,
        kind: str,
        server_round: int,
        nodes: Sequence[int],
        state: Sent,
        expected: Shapes,
        *,
        rows: Callable[[str], ByRow] | None = None,
        manifest: str = "",
        said: Mapping[int, str] | None = None,
        most_chars: int = 0,
        masked: Masked | None = None,
    ) -> Exchange:
        """Send one message to each node and return the checked replies, in shop order.

        Parameters
        ----------
        state
            What comes with each message; or of shops that take part, what it is sent alone.
        expected
            Name -> shape of the whole arrays that are asked for.
        rows
            Shop -> the rows that it sends of arrays that it does not send whole.
        said
            Node -> what it is told in a stage of a secure sum.
        most_chars
            How long what a shop says there may be.
        masked
            Of ``SUM_MASKED``: what is done with the shops' vectors.
        """
        said = {} if said is None else said
        header = RoundHeader(
            run_id=self._job.run_name,
            server_round=server_round,
            plan_json=self._job.plan.model_dump_json(),
            catalogue_fingerprint=self._job.catalogue_fingerprint,
            stock_fingerprint=stock_fingerprint(self._job.stock),
        )
        asked = _Asked(kind, server_round, expected, rows, masked, most_chars)
        shared: dict[str, ArrayRecord | ConfigRecord] = {}
        if not callable(state):
            shared |= _state(state)
        if manifest:
            shared[MANIFEST] = ConfigRecord({MANIFEST: manifest})
        result = Exchange(asked=len(nodes))

        def message(node: int) -> Message:
            content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
                HEADER: self._header_for(node, header)
            }
            content |= {**shared, **_said(said, node)}
            if callable(state):
                content |= _state(state(self._shop(node)))
            result.bytes_down += _bytes(content.get(STATE))
            kind_of = _MESSAGE_TYPES[kind]
            return Message(RecordDict(content), node, kind_of, group_id=str(server_round))

        # Of states of their own one is in memory at a time; Flower keeps a shared one once.
        at_once = 1 if callable(state) else max(len(nodes), 1)
        batches = (nodes[k : k + at_once] for k in range(0, len(nodes), at_once))
        messages = ([message(node) for node in batch] for batch in batches)
        codes = dict.fromkeys(nodes, "late")
        few = _FEW if masked else len(nodes)
        for node, reply in self._replies(messages, _most_bytes(asked), at_once=few):
            codes[node] = (
                reply if isinstance(reply, str) else self._take(node, reply, asked, result)
            )
        for node, code in codes.items():
            if code != "ok":
                result.declined[code] += 1
            if code in _UNHEARD and (enrolled := self._roster.enrolled(node)) is not None:
                result.unheard[enrolled] = code
        result.contributions.sort(key=lambda c: c.shop)
        if self._heads is not None and kind in _CHARGED:
            # Only a reply that was charged speaks for a ledger: one that joins may be an old copy.
            self._heads.remember(result.ledger_heads)
        return result

    def _shop(self, node: int) -> str:
        shop = self._roster.shop(node)
        assert shop is not None
        return shop

    def _header_for(self, node: int, header: RoundHeader) -> ConfigRecord:
        """Return the header with the last known head of the node's own shop."""
        shop = self._roster.shop(node) or self._roster.enrolled(node)
        if self._heads is not None and shop is not None:
            header = header.model_copy(update={"ledger_head": self._heads.of(shop)})
        return ConfigRecord(header.model_dump())

    def _take(self, node: int, reply: Message, asked: "_Asked", result: Exchange) -> str:
        """Check one reply; keep it if it is good; return its code."""
        kind = asked.kind
        if reply.has_error():
            # The text is the shop's or Flower's; only that it happened is of use here.
            logger.warning("reply=error node=%d code=%d", node, reply.error.code)
            return "unapproved" if reply.error.code == ErrorCode.INVALID_FAB else "error"
        try:
            header = reply_header(reply, asked.server_round)
            result.answered.add(node)
            if header.shop != NO_FINGERPRINT:
                self._roster.check(node, header.shop)
            result.headers[node] = header
            if header.status != "ok":
                if header.status in _FINAL and kind not in _AFTER:
                    self._roster.drop(node)
                return header.status
            self._check_name(node, header, kind)
            if header.shop in result.accepted_nodes.values():
                raise ProtocolError("a second node answers for the same shop")
            if header.catalogue_fingerprint != self._job.catalogue_fingerprint:
                raise ProtocolError("a shop answers for another catalogue")
            self._check_noise(kind, header)
            arrays: Arrays = {}
            rows: ByRow = {}
            if kind in SUM_STAGES:
                self._hear(reply, header, result, asked)
            else:
                max_norm = self._job.settings.max_update_norm if kind == TRAIN else 0.0
                rows = {} if asked.rows is None else asked.rows(header.shop)
                shapes = sent_shapes(asked.expected, rows)
                most = largest(self._job.plan, kind, asked.server_round)
                arrays = reply_arrays(reply, shapes, max_norm, most)
        except ProtocolError as error:
            logger.warning("reply=rubbish node=%d reason=%s", node, error)
            return "rubbish"
        result.accepted_nodes[node] = header.shop
        result.contributions.append(Contribution(header.shop, PUBLIC_WEIGHT, arrays, rows))
        result.bytes_up += _bytes(reply.content.array_records.get(UPDATE))
        return "ok"

    def _check_name(self, node: int, header: ReplyHeader, kind: str) -> None:
        """Refuse what is to be used and does not say whose it is.

        What a shop is held to (its rows, its part in a sum, one reply an exchange) goes by its
        name. Only who joins, or gets the finished model, need not take part yet.
        """
        if header.shop == NO_FINGERPRINT:
            raise ProtocolError("a reply that is of no shop")
        if kind not in _OPEN and self._roster.shop(node) != header.shop:
            raise ProtocolError("a shop answers that takes no part")

    @staticmethod
    def _hear(reply: Message, header: ReplyHeader, result: Exchange, asked: _Asked) -> None:
        """Pass on the vector of a reply to a stage of a secure sum, or keep what it says."""
        if (masked := asked.masked) is None:
            result.said[header.shop] = reply_text(reply, asked.most_chars)
            return
        masked.take(header.shop, reply_vector(reply, masked.lengths[header.shop]))

    def _check_noise(self, kind: str, header: ReplyHeader) -> None:
        """Refuse a charged reply that says it holds no noise, or a price where none is asked."""
        noisy = kind == EVALUATE or (kind in _CHARGED and self._job.plan.private)
        if kind in _CHARGED and noisy != (header.noise != "none"):
            raise ProtocolError(f"a shop says that its noise is {header.noise}")
        if (header.noise_multiplier > 0) != (kind == EVALUATE):
            raise ProtocolError(f"a shop's noise multiplier is {header.noise_multiplier:g}")

    def _replies(
        self, batches: Iterable[Sequence[Message]], most_bytes: int, *, at_once: int
    ) -> Iterable[tuple[int, Message | str]]:
        """Send messages; yield (node, reply) as they come, until all are there or the time is up.

        At most ``at_once`` of them are pulled together. In the place of a reply that cannot be
        read stands its code.

        Raises
        ------
        RunError
            If SuperLink takes none of the messages, as it does once a run is stopped: nobody was
            asked, so it is no round without answers, and the run goes on before it.
        """
        waiting: dict[str, int] = {}
        tried = False
        for messages in batches:
            tried = True
            sent = set(self._grid.push_messages(messages))
            told = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
            waiting |= {key: node for key, node in told.items() if key in sent}
        if tried and not waiting:
            raise RunError("SuperLink took no message to any shop: the run was stopped")
        deadline = time.monotonic() + self._job.settings.timeout_seconds
        poll = _FIRST_POLL
        while waiting:
            got = False
            asked = list(waiting)
            for start in range(0, len(asked), at_once):
                some = asked[start : start + at_once]
                for key, reply in pull(self._grid, some, deadline=deadline, most_bytes=most_bytes):
                    got = True
                    # An error reply may come from the SuperLink: the sender's id is no guide.
                    node = waiting.pop(key, None)
                    if node is not None:
                        yield node, reply
            if time.monotonic() >= deadline:
                return
            if waiting and not got:
                time.sleep(poll)
            poll = _FIRST_POLL if got else min(poll * 1.2, _LAST_POLL)


def _most_bytes(asked: _Asked) -> int:
    """Return how many bytes a good reply has at most: generously, and for any shop."""
    numbers = sum(math.prod(shape) for shape in asked.expected.values())
    if asked.masked is not None:
        numbers = max(asked.masked.lengths.values(), default=0)
    # Of a character there are 4 bytes at most.
    return 4 * (2 * numbers + asked.most_chars) + _BESIDE


def _state(state: Arrays) -> dict[str, ArrayRecord]:
    return {STATE: ArrayRecord({n: Array(a) for n, a in state.items()})} if state else {}


def _bytes(arrays: object) -> int:
    return sum(len(a.data) for a in arrays.values()) if isinstance(arrays, ArrayRecord) else 0


def _said(said: Mapping[int, str], node: int) -> dict[str, ConfigRecord]:
    return {SAID: ConfigRecord({SAID: said[node]})} if node in said else {}
