"""Defences where shops send the rows alone that they stock: what is absent is no zero."""

import numpy as np
import pytest

from common.protocol import POPULARITY, Arrays
from federation_support import same
from server.aggregation import Contribution, senders, sum_popularity, weighted_mean
from server.defence.choice import Defence
from server.defence.rules import RULES, Sent, _krum_scores
from test_defences import contributions, honest

SHOPS, ROWS, WIDTH = 20, 40, 3
EVERY = pytest.mark.parametrize("name", RULES)
# Of each row's senders: all shops, and fewer and fewer, down to one and none.
STOCK = np.arange(SHOPS)[:, None] < np.array([20] * 10 + [15] * 10 + [7] * 10 + [3] * 8 + [1, 0])


def sparse(shops: list[Arrays], sends: np.ndarray = STOCK) -> list[Contribution]:
    """What shops send of whole arrays: of ``table`` the rows that each stocks."""
    return [
        Contribution(
            f"shop-{k:03}",
            1.0,
            {n: a[sends[k]] if n == "table" else a for n, a in arrays.items()},
            {"table": sends[k]},
        )
        for k, arrays in enumerate(shops)
    ]


def crowd(seed: int = 0, spread: float = 0.1) -> list[Arrays]:
    stream = np.random.default_rng(seed)
    signal = np.random.default_rng(99).normal(size=(ROWS, WIDTH))
    return [
        {
            "table": (signal + spread * stream.normal(size=(ROWS, WIDTH))).astype(np.float32),
            "bias": signal[:, 0].astype(np.float32),
        }
        for _ in range(SHOPS)
    ]


def defence(name: str, bad_share: float = 0.2) -> Defence:
    return Defence(name, bad_share)  # type: ignore[arg-type]


@EVERY
def test_rows_that_all_shops_send_are_what_whole_arrays_are(name: str) -> None:
    every = np.ones((SHOPS, 12), dtype=bool)
    found = defence(name).update(sparse(honest(), every))
    whole = defence(name).update(contributions(honest()))
    for key, array in whole.items():
        assert found[key] == pytest.approx(array, rel=1e-6, abs=1e-9)


def test_without_a_defence_a_row_is_the_sum_over_its_senders_by_all_shops() -> None:
    shops = crowd()
    mean = weighted_mean(sparse(shops))
    table = np.stack([arrays["table"] for arrays in shops]).astype(np.float64)
    assert mean["table"] == pytest.approx(np.where(STOCK[:, :, None], table, 0).mean(axis=0))
    assert mean["bias"] == pytest.approx(weighted_mean(contributions(shops))["bias"])
    count = senders(sparse(shops), "table")
    assert count is not None
    assert count.tolist() == STOCK.sum(axis=0).tolist()
    assert senders(sparse(shops), "bias") is None
    assert same(mean, weighted_mean(sparse(shops)[::-1]))


@EVERY
def test_shops_that_agree_are_believed_in_the_rows_that_they_send(name: str) -> None:
    """As if the others had sent zeros and were no voters: the mean of whole updates."""
    agreed = crowd()[0]
    found = defence(name).update(sparse([agreed] * SHOPS))["table"]
    expected = agreed["table"] * (STOCK.sum(axis=0) / SHOPS)[:, None]
    if name == "tail-aware":
        # All four that may be bad may stock a row of three senders: they are held to a typical row.
        enough = STOCK.sum(axis=0) > 4
        assert found[enough] == pytest.approx(expected[enough], rel=0.01)
        along = (found * expected).sum(axis=1)[30:39] / (expected**2).sum(axis=1)[30:39]
        assert along.max() <= 1 + 1e-6
        assert along.min() > 0.2
    else:
        known = STOCK.any(axis=0)
        if "krum" in name:
            # Rows of which only shops are left that it does not take.
            known &= np.abs(found).sum(axis=1) > 0
            assert known[:10].all()
        # Norms are held against those of the same rows, rows below the typical one by that.
        within = 0.01 if name == "norm-bound" else 1e-6
        assert found[known] == pytest.approx(expected[known], rel=within)
    assert not found[-1].any()


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_rows_that_few_stock_are_learned_where_zeros_would_drop_them(name: str) -> None:
    shops = crowd()
    zeros = [
        {**arrays, "table": np.where(STOCK[k][:, None], arrays["table"], np.float32(0))}
        for k, arrays in enumerate(shops)
    ]
    dropped = defence(name).update(contributions(zeros))["table"][30:39]
    kept = defence(name).update(sparse(shops))["table"][30:39]
    plain = weighted_mean(sparse(shops))["table"][30:39]
    assert np.abs(dropped).max() == 0
    assert kept == pytest.approx(plain, rel=0.5, abs=0.03)


@EVERY
def test_what_a_few_bad_shops_can_do_to_a_row_is_bounded_however_loud_they_are(name: str) -> None:
    """Two of the seven senders of a row, and they send nothing else."""
    clean = defence(name).update(sparse(crowd()))["table"]
    moved = []
    for length in (1e3, 1e6):
        shops = crowd()
        for bad in (0, 1):
            shops[bad]["table"] = np.zeros((ROWS, WIDTH), np.float32)
            shops[bad]["table"][25] = length
        moved.append(np.abs(defence(name).update(sparse(shops))["table"][25] - clean[25]).max())
    assert moved[1] == pytest.approx(moved[0], rel=1e-3)
    assert moved[1] < 5


@EVERY
@pytest.mark.parametrize("alone", [1, 4])
def test_a_row_that_bad_shops_alone_send_excuses_nothing_that_they_say_elsewhere(
    name: str, alone: int
) -> None:
    """Held beside their own length there, they were not too long anywhere: whoever is bad may say
    that it stocks what nobody else does."""
    sends = STOCK.copy()
    sends[:, -3:] = np.arange(SHOPS)[:, None] < alone
    enough = slice(0, 20)  # Rows that more than twice as many shops send as may be bad.
    clean = defence(name).update(sparse(crowd(), sends))["table"][enough]
    for length in (1e3, 1e6):
        shops = crowd()
        for bad in range(alone):
            shops[bad]["table"] = np.full((ROWS, WIDTH), length, np.float32)
        found = defence(name).update(sparse(shops, sends))["table"][enough]
        assert np.linalg.norm(found - clean) < 3 * np.linalg.norm(clean)


@EVERY
def test_a_shop_that_sends_little_is_measured_by_what_it_sends(name: str) -> None:
    """Pure noise of one size: who stocks less is no less honest, and no more."""
    stream = np.random.default_rng(3)
    sends = np.ones((SHOPS, 4000), dtype=bool)
    sends[::2, 1000:] = False
    shops = [{"table": stream.normal(size=(4000, 2)).astype(np.float32)} for _ in range(SHOPS)]
    found = defence(name, 0.1).update(sparse(shops, sends))["table"]
    if name in ("norm-bound", "tail-aware"):
        plain = weighted_mean(sparse(shops, sends))["table"]
        kept = (found * plain).sum() / (plain**2).sum()
        # Nobody's norm stands out, whatever its length.
        assert kept > (0.97 if name == "norm-bound" else 0.85)


@EVERY
@pytest.mark.parametrize("width", [1, 4])
def test_what_is_left_of_pure_noise_in_each_row_is_what_the_rule_says(
    name: str, width: int
) -> None:
    stream = np.random.default_rng(7)
    count = 40
    bounds = np.repeat([40, 30, 12, 6], 1500)
    sends = np.arange(count)[:, None] < bounds
    for column in range(len(bounds)):
        sends[:, column] = stream.permutation(sends[:, column])
    shops = [
        {"table": stream.normal(size=(len(bounds), width)).astype(np.float32)} for _ in range(count)
    ]
    rule = defence(name)
    total = rule.update(sparse(shops, sends), 1.0)["table"] * count
    expected = rule.row_variances(count, width, bounds)
    for place, senders_of in enumerate((40, 30, 12, 6)):
        rows = slice(1500 * place, 1500 * (place + 1))
        found = total[rows]
        known = np.abs(found).sum(axis=1) > 0
        if name == "krum":
            # One shop stands for the senders of the rows that it sends itself.
            assert known.mean() == pytest.approx(senders_of / count, abs=0.05)
        said = expected[rows][0]
        # A median of few is a little better than of many.
        low, high = (0.75, 1.1) if name == "median" and senders_of < 40 else (0.9, 1.12)
        assert low < found[known].var() / said < high, senders_of


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_noise_of_rows_that_one_or_two_send_is_what_the_rule_says(name: str) -> None:
    draws = np.random.default_rng(7).normal(size=(SHOPS, 8000, 1)).astype(np.float32)
    sends = np.zeros((SHOPS, 8000), dtype=bool)
    sends[0] = sends[1, :4000] = True
    rule = defence(name)
    total = rule.update(sparse([{"table": each} for each in draws], sends), 1.0)["table"] * SHOPS
    said = rule.row_variances(SHOPS, 1, sends.sum(axis=0))
    assert said[[0, -1]].tolist() == [2.0, 1.0]
    assert total[:4000].var() == pytest.approx(2, rel=0.08)
    assert total[4000:].var() == pytest.approx(1, rel=0.08)


@EVERY
def test_a_shop_that_names_no_rows_beside_others_that_do_sends_all(name: str) -> None:
    """As a run has it whose stock table does not name every shop."""
    shops = sparse(crowd())
    whole = contributions(crowd())[0]
    named = [
        Contribution(whole.shop, 1.0, whole.arrays, {"table": np.ones(ROWS, bool)}),
        *shops[1:],
    ]
    found = defence(name).update([whole, *shops[1:]])
    assert same(found, defence(name).update(named))


def test_of_three_senders_of_a_row_one_that_is_loud_is_cut_off() -> None:
    sends = np.zeros((SHOPS, 1), dtype=bool)
    sends[:3] = True
    shops = [{"table": np.array([[v]], np.float32)} for v in (1.0, 1e6, 2.0, *[0.0] * (SHOPS - 3))]
    for name in ("median", "trimmed-mean"):
        assert defence(name).update(sparse(shops, sends))["table"][0, 0] == pytest.approx(
            2.0 * 3 / SHOPS
        )


@pytest.mark.parametrize("seed", range(3))
def test_shops_are_as_far_apart_as_in_the_numbers_that_both_send(seed: int) -> None:
    stream = np.random.default_rng(seed)
    sends = stream.random((7, 12)) < 0.5
    sends[0], sends[1], sends[1, 3:] = False, False, True
    sends[0, :3] = True  # These two share no row of the table, but the bias.
    shops = [
        {"table": stream.normal(size=(12, 3)), "bias": stream.normal(size=(5, 2))} for _ in range(7)
    ]
    far = np.full((7, 7), np.inf)
    for a, b in np.argwhere(~np.eye(7, dtype=bool)):
        one, other = (
            np.append(shops[k]["table"][sends[a] & sends[b]], shops[k]["bias"]) for k in (a, b)
        )
        far[a, b] = np.mean((one - other) ** 2)
    expected = np.sort(far, axis=1)[:, :4].sum(axis=1)  # One may be bad: of the 6 others, 4.
    assert _krum_scores(Sent.of(sparse(shops, sends)), 1) == pytest.approx(expected)


@EVERY
def test_counts_of_products_that_nobody_stocks_are_not_known(name: str) -> None:
    counts = np.arange(1, ROWS + 1, dtype=np.float32)
    shops = [
        Contribution(f"shop-{k:03}", 1.0, {POPULARITY: counts[STOCK[k]]}, {POPULARITY: STOCK[k]})
        for k in range(SHOPS)
    ]
    found = defence(name).counts(shops)
    assert np.isnan(found[-1])
    # Krum's one shop may not send what only some do.
    known = np.flatnonzero(~np.isnan(found))
    assert set(known) >= set(range(10))
    expected = counts * STOCK.sum(axis=0)
    enough = known[known < 30]
    within = 0.1 if name in ("norm-bound", "tail-aware") else 1e-5
    assert found[enough] == pytest.approx(expected[enough], rel=within)
    assert sum_popularity(shops) == pytest.approx(counts * STOCK.sum(axis=0))
