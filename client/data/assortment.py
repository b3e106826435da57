"""What a shop knows at home: the federation's catalogue, and its own products behind it.

The catalogue's rows come first and stay what they are. Behind them stand the products that the
shop's own products table describes and the catalogue does not hold. They live at home: whatever
leaves a shop is made of the catalogue alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse

from client.data.mapping import OUTSIDE, ItemMapping
from client.data.source import open_own_source, shop_mapping
from client.settings import ShopSettings
from common.catalogue.content_columns import ITEM_ID, RETIRED, is_number
from common.features import Catalogue, Feature, content_columns, read_catalogue


@dataclass(frozen=True)
class Assortment(Catalogue):
    """The catalogue, and a shop's own products behind it.

    A value that the catalogue does not know, such as a house brand, is part of a product's content,
    which is hashed and says what products have in common. Nothing was learned of it, so it is no
    feature here, and has no row in a learned table.

    Attributes
    ----------
    base
        The catalogue: the first rows.
    """

    base: Catalogue = field(kw_only=True)

    @classmethod
    def beside(cls, base: Catalogue, own: pd.DataFrame) -> "Assortment":
        """Return the catalogue with the products of ``own`` behind it, by their names' order.

        Parameters
        ----------
        own
            ``item_id``, each once and none of the catalogue's, and columns of the catalogue.
        """
        own = own.sort_values(ITEM_ID, kind="stable").reset_index(drop=True)
        wanted = [*base.products.columns, *([] if RETIRED in base.products else [RETIRED])]
        columns = {}
        for name in map(str, wanted):
            if name in own or name in base.products:
                columns[name] = _stacked(base.products.get(name), own.get(name), base.size, own)
        names = np.asarray(own[ITEM_ID], dtype=object).astype(str)
        return cls(
            np.concatenate([base.item_ids, names]), pd.DataFrame(columns), base.spec, base=base
        )

    @cached_property
    def own(self) -> Catalogue:
        """The shop's own products alone, read as the catalogue's are."""
        rows = slice(self.base.size, None)
        products = self.products.iloc[rows].reset_index(drop=True)
        return Catalogue(self.item_ids[rows], products, self.base.settled().spec)

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """Those of the catalogue, with their values' codes; own products have what it knows."""
        own = {feature.name: feature for feature in self.own.features}
        return tuple(
            _joined(known, own[known.name], self.base.size) for known in self.base.features
        )

    def feature(self, name: str) -> Feature:
        """Return one of them; raises as :meth:`Catalogue.feature`."""
        return _joined(self.base.feature(name), self.own.feature(name), self.base.size)

    @cached_property
    def content(self) -> sparse.csr_matrix:
        """(n, content_width) float32 rows of norm 1, or 0, of all that a product says of itself."""
        return sparse.csr_matrix(sparse.vstack([self.base.content, self.own.content]))


def shared_size(catalogue: Catalogue) -> int:
    """Return how many rows, the first ones, are the federation's catalogue's."""
    return catalogue.base.size if isinstance(catalogue, Assortment) else catalogue.size


def home_catalogue(settings: ShopSettings) -> Catalogue:
    """Return the catalogue, and behind it what the shop sells besides; see :class:`Assortment`.

    Raises
    ------
    InputError
        If the catalogue or the shop's own products can't be read.
    """
    base = read_catalogue(settings.catalogue)
    if not settings.home.own_products:
        return base
    own = own_products(settings, base, shop_mapping(settings))
    return base if own is None or own.empty else Assortment.beside(base, own)


def own_products(
    settings: ShopSettings, catalogue: Catalogue, mapping: ItemMapping | None
) -> pd.DataFrame | None:
    """Return the products that the shop's own table describes and the catalogue does not hold.

    Returns
    -------
    DataFrame or None
        ``item_id`` as :func:`home_names` has it, each once, and those of the catalogue's columns
        that the table has; of several rows of one product the first. None without such a table.
    """
    wanted = [*content_columns(catalogue.products), RETIRED]
    frame = open_own_source(settings).described(wanted)
    if frame is None:
        return None
    frame = frame[frame[ITEM_ID].notna()].drop_duplicates(ITEM_ID)
    names = home_names(frame[ITEM_ID].to_numpy(dtype=object), mapping)
    outside = catalogue.rows(names) < 0
    return frame.assign(**{ITEM_ID: names})[outside].reset_index(drop=True)


def home_names(item_ids: np.ndarray, mapping: ItemMapping | None) -> np.ndarray:
    """Return (k,) what the shop's own product numbers are called at home."""
    return item_ids if mapping is None else mapping.names(item_ids)


def own_numbers(
    catalogue: Catalogue, rows: Sequence[int] | np.ndarray, mapping: ItemMapping
) -> list[tuple[str, ...]]:
    """Return the shop's own numbers of each of some products at home."""
    names = [str(catalogue.item_ids[row]) for row in rows]
    found = mapping.own_of(names)
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        if row >= shared_size(catalogue):
            bare = name.removeprefix(OUTSIDE)
            # Only a number that would look like the catalogue's was given another name.
            found[place] = (bare if catalogue.rows([bare])[0] >= 0 else name,)
    return found


def _stacked(
    base: pd.Series | None, own: pd.Series | None, size: int, frame: pd.DataFrame
) -> np.ndarray:
    """Return a column of both tables, the own part read as the catalogue's column is."""
    if base is not None and is_number(base):
        numbers = np.full(len(frame), np.nan)
        if own is not None:
            numbers = pd.to_numeric(own, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        stacked: np.ndarray = np.concatenate([base.to_numpy(dtype=float, na_value=np.nan), numbers])
        return stacked
    above = np.full(size, None, dtype=object) if base is None else _objects(base)
    below = np.full(len(frame), None, dtype=object) if own is None else _objects(own)
    if base is not None and pd.api.types.infer_dtype(base, skipna=True) == "boolean":
        words = {"true": True, "false": False}
        below = np.array([words.get(str(value).lower()) for value in below], dtype=object)
    return np.concatenate([above, below])


def _objects(column: pd.Series) -> np.ndarray:
    values: np.ndarray = column.astype(object).where(column.notna(), None).to_numpy(dtype=object)
    return values


def _joined(known: Feature, own: Feature, size: int) -> Feature:
    """Return a feature with further products behind, of those values that are known."""
    places = pd.Index(known.values).get_indexer(pd.Index(own.values))
    codes = places[own.codes] if len(own.codes) else np.empty(0, dtype=np.int64)
    inside = codes >= 0
    return Feature(
        known.name,
        known.values,
        np.concatenate([known.rows, own.rows[inside] + size]),
        np.concatenate([known.codes, codes[inside]]),
    )
