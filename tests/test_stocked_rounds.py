"""Plain updates of what shops stock, through the apps themselves: trust ``shop``."""

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, Message

from client.app import app
from client.data.records import held_records
from client.privacy.ledger import Ledger
from client.privacy.noise import SeededNoise
from client.settings import read_settings
from client.training import train_round
from common.built_in.marketplace import MarketplaceConfig, assortment
from common.errors import RunError
from common.features import Catalogue
from common.model import initial_state, state_spec
from common.protocol import ITEMS, POPULARITY, RELEASE, TRAIN, UPDATE, Arrays, ModelPlan
from common.shop_state import Slices
from common.stocked_rows import products_of, sent_rows, sent_shapes
from experiment_support import charges_with_half_assortments
from federation_support import FaultyGrid, same
from secure_rounds_support import ITEM_COUNT, PLAN, SHOPS, Town, broken, make_town, of
from server.aggregation import ServerOptimizer
from server.checkpoints import Checkpoint, read_checkpoint
from server.defence.rules import RULES
from server.strategy import Federation
from simulations.engine.flower import run_federation
from simulations.engine.in_process import run_in_process

# Products 0 to 9 are stocked by m0, m1 and m2, 10 to 19 by m0 alone, 20 to 28 by all, 29 by nobody.
# Popularity decides which of them have learned rows: here all have.
STOCKED = {
    0: range(29),
    1: [*range(10), *range(20, 29)],
    2: [*range(10), *range(20, 29)],
    3: range(20, 29),
    4: range(20, 29),
}
SENDERS = np.array([3] * 10 + [1] * 10 + [5] * 9 + [0])
OPEN = PLAN.model_copy(update={"trust": "shop", "honest_shops": 0, "rounds": 1})
BARE = {"private": False, "noise_multiplier": 0.0, "popularity_noise_multiplier": 0.0}
FRAME = 128


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    return make_town(tmp_path, monkeypatch)


def delta(saved: list[Checkpoint]) -> np.ndarray:
    return saved[1].state[ITEMS].astype(np.float64) - saved[0].state[ITEMS]


def test_bytes_grow_with_what_a_shop_stocks(town: Town) -> None:
    sizes: dict[int, list[int]] = defaultdict(list)

    def note(shop: int, kind: str, _round: int, reply: Message) -> Message | None:
        if kind in (RELEASE, TRAIN):
            sizes[shop].append(
                sum(len(array.data) for array in reply.content.array_records[UPDATE].values())
            )
        return reply

    _, events = town.train(OPEN, note)
    assert sizes == {shop: [FRAME + 4 * 30, FRAME + 16 * 30] for shop in range(SHOPS)}
    # The popularity, the spectrum and the rows.
    (told,) = of(events, "round")
    assert told["bytes_down"] == SHOPS * (3 * FRAME + 4 * 30 + 4 * 4 + 16 * 30)
    assert told["bytes_up"] == SHOPS * (FRAME + 16 * 30)
    # A shop that the table does not name stocks everything.
    for stocked, rows in (
        (STOCKED, [29, 19, 19, 9, 9]),
        ({0: [4], 2: [], 3: range(30)}, [1, 30, 30, 30, 30]),
    ):
        sizes.clear()
        town.publish_stock(stocked)
        _, events = town.train(OPEN, note)
        assert sizes == {k: [FRAME + 4 * n, FRAME + 16 * n] for k, n in enumerate(rows)}
        # The rows and a gain each; of all rows the Gram matrix and the expected basket.
        (told,) = of(events, "round")
        assert told["bytes_down"] == sum(4 * FRAME + 16 * n + 4 * n + 64 + 16 for n in rows)
        assert told["bytes_up"] == sum(FRAME + 16 * n for n in rows)


def test_a_table_that_says_that_all_stock_all_changes_no_bit(town: Town) -> None:
    without, _ = town.train(OPEN)
    town.publish_stock({shop: range(ITEM_COUNT) for shop in range(SHOPS)})
    found, _ = town.train(OPEN)
    for mine, other in zip(found, without, strict=True):
        # The noise's variance is told by rows, and is the same in all of them.
        assert mine.state[POPULARITY] == pytest.approx(other.state[POPULARITY], rel=1e-6)
        assert same(mine.memory, other.memory)
    assert delta(found) == pytest.approx(delta(without))


@pytest.mark.parametrize("noise", ["system", "seeded"])
def test_a_rows_noise_is_that_of_its_senders(town: Town, noise: str) -> None:
    """Shops without customers: what is learned is noise alone."""
    for shop in range(SHOPS):
        more = "false" if noise == "system" else "true"
        town.write(shop, f'noise = "{noise}"\ninsecure_seeded_noise = {more}', customers=0)
    town.publish_stock(STOCKED)
    plan = OPEN.model_copy(update={"model": ModelPlan(dimension=256)})
    saved, events = town.train(plan)
    assert of(events, "round")[0]["accepted"] == SHOPS
    step = plan.clipping_norm(1) * plan.learning_rate / plan.batch_normalizer
    noise_of_sum = delta(saved) * SHOPS / (plan.noise_multiplier * step)
    for senders in (1, 3, 5):
        found = noise_of_sum[senders == SENDERS]
        assert found.var() == pytest.approx(senders, rel=5 * (2 / found.size) ** 0.5)
    assert not noise_of_sum[SENDERS == 0].any()
    assert saved[0].state[POPULARITY][29] == 0


def test_the_server_knows_how_much_noise_its_rows_hold(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    apply = ServerOptimizer.apply

    def noting(self: ServerOptimizer, *given: Any) -> Any:
        seen.append(given[5])
        return apply(self, *given)

    monkeypatch.setattr(ServerOptimizer, "apply", noting)
    town.train(OPEN)
    assert seen == [None]
    town.publish_stock(STOCKED)
    town.train(OPEN)
    assert seen[1] == pytest.approx(SENDERS.mean())
    # A row holds the noise of those that answered.
    town.train(OPEN, lambda shop, _kind, at, reply: broken(reply) if at > shop else reply)
    there = SENDERS - np.array([1] * 29 + [0])
    assert seen[2] == pytest.approx(there.mean())


def test_the_mean_is_that_of_whole_updates(town: Town) -> None:
    """Each shop's own, on the rows that it sends, over all shops: an absent row is no vote."""
    plan = OPEN.model_copy(update=BARE)
    for shop in range(SHOPS):
        town.write(shop, "allow_unprotected = true")
    stock = town.publish_stock(STOCKED)
    saved, _ = town.train(plan)
    total, counts = np.zeros((ITEM_COUNT, 4)), np.zeros(ITEM_COUNT)
    for shop in range(SHOPS):
        settings = read_settings(town.folder / "shops" / str(shop) / "shop.toml")
        rows = np.array(STOCKED[shop])
        # Whole updates and counts of a shop that never sold what it does not stock.
        events = held_records(settings)
        events = events.select(np.isin(events.items, rows))
        noise, stream = SeededNoise(np.random.default_rng(0)), np.random.default_rng(1)
        own = train_round(plan, 1, saved[0].state, events, town.catalogue, noise, stream)[ITEMS]
        assert own.shape == (ITEM_COUNT, 4)
        total += own
        for user in range(len(events.user_ids)):
            bought = np.unique(events.items[events.users == user])
            counts[bought] += max(len(bought), 1) ** -0.5
    assert delta(saved) == pytest.approx(total / SHOPS, rel=1e-4, abs=1e-6)
    assert saved[0].state[POPULARITY] == pytest.approx(counts / counts.sum(), rel=1e-5)
    assert stock.fingerprint != "0" * 64


def test_the_ledger_names_the_stock_and_the_price_is_the_plans(town: Town) -> None:
    stock = town.publish_stock(STOCKED)
    town.train(OPEN)
    with Ledger.open(town.folder / "shops" / "4" / "ledger.sqlite") as ledger:
        events = [entry.event for entry in ledger.verify()]
    assert [e.mechanism for e in events] == ["gaussian-histogram", "dp-sgd"]
    assert [e.noise_multiplier for e in events] == pytest.approx([2.0, 4.0])
    assert [e.parameters["stock"] for e in events] == [stock.fingerprint] * 2


def test_a_shop_that_holds_another_stock_table_says_so_and_pays_nothing(town: Town) -> None:
    town.publish_stock(STOCKED)
    shutil.copytree(town.folder / "catalogue", town.folder / "older")
    # As many products, but others: no length would tell.
    town.publish_stock({**STOCKED, 1: [*range(1, 11), *range(20, 29)]})
    home = town.folder / "shops" / "1" / "shop.toml"
    home.write_text(home.read_text().replace("../../catalogue", "../../older"))
    _, events = town.train(OPEN)
    (join,) = of(events, "join")
    assert join["declined"] == {"wrong-stock": 1}
    assert [e["accepted"] for e in of(events, "release") + of(events, "round")] == [4, 4]
    assert town.spent(1) == []


@pytest.mark.parametrize("holds", ["server", "shops"])
def test_a_table_that_one_side_alone_holds_is_used_by_nobody(town: Town, holds: str) -> None:
    published = town.job(OPEN).stock
    assert published is None
    town.publish_stock(STOCKED)
    job = town.job(OPEN)
    if holds == "shops":
        job = replace(job, stock=None)
    else:
        town.publish_stock({0: range(ITEM_COUNT)})
    federation = Federation(FaultyGrid(app, SHOPS), job, save=id, report=id)
    with pytest.raises(RunError, match="5 wrong-stock"):
        federation.run(initial_state(OPEN.model, ITEM_COUNT))
    assert [town.spent(shop) for shop in range(SHOPS)] == [[]] * SHOPS


@pytest.mark.parametrize("trust", ["shop", "federation"])
def test_where_slices_are_too_many_bytes_the_whole_state_comes_down_and_says_the_same(
    town: Town, trust: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.publish_stock(STOCKED)
    more = {"trust": "federation", "honest_shops": 3} if trust == "federation" else {}
    plan = OPEN.model_copy(update=more)
    sliced, events = town.train(plan)
    numbers = int(str(of(events, "round")[0]["bytes_down"])) - SHOPS * 4 * FRAME
    monkeypatch.setattr("server.job.MOST_BYTES", numbers - 1)
    whole, told = town.train(plan)
    assert same(sliced[1].state, whole[1].state)
    assert of(told, "round")[0]["bytes_down"] == SHOPS * (3 * FRAME + 4 * 30 + 4 * 4 + 16 * 30)


@pytest.mark.parametrize("kind", ["short", "another's", "fewer"])
def test_a_shop_trains_on_no_rows_but_its_own(
    town: Town, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends other rows than the table says is told so, and nobody pays."""
    town.publish_stock(STOCKED)
    right = Slices.of

    def wrong(slices: Slices, stocked: np.ndarray | None) -> Arrays:
        sent = right(slices, stocked)
        if stocked is None or len(stocked) != 29:
            return sent
        return {
            "short": initial_state(OPEN.model, ITEM_COUNT - 1),
            "another's": right(slices, np.array(STOCKED[3])),
            "fewer": {**sent, ITEMS: sent[ITEMS][1:]},
        }[kind]

    monkeypatch.setattr(Slices, "of", wrong)
    _, events = town.train(OPEN)
    (told,) = of(events, "round")
    assert (told["accepted"], told["declined"]) == (4, {"wrong-protocol": 1})
    assert [town.spent(shop) for shop in range(SHOPS)] == [[0], *[[0, 1]] * 4]


@pytest.mark.parametrize("kind", ["whole", "fewer", "more", "flat", "renamed"])
def test_a_reply_of_other_rows_is_not_counted(town: Town, kind: str) -> None:
    town.publish_stock(STOCKED)

    def hostile(shop: int, exchange: str, at: int, reply: Message) -> Message | None:
        if shop != 3 or exchange != TRAIN:
            return reply
        own = reply.content.array_records[UPDATE][ITEMS].numpy()
        assert own.shape == (9, 4)
        sent: Arrays = {
            "whole": {ITEMS: np.ones((ITEM_COUNT, 4), np.float32)},
            "fewer": {ITEMS: own[:-1]},
            "more": {ITEMS: np.concatenate([own, own[:1]])},
            "flat": {ITEMS: own.reshape(-1)},
            "renamed": {"rows": np.arange(9, dtype=np.float32), ITEMS: own},
        }[kind]
        reply.content[UPDATE] = ArrayRecord({n: Array(a) for n, a in sent.items()})
        return reply

    saved, events = town.train(OPEN, hostile)
    (told,) = of(events, "round")
    assert (told["accepted"], told["declined"]) == (4, {"rubbish": 1})

    def absent(shop: int, exchange: str, at: int, reply: Message) -> Message | None:
        return broken(reply) if shop == 3 and exchange == TRAIN else reply

    without, _ = town.train(OPEN, absent)
    assert same(saved[1].state, without[1].state)


def test_a_shop_moves_no_row_that_it_does_not_stock(town: Town) -> None:
    town.publish_stock(STOCKED)

    def shout(shop: int, exchange: str, at: int, reply: Message) -> Message | None:
        if shop == 3 and exchange == TRAIN:
            reply.content[UPDATE] = ArrayRecord({ITEMS: Array(np.full((9, 4), 1e6, np.float32))})
        return reply

    saved, _ = town.train(OPEN, shout)
    moved = np.abs(delta(saved)).max(axis=1) > 1e4
    assert moved.tolist() == [False] * 20 + [True] * 9 + [False]


@pytest.mark.parametrize("defence", RULES)
def test_every_defence_takes_rows_that_some_shops_send(town: Town, defence: str) -> None:
    town.publish_stock(STOCKED)
    plan = OPEN.model_copy(update=BARE)
    for shop in range(SHOPS):
        town.write(shop, "allow_unprotected = true")
    plain, _ = town.train(plan)
    saved, events = town.train(plan, defence=defence, min_shops=SHOPS)
    assert of(events, "round")[0]["accepted"] == SHOPS
    assert not delta(saved)[29].any()
    assert np.isfinite(saved[1].state[ITEMS]).all()
    assert saved[0].state[POPULARITY].sum() == pytest.approx(1)
    if defence in ("median", "trimmed-mean", "norm-bound", "tail-aware"):
        # A row that one shop alone stocks is learned.
        assert np.abs(delta(saved)[10:20]).max() > 0.1 * np.abs(delta(plain)[10:20]).max()


DOC = Path(__file__).resolve().parent.parent / "docs" / "privacy.md"


def _bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(FRAME + 4 * math.prod(shape) for shape in shapes.values())


def test_the_document_says_what_shops_of_the_marketplace_send() -> None:
    rows = [
        [cell.strip(" %").replace(",", "").removesuffix(" bytes") for cell in line[1:-1].split("|")]
        for line in DOC.read_text(encoding="utf-8").splitlines()
        if line.startswith(("| 20 | ", "| 100 | "))
    ]
    assert len(rows) == 3
    for shops, share, *figures in rows:
        config = MarketplaceConfig(shops=int(shops), assortment=int(share) / 100)
        own = [assortment(config, k) for k in range(config.shops)]
        plan = OPEN.model_copy(update={"model": ModelPlan(dimension=16)})
        size, found = config.products, []
        for shapes in ({POPULARITY: (size,)}, {ITEMS: (size, 16)}):
            products = products_of(plan, shapes, np.arange(size))
            sent = [sent_shapes(shapes, sent_rows(products, rows)) for rows in own]
            found.append(_bytes(shapes))
            found.append(round(float(np.mean([_bytes(each) for each in sent]))))
        catalogue = Catalogue.of(pd.DataFrame({"item_id": np.arange(size).astype(str)}))
        slices = Slices(plan, initial_state(plan.model, size), catalogue)
        found.append(_bytes(state_spec(plan.model, size)))
        found.append(round(float(np.mean([4 * FRAME + slices.nbytes(rows) for rows in own]))))
        senders = np.bincount(np.concatenate(own), minlength=size)
        found.append(round(100 * float(senders.mean()) / config.shops))
        assert [int(figure) for figure in figures] == found


@pytest.mark.slow
@pytest.mark.parametrize("published", [True, False])
def test_a_simulation_publishes_what_its_shops_stock_unless_it_is_told_not_to(
    tmp_path: Path, published: bool
) -> None:
    told = f"privacy.publish_stock={str(published).lower()}"
    for events in charges_with_half_assortments(tmp_path, told):
        assert len(events) == 3
        assert ["stock" in e.parameters for e in events] == [published] * 3


def learned(folder: Path, server: str) -> Arrays:
    return read_checkpoint(folder / server / "checkpoints", 2).state


@pytest.mark.slow
def test_on_flowers_engine_and_in_this_process_the_same_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    town = make_town(tmp_path, monkeypatch)
    stock = town.publish_stock(STOCKED)
    plan = OPEN.model_copy(update={"rounds": 2, "model": ModelPlan(dimension=4, learned_items=20)})
    config: dict[str, bool | int | float | str] = {
        "server-optimizer": "subspace",
        "server-momentum": 0.5,
        "seed": 5,
    }
    for server, engine in (("here", run_in_process), ("flower", run_federation)):
        for shop in range(SHOPS):
            (tmp_path / "shops" / str(shop) / "ledger.sqlite").unlink(missing_ok=True)
        outcome = engine(
            plan,
            shops_folder=tmp_path / "shops",
            shops=SHOPS,
            server_folder=tmp_path / server,
            catalogue_folder=tmp_path / "catalogue",
            run_config=config,
        )
        assert [e["accepted"] for e in outcome.of("round")] == [SHOPS] * 2
        with Ledger.open(tmp_path / "shops" / "2" / "ledger.sqlite") as ledger:
            assert {e.event.parameters["stock"] for e in ledger.verify()} == {stock.fingerprint}
    assert same(learned(tmp_path, "here"), learned(tmp_path, "flower"))
