"""A published version is whole, verified and stays; what may not be published is not."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cli_support import status_of
from common.artifact import ITEMS, MANIFEST, MODEL
from common.errors import ArtifactError, ConfigError, PrivacyError, RunError
from common.statement import statement
from registry_support import PLAN, PRIVACY, model, publisher
from server.__main__ import app
from server.registry import stores
from server.registry import versions as registry_module
from server.registry.records import objections, read_evaluation
from server.registry.stores import FolderStore, UrlStore, open_store, without_secrets
from server.registry.versions import Registry


@pytest.fixture(params=["folder", "file", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "registry")
    elif request.param == "file":
        yield f"file://{tmp_path}/registry"
    else:
        url = f"memory://{uuid.uuid4().hex}/registry"
        yield url
        fsspec.filesystem("memory").rm(url.rsplit("/", 1)[0], recursive=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry of three versions in a folder."""
    place = tmp_path / "registry"
    for number in (1, 2, 3):
        Registry(place).publish(model(tmp_path / f"m{number}", number))
    return place


def value_of(registry: Registry, version: int | None = None) -> float:
    return float(registry.read(version)[1].arrays["item_embedding"][0, 0])


def spoil(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_version_comes_back_as_it_was_published(where: str, tmp_path: Path) -> None:
    registry = Registry(where)
    source = model(tmp_path / "m", 2.5)
    registry.publish(source, evaluation={"ndcg@20": 0.25})
    shutil.rmtree(source)
    record, artifact = Registry(where).read()
    assert record.version == 1
    assert record.forced == ()
    assert record.evaluation == {"ndcg@20": 0.25}
    assert record.manifest.privacy == json.loads(json.dumps(PRIVACY))
    assert np.array_equal(artifact.arrays["item_embedding"], np.full((4, 2), 2.5))
    assert artifact.item_ids.tolist() == ["a", "b", "c", "d"]


def test_versions_count_up_and_the_newest_is_served(where: str, tmp_path: Path) -> None:
    registry = Registry(where)
    assert registry.versions() == []
    with pytest.raises(ConfigError, match="holds no models yet"):
        registry.read()
    for number in range(1, 12):
        record = registry.publish(model(tmp_path / str(number), number))
        assert record.version == number
    assert registry.versions() == list(range(1, 12))
    assert registry.served() == 11
    assert value_of(registry) == 11
    assert value_of(registry, 4) == 4
    with pytest.raises(ConfigError, match="no version 12"):
        registry.read(12)


def test_what_is_pinned_is_served_until_another_decision(where: str, tmp_path: Path) -> None:
    registry = Registry(where)
    for number in (1, 2, 3):
        registry.publish(model(tmp_path / str(number), number))
    registry.pin(1)
    assert value_of(registry) == 1
    registry.publish(model(tmp_path / "4", 4))
    assert registry.served() == 1
    registry.pin(None)
    assert registry.served() == 4
    assert registry.roll_back().version == 3
    assert registry.roll_back().version == 2
    assert value_of(Registry(where)) == 2
    pins = [Registry(where).decision(number) for number in Registry(where).pins()]
    told = [(pin.number, pin.act, pin.version, pin.before) for pin in pins]
    assert told == [
        (1, "pin", 1, 3),
        (2, "follow newest", None, 1),
        (3, "roll back", 3, 4),
        (4, "roll back", 2, 3),
    ]


def test_one_cannot_roll_back_beyond_the_first_or_pin_what_is_not_there(folder: Path) -> None:
    registry = Registry(folder)
    with pytest.raises(ConfigError, match="no version 9"):
        registry.pin(9)
    registry.pin(1)
    with pytest.raises(ConfigError, match="nothing was published before version 1"):
        registry.roll_back()
    assert registry.served() == 1
    assert len(registry.pins()) == 1


def test_two_who_decide_at_once_are_not_both_obeyed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Registry.read

    def meanwhile(self: Registry, version: int | None = None) -> Any:
        monkeypatch.setattr(Registry, "read", read)
        Registry(folder).pin(1)
        return read(self, version)

    monkeypatch.setattr(Registry, "read", meanwhile)
    with pytest.raises(RunError, match="decide again"):
        Registry(folder).roll_back()
    assert Registry(folder).served() == 1


@pytest.mark.parametrize("name", [MODEL, ITEMS, MANIFEST])
@pytest.mark.parametrize("at", [0, -3])
def test_a_changed_byte_is_refused_with_the_file_s_name(folder: Path, name: str, at: int) -> None:
    registry = Registry(folder)
    spoil(folder / "models" / registry.record(3).folder / name, at)
    with pytest.raises(ArtifactError, match=f"{name} is not as it was published"):
        registry.read()
    with pytest.raises(ArtifactError, match=name):
        registry.pin(3)
    assert registry.pins() == []
    assert registry.roll_back().version == 2
    assert value_of(registry) == 2


def test_who_follows_the_newest_is_told_if_it_is_damaged(folder: Path) -> None:
    registry = Registry(folder)
    registry.pin(1)
    spoil(folder / "models" / registry.record(3).folder / MODEL, 0)
    with pytest.raises(ArtifactError, match=f"{MODEL} is not as it was published"):
        registry.pin(None)
    assert registry.served() == 1
    assert len(registry.pins()) == 1


@pytest.mark.parametrize("name", [MODEL, ITEMS, MANIFEST])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / "models" / Registry(folder).record(3).folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Registry(folder).read()


def test_a_damaged_copy_is_refused_at_a_url_too(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    record = Registry(url).publish(model(tmp_path / "m"))
    files = fsspec.filesystem("memory")
    path = f"{url}/models/{record.folder}/{ITEMS}"
    files.pipe_file(path, files.cat_file(path) + b"x")
    with pytest.raises(ArtifactError, match=f"{ITEMS} is not as it was published"):
        Registry(url).read()
    files.rm(path)
    with pytest.raises(ArtifactError, match=f"{ITEMS} is missing"):
        Registry(url).read()
    files.rm(url, recursive=True)


def test_every_byte_of_a_record_and_of_a_pin_counts(folder: Path) -> None:
    Registry(folder).pin(2)
    record, pin = folder / "versions" / "2.json", folder / "pins" / "1.json"
    for path, step in ((record, 97), (pin, 1)):
        whole = path.read_bytes()
        for at in range(0, len(whole), step):
            spoil(path, at)
            with pytest.raises(ArtifactError, match=f"{path.name} is not as it was written"):
                Registry(folder).read()
            path.write_bytes(whole)
        # Of more brackets than Python reads, the list of all versions ended in a stack trace.
        path.write_bytes(b"[" * 10_000)
        with pytest.raises(ArtifactError, match="not as it was written"):
            Registry(folder).read()
        path.write_bytes(whole + b"\n")
        with pytest.raises(ArtifactError, match="not as it was written"):
            Registry(folder).read()
        path.write_bytes(whole)
    assert value_of(Registry(folder)) == 2


def test_a_new_decision_replaces_a_damaged_one(folder: Path) -> None:
    Registry(folder).pin(2)
    spoil(folder / "pins" / "1.json", 5)
    with pytest.raises(ArtifactError, match=r"1.json is not as it was written: pin a version anew"):
        Registry(folder).roll_back()
    assert Registry(folder).pin(1).before is None
    assert value_of(Registry(folder)) == 1


def test_what_somebody_keeps_beside_records_is_none_of_them(folder: Path) -> None:
    versions, pins = folder / "versions", folder / "pins"
    Registry(folder).pin(2)
    for name in ("03.json", "old-9.json", "9.json~", "9.json.bak", "0.json"):
        shutil.copy(versions / "1.json", versions / name)
        shutil.copy(pins / "1.json", pins / name)
    assert Registry(folder).versions() == [1, 2, 3]
    assert Registry(folder).pins() == [1]
    assert Registry(folder).served() == 2


def test_numbers_go_on_after_the_largest_though_one_before_it_was_removed(folder: Path) -> None:
    Registry(folder).pin(2)
    Registry(folder).pin(3)
    (folder / "versions" / "2.json").unlink()
    (folder / "pins" / "1.json").unlink()
    assert Registry(folder).publish(model(folder.parent / "m", 4)).version == 4
    assert Registry(folder).roll_back().number == 3
    assert Registry(folder).served() == 1


@pytest.mark.parametrize("name", ["versions", "pins"])
def test_a_registry_that_cannot_be_looked_into_is_not_taken_for_an_empty_one(
    folder: Path, name: str
) -> None:
    """Taken for empty, an older version would be served than the pinned one, or none published."""
    Registry(folder).pin(1)
    shutil.rmtree(folder / name)
    (folder / name).write_text("no folder")
    for asked in (Registry(folder).served, lambda: Registry(folder).pin(2)):
        with pytest.raises(ArtifactError, match=r"cannot read the registry .*: Not a directory"):
            asked()


@pytest.mark.parametrize("torn", [b"", b"[]", b"null", b"{}", b'{"content": 1}', bytes(64)])
def test_a_torn_record_is_refused(folder: Path, torn: bytes) -> None:
    (folder / "versions" / "3.json").write_bytes(torn)
    with pytest.raises(ArtifactError, match=r"3.json is not as it was written: serve another"):
        Registry(folder).read()


def test_a_record_under_another_number_is_refused(folder: Path) -> None:
    shutil.copy(folder / "versions" / "1.json", folder / "versions" / "4.json")
    with pytest.raises(ArtifactError, match=r"4.json is the record of version 1"):
        Registry(folder).read()


def test_a_decision_under_another_number_is_refused(folder: Path) -> None:
    """Copied over the last one, an older decision served a version that was taken back."""
    for version in (1, 2):
        Registry(folder).pin(version)
    shutil.copy(folder / "pins" / "1.json", folder / "pins" / "3.json")
    with pytest.raises(ArtifactError, match=r"3.json is decision 1: pin a version anew"):
        Registry(folder).read()
    assert Registry(folder).pin(2).number == 4
    assert Registry(folder).served() == 2


@pytest.mark.parametrize(
    ("privacy", "why"),
    [
        (None, "no privacy statement"),
        ({}, "no privacy statement"),
        (statement(PLAN.model_copy(update={"private": False})), "without differential privacy"),
        (statement(PLAN, noise="seeded"), "its noise was seeded"),
        (PRIVACY | {"private": "no"}, "without differential privacy"),
        (PRIVACY | {"epsilon": None}, "gives no bound"),
        (PRIVACY | {"epsilon": -1.0}, "gives no bound"),
        (PRIVACY | {"epsilon": float("inf")}, "gives no bound"),
        (PRIVACY | {"epsilon": "four"}, "gives no bound"),
        (PRIVACY | {"epsilon": True}, "gives no bound"),
        (PRIVACY | {"delta": None}, "gives no bound"),
        (PRIVACY | {"delta": 1.0}, "gives no bound"),
        (PRIVACY | {"delta": -0.1}, "gives no bound"),
        (PRIVACY | {"delta": False}, "gives no bound"),
        (PRIVACY | {"delta": float("nan")}, "gives no bound"),
        (PRIVACY | {"noise": "dice"}, "where the noise came from"),
        *(
            ({k: v for k, v in PRIVACY.items() if k != name}, f"lacks {name}")
            for name in ("unit", "trust", "accountant", "mechanisms", "not_covered")
        ),
    ],
)
def test_what_does_not_protect_needs_force_and_the_record_tells(
    tmp_path: Path, privacy: dict[str, Any] | None, why: str
) -> None:
    registry = Registry(tmp_path / "registry")
    source = model(tmp_path / "m", privacy=privacy)
    with pytest.raises(PrivacyError, match=rf"{why}.*--force"):
        registry.publish(source)
    assert not (tmp_path / "registry").exists()
    registry.publish(source, force=True)
    assert why in "; ".join(Registry(tmp_path / "registry").record(1).forced)


def test_force_without_need_leaves_no_mark(tmp_path: Path) -> None:
    assert objections(PRIVACY) == ()
    record = Registry(tmp_path / "registry").publish(model(tmp_path / "m"), force=True)
    assert record.forced == ()


def test_a_damaged_model_is_never_published(tmp_path: Path) -> None:
    source = model(tmp_path / "m")
    spoil(source / MODEL, -3)
    with pytest.raises(ArtifactError, match=f"{MODEL} is damaged"):
        Registry(tmp_path / "registry").publish(source, force=True)
    assert Registry(tmp_path / "registry").versions() == []


@pytest.mark.parametrize("name", [MODEL, MANIFEST])
def test_a_model_that_changes_meanwhile_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source, other = model(tmp_path / "m", 1), model(tmp_path / "other", 2)
    put = FolderStore.put

    def late(self: FolderStore, path: Path, target: str) -> None:
        shutil.copy(other / name, source / name)
        put(self, path, target)

    monkeypatch.setattr(FolderStore, "put", late)
    with pytest.raises(ArtifactError, match=name):
        Registry(tmp_path / "registry").publish(source)
    assert Registry(tmp_path / "registry").versions() == []
    assert list((tmp_path / "registry" / "models").iterdir()) == []


def test_a_new_registry_is_on_the_disk_with_its_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(stores, "sync", synced.append)
    place = tmp_path / "new" / "registry"
    FolderStore(place).create("versions/1.json", b"{}")
    # Each is a name in the one above it.
    assert {tmp_path, tmp_path / "new", place, place / "versions"} <= set(synced)


def test_every_file_is_on_the_disk_before_the_record_says_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a power cut at any moment a version is left whole, or none."""
    place, source = tmp_path / "registry", model(tmp_path / "m")
    done: list[str] = []
    fsync, link = os.fsync, Path.hardlink_to

    def synced(handle: int) -> None:
        fsync(handle)
        done.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    def linked(self: Path, target: Path) -> None:
        done.append(f"link {self.name}")
        link(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "hardlink_to", linked)
    record = Registry(place).publish(source)
    for name in (MODEL, ITEMS, MANIFEST):
        assert {record.folder, "models", "registry"} <= set(done[done.index(name) :])
        assert done.index(name) < done.index("link 1.json")
    before = done[done.index("link 1.json") - 1]
    assert before.startswith(".1.json.")
    assert done[done.index("link 1.json") + 1 :][:2] == ["versions", "registry"]
    assert [path.name for path in (place / "versions").iterdir()] == ["1.json"]


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = FolderStore.put

    def full(self: FolderStore, source: Path, name: str) -> None:
        if name.endswith(ITEMS):
            raise OSError(28, "No space left on device")
        put(self, source, name)

    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(FolderStore, "put", full)
    with pytest.raises(ArtifactError, match=r"cannot write the registry.*No space left"):
        Registry(folder).publish(model(folder.parent / "m"))
    assert sorted(folder.rglob("*")) == before


def test_an_error_after_the_record_stands_leaves_the_version_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = FolderStore.create

    def late(self: FolderStore, name: str, data: bytes) -> None:
        create(self, name, data)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "create", late)
        with pytest.raises(ArtifactError, match="cannot write the registry"):
            Registry(folder).publish(model(folder.parent / "m", 4))
    assert value_of(Registry(folder)) == 4


def test_publishers_in_several_processes_neither_lose_nor_mix(tmp_path: Path) -> None:
    place, go = tmp_path / "registry", tmp_path / "go"
    models = [model(tmp_path / f"m{value}", value) for value in range(12)]
    processes = [publisher(place, *models[i::3], go=go) for i in range(3)]
    go.touch()
    told: dict[int, float] = {}
    for i, process in enumerate(processes):
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        told |= dict(zip(map(int, out.split()), range(i, 12, 3), strict=True))
    registry = Registry(place)
    assert registry.versions() == list(range(1, 13))
    assert {number: value_of(registry, number) for number in registry.versions()} == told
    assert len(list((place / "models").iterdir())) == 12
    assert len(list((place / "versions").iterdir())) == 12


@pytest.mark.parametrize("stage", [MODEL, MANIFEST, "before the record", "before the link"])
def test_a_publisher_killed_midway_leaves_no_version(folder: Path, stage: str) -> None:
    process = publisher(folder, model(folder.parent / "killed", 9), stage=stage)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.communicate()
    registry = Registry(folder)
    assert len(list((folder / "models").iterdir())) == 4  # it had begun
    assert registry.versions() == [1, 2, 3]
    assert value_of(registry) == 3
    assert registry.publish(model(folder.parent / "next", 4)).version == 4
    assert value_of(registry) == 4


def test_a_publisher_killed_at_the_end_leaves_a_whole_version(folder: Path) -> None:
    process = publisher(folder, model(folder.parent / "killed", 9), stage="after the record")
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.communicate()
    assert Registry(folder).versions() == [1, 2, 3, 4]
    assert value_of(Registry(folder)) == 9


def test_old_remains_are_swept_and_young_ones_left(folder: Path) -> None:
    models = folder / "models"
    old, foreign = "20200101T000000Z-ab", "notes"
    # Another publisher is still at work on it, as far as anybody knows.
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    young = an_hour_ago.strftime("%Y%m%dT%H%M%SZ-ab")
    for name in (old, young, foreign):
        shutil.copytree(models / Registry(folder).record(1).folder, models / name)
    damaged = folder / "versions" / "2.json"
    whole = damaged.read_bytes()
    spoil(damaged, 10)
    Registry(folder).publish(model(folder.parent / "4", 4))
    assert (models / old).exists()  # whose it is cannot be known while a record is damaged
    damaged.write_bytes(whole)
    Registry(folder).publish(model(folder.parent / "5", 5))
    names = {path.name for path in models.iterdir()}
    recorded = {Registry(folder).record(n).folder for n in range(1, 6)}
    assert names == recorded | {young, foreign}


def test_published_versions_are_never_swept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_ABANDONED", -registry_module._ABANDONED)
    shutil.copytree(
        folder / "models" / Registry(folder).record(1).folder,
        folder / "models" / "20200101T000000Z-ab",
    )
    Registry(folder).publish(model(folder.parent / "4", 4))
    assert [value_of(Registry(folder), n) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert len(list((folder / "models").iterdir())) == 4


@pytest.mark.parametrize("make", ["folder", "memory"])
def test_a_name_is_taken_once(tmp_path: Path, make: str) -> None:
    store = open_store(str(tmp_path) if make == "folder" else f"memory://{uuid.uuid4().hex}")
    store.create("versions/1.json", b"first")
    with pytest.raises(FileExistsError):
        store.create("versions/1.json", b"second")
    assert store.read("versions/1.json") == b"first"
    assert store.names("versions") == ["1.json"]
    assert store.names("pins") == []


class Racing:
    """A service that ``says`` something to a write, and then holds another's or ours."""

    def __init__(self, holds: bytes, says: type[Exception] | None) -> None:
        self.holds, self.says = holds, says

    def makedirs(self, path: str, *, exist_ok: bool) -> None:
        pass

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        assert mode == "create"
        if self.says:
            raise self.says

    def cat_file(self, path: str) -> bytes:
        return self.holds


class Down:
    """A service that cannot be reached, with an error of its own kind."""

    def invalidate_cache(self) -> None:
        pass

    def ls(self, path: str, *, detail: bool) -> list[str]:
        raise RuntimeError("no credentials")

    def cat_file(self, path: str) -> bytes:
        raise RuntimeError("no credentials")


@pytest.mark.parametrize("says", [None, FileExistsError])
def test_what_is_read_back_tells_who_came_first(says: type[Exception] | None) -> None:
    UrlStore(Racing(b"ours", says), "r").create("versions/1.json", b"ours")
    with pytest.raises(FileExistsError):
        UrlStore(Racing(b"another's", says), "r").create("versions/1.json", b"ours")


def test_a_service_s_own_error_becomes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "open_store", lambda where: UrlStore(Down(), "r"))
    with pytest.raises(ArtifactError, match=r"cannot read the registry x: .*no credentials"):
        Registry("x").record(1)
    with pytest.raises(ArtifactError, match=r"cannot read the registry x: .*no credentials"):
        Registry("x").versions()


class Remembering:
    """A service whose client goes on with the list that it was given first, until it is told."""

    def __init__(self) -> None:
        self.there, self.known = ["r/versions/1.json"], list[str]()

    def invalidate_cache(self) -> None:
        self.known = []

    def ls(self, path: str, *, detail: bool) -> list[str]:
        self.known = self.known or list(self.there)
        return self.known


def test_a_version_that_another_published_is_seen_at_a_url() -> None:
    service = Remembering()
    store = UrlStore(service, "r/")
    assert store.names("versions") == ["1.json"]
    service.there.append("r/versions/2.json")
    assert store.names("versions") == ["1.json", "2.json"]


def test_a_folder_by_its_url_is_a_folder(tmp_path: Path) -> None:
    """It is written as one: synced, and records by a link that one process alone can make."""
    assert isinstance(open_store(f"file://{tmp_path}"), FolderStore)


def test_a_service_whose_package_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(where: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ConfigError, match="cannot use s3://bucket/x: Install s3fs"):
        open_store("s3://bucket/x")


def test_a_url_that_nothing_reads_is_refused_and_a_password_never_shown() -> None:
    with pytest.raises(ConfigError, match="cannot use nosuch://host/x") as caught:
        Registry("nosuch://me:secret@host/x")
    assert "secret" not in str(caught.value)
    assert without_secrets("ftp://me:secret@host/a@b") == "ftp://host/a@b"
    assert without_secrets("ftp://me:sec@ret@host/x") == "ftp://host/x"
    assert without_secrets("/a/b@c") == "/a/b@c"


def test_figures_of_many_customers_are_written_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {
        "customers": 123456.7,
        "customers_error": 987.65432,
        "least": -123456.7,
        "ndcg@20": 0.123456,
        "shops": 123456,
    }
    registry = Registry(tmp_path / "registry")
    registry.publish(model(tmp_path / "m"), evaluation={"together": figures})
    assert status_of(app, "registry", "show", tmp_path / "registry") == 0
    said = capsys.readouterr().out
    lines = ("customers: 123,457", "customers_error: 987.7", "least: -123,457", "ndcg@20: 0.1235")
    assert (
        "\n".join(["  together", *(f"    {each}" for each in lines), "    shops: 123456\n"]) in said
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "one JSON object"),
        ("{", "is not JSON"),
        ("[" * 10_000, "is not JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": [-1e999]}', "-1e999 is no JSON number"),
    ],
)
def test_an_evaluation_is_an_object_of_finite_numbers(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_evaluation(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_evaluation(tmp_path / "none.json")


def test_a_list_shows_the_unit_of_a_statement_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Taken for markup of the terminal's, it ended the list of all versions in a stack trace.
    odd = {**PRIVACY, "unit": "c[/b]"}
    Registry(str(tmp_path / "r")).publish(model(tmp_path / "m", privacy=odd), force=True)
    assert status_of(app, "registry", "list", tmp_path / "r") == 0
    assert "c[/b]" in " ".join(capsys.readouterr().out.split())
