"""What differs between two versions of the catalogue."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from common.catalogue.content_columns import as_text, is_number
from common.features import Catalogue, content_columns

EXAMPLES = 5


@dataclass(frozen=True)
class Difference:
    """Products by what became of them, and what describes a product.

    Attributes
    ----------
    added, dropped
        Item ids in one of the two only.
    retired, returned
        Those of both that are not offered any more, or again.
    changed
        Content column of both -> item ids of both whose value differs.
    """

    old: Catalogue
    new: Catalogue
    added: np.ndarray
    dropped: np.ndarray
    retired: np.ndarray
    returned: np.ndarray
    changed: dict[str, np.ndarray]

    @classmethod
    def of(cls, old: Catalogue, new: Catalogue) -> "Difference":
        """Return how ``new`` differs from ``old``."""
        places = new.rows(old.item_ids)
        before = np.flatnonzero(places >= 0)
        after = places[before]
        added = np.ones(new.size, dtype=bool)
        added[after] = False
        kept = old.item_ids[before]
        was, is_now = old.offered[before], new.offered[after]
        shared = [c for c in content_columns(new.products) if c in old.products]
        changed = {}
        for name in shared:
            left, right = old.products[name].iloc[before], new.products[name].iloc[after]
            found = kept[_differ(left, right)]
            if len(found):
                changed[name] = found
        return cls(
            old,
            new,
            new.item_ids[added],
            old.item_ids[places < 0],
            kept[was & ~is_now],
            kept[~was & is_now],
            changed,
        )

    @property
    def changed_products(self) -> np.ndarray:
        """Item ids of products with any changed value, sorted."""
        return np.unique(np.concatenate([*self.changed.values(), np.array([], dtype=str)]))

    def counts(self) -> dict[str, int]:
        """Return how many products each thing became of."""
        return {
            "added": len(self.added),
            "retired": len(self.retired),
            "returned": len(self.returned),
            "dropped": len(self.dropped),
            "changed": len(self.changed_products),
        }

    def document(self, examples: int = EXAMPLES) -> dict[str, Any]:
        """Return all of it as plain JSON values, with some ``examples`` of each kind.

        Returns
        -------
        dict
            ``counts``; ``added, retired, returned, dropped``: the first item ids; ``changed``:
            column -> ``products`` and ``examples`` (``item_id, before, after``); ``columns``
            (``added, removed``); ``content`` (``added, removed``: features; ``settings``: name ->
            ``[before, after]``; ``reread``: columns whose values are read in another way).
        """
        old, new = content_columns(self.old.products), content_columns(self.new.products)
        names = ("added", "retired", "returned", "dropped")
        return {
            "counts": self.counts(),
            **{name: [str(i) for i in getattr(self, name)[:examples]] for name in names},
            "changed": {
                name: {"products": len(found), "examples": self._values(name, found[:examples])}
                for name, found in self.changed.items()
            },
            "columns": {
                "added": [name for name in new if name not in old],
                "removed": [name for name in old if name not in new],
            },
            "content": self._content(),
        }

    def _values(self, name: str, items: np.ndarray) -> list[dict[str, Any]]:
        left, right = (
            as_text(c.products[name].iloc[c.rows(items)]).tolist() for c in (self.old, self.new)
        )
        return [
            {"item_id": str(item), "before": before or None, "after": after or None}
            for item, before, after in zip(items, left, right, strict=True)
        ]

    def _content(self) -> dict[str, Any]:
        old, new = self.old.spec, self.new.spec
        before, after = old.columns or {}, new.columns or {}
        return {
            "added": [name for name in new.features if name not in old.features],
            "removed": [name for name in old.features if name not in new.features],
            "settings": {
                name: [getattr(old, name), getattr(new, name)]
                for name in ("content_width", "nonzeros", "hash_rows")
                if getattr(old, name) != getattr(new, name)
            },
            "reread": [n for n in after if n in before and before[n] != after[n]],
        }


def _differ(left: pd.Series, right: pd.Series) -> np.ndarray:
    """Return (m,) bool: whether two aligned columns say different things."""
    if is_number(left) and is_number(right):
        a, b = (c.to_numpy(dtype=float, na_value=np.nan) for c in (left, right))
        different: np.ndarray = (a != b) & ~(np.isnan(a) & np.isnan(b))
        return different
    return np.asarray(as_text(left) != as_text(right), dtype=bool)
