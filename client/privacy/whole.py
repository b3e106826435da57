"""Clipped contributions in whole numbers: what a secure sum is made of.

A unit's contribution is clipped to norm ``C``, scaled so that ``C`` is ``steps`` whole steps, and
each number cut towards zero. Cutting towards zero lengthens no vector, so the norm of what is left
is at most ``steps``: a bound that holds for every unit, whatever its data, with no chance of
failure and no growth with the dimension as randomised rounding has it (Kairouz et al. 2021, arXiv
2102.06387). What it costs is a bias of less than one step a number, beside noise of
thousands. The bound is checked in whole numbers: a unit beyond it adds nothing.
"""

import numpy as np

from client.privacy.layers import UnitEmbedding
from client.privacy.optimizer import UnitOptimizer
from client.privacy.step import ExactDPStep


class WholeOptimizer(UnitOptimizer):
    """Sums clipped gradients in whole steps, and takes no step itself.

    Attributes
    ----------
    steps
        Whole steps that the clipping norm is; set before the first batch.
    whole
        Name -> int64 sum so far.
    """

    steps: int = 0

    def accumulate(self) -> None:
        """Scale the last batch's gradients, cut them to whole steps, and sum."""
        if not hasattr(self, "whole"):
            self.whole: dict[str, np.ndarray] = {
                name: np.zeros(tuple(layer.weight.shape), np.int64)
                for name, layer in self._layers.items()
            }
        size = len(self.unit_norms)
        squares = np.zeros(size)
        parts: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
        for place, (name, layer) in enumerate(self._layers.items()):
            scale = (self.factors[:, place] * (self.steps / float(self.max_grad_norm))).numpy()
            if isinstance(layer, UnitEmbedding):
                units, rows, values = _pairs(layer)
            else:
                sample = layer.weight.grad_sample
                assert sample is not None
                units, rows = np.arange(size), np.zeros(0, np.int64)
                values = sample.detach().flatten(1).numpy()
            # A unit that overflowed has factor 0, and its numbers are left out.
            values = np.where(scale[units, None] > 0, values, 0.0)
            scaled = np.trunc(values * scale[units, None])
            # In float64 no square wraps around, and sums of whole squares are exact up to 2^53: far
            # beyond the bound, which none that was rounded can come back below.
            np.add.at(squares, units, (scaled**2).sum(axis=1))
            parts.append((name, units, rows, scaled))
        within = squares <= float(self.steps) ** 2
        for name, units, rows, scaled in parts:
            # Nor is a number turned into int64 that it may not hold.
            whole = np.where(within[units, None], scaled, 0.0).astype(np.int64)
            total = self.whole[name]
            if isinstance(self._layers[name], UnitEmbedding):
                # Pairs come by row: one sum each, then into the table.
                starts = np.flatnonzero(np.diff(rows, prepend=-1))
                if len(starts):
                    total[rows[starts]] += np.add.reduceat(whole, starts, axis=0)
            else:
                total += whole.sum(axis=0).reshape(total.shape)


class WholeStep(ExactDPStep):
    """:class:`ExactDPStep` whose sums are of whole numbers, and whose noise somebody else adds."""

    optimizer_class = WholeOptimizer

    def whole(self, name: str) -> np.ndarray:
        """Return a parameter's sum of clipped gradients so far, int64 in whole steps."""
        optimizer = self.optimizer
        assert isinstance(optimizer, WholeOptimizer)
        shape = tuple(self._layers[name].weight.shape)
        # Without a single unit there was no batch.
        if not hasattr(optimizer, "whole"):
            return np.zeros(shape, np.int64)
        return optimizer.whole[name].copy()


def _pairs(layer: UnitEmbedding) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return units (P,), rows (P,) and float64 gradients (P, D) of each pair of unit and row.

    What a unit reads more than once is summed first: it is one number of the unit's gradient.
    """
    kept = layer.gradients
    width = layer.weight.shape[1]
    if kept is None or not len(kept.reads.rows):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, width))
    reads = kept.reads
    places = reads.places.numpy().astype(np.int64)
    units = places // max(reads.length, 1)
    entries = np.searchsorted(reads.starts.numpy(), np.arange(len(places)), side="right") - 1
    rows = reads.rows.numpy()[entries]
    first = np.ones(len(places), dtype=bool)
    first[1:] = (rows[1:] != rows[:-1]) | (units[1:] != units[:-1])
    values = kept.values.detach().numpy()[places].astype(np.float64)
    summed = np.add.reduceat(values, np.flatnonzero(first), axis=0)
    return units[first], rows[first], summed
