import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from common import bundle
from common.bundle import FEDERATION, FlowerApp, build, contents, digest, stage
from common.errors import InputError, RunError


@pytest.fixture(scope="module")
def own() -> bytes:
    return build()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own.
def test_the_digest_is_that_of_what_flower_packs_when_a_run_is_submitted(
    own: bytes, tmp_path: Path
) -> None:
    # `flwr run FOLDER` sends these bytes, and their SHA-256 as the run's fab_hash.
    assert digest(own) == digest(build_fab_from_disk(stage(FEDERATION, tmp_path)))


def test_the_digest_depends_on_nothing_but_the_code(own: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "another name" / "Checkout.2"
    for package in FEDERATION.packages:
        shutil.copytree(FEDERATION.folder / package, copy / package)
    shutil.copy(FEDERATION.folder / "pyproject.toml", copy)
    for path in copy.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o755)
    (copy / "client" / "customers.csv").write_text("user_id\n4711\n")
    (copy / "client" / ".ipynb_checkpoints").mkdir()
    (copy / "client" / ".ipynb_checkpoints" / "app.py").write_text("old = 1\n")
    (copy / "secrets.toml").write_text("a = 1\n")
    (copy / ".gitignore").write_text("*.py\n")
    app = FlowerApp(copy, FEDERATION.packages)
    assert digest(build(app)) == digest(own)
    changed = (copy / "client" / "app.py").read_text() + "# one more line\n"
    (copy / "client" / "app.py").write_text(changed)
    assert digest(build(app)) != digest(own)


def test_the_contents_are_the_files_of_the_three_rooms(own: bytes) -> None:
    files = contents(own)
    assert files["client/app.py"] == (FEDERATION.folder / "client" / "app.py").read_bytes()
    assert {name.split("/")[0] for name in files} == {
        "client",
        "common",
        "server",
        "pyproject.toml",
    }


def test_what_flower_will_not_pack_is_named(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(RunError, match="cannot pack"):
        build(FlowerApp(tmp_path, ("room",)))


def test_packing_that_does_not_end_is_a_failure_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.setattr(bundle, "_SECONDS", 0.01)
    with pytest.raises(RunError, match=r"packing .* did not end within 0\.01 s"):
        build(FlowerApp(tmp_path, ("room",)))


def zipped(files: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def test_what_is_no_bundle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not a Flower app bundle"):
        contents(b"PK but no archive")
    monkeypatch.setattr(bundle, "_UNPACKED_MAX_BYTES", 2000)
    with pytest.raises(InputError, match="far more"):
        contents(zipped([("a.py", bytes(2001))]))


def test_a_bundle_that_was_damaged_on_its_way_is_refused_wherever_that_is() -> None:
    whole = zipped([("client/app.py", bytes(range(256)) * 4)])
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            contents(bytes(damaged))
        except InputError:
            refused += 1
    # What is not told by any check, such as of a date, changes no file.
    assert refused > len(whole) // 2


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_bundle_with_two_files_of_one_name_is_refused() -> None:
    with pytest.raises(InputError, match="two files of one name"):
        contents(zipped([("client/app.py", b"good"), ("client/app.py", b"bad")]))
