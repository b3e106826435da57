"""The slice of a round's state that a shop is sent: all that its step reads, and no more."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from client.privacy.noise import SeededNoise
from client.training import train_round, whole_gradients
from common.blocks import LearnedBlock, block_of, taken_off
from common.errors import ProtocolError
from common.features import Catalogue
from common.model import trained_spec
from common.protocol import (
    EXPECTED,
    GAIN,
    GRAM,
    ITEMS,
    LEARNED,
    OFFSET,
    POPULARITY,
    RATES,
    WEIGHTS,
    Arrays,
    TrainingPlan,
)
from common.shop_state import ShopState, Slices, read_slice
from federation_support import same
from test_training import PLANS, N, catalogue, plan_of, shop, state_of

__all__ = ["catalogue"]

ALONG: dict[str, Any] = {"model": {"centred": False, "popular_share": 0.3}}
STOCKED = np.arange(0, N, 3)


class Cut(LearnedBlock):
    """Whole rows worked out first, as all products have them, and then cut to a shop's own."""

    whole: LearnedBlock
    own: np.ndarray

    def project(self, history: sparse.csr_matrix) -> sparse.csr_matrix:
        return self.whole.project(history)[:, self.own]

    def training_rows(self, history: sparse.csr_matrix, exponent: float) -> sparse.csr_matrix:
        rows = sparse.csr_matrix(self.whole.training_rows(history, exponent)[:, self.own])
        rows.sort_indices()
        return rows


def cut(
    plan: TrainingPlan, state: Arrays, catalogue: Catalogue, stocked: np.ndarray | None
) -> ShopState:
    """What a shop's step read when it had the whole state."""
    known = ShopState.of(plan, state, catalogue)
    if plan.model.groups or stocked is None:
        return known
    whole = block_of(plan.model, state[POPULARITY], catalogue)
    assert isinstance(whole, LearnedBlock)
    own = np.flatnonzero(np.isin(whole.rows, stocked))
    block = Cut(whole.rows[own], whole.gain[own], whole.rates[own])
    object.__setattr__(block, "whole", whole)
    object.__setattr__(block, "own", own)
    along, _ = taken_off(whole, plan.model)
    arrays = {**known.arrays, ITEMS: state[ITEMS][own]}
    return replace(known, arrays=arrays, block=block, along=along[own], rates=whole.rates[own])


def planned(name: str, **changes: Any) -> TrainingPlan:
    if name != "along":
        return plan_of(name, **changes)
    return plan_of("linear", **changes, **ALONG)


def other_state(plan: TrainingPlan, seed: int) -> Arrays:
    """A released state with another popularity, much of it 0 or the same."""
    stream = np.random.default_rng(seed)
    counts = np.maximum(stream.integers(-3, 9, N), 0).astype(np.float32)
    state = {
        name: (array + 0.1 * stream.standard_normal(array.shape)).astype(np.float32)
        for name, array in state_of(plan).items()
    }
    return {**state, POPULARITY: counts / np.float32(max(counts.sum(), 1))}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from([*PLANS, "along"]),
    stocked=st.one_of(
        st.sets(st.integers(0, N - 1)),
        st.sampled_from([set(), set(range(N)), {0}, {N - 1}]),
    ),
    seed=st.integers(0, 2**16),
)
def test_a_shop_computes_from_its_slice_what_it_computed_from_whole_rows(
    catalogue: Catalogue, name: str, stocked: set[int], seed: int
) -> None:
    """To the bit, noise and draws and all: stocking nothing, one product, some or everything."""
    plan, own = planned(name, private=True), np.array(sorted(stocked), dtype=np.int64)
    state, events = other_state(plan, seed), shop(seed=seed % 7)

    def trained(known: ShopState) -> Arrays:
        noise, stream = SeededNoise(np.random.default_rng(seed)), np.random.default_rng(1)
        return train_round(plan, 1, known, events, catalogue, noise, stream, own)

    sent = Slices(plan, state, catalogue).of(own)
    found = trained(read_slice(plan, sent, catalogue, own))
    assert same(found, trained(cut(plan, state, catalogue, own)))
    assert same(found, trained(read_slice(plan, state, catalogue, own)))


@pytest.mark.parametrize("name", ["linear", "few items", "groups", "even groups", "customers"])
def test_a_shop_adds_to_a_sum_what_it_added_with_whole_rows(
    name: str, catalogue: Catalogue
) -> None:
    """Without the records of what it does not stock, which its slice cannot place."""
    plan = plan_of(name, private=True)
    state = other_state(plan, 3)
    sold = shop(seed=2)
    events = sold.select(np.isin(sold.items, STOCKED))
    assert 0 < len(events) < len(sold)
    sent = Slices(plan, state, catalogue).of(STOCKED)
    known = read_slice(plan, sent, catalogue, STOCKED)
    streams = [np.random.default_rng(1) for _ in range(3)]
    own = whole_gradients(plan, 1, known, sold, catalogue, streams[0], STOCKED)
    whole = whole_gradients(plan, 1, state, events, catalogue, streams[1])
    if not plan.model.groups:
        assert known.learned is not None
        mine = np.isin(known.learned, STOCKED)
        assert not whole[ITEMS][~mine].any()
        whole[ITEMS] = whole[ITEMS][mine]
    assert same(own, whole)
    assert any(array.any() for array in own.values())


@pytest.mark.parametrize("name", [*PLANS, "along"])
def test_a_shop_that_is_not_named_is_sent_everything_that_a_step_reads(
    name: str, catalogue: Catalogue
) -> None:
    plan = planned(name, private=True)
    state = other_state(plan, 5)
    known = read_slice(plan, Slices(plan, state, catalogue).of(None), catalogue, None)
    noises = [SeededNoise(np.random.default_rng(5)) for _ in range(2)]
    streams = [np.random.default_rng(6) for _ in range(2)]
    assert same(
        train_round(plan, 1, known, shop(), catalogue, noises[0], streams[0]),
        train_round(plan, 1, state, shop(), catalogue, noises[1], streams[1]),
    )


def _count(arrays: Arrays) -> int:
    return sum(array.size for array in arrays.values())


def test_a_slice_grows_with_what_a_shop_stocks_and_holds_no_popularity(
    catalogue: Catalogue,
) -> None:
    """Rows of 5 and a gain, the Gram matrix and the expected basket, and whole content."""
    for name in [*PLANS, "along"]:
        plan = planned(name)
        state = state_of(plan)
        slices = Slices(plan, state, catalogue)
        assert same(slices.of(None), slices.of(np.arange(N)))
        for stocked in (np.zeros(0, np.int64), np.array([4]), STOCKED, np.arange(N)):
            sent = slices.of(stocked)
            assert POPULARITY not in sent
            words = {n: a for n, a in sent.items() if n != LEARNED}
            assert slices.nbytes(stocked) == sum(a.nbytes for a in words.values())
            content = sum(
                math.prod(shape)
                for array, shape in trained_spec(plan.model, N).items()
                if array != ITEMS or plan.model.groups
            )
            rest = 25 + 5 + content
            if plan.model.groups:
                assert sent[ITEMS].shape == (6, 5)
                # Brands of some products are in few catalogues: those have no part in a step.
                weighed = np.flatnonzero(np.diff(block_weights(plan, state, catalogue).indptr))
                own = np.isin(weighed, stocked).sum()
                assert _count(sent) - sent.get(LEARNED, np.zeros(0)).size == rest + (
                    6 if plan.model.group_weights == "even" else own + 6
                )
            else:
                count = len(np.intersect1d(slices.learned, stocked))
                width = 5 + 1 + (name == "along") + (plan.loss == "softmax")
                assert _count(sent) - sent.get(LEARNED, np.zeros(0)).size == rest + count * width
    few = Slices(plan_of("few items"), state_of(plan_of("few items")), catalogue)
    assert few.shared[LEARNED].nbytes == math.ceil(N / 8)
    assert LEARNED not in Slices(plan_of("linear"), state_of(plan_of("linear")), catalogue).shared


def block_weights(plan: TrainingPlan, state: Arrays, catalogue: Catalogue) -> sparse.csr_matrix:
    return block_of(plan.model, state[POPULARITY], catalogue).weights  # type: ignore[union-attr]


def altered(sent: Arrays, name: str, value: np.ndarray | None) -> Arrays:
    rest = {n: a for n, a in sent.items() if n != name}
    return rest if value is None else {**rest, name: value}


@pytest.mark.parametrize("name", ["few items", "softmax", "groups", "even groups", "features"])
def test_a_slice_that_does_not_fit_is_refused(name: str, catalogue: Catalogue) -> None:
    plan = plan_of(name)
    sent = Slices(plan, state_of(plan), catalogue).of(STOCKED)
    read_slice(plan, sent, catalogue, STOCKED)
    for array, value in sent.items():
        changes: list[np.ndarray | None] = [None, value[:-1], np.concatenate([value, value[:1]])]
        if value.size and array != LEARNED:
            changes += [np.full_like(value, np.nan), value.astype(np.float64), value[None]]
        if array == LEARNED:
            # One row too few, one too many, and another type.
            bits = np.unpackbits(value, count=None)
            at = np.flatnonzero(bits)[0]
            fewer, more = bits.copy(), bits.copy()
            fewer[at] = 0
            more[np.flatnonzero(bits == 0)[0]] = 1
            changes += [np.packbits(fewer), np.packbits(more), value.astype(np.float32)]
        for change in changes:
            with pytest.raises(ProtocolError):
                read_slice(plan, altered(sent, array, change), catalogue, STOCKED)
    for extra in ({POPULARITY: np.zeros(N, np.float32)}, {"rows": STOCKED.astype(np.float32)}):
        with pytest.raises(ProtocolError, match="unexpected"):
            read_slice(plan, {**sent, **extra}, catalogue, STOCKED)
    for whole in ({POPULARITY: np.zeros(N, np.float32)}, altered(state_of(plan), ITEMS, None)):
        with pytest.raises(ProtocolError, match="missing"):
            read_slice(plan, whole, catalogue, STOCKED)
    if ITEMS in sent and not plan.model.groups:
        # Of another shop, of another number of products.
        with pytest.raises(ProtocolError, match="has shape"):
            read_slice(plan, sent, catalogue, np.arange(N))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "array"),
    [
        *(("linear", GAIN), ("linear", GRAM), ("softmax", EXPECTED), ("softmax", RATES)),
        *(("groups", WEIGHTS), ("groups", OFFSET), ("even groups", GAIN)),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, 3e38])
def test_whatever_a_server_makes_up_no_customer_moves_more_than_the_clipping_norm(
    name: str, array: str, value: float, catalogue: Catalogue
) -> None:
    plan = plan_of(name, private=True).model_copy(
        update={"noise_multiplier": 1e-4, "popularity_noise_multiplier": 1e-4}
    )
    sent = Slices(plan, state_of(plan), catalogue).of(STOCKED)
    # In every other row.
    sent[array] = sent[array].copy()
    sent[array][::2] = value
    known = read_slice(plan, sent, catalogue, STOCKED)
    events = shop(seed=3)

    def trained(users: np.ndarray) -> Arrays:
        noise, stream = SeededNoise(np.random.default_rng(5)), np.random.default_rng(6)
        some = events.select(np.isin(events.users, users))
        return train_round(plan, 1, known, some, catalogue, noise, stream, STOCKED)

    everyone = np.arange(len(events.user_ids))
    whole = trained(everyone)
    bound = plan.clipping_norm(1) * plan.learning_rate / plan.batch_normalizer
    for user in everyone[::12]:
        less = trained(np.delete(everyone, user))
        square = sum(float(((whole[n] - less[n]).astype(float) ** 2).sum()) for n in whole)
        assert square**0.5 <= 1.01 * bound


def test_what_is_sent_instead_of_whole_rows_says_what_it_is(catalogue: Catalogue) -> None:
    plan = plan_of("softmax")
    state = other_state(plan, 1)
    sent = Slices(plan, state, catalogue).of(STOCKED)
    block = LearnedBlock.of(plan.model, state[POPULARITY])
    vectors = state[ITEMS].astype(np.float64)
    assert sent[GRAM] == pytest.approx(vectors.T @ vectors, rel=1e-4, abs=1e-5)
    assert sent[EXPECTED] == pytest.approx((block.rates / block.gain) @ vectors, rel=1e-4, abs=1e-5)
    assert sent[GAIN].tolist() == block.gain[STOCKED].tolist()
    assert sent[RATES].tolist() == block.rates[STOCKED].tolist()
    assert sent[ITEMS].tolist() == state[ITEMS][STOCKED].tolist()
    plan = plan_of("groups")
    assert WEIGHTS in Slices(plan, other_state(plan, 1), catalogue).of(STOCKED)
