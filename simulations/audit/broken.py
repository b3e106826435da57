"""Steps with one mistake each, that an audit must tell from the exact one; for audits alone."""

import torch

from client.privacy.optimizer import UnitOptimizer
from client.privacy.step import ExactDPStep


class _ClippingPerTable(UnitOptimizer):
    def clip(self, norms: torch.Tensor) -> torch.Tensor:
        factors: torch.Tensor = (self.max_grad_norm / norms.clamp(min=1e-300)).clamp(max=1.0)
        return factors


class _TableWithoutNoise(UnitOptimizer):
    def noise_std(self, name: str) -> float:
        return 0.0 if name == min(self._layers) else super().noise_std(name)


class _HalfNoise(UnitOptimizer):
    def noise_std(self, name: str) -> float:
        return super().noise_std(name) / 2


class ClippingPerTable(ExactDPStep):
    """Bounds a unit's gradient of each parameter by itself: with P of them, by √P times as much."""

    optimizer_class = _ClippingPerTable


class TableWithoutNoise(ExactDPStep):
    """Leaves one of the tables as the units' sum made it."""

    optimizer_class = _TableWithoutNoise


class HalfNoise(ExactDPStep):
    """Adds noise of half the standard deviation that the ledger is charged for."""

    optimizer_class = _HalfNoise


BROKEN: dict[str, type[ExactDPStep]] = {
    "clipping-per-table": ClippingPerTable,
    "table-without-noise": TableWithoutNoise,
    "half-noise": HalfNoise,
}
