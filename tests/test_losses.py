"""Losses against brute force over the whole catalogue."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.losses import LOSSES, UnitVectors, softmax, squared
from common.protocol import LossName

B, N, D = 4, 25, 5


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def unit_of(
    x: torch.Tensor, v: torch.Tensor, u: torch.Tensor, gram: torch.Tensor | None = None
) -> UnitVectors:
    """Return what the squared loss reads of rows ``x`` (B, N)."""
    return UnitVectors(
        customer=u,
        target=x @ v,
        targets=torch.empty(len(x), 0, D),
        target_mask=torch.empty(len(x), 0),
        negatives=torch.empty(len(x), 0, D),
        gram=v.detach().T @ v.detach() if gram is None else gram,
    )


def test_squared_is_the_error_over_the_whole_catalogue_up_to_a_constant() -> None:
    x, v, u = draw(0, B, N), draw(1, N, D), draw(2, B, D)
    brute = 0.5 * (x - u @ v.T).square().sum(dim=1)
    constant = 0.5 * x.square().sum(dim=1)
    torch.testing.assert_close(squared(unit_of(x, v, u)) + constant, brute)


def test_squared_is_least_at_the_projection() -> None:
    x, v = draw(0, B, N), torch.linalg.qr(draw(1, N, D))[0]
    best = squared(unit_of(x, v, x @ v))
    for seed in range(5):
        other = x @ v + 0.1 * draw(10 + seed, B, D)
        assert (squared(unit_of(x, v, other)) > best).all()


def test_for_orthonormal_vectors_the_gradient_is_ojas() -> None:
    x = draw(0, 1, N)
    v = torch.linalg.qr(draw(1, N, D))[0].requires_grad_()
    squared(unit_of(x, v, x @ v)).sum().backward()  # type: ignore[no-untyped-call]
    u = (x @ v).detach()
    torch.testing.assert_close(v.grad, -x.T @ u)


def test_with_the_gram_constant_a_unit_touches_only_its_own_rows() -> None:
    x = draw(0, 1, N) * (torch.arange(N) % 3 == 0)
    v = draw(1, N, D).requires_grad_()
    squared(unit_of(x, v, x @ v)).sum().backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    assert not v.grad[x[0] == 0].any()
    assert v.grad[x[0] != 0].any()


@pytest.mark.parametrize("negatives", [1, 7])
def test_softmax_is_cross_entropy_of_each_target_among_the_negatives(negatives: int) -> None:
    u, targets = draw(0, B, D), draw(1, B, 3, D)
    drawn, mask = draw(2, B, negatives, D), torch.tensor([[1, 1, 0]] * B, dtype=torch.float64)
    unit = UnitVectors(u, torch.zeros(B, D), targets, mask, drawn, torch.empty(0))
    expected = []
    for b in range(B):
        total = torch.tensor(0.0, dtype=torch.float64)
        for t in range(2):
            logits = torch.cat([targets[b, t : t + 1], drawn[b]]) @ u[b]
            total = total + functional.cross_entropy(logits[None], torch.tensor([0]))
        expected.append(total)
    torch.testing.assert_close(softmax(unit), torch.stack(expected))


def test_softmax_stays_finite_for_large_scores() -> None:
    u, targets, drawn = draw(0, B, D) * 1e4, draw(1, B, 3, D), draw(2, B, 6, D)
    unit = UnitVectors(u, torch.zeros(B, D), targets, torch.ones(B, 3), drawn, torch.empty(0))
    assert softmax(unit).isfinite().all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_is_of_each_unit_alone(name: str) -> None:
    """The contract of the seam: no unit's loss, or gradient, moves with another's records."""
    loss = LOSSES[name]  # type: ignore[index]

    def unit(own: int, others: int) -> UnitVectors:
        def rows(*shape: int) -> torch.Tensor:
            return torch.cat([draw(own, 1, *shape), draw(others, B - 1, *shape)])

        return UnitVectors(
            rows(D), rows(D), rows(3, D), torch.ones(B, 3), rows(6, D), torch.eye(D).double()
        )

    values = loss(unit(1, 2))
    assert values.shape == (B,)
    assert values[0] == loss(unit(1, 3))[0]
    assert not np.isclose(float(values[1]), float(loss(unit(1, 3))[1]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("targets", [1, 2, 8, 16, 64])
def test_the_last_unit_of_a_batch_has_the_bits_of_any_other(name: LossName, targets: int) -> None:
    """Torch computes what is left at an array's end in another way than what stands before it."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    gram = normal(16, 16)
    for _ in range(150):
        drawn = [normal(4, 16), normal(4, 16), normal(4, targets, 16) / 4, normal(4, 20, 16) / 4]
        mask = (normal(4, targets) > 0).float()

        def bits(
            size: int, drawn: list[torch.Tensor] = drawn, mask: torch.Tensor = mask
        ) -> list[torch.Tensor]:
            own = [part[:size].clone().requires_grad_() for part in drawn]
            customer, target, rows, negatives = own
            unit = UnitVectors(customer, target, rows, mask[:size], negatives, gram)
            losses = LOSSES[name](unit)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            return [losses.detach(), *(part.grad for part in own if part.grad is not None)]

        whole = bits(4)
        for size in (1, 2, 3):
            for found, expected in zip(bits(size), whole, strict=True):
                assert torch.equal(found, expected[:size])
