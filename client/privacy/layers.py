"""Opacus layers whose rows and weights reach the loss as leaves, one copy for each unit.

Autograd then never builds a gradient of a table's size: it stops at the rows that a batch of units
reads. Their grad samplers turn what arrives there into exact per-unit gradients.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch
from opacus.grad_sample import register_grad_sampler
from torch import nn
from torch.utils.hooks import RemovableHandle

from client.privacy.folding import Terms
from client.privacy.gathering import gather_sums
from client.privacy.squares import unit_squares

# Told a layer, and the gradients of its inputs and outputs.
BackwardHook = Callable[[nn.Module, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]], object]

# The largest key of 32 bits.
_MOST_KEY = 2**31 - 1

# What layers, and Opacus, keep on a layer from one batch to the next.
_KEPT = frozenset(("activations", "gradients", "max_batch_len", "moved", "reads"))


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
    length
        L, places of a unit.
    places
        ``(K,)`` int32 places in the flattened ``(B, L)`` ids.
    starts
        ``(R,)`` int32 where each row begins in ``places``.
    rows
        ``(R,)`` int64 the distinct rows, ascending.
    repeats
        ``(T,)`` int32 the places whose unit reads their row more than once.
    groups
        ``(S,)`` int32 where each such pair of a row and a unit begins in ``repeats``.
    apart
        ``(T,)`` int64 where the repeats stand in ``places``.
    """

    length: int
    places: torch.Tensor
    starts: torch.Tensor
    rows: torch.Tensor
    repeats: torch.Tensor
    groups: torch.Tensor
    apart: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor) -> "Reads":
        """Return the reads of ``ids`` ``(B, L)``; below 0 is padding."""
        size, length = ids.shape
        shift = (size * length).bit_length()
        numbers = ids.numpy()
        # Half the memory, and half the time to sort, where keys are small enough.
        most = _MOST_KEY >> shift
        small = -most <= numbers.min(initial=0) and numbers.max(initial=0) <= most
        kind = np.int32 if small else np.int64
        # One sort of whole keys is several times faster than a stable sort with its permutation.
        keys: np.ndarray = numbers.astype(kind).reshape(-1)
        keys <<= shift
        keys += np.arange(size * length, dtype=kind)
        keys.sort()
        keys = keys[keys.searchsorted(kind(0)) :]
        places = np.empty(len(keys), np.int32)
        np.bitwise_and(keys, (1 << shift) - 1, out=places, casting="unsafe")
        # Whether a place has the row, and the row and unit, of the place before it.
        keys >>= shift
        same_row = _as_before(keys)
        starts = np.flatnonzero(~same_row)
        rows = keys.take(starts).astype(np.int64)
        starts = starts.astype(np.int32)
        del keys
        same_pair = same_row
        same_pair &= _as_before(places // np.int32(max(length, 1)))
        repeated = same_pair.copy()
        repeated[:-1] |= same_pair[1:]
        groups = np.flatnonzero(~same_pair[repeated]).astype(np.int32)
        found = (places, starts, rows, places[repeated], groups, np.flatnonzero(repeated))
        return cls(length, *map(torch.from_numpy, found))

    def units(self, places: torch.Tensor) -> torch.Tensor:
        """Return the unit of each of ``places``, int32."""
        # numpy divides whole numbers ten times as fast as torch.
        return torch.from_numpy(places.numpy() // np.int32(max(self.length, 1)))


@dataclass(frozen=True)
class RowGradients:
    """Per-unit gradients of one table, in the rows that are not zero.

    Attributes
    ----------
    reads
        Which row and unit the gradients belong to.
    values
        ``(B L, D)`` gradients by place: of a row that a unit reads twice, two summands.
    """

    reads: Reads
    values: torch.Tensor

    def norms(self, size: int) -> torch.Tensor:
        """Return the norm of each of ``size`` units' gradient of the table, ``(B,)`` float64.

        Gradients of equal rows within a unit are summed first. In float64: a norm rounded down
        would let a unit through above the bound. What is summed in which order depends on a unit's
        own reads alone.
        """
        reads, values = self.reads, self.values.numpy()
        # Apart: padding, and what is summed first.
        if len(reads.places) == len(values):
            apart = np.zeros(len(values), dtype=bool)
        else:
            apart = np.ones(len(values), dtype=bool)
            apart[reads.places.numpy()] = False
        apart[reads.repeats.numpy()] = True
        total = unit_squares(values, apart, size)
        if len(reads.repeats):
            first = reads.repeats.numpy()[reads.groups.numpy()]
            units = first // np.int32(reads.length)
            squares = self.repeated.numpy().astype(np.float64)
            squares *= squares
            total += np.bincount(units, squares.sum(axis=1), minlength=size)
        return torch.from_numpy(np.sqrt(total))

    @cached_property
    def repeated(self) -> torch.Tensor:
        """Return ``(S, D)``: the gradients of rows that a unit reads more than once."""
        # As in torch.nn.functional, whose checks take as long as a few sums do.
        return torch.embedding_bag(self.values, self.reads.repeats, self.reads.groups, mode=0)[0]

    def of_unit(self, unit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows ``(r,)`` of one unit, each once, and their gradients ``(r, D)``."""
        own = (self.reads.units(self.reads.places) == unit).nonzero().squeeze(1)
        entries = torch.searchsorted(self.reads.starts, own.int(), right=True) - 1
        rows, inverse = torch.unique(self.reads.rows[entries], return_inverse=True)
        total = self.values.new_zeros((len(rows), self.values.shape[1]))
        return rows, total.index_add_(0, inverse, self.values[self.reads.places[own]])

    def weighted(self, factors: torch.Tensor) -> "WeightedRows":
        """Return the sums over units in each row, each times its factor ``(B,)`` float64.

        What a unit reads more than once is one term, the sum whose norm was taken.
        """
        reads = self.reads
        by_unit, places = factors.numpy(), reads.places.numpy()
        # numpy looks up a few values several times as fast as torch.
        weights = by_unit.take(reads.units(reads.places).numpy())
        apart, groups = reads.apart.numpy(), reads.groups.numpy()
        if len(groups):
            places, first = places.copy(), apart[groups]
            own = weights[first]
            weights[apart] = 0.0
            weights[first] = own
            places[first] = len(self.values) + np.arange(len(groups), dtype=np.int32)
        ends = np.empty(len(reads.starts) + 1, np.int32)
        ends[:-1], ends[-1] = reads.starts.numpy(), len(places)
        terms = Terms(self.values.numpy(), self.repeated.numpy(), places, weights, ends)
        return WeightedRows(reads.rows.numpy(), terms)

    def without(self, units: torch.Tensor) -> "RowGradients":
        """Return the same with zeros for the units in the mask ``(B,)``."""
        by_unit = self.values.reshape(len(units), -1).masked_fill(units.unsqueeze(1), 0.0)
        return RowGradients(self.reads, by_unit.view_as(self.values))


@dataclass(frozen=True)
class WeightedRows:
    """Sums of clipped gradients by row, not yet made.

    Attributes
    ----------
    rows
        ``(R,)`` int64 distinct rows, ascending.
    terms
        What the sum in each row is made of.
    """

    rows: np.ndarray
    terms: Terms


class _Gather(torch.autograd.Function):
    """Gathered rows as the beginning of a graph that does not keep them.

    A leaf would stay in memory until the last gradient is there; what keeps these rows is only what
    of the loss still needs them.
    """

    @staticmethod
    def forward(
        context: object,  # noqa: ARG004 - autograd calls it so
        anchor: torch.Tensor,  # noqa: ARG004 - makes the rows require a gradient
        rows: torch.Tensor,
    ) -> torch.Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(context: object, *gradients: torch.Tensor) -> tuple[None, None]:  # noqa: ARG004
        # The layer's hook has taken the gradient; nothing in the model does.
        return None, None


class _OneWeight(nn.Module):
    """A module whose only parameter is ``weight``.

    Attributes
    ----------
    start
        Where start values stand apart: these, never changed, and ``weight`` begins at 0. Else None.
    moved
        Whether there was a step: a weight apart is all 0 until then.
    """

    weight: OpacusParameter
    start: torch.Tensor | None
    moved: bool

    def begin(self, weight: torch.Tensor, apart: bool) -> None:
        """Take the start value."""
        self._told: OrderedDict[int, BackwardHook] = OrderedDict()
        given = weight.detach()
        self.start, self.moved = given.contiguous() if apart else None, False
        # Rows are moved as one item each: they must be contiguous.
        own = given.clone(memory_format=torch.contiguous_format)
        self.weight = cast(OpacusParameter, nn.Parameter(own.zero_() if apart else own))

    def value(self) -> torch.Tensor:
        """Return the present value; not a copy, where the start value does not stand apart."""
        weight = self.weight.detach()
        return weight if self.start is None else self.start + weight

    def register_full_backward_hook(
        self,
        hook: BackwardHook,
        prepend: bool = False,  # noqa: ARG002 - torch's own
    ) -> RemovableHandle:
        """Have ``hook`` told the gradient of what the layer returns, as it arrives there.

        torch's own way leads outputs through one more function, and warns in every step that no
        input has a gradient: that is on purpose here.
        """
        handle = RemovableHandle(self._told)
        self._told[handle.id] = hook
        return handle

    def _heard(self, output: torch.Tensor) -> torch.Tensor:
        """Return an output whose gradient the hooks are told."""
        if output.requires_grad:
            for hook in self._told.values():
                output.register_hook(partial(_tell, self, hook))  # type: ignore[no-untyped-call]
        return output

    def named_parameters(
        self,
        prefix: str = "",
        recurse: bool = True,  # noqa: ARG002 - torch's own
        remove_duplicate: bool = True,  # noqa: ARG002
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weight; Opacus asks six times a step, and torch's search takes its time."""
        yield (f"{prefix}.weight" if prefix else "weight"), self.weight

    def __setattr__(self, name: str, value: object) -> None:
        """Set what is kept of a batch at once: torch would look among its parameters first."""
        if name in _KEPT:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, cast(torch.Tensor, value))


class UnitEmbedding(_OneWeight):
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

    def __init__(self, weight: torch.Tensor, *, apart: bool = False) -> None:
        super().__init__()
        self.begin(weight, apart)
        self.before_read: Callable[[torch.Tensor], None] | None = None
        self.reads: Reads | None = None
        self.gradients: RowGradients | None = None
        self._anchor = torch.empty(0, requires_grad=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows ``(B, L, D)`` of ``ids`` ``(B, L)``; ids below 0 are padding: zeros."""
        self.reads = Reads.of(ids)
        if self.before_read is not None:
            self.before_read(self.reads.rows)
        rows = self._rows(ids.reshape(-1)).view(*ids.shape, self.weight.shape[1])
        return self._heard(_Gather.apply(self._anchor, rows))  # type: ignore[no-untyped-call]

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        weight = self.weight.detach()
        if self.start is not None and self.moved:
            sums = gather_sums(self.start.numpy(), weight.numpy(), ids.contiguous().numpy())
            return torch.from_numpy(sums)
        values = weight if self.start is None else self.start
        assert self.reads is not None
        if len(self.reads.places) == len(ids):
            return values.index_select(0, ids)
        rows = values.index_select(0, ids.clamp(min=0))
        return rows.masked_fill_((ids < 0).unsqueeze(1), 0.0)


class UnitParameter(_OneWeight):
    """A dense parameter, given to each unit of a batch as a copy of its own."""

    activations: list[list[torch.Tensor]]
    max_batch_len: int

    def __init__(self, weight: torch.Tensor, *, apart: bool = False) -> None:
        super().__init__()
        self.begin(weight, apart)

    def forward(self, anchor: torch.Tensor) -> torch.Tensor:
        """Return the weight expanded to ``(B, *shape)``; ``anchor`` ``(B, 0)`` tells B."""
        size = (len(anchor), *self.weight.shape)
        return self._heard(self.value().expand(size).requires_grad_())


def _tell(layer: nn.Module, hook: BackwardHook, gradient: torch.Tensor) -> None:
    hook(layer, (), (gradient,))


@register_grad_sampler(UnitEmbedding)  # type: ignore[untyped-decorator] # Opacus has no types.
def _embedding_norms(
    layer: UnitEmbedding,
    activations: list[torch.Tensor],  # noqa: ARG001 - sorted already when they were read
    backprops: torch.Tensor,
) -> dict[nn.Parameter, torch.Tensor]:
    assert layer.reads is not None
    values = backprops.reshape(-1, backprops.shape[-1]).contiguous()
    layer.gradients = RowGradients(layer.reads, values)
    return {layer.weight: layer.gradients.norms(len(backprops)).unsqueeze(1)}


@register_grad_sampler(UnitParameter)  # type: ignore[untyped-decorator] # Opacus has no types.
def _parameter_gradients(
    layer: UnitParameter,
    activations: list[torch.Tensor],  # noqa: ARG001 - Opacus calls every sampler with it
    backprops: torch.Tensor,
) -> dict[nn.Parameter, torch.Tensor]:
    return {layer.weight: backprops}


def _as_before(values: np.ndarray) -> np.ndarray:
    """Return a mask of which values equal the one before; the first does not."""
    same = np.zeros(len(values), dtype=bool)
    np.equal(values[1:], values[:-1], out=same[1:])
    return same
