"""The finished model: kept by the server with its statement, and brought home to every shop."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from client.home.models import current_model, keep_model
from client.privacy.ledger import Ledger
from client.rounds.participation import answer
from client.rounds.replying import Node
from client.shop_folder import CURRENT
from common.artifact import ITEMS, MANIFEST, MODEL, Manifest, load_model, save_model
from common.code import code_digest
from common.errors import ArtifactError, ConfigError, ProtocolError
from common.features import Catalogue, read_catalogue
from common.model import initial_state, state_spec
from common.protocol import (
    HOME,
    MAX_MANIFEST_CHARS,
    NO_FINGERPRINT,
    POPULARITY,
    Arrays,
    ModelPlan,
    ReplyHeader,
    RoundHeader,
    TrainingPlan,
    check_run_name,
    shop_key,
)
from federation_support import same, write_federation
from server.catalogue.versions import Catalogues
from server.checkpoints import read_checkpoint
from server.registry.records import objections
from server.training.records import RunRecord, Runs
from simulations.engine.flower import Outcome
from simulations.engine.in_process import run_apps

PLAN = TrainingPlan(
    rounds=1,
    noise_multiplier=4.0,
    popularity_noise_multiplier=2.0,
    model=ModelPlan(dimension=4),
)
SHOPS = 4


class Deployed:
    """A server that keeps its runs and catalogues apart, and four shops."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder, folder / "server"
        self.catalogue = write_federation(folder)
        with (versions := Catalogues(self.server / "catalogue")).publishing():
            versions.add(versions.next(self.catalogue, {}), self.catalogue)
        text = 'runs = "runs"\ncatalogues = "catalogue"\n'
        (self.server / "server.toml").write_text(text, encoding="utf-8")

    def run(
        self, name: str, plan: TrainingPlan = PLAN, **config: bool | int | float | str
    ) -> Outcome:
        values = {key.replace("_", "-"): value for key, value in config.items()}
        return run_apps(
            shops=SHOPS,
            run_config={
                "plan": plan.model_dump_json(),
                "run-name": name,
                "min-shops": SHOPS,
                **values,
            },
            environment={
                "FEDTAIL_SHOPS": str(self.folder / "shops"),
                "FEDTAIL_SERVER": str(self.server),
            },
            events_file=self.server / "runs" / name / "rounds.jsonl",
        )

    def shop(self, number: int) -> Path:
        return self.folder / "shops" / str(number)


@pytest.fixture
def deployed(tmp_path: Path) -> Deployed:
    return Deployed(tmp_path)


def test_the_model_is_kept_with_its_statement_and_comes_home_to_every_shop(
    deployed: Deployed,
) -> None:
    outcome = deployed.run("first")
    (home,) = outcome.of("home")
    assert [event["event"] for event in outcome.events][-2:] == ["home", "end"]
    # The last shop's cap is too low to train: it gets the model all the same.
    assert (home["asked"], home["accepted"], home["declined"]) == (SHOPS, SHOPS, {})
    run = deployed.server / "runs" / "first"
    model = load_model(run / "model", catalogue_fingerprint=deployed.catalogue.fingerprint)
    assert same(model.arrays, read_checkpoint(run / "checkpoints", 1).state)
    manifest = model.manifest
    assert (manifest.version, manifest.server_round) == ("first", 1)
    assert manifest.code_digest == code_digest()
    assert manifest.config["plan"] == PLAN.model_dump(mode="json")
    assert manifest.privacy is not None
    assert manifest.privacy["noise"] == "seeded"  # as the shops of this test say of themselves
    assert "its noise was seeded" in " ".join(objections(manifest.privacy))
    for number in range(SHOPS):
        models = deployed.shop(number) / "models"
        assert current_model(models) == models / "first"
        brought = load_model(models / "first")
        assert same(brought.arrays, model.arrays)
        assert (brought.item_ids == model.item_ids).all()
        assert brought.manifest == manifest
        with Ledger.open(deployed.shop(number) / "ledger.sqlite") as ledger:
            assert len(ledger.events()) == (0 if number == 3 else 2)


def test_system_noise_is_stated_where_every_shop_says_so(deployed: Deployed) -> None:
    for number in range(SHOPS):
        path = deployed.shop(number) / "shop.toml"
        path.write_text(
            path.read_text().replace('noise = "seeded"\ninsecure_seeded_noise = true\n', "")
        )
    deployed.run("first")
    found = load_model(deployed.server / "runs" / "first" / "model").manifest
    assert found.privacy is not None
    assert found.privacy["noise"] == "system"
    assert objections(found.privacy) == ()
    # One shop that can replay its noise is enough to say so.
    path = deployed.shop(1) / "shop.toml"
    path.write_text(path.read_text() + 'noise = "seeded"\ninsecure_seeded_noise = true\n')
    deployed.run("second")
    found = load_model(deployed.server / "runs" / "second" / "model").manifest
    assert found.privacy is not None
    assert found.privacy["noise"] == "seeded"


def test_runs_lie_apart_and_the_last_one_is_current(deployed: Deployed) -> None:
    deployed.run("first")
    deployed.run("second", PLAN.model_copy(update={"rounds": 0}))
    models = deployed.shop(0) / "models"
    assert current_model(models).name == "second"
    assert load_model(models / "first").manifest.version == "first"
    heads = json.loads((deployed.server / "ledger-heads.json").read_text())["heads"]
    assert set(heads) == {shop_key(f"m{number}") for number in range(3)}


def test_a_finished_run_that_is_resumed_only_brings_the_model_home(deployed: Deployed) -> None:
    deployed.run("first")
    before = (deployed.server / "runs" / "first" / "model" / MANIFEST).read_bytes()
    shutil.rmtree(deployed.shop(1) / "models")
    outcome = deployed.run("first")
    assert [event["event"] for event in outcome.events] == ["start", "home", "end"]
    assert (deployed.server / "runs" / "first" / "model" / MANIFEST).read_bytes() == before
    assert current_model(deployed.shop(1) / "models").name == "first"
    assert len(list((deployed.shop(0) / "models").iterdir())) == 2  # the model and the pointer


def test_a_run_goes_on_with_its_own_catalogue_though_a_newer_one_was_published(
    deployed: Deployed,
) -> None:
    deployed.run("first")
    newer = Catalogue.of(deployed.catalogue.products.assign(brand="b"))
    with (versions := Catalogues(deployed.server / "catalogue")).publishing():
        versions.add(versions.next(newer, {}), newer)
    assert [e["event"] for e in deployed.run("first").events] == ["start", "home", "end"]
    assert read_catalogue(versions.current()).fingerprint == newer.fingerprint


def test_a_folder_that_holds_another_model_is_left_alone(deployed: Deployed) -> None:
    """Another run's model would be sent to every shop in this one's name."""
    deployed.run("first")
    made = deployed.server / "runs" / "first" / "model"
    model = load_model(made)
    others: list[tuple[str, Arrays]] = [
        ("other", model.arrays),
        ("first", {**model.arrays, POPULARITY: model.arrays[POPULARITY][::-1].copy()}),
    ]
    for version, arrays in others:
        shutil.rmtree(made)
        manifest = model.manifest.model_copy(update={"version": version})
        save_model(made, arrays, model.item_ids, manifest)
        with pytest.raises(ArtifactError, match="another model than that of run first: move it"):
            deployed.run("first")
        assert same(load_model(made).arrays, arrays)


def test_a_run_begins_with_the_catalogue_that_it_was_asked_for(deployed: Deployed) -> None:
    # As `train` leaves it: the server's app may begin only after a newer version was published, or
    # begin again, since it broke off before there was a checkpoint.
    record = RunRecord(
        name="first",
        created_at="2026-01-01T00:00:00+00:00",
        config={"plan": PLAN.model_dump_json()},
        bundle="b" * 64,
        catalogue=deployed.catalogue.fingerprint,
    )
    Runs(deployed.server / "runs").save(record)
    newer = Catalogue.of(deployed.catalogue.products.assign(brand="b"))
    with (versions := Catalogues(deployed.server / "catalogue")).publishing():
        versions.add(versions.next(newer, {}), newer)
    deployed.run("first")
    model = load_model(deployed.server / "runs" / "first" / "model")
    assert model.manifest.catalogue_fingerprint == record.catalogue


def test_no_model_goes_home_where_the_run_says_so(deployed: Deployed) -> None:
    outcome = deployed.run("first", send_home=False)
    assert not outcome.of("home")
    assert (deployed.server / "runs" / "first" / "model" / MODEL).exists()
    assert not (deployed.shop(0) / "models").exists()


def test_a_shop_that_cannot_keep_the_model_does_not_fail_the_run(deployed: Deployed) -> None:
    (deployed.shop(2) / "models").write_text("in the way")
    (home,) = deployed.run("first").of("home")
    assert (home["accepted"], home["declined"]) == (3, {"failed": 1})
    assert home["shops"] == {shop_key("m2"): "failed"}


@pytest.mark.parametrize("name", ["../up", "current", ".hidden", "a/b", "x" * 65, "a\n"])
def test_a_run_name_that_is_no_folder_name_is_refused(deployed: Deployed, name: str) -> None:
    with pytest.raises(ProtocolError, match="no folder name"):
        check_run_name(name)
    with pytest.raises(ProtocolError, match="no folder name"):
        deployed.run(name)


class Sent:
    """What a server would send home, and a shop to send it to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.catalogue = write_federation(folder)
        self.state = initial_state(PLAN.model, self.catalogue.size)
        manifest = Manifest(
            version="r1",
            server_round=PLAN.rounds,
            data_columns=("item_id",),
            config={"plan": PLAN.model_dump(mode="json")},
            code_digest="c" * 64,
            privacy=None,
            catalogue_fingerprint=self.catalogue.fingerprint,
        )
        self.manifest = save_model(folder / "made", self.state, self.catalogue.item_ids, manifest)
        self.models = folder / "shops" / "0" / "models"

    def send(
        self, state: Arrays | None = None, manifest: str | None = None, **header: object
    ) -> ReplyHeader:
        fields: dict[str, object] = {
            "run_id": "r1",
            "server_round": PLAN.rounds,
            "plan_json": PLAN.model_dump_json(),
            "catalogue_fingerprint": self.catalogue.fingerprint,
        }
        arrays = self.state if state is None else state
        text = self.manifest.model_dump_json() if manifest is None else manifest
        node = Node({"partition-id": 0}, {}, {"FEDTAIL_SHOPS": str(self.folder / "shops")})
        reply, returned = answer(HOME, fields | header, lambda: arrays, node, text)
        assert returned == {}
        assert (reply.ledger_head, reply.noise) == (NO_FINGERPRINT, "none")
        return reply

    def changed(self, **fields: object) -> str:
        return self.manifest.model_copy(update=fields).model_dump_json()


def test_what_a_hostile_server_sends_home_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    nan = {**sent.state, "spectrum": np.full(4, np.nan, np.float32)}
    other = {**sent.state, "spectrum": np.full(4, 2.0, np.float32)}
    wide = {**sent.state, "spectrum": np.ones(5, np.float32)}
    plan = PLAN.model_copy(update={"rounds": 2})
    cases: list[tuple[str, Mapping[str, object]]] = [
        ("wrong-protocol", {"state": nan}),
        ("wrong-protocol", {"state": wide}),
        ("wrong-protocol", {"state": {"spectrum": sent.state["spectrum"]}}),
        ("wrong-protocol", {"manifest": "x" * (MAX_MANIFEST_CHARS + 1)}),
        ("wrong-protocol", {"run_id": "../../up", "manifest": sent.changed(version="../../up")}),
        ("wrong-protocol", {"run_id": CURRENT, "manifest": sent.changed(version=CURRENT)}),
        ("wrong-catalogue", {"catalogue_fingerprint": "0" * 64}),
        ("failed", {"state": other}),
        ("failed", {"manifest": ""}),
        ("failed", {"manifest": "{}"}),
        ("failed", {"manifest": sent.changed(version="r2")}),
        ("failed", {"manifest": sent.changed(server_round=7)}),
        ("failed", {"manifest": sent.changed(catalogue_fingerprint="0" * 64)}),
        ("failed", {"manifest": sent.changed(files={})}),
        ("failed", {"server_round": 0}),
        ("failed", {"plan_json": plan.model_dump_json(), "server_round": 2}),
    ]
    for status, changes in cases:
        assert sent.send(**changes).status == status, changes  # type: ignore[arg-type]
        assert not sent.models.exists() or not list(sent.models.iterdir())
    assert not (tmp_path / "up").exists()
    assert sent.send().status == "ok"
    with Ledger.open(tmp_path / "shops" / "0" / "ledger.sqlite") as ledger:
        assert not ledger.events()


@pytest.mark.parametrize(
    "model",
    [{"content_scale": math.inf}, {"groups": "nothing", "learned_items": 3}, {"feature_rows": 7}],
)
def test_a_model_that_could_not_be_read_again_is_not_kept(
    tmp_path: Path, model: dict[str, object]
) -> None:
    """It became the shop's current one: nothing was recommended until another came home."""
    sent = Sent(tmp_path)
    shape = PLAN.model.model_copy(update=model)
    plan = json.loads(PLAN.model_dump_json()) | {"model": shape.model_dump()}
    state = initial_state(shape, sent.catalogue.size)
    manifest = sent.manifest.model_copy(update={"config": {"plan": plan}})
    made = save_model(tmp_path / "other", state, sent.catalogue.item_ids, manifest)
    text = json.dumps(made.model_dump())
    assert sent.send(state, text, plan_json=json.dumps(plan)).status == "wrong-protocol"
    assert not sent.models.exists()


def test_a_pruned_model_comes_again_after_a_crash_while_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent(tmp_path)
    assert sent.send().status == "ok"
    for name in (MODEL, ITEMS):
        (sent.models / "r1" / name).unlink()

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("pathlib.Path.rmdir", "client.home.models.save_model"):
        with monkeypatch.context() as patch:
            patch.setattr(place, cut)
            try:
                sent.send()
            except KeyboardInterrupt:
                continue
    assert sent.send().status == "ok"
    assert same(load_model(sent.models / "r1").arrays, sent.state)
    assert sorted(path.name for path in sent.models.iterdir()) == [CURRENT, "r1"]


@pytest.mark.parametrize("digest", ["/../../x", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_digest_that_is_none_names_no_folder(tmp_path: Path, digest: str) -> None:
    sent = Sent(tmp_path)
    assert sent.send().status == "ok"
    # Another model of a name that is taken gets the beginning of its digest: of a path, once.
    other = tmp_path / "shops" / "0" / "x"
    other.mkdir()
    (other / MANIFEST).write_text("not ours to delete")
    before = sorted(path.name for path in sent.models.iterdir())
    for _ in range(2):
        files = {**sent.manifest.files, MODEL: digest}
        assert sent.send(manifest=sent.changed(files=files)).status == "failed"
    assert (other / MANIFEST).exists()
    assert sorted(path.name for path in sent.models.iterdir()) == before


def test_another_run_of_the_same_name_takes_nothing_from_the_first(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    assert sent.send().status == "ok"
    assert sent.send().status == "ok"  # sent again: it is there
    first = load_model(sent.models / "r1")
    state = {**sent.state, "spectrum": np.full(4, 2.0, np.float32)}
    made = save_model(tmp_path / "other", state, sent.catalogue.item_ids, sent.manifest)
    assert sent.send(state, made.model_dump_json()).status == "ok"
    assert same(load_model(sent.models / "r1").arrays, first.arrays)
    assert current_model(sent.models) == sent.models / f"r1-{made.files[MODEL][:8]}"
    assert same(load_model(current_model(sent.models)).arrays, state)


def test_a_crash_before_the_pointer_is_mended_when_it_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent(tmp_path)
    with pytest.raises(ConfigError, match="no model has come home yet"):
        current_model(sent.models)

    def cut(self: Path, target: object) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", cut)
        assert sent.send().status == "failed"
    assert (sent.models / "r1" / ITEMS).exists()
    assert sent.send().status == "ok"
    assert current_model(sent.models).name == "r1"


def test_the_customers_records_are_not_even_looked_at(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    shutil.rmtree(tmp_path / "shops" / "0" / "data")
    assert sent.send().status == "ok"


def test_a_model_is_not_kept_under_arrays_of_another(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    header = RoundHeader(
        run_id="r1",
        server_round=PLAN.rounds,
        plan_json=PLAN.model_dump_json(),
        catalogue_fingerprint=sent.catalogue.fingerprint,
    )
    other = {name: array + 1 for name, array in sent.state.items()}
    assert set(state_spec(PLAN.model, sent.catalogue.size)) == set(other)
    with pytest.raises(ArtifactError, match="SHA-256"):
        keep_model(
            sent.models, header, PLAN, other, sent.manifest.model_dump_json(), sent.catalogue
        )
    assert list(sent.models.iterdir()) == []


def test_old_models_go_as_new_ones_come_and_one_may_come_again(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    path = tmp_path / "shops" / "0" / "shop.toml"
    path.write_text(f"keep_models = 2\n{path.read_text()}")

    def send(name: str) -> None:
        made = tmp_path / f"made-{name}"
        if not made.exists():
            manifest = sent.manifest.model_copy(update={"version": name})
            save_model(made, sent.state, sent.catalogue.item_ids, manifest)
        text = load_model(made).manifest.model_dump_json()
        assert sent.send(None, text, run_id=name).status == "ok"

    def whole() -> set[str]:
        return {path.parent.name for path in sent.models.glob(f"r*/{MODEL}")}

    for name in ("r1", "r2", "r3", "r4"):
        send(name)
        assert current_model(sent.models).name == name
    assert whole() == {"r3", "r4"}
    send("r1")
    assert current_model(sent.models).name == "r1"
    assert same(load_model(sent.models / "r1").arrays, sent.state)
    assert whole() == {"r4", "r1"}
