"""Which rows of what a shop sends are of products, and which of these it stocks.

All of it follows from the plan, the published stock table and, in a round of training, the released
popularity: nobody sends row numbers. Arrays that are content (features, customers' attributes, the
tower, rows of groups) travel whole.
"""

from collections.abc import Mapping

import numpy as np

from common.protocol import ITEMS, POPULARITY, TrainingPlan

Shapes = Mapping[str, tuple[int, ...]]
#: Name -> (R,) of each array whose rows are products': something of each row.
ByRow = Mapping[str, np.ndarray]


def row_products(
    plan: TrainingPlan, name: str, shape: tuple[int, ...], learned: np.ndarray | None
) -> np.ndarray | None:
    """Return the catalogue row of each row (R,) of an array; None for one that is content.

    Parameters
    ----------
    learned
        (L,) catalogue rows of the products that have learned rows, in a round of training.
    """
    if name == POPULARITY:
        return np.arange(shape[0])
    # Rows of groups are content: no one product's.
    if name != ITEMS or plan.model.groups:
        return None
    assert learned is not None
    return learned


def products_of(plan: TrainingPlan, shapes: Shapes, learned: np.ndarray | None) -> ByRow:
    """Return name -> (R,) catalogue row of each row, of the arrays whose rows are products'."""
    found = {n: row_products(plan, n, shape, learned) for n, shape in shapes.items()}
    return {name: products for name, products in found.items() if products is not None}


def stocked_among(products: np.ndarray, stocked: np.ndarray) -> np.ndarray:
    """Return (R,) bool: which of ``products`` (R,) are among the catalogue rows ``stocked``."""
    size = int(products.max(initial=-1)) + 1
    listed = np.zeros(size, dtype=bool)
    listed[stocked[stocked < size]] = True
    return np.asarray(listed[products])


def sent_rows(products: ByRow, stocked: np.ndarray | None) -> ByRow:
    """Return name -> (R,) bool of the rows that a shop sends of arrays that it does not send whole.

    Parameters
    ----------
    products
        See :func:`products_of`.
    stocked
        Catalogue rows that the shop stocks, as published; None: it is not named and sends all.
    """
    if stocked is None:
        return {}
    return {name: stocked_among(rows, stocked) for name, rows in products.items()}


def sent_shapes(shapes: Shapes, rows: ByRow) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of what a shop sends that sends these rows."""
    return {
        name: (int(np.count_nonzero(rows[name])), *shape[1:]) if name in rows else tuple(shape)
        for name, shape in shapes.items()
    }
