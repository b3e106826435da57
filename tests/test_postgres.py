"""A shop's data in a real PostgreSQL server, as the shop's own client reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

import postgres_support
from client.check import check_shop
from client.data.assortment import Assortment, home_catalogue
from client.data.source import open_source, read_shop, shop_mapping
from client.home.shop import read_records
from client.settings import ShopSettings, read_settings
from common.errors import DataError
from common.features import Catalogue, read_catalogue, write_catalogue
from common.protocol import TrainingPlan
from postgres_support import Postgres

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = 50_000
SETUP = f"""
CREATE SCHEMA sales;
CREATE TABLE sales."Orders" (
    "customerNo" bigint, gtin numeric(14, 0), ordered timestamp, receipt uuid, stars numeric(3, 1));
INSERT INTO sales."Orders"
    SELECT mod(k, 500), 4012345678000 + mod(k, 20),
        timestamp '2020-01-01' + k * interval '1 second', gen_random_uuid(), 4.5
    FROM generate_series(1, {ROWS}) AS k;
CREATE TABLE page_views (customer integer, gtin text, seen timestamptz, day date);
INSERT INTO page_views VALUES
    (7, '4012345678001', '2020-01-01 01:00:00+01', '2020-02-01'),
    (8, '4012345678002', '2019-12-31 19:00:00-05', '2020-02-01');
CREATE TABLE till (card char(8), article char(14), at timestamp, receipt char(12));
CREATE TABLE web (card varchar(8), article text, at timestamp, receipt text);
CREATE TABLE cards (card char(8), age char(6));
INSERT INTO till VALUES ('c17', '4012', '2024-01-01', 'r1');
INSERT INTO web VALUES ('c17', '4012', '2024-01-02', 'w1');
INSERT INTO cards VALUES ('c17', '35-44');
CREATE SEQUENCE tickets;
CREATE ROLE reader LOGIN PASSWORD 'reader-s3cret';
CREATE TABLE sales.articles (
    no bigint, barcode text, ean numeric(14, 0), department text, price numeric(8, 2),
    organic boolean);
INSERT INTO sales.articles VALUES
    (1, ' 4006381-333931', 4006381333931, 'tea', 2.50, true),
    (2, '96385074', 96385074, 'milk', 1.00, false),
    (3, '0096385074', 96385074, 'milk', 5.00, false),
    (4, NULL, NULL, 'tea', 3.10, true),
    (5, '', NULL, 'house', NULL, NULL),
    (6, '5000000000000', 5000000000000, 'tea', 9.90, false);
CREATE TABLE sales.tickets (customer uuid, article bigint, day timestamptz);
INSERT INTO sales.tickets
    SELECT ('00000000-0000-0000-0000-' || lpad(mod(k, 7)::text, 12, '0'))::uuid, 1 + mod(k, 6),
        timestamptz '2024-01-01 00:00+00' + k * interval '1 hour'
    FROM generate_series(0, 599) AS k;
CREATE TABLE sales.hidden (no bigint, barcode text);
GRANT USAGE ON SCHEMA sales TO reader;
GRANT SELECT ON sales.articles, sales.tickets TO reader;
GRANT SELECT ON sales."Orders", page_views, till, web, cards TO reader;
GRANT USAGE ON SEQUENCE tickets TO reader;
"""

SETTINGS = """
merchant_id = "corner"
catalogue = "catalogue"
ledger = "ledger.sqlite"
cap_epsilon = 8.0

[database]
url = "{url}"
password_env = "SHOP_PASSWORD"

[[database.interactions]]
table = "sales.Orders"
columns = {{ user_id = "customerNo", item_id = "gtin", timestamp = "ordered", rating = "stars" }}
constants = {{ behavior = "rating" }}

[[database.interactions]]
query = "{query}"
columns = {{ user_id = "customer", timestamp = "seen" }}
constants = {{ behavior = "view" }}
"""
QUERY = (
    "WITH v AS (SELECT * FROM page_views) SELECT customer, gtin AS item_id, {time} AS seen "
    "FROM v WHERE to_char(seen, 'HH24:MI') LIKE '%:%'"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_support.running() as server:
        url = sa.make_url(server.url()).set(password=server.password)
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql(SETUP)
        engine.dispose()
        yield server


def execute(server: Postgres, statement: str, database: str = "postgres") -> None:
    """Execute one statement as the server's owner."""
    url = sa.make_url(server.url()).set(password=server.password, database=database)
    engine = sa.create_engine(
        url,
        poolclass=sa.pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"client_encoding": "utf8"},
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "reader-s3cret")


def shop(folder: Path, server: Postgres, query: str = "", time: str = "seen") -> ShopSettings:
    found = query or QUERY.format(time=time)
    text = SETTINGS.format(url=server.url("reader"), query=found)
    (folder / "shop.toml").write_text(text, encoding="utf-8")
    return read_settings(folder / "shop.toml")


def test_every_row_arrives_as_the_contract_wants_it(tmp_path: Path, server: Postgres) -> None:
    tables = open_source(shop(tmp_path, server)).tables()
    rated = tables.interactions[tables.interactions["behavior"] == "rating"]
    assert len(rated) == ROWS
    assert set(rated["merchant_id"]) == {"corner"}
    # A timestamp without a zone is UTC, whatever the zone of this machine and the server.
    assert sorted(rated["timestamp"]) == list(range(1577836801, 1577836801 + ROWS))
    assert set(rated["rating"]) == {4.5}
    assert {str(k) for k in range(500)} == set(rated["user_id"])
    assert set(rated["item_id"]) == {str(4012345678000 + k) for k in range(20)}
    viewed = tables.interactions[tables.interactions["behavior"] == "view"]
    assert viewed["timestamp"].tolist() == [1577836800, 1577836800]


def test_a_date_is_its_first_second(tmp_path: Path, server: Postgres) -> None:
    tables = open_source(shop(tmp_path, server, time="day")).tables()
    viewed = tables.interactions[tables.interactions["behavior"] == "view"]
    assert set(viewed["timestamp"]) == {1580515200}


BEYOND = (
    "SELECT k AS customer, '4012345678001' AS item_id, CASE mod(k, 10000) WHEN 1 THEN "
    "'infinity' WHEN 2 THEN '-infinity' WHEN 3 THEN '10000-01-01' WHEN 4 THEN '0044-03-15 BC' "
    "ELSE '2020-02-01' END::{kind} AS seen FROM generate_series(1, 30000) AS k"
)
SAID = (
    r"column 'timestamp' is neither an ISO 8601 time nor epoch seconds in row 1: 'infinity', "
    r"row 2: '-infinity', row 3: '10000-01-01[^']*', row 4: '0044-03-15[^']* BC', "
    r"row 10001: 'infinity' and 3 more\. What to do: write times like .*set bad rows aside"
)


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz", "date"])
def test_a_time_that_is_none_is_a_bad_value_like_any_other(
    tmp_path: Path, server: Postgres, kind: str
) -> None:
    settings = shop(tmp_path, server, BEYOND.format(kind=kind))
    with pytest.raises(DataError, match=SAID):
        open_source(settings).tables()
    tables = open_source(settings, bad_rows="set-aside").tables()
    assert list(tables.set_aside.values()) == [12]
    viewed = tables.interactions[tables.interactions["behavior"] == "view"]
    assert len(viewed) == 30_000 - 12
    assert set(viewed["timestamp"]) == {1580515200}
    # Nor is a customer with such a row somebody of whom nothing is known.
    with pytest.raises(DataError, match="row 1: 'infinity'"):
        open_source(settings, user_id="1").tables()
    found = open_source(settings, bad_rows="set-aside", user_id="10001").tables()
    assert list(found.set_aside.values()) == [1]


@pytest.fixture(params=["SQL, DMY", "German", "Postgres, MDY"])
def styled(request: pytest.FixtureRequest, server: Postgres) -> Iterator[Postgres]:
    """Yield a server that writes times to the shop's account in a style of its own."""
    execute(server, f"ALTER ROLE reader SET datestyle TO '{request.param}'")
    yield server
    execute(server, "ALTER ROLE reader RESET datestyle")


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz", "date", "timestamptz::text"])
def test_times_are_read_in_whichever_style_the_server_writes_them(
    tmp_path: Path, styled: Postgres, kind: str
) -> None:
    """Psycopg gives up at a timestamptz that is not in ISO 8601, and so did the whole shop."""
    query = f"SELECT 1 AS customer, 'x' AS item_id, '2020-02-01 00:00+00'::{kind} AS seen"
    tables = open_source(shop(tmp_path, styled, query)).tables()
    viewed = tables.interactions[tables.interactions["behavior"] == "view"]
    assert viewed["timestamp"].tolist() == [1580515200]
    far = query.replace("2020-02-01 00:00+00", "infinity")
    with pytest.raises(DataError, match=r"'timestamp' is neither .* in row 1: 'infinity'"):
        open_source(shop(tmp_path, styled, far)).tables()


def test_a_database_without_an_encoding_is_read(tmp_path: Path, server: Postgres) -> None:
    """Psycopg gives its text as bytes, which nothing here and in SQLAlchemy can read."""
    execute(server, "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    execute(server, "CREATE TABLE seen (who text, byte bytea)", "ascii")
    execute(server, "INSERT INTO seen VALUES ('Zo\u00eb', '\\xff')", "ascii")
    execute(server, "GRANT SELECT ON seen TO reader", "ascii")
    shop(tmp_path, server)
    text = (tmp_path / "shop.toml").read_text(encoding="utf-8")
    text = text[: text.index("[[database")].replace("/postgres", "/ascii")
    query = "SELECT {who} AS user_id, 'x' AS item_id, 1 AS timestamp, 'view' AS behavior FROM seen"
    for who, said in (("who", ""), ("convert_from(byte, 'SQL_ASCII')", "invalid byte sequence")):
        part = f'[[database.interactions]]\nquery = "{query.format(who=who)}"\n'
        (tmp_path / "shop.toml").write_text(text + part, encoding="utf-8")
        source = open_source(read_settings(tmp_path / "shop.toml"))
        if said:
            with pytest.raises(DataError, match=said):
                source.tables()
        else:
            assert source.tables().interactions["user_id"].tolist() == ["Zo\u00eb"]


PADDED = """
merchant_id = "corner"
catalogue = "catalogue"
ledger = "ledger.sqlite"
cap_epsilon = 8.0

[database]
url = "{url}"
password_env = "SHOP_PASSWORD"

[[database.interactions]]
table = "till"
columns = {{ {columns} }}
constants = {{ behavior = "purchase" }}

[[database.interactions]]
query = "SELECT * FROM web"
columns = {{ {columns} }}
constants = {{ behavior = "view" }}

[database.customers]
table = "cards"
columns = {{ user_id = "card", age = "age" }}
"""


def test_blanks_that_fill_up_a_column_are_no_part_of_an_id(
    tmp_path: Path, server: Postgres
) -> None:
    # Read as it comes, a customer of a char(8) here and a text column there is two: what leaves is
    # bounded for each, and the one person's part would be twice what the ledger pays for.
    columns = 'user_id = "card", item_id = "article", timestamp = "at", session_id = "receipt"'
    text = PADDED.format(url=server.url("reader"), columns=columns)
    (tmp_path / "shop.toml").write_text(text, encoding="utf-8")
    settings = read_settings(tmp_path / "shop.toml")
    for user in (None, "c17"):
        found = open_source(settings, user_id=user).tables().interactions
        assert found["user_id"].tolist() == ["c17", "c17"]
        assert found["item_id"].tolist() == ["4012", "4012"]
    customers = open_source(settings).tables().customers
    assert customers is not None
    assert customers[["user_id", "age"]].to_numpy().tolist() == [["c17", "35-44"]]


def test_the_server_hands_rows_out_in_chunks(
    tmp_path: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    execute = sa.CursorResult.partitions

    def note(result: sa.CursorResult[Any], size: int | None = None) -> Any:
        # A cursor of the server has a name: without one, all rows come at once.
        statements.append(type(result.cursor).__name__)
        return execute(result, size)

    monkeypatch.setattr(sa.CursorResult, "partitions", note)
    open_source(shop(tmp_path, server)).tables()
    assert statements == ["ServerCursor", "ServerCursor"]


def test_records_train_on_the_catalogue(tmp_path: Path, server: Postgres) -> None:
    items = [str(4012345678000 + k) for k in range(10)]
    catalogue = Catalogue.of(pd.DataFrame({"item_id": items, "category": "tea"}))
    events = read_shop(shop(tmp_path, server), catalogue)
    assert len(events) == ROWS // 2 + 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "SELECT nextval('tickets') AS customer, gtin AS item_id, seen FROM page_views",
            "read-only",
        ),
        ("SELECT customer, gtin AS item_id, seen FROM pageviews", '"pageviews" does not exist'),
    ],
)
def test_what_the_server_refuses_is_said(
    tmp_path: Path, server: Postgres, query: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(shop(tmp_path, server, query)).tables()


def test_a_wrong_password_is_refused_and_not_repeated(
    tmp_path: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "wr0ng")
    with pytest.raises(DataError, match="password authentication failed") as error:
        open_source(shop(tmp_path, server)).tables()
    assert "wr0ng" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_server_that_is_down_is_said(tmp_path: Path) -> None:
    with postgres_support.running() as gone:
        pass
    with pytest.raises(DataError, match="refused"):
        open_source(shop(tmp_path, gone)).tables()


@pytest.mark.parametrize("user", ["7", "8", "499"])
def test_the_server_finds_one_customer_s_rows(tmp_path: Path, server: Postgres, user: str) -> None:
    settings = shop(tmp_path, server)
    whole = open_source(settings).tables().interactions
    expected = whole[(whole["user_id"] == user).to_numpy()]
    found = open_source(settings, user_id=user).tables().interactions
    assert len(found) == len(expected) > 0
    columns = ["user_id", "item_id", "timestamp", "behavior"]
    pd.testing.assert_frame_equal(
        found[columns].astype(str), expected[columns].astype(str).reset_index(drop=True)
    )


@pytest.mark.parametrize("user", ["abc", "", "7'; DROP TABLE page_views; --", "9" * 30, "7 8"])
def test_who_can_be_no_customer_is_nobody(tmp_path: Path, server: Postgres, user: str) -> None:
    settings = shop(tmp_path, server)
    assert not len(open_source(settings, user_id=user).tables().interactions)
    assert len(open_source(settings, user_id="7").tables().interactions)


def test_a_query_that_fails_for_a_customer_does_not_make_them_nobody(
    tmp_path: Path, server: Postgres
) -> None:
    settings = shop(tmp_path, server, time="seen + 1 / (customer - 8) * interval '0'")
    assert len(open_source(settings, user_id="7").tables().interactions)
    with pytest.raises(DataError, match="division by zero"):
        open_source(settings, user_id="8").tables()


# --- the shop's own numbers ------------------------------------------------------------------

PRODUCTS = pd.DataFrame(
    {
        "item_id": ["tea", "milk", "rice", "4"],
        "gtin": ["04006381333931", "00000096385074", "036000291452", None],
        "category": ["tea", "milk", "rice", "rice"],
        "price": [2.4, 1.1, 0.8, 0.7],
        "organic": [True, False, False, True],
    }
)
MAPPED = """
merchant_id = "corner"
catalogue = "catalogue"
ledger = "ledger.sqlite"
cap_epsilon = 8.0

[catalogue_mapping]
{mapping}

[database]
url = "{url}"
password_env = "SHOP_PASSWORD"

[database.interactions]
table = "sales.tickets"
columns = {{ user_id = "customer", item_id = "article", timestamp = "day" }}
constants = {{ behavior = "purchase" }}

[database.products]
{products}
"""
ARTICLES = (
    'table = "sales.articles"\n'
    'columns = {{ item_id = "no", category = "department", gtin = "{code}" }}'
)


def mapped(
    folder: Path,
    server: Postgres,
    mapping: str = 'by = "gtin"',
    products: str = ARTICLES.format(code="barcode"),
) -> ShopSettings:
    write_catalogue(Catalogue.of(PRODUCTS), folder / "catalogue")
    text = MAPPED.format(url=server.url("reader"), mapping=mapping, products=products)
    (folder / "shop.toml").write_text(text, encoding="utf-8")
    return read_settings(folder / "shop.toml")


def sold(settings: ShopSettings) -> dict[str, int]:
    """Return catalogue id -> records that train."""
    catalogue = read_catalogue(settings.catalogue)
    items = catalogue.item_ids[read_shop(settings, catalogue).items]
    return {str(name): int(count) for name, count in pd.Series(items).value_counts().items()}


BY_QUERY = (
    "query = \"SELECT no AS item_id, replace(barcode, '-', '') AS gtin, department AS category "
    'FROM sales.articles WHERE no < 100"'
)


@pytest.mark.parametrize(
    "products", [ARTICLES.format(code="barcode"), ARTICLES.format(code="ean"), BY_QUERY]
)
def test_own_numbers_are_mapped_by_a_code_however_it_is_stored(
    tmp_path: Path, server: Postgres, products: str
) -> None:
    settings = mapped(tmp_path, server, products=products)
    # 100 records of each article; 2 and 3 are one product, 4 to 6 are none of the catalogue's.
    assert sold(settings) == {"tea": 100, "milk": 200}
    found = shop_mapping(settings)
    assert found is not None
    assert found.own_of(["milk"]) == [("2", "3")]
    assert (found.without.tolist(), found.unknown.tolist()) == (["4", "5"], ["6"])


def test_a_mapping_table_beside_a_database(tmp_path: Path, server: Postgres) -> None:
    (tmp_path / "map.csv").write_text("item_id,catalogue_item_id\n1,rice\n4,tea\n")
    settings = mapped(tmp_path, server, mapping='table = "map.csv"')
    assert sold(settings) == {"rice": 100, "tea": 100}


def test_one_customer_s_records_are_mapped_too(tmp_path: Path, server: Postgres) -> None:
    settings = mapped(tmp_path, server)
    customer = f"00000000-0000-0000-0000-{3:012}"
    found = open_source(settings, user_id=customer).tables().interactions
    whole = open_source(settings).tables().interactions
    expected = whole[(whole["user_id"] == customer).to_numpy()]
    assert len(found) == len(expected) > 80
    assert sorted(found["item_id"].astype(str)) == sorted(expected["item_id"].astype(str))
    # The shop's own 4 is not the catalogue's.
    assert set(found["item_id"]) == {"tea", "milk", "own:4", "5", "6"}


def test_what_the_server_describes_besides_is_known_at_home(
    tmp_path: Path, server: Postgres
) -> None:
    settings = mapped(tmp_path, server)
    found = home_catalogue(settings)
    assert isinstance(found, Assortment)
    own = found.own.products.set_index("item_id")
    assert own.index.tolist() == ["5", "6", "own:4"]
    assert own["price"].tolist()[1:] == [9.9, 3.1]
    assert np.isnan(own["price"]["5"])
    assert own["organic"].tolist() == [None, False, True]
    assert own["category"].tolist() == ["house", "tea", "tea"]
    events = read_records(settings, found).events
    assert len(events) == 600
    counts = np.bincount(events.items, minlength=found.size)
    assert counts[found.rows(["own:4", "milk"])].tolist() == [100, 200]


def test_check_tells_what_is_mapped_and_what_is_not(tmp_path: Path, server: Postgres) -> None:
    settings = mapped(tmp_path, server)
    plan = TrainingPlan(rounds=1, noise_multiplier=4.0, popularity_noise_multiplier=4.0)
    found = check_shop(tmp_path / "shop.toml", settings, plan)
    assert found["problems"] == []
    coverage = found["catalogue"]
    assert coverage["share_of_sales"] == 0.5
    assert coverage["mapping"]["merged"] == [{"item_id": "milk", "own": ["2", "3"]}]
    assert coverage["mapping"]["look_alike"] == {"products": 1, "examples": ["4"]}
    assert coverage["at_home"] == {
        "products": 3,
        "sold": 3,
        "sales": 300,
        "share_of_sales": 0.5,
        "interactions": 300,
    }


@pytest.mark.parametrize(
    ("products", "words"),
    [
        (ARTICLES.format(code="gtin"), r"'sales\.articles' has no column 'gtin' for 'gtin'"),
        ('table = "sales.article"\ncolumns = { item_id = "no" }', "no table 'sales.article'"),
        ('table = "sales.articles"\ncolumns = { item_id = "no" }', "no column 'gtin'"),
        (
            'table = "sales.hidden"\ncolumns = { item_id = "no", gtin = "barcode" }',
            "permission denied for table hidden",
        ),
    ],
)
def test_products_that_the_server_does_not_give_are_named(
    tmp_path: Path, server: Postgres, products: str, words: str
) -> None:
    settings = mapped(tmp_path, server, products=products)
    with pytest.raises(DataError, match=words) as error:
        sold(settings)
    assert "reader-s3cret" not in str(error.value)
