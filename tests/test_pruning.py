"""Old models at a shop: the newest are kept, and never is one deleted that is needed."""

import fcntl
import os
import shutil
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from client.home import adapting, models
from client.home.adapted_state import save_adapted
from client.home.adapting import adapt
from client.home.host import HomeHost
from client.home.models import adapted_to, current_model, in_use, keep_model, prune
from client.home.recommending import Request, get_ready, recommend
from client.shop_folder import CURRENT
from common.artifact import ITEMS, MANIFEST, MODEL, load_model, save_model
from common.errors import ArtifactError
from common.protocol import RoundHeader, TrainingPlan
from home_support import HomeShop, purchases


@pytest.fixture
def shop(tmp_path: Path) -> HomeShop:
    shop = HomeShop(tmp_path)
    shop.sell(purchases())
    return shop


def arrive(shop: HomeShop, *names: str) -> None:
    """Let models come home, a second apart."""
    for name in names:
        folder = shop.model(name)
        arrived = sum(1 for _ in folder.parent.glob(f"*/{MANIFEST}"))
        os.utime(folder / MANIFEST, (arrived, arrived))


def whole(shop: HomeShop) -> list[str]:
    """Return the names of the models that are there with all their files."""
    found = (shop.folder / "models").iterdir()
    names = [path.name for path in found if not path.is_symlink() and (path / MODEL).exists()]
    for name in names:
        load_model(shop.folder / "models" / name)
    return sorted(names)


def ask(shop: HomeShop) -> dict[str, Any]:
    return recommend(shop.path, shop.settings, Request(user_id="u03"))


def test_the_newest_are_kept_and_of_others_the_manifest(shop: HomeShop) -> None:
    arrive(shop, "b", "a", "d", "c")
    models_folder = shop.folder / "models"
    prune(models_folder, 0)
    assert whole(shop) == ["a", "b", "c", "d"]
    prune(models_folder, 2)
    assert whole(shop) == ["c", "d"]
    for name in ("a", "b"):
        assert [path.name for path in (models_folder / name).iterdir()] == [MANIFEST]
    assert shop.settings.keep_models == 3
    assert ask(shop)["model"]["version"] == "c"


def test_the_current_and_the_adapted_ones_stay_however_old(shop: HomeShop) -> None:
    arrive(shop, "a", "b")
    adapt(shop.path, shop.settings)
    before = ask(shop)
    arrive(shop, "c", "d", "e")
    current = shop.folder / "models" / "current"
    current.unlink()
    current.symlink_to("a")
    prune(shop.folder / "models", 1)
    assert whole(shop) == ["a", "b", "e"]
    assert ask(shop)["recommendations"] == before["recommendations"]
    # Once the shop has adapted to another one, the one before may go.
    adapt(shop.path, shop.settings, shop.folder / "models" / "e")
    prune(shop.folder / "models", 1)
    assert whole(shop) == ["a", "e"]
    assert ask(shop)["model"]["version"] == "e"


def test_what_the_shop_adapted_to_elsewhere_is_left_alone(shop: HomeShop, tmp_path: Path) -> None:
    arrive(shop, "a", "b")
    (shop.folder / "models" / "a").rename(tmp_path / "elsewhere")
    adapt(shop.path, shop.settings, tmp_path / "elsewhere")
    arrive(shop, "c")
    prune(shop.folder / "models", 1)
    assert whole(shop) == ["c"]
    assert ask(shop)["model"]["version"] == "a"


def test_a_crash_while_adapting_leaves_the_model_of_either_adaptation(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = save_adapted

    def saved_and_cut(*arguments: Any) -> Any:
        real(*arguments)
        raise KeyboardInterrupt

    def cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    arrive(shop, "a")
    adapt(shop.path, shop.settings)
    expected = "a"
    for name, crash, after in (("b", cut, "a"), ("c", saved_and_cut, "c"), ("d", cut, "c")):
        arrive(shop, name)
        with monkeypatch.context() as patch:
            patch.setattr(adapting, "save_adapted", crash)
            with pytest.raises(KeyboardInterrupt):
                adapt(shop.path, shop.settings)
        expected = after
        arrive(shop, f"{name}-later")
        prune(shop.folder / "models", 1)
        assert {expected, f"{name}-later"} <= set(whole(shop))
        assert ask(shop)["model"] | {"fitted_at": ""} == {
            "version": expected,
            "adapted": True,
            "fitted_at": "",
        }
    adapt(shop.path, shop.settings)
    prune(shop.folder / "models", 1)
    assert whole(shop) == ["d-later"]
    assert expected == "c"


@pytest.mark.parametrize("step", [1, 2])
def test_a_crash_while_pruning_is_made_good(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    arrive(shop, "a", "b", "c")
    deleted: list[str] = []
    unlink = Path.unlink

    def cut(self: Path, missing_ok: bool = False) -> None:
        deleted.append(self.name)
        if len(deleted) == step:
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut)
        with pytest.raises(KeyboardInterrupt):
            prune(shop.folder / "models", 1)
    assert deleted == [MODEL, ITEMS][:step]
    assert "c" in whole(shop)
    assert ask(shop)["model"]["version"] == "c"
    prune(shop.folder / "models", 1)
    assert whole(shop) == ["c"]
    assert not list((shop.folder / "models").glob(f"[ab]/{ITEMS}"))


def test_nothing_is_pruned_while_a_model_is_read(shop: HomeShop) -> None:
    arrive(shop, "a", "b")
    with in_use(shop.folder / "models"):
        prune(shop.folder / "models", 1)
        assert whole(shop) == ["a", "b"]
    prune(shop.folder / "models", 1)
    assert whole(shop) == ["b"]


def test_adapting_holds_the_models_from_beginning_to_end(shop: HomeShop) -> None:
    arrive(shop, "a")
    held: list[bool] = []

    def told(_: str) -> None:
        descriptor = os.open(shop.folder / "models", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(False)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(descriptor)

    adapt(shop.path, shop.settings, None, told)
    assert held
    assert all(held)


def test_a_disk_that_refuses_stops_nothing(shop: HomeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive(shop, "a", "b")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    prune(shop.folder / "models", 1)
    assert current_model(shop.folder / "models").name == "b"


def test_a_pruned_model_says_so_little_that_nothing_takes_it(shop: HomeShop) -> None:
    arrive(shop, "a", "b")
    prune(shop.folder / "models", 1)
    with pytest.raises(ArtifactError, match="cannot be read"):
        adapt(shop.path, shop.settings, shop.folder / "models" / "a")
    assert not get_ready(shop.path, shop.settings).home


def test_the_service_keeps_its_numbers(shop: HomeShop) -> None:
    arrive(shop, "a", "b", "c")
    host = HomeHost(shop.path)
    host.refresh()
    assert host.current().version == 3
    prune(shop.folder / "models", 1)
    arrive(shop, "d")
    prune(shop.folder / "models", 1)
    host.refresh()
    assert host.current().version == 4
    assert [record.manifest.version for record in host.records()] == ["d", "c", "b", "a"]


def test_a_folder_that_is_not_there_is_no_matter(tmp_path: Path) -> None:
    prune(tmp_path / "models", 1)
    with in_use(tmp_path / "models"):
        pass
    assert not (tmp_path / "models").exists()
    assert CURRENT == "current"
    folder = tmp_path / "here"
    folder.mkdir()
    with adapted_to(folder, tmp_path / "elsewhere", None):
        pass
    assert not list(folder.iterdir())


def drafts(models_folder: Path) -> set[str]:
    """Return what begins with a dot and is no link that is meant to be there."""
    found = {path.name for path in models_folder.iterdir() if path.name.startswith(".")}
    return found - {models.ADAPTED, models._NEXT}


def leave_drafts(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Leave what a kill leaves, within :func:`save_model` and while a link is put in its place.

    No code runs after a kill: nothing is cleaned up.
    """
    kept = load_model(models_folder / "a")
    with monkeypatch.context() as patched:
        patched.setattr("common.artifact.sha256", _killed)
        patched.setattr("common.artifact.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            save_model(models_folder / "run-7.x", kept.arrays, kept.item_ids, kept.manifest)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", _killed)
        with pytest.raises(KeyboardInterrupt):
            models._point(models_folder, CURRENT, "a")
    return drafts(models_folder)


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_drafts_that_a_kill_left_behind_are_swept_when_the_next_model_comes_home(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(shop, "a", "b")
    ask(shop)
    models_folder = shop.folder / "models"
    left = leave_drafts(models_folder, monkeypatch)
    assert len(left) == 2
    (models_folder / ".mine.notadraf").write_text("a file of somebody's")
    with in_use(models_folder):
        # Somebody may be writing one just now.
        prune(models_folder, 3)
        assert left < drafts(models_folder)
    prune(models_folder, 0)
    assert drafts(models_folder) == {".mine.notadraf"}
    assert whole(shop) == ["a", "b"]
    assert current_model(models_folder).name == "b"
    # What is no draft of a model is not deleted, and stops nothing.
    strange = models_folder / ".run-7.abcdefgh"
    strange.mkdir()
    (strange / "notes").write_text("mine")
    prune(models_folder, 1)
    assert (strange / "notes").read_text() == "mine"
    assert whole(shop) == ["b"]


def test_a_model_is_not_swept_while_it_is_written(
    shop: HomeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process prunes just before the draft becomes the model."""
    # As of a model that came home and whose folder was deleted: it comes again.
    folder = shop.model("run-1")
    kept = load_model(folder)
    text = (folder / MANIFEST).read_text()
    shutil.rmtree(folder)
    plan = TrainingPlan.model_validate(kept.manifest.config["plan"])
    header = RoundHeader(
        run_id="run-1",
        server_round=plan.rounds,
        plan_json=plan.model_dump_json(),
        catalogue_fingerprint=shop.catalogue.fingerprint,
    )
    models_folder = shop.folder / "models"
    rename, seen = Path.rename, []

    def pruned_before(path: Path, to: Path) -> Path:
        seen.append(path.name)
        prune(models_folder, 1)
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", pruned_before)
    keep_model(models_folder, header, plan, kept.arrays, text, shop.catalogue)
    assert len(seen) == 1
    assert whole(shop) == ["run-1"]
    assert drafts(models_folder) == set()


def test_two_adaptations_at_once_end_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first to end took the link of the second away, which failed with the link's name alone;
    # and the model that is kept could have been the other one's.
    places = [tmp_path / "models" / name for name in ("a", "b")]
    for place in places:
        place.mkdir(parents=True)
    saved: list[str] = []
    others: list[Thread] = []

    def save(_folder: Path, _home: object, facts: Any) -> Any:
        saved.append(facts.model_folder.name)
        if len(saved) == 1:
            others.append(Thread(target=keep, args=(places[1],)))
            others[0].start()
            others[0].join(0.3)
        assert (tmp_path / "models" / ".adapted.next").resolve() == facts.model_folder
        return facts

    def keep(place: Path) -> Any:
        facts: Any = SimpleNamespace(model_folder=place)
        return adapting._kept(tmp_path / "adapted", tmp_path / "models", facts, facts)

    monkeypatch.setattr(adapting, "save_adapted", save)
    assert keep(places[0]).model_folder == places[0]
    others[0].join()
    assert saved == ["a", "b"]
    assert (tmp_path / "models" / ".adapted").resolve() == places[1]
