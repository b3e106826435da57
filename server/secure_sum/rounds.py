"""A secure sum over the wire: five exchanges with the shops, or six, and one sum or none.

The sixth asks, before anyone pays, which shares do not open. The release begins with it, as its
failure would end the run; training rounds do once a share was missing or wrong in the run.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from common.catalogue.stock import stock_fingerprint
from common.errors import SecureSumError
from common.protocol import (
    ITEMS,
    POPULARITY,
    PUBLIC_WEIGHT,
    SUM_KEYS,
    SUM_MASKED,
    SUM_OPEN,
    SUM_SHARES,
    SUM_UNMASK,
    SUM_VIEW,
    Arrays,
    TrainingPlan,
    plan_digest,
)
from common.secure_sum.encoding import as_arrays, from_words, vector_length
from common.secure_sum.layout import layout_of
from common.secure_sum.members import Roster, threshold
from common.secure_sum.messages import (
    Advertisement,
    KeysRequest,
    OpenAnswer,
    Said,
    Session,
    SharesAnswer,
    UnmaskAnswer,
    ViewAnswer,
    most_chars,
    parse,
    state_digest,
)
from common.secure_sum.primitives import fresh
from common.secure_sum.shown import Shown, ShownRows, alike
from common.shop_state import Slices
from server.aggregation import Contribution
from server.job import Job, Sent, Shapes
from server.rounds.exchange import Exchange
from server.rounds.messenger import Masked, Messenger
from server.secure_sum.collecting import Collector
from server.secure_sum.disputes import Disputes
from server.secure_sum.plausible import check_counts, check_spread

logger = logging.getLogger(__name__)


S = TypeVar("S", bound=Said)


@dataclass
class Summed:
    """What came of a secure sum.

    Attributes
    ----------
    exchange
        All its stages as one exchange; contributions without arrays, as many as are in the sum.
    arrays
        Name -> sum over the contributors, int64 in whole steps; empty where none was unmasked.
    reason
        Why none was.
    variances
        Name -> how many times the plan's noise variance is in each number, infinite in what does
        not travel. Empty: the same in all, as the plan says of so many shops.
    """

    exchange: Exchange
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    reason: str = ""
    variances: dict[str, np.ndarray] = field(default_factory=dict)


class SecureSums:
    """Runs the secure sums of one run.

    Parameters
    ----------
    members
        The operator's copy of the roster that the shops hold.
    """

    def __init__(self, messenger: Messenger, job: Job, members: Roster) -> None:
        self._messenger, self._job, self._members = messenger, job, members
        plan = job.plan
        self._threshold = threshold(len(members.keys), plan.honest_shops, plan.colluding_shops)
        self._disputes = Disputes()

    def collect(
        self,
        server_round: int,
        nodes: Mapping[int, str],
        state: Arrays,
        shapes: Shapes,
        slices: Slices | None = None,
    ) -> Summed:
        """Return the sum of what the shops add in a round; 0 is the popularity release.

        Parameters
        ----------
        nodes
            Node -> shop of those that are asked.
        state
            The released state; empty for the popularity release.
        shapes
            Name -> shape of what is summed.
        slices
            What each shop is sent of the state; None: all of it.
        """
        job, members = self._job, self._members
        sent = job.sent(state, slices, nodes.values())
        session = Session(
            run_id=job.run_name,
            server_round=server_round,
            kind="update" if server_round else "release",
            plan_digest=plan_digest(job.plan),
            catalogue_fingerprint=job.catalogue_fingerprint,
            stock_fingerprint=stock_fingerprint(job.stock),
            state_digest=state_digest(slices.shared if slices and callable(sent) else state),
            roster_digest=members.digest,
            threshold=self._threshold,
            length=vector_length(shapes),
            nonce=fresh(),
        )
        learned = None if slices is None else slices.learned
        layout = layout_of(job.plan, tuple(members.keys), shapes, job.stock, learned)
        shown: Shown = alike
        if slices is not None and job.stock is not None and callable(sent):
            shown = ShownRows(slices.by_row, slices.products, job.stock).digest
        collector = Collector(session, members, layout, shown)
        out = self._disputes.left_out({*nodes.values()}, self._threshold, server_round)
        asked = {node: shop for node, shop in nodes.items() if shop not in out}
        one = _Sum(self._messenger, collector, asked, server_round, self._disputes)
        one.whole.unheard |= out
        try:
            total = from_words(one.run(sent))
            check_spread(total, layout, collector.contributors)
            if not server_round:
                check_counts(total, layout, job.plan)
        except SecureSumError as error:
            one.whole.contributions, one.whole.accepted_nodes = [], {}
            logger.warning("sum=none round=%d reason=%s", server_round, error)
            return Summed(one.whole, reason=str(error))
        finally:
            one.note()
        summed = Summed(one.whole, as_arrays(total, shapes))
        if job.stock is not None:
            variances = layout.variances(job.plan, collector.contributors)
            summed.variances = as_arrays(variances, shapes)
            if (rows := summed.variances.get(ITEMS)) is not None:
                # Rows that do not travel hold no noise.
                one.whole.variances = float(np.where(np.isfinite(rows), rows, 0.0).mean())
        return summed


class _Sum:
    """One session, stage by stage."""

    def __init__(
        self,
        messenger: Messenger,
        collector: Collector,
        nodes: dict[int, str],
        server_round: int,
        disputes: Disputes,
    ) -> None:
        self._messenger, self._collector = messenger, collector
        self._nodes, self._round, self._disputes = nodes, server_round, disputes
        self._told: set[tuple[str, str]] = set()
        self.whole = Exchange(asked=len(nodes))

    def run(self, state: Sent) -> np.ndarray:
        collector = self._collector
        first = KeysRequest(session=collector.session)
        everyone = list(self._nodes.values())
        self._hear(SUM_KEYS, dict.fromkeys(everyone, first), Advertisement, collector.take_keys)
        keys = collector.shares_request()
        shown = [advertisement.shop for advertisement in keys.advertisements]
        self._hear(SUM_SHARES, dict.fromkeys(shown, keys), SharesAnswer, collector.take_shares)
        if self._disputes or not self._round:
            self._open()
        self._take_masked(state)
        view = collector.view_request()
        contributors = collector.contributors
        self._hear(SUM_VIEW, dict.fromkeys(contributors, view), ViewAnswer, collector.take_view)
        last = collector.unmask_request()
        signers = dict.fromkeys(collector.signers, last)
        self._hear(SUM_UNMASK, signers, UnmaskAnswer, collector.take_unmask)
        total = collector.sum()
        self.whole.contributions = [Contribution(shop, PUBLIC_WEIGHT, {}) for shop in contributors]
        return total

    def _hear(
        self,
        stage: str,
        requests: Mapping[str, Said],
        kind: type[S],
        take: Callable[[str, S], None],
    ) -> None:
        """Ask shops, and take what they say; who says rubbish has dropped out."""
        exchange = self._exchange(stage, requests)
        for shop, text in exchange.said.items():
            try:
                take(shop, parse(kind, text))
            except SecureSumError as error:
                self._rubbish(shop, error)

    def _open(self) -> None:
        """Ask which shares do not open, and go on without whoever is to be left out for it."""
        collector = self._collector
        requests = {shop: collector.open_request(shop) for shop in collector.sharing}
        self._hear(SUM_OPEN, requests, OpenAnswer, collector.take_open)
        # Nobody has a mask with those who said nothing: there will be none to take off.
        collector.leave_out(requests.keys() - collector.opened)
        out = self.note()
        collector.leave_out(out)
        self.whole.declined.update(out.values())

    def note(self) -> dict[str, str]:
        """Remember what this sum has shown of shares; return who of those in it is to be left out.

        They are told of at once, not in the next sum only.
        """
        collector = self._collector
        for shop, other in sorted(collector.complaints - self._told):
            logger.warning(
                "shares=unopened round=%d of=%s by=%s", self._round, other[:12], shop[:12]
            )
        self._told |= collector.complaints
        self._disputes.note(collector.complaints, collector.proven)
        needed = collector.session.threshold
        out = self._disputes.left_out(collector.sharing, needed, self._round)
        for shop, why in sorted(out.items()):
            logger.warning("left_out=%s round=%d shop=%s", why, self._round, shop[:12])
        self.whole.unheard |= out
        return out

    def _take_masked(self, state: Sent) -> None:
        requests = {shop: self._collector.masked_request(shop) for shop in self._collector.sharing}
        # Each is added as it comes: all of them together may not fit into memory.
        lengths = {shop: self._collector.layout.length_of(shop) for shop in requests}
        masked = Masked(lengths, self._collector.take_masked)
        exchange = self._exchange(SUM_MASKED, requests, state, masked)
        self.whole.accepted_nodes = exchange.accepted_nodes

    def _exchange(
        self,
        stage: str,
        requests: Mapping[str, Said],
        state: Sent | None = None,
        masked: Masked | None = None,
    ) -> Exchange:
        nodes = [node for node, shop in self._nodes.items() if shop in requests]
        said = {node: requests[self._nodes[node]].model_dump_json() for node in nodes}
        found = self._messenger.exchange(
            *(stage, self._round, nodes, state or {}, {}),
            said=said,
            most_chars=most_chars(len(self._collector.layout.members)),
            masked=masked,
        )
        whole = self.whole
        whole.declined.update(found.declined)
        whole.answered |= found.answered
        whole.headers |= {
            node: header
            for node, header in found.headers.items()
            if node not in whole.accepted_nodes
        }
        # Of a vector that is in the sum the header names the noise, whatever its shop says later.
        whole.unheard |= {
            header.shop: header.status
            for node, header in found.headers.items()
            if node in whole.accepted_nodes and header.status != "ok"
        }
        whole.unheard |= found.unheard
        whole.bytes_down += found.bytes_down
        whole.bytes_up += found.bytes_up
        return found

    def _rubbish(self, shop: str, error: SecureSumError) -> None:
        logger.warning("reply=rubbish shop=%s reason=%s", shop[:12], error)
        self.whole.declined["rubbish"] += 1
        self.whole.unheard[shop] = "rubbish"


def mean_update(plan: TrainingPlan, server_round: int, summed: Summed) -> Arrays:
    """Return the mean over contributors of the delta that a round's sum of gradients stands for."""
    step = plan.clipping_norm(server_round) / plan.noise_steps
    rate = plan.learning_rate / plan.batch_normalizer / summed.exchange.accepted
    return {name: -rate * step * total for name, total in summed.arrays.items()}


def counts(plan: TrainingPlan, summed: Summed) -> np.ndarray:
    """Return (n,) float64: the sum of the shops' popularity counts."""
    total: np.ndarray = summed.arrays[POPULARITY] / plan.noise_steps
    return total


def shops_of(nodes: Sequence[int], shop: Callable[[int], str | None]) -> dict[int, str]:
    """Return node -> shop of the nodes that take part."""
    return {node: name for node in nodes if (name := shop(node)) is not None}
