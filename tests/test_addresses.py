"""Addresses, ``host:port``."""

import pytest

from common.addresses import split_address


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("shops.example.org:8443", ("shops.example.org", 8443)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_an_address_is_host_and_port(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host", "host:port"),
        ("host:", "host:port"),
        ("host:²", "host:port"),
        ("host:0", "from 1 to 65535"),
        ("host:99999", "from 1 to 65535"),
        (":80", "neither"),
        ("https://host:1", "neither"),
        ("a b:1", "neither"),
        ("fed..example:1", "neither"),
        ("[host]:1", "neither"),
        ("::1:8443", "in brackets"),
        ("[10.0.0.1]:1", "in brackets"),
        # A federation was made of it whose certificate no shop could find that name in.
        ("[fe80::1%eth0]:1", "of one machine"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split_address(text)
