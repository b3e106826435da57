"""Why a federation cannot be reached, in words that say who can do something about it."""

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from common.addresses import split_address
from common.errors import ConfigError

_SECONDS = 5.0
# OpenSSL's numbers (x509_vfy.h).
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64


def check_authority(path: Path) -> None:
    """Refuse a certificate authority that could never vouch for the federation.

    Raises
    ------
    ConfigError
        If it is missing, not a certificate, or expired.
    """
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot read the federation's certificate authority, {path}: {error.strerror}; its "
            "operator gives it to every shop"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate (PEM): ask the operator for it") from error
    if all(one.not_valid_after_utc < datetime.now(UTC) for one in certificates):
        raise ConfigError(f"the certificate in {path} has expired: ask the operator for a new one")


def obstacle(address: str, authority: Path) -> str:
    """Try to reach a federation; return what is in the way, empty if nothing.

    Parameters
    ----------
    address
        ``host:port``.
    authority
        The certificate authority that must vouch for it.
    """
    host, port = split_address(address)
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with (
            socket.create_connection((host, port), _SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return ""
    except socket.gaierror:
        return f"there is no host named {host!r}: check the address, and this machine's network"
    except ssl.SSLCertVerificationError as error:
        return _about_certificate(address, authority, error)
    except ssl.SSLError:
        return f"what answers at {address} does not speak TLS: check the address and its port"
    except TimeoutError:
        return f"nothing answers at {address}: a firewall may be in the way"
    except ConnectionRefusedError:
        return f"nothing listens at {address}: the federation may be down, or the port be another"
    except OSError as error:
        return f"cannot reach {address}: {error.strerror or error}"


def _about_certificate(address: str, authority: Path, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return f"the certificate of {address} has expired: its operator must renew it"
    if error.verify_code == _NOT_YET:
        return f"the certificate of {address} is not valid yet: is this machine's clock right?"
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return f"the certificate of {address} is for another name: check the address"
    return (
        f"the certificate of {address} is not from the authority in {authority}: this is not "
        "the federation, or its operator has a new authority"
    )
