"""A shop ready to answer: the model that came home, and what its own adaptation adds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from client.data.assortment import shared_size
from client.home.customers import Customer
from client.home.personalization import HomeModel, mix
from client.home.reasons import explain_home
from client.home.shop import CameHome
from common.explanation import Explanation, Part, explain
from common.features import Catalogue
from common.metrics import tail_mask
from common.model import attribute_matrix
from common.queries.reasons import sides_of
from common.scoring import top_k

#: Products that the tail dial may choose from, for each that is shown.
_DEEPER, _LEAST_DEPTH = 10, 200
#: Columns that people call a product by.
SHOWN = ("title", "category")
_KNOWN_BY_HISTORY = "the shop knows this customer by what they did: attributes do not count"
_NO_SEGMENT = "the shop has learned nothing of customers with these attributes: they do not count"
#: Who has no history gets what sells: here, and everywhere; 1 is an average product in both.
_NO_HISTORY = {"own_popularity": 1.0, "popularity": 1.0}


@dataclass(frozen=True)
class Ready:
    """A shop ready to answer: its model, and what its own adaptation adds.

    Attributes
    ----------
    home
        None where the shop uses the global model as it came.
    """

    catalogue: Catalogue
    came: CameHome
    home: HomeModel | None
    fitted_at: str | None
    notes: tuple[str, ...]

    def scores(
        self, history: sparse.csr_matrix, attributes: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """Return (1, n) float32 scores.

        The shop's own adaptation asks for attributes only where there is no history.
        """
        if self.home is None:
            return self.came.model.scores(history, self._in_tables(attributes or {}))
        weights, scales = self._mixture(history)
        total = mix(self.home.parts(history, weights), weights, scales, history.shape)
        for taste in self.segments(history, attributes).values():
            total += taste
        return total

    def segments(
        self, history: sparse.csr_matrix, attributes: Mapping[str, str] | None
    ) -> dict[str, np.ndarray]:
        """Return label -> (n,) of the segments that move what sells, for who has no history."""
        if self.home is None or self.home.segments is None or history.nnz or not attributes:
            return {}
        return self.home.segments.parts(attributes)

    def alike(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return the same less what every history's scores have: what sells, and what is expected.

        The expected basket's content, of a kind as well, is taken off alike whatever was bought:
        with it, products that share nothing are listed by how little their like sell.
        """
        model, nothing = self.came.model, np.zeros_like(self.came.model.expected_content)
        if self.home is None:
            scale = np.float32(model.plan.content_scale)
            own: np.ndarray = model.learned_part(history)
            own += scale * model.content_part(history, nothing)
            return own
        weights, scales = self._mixture(history)
        weights = {name: w for name, w in weights.items() if name not in _NO_HISTORY}
        kin = self.home.kin
        if kin is not None:
            kin = replace(kin, expected=np.zeros_like(kin.expected))
        bare = replace(self.home, expected_content=nothing, kin=kin)
        return mix(bare.parts(history, weights), weights, scales, history.shape)

    @cached_property
    def tail(self) -> np.ndarray:
        """(n,) bool: all but the fifth of the products with the largest released popularity.

        Of products that the shop alone knows, it is the shop's own that counts.
        """
        popularity = self.came.model.popularity_bias
        if self.home is not None and (shared := shared_size(self.catalogue)) < len(popularity):
            popularity = np.concatenate([popularity[:shared], self.home.own_popularity[0, shared:]])
        return tail_mask(popularity)

    def candidates(
        self, customer: Customer, scores: np.ndarray, count: int, tail_dial: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (c,) rows and scores, best first, that a list of ``count`` is chosen from.

        Where popularity decides, the best hold none of the tail: with the dial, the best of the
        tail are among the candidates as well.

        Parameters
        ----------
        scores
            (1, n), ``-inf`` where a product may not be listed.
        """
        history, stock = self.history(customer), customer.stock
        depth = max(_DEEPER * count, _LEAST_DEPTH) if tail_dial else count
        rows, found = _listed(scores, depth, history, stock)
        if not tail_dial:
            return rows, found
        allowed = self.tail if stock is None else self.tail & stock
        more, scored = _listed(scores, depth, history, allowed)
        new = ~np.isin(more, rows)
        rows, found = np.append(rows, more[new]), np.append(found, scored[new])
        order = np.argsort(-found, kind="stable")
        return rows[order], found[order]

    def history(self, customer: Customer) -> sparse.csr_matrix:
        """Return (1, n) what a customer did, as the model's training weighed it."""
        return customer.history(self.came.plan.half_life_days)

    def explained(
        self,
        history: sparse.csr_matrix,
        item: int,
        attributes: Mapping[str, str] | None = None,
    ) -> Explanation:
        """Return what a product's score is the sum of; attributes as in :meth:`scores`."""
        if self.home is None:
            return explain(*sides_of(self.came.model, history, item, attributes))
        found = explain_home(self.home, *self._mixture(history), history, item)
        moved = [
            Part("attribute", label, float(taste[item]))
            for label, taste in self.segments(history, attributes).items()
        ]
        score = found.score + sum(part.value for part in moved)
        return Explanation(score, (*found.parts, *moved))

    def reasons(
        self, history: sparse.csr_matrix, item: int, attributes: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Return the same for a document, the weightiest first."""
        found = self.explained(history, item, attributes)
        names = {str(self.catalogue.item_ids[row]): int(row) for row in history.indices}
        parts = sorted(found.parts, key=lambda part: -abs(part.value))
        return [
            {
                "kind": part.kind,
                "label": part.label,
                **({"name": _name(self.catalogue, names[part.label])} if _of_history(part) else {}),
                "value": part.value,
            }
            for part in parts
            if part.value
        ]

    def about(self, history: sparse.csr_matrix, attributes: Mapping[str, str]) -> tuple[str, ...]:
        """Return what to tell whoever asks of attributes that do not count."""
        if not attributes or self.home is None or self.segments(history, attributes):
            return ()
        return (_KNOWN_BY_HISTORY if history.nnz else _NO_SEGMENT,)

    @property
    def exposure(self) -> np.ndarray:
        """(n,) how much each product is bought, here and everywhere, not negative."""
        popularity = self.came.model.popularity_bias
        return popularity if self.home is None else popularity + self.home.own_popularity[0]

    def _in_tables(self, attributes: Mapping[str, str]) -> sparse.csr_matrix | None:
        """Return (1, rows) attributes in the model's table of them; None where it has none."""
        rows = self.came.model.plan.customer_rows
        if not rows or not attributes:
            return None
        columns = {name: np.array([value], dtype=object) for name, value in attributes.items()}
        return attribute_matrix(columns, 1, rows)

    def _mixture(
        self, history: sparse.csr_matrix
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Return the weights and scales of the parts; without a history, what sells."""
        assert self.home is not None
        if not history.nnz:
            return _NO_HISTORY, {}
        weights = {name: w for name, w in self.home.mixing_weights.items() if w}
        return weights, self.home.part_scales


def _listed(
    scores: np.ndarray, depth: int, history: sparse.csr_matrix, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (m,) rows and scores of the best, m at most ``depth``."""
    rows, found = top_k(scores, depth, exclude=history, allowed=allowed)
    real = rows[0] >= 0
    return rows[0][real], found[0][real]


def _name(catalogue: Catalogue, row: int) -> str | None:
    """Return what people call a product: its title, or else its category."""
    known = (cell(catalogue, row, name) for name in SHOWN if name in catalogue.products)
    return next(filter(None, known), None)


def cell(catalogue: Catalogue, row: int, column: str) -> str | None:
    """Return what the catalogue says of a product in a column, as text."""
    value = catalogue.products[column].iloc[row]
    return None if pd.isna(value) else str(value)


def _of_history(part: Part) -> bool:
    return part.kind in ("history-content", "history-learned", "neighbours")
