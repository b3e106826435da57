"""The operator's command line: the registry of models."""

from pathlib import Path
from typing import Any

import pytest

from cli_support import document_of, status_of
from common.artifact import ITEMS
from common.statement import statement
from registry_support import PLAN, model
from server.__main__ import app
from server.registry.versions import Registry


def call(*arguments: object) -> int:
    return status_of(app, "registry", *arguments)


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return document_of(capsys, app, "registry", *arguments)


def test_a_registry_s_life_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "registry"
    figures = tmp_path / "evaluation.json"
    figures.write_text('{"ndcg@20": 0.25, "tail": {"ndcg@20": 0.125}}')
    empty = ask(capsys, "list", place)
    assert (empty["served"], empty["versions"], empty["decisions"]) == (None, [], [])
    first = ask(capsys, "publish", model(tmp_path / "1", 1), "--to", place)
    assert (first["version"], first["served"], first["forced"]) == (1, 1, [])
    second = model(tmp_path / "2", 2)
    assert ask(capsys, "publish", second, "--to", place, "--evaluation", figures)["version"] == 2
    shown = ask(capsys, "show", place)
    assert (shown["version"], shown["served"], shown["products"]) == (2, True, 4)
    assert shown["evaluation"] == {"ndcg@20": 0.25, "tail": {"ndcg@20": 0.125}}
    assert shown["manifest"]["privacy"] == shown["privacy"]
    assert shown["privacy"]["epsilon"] == pytest.approx(statement(PLAN)["epsilon"])
    assert ask(capsys, "show", place, 1)["served"] is False
    rolled = ask(capsys, "rollback", place)
    assert (rolled["served"], rolled["before"], rolled["pinned"]) == (1, 2, True)
    newest = ask(capsys, "pin", place, "newest")
    assert (newest["served"], newest["pinned"]) == (2, False)
    assert ask(capsys, "pin", place, 1)["served"] == 1
    listed = ask(capsys, "list", place)
    assert [found["version"] for found in listed["versions"]] == [1, 2]
    assert [found["evaluated"] for found in listed["versions"]] == [False, True]
    assert [found["act"] for found in listed["decisions"]] == ["roll back", "follow newest", "pin"]
    assert (listed["served"], listed["pinned"]) == (1, True)


def test_people_read_what_was_forced_what_is_served_and_what_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "registry"
    assert call("list", place) == 0
    assert "holds no models yet" in " ".join(capsys.readouterr().out.split())
    seeded = model(tmp_path / "1", privacy=statement(PLAN, noise="seeded"))
    assert call("publish", seeded, "--to", place) == 1
    assert "noise was seeded" in capsys.readouterr().err
    assert call("publish", seeded, "--to", place, "--force") == 0
    bare = model(tmp_path / "2", privacy=None)
    odd = model(tmp_path / "3", privacy={"private": True, "noise": "system"})
    for source in (bare, odd, model(tmp_path / "4")):
        assert call("publish", source, "--to", place, "--force") == 0
    record = place / "versions" / "4.json"
    record.write_bytes(record.read_bytes() + b" ")
    assert call("pin", place, 1) == 0
    capsys.readouterr()
    assert call("list", place) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Version 1 was published by force: its noise was seeded" in text
    assert "seeded noise" in text
    assert "incomplete statement" in text
    assert "published (UTC)" in text
    assert "4.json is not as it was written" in text
    assert "Served: version 1, pinned." in text
    assert ask(capsys, "list", place)["versions"][3].keys() == {"version", "error"}
    for version, words in ((1, "Not covered:"), (2, "without a statement"), (3, "is incomplete")):
        assert call("show", place, version) == 0
        assert words in " ".join(capsys.readouterr().out.split())


def test_each_version_is_told_with_what_is_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    place, figures = tmp_path / "registry", tmp_path / "evaluation.json"
    figures.write_text("{}")
    bare = model(tmp_path / "1", 1, privacy=None)
    assert call("publish", bare, "--to", place, "--force") == 0
    said = capsys.readouterr().out
    assert "Published version 1; version 1 is served." in said
    assert "Version 1 was published by force: it has no privacy statement." in said
    assert call("publish", model(tmp_path / "2", 2), "--to", place, "--evaluation", figures) == 0
    assert call("list", place) == 0
    said = capsys.readouterr().out
    # The newest first: served or not, version, time, round, privacy, catalogue, evaluated.
    rows = [line.split() for line in said.splitlines() if "ffffffffffff" in line]
    assert [row[0] for row in rows] == ["served", "1"]
    assert (rows[0][1], rows[0][4], rows[0][5]) == ("2", "3", "epsilon")
    assert (rows[0][-2:], rows[1][3:]) == (["f" * 12, "yes"], ["3", "none", "f" * 12, "no"])
    assert "Served: version 2, the newest." in said
    assert call("rollback", place) == 0
    assert "Served: version 1 (before: 2), until another is pinned." in capsys.readouterr().out
    assert call("show", place) == 0
    said = capsys.readouterr().out
    assert f"Version 1 of {place}, which is served.\n" in said
    assert f"catalogue {'f' * 12}, round 3, code {'c' * 12}." in said
    assert "Version 1 was published by force: it has no privacy statement." in said
    assert "Evaluation" not in said
    assert call("show", place, 2) == 0
    said = capsys.readouterr().out
    assert f"Version 2 of {place}.\n" in said
    assert "Evaluation, as released:" in said
    assert call("pin", place, "newest") == 0
    said = capsys.readouterr().out
    assert "Served: version 2 (before: 1), and from now on the newest." in said
    (place / "pins" / "2.json").write_text("{}")
    assert call("pin", place, 2) == 0
    assert (
        "Served: version 2 (before: unknown), until another is pinned." in capsys.readouterr().out
    )
    assert call("pin", place, "v2") == 2


def test_a_damaged_last_decision_hides_no_version_and_no_publishing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "registry"
    for number in (1, 2):
        assert call("publish", model(tmp_path / str(number), number), "--to", place) == 0
    for number in (2, 1):
        assert call("pin", place, number) == 0
    decision = place / "pins" / "2.json"
    decision.write_bytes(decision.read_bytes()[:-1])
    capsys.readouterr()
    listed = ask(capsys, "list", place)
    assert (listed["served"], listed["pinned"]) == (None, False)
    assert [found["version"] for found in listed["versions"]] == [1, 2]
    assert listed["decisions"][0]["version"] == 2
    assert listed["decisions"][1].keys() == {"number", "error"}
    assert call("list", place) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Served: unknown. " in text
    assert "is not as it was written: pin a version anew" in text
    assert ask(capsys, "show", place, 1)["served"] is False
    # It is published all the same: whoever is told of a failure would publish it twice.
    assert ask(capsys, "publish", model(tmp_path / "3", 3), "--to", place)["served"] is None
    assert call("publish", model(tmp_path / "4", 4), "--to", place) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Published version 4; the last decision about what is served is damaged" in text
    assert call("pin", place, 1) == 0
    assert ask(capsys, "list", place)["served"] == 1


def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "registry"
    assert call("publish", tmp_path / "none", "--to", place) == 2
    assert call("show", place) == 2
    assert call("publish", model(tmp_path / "1"), "--to", place) == 0
    capsys.readouterr()
    for arguments, message in (
        (("pin", place, "latest"), "neither a version's number nor newest"),
        (("pin", place, 7), "has no version 7"),
        (("rollback", place), "nothing was published before version 1"),
    ):
        assert call(*arguments) == 2
        out, error = capsys.readouterr()
        assert message in error
        assert (out, error.count("\n")) == ("", 1)
    (place / "models" / Registry(place).record(1).folder / ITEMS).write_bytes(b"")
    assert call("show", place, "--json") == 2
    out, error = capsys.readouterr()
    assert (out, ITEMS in error) == ("", True)
