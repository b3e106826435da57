"""The analyst's world: what each period may see, and what a shop is given."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.datasets import load_folder
from common.errors import ConfigError, DataError
from common.metrics import tail_mask
from common.schema import ShopEvents
from common.splitting import TimeSplit
from experiment_support import BIG, CUT, DAY, EMPTY, LONELY, ODD, SMALL, START, Silent, write_folder
from simulations.arms import OwnEases
from simulations.evaluating import arm_outcomes
from simulations.experiment import Experiment, RunSection, read_experiment
from simulations.federating import write_tables
from simulations.run import run_experiment
from simulations.world import World, _measured, _silent, build_world

DEMO = Path(__file__).parent.parent / "simulations" / "experiments" / "demo.toml"
WEEK = 7 * 86_400


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("world") / "shops")


@pytest.fixture(scope="module")
def experiment(tables: Path) -> Experiment:
    path = tables.parent / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return read_experiment(path, [f"data.path={tables}"])


@pytest.fixture(scope="module")
def world(experiment: Experiment) -> World:
    return build_world(experiment)


@pytest.fixture(scope="module")
def records(tables: Path) -> pd.DataFrame:
    return pd.read_csv(tables / "interactions.csv")


def test_the_split_is_at_three_quarters_and_its_last_fifth(world: World) -> None:
    assert abs(world.split.train_until - CUT) <= DAY
    span = world.split.train_until - START
    assert world.split.validation_from == pytest.approx(START + 0.8 * span, abs=DAY)


@pytest.mark.parametrize("period", ["validation", "test"])
def test_targets_are_new_and_of_customers_with_a_history(world: World, period: str) -> None:
    known = getattr(world, period)
    asked = 0
    for shop in world.shops:
        history, targets = known.history[shop.merchant_id], known.targets[shop.merchant_id]
        assert history.shape == targets.shape == (len(shop.user_ids), world.catalogue.size)
        assert not history.multiply(targets).nnz
        assert (np.diff(history.indptr)[np.diff(targets.indptr) > 0] > 0).all()
        asked += targets.nnz
    assert asked > 0


def test_periods_are_what_the_records_say(world: World, records: pd.DataFrame) -> None:
    cuts = {
        "validation": (world.split.validation_from, world.split.train_until),
        "test": (world.split.train_until, 2**40),
    }
    own = records[records["merchant_id"] == BIG]
    for name, (cut, end) in cuts.items():
        period = getattr(world, name)
        past = own[own["timestamp"] < cut].groupby("user_id")["item_id"].agg(set)
        then = own[(own["timestamp"] >= cut) & (own["timestamp"] < end)]
        new = then.groupby("user_id")["item_id"].agg(set)
        shop = next(shop for shop in world.shops if shop.merchant_id == BIG)
        for row, user in enumerate(shop.user_ids):
            before = past.get(user, set())
            items = world.catalogue.item_ids[period.history[BIG][row].indices]
            assert set(items) == before
            wanted = new.get(user, set()) - before if before else set()
            items = world.catalogue.item_ids[period.targets[BIG][row].indices]
            assert set(items) == wanted


def test_counts_and_tail_are_over_all_shops_and_the_past_alone(
    world: World, records: pd.DataFrame
) -> None:
    past = records[records["timestamp"] < world.split.train_until]
    pairs = past[["merchant_id", "user_id", "item_id"]].drop_duplicates()
    counts = pairs["item_id"].value_counts().reindex(world.catalogue.item_ids, fill_value=0)
    np.testing.assert_array_equal(world.test.counts, counts.to_numpy())
    np.testing.assert_array_equal(world.test.tail, tail_mask(counts.to_numpy()))
    assert world.validation.counts.sum() < world.test.counts.sum()


def test_counts_are_of_customers_whatever_their_records_weigh(
    experiment: Experiment, world: World, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "shops")
    frame = pd.read_csv(folder / "interactions.csv").assign(behavior="view")
    frame.to_csv(folder / "interactions.csv", index=False)
    data = experiment.data.model_copy(update={"path": str(folder)})
    viewed = build_world(experiment.model_copy(update={"data": data}))
    assert viewed.test.history[BIG].data.max() < 1
    np.testing.assert_array_equal(viewed.test.counts, world.test.counts)


def test_what_an_experiment_says_of_its_split_goes_before_what_the_data_say() -> None:
    changes = ["data.source=marketplace", "data.marketplace.shops=2", "content.features=[]"]
    changes += ["data.marketplace.customers_per_shop=5", "data.marketplace.products=60"]
    changes += ["data.marketplace.weeks=8", "data.marketplace.train_weeks=6"]

    def built(*more: str) -> World:
        return build_world(read_experiment(DEMO, [*changes, *more]))

    dealt = ("data.partition.kind=uniform", "data.partition.merchants=3")
    own, other = built(), built("split.validation_share=0.5")
    assert own.split.train_until == other.split.train_until
    spans = [w.split.train_until - w.split.validation_from for w in (own, other)]
    assert spans[1] == pytest.approx(2.5 * spans[0], abs=2)
    # Where shops are formed anew, the data's own split and notes stay.
    formed = built(*dealt)
    assert formed.split == own.split
    assert formed.dataset.notes[:2] == [
        "the data are synthetic",
        "customers were dealt to merchants: uniform",
    ]
    earlier = own.split.train_until - WEEK
    assert built(f"split.train_until={earlier}").split.train_until == earlier
    fewer = built("data.customers_share=0.5")
    assert fewer.dataset.notes[0] == "the data are synthetic"


def test_rows_are_set_aside_only_where_the_experiment_says_so(
    experiment: Experiment, world: World, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "shops")
    with (folder / "interactions.csv").open("a", encoding="utf-8") as file:
        file.write(f"{BIG},u1,no such product,{START},purchase\n")

    def built(bad_rows: str) -> World:
        data = {"path": str(folder), "bad_rows": bad_rows}
        told = experiment.data.model_copy(update=data)
        return build_world(experiment.model_copy(update={"data": told}))

    with pytest.raises(DataError, match="'item_id' is not in the products table in row 575"):
        built("refuse")
    kept = built("set-aside")
    assert kept.facts()["interactions"] == world.facts()["interactions"]
    assert any(note.startswith("set aside: 1 row of") for note in kept.dataset.notes)


def test_facts_count_customers_with_a_history(world: World, records: pd.DataFrame) -> None:
    facts = world.facts()
    past = records[records["timestamp"] < world.split.train_until]
    customers = past[["merchant_id", "user_id"]].drop_duplicates()
    assert facts["source"] == "shops"
    assert facts["shops"] == 4
    assert facts["customers"] == len(customers)
    assert facts["interactions"] == len(records)
    assert facts["products"] == 60
    assert facts["training_pairs"] == world.test.counts.sum()
    assert facts["test_customers"] <= facts["customers"]
    assert facts["split"]["train_until"].endswith("Z")


def test_a_shop_known_by_its_stock_alone_is_a_shop(world: World) -> None:
    assert [shop.merchant_id for shop in world.shops] == sorted([BIG, ODD, LONELY, EMPTY])
    assert list(world.stock) == [EMPTY]
    assert world.stock[EMPTY].sum() == 30
    assert world.test.history[EMPTY].shape == (0, 60)


@pytest.mark.parametrize("merchant", [BIG, ODD, LONELY, EMPTY])
def test_nothing_of_the_test_period_or_of_another_shop_reaches_a_shop(
    merchant: str, world: World, records: pd.DataFrame, tmp_path: Path
) -> None:
    write_tables(world, merchant, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"interactions.parquet"}
    written = pd.read_parquet(tmp_path / "interactions.parquet")
    expected = records[
        (records["merchant_id"] == merchant) & (records["timestamp"] < world.split.train_until)
    ]
    columns = ["user_id", "item_id", "timestamp"]
    assert sorted(map(tuple, written[columns].to_numpy())) == sorted(
        map(tuple, expected[columns].to_numpy())
    )
    assert set(written["merchant_id"]) <= {merchant}
    # Not even as a category that no row has.
    assert ODD.encode() not in (tmp_path / "interactions.parquet").read_bytes() or merchant == ODD


def test_customers_of_another_shop_or_of_the_test_weeks_are_not_handed_out(
    experiment: Experiment, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "shops")
    records = pd.read_csv(folder / "interactions.csv")
    late = records[:1].assign(merchant_id=BIG, user_id="late", timestamp=START + 99 * DAY)
    pd.concat([records, late]).to_csv(folder / "interactions.csv", index=False)
    people = [(BIG, "u1", "30"), (BIG, "late", "40"), (ODD, "u1", "50"), (ODD, "u2", "60")]
    pd.DataFrame(people, columns=["merchant_id", "user_id", "age"]).to_csv(
        folder / "customers.csv", index=False
    )
    data = experiment.data.model_copy(update={"path": str(folder)})
    world = build_world(experiment.model_copy(update={"data": data}))
    goal = tmp_path / "goal"
    goal.mkdir()
    write_tables(world, BIG, goal)
    known = pd.read_parquet(goal / "customers.parquet")
    assert known[["merchant_id", "user_id"]].to_numpy().tolist() == [[BIG, "u1"]]


def test_what_is_written_is_a_valid_folder_of_a_shop(
    world: World, tables: Path, tmp_path: Path
) -> None:
    write_tables(world, BIG, tmp_path)
    pd.read_csv(tables / "products.csv").to_csv(tmp_path / "products.csv", index=False)
    back = load_folder(tmp_path).tables
    assert back.merchant_ids == [BIG]
    assert (back.interactions["timestamp"] < world.split.train_until).all()


@pytest.mark.parametrize("date", ["2024-07-01", "2024-07-01T05:30+05:30", "2024-06-30 20:00-0400"])
def test_the_split_may_be_set_as_a_date(date: str, experiment: Experiment) -> None:
    # Its zone counts: else the hours between were trained on and tested, or neither.
    split = experiment.split.model_copy(update={"train_until": date})
    world = build_world(experiment.model_copy(update={"split": split}))
    assert world.facts()["split"]["train_until"] == "2024-07-01T00:00:00Z"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("someday", "someday"),
        ("1999-01-01", "outside"),
        (2**40, "outside"),
        ("", "train_until is ''; write epoch seconds or a date"),
        ("nan", "train_until is 'nan'; write"),
    ],
)
def test_a_split_outside_the_records_is_refused(
    value: int | str, words: str, experiment: Experiment
) -> None:
    split = experiment.split.model_copy(update={"train_until": value})
    with pytest.raises(ConfigError, match=words):
        build_world(experiment.model_copy(update={"split": split}))


def test_a_cap_of_no_merchant_is_refused_by_every_command(experiment: Experiment) -> None:
    # All but run took no notice of it, and the shop that was meant spent as if it had none.
    privacy = experiment.privacy.model_copy(update={"caps": {"nroth": 1.0}})
    with pytest.raises(ConfigError, match=r"no merchant is called 'nroth'.*north"):
        build_world(experiment.model_copy(update={"privacy": privacy}))


def test_old_records_weigh_less_where_the_plan_says_so(experiment: Experiment) -> None:
    section = experiment.federated.model_copy(update={"half_life_days": 10.0})
    world = build_world(experiment.model_copy(update={"federated": section}))
    weights = world.test.history[BIG].data
    assert weights.max() <= 1
    assert weights.min() < 0.1
    # Ages are counted from where each period begins: of other moments training knows nothing.
    shop = next(shop for shop in world.shops if shop.merchant_id == BIG)
    for period, begin in (
        (world.validation, world.split.validation_from),
        (world.test, world.split.train_until),
    ):
        newest = np.zeros(period.history[BIG].shape)
        past = shop.before(begin)
        np.maximum.at(newest, (past.users, past.items), past.timestamps)
        ages = (begin - newest[newest > 0]) / (10.0 * DAY)
        found = period.history[BIG].toarray()[newest > 0]
        np.testing.assert_allclose(found, 0.5**ages, rtol=1e-5)


# --- data that an experiment was not written for ----------------------------------------------


_LACKED = "'category', 'department', 'manufacturer', 'package_size', 'type'"


def demo_on(folder: Path, columns: dict[str, list[str]], *changes: str) -> Experiment:
    """Write two shops of six customers each, and return the demo's experiment on them."""
    items = [f"p{k}" for k in range(8)]
    pd.DataFrame({"item_id": items, **columns}).to_csv(folder / "products.csv", index=False)
    pd.DataFrame(
        [
            (
                shop,
                f"{shop}-{user}",
                items[(user + 3 * week) % 8],
                1_700_000_000 + week * WEEK,
                "view",
            )
            for shop in ("east", "west")
            for user in range(6)
            for week in range(12)
        ],
        columns=["merchant_id", "user_id", "item_id", "timestamp", "behavior"],
    ).to_csv(folder / "interactions.csv", index=False)
    return read_experiment(DEMO, [f"data.path={folder}", *changes])


def test_a_folder_without_the_columns_that_the_experiment_names_uses_all_of_its_own(
    tmp_path: Path,
) -> None:
    world = build_world(demo_on(tmp_path, {"colour": ["red", "blue"] * 4}))
    assert [feature.name for feature in world.catalogue.features] == ["colour"]
    (note,) = world.dataset.notes
    assert f"products lack ({_LACKED}): all" in note
    assert note.endswith("are used (colour)")


def test_a_folder_with_those_columns_is_described_by_them_alone(tmp_path: Path) -> None:
    named = ("type", "manufacturer", "category", "department", "package_size")
    columns = {name: ["a", "b"] * 4 for name in (*named, "colour")}
    experiment = demo_on(tmp_path, columns)
    world = build_world(experiment)
    assert tuple(f.name for f in world.catalogue.features) == experiment.content.features
    assert not world.dataset.notes


def test_shops_that_stop_early_or_begin_late_are_named(tmp_path: Path) -> None:
    # Else "100% of the shops are level" is read as all of them, when it is of those with tests.
    experiment = demo_on(tmp_path, {"colour": ["red", "blue"] * 4})
    frame = pd.read_csv(tmp_path / "interactions.csv")
    week = (frame["timestamp"] - 1_700_000_000) // WEEK
    east = frame["merchant_id"] == "east"
    for name, kept in (("early", ~east | (week < 5)), ("late", ~east | (week > 9))):
        frame[kept].to_csv(tmp_path / "interactions.csv", index=False)
        *_, note = build_world(experiment).dataset.notes
        side = "after" if name == "early" else "before"
        assert note.startswith(f"no records {side} 2024-"), note
        assert "at 1 of 2 shops ('east')" in note
        assert note.endswith("no figure, share of shops or answer counts them")


def test_what_a_shop_sells_and_does_not_stock_is_told(tmp_path: Path) -> None:
    # An old stock table lowers every arm: what was bought then is asked for, and never listed.
    experiment = demo_on(tmp_path, {"colour": ["red", "blue"] * 4})
    sold = pd.read_csv(tmp_path / "interactions.csv")
    east = sold[sold["merchant_id"] == "east"]
    stock = east[["merchant_id", "item_id"]].drop_duplicates()
    stock.to_csv(tmp_path / "stock.csv", index=False)
    whole = build_world(experiment).dataset.notes
    stock[stock["item_id"] != "p3"].to_csv(tmp_path / "stock.csv", index=False)
    (note,) = set(build_world(experiment).dataset.notes) - set(whole)
    count = int((east["item_id"] == "p3").sum())
    assert note.startswith(f"{count} records of 1 shop ('east') are of products that stock does")


def shop_of(name: str, *records: tuple[int, int]) -> ShopEvents:
    """Return a shop of (user, time) records, each user known by a number."""
    rows = np.array(sorted(records), np.int64).reshape(-1, 2)
    names = np.array([f"u{k}" for k in range(rows[:, 0].max(initial=-1) + 1)], dtype=object)
    zeros = np.zeros(len(rows), np.int32)
    return ShopEvents(name, names, rows[:, 0], zeros, rows[:, 1], zeros.astype(np.float32))


def test_the_first_second_of_the_test_weeks_is_one_of_them() -> None:
    # What is said of shops without test records, or without any before, is cut as all else is.
    split = TimeSplit(validation_from=50, train_until=100)
    assert _silent([shop_of("a", (0, 99), (0, 100))], split) == []
    shops = [shop_of("early", (0, 99)), shop_of("late", (0, 100)), shop_of("none")]
    early, late = _silent(shops, split)
    assert early.startswith("no records after 1970-01-01T00:01:40Z at 1 of 3 shops ('early')")
    assert late.startswith("no records before 1970-01-01T00:01:40Z at 1 of 3 shops ('late')")
    for count, end in ((5, "'s4')"), (6, "'s4', ...)")):
        (note,) = _silent([shop_of(f"s{k}", (0, 1)) for k in range(count)], split)
        assert f"Z at {count} of {count} shops ('s0', " in note
        assert f"{end}: they train" in note


def test_a_sample_is_of_shops_of_all_sizes_and_of_customers_who_have_a_history() -> None:
    split = TimeSplit(validation_from=50, train_until=100)
    # The first of each shop come in the test weeks alone: nothing can be recommended to them.
    sizes = {"a": 9, "b": 4, "c": 7, "d": 5, "e": 8, "f": 6}
    shops = [
        shop_of(name, *((k, 100 if k < 3 else 99) for k in range(size)))
        for name, size in sizes.items()
    ]
    chosen = _measured(shops, split, RunSection(measured_shops=3))
    assert {name: len(rows) for name, rows in chosen.items()} == {"d": 5, "c": 7, "a": 9}
    for count in (1, 3, 20):
        for name, rows in _measured(shops, split, RunSection(measured_customers=count)).items():
            assert len(rows) == min(count, sizes[name] - 3)
            assert rows.min() >= 3
            assert (np.diff(rows) > 0).all()


def test_a_merchant_alone_is_told_that_there_is_nobody_to_federate_with(tmp_path: Path) -> None:
    # Else its answer reads as one about federating.
    experiment = demo_on(tmp_path, {"colour": ["red", "blue"] * 4})
    frame = pd.read_csv(tmp_path / "interactions.csv")
    frame[frame["merchant_id"] == "east"].to_csv(tmp_path / "interactions.csv", index=False)
    *_, note = build_world(experiment).dataset.notes
    assert note.startswith("'east' is the only merchant")


def test_behaviours_that_the_weights_leave_out_are_named(tmp_path: Path) -> None:
    """Whoever sets the weight of one behaviour alone leaves all others out."""
    demo_on(tmp_path, {"colour": ["red", "blue"] * 4})
    frame = pd.read_csv(tmp_path / "interactions.csv")
    frame.loc[frame.index % 3 == 0, "behavior"] = "purchase"
    frame.to_csv(tmp_path / "interactions.csv", index=False)
    changes = [f"data.path={tmp_path}", "data.behaviors.view=0.3"]
    notes = build_world(read_experiment(DEMO, changes)).dataset.notes
    (note,) = (text for text in notes if "behaviors" in text)
    left = int((frame["behavior"] == "purchase").sum())
    assert note.startswith(f"data.behaviors does not name purchase: {left} such records are left")
    assert note.endswith("(data.behaviors.purchase = 1 counts them)")
    every = build_world(read_experiment(DEMO, changes[:1])).dataset.notes
    assert every == [text for text in notes if text != note]


def test_what_is_viewed_is_asked_for_as_what_is_bought(tmp_path: Path) -> None:
    """The page on one's own tables says so, and how purchases alone are asked for."""
    demo_on(tmp_path, {"colour": ["red", "blue"] * 4})
    frame = pd.read_csv(tmp_path / "interactions.csv")
    frame.loc[frame.index % 3 == 0, "behavior"] = "purchase"
    frame.to_csv(tmp_path / "interactions.csv", index=False)
    changes = [f"data.path={tmp_path}", f"split.train_until={1_700_000_000 + 5 * WEEK}"]
    every = build_world(read_experiment(DEMO, changes))
    alone = build_world(read_experiment(DEMO, [*changes, "data.behaviors={ purchase = 1.0 }"]))
    for world, counted in ((every, frame), (alone, frame[frame["behavior"] == "purchase"])):
        later = counted["timestamp"] >= world.split.train_until
        pairs = list(zip(counted["user_id"], counted["item_id"], strict=True))
        before = {pair for pair, late in zip(pairs, later, strict=True) if not late}
        known = {user for user, _ in before}
        asked = {pair for pair in set(pairs) - before if pair[0] in known}
        assert world.facts()["test_targets"] == len(asked) > 0


def test_ratings_weigh_by_their_share_of_the_best(tmp_path: Path) -> None:
    """Of a scale to 10 every rating from 5 on weighed alike, and nothing could be done or was said.

    A low rating is a weak sign of interest, asked for as any other: the page says so.
    """
    demo_on(tmp_path, {"colour": ["red", "blue"] * 4})
    frame = pd.read_csv(tmp_path / "interactions.csv")
    ratings = np.arange(len(frame)) % 11.0
    frame.assign(behavior="rating", rating=ratings).to_csv(
        tmp_path / "interactions.csv", index=False
    )
    data = f"data.path={tmp_path}"
    fits = build_world(read_experiment(DEMO, [data, "data.rating_scale=10"]))
    weights = np.concatenate([shop.weights for shop in fits.shops])
    assert np.allclose(np.sort(weights), np.sort(ratings[ratings > 0]) / 10)
    short = build_world(read_experiment(DEMO, [data]))
    (note,) = set(short.dataset.notes) - set(fits.dataset.notes)
    assert note.startswith(f"section data: {int((ratings > 5).sum())} of {len(frame)} ratings are")
    assert "rating_scale = 5" in note
    views = build_world(read_experiment(DEMO, [data, "data.behaviors={ view = 1.0, rating = 0 }"]))
    assert not [note for note in views.dataset.notes if "rating_scale" in note]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("view=0", "no behaviour weighs anything: .*What is not named counts for nothing"),
        ("buy=1", "no behaviour is called 'buy'"),
        ("view=-1", "a view weighs -1"),
    ],
)
def test_weights_of_behaviours_are_refused_by_their_key(change: str, words: str) -> None:
    # Who left views out was told, when the tables were read, that no behaviour weighs anything.
    with pytest.raises(ConfigError, match=f"data.behaviors: {words}"):
        read_experiment(DEMO, [f"data.behaviors.{change}"])


def test_products_of_which_nothing_is_known_are_told_as_such(tmp_path: Path) -> None:
    # "all columns that they have are used ()"
    note, *_ = build_world(demo_on(tmp_path, {})).dataset.notes
    assert f"({_LACKED}): they have none beside item_id" in note


def test_a_built_in_data_set_refuses_a_column_that_it_does_not_have() -> None:
    experiment = read_experiment(
        DEMO,
        [
            "data.source=marketplace",
            "data.marketplace.shops=2",
            "data.marketplace.customers_per_shop=3",
            "data.marketplace.products=20",
        ],
    )
    with pytest.raises(ConfigError, match="manufacturer"):
        build_world(experiment)


def test_arms_that_train_nothing_together_leave_a_whole_folder(tmp_path: Path) -> None:
    tables, out = tmp_path / "tables", tmp_path / "out"
    tables.mkdir()
    colours = {"colour": ["red", "blue"] * 4}
    experiment = demo_on(tables, colours, 'run.arms=["popularity", "local"]')
    report = run_experiment(experiment, out, Silent())
    assert set(report["arms"]) == {"popularity", "local"}
    assert not any("noise" in text for text in report["warnings"])
    assert (out / "report.html").exists()
    assert not (out / "work").exists()


def users(world: World, merchant_id: str) -> set[str]:
    return next(set(s.user_ids) for s in world.shops if s.merchant_id == merchant_id)


def test_who_has_no_history_is_not_counted_among_the_customers(tables: Path) -> None:
    # Nobody recommends to them: an arm would be said to have more customers than the data.
    path = tables.parent / "late.toml"
    path.write_text(SMALL, encoding="utf-8")
    changes = ["run.arms=['popularity']", f"data.path={tables}"]
    late = read_experiment(path, [*changes, f"split.train_until={START + 5 * DAY}"])
    document = run_experiment(late, tables.parent / "late", Silent())
    arm, data = document["arms"]["popularity"], document["data"]
    lists = pd.read_parquet(tables.parent / "late" / "recommendations.parquet")
    recommended = lists[["merchant_id", "user_id"]].drop_duplicates()
    assert data["customers"] == arm["customers"] == len(recommended) < 41
    assert sum(shop["customers"] for shop in arm["per_shop"].values()) == data["customers"]
    assert data["test_customers"] == arm["customers_with_targets"] > 0


@pytest.mark.parametrize("arm", ["local", "home-only", "centralized"])
def test_who_comes_in_the_test_weeks_alone_moves_no_list(
    arm: str, experiment: Experiment, world: World, records: pd.DataFrame, tmp_path: Path
) -> None:
    # Rows without a history made every part but popularity weigh more beside it.
    frame = records.copy()
    frame.loc[frame["timestamp"] >= world.split.train_until, "user_id"] += "-new"
    write_folder(tmp_path / "tables")
    frame.to_csv(tmp_path / "tables" / "interactions.csv", index=False)
    data = experiment.data.model_copy(update={"path": str(tmp_path / "tables")})
    other = build_world(experiment.model_copy(update={"data": data}))
    assert len(other.shops[-1].user_ids) > len(world.shops[-1].user_ids)
    lists = [
        [found.all_products.rows for found in arm_outcomes(experiment, seen, arm, None, OwnEases())]
        for seen in (world, other)
    ]
    for mine, theirs in zip(*lists, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_smaller_share_of_customers_is_part_of_a_larger_one(experiment: Experiment) -> None:
    def drawn(share: float, seed: int = 0) -> World:
        data = experiment.data.model_copy(update={"customers_share": share})
        run = experiment.run.model_copy(update={"seed": seed})
        return build_world(experiment.model_copy(update={"data": data, "run": run}))

    whole, half, few = drawn(1.0), drawn(0.5), drawn(0.25)
    assert [len(users(w, BIG)) for w in (whole, half, few)] == [25, 12, 6]
    assert users(few, BIG) < users(half, BIG) < users(whole, BIG)
    # No shop is emptied, none is lost, and the products stay.
    assert [len(users(few, shop)) for shop in (LONELY, EMPTY)] == [1, 0]
    assert few.catalogue.size == whole.catalogue.size
    assert users(drawn(0.25, seed=1), BIG) != users(few, BIG)
    kept = next(s for s in half.shops if s.merchant_id == BIG)
    whole_shop = next(s for s in whole.shops if s.merchant_id == BIG)
    one = kept.user_ids[0]
    before = whole_shop.items[whole_shop.users == list(whole_shop.user_ids).index(one)]
    np.testing.assert_array_equal(np.sort(kept.items[kept.users == 0]), np.sort(before))
    assert any("0.5 of each merchant's customers" in note for note in half.dataset.notes)


def test_who_is_drawn_does_not_depend_on_the_order_of_rows(
    experiment: Experiment, tmp_path: Path
) -> None:
    folder, found = write_folder(tmp_path / "shops"), []
    frame = pd.read_csv(folder / "interactions.csv")
    for rows in (frame, frame[::-1]):
        rows.to_csv(folder / "interactions.csv", index=False)
        told = {"path": str(folder), "customers_share": 0.3}
        data = experiment.data.model_copy(update=told)
        world = build_world(experiment.model_copy(update={"data": data}))
        found.append([shop.user_ids.tolist() for shop in world.shops])
    assert found[0] == found[1]


def test_a_sample_is_measured_and_everyone_trains(experiment: Experiment, world: World) -> None:
    run = experiment.run.model_copy(update={"measured_shops": 2, "measured_customers": 5})
    sampled = build_world(experiment.model_copy(update={"run": run}))
    assert [shop.merchant_id for shop in sampled.measured_shops] == sorted(sampled.measured)
    assert len(sampled.measured) == 2
    for merchant_id, rows in sampled.measured.items():
        history = sampled.test.history[merchant_id]
        assert len(rows) == len(set(rows)) == min(5, np.count_nonzero(np.diff(history.indptr)))
        assert (np.diff(history[rows].indptr) > 0).all()  # someone whom a list can be made for
    facts, everyone = sampled.facts(), world.facts()
    assert facts.pop("measured") == {
        "shops": 2,
        "customers": sum(map(len, sampled.measured.values())),
    }
    assert facts == everyone  # what trains is the same
    assert "measured" not in everyone
    assert any("tuned and measured at" in note for note in sampled.dataset.notes)
    again = build_world(experiment.model_copy(update={"run": run}))
    assert all(np.array_equal(again.measured[k], rows) for k, rows in sampled.measured.items())
    # Of whole shops, too, only customers with a history are measured.
    run = experiment.run.model_copy(update={"measured_shops": len(world.shops)})
    split = experiment.split.model_copy(update={"train_until": "2024-05-10"})
    whole = build_world(experiment.model_copy(update={"run": run, "split": split}))
    known = whole.facts()["customers"]
    assert known < sum(map(len, whole.measured.values()))
    assert any(f"measured at {known} customers of" in note for note in whole.dataset.notes)


def test_a_copy_of_movielens_in_one_s_home_is_found(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # No shell reads the ~ of --set data.path=~/ml-100k.
    monkeypatch.setenv("HOME", str(tmp_path))
    data = experiment.data.model_copy(update={"source": "movielens", "path": "~/ml-100k"})
    with pytest.raises(DataError, match=f"{tmp_path}/ml-100k holds neither"):
        build_world(experiment.model_copy(update={"data": data}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.merchants=store"], "data.merchants = 'store' is for complete-journey alone"),
        (["data.partition.merchants=3"], "data.partition.merchants says nothing where data.part"),
        (
            ["data.partition.kind=uniform", "data.partition.alpha=0.1"],
            "data.partition.alpha says nothing where data.partition.kind is 'uniform'",
        ),
        (["data.partition.kind=uniform", "data.partition.merchants=19"], ""),
    ],
)
def test_a_setting_that_these_data_do_not_read_is_told(
    tables: Path, changes: list[str], words: str
) -> None:
    # Whoever dealt customers anew, but for the kind, was shown the merchants of the tables.
    path = tables.parent / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    world = build_world(read_experiment(path, [f"data.path={tables}", *changes]))
    told = [note for note in world.dataset.notes if "data.merch" in note or "says nothing" in note]
    assert [note.startswith(words) for note in told] == ([True] if words else [])
