"""A shop's own product numbers, brought to the catalogue's before anything reads them."""

import sqlite3
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.mapping import ItemMapping, code_of
from client.data.source import open_source, read_shop, shop_mapping
from client.joining.starting import start_shop
from client.settings import ShopSettings, read_settings
from common.errors import ArtifactError, ConfigError, DataError
from common.features import Catalogue, read_catalogue, write_catalogue

PRODUCTS = pd.DataFrame(
    {
        "item_id": ["tea", "milk", "rice", "oil", "100"],
        "gtin": ["04006381333931", "96385074", "036000291452", "", None],
        "category": "food",
    }
)
INTERACTIONS = """user_id,item_id,timestamp,behavior,merchant_id
1,100,2024-01-01,purchase,corner
1,101,2024-01-02,purchase,corner
2,102,2024-01-03,purchase,corner
2,103,2024-01-04,view,corner
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corner"
    start_shop(folder)
    write_catalogue(Catalogue.of(PRODUCTS), folder / "catalogue")
    (folder / "data" / "interactions.csv").write_text(INTERACTIONS)
    return folder


def mapped(folder: Path, section: str) -> ShopSettings:
    """Return the shop's settings with a [catalogue_mapping]."""
    path = folder / "shop.toml"
    path.write_text(path.read_text() + f"\n[catalogue_mapping]\n{section}\n")
    return read_settings(path)


def table(folder: Path, text: str, name: str = "mapping.csv") -> str:
    (folder / name).write_text(text)
    return f'table = "{name}"'


def read(settings: ShopSettings) -> ItemMapping:
    found = shop_mapping(settings)
    assert found is not None
    return found


def items_of(settings: ShopSettings) -> list[str]:
    """Return the catalogue's ids of the shop's records, one for each that is inside."""
    catalogue = read_catalogue(settings.catalogue)
    return sorted(catalogue.item_ids[read_shop(settings, catalogue).items].tolist())


def test_a_table_says_what_is_what_and_nothing_else_is_inside(folder: Path) -> None:
    text = "item_id,catalogue_item_id\n101,tea\n102,tea\n103,\n"
    settings = mapped(folder, table(folder, text))
    # 100 is the number of another product of the catalogue: the table does not name it.
    assert items_of(settings) == ["tea", "tea"]
    tables = open_source(settings).tables()
    assert sorted(tables.interactions["item_id"].unique()) == ["103", "own:100", "tea"]
    found = read(settings)
    assert found.own_of(["tea"]) == [("101", "102")]
    assert found.without.tolist() == ["103"]


def test_columns_may_have_other_names_and_parquet_may_hold_numbers(folder: Path) -> None:
    frame = pd.DataFrame({"ours": [100, 101], "theirs": ["milk", "rice"]})
    frame.to_parquet(folder / "m.parquet")
    names = 'columns = { item_id = "ours", catalogue_item_id = "theirs" }'
    settings = mapped(folder, f'table = "m.parquet"\n{names}')
    assert items_of(settings) == ["milk", "rice"]


def test_a_code_in_both_tables_maps_however_it_is_written(folder: Path) -> None:
    own = "item_id,ean\n100,4006381333931\n101, 9638-5074\n102,0 36000 29145 2\n103,0\n"
    (folder / "data" / "products.csv").write_text(own)
    settings = mapped(folder, 'by = "ean"\ncatalogue_column = "gtin"')
    assert items_of(settings) == ["milk", "rice", "tea"]
    assert read(settings).without.tolist() == ["103"]


def test_the_shop_s_own_numbers_may_be_the_code(folder: Path) -> None:
    rows = "1,4006381333931,2024-01-01,purchase,corner\n1,96385074,2024-01-01,purchase,corner\n"
    header = INTERACTIONS.splitlines()[0]
    (folder / "data" / "interactions.csv").write_text(f"{header}\n{rows}")
    (folder / "data" / "products.csv").write_text("item_id\n4006381333931\n96385074\n")
    settings = mapped(folder, 'by = "item_id"\ncatalogue_column = "gtin"')
    assert items_of(settings) == ["milk", "tea"]


def test_a_database_maps_by_its_own_products(folder: Path) -> None:
    with sqlite3.connect(folder / "shop.db") as database:
        database.execute("CREATE TABLE sales (user_id, item_id, timestamp, behavior)")
        rows = [("1", "7", "2024-01-01", "purchase"), ("1", "8", "2024-01-01", "purchase")]
        database.executemany("INSERT INTO sales VALUES (?, ?, ?, ?)", rows)
        database.execute("CREATE TABLE articles (no INTEGER, code INTEGER)")
        database.executemany("INSERT INTO articles VALUES (?, ?)", [(7, 96385074), (8, None)])
    database.close()
    path = folder / "shop.toml"
    path.write_text(path.read_text().replace('data = "data"', ""))
    section = """by = "gtin"
[database]
url = "sqlite:///shop.db"
[[database.interactions]]
table = "sales"
[database.products]
table = "articles"
columns = { item_id = "no", gtin = "code" }"""
    assert items_of(mapped(folder, section)) == ["milk"]


def test_a_database_without_products_says_what_to_add(folder: Path) -> None:
    path = folder / "shop.toml"
    path.write_text(path.read_text().replace('data = "data"', ""))
    section = """by = "gtin"
[database]
url = "sqlite:///shop.db"
interactions = { table = "sales" }"""
    with pytest.raises(ConfigError, match=r"add \[database.products\]"):
        read(mapped(folder, section))


def test_one_product_is_never_several(folder: Path) -> None:
    text = "item_id,catalogue_item_id\n101,tea\n102,milk\n101,milk\n101,tea\n"
    with pytest.raises(DataError, match="row 1: '101' is 'tea', row 3: '101' is 'milk'"):
        read(mapped(folder, table(folder, text)))


def test_the_same_row_twice_is_no_harm(folder: Path) -> None:
    text = "item_id,catalogue_item_id\n101,tea\n101,tea\n101,\n"
    found = read(mapped(folder, table(folder, text)))
    assert (found.own.tolist(), found.without.tolist()) == (["101"], [])


def test_what_the_catalogue_does_not_hold_is_told(folder: Path) -> None:
    text = "item_id,catalogue_item_id\n101,coffee\n102,tea\n"
    found = read(mapped(folder, table(folder, text)))
    assert (found.unknown.tolist(), found.own.tolist()) == (["101"], ["102"])


def test_a_code_that_several_products_have_maps_none(folder: Path, tmp_path: Path) -> None:
    twice = PRODUCTS.assign(gtin=["96385074", "96385074", "36000291452", "", ""])
    write_catalogue(Catalogue.of(twice), tmp_path / "twice")
    (folder / "data" / "products.csv").write_text("item_id,gtin\n100,96385074\n101,36000291452\n")
    path = folder / "shop.toml"
    path.write_text(path.read_text().replace('= "catalogue"', f'= "{tmp_path / "twice"}"'))
    found = read(mapped(folder, 'by = "gtin"'))
    assert (found.ambiguous.tolist(), found.own.tolist()) == (["100"], ["101"])


def test_a_code_of_a_product_in_use_wins_over_a_retired_one(folder: Path, tmp_path: Path) -> None:
    again = PRODUCTS.assign(
        gtin=["96385074", "96385074", "36000291452", "", ""],
        retired=[True, False, True, False, False],
    )
    write_catalogue(Catalogue.of(again), tmp_path / "again")
    (folder / "data" / "products.csv").write_text("item_id,gtin\n100,96385074\n101,36000291452\n")
    path = folder / "shop.toml"
    path.write_text(path.read_text().replace('= "catalogue"', f'= "{tmp_path / "again"}"'))
    found = read(mapped(folder, 'by = "gtin"'))
    assert dict(zip(found.own, found.theirs, strict=True)) == {"100": "milk", "101": "rice"}


def test_one_id_without_end_takes_no_memory_for_all_others(folder: Path) -> None:
    """Else a single record, of whichever customer, decides whether the shop can answer at all."""
    mapping = read(mapped(folder, table(folder, "item_id,catalogue_item_id\n100,milk\n")))
    ids = np.array(["100", "tea", "x\0", *map(str, range(1000, 3000)), "y" * 50_000], dtype=object)
    tracemalloc.start()
    try:
        names = mapping.names(ids)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert names[:4].tolist() == ["milk", "own:tea", "x\0", "1000"]
    assert names[-1] == ids[-1]


def test_stock_is_mapped_and_merged(folder: Path) -> None:
    stock = "merchant_id,item_id\ncorner,101\ncorner,102\ncorner,100\n"
    (folder / "data" / "stock.csv").write_text(stock)
    text = "item_id,catalogue_item_id\n101,tea\n102,tea\n"
    tables = open_source(mapped(folder, table(folder, text))).tables()
    stocked = tables.stock_of("corner")
    assert stocked is not None
    assert stocked.tolist() == ["own:100", "tea"]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("", "give either table"),
        ('table = "m.csv"\nby = "gtin"', "give either table"),
        ('by = "gtin"\ncolumns = { item_id = "a" }', "by needs none"),
        ('table = "m.csv"\ncatalogue_column = "a"', "belongs to by"),
        ('table = "m.csv"\ncolumns = { id = "a" }', "columns knows"),
        ('by = "gtin"\ncolum = "a"', "unknown key"),
    ],
)
def test_a_mapping_that_says_nothing_clear_is_refused(
    folder: Path, section: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        mapped(folder, section)


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "data" / "products.csv").write_text("item_id,ean\n100,1\n")
    settings = mapped(folder, 'by = "gtim"')
    with pytest.raises(ConfigError, match=r"no column 'gtim' to map products by: .*'gtin'"):
        read(settings)


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("gone.csv", None, ConfigError, "there is no mapping"),
        ("m.xls", "x", ConfigError, "neither .csv nor .parquet"),
        ("m.csv", "item_id,catalogue\n1,tea\n", DataError, "'catalogue_item_id' is missing"),
        ("m.csv", "item_id,catalogue_item_id\n,tea\n", DataError, "empty in row 1"),
        ("m.csv", "item_id;catalogue_item_id\n1;tea\n", DataError, "separates columns by ';'"),
    ],
)
def test_a_table_that_is_no_mapping_is_refused(
    folder: Path, name: str, text: str | None, error: type[Exception], words: str
) -> None:
    section = f'table = "{name}"' if text is None else table(folder, text, name)
    with pytest.raises(error, match=words):
        read(mapped(folder, section))


def test_products_without_the_code_are_refused_by_name(folder: Path) -> None:
    settings = mapped(folder, 'by = "gtin"')
    with pytest.raises(DataError, match=r"put products\.csv or products\.parquet"):
        read(settings)
    (folder / "data" / "products.csv").write_text("item_id,gtim\n1,2\n")
    with pytest.raises(DataError, match=r"'gtin' is missing: did you mean 'gtim'"):
        read(settings)


def test_a_missing_catalogue_is_told_as_such(folder: Path) -> None:
    (folder / "catalogue" / "products.parquet").unlink()
    with pytest.raises(ArtifactError, match="no readable catalogue"):
        read(mapped(folder, table(folder, "item_id,catalogue_item_id\n1,tea\n")))


@given(st.from_regex(r"[0-9]{1,14}", fullmatch=True), st.integers(0, 4))
def test_leading_zeros_and_blanks_say_nothing(digits: str, zeros: int) -> None:
    padded = " ".join("0" * zeros + digits)
    assert code_of(padded) == code_of(digits)
    assert code_of(digits) in ("", digits.lstrip("0").zfill(14))


@given(st.text(max_size=12), st.text(max_size=12))
def test_codes_that_differ_in_more_stay_apart(left: str, right: str) -> None:
    # Of codes that are no digits, only blanks and hyphens go.
    if code_of(left) == code_of(right) and not code_of(left).isdigit():
        assert code_of(left) == code_of(code_of(right))
        assert [c for c in left if c.isalnum()] == [c for c in right if c.isalnum()] or (
            not code_of(left)
        )


@given(
    st.dictionaries(
        st.integers(0, 9).map(str), st.sampled_from(["tea", "milk", "rice"]), min_size=1
    ),
    st.lists(st.integers(0, 12).map(str), min_size=1, unique=True),
)
def test_names_keep_what_is_mapped_and_put_the_rest_outside(
    pairs: dict[str, str], items: list[str]
) -> None:
    known = np.array(["tea", "milk", "rice", "3", "7"], dtype=object)
    own, theirs = (np.array(list(side), dtype=object) for side in (pairs, pairs.values()))
    none = np.array([], dtype=object)
    mapping = ItemMapping("m", own, theirs, known, none, none, none)
    for item, name in zip(items, mapping.names(np.array(items, dtype=object)), strict=True):
        if item in pairs:
            assert name == pairs[item]
        else:
            assert name not in known
            assert str(name).removeprefix("own:") == item
