"""A whole audit of a small experiment: its document, its page, its report, and its interruption."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError, DataError
from experiment_support import SMALL, Silent, write_folder
from report_support import whole_run
from simulations.__main__ import app
from simulations.audit import section
from simulations.audit.run import _Audit, add_to_report, run_audit
from simulations.audit.section import (
    SOUND,
    _arm,
    _member,
    _recovered,
    audit_section,
    audit_words,
    verdict,
)
from simulations.audit.sums import SHARES
from simulations.documents import plain
from simulations.experiment import Experiment, read_experiment
from simulations.federating import Federator
from simulations.report.building import build_report, write_report
from simulations.report.page import render_report
from simulations.world import build_world

CHEAP = (
    "audit.canaries=400",
    "audit.guesses=60",
    "audit.claims=[2.0]",
    "audit.models=3",
    "audit.also_epsilon=0",
    "audit.recovery_customers=[1, 50]",
    "audit.recovery_shops=2",
)
Document = dict[str, Any]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("audit")
    data = write_folder(folder / "data")
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    return read_experiment(folder / "small.toml", [f"data.path={data}", *CHEAP])


class _Interrupted(Silent):
    def __init__(self, before: str) -> None:
        super().__init__()
        self._before = before

    def stage(self, text: str, total: int | None = None) -> None:
        super().stage(text, total)
        if text.startswith(self._before):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def audited(
    experiment: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Document, list[str]]:
    """An audit that was interrupted after its canaries, and gone on with."""
    out = tmp_path_factory.mktemp("out") / "audit"
    first, second = _Interrupted("membership"), Silent()
    with pytest.raises(KeyboardInterrupt):
        run_audit(experiment, out, first)
    assert not (out / "audit.json").exists()
    document = run_audit(experiment, out, second)
    return out, document, second.stages


def test_an_interrupted_audit_goes_on_where_it_stopped(
    audited: tuple[Path, Document, list[str]],
) -> None:
    out, document, stages = audited
    assert [s for s in stages if s.startswith("canaries")] == []
    assert [s for s in stages if s.startswith("membership")]
    assert sorted(p.name for p in out.iterdir()) == ["audit.html", "audit.json"]
    assert json.loads((out / "audit.json").read_text(encoding="utf-8")) == document


def test_the_document_holds_every_attack(audited: tuple[Path, Document, list[str]]) -> None:
    _, document, _ = audited
    assert [r["step"] for r in document["canaries"]] == [
        "exact",
        "clipping-per-table",
        "table-without-noise",
        "half-noise",
        "training",
    ]
    kinds = {(r["arm"], r["level"], r["surface"]) for r in document["membership"]}
    assert len(kinds) == len(document["membership"]) == 8
    for record in document["membership"]:
        assert record["models"] == 3
        assert record["auc_low"] <= record["auc"] <= record["auc_high"]
        assert all(0 <= value <= 1 for point in record["roc"] for value in point)
        private = record["arm"] == "federated-dp"
        expected = {"customer": 8.0, "interaction": 16.0}[record["level"]] if private else None
        assert record["epsilon"] == expected
        assert ("bound_violations" in record) == private
    # No shop has 50 customers: nothing to recover from there.
    assert [(r["arm"], r["customers"]) for r in document["recovery"]] == [
        ("federated", 1),
        ("federated-dp", 1),
    ]
    assert document["recovery"][0]["precision"] == 1.0
    assert document["experiment"]["audit"]["guesses"] == 60
    assert document["seed"] == 0
    assert document["machine"]["cpus"]
    assert document["seconds"] > 0


def test_the_page_shows_it_offline(audited: tuple[Path, Document, list[str]]) -> None:
    out, document, _ = audited
    page = (out / "audit.html").read_text(encoding="utf-8")
    for text in ("clipping-per-table", "federated-dp: interaction", "mistake found"):
        assert text in page
    assert "<link" not in page
    assert 'src="http' not in page
    shown = audit_section(document)
    assert shown is not None
    assert [title for title, _, _ in shown["figures"]] == [
        "What canaries refute",
        "Membership, level customer",
        "Membership, level interaction",
        "A customer's products from one update",
    ]
    # What a run on these data would warn of is said here too.
    assert document["warnings"]
    assert all(note.split("'")[0] in page for note in document["warnings"])
    for sentence in audit_words(document):
        assert sentence.split("'")[0] in page.replace("&#39;", "'")


@pytest.mark.parametrize(
    "changed", ["audit.claims=[1.0, 1.0000001]", "audit.recovery_customers=[3, 3]"]
)
def test_what_is_audited_is_named_once(
    experiment: Experiment, tmp_path: Path, changed: str
) -> None:
    """Each counted twice: the second was read from the file of the first, of another claim."""
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"name each just once"):
        read_experiment(
            tmp_path / "small.toml", [f"data.path={experiment.data.path}", *CHEAP, changed]
        )


def test_lines_of_canaries_run_from_claim_to_claim(
    audited: tuple[Path, Document, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of audit.claims = [2.0, 0.5, 1.0] they went there and back."""
    _, document, _ = audited
    claims = [
        {**record, "claimed_epsilon": claim, "lower_bound": claim / 2}
        for claim in (2.0, 0.5, 1.0)
        for record in document["canaries"]
    ]
    drawn: list[Any] = []

    def kept(figure: Any, **_: Any) -> str:
        drawn.append(figure)
        return ""

    monkeypatch.setattr(section, "html", kept)
    audit_section({**document, "canaries": claims})
    lines = [line for line in drawn[0].data if line.name != "claimed"]
    assert len(lines) == len(document["canaries"])
    assert all(tuple(line.x) == (0.5, 1.0, 2.0) for line in lines)
    assert all(tuple(line.y) == (0.25, 0.5, 1.0) for line in lines)


def test_a_report_takes_the_audit_in(
    audited: tuple[Path, Document, list[str]], tmp_path: Path
) -> None:
    _, document, _ = audited
    report = build_report(whole_run())
    write_report(tmp_path, report, render_report(report))
    heading = "What attacks find out"
    assert heading not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert add_to_report(tmp_path, document)
    changed = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert changed.pop("audit") == document
    assert changed == report
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert heading in page
    assert "clipping-per-table" in page
    assert not add_to_report(tmp_path / "elsewhere", document)


def test_no_epsilon_is_shown_in_digits_that_are_less_than_it_is() -> None:
    # An attack on a promise of 2.004 was shown as one on 2.
    record = {"epsilon": 2.004, "arm": "federated-dp", "customers": 1, "shops": 2}
    rates = ("auc", "tpr_at_1_fpr", "precision", "recall", "prior_precision")
    ends = {f"{name}{end}": 0.5 for name in rates for end in ("", "_low", "_high")}
    assert _arm(record) == "federated-dp (ε = 2.004)"
    assert _recovered(record | ends)[1][0] == "2.004"
    more = {"level": "customer", "surface": "updates", "models": 3, "members": 3, "others": 3}
    violations = {"bound_violations": 0, "curve_violations": 0, "roc": []}
    assert _member(record | ends | more | violations)[1][1] == "2.004"


def test_the_verdict_follows_what_was_refuted(
    audited: tuple[Path, Document, list[str]],
) -> None:
    _, document, _ = audited

    def with_refuted(**steps: bool) -> Document:
        records = [
            r | {"refuted": steps.get(r["step"].replace("-", "_"), r["step"] not in SOUND)}
            for r in document["canaries"]
        ]
        quiet = [r | {"bound_violations": 0, "curve_violations": 0} for r in document["membership"]]
        return document | {"canaries": records, "membership": quiet}

    assert verdict(with_refuted()) == "yes"
    assert verdict(with_refuted(half_noise=False)) == "mixed"
    assert verdict(with_refuted(training=True)) == "no"
    above = with_refuted()
    above["membership"][0] |= {"epsilon": 8.0, "bound_violations": 1}
    assert verdict(above) == "no"
    # In words, one and more: "2 claims was refuted", and "2 point lies above".
    assert any(words.startswith("1 point of ") for words in audit_words(above))
    above["membership"][0] |= {"bound_violations": 2}
    assert any(" curves under federated-dp lie above" in words for words in audit_words(above))
    both = audit_words(with_refuted(exact=True, training=True))[0]
    assert both.startswith("2 of 2 claims of the deployed step and round were refuted")


def test_folders_in_use_and_other_runs_are_refused(
    experiment: Experiment, audited: tuple[Path, Document, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds an audit"):
        run_audit(experiment, audited[0], Silent())
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="in use"):
        run_audit(experiment, tmp_path / "used", Silent())
    report = build_report(whole_run())
    write_report(tmp_path / "run", report, "")
    with pytest.raises(ConfigError, match=r"another \[data\]"):
        run_audit(experiment, tmp_path / "run", Silent())
    report |= {"experiment": experiment.facts(), "seed": experiment.run.seed}
    lost = report["arms"]["local"].pop("quintiles")  # said before hours of attacks, not after them
    write_report(tmp_path / "run", report, "")
    with pytest.raises(DataError, match=r"arms\.local\.quintiles"):
        run_audit(experiment, tmp_path / "run", Silent())
    report["arms"]["local"]["quintiles"] = lost
    # An audit of other customers stood in a run's report: the seed draws them from all.
    report["seed"] = experiment.run.seed + 1
    write_report(tmp_path / "run", report, "")
    with pytest.raises(ConfigError, match=rf"run\.seed = {report['seed']}, not"):
        run_audit(experiment, tmp_path / "run", Silent())
    # Nor is one of tables that have changed since: their folder's name was all that was asked.
    report |= {"seed": experiment.run.seed, "data": plain(build_world(experiment).facts())}
    report["data"]["interactions"] += 1
    write_report(tmp_path / "run", report, "")
    with pytest.raises(ConfigError, match=r"other data than there are now \(interactions differ"):
        run_audit(experiment, tmp_path / "run", Silent())
    report["data"]["interactions"] -= 1
    write_report(tmp_path / "run", report, "")
    with pytest.raises(KeyboardInterrupt):
        run_audit(experiment, tmp_path / "run", _Interrupted("canaries"))
    half = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        run_audit(experiment, half, _Interrupted("canaries: clipping"))  # one part is finished
    other = experiment.model_copy(update={"run": experiment.run.model_copy(update={"seed": 1})})
    with pytest.raises(ConfigError, match="another experiment or code"):
        run_audit(other, half, Silent())


def test_what_cannot_be_attacked_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    baskets = experiment.privacy.model_copy(update={"unit": "basket"})
    with pytest.raises(ConfigError, match=r'privacy\.unit = "customer"'):
        run_audit(experiment.model_copy(update={"privacy": baskets}), tmp_path / "x", Silent())
    assert not (tmp_path / "x").exists()


def test_products_without_the_groups_of_the_plan_are_audited_as_they_are_trained(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run on one's own tables learns other groups; its audit broke off after the canaries.
    model = experiment.federated_dp.model.model_copy(update={"groups": "type*brand"})
    section = experiment.federated_dp.model_copy(update={"model": model})
    asked = experiment.model_copy(update={"federated_dp": section})
    audit = _Audit(asked, build_world(asked), tmp_path, Silent())
    trained = Federator(asked, build_world(asked), tmp_path, Silent()).plan("federated-dp")
    assert trained.model.groups != "type*brand"
    assert audit._plan("federated-dp", 8.0).model == trained.model
    monkeypatch.setattr(_Audit, "_parts", lambda _: iter(()))
    assert any("for the groups type*brand" in text for text in audit.run()["warnings"])


def test_where_sums_alone_are_seen_they_alone_are_audited(
    experiment: Experiment, tmp_path: Path
) -> None:
    sums = experiment.privacy.model_copy(update={"trust": "federation"})
    shared = experiment.model_copy(update={"privacy": sums})
    document = run_audit(shared, tmp_path / "x", Silent())
    assert [r["step"] for r in document["canaries"]] == [*SHARES]
    assert document["membership"] == document["recovery"] == []
    assert document["canaries"][0]["claimed_epsilon"] == pytest.approx(2, rel=0.01)
    # 60 canaries cannot refute much, but they tell a table without noise from one that has it.
    first, *_, last = (r["lower_bound"] for r in document["canaries"])
    assert first < 1 < last
    assert document["experiment"]["privacy"]["trust"] == "federation"
    page = (tmp_path / "x" / "audit.html").read_text(encoding="utf-8")
    assert "table-of-sums-without-noise" in page
    # Headings over nothing read as if something had failed.
    assert page.count("Not attacked: no update of a single shop is seen") == 2
    assert "precision by popularity alone" not in page
    assert verdict(document) == "mixed"
    assert audit_words(document)[0].startswith("None of 1 claim of the deployed step and round was")


def test_the_command_speaks_of_bad_settings(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    arguments = ["audit", str(tmp_path / "small.toml"), "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(app, [*arguments, "--set", "audit.cannaries=3"])
    assert isinstance(result.exception, ConfigError)
    assert "canaries" in str(result.exception)


@pytest.mark.parametrize("setting", ["claims=[-1]", "claims=[0]", "recovery_customers=[1, 0]"])
def test_settings_that_attack_nothing_are_refused_as_they_are_read(
    setting: str, tmp_path: Path
) -> None:
    # A shop of no customers ended an audit on its page, when all had been attacked.
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=rf"audit\.{setting.partition('=')[0]}\..: .*greater than"
    ):
        read_experiment(tmp_path / "small.toml", [f"audit.{setting}"])
