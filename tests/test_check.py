"""A new shop's folder, and what its check says of good, bad and missing data."""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from rich.console import Console
from typer.testing import CliRunner

from cli_support import status_of
from client.__main__ import app
from client.check import check_shop
from client.commands.check_table import check_table
from client.data.source import read_shop
from client.joining.keys import private_key, public_path
from client.joining.roster import accept
from client.joining.starting import start_shop
from client.privacy.ledger import Ledger
from client.privacy.plan import planned_events
from client.settings import ShopSettings, read_settings
from common.catalogue.stock import Stock
from common.errors import ConfigError, DataError
from common.features import Catalogue, read_catalogue, write_catalogue
from common.protocol import TrainingPlan
from common.secure_sum.members import roster_text
from server.operating.shops import Shops

HEADER = "user_id,item_id,timestamp,behavior,merchant_id,session_id\n"
ROWS = [
    "1,tea,2024-01-01T10:00:00Z,purchase,corner,a",
    "1,milk,2024-01-01T10:00:00Z,purchase,corner,a",
    "1,house-brand,2024-01-03T10:00:00Z,purchase,corner,b",
    "2,house-brand,2024-01-10T10:00:00Z,purchase,corner,c",
    "2,odd,2024-01-10T10:00:00Z,view,corner,c",
    "3,tea,2024-01-02T10:00:00Z,view,corner,d",
    "3,tea,2024-01-02T10:00:00Z,view,other,d",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corner"
    start_shop(folder)
    products = pd.DataFrame({"item_id": ["tea", "milk", "0123", "rice"], "category": "food"})
    write_catalogue(Catalogue.of(products), folder / "catalogue")
    write(folder, ROWS)
    return folder


def write(folder: Path, rows: list[str]) -> None:
    text = HEADER + "".join(f"{row}\n" for row in rows)
    (folder / "data" / "interactions.csv").write_text(text, encoding="utf-8")


def setting(folder: Path, old: str, new: str) -> None:
    path = folder / "shop.toml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


#: Priced at once: the default plan is calibrated first.
PLAN = TrainingPlan(rounds=1, noise_multiplier=4.0, popularity_noise_multiplier=4.0)


def check(folder: Path, plan: TrainingPlan | None = PLAN) -> dict[str, Any]:
    path = folder / "shop.toml"
    return check_shop(path, read_settings(path), plan)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_init_makes_settings_that_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "My shop"
    start_shop(folder)
    settings = read_settings(folder / "shop.toml")
    assert settings.merchant_id == "My-shop"
    assert (settings.noise, settings.unit, settings.allow_unprotected) == (
        "system",
        "customer",
        False,
    )
    assert settings.cap_epsilon == 8.0
    assert (folder / "shop.toml").stat().st_mode & 0o777 == 0o600
    assert settings.data == (folder / "data").resolve()
    assert (folder / "data").is_dir()
    assert settings.ledger.parent.is_dir()


def test_init_explains_every_key(tmp_path: Path) -> None:
    start_shop(tmp_path / "corner")
    text = (tmp_path / "corner" / "shop.toml").read_text()
    for key in ShopSettings.model_fields:
        assert f"\n{key} = " in text or f"\n[{key}]" in text or f"# [{key}" in text, key


def test_what_init_comments_out_is_right_as_it_stands(tmp_path: Path) -> None:
    start_shop(tmp_path / "corner")
    path = tmp_path / "corner" / "shop.toml"
    top, database = path.read_text().split("# [behavior_weights]")
    lines = ["# [behavior_weights]", *database.splitlines()]
    keys = "url password_env table query columns view validation_share test_share epsilon"
    starts = ("[", "constants = ", *keys.split())
    bare = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    live = [line for line in bare if line.startswith(starts)]
    path.write_text(top.replace('data = "data"', "") + "\n".join(live))
    found = read_settings(path)
    assert found.database is not None
    assert len(found.database.interactions) == 2
    assert found.behavior_weights == {"view": 0.1}
    assert found.database.products is not None
    assert found.evaluation is not None
    assert found.catalogue_mapping is not None
    assert found.catalogue_mapping.columns["catalogue_item_id"] == "federation_no"


def test_a_delta_that_promises_little_to_so_many_customers_is_told_of(folder: Path) -> None:
    """A simulation says so of its largest shop; a shop's own engineer heard nothing of it."""
    assert not [text for text in check(folder)["advice"] if "cap_delta" in text]
    setting(folder, "cap_delta = 1e-5", "cap_delta = 0.34")
    (text,) = [text for text in check(folder)["advice"] if "cap_delta" in text]
    assert text.startswith("cap_delta = 0.34 promises little to 3 customers")
    assert text.endswith("far below 1/3")


def test_ratings_above_the_best_one_are_told_of(folder: Path) -> None:
    """All of them count as the best, so that a scale to 10 says half of what it could."""
    header = HEADER.replace("\n", ",rating\n")
    rows = [row.replace("purchase", "rating") + f",{n + 3}" for n, row in enumerate(ROWS)]
    text = header + "".join(f"{row}\n" for row in rows)
    (folder / "data" / "interactions.csv").write_text(text, encoding="utf-8")
    (found,) = [text for text in check(folder)["advice"] if "rating_scale" in text]
    assert found.startswith("1 of 4 ratings are above the best one, rating_scale = 5, and count")
    path = folder / "shop.toml"
    whole = path.read_text(encoding="utf-8")
    # Of ratings that weigh nothing it was told that they count as the best one.
    for weights in ("{ purchase = 1.0, view = 0.1 }", "{ view = 0.1, rating = 0 }"):
        path.write_text(f"behavior_weights = {weights}\n{whole}", encoding="utf-8")
        assert not [text for text in check(folder)["advice"] if "rating_scale" in text]
    path.write_text(whole.replace("rating_scale = 5.0", "rating_scale = 10"), encoding="utf-8")
    assert not [text for text in check(folder)["advice"] if "rating_scale" in text]


def test_init_writes_nothing_over(tmp_path: Path) -> None:
    start_shop(tmp_path / "corner", "first")
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match=r"shop\.toml is there already"):
        start_shop(tmp_path / "corner", "second")
    assert digests(tmp_path) == before


@pytest.mark.parametrize("place", ["shop.toml", "node.key", "node.pub", "superexec"])
@pytest.mark.parametrize("end", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_init_that_broke_off_leaves_no_half_a_file_and_can_be_said_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, end: BaseException
) -> None:
    # A half of shop.toml can be valid settings, without what stood below.
    write = os.fdopen

    def breaks_off(handle: int, *how: Any) -> Any:
        if place in str(Path(f"/proc/self/fd/{handle}").readlink()):
            os.write(handle, b"half")
            raise end
        return write(handle, *how)

    with monkeypatch.context() as patched:
        patched.setattr("client.joining.keys.os.fdopen", breaks_off)
        with pytest.raises((ConfigError, KeyboardInterrupt)):
            start_shop(tmp_path / "corner")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == 4]
    start_shop(tmp_path / "corner")
    settings = read_settings(tmp_path / "corner" / "shop.toml")
    assert settings.federation is not None
    private_key(settings.federation.key)
    assert load_ssh_public_key(public_path(settings.federation.key).read_bytes())


@pytest.mark.parametrize("name", ['a "b" \\ c', "Café ☕", "Eck 🛒", "x.y/z"])
def test_any_name_that_can_be_read_is_a_name(tmp_path: Path, name: str) -> None:
    start_shop(tmp_path / "corner", name)
    assert read_settings(tmp_path / "corner" / "shop.toml").merchant_id == name
    Shops(tmp_path / "corner").enrol(name, tmp_path / "corner" / "keys" / "node.pub")


@pytest.mark.parametrize("name", ["x\x7fy", "tab\there", " corner", "\n", "é" * 41, "x" * 242])
def test_no_shop_is_made_that_no_operator_can_enrol(tmp_path: Path, name: str) -> None:
    # The operator's `enrol` was the first to say so: with its keys made and its data looked at.
    with pytest.raises(ConfigError, match=r"shop's name") as refused:
        start_shop(tmp_path / "corner", name)
    assert not (tmp_path / "corner").exists()
    start_shop(tmp_path / "other", "other")
    with pytest.raises(ConfigError) as enrolled:
        Shops(tmp_path / "other").enrol(name, tmp_path / "other" / "keys" / "node.pub")
    assert str(refused.value) == str(enrolled.value)


def test_a_shop_is_counted(folder: Path) -> None:
    found = check(folder)
    assert (found["customers"], found["products"], found["interactions"]) == (3, 4, 6)
    assert found["other_merchants"] == 1
    assert found["behaviors"] == {
        "view": {"interactions": 2, "customers": 2},
        "purchase": {"interactions": 4, "customers": 2},
    }
    assert found["span"]["first"] == "2024-01-01T10:00:00+00:00"
    assert found["span"]["days"] == 10
    assert found["baskets"] == 4
    assert found["bad_rows"]["rows"] == 0
    assert found["problems"] == []


def test_the_catalogue_covers_some(folder: Path) -> None:
    found = check(folder)["catalogue"]
    assert found["share_of_products"] == 0.5
    assert found["share_of_interactions"] == 0.5
    assert found["share_of_sales"] == 0.5
    assert found["most_missed"] == [
        {"item_id": "house-brand", "sales": 2, "interactions": 2},
        {"item_id": "odd", "sales": 0, "interactions": 1},
    ]
    assert found["mapping"] is None


def test_what_the_shop_alone_knows_is_counted(folder: Path) -> None:
    assert check(folder)["catalogue"]["at_home"] is None
    products = "item_id,category\nhouse-brand,food\nnever-sold,food\ntea,drink\nhouse-brand,x\n"
    (folder / "data" / "products.csv").write_text(products)
    found = check(folder)
    assert found["catalogue"]["at_home"] == {
        "products": 2,
        "sold": 1,
        "sales": 2,
        "share_of_sales": 0.5,
        "interactions": 2,
    }
    assert (
        "At home the shop knows 2 products besides, by its own table: 1 of them sold, 2 sales"
        in (words(found))
    )
    # Training knows the catalogue alone.
    assert found["history"] == check(folder)["history"]
    (folder / "data" / "products.csv").write_text("number,category\nhouse-brand,food\n")
    found = check(folder)
    assert found["catalogue"]["at_home"] is None
    assert any("own products can't be read" in sentence for sentence in found["advice"])
    setting(folder, "\n[federation]", "\n[home]\nown_products = false\n\n[federation]")
    assert not any("own products" in sentence for sentence in check(folder)["advice"])


def test_advice_says_what_outside_products_cost(folder: Path) -> None:
    (sentence,) = check(folder)["advice"]
    assert sentence.startswith("50.0% of the sales are of products outside the catalogue")
    assert "'house-brand'" in sentence
    assert "[catalogue_mapping]" in sentence


def test_history_counts_what_would_train(folder: Path) -> None:
    history = check(folder)["history"]
    assert (history["customers"], history["without"], history["with_one"]) == (2, 1, 1)
    assert (history["median"], history["most"]) == (1.5, 2)
    (folder / "shop.toml").write_text(
        (folder / "shop.toml").read_text() + "\n[behavior_weights]\npurchase = 1.0\n"
    )
    assert check(folder)["history"]["customers"] == 1


def test_behaviours_that_the_weights_leave_out_are_told(folder: Path) -> None:
    """Whoever wants views to weigh more names them alone, and all purchases teach nothing."""
    setting(folder, "# [behavior_weights]\n# view = 0.1\n", "[behavior_weights]\nview = 0.3\n")
    document = check(folder)
    assert any("does not name purchase, so such records" in text for text in document["advice"])
    assert document["problems"] == []
    assert document["history"]["customers"] == 1
    write(folder, [row for row in ROWS if ",purchase," in row])
    assert any("weighs anything by behavior_weights" in text for text in check(folder)["problems"])


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("ann@x.de", "Ann@X.de", "'Ann@X.de' and 'ann@x.de'"),
        ("ann ", "ann", "'ann' and 'ann '"),
        ("7", "007", "'007' and '7'"),
        ("Zo\u00eb", "Zoe\u0308", r"'Zoe\u0308' and 'Zo\xeb'"),
        ("ann", "anna", ""),
    ],
)
def test_ids_that_may_be_one_customer_s_are_told(
    folder: Path, first: str, second: str, shown: str
) -> None:
    before = check(folder)["advice"]
    write(
        folder, [*ROWS, *(f"{u},tea,2024-01-02T10:00:00Z,view,corner,d" for u in (first, second))]
    )
    more = [text for text in check(folder)["advice"] if text not in before]
    assert len(more) == bool(shown)
    assert all(text.startswith("2 customers have ids that are") and shown in text for text in more)


def test_tables_that_do_not_meet_the_records_are_told(folder: Path) -> None:
    """An export wrote the one table's numbers in another way, and nothing else would say so."""
    before = check(folder)["advice"]
    people, shelves = folder / "data" / "customers.csv", folder / "data" / "stock.csv"
    people.write_text("user_id,age,merchant_id\n1.0,30,corner\n2.0,40,corner\n3,5,other\n")
    shelves.write_text("merchant_id,item_id\ncorner,123\nother,tea\n")
    of_people, of_shelves = (text for text in check(folder)["advice"] if text not in before)
    assert "its user_id has '1.0', '2.0', that of the records '1', '2', '3'" in of_people
    assert "names no product of the catalogue" in of_shelves
    assert "'123'" in of_shelves
    people.write_text("user_id,age\n1,30\n2.0,40\n")
    shelves.write_text("merchant_id,item_id\ncorner,123\ncorner,tea\n")
    assert check(folder)["advice"] == before
    shelves.write_text("merchant_id,item_id\ncorner,house-brand\n")
    (folder / "data" / "products.csv").write_text("item_id,category\nhouse-brand,food\n")
    assert not any("stock table" in text for text in check(folder)["advice"])


def test_ids_and_words_without_end_take_no_memory_for_all_others(folder: Path) -> None:
    """An array of text has room in each place for the longest, and one record is enough."""
    check(folder)  # Code is loaded, which takes memory too.
    ids = [*(f"x{k}" for k in range(300)), "y" * 100_000]
    write(folder, [*ROWS, *(f"{i},{i},2024-01-02T10:00:00Z,purchase,corner,d" for i in ids)])
    for name, header in (("customers", "user_id,age"), ("products", "item_id,category")):
        lines = [header, *(f"own-{i},{i}" for i in ids)]
        (folder / "data" / f"{name}.csv").write_text("\n".join(lines))
    (folder / "data" / "stock.csv").write_text("\n".join(["merchant_id,item_id", "corner,none"]))
    shelves = pd.DataFrame({"merchant_id": "corner", "item_id": ["tea"]})
    catalogue = read_catalogue(folder / "catalogue")
    shutil.rmtree(folder / "catalogue")
    write_catalogue(catalogue, folder / "catalogue", shelves)
    (folder / "map.csv").write_text("item_id,catalogue_item_id\nx1,milk\n")
    with (folder / "shop.toml").open("a") as file:
        file.write('\n[catalogue_mapping]\ntable = "map.csv"\n')
    tracemalloc.start()
    try:
        found = check(folder)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert found["customers"] == 304


def test_a_rating_of_nothing_would_train_nobody(folder: Path) -> None:
    """Some data write 0 for a rating that was not given."""
    rows = [f"{k},tea,2024-01-01T10:00:00Z,rating,corner,a,{k % 2}" for k in range(4)]
    table = folder / "data" / "interactions.csv"
    table.write_text("\n".join([HEADER.strip() + ",rating", *rows]))
    history = check(folder)["history"]
    trained = read_shop(read_settings(folder / "shop.toml"), read_catalogue(folder / "catalogue"))
    assert history["customers"] == len(trained.user_ids) == 2
    assert history["without"] == 2
    table.write_text("\n".join([HEADER.strip() + ",rating", *rows[::2]]))
    assert any("weighs anything" in text for text in check(folder)["problems"])


def test_bad_rows_are_counted_and_shown(folder: Path) -> None:
    write(folder, [*ROWS, "4,tea,soon,view,corner,e", "5,tea,,view,corner,e"])
    found = check(folder)
    assert found["interactions"] == 6
    assert found["bad_rows"]["rows"] == 2
    assert "row 8: 'soon'" in found["bad_rows"]["first"]
    assert len(found["problems"]) == 1
    setting(folder, 'bad_rows = "refuse"', 'bad_rows = "set-aside"')
    assert check(folder)["problems"] == []


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "no interactions yet"),
        (ROWS[6:], "know no merchant 'corner', only 'other'"),
        (ROWS[4:5], "knows none of the shop's products"),
        ([*ROWS, "1,123,2024-01-01,view,corner,a"], "leading zeros"),
    ],
)
def test_problems_are_said(folder: Path, rows: list[str], problem: str) -> None:
    write(folder, rows)
    problems = check(folder)["problems"]
    assert any(problem in found for found in problems), problems


def test_dates_as_numbers_are_doubted(folder: Path) -> None:
    def doubts() -> list[str]:
        return [line for line in check(folder)["advice"] if "2024-01-31, not 20240131" in line]

    assert doubts() == []
    # They are read as seconds of August 1970: nothing fails, and halves by time mean nothing.
    write(folder, [row.replace("2024-01-", "202401").replace("T10:00:00Z", "") for row in ROWS])
    assert len(doubts()) == 1


def test_a_shop_without_a_catalogue_is_counted_all_the_same(folder: Path) -> None:
    shutil.rmtree(folder / "catalogue")
    found = check(folder)
    assert found["catalogue"] is None
    assert found["interactions"] == 6
    assert any("operator" in problem for problem in found["problems"])


def test_a_missing_table_is_an_error(folder: Path) -> None:
    (folder / "data" / "interactions.csv").unlink()
    with pytest.raises(DataError, match="holds nothing"):
        check(folder)


def test_the_price_is_of_the_default_or_the_given_plan(folder: Path) -> None:
    price = check(folder, None)["price"]
    assert not price["given"]
    assert price["cost"]["epsilon"] == pytest.approx(4.0, rel=0.01)
    given = TrainingPlan(rounds=1, noise_multiplier=0.3, popularity_noise_multiplier=0.3)
    found = check(folder, given)
    assert found["price"]["cost"]["epsilon"] > 8
    assert any("would not join" in problem for problem in found["problems"])


def test_an_example_is_priced_for_every_unit(folder: Path) -> None:
    """Of interactions popularity alone is released: an example with rounds would be refused."""
    setting(folder, 'unit = "customer"', 'unit = "interaction"')
    document = check(folder, None)
    assert document["problems"] == []
    assert document["price"]["plan"]["rounds"] == 0
    assert 3 < document["price"]["cost"]["epsilon"] <= 4


def test_the_columns_that_are_named_are_those_of_the_file(folder: Path) -> None:
    (folder / "data" / "interactions.csv").write_text("customer,item_id,timestamp,behavior\n")
    with pytest.raises(DataError, match="'user_id' is missing") as refused:
        check(folder)
    assert str(refused.value).endswith("'customer', 'item_id', 'timestamp', 'behavior'")
    write(folder, ROWS)
    (folder / "data" / "stock.csv").write_text("article\n")
    with pytest.raises(DataError, match=r"stock\.csv: column 'item_id' is missing") as refused:
        check(folder)
    assert str(refused.value).endswith("Columns found: 'article'")


def test_baskets_without_a_session_id_are_not_ready(folder: Path) -> None:
    setting(folder, 'unit = "customer"', 'unit = "basket"')
    plan = PLAN.model_copy(update={"unit": "basket"})
    assert check(folder, plan)["problems"] == []
    table = folder / "data" / "interactions.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("session_id", "till", 1))
    (problem,) = check(folder, plan)["problems"]
    assert "session_id" in problem


def test_figures_that_no_shop_of_baskets_can_release_are_told(folder: Path) -> None:
    # Consent to what is refused in each run: only the shop's log told, after it.
    path = folder / "shop.toml"
    path.write_text(path.read_text(encoding="utf-8") + "\n[evaluation]\nepsilon = 0.5\n")
    assert not any("[evaluation]" in words for words in check(folder)["advice"])
    setting(folder, 'unit = "customer"', 'unit = "basket"')
    assert any("Take out [evaluation]" in words for words in check(folder)["advice"])
    # Of a plan that the shop would not join the check ended with what its ε is too little for.
    setting(folder, 'unit = "basket"', 'unit = "customer"')
    setting(folder, "[evaluation]\nepsilon = 0.5\n", "[evaluation]\nepsilon = 1e-9\n")
    baskets = PLAN.model_copy(update={"unit": "basket"})
    assert any("the plan's unit is basket" in words for words in check(folder, baskets)["problems"])
    with pytest.raises(ConfigError, match=r"^\[evaluation\] of corner: no noise costs just"):
        check(folder)


def test_a_budget_that_is_nearly_used_up_stops_no_plan_that_still_fits(folder: Path) -> None:
    # The example is ours: with .4 of 8 left a shop was told that it could not train, while the
    # operator's next plan took less.
    costly = TrainingPlan(rounds=1, noise_multiplier=0.9, popularity_noise_multiplier=2.0)
    with Ledger.open(folder / "ledger" / "ledger.sqlite") as ledger:
        for event in planned_events(costly, "before", noise="system"):
            ledger.charge(event, cap_epsilon=100.0, delta=1e-5)
    spent = check(folder)["price"]["shops"][0]["spent"]["epsilon"]
    cap = round(spent * 1.1, 3)
    setting(folder, "cap_epsilon = 8.0", f"cap_epsilon = {cap}")
    found = check(folder, None)
    assert found["problems"] == []
    assert any(f"ε {cap - spent:.4g} is left" in advice for advice in found["advice"])
    setting(folder, f"cap_epsilon = {cap}", f"cap_epsilon = {spent / 2:.3f}")
    assert any("nothing is left" in problem for problem in check(folder, None)["problems"])


def test_a_database_is_checked_as_a_folder_is(folder: Path) -> None:
    from_files = check(folder)
    frame = pd.read_csv(folder / "data" / "interactions.csv")
    with sqlite3.connect(folder / "shop.db") as database:
        frame.to_sql("interactions", database, index=False)
    database.close()
    setting(folder, 'data = "data"\n', "")
    tables = '\n[database]\nurl = "sqlite:///shop.db"\ninteractions = { table = "interactions" }\n'
    (folder / "shop.toml").write_text((folder / "shop.toml").read_text() + tables)
    from_database = check(folder)
    assert from_database.pop("source")["kind"] == "database"
    assert from_files.pop("source")["kind"] == "folder"
    assert from_database == from_files


def test_the_table_says_it_in_words(folder: Path) -> None:
    write(folder, [*ROWS, "4,tea,soon,view,corner,e"])
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    with console.file:
        console.print(check_table(check(folder)))
    text = console.export_text()
    assert "3 customers, 4 products, 6 interactions" in text
    assert "covers 50.0% of the shop's products" in text
    assert "'house-brand': 2 sales, 2 interactions" in text
    assert "'odd': 0 sales, 1 interaction\n" in text
    assert "1 bad row, which stops training" in text
    assert "records of 1 other merchant are left unused" in text
    assert "To do before training" in text
    assert "Would make it better" in text
    assert read_catalogue(folder / "catalogue").fingerprint in text


def words(document: dict[str, Any]) -> str:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    with console.file:
        console.print(check_table(document))
    return console.export_text()


def test_the_price_is_said_as_what_it_takes_of_the_cap(folder: Path) -> None:
    text = words(check(folder, None))
    assert "a plan at half of the shop's cap, of 10 rounds costs each customer" in text
    # Half of the bar is of this plan, and nothing is spent.
    assert f"[{'+' * 15}{'.' * 15}] spent ε 0, with this plan ε" in text
    assert "cap 8 (50%)" in text
    assert "figures" not in text
    setting(folder, "# [evaluation]\n# epsilon = 0.5\n", "[evaluation]\nepsilon = 4.0\n")
    text = words(check(folder, None))
    assert "as [evaluation] allows: ε 5.988 with it, and it fits once" in text


def test_a_mapping_is_told_with_what_it_leaves_out(folder: Path) -> None:
    rows = "odd,milk\nhouse-brand,tea\ntea,tea\ngone,nothing\n"
    (folder / "mapping.csv").write_text("item_id,catalogue_item_id\n" + rows)
    text = (folder / "shop.toml").read_text() + '\n[catalogue_mapping]\ntable = "mapping.csv"\n'
    (folder / "shop.toml").write_text(text)
    found = check(folder)
    coverage = found["catalogue"]
    assert coverage["share_of_sales"] == 0.75
    assert coverage["most_missed"] == [{"item_id": "milk", "sales": 1, "interactions": 1}]
    mapping = coverage["mapping"]
    assert (mapping["mapped"], mapping["onto"]) == (3, 2)
    assert mapping["merged"] == [{"item_id": "tea", "own": ["house-brand", "tea"]}]
    assert mapping["unknown"] == {"products": 1, "examples": ["gone"]}
    # The shop's own number milk is not the catalogue's milk: nobody said so.
    assert mapping["look_alike"] == {"products": 1, "examples": ["milk"]}
    assert found["history"]["customers"] == 3
    assert found["problems"] == []
    assert len(found["advice"]) == 3
    assert "'house-brand', 'tea' together are 'tea'" in words(found)


def test_a_mapping_of_other_numbers_is_a_problem(folder: Path) -> None:
    (folder / "mapping.csv").write_text("item_id,catalogue_item_id\n1,milk\n")
    text = (folder / "shop.toml").read_text() + '\n[catalogue_mapping]\ntable = "mapping.csv"\n'
    (folder / "shop.toml").write_text(text)
    (problem,) = check(folder)["problems"]
    assert "covers none of the products" in problem


def test_a_mapping_that_is_refused_is_a_problem_and_the_rest_is_counted(folder: Path) -> None:
    (folder / "mapping.csv").write_text("item_id,catalogue_item_id\ntea,milk\ntea,rice\n")
    text = (folder / "shop.toml").read_text() + '\n[catalogue_mapping]\ntable = "mapping.csv"\n'
    (folder / "shop.toml").write_text(text)
    found = check(folder)
    assert found["interactions"] == 6
    assert found["catalogue"] is None
    assert "row 1: 'tea' is 'milk', row 2: 'tea' is 'rice'" in found["problems"][0]


def test_what_the_catalogue_retired_is_told(folder: Path) -> None:
    shutil.rmtree(folder / "catalogue")
    products = pd.DataFrame({"item_id": ["tea", "milk"], "category": "food"})
    retired = Catalogue.of(products.assign(retired=[True, False]))
    write_catalogue(retired, folder / "catalogue")
    found = check(folder)
    assert found["catalogue"]["retired"] == 1
    assert "1 product of the shop's the catalogue has retired" in words(found)


def test_a_long_read_tells_how_far_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.check.TOLD_SECONDS", 0.0)
    path, said = folder / "shop.toml", list[str]()
    check_shop(path, read_settings(path), PLAN, said.append)
    assert "reading the shop's records: 100%" in said
    frame = pd.read_csv(folder / "data" / "interactions.csv")
    with sqlite3.connect(folder / "shop.db") as database:
        frame.to_sql("interactions", database, index=False)
    database.close()
    setting(folder, 'data = "data"\n', "")
    tables = '\n[database]\nurl = "sqlite:///shop.db"\ninteractions = { table = "interactions" }\n'
    path.write_text(path.read_text() + tables)
    said.clear()
    check_shop(path, read_settings(path), PLAN, said.append)
    assert "reading the shop's records: 7 rows" in said


def test_the_command_line_prints_json_and_writes_nothing(folder: Path) -> None:
    before = digests(folder)
    command = ["check", str(folder / "shop.toml"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["interactions"] == 6
    write(folder, [])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert json.loads(done.stdout)["problems"] != []
    write(folder, ROWS)
    assert digests(folder) == before


def test_the_command_line_starts_a_shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["init", tmp_path / "the corner"]
    assert status_of(app, *command) == 0
    said = capsys.readouterr()
    assert "client check" in said.out
    # The operator enrols it by the name that its settings have, which may not be the folder's.
    assert "as the key of 'the-corner'" in said.out
    assert "called 'the-corner', not 'the corner'" in said.err
    assert status_of(app, *command) == 2
    assert "is there already" in capsys.readouterr().err
    for asked_for in (["a shop", "--merchant", "the corner"], ["corner"]):
        assert status_of(app, "init", tmp_path / asked_for[0], *asked_for[1:]) == 0
        assert capsys.readouterr().err == ""


def test_a_shop_learns_what_secure_sums_it_takes_part_in(folder: Path, tmp_path: Path) -> None:
    def told(plan: TrainingPlan = PLAN) -> tuple[dict[str, Any], str]:
        document = check(folder, plan)
        out = Console(width=200, record=True, file=io.StringIO())
        out.print(check_table(document))
        return document, out.export_text()

    shared = PLAN.model_copy(update={"trust": "federation", "honest_shops": 2})
    document, text = told()
    assert document["sums"] is None
    assert "runs whose trust is federation are refused" in text
    assert any("no [secure_sum] section" in problem for problem in told(shared)[0]["problems"])
    setting(folder, "\n# [secure_sum]\n", "\n[secure_sum]\n")
    document, _ = told()
    # It trains all the same in plans of the other trust.
    assert not any("roster" in problem for problem in document["problems"])
    assert any("accepted no roster" in sentence for sentence in document["advice"])
    assert any("accepted no roster" in problem for problem in told(shared)[0]["problems"])
    key = load_ssh_public_key((folder / "keys" / "node.pub").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    (tmp_path / "sent").write_text(roster_text([("corner", key)]))
    found = accept(folder / "shop.toml", read_settings(folder / "shop.toml"), tmp_path / "sent")
    document, text = told(shared)
    assert document["sums"] == {"shops": 1, "digest": found["digest"]}
    assert document["problems"] == []
    for words in (found["digest"], "shared-gaussian-histogram and shared-gaussian-step", "1/2 of"):
        assert words in text


def test_what_is_published_of_the_shops_shelves_is_held_against_its_records(folder: Path) -> None:
    assert check(folder)["stock"] is None
    catalogue = read_catalogue(folder / "catalogue")
    for merchants, products, unlisted in (
        (["corner", "corner"], 2, 1),
        (["other", "other"], None, 0),
    ):
        shutil.rmtree(folder / "catalogue")
        table = pd.DataFrame({"merchant_id": merchants, "item_id": ["tea", "rice"]})
        write_catalogue(catalogue, folder / "catalogue", table)
        document = check(folder)
        fingerprint = Stock.of(table, catalogue).fingerprint
        assert document["stock"] == {
            "fingerprint": fingerprint,
            "shops": 1,
            "products": products,
            "unlisted": unlisted,
        }
        # Milk was sold; what the catalogue does not hold is no matter of stock.
        told = [line for line in document["advice"] if "stock table" in line]
        assert len(told) == (1 if unlisted else 0)
        assert f"the shop stocks {'2 products' if products else 'every product'}" in words(document)
        assert fingerprint in words(document)
    shutil.rmtree(folder / "catalogue")
    table = pd.DataFrame({"merchant_id": ["corner"], "item_id": ["rice"]})
    write_catalogue(catalogue, folder / "catalogue", table)
    (problem,) = check(folder)["problems"]
    assert "train on nothing but noise" in problem  # Nothing that it sold is on its shelves.
    (folder / "catalogue" / "stock.parquet").write_text("rubbish")
    assert any("no stock table" in line for line in check(folder)["problems"])


@pytest.mark.parametrize("kept", ["ledger.sqlite", "ledger", ""])
def test_a_ledger_that_cannot_be_written_stops_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    # On a disk that was mounted read-only it was "Ready to train", and the run got a ledger-error.
    ledger = read_settings(folder / "shop.toml").ledger
    with Ledger.open(ledger):
        pass
    assert check(folder)["problems"] == []
    # Whoever runs the tests as root may write everywhere.
    monkeypatch.setattr("client.check.os.access", lambda path, _: bool(kept) and path.name != kept)
    (problem,) = check(folder)["problems"]
    assert problem.startswith(f"{ledger if kept == ledger.name else ledger.parent} cannot be")


def test_a_ledger_below_a_file_stops_training(folder: Path) -> None:
    setting(folder, '"ledger/ledger.sqlite"', '"catalogue/catalogue.json/ledger.sqlite"')
    (problem,) = check(folder)["problems"]
    assert "catalogue.json cannot be written" in problem
