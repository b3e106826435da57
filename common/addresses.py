"""Addresses of servers, ``host:port``: one rule for who gives one out and who is given it."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[IPv6]:port``; ValueError if it is neither."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal():
        raise ValueError("write it as host:port, such as federation.example.org:8443")
    if not 0 < int(port) < 65536:
        raise ValueError("the port is a number from 1 to 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if not _HOST.fullmatch(bare) or host != bare:
            raise ValueError(f"{host!r} is neither a host's name nor an IP address") from None
    else:
        if (address.version == 6) != (host != bare):
            raise ValueError("write an IPv6 address in brackets, such as [::1]:8443")
        if "%" in bare:
            raise ValueError(f"{host!r} is of one machine alone: give one without %, for all shops")
    return bare, int(port)


def _checked_address(text: str) -> str:
    split_address(text)
    return text


Address = Annotated[str, AfterValidator(_checked_address)]
