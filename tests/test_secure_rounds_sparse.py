"""Secure sums of what shops stock, through the apps themselves."""

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.app import app
from client.data.records import held_records
from client.privacy.ledger import Ledger
from client.privacy.noise import SeededNoise
from client.settings import read_settings
from client.training import train_round
from common.errors import RunError
from common.model import initial_state
from common.protocol import (
    GAIN,
    GRAM,
    ITEMS,
    MASKED_VECTOR,
    POPULARITY,
    SUM_MASKED,
    UPDATE,
    Arrays,
    ModelPlan,
)
from common.shop_state import Slices
from experiment_support import charges_with_half_assortments
from federation_support import Fault, FaultyGrid
from secure_rounds_support import ITEM_COUNT, PLAN, SHOPS, Town, broken, make_town, of
from server.aggregation import ServerOptimizer
from server.strategy import Federation
from simulations.engine.in_process import run_in_process

ALL = range(ITEM_COUNT)
# Rows 0 to 9 are stocked by m0, m1, m2 alone, 10 to 19 by m0 alone, the others by all. Of five
# shops three are honest survivors: of three stockers one is sure to be among them, of one none.
STOCKED = {
    0: ALL,
    1: [*range(10), *range(20, 30)],
    2: [*range(10), *range(20, 30)],
    3: range(20, 30),
    4: range(20, 30),
}
SPARSE = PLAN.model_copy(update={"honest_stockers": 1, "rounds": 1})


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    return make_town(tmp_path, monkeypatch)


def gone(shops: int) -> Fault:
    """The first shops are not there when vectors are asked for in round 1."""

    def fault(shop: int, kind: str, at: int, reply: Message) -> Message | None:
        return broken(reply) if at == 1 and shop < shops and kind == SUM_MASKED else reply

    return fault


def test_bytes_grow_with_what_a_shop_stocks(town: Town) -> None:
    sizes: dict[int, list[int]] = defaultdict(list)

    def note(shop: int, kind: str, _round: int, reply: Message) -> Message | None:
        if kind == SUM_MASKED:
            sizes[shop].append(len(reply.content.array_records[UPDATE][MASKED_VECTOR].data))
        return reply

    frame = 128
    for stocked, rows in (
        (STOCKED, [30, 30, 30, 20, 20]),
        # Rows 0 and 1 have too few stockers: they travel from all.
        ({shop: range(shop, 30) for shop in range(5)}, [30, 30, 30, 29, 28]),
    ):
        sizes.clear()
        town.publish_stock(stocked)
        _, events = town.train(SPARSE, note)
        # A number of popularity, or four learned ones, a row, four bytes each.
        assert sizes == {k: [frame + 4 * n, frame + 16 * n] for k, n in enumerate(rows)}
        # Down come rows of what is stocked alone, and a gain each; the Gram matrix and the basket.
        down = [4 * frame + 20 * len(stocked[k]) + 64 + 16 for k in range(SHOPS)]
        (told,) = of(events, "round")
        assert (told["bytes_down"], told["bytes_up"]) == (
            sum(down),
            sum(frame + 16 * n for n in rows),
        )


def test_the_noise_of_the_rarest_row_is_what_the_plan_says(town: Town) -> None:
    """Shops without customers, noise from the operating system: what is learned is noise alone."""
    for shop in range(SHOPS):
        town.write(shop, settings='noise = "system"', customers=0)
    town.publish_stock(STOCKED)
    plan = SPARSE.model_copy(update={"model": ModelPlan(dimension=256)})
    step = plan.clipping_norm(1) * plan.learning_rate / plan.batch_normalizer
    for left in (0, 2):
        saved, events = town.train(plan, gone(left))
        assert of(events, "round")[0]["accepted"] == SHOPS - left
        mean = saved[1].state[ITEMS].astype(float) - saved[0].state[ITEMS]
        noise = mean * (SHOPS - left) / (plan.noise_multiplier * step)
        few, one, every = noise[:10], noise[10:20], noise[20:]
        within = 5 * (2 / few.size) ** 0.5
        # Of the three stockers one is sure to be left: each adds the whole variance.
        assert few.var() == pytest.approx(3 - left, rel=within)
        # One stocker alone, or all: a third of the variance of every shop.
        assert one.var() == pytest.approx((5 - left) / 3, rel=within)
        assert every.var() == pytest.approx((5 - left) / 3, rel=within)


def test_the_server_knows_how_much_noise_its_rows_hold(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    apply = ServerOptimizer.apply

    def noting(self: ServerOptimizer, *given: Any) -> Any:
        seen.append(given[5])
        return apply(self, *given)

    monkeypatch.setattr(ServerOptimizer, "apply", noting)
    town.train(SPARSE, gone(1))
    assert seen == [None]
    town.publish_stock(STOCKED)
    town.train(SPARSE, gone(1))
    assert seen[1] == pytest.approx((10 * 2 + 20 * 4 / 3) / 30)


def test_with_next_to_no_noise_it_learns_what_stocked_rows_say(town: Town) -> None:
    little = {"noise_multiplier": 1e-3, "popularity_noise_multiplier": 1e-3, "noise_steps": 2**20}
    plan = SPARSE.model_copy(update=little)
    town.publish_stock(STOCKED)
    saved, _ = town.train(plan)
    # What the shops' gradients are, each of its records of what it stocks.
    before = saved[0].state
    alone = plan.model_copy(update={"trust": "shop", "noise_multiplier": 1e-9})
    total = np.zeros((ITEM_COUNT, 4))
    for shop in range(SHOPS):
        settings = read_settings(town.folder / "shops" / str(shop) / "shop.toml")
        noise = SeededNoise(np.random.default_rng(0))
        sold, stream = held_records(settings), np.random.default_rng(1)
        events = sold.select(np.isin(sold.items, STOCKED[shop]))
        assert (len(events) < len(sold)) == (shop > 0)
        total += train_round(alone, 1, before, events, town.catalogue, noise, stream)[ITEMS]
    learned = saved[1].state[ITEMS] - before[ITEMS]
    assert np.abs(learned - total / SHOPS).max() < 0.01 * np.abs(total / SHOPS).max()


def test_rows_of_too_few_stockers_are_not_trained_where_the_plan_says_so(town: Town) -> None:
    town.publish_stock(STOCKED)
    saved, events = town.train(SPARSE.model_copy(update={"rare_rows": "none"}))
    assert of(events, "round")[0]["accepted"] == SHOPS
    changed = (saved[1].state[ITEMS] != saved[0].state[ITEMS]).any(axis=1)
    assert changed.tolist() == [True] * 10 + [False] * 10 + [True] * 10
    popularity = saved[0].state[POPULARITY]
    assert not popularity[10:20].any()
    assert (popularity[20:] > 0).all()
    assert popularity.sum() == pytest.approx(1)
    # A shop of rare products alone sends vectors without a number, and counts as a survivor.
    town.publish_stock({**dict.fromkeys(range(4), range(20, 30)), 4: [0]})
    saved, events = town.train(SPARSE.model_copy(update={"rare_rows": "none"}))
    assert of(events, "round")[0]["accepted"] == SHOPS
    changed = (saved[1].state[ITEMS] != saved[0].state[ITEMS]).any(axis=1)
    assert changed.tolist() == [False] * 20 + [True] * 10


def test_a_shop_that_stocks_nothing_of_what_is_learned_takes_part_with_a_vector_of_no_numbers(
    town: Town,
) -> None:
    town.write(4, customers=0)
    town.publish_stock({**dict.fromkeys(range(4), range(29)), 4: [29]})
    model = PLAN.model.model_copy(update={"learned_items": 10})
    changes = {"model": model, "popularity_noise_multiplier": 0.02, "noise_steps": 2**16}
    saved, events = town.train(SPARSE.model_copy(update=changes))
    assert saved[0].state[POPULARITY].argmin() == 29
    (told,) = of(events, "round")
    assert (told["accepted"], told["declined"], told["kept_old_model"]) == (5, {}, False)
    assert not np.array_equal(saved[0].state[ITEMS], saved[1].state[ITEMS])
    assert town.spent(4) == [0, 1]


def test_the_ledger_says_which_stock_and_the_fewest_honest_shops_of_a_row(town: Town) -> None:
    stock = town.publish_stock(STOCKED)
    town.train(SPARSE)
    with Ledger.open(town.folder / "shops" / "4" / "ledger.sqlite") as ledger:
        events = [entry.event for entry in ledger.verify()]
    assert [e.noise_multiplier for e in events] == pytest.approx([2.0, 4.0])
    for event in events:
        assert event.parameters["stock"] == stock.fingerprint
        assert (event.parameters["fewest_honest"], event.parameters["honest_shops"]) == (1, 3)


def test_a_shop_that_holds_another_stock_table_takes_no_part(town: Town) -> None:
    town.publish_stock(STOCKED)
    shutil.copytree(town.folder / "catalogue", town.folder / "older")
    town.publish_stock({**STOCKED, 4: range(10)})
    home = town.folder / "shops" / "1" / "shop.toml"
    home.write_text(home.read_text().replace("../../catalogue", "../../older"))
    _, events = town.train(SPARSE)
    for event in of(events, "release") + of(events, "round"):
        assert (event["accepted"], event["declined"]) == (4, {"sum-refused": 1})
    assert town.spent(1) == []


def test_a_server_that_keeps_the_published_stock_to_itself_gets_no_sum(town: Town) -> None:
    town.publish_stock(STOCKED)
    job = replace(town.job(SPARSE), stock=None)
    federation = Federation(FaultyGrid(app, SHOPS), job, save=id, report=id)
    with pytest.raises(RunError, match="3 are needed"):
        federation.run(initial_state(SPARSE.model, ITEM_COUNT))
    assert [town.spent(shop) for shop in range(SHOPS)] == [[]] * SHOPS


@pytest.mark.parametrize(
    ("row", "dropped", "kept"),
    [
        # Stocked by m0 to m2, by all, and by m0 alone: that one nobody else was shown.
        (3, 0, True),
        (25, 1, True),
        (15, 1, False),
    ],
)
def test_a_server_that_shows_one_shop_other_rows_gets_no_sum(
    town: Town, row: int, kept: bool, dropped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks of two shops come off where both were shown the same."""
    stock = town.publish_stock(STOCKED)
    honest = Slices.of

    def altered(slices: Slices, stocked: np.ndarray | None) -> Arrays:
        sent = honest(slices, stocked)
        if stocked is not None and len(stocked) == ITEM_COUNT:
            sent[ITEMS] = sent[ITEMS].copy()
            sent[ITEMS][row] *= np.float32(1.0001)
        return sent

    assert [len(rows) for rows in stock.rows.values()].count(ITEM_COUNT) == 1

    def gone_last(shop: int, kind: str, at: int, reply: Message) -> Message | None:
        late = at == 1 and shop >= SHOPS - dropped and kind == SUM_MASKED
        return broken(reply) if late else reply

    monkeypatch.setattr(Slices, "of", altered)
    _, events = town.train(SPARSE, gone_last)
    (told,) = of(events, "round")
    assert told["kept_old_model"] is kept
    assert ("32 bits" in str(told.get("reason"))) is kept


@pytest.mark.parametrize("name", [GRAM, GAIN])
def test_a_shop_that_is_shown_other_constants_signs_nothing(
    town: Town, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.publish_stock(STOCKED)
    honest = Slices.of

    def altered(slices: Slices, stocked: np.ndarray | None) -> Arrays:
        sent = honest(slices, stocked)
        if stocked is not None and len(stocked) == ITEM_COUNT:
            sent[name] = sent[name] * np.float32(1.5)
        return sent

    monkeypatch.setattr(Slices, "of", altered)
    _, events = town.train(SPARSE)
    (told,) = of(events, "round")
    if name == GAIN:
        # A row's gain is shown to those who stock it.
        assert told["kept_old_model"] is True
        return
    assert (told["accepted"], told["declined"]) == (4, {"sum-refused": 1})
    assert town.spent(0) == [0]


def test_the_server_app_reads_the_stock_that_is_published(town: Town, tmp_path: Path) -> None:
    stock = town.publish_stock(STOCKED)
    outcome = run_in_process(
        SPARSE,
        shops_folder=town.folder / "shops",
        shops=SHOPS,
        server_folder=tmp_path / "server",
        catalogue_folder=town.folder / "catalogue",
    )
    assert [e["accepted"] for e in outcome.of("round")] == [SHOPS]
    with Ledger.open(town.folder / "shops" / "0" / "ledger.sqlite") as ledger:
        assert [e.event.parameters["stock"] for e in ledger.verify()] == [stock.fingerprint] * 2


@pytest.mark.slow
def test_a_simulation_of_shops_with_stock_trains_on_what_each_of_them_stocks(
    tmp_path: Path,
) -> None:
    """A marketplace of six shops, each with half of the products, under trust federation."""
    asked = ("privacy.trust=federation", "privacy.honest_shops=5", "privacy.rare_rows=enough")
    for events in charges_with_half_assortments(tmp_path, *asked):
        # Of four stockers three are sure, as one may be missing.
        assert [e.parameters["fewest_honest"] for e in events] == [3, 3, 3]
        assert len({e.parameters["stock"] for e in events}) == 1
