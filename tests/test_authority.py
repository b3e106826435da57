import shutil
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import ConfigError
from server.operating import authority
from server.operating.authority import Pair


def new_authority(folder: Path) -> Pair:
    folder.mkdir()
    pair = Pair(folder / "ca.key", folder / "ca.crt")
    key, certificate = authority.make_authority("test authority")
    pair.key.write_bytes(key)
    pair.certificate.write_bytes(certificate)
    return pair


def new_server(root: Pair, hosts: list[str], days: int = authority.SERVER_DAYS) -> Pair:
    folder = root.key.parent
    pair = Pair(folder / "server.key", folder / "server.crt")
    key, certificate = authority.issue(root, hosts, days=days)
    pair.key.write_bytes(key)
    pair.certificate.write_bytes(certificate)
    return pair


def handshake(root: Pair, server: Pair, host: str) -> None:
    """Shake hands in memory, as a client of ``host`` that trusts ``root`` alone."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server.certificate, server.key)
    client_context = ssl.create_default_context(cafile=root.certificate)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    peer = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, peer):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue


def test_a_client_that_trusts_the_authority_takes_its_servers_under_their_names(
    tmp_path: Path,
) -> None:
    root = new_authority(tmp_path / "ca")
    hosts = ["federation.example.org", "192.0.2.1", "::1"]
    server = new_server(root, hosts)
    for host in hosts:
        handshake(root, server, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(root, server, "elsewhere.example.org")
    assert authority.hosts_of(server) == hosts
    assert [authority.names(server, host) for host in (*hosts, "example.org")] == [True] * 3 + [
        False
    ]
    with pytest.raises(ConfigError, match=r"ca\.crt names no host"):
        authority.hosts_of(root)
    other = new_authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other, server, hosts[0])


def test_what_the_certificates_may_be_used_for(tmp_path: Path) -> None:
    root = new_authority(tmp_path / "ca")
    server = new_server(root, ["localhost"])
    top = x509.load_pem_x509_certificate(root.certificate.read_bytes())
    limits = top.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)
    assert top.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    found = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    days = found.not_valid_after_utc - found.not_valid_before_utc
    # Apple's clients, for one, refuse a server's certificate that lasts longer.
    assert days <= timedelta(days=825, hours=2)
    # What is signed never outlives its signer.
    assert new_server(root, ["localhost"], days=99_999).certificate.exists()
    assert authority.expiry(server.certificate) == authority.expiry(root.certificate)


def test_a_pair_is_checked_whole(tmp_path: Path) -> None:
    root = new_authority(tmp_path / "ca")
    server = new_server(root, ["localhost"])
    authority.check(server, root.certificate)

    expired = new_server(root, ["localhost"], days=0)
    with pytest.raises(ConfigError, match=r"server\.crt expired on .* renew"):
        authority.check(expired, root.certificate)

    server = new_server(root, ["localhost"])
    other = new_authority(tmp_path / "other")
    with pytest.raises(ConfigError, match="was not signed by"):
        authority.check(server, other.certificate)
    shutil.copy(other.key, server.key)
    with pytest.raises(ConfigError, match="is not the key of"):
        authority.check(server, root.certificate)
    server.key.write_text("not a key")
    with pytest.raises(ConfigError, match="not a private key in PEM"):
        authority.check(server, root.certificate)
    server.certificate.write_text("not a certificate")
    with pytest.raises(ConfigError, match="not a certificate in PEM"):
        authority.check(server, root.certificate)
    server.certificate.unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*server\.crt"):
        authority.check(server, root.certificate)


def test_a_renewed_authority_is_still_the_one_that_shops_know(tmp_path: Path) -> None:
    root = new_authority(tmp_path / "ca")
    server = new_server(root, ["localhost"])
    old = root.certificate.read_bytes()
    root.certificate.write_bytes(authority.renew_authority(root))
    assert root.certificate.read_bytes() != old
    handshake(root, server, "localhost")
    later = new_server(root, ["localhost"])
    root.certificate.write_bytes(old)
    handshake(root, later, "localhost")
