"""Losses of one unit, summed within the unit: the one seam between a tower and what it learns.

A loss sees a unit's customer vector and vectors pooled from the unit's own products, never another
unit's, so every per-unit gradient is exact whatever the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LossName = Literal["squared", "softmax"]


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
    energy = torch.einsum("bd,de,be->b", unit.customer, unit.gram, unit.customer)
    return 0.5 * energy - fit


def softmax(unit: UnitVectors) -> Tensor:
    """Return (B,) sums over a unit's targets of the sampled softmax loss.

    Negatives come from the released popularity, so the logits need no correction for ranking by
    lift over popularity (Yi et al. 2019, eq. 3, with the correction left to the bias).
    """
    customer = unit.customer.unsqueeze(2)
    positive = torch.bmm(unit.targets, customer).squeeze(2)
    negative = torch.bmm(unit.negatives, customer).squeeze(2).logsumexp(dim=1, keepdim=True)
    return (functional.softplus(negative - positive) * unit.target_mask).sum(dim=1)


LOSSES: dict[LossName, Loss] = {"squared": squared, "softmax": softmax}
