"""Noise added by the compiled loop and by numpy: one and the same, under the same words."""

import builtins
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from client.privacy import compiling
from client.privacy.adding import CompiledAdder, NumpyAdder, adder
from client.privacy.folding import Terms, fold_rows, move_rows, take_slots
from client.privacy.gathering import gather_sums
from client.privacy.moving import add_rows
from client.privacy.noise import Keystream, SeededNoise, SystemNoise
from client.privacy.normals import CELLS, MOST, Normals
from client.privacy.squares import unit_squares


class FixedNoise(SystemNoise):
    """The deployment's noise under a key that a test knows."""

    def __init__(self, key: int) -> None:
        self._words = Keystream(key.to_bytes(32, "big"))
        self.normals = Normals(self._words)


@pytest.fixture
def no_llvm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "llvmlite":
            raise ImportError(name)
        return real(name, *rest)

    forget()
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield
    forget()


def forget() -> None:
    """Have all loops compiled anew, where there is a compiler."""
    compiling.function.cache_clear()
    compiling._compiled.cache_clear()


def test_deployments_noise_is_added_by_the_compiled_loop() -> None:
    assert isinstance(adder(SystemNoise(), 32), CompiledAdder)
    assert isinstance(adder(SystemNoise(), MOST), CompiledAdder)
    assert isinstance(adder(SystemNoise(), MOST + 1), NumpyAdder)
    assert isinstance(adder(SeededNoise(np.random.default_rng(0)), 32), NumpyAdder)


def test_without_llvm_numpy_adds_it(no_llvm: None) -> None:
    work = adder(SystemNoise(), 3)
    assert isinstance(work, NumpyAdder)
    table = np.zeros((4, 3), np.float32)
    work.add(table, np.array([0, 2]), np.array([1.0, 1.0]))
    assert table[[0, 2]].all()
    assert not table[[1, 3]].any()


@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_both_add_the_same_to_the_last_bit(seed: int, width: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    table = random.normal(size=(300, width)).astype(np.float32)
    other = table.copy()
    compiled, plain = CompiledAdder(FixedNoise(seed), width), NumpyAdder(FixedNoise(seed), width)
    assert compiled.rows == plain.rows
    for _ in range(3):
        chosen = np.sort(random.permutation(300)[: min(rows, compiled.rows)])
        # Steps owed from none to many: sizes from nothing to far above what is there.
        scales = random.choice([0.0, 1e-9, 0.3, 5.0, 1e6], len(chosen))
        compiled.add(table, chosen, scales)
        plain.add(other, chosen, scales)
    assert np.array_equal(table.view(np.uint32), other.view(np.uint32))


def test_both_add_the_same_to_many_values_those_that_are_left_out_too() -> None:
    tables = []
    for kind in (CompiledAdder, NumpyAdder):
        table = np.zeros((1000, 512), np.float32)
        work = kind(FixedNoise(7), 512)
        for start in range(0, len(table), work.rows):
            rows = np.arange(start, min(start + work.rows, len(table)))
            work.add(table, rows, np.full(len(rows), 2.0))
        tables.append(table)
    assert np.array_equal(tables[0].view(np.uint32), tables[1].view(np.uint32))
    values = tables[0].ravel() / 2.0
    # Beyond the last rectangle, at 3.3, only what is left out comes.
    expected = 2 * stats.norm.sf(3.5) * len(values)
    assert abs((np.abs(values) > 3.5).sum() - expected) < 5 * expected**0.5
    assert stats.kstest(values[:200_000], "norm").pvalue > 1e-4


def test_what_a_word_stands_for_is_as_described() -> None:
    normals = Normals(Keystream(bytes(32)))
    words, places, values = normals.draw(100)
    made = normals.lows[(words % np.uint64(CELLS)).astype(np.int64)]
    made += (words >> np.uint64(15) | np.uint64(0x3FC0000000000000)).view(np.float64)
    made[places] = values
    found = np.empty(100)
    Normals(Keystream(bytes(32))).fill(found)
    assert np.array_equal(made, found)


def test_no_other_row_is_touched_and_no_row_beyond_the_table() -> None:
    whole = np.full((12, 5), 3.0, np.float32)
    table = whole[1:11]
    work = CompiledAdder(SystemNoise(), 5)
    work.add(table, np.array([0, 9]), np.array([1.0, 1.0]))
    assert (whole[[0, *range(2, 10), 11]] == 3.0).all()
    assert (whole[[1, 10]] != 3.0).all()
    for rows in ([10], [-1]):
        with pytest.raises(IndexError):
            work.add(table, np.array(rows), np.array([1.0]))
    for wrong in (table.astype(np.float64), np.zeros((5, 10), np.float32).T):
        with pytest.raises(TypeError):
            work.add(wrong, np.array([0]), np.array([1.0]))
    before = whole.copy()
    work.add(table, np.zeros(0, np.int64), np.zeros(0))
    assert np.array_equal(whole, before)


@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 110, 32), (3, 7, 5), (2, 300, 64), (40, 1, 16)])
def test_norms_are_the_same_with_and_without_llvm(
    shape: tuple[int, int, int], no_llvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, rows, width = shape
    random = np.random.default_rng(rows)
    values = random.normal(size=(units * rows, width)).astype(np.float32)
    values *= 10.0 ** random.integers(-15, 15, (len(values), 1)).astype(np.float32)
    apart = random.random(len(values)) < 0.3
    plain = unit_squares(values, apart, units)
    monkeypatch.undo()
    forget()
    assert np.array_equal(plain, unit_squares(values, apart, units))
    exact = np.where(apart[:, None], 0.0, values.astype(np.longdouble)) ** 2
    wanted = exact.reshape(units, -1).sum(axis=1).astype(np.float64)
    np.testing.assert_allclose(plain, wanted, rtol=1e-13)
    # A unit alone has the very same norm.
    last = slice((units - 1) * rows, None)
    assert unit_squares(values[last], apart[last], 1)[0] == plain[-1]


def test_a_unit_without_rows_or_columns_has_norm_zero() -> None:
    nothing = np.zeros(0, dtype=bool)
    assert unit_squares(np.zeros((0, 4), np.float32), nothing, 3).tolist() == [0.0] * 3
    assert unit_squares(np.zeros((0, 4), np.float32), nothing, 0).shape == (0,)
    with pytest.raises(ValueError, match="rows"):
        unit_squares(np.zeros((3, 4), np.float32), np.zeros(3, dtype=bool), 2)


@pytest.mark.parametrize("width", [1, 5, 32])
def test_rows_are_moved_the_same_with_and_without_llvm(
    width: int, no_llvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(width)
    before = random.normal(size=(5000, width)).astype(np.float32)
    rows = np.sort(random.permutation(5000)[:3000])
    values = random.normal(size=(3000, width))
    tables = []
    for undone in (False, True):
        if undone:
            monkeypatch.undo()
            forget()
        table = before.copy()
        add_rows(table, rows, values, -0.37)
        tables.append(table)
    assert np.array_equal(tables[0], tables[1])
    wanted = before.astype(np.float64)
    wanted[rows] -= 0.37 * values
    # Rounded once: the nearest float32 of the exact result.
    assert np.array_equal(tables[0], wanted.astype(np.float32))
    assert np.array_equal(np.delete(tables[0], rows, axis=0), np.delete(before, rows, axis=0))
    for wrong in (rows + 2500, rows - 2500):
        with pytest.raises(IndexError):
            add_rows(tables[0], wrong, values, 1.0)


@pytest.mark.parametrize("width", [1, 5, 32])
def test_rows_are_folded_the_same_with_and_without_llvm(
    width: int, no_llvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And to the last bit as one term after the other in float64, whatever float32 would lose."""
    random = np.random.default_rng(width)
    values = random.normal(size=(400, width)).astype(np.float32) * np.float32(1e8)
    others = random.normal(size=(30, width)).astype(np.float32)
    starts = np.sort(random.integers(0, 1001, 70)).astype(np.int32)
    starts[0], starts[-1] = 0, 1000
    sources = random.integers(0, 430, 1000).astype(np.int32)
    weights = random.normal(size=1000)
    terms = Terms(values, others, sources, weights, starts)
    slots = random.permutation(90)[:69]
    before = random.normal(size=(90, width))
    folded, moved = [], []
    for undone in (False, True):
        if undone:
            monkeypatch.undo()
            forget()
        sums, table = before.copy(), before.astype(np.float32)
        fold_rows(terms, slots, sums)
        move_rows(terms, slots, table, -0.37)
        folded.append(sums)
        moved.append(table)
    assert np.array_equal(folded[0], folded[1])
    assert np.array_equal(moved[0], moved[1])
    wanted, change = before.copy(), np.zeros((90, width))
    together = np.concatenate([values, others])
    for slot, (begin, end) in zip(slots, pairwise(starts), strict=True):
        for term in range(begin, end):
            wanted[slot] += together[sources[term]].astype(np.float64) * weights[term]
            change[slot] += together[sources[term]].astype(np.float64) * weights[term]
    assert np.array_equal(folded[0], wanted)
    assert np.array_equal(moved[0], (before.astype(np.float32) + change * -0.37).astype(np.float32))


def test_sums_that_begin_forget_what_was_there(
    no_llvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(40, 7)).astype(np.float32)
    starts = np.sort(random.integers(0, 41, 21)).astype(np.int32)
    starts[0], starts[-1] = 0, 40
    sources, weights = random.permutation(40).astype(np.int32), random.normal(size=40)
    terms, slots = Terms(values, values[:0], sources, weights, starts), random.permutation(25)[:20]
    before = random.normal(size=(25, 7))
    cleared = before.copy()
    cleared[slots[slots >= 9]] = 0.0
    fold_rows(terms, slots, cleared)
    for undone in (False, True):
        if undone:
            monkeypatch.undo()
            forget()
        sums = before.copy()
        fold_rows(terms, slots, sums, fresh=9)
        assert np.array_equal(sums, cleared)


def test_slots_are_the_same_with_and_without_llvm(
    no_llvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    batches = [np.sort(random.permutation(50)[:size]) for size in (20, 0, 35, 50, 1)]
    found = []
    for undone in (False, True):
        if undone:
            monkeypatch.undo()
            forget()
        slots, owners, taken = np.zeros(50, np.int32), np.full(50, -1), 0
        given = []
        for rows in batches:
            own, taken = take_slots(rows, slots, owners, taken)
            # Each row has its own, and those of new rows come next.
            assert np.array_equal(owners[own], rows)
            assert np.array_equal(np.sort(slots[slots > 0]), np.arange(taken) + 1)
            given.append(own)
        found.append([*given, slots, owners])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert found[0][0].tolist() == list(range(20))
    assert taken == 50


def test_slots_that_are_not_there_are_refused() -> None:
    slots, owners = np.zeros(3, np.int32), np.zeros(3, np.int64)
    wrong: tuple[tuple[list[int], np.ndarray, int], ...] = (
        ([3], owners, 0),
        ([-1], owners, 0),
        ([0], owners[:2], 0),
        ([0], owners, 3),
        ([0, 1], owners, 2),
        ([0], owners, -1),
    )
    for rows, own, taken in wrong:
        with pytest.raises(IndexError):
            take_slots(np.array(rows), slots, own, taken)
    assert not slots.any()


@pytest.mark.parametrize("width", [1, 5, 32, 64])
def test_rows_of_two_tables_are_the_same_with_and_without_llvm(
    width: int, no_llvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(width)
    start, moved = random.normal(size=(2, 50, width)).astype(np.float32)
    places = random.integers(-3, 50, 300)
    plain = gather_sums(start, moved, places)
    monkeypatch.undo()
    forget()
    assert np.array_equal(plain, gather_sums(start, moved, places))
    wanted = np.where(places[:, None] < 0, np.float32(0), start[places] + moved[places])
    assert np.array_equal(plain, wanted)
    assert gather_sums(start, moved, places[:0]).shape == (0, width)


def test_sums_of_rows_that_are_not_there_are_refused() -> None:
    table = np.ones((3, 2), np.float32)
    with pytest.raises(IndexError):
        gather_sums(table, table, np.array([0, 3]))
    with pytest.raises(IndexError):
        gather_sums(table, table[:2], np.array([0]))
    with pytest.raises(TypeError):
        gather_sums(table, np.ones((2, 3), np.float32).T, np.array([0]))


def test_terms_that_are_not_there_are_refused() -> None:
    values, others = np.ones((4, 2), np.float32), np.ones((1, 2), np.float32)

    def fold(sources: list[int], starts: list[int], rows: list[int]) -> np.ndarray:
        sums, table, places = np.zeros((3, 2)), np.zeros((3, 2), np.float32), np.array(rows)
        begin = np.array(starts, np.int32)
        terms = Terms(values, others, np.array(sources, np.int32), np.ones(2), begin)
        with pytest.raises(IndexError) if min(rows) < 0 or max(rows) > 2 else nullcontext():
            move_rows(terms, places, table, 2.0)
        fold_rows(terms, places, sums)
        assert table.tolist() == (2 * sums).tolist()
        return sums

    assert fold([0, 4], [0, 2], [2]).tolist() == [[0, 0], [0, 0], [2, 2]]
    for sources, starts, rows in (
        ([0, 5], [0, 2], [2]),
        ([-1, 0], [0, 2], [2]),
        ([0, 0], [0, 3], [2]),
        ([0, 0], [1, 2], [2]),
        ([0, 0], [0, 2], [3]),
        ([0, 0], [0, 2], [-1]),
        ([0, 0], [0, 1, 2], [0]),
    ):
        with pytest.raises(IndexError):
            fold(sources, starts, rows)
