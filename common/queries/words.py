"""Products found by the words of their public columns."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.features import Catalogue


@dataclass(frozen=True)
class Words:
    """What the products that may be listed are found by.

    Attributes
    ----------
    rows
        (m,) their catalogue rows, the most popular first.
    texts
        (m,) number and columns of each.
    """

    rows: np.ndarray
    texts: Sequence[str]

    @classmethod
    def of(
        cls, catalogue: Catalogue, columns: Mapping[str, Sequence[Any]], popularity: np.ndarray
    ) -> "Words":
        """Put together what is searched: too long for whoever asks first after a change of model.

        Parameters
        ----------
        columns
            Column -> (n,) values, None where unknown.
        popularity
            (n,).
        """
        offered = np.flatnonzero(catalogue.offered)
        rows = offered[np.argsort(-popularity[offered], kind="stable")]
        told: list[Any] = [catalogue.item_ids, *columns.values()]
        texts = (
            " ".join(str(values[row]) for values in told if values[row] is not None)
            for row in rows.tolist()
        )
        return cls(rows, tuple(f" {_spaced(text)}" for text in texts))

    def find(self, query: str) -> np.ndarray:
        """Return the rows of the products that hold every word; none named: all."""
        # A word is found where one begins; scripts without spaces have no such places.
        words = [f" {w}" if w.isascii() else w for w in dict.fromkeys(_spaced(query).split())]
        hits = [all(word in text for word in words) for text in self.texts]
        found: np.ndarray = self.rows[np.array(hits, dtype=bool)]
        return found


def _spaced(text: str) -> str:
    """Return a text's letters and digits, all else as spaces; one form of what is written alike.

    An accent may be a character of its own, a letter as wide as a Chinese one (NFKC, Unicode 15).
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\W+", " ", unicodedata.normalize("NFKC", folded))
