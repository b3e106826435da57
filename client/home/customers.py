"""One customer, or a guest, as the shop's data know them at this moment."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from client.data.mapping import ItemMapping
from client.data.periods import histories, stocked
from client.data.source import encode_source, open_own_source, open_source, shop_mapping
from client.home.shop import HeldTables
from client.settings import ShopSettings
from common.features import Catalogue
from common.schema import ShopEvents


@dataclass(frozen=True)
class Customer:
    """One customer.

    Attributes
    ----------
    known
        Whether the shop has records of them.
    events
        Their records on the catalogue's rows; a guest has none.
    named
        (1, n) what was named: a guest's interests, or a basket that is not paid for yet.
    outside
        How many of their products the catalogue does not hold.
    unknown
        What was named and the catalogue does not hold.
    stock
        (n,) bool of what the shop may list; None: everything.
    mapping
        What the shop's own product numbers are in the catalogue; None: the same.
    attributes
        What the shop's customers table says of one without records that count.
    """

    known: bool
    events: ShopEvents | None
    named: sparse.csr_matrix
    outside: int
    unknown: tuple[str, ...]
    stock: np.ndarray | None
    mapping: ItemMapping | None
    notes: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)

    def history(self, half_life_days: float) -> sparse.csr_matrix:
        """Return the (1, n) float32 weights of what they did, as old as it is now.

        A product that is also named counts with the larger weight.
        """
        if self.events is None or not len(self.events):
            return self.named
        now = int(time.time())
        known = histories(self.events, self.named.shape[1], half_life_days, now)
        if not self.named.nnz:
            return known
        return sparse.csr_matrix(known.maximum(self.named))


def read_customer(
    settings: ShopSettings,
    catalogue: Catalogue,
    user_id: str = "",
    items: Mapping[str, float] | None = None,
) -> Customer:
    """Read one customer's records; with an empty ``user_id`` a guest's, who has none.

    Parameters
    ----------
    items
        What was named beside: the shop's own number -> weight.

    Raises
    ------
    InputError
        If the data can't be read.
    """
    # Rows that break the contract are left out: an answer is better than none.
    tables = open_source(settings, "set-aside", user_id=user_id).tables()
    stock = stocked(catalogue, tables.stock_of(settings.merchant_id))
    mapping = shop_mapping(settings)
    named, unknown = _named(catalogue, items or {}, mapping)
    if not user_id:
        return Customer(False, None, named, len(unknown), unknown, stock, mapping, ())
    frame = tables.interactions
    own = (frame["user_id"] == user_id) & (frame["merchant_id"] == settings.merchant_id)
    frame = frame[own.to_numpy()]
    held = replace(tables, interactions=frame)
    events = encode_source(HeldTables(held), settings, catalogue)
    products = np.asarray(frame["item_id"].unique(), dtype=object)
    outside = int((catalogue.rows(products) < 0).sum())
    notes = []
    instead = "this is from what was named" if named.nnz else "this is what sells"
    if frame.empty:
        notes.append(f"the shop has no records of a customer {user_id!r}: {instead}")
    elif not len(events):
        notes.append(
            "none of the customer's records is of a product in the catalogue with a weight: "
            f"{instead}"
        )
    if tables.set_aside:
        notes.append(f"{sum(tables.set_aside.values())} bad rows were left out")
    known = bool(len(frame))
    person = {}
    if not len(events):
        person = open_own_source(settings, "set-aside").person(user_id)
    return Customer(known, events, named, outside, unknown, stock, mapping, tuple(notes), person)


def rows_of(catalogue: Catalogue, items: Sequence[str], mapping: ItemMapping | None) -> np.ndarray:
    """Return catalogue rows of the shop's own numbers; -1 where there is no such product."""
    named = np.asarray(items, dtype=object)
    return catalogue.rows(named if mapping is None else mapping.names(named))


def _named(
    catalogue: Catalogue, items: Mapping[str, float], mapping: ItemMapping | None
) -> tuple[sparse.csr_matrix, tuple[str, ...]]:
    """Return (1, n) float32 weights, and which products the catalogue does not hold."""
    weights = np.zeros(catalogue.size, np.float32)
    if not items:
        return sparse.csr_matrix((1, catalogue.size), dtype=np.float32), ()
    rows = rows_of(catalogue, list(items), mapping)
    given = np.array(list(items.values()), dtype=np.float32)
    inside = rows >= 0
    np.maximum.at(weights, rows[inside], given[inside])
    unknown = tuple(item for item, row in zip(items, rows, strict=True) if row < 0)
    return sparse.csr_matrix(weights[None, :]), unknown
