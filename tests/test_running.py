import datetime
import fcntl
import json
import logging
import socket
import ssl
import threading
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from flwr.common.config import parse_config_args
from flwr.supercore.cli.flower_superexec import _parse_args
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from client.joining.node_log import NodeLog
from client.joining.programs import refusal, superexec, supernode
from client.joining.reaching import check_authority, obstacle
from client.joining.running import check_files, run_shop
from client.joining.starting import start_shop
from client.settings import FederationSettings, read_settings
from client.shop_folder import ShopFolder
from common.errors import ConfigError

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Writes ca.crt, and certificates for servers."""

    def __init__(self, folder: Path, *, until: datetime.datetime = NOW + DAY) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.certificate = folder / "ca.crt"
        self.write(self.certificate, self.name, self.key, until, x509.BasicConstraints(True, None))

    def write(
        self,
        path: Path,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        until: datetime.datetime,
        extension: x509.ExtensionType,
    ) -> None:
        builder = x509.CertificateBuilder(self.name, name, key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(until - 20 * DAY).not_valid_after(until)
        signed = builder.add_extension(extension, critical=True).sign(self.key, hashes.SHA384())
        path.write_bytes(signed.public_bytes(Encoding.PEM))

    def server(self, host: str, *, until: datetime.datetime = NOW + DAY) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / "s.key").write_bytes(private)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        self.write(self.folder / "s.crt", subject, key, until, names)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "s.crt", self.folder / "s.key")
        return context


@contextmanager
def listening(context: ssl.SSLContext | None) -> Iterator[str]:
    """Answer one connection with TLS, or with plain text."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                try:
                    if context is None:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        connection.recv(1024)
                    else:
                        context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"localhost:{server.getsockname()[1]}"
        thread.join(10)


def test_what_is_in_the_way_is_said_in_words(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    cases = [
        (ours.server("localhost"), ""),
        (ours.server("elsewhere"), "for another name"),
        (ours.server("localhost", until=NOW - DAY), "has expired"),
        (theirs.server("localhost"), "not from the authority"),
        (None, "does not speak TLS"),
    ]
    for context, words in cases:
        with listening(context) as address:
            found = obstacle(address, ours.certificate)
        assert (words in found) if words else not found, (words, found)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        free = server.getsockname()[1]
    assert "nothing listens" in obstacle(f"127.0.0.1:{free}", ours.certificate)
    found = obstacle("federation.invalid:1", ours.certificate)
    assert "no host named 'federation.invalid'" in found


def test_an_authority_must_be_a_certificate_that_holds(tmp_path: Path) -> None:
    good = Authority(tmp_path / "a")
    check_authority(good.certificate)
    with pytest.raises(ConfigError, match="operator gives it"):
        check_authority(tmp_path / "none.crt")
    (tmp_path / "key.crt").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="holds no certificate"):
        check_authority(tmp_path / "key.crt")
    with pytest.raises(ConfigError, match="expired"):
        check_authority(Authority(tmp_path / "old", until=NOW - DAY).certificate)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / 'a shop\'s "corner" = \\ é'
    start_shop(folder, address="127.0.0.1:8443")
    (folder / "ca.crt").write_bytes(Authority(tmp_path / "ca").certificate.read_bytes())
    return folder / "shop.toml"


def federation(shop: Path) -> FederationSettings:
    found = read_settings(shop).federation
    assert found is not None
    return found


def test_flower_understands_what_its_programs_are_told(shop: Path) -> None:
    folder, home = ShopFolder.of(shop), federation(shop)
    node = supernode(shop, folder, home, 9094, folder.state)
    start = node.command.index("--superlink")
    told = _parse_args_run_supernode().parse_args(node.command[start:])
    assert (told.superlink, told.isolation, told.host) == ("127.0.0.1:8443", "process", "127.0.0.1")
    assert not told.insecure
    assert told.root_certificates == str(shop.parent / "ca.crt")
    assert told.auth_supernode_private_key == str(shop.parent / "keys" / "node.key")
    assert parse_config_args([told.node_config]) == {"shop": str(shop)}
    assert not told.runtime_dependency_install
    executor = superexec(folder, 9094, folder.state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", list(executor.command))
        other = _parse_args().parse_args()
    assert other.runtime_api_address == f"127.0.0.1:{told.port}"
    assert other.superexec_auth_secret_file == told.superexec_auth_secret_file
    # The code of a run must not find ours before its own.
    assert "PYTHONPATH" not in executor.environment
    assert executor.environment["FLWR_HOME"] == str(folder.flower)


@pytest.mark.parametrize("address", ["host", "[10.0.0.1]:1", "fed..example:1"])
def test_a_wrong_address_of_the_federation_is_named(shop: Path, address: str) -> None:
    # The last two are none that an operator can give out.
    shop.write_text(shop.read_text().replace('"127.0.0.1:8443"', json.dumps(address)))
    with pytest.raises(ConfigError, match=r"federation\.address"):
        read_settings(shop)


def test_run_says_what_is_missing_before_it_starts_anything(shop: Path) -> None:
    folder = ShopFolder.of(shop)
    check_files(shop, folder, federation(shop))
    with pytest.raises(ConfigError, match=r"no \[federation\] section"):
        check_files(shop, folder, None)
    example = federation(shop).model_copy(update={"address": "federation.example:8443"})
    with pytest.raises(ConfigError, match="in place of the example"):
        check_files(shop, folder, example)
    folder.secret.chmod(0o644)
    with pytest.raises(ConfigError, match=r"secret.*chmod 600"):
        check_files(shop, folder, federation(shop))
    folder.secret.chmod(0o600)
    folder.secret.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"secret.* is empty: remove it"):
        check_files(shop, folder, federation(shop))
    # From a backup a shop comes without it: nobody but its own two programs ever shows it.
    folder.secret.unlink()
    folder.secret.parent.rmdir()
    check_files(shop, folder, federation(shop))
    assert len(folder.secret.read_bytes()) >= 32
    assert (folder.secret.stat().st_mode & 0o777, folder.secret.parent.stat().st_mode & 0o777) == (
        0o600,
        0o700,
    )
    key = federation(shop).key
    key.rename(key.with_suffix(".away"))
    with pytest.raises(ConfigError, match=r"no private key.*backup.*client key new"):
        check_files(shop, folder, federation(shop))
    key.with_suffix(".away").rename(key)
    folder.approvals.write_text("{")
    folder.approvals.chmod(0o600)
    with pytest.raises(ConfigError, match="not a whole decision"):
        check_files(shop, folder, federation(shop))
    (shop.parent / "ca.crt").unlink()
    with pytest.raises(ConfigError, match="operator gives it"):
        run_shop(shop)


def test_a_second_run_of_one_shop_is_refused(shop: Path) -> None:
    state = ShopFolder.of(shop).state
    state.mkdir()
    with (state / "run.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="runs already"):
            run_shop(shop)


def test_a_log_that_a_full_disk_does_not_take_ends_nothing(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ShopFolder.of(shop)
    (folder.logs / "run.log").symlink_to("/dev/full")

    def stop(_: object) -> None:
        logging.getLogger("client.joining.watching").warning("words")
        raise KeyboardInterrupt

    monkeypatch.setattr("client.joining.watching.Watch.run", stop)
    with pytest.raises(KeyboardInterrupt):
        run_shop(shop)
    assert capsys.readouterr().err.endswith(" words\n")


def test_the_state_of_a_run_that_was_killed_is_not_believed(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ShopFolder.of(shop).state
    state.mkdir()
    (state / "run.json").write_text('{"connected": true}')

    def stop(_: object) -> None:
        assert not (state / "run.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("client.joining.watching.Watch.run", stop)
    with pytest.raises(KeyboardInterrupt):
        run_shop(shop)


def test_the_nodes_log_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "supernode.log"
    path.write_text("INFO: SuperNode ID: 1\n")
    log = NodeLog(path)
    assert log.news() == []
    with path.open("a") as file:
        file.write("WARNING : Connection attempt failed, retrying in 1 seconds\nExit Code: 305\n")
        file.write("Failed to initialize the connection to the SuperLink.\n[code: 2001] All\n")
        file.write("[code: 2004] x\nWARNING bundle=refused digest=abc run=7 reason=not approved\n")
        file.write("INFO: SuperNode ID: 12")
    assert [(s.kind, s.about) for s in log.news()] == [
        ("unreachable", ""),
        ("unreachable", ""),
        ("unknown-key", ""),
        ("still-online", ""),
        ("refused", "abc"),
    ]
    with path.open("a") as file:
        file.write("3\n")
    assert [s.kind for s in log.news()] == ["connected"]
    path.write_text("INFO: SuperNode ID: 4\n")
    assert [s.kind for s in log.news()] == ["connected"]


def test_a_node_that_refuses_to_start_is_not_started_again(tmp_path: Path) -> None:
    log = tmp_path / "supernode.log"
    assert refusal(log) is None
    log.write_text("error: an older start\nINFO: SuperNode terminated gracefully.\n")
    assert refusal(log) is None
    with log.open("a") as file:
        file.write("error: flwr 9 is installed\n")
    assert refusal(log) == "flwr 9 is installed"


def test_new_settings_are_toml_with_the_address_that_was_given(shop: Path) -> None:
    values = tomllib.loads(shop.read_text())
    assert values["federation"] == {
        "address": "127.0.0.1:8443",
        "ca": "ca.crt",
        "key": "keys/node.key",
    }


@pytest.mark.parametrize("address", ["nonsense", "https://federation.example:8443", "h:99999"])
def test_a_wrong_address_makes_no_shop(tmp_path: Path, address: str) -> None:
    # It was written into shop.toml, and refused by every command from then on.
    with pytest.raises(ConfigError, match="--address"):
        start_shop(tmp_path / "corner", address=address)
    assert not (tmp_path / "corner").exists()


def test_a_name_stands_in_the_settings_as_people_write_it(tmp_path: Path) -> None:
    settings = start_shop(tmp_path / "水果 店")[0]
    assert 'merchant_id = "水果-店"' in settings.read_text(encoding="utf-8")
