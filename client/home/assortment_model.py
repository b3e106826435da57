"""The global model on what a shop knows at home: its own products as products never bought.

What came home is of the catalogue. A product behind it has content as any other, the learned part
that its known values have in the tables of attributes, and the popularity of its like; what the
shop itself sells of it is in the shop's own parts.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from client.data.assortment import Assortment
from common.blocks import Block, with_unsold
from common.features import Catalogue
from common.model import GlobalModel
from common.popularity import of_like
from common.protocol import ITEMS, POPULARITY


@dataclass(frozen=True)
class AssortmentModel(GlobalModel):
    """A global model with rows for a shop's own products behind the catalogue's.

    Attributes
    ----------
    base
        The model as it came, which has checked its arrays; all that is of the catalogue is its.
    """

    base: GlobalModel = field(kw_only=True)

    def __post_init__(self) -> None:
        """Check nothing: the base has."""

    @cached_property
    def block(self) -> Block:
        """The learned block's view of the products."""
        released = self.base.state[POPULARITY]
        return with_unsold(self.base.block, self.plan, released, self.catalogue)

    @cached_property
    def popularity_bias(self) -> np.ndarray:
        """(n,) float32 ``b``: 1 for a product of average popularity; 0 behind the catalogue."""
        return _padded(self.base.popularity_bias, self.catalogue.size)

    @cached_property
    def popularity_of_like(self) -> np.ndarray:
        """(n,) float32 what a product without any released popularity is taken to have; else 0."""
        like = _padded(self.base.popularity_of_like, self.catalogue.size)
        known = np.asarray(self.state[POPULARITY]) > 0
        if known.any():
            own = slice(self.base.catalogue.size, None)
            like[own] = of_like(self.popularity_bias, known, self.catalogue.features)[own]
        return like

    @cached_property
    def expected_content(self) -> np.ndarray:
        """(W,) float32 content of the expected basket of one product: the released one."""
        return self.base.expected_content

    @cached_property
    def expected_learned(self) -> np.ndarray:
        """(d,) float32 what the learned block expects of one product: the released one."""
        return self.base.expected_learned


def on_assortment(model: GlobalModel, catalogue: Catalogue) -> GlobalModel:
    """Return the model on a shop's assortment; the same where that is the catalogue alone."""
    if not isinstance(catalogue, Assortment):
        return model
    state = dict(model.state)
    state[POPULARITY] = _padded(state[POPULARITY], catalogue.size)
    if model.plan.feature_rows:
        more = catalogue.size - model.catalogue.size
        state[ITEMS] = _padded(state[ITEMS], len(state[ITEMS]) + more)
    return AssortmentModel(model.plan, catalogue, state, base=model)


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    """Return an array with rows of zeros behind its own."""
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
