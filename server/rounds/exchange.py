"""What came back from one exchange with the shops."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from common.protocol import NO_FINGERPRINT, Noise, ReplyHeader
from server.aggregation import Contribution


@dataclass
class Exchange:
    """Replies, checked and counted.

    Attributes
    ----------
    asked
        Number of nodes that were sent a message.
    declined
        Code -> number of replies that were none of use.
    answered
        Nodes whose reply was well-formed, whatever it said.
    headers
        Node -> header of every well-formed reply of the node's own shop.
    accepted_nodes
        Node -> shop of the good ones.
    unheard
        Enrolled shop -> code, where its node sent nothing well-formed.
    said
        Shop -> what it says in a stage of a secure sum.
    variances
        How many times the plan's noise variance is in a product's row of the sum, on average;
        None: as the plan says of so many shops.
    bytes_down, bytes_up
        Of the arrays in all messages, and in all good replies.
    """

    asked: int = 0
    contributions: list[Contribution] = field(default_factory=list)
    declined: Counter[str] = field(default_factory=Counter)
    answered: set[int] = field(default_factory=set)
    headers: dict[int, ReplyHeader] = field(default_factory=dict)
    accepted_nodes: dict[int, str] = field(default_factory=dict)
    unheard: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    variances: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0

    @property
    def accepted(self) -> int:
        """Number of good replies."""
        return len(self.contributions)

    @property
    def ledger_heads(self) -> dict[str, str]:
        """Shop -> head of its ledger, as the good replies say."""
        return {shop: self.headers[node].ledger_head for node, shop in self.accepted_nodes.items()}

    @property
    def noise(self) -> Noise:
        """The weakest source of noise among the good replies, as the shops say."""
        return weakest(self.headers[node].noise for node in self.accepted_nodes)

    @property
    def failed(self) -> dict[str, str]:
        """Shop -> code of the shops that answered with anything but an update."""
        headers = self.headers.values()
        said = {h.shop: h.status for h in headers if h.shop != NO_FINGERPRINT and h.status != "ok"}
        return {**self.unheard, **said}

    @property
    def reasons(self) -> str:
        """How often each code was given, in words."""
        counts = sorted(self.declined.items())
        return ", ".join(f"{count} {code}" for code, count in counts) or "none asked"


def weakest(noises: Iterable[str]) -> Noise:
    """Return ``seeded`` if any noise was: who can replay one shop's can take it off."""
    return "seeded" if "seeded" in set(noises) else "system"
