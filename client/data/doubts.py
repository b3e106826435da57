"""What breaks no rule in a shop's tables and is hardly meant: for its engineer, at home."""

import unicodedata
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc

from client.data.assortment import home_names
from client.data.coverage import catalogue_rows
from client.data.mapping import ItemMapping
from common.features import Catalogue
from common.schema import Tables
from common.tables.checks import MERCHANT

SHOWN = 3


def doubt_of_ids(user_ids: np.ndarray) -> str:
    """Return which of (U,) distinct ids of customers may be one person's; nothing where none are.

    What one customer adds is bounded for each id: who has two is two customers.
    """
    if not len(user_ids):
        return ""
    text = arrow.array(user_ids, arrow.string())
    if not pc.all(pc.string_is_ascii(text)).as_py():
        text = pc.utf8_normalize(text, "NFKC")
    bare = pc.utf8_ltrim(pc.utf8_trim_whitespace(pc.utf8_lower(text)), "0")
    keys = pd.Series(bare.dictionary_encode().indices.to_numpy())
    alike = keys.duplicated(keep=False).to_numpy()
    if not alike.any():
        return ""
    same = np.sort(user_ids[(keys == keys[np.argmax(alike)]).to_numpy()])[:SHOWN]
    # Where it is in how a letter is coded, they would look the same.
    looks = {unicodedata.normalize("NFC", name) for name in same}
    shown = " and ".join(map(repr if len(looks) == len(same) else ascii, same))
    return (
        f"{np.count_nonzero(alike):,} customers have ids that are another's but for capitals, "
        f"blanks around, leading zeros or how a letter is coded, such as {shown}: who has two ids "
        "is two customers, with twice the ε. What to do: give each customer one id, letter by "
        "letter, unless these are different people"
    )


def doubt_of_people(tables: Tables, merchant_id: str, user_ids: np.ndarray) -> str:
    """Return that a shop's customers table is of others than (U,) those with records, if it is."""
    people = tables.customers
    if people is None or not len(user_ids):
        return ""
    if MERCHANT in people:
        people = people[(people[MERCHANT] == merchant_id).to_numpy(dtype=bool)]
    known = people["user_id"].to_numpy(dtype=object)
    if not len(known) or pd.Index(known).isin(user_ids).any():
        return ""
    return (
        "the customers table knows nobody who has records, so what it says teaches nothing: its "
        f"user_id has {_some(known)}, that of the records {_some(np.sort(user_ids))}. What to do: "
        "write ids alike in both"
    )


def doubt_of_stock(
    stock: np.ndarray | None,
    catalogue: Catalogue,
    mapping: ItemMapping | None,
    described: np.ndarray | None,
) -> str:
    """Return that a shop stocks nothing that it knows, if its own stock table says so.

    Parameters
    ----------
    stock
        (S,) the shop's numbers of what it stocks; None: it says nothing.
    described
        See :func:`client.data.coverage.coverage`.
    """
    if stock is None or (catalogue_rows(stock, catalogue, mapping) >= 0).any():
        return ""
    if described is not None and pd.Index(home_names(stock, mapping)).isin(described).any():
        return ""
    return (
        "the shop's own stock table names no product of the catalogue, so nothing would be "
        f"recommended here: it has {_some(stock)}. What to do: write item_id as in interactions"
    )


def _some(names: Iterable[str]) -> str:
    return ", ".join(repr(str(name)) for name in list(names)[:SHOWN])
