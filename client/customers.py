"""One customer, or a guest, as the shop's data know them at this moment."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from client.home import HeldTables
from client.mapping import ItemMapping
from client.periods import histories, stocked
from client.settings import ShopSettings
from client.source import encode_source, open_source, shop_mapping
from common.errors import InputError
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
    guest
        (1, n) what a guest is interested in.
    outside
        How many of their products the catalogue does not hold.
    stock
        (n,) bool of what the shop may list; None: everything.
    mapping
        What the shop's own product numbers are in the catalogue; None: the same.
    """

    known: bool
    events: ShopEvents | None
    guest: sparse.csr_matrix
    outside: int
    stock: np.ndarray | None
    mapping: ItemMapping | None
    notes: tuple[str, ...]

    def history(self, half_life_days: float) -> sparse.csr_matrix:
        """Return the (1, n) float32 weights of what they did, as old as it is now."""
        if self.events is None or not len(self.events):
            return self.guest
        now = int(time.time())
        return histories(self.events, self.guest.shape[1], half_life_days, now)


def read_customer(
    settings: ShopSettings, catalogue: Catalogue, user_id: str, items: Sequence[str] = ()
) -> Customer:
    """Read one customer's records; with an empty ``user_id`` a guest with these ``items``.

    Raises
    ------
    InputError
        If the catalogue holds none of a guest's products, or the data can't be read.
    """
    nothing = sparse.csr_matrix((1, catalogue.size), dtype=np.float32)
    # Rows that break the contract are left out: an answer is better than none.
    tables = open_source(settings, "set-aside", user_id=user_id).tables()
    stock = stocked(catalogue, tables.stock_of(settings.merchant_id))
    mapping = shop_mapping(settings)
    if not user_id:
        return _guest(catalogue, items, stock, mapping)
    frame = tables.interactions
    own = (frame["user_id"] == user_id) & (frame["merchant_id"] == settings.merchant_id)
    frame = frame[own.to_numpy()]
    held = replace(tables, interactions=frame)
    events = encode_source(HeldTables(held), settings, catalogue)
    products = np.asarray(frame["item_id"].unique(), dtype=object)
    outside = int((catalogue.rows(products) < 0).sum())
    notes = []
    if frame.empty:
        notes.append(f"the shop has no records of a customer {user_id!r}: this is what sells")
    elif not len(events):
        notes.append(
            "none of the customer's records is of a product in the catalogue with a weight: this "
            "is what sells"
        )
    if tables.set_aside:
        notes.append(f"{sum(tables.set_aside.values())} bad rows were left out")
    return Customer(bool(len(frame)), events, nothing, outside, stock, mapping, tuple(notes))


def _guest(
    catalogue: Catalogue,
    items: Sequence[str],
    stock: np.ndarray | None,
    mapping: ItemMapping | None,
) -> Customer:
    named = np.asarray(items, dtype=object)
    rows = catalogue.rows(named if mapping is None else mapping.names(named))
    missing = [item for item, row in zip(items, rows, strict=True) if row < 0]
    if len(missing) == len(items):
        example = catalogue.item_ids[0] if mapping is None else next(iter(mapping.own), "none")
        raise InputError(
            f"the catalogue holds none of the products {', '.join(map(repr, missing[:5]))}: give "
            f"the shop's numbers, such as {example}"
        )
    inside = np.unique(rows[rows >= 0])
    entries = (np.ones(len(inside), np.float32), (np.zeros(len(inside), np.int64), inside))
    history = sparse.csr_matrix(entries, shape=(1, catalogue.size))
    notes = [f"the catalogue does not hold {', '.join(map(repr, missing[:5]))}"] if missing else []
    return Customer(False, None, history, len(missing), stock, mapping, tuple(notes))
