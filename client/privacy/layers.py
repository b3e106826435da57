"""Opacus layers whose rows and weights reach the loss as leaves, one copy for each unit.

Autograd then never builds a gradient of a table's size: it stops at the rows that a batch of units
reads. Their grad samplers turn what arrives there into exact per-unit gradients.
"""

from dataclasses import dataclass
from typing import cast

import torch
from opacus.grad_sample import register_grad_sampler
from torch import nn


class OpacusParameter(nn.Parameter):
    """For the type checker: a parameter with what Opacus keeps on it."""

    grad_sample: torch.Tensor | None
    summed_grad: torch.Tensor | None
    _forward_counter: int


@dataclass(frozen=True)
class RowGradients:
    """Per-unit gradients of one table, in the rows that are not zero.

    Attributes
    ----------
    units
        ``(S,)`` the unit of each row, ascending.
    rows
        ``(S,)`` the table's row; each at most once within a unit.
    values
        ``(S, D)`` gradients.
    """

    units: torch.Tensor
    rows: torch.Tensor
    values: torch.Tensor


class UnitEmbedding(nn.Module):
    """A table ``(N, D)`` of which each unit of a batch reads some rows.

    ``grad_sample`` of its weight is, exactly, each unit's gradient *norm*, ``(B, 1)``: all that
    joint clipping needs. The gradients themselves stay in :attr:`gradients`.
    """

    activations: list[list[torch.Tensor]]
    max_batch_len: int

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = cast(OpacusParameter, nn.Parameter(weight.detach().clone()))
        self.gradients: RowGradients | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows ``(B, L, D)`` of ``ids`` ``(B, L)``; ids below 0 are padding: zeros."""
        padding = (ids < 0).unsqueeze(-1)
        rows = self.weight.detach()[ids.clamp(min=0)].masked_fill_(padding, 0.0)
        return rows.requires_grad_()


class UnitParameter(nn.Module):
    """A dense parameter, given to each unit of a batch as a copy of its own."""

    activations: list[list[torch.Tensor]]
    max_batch_len: int

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = cast(OpacusParameter, nn.Parameter(weight.detach().clone()))

    def forward(self, anchor: torch.Tensor) -> torch.Tensor:
        """Return the weight expanded to ``(B, *shape)``; ``anchor`` ``(B, 0)`` tells B."""
        size = (len(anchor), *self.weight.shape)
        return self.weight.detach().expand(size).requires_grad_()


@register_grad_sampler(UnitEmbedding)  # type: ignore[untyped-decorator] # Opacus has no types.
def _embedding_norms(
    layer: UnitEmbedding, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    gradients = sum_duplicates(activations[0], backprops)
    layer.gradients = gradients
    # float64: a norm rounded down would let a unit through above the bound.
    squares = gradients.values.double().square().sum(dim=1)
    norms = torch.zeros(len(backprops), dtype=torch.float64)
    norms.index_add_(0, gradients.units, squares).sqrt_()
    return {layer.weight: norms.unsqueeze(1)}


@register_grad_sampler(UnitParameter)  # type: ignore[untyped-decorator] # Opacus has no types.
def _parameter_gradients(
    layer: UnitParameter,
    activations: list[torch.Tensor],  # noqa: ARG001 - Opacus calls every sampler with it
    backprops: torch.Tensor,
) -> dict[nn.Parameter, torch.Tensor]:
    return {layer.weight: backprops}


def sum_duplicates(ids: torch.Tensor, gradients: torch.Tensor) -> RowGradients:
    """Sum the gradients of equal ids within each unit, and drop padding.

    Parameters
    ----------
    ids
        ``(B, L)``; below 0 is padding.
    gradients
        ``(B, L, D)``.
    """
    size, length = ids.shape
    ids, order = ids.sort(dim=1, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    kept = ids.reshape(-1) >= 0
    starts = first.reshape(-1)[kept]
    segments = starts.cumsum(0) - 1
    sources = (order + torch.arange(size).unsqueeze(1) * length).reshape(-1)[kept]
    width = gradients.shape[-1]
    values = gradients.new_zeros((int(starts.sum()), width))
    values.index_add_(0, segments, gradients.reshape(-1, width)[sources])
    units = torch.arange(size).unsqueeze(1).expand(size, length).reshape(-1)[kept]
    return RowGradients(units[starts], ids.reshape(-1)[kept][starts], values)
