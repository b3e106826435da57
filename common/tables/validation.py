"""From anything that claims to be the contract's tables to validated tables."""

from collections import Counter
from collections.abc import Collection

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow

from common.errors import DataError
from common.schema import Tables
from common.tables import checks
from common.tables.checks import MERCHANT, Checker, like_merchant
from common.tables.columns import as_text, to_arrow
from common.tables.contract import REQUIRED, BadRows
from common.tables.interactions import InteractionsBuilder

BLOCK_ROWS = 262_144


def validate_tables(
    interactions: pd.DataFrame,
    products: pd.DataFrame,
    customers: pd.DataFrame | None = None,
    stock: pd.DataFrame | None = None,
    *,
    now: int,
    bad_rows: BadRows = "refuse",
) -> Tables:
    """Return validated tables of four frames.

    Parameters
    ----------
    interactions, products, customers, stock
        The contract's tables; ids of any type, times as ISO 8601 or epoch seconds.
    now
        Epoch seconds; a later timestamp is bad.
    bad_rows
        ``"refuse"`` raises at the first bad rows, ``"set-aside"`` leaves them out and counts them.

    Raises
    ------
    DataError
        If a table breaks the contract.
    """
    set_aside: Counter[str] = Counter()
    goods = check_products(products, Checker("products", bad_rows, set_aside))
    builder = InteractionsBuilder(
        Checker("interactions", bad_rows, set_aside), goods["item_id"], interactions.columns, now
    )
    frame = interactions[builder.columns]
    for start in range(0, len(frame), BLOCK_ROWS):
        part = frame.iloc[start : start + BLOCK_ROWS]
        builder.add(arrow.table({name: to_arrow(part[name]) for name in builder.columns}))
    return Tables(
        interactions=builder.finish(),
        products=goods,
        customers=None
        if customers is None
        else check_customers(customers, Checker("customers", bad_rows, set_aside)),
        stock=None
        if stock is None
        else check_stock(stock, goods["item_id"], Checker("stock", bad_rows, set_aside)),
        set_aside=dict(set_aside),
    )


def check_products(frame: pd.DataFrame, checker: Checker) -> pd.DataFrame:
    """Return the products table with string ids, each of them once."""
    frame = raw = _with_ids(frame, ("item_id",), checker)
    if frame.empty:
        raise DataError(f"{checker.table}: no products: give one row for each")
    duplicate = frame["item_id"].duplicated() & frame["item_id"].notna()
    faults = [("item_id", checks.DUPLICATE, duplicate.to_numpy(dtype=bool))]
    columns = {"item_id": checks.filled()}
    if "price" in frame:
        price, wrong = checks.numbers("price", frame["price"])
        frame, faults = frame.assign(price=price), faults + wrong
        columns["price"] = checks.number(checks.NEGATIVE_PRICE)
    return _kept(frame, columns, checker, faults, raw)


def check_customers(frame: pd.DataFrame, checker: Checker) -> pd.DataFrame:
    """Return the customers table; a customer is (merchant_id, user_id) or, without, user_id."""
    if MERCHANT not in frame and (near := like_merchant(frame.columns)):
        # Only misspelt, the column must not make other merchants' customers everyone's.
        raise DataError(
            f"{checker.table}: column {MERCHANT!r} is missing: did you mean {near!r}? Rename it; "
            "or, if it does not say whose customer a row is, give it a name that is less like that"
        )
    keys = [MERCHANT, "user_id"] if MERCHANT in frame else ["user_id"]
    frame = _with_ids(frame, keys, checker)
    duplicate = (frame.duplicated(keys) & frame[keys].notna().all(axis=1)).to_numpy(dtype=bool)
    faults = [("user_id", checks.DUPLICATE, duplicate)]
    return _kept(frame, {key: checks.filled() for key in keys}, checker, faults)


def check_stock(frame: pd.DataFrame, item_ids: pd.Series | None, checker: Checker) -> pd.DataFrame:
    """Return the stock table; a pair that is there twice is no harm.

    It may name only ``item_ids``; None allows any.
    """
    frame = _with_ids(frame, REQUIRED["stock"], checker)
    item = checks.filled()
    if item_ids is not None:
        known = pd.Index(item_ids)
        item = checks.filled(pa.Check(lambda s: s.isin(known), error=checks.UNKNOWN_ITEM))
    frame = _kept(frame, {"merchant_id": checks.filled(), "item_id": item}, checker, [])
    return frame.drop_duplicates(ignore_index=True)


def _with_ids(frame: pd.DataFrame, ids: Collection[str], checker: Checker) -> pd.DataFrame:
    """Return the frame with its id columns as strings and rows counted from 0."""
    checker.require(map(str, frame.columns), list(ids))
    frame = frame.reset_index(drop=True)
    return frame.assign(
        **{name: as_text(to_arrow(frame[name]), name, checker.table).to_pandas() for name in ids}
    )


def _kept(
    frame: pd.DataFrame,
    columns: dict[str, pa.Column],
    checker: Checker,
    faults: list[tuple[str, str, np.ndarray]],
    raw: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the good rows of a table that fits into memory."""
    shown = frame if raw is None else raw
    good = checker.good(
        frame,
        pa.DataFrameSchema(columns),
        raw=lambda name, rows: shown[name].iloc[rows].tolist(),
        faults=faults,
    )
    kept = frame[good].reset_index(drop=True)
    return kept.astype({name: str for name in columns if name != "price"})
