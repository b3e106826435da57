"""The federation's own certificate authority: shops trust it, and nothing else, for the gateway.

Its key never leaves the operator's folder. Server certificates name the hosts at which they may be
found; a node's own key is enrolled, not signed (:mod:`server.operating.shops`).
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError

#: Shops hold the authority's certificate by hand, so it lasts; a server's is renewed by a command.
AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
#: How long before the end of a certificate we begin to speak of it.
SOON_DAYS = 30
#: A shop's clock may be behind.
_BEFORE = timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """The files of a private key and of its certificate, both PEM."""

    key: Path
    certificate: Path


def make_authority(name: str) -> tuple[bytes, bytes]:
    """Return the key and the certificate, PEM, of a new authority."""
    key = ec.generate_private_key(ec.SECP384R1())
    return _key_pem(key), _authority_certificate(key, name)


def renew_authority(pair: Pair) -> bytes:
    """Return a fresh certificate for the key that shops know already."""
    old = _certificate(pair.certificate)
    names = old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _authority_certificate(_key(pair.key), str(names[0].value))


def issue(authority: Pair, hosts: Sequence[str], *, days: int = SERVER_DAYS) -> tuple[bytes, bytes]:
    """Return a new key and its server certificate, PEM, for these host names and addresses."""
    signer, signed_by = _key(authority.key), _certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    start = now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(hosts[0]))
        .issuer_name(signed_by.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BEFORE)
        .not_valid_after(min(start + timedelta(days=days), signed_by.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(h) for h in hosts]), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .sign(signer, hashes.SHA384())
    )
    return _key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def hosts_of(pair: Pair) -> list[str]:
    """Return the hosts that a server certificate names.

    Raises
    ------
    ConfigError
        If it names none, as every client asks of it.
    """
    found = _certificate(pair.certificate).extensions
    try:
        named = found.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound as error:
        raise ConfigError(
            f"{pair.certificate} names no host, as subject alternative names: put the one back "
            "that `python -m server init` made"
        ) from error
    return [str(name.value) for name in named.value]


def names(pair: Pair, host: str) -> bool:
    """Return whether a server certificate is good for a host, by its own name or by ``*.``."""
    known = [name.lower() for name in hosts_of(pair)]
    own = str(_general_name(host.lower()).value)
    return own in known or f"*.{own.partition('.')[2]}" in known


def expiry(certificate: Path) -> datetime:
    """Return when a certificate expires."""
    return _certificate(certificate).not_valid_after_utc


def now() -> datetime:
    """Return the time that certificates are judged by."""
    return datetime.now(UTC)


def check(pair: Pair, authority: Path) -> None:
    """Raise :class:`ConfigError` unless the pair is whole, valid today and the authority's.

    Parameters
    ----------
    authority
        The authority's certificate; it is checked as well.
    """
    root = _certificate(authority)
    certificate = _certificate(pair.certificate)
    today = now()
    for path, found in ((authority, root), (pair.certificate, certificate)):
        if found.not_valid_after_utc <= today:
            raise ConfigError(
                f"{path} expired on {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: "
                "`python -m server renew` makes new certificates"
            )
        if found.not_valid_before_utc > today:
            raise ConfigError(
                f"{path} is not valid before {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: "
                "set this machine's clock"
            )
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(
            f"{pair.certificate} was not signed by {authority}: `python -m server renew`"
        ) from error
    if _key(pair.key).public_key() != certificate.public_key():
        raise ConfigError(
            f"{pair.key} is not the key of {pair.certificate}: `python -m server renew`"
        )


def _authority_certificate(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    start = now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BEFORE)
        .not_valid_after(start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    # X.509 allows 64 characters, which are counted as bytes here; clients read the alternative
    # names and not this one.
    short = text.encode()[:64].decode(errors="ignore")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, short)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a private key in PEM: restore it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an elliptic-curve key: restore it")
    return key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate in PEM: restore it") from error
