"""A table's sum of gradients, and the noise it is owed, by rows: no step touches all of a table."""

import numpy as np
import torch

from client.privacy.adding import adder
from client.privacy.folding import fold_rows, move_rows, take_slots
from client.privacy.layers import WeightedRows
from client.privacy.moving import add_rows
from client.privacy.noise import NoiseSource
from client.privacy.normals import MOST

# Rows whose noise's sizes are computed at a time.
_SCALES = 1 << 13
# Steps are counted for each row in the smallest numbers that hold a round's.
_MOST_STEPS = np.iinfo(np.uint16).max


class RowSum:
    """A sum of gradients of a table ``(N, D)``, in the rows that are not zero, in float64.

    Batches add up. What the last one adds waits as it is, and goes into a table with no copy in
    between if it remains the only one. Else each row that is not zero has a slot, in the order in
    which rows come: memory is in proportion to the rows that units read.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._last: WeightedRows | None = None
        # Slots by row, from 1; rows and sums by slot.
        self._taken = 0
        self._slots = np.zeros(0, np.int32)
        self._rows = np.zeros(0, np.int64)
        self._sums = np.zeros((0, shape[1]))

    def add(self, gradients: WeightedRows) -> None:
        """Add the sums of a batch."""
        self.settle()
        self._last = gradients

    def settle(self) -> None:
        """Sum up what waits: the gradients that it holds are needed no more."""
        if self._last is None:
            return
        last, self._last = self._last, None
        if not self._taken:
            self._slots = np.zeros(self._shape[0], np.int32)
            # Pages that are never written cost nothing; numpy would ask for large ones, which do.
            self._rows = torch.empty(self._shape[0], dtype=torch.int64).numpy()
            self._sums = torch.empty(self._shape, dtype=torch.float64).numpy()
        before = self._taken
        slots, self._taken = take_slots(last.rows, self._slots, self._rows, before)
        fold_rows(last.terms, slots, self._sums, fresh=before)

    def dense(self) -> np.ndarray:
        """Return the sum as a new array ``(N, D)`` float64."""
        self.settle()
        whole = np.zeros(self._shape)
        whole[self._rows[: self._taken]] = self._sums[: self._taken]
        return whole

    def spend(self, weight: torch.Tensor, scale: float) -> None:
        """Add ``scale`` times the sum to ``weight`` ``(N, D)``, and begin a new sum.

        Each number of the weight is rounded once.
        """
        table = weight.numpy()
        if self._last is not None and not self._taken:
            move_rows(self._last.terms, self._last.rows, table, scale)
        else:
            self.settle()
            add_rows(table, self._rows[: self._taken], self._sums[: self._taken], scale)
        self.clear()

    def clear(self) -> None:
        """Begin a new sum."""
        self._last, self._taken = None, 0
        # Copies: a part of an array would keep all of it.
        self._slots, self._rows = self._slots[:0].copy(), self._rows[:0].copy()
        self._sums = self._sums[:0].copy()


class OwedNoise:
    """Noise that a table's rows are owed, paid in one draw when a row is next read.

    Rows that no unit reads for ``k`` steps need ``k`` draws of N(0, s²), and nobody looks at them
    in between: one draw of N(0, k s²) has the same distribution (LazyDP: Lim et al. 2024, arXiv
    2404.08847, section 5, "aggregated noise sampling"). Holds for plain SGD alone, where noise
    enters a weight once and is never fed back. :meth:`pay_all` before anything leaves.

    Parameters
    ----------
    weight
        ``(N, D)`` float32, changed in place.
    noise
        Where the draws come from.
    """

    def __init__(self, weight: torch.Tensor, noise: NoiseSource) -> None:
        self._weight = weight.detach().numpy()
        self._noise = noise
        self._steps, self._scale = 0, 0.0
        self._paid = np.zeros(len(weight), np.uint16)
        self._all_paid = 0

    def owe(self, scale: float) -> None:
        """Owe every row one more step's noise, of standard deviation ``scale`` in the weight."""
        if scale != self._scale:
            self.pay_all()
            self._scale = scale
        if self._steps == _MOST_STEPS:
            self.pay_all()
            self._paid[:] = self._steps = self._all_paid = 0
        self._steps += 1

    def pay(self, rows: torch.Tensor) -> None:
        """Pay all that distinct ``rows`` ``(R,)`` are owed."""
        chosen = rows.numpy()
        owed = self._steps - self._paid[chosen]
        if not owed.all():
            # Paid by an earlier batch of the same step.
            left = np.flatnonzero(owed)
            chosen, owed = chosen[left], owed[left]
        work = adder(self._noise, self._weight.shape[1])
        for start in range(0, len(chosen), work.rows):
            part = slice(start, start + work.rows)
            work.add(self._weight, chosen[part], self._scales(owed[part]))
        work.close()
        self._paid[chosen] = self._steps

    def pay_all(self) -> None:
        """Pay all that all rows are owed."""
        if self._all_paid == self._steps:
            return
        work, rows = adder(self._noise, self._weight.shape[1]), np.arange(_SCALES)
        for begin in range(0, len(self._weight), _SCALES):
            block = self._weight[begin : begin + _SCALES]
            scales = self._scales(self._steps - self._paid[begin : begin + _SCALES])
            for start in range(0, len(block), work.rows):
                part = slice(start, min(start + work.rows, len(block)))
                work.add(block, rows[part], scales[part])
        work.close()
        self._paid[:] = self._all_paid = self._steps

    def _scales(self, owed: np.ndarray) -> np.ndarray:
        """Return the size of the noise of ``owed`` steps (R,), float64."""
        scales: np.ndarray = self._scale * np.sqrt(owed, dtype=np.float64)
        return scales


def rounded(total: np.ndarray, std: float, noise: NoiseSource | None) -> torch.Tensor:
    """Return a float64 array with N(0, std²) added to every entry, in float32: rounded once."""
    found = np.empty(total.shape, np.float32)
    flat, exact = found.reshape(-1), total.reshape(-1)
    for start in range(0, len(flat), MOST):
        part = slice(start, start + MOST)
        drawn = 0.0 if noise is None else np.asarray(noise.normal(len(flat[part]), std))
        flat[part] = exact[part] + drawn
    return torch.from_numpy(found)
