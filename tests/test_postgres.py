"""A shop's data in a real PostgreSQL server, as the shop's own client reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

import postgres_support
from client.settings import ShopSettings, read_settings
from client.source import open_source, read_shop
from common.errors import DataError
from common.features import Catalogue
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
CREATE SEQUENCE tickets;
CREATE ROLE reader LOGIN PASSWORD 'reader-s3cret';
GRANT USAGE ON SCHEMA sales TO reader;
GRANT SELECT ON sales."Orders", page_views TO reader;
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
        ("SELECT customer, gtin AS item_id, timestamp 'infinity' AS seen FROM page_views", "large"),
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
