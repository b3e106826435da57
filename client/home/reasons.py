"""A shop's mixed score taken apart exactly: every part is linear in the history.

So a product's part is what the score loses without it, while any history is left: who has none is
answered by another mixture, what sells.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import sparse

from client.home.ease import Ease
from client.home.personalization import HomeModel
from common.errors import ConfigError
from common.explanation import Explanation, Part, explain, explain_neighbours
from common.model import GlobalModel
from common.queries.reasons import popularity_of, sides_of


def explain_home(
    home: HomeModel,
    weights: Mapping[str, float],
    scales: Mapping[str, float],
    history: sparse.csr_matrix,
    item: int,
) -> Explanation:
    """Return why one customer's mixed score of a product is what it is.

    Parameters
    ----------
    weights, scales
        Part -> weight, and what it is divided by, such as the mixture's own.
    history
        (1, n) weights of what the customer did.
    item
        Catalogue row of the product.

    Raises
    ------
    InputError
        If a part has a tower that is not linear.
    """
    parts: list[Part] = []
    for name, weight in weights.items():
        if weight:
            factor = home.factor(name, item) * weight / scales.get(name, 1.0)
            found = _part(home, name, history, item)
            parts += [replace(part, value=factor * part.value) for part in found]
    return Explanation(float(np.sum([part.value for part in parts])), tuple(parts))


def _part(home: HomeModel, name: str, history: sparse.csr_matrix, item: int) -> tuple[Part, ...]:
    if name == "content":
        return _content(home, history, item)
    if name == "popularity":
        ((where, value),) = popularity_of(home.model, item).items()
        return (Part("popularity", where, value),)
    if name == "own_popularity":
        return (Part("popularity", "at this shop", float(home.own_popularity[0, item])),)
    if name == "learned":
        return _learned(home.model, history, item)
    if name == "own_learned" and home.own_learned is not None:
        return _learned(home.own_learned, history, item)
    if name == "shared_learned" and home.shared_learned is not None:
        return _learned(home.shared_learned, history, item)
    if name == "kin" and home.kin is not None:
        more = home.kin.contributions(history, item)
        return _of_history(home, history, more)
    ease = home.eases.get(name)
    if not isinstance(ease, Ease):
        raise ConfigError(f"home: the part {name!r} can't be taken apart")
    labels = [str(home.model.catalogue.item_ids[row]) for row in history.indices]
    return explain_neighbours(labels, ease.contributions(history, item)).parts


def _content(home: HomeModel, history: sparse.csr_matrix, item: int) -> tuple[Part, ...]:
    catalogue = home.model.catalogue
    own = catalogue.content[[item]]
    alike = (catalogue.content[history.indices] @ own.T).toarray().ravel()
    more = history.data.astype(np.float64) * (alike - float((own @ home.expected_content)[0]))
    return _of_history(home, history, more)


def _of_history(home: HomeModel, history: sparse.csr_matrix, more: np.ndarray) -> tuple[Part, ...]:
    """Return a part of content for each product of a (1, n) history, of (H,) values."""
    labels = [str(home.model.catalogue.item_ids[row]) for row in history.indices]
    named = zip(labels, more, strict=True)
    return tuple(Part("history-content", label, float(value)) for label, value in named)


def _learned(model: GlobalModel, history: sparse.csr_matrix, item: int) -> tuple[Part, ...]:
    found = explain(*sides_of(model, history, item))
    return tuple(part for part in found.parts if part.kind == "history-learned")
