import json
import sys
from pathlib import Path

import pytest

from client.commands.approve import approve_code
from client.joining.approval import Approvals
from client.joining.approving import listing, look, printable, who
from client.shop_folder import ShopFolder
from common import bundle
from common.errors import ConfigError, InputError

A, B = "a" * 64, "b" * 64


def test_the_last_decision_about_a_digest_counts(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path / "approved.jsonl")
    assert approvals.approved() == {}
    approvals.decide("approve", A, "ann", "read it all")
    approvals.decide("approve", B, "bob")
    approvals.decide("revoke", A, "bob")
    assert list(approvals.approved()) == [B]
    approvals.decide("approve", A, "ann")
    assert set(approvals.approved()) == {A, B}
    assert [(d.action, d.who) for d in approvals.decisions()] == [
        ("approve", "ann"),
        ("approve", "bob"),
        ("revoke", "bob"),
        ("approve", "ann"),
    ]
    assert approvals.path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["approved.jsonl"]


@pytest.mark.parametrize("text", ["", "abc", A.upper(), A + "0", f"{A}\n", "../" + A])
def test_only_a_digest_can_be_approved(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="digest"):
        Approvals(tmp_path / "approved.jsonl").decide("approve", text, "ann")


def line(**changes: str) -> str:
    entry = {"at": "2026", "action": "approve", "digest": A, "who": "ann", "note": ""}
    return json.dumps(entry | changes)


@pytest.mark.parametrize(
    "text",
    [
        line()[:-9],  # half written
        line(),  # without its end: perhaps half written
        line() + "\n" + line(digest=B)[:40] + "\n" + line() + "\n",
        line() + "\nnonsense\n",
        line(action="allow") + "\n",
        line(digest="*" * 64) + "\n",
        line(more="keys") + "\n",
        "[]\n",
        "\n",
        "\xff\n",
    ],
)
def test_a_line_that_is_not_whole_approves_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "approved.jsonl"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    approvals = Approvals(path)
    with pytest.raises(ConfigError, match="is not a whole decision"):
        approvals.approved()
    with pytest.raises(ConfigError, match="is not a whole decision"):
        approvals.decide("approve", B, "ann")
    assert path.read_text(encoding="latin-1") == text


def test_a_file_that_others_can_write_approves_nothing(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path / "approved.jsonl")
    approvals.decide("approve", A, "ann")
    approvals.path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod 600"):
        approvals.approved()


def bundle_file(folder: Path, data: bytes) -> Path:
    path = folder / "x.fab"
    path.write_bytes(data)
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.toml").write_text("")
    (tmp_path / "logs").mkdir()
    return tmp_path / "shop.toml"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Bundles are JSON here: what Flower packs is tested elsewhere."""
    files = {"client/app.py": b"app = 1\n", "pyproject.toml": b""}

    def unpacked(data: bytes) -> dict[str, bytes]:
        return {name: text.encode() for name, text in json.loads(data).items()}

    own = packed(files)
    monkeypatch.setattr(bundle, "build", lambda: own)
    monkeypatch.setattr(bundle, "contents", unpacked)
    return files


def packed(files: dict[str, bytes]) -> bytes:
    return json.dumps({name: data.decode() for name, data in files.items()}).encode()


def test_a_bundle_is_shown_beside_the_own_code(tmp_path: Path, small: dict[str, bytes]) -> None:
    other = small | {"client/app.py": b"app = 2\n", "client/spy.py": b"import os\n"}
    del other["pyproject.toml"]
    sight = look(str(bundle_file(tmp_path, packed(other))), own_code=False)
    assert (sight.added, sight.changed, sight.removed, sight.same) == (
        ["client/spy.py"],
        ["client/app.py"],
        ["pyproject.toml"],
        False,
    )
    assert "-app = 1\n+app = 2" in sight.diff()
    assert "+import os" in sight.diff()
    assert look("", own_code=True).same


def test_a_diff_cannot_rewrite_the_terminal() -> None:
    assert printable(b"a\x1b[2Kb\rc\n\xe2\x80\xae\xff") == "a\\x1b[2Kb\\rc\n\\u202e\\xff"


@pytest.mark.parametrize("name", ["client/\x1b[8mspy.py", "client/a\n+++ new/b\n.py", "a\u202e.py"])
def test_nor_can_the_name_of_a_file(tmp_path: Path, small: dict[str, bytes], name: str) -> None:
    # \x1b[8m hides what follows, and a name of two lines looks like another file's.
    sight = look(str(bundle_file(tmp_path, packed(small | {name: b"spy()\n"}))), own_code=False)
    lines = sight.diff().split("\n")
    assert [line[:4] for line in lines] == ["--- ", "+++ ", "@@ -", "+spy"]
    assert all(line.isprintable() for line in lines)


def approve(shop: Path, code: str = "", **flags: bool) -> bool:
    known = {"own_code", "revoke", "only_diff", "yes"}
    chosen = {name: flags.get(name, False) for name in known}
    return approve_code(shop, code, note="", as_json=True, **chosen)


def test_own_code_and_a_whole_digest_are_approved_without_a_question(
    shop: Path, small: dict[str, bytes]
) -> None:
    approve(shop, own_code=True)
    approve(shop, A)
    approvals = Approvals(shop.parent / "approved.jsonl")
    assert list(approvals.approved()) == [bundle.digest(packed(small)), A]
    assert {d.who for d in approvals.decisions()} == {who()}
    approve(shop, A, revoke=True)
    assert list(approvals.approved()) == [bundle.digest(packed(small))]
    with pytest.raises(ConfigError, match="is not approved"):
        approve(shop, A, revoke=True)


def test_a_bundle_that_differs_must_be_wanted(
    shop: Path, small: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = packed(small | {"client/app.py": b"app = 2\n"})
    path = str(bundle_file(shop.parent, other))
    approvals = Approvals(shop.parent / "approved.jsonl")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match="--diff, then say --yes"):
        approve(shop, path)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda: "")
    assert not approve(shop, path)
    assert not approvals.approved()
    monkeypatch.setattr("builtins.input", lambda: "y")
    assert approve(shop, path)
    assert list(approvals.approved()) == [bundle.digest(other)]


def test_a_diff_is_a_document_too_and_never_empty_for_want_of_the_bundle(
    shop: Path, small: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    other = packed(small | {"client/app.py": b"app = 2\n"})
    assert approve(shop, str(bundle_file(shop.parent, other)), only_diff=True)
    document = json.loads(capsys.readouterr().out)
    assert document["changed"] == ["client/app.py"]
    assert "-app = 1\n+app = 2" in document["diff"]
    # Nothing to show is what a bundle looks like that is the same.
    with pytest.raises(ConfigError, match=r"its digest alone .* \.fab"):
        approve(shop, A, only_diff=True)
    # What only shows takes nothing back.
    approve(shop, own_code=True)
    with pytest.raises(ConfigError, match="--diff only shows"):
        approve(shop, own_code=True, revoke=True, only_diff=True)
    assert Approvals(shop.parent / "approved.jsonl").approved()


@pytest.mark.usefixtures("small")
def test_what_is_neither_a_file_nor_a_digest_is_named(shop: Path) -> None:
    for code in ("missing.fab", "abc"):
        with pytest.raises(ConfigError, match="neither a file nor a digest"):
            approve(shop, code)
    with pytest.raises(ConfigError, match="say which code"):
        look("", own_code=False)
    with pytest.raises(ConfigError, match="name the shop"):
        approve(shop.parent / "none.toml", A)


def test_a_file_that_is_too_large_is_not_even_read(shop: Path) -> None:
    path = bundle_file(shop.parent, bytes(bundle.MAX_BYTES + 1))
    with pytest.raises(InputError, match="larger than a bundle may be"):
        look(str(path), own_code=False)


def test_the_list_shows_what_was_refused_and_is_not_approved(shop: Path) -> None:
    folder = ShopFolder.of(shop)
    folder.refusals.write_text(
        json.dumps({"digest": A, "reason": "not approved", "at": "2026", "run": "1"})
        + "\n"
        + json.dumps({"digest": B, "reason": "not approved", "at": "2026", "run": "2"})
        + '\n{"digest": "half'
    )
    Approvals(folder.approvals).decide("approve", B, "ann")
    document = listing(folder)
    assert [entry["digest"] for entry in document["refused"]] == [A]
    assert [entry["digest"] for entry in document["approved"]] == [B]
