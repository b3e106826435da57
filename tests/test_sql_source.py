"""A shop's SQL database becomes the same records as a folder of files."""

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from client.data import records as shop_records
from client.data.source import FolderSource, open_own_source, open_source, read_shop
from client.data.sql_rows import CHUNK_ROWS
from client.data.sql_source import SqlSource
from client.settings import ShopSettings, read_settings
from common.errors import ConfigError, DataError
from common.features import Catalogue
from common.schema import Tables

SCHEMA = """
CREATE TABLE orders (
    customer_no INTEGER, gtin TEXT, ordered_at TIMESTAMP, receipt INTEGER, price NUMERIC);
CREATE TABLE page_views (customer_no INTEGER, gtin TEXT, seen INTEGER);
CREATE TABLE people (customer_no INTEGER, full_name TEXT, age_band TEXT);
"""
ORDERS = [
    (42, "04012345678901", "2020-01-01 00:00:00", 1, 2.5),
    (42, "milk", "2020-01-01T00:00:01+00:00", 1, 1.5),
    (7, "milk", "2020-01-01 00:00:02", 2, -1.0),
]
VIEWS = [(7, "milk", 1577836803)]

MAPPED = """
[[database.interactions]]
table = "orders"
columns = { user_id = "customer_no", item_id = "gtin", timestamp = "ordered_at" }
constants = { behavior = "purchase" }
"""
VIEWED = """
[[database.interactions]]
query = "SELECT customer_no, gtin AS item_id, seen FROM page_views WHERE gtin LIKE '%';"
columns = { user_id = "customer_no", timestamp = "seen" }
constants = { behavior = "view" }
"""
PEOPLE = """
[database.customers]
table = "people"
columns = { user_id = "customer_no", age = "age_band" }
"""

Shop = Callable[..., ShopSettings]


@pytest.fixture
def catalogue() -> Catalogue:
    items = ["04012345678901", "milk"]
    return Catalogue.of(pd.DataFrame({"item_id": items, "category": ["hot", "cold"]}))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.executescript(SCHEMA)
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", ORDERS)
        database.executemany("INSERT INTO page_views VALUES (?, ?, ?)", VIEWS)
        database.execute("INSERT INTO people VALUES (7, 'Ada Lovelace', '30-39')")
    database.close()

    def settings(tables: str = MAPPED, *, top: str = "", url: str = "sqlite:///shop.db") -> object:
        text = (
            'merchant_id = "corner"\ncatalogue = "catalogue"\nledger = "ledger.sqlite"\n'
            f'cap_epsilon = 8.0\n{top}\n[database]\nurl = "{url}"\n{tables}'
        )
        (tmp_path / "shop.toml").write_text(text, encoding="utf-8")
        return read_settings(tmp_path / "shop.toml")

    return settings  # type: ignore[return-value]


def change(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / "shop.db") as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def records(tables: Tables) -> list[tuple[object, ...]]:
    columns = ["merchant_id", "user_id", "item_id", "timestamp", "behavior"]
    frame = tables.interactions[columns].astype({c: str for c in columns if c != "timestamp"})
    return sorted(frame.itertuples(index=False, name=None))


def test_a_database_holds_the_same_records_as_a_folder(
    tmp_path: Path, shop: Shop, catalogue: Catalogue
) -> None:
    lines = ["merchant_id,user_id,item_id,timestamp,behavior"]
    lines += [f"corner,{u},{i},{t},purchase" for u, i, t, _, _ in ORDERS]
    lines += [f"corner,{u},{i},{t},view" for u, i, t in VIEWS]
    (tmp_path / "interactions.csv").write_text("\n".join(lines) + "\n")
    settings = shop(MAPPED + VIEWED)
    assert records(open_source(settings).tables()) == records(FolderSource(tmp_path).tables())
    events = read_shop(settings, catalogue)
    assert events.user_ids.tolist() == ["42", "7"]
    assert events.timestamps.tolist() == [1577836800, 1577836801, 1577836802, 1577836803]
    assert events.weights.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.1])


def test_leading_zeros_of_a_product_number_stay(shop: Shop) -> None:
    assert "04012345678901" in open_source(shop()).tables().products["item_id"].tolist()


def test_only_what_is_needed_is_read(shop: Shop) -> None:
    tables = open_source(shop(MAPPED + PEOPLE)).tables()
    assert tables.customers is not None
    assert tables.customers.to_dict("list") == {"user_id": ["7"], "age": ["30-39"]}
    # A price is no use to a model, so not even a bad one stops a shop.
    assert "price" not in tables.interactions


def test_baskets_are_known_of_all_records_or_of_none(shop: Shop, catalogue: Catalogue) -> None:
    baskets = MAPPED.replace("{ user_id", '{ session_id = "receipt", user_id')
    sessions = read_shop(shop(baskets), catalogue).sessions
    assert sessions is not None
    assert len(set(sessions.tolist())) == 2
    assert read_shop(shop(baskets + VIEWED), catalogue).sessions is None


@pytest.mark.parametrize("rows", [CHUNK_ROWS, 2 * CHUNK_ROWS + 1])
def test_rows_that_fill_chunks_are_all_read(tmp_path: Path, shop: Shop, rows: int) -> None:
    change(
        tmp_path,
        "DELETE FROM orders",
        "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < "
        f"{rows}) INSERT INTO orders SELECT k % 100, 'milk', 1577836800 + k, k, 1 FROM n",
    )
    tables = open_source(shop()).tables()
    assert sorted(tables.interactions["timestamp"]) == list(range(1577836801, 1577836801 + rows))


def test_an_empty_database_is_a_shop(tmp_path: Path, shop: Shop, catalogue: Catalogue) -> None:
    change(tmp_path, "DELETE FROM orders")
    assert len(read_shop(shop(), catalogue)) == 0


def test_a_bad_row_is_named_with_its_table_and_number(tmp_path: Path, shop: Shop) -> None:
    change(tmp_path, "INSERT INTO orders VALUES (9, 'milk', 'soon', 3, 1)")
    with pytest.raises(DataError, match=r"(?s)table 'orders'.*'timestamp'.*row 4: 'soon'"):
        open_source(shop()).tables()
    kept = open_source(shop(top='bad_rows = "set-aside"')).tables()
    assert len(kept.interactions) == 3
    assert list(kept.set_aside.values()) == [1]


def test_rows_are_counted_anew_in_each_table(tmp_path: Path, shop: Shop) -> None:
    change(tmp_path, "INSERT INTO page_views VALUES (NULL, 'milk', 1)")
    with pytest.raises(DataError, match=r"the query for interactions.*'user_id' is empty in row 2"):
        open_source(shop(MAPPED + VIEWED)).tables()


def test_a_value_of_no_use_is_named(tmp_path: Path, shop: Shop) -> None:
    change(tmp_path, "UPDATE orders SET gtin = x'00ff' WHERE customer_no = 7")
    with pytest.raises(DataError, match=r"column 'gtin' \(for 'item_id'\) holds bytes in row 3"):
        open_source(shop()).tables()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"orders"', '"order"', "no table 'order': did you mean 'orders'"),
        ('"orders"', '"main.order"', "no table 'main.order': did you mean 'main.orders'"),
        ('"gtin"', '"gtim"', "no column 'gtim' for 'item_id': did you mean 'gtin'"),
        ('item_id = "gtin", ', "", r"no column 'item_id': map the one .* 'customer_no'"),
        ("constants", "# constants", r"no column 'behavior'.*constants"),
    ],
)
def test_what_is_missing_is_named(shop: Shop, old: str, new: str, message: str) -> None:
    assert old in MAPPED
    with pytest.raises(DataError, match=message):
        open_source(shop(MAPPED.replace(old, new))).tables()


@pytest.mark.parametrize("name", ["Merchant_ID", "merchant", "merchantid"])
def test_a_misspelt_merchants_column_makes_no_rows_the_shops_own(
    tmp_path: Path, shop: Shop, name: str
) -> None:
    """As of files; of a database all merchants' customers were this shop's, without a word."""
    change(tmp_path, f"ALTER TABLE orders ADD COLUMN {name} TEXT DEFAULT 'other'")
    with pytest.raises(DataError, match=f"no column 'merchant_id', but '{name}': map it with"):
        open_source(shop(MAPPED)).tables()
    mapped = MAPPED.replace("columns = {", f'columns = {{ merchant_id = "{name}",')
    assert open_source(shop(mapped)).tables().merchant_ids == ["other"]
    own = MAPPED.replace("constants = {", 'constants = { merchant_id = "corner",')
    assert open_source(shop(own)).tables().merchant_ids == ["corner"]


@pytest.mark.parametrize("name", ["merchant_id", "Merchant", "merchantid"])
def test_of_customers_a_shop_reads_its_own_merchants_alone(
    tmp_path: Path, shop: Shop, catalogue: Catalogue, name: str
) -> None:
    """Another merchant's customer 7 told the age of the shop's own, or stopped it as a second."""
    change(tmp_path, f"ALTER TABLE people ADD COLUMN {name} TEXT DEFAULT 'other'")
    people = PEOPLE
    if name != "merchant_id":
        with pytest.raises(DataError, match=f"no column 'merchant_id', but '{name}': map it with"):
            open_source(shop(MAPPED + people)).tables()
        own = people + 'constants = { merchant_id = "corner" }\n'
        assert read_shop(shop(MAPPED + own), catalogue).attributes["age"].tolist() == ["", "30-39"]
        people = people.replace("columns = {", f'columns = {{ merchant_id = "{name}",')
    settings = shop(MAPPED + people)
    assert read_shop(settings, catalogue).attributes["age"].tolist() == ["", ""]
    assert open_own_source(settings).person("7") == {}
    change(
        tmp_path, f"INSERT INTO people (customer_no, age_band, {name}) VALUES (7, '9', 'corner')"
    )
    assert read_shop(settings, catalogue).attributes["age"].tolist() == ["", "9"]
    assert open_own_source(settings).person("7") == {"age": "9"}


def test_a_wrong_query_is_refused(shop: Shop) -> None:
    with pytest.raises(DataError, match="no such column: seem"):
        open_source(shop(MAPPED + VIEWED.replace(", seen", ", seem"))).tables()


@pytest.mark.parametrize("end", ["-- all of them", "; -- all\n", ";;", "-- it's all", "-- 'a' ;"])
@pytest.mark.parametrize("user", [None, "7"])
def test_a_query_may_end_with_a_comment(shop: Shop, end: str, user: str | None) -> None:
    """What trains must recommend, too: one customer is asked for around the query."""
    part = VIEWED.replace('"SELECT', '"""SELECT').replace(';"', f'{end}"""')
    tables = open_source(shop(part), user_id=user).tables()
    assert tables.interactions["user_id"].tolist() == ["7"]


def test_a_query_keeps_what_only_looks_like_a_comment(shop: Shop) -> None:
    part = VIEWED.replace("LIKE '%'", "NOT IN ('a', '-- b;')")
    for user in (None, "7"):
        tables = open_source(shop(part), user_id=user).tables()
        assert tables.interactions["user_id"].tolist() == ["7"]


@pytest.mark.parametrize("url", ["postgresql://reader@host:port/shop", "postgresql://[::1/shop"])
def test_a_url_without_a_port_that_is_a_number_is_told_so(shop: Shop, url: str) -> None:
    with pytest.raises(DataError, match=r"database\.url is of no use here: .* What to do: write"):
        open_source(shop(url=url)).tables()


def test_a_query_can_not_write(shop: Shop) -> None:
    wrong = '[[database.interactions]]\nquery = "DELETE FROM orders RETURNING *"\n'
    with pytest.raises(DataError, match="readonly"):
        open_source(shop(wrong)).tables()
    assert len(open_source(shop()).tables().interactions) == len(ORDERS)


def test_a_misspelt_file_is_not_made(tmp_path: Path, shop: Shop) -> None:
    with pytest.raises(DataError, match=r"no SQLite database .*shoop\.db"):
        open_source(shop(url="sqlite:///shoop.db")).tables()
    assert not (tmp_path / "shoop.db").exists()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ('[database.interactions]\ntable = "a"\nquery = "SELECT 1"', "either table"),
        (MAPPED + '[database.interactions.columns]\nuser = "x"', "TOML"),
        (MAPPED.replace("user_id =", "user ="), "no column 'user'"),
        (MAPPED.replace('"purchase"', '"bought"'), "no behaviour is called 'bought'"),
        (MAPPED.replace("behavior =", "user_id ="), "may be constants"),
        (MAPPED.replace("table =", "tabel ="), "did you mean 'table'"),
    ],
)
def test_wrong_settings_are_refused(shop: Shop, tables: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shop(tables)


def test_data_are_in_one_place(shop: Shop) -> None:
    with pytest.raises(ConfigError, match=r'either data = "FOLDER" or a \[database\] section$'):
        shop(top='data = "data"')


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://reader:s3cret@127.0.0.1/shop",
        "postgresql://reader:s3/cret@127.0.0.1/shop",
        # Drivers take it here, too, and nothing hides it when a message names the database.
        "postgresql://reader@127.0.0.1/shop?connect_timeout=3&password=s3cret",
        "mysql+pymysql://reader@127.0.0.1/shop?Passwd=s3cret",
        "postgresql://reader@127.0.0.1/shop?sslkey=client.key&sslpassword=s3cret",
        "mssql+pyodbc:///?odbc_connect=SERVER%3Ddb%3BUID%3Dreader%3BPWD%3Ds3cret",
    ],
)
def test_a_password_in_the_settings_is_refused_and_not_repeated(shop: Shop, url: str) -> None:
    with pytest.raises(ConfigError, match="password_env or password_file") as error:
        shop(url=url)
    assert "s3" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://reader@127.0.0.1:5432/shop?sslmode=verify-full&passfile=pgpass",
        "postgresql://reader@/shop?host=/var/run/postgresql&application_name=a:b",
        "sqlite:///a:b@c.db",
    ],
)
def test_a_url_without_a_password_is_none_with_one(shop: Shop, url: str) -> None:
    shop(url=url)


@pytest.mark.parametrize("user", ["--5", "---", "-7-", "7" * 5000, "-", "٣"])
def test_who_can_be_no_customer_is_nobody(shop: Shop, user: str) -> None:
    # A service passes on what it was asked: nothing of it may end in an error of ours.
    assert not len(open_source(shop(), user_id=user).tables().interactions)


def test_a_password_comes_from_the_environment_or_a_file(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = shop('password_env = "SHOP_PASSWORD"' + MAPPED).database
    assert database is not None
    with pytest.raises(ConfigError, match="SHOP_PASSWORD is not set"):
        database.password()
    monkeypatch.setenv("SHOP_PASSWORD", "s3cret")
    assert database.password() == "s3cret"
    (tmp_path / "password").write_text("s3cret\n")
    (tmp_path / "password").chmod(0o644)
    database = shop('password_file = "password"' + MAPPED).database
    assert database is not None
    # As a shop's keys are: whoever else is on this machine could read the shop's database.
    with pytest.raises(ConfigError, match="is open to others on this machine: chmod 600"):
        database.password()
    (tmp_path / "password").chmod(0o600)
    assert database.password() == "s3cret"
    (tmp_path / "password").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        database.password()


def test_a_file_of_sqlite_s_takes_no_password(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "s3cret")
    with pytest.raises(DataError, match="takes no password: take out password_env"):
        open_source(shop('password_env = "SHOP_PASSWORD"' + MAPPED)).tables()


def test_a_database_that_does_not_answer_keeps_the_password_to_itself(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "s3cret")
    settings = shop(
        'password_env = "SHOP_PASSWORD"' + MAPPED, url="postgresql://reader@127.0.0.1:1/shop"
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match="refused") as error:
        open_source(settings).tables()
    logging.getLogger("test").error("as the client logs it", exc_info=error.value)
    assert "s3cret" not in caplog.text + str(error.value)


def test_a_server_that_is_gone_without_a_word_is_not_waited_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the system gives a connection up after hours, and the shop hangs in its run."""
    told: list[dict[str, object]] = []

    def connect(*_: object, **words: object) -> None:
        told.append(words)
        raise psycopg.OperationalError("gone")

    monkeypatch.setattr(psycopg, "connect", connect)
    for more in ("", "?connect_timeout=5"):
        settings = shop(MAPPED, url=f"postgresql://reader@127.0.0.1/shop{more}")
        with pytest.raises(DataError, match="gone"):
            open_source(settings).tables()
    assert [words["connect_timeout"] for words in told] == [30, "5"]
    assert [words["keepalives_idle"] for words in told] == [60, 60]


def test_a_deleted_customer_trains_no_longer(
    tmp_path: Path, shop: Shop, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = shop()
    monkeypatch.setattr(shop_records, "held_catalogue", lambda _: catalogue)
    read = shop_records.held_records
    assert read(settings).user_ids.tolist() == ["42", "7"]
    # Neither the count of rows nor the newest time tells.
    change(tmp_path, "UPDATE orders SET customer_no = 8 WHERE customer_no = 42")
    assert read(settings).user_ids.tolist() == ["7", "8"]


def test_the_future_is_refused(shop: Shop) -> None:
    settings = shop()
    assert settings.database is not None
    with pytest.raises(DataError, match="in the future"):
        SqlSource(settings.database, "corner", now=1577836801).tables()


def test_what_is_sold_before_the_tables_are_read_is_not_in_the_future(
    tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping is read first, from the same database, and takes its time."""
    clock = [1577836802]
    monkeypatch.setattr("time.time", lambda: clock[0])
    folder = tmp_path / "folder"
    folder.mkdir()
    sources = [open_source(shop(MAPPED)), FolderSource(folder, merchant_id="corner")]
    clock[0] += 60
    change(tmp_path, "INSERT INTO orders VALUES (9, 'milk', '2020-01-01 00:01:00', 3, 1.0)")
    line = "9,milk,2020-01-01 00:01:00,purchase\n"
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp,behavior\n{line}")
    assert [len(source.tables().interactions) for source in sources] == [4, 1]


def test_all_tables_of_a_file_are_of_one_moment(tmp_path: Path, shop: Shop) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
    settings = shop(MAPPED + VIEWED)
    seen: list[int] = []
    assert settings.database is not None

    def meanwhile(done: int, _: int) -> None:
        if not seen:  # The orders are read, and the views are not.
            change(tmp_path, "INSERT INTO page_views VALUES (9, 'milk', 1577836803)")
        seen.append(done)

    source = SqlSource(settings.database, "corner", progress=meanwhile)
    assert len(source.tables().interactions) == len(ORDERS) + len(VIEWS)
    assert len(source.tables().interactions) == len(ORDERS) + len(VIEWS) + 1
