"""Folders of CSV and Parquet: every fault has a message, memory follows the codes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq
import pytest

from common.errors import DataError
from common.features import Catalogue, read_catalogue, write_catalogue
from common.tables.checks import Checker
from common.tables.csv_files import NO_VALUE
from common.tables.csv_rows import MAX_ROW_BYTES
from common.tables.folders import read_folder, read_interactions, read_small
from common.tables.validation import check_products

NOW = 1_800_000_000
GOOD = "merchant_id,user_id,item_id,timestamp,behavior\na,1,x,1577836800,purchase\n"


def folder(
    path: Path, interactions: str | bytes = GOOD, products: str = "item_id,brand\nx,NA\n"
) -> Path:
    raw = interactions if isinstance(interactions, bytes) else interactions.encode()
    (path / "interactions.csv").write_bytes(raw)
    (path / "products.csv").write_text(products)
    return path


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "parquet").mkdir()
    n = 400_000  # several blocks
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "merchant_id": draw.integers(0, 3, n).astype(str),
            "user_id": draw.integers(0, 5000, n),
            "item_id": draw.integers(0, 900, n).astype(str),
            "timestamp": draw.integers(0, NOW, n),
            "behavior": draw.choice(["view", "purchase"], n),
            "session_id": draw.integers(0, 9000, n),
        }
    )
    goods = pd.DataFrame({"item_id": np.arange(900).astype(str)})
    frame.to_csv(tmp_path / "csv" / "interactions.csv", index=False)
    goods.to_csv(tmp_path / "csv" / "products.csv", index=False)
    frame.to_parquet(tmp_path / "parquet" / "interactions.parquet")
    goods.to_parquet(tmp_path / "parquet" / "products.parquet")
    one = read_folder(tmp_path / "csv", now=NOW)
    two = read_folder(tmp_path / "parquet", now=NOW)
    for name in frame.columns:
        left, right = one.interactions[name], two.interactions[name]
        if name in {"merchant_id", "user_id", "item_id", "behavior"}:
            assert left.astype(str).tolist() == frame[name].astype(str).tolist()
            left, right = left.astype(str), right.astype(str)
        assert left.tolist() == right.tolist(), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "a,1,x\n", r"interactions.csv: row 2 has 3 values where the header names 5"),
        (GOOD.replace(",", ";"), r"separates columns by ';'"),
        ("", r"interactions.csv is empty"),
        (GOOD.splitlines()[0] + "\n", r"interactions.csv: no rows"),
        (GOOD + "a,,x,1577836800,purchase\n", r"column 'user_id' is empty in row 2: no value"),
        (
            "merchant_id,user_id,item_id,timestamp,behavior,price\na,1,x,1577836800,purchase,\n",
            r"column 'price' is empty in row 1: .*leave out the whole column, which is optional",
        ),
        (GOOD + "a,1,x,noon,purchase\n", r"column 'timestamp'.* in row 2: 'noon'"),
        (GOOD.replace("item_id", "itemid"), r"'item_id' is missing: did you mean 'itemid'"),
        (GOOD.replace("behavior", "user_id"), r"'user_id' is there twice"),
        (GOOD.encode("utf-16"), r"not UTF-8"),
        (GOOD.encode() + b"a,\xff,x,1577836800,purchase\n", r"not UTF-8.* Line 3 .*'a,\u00ff,x"),
        (GOOD.replace("item_id", "Item_ID "), r"did you mean 'Item_ID '\?"),
        (GOOD.replace("user_id,item_id", "who,what"), r"columns 'user_id', 'item_id' are missing"),
    ],
)
def test_bad_files_have_clear_messages(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folder(folder(tmp_path, text), now=NOW)


@pytest.mark.parametrize(
    ("products", "message"),
    [
        # Every row has one value more: pandas would take the ids for labels, the brands for ids.
        ("item_id,brand\nx,b,\ny,b,\n", r"row 1 has 3 values where the header names 2"),
        ("item_id,brand\nx,b\ny\n", r"row 2 has 1 values where the header names 2"),
        # Row numbers of an export would become content.
        (",item_id,brand\n0,x,b\n", r"column 1 has no name"),
        ("item_id,brand,brand\nx,b,c\n", r"'brand' is there twice"),
        ('item_id,brand\nx,"b\n', r"products.csv"),
    ],
)
def test_small_tables_keep_their_shape(tmp_path: Path, products: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_folder(folder(tmp_path, products=products), now=NOW)


def test_missing_and_doubled_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        read_folder(tmp_path / "nowhere", now=NOW)
    folder(tmp_path)
    (tmp_path / "products.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"products.csv and products.parquet: keep one"):
        read_folder(tmp_path, now=NOW)
    (tmp_path / "products.csv").unlink()
    with pytest.raises(DataError, match=r"products.parquet cannot be read"):
        read_folder(tmp_path, now=NOW)
    (tmp_path / "products.parquet").unlink()
    (tmp_path / "products.csv").mkdir()
    with pytest.raises(
        DataError, match=r"no file products.csv or products.parquet.* products.csv/"
    ):
        read_folder(tmp_path, now=NOW)


def test_malformed_rows_can_be_set_aside(tmp_path: Path) -> None:
    text = GOOD + "a,1,x\n" + "a,2,x,1577836800,buy\n"
    tables = read_folder(folder(tmp_path, text), now=NOW, bad_rows="set-aside")
    assert len(tables.interactions) == 1
    assert sum(tables.set_aside.values()) == 2


def test_malformed_rows_of_every_table_can_be_set_aside(tmp_path: Path) -> None:
    folder(tmp_path, products="item_id,size\nx,1\ny\nz,\n")
    (tmp_path / "customers.csv").write_text("user_id,age\n1,7\n2\n3,8,9\n4,\n")
    (tmp_path / "stock.csv").write_text("merchant_id,item_id\na,x\na\n")
    tables = read_folder(tmp_path, now=NOW, bad_rows="set-aside")
    assert tables.products["item_id"].tolist() == ["x", "z"]
    assert tables.products["size"].tolist()[0] == 1.0
    assert tables.customers is not None
    assert tables.customers["user_id"].tolist() == ["1", "4"]
    assert tables.stock is not None
    assert len(tables.stock) == 1
    what = "not as many values as columns"
    expected = {f"products.csv: {what}": 1, f"customers.csv: {what}": 2, f"stock.csv: {what}": 1}
    assert tables.set_aside == expected


@pytest.mark.parametrize("table", ["customers", "products", "stock"])
def test_a_malformed_row_is_refused_with_its_number_and_what_to_do(
    tmp_path: Path, table: str
) -> None:
    folder(tmp_path)
    text = "merchant_id,user_id,item_id\na,1,x\n\n"  # An empty line is no row.
    advice = r"What to do: {}.* or set bad rows aside"
    for row, fault, what in (
        ("b,2", "has 2 values where the header names 3 columns: 'b,2'", "correct it"),
        ("b,2," + "y" * 300_000, "is 300,004 bytes long, and may be 262,144: 'b,2,yyy", "shorten"),
    ):
        (tmp_path / f"{table}.csv").write_text(f"{text}{row}\nc,3,x\n")
        with pytest.raises(DataError, match=rf"^{table}.csv: row 2 {fault}.*{advice.format(what)}"):
            read_folder(tmp_path, now=NOW)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_malformed_row_in_another_encoding_is_told_so(tmp_path: Path) -> None:
    folder(tmp_path, GOOD.encode() + b"a,\xff,x\n")
    with pytest.raises(DataError, match=r"not UTF-8.* Line 3 .*'a,\u00ff,x"):
        read_folder(tmp_path, now=NOW)


def test_pandas_finds_the_types_of_products_in_the_text_of_a_file(tmp_path: Path) -> None:
    """Read in blocks as text first, they are what they would be had pandas read the file."""
    path = tmp_path / "products.csv"
    path.write_text(
        "item_id,brand,whole,lacks,real,flag,mixed,large,none,words\n"
        '01,NA,1,1,1.50,True,1,9007199254740993,NULL,"a ""b"",\nc"\n'
        "02,nan,02,,1e3,False,x,18446744073709551615,,NA\n"
        '03,"","3",3,-inf,TRUE,2.0,1,NaN,6" or so\n'
    )
    types = dict.fromkeys(("item_id", "brand"), str)
    wanted = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=NO_VALUE)
    pd.testing.assert_frame_equal(read_small(path), wanted)
    path.write_text('item_id\nx\n""\ny\n')
    assert read_small(path)["item_id"].isna().tolist() == [False, True, False]


def test_text_stays_text(tmp_path: Path) -> None:
    folder(tmp_path, GOOD.replace("a,1,x", "007,01,x"))
    (tmp_path / "customers.csv").write_text("user_id,age,zip\n01,,00501\n")
    tables = read_folder(tmp_path, now=NOW)
    assert tables.merchant_ids == ["007"]
    assert tables.products["brand"].tolist() == ["NA"]
    assert tables.customers is not None
    assert tables.customers["user_id"].tolist() == ["01"]
    assert tables.customers["zip"].tolist() == ["00501"]


def test_products_of_csv_and_parquet_are_one_catalogue(tmp_path: Path) -> None:
    """A number that one product lacks stays a column of numbers, which fall into bins."""
    goods = pd.DataFrame(
        {
            "item_id": [f"i{k:02}" for k in range(60)],
            "size": [None if k == 7 else k for k in range(60)],
            "grams": [None if k == 3 else k / 4 for k in range(60)],
            "shelf": range(60),
            "organic": [None if k == 5 else "yes" for k in range(60)],
        }
    )
    goods.to_csv(tmp_path / "products.csv", index=False)
    goods.to_parquet(tmp_path / "products.parquet")
    one, two = (
        Catalogue.of(read_small(tmp_path / f"products.{kind}")) for kind in ("csv", "parquet")
    )
    assert one.fingerprint == two.fingerprint
    assert one.settled().spec == two.settled().spec
    rules = two.settled().spec.columns or {}
    assert rules["size"].kind == "numbers"


def test_numbers_of_parquet_are_exact_where_all_is_text(tmp_path: Path) -> None:
    """Beside a missing one pandas would round whole numbers that do not fit into a float."""
    large = 2**53 + 1
    frame = pd.DataFrame(
        {
            "user_id": pd.array([large, None], "Int64"),
            "card": pd.array([large, None], "Int64"),
            "member": [True, None],
            "since": [pd.Timestamp("2024-05-31"), None],
        }
    )
    frame.to_parquet(tmp_path / "customers.parquet")
    read = read_small(tmp_path / "customers.parquet")
    assert read["user_id"].tolist()[0] == read["card"].tolist()[0] == str(large)
    assert read["member"].tolist()[0] == "True"
    assert str(read["since"][0]) == "2024-05-31 00:00:00"
    assert read.isna().to_numpy()[1].all()


@pytest.mark.parametrize("name", ["interactions", "products"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    """Its footer is whole and a page is not: Arrow then says neither which file nor that it is."""
    folder(tmp_path)
    (tmp_path / f"{name}.csv").unlink()
    columns = ("merchant_id", "user_id", "item_id", "timestamp", "behavior")
    path = tmp_path / f"{name}.parquet"
    pq.write_table(arrow.table({c: list(map(str, range(1000))) for c in columns}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"\xff" * 100 + whole[300:])
    with pytest.raises(DataError, match=f"{name}.parquet cannot be read: "):
        read_folder(tmp_path, now=NOW)


FAR = 10**14  # Seconds since 1970: what microseconds in a column of milliseconds come to.


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (
            arrow.array([FAR], arrow.timestamp("s")),
            "in the future in row 1: '100000000000000000 as",
        ),
        (arrow.array([-FAR], arrow.timestamp("ms", tz="UTC")), "before 1970 in row 1: '-10000"),
        (arrow.array([10**7], arrow.date32()), "in the future in row 1: '10000000 as date32"),
    ],
)
def test_times_that_python_cannot_hold_are_refused_like_any_other(
    tmp_path: Path, column: arrow.Array, reason: str
) -> None:
    """To show the bad value must not itself fail, without a word of column and row."""
    row = {"merchant_id": ["a"], "user_id": ["1"], "item_id": ["x"], "behavior": ["view"]}
    table = arrow.table({**row, "timestamp": column})
    pq.write_table(table, tmp_path / "interactions.parquet")
    (tmp_path / "products.csv").write_text("item_id\nx\n")
    with pytest.raises(DataError, match=reason):
        read_folder(tmp_path, now=NOW)


@pytest.mark.parametrize("table", ["customers", "products"])
def test_dates_that_python_cannot_hold_say_nothing(tmp_path: Path, table: str) -> None:
    """One article that is sold until the year 20000 must not make the whole table unreadable."""
    columns = {
        "user_id" if table == "customers" else "item_id": ["1", "2"],
        "until": arrow.array([10**7, 1], arrow.date32()),
        "since": arrow.array([FAR, 0], arrow.timestamp("s", tz="Europe/Berlin")),
    }
    pq.write_table(arrow.table(columns), tmp_path / f"{table}.parquet")
    read = read_small(tmp_path / f"{table}.parquet")
    assert read.isna().to_numpy().tolist() == [[False, True, True], [False, False, False]]
    assert str(read["until"][1]) == "1970-01-02"
    assert str(read["since"][1]) == "1970-01-01 01:00:00+01:00"


def test_maps_are_content_that_can_be_published(tmp_path: Path) -> None:
    """Pandas writes them as lists: nobody could read the catalogue that was published."""
    kind = arrow.map_(arrow.string(), arrow.string())
    maps = arrow.array([[("fat", "low"), ("bio", "yes")], None], kind)
    deep = arrow.array([{"more": [("size", "1")]}, None], arrow.struct([("more", kind)]))
    columns = {"item_id": ["1", "2"], "facts": maps, "deep": deep}
    pq.write_table(arrow.table(columns), tmp_path / "products.parquet")
    catalogue = Catalogue.of(read_small(tmp_path / "products.parquet"))
    write_catalogue(catalogue, tmp_path / "catalogue")
    assert read_catalogue(tmp_path / "catalogue").fingerprint == catalogue.fingerprint


@pytest.mark.parametrize("kind", [arrow.timestamp("us"), arrow.duration("s")])
@pytest.mark.parametrize("name", ["rating", "price"])
def test_a_time_is_no_number(tmp_path: Path, kind: arrow.DataType, name: str) -> None:
    """A column that is mapped wrongly: the moment of a purchase would be read as its price."""
    row = {"merchant_id": ["a"], "user_id": ["1"], "item_id": ["x"], "timestamp": [1]}
    value = arrow.array([10**9], kind)
    table = arrow.table({**row, "behavior": ["purchase"], name: value})
    pq.write_table(table, tmp_path / "interactions.parquet")
    (tmp_path / "products.csv").write_text("item_id\nx\n")
    with pytest.raises(DataError, match=f"column '{name}' is not a number in row 1"):
        read_folder(tmp_path, now=NOW)
    pq.write_table(arrow.table({"item_id": ["x"], "price": value}), tmp_path / "products.parquet")
    (tmp_path / "products.csv").unlink()
    with pytest.raises(DataError, match="column 'price' is not a number in row 1"):
        read_folder(tmp_path, now=NOW)


MEASURE = """
import resource, sys
from pathlib import Path
from common.tables.folders import read_folder
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_folder(Path(sys.argv[1]), now=1_800_000_000)
before = peak()
read_folder(Path(sys.argv[2]), now=1_800_000_000)
print((peak() - before) * 1024)
"""


def test_memory_follows_the_codes_and_not_the_text(tmp_path: Path) -> None:
    rows = 1_500_000
    block = "".join(
        f"a-merchant-with-a-long-name,customer-{k % 997},x,{1_500_000_000 + k},purchase\n"
        for k in range(10_000)
    )
    header = GOOD.splitlines()[0] + "\n"
    for name, repeats in (("small", 20), ("large", rows // 10_000)):
        (tmp_path / name).mkdir()
        folder(tmp_path / name, header + block * repeats)
    size = (tmp_path / "large" / "interactions.csv").stat().st_size
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    # 19 bytes of codes a row where the text has 62; reading it whole would take more than it.
    assert int(result.stdout) < 0.75 * size


def test_times_and_numbers_of_parquet_read_alike_however_they_are_stored(tmp_path: Path) -> None:
    # Fractions of a second are left out, and what a program wrote as categories is what it says.
    at = arrow.array([1_577_836_800_123, 1_577_836_801_999], arrow.int64())
    seconds, words = [1_577_836_800, 1_577_836_801], ["2020-01-01T00:00:00.9Z", "1577836801"]
    stored = [
        at.cast(arrow.timestamp("ms")),
        at.cast(arrow.timestamp("ms", tz="Asia/Kolkata")),
        at.cast(arrow.timestamp("ms")).cast(arrow.timestamp("ns")),
        arrow.array(seconds).dictionary_encode(),
        arrow.array(words).dictionary_encode(),
        arrow.array(words),
    ]
    (tmp_path / "products.csv").write_text("item_id\nx\n")
    prices = [arrow.array(["1.5", "0"]).dictionary_encode(), arrow.array([1.5, 0.0])]
    for times in stored:
        for price in prices:
            columns = {"merchant_id": ["a"] * 2, "user_id": ["u"] * 2, "item_id": ["x"] * 2}
            more = {"timestamp": times, "behavior": ["purchase"] * 2, "price": price}
            pq.write_table(arrow.table(columns | more), tmp_path / "interactions.parquet")
            found = read_folder(tmp_path, now=NOW).interactions
            assert found["timestamp"].tolist() == seconds
            assert found["price"].tolist() == [1.5, 0.0]


def test_how_far_parquet_is_read_is_told_in_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.tables.folders.BLOCK_ROWS", 2)
    row = {"merchant_id": "a", "user_id": "u", "item_id": "x", "timestamp": 0, "behavior": "view"}
    path, told = tmp_path / "interactions.parquet", list[tuple[int, int]]()
    pd.DataFrame([row] * 5).to_parquet(path)
    read_interactions(
        path, Checker(path.name), None, now=NOW, progress=lambda *far: told.append(far)
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_stock_of_a_folder_names_its_products(tmp_path: Path) -> None:
    (folder(tmp_path) / "stock.csv").write_text("merchant_id,item_id\na,x\na,y\n")
    with pytest.raises(DataError, match=r"stock\.csv: column 'item_id' is not in .* row 2: 'y'"):
        read_folder(tmp_path, now=NOW)


def test_a_row_that_is_too_long_is_set_aside_once_for_that(tmp_path: Path) -> None:
    long = f"a,{'y' * MAX_ROW_BYTES},x,1577836800,view\n"
    folder(tmp_path, GOOD + long + "a,1,x,1577836800,view,6\n")
    found = read_folder(tmp_path, now=NOW, bad_rows="set-aside")
    assert len(found.interactions) == 1
    assert found.set_aside == {
        "interactions.csv: not as many values as columns": 1,
        f"interactions.csv: longer than {MAX_ROW_BYTES} bytes": 1,
    }


def test_a_column_of_parquet_that_is_there_twice_is_named(tmp_path: Path) -> None:
    # It was told in Arrow's words, with columns that no file has.
    columns = [arrow.array(["x"]), arrow.array(["a"]), arrow.array(["b"])]
    table = arrow.Table.from_arrays(columns, names=["item_id", "brand", "brand"])
    pq.write_table(table, tmp_path / "products.parquet")
    (tmp_path / "interactions.csv").write_text(GOOD)
    with pytest.raises(DataError, match=r"^products\.parquet: column 'brand' is there twice: keep"):
        read_folder(tmp_path, now=NOW)


def test_numbers_of_rows_that_pandas_wrote_are_no_column_and_an_index_is_one(
    tmp_path: Path,
) -> None:
    # Its row was an attribute of each customer, which another customer's going shifted; and what a
    # program had made the index was left out of the products.
    people = pd.DataFrame({"user_id": [f"u{k}" for k in range(6)], "age": [31, 32, 33, 34, 35, 36]})
    goods = pd.DataFrame({"item_id": list("abcdef"), "brand": list("xyxyxy"), "weight": range(6)})
    some = [0, 1, 3]
    people.iloc[some].to_parquet(tmp_path / "customers.parquet")
    goods.iloc[some].to_parquet(tmp_path / "products.parquet")
    for name in ("customers", "products"):
        assert "__index_level_0__" in pq.read_schema(tmp_path / f"{name}.parquet").names
    known = read_small(tmp_path / "customers.parquet")
    assert known.to_dict("list") == {"user_id": ["u0", "u1", "u3"], "age": ["31", "32", "34"]}
    expected = goods.iloc[some].reset_index(drop=True)
    for index in (None, "brand", "item_id", ["brand", "weight"]):
        frame = goods.iloc[some] if index is None else goods.iloc[some].set_index(index)
        frame.to_parquet(tmp_path / "products.parquet")
        found = check_products(read_small(tmp_path / "products.parquet"), Checker("products"))
        assert set(found) == {"brand", "item_id", "weight"}
        pd.testing.assert_frame_equal(found[list(expected)], expected)
        texts = read_small(tmp_path / "products.parquet", as_text=True)
        assert texts["brand"].tolist() == ["x", "y", "y"]
        assert set(texts) == {"brand", "item_id", "weight"}


def test_a_table_reads_whatever_pandas_calls_its_index_and_columns(tmp_path: Path) -> None:
    # Each ended in a stack trace: an index of a column's name, and columns that are numbers.
    goods = pd.DataFrame({"item_id": list("abcd"), "weight": range(4)})
    vectors = pd.DataFrame([[0, 1], [2, 3]], index=pd.Index(list("ab"), name="item_id"))
    for frame, expected in (
        (goods.rename_axis("weight")[2:], {"item_id": ["c", "d"], "weight": [2, 3]}),
        (vectors, {"0": [0, 2], "1": [1, 3], "item_id": ["a", "b"]}),
    ):
        frame.to_parquet(tmp_path / "products.parquet")
        assert read_small(tmp_path / "products.parquet").to_dict("list") == expected


@pytest.mark.parametrize("noted", ["[1]", "{", None])
def test_a_table_reads_whose_notes_of_pandas_say_nothing_here(
    tmp_path: Path, noted: str | None
) -> None:
    # A column of another library's type, where that is not installed, ended in a stack trace.
    path = tmp_path / "products.parquet"
    pd.DataFrame({"item_id": ["a", "b"], "weight": [1.5, 2.0]}).to_parquet(path)
    table = pq.read_table(path)
    notes = table.schema.metadata[b"pandas"].decode()
    assert '"float64"' in notes
    noted = noted or notes.replace('"numpy_type": "float64"', '"numpy_type": "pint[gram]"')
    pq.write_table(table.replace_schema_metadata({b"pandas": noted}), path)
    assert read_small(path).to_dict("list") == {"item_id": ["a", "b"], "weight": [1.5, 2.0]}
