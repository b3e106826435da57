"""A shop's own product numbers brought to the catalogue's, before anything else reads them.

A mapping is all there is: a product that it does not name stays outside the catalogue, even where
its number happens to look like one of the catalogue's. Several products of the shop may be one
of the catalogue's (pack sizes, colours): their records are then of one product. One product of
the shop is never several of the catalogue's.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq

from client.mapping_settings import OWN, THEIRS, CatalogueMapping
from common.catalogue.content_columns import ITEM_ID, RETIRED
from common.config import nearest
from common.errors import ArtifactError, ConfigError, DataError
from common.features import PRODUCTS, retired_words
from common.schema import Tables
from common.tables.checks import Checker
from common.tables.columns import as_text, to_arrow
from common.tables.folders import read_small

#: Before the number of a product that is not mapped, where it would look like the catalogue's.
OUTSIDE = "own:"
SHOWN = 5
_SEPARATORS = re.compile(r"[\s\-\u00a0]+")
_GTIN_DIGITS = 14


@dataclass(frozen=True)
class ItemMapping:
    """Which product of the catalogue each of a shop's own is.

    Attributes
    ----------
    label
        What messages call it.
    own, theirs
        (m,) the shop's ids, each once, and the catalogue's, which the catalogue holds.
    catalogue_ids
        All ids of the catalogue.
    without
        The shop's ids that have no code, or no id of the catalogue's, in the mapping.
    unknown
        Those whose code or id the catalogue does not hold.
    ambiguous
        Those whose code several products of the catalogue have.
    """

    label: str
    own: np.ndarray
    theirs: np.ndarray
    catalogue_ids: np.ndarray
    without: np.ndarray
    unknown: np.ndarray
    ambiguous: np.ndarray

    def target(self, item_ids: np.ndarray) -> np.ndarray:
        """Return (k,) the catalogue's ids of the shop's; None for one that is not mapped."""
        places = pd.Index(self.own).get_indexer(pd.Index(item_ids))
        targets: np.ndarray = np.array([*self.theirs, None], dtype=object)[places]
        return targets

    def own_of(self, catalogue_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the shop's ids of each of some products of the catalogue."""
        found: dict[str, list[str]] = {name: [] for name in catalogue_ids}
        for place in np.flatnonzero(pd.Index(self.theirs).isin(list(found))):
            found[str(self.theirs[place])].append(str(self.own[place]))
        return [tuple(found[name]) for name in catalogue_ids]

    def names(self, item_ids: np.ndarray) -> np.ndarray:
        """Return (k,) ids that mean the same to the catalogue; others stay outside it."""
        targets = self.target(item_ids)
        # As objects: an array of text has room in each place for the longest, and one record with
        # an id without end would take all memory.
        alike = pd.Index(self.catalogue_ids).get_indexer(pd.Index(item_ids)) >= 0
        own = [f"{OUTSIDE}{i}" if a else i for i, a in zip(item_ids, alike, strict=True)]
        names: np.ndarray = np.where(pd.isna(targets), np.array(own, dtype=object), targets)
        return names

    def apply(self, tables: Tables) -> Tables:
        """Return the shop's tables with the catalogue's product numbers."""
        items = tables.interactions["item_id"].cat
        codes, names = pd.factorize(self.names(items.categories.to_numpy(dtype=object)))
        mapped = codes[items.codes.to_numpy()].astype(np.int32)
        column = pd.Categorical.from_codes(mapped, pd.Index(names, dtype=str))
        stock = tables.stock
        if stock is not None:
            theirs = self.names(stock["item_id"].to_numpy(dtype=object))
            stock = stock.assign(item_id=theirs).drop_duplicates(ignore_index=True)
        return Tables(
            tables.interactions.assign(item_id=column),
            pd.DataFrame({"item_id": column.categories}),
            tables.customers,
            stock,
            tables.set_aside,
        )


def read_mapping(
    mapping: CatalogueMapping, catalogue: Path, own_products: Callable[[str], pd.DataFrame]
) -> ItemMapping:
    """Read a shop's mapping onto the catalogue in a folder.

    Parameters
    ----------
    own_products
        Returns ``item_id`` and the named column of the shop's own products, as text.

    Raises
    ------
    ConfigError
        If the catalogue has no such column, or the mapping no such file.
    DataError
        If the table is not readable, or maps a product to several of the catalogue's.
    """
    if mapping.table is not None:
        ids = _catalogue_column(catalogue, ITEM_ID)
        pairs = _table(mapping)
        label, codes = mapping.table.name, pd.Series(ids.index, index=ids.index)
    else:
        ids = _catalogue_column(catalogue, mapping.theirs)
        # One column where item_id itself is the code.
        pairs = own_products(mapping.by).iloc[:, [0, -1]].set_axis([OWN, THEIRS], axis=1)
        label, codes = f"products by {mapping.by}", pd.Series(ids.index, ids.map(code_of))
        pairs[THEIRS] = pairs[THEIRS].map(code_of)
    return _joined(label, pairs, codes, ids.index.to_numpy(dtype=object))


def code_of(text: object) -> str:
    """Return a product code without what notations differ in; "" where there is none.

    White space and hyphens go. Digits up to 14 are filled up to 14 with zeros from the left, as
    GS1 has it: a GTIN-8, UPC (GTIN-12), EAN (GTIN-13) and GTIN-14 of one item are then the same.
    Nothing but zeros is no code.
    """
    if text is None or text != text:  # NaN is not itself.
        return ""
    code = _SEPARATORS.sub("", str(text))
    if code.isascii() and code.isdigit():
        bare = code.lstrip("0")
        return bare.zfill(_GTIN_DIGITS) if bare else ""
    return code


def _joined(label: str, pairs: pd.DataFrame, codes: pd.Series, ids: np.ndarray) -> ItemMapping:
    """Join the shop's ids with the catalogue's by code.

    Parameters
    ----------
    pairs
        The shop's id and its code, a row each.
    codes
        The catalogue's ids by code.
    """
    pairs = pairs.reset_index(drop=True)
    empty = np.flatnonzero(pairs[OWN].isna())
    if len(empty):
        rows = ", ".join(str(row + 1) for row in empty[:SHOWN])
        raise DataError(f"{label}: column {OWN!r} is empty in row {rows}. What to do: fill it in")
    codes = codes[codes.index != ""]
    twice = codes.index[codes.index.duplicated(keep=False)].unique()
    single = codes[~codes.index.isin(twice)]
    said = pairs[THEIRS].fillna("") != ""
    target = pairs[THEIRS].map(single)
    _refuse_several(label, pairs, target)
    known = target.notna()
    best = pairs[known].assign(target=target[known]).drop_duplicates(OWN)
    own = pairs[OWN]

    def others(rows: pd.Series) -> np.ndarray:
        found: np.ndarray = np.setdiff1d(own[rows].astype(str).unique(), best[OWN].astype(str))
        return found

    clash = pairs[THEIRS].isin(twice)
    return ItemMapping(
        label,
        best[OWN].to_numpy(dtype=object),
        best["target"].to_numpy(dtype=object),
        ids,
        others(~said),
        others(said & ~known & ~clash),
        others(clash),
    )


def _refuse_several(label: str, pairs: pd.DataFrame, target: pd.Series) -> None:
    """Refuse one product of the shop that would be several of the catalogue's."""
    frame = pd.DataFrame({"own": pairs[OWN], "target": target}).dropna()
    counts = frame.groupby("own", sort=False)["target"].nunique()
    several = frame[frame["own"].isin(counts.index[counts > 1])]
    if several.empty:
        return
    shown = ", ".join(
        f"row {row + 1}: {own!r} is {theirs!r}"
        for row, own, theirs in several.head(SHOWN).itertuples()
    )
    more = len(several) - SHOWN
    raise DataError(
        f"{label}: {int((counts > 1).sum())} of the shop's products would be several of the "
        f"catalogue's: {shown}{f' and {more} more' if more > 0 else ''}. What to do: keep one row "
        "for each of the shop's products"
    )


def _table(mapping: CatalogueMapping) -> pd.DataFrame:
    """Return the mapping's file as two columns of text."""
    path = mapping.table
    assert path is not None
    if not path.is_file():
        raise ConfigError(f"there is no mapping {path}: correct catalogue_mapping.table")
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path} is neither .csv nor .parquet: save the mapping as one of them")
    frame = read_small(path, as_text=True)
    names = [mapping.columns.get(name, name) for name in (OWN, THEIRS)]
    Checker(path.name).require(map(str, frame.columns), names)
    return _texts(frame, names, path.name).set_axis([OWN, THEIRS], axis=1)


def texts_of(frame: pd.DataFrame, column: str, table: str) -> pd.DataFrame:
    """Return ``item_id`` and one more column of a products table as text."""
    Checker(table).require(map(str, frame.columns), [OWN, column])
    return _texts(frame, list(dict.fromkeys([OWN, column])), table)


def _texts(frame: pd.DataFrame, names: list[str], table: str) -> pd.DataFrame:
    columns = [as_text(to_arrow(frame[name]), name, table).to_pandas() for name in names]
    texts: pd.DataFrame = pd.concat([column.astype(object) for column in columns], axis=1)
    return texts


def _catalogue_column(folder: Path, name: str) -> pd.Series:
    """Return a column of the catalogue by item id; a code of products in use wins over retired.

    The caller reads the whole catalogue, and checks it, elsewhere.
    """
    path = folder / PRODUCTS
    try:
        known = [str(column) for column in pq.read_schema(path).names]
        if name not in known:
            usable = [column for column in known if column != RETIRED]
            raise ConfigError(
                f"the catalogue has no column {name!r} to map products by: {nearest(name, usable)}"
            )
        wanted = [column for column in (ITEM_ID, RETIRED) if column in known]
        frame = pq.read_table(path, columns=list(dict.fromkeys([*wanted, name]))).to_pandas()
    except (OSError, arrow.ArrowInvalid) as error:
        raise ArtifactError(f"{folder} holds no readable catalogue: {error}") from error
    values = as_text(to_arrow(frame[name]), name, "the catalogue").to_pandas().astype(object)
    column = pd.Series(values.to_numpy(dtype=object), index=frame[ITEM_ID].astype(str))
    if RETIRED in frame:
        retired = retired_words(frame[RETIRED])
        codes = column.map(code_of).to_numpy(dtype=object)
        column[retired & np.isin(codes, codes[~retired])] = None
    return column
