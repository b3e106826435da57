"""A table's sum of gradients, and the noise it is owed, by rows: no step touches all of a table."""

import numpy as np
import torch

from client.privacy.adding import adder
from client.privacy.moving import add_rows
from client.privacy.noise import NoiseSource
from client.privacy.normals import MOST

# Rows whose noise's sizes are computed at a time.
_SCALES = 1 << 13
# Steps are counted for each row in the smallest numbers that hold a round's.
_MOST_STEPS = np.iinfo(np.uint16).max


class RowSum:
    """A sum of gradients of a table ``(N, D)``, in the rows that are not zero.

    Batches add up. Batches of more than half the table's rows become one array of the table's
    size: memory stays bounded, and the work in proportion to the rows that units read.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._whole: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Add ``values`` ``(R, D)`` to the sum in distinct ``rows`` ``(R,)``."""
        self._parts.append((rows, values))
        held = sum(len(rows) for rows, _ in self._parts)
        if len(self._parts) > 1 and 2 * held > self._shape[0]:
            whole = torch.zeros(self._shape) if self._whole is None else self._whole
            self._move(whole)
            self._whole, self._parts = whole, []

    def dense(self) -> torch.Tensor:
        """Return the sum as a new array ``(N, D)``."""
        whole = torch.zeros(self._shape) if self._whole is None else self._whole.clone()
        self._move(whole)
        return whole

    def spend(self, weight: torch.Tensor, scale: float) -> None:
        """Add ``scale`` times the sum to ``weight`` ``(N, D)``, and begin a new sum."""
        if self._whole is not None:
            weight.add_(self._whole, alpha=scale)
        self._move(weight, scale)
        self.clear()

    def clear(self) -> None:
        """Begin a new sum."""
        self._parts, self._whole = [], None

    def _move(self, target: torch.Tensor, scale: float = 1.0) -> None:
        """Add ``scale`` times what is not whole."""
        for rows, values in self._parts:
            add_rows(target.numpy(), rows.numpy(), values.numpy(), scale)


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
            chosen, owed = chosen[owed > 0], owed[owed > 0]
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


def add_noise(values: torch.Tensor, std: float, noise: NoiseSource) -> None:
    """Add N(0, std²) to every entry of a contiguous float32 array, in float64, rounded once."""
    flat = values.view(-1).numpy()
    for start in range(0, len(flat), MOST):
        part = flat[start : start + MOST]
        part[...] = np.asarray(noise.normal(len(part), std)) + part
