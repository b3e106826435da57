"""The catalogue's versions: published whole, comparable, and steady for what stays."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from cli_support import status_of
from client.joining.starting import start_shop
from client.settings import read_settings
from common.artifact import Manifest
from common.catalogue.stock import read_stock
from common.errors import ArtifactError, ConfigError, DataError
from common.features import Catalogue, ContentSpec, read_catalogue
from common.protocol import shop_key
from server.__main__ import app
from server.catalogue import versions
from server.catalogue.diff import Difference
from server.catalogue.publishing import Publishing, publish
from server.catalogue.tables import export_table, publish_table, show_table
from server.catalogue.versions import Catalogues
from server.catalogue.view import export
from server.operating.folder import make_federation

ROOT = Path(__file__).resolve().parent.parent
FIRST = "item_id,type,brand,price\ntea,food,x,1.5\nmilk,food,y,2\npan,tool,x,30\n"
SECOND = "type,item_id,price,brand\nfood,tea,1.5,x\nfood,milk,2,z\ntool,pot,40,x\n"


def folder_of(path: Path, text: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "products.csv").write_text(text)
    return path


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return what publishes a products.csv."""

    def publish_text(text: str, **how: Any) -> dict[str, Any]:
        folder = folder_of(tmp_path / "table", text)
        return publish(Catalogues(tmp_path / "catalogue"), folder, Publishing(**how))

    return publish_text


Put = Callable[..., dict[str, Any]]


def test_what_shops_stock_is_published_with_the_catalogue(put: Put, tmp_path: Path) -> None:
    table = tmp_path / "table" / "stock.csv"
    assert put(FIRST)["stock"] is None
    table.write_text("merchant_id,item_id\nnorth,tea\nnorth,milk\nsouth,pan\n")
    second = put(FIRST)
    catalogues = Catalogues(tmp_path / "catalogue")
    catalogue = catalogues.read()
    stock = read_stock(catalogues.current(), catalogue)
    assert stock is not None
    assert (second["version"], second["new"], second["stock"]) == (2, True, stock.fingerprint)
    sold = catalogue.item_ids[stock.rows[shop_key("north")]].tolist()
    assert sold == ["milk", "tea"]
    assert second["fingerprint"] == catalogues.version(1).fingerprint
    # The same again, in another order, is no new version; another shelf is.
    table.write_text("item_id,merchant_id\npan,south\nmilk,north\ntea,north\ntea,north\n")
    assert not put(FIRST)["new"]
    table.write_text("merchant_id,item_id\nnorth,tea\n")
    assert put(FIRST)["version"] == 3
    table.write_text("merchant_id,item_id\nnorth,cup\n")
    with pytest.raises(DataError, match=r"stock\.csv.*'cup'"):
        put(FIRST)
    # What is there is what was published.
    shutil.copy(catalogues.path(2) / "stock.parquet", catalogues.path(3) / "stock.parquet")
    with pytest.raises(ArtifactError, match="another stock table"):
        catalogues.read(3)
    (catalogues.path(3) / "stock.parquet").write_text("rubbish")
    with pytest.raises(ArtifactError, match="no stock table"):
        catalogues.read(3)


def test_versions_are_found_by_number_and_fingerprint(put: Put, tmp_path: Path) -> None:
    catalogues = Catalogues(tmp_path / "catalogue")
    with pytest.raises(ConfigError, match="publish one"):
        catalogues.current()
    first, second = put(FIRST), put(SECOND)
    assert [v.n for v in catalogues.versions()] == [1, 2]
    assert catalogues.current() == tmp_path / "catalogue" / "2"
    assert catalogues.path(1) == catalogues.path(first["fingerprint"])
    assert catalogues.path("2") == catalogues.path(second["fingerprint"][:8])
    assert read_catalogue(catalogues.current()).fingerprint == second["fingerprint"]
    assert catalogues.version().parent == 1
    for wrong in ("3", "0", "", second["fingerprint"][:7], "f" * 64, "../1"):
        with pytest.raises(ConfigError, match="no version"):
            catalogues.path(wrong)


def test_of_versions_of_one_fingerprint_the_newest_is_found(put: Put, tmp_path: Path) -> None:
    """A run asks by fingerprint: it must be told of what shops stock now, not of what they did."""
    first = put(FIRST)["fingerprint"]
    table = tmp_path / "table" / "stock.csv"
    for row in ("north,tea", "north,milk"):
        table.write_text(f"merchant_id,item_id\n{row}\n")
        assert put(FIRST)["fingerprint"] == first
    assert Catalogues(tmp_path / "catalogue").version(first).n == 3
    assert Catalogues(tmp_path / "catalogue").version(first[:8]).n == 3


def test_a_version_is_on_the_disk_before_it_is_in_its_place(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a power cut at any moment a version is left whole, or none."""
    done: list[str] = []
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(versions, "sync", lambda path: done.append(path.name))
    monkeypatch.setattr(Path, "rename", renamed)
    folder = folder_of(tmp_path / "table", FIRST)
    (folder / "stock.csv").write_text("merchant_id,item_id\nnorth,tea\n")
    put(FIRST)
    files = {path.name for path in (tmp_path / "catalogue" / "1").iterdir()}
    assert files == {"products.parquet", "catalogue.json", "stock.parquet", "version.json"}
    place = done.index("rename 1")
    assert {*files, "1"} <= set(done[:place])
    assert done[place + 1 :] == ["catalogue"]


def test_a_full_disk_leaves_no_version(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(FIRST)

    def full(path: Path) -> None:
        if path.name == "version.json":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(versions, "sync", full)
        with pytest.raises(ConfigError, match=r"cannot write to .*: No space left on device"):
            put(SECOND)
    assert sorted(path.name for path in (tmp_path / "catalogue").iterdir()) == [".lock", "1"]
    assert put(SECOND)["version"] == 2


def test_a_product_that_is_gone_is_retired_and_comes_back(put: Put, tmp_path: Path) -> None:
    put(FIRST)
    found = put(SECOND)
    assert (found["products"], found["offered"]) == (4, 3)
    changes = found["changes"]
    assert changes["counts"] == {
        "added": 1,
        "retired": 1,
        "returned": 0,
        "dropped": 0,
        "changed": 1,
    }
    assert (changes["added"], changes["retired"]) == (["pot"], ["pan"])
    assert changes["changed"]["brand"]["examples"] == [
        {"item_id": "milk", "before": "y", "after": "z"}
    ]
    catalogue = Catalogues(tmp_path / "catalogue").read()
    assert catalogue.item_ids[~catalogue.offered].tolist() == ["pan"]
    # It keeps its content: what customers did with it goes on to say what they like.
    assert catalogue.content[catalogue.rows(["pan"])].nnz
    assert put(FIRST)["changes"]["returned"] == ["pan"]
    dropped = put(FIRST, drop_retired=True)
    assert (dropped["products"], dropped["changes"]["dropped"]) == (3, ["pot"])


def test_the_same_table_is_no_new_version(put: Put, tmp_path: Path) -> None:
    first = put(FIRST)
    lines = FIRST.splitlines()
    again = put("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    assert (again["new"], again["version"]) == (False, first["version"])
    assert [v.n for v in Catalogues(tmp_path / "catalogue").versions()] == [1]


def test_a_dry_run_writes_nothing(put: Put, tmp_path: Path) -> None:
    assert put(FIRST, dry_run=True)["version"] == 1
    assert not (tmp_path / "catalogue").exists()
    put(FIRST)
    before = sorted(p.name for p in (tmp_path / "catalogue").iterdir())
    assert put(SECOND, dry_run=True)["changes"]["counts"]["added"] == 1
    assert sorted(p.name for p in (tmp_path / "catalogue").iterdir()) == before


def test_numbers_stay_in_their_bins(put: Put, tmp_path: Path) -> None:
    prices = np.random.default_rng(0).lognormal(size=60).round(2)
    rows = [f"p{k:02},t{k % 3},{price}" for k, price in enumerate(prices)]
    put("item_id,type,price\n" + "\n".join(rows) + "\n")
    dear = [f"q{k:02},t1,{1000 + k}" for k in range(60)]
    put("item_id,type,price\n" + "\n".join([*rows, *dear]) + "\n")
    old, new = (Catalogues(tmp_path / "catalogue").read(n) for n in (1, 2))
    assert new.spec == old.spec
    kept = new.rows(old.item_ids)
    assert (old.content != new.content[kept]).nnz == 0
    moved = put("item_id,type,price\n" + "\n".join([*rows, *dear]) + "\n", reread=True)
    assert moved["changes"]["content"]["reread"] == ["price"]


def test_content_is_as_before_until_it_is_named(put: Put) -> None:
    assert put(FIRST, content=["type", "type*brand"])["features"] == ["type", "type*brand"]
    found = put(SECOND)
    assert (found["features"], found["unused"]) == (["type", "type*brand"], ["price"])
    other = put(SECOND, content=["brand"])
    assert other["changes"]["content"]["removed"] == ["type", "type*brand"]
    with pytest.raises(ConfigError, match=r"'type' as in the version before|'flavour'"):
        put(SECOND, content=["flavour"])
    # Whoever named it need not be told to rename a column back.
    with pytest.raises(ConfigError, match=r"needs a column 'brnd': did you mean 'brand'\?$"):
        put(SECOND, content=["brnd"])
    with pytest.raises(ConfigError, match="content names 'type' twice"):
        put(SECOND, content=["type", "brand", "type"])


def test_a_renamed_column_is_refused_with_what_it_was(put: Put) -> None:
    put(FIRST, content=["brand"])
    with pytest.raises(ConfigError, match="content 'brand' as in the version before needs"):
        put(SECOND.replace("brand", "brands"))
    assert put(SECOND.replace("brand", "brands"), content=["brands"])["new"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FIRST + "tea,food,x,1\n", "'item_id' is there already in row 4: 'tea'"),
        (FIRST + ",food,x,1\n", "'item_id' is empty in row 4"),
        (FIRST + "egg,food,x,cheap\n", "'price' is not a number in row 4: 'cheap'"),
        (FIRST + "egg,food,x,-1\n", "'price' is a negative price in row 4"),
        ("item_id,type\n", "no products"),
        ("id,type\n1,a\n", "'item_id' is missing"),
        ("item_id,type,retired\n1,a,perhaps\n", "'retired' says neither .* row 1: 'perhaps'"),
        ("item_id,type,retired\n1,a,yes\n", "every product is retired"),
    ],
)
def test_a_table_that_breaks_the_contract_is_refused(put: Put, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        put(text)
    # That is a setting of shops and of experiments: an operator has no place to say it.
    assert "bad_rows" not in str(error.value)


def test_text_among_numbers_of_before_is_refused(put: Put) -> None:
    rows = [f"p{k:02},{k}" for k in range(40)]
    put("item_id,size\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"'size' holds numbers .* row 41: 'large'"):
        put("item_id,size\n" + "\n".join([*rows, "q,large"]) + "\n")


def test_a_table_of_other_numbers_is_refused_unless_it_is_meant(put: Put) -> None:
    put(FIRST)
    other = "item_id,type,brand,price\n1,food,x,1\n2,food,y,2\n"
    with pytest.raises(ConfigError, match="only 0 of the 3 products offered so far"):
        put(other)
    assert put(other, force=True)["changes"]["counts"]["retired"] == 3


def test_a_table_that_marks_most_products_retired_is_refused_unless_it_is_meant(put: Put) -> None:
    """Turned round, the column retired all that was sold and offered again all that was not."""
    head = "item_id,retired\n"
    put(head + "a,no\nb,no\nc,no\nd,yes\n")
    turned = head + "a,yes\nb,yes\nc,yes\nd,no\n"
    with pytest.raises(ConfigError, match=r"only 0 of the 3 .* 3 would be retired: .*wrong way"):
        put(turned)
    # Some are missing and some marked: neither is most of them by itself.
    with pytest.raises(ConfigError, match=r"only 1 of the 3 .* 2 would be retired or dropped: "):
        put(head + "a,no\nb,yes\n", drop_retired=True)
    assert put(head + "a,no\nb,no\nc,yes\n")["changes"]["counts"]["retired"] == 1
    # Of two that are offered since, one is half: that many may go.
    assert put(head + "a,no\n")["changes"]["counts"]["retired"] == 1
    assert put(turned, force=True)["changes"]["counts"]["retired"] == 1


def test_numbers_and_text_of_two_versions_become_text(put: Put, tmp_path: Path) -> None:
    put("item_id,pack\na,1L\nb,2L\nc,x\n")
    put("item_id,pack\na,1\nb,2\n")
    products = Catalogues(tmp_path / "catalogue").read().products
    assert products["pack"].tolist() == ["1", "2", "x"]


def test_one_product_without_content_is_a_catalogue(put: Put, tmp_path: Path) -> None:
    put("item_id\nonly\n")
    assert Catalogues(tmp_path / "catalogue").read().size == 1


def test_a_file_that_is_not_utf8_is_named(put: Put, tmp_path: Path) -> None:
    put(FIRST)
    folder = tmp_path / "table"
    (folder / "products.csv").write_bytes("item_id,type\nté,food\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"products\.csv .*(UTF-8|utf-8)"):
        publish(Catalogues(tmp_path / "catalogue"), folder)


def test_a_damaged_version_is_refused(put: Put, tmp_path: Path) -> None:
    put(FIRST)
    put(SECOND)
    catalogues = Catalogues(tmp_path / "catalogue")
    for damaged in ("{", "[" * 10_000, "[1]"):
        (tmp_path / "catalogue" / "2" / "version.json").write_text(damaged)
        with pytest.raises(ArtifactError, match=r"version\.json cannot be read"):
            catalogues.current()
    one, two = (tmp_path / "catalogue" / n / "version.json" for n in "12")
    two.write_text(one.read_text())
    with pytest.raises(ArtifactError, match="is the record of version 1"):
        catalogues.version(2)
    two.write_text(one.read_text().replace('"n": 1', '"n": 2'))
    with pytest.raises(ArtifactError, match="another catalogue"):
        catalogues.read(2)


def test_a_damaged_old_record_stands_in_no_newer_version_s_way(put: Put, tmp_path: Path) -> None:
    put(FIRST)
    two = put(SECOND)["fingerprint"]
    catalogues = Catalogues(tmp_path / "catalogue")
    (tmp_path / "catalogue" / "1" / "version.json").write_text("{")
    # As a run asks for the catalogue that it trains on.
    assert catalogues.path(two) == tmp_path / "catalogue" / "2"
    assert put(FIRST)["version"] == 3
    assert (catalogues.version(two).n, catalogues.version().n) == (2, 3)
    for unclear in (two[:12], "0" * 64):
        with pytest.raises(ArtifactError, match=r"1/version\.json cannot be read"):
            catalogues.version(unclear)


def test_a_folder_that_cannot_be_written_is_named(put: Put, tmp_path: Path) -> None:
    (tmp_path / "catalogue").write_text("a file")
    with pytest.raises(ConfigError, match="cannot write to"):
        put(FIRST)


def tables(names: st.SearchStrategy[set[int]]) -> st.SearchStrategy[Catalogue]:
    """Return catalogues whose products have one of two types."""

    def catalogue(rows: dict[int, tuple[str, bool]]) -> Catalogue:
        frame = pd.DataFrame(
            [(f"i{k:02}", kind, gone) for k, (kind, gone) in rows.items()],
            columns=["item_id", "type", "retired"],
        )
        return Catalogue.of(frame, ContentSpec(features=("type",)))

    values = st.tuples(st.sampled_from("ab"), st.booleans())
    return st.dictionaries(st.integers(0, 30), values, min_size=1).map(catalogue)


@given(tables(st.just(set())), tables(st.just(set())))
@settings(max_examples=60, deadline=None)
def test_a_difference_read_backwards_is_its_opposite(old: Catalogue, new: Catalogue) -> None:
    there, back = Difference.of(old, new), Difference.of(new, old)
    assert there.added.tolist() == back.dropped.tolist()
    assert there.retired.tolist() == back.returned.tolist()
    assert there.changed_products.tolist() == back.changed_products.tolist()
    assert new.size - old.size == len(there.added) - len(there.dropped)
    kept = set(old.item_ids) & set(new.item_ids)
    for name in ("retired", "returned", "changed_products"):
        assert set(getattr(there, name)) <= kept
    assert not any(Difference.of(old, old).counts().values())


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    folder = tmp_path / "federation"
    make_federation(folder, "test", "localhost:8443", superlink_port=9092)
    return folder


def command(federation: Path, *words: str) -> dict[str, Any]:
    """Run ``server catalogue`` and return its JSON."""
    done = CliRunner().invoke(app, ["catalogue", *words, "--federation", str(federation), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_command_line_publishes_shows_compares_and_exports(
    federation: Path, tmp_path: Path
) -> None:
    table = folder_of(tmp_path / "table", FIRST)
    first = command(federation, "publish", str(table), "--content", "type, type*brand")
    assert first["features"] == ["type", "type*brand"]
    second = command(federation, "publish", str(folder_of(table, SECOND)))
    shown = command(federation, "show")
    assert (shown["version"], shown["fingerprint"]) == (2, second["fingerprint"])
    assert [c["name"] for c in shown["columns"] if c["used"]] == ["type", "brand"]
    assert [v["version"] for v in shown["versions"]] == [1, 2]
    assert shown["current"]
    assert not command(federation, "show", "1")["current"]
    difference = command(federation, "diff", "1", "2", "--examples", "0")
    assert difference["counts"]["added"] == 1
    assert difference["added"] == []
    out = tmp_path / "out"
    command(federation, "export", str(out), "1")
    assert read_catalogue(out).fingerprint == first["fingerprint"]
    archive = tmp_path / "out.zip"
    command(federation, "export", str(archive))
    # As the hint says: unzipped in a new shop's folder, it is where its settings look for it.
    start_shop(tmp_path / "corner")
    said = export_table({**command(federation, "show"), "exported": str(archive), "version": 2})
    assert "unzip catalogue/ of it, and nothing else" in "".join(map(str, said.renderables))
    unzip = [sys.executable, "-m", "zipfile", "-e", str(archive), str(tmp_path / "corner")]
    subprocess.run(unzip, check=True)
    place = read_settings(tmp_path / "corner" / "shop.toml").catalogue
    assert read_catalogue(place).fingerprint == second["fingerprint"]


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
def test_an_archive_can_bring_a_shop_nothing_but_the_catalogue(tmp_path: Path) -> None:
    # Unzipped whole, an operator's archive could approve the operator's own code, which would then
    # run on the shop's data without anybody having looked.
    words = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\$ (unzip .*?)(?: +#.*)?$", words, re.MULTILINE)
    start_shop(tmp_path / "corner")
    with zipfile.ZipFile(tmp_path / "catalogue.zip", "w") as archive:
        for name in ("approved.jsonl", "catalogue/products.parquet", "roster", "data/x.csv"):
            archive.writestr(name, "")
    before = {path for path in (tmp_path / "corner").rglob("*") if path.is_file()}
    subprocess.run(shlex.split(line), cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    after = {path for path in (tmp_path / "corner").rglob("*") if path.is_file()}
    assert after - before == {tmp_path / "corner" / "catalogue" / "products.parquet"}


def test_show_names_the_models_and_runs_of_a_version(federation: Path, tmp_path: Path) -> None:
    from common.artifact import save_model
    from common.protocol import TrainingPlan
    from server.registry.versions import Registry
    from server.training.records import RunRecord, Runs

    first = command(federation, "publish", str(folder_of(tmp_path / "table", FIRST)))
    manifest = Manifest(
        version="m",
        server_round=1,
        data_columns=(),
        config={},
        code_digest="",
        privacy=None,
        catalogue_fingerprint=first["fingerprint"],
    )
    ids = np.array(["milk", "pan", "tea"], dtype=object)
    save_model(tmp_path / "model", {"a": np.zeros(3, np.float32)}, ids, manifest)
    Registry(federation / "registry").publish(tmp_path / "model", force=True)
    Runs(federation / "runs").save(
        RunRecord(
            name="a-run",
            created_at="2024-01-01T00:00:00+00:00",
            config={"plan": TrainingPlan().model_dump_json()},
            bundle="0" * 64,
            catalogue=first["fingerprint"],
        )
    )
    (federation / "runs" / "broken").mkdir()
    (federation / "runs" / "broken" / "run.json").write_text("{")
    shown = command(federation, "show")
    assert shown["models"] == [{"version": 1, "model": "m", "served": True}]
    assert shown["runs"] == ["a-run"]
    assert len(shown["unreadable"]) == 1
    Registry(federation / "registry").pin(1)
    (federation / "registry" / "pins" / "1.json").write_text("{}")
    shown = command(federation, "show")
    assert shown["models"] == [{"version": 1, "model": "m", "served": False}]
    assert len(shown["unreadable"]) == 2


def test_a_damaged_record_of_another_version_hides_no_version(
    federation: Path, tmp_path: Path
) -> None:
    command(federation, "publish", str(folder_of(tmp_path / "first", FIRST)))
    command(federation, "publish", str(folder_of(tmp_path / "second", SECOND)))
    record = federation / "catalogue" / "1" / "version.json"
    record.write_text("{")
    shown = command(federation, "show")
    assert (shown["version"], shown["current"]) == (2, True)
    assert [one["version"] for one in shown["versions"]] == [2]
    assert len(shown["unreadable"]) == 1
    assert shown["unreadable"][0].startswith(f"{record} cannot be read: ")


def test_times_are_said_to_be_utc(federation: Path, tmp_path: Path) -> None:
    command(federation, "publish", str(folder_of(tmp_path / "table", FIRST)))
    console = Console(width=200)
    with console.capture() as said:
        console.print(show_table(command(federation, "show")))
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.search(rf"Version 1 \(the current version\), published {when} UTC\n", said.get())
    assert re.search(rf"version  published \(UTC\) .*\n +1  {when} ", said.get())


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_neither_what_is_damaged_nor_over_what_is_there_is_exported(
    federation: Path, tmp_path: Path, name: str
) -> None:
    command(federation, "publish", str(folder_of(tmp_path / "table", FIRST)))
    catalogues, out = Catalogues(federation / "catalogue"), tmp_path / name
    out.write_text("a shop's own")
    with pytest.raises(ConfigError, match="is there already and stays as it is"):
        export(catalogues, None, out)
    assert out.read_text() == "a shop's own"
    out.unlink()
    products = federation / "catalogue" / "1" / "products.parquet"
    products.write_bytes(products.read_bytes()[:-9])
    with pytest.raises(ArtifactError):
        export(catalogues, None, out)
    assert not out.exists()


def test_what_changed_is_told_with_its_examples(put: Put) -> None:
    def said(document: dict[str, Any]) -> str:
        console = Console(width=200)
        with console.capture() as found:
            console.print(publish_table(document))
        return found.get()

    first = said(put(FIRST))
    assert "Published version 1 in " in first
    assert "3 products\n" in first
    assert "described by type, brand, price\n" in first
    assert "every shop needs this version" in first
    assert "Nothing changed: this is version 1 already" in said(put(FIRST))
    told = said(put(SECOND, dry_run=True))
    assert "Would be version 2; nothing was written" in told
    assert "every shop needs this version" not in told
    assert "4 products, 1 of them retired\n" in told
    for line in (
        "added                1   'pot'",
        "retired              1   'pan'",
        "changed              1",
        "  brand: 1 product",
        "    'milk': 'y' -> 'z'",
    ):
        assert f"{line}\n" in told
    more = SECOND + "".join(f"food,egg{k},1,x\n" for k in range(6))
    told = said(put(more, content=["type"]))
    assert "added                7   'egg0', 'egg1', 'egg2', 'egg3', 'egg4', ...\n" in told
    assert "content removed: brand, price\n" in told
    assert "all content scores change" in told
    assert "columns that describe nothing: " in told


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("1\n2\n", "1.0\n2.0\n", []),
        ("1\n\n", "1\n2\n", ["b"]),
        ("1\n\n", "1\n\n", []),
        ("1\n2\n", "1\nx\n", ["b"]),
        ("x\n\n", "x\ny\n", ["b"]),
    ],
)
def test_what_differs_is_a_value_and_not_how_it_is_written(
    before: str, after: str, changed: list[str]
) -> None:
    def catalogue(text: str) -> Catalogue:
        values = pd.read_csv(StringIO("size\n" + text), skip_blank_lines=False)
        return Catalogue.of(values.assign(item_id=["a", "b"]), ContentSpec())

    found = Difference.of(catalogue(before), catalogue(after))
    assert found.changed_products.tolist() == changed
    assert found.counts()["changed"] == len(changed)
    examples = found.document()["changed"].get("size", {}).get("examples", [])
    # What was not known is null, no empty text.
    assert all(None in (each["before"], each["after"]) for each in examples if "\n\n" in before)


def test_files_without_a_time_are_exported_too(federation: Path, tmp_path: Path) -> None:
    command(federation, "publish", str(folder_of(tmp_path / "table", FIRST)))
    for path in (federation / "catalogue" / "1").iterdir():
        os.utime(path, (0, 0))
    command(federation, "export", str(tmp_path / "out.zip"))
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        assert "catalogue/version.json" in archive.namelist()


def test_the_command_line_says_what_is_wrong(
    federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--federation", str(federation)]
    for words, message in (
        (["show", *where], "holds no catalogue yet"),
        (["publish", str(tmp_path / "nothing"), *where], "is no folder"),
        (["show", "--federation", str(tmp_path)], "no federation's folder"),
    ):
        assert status_of(app, "catalogue", *words) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert message in said.err


_PUBLISH = """
import os, sys
from pathlib import Path
from server.catalogue.publishing import publish
from server.catalogue.versions import Catalogues
import server.catalogue.versions as module
if len(sys.argv) > 3:
    def dies(catalogue, folder, stock):
        folder.mkdir(parents=True)
        (folder / "products.parquet").write_text("half")
        print("half", flush=True)
        sys.stdin.read()
    module.write_catalogue = dies
publish(Catalogues(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def start(root: Path, table: Path, *more: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", _PUBLISH, str(root), str(table), *more]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.e2e
def test_two_publishers_at_once_make_two_versions(tmp_path: Path) -> None:
    root = tmp_path / "catalogue"
    left = folder_of(tmp_path / "left", FIRST)
    right = folder_of(tmp_path / "right", FIRST + "egg,food,x,1\n")
    running = [start(root, table) for table in (left, right)]
    try:
        assert [process.wait(timeout=60) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    versions = Catalogues(root).versions()
    assert [(v.n, v.parent) for v in versions] == [(1, None), (2, 1)]
    # Whoever came second built on the first: no product is lost, whatever the order.
    assert Catalogues(root).read().item_ids.tolist() == ["egg", "milk", "pan", "tea"]


@pytest.mark.e2e
def test_a_publisher_that_is_killed_leaves_only_whole_versions(tmp_path: Path) -> None:
    root, table = tmp_path / "catalogue", folder_of(tmp_path / "table", FIRST)
    process = start(root, table, "dies")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert Catalogues(root).versions() == []
    assert [p.name for p in root.iterdir() if p.name != ".lock"] != []
    assert publish(Catalogues(root), table)["version"] == 1
    assert sorted(p.name for p in root.iterdir()) == [".lock", "1"]
