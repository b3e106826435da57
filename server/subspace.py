"""The server optimiser for item vectors: federated (noisy) subspace iteration.

For orthonormal item vectors ``V`` the shops' mean update is ``η/N · Aᵀ(A V - ...)``, with one row
of ``A`` a unit: one step of the power method on the units' co-occurrence. The server centres it
(where the plan says so), keeps the orthonormal basis and hands the singular values on as the
spectrum: the energy of all units along each direction. With noise in every
update this is the noisy power method (Hardt & Price 2014, "The Noisy Power Method", algorithm 1);
all that happens here is post-processing of what was released.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.blocks import LearnedBlock
from common.protocol import ITEMS, POPULARITY, SPECTRUM, Arrays, TrainingPlan

_SUM, _WEIGHT, _SQUARES = "sum", "sum_weight", "sum_squares"


@dataclass(frozen=True)
class SubspaceOptimizer:
    """Subspace iteration with memory.

    Parameters
    ----------
    plan
        Fixes which products are learned, and with what noise.
    momentum
        β of ``S = β S (V_oldᵀ V) + Δ``: what earlier rounds saw, turned into the present basis,
        counts on with weight β a round. Averages noise away where rounds are noisy.
    """

    plan: TrainingPlan
    momentum: float = 0.0

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """Return the memory before the first round."""
        return {
            _SUM: np.zeros(shapes[ITEMS]),
            _WEIGHT: np.zeros(1),
            _SQUARES: np.zeros(1),
        }

    def apply(
        self,
        state: Arrays,
        delta: Arrays,
        memory: Arrays,
        shops: int,
        server_round: int,
        variances: float | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Return the new state (float32) and memory from ``shops`` shops' mean update.

        How many they are says how much noise is in it, for the correction of the spectrum.
        ``server_round`` is the plan's own number of the round: it fixes the noise in the update,
        also where rounds before it found no quorum and were never applied. ``variances`` is how
        many times the plan's noise variance is in a row of the sum, on average; None: as the plan
        says of so many shops.
        """
        change = delta[ITEMS].astype(np.float64)
        total = self.momentum * memory[_SUM] + change
        weight = self.momentum * memory[_WEIGHT] + 1.0
        clip = self.plan.clipping_norm(server_round)
        squares = self.momentum**2 * memory[_SQUARES] + clip**2
        mean = total / weight
        if self.plan.model.centred and not self.plan.model.groups:
            mean = centre(mean, LearnedBlock.of(self.plan.model, state[POPULARITY]))
        if self.plan.model.popular_share < 1.0:
            popular = LearnedBlock.of(self.plan.model, state[POPULARITY]).popular
            mean = damp(mean, popular, self.plan.model.popular_share)
        # Rows of zeros where there are fewer products than dimensions.
        spare = max(mean.shape[1] - len(mean), 0)
        # The SVD by way of QR: of the tall matrix only once, and the rest is d x d.
        tall, small = np.linalg.qr(np.pad(mean, ((0, spare), (0, 0))))
        turn, values, _ = np.linalg.svd(small)
        basis = (tall @ turn)[: len(mean)]
        spectrum = denoise(values, self.noise(shops, weight, squares, variances), len(mean))
        # From the mean update back to the sum over all units, of whom a step samples a share.
        steps = self.plan.local_steps * self.plan.sample_rate
        step = self.plan.learning_rate * steps / self.plan.batch_normalizer
        energy = spectrum * shops / step
        old = state[ITEMS].astype(np.float64)
        new_state = {
            **state,
            ITEMS: basis.astype(np.float32),
            SPECTRUM: energy.astype(np.float32),
        }
        # The sum is kept in the new basis: its columns were images of the old one.
        memory = {
            _SUM: total @ (old.T @ basis),
            _WEIGHT: weight,
            _SQUARES: squares,
        }
        return new_state, memory

    def noise(
        self,
        shops: int,
        weight: np.ndarray,
        squares: np.ndarray,
        variances: float | None = None,
    ) -> float:
        """Return the standard deviation of the noise in one entry of the averaged update.

        Parameters
        ----------
        weight, squares
            (1,) each, of the memory: ``Σ w`` and ``Σ (w C)²`` over the rounds in the average, of
            weight ``w`` and clipping norm ``C``.
        variances
            How many times one shop's noise variance is in the sum; None: as the plan says.
        """
        plan = self.plan
        if not plan.private:
            return 0.0
        one = _noise_by_norm(plan) / shops**0.5
        times = plan.noise_variances(shops) if variances is None else variances
        one *= (times / shops) ** 0.5
        return float(one * np.sqrt(squares[0]) / weight[0])


def update_noise(plan: TrainingPlan, server_round: int) -> float:
    """Return the standard deviation of the noise in each number of one shop's update."""
    return _noise_by_norm(plan) * plan.clipping_norm(server_round) if plan.private else 0.0


def _noise_by_norm(plan: TrainingPlan) -> float:
    """Return the noise in each number of an update, for units of norm 1."""
    step = plan.learning_rate * plan.noise_multiplier
    return float(step * plan.local_steps**0.5 / plan.batch_normalizer)


def centre(update: np.ndarray, block: LearnedBlock) -> np.ndarray:
    """Take the expected basket off an update ``(L, d)`` on the side of its rows.

    A shop's sparse update holds ``Σ_u x_u uᵀ``; its column sums in product units give each unit's
    size times ``uᵀ``, so ``Σ_u (x_u - k_u p) uᵀ`` follows from released arrays alone.
    """
    products = update * block.gain[:, None]
    products = products - np.outer(block.rates, products.sum(axis=0))
    centred: np.ndarray = products / block.gain[:, None]
    return centred


def damp(update: np.ndarray, popular: np.ndarray, share: float) -> np.ndarray:
    """Leave ``share`` of what the columns of (L, d) have along (L,) ``popular``, of norm 1.

    Units took it off their side of ``Σ_u x_u uᵀ``; this takes it off the side of the rows.
    """
    damped: np.ndarray = update - (1.0 - share) * np.outer(popular, popular @ update)
    return damped


def denoise(values: np.ndarray, noise: float, rows: int) -> np.ndarray:
    """Return singular values (d,) without what noise of this spread adds to them on average.

    ``E ‖z‖² = s² + rows · noise²`` for a column of signal ``s`` (Gavish & Donoho 2017 treat the
    general case).
    """
    cleaned: np.ndarray = np.sqrt(np.maximum(values**2 - rows * noise**2, 0.0))
    return cleaned
