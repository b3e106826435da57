"""What a model trained on one version of the catalogue, or of popularity, is on another.

Learned rows belong to products, or to groups of them, and their order follows from the catalogue
and the released popularity. Where either changes, each row goes with what it is of.
"""

import logging

import numpy as np
import pandas as pd

from common.array_checks import check_arrays
from common.blocks import learned_count, learned_names, learned_rows
from common.errors import ArtifactError, ProtocolError
from common.features import Catalogue
from common.model import initial_state, state_spec
from common.protocol import ITEMS, POPULARITY, Arrays, ModelPlan

logger = logging.getLogger(__name__)


def carry_over(
    arrays: Arrays,
    old_item_ids: np.ndarray,
    catalogue: Catalogue,
    model: ModelPlan,
    *,
    before: Catalogue | None = None,
) -> Arrays:
    """Return the state of a model trained on an older catalogue, on this one.

    A product of both keeps its popularity and learned row. One that was added has popularity 0
    and a row of zeros: until shops train on it, its content alone speaks. One that is not there
    any more goes, and the popularity that is left is scaled to the same sum. Tables of features
    and customers, the tower and the spectrum stay as they are.

    For histories of kept products, the content and learned parts of kept products' scores stay the
    same, and the popularity part grows with the number of products (1 is an average product), as
    long as nothing goes, and the learned rows are of the same products as before: with
    ``learned_items`` or ``groups`` those that were popular still are. With ``learned_items = 0``
    gains follow the number of products a little; within a group, added products take their share.

    Parameters
    ----------
    arrays
        Of :func:`common.model.state_spec`, for ``len(old_item_ids)`` products.
    old_item_ids
        (m,) the older catalogue's ids in its row order, as the model's own folder keeps them.
    catalogue
        The one to go on with.
    model
        The plan of both.
    before
        The older catalogue; needed with ``groups`` alone, whose values it holds.

    Raises
    ------
    ArtifactError
        If the arrays are not of such a model, or the older catalogue is missing or another.
    """
    try:
        check_arrays(arrays, state_spec(model, len(old_item_ids)), max_norm=0.0)
    except ProtocolError as error:
        raise ArtifactError(
            f"the earlier model does not fit the plan: {error}. Train with the [model] settings of "
            "the earlier run, or start anew"
        ) from error
    rows = catalogue.rows(old_item_ids)
    kept = rows >= 0
    popularity = np.zeros(catalogue.size, np.float32)
    popularity[rows[kept]] = arrays[POPULARITY][kept]
    left, whole = float(popularity.sum()), float(arrays[POPULARITY].sum())
    if left and arrays[POPULARITY][~kept].any():
        popularity *= np.float32(whole / left)
    names = _old_names(arrays[POPULARITY], old_item_ids, model, before)
    items = _moved(arrays[ITEMS], names, popularity, catalogue, model)
    logger.info(
        "carried_over products=%d added=%d gone=%d",
        np.count_nonzero(kept),
        catalogue.size - np.count_nonzero(kept),
        np.count_nonzero(~kept),
    )
    return {**arrays, POPULARITY: popularity, ITEMS: items}


def with_popularity(
    state: Arrays, popularity: np.ndarray, catalogue: Catalogue, model: ModelPlan
) -> Arrays:
    """Return a trained state on a newly released popularity: rows go with what they are of.

    A product, or group, that was not popular enough for a row before begins with zeros.

    Parameters
    ----------
    state
        On this catalogue, with the popularity that it was trained on.
    popularity
        (n,) float32.
    """
    before = learned_names(model, state[POPULARITY], catalogue)
    items = _moved(state[ITEMS], before, popularity, catalogue, model)
    return {**state, POPULARITY: popularity, ITEMS: items}


def _moved(
    items: np.ndarray,
    names: np.ndarray,
    popularity: np.ndarray,
    catalogue: Catalogue,
    model: ModelPlan,
) -> np.ndarray:
    """Return (L, d) rows of ``items`` at their names' new places; zeros for a name that is new."""
    places = pd.Index(names).get_indexer(pd.Index(learned_names(model, popularity, catalogue)))
    known = np.flatnonzero(places >= 0)
    if not len(known):  # Rows of zeros alone would stay zeros whatever they are trained on.
        return initial_state(model, catalogue.size)[ITEMS]
    moved = np.zeros((learned_count(model, catalogue.size), items.shape[1]), np.float32)
    moved[known] = items[places[known]]
    return moved


def _old_names(
    popularity: np.ndarray, item_ids: np.ndarray, model: ModelPlan, before: Catalogue | None
) -> np.ndarray:
    """Return what each learned row of the older model is of."""
    if not model.groups:
        rows = learned_rows(popularity, learned_count(model, len(item_ids)))
        names: np.ndarray = np.asarray(item_ids, dtype=object)[rows]
        return names
    if before is None or not np.array_equal(before.item_ids, item_ids):
        raise ArtifactError(
            f"the earlier model has a row for each of its {model.groups!r}: going on with it needs "
            "the very catalogue that it was trained on"
        )
    return learned_names(model, popularity, before)
