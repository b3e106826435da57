"""A new key for a shop, and what becomes of the old one."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from client.__main__ import app
from client.joining import keys
from client.joining.keys import check_pair, make_keys, private_key, renew_keys
from client.joining.starting import start_shop
from common.errors import ConfigError

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def test_the_old_pair_is_kept_under_the_time(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    public = make_keys(key)
    before = key.read_bytes(), public.read_bytes()
    assert renew_keys(key, NOW) == (public, tmp_path / "node-20260504T030201Z.key")
    old = tmp_path / "node-20260504T030201Z.key"
    assert (old.read_bytes(), old.with_suffix(".pub").read_bytes()) == before
    assert (key.read_bytes(), public.read_bytes()) != before
    assert (key.stat().st_mode & 0o777, old.stat().st_mode & 0o777) == (0o600, 0o600)
    private_key(key)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_new_pair_is_on_the_disk_when_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "node.key"
    make_keys(key)

    def files(folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    synced: list[dict[Path, bytes]] = []
    monkeypatch.setattr(keys, "sync", lambda folder: synced.append(files(folder)))
    renew_keys(key, NOW)
    assert synced[-1] == files(tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    make_keys(key)
    renew_keys(key, NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"node-20260504T030201Z\.key is there already"):
        renew_keys(key, NOW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_shop_that_lost_its_key_gets_one(tmp_path: Path) -> None:
    assert renew_keys(tmp_path / "node.key", NOW) == (tmp_path / "node.pub", None)
    private_key(tmp_path / "node.key")
    with pytest.raises(ConfigError, match="cannot renew"):
        renew_keys(tmp_path / "none" / "node.key", NOW)


def test_the_command_says_what_to_do_with_it(tmp_path: Path) -> None:
    start_shop(tmp_path / "a corner", "corner")
    settings = tmp_path / "a corner" / "shop.toml"
    before = (tmp_path / "a corner" / "keys" / "node.pub").read_text()
    result = CliRunner().invoke(app, ["key", "new", str(settings)])
    assert result.exit_code == 0, result.output
    public = tmp_path / "a corner" / "keys" / "node.pub"
    assert f"client run '{settings}'" in result.stdout  # A command that can be typed.
    assert f"Give the operator {public.resolve()}" in result.stdout
    assert "kept the old key as" in result.stdout
    assert public.read_text() != before
    settings.write_text(settings.read_text().partition("[federation]")[0])
    result = CliRunner().invoke(app, ["key", "new", str(settings)])
    assert isinstance(result.exception, ConfigError)


def test_a_renewal_that_was_killed_leaves_no_key_that_is_handed_out_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The public key of a private one that was gone: enrolled, it never let the shop in.
    key = tmp_path / "node.key"
    public = make_keys(key)
    replace, moved = Path.replace, list[Path]()

    def killed(path: Path, to: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(to)
        return replace(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            renew_keys(key, NOW)
    with pytest.raises(ConfigError, match=r"\.pub is not the public key of .*node\.key: delete"):
        check_pair(key)
    public.unlink()
    check_pair(key)
    words = private_key(key).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert public.read_bytes() == words + b"\n"
    check_pair(key)
    # What was there before is whole beside it.
    check_pair(tmp_path / "node-20260504T030201Z.key")
