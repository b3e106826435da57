import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from client.joining.keys import make_keys, make_secret, private_key, read_own
from client.joining.starting import NODE_KEY, start_shop
from common.errors import ConfigError


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_key_pair_is_of_the_kind_that_flower_takes(tmp_path: Path) -> None:
    public = make_keys(tmp_path / "node.key")
    key = load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    shown = load_ssh_public_key(public.read_bytes())
    assert isinstance(key, EllipticCurvePrivateKey)
    assert isinstance(shown, ec.EllipticCurvePublicKey)
    assert (key.curve.name, public) == ("secp384r1", tmp_path / "node.pub")
    assert key.public_key().public_numbers() == shown.public_numbers()
    assert (mode(tmp_path / "node.key"), mode(public)) == (0o600, 0o644)
    private_key(tmp_path / "node.key")


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_text("mine")
    with pytest.raises(ConfigError, match="stays as it is"):
        make_keys(tmp_path / "node.key")
    assert (tmp_path / "node.key").read_text() == "mine"
    assert not (tmp_path / "node.pub").exists()


def written(path: Path, key: EllipticCurvePrivateKey | Ed25519PrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return path


def test_keys_that_flower_could_not_use_are_named(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    with pytest.raises(ConfigError, match=r"no private key .*backup"):
        private_key(path)
    for key in (ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()):
        with pytest.raises(ConfigError, match="P-384"):
            private_key(written(path, key))
    advice = "`python -m client key new"
    for text in (b"", b"nonsense", ed25519.Ed25519PrivateKey.generate().private_bytes_raw()):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=f"(is empty|is not a private key).*{advice}"):
            private_key(path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path / "node.key")
    for bits in (0o604, 0o640, 0o610):
        (tmp_path / "node.key").chmod(bits)
        with pytest.raises(ConfigError, match="chmod 600"):
            private_key(tmp_path / "node.key")


def test_a_secret_is_long_new_and_the_owners(tmp_path: Path) -> None:
    make_secret(tmp_path / "a")
    make_secret(tmp_path / "b")
    assert len(read_own(tmp_path / "a", "it", "make another")) == 64
    assert read_own(tmp_path / "a", "it", "make another") != read_own(
        tmp_path / "b", "it", "make another"
    )
    assert mode(tmp_path / "a") == 0o600


def test_a_new_shop_has_keys_that_only_it_can_read(tmp_path: Path) -> None:
    made = start_shop(tmp_path / "corner", address="127.0.0.1:8443")
    assert tmp_path / "corner" / NODE_KEY in made
    private_key(tmp_path / "corner" / NODE_KEY)
    for name in ("keys", "secrets", "logs", "models", "data", "ledger"):
        assert mode(tmp_path / "corner" / name) == 0o700
    assert mode(tmp_path / "corner" / "secrets" / "superexec") == 0o600
    # The operator may have enrolled the key: settings that are made anew keep it.
    before = (tmp_path / "corner" / NODE_KEY).read_bytes()
    (tmp_path / "corner" / "shop.toml").unlink()
    start_shop(tmp_path / "corner")
    assert (tmp_path / "corner" / NODE_KEY).read_bytes() == before


def test_flower_reads_the_public_key_as_ssh_does(tmp_path: Path) -> None:
    public = make_keys(tmp_path / "node.key")
    try:
        told = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(public)], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    assert told.startswith("384 ")
    assert "ECDSA" in told
