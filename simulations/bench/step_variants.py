"""What the benchmark of the private step compares: ours, plain SGD, and stock Opacus."""

from collections.abc import Callable
from typing import Protocol

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from client.privacy.noise import SystemNoise
from client.privacy.step import ExactDPStep, Tensors, UnitBatch

HISTORY, TARGETS, NEGATIVES, DIMENSION = 50, 10, 50, 32
LENGTH = HISTORY + TARGETS + NEGATIVES
# Ours adds a batch up from parts of at most 800,000 floats of rows; the others take it whole.
PHYSICAL_BATCH = 800_000 // (LENGTH * DIMENSION)
RATE, NORM, NOISE = 0.05, 1.0, 1.0


class Variant(Protocol):
    """One way to train a released table of ``(N, DIMENSION)``.

    It keeps that as it is: what a client sends back is what has moved. So each holds another table,
    ours of what moved and the others of what they train.
    """

    def step(self, ids: Tensor) -> None:
        """Train one step on ``(B, L)`` ids."""

    def flush(self) -> None:
        """Do whatever is left before the table may leave."""


def losses(vectors: Tensor) -> Tensor:
    """Return (B,) losses of ``(B, L, D)`` vectors: targets against negatives, as a softmax."""
    history, target, negative = torch.split(vectors, [HISTORY, TARGETS, NEGATIVES], dim=1)
    customer = history.mean(dim=1).unsqueeze(2)
    wanted, other = (target @ customer).squeeze(2), (negative @ customer).squeeze(2)
    return functional.softplus(other.logsumexp(dim=1, keepdim=True) - wanted).sum(dim=1)


def table(items: int) -> Tensor:
    """Return the table that all start from."""
    return torch.randn((items, DIMENSION), generator=torch.Generator().manual_seed(items)) / 6


class Exact:
    """Our step, with the deployment's noise."""

    def __init__(self, items: int, batch: int) -> None:
        self._step = ExactDPStep(
            {"items": table(items)},
            {"items"},
            max_grad_norm=NORM,
            noise_multiplier=NOISE,
            batch_normalizer=float(batch),
            learning_rate=RATE,
            sample_rate=0.01,
            noise=SystemNoise(),
            apart=True,
        )

    def step(self, ids: Tensor) -> None:
        """See :class:`Variant`; in physical batches, as a shop trains."""
        for part in ids.split(PHYSICAL_BATCH):  # type: ignore[no-untyped-call]
            self._step.accumulate(_losses_of_rows, UnitBatch(len(part), {"items": part}))
        self._step.step()

    def flush(self) -> None:
        """See :class:`Variant`."""
        self._step.moved()


def _losses_of_rows(rows: Tensors, dense: Tensors, batch: UnitBatch) -> Tensor:  # noqa: ARG001
    return losses(rows["items"])


class Plain:
    """Plain SGD; its gradient is dense, or sparse in the rows that were read."""

    sparse = False

    def __init__(self, items: int, batch: int) -> None:
        self._released = table(items)
        own = self._released.clone()
        self._table = nn.Embedding(items, DIMENSION, sparse=self.sparse, _weight=own)
        self._optimizer = torch.optim.SGD(self._table.parameters(), lr=RATE)
        self._batch = batch

    def step(self, ids: Tensor) -> None:
        """See :class:`Variant`."""
        self._optimizer.zero_grad()
        loss = losses(self._table(ids)).sum() / self._batch
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def flush(self) -> None:
        """See :class:`Variant`."""


class Sparse(Plain):
    """See :class:`Plain`."""

    sparse = True


class Ghost:
    """Opacus' own ghost clipping, exact for a table that is read once."""

    def __init__(self, items: int, batch: int) -> None:
        engine = PrivacyEngine(accountant="rdp")
        loader = DataLoader(TensorDataset(torch.zeros(batch, 1)), batch_size=batch)
        self._released = table(items)
        module = nn.Embedding(items, DIMENSION, _weight=self._released.clone())
        self._module, self._optimizer, self._criterion, _ = engine.make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=RATE),
            criterion=_Criterion(),
            data_loader=loader,
            noise_multiplier=NOISE,
            max_grad_norm=NORM,
            poisson_sampling=False,
            grad_sample_mode="ghost",
        )

    def step(self, ids: Tensor) -> None:
        """See :class:`Variant`."""
        self._optimizer.zero_grad()
        self._criterion(self._module(ids)).backward()
        self._optimizer.step()

    def flush(self) -> None:
        """See :class:`Variant`."""


class _Criterion:
    """The loss in the form that Opacus calls."""

    reduction = "mean"

    def __call__(self, vectors: Tensor) -> Tensor:
        return losses(vectors)


VARIANTS: dict[str, Callable[[int, int], Variant]] = {
    "exact": Exact,
    "plain": Plain,
    "sparse": Sparse,
    "ghost": Ghost,
}
