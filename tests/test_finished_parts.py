"""A long command's folder of finished parts belongs to one process and to one experiment."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from common.code import code_digest
from common.errors import ConfigError, DataError
from simulations.finished_parts import LOCK, finished_parts, tables_of
from simulations.sweep.store import sweep_folder


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out" / ".audit"
    with finished_parts(folder, "audit", {"seed": 0}) as parts:
        (parts / "one.json").write_text("{}")
    with finished_parts(folder, "audit", {"seed": 0}) as parts:
        assert (parts / "one.json").exists()
    with (
        pytest.raises(ConfigError, match="interrupted audit of another experiment"),
        finished_parts(folder, "audit", {"seed": 1}),
    ):
        pass


def test_parts_belong_to_the_tables_that_they_were_made_of(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "products.csv").write_text("item_id\na\n", encoding="utf-8")
    before = tables_of([str(tables)])
    (tables / "copy").mkdir()
    (tables / ".hidden").write_text("an editor's", encoding="utf-8")
    (tables / "products.csv").touch()
    assert tables_of([str(tables), str(tables)]) == before
    (tables / "products.csv").write_text("item_id\nb\n", encoding="utf-8")
    assert tables_of([str(tables)]) != before
    assert tables_of(["", str(tmp_path / "nowhere")]) != {}
    assert tables_of([""]) == {}


def an_attack(folder: Path) -> AbstractContextManager[object]:
    return finished_parts(folder, "attack", {})


def a_sweep(folder: Path) -> AbstractContextManager[object]:
    return sweep_folder({}, folder)


@pytest.mark.parametrize("stopped", [DataError("no such folder"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("opened", "part"), [(an_attack, "one.json"), (a_sweep, "settings/00-local.npz")]
)
def test_what_was_refused_before_anything_was_finished_leaves_nothing(
    opened: Callable[[Path], AbstractContextManager[object]],
    part: str,
    stopped: BaseException,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out"

    def work(name: str) -> None:
        with opened(folder):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
            raise stopped

    with pytest.raises(type(stopped)):
        work("work/point/server.toml")
    assert not folder.exists()
    with pytest.raises(type(stopped)):
        work(part)
    assert (folder / part).exists()


def test_what_was_refused_where_one_stands_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such folder"), a_sweep(Path()):
        raise DataError("no such folder")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("opened", [an_attack, a_sweep])
def test_parts_of_other_code_are_refused_whichever_package_changed(
    opened: Callable[[Path], AbstractContextManager[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("client", "common", "server", "simulations"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.setattr("common.__file__", str(tmp_path / "common" / "__init__.py"))
    for package in ("client", "common", "server", "simulations"):
        folder = tmp_path / f"out-{package}"
        code_digest.cache_clear()
        with opened(folder):
            pass
        (tmp_path / package / "rules.py").write_text("BOUND = 1\n", encoding="utf-8")
        code_digest.cache_clear()
        with (
            pytest.raises(ConfigError, match="of another experiment or code"),
            opened(folder),
        ):
            pass
    code_digest.cache_clear()


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".attack"
    with (
        finished_parts(folder, "attack", {}),
        pytest.raises(ConfigError, match="another attack writes into"),
        finished_parts(folder, "attack", {}),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / ".audit" / LOCK).mkdir(parents=True)
    for folder in (tmp_path / "file" / ".audit", tmp_path / "out" / ".audit"):
        with (
            pytest.raises(ConfigError, match="cannot write into"),
            finished_parts(folder, "audit", {}),
        ):
            pass
