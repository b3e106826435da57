"""Opacus' optimizer for gradients of rows: joint clipping, the clipped sum, then the noise."""

from collections.abc import Callable, Collection

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from client.privacy.layers import UnitEmbedding, UnitParameter
from client.privacy.noise import NoiseSource

# Noise is drawn this many values at a time: float64 noise of a whole table would be twice its size.
_NOISE_CHUNK = 1 << 20
# float32 rounding may push a clipped gradient above its bound; this keeps it below.
_CLIP_MARGIN = 1 - 1e-6


class UnitOptimizer(DPOptimizer):  # type: ignore[misc] # Opacus has no types.
    """Opacus' optimizer for :mod:`client.privacy.layers`, with noise from a :class:`NoiseSource`.

    Clipped sums of any number of physical batches add up in ``summed_grad`` before one step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        layers: Collection[UnitEmbedding | UnitParameter],
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        batch_normalizer: float,
        noise: NoiseSource | None,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._layers = list(layers)
        self._batch_normalizer = batch_normalizer
        self.noise = noise
        self.unit_norms = torch.zeros(0, dtype=torch.float64)
        self.clip_factors = torch.zeros(0, dtype=torch.float64)

    @property
    def accumulated_iterations(self) -> int:
        """Physical batches are parts of one sample: one step is one step to the accountant."""
        return 1

    def clip_and_accumulate(self) -> None:
        """Scale each unit's gradient over *all* parameters to the norm bound, and sum."""
        per_parameter = [
            torch.linalg.vector_norm(p.grad_sample.flatten(1), dim=1, dtype=torch.float64)
            for p in self.params
        ]
        self.unit_norms = torch.stack(per_parameter, dim=1).norm(dim=1)
        bound = self.max_grad_norm * _CLIP_MARGIN
        factors = torch.where(
            self.unit_norms <= self.max_grad_norm, 1.0, bound / self.unit_norms.clamp(min=1e-300)
        )
        # A unit whose gradient overflows contributes nothing; it must not spoil the sum.
        usable = self.unit_norms.isfinite()
        self.clip_factors = factors.where(usable, 0.0)
        for layer in self._layers:
            total = layer.weight.summed_grad
            if total is None:
                total = layer.weight.summed_grad = torch.zeros_like(
                    layer.weight, requires_grad=False
                )
            if isinstance(layer, UnitParameter):
                sample = layer.weight.grad_sample
                assert sample is not None
                shape = (-1,) + (1,) * (sample.dim() - 1)
                clipped = sample * self.clip_factors.to(sample.dtype).reshape(shape)
                total += clipped.where(usable.reshape(shape), 0.0).sum(dim=0)
            elif layer.gradients is not None:
                kept = layer.gradients
                factor = self.clip_factors.to(kept.values.dtype)[kept.units].unsqueeze(1)
                clipped = (kept.values * factor).where(usable[kept.units].unsqueeze(1), 0.0)
                total.index_add_(0, kept.rows, clipped)

    def add_noise(self) -> None:
        """Add N(0, (noise_multiplier · max_grad_norm)²) to every entry of every parameter."""
        for p in self.params:
            p.grad = p.summed_grad
            if self.noise_multiplier == 0:
                continue
            assert self.noise is not None
            std = self.noise_multiplier * self.max_grad_norm
            for part in p.grad.view(-1).split(_NOISE_CHUNK):
                # Added in float64, rounded once.
                noise = torch.from_numpy(np.asarray(self.noise.normal(part.numel(), std)))
                part.copy_(noise.add_(part))

    def scale_grad(self) -> None:
        """Divide by the plan's public normaliser, never by how many units were sampled."""
        for p in self.params:
            p.grad /= self._batch_normalizer

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002
        """Turn the sums accumulated so far into a noisy gradient."""
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True
