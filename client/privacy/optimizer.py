"""Opacus' optimizer for gradients of rows: joint clipping, the clipped sum, then the noise."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from client.privacy.layers import UnitEmbedding, UnitParameter
from client.privacy.noise import NoiseSource
from client.privacy.rows import OwedNoise, RowSum, rounded

# Rounding may push a clipped gradient above its bound; this keeps it below.
_CLIP_MARGIN = 1 - 1e-6
# A gradient that needs a smaller factor is nearly too large for float32.
_LEAST_FACTOR = 1e-30
# Numbers of dense gradients that are turned into float64 at a time.
_EXACT = 1 << 18


class UnitOptimizer(DPOptimizer):  # type: ignore[misc] # Opacus has no types.
    """Opacus' optimizer for :mod:`client.privacy.layers`, with noise from a :class:`NoiseSource`.

    Clipped sums of any number of physical batches add up before one step. :meth:`clip` and
    :meth:`noise_std` are all that privacy hangs on.

    Parameters
    ----------
    optimizer
        Moves the parameters; plain SGD where ``lazy``.
    layers
        By name, each the only owner of one parameter.
    batch_normalizer
        Public constant that the noisy sum is divided by.
    noise
        Required where ``noise_multiplier`` is above 0.
    lazy
        Whether tables are moved by rows, and noise waits until a row is read or :meth:`flush`.
        Else every step makes a dense noisy gradient for ``optimizer``.

    Attributes
    ----------
    unit_norms
        ``(B,)`` float64 exact gradient norms of the last batch's units, before clipping.
    factors
        ``(B, P)`` float64 what the last batch's gradients were scaled by, in the layers' order.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        layers: Mapping[str, UnitEmbedding | UnitParameter],
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        batch_normalizer: float,
        noise: NoiseSource | None,
        lazy: bool,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.batch_normalizer = batch_normalizer
        self._layers, self._noise, self._lazy = dict(layers), noise, lazy
        self._sums: dict[str, RowSum] = {}
        self._owed: dict[str, OwedNoise] = {}
        for name, layer in self._layers.items():
            if isinstance(layer, UnitParameter):
                continue
            count, width = layer.weight.shape
            self._sums[name] = RowSum((count, width))
            if lazy and noise is not None:
                self._owed[name] = OwedNoise(layer.weight, noise)
                layer.before_read = self._owed[name].pay
        self.unit_norms = torch.zeros(0, dtype=torch.float64)
        self.factors = torch.zeros((0, len(self._layers)), dtype=torch.float64)

    @property
    def accumulated_iterations(self) -> int:
        """Physical batches are parts of one sample: one step is one step to the accountant."""
        return 1

    def clip(self, norms: torch.Tensor) -> torch.Tensor:
        """Return what to scale each unit's gradients by, ``(B, P)`` float64.

        One factor for all of a unit's parameters, from the norm over all of them.

        Parameters
        ----------
        norms
            ``(B, P)`` float64 norms of each unit's gradient of each parameter.
        """
        bound = float(self.max_grad_norm) * _CLIP_MARGIN
        return _joint(norms).reciprocal().mul_(bound).clamp_(max=1.0).expand_as(norms)

    def noise_std(self, name: str) -> float:  # noqa: ARG002 - the same for every parameter
        """Return the standard deviation of the noise in a parameter's sum of gradients."""
        return float(self.noise_multiplier * self.max_grad_norm)

    def clip_and_accumulate(self) -> None:
        """Scale each unit's gradient over *all* parameters to the norm bound, and sum."""
        self.find_factors()
        self.accumulate()

    def find_factors(self) -> None:
        """Find what each unit's gradient over *all* parameters is scaled by to keep the bound."""
        norms = torch.stack([_norms(layer) for layer in self._layers.values()], dim=1)
        self.unit_norms = _joint(norms).squeeze(1)
        # A unit whose gradient overflows, or nearly, adds nothing: it must not spoil the sum.
        self.factors = self.clip(norms)
        norm, factor = self.unit_norms.numpy(), self.factors.numpy()
        # What is not a number is neither below nor above.
        if norm.max() < np.inf and factor.min() >= _LEAST_FACTOR:
            return
        kept = np.isfinite(norm) & (factor.min(axis=1) >= _LEAST_FACTOR)
        lost = torch.from_numpy(~kept)
        self.factors = self.factors.masked_fill(lost.unsqueeze(1), 0.0)
        for layer in self._layers.values():
            if isinstance(layer, UnitEmbedding):
                if layer.gradients is not None:
                    layer.gradients = layer.gradients.without(lost)
            else:
                sample = layer.weight.grad_sample
                assert sample is not None
                shape = (-1,) + (1,) * (sample.dim() - 1)
                layer.weight.grad_sample = sample.masked_fill(lost.reshape(shape), 0.0)

    def accumulate(self) -> None:
        """Add up the last batch's gradients times their factors, in float64."""
        for place, (name, layer) in enumerate(self._layers.items()):
            factors = self.factors[:, place]
            if isinstance(layer, UnitEmbedding):
                own = layer.gradients
                if own is not None and len(own.reads.rows):
                    self._sums[name].add(own.weighted(factors))
            else:
                sample = layer.weight.grad_sample
                assert sample is not None
                total, before = _weighted_sum(factors, sample), layer.weight.summed_grad
                layer.weight.summed_grad = total if before is None else before + total

    def settle(self) -> None:
        """Sum up what the last batch added, and hold on to its gradients no longer."""
        for total in self._sums.values():
            total.settle()

    def summed(self, name: str) -> np.ndarray:
        """Return a copy of a parameter's sum of clipped gradients so far, dense, float64."""
        if name in self._sums:
            return self._sums[name].dense()
        weight = self._layers[name].weight
        if weight.summed_grad is None:
            return np.zeros(tuple(weight.shape))
        return weight.summed_grad.numpy().copy()

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002
        """Turn the sums accumulated so far into noisy gradients, or move tables by rows at once."""
        left = False
        for group in self.param_groups:
            name, rate = group["name"], group["lr"] / self.batch_normalizer
            layer = self._layers[name]
            layer.moved = True
            if self._lazy and name in self._sums:
                self._sums[name].spend(layer.weight.detach(), -rate)
                if name in self._owed:
                    self._owed[name].owe(rate * self.noise_std(name))
                continue
            gradient = rounded(self.summed(name), self.noise_std(name), self._noise)
            layer.weight.grad = gradient.div_(self.batch_normalizer)
            left = True
        if self.step_hook:
            self.step_hook(self)
        # Whether any gradient is left to the optimizer that is wrapped.
        return left

    def flush(self) -> None:
        """Pay all noise that is owed: nothing may leave before."""
        for owed in self._owed.values():
            owed.pay_all()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and begin a new sum."""
        super().zero_grad(set_to_none)
        for total in self._sums.values():
            total.clear()


def _norms(layer: UnitEmbedding | UnitParameter) -> torch.Tensor:
    """Return each unit's gradient norm of one layer's parameter, ``(B,)`` float64."""
    sample = layer.weight.grad_sample
    assert sample is not None
    norms: torch.Tensor = (
        sample.squeeze(1)
        if isinstance(layer, UnitEmbedding)
        else torch.linalg.vector_norm(sample.flatten(1), dim=1, dtype=torch.float64)
    )
    return norms


def _weighted_sum(factors: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Return the sum over units of ``sample`` ``(B, ...)`` times factors ``(B,)``, float64."""
    total = torch.zeros(sample.shape[1:], dtype=torch.float64)
    count = max(1, _EXACT // max(total.numel(), 1))
    for start in range(0, len(sample), count):
        part = slice(start, start + count)
        total += torch.tensordot(factors[part], sample[part].double(), dims=1)
    return total


def _joint(norms: torch.Tensor) -> torch.Tensor:
    """Return the norm over all parameters, ``(B, 1)``, of norms of each, ``(B, P)``."""
    if norms.shape[1] == 1:
        return norms
    return norms.square().sum(dim=1, keepdim=True).sqrt_()
