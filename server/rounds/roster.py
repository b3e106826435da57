"""Which node speaks for which shop, in one run.

A shop is known by its public key (:func:`common.protocol.shop_key`), a node by the number that
Flower gave it. The number may change when a shop's process starts anew; the shop stays one shop,
and is asked and counted once. Where nodes have names, as enrolled shops do, a node speaks for the
shop of its own name only.
"""

import time
from collections.abc import Iterable, Mapping

from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.protocol import shop_key

_FIRST_POLL, _LAST_POLL = 0.02, 1.0


class Roster:
    """The shops that take part, and the nodes that were asked whether theirs does."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._enrolled: dict[int, str] = {}
        self._asked: set[int] = set()
        self._silent: set[int] = set()
        self._shops: dict[int, str] = {}

    def look(self) -> set[int]:
        """Return the nodes that are connected now; forget what was known of any other.

        A node that comes back is asked again: what kept its shop out may have been put right.
        """
        nodes = {info.node_id: info.name for info in self._grid.get_nodes()}
        self._enrolled = {node: shop_key(name) for node, name in nodes.items() if name}
        self._shops = {node: shop for node, shop in self._shops.items() if node in nodes}
        self._asked &= set(nodes)
        self._silent &= set(nodes)
        return set(nodes)

    def wait_for(self, needed: int, seconds: float) -> int:
        """Return how many nodes are connected, once they are enough or the time is up."""
        deadline = time.monotonic() + seconds
        poll = _FIRST_POLL
        while (connected := len(list(self._grid.get_node_ids()))) < needed:
            if time.monotonic() >= deadline:
                break
            time.sleep(poll)
            poll = min(poll * 1.2, _LAST_POLL)
        return connected

    @property
    def everyone(self) -> list[int]:
        """Nodes of the shops that take part, in the order of the shops' keys."""
        return sorted(self._shops, key=lambda node: self._shops[node])

    def newcomers(self, connected: Iterable[int]) -> list[int]:
        """Return the connected nodes that did not say yet whether their shop takes part."""
        return sorted(set(connected) - self._asked)

    def answered(self, nodes: Iterable[int]) -> None:
        """Note that these nodes said whether their shop takes part: they are not asked again."""
        self._asked |= set(nodes)

    def silent(self, nodes: Iterable[int]) -> None:
        """Note that these nodes were asked and did not say: after the second time that is that.

        Each time the others wait for as long as an exchange may last, and they would in every
        round.
        """
        again = self._silent & set(nodes)
        self._asked |= again
        self._silent |= set(nodes)

    def join(self, shops: Mapping[int, str]) -> None:
        """Let shops take part.

        A shop that takes part already stays with its node, and the second node is asked again
        later; but a node that is enrolled under the shop's own name takes its place, as when a
        shop's process was started anew and the old one is not given up yet.
        """
        for node, shop in sorted(shops.items()):
            held = next((n for n, s in self._shops.items() if s == shop and n != node), None)
            if held is not None:
                if self._enrolled.get(node) != shop:
                    self._asked.discard(node)
                    continue
                del self._shops[held]
            self._shops[node] = shop

    def drop(self, node: int) -> None:
        """Let a node's shop take part no longer."""
        self._shops.pop(node, None)

    def shop(self, node: int) -> str | None:
        """Return the shop that takes part through a node, if one does."""
        return self._shops.get(node)

    def enrolled(self, node: int) -> str | None:
        """Return the shop under whose name a node is enrolled, if it has one."""
        return self._enrolled.get(node)

    def check(self, node: int, shop: str) -> None:
        """Refuse a reply in another shop's name.

        Raises
        ------
        ProtocolError
            If the node is enrolled under another name, or took part as another shop before.
        """
        if shop != self._enrolled.get(node, shop):
            raise ProtocolError(
                f"node {node} is enrolled as shop {self._enrolled[node][:12]}... and answers as "
                f"{shop[:12]}...: its merchant_id differs from the name it was enrolled under"
            )
        if shop != self._shops.get(node, shop):
            raise ProtocolError("a node answers for another shop than before")
