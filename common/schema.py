"""The tables of the contract, and one shop's records on the rows of a catalogue.

:mod:`common.tables.validation` turns anything that claims to be a table into :class:`Tables`;
:func:`encode_shops` turns tables into the integer arrays that models read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse

from common.errors import ConfigError, DataError
from common.tables.columns import value_text
from common.tables.contract import BEHAVIOR_WEIGHTS, fault_of_weights
from common.wording import counted


@dataclass(frozen=True)
class Tables:
    """Validated tables.

    Attributes
    ----------
    interactions
        ``merchant_id``, ``user_id``, ``item_id`` and ``behavior`` as categoricals, ``timestamp``
        as int64 seconds since 1970 UTC; where given ``rating``, ``quantity``, ``price`` as
        float32 and ``session_id`` as an int64 digest (which records share one; not its name).
    products, customers, stock
        Ids as strings, other columns as they came.
    set_aside
        ``"table.column: reason"`` -> rows left out, where that was asked for.
    """

    interactions: pd.DataFrame
    products: pd.DataFrame
    customers: pd.DataFrame | None = None
    stock: pd.DataFrame | None = None
    set_aside: Mapping[str, int] = field(default_factory=dict)

    @property
    def merchant_ids(self) -> list[str]:
        """Every merchant that any table names, sorted: one without interactions is a merchant."""
        merchants = self.interactions["merchant_id"].cat
        present = np.zeros(len(merchants.categories), dtype=bool)
        present[merchants.codes.to_numpy()] = True
        names = set(merchants.categories[present])
        for table in (self.customers, self.stock):
            if table is not None and "merchant_id" in table:
                names.update(table["merchant_id"].unique())
        return sorted(names)

    def stock_of(self, merchant_id: str) -> np.ndarray | None:
        """Return the item ids that a merchant says it stocks; None where it says nothing."""
        if self.stock is None:
            return None
        rows = self.stock["merchant_id"].to_numpy(dtype=object) == merchant_id
        if not rows.any():
            return None
        return np.sort(self.stock["item_id"].to_numpy(dtype=object)[rows])


@dataclass(frozen=True)
class ShopEvents:
    """One shop's records on the catalogue's rows, sorted by (user, timestamp).

    Attributes
    ----------
    user_ids
        (U,) strings, sorted. Every user has records, unless they were cut off in time.
    users, items, timestamps, weights
        (N,) int32 index into ``user_ids``, int32 catalogue row, int64 seconds, float32.
    sessions
        (N,) int32 code of a basket, which belongs to one user; None without ``session_id``.
    attributes
        Customer column -> (U,) strings, "" where unknown.
    """

    merchant_id: str
    user_ids: np.ndarray
    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    weights: np.ndarray
    sessions: np.ndarray | None = None
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(U + 1,) int64: the records of user ``k`` are ``offsets[k]:offsets[k + 1]``."""
        return np.searchsorted(self.users, np.arange(len(self.user_ids) + 1))

    def before(self, time: int) -> "ShopEvents":
        """Return the records before ``time``, of the same users."""
        return self.select(self.timestamps < time)

    def since(self, time: int) -> "ShopEvents":
        """Return the records at ``time`` or later, of the same users."""
        return self.select(self.timestamps >= time)

    def select(self, rows: np.ndarray) -> "ShopEvents":
        """Return the records where ``rows``, (N,) bool, is true, of the same users."""
        return replace(
            self,
            users=self.users[rows],
            items=self.items[rows],
            timestamps=self.timestamps[rows],
            weights=self.weights[rows],
            sessions=None if self.sessions is None else self.sessions[rows],
        )

    def matrix(self, n_items: int) -> sparse.csr_matrix:
        """Return (U, n_items) float32: 1 for each product that a user has a record of."""
        shape = (len(self.user_ids), n_items)
        ones = np.ones(len(self), dtype=np.float32)
        matrix = sparse.csr_matrix((ones, (self.users, self.items)), shape=shape)
        matrix.sum_duplicates()
        matrix.data.fill(1.0)
        return matrix


def encode_shop(
    tables: Tables,
    merchant_id: str,
    item_ids: np.ndarray,
    behavior_weights: Mapping[str, float] = BEHAVIOR_WEIGHTS,
    rating_scale: float = 5.0,
) -> ShopEvents:
    """Return one merchant's records; :func:`encode_shops` explains the arguments."""
    return next(encode_shops(tables, item_ids, behavior_weights, rating_scale, [merchant_id]))


def encode_shops(
    tables: Tables,
    item_ids: np.ndarray,
    behavior_weights: Mapping[str, float] = BEHAVIOR_WEIGHTS,
    rating_scale: float = 5.0,
    merchant_ids: Sequence[str] | None = None,
) -> Iterator[ShopEvents]:
    """Yield the records of each merchant, one at a time.

    Parameters
    ----------
    tables
        Validated tables.
    item_ids
        (n,) the catalogue's ids in its row order. Records of other items are left out.
    behavior_weights
        Behaviour -> weight of a record; records of weight 0 are left out, and so are
        behaviours that the mapping does not name.
    rating_scale
        The best possible rating, a public constant: a rating record weighs
        ``weight * rating / rating_scale``, between 0 and its behaviour's weight.
    merchant_ids
        Which merchants; default: all.
    """
    if fault := fault_of_weights(behavior_weights):
        raise ConfigError(fault)
    frame = tables.interactions
    merchants = frame["merchant_id"].cat
    codes = merchants.codes.to_numpy()
    code_of = {name: code for code, name in enumerate(merchants.categories)}
    rows_of_items = pd.Index(item_ids).get_indexer(frame["item_id"].cat.categories)
    names = _UserNames.of(frame["user_id"].cat.categories)
    known = set(tables.merchant_ids)
    for merchant_id in tables.merchant_ids if merchant_ids is None else merchant_ids:
        if merchant_id not in known and len(frame):
            raise DataError(f"no table names the merchant {merchant_id!r}")
        # A merchant without interactions has no code, and no rows: it is encoded like any other.
        # One scan for each merchant: sorting all records would take more memory than they do.
        rows = frame.iloc[np.flatnonzero(codes == code_of.get(merchant_id, -1))]
        yield _encode(
            rows,
            merchant_id,
            rows_of_items,
            names,
            tables.customers,
            behavior_weights,
            rating_scale,
        )


@dataclass(frozen=True)
class _UserNames:
    """All users' names in order, and each code's place in that order: sorted once, not by shop."""

    sorted: np.ndarray
    rank: np.ndarray

    @classmethod
    def of(cls, categories: pd.Index) -> "_UserNames":
        names = categories.to_numpy(dtype=object)
        order = np.argsort(names, kind="stable")
        rank = np.empty(len(names), dtype=np.int32)
        rank[order] = np.arange(len(names), dtype=np.int32)
        return cls(names[order], rank)


def _encode(
    rows: pd.DataFrame,
    merchant_id: str,
    rows_of_items: np.ndarray,
    names: _UserNames,
    customers: pd.DataFrame | None,
    behavior_weights: Mapping[str, float],
    rating_scale: float,
) -> ShopEvents:
    """Encode the interactions of one merchant."""
    items = rows_of_items[rows["item_id"].cat.codes.to_numpy()]
    weights = record_weights(rows, behavior_weights, rating_scale)
    keep = (items >= 0) & (weights > 0)
    rows, items, weights = rows[keep], items[keep], weights[keep]
    present, users = np.unique(names.rank[rows["user_id"].cat.codes], return_inverse=True)
    user_ids = names.sorted[present]
    timestamps = rows["timestamp"].to_numpy(dtype=np.int64)
    order = np.lexsort((timestamps, users))
    sessions = None
    if "session_id" in rows:
        # Some tills number baskets anew for each customer or day, so a session is a
        # (user, session) pair: one basket never mixes two customers.
        pair = users.astype(np.int64) << 32 | pd.factorize(rows["session_id"])[0]
        sessions = np.unique(pair, return_inverse=True)[1].astype(np.int32)[order]
    return ShopEvents(
        merchant_id=merchant_id,
        user_ids=user_ids,
        users=users[order].astype(np.int32),
        items=items[order].astype(np.int32),
        timestamps=timestamps[order],
        weights=weights[order],
        sessions=sessions,
        attributes=_attributes(customers, merchant_id, user_ids),
    )


def record_weights(
    rows: pd.DataFrame, behavior_weights: Mapping[str, float], rating_scale: float
) -> np.ndarray:
    """Return (N,) float32 weights of validated interactions; see :func:`encode_shops`."""
    behavior = rows["behavior"].cat
    table = np.array([behavior_weights.get(b, 0.0) for b in behavior.categories], dtype=np.float32)
    weights = table[behavior.codes.to_numpy()]
    if "rating" in rows and "rating" in behavior.categories:
        share = (rows["rating"].to_numpy(dtype=np.float32) / np.float32(rating_scale)).clip(0, 1)
        rated = behavior.codes.to_numpy() == behavior.categories.get_loc("rating")
        weights[rated] *= np.nan_to_num(share[rated], nan=1.0)
    return weights


def doubt_of_ratings(
    interactions: pd.DataFrame, behavior_weights: Mapping[str, float], rating_scale: float
) -> str:
    """Return what is odd of validated interactions' ratings beside a scale; "" for nothing."""
    if "rating" not in interactions or not behavior_weights.get("rating"):
        return ""
    rated = interactions.loc[interactions["behavior"] == "rating", "rating"]
    over = int((rated > rating_scale).sum())
    return (
        f"{over:,} of {counted(len(rated), 'rating')} are above the best one, rating_scale = "
        f"{rating_scale:g}, and count as that: set rating_scale to the best that there can be"
        if over
        else ""
    )


def _attributes(
    customers: pd.DataFrame | None, merchant_id: str, user_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Return customer column -> (U,) strings, "" where the table knows nothing."""
    if customers is None:
        return {}
    own = customers
    if "merchant_id" in customers:
        own = customers[customers["merchant_id"].to_numpy(dtype=object) == merchant_id]
    index = pd.Index(own["user_id"].to_numpy(dtype=object)).get_indexer(user_ids)
    attributes = {}
    for column in own.columns.difference(["user_id", "merchant_id"], sort=False):
        text = [value_text(value) or "" for value in own[column].astype(object)]
        # Index -1, an unknown customer, reads the last.
        padded = np.array([*text, ""], dtype=object)
        attributes[str(column)] = padded[index]
    return attributes
