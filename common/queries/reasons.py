"""The global model's scores, handed to :mod:`common.explanation` to be taken apart."""

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from common.blocks import GroupBlock
from common.errors import InputError
from common.explanation import CustomerSide, ProductSide, add_part
from common.features import hashed_rows
from common.model import CUSTOMERS, FEATURES, GlobalModel
from common.protocol import ITEMS


def sides_of(
    model: GlobalModel,
    history: sparse.csr_matrix,
    item: int,
    attributes: Mapping[str, str] | None = None,
    vectors: np.ndarray | None = None,
) -> tuple[CustomerSide, ProductSide]:
    """Return what one score is made of; ``explain(*sides_of(...))`` takes it apart.

    Gains and the spectrum are multiplied into the vectors, the expected basket is taken off each
    product of the history, and content is narrowed to the places where this product has any: none
    of it changes the score.

    Parameters
    ----------
    history
        ``(1, n)`` weights of what the customer did, as :meth:`GlobalModel.scores` takes it.
    item
        Catalogue row of the product.
    attributes
        The customer's attributes by name; "" where unknown.
    vectors
        What :func:`learned_history` made of the history's rows, where several products are asked
        for: it is the same for all.

    Raises
    ------
    InputError
        If the model has a tower that is not linear: its scores do not come apart.
    """
    if model.plan.tower != "linear":
        raise InputError(
            f"a score of the {model.plan.tower!r} tower cannot be taken apart: train the linear one"
        )
    weights = history.data.astype(np.float64)
    content = model.catalogue.content
    own = content[[item]]
    places = own.indices
    expected = model.expected_content[places].astype(np.float64)
    if vectors is None:
        vectors = learned_history(model, history.indices)
    customer = CustomerSide(
        labels=[str(model.catalogue.item_ids[row]) for row in history.indices],
        weights=weights,
        content=content[history.indices][:, places].toarray() - expected,
        vectors=vectors * model.spectrum,
        attributes=_attributes(model, attributes or {}),
    )
    product = ProductSide(
        content_scale=model.plan.content_scale,
        content={"content": own.data},
        vectors=_learned_product(model, item),
        popularity=popularity_of(model, item),
    )
    return customer, product


def popularity_of(model: GlobalModel, item: int) -> dict[str, float]:
    """Return where a product's popularity is from -> how much of it."""
    if like := float(model.popularity_of_like[item]):
        return {"everywhere, as its like": like}
    return {"everywhere": float(model.popularity_bias[item])}


def learned_history(model: GlobalModel, rows: np.ndarray) -> np.ndarray:
    """Return ``(H, d)`` vectors ``v_j / g_j`` less the expected basket's; 0 outside the block."""
    alone = sparse.csr_matrix(
        (np.ones(len(rows), np.float32), (np.arange(len(rows)), rows)),
        shape=(len(rows), model.catalogue.size),
    )
    projected = model.block.project(alone)
    inside = np.asarray(projected @ model.block.gain, dtype=np.float64)
    vectors: np.ndarray = np.asarray(projected @ model.item_vectors, dtype=np.float64)
    return vectors - np.outer(inside, model.expected_learned)


def _learned_product(model: GlobalModel, item: int) -> dict[str, np.ndarray]:
    """Return the addends of ``g_i v_i``: the product's own row and one for each feature value."""
    if isinstance(model.block, GroupBlock):
        return {"product": model.lifted_vectors[item].astype(np.float64)}
    places, inside = _places(model, np.array([item]))
    if not inside[0]:
        return {"product": np.zeros(model.plan.dimension)}
    gain = float(model.block.gain[places[0]])
    parts = {"product": gain * model.state[ITEMS][places[0]]}
    for feature in model.catalogue.features if model.plan.feature_rows else ():
        codes, counts = np.unique(feature.codes[feature.rows == item], return_counts=True)
        shares = counts / max(float(np.linalg.norm(counts)), 1.0)
        table = hashed_rows(feature.name, feature.values[codes], model.plan.feature_rows)
        for value, share, row in zip(feature.values[codes], shares, table, strict=True):
            name = str(value).replace("\x1f", " × ")
            add_part(parts, f"{feature.name} = {name}", gain * share * model.state[FEATURES][row])
    return parts


def _attributes(model: GlobalModel, attributes: Mapping[str, str]) -> dict[str, np.ndarray]:
    count = model.plan.customer_rows
    known = {name: value for name, value in attributes.items() if value} if count else {}
    parts: dict[str, np.ndarray] = {}
    for name, value in known.items():
        row = hashed_rows(name, np.array([value]), count)[0]
        add_part(parts, f"{name} {value}", model.state[CUSTOMERS][row] * model.spectrum)
    return parts


def _places(model: GlobalModel, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places of catalogue rows in the learned block, and which are in it at all."""
    block = model.block.rows
    places = np.minimum(np.searchsorted(block, rows), len(block) - 1)
    return places, block[places] == rows
