"""Losses of one unit, summed within the unit: the one seam between a tower and what it learns.

A loss sees a unit's customer vector and vectors pooled from the unit's own products, never another
unit's, so every per-unit gradient is exact, to the last bit, whatever the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.protocol import LossName

# Floats in 64 bytes.
_ALIGNED = 16
# Floats that torch's loops take at a time, at most: what is left at an array's end is computed in
# another way, and other bits.
_TOGETHER = 64


@dataclass(frozen=True)
class UnitVectors:
    """What a loss may read of a batch of units.

    Attributes
    ----------
    customer
        (B, d) customer vectors ``u``.
    target
        (B, d) ``Σ_{i in targets} x_i v_i``, the expected basket taken off.
    targets, target_mask
        (B, T, d) vectors and (B, T) mask of single target products; T = 0 for ``squared``.
    negatives
        (B, N, d) vectors of products drawn for this unit alone; N = 0 for ``squared``.
    gram
        (d, d) ``VᵀV`` of the released item vectors, a constant.
    """

    customer: Tensor
    target: Tensor
    targets: Tensor
    target_mask: Tensor
    negatives: Tensor
    gram: Tensor


Loss = Callable[[UnitVectors], Tensor]


def squared(unit: UnitVectors) -> Tensor:
    """Return (B,) squared errors over the *whole* catalogue, up to a constant.

    ``½ ‖x - V u‖² = ½ ‖x‖² - ⟨u, Vᵀx⟩ + ½ uᵀ(VᵀV)u``: no negative is ever sampled (the Gram trick
    of Hu, Koren & Volinsky 2008, section 4). ``VᵀV`` is that of the released state, a constant:
    its gradient, dense in the catalogue, depends on no unit and is the server's to apply. For
    orthonormal ``V`` and a linear tower the gradient is Oja's ``-x uᵀ`` (Oja 1982, eq. 3).
    """
    fit = (unit.customer * unit.target).sum(dim=1)
    return 0.5 * _energy(unit.customer, unit.gram) - fit


def softmax(unit: UnitVectors) -> Tensor:
    """Return (B,) sums over a unit's targets of the sampled softmax loss.

    Negatives come from the released popularity, so the logits need no correction for ranking by
    lift over popularity (Yi et al. 2019, eq. 3, with the correction left to the bias).
    """
    customer = unit.customer.unsqueeze(1)
    positive = (unit.targets * customer).sum(dim=2)
    negative = (unit.negatives * customer).sum(dim=2).logsumexp(dim=1, keepdim=True)
    # Each unit's own fill whole turns of the loop: else the last unit of a batch has other bits.
    spare = (0, -positive.shape[1] % _TOGETHER)
    margins = functional.softplus(functional.pad(negative - positive, spare))
    return (margins * functional.pad(unit.target_mask, spare)).sum(dim=1)


def _energy(customer: Tensor, gram: Tensor) -> Tensor:
    """Return (B,) ``uᵀ G u``, the same bits for a unit whatever the rest of its batch.

    One matrix product for the whole batch would round a row by how many rows there are, and a
    vector's place in memory decides how BLAS sums it: each unit has a product of its own, and all
    begin at a multiple of 64 bytes.
    """
    spare = -customer.shape[1] % _ALIGNED
    vectors = functional.pad(customer, (0, spare))
    square = functional.pad(gram, (0, spare, 0, spare)).expand(len(customer), -1, -1)
    return (torch.bmm(vectors.unsqueeze(1), square).squeeze(1) * vectors).sum(dim=1)


LOSSES: dict[LossName, Loss] = {"squared": squared, "softmax": softmax}
