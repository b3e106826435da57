"""``client recommend``: what one customer of the shop would be shown, and why.

The customer's records are read at this moment, so that the last click counts. A customer who is
not known, or a guest, is answered from the history that is given, or by popularity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from client.adapted_state import (
    folder_digest,
    home_of,
    known_catalogue,
    read_facts,
    read_state,
)
from client.assortment import home_catalogue, own_numbers, shared_size
from client.customers import Customer, read_customer
from client.home import CameHome, Progress, load_home_model, manifest_digest
from client.home_reasons import explain_home
from client.mapping import ItemMapping
from client.models import current_model
from client.personalization import HomeModel, mix
from client.settings import ShopSettings
from client.shop_folder import ShopFolder
from common.asking import tail_of
from common.contract import BEHAVIOR_WEIGHTS
from common.errors import ArtifactError, ConfigError, InputError
from common.explanation import Explanation, Part, explain
from common.features import Catalogue
from common.reasons import sides_of
from common.scoring import re_rank, top_k

#: Products that the tail dial may choose from, for each that is shown.
_DEEPER, _LEAST_DEPTH = 10, 200
_MOST = 1000
_SHOWN = ("title", "category")
#: Who has no history gets what sells: here, and everywhere; 1 is an average product in both.
_NO_HISTORY = {"own_popularity": 1.0, "popularity": 1.0}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    user_id
        A customer of the shop; "" for a guest.
    history
        Products that a guest is interested in.
    count
        How many products to list.
    tail_dial
        From 0, relevance alone, to 1, products rarely bought first.
    why
        Whether to take every score apart.
    plain
        Whether to leave the shop's own adaptation aside.
    """

    user_id: str = ""
    history: tuple[str, ...] = ()
    count: int = 20
    tail_dial: float = 0.0
    why: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        if bool(self.user_id) == bool(self.history):
            raise ConfigError("give either --user ID, or --history ITEM,ITEM for a guest")
        if not 1 <= self.count <= _MOST:
            raise ConfigError(f"a list holds 1 to {_MOST} products, not {self.count}")
        if not 0 <= self.tail_dial <= 1:
            raise ConfigError(f"the tail dial goes from 0 to 1, not {self.tail_dial:g}")


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
        self, history: sparse.csr_matrix, attributes: sparse.csr_matrix | None = None
    ) -> np.ndarray:
        """Return (1, n) float32 scores; the shop's own adaptation knows no attributes."""
        if self.home is None:
            return self.came.model.scores(history, attributes)
        weights, scales = self._mixture(history)
        return mix(self.home.parts(history, weights), weights, scales, history.shape)

    def alike(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return the same less what every history's scores have: what sells, here or anywhere."""
        model, nothing = self.came.model, np.zeros_like(self.came.model.expected_content)
        if self.home is None:
            scale = np.float32(model.plan.content_scale)
            own: np.ndarray = model.learned_part(history)
            own += scale * model.content_part(history, nothing)
            return own
        weights, scales = self._mixture(history)
        weights = {name: w for name, w in weights.items() if name not in _NO_HISTORY}
        bare = replace(self.home, expected_content=nothing)
        return mix(bare.parts(history, weights), weights, scales, history.shape)

    @cached_property
    def tail(self) -> np.ndarray:
        """(n,) bool: all but the fifth of the products with the largest released popularity.

        Of products that the shop alone knows, it is the shop's own that counts.
        """
        popularity = self.came.model.popularity_bias
        if self.home is not None and (shared := shared_size(self.catalogue)) < len(popularity):
            popularity = np.concatenate([popularity[:shared], self.home.own_popularity[0, shared:]])
        return tail_of(popularity)

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
        return explain_home(self.home, *self._mixture(history), history, item)

    def reasons(self, history: sparse.csr_matrix, item: int) -> list[dict[str, Any]]:
        """Return the same for a document, the weightiest first."""
        found = self.explained(history, item)
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

    @property
    def exposure(self) -> np.ndarray:
        """(n,) how much each product is bought, here and everywhere, not negative."""
        popularity = self.came.model.popularity_bias
        return popularity if self.home is None else popularity + self.home.own_popularity[0]

    def _mixture(
        self, history: sparse.csr_matrix
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """Return the weights and scales of the parts; without a history, what sells."""
        assert self.home is not None
        if not history.nnz:
            return _NO_HISTORY, {}
        weights = {name: w for name, w in self.home.mixing_weights.items() if w}
        return weights, self.home.part_scales


def recommend(
    path: Path, settings: ShopSettings, request: Request, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Answer one customer.

    Parameters
    ----------
    path
        Of the settings.

    Returns
    -------
    dict
        ``shop, user_id, known, history, model, recommendations`` (``rank, item_id, title,
        category, score``; where numbers are mapped ``own_item_ids``; ``outside_catalogue``: true of
        a product that the shop alone knows; with ``why`` also ``reasons``: ``kind, label, name,
        value``) and ``notes``.

    Raises
    ------
    InputError
        If there is no model, or what the shop fitted around it is not to be used any more.
    """
    progress("reading the model")
    ready = get_ready(path, settings, plain=request.plain)
    notes = list(ready.notes)
    progress("reading the customer's records")
    named = dict.fromkeys(request.history, 1.0)
    customer = read_customer(settings, ready.catalogue, request.user_id, named)
    notes += customer.notes + _unknown(ready.catalogue, customer)
    history = ready.history(customer)
    progress("ranking")
    scores = ready.scores(history)
    rows, found = ready.candidates(customer, scores, request.count, request.tail_dial)
    if request.tail_dial:
        dialled = re_rank(
            rows[None, :], found[None, :], request.count, request.tail_dial, ready.exposure
        )
        rows, found = dialled[0][0], dialled[1][0]
    listed = [(int(row), float(score)) for row, score in zip(rows, found, strict=True)]
    if len(listed) < request.count:
        notes.append(f"the shop stocks no more than {len(listed)} products that are new to them")
    return {
        "shop": settings.merchant_id,
        "user_id": request.user_id or None,
        "known": customer.known,
        "history": {"products": history.nnz, "outside_catalogue": customer.outside},
        "model": {
            "version": ready.came.manifest.version,
            "adapted": ready.home is not None,
            "fitted_at": ready.fitted_at,
        },
        "recommendations": [
            {
                "rank": rank,
                **_described(ready.catalogue, row, customer.mapping),
                "score": score,
                **({"reasons": ready.reasons(history, row)} if request.why else {}),
            }
            for rank, (row, score) in enumerate(listed, start=1)
        ],
        "notes": notes,
    }


def get_ready(path: Path, settings: ShopSettings, *, plain: bool = False) -> Ready:
    """Load what answers customers: the adaptation where there is one, else the global model.

    Raises
    ------
    ArtifactError
        If the adaptation is damaged, or its model, the catalogue, the settings or the code are no
        longer those that it was fitted with.
    """
    stored = None if plain else read_facts(ShopFolder.of(path).adapted)
    if stored is None:
        catalogue = home_catalogue(settings)
        came = load_home_model(current_model(settings.models), catalogue)
        why = "as asked" if plain else "the shop has not adapted it (python -m client adapt)"
        return Ready(catalogue, came, None, None, (f"the global model as it came: {why}",))
    folder, facts = stored
    again = "fit it again with python -m client adapt"
    for what, fitted, present in (
        ("shop", facts.merchant_id, settings.merchant_id),
        ("catalogue", facts.catalogue_digest, folder_digest(settings.catalogue)),
        ("global model", facts.model_digest, manifest_digest(facts.model_folder)),
        ("home.mixed", facts.settings, settings.home.mixed),
        (
            "behavior_weights",
            facts.behavior_weights,
            settings.behavior_weights or dict(BEHAVIOR_WEIGHTS),
        ),
        ("rating_scale", facts.rating_scale, settings.rating_scale),
        ("home.own_products", facts.own_products, settings.home.own_products),
    ):
        if fitted != present:
            raise ArtifactError(
                f"{folder} was fitted with another {what} than there is now: {again}"
            )
    arrays = read_state(folder, facts)
    catalogue = known_catalogue(settings.catalogue, facts, arrays)
    came = load_home_model(facts.model_folder, catalogue)
    notes = []
    try:
        newest = manifest_digest(current_model(settings.models))
    except ConfigError:
        newest = facts.model_digest
    if newest != facts.model_digest:
        notes.append(f"another model has come home since the shop adapted to this one: {again}")
    home = home_of(arrays, facts, came.model)
    return Ready(catalogue, came, home, facts.fitted_at, tuple(notes))


def _listed(
    scores: np.ndarray, depth: int, history: sparse.csr_matrix, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (m,) rows and scores of the best, m at most ``depth``."""
    rows, found = top_k(scores, depth, exclude=history, allowed=allowed)
    real = rows[0] >= 0
    return rows[0][real], found[0][real]


def _unknown(catalogue: Catalogue, customer: Customer) -> tuple[str, ...]:
    """Return a note of what a guest named in vain.

    Raises
    ------
    InputError
        If it was all in vain.
    """
    if not customer.unknown:
        return ()
    missing, mapping = ", ".join(map(repr, customer.unknown[:5])), customer.mapping
    if not customer.named.nnz:
        example = catalogue.item_ids[0] if mapping is None else next(iter(mapping.own), "none")
        raise InputError(
            f"the catalogue holds none of the products {missing}: give the shop's numbers, such "
            f"as {example}"
        )
    return (f"the catalogue does not hold {missing}",)


def _described(catalogue: Catalogue, row: int, mapping: ItemMapping | None) -> dict[str, Any]:
    item_id = str(catalogue.item_ids[row])
    found: dict[str, Any] = {"item_id": item_id}
    if mapping is not None:
        found["own_item_ids"] = own_numbers(catalogue, row, mapping)
    if row >= shared_size(catalogue):
        found["outside_catalogue"] = True
    return found | {
        column: _cell(catalogue, row, column) for column in _SHOWN if column in catalogue.products
    }


def _name(catalogue: Catalogue, row: int) -> str | None:
    """Return what people call a product: its title, or else its category."""
    known = (_cell(catalogue, row, name) for name in _SHOWN if name in catalogue.products)
    return next(filter(None, known), None)


def _cell(catalogue: Catalogue, row: int, column: str) -> str | None:
    value = catalogue.products[column].iloc[row]
    return None if pd.isna(value) else str(value)


def _of_history(part: Part) -> bool:
    return part.kind in ("history-content", "history-learned", "neighbours")
