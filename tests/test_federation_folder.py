"""The operator's folder and its shops, without any service running."""

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cli_support import status_of
from common.disk import write_whole
from common.errors import ConfigError, RunError
from common.protocol import shop_key
from operator_support import new_federation, new_key
from server.__main__ import app
from server.operating import gateway, services
from server.operating import shops as shops_of_the_folder
from server.operating.control import Node
from server.operating.folder import (
    Federation,
    make_federation,
    open_federation,
    renew,
)
from server.operating.services import check_files, is_up, read_up
from server.operating.shops import Shops, reconcile
from server.rounds.heads import LedgerHeads
from server.settings import read_home
from server.training.plan import read_plan_file


def call(*arguments: object) -> int:
    return status_of(app, *arguments)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(
        tmp_path / "federation", "test", "shops.example.org:8443", superlink_port=9092
    )


def test_init_makes_a_folder_for_its_owner_alone(federation: Federation) -> None:
    check_files(federation)
    assert stat.S_IMODE(federation.folder.stat().st_mode) == 0o700
    for path in federation.folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        public = path.suffix == ".crt"
        assert mode == (0o700 if path.is_dir() else 0o644 if public else 0o600), path
    # What the apps and the training plan read is there and valid.
    home = read_home({"FEDTAIL_SERVER": str(federation.folder)})
    assert home.runs == federation.runs
    assert home.catalogues == federation.catalogue
    assert read_plan_file(federation.plan)
    assert len(federation.superexec_secret.read_bytes()) >= 32
    assert open_federation(federation.folder) == federation


def test_init_says_what_comes_next_and_a_wrong_folder_how_to_name_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("init", tmp_path / "federation") == 0
    said = capsys.readouterr().out
    steps = [said.index(word) for word in ("catalogue publish", "server enrol", "server up")]
    assert steps == sorted(steps)
    monkeypatch.chdir(tmp_path)
    assert call("shops") == 2
    said = capsys.readouterr().err
    for word in (str(tmp_path), "--federation", "FEDTAIL_FEDERATION"):
        assert word in said
    monkeypatch.setenv("FEDTAIL_FEDERATION", str(tmp_path / "federation"))
    assert call("shops") == 0


def test_init_writes_any_name_as_its_settings_read_it(tmp_path: Path) -> None:
    # A certificate's own name has room for 64 bytes, which is less than 64 characters.
    for number, name in enumerate(('Märkte "am Platz" 🛒\x7f', "店" * 64, "a" + "é" * 63)):
        folder = tmp_path / f"federation-{number}"
        assert call("init", folder, "--name", name) == 0
        assert open_federation(folder).settings.name == name
        assert call("renew", "--federation", folder) == 0
    # As people read it, but for what can't be seen.
    text = (tmp_path / "federation-0" / "federation.toml").read_text(encoding="utf-8")
    assert 'Märkte \\"am Platz\\" 🛒\\U0000007F' in text


def test_init_writes_over_nothing_and_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "federation"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert call("init", folder) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]

    (folder / "mine.txt").unlink()
    for bad in ("localhost", "local host:1", "localhost:0", "localhost:99999", "::1:8443", ":1"):
        assert call("init", folder, "--address", bad) == 2
    assert call("init", folder, "--host", "not a host") == 2
    assert "--host 'not a host': give a name" in capsys.readouterr().err
    assert call("init", folder, "--name", "two\nlines") == 2
    assert "--name 'two\\nlines': give one line" in capsys.readouterr().err
    assert call("init", folder, "--name", "") == 2
    # Not at the first `up`, once certificates are made and shops have the address.
    assert call("init", tmp_path / "my federation") == 2
    assert "nginx takes no spaces" in capsys.readouterr().err
    assert call("init", folder, "--address", "h:9092", "--superlink-port", "9092") == 2
    assert "both have the port 9092" in capsys.readouterr().err
    monkeypatch.chdir(folder)
    assert call("init", ".") == 2
    monkeypatch.chdir(tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("server.operating.folder._issue", full_disk)
        assert call("init", folder) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []
    assert call("init", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["address"] == "localhost:8443"


def test_settings_are_typed_and_an_unknown_key_is_refused(federation: Federation) -> None:
    path = federation.folder / "federation.toml"
    text = path.read_text()
    for old, new, said in (
        ("superlink_port = 9092", "superlink_prot = 9092", "did you mean 'superlink_port'"),
        ("superlink_port = 9092", 'superlink_port = "x"', "superlink_port"),
        ("superlink_port = 9092", "superlink_port = 70000", "superlink_port"),
        ("body_limit_mb = 8", "body_limit_mb = 1", "gateway.body_limit_mb"),
        ('"shops.example.org:8443"', '"shops.example.org"', "host:port"),
        ("[gateway]", "[gateway", "not valid TOML"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=r"federation\.toml") as error:
            open_federation(federation.folder)
        assert said in str(error.value)
    path.unlink()
    with pytest.raises(ConfigError, match="init DIR"):
        open_federation(federation.folder)


def test_a_new_gateway_listens_where_its_address_is_reached(tmp_path: Path) -> None:
    for number, (address, listen) in enumerate(
        (("[::1]:8443", "[::]:8443"), ("127.0.0.1:8443", "0.0.0.0:8443"), ("h:1", "0.0.0.0:1"))
    ):
        made = make_federation(tmp_path / str(number), "f", address, superlink_port=9092)
        assert made.settings.gateway.listen == listen


def test_what_is_missing_open_or_expired_is_named(federation: Federation) -> None:
    def damaged(path: Path, what: Any) -> str:
        kept = path.read_bytes(), path.stat().st_mode
        what(path)
        with pytest.raises(ConfigError) as error:
            check_files(federation)
        write_whole(path, kept[0], mode=stat.S_IMODE(kept[1]))
        check_files(federation)
        assert str(path) in str(error.value)
        return str(error.value)

    for path in (
        federation.superexec_secret,
        federation.gateway.key,
        federation.superlink.key,
        federation.authority.key,
    ):
        assert "chmod 600" in damaged(path, lambda p: p.chmod(0o640))
    assert "missing" in damaged(federation.superexec_secret, Path.unlink)
    assert "missing" in damaged(federation.superexec_secret, lambda p: p.write_bytes(b" "))
    for path in (
        federation.gateway.key,
        federation.gateway.certificate,
        federation.authority.certificate,
    ):
        assert "cannot read" in damaged(path, Path.unlink)
    shop = Shops(federation.shops).enrol(
        "shop", new_key(federation.folder, "k").with_suffix(".pub")
    )
    assert "no public key" in damaged(
        federation.shops / f"{shop.name}.pub", lambda p: p.write_bytes(b"garbage")
    )
    assert "server.toml is missing" in damaged(federation.folder / "server.toml", Path.unlink)


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("Shops.example.org:8443", True),
        ("[0:0::1]:8443", True),
        ("127.0.0.1:9", True),
        ("shop.example.org:8443", False),
        ("example.org:8443", False),
    ],
)
def test_an_address_that_the_certificate_does_not_name_is_told_of(
    federation: Federation, caplog: pytest.LogCaptureFixture, address: str, named: bool
) -> None:
    path = federation.folder / "federation.toml"
    path.write_text(path.read_text().replace("shops.example.org:8443", address))
    check_files(open_federation(federation.folder))
    told = f"event=names_another_host address={address} names=shops.example.org,localhost,"
    assert (told in caplog.text) is not named


def test_renew_makes_new_certificates_for_the_same_hosts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_federation(
        tmp_path / "f", "test", "a.example.org:1", superlink_port=2, hosts=["b.example.org"]
    )
    from server.operating import authority

    hosts = authority.hosts_of(made.gateway)
    assert hosts == ["a.example.org", "b.example.org", "localhost", "127.0.0.1", "::1"]
    root, old = made.authority.certificate.read_bytes(), made.gateway.certificate.read_bytes()
    made.gateway.certificate.write_bytes(authority.issue(made.authority, hosts, days=0)[1])
    assert call("up", "--federation", made.folder) == 2
    assert "expired on" in capsys.readouterr().err
    assert renew(made) == [made.gateway.certificate, made.superlink.certificate]
    check_files(made)
    assert authority.hosts_of(made.gateway) == hosts
    assert made.authority.certificate.read_bytes() == root
    assert made.gateway.certificate.read_bytes() != old
    assert call("renew", "--federation", made.folder) == 0
    assert not is_up(made)
    assert read_up(made) == {}


def test_shops_are_enrolled_listed_and_removed(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str, *arguments: object) -> int:
        return call(name, *arguments, "--federation", federation.folder)

    key = new_key(tmp_path, "one").with_suffix(".pub")
    other = new_key(tmp_path, "two").with_suffix(".pub")
    # Names are any text that data may bear, also one that would leave the folder.
    name = "../Läden/№ 1.pub"
    assert command("enrol", name, key) == 0
    assert command("enrol", name, key) == 0  # the same again changes nothing
    assert command("enrol", name, other) == 2
    assert "another key" in capsys.readouterr().err
    assert command("enrol", "two", key) == 2
    assert name in capsys.readouterr().err
    assert command("enrol", "two", other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["superlink_told"] is False
    assert [path.parent for path in tmp_path.rglob("*.pub")].count(federation.shops) == 2

    assert command("shops", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(shop["shop"], shop["status"]) for shop in listed["shops"]] == [
        (name, None),
        ("two", None),
    ]
    assert command("shops") == 0
    assert "SuperLink is not up" in capsys.readouterr().out
    assert command("remove", "twoo") == 2
    assert "did you mean 'two'" in capsys.readouterr().err
    assert command("remove", "two") == 0
    assert [shop.name for shop in Shops(federation.shops).all()] == [name]
    assert command("enrol", "two", other) == 2
    assert "never admits one again" in capsys.readouterr().err
    for bad in ("", " ", " x", "a\nb", "x" * 300):
        assert command("enrol", bad, new_key(tmp_path / "bad", f"k{len(bad)}")) == 2
    assert command("ports") == 1


def test_who_changes_the_list_beside_containers_is_told_how_superlink_hears_of_it(
    federation: Federation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An engine that starts SuperLink again starts nothing with it that tells it.
    monkeypatch.setenv("FEDTAIL_SUPERLINK", "127.0.0.1:1")
    key = new_key(tmp_path, "one").with_suffix(".pub")
    for words in (("enrol", "one", key), ("remove", "one")):
        assert call(*words, "--federation", federation.folder) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "SuperLink does not know: `shops --tell` tells it, once it is up" in said


def test_an_address_of_superlink_that_is_none_is_told_in_words(
    federation: Federation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTAIL_SUPERLINK", "superlink")
    for words in (["shops"], ["status"], ["ports"], ["up"]):
        assert call(*words, "--federation", federation.folder) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: FEDTAIL_SUPERLINK='superlink': write it as host:port")


def test_the_longest_name_is_one_that_its_file_can_have(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A file that is written whole has a longer name while it is a draft.
    for number in range(225, 256):
        key = new_key(tmp_path, f"k{number}").with_suffix(".pub")
        name = "x" * number
        status = call("enrol", name, key, "--federation", federation.folder)
        assert status in (0, 2), capsys.readouterr().err
        found = [shop.name for shop in Shops(federation.shops).all()]
        assert (name in found) == (status == 0)
        told = list((federation.shops / "untold").iterdir())
        assert len(told) == len(found)
    assert "too long for a shop's name" in capsys.readouterr().err
    assert len(found) > 10


def test_a_mistyped_name_is_corrected_while_nobody_knows_it(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str, *arguments: object) -> int:
        return call(name, *arguments, "--federation", federation.folder)

    def names() -> list[str]:
        return [shop.name for shop in Shops(federation.shops).all()]

    def refused(words: str, *arguments: object) -> None:
        before = names()
        assert command(*map(str, arguments)) == 2
        assert words in " ".join(capsys.readouterr().err.split())
        assert names() == before

    key = new_key(tmp_path, "corner").with_suffix(".pub")
    other = new_key(tmp_path, "harbour").with_suffix(".pub")
    assert command("enrol", "cornr", key) == 0
    assert command("enrol", "harbour", other) == 0
    refused("`python -m server rename` corrects it", "enrol", "corner", key)
    refused("did you mean 'cornr'", "rename", "corn", "corner")
    refused("enrolled as 'harbour' already", "rename", "cornr", "harbour")
    refused("'cornr' already: nothing was changed", "rename", "cornr", "cornr")
    refused("cannot be a shop's name", "rename", "cornr", " corner")
    capsys.readouterr()
    assert command("rename", "cornr", "corner") == 0
    assert "renamed cornr to corner (key " in " ".join(capsys.readouterr().out.split())
    assert names() == ["corner", "harbour"]
    lines = (federation.shops / "renamed.jsonl").read_text(encoding="utf-8").splitlines()
    (act,) = map(json.loads, lines)
    assert (act["from"], act["to"]) == ("cornr", "corner")
    assert act["key"] == Shops(federation.shops).all()[0].fingerprint
    assert command("rename", "corner", "corner 2") == 0  # still known to nobody

    # A roster that was handed out, or a ledger's head, holds the key under its name.
    assert command("roster") == 0
    refused("on the roster of secure sums", "rename", "corner 2", "corner")
    federation.roster.unlink()
    heads = federation.folder / "ledger-heads.json"
    LedgerHeads(heads).remember({shop_key("corner 2"): "1" * 64})
    refused("took part in a run", "rename", "corner 2", "corner")
    heads.unlink()
    # SuperLink takes no key under a second name, and forgets none, whatever becomes of it here.
    control = FakeControl()
    assert reconcile(Shops(federation.shops), control) == []  # type: ignore[arg-type]
    assert sorted(node.name for node in control.nodes()) == ["corner 2", "harbour"]
    refused("takes none under a second name", "rename", "corner 2", "corner")
    refused("takes none under a second name", "rename", "harbour", "harbor")
    assert command("remove", "harbour") == 0
    refused("never admits one again", "enrol", "harbor", other)


@pytest.mark.parametrize("told", [False, True])
def test_a_removed_key_comes_back_under_no_name(
    federation: Federation, tmp_path: Path, told: bool
) -> None:
    shops, key = Shops(federation.shops), new_key(tmp_path, "a").with_suffix(".pub")
    shops.enrol("a", key)
    if told:
        reconcile(shops, FakeControl())  # type: ignore[arg-type]
    shops.remove("a")
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match="never admits one again"):
            shops.enrol(name, key)
    with pytest.raises(ConfigError, match="no shop 'a' is enrolled"):
        shops.rename("a", "b")
    assert shops.all() == []


def test_a_removal_is_on_the_disk_when_it_is_said(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a power cut the shop came back, and SuperLink would be told that it is enrolled.
    shops = Shops(federation.shops)
    shop = shops.enrol("a", new_key(tmp_path, "a").with_suffix(".pub"))
    shops.told(shop)
    synced: list[tuple[str, bool]] = []

    def sync(path: Path) -> None:
        synced.append((path.name, (federation.shops / "a.pub").exists()))

    monkeypatch.setattr("server.operating.shops.sync", sync)
    shops.remove("a")
    assert {("shops", False), ("removed", False)} <= set(synced)


def test_a_shop_that_is_removed_while_the_list_is_read_is_not_on_it(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `train` reads the list whenever it shows an exchange, and the run's view ended with it.
    shops = Shops(federation.shops)
    for name in ("a", "b", "c"):
        shops.enrol(name, new_key(tmp_path, name).with_suffix(".pub"))
    read = shops_of_the_folder.read_key
    removed: list[str] = []

    def meanwhile(path: Path) -> ec.EllipticCurvePublicKey:
        if not removed:
            removed.append("a" if path.stem != "a" else "b")
            (federation.shops / f"{removed[0]}.pub").unlink()
        return read(path)

    monkeypatch.setattr(shops_of_the_folder, "read_key", meanwhile)
    assert [shop.name for shop in shops.all()] == sorted({"a", "b", "c"} - set(removed))


def test_a_key_that_superlink_did_not_take_counts_as_told(tmp_path: Path) -> None:
    # Whether it keeps a key whose answer was lost on the way, nobody here can say.
    class Deaf(FakeControl):
        def register(self, public_key: bytes, name: str) -> int:
            raise RunError("does not answer")

    (tmp_path / "shops").mkdir()
    shops = Shops(tmp_path / "shops")
    shops.enrol("a", new_key(tmp_path, "a").with_suffix(".pub"))
    assert reconcile(shops, Deaf()) == ["a"]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes none under a second name"):
        shops.rename("a", "b")


def test_only_a_public_p384_key_can_be_enrolled(federation: Federation, tmp_path: Path) -> None:
    shops = Shops(federation.shops)
    private = new_key(tmp_path, "node")

    def refused(content: bytes, said: str) -> None:
        path = tmp_path / "key.pub"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            shops.enrol("shop", path)

    def openssh(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
        form = serialization.PublicFormat
        return key.public_bytes(serialization.Encoding.OpenSSH, form.OpenSSH)

    refused(private.read_bytes(), "must never leave its shop")
    refused(openssh(ec.generate_private_key(ec.SECP256R1()).public_key()), "secp256r1")
    refused(openssh(ed25519.Ed25519PrivateKey.generate().public_key()), "Ed25519")
    refused(b"", "no public key")
    one = openssh(ec.generate_private_key(ec.SECP384R1()).public_key())
    refused(one + b"\n" + one + b"\n", "more than one line of a key")
    refused(private.with_suffix(".pub").read_bytes()[:-40], "no public key")
    refused(b'merchant_id = "corner"\ndata = "data"\n', "no public key")
    with pytest.raises(ConfigError, match="cannot read"):
        shops.enrol("shop", tmp_path / "none.pub")
    assert shops.all() == []
    assert list(federation.shops.iterdir()) == []


class FakeControl:
    """SuperLink's list of nodes: a key that was ever known is never admitted anew."""

    def __init__(self) -> None:
        self.known: dict[bytes, Node] = {}
        self.seen: set[bytes] = set()

    def nodes(self) -> list[Node]:
        return list(self.known.values())

    def register(self, public_key: bytes, name: str) -> int:
        if public_key in self.seen:
            raise RunError("Public key already in use")
        self.seen.add(public_key)
        self.known[public_key] = Node(len(self.seen), name, public_key, "registered")
        return len(self.seen)

    def unregister(self, node_id: int) -> None:
        self.known = {k: n for k, n in self.known.items() if n.node_id != node_id}


def test_superlink_admits_the_enrolled_and_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "shops"
    folder.mkdir()
    shops, control = Shops(folder), FakeControl()
    for name in ("a", "b"):
        shops.enrol(name, new_key(tmp_path, name).with_suffix(".pub"))
    control.register(b"a key that nobody enrolled", "intruder")

    def admitted() -> list[str]:
        return sorted(node.name for node in control.nodes())

    assert reconcile(shops, control) == []  # type: ignore[arg-type]
    assert admitted() == ["a", "b"]
    assert reconcile(shops, control) == []  # type: ignore[arg-type]
    shops.remove("b")
    assert reconcile(shops, control) == []  # type: ignore[arg-type]
    assert admitted() == ["a"]
    # A key that was given another name by hand is nobody's: not let in under either name.
    (folder / "a.pub").rename(folder / "c.pub")
    shops.enrol("d", new_key(tmp_path, "d").with_suffix(".pub"))
    assert reconcile(shops, control) == ["c"]  # type: ignore[arg-type]
    assert admitted() == ["d"]


def test_a_full_disk_or_a_damaged_key_ends_no_service(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way: list[Exception] = [ConfigError("a key is damaged"), OSError(28, "No space left")]
    told: list[str] = []

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def tell(*_: object) -> None:
        if in_the_way:
            raise in_the_way.pop()
        told.append("told")

    class Started:
        def pid(self, name: str) -> int:
            return 1

        restarts = pid

    monkeypatch.setattr(services, "write_whole", full)
    monkeypatch.setattr(services, "reconcile", tell)
    monkeypatch.setattr(services, "listens", lambda _: True)
    monkeypatch.setattr(services, "_TELL_EVERY", 0.0)
    looks = services._Looks(federation, Started())  # type: ignore[arg-type]
    looks.looked([services.GATEWAY])
    assert len(in_the_way) == 2  # there is nothing to tell
    looks.looked([services.SUPERLINK])
    for _ in range(4):
        looks.looked([])
    # It is told until it knows, and then no more.
    assert told == ["told"]


def test_nginx_takes_no_value_for_more_than_it_is() -> None:
    values: dict[str, Any] = {
        "listen": "127.0.0.1:1",
        "certificate": "/c",
        "key": "/k",
        "authority": "/a",
        "upstream": "127.0.0.1:2",
        "upstream_name": "localhost",
        "state": "/s",
        "access_log": "/l",
        "error_log": "stderr",
    }
    text = gateway.render(**values)
    assert "user " not in text
    assert "/health" not in text
    assert "client_max_body_size 8m;" in text
    assert gateway.render(**values, health=True, body_limit_mb=9).count("location = /health") == 1
    for bad in ("/a b", "/a;", "/a{", "/$a", '/a"', "/a\n", "/a'"):
        for name in values:
            with pytest.raises(ConfigError, match=f"gateway's {name} is"):
                gateway.render(**{**values, name: bad})


def test_up_says_how_to_get_nginx(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert call("up", "--federation", federation.folder) == 1
    assert "apt-get install nginx-light" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_up_refuses_a_gateway_at_superlink_s_own_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    federation = new_federation(tmp_path / "federation")
    settings = federation.folder / "federation.toml"
    port = federation.settings.superlink_port
    text = re.sub("listen = .*", f'listen = "{host}:{port}"', settings.read_text())
    settings.write_text(text)
    monkeypatch.setattr(gateway, "find_nginx", lambda: "true")
    # What listens there is SuperLink: the gateway would be taken for up.
    monkeypatch.setattr(services, "_start", lambda *_: pytest.fail("the services were started"))
    with pytest.raises(RunError, match=rf"cannot listen at {host}:{port}.*change gateway.listen"):
        services.up(open_federation(federation.folder))


def test_up_says_of_an_address_that_is_none_of_this_machine_s_that_nothing_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = new_federation(tmp_path / "federation")
    settings = federation.folder / "federation.toml"
    # One for documentation: no machine has it.
    settings.write_text(re.sub("listen = .*", 'listen = "192.0.2.1:8443"', settings.read_text()))
    monkeypatch.setattr(gateway, "find_nginx", lambda: "true")
    monkeypatch.setattr(services, "_start", lambda *_: pytest.fail("the services were started"))
    with pytest.raises(RunError, match=r"change gateway.listen in .*federation.toml$"):
        services.up(open_federation(federation.folder))


def test_openssl_agrees_with_the_certificates(federation: Federation) -> None:
    for pair in (federation.gateway, federation.superlink):
        command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
        subprocess.run(
            [*command, federation.authority.certificate, pair.certificate],
            check=True,
            capture_output=True,
        )


def test_a_federation_of_the_tests_is_one_that_up_takes(tmp_path: Path) -> None:
    made = new_federation(tmp_path / "f")
    check_files(made)
    assert open_federation(made.folder).settings.gateway.listen.startswith("127.0.0.1:")
