"""What a shop learns for itself after training, and never sends.

A shop holds its own records in clear. It mixes the global model's parts with what it learned alone
(its own item-item model and its own popularity), by weights of :mod:`client.home.weight_search`.
All parts are linear in a customer's history, and each is brought to unit spread by one scale a
shop, so a mixed score still comes apart exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from scipy import sparse

from client.home.ease import Ease, Scores
from client.home.kin import Kin
from client.home.low_rank import own_low_rank
from client.home.segments import Segments
from client.home.shares import dealt, product_shares
from client.home_settings import OWN_PARTS, SHARED_PARTS, HomeSettings
from common.blocks import GroupBlock
from common.config import nearest
from common.errors import ConfigError
from common.model import GLOBAL_PARTS, GlobalModel
from common.popularity import of_like
from common.protocol import POPULARITY, Arrays

_SCALE_CUSTOMERS = 500
# Of scores held at a time, for the scales of one part.
_SCALE_BYTES = 2**28
# Of what is taken off a part of float32: a spread below it says nothing.
_ROUNDED = 1e-5


@dataclass(frozen=True)
class HomeModel:
    """A shop's own mixture: local state, never put into a record.

    Attributes
    ----------
    model
        The global model.
    own_learned, shared_learned
        Low-rank models of the shop's customers alone, and with the federation's directions beside
        them; None where the mixture has no such part.
    eases
        ``own_ease``: fitted on the shop's customers alone. ``shared_ease``: with the federation's
        pseudo-customers beside them. Others: an analyst's.
    own_popularity
        (1, n) float32, 1 for an average product.
    expected_content
        (W,) the expected basket here: the shop's own popularity and the released one, blended.
    part_scales
        Part -> its spread over the shop's customers with a history, and all products.
    mixing_weights
        Part -> weight; parts without a weight are never computed.
    segments
        What moves what sells for a customer without a history; None where nothing does.
    kin
        Products of a kind; None where the mixture has no such part.
    outside
        Part -> what it is multiplied with for products outside the model's learned block.
    shares
        (n,) what each product has of its group's score; None where a model's own say it.
    best_sellers, best
        So many of the shop's most popular products, and part -> what it is multiplied with there.
    """

    model: GlobalModel
    own_learned: GlobalModel | None
    eases: Mapping[str, Scores]
    own_popularity: np.ndarray
    expected_content: np.ndarray
    part_scales: Mapping[str, float]
    mixing_weights: Mapping[str, float]
    segments: Segments | None = None
    kin: Kin | None = None
    outside: Mapping[str, float] = field(default_factory=dict)
    shared_learned: GlobalModel | None = None
    shares: np.ndarray | None = None
    best_sellers: int = 0
    best: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        model: GlobalModel,
        histories: sparse.csr_matrix,
        settings: HomeSettings,
        others: Mapping[str, Scores] | None = None,
        own_ease: Callable[[float], Ease] | None = None,
        stock: np.ndarray | None = None,
    ) -> "HomeModel":
        """Fit everything but the weights on (U, n) histories; the weights are the start.

        Parameters
        ----------
        others
            Further parts by name.
        own_ease
            Returns EASE of these histories with a ridge, where it is known already.
        stock
            (n,) bool of what the shop sells: see :func:`client.home.shares.posterior_counts`.
        """
        fit = own_ease or (lambda ridge: Ease.fit(histories, ridge, settings.max_customers))
        eases: dict[str, Scores] = dict(others or {})
        if "own_ease" in settings.start:
            eases["own_ease"] = fit(settings.ease_lambda)
        if "shared_ease" in settings.start:
            prior = model.pseudo_customers(histories, settings.shared_power)
            prior *= np.float32(settings.prior_strength**0.5)
            eases["shared_ease"] = fit(settings.shared_lambda).with_prior(prior)
        low_rank = partial(
            own_low_rank,
            *(model.catalogue, histories, settings.own_dimension, settings.own_groups),
            popularity_exponent=settings.own_exponent,
        )
        own_learned = low_rank() if "own_learned" in settings.start else None
        shared_learned = None
        if "shared_learned" in settings.start:
            shared_learned = low_rank(
                prior=model, strength=settings.prior_strength, power=settings.shared_power
            )
        binary = histories.copy()
        binary.data = np.ones_like(binary.data)
        counts = np.asarray(binary.sum(axis=0), dtype=np.float32).reshape(1, -1)
        popularity = counts * (counts.shape[1] / max(float(counts.sum()), 1.0))
        # Of a product that was added since the model was trained, its like tell.
        new = (model.popularity_of_like > 0) & (counts.ravel() == 0)
        if new.any():
            popularity[0, new] = of_like(popularity[0], ~new, model.catalogue.features)[new]
        shares = product_shares(model, counts[0], settings, stock)
        model = with_own_shares(model, popularity[0], settings.own_shares)
        own = np.asarray(model.catalogue.content.T @ popularity.ravel()) / popularity.size
        share = settings.own_expectation if counts.sum() else 0.0
        expected = share * own + (1.0 - share) * model.expected_content
        kin = None
        if "kin" in settings.start:
            basket = share * popularity.ravel() / popularity.size
            basket = basket + (1.0 - share) * np.asarray(model.state[POPULARITY])
            kin = Kin.of(model.catalogue.kin, basket)
        home = cls(
            dealt(model, shares),
            own_learned and dealt(own_learned, shares),
            eases,
            popularity,
            expected.astype(np.float32),
            part_scales={},
            mixing_weights=settings.start,
            kin=kin,
            shared_learned=shared_learned and dealt(shared_learned, shares),
            shares=shares,
        )
        few = min(_SCALE_CUSTOMERS, max(1, _SCALE_BYTES // (4 * max(1, histories.shape[1]))))
        # Whoever has no history yet is no customer: parts say next to nothing to them, and how many
        # will come must not tell.
        known = histories[np.flatnonzero(np.diff(histories.indptr))[:few]]
        parts = home.parts(known, settings.start)
        scales = {name: float(part.std()) or 1.0 for name, part in parts.items() if part.size}
        # What is left where an expected basket takes all of a part off is what floats round off.
        most = float(np.asarray(known.sum(axis=1)).max(initial=0.0))
        off = {"content": model.catalogue.content @ home.expected_content}
        if kin is not None:
            off["kin"] = kin.codes @ kin.expected
        for name, less in off.items():
            least = _ROUNDED * most * float(np.abs(less).max(initial=0.0))
            if name in scales and scales[name] <= least:
                scales[name] = 1.0
        return replace(
            home,
            part_scales=scales,
            outside=settings.outside,
            best_sellers=settings.best_sellers,
            best=settings.best,
        )

    def parts(
        self, history: sparse.csr_matrix, names: Sequence[str] | Mapping[str, float]
    ) -> Arrays:
        """Return the named parts of (B, n) histories: (B, n) float32, popularities (1, n)."""
        return {name: self._everywhere(name, history) for name in names}

    def scores(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return (B, n) float32 mixed scores."""
        weights = {name: weight for name, weight in self.mixing_weights.items() if weight}
        return mix(self.parts(history, weights), weights, self.part_scales, history.shape)

    def factor(self, name: str, item: int) -> float:
        """Return what a part is multiplied with for a product (its catalogue row)."""
        inside = name not in self.outside or self.model.in_block[item]
        best = name in self.best and self.is_best[item]
        return (1.0 if inside else self.outside[name]) * (self.best[name] if best else 1.0)

    @cached_property
    def is_best(self) -> np.ndarray:
        """(n,) bool of the shop's most popular products, of those that it has sold at all."""
        sold = self.own_popularity[0]
        most = np.zeros(len(sold), bool)
        most[np.argsort(-sold, kind="stable")[: self.best_sellers]] = True
        found: np.ndarray = most & (sold > 0)
        return found

    def _everywhere(self, name: str, history: sparse.csr_matrix) -> np.ndarray:
        part = self._part(name, history)
        for factors, best in ((self.outside, False), (self.best, True)):
            if (factor := factors.get(name, 1.0)) != 1.0:
                where = self.is_best if best else ~self.model.in_block
                part = part * np.where(where, np.float32(factor), np.float32(1.0))
        return part

    def _part(self, name: str, history: sparse.csr_matrix) -> np.ndarray:
        if name == "content":
            return self.model.content_part(history, self.expected_content)
        if name == "learned":
            return self.model.learned_part(history)
        if name == "popularity":
            return self.model.popularity_part[None, :]
        if name == "own_popularity":
            return self.own_popularity
        if name == "own_learned" and self.own_learned is not None:
            return self.own_learned.learned_part(history)
        if name == "shared_learned" and self.shared_learned is not None:
            return self.shared_learned.learned_part(history)
        if name == "kin" and self.kin is not None:
            return self.kin.scores(history)
        if name not in self.eases:
            known = (*GLOBAL_PARTS, *OWN_PARTS, *SHARED_PARTS, *self.eases)
            raise ConfigError(f"home: no part is called {name!r}; {nearest(name, known)}")
        return self.eases[name].scores(history)


def with_own_shares(model: GlobalModel, popularity: np.ndarray, share: float) -> GlobalModel:
    """Return the model whose groups' scores are dealt to products by (n,) own popularity too.

    Noise hides what the release says of a rare product; what its group's customers like, it tells.
    Local state: see :attr:`client.home_settings.HomeSettings.own_shares`.
    """
    block = model.block
    if not share or not isinstance(block, GroupBlock) or model.plan.group_weights != "even":
        return model
    blended = share * popularity + (1.0 - share) * model.popularity_bias
    return model.around(block.with_shares(blended))


def mix(
    parts: Arrays,
    weights: Mapping[str, float],
    scales: Mapping[str, float],
    shape: tuple[int, int],
) -> np.ndarray:
    """Return (B, n) float32 ``Σ weight / scale x part``."""
    total = np.zeros(shape, np.float32)
    for name, weight in weights.items():
        if weight:
            total += np.float32(weight / scales.get(name, 1.0)) * parts[name]
    return total
