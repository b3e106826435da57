import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client.privacy.layers import Reads
from client.privacy.noise import NoiseSource, SeededNoise
from client.privacy.normals import MOST
from client.privacy.step import ExactDPStep, Tensors, UnitBatch
from common.errors import PrivacyError

SHAPES = {"item": (7, 3), "bias": (7, 1), "feature": (4, 3), "scale": (1,), "tower": (3, 2)}
TABLES = {"item", "bias", "feature"}


def start(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def loss(rows: Tensors, dense: Tensors, batch: UnitBatch) -> torch.Tensor:
    """Something nonlinear that mixes every parameter within a unit."""
    pooled = rows["item"].sum(1) + rows["feature"].sum(1)
    hidden = torch.einsum("bd,bdh->bh", pooled, dense["tower"]).tanh()
    scores = torch.einsum("bld,bd->bl", rows["item"], pooled) * dense["scale"]
    scores = scores + rows["bias"].squeeze(-1) * batch.data["target"]
    return (scores - batch.data["target"]).square().sum(1) + hidden.sum(1)


def make(seed: int, size: int) -> UnitBatch:
    """Few rows and long lists: duplicates within a unit and over units, and padding."""
    random = np.random.default_rng(seed)
    ids = torch.from_numpy(random.integers(-2, 7, (size, 6)))
    feature = torch.from_numpy(random.integers(-1, 4, (size, 9)))
    target = torch.from_numpy(random.normal(size=(size, 6)).astype(np.float32))
    return UnitBatch(size, {"item": ids, "bias": ids, "feature": feature}, {"target": target})


def part(batch: UnitBatch, units: slice) -> UnitBatch:
    ids = {name: value[units] for name, value in batch.ids.items()}
    data = {name: value[units] for name, value in batch.data.items()}
    return UnitBatch(len(range(batch.size)[units]), ids, data)


def new(
    parameters: Tensors,
    *,
    clip: float = math.inf,
    noise: float = 0.0,
    rate: float = 0.1,
    source: NoiseSource | None = None,
) -> ExactDPStep:
    return ExactDPStep(
        parameters,
        TABLES,
        max_grad_norm=clip,
        noise_multiplier=noise,
        batch_normalizer=5.0,
        learning_rate=rate,
        noise=source,
    )


def seeded(seed: int) -> SeededNoise:
    return SeededNoise(np.random.default_rng(seed))


def brute_force(parameters: Tensors, batch: UnitBatch) -> list[Tensors]:
    """Autograd's own gradients of each unit alone, through dense indexing."""
    found = []
    for unit in range(batch.size):
        one = part(batch, slice(unit, unit + 1))
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        rows = {
            name: leaves[name][ids.clamp(min=0)] * (ids >= 0).unsqueeze(-1)
            for name, ids in one.ids.items()
        }
        dense = {name: leaves[name].unsqueeze(0) for name in SHAPES if name not in TABLES}
        value = loss(rows, dense, one).sum()
        gradients = torch.autograd.grad(value, list(leaves.values()))
        found.append(dict(zip(leaves, gradients, strict=True)))
    return found


def norm(gradients: Tensors) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


def clipped(gradients: list[Tensors], clip: float) -> Tensors:
    factors = [min(1.0, clip / max(norm(g), 1e-30)) for g in gradients]
    return {
        name: sum(
            (g[name] * f for g, f in zip(gradients, factors, strict=True)), torch.zeros(shape)
        )
        for name, shape in SHAPES.items()
    }


def check_exactness(seed: int, size: int, clip: float, physical: int) -> None:
    """Hold norms, sums and the weights after a step to brute force, whatever the batches."""
    parameters, batch = start(seed), make(seed, size)
    step = new(parameters, clip=clip)
    norms = [torch.zeros(0, dtype=torch.float64)]
    for begin in range(0, max(size, 1), physical):
        step.accumulate(loss, part(batch, slice(begin, begin + physical)))
        norms.append(step.unit_norms)
    expected = brute_force(parameters, batch)
    wanted_norms = torch.tensor([norm(g) for g in expected], dtype=torch.float64)
    torch.testing.assert_close(torch.cat(norms), wanted_norms, rtol=1e-5, atol=1e-6)
    wanted, sums = clipped(expected, clip), step.clipped_sum()
    step.step()
    state = step.state()
    tolerance = 1e-6 * max(1.0, float(wanted_norms.clamp(max=clip).sum()))
    for name, total in wanted.items():
        torch.testing.assert_close(sums[name], total, rtol=1e-4, atol=tolerance)
        moved = parameters[name] - 0.1 * total / 5.0
        torch.testing.assert_close(state[name], moved, rtol=1e-4, atol=tolerance)


CASES = (
    st.integers(0, 10**6),
    st.integers(0, 5),
    st.sampled_from([0.5, 5.0, 1e4]),
    st.integers(1, 5),
)


@given(*CASES)
@settings(max_examples=40, deadline=None)
def test_norms_and_updates_equal_brute_force(
    seed: int, size: int, clip: float, physical: int
) -> None:
    check_exactness(seed, size, clip, physical)


@pytest.mark.statistical
@given(*CASES)
@settings(max_examples=1000, deadline=None, derandomize=True)
def test_norms_and_updates_equal_brute_force_in_a_thousand_cases(
    seed: int, size: int, clip: float, physical: int
) -> None:
    check_exactness(seed, size, clip, physical)


def test_reads_are_the_same_with_keys_of_either_size() -> None:
    """Rows of a table too large for keys of 32 bits, and padding far below 0."""
    small = torch.tensor([[0, 4, 4, -1], [3, 0, 3, 5], [-1, 4, 2, 2]])
    large = torch.where(small < 0, -(1 << 40), small * (1 << 30))
    found, expected = Reads.of(large), Reads.of(small)
    assert torch.equal(found.rows, expected.rows * (1 << 30))
    assert expected.rows.tolist() == [0, 2, 3, 4, 5]
    assert expected.places.tolist() == [0, 5, 10, 11, 4, 6, 1, 2, 9, 7]
    for name in ("places", "starts", "repeats", "groups", "apart"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_batch_of_nothing_but_padding_has_norms_of_zero() -> None:
    step, parameters = new(start(), clip=1.0), start()
    batch = make(0, 3)
    ids = {name: torch.full_like(value, -1) for name, value in batch.ids.items()}
    step.accumulate(lambda rows, *_: rows["item"].sum((1, 2)), UnitBatch(3, ids, batch.data))
    assert not step.unit_norms.any()
    step.step()
    assert all(torch.equal(value, parameters[name]) for name, value in step.state().items())


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_no_unit_adds_more_than_the_bound(seed: int, size: int) -> None:
    step = new(start(seed), clip=0.1)
    step.accumulate(loss, make(seed, size))
    contributions = [step.contribution(unit) for unit in range(size)]
    assert all(norm(c) <= 0.1 for c in contributions)
    for name, total in step.clipped_sum().items():
        summed = torch.stack([c[name] for c in contributions]).sum(0)
        torch.testing.assert_close(total, summed, rtol=1e-5, atol=1e-7)


@given(st.integers(0, 10**6), st.sampled_from([0.1, 1e4]))
@settings(max_examples=20, deadline=None)
def test_a_contribution_is_bit_identical_whoever_else_is_there(seed: int, clip: float) -> None:
    batch, others = make(seed, 4), make(seed + 1, 4)
    unit = seed % 4
    mixed = UnitBatch(
        4,
        {
            k: torch.where(torch.arange(4).unsqueeze(1) == unit, v, others.ids[k])
            for k, v in batch.ids.items()
        },
        {
            k: torch.where(torch.arange(4).unsqueeze(1) == unit, v, others.data[k])
            for k, v in batch.data.items()
        },
    )
    one, two = new(start(), clip=clip), new(start(), clip=clip)
    one.accumulate(loss, batch)
    two.accumulate(loss, mixed)
    for name, value in one.contribution(unit).items():
        assert torch.equal(value, two.contribution(unit)[name])


@given(st.integers(0, 10**6), st.integers(0, 5))
@example(97686, 4)
@settings(max_examples=20, deadline=None)
def test_without_noise_and_bound_it_is_plain_sgd(seed: int, size: int) -> None:
    # With a larger rate some draws' second step explodes, and float32 tells nothing there.
    parameters, batch = start(seed), make(seed, size)
    step = new(parameters, rate=0.001)
    for _ in range(2):
        step.accumulate(loss, batch)
        step.step()
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    plain = torch.optim.SGD(leaves.values(), lr=0.001)
    for _ in range(2):
        plain.zero_grad()
        rows = {
            name: leaves[name][ids.clamp(min=0)] * (ids >= 0).unsqueeze(-1)
            for name, ids in batch.ids.items()
        }
        dense = {k: leaves[k].expand(size, *SHAPES[k]) for k in SHAPES if k not in TABLES}
        (loss(rows, dense, batch).sum() / 5.0).backward()  # type: ignore[no-untyped-call]
        plain.step()
    for name, value in step.state().items():
        torch.testing.assert_close(value, leaves[name].detach(), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_physical_batches_make_the_same_step(seed: int, size: int, physical: int) -> None:
    batch = make(seed, size)
    whole, pieces = (new(start(), clip=1.0, noise=0.5, source=seeded(1)) for _ in range(2))
    whole.accumulate(loss, batch)
    for begin in range(0, size, physical):
        pieces.accumulate(loss, part(batch, slice(begin, begin + physical)))
    whole.step()
    pieces.step()
    for name, value in whole.state().items():
        torch.testing.assert_close(value, pieces.state()[name], rtol=1e-5, atol=1e-6)
    assert whole.accountant.history == pieces.accountant.history == [(0.5, 1.0, 1)]


@pytest.mark.parametrize("accumulate", [False, True])
def test_an_empty_batch_is_pure_noise_on_every_entry(accumulate: bool) -> None:
    parameters = start()
    step = new(parameters, clip=2.0, noise=3.0, rate=1.0, source=seeded(5))
    if accumulate:
        step.accumulate(loss, make(0, 0))
    step.step()
    for name, value in step.state().items():
        assert (value != parameters[name]).all()


@pytest.mark.parametrize("size", [0, 3])
def test_the_noise_has_its_variance_in_every_parameter(size: int) -> None:
    step = new(start(), clip=2.0, noise=3.0, rate=1.0, source=seeded(size))
    batch = make(size, size)
    squares = dict.fromkeys(SHAPES, 0.0)
    repeats = 400
    for _ in range(repeats):
        before = step.state()
        step.accumulate(loss, batch)
        total = step.clipped_sum()
        step.step()
        for name, value in step.state().items():
            drawn = (before[name] - value) * 5.0 - total[name]
            squares[name] += float(drawn.square().sum())
    for name, shape in SHAPES.items():
        count = repeats * math.prod(shape)
        # The standard error of a variance is √(2/n) of it.
        assert abs(squares[name] / count / 36.0 - 1) < 5 * (2 / count) ** 0.5


def test_a_parameter_of_more_numbers_than_are_drawn_at_a_time_has_noise_in_each() -> None:
    step = ExactDPStep(
        {"dense": torch.zeros(2 * MOST + 7)},
        tables=(),
        max_grad_norm=1.0,
        noise_multiplier=2.0,
        batch_normalizer=1.0,
        learning_rate=1.0,
        noise=SeededNoise(np.random.default_rng(0)),
    )
    step.step()
    moved = step.state()["dense"].numpy()
    assert len(np.unique(moved)) > 0.9 * len(moved)
    for part in np.array_split(moved, 5):
        assert part.std() == pytest.approx(2.0, rel=0.05)
    assert moved[-7:].all()


def test_a_parameter_the_loss_does_not_read_has_no_stale_gradient() -> None:
    step = new(start())
    step.accumulate(loss, make(1, 3))
    before = step.clipped_sum()
    norms = step.unit_norms

    def only_bias(rows: Tensors, dense: Tensors, batch: UnitBatch) -> torch.Tensor:
        return rows["bias"].sum((1, 2))

    step.accumulate(only_bias, make(2, 3))
    after = step.clipped_sum()
    for name in set(SHAPES) - {"bias"}:
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["bias"], after["bias"])
    assert not torch.equal(norms, step.unit_norms)


def test_a_unit_whose_gradient_overflows_adds_nothing_and_spoils_nothing() -> None:
    batch = make(3, 3)
    broken = batch.data["target"].clone()
    broken[1] = math.inf
    step, without = new(start(), clip=1.0), new(start(), clip=1.0)
    step.accumulate(loss, UnitBatch(3, batch.ids, {"target": broken}))
    for unit in (0, 2):
        without.accumulate(loss, part(batch, slice(unit, unit + 1)))
    for name, value in step.clipped_sum().items():
        torch.testing.assert_close(value, without.clipped_sum()[name])


def given_gradients(rows: Tensors, dense: Tensors, batch: UnitBatch) -> torch.Tensor:
    return (rows["item"] * batch.data["gradient"]).sum((1, 2))


def only_items(ids: list[list[int]], gradient: torch.Tensor, clip: float) -> torch.Tensor:
    step = ExactDPStep(
        {"item": torch.zeros(2, gradient.shape[2])},
        {"item"},
        max_grad_norm=clip,
        noise_multiplier=0.0,
        batch_normalizer=1.0,
        learning_rate=1.0,
    )
    batch = UnitBatch(len(ids), {"item": torch.tensor(ids)}, {"gradient": gradient})
    step.accumulate(given_gradients, batch)
    return step.clipped_sum()["item"]


def test_large_duplicates_that_cancel_do_not_wipe_out_other_units() -> None:
    # Their norm is 0, so nothing clips them; added one by one to a float32 sum of others' small
    # gradients they would leave nothing of it: one unit would move the sum by all the others.
    ids = [[0, -1]] * 5 + [[0, 0]]
    gradient = torch.zeros(6, 2, 1)
    gradient[:5, 0] = 0.9
    gradient[5, :, 0] = torch.tensor([5e9, -5e9])
    assert only_items(ids, gradient, 1.0)[0] == pytest.approx(4.5)


@pytest.mark.parametrize("clip", [1e-3, 2.2e-4, 1.0])
def test_a_gradient_too_large_for_float32_to_scale_adds_no_more_than_the_bound(
    clip: float,
) -> None:
    # A factor below float32's normal range is rounded by more than the margin under the bound.
    total = only_items([[0]], torch.full((1, 1, 1000), 3e38), clip)
    assert float(total.double().norm()) <= clip


def summed(units: torch.Tensor, bound: float, table: bool, physical: int) -> float:
    """Return the sum of (U, 1) gradients of one number, in batches of ``physical``."""
    step = ExactDPStep(
        {"one": torch.zeros(1, 1)},
        {"one"} if table else set(),
        max_grad_norm=bound,
        noise_multiplier=0.0,
        batch_normalizer=1.0,
        learning_rate=1.0,
    )
    for start in range(0, len(units), physical):
        batch = units[start : start + physical]
        ids = {"one": torch.zeros(len(batch), 1, dtype=torch.int64)} if table else {}
        step.accumulate(
            lambda rows, dense, of: (
                (rows["one"] if table else dense["one"]).squeeze(2) * of.data["by"]
            ).sum(1),
            UnitBatch(len(batch), ids, {"by": batch}),
        )
    return float(step.optimizer.summed("one").sum())


@pytest.mark.parametrize("physical", [1 << 10, 1 << 20])
@pytest.mark.parametrize("table", [True, False])
def test_one_unit_moves_a_sum_by_its_own_gradient_however_many_others_there_are(
    table: bool, physical: int
) -> None:
    """Two sums in float32 that differ by one unit drift apart: each rounds on a grid of its own.

    The units are those of an attack on such sums (Casacuberta et al. 2022): after each power of
    two, some that one of the sums rounds up and the other does not. In float32 taking one away
    moved the sum by 8 times the bound.
    """
    gradients, total, gap = [np.ones(1)], 1.0, 1.0
    for power in range(10, 13):
        gradients.append(np.ones(int(2.0**power - total)))
        grid = 2.0 ** (power - 23)
        some = round(2 * gap / grid)
        gradients.append(np.full(some, grid / 2 * (1 + 2.0**-10)))
        total, gap = 2.0**power + some * grid, gap * 2
    units = torch.from_numpy(np.concatenate(gradients).astype(np.float32)).unsqueeze(1)

    whole, fewer = (summed(some, 1.01, table, physical) for some in (units, units[1:]))
    moved = whole - fewer
    assert len(units) > 50_000
    assert moved == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("table", [True, False])
def test_sums_are_those_of_float64_in_whatever_order_they_are_made(table: bool) -> None:
    # Units that drive float32 sums apart do so in one order; this shows them in any.
    units = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)).mul_(0.25)
    exact = math.fsum(units.squeeze(1).tolist())
    found = summed(units, float(units.abs().max()) * 1.01, table, len(units))
    assert found == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("apart", [True, False])
def test_start_values_round_nothing_of_what_units_add_where_they_stand_apart(apart: bool) -> None:
    """The server chooses start values, here such that float32 numbers lie 2^-5 apart there.

    One unit moves 4,000 numbers by next to nothing, all of them across the middle between two such
    numbers, to which another one has brought them: where start values round the sum, that is two
    clipping norms, before there is any noise.
    """
    count, gap = 4_000, 2.0**-5
    begin = {"item": torch.full((count // 4, 4), 1.5 * gap * 2**23)}
    ids = {"item": torch.arange(count // 4).unsqueeze(0)}

    def moved(*gradients: float) -> np.ndarray:
        step = ExactDPStep(
            begin,
            {"item"},
            max_grad_norm=1.0,
            noise_multiplier=0.0,
            batch_normalizer=1.0,
            learning_rate=1.0,
            apart=apart,
        )
        for gradient in gradients:
            batch = UnitBatch(1, ids, {"by": torch.tensor([gradient])})
            step.accumulate(lambda rows, _, of: (rows["item"] * of.data["by"]).sum((1, 2)), batch)
        step.step()
        trained = step.moved() if apart else step.state()
        return (trained["item"] - (0.0 if apart else begin["item"])).double().numpy()

    one = gap * 1e-3
    found = float(np.linalg.norm(moved(gap / 2 - one / 2, one) - moved(gap / 2 - one / 2)))
    assert found == pytest.approx(one * count**0.5 if apart else gap * count**0.5, rel=1e-3)


@pytest.mark.parametrize("lazy", [True, False])
def test_steps_are_the_same_where_start_values_stand_apart(lazy: bool) -> None:
    begin, steps = start(), []
    for apart in (True, False):
        step = ExactDPStep(
            begin,
            TABLES,
            max_grad_norm=1.0,
            noise_multiplier=0.5,
            batch_normalizer=5.0,
            learning_rate=0.3,
            noise=seeded(3),
            momentum=0.0 if lazy else 0.7,
            apart=apart,
        )
        for seed in range(4):
            step.accumulate(loss, make(seed, 5))
            step.step()
        steps.append(step)
    moved, states = steps[0].moved(), [step.state() for step in steps]
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moved[name], value - begin[name], rtol=1e-3, atol=1e-5)
    assert all(torch.equal(begin[name], value) for name, value in start().items())


def test_the_sum_starts_anew_after_each_step() -> None:
    step = new(start())
    step.accumulate(loss, make(1, 3))
    step.step()
    assert not any(value.any() for value in step.clipped_sum().values())


def test_learning_rates_go_by_name() -> None:
    step = ExactDPStep(
        start(),
        TABLES,
        max_grad_norm=math.inf,
        noise_multiplier=0.0,
        batch_normalizer=1.0,
        learning_rate={**dict.fromkeys(SHAPES, 0.0), "bias": 1.0},
    )
    step.accumulate(loss, make(1, 3))
    step.step()
    moved = {name for name, value in step.state().items() if not torch.equal(value, start()[name])}
    assert moved == {"bias"}


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: new(start(), clip=math.inf, noise=1.0, source=seeded(0)),
        lambda: new(start(), clip=0.0),
        lambda: new({"item": torch.zeros(2, 2)}),
        lambda: new(start(), clip=1.0, noise=1.0),
        lambda: new(start()).accumulate(lambda rows, *_: rows["item"].sum(), make(0, 2)),
    ],
)
def test_steps_that_could_not_be_private_are_refused(attempt: Callable[[], object]) -> None:
    with pytest.raises(PrivacyError):
        attempt()
