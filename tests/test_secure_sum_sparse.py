"""Sums of rows that only some shops stock: layout, masks, noise, and who is sure to be in a row."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.blocks import learned_rows
from common.built_in.marketplace import MarketplaceConfig, assortment
from common.catalogue.stock import Stock, stock_fingerprint
from common.errors import DataError
from common.features import Catalogue
from common.protocol import ITEMS, POPULARITY, ModelPlan, TrainingPlan, shop_key
from common.secure_sum.layout import Layout, honest_senders, layout_of, whole_layout
from common.secure_sum.members import threshold
from common.secure_sum.messages import STAGES
from common.secure_sum.shown import ShownRows
from secure_sum_support import play

NAMES = [shop_key(f"m{k}") for k in range(100)]


def members(shops: int) -> tuple[str, ...]:
    return tuple(sorted(NAMES[:shops]))


def stock_of(stocked: Mapping[int, list[int]]) -> Stock:
    return Stock({NAMES[k]: np.array(rows, dtype=np.int64) for k, rows in stocked.items()})


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, int, dict[int, str], int]:
    """A layout of rows of any width and any senders, and shops that leave, as many as may."""
    shops = draw(st.integers(3, 8))
    honest = draw(st.integers(1, shops))
    rows = draw(st.integers(1, 12))
    widths = draw(st.lists(st.integers(1, 40), min_size=rows, max_size=rows))
    sends = draw(st.lists(st.booleans(), min_size=shops * rows, max_size=shops * rows))
    layout = Layout(members(shops), np.array(widths), np.reshape(sends, (shops, rows)))
    leavers = draw(
        st.lists(
            st.integers(0, shops - 1), unique=True, max_size=shops - threshold(shops, honest, 0)
        )
    )
    leaves = {shop: draw(st.sampled_from(STAGES)) for shop in leavers}
    return layout, honest, leaves, draw(st.integers(0, 2**31))


@given(cases())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_masked_sum_is_the_plain_sum_of_the_rows_that_each_shop_sends(
    case: tuple[Layout, int, dict[int, str], int],
) -> None:
    layout, honest, leaves, seed = case
    stream = np.random.default_rng(seed)
    shops = len(layout.members)
    whole = [stream.integers(0, 2**32, layout.length, dtype=np.uint32) for _ in range(shops)]
    own = [whole[k][layout.where(NAMES[k])] for k in range(shops)]
    collector = play(own, leaves, honest=honest, layout=layout).collector
    early = {NAMES[k] for k, stage in leaves.items() if STAGES.index(stage) <= 3}
    assert set(collector.contributors) == set(NAMES[:shops]) - early
    expected = np.zeros(layout.length, np.uint32)
    for shop in collector.contributors:
        sends = np.repeat(layout.sends[layout.members.index(shop)], layout.widths)
        expected[sends] += whole[NAMES.index(shop)][sends]
    assert np.array_equal(collector.sum(), expected)


def plan(**changes: object) -> TrainingPlan:
    values: dict[str, object] = {
        "trust": "federation",
        "honest_shops": 4,
        "noise_multiplier": 1.0,
        "popularity_noise_multiplier": 1.0,
        "model": ModelPlan(dimension=3, learned_items=4, feature_rows=5),
    }
    return TrainingPlan.model_validate(values | changes)


def sent(layout: Layout) -> list[int]:
    """How many numbers each shop sends, m0 first."""
    return [layout.length_of(NAMES[k]) for k in range(len(layout.members))]


# Of six products: what m0 to m5 stock; m5 is not named and stocks everything.
STOCKED = stock_of({0: [0, 1, 2, 3], 1: [0, 1, 3], 2: [0, 1], 3: [0, 1], 4: [0, 5]})


def test_a_row_travels_from_its_stockers_or_where_they_are_too_few_from_all() -> None:
    """n = 6 and m = 4: a row of s stockers has s - 2 honest ones for sure."""
    names = members(6)
    shape = {POPULARITY: (6,)}
    for least, expected in (
        # Products have 6, 5, 2, 3, 1, 2 stockers, so 6, 5 travel from them, and the rest ...
        (2, [5 + 1, 5 + 1, 5 + 1, 5 + 1, 4 + 1, 6]),
        (1, [5 + 1, 5 + 1, 4 + 1, 4 + 1, 3 + 1, 6]),
        (4, [6] * 6),
    ):
        layout = layout_of(plan(honest_stockers=least), names, shape, STOCKED)
        assert sent(layout) == expected, least
    none = layout_of(plan(honest_stockers=2, rare_rows="none"), names, shape, STOCKED)
    assert sent(none) == [2, 2, 2, 2, 1, 2]
    assert none.senders.tolist() == [6, 5, 0, 0, 0, 0]
    enough = layout_of(plan(honest_stockers=2, rare_rows="enough"), names, shape, STOCKED)
    assert enough.senders.tolist() == [6, 5, 4, 4, 4, 4]
    alone = layout_of(plan(honest_stockers=1), names, shape, STOCKED).sends[:, 3]
    assert (enough.sends[:, 3] & alone).sum() == alone.sum() == 3


@pytest.mark.parametrize("rare_rows", ["all", "enough", "none"])
def test_a_row_that_all_stock_is_not_rare_whatever_the_plan_asks_for(rare_rows: str) -> None:
    """Of m = 4 honest shops no row can have 5: one that all send has as many as there are."""
    asking = plan(honest_stockers=5, rare_rows=rare_rows)
    layout = layout_of(asking, members(6), {POPULARITY: (6,)}, STOCKED)
    assert layout.senders.tolist() == [6] + [0 if rare_rows == "none" else 6] * 5


def test_helpers_of_rare_rows_take_turns() -> None:
    """Of 40 shops each stocks a tenth; three may be missing, so six senders leave three."""
    stream = np.random.default_rng(0)
    names = members(40)
    stocked = stock_of({k: np.flatnonzero(stream.random(5000) < 0.1).tolist() for k in range(40)})
    few = plan(honest_shops=37, rare_rows="enough")
    layout = layout_of(few, names, {POPULARITY: (5000,)}, stocked)
    own = np.array([len(stocked.rows[shop]) for shop in names])
    helping = layout.sends.sum(axis=1) - own
    assert layout.senders.min() == 6
    rare = sum(max(6 - n, 0) for n in np.bincount(np.concatenate(list(stocked.rows.values()))))
    assert helping.sum() == rare
    assert helping.min() > 0.8 * helping.mean()
    # What a shop sends is near what it stocks; from all it would be much more.
    every = layout_of(
        few.model_copy(update={"rare_rows": "all"}), names, {POPULARITY: (5000,)}, stocked
    )
    assert layout.sends.mean() < 0.2
    assert every.sends.mean() > 0.7


def test_without_a_stock_table_every_shop_sends_everything() -> None:
    shapes = {ITEMS: (4, 3), "feature_embedding": (5, 3)}
    layout = layout_of(plan(), members(6), shapes, None, np.arange(4))
    assert (layout.length, sent(layout)) == (27, [27] * 6)
    assert layout.where(NAMES[0]) == slice(None)
    assert layout.within(NAMES[0], NAMES[1]) == slice(None)
    assert whole_layout(members(6), 27).length_of(NAMES[3]) == 27


def test_learned_rows_travel_as_their_products_are_stocked_and_content_from_all() -> None:
    """The most popular products have rows: 1, 3, 4, 5 here."""
    learned = learned_rows(np.array([0, 0.4, 0, 0.3, 0.1, 0.2], np.float32), 4)
    shapes = {ITEMS: (4, 3), "feature_embedding": (5, 3)}
    sparse = plan(honest_stockers=1)
    layout = layout_of(sparse, members(6), shapes, STOCKED, learned)
    # Products 4 and 5 have 1 and 2 stockers: no honest one is sure, so they travel from all.
    assert sent(layout) == [4 * 3 + 15, 4 * 3 + 15, 3 * 3 + 15, 3 * 3 + 15, 2 * 3 + 15, 27]
    m4 = layout.where(NAMES[4])
    assert isinstance(m4, np.ndarray)
    assert np.flatnonzero(m4).tolist() == [*range(6, 27)]
    common = layout.within(NAMES[4], NAMES[0])
    assert common == slice(None)
    groups = sparse.model.model_copy(update={"groups": "brand", "feature_rows": 0})
    grouped = sparse.model_copy(update={"model": groups})
    layout = layout_of(grouped, members(6), {ITEMS: (4, 3)}, STOCKED, learned)
    assert sent(layout) == [12] * 6


@pytest.mark.parametrize("colluding", [0, 1, 2])
@pytest.mark.parametrize("honest", [2, 3, 4])
def test_whoever_drops_out_and_colludes_every_row_keeps_its_planned_honest_senders(
    honest: int, colluding: int
) -> None:
    """All survivors that a sum is unmasked with, all that may collude, all sets of senders."""
    shops = 6
    needed = threshold(shops, honest, colluding)
    least: dict[int, int] = {}
    for there in range(needed, shops + 1):
        for survivors in map(set, combinations(range(shops), there)):
            for bad in map(set, combinations(range(shops), colluding)):
                for count in range(1, shops + 1):
                    for senders in map(set, combinations(range(shops), count)):
                        left = len(senders & survivors - bad)
                        least[count] = min(left, least.get(count, shops))
    for count, left in least.items():
        shared = plan(honest_shops=honest, colluding_shops=colluding)
        sure = int(honest_senders(shared, shops, count))
        # No more than these are sure, and never more than the plan's are counted on.
        assert max(sure, 0) == min(left, honest), count


@pytest.mark.parametrize("width", [1, 8, 9, 40])
def test_every_number_of_a_row_that_two_shops_are_shown_is_in_their_mask(width: int) -> None:
    """A row of more numbers than a digest has bytes for stands there by its own digest."""
    stock, products = stock_of({0: [0, 1, 2], 1: [1, 2, 3]}), np.arange(4)
    rows = {"b": np.ones((4, width), np.float32), "a": np.ones(4, np.float32)}
    before = ShownRows(rows, products, stock).digest(*NAMES[:2])
    for name, rest in (("b", (width - 1,)), ("a", ())):
        for row, both_are_shown in enumerate((False, True, True, False)):
            other = {key: array.copy() for key, array in rows.items()}
            other[name][(row, *rest)] = 2.0
            after = ShownRows(other, products, stock).digest(*NAMES[:2])
            assert (after != before) == both_are_shown


def test_the_stock_has_one_fingerprint_whatever_the_tables_order() -> None:
    products = pd.DataFrame({"item_id": ["a", "b", "c"]})
    catalogue = Catalogue.of(products)
    table = pd.DataFrame({"merchant_id": ["y", "x", "x", "y"], "item_id": ["a", "c", "a", "a"]})
    stock = Stock.of(table, catalogue)
    assert stock.rows[shop_key("x")].tolist() == [0, 2]
    assert stock.rows[shop_key("y")].tolist() == [0]
    assert Stock.of(table.iloc[::-1], catalogue).fingerprint == stock.fingerprint
    less = Stock.of(table.iloc[:2], catalogue)
    assert len({less.fingerprint, stock.fingerprint, stock_fingerprint(None)}) == 3
    with pytest.raises(DataError, match="'d'"):
        Stock.of(table.assign(item_id="d"), catalogue)


DOC = Path(__file__).resolve().parent.parent / "docs" / "secure-aggregation.md"


def test_the_document_says_what_shops_of_the_marketplace_send() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOC.read_text(encoding="utf-8").splitlines()
        if line.startswith(("| 20 | 57% |", "| 100 |")) and line.count("|") == 8
    ]
    assert len(rows) == 7
    stocks: dict[tuple[str, str], Stock] = {}
    for shops, share, honest, *figures in rows:
        count = int(shops)
        names = members(count)
        if (shops, share) not in stocks:
            config = MarketplaceConfig(shops=count, assortment=float(share.strip("%")) / 100)
            own = {name: assortment(config, k) for k, name in enumerate(names)}
            stocks[shops, share] = Stock(own)
        found = []
        for rare in ("all", "enough"):
            shared = plan(honest_shops=int(honest), rare_rows=rare, model=ModelPlan())
            layout = layout_of(shared, names, {POPULARITY: (20_000,)}, stocks[shops, share])
            found.append((layout.sends.mean(), layout.variances(shared, names).mean()))
        (sent_all, noise_all), (sent_enough, noise_enough) = found
        assert figures == [
            f"{sent_all:.1%}",
            f"{sent_enough:.1%}",
            f"{noise_all:.1f}",
            f"{noise_enough:.1f}",
        ]
