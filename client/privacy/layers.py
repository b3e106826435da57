"""Opacus layers whose rows and weights reach the loss as leaves, one copy for each unit.

Autograd then never builds a gradient of a table's size: it stops at the rows that a batch of units
reads. Their grad samplers turn what arrives there into exact per-unit gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from opacus.grad_sample import register_grad_sampler
from torch import nn
from torch.nn.functional import embedding_bag


class OpacusParameter(nn.Parameter):
    """For the type checker: a parameter with what Opacus keeps on it."""

    grad_sample: torch.Tensor | None
    summed_grad: torch.Tensor | None
    _forward_counter: int


@dataclass(frozen=True)
class Reads:
    """Who reads what in a batch: all places but padding, sorted by row, then unit, then place.

    Attributes
    ----------
    places
        ``(K,)`` places in the flattened ``(B, L)`` ids.
    pairs
        ``(S,)`` where each pair of a row and a unit begins in ``places``.
    units
        ``(S,)`` the unit of each pair.
    starts
        ``(R,)`` where each row begins among the pairs.
    rows
        ``(R,)`` the distinct rows, ascending.
    """

    places: torch.Tensor
    pairs: torch.Tensor
    units: torch.Tensor
    starts: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor) -> "Reads":
        """Return the reads of ``ids`` ``(B, L)``; below 0 is padding."""
        size, length = ids.shape
        shift = (size * length).bit_length()
        # One sort of whole keys is several times faster than a stable sort with its permutation.
        keys = np.left_shift(ids.reshape(-1).numpy(), shift)
        keys += np.arange(size * length)
        keys.sort()
        keys = keys[np.searchsorted(keys, 0) :]
        places = keys & ((1 << shift) - 1)
        rows = np.right_shift(keys, shift, out=keys)
        units = places // max(length, 1)
        new_row = _changes(rows)
        pairs = np.flatnonzero(new_row | _changes(units))
        starts = np.flatnonzero(new_row[pairs])
        found = (places, pairs, units[pairs], starts, rows[pairs[starts]])
        return cls(*map(torch.from_numpy, found))


@dataclass(frozen=True)
class RowGradients:
    """Per-unit gradients of one table, in the rows that are not zero.

    Attributes
    ----------
    reads
        Which row and unit each of the values belongs to: ``S`` pairs.
    values
        ``(S, D)`` gradients.
    """

    reads: Reads
    values: torch.Tensor

    def of_unit(self, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows ``(r,)`` of one unit, each once, and their gradients ``(r, D)``."""
        own = (self.reads.units == unit).nonzero().squeeze(1)
        places = torch.searchsorted(self.reads.starts, own, right=True) - 1
        return self.reads.rows[places], self.values[own]

    def summed(self, factors: torch.Tensor) -> torch.Tensor:
        """Return ``(R, D)``: the sum over units in each row, each times its factor ``(B,)``."""
        weights = factors.to(self.values.dtype).index_select(0, self.reads.units)
        everything = torch.arange(len(weights))
        return embedding_bag(
            everything, self.values, self.reads.starts, mode="sum", per_sample_weights=weights
        )


class UnitEmbedding(nn.Module):
    """A table ``(N, D)`` of which each unit of a batch reads some rows.

    ``grad_sample`` of its weight is, exactly, each unit's gradient *norm*, ``(B, 1)``: all that
    joint clipping needs. The gradients themselves stay in :attr:`gradients`.

    Attributes
    ----------
    before_read
        Told the distinct rows of a batch before they are read.
    """

    activations: list[list[torch.Tensor]]
    max_batch_len: int

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = cast(OpacusParameter, nn.Parameter(weight.detach().clone()))
        self.before_read: Callable[[torch.Tensor], None] | None = None
        self.reads: Reads | None = None
        self.gradients: RowGradients | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows ``(B, L, D)`` of ``ids`` ``(B, L)``; ids below 0 are padding: zeros."""
        self.reads = Reads.of(ids)
        if self.before_read is not None:
            self.before_read(self.reads.rows)
        weight, flat = self.weight.detach(), ids.reshape(-1)
        if len(self.reads.places) == len(flat):
            rows = weight.index_select(0, flat)
        else:
            rows = weight.index_select(0, flat.clamp(min=0))
            rows.masked_fill_((flat < 0).unsqueeze(1), 0.0)
        return rows.view(*ids.shape, weight.shape[1]).requires_grad_()


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
    layer: UnitEmbedding,
    activations: list[torch.Tensor],  # noqa: ARG001 - sorted already when they were read
    backprops: torch.Tensor,
) -> dict[nn.Parameter, torch.Tensor]:
    assert layer.reads is not None
    layer.gradients = sum_duplicates(layer.reads, backprops)
    return {layer.weight: unit_norms(layer.gradients, len(backprops)).unsqueeze(1)}


@register_grad_sampler(UnitParameter)  # type: ignore[untyped-decorator] # Opacus has no types.
def _parameter_gradients(
    layer: UnitParameter,
    activations: list[torch.Tensor],  # noqa: ARG001 - Opacus calls every sampler with it
    backprops: torch.Tensor,
) -> dict[nn.Parameter, torch.Tensor]:
    return {layer.weight: backprops}


def sum_duplicates(reads: Reads, gradients: torch.Tensor) -> RowGradients:
    """Sum gradients ``(B, L, D)`` of equal rows within each unit, and drop padding."""
    flat = gradients.reshape(-1, gradients.shape[-1]).contiguous()
    return RowGradients(reads, embedding_bag(reads.places, flat, reads.pairs, mode="sum"))


def unit_norms(gradients: RowGradients, size: int) -> torch.Tensor:
    """Return the norm of each unit's gradient of the table, ``(B,)`` float64.

    In float64: a norm rounded down would let a unit through above the bound. A unit's own rows are
    added in their order, whoever else is there.
    """
    norms = torch.linalg.vector_norm(gradients.values, dim=1, dtype=torch.float64)
    squares = np.bincount(gradients.reads.units.numpy(), norms.square_().numpy(), minlength=size)
    return torch.from_numpy(squares).double().sqrt_()


def _changes(values: np.ndarray) -> np.ndarray:
    """Return a mask of where a value differs from the one before; the first does."""
    changed = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed
