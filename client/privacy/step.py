"""The exact differentially private step (DP-SGD, Abadi et al. 2016, algorithm 1) for embeddings.

::

    step = ExactDPStep(parameters, tables={"item_embedding"}, noise=noise, max_grad_norm=..., ...)
    for _ in range(plan.local_steps):
        units = noise.poisson_sample(n_units, plan.sample_rate)
        for batch in physical_batches(units):       # none at all is a batch too: pure noise
            step.accumulate(loss, batch)            # clip each unit over all parameters, and sum
        step.step()                                 # noise to every row, divide, descend
    trained = step.state()

``loss(rows, dense, batch)`` returns one loss a unit, ``(B,)``, and must compute each from that
unit's own rows and copies: ``rows[name]`` is ``(B, L, D)``, ``dense[name]`` ``(B, *shape)``. Rate,
clipping norm, normaliser and noise are public constants of the plan: nothing is derived from how
many units there are.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from client.privacy.engine import UnitPrivacyEngine
from client.privacy.layers import UnitEmbedding, UnitParameter
from client.privacy.noise import NoiseSource
from client.privacy.optimizer import UnitOptimizer
from client.privacy.rows import rounded
from common.errors import PrivacyError

Tensors = dict[str, torch.Tensor]


class _Descent(torch.optim.SGD):
    """torch's SGD, the functions below torch's wrappers around them.

    The wrappers tell torch's compiler to keep away, and load it for that: a second of each process
    of a shop, which serves one message.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 - torch's own
        """Forget all gradients; torch's own tells its profiler first, a fiftieth of a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


@dataclass(frozen=True)
class UnitBatch:
    """Some units, each with all of its own records. A unit is in at most one batch of a step.

    Attributes
    ----------
    size
        Number of units, B; may be 0.
    ids
        Table name -> ``(B, L)`` int64 rows that each unit reads, below 0 is padding. Duplicates are
        allowed: history and targets go into one list, and the loss splits the rows again.
    data
        Whatever else the loss needs of each unit, ``(B, ...)``.
    """

    size: int
    ids: Mapping[str, torch.Tensor]
    data: Mapping[str, torch.Tensor] = field(default_factory=dict)


Loss = Callable[[Tensors, Tensors, UnitBatch], torch.Tensor]


class ExactDPStep:
    """Private (or, without noise and bound, plain) SGD on tables and dense parameters.

    Parameters
    ----------
    parameters
        Name -> start value; never changed, and copied unless ``apart``. Every one gets noise, read
        or not.
    tables
        Names of those that are read by rows, ``(N, D)``; the others are dense, and each unit gets a
        copy: keep physical batches small where they are large.
    max_grad_norm
        Bound of a unit's gradient over all parameters together; ``math.inf`` clips nothing and
        needs ``noise_multiplier`` 0.
    batch_normalizer
        Public constant that the noisy sum is divided by.
    learning_rate
        One for all, or by name.
    sample_rate
        Chance of a unit to be in a step; only handed to :attr:`accountant`.
    noise
        Required where ``noise_multiplier`` is above 0.
    momentum
        Of the local optimizer; its steps are dense.
    lazy
        Whether rows wait for their noise until they are read (LazyDP, arXiv 2404.08847): the same
        distribution, at a price in the rows that units read. By default wherever it holds: for
        SGD without momentum.
    apart
        Whether what moves is kept apart from the start values, as :meth:`moved` needs it. The
        server chooses those: beside large ones float32 would round what units add before their
        noise is there, in each number that a unit reads, and by more than the clipping norm in all.
    """

    #: What clips and adds noise; another one only to show that tests and audits would notice.
    optimizer_class: ClassVar[type[UnitOptimizer]] = UnitOptimizer

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        tables: Collection[str],
        *,
        max_grad_norm: float,
        noise_multiplier: float,
        batch_normalizer: float,
        learning_rate: float | Mapping[str, float],
        sample_rate: float = 1.0,
        noise: NoiseSource | None = None,
        momentum: float = 0.0,
        lazy: bool | None = None,
        apart: bool = False,
    ) -> None:
        if not (max_grad_norm > 0 and noise_multiplier >= 0 and batch_normalizer > 0):
            raise PrivacyError(
                "max_grad_norm and batch_normalizer must be above 0, noise_multiplier at least 0"
            )
        if noise_multiplier > 0 and not math.isfinite(max_grad_norm):
            raise PrivacyError(
                "noise needs a finite max_grad_norm: nothing bounds a unit otherwise"
            )
        if noise_multiplier > 0 and noise is None:
            raise PrivacyError("a private step needs a source of noise")
        if lazy and momentum:
            raise PrivacyError("lazy noise is exact for plain SGD only: set momentum to 0")
        if unknown := sorted(set(tables) - set(parameters)):
            raise PrivacyError(f"tables {unknown} are not among the parameters")
        self._layers: dict[str, UnitEmbedding | UnitParameter] = {
            name: (UnitEmbedding if name in tables else UnitParameter)(value, apart=apart)
            for name, value in parameters.items()
        }
        rates = (
            dict.fromkeys(parameters, learning_rate)
            if isinstance(learning_rate, int | float)
            else learning_rate
        )
        groups = [
            {"params": [layer.weight], "lr": rates[name], "name": name}
            for name, layer in self._layers.items()
        ]
        engine = UnitPrivacyEngine(self.optimizer_class)
        #: The engine's own count of the steps taken, to hold against what the ledger was charged.
        self.accountant = engine.accountant
        self._hooks, self.optimizer = engine.make_private(
            layers=self._layers,
            optimizer=_Descent(groups, momentum=momentum),
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            batch_normalizer=batch_normalizer,
            sample_rate=sample_rate,
            noise=noise,
            lazy=not momentum if lazy is None else lazy,
        )

    @property
    def unit_norms(self) -> torch.Tensor:
        """Exact gradient norms before clipping of the last batch's units, ``(B,)`` float64."""
        return self.optimizer.unit_norms

    def accumulate(self, loss: Loss, batch: UnitBatch) -> torch.Tensor:
        """Add the clipped gradients of a batch of units to the sum of this step.

        Returns
        -------
        torch.Tensor
            The losses ``(B,)``: data of the shop that must not leave it.
        """
        self._forget()
        self.optimizer.settle()
        if batch.size == 0:
            self.optimizer.unit_norms = torch.zeros(0, dtype=torch.float64)
            self.optimizer.factors = torch.zeros((0, len(self._layers)), dtype=torch.float64)
            return torch.zeros(0)
        rows: Tensors = {}
        dense: Tensors = {}
        for name, layer in self._layers.items():
            if isinstance(layer, UnitParameter):
                dense[name] = layer(torch.empty((batch.size, 0)))
            elif name in batch.ids:
                rows[name] = layer(batch.ids[name])
        losses = loss(rows, dense, batch)
        if losses.shape != (batch.size,):
            raise PrivacyError(
                f"the loss has shape {tuple(losses.shape)}, not one value for each of "
                f"{batch.size} units"
            )
        # Only what the graph still needs of them stays in memory.
        rows, dense = {}, {}
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for layer in self._layers.values():
            # What this loss did not read has no gradient, rather than the last batch's.
            if layer.weight.grad_sample is None:
                one = (1,) if isinstance(layer, UnitEmbedding) else layer.weight.shape
                layer.weight.grad_sample = torch.zeros(()).expand((batch.size, *one))
        self.optimizer.clip_and_accumulate()
        return losses.detach()

    def clipped_sum(self) -> Tensors:
        """Return the sum of clipped gradients so far, before and apart from any noise, dense."""
        return {name: rounded(self.optimizer.summed(name), 0.0, None) for name in self._layers}

    def contribution(self, unit: int) -> Tensors:
        """Return what one unit of the last batch added to the sum, as dense arrays; for tests."""
        found: Tensors = {}
        for place, (name, layer) in enumerate(self._layers.items()):
            total = torch.zeros_like(layer.weight.detach())
            factor = self.optimizer.factors[unit, place].to(total.dtype)
            found[name] = total
            if factor == 0:
                continue
            if isinstance(layer, UnitEmbedding) and layer.gradients is not None:
                rows, values = layer.gradients.of_unit(unit)
                total[rows] = values * factor
            elif isinstance(layer, UnitParameter) and layer.weight.grad_sample is not None:
                total += layer.weight.grad_sample[unit] * factor
        return found

    def step(self) -> None:
        """Add noise, divide by the normaliser, descend, and begin the next step's sum.

        No work here is in proportion to a table's size, unless noise is dense.
        """
        self.optimizer.step()
        self._forget()
        self.optimizer.zero_grad()

    def state(self) -> Tensors:
        """Return name -> present value, detached copies, with all noise that is owed."""
        self.optimizer.flush()
        return {name: layer.value().clone() for name, layer in self._layers.items()}

    def moved(self) -> Tensors:
        """Return name -> present value less the start value, with all noise that is owed.

        Only where start values stand apart. Not copies: further steps change them.
        """
        assert all(layer.start is not None for layer in self._layers.values())
        self.optimizer.flush()
        return {name: layer.weight.detach() for name, layer in self._layers.items()}

    def _forget(self) -> None:
        """Drop all that Opacus' hooks and our layers kept of the last batch."""
        for layer in self._layers.values():
            layer.weight.grad_sample = None
            layer.weight._forward_counter = 0
            layer.activations = []
            vars(layer).pop("max_batch_len", None)
            if isinstance(layer, UnitEmbedding):
                layer.gradients = layer.reads = None
