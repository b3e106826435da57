"""A shop's own folder becomes records on the catalogue's rows."""

import io
import logging
from pathlib import Path

import pandas as pd
import pytest

from client.data.records import held_records
from client.data.source import FolderSource, open_own_source, open_source, read_shop
from client.home.shop import read_records
from client.settings import ShopSettings
from common.errors import DataError
from common.features import Catalogue, write_catalogue

ROWS = """merchant_id,user_id,item_id,timestamp,behavior
corner,42,tea,1577836800,purchase
corner,42,house-brand,1577836801,purchase
corner,7,milk,1577836802,view
"""


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue.of(pd.DataFrame({"item_id": ["tea", "milk"], "category": ["hot", "cold"]}))


def settings(folder: Path, **more: object) -> ShopSettings:
    base = {"merchant_id": "corner", "data": folder, "catalogue": folder, "ledger": folder / "l"}
    return ShopSettings.model_validate({**base, "cap_epsilon": 8.0, **more})


def test_how_far_the_records_are_read_is_told_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "interactions.csv"
    path.write_text(ROWS + 300_000 * "corner,7,milk,1577836802,view\n")  # several blocks
    seen: list[tuple[int, int]] = []
    FolderSource(tmp_path, progress=lambda *far: seen.append(far)).tables()
    assert len(seen) > 1
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_a_file_that_is_emptied_while_it_is_read_is_told(tmp_path: Path) -> None:
    """An export that writes in place; the shop's own service reads at any time."""
    path = tmp_path / "interactions.csv"
    path.write_text(ROWS)

    def emptied(*_: int) -> None:
        path.write_bytes(b"")

    with pytest.raises(DataError, match=r"interactions.csv was written anew while it was read"):
        FolderSource(tmp_path, progress=emptied).tables()


def test_items_outside_the_catalogue_are_left_out(
    tmp_path: Path, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "interactions.csv").write_text(ROWS)
    with caplog.at_level(logging.INFO):
        events = read_shop(settings(tmp_path), catalogue)
    assert events.user_ids.tolist() == ["42", "7"]
    assert [catalogue.item_ids[i] for i in events.items] == ["tea", "milk"]
    assert events.weights.tolist() == pytest.approx([1.0, 0.1])
    assert "products_outside_catalogue=some" in caplog.text
    for secret in ("house-brand", "42", "corner"):
        assert secret not in caplog.text


def test_weights_come_from_the_settings(tmp_path: Path, catalogue: Catalogue) -> None:
    (tmp_path / "interactions.csv").write_text(ROWS)
    events = read_shop(settings(tmp_path, behavior_weights={"view": 0.5}), catalogue)
    assert events.user_ids.tolist() == ["7"]


def test_a_link_to_nothing_beside_the_tables_stops_no_round(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    """An editor's lock is one: a table that is open there must not keep a shop from training."""
    write_catalogue(catalogue, tmp_path / "catalogue")
    (tmp_path / "interactions.csv").write_text(ROWS)
    (tmp_path / ".#interactions.csv").symlink_to("somebody@somewhere.4711")
    found = held_records(settings(tmp_path, catalogue=tmp_path / "catalogue"))
    assert found.user_ids.tolist() == ["42", "7"]


def test_customers_are_read(tmp_path: Path, catalogue: Catalogue) -> None:
    (tmp_path / "interactions.csv").write_text(ROWS)
    (tmp_path / "customers.csv").write_text("user_id,age\n7,30\n")
    assert read_shop(settings(tmp_path), catalogue).attributes["age"].tolist() == ["", "30"]


def test_an_empty_shop_is_a_shop(tmp_path: Path, catalogue: Catalogue) -> None:
    (tmp_path / "interactions.csv").write_text(ROWS.splitlines()[0] + "\n")
    assert len(read_shop(settings(tmp_path), catalogue)) == 0
    (tmp_path / "interactions.csv").write_text(ROWS)
    (tmp_path / "stock.csv").write_text("merchant_id,item_id\nnew,tea\n")
    assert len(read_shop(settings(tmp_path, merchant_id="new"), catalogue)) == 0


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_names_of_columns_alone_are_an_empty_table(tmp_path: Path, end: str, mark: str) -> None:
    """However their line ends: a shop without customers must not be told by its status."""
    header = f"{mark}user_id,item_id,timestamp,behavior{end}"
    for name in ("interactions", "customers"):
        (tmp_path / f"{name}.csv").write_bytes(header.encode())
    tables = FolderSource(tmp_path, merchant_id="corner").tables()
    assert tables.interactions.empty
    assert tables.customers is not None
    assert tables.customers.columns.tolist() == ["user_id", "item_id", "timestamp", "behavior"]


def test_tables_without_the_merchants_column_are_the_shops_own(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    plain = ROWS.replace("merchant_id,", "").replace("corner,", "")
    (tmp_path / "interactions.csv").write_text(plain)
    (tmp_path / "customers.csv").write_text("user_id,age\n7,30\n")
    (tmp_path / "stock.csv").write_text("item_id\ntea\n")
    events = read_shop(settings(tmp_path), catalogue)
    assert events.user_ids.tolist() == ["42", "7"]
    assert events.attributes["age"].tolist() == ["", "30"]
    tables = open_source(settings(tmp_path)).tables()
    assert tables.merchant_ids == ["corner"]
    shelves = tables.stock_of("corner")
    assert shelves is not None
    assert shelves.tolist() == ["tea"]
    one = open_source(settings(tmp_path), user_id="7").tables()
    assert one.interactions["item_id"].tolist() == ["milk"]
    (tmp_path / "interactions.csv").unlink()
    frame = pd.read_csv(io.StringIO(plain), dtype=str)
    frame.to_parquet(tmp_path / "interactions.parquet")
    assert read_shop(settings(tmp_path), catalogue).user_ids.tolist() == ["42", "7"]


@pytest.mark.parametrize("name", ["merchant", "Merchant_ID", "merchnat_id"])
def test_a_misspelt_merchants_column_makes_no_rows_the_shops_own(
    tmp_path: Path, catalogue: Catalogue, name: str
) -> None:
    (tmp_path / "interactions.csv").write_text(ROWS.replace("merchant_id", name))
    with pytest.raises(DataError, match="column 'merchant_id' is missing"):
        read_shop(settings(tmp_path), catalogue)
    (tmp_path / "interactions.csv").write_text(ROWS)
    (tmp_path / "stock.csv").write_text(f"{name},item_id\ncorner,tea\n")
    with pytest.raises(DataError, match="column 'merchant_id' is missing"):
        read_shop(settings(tmp_path), catalogue)
    (tmp_path / "stock.csv").unlink()
    # Another merchant's customer told the age of the shop's own; whose one is was an attribute.
    (tmp_path / "customers.csv").write_text(f"{name},user_id,age\nother,7,30\n")
    with pytest.raises(DataError, match="column 'merchant_id' is missing: did you mean"):
        read_shop(settings(tmp_path), catalogue)
    with pytest.raises(DataError, match="column 'merchant_id' is missing: did you mean"):
        open_own_source(settings(tmp_path)).person("7")


def test_what_looks_like_the_merchants_column_of_customers_may_be_something_else(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    # It was told to rename it alone: done so, all customers were other merchants', without a word.
    (tmp_path / "interactions.csv").write_text(ROWS)
    people = tmp_path / "customers.csv"
    people.write_text("user_id,merchant_city\n7,Oslo\n")
    with pytest.raises(DataError, match=r"'merchant_city'.* give it a name that is less like that"):
        read_shop(settings(tmp_path), catalogue)
    people.write_text("user_id,city\n7,Oslo\n")
    assert open_own_source(settings(tmp_path)).person("7") == {"city": "Oslo"}
    # Beside the column itself it is one more that is known of a customer.
    people.write_text("user_id,merchant_id,merchant_city\n7,corner,Oslo\n")
    assert open_own_source(settings(tmp_path)).person("7") == {"merchant_city": "Oslo"}


def test_a_merchant_without_rows_trains_as_an_empty_shop_and_its_log_says_so(
    tmp_path: Path, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal would tell none from one: with one customer the merchant is known."""
    (tmp_path / "interactions.csv").write_text(ROWS)
    (tmp_path / "customers.csv").write_text("user_id,age\n7,30\n")
    misspelt = settings(tmp_path, merchant_id="korner")
    with caplog.at_level(logging.WARNING):
        events = read_shop(misspelt, catalogue)
    assert (len(events), len(events.user_ids)) == (0, 0)
    assert "correct merchant_id" in caplog.text
    assert "corner" not in caplog.text
    # At home, where nothing leaves, it is a mistake to mend.
    with pytest.raises(DataError, match=r"know no merchant 'korner', only 'corner'"):
        read_records(misspelt, catalogue)


def test_the_future_is_refused(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(ROWS)
    with pytest.raises(DataError, match="in the future"):
        FolderSource(tmp_path, now=1_577_836_801).tables()
