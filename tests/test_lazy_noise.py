"""Lazy noise against dense noise: the same distribution, whatever units read and when."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats

from client.privacy import rows
from client.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from client.privacy.step import ExactDPStep, Tensors, UnitBatch
from common.errors import PrivacyError

STEPS, ROWS, WIDTH = 6, 12, 4
# Standard deviation of one step's noise in a weight: rate · noise · clip / normaliser.
STD = 0.5 * 2.0 * 1.5 / 4.0
# Row 0 is read in every step, 1 in none, 2 only in the second batch of a step, 3 in both; 4 is
# read twice by one unit, 5 in one step. -1 is padding. Step 2 is empty, step 4 has no batch at all.
READS: tuple[tuple[list[list[int]], ...], ...] = (
    ([[0, 4, 4]], [[2, 3, -1]]),
    ([[0, 3, -1]], [[0, 3, 2]]),
    ([],),
    ([[0, 0, 0], [0, -1, -1]],),
    (),
    ([[0, 5, 4]], [[2, -1, -1], [0, 2, 3]]),
)


def flat(rows: Tensors, dense: Tensors, batch: UnitBatch) -> torch.Tensor:
    """A loss without a gradient: what is left in the weights is the noise."""
    return (rows["item"] * 0.0).sum((1, 2)) + (dense["scale"] * 0.0).sum(1)


def new(
    noise: NoiseSource | None,
    *,
    lazy: bool | None = None,
    momentum: float = 0.0,
    width: int = WIDTH,
) -> ExactDPStep:
    return ExactDPStep(
        {"item": torch.zeros(ROWS, width), "scale": torch.zeros(3)},
        {"item"},
        max_grad_norm=1.5,
        noise_multiplier=2.0 if noise else 0.0,
        batch_normalizer=4.0,
        learning_rate=0.5,
        noise=noise,
        lazy=lazy,
        momentum=momentum,
    )


def batches(number: int) -> Iterator[UnitBatch]:
    for ids in READS[number]:
        yield UnitBatch(len(ids), {"item": torch.tensor(ids, dtype=torch.int64).reshape(-1, 3)})


def run(step: ExactDPStep, flush_at: tuple[int, ...] = ()) -> np.ndarray:
    for number in range(STEPS):
        for batch in batches(number):
            step.accumulate(flat, batch)
        step.step()
        if number in flush_at:
            step.state()
    state = step.state()
    return np.concatenate([state["item"].numpy().ravel(), state["scale"].numpy()])


class Counting:
    """Counts the draws, and makes each one 1: what is left is how much was paid."""

    name = "seeded"
    drawn = 0

    def normal(self, shape: object, std: float) -> np.ndarray:
        values = np.full(shape, std)  # type: ignore[call-overload]
        self.drawn += values.size
        return np.asarray(values)

    def fill(self, values: np.ndarray) -> None:
        values[...] = self.normal(values.shape, 1.0)

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        return np.ones(n, dtype=bool)


def test_each_row_is_paid_all_of_its_steps_in_as_few_draws_as_it_is_read() -> None:
    noise = Counting()
    state = run(new(noise))
    table = state[: ROWS * WIDTH].reshape(ROWS, WIDTH) / STD
    # Steps at whose read a row owed: the first read owes nothing.
    gaps = {0: (1, 2, 2, 1), 1: (6,), 2: (1, 4, 1), 3: (1, 4, 1), 4: (5, 1), 5: (5, 1), 6: (6,)}
    for row, owed in gaps.items():
        assert sum(owed) == STEPS
        assert table[row] == pytest.approx(sum(math.sqrt(k) for k in owed), rel=1e-5), row
    paid = sum(len(gaps.get(row, (6,))) for row in range(ROWS))
    assert noise.drawn == paid * WIDTH + STEPS * 3


@pytest.mark.parametrize("width", [1, 3])
def test_large_tables_are_paid_and_moved_part_by_part(width: int) -> None:
    """More rows than there is room for at a time, of a table that was not contiguous."""
    rows = 70_000
    step = ExactDPStep(
        {"item": torch.zeros(width, rows).T},
        {"item"},
        max_grad_norm=1e6,
        noise_multiplier=1e-6,
        batch_normalizer=1.0,
        learning_rate=1.0,
        noise=Counting(),
    )
    ids = torch.arange(0, rows, 2).reshape(1, -1)
    gradient = torch.arange(rows // 2 * width, dtype=torch.float32).reshape(1, -1, width) / rows
    for _ in range(2):
        step.accumulate(
            lambda found, _, batch: (found["item"] * batch.data["gradient"]).sum((1, 2)),
            UnitBatch(1, {"item": ids}, {"gradient": gradient}),
        )
        step.step()
    state = step.state()["item"]
    # The first read owes nothing, the second one step, the end the other; what is not read, two.
    torch.testing.assert_close(state[::2], 2.0 - 2 * gradient[0])
    torch.testing.assert_close(state[1::2], torch.full((rows // 2, width), 2**0.5))


def test_a_second_state_pays_nothing_twice() -> None:
    step = new(Counting())
    step.step()
    first = step.state()["item"]
    assert torch.equal(first, step.state()["item"])
    step.accumulate(flat, next(batches(0)))
    assert torch.equal(first, step.state()["item"])


def test_more_steps_than_are_counted_owe_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_MOST_STEPS", 2)
    step = new(Counting())
    for _ in range(5):
        step.step()
    # Paid after two steps, after four, and at the end; each draw is 1.
    expected = torch.full((ROWS, WIDTH), STD * (2 * 2**0.5 + 1))
    torch.testing.assert_close(step.state()["item"], expected)


def test_no_step_works_on_a_whole_table() -> None:
    noise = Counting()
    step = ExactDPStep(
        {"item": torch.zeros(1000, WIDTH)},
        {"item"},
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        batch_normalizer=1.0,
        learning_rate=1.0,
        noise=noise,
    )
    for _ in range(9):
        step.accumulate(
            lambda rows, *_: rows["item"].sum((1, 2)),
            UnitBatch(2, {"item": torch.tensor([[1, 2], [2, 3]])}),
        )
        step.step()
    assert noise.drawn == 8 * 3 * WIDTH
    assert step.optimizer.param_groups[0]["params"][0].grad is None
    step.state()
    assert noise.drawn == 8 * 3 * WIDTH + 1000 * WIDTH


def test_lazy_noise_is_for_plain_sgd_alone() -> None:
    noise = SeededNoise(np.random.default_rng(0))
    with pytest.raises(PrivacyError, match="momentum"):
        new(noise, lazy=True, momentum=0.9)
    # With momentum every step draws for every entry.
    counting = Counting()
    run(new(counting, momentum=0.9))
    assert counting.drawn == STEPS * (ROWS * WIDTH + 3)


def test_momentum_feeds_the_noise_back_as_dense_training_does() -> None:
    state = run(new(Counting(), momentum=0.5)) / STD
    velocity = total = 0.0
    for _ in range(STEPS):
        velocity = 0.5 * velocity + 1.0
        total -= velocity
    assert state == pytest.approx(total, rel=1e-5)


def test_a_changed_noise_multiplier_pays_the_old_one_first() -> None:
    step = new(Counting())
    step.step()
    step.optimizer.noise_multiplier = 4.0
    step.step()
    assert step.state()["item"].numpy() / STD == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize("lazy", [True, False])
def test_without_noise_both_take_the_same_steps(lazy: bool) -> None:
    def some(rows: Tensors, dense: Tensors, batch: UnitBatch) -> torch.Tensor:
        return (rows["item"] - 1.0).square().sum((1, 2)) * dense["scale"].add(1.0).sum(1)

    states = []
    for kind in (lazy, None):
        step = new(None, lazy=kind)
        for number in range(STEPS):
            for batch in batches(number):
                step.accumulate(some, batch)
            step.step()
        states.append(step.state())
    for name, value in states[0].items():
        assert value.any()
        torch.testing.assert_close(value, states[1][name], rtol=1e-6, atol=1e-7)


# Columns of a table are read alike and drawn apart: each is a sample of its own.
SAMPLES = 60_000


@pytest.mark.statistical
@pytest.mark.parametrize("flush_at", [(), (1, 3)])
def test_lazy_and_dense_noise_have_one_distribution(flush_at: tuple[int, ...]) -> None:
    """A 2% error of the standard deviation of any single row would be found."""
    samples = {}
    for lazy in (True, False):
        noise = SeededNoise(np.random.default_rng([1, lazy]))
        found = run(new(noise, lazy=lazy, width=SAMPLES), flush_at if lazy else ())
        rows = samples[lazy] = found[: ROWS * SAMPLES].reshape(ROWS, SAMPLES) / (STD * STEPS**0.5)
        # Standard error of a standard deviation: 1/√(2n) = 0.29%.
        assert np.abs(rows.std(axis=1) - 1).max() < 5 / (2 * SAMPLES) ** 0.5 < 0.02
        assert np.abs(rows.mean(axis=1)).max() < 5 / SAMPLES**0.5
        assert min(stats.kstest(row, "norm").pvalue for row in rows) > 1e-4
        # No row has to do with another, however they were read; nor a column with the next.
        assert np.abs(np.corrcoef(rows) - np.eye(ROWS)).max() < 5 / SAMPLES**0.5
        assert abs(np.corrcoef(rows[:, 1:].ravel(), rows[:, :-1].ravel())[0, 1]) < 0.01
    for lazy_row, dense_row in zip(samples[True], samples[False], strict=True):
        assert stats.ks_2samp(lazy_row, dense_row).pvalue > 1e-4


@pytest.mark.statistical
def test_what_is_read_is_noisy_as_if_noise_were_dense() -> None:
    """What units see of rows as they read them, and so what their gradients are made of."""
    # First places read: rows 0, 2, 0, 0, 0, 0, 2 after so many steps.
    after = np.array([0, 0, 1, 1, 3, 5, 5])
    for lazy in (True, False):
        seen: list[np.ndarray] = []

        def watch(rows: Tensors, dense: Tensors, batch: UnitBatch) -> torch.Tensor:
            seen.append(rows["item"][0, 0].detach().numpy().copy())  # noqa: B023
            return flat(rows, dense, batch)

        step = new(SeededNoise(np.random.default_rng([2, lazy])), lazy=lazy, width=SAMPLES)
        for number in range(STEPS):
            for batch in batches(number):
                step.accumulate(watch, batch)
            step.step()
        seen.append(step.state()["item"][0].numpy())
        values = np.stack(seen) / STD
        covariance = np.cov(values)
        # Noise of row 0 adds up: what is seen later holds what was seen before, and no more.
        both = np.minimum.outer(np.append(after, STEPS), np.append(after, STEPS)).astype(float)
        row_two = np.array([False, True, False, False, False, False, True, False])
        both[row_two[:, None] != row_two] = 0.0
        tolerance = 5 * np.sqrt((both**2 + np.outer(both.diagonal(), both.diagonal())) / SAMPLES)
        assert (np.abs(covariance - both) <= tolerance + 1e-9).all()


@pytest.mark.statistical
def test_the_deployments_noise_is_as_large_in_the_weights() -> None:
    step = ExactDPStep(
        {"item": torch.zeros(200_000, 4)},
        {"item"},
        max_grad_norm=1.5,
        noise_multiplier=2.0,
        batch_normalizer=4.0,
        learning_rate=0.5,
        noise=SystemNoise(),
    )
    for _ in range(STEPS):
        step.step()
    values = step.state()["item"].numpy().ravel() / (STD * STEPS**0.5)
    assert abs(values.std() - 1) < 6 / (2 * values.size) ** 0.5
    assert stats.kstest(values[:100_000], "norm").pvalue > 1e-6
