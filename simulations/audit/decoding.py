"""A strong, simple attack on who is in a shop's data: linear decoding of all that left it.

The attacker is the server. It knows the plan, every candidate's records, everything else in the
shop, and that each candidate is in with chance one half; it does not know which are. What one
exchange shows is then linear in the unknown bits ``z``::

    y = Σ_c a_c + Σ_c z_c (b_c - a_c) + noise

with ``b_c`` and ``a_c`` what candidate ``c`` adds if it is in, and if it is not. The attacker keeps
``⟨b_c - a_c, ·⟩`` alone: a few hundred numbers an exchange, whatever the size of an update.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse, special

from client.units import event_weights, of_round, unit_histories, unit_rows
from common.blocks import block_of, taken_off
from common.features import Catalogue
from common.protocol import ITEMS, POPULARITY, Arrays, TrainingPlan
from common.schema import ShopEvents
from simulations.audit.training import Release

# Noise that the attacker assumes where there is none: shares of a candidate's own square.
_EXACT = 1e-6
# The median of a standard normal's absolute value.
_MEDIAN_NORMAL = 0.6745


@dataclass(frozen=True)
class Candidates:
    """The customers of one shop, each with the records that are in question.

    Attributes
    ----------
    events
        All records of the shop.
    questioned
        ``(N,)`` bool: in the data only if the customer's bit is 1. All of a customer's records, or
        those of one product.
    """

    events: ShopEvents
    questioned: np.ndarray

    @property
    def without(self) -> ShopEvents:
        """The shop if every bit is 0, with the same customers."""
        return self.events.select(~self.questioned)

    def data(self, bits: np.ndarray) -> ShopEvents:
        """Return the shop's records if the customers' bits are ``(U,)``."""
        return self.events.select(~self.questioned | bits[self.events.users])


@dataclass(frozen=True)
class Outer:
    """One gradient ``x ⊗ w`` a customer.

    Attributes
    ----------
    x
        ``(U, L)`` sparse.
    w
        ``(U, d)``.
    """

    x: sparse.csr_matrix
    w: np.ndarray

    def products(self, other: "Outer") -> np.ndarray:
        """Return ``(U, U')`` inner products."""
        found: np.ndarray = np.asarray((self.x @ other.x.T).todense()) * (self.w @ other.w.T)
        return found

    def against(self, array: np.ndarray) -> np.ndarray:
        """Return ``(U,)`` inner products with an array ``(L, d)``."""
        found: np.ndarray = (np.asarray(self.x @ array) * self.w).sum(axis=1)
        return found


@dataclass
class Decoder:
    """What an attacker knows so far of ``(T,)`` bits.

    Attributes
    ----------
    precision
        ``(T, T)`` ``Σ ⟨d_c, d_c'⟩ / noise²`` over what it saw, ``d = b - a``.
    evidence
        ``(T,)`` ``Σ ⟨d_c, y - Σ a⟩ / noise²``.
    """

    size: int
    precision: np.ndarray = field(init=False)
    evidence: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.precision = np.zeros((self.size, self.size))
        self.evidence = np.zeros(self.size)

    def see(self, inside: Outer, outside: Outer, y: np.ndarray, noise: float) -> None:
        """Take in one array ``(L, d)`` with noise of this standard deviation in every entry."""
        if not self.size:
            return
        cross, rest = inside.products(outside), outside.products(outside)
        inner = inside.products(inside) - cross - cross.T + rest
        known = (cross - rest).sum(axis=1)
        found = inside.against(y) - outside.against(y) - known
        typical = float(np.diag(inner).mean())
        variance = max(noise**2, _EXACT * typical)
        if typical > 0:
            self.precision += inner / variance
            self.evidence += found / variance

    def scores(self) -> np.ndarray:
        """Return ``(T,)`` log-odds of each bit; NaN where a candidate can leave no trace.

        With the bits' first two moments, ``E z = 1/2`` and ``Var z = 1/4``, the best linear
        estimate is ``ẑ = 1/2 + P (evidence - precision 1/2)``, ``P = (precision + 4 I)⁻¹``, and a
        bit that is seen through noise of its own has log-odds ``(ẑ - 1/2) / P_cc``.
        """
        spread = np.linalg.inv(self.precision + 4.0 * np.eye(self.size))
        estimate = spread @ (self.evidence - self.precision.sum(axis=1) / 2)
        traceless = np.diag(self.precision) <= 0
        scores: np.ndarray = np.where(traceless, np.nan, estimate / np.diag(spread))
        return scores


class UpdateAttack:
    """Decodes one shop's bits from its own updates, histogram included."""

    def __init__(self, plan: TrainingPlan, catalogue: Catalogue, candidates: Candidates) -> None:
        self._plan, self._catalogue, self._candidates = plan, catalogue, candidates
        self.decoder = Decoder(len(candidates.events.user_ids))

    def see(self, release: Release) -> None:
        """Take in what the shop sent in one exchange."""
        plan = self._plan
        update = release.updates[self._candidates.events.merchant_id]
        sides = tuple(
            events.select(of_round(plan, events, release.server_round))
            for events in (self._candidates.events, self._candidates.without)
        )
        if release.server_round == 0:
            inside, outside = (histogram_rows(plan, events, self._catalogue) for events in sides)
            noise = plan.popularity_noise_multiplier if plan.private else 0.0
            y = update[POPULARITY].astype(np.float64)[:, None]
            self.decoder.see(inside, outside, y, min(noise, _noise_shown(y)))
            return
        if not decodes_rounds(plan):
            return
        inside, outside = (
            gradients(plan, release.server_round, release.state, events, self._catalogue)
            for events in sides
        )
        # From the update back to the sum over units, and the noise in it.
        y = update[ITEMS].astype(np.float64) * (-plan.batch_normalizer / plan.learning_rate)
        noise = 0.0
        if plan.private:
            clip = plan.clipping_norm(release.server_round)
            noise = plan.noise_multiplier * clip * plan.local_steps**0.5
        self.decoder.see(inside, outside, y, min(noise, _noise_shown(y)))


def _noise_shown(y: np.ndarray) -> float:
    """Return the most noise that an array can have, going by the smaller half of its entries.

    An attacker does not take the plan's word for it: a shop may have added less.
    """
    return float(np.median(np.abs(y))) / _MEDIAN_NORMAL


def decodes_rounds(plan: TrainingPlan) -> bool:
    """Whether the attack knows a unit's gradient in a formula; else it has the histogram alone."""
    model = plan.model
    return (
        plan.loss == "squared"
        and plan.target_share == 1
        and model.tower == "linear"
        and not (model.feature_rows or model.customer_rows)
    )


def histogram_rows(plan: TrainingPlan, events: ShopEvents, catalogue: Catalogue) -> Outer:
    """Return what each customer adds to the popularity histogram."""
    rows = unit_rows(_histories(plan, events, catalogue.size))
    return Outer(rows, np.ones((rows.shape[0], 1)))


def gradients(
    plan: TrainingPlan,
    server_round: int,
    state: Arrays,
    events: ShopEvents,
    catalogue: Catalogue,
) -> Outer:
    """Return what each customer is expected to add to a round's sum of item gradients.

    With ``u`` the customer's vector and ``G = VᵀV`` a constant, the squared loss
    ``½ uᵀG u - ⟨u, u⟩`` has the gradient ``x ⊗ (G u - 2 u)``, clipped to the round's norm. Later
    local steps are taken to be like the first.
    """
    block = block_of(plan.model, state[POPULARITY], catalogue)
    histories = _histories(plan, events, catalogue.size)
    x = block.training_rows(histories, plan.model.row_exponent)
    vectors = state[ITEMS].astype(np.float64)
    along, expected = taken_off(block, plan.model)
    u = np.asarray(x @ vectors) - np.outer(np.asarray(x @ along), expected @ vectors)
    w = u @ (vectors.T @ vectors) - 2.0 * u
    if plan.private:
        norms = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).ravel()) * np.linalg.norm(w, axis=1)
        w = (
            w
            * np.minimum(1.0, plan.clipping_norm(server_round) / np.maximum(norms, 1e-300))[:, None]
        )
    return Outer(x, w * (plan.local_steps * plan.sample_rate))


def model_statistics(
    plan: TrainingPlan, state: Arrays, shops: list[Candidates], catalogue: Catalogue
) -> np.ndarray:
    """Return ``(3, T)`` figures of all shops' candidates, one after the other, from a model alone.

    Bits decoded from the released popularity, taken for the sum of all histograms; what the
    candidate's records add to the popularity that they meet; and what they add to the share of the
    candidate's history that lies in the span of the learned vectors. The last two are weak by
    themselves and are held against models without the candidate: :func:`calibrated`.
    """
    sides = [[c.events for c in shops], [c.without for c in shops]]
    # The popularity has seen no others.
    seen = [[events.select(of_round(plan, events, 0)) for events in side] for side in sides]
    inside, outside = (
        _stacked([histogram_rows(plan, shop, catalogue) for shop in side]) for side in seen
    )
    rates = state[POPULARITY].astype(np.float64)[:, None]
    # Normalising hides the scale alone: what is expected of it stands in.
    scale = float(inside.x.sum() + outside.x.sum()) / 2
    noise = plan.popularity_noise_multiplier * len(shops) ** 0.5 if plan.private else 0.0
    decoder = Decoder(inside.x.shape[0])
    decoder.see(inside, outside, rates * scale, noise)
    block = block_of(plan.model, state[POPULARITY], catalogue)
    basis = np.linalg.qr(state[ITEMS].astype(np.float64))[0]
    shares = []
    for side in sides:
        rows = sparse.vstack(
            [block.training_rows(_histories(plan, s, catalogue.size), 0.0) for s in side]
        )
        square = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
        along = (np.asarray(rows @ basis) ** 2).sum(axis=1)
        shares.append(np.divide(along, square, out=np.zeros_like(along), where=square > 0))
    return np.stack(
        [
            special.expit(decoder.scores()),
            inside.against(rates) - outside.against(rates),
            shares[0] - shares[1],
        ]
    )


def calibrated(statistics: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return ``(M, T)`` scores of ``(M, K, T)`` figures, each held against the other models.

    As Carlini et al. 2022 ("Membership inference attacks from first principles", algorithm 1) with
    one variance for all: a model's figures less the candidate's mean over the other models, the
    effect of being in taken off, weighted by that effect over their variance. All of it is known
    of the other models only.

    Parameters
    ----------
    inside
        ``(M, T)`` the bits.
    """
    values = np.nan_to_num(statistics)
    scores = np.full(inside.shape, np.nan)
    for model in range(len(inside)):
        others = np.arange(len(inside)) != model
        known, bits = values[others], inside[others][:, None, :].astype(np.float64)
        # Within a candidate, so that who is easy to see plays no part.
        centred = known - known.mean(axis=0)
        moved = bits - bits.mean(axis=0)
        effect = (centred * moved).sum(axis=(0, 2)) / max(float((moved**2).sum()), 1e-12)
        rest = centred - effect[:, None] * moved
        variance = np.maximum((rest**2).mean(axis=(0, 2)), 1e-300)
        absent = known.mean(axis=0) - effect[:, None] * bits.mean(axis=0)
        scores[model] = ((values[model] - absent) * (effect / variance)[:, None]).sum(axis=0)
    return np.where(np.isnan(statistics[:, 0]), np.nan, scores)


def _stacked(parts: list[Outer]) -> Outer:
    x = sparse.csr_matrix(sparse.vstack([part.x for part in parts]))
    return Outer(x, np.concatenate([part.w for part in parts]))


def _histories(plan: TrainingPlan, events: ShopEvents, size: int) -> sparse.csr_matrix:
    weights = event_weights(events, plan.half_life_days, plan.reference_time)
    return unit_histories(events, "customer", size, weights).history
