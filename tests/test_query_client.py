"""The typed client before it asks: what can't be used is told as such, and nothing is sent."""

import socket
import ssl
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError, InputError, UnavailableError
from server.__main__ import app
from server.operating.authority import Pair, issue, make_authority
from server.query.client import Client, _products


# A port beyond 65,535 was another one to gRPC, and whoever listened there got the history.
@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1", "http://[shop]", "grpc://[::1", "http://shop:eighty", "shop:8080", ""),
        *(f"{kind}://{rest}" for kind in ("http", "grpc") for rest in ("", ":80", "shop:99999")),
        "grpc://shop:0",
    ],
)
def test_an_address_of_no_use_is_told_as_such(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a service"):
        Client(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "grpc://127.0.0.1:9"])
@pytest.mark.parametrize("key", ["ключ", "ft_1\nft_2"])
def test_a_key_that_can_t_be_sent_is_told_as_such_and_not_shown(url: str, key: str) -> None:
    with pytest.raises(ConfigError, match="the API key holds what no key does") as refused:
        Client(url, key=key)
    assert key not in str(refused.value)


def test_a_history_may_be_a_list_and_what_is_none_is_told_in_words() -> None:
    """Each ended in an AttributeError, as every other form of a history takes weights as 1."""
    assert _products(["a", "b", "a"]) == _products({"a": 1.0, "b": 1.0}) + _products({"a": 1.0})
    with Client("http://127.0.0.1:9") as client:
        for wrong in ("a", {"a"}, 5):
            with pytest.raises(InputError, match="or a list of item_ids"):
                client.recommend(wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="history: item_id"):
            client.recommend([("a", 1.0)])  # type: ignore[list-item]
        with pytest.raises(InputError, match="attributes: should be an object"):
            client.explain("a", attributes=["age"])  # type: ignore[arg-type]


def test_a_version_that_grpc_cannot_say_is_bad_input() -> None:
    with Client("grpc://127.0.0.1:9") as client, pytest.raises(InputError, match="1099511627776"):
        client.privacy(2**40)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_an_empty_authority_is_not_taken_for_the_system_s(tmp_path: Path, scheme: str) -> None:
    ca = tmp_path / "ca.crt"
    ca.touch()
    with pytest.raises(ConfigError, match=r"ca\.crt holds no certificate in PEM form"):
        Client(f"{scheme}://127.0.0.1:9", ca=ca)


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        (["--similar", "p1", "--tail-dial", "0.5", "--why"], "--similar ITEM goes without --tail-"),
        (["p2", "--similar", "p1"], "goes without a history"),
        (["--similar", "p1", "--attribute", "age=30"], "goes without --attribute"),
        (["p2", "--explain", "p1", "--shop", "corner"], "--explain ITEM goes without --shop"),
        (["p2", "--explain", "p1", "-k", "20"], "--explain ITEM goes without -k"),
        (["--explain", "p1", "--price-from", "0"], "--explain ITEM goes without --price-from"),
        (["--explain", "p1", "--minimum-score", "0"], "goes without --minimum-score"),
    ],
)
def test_what_a_question_does_not_take_is_refused(asked: list[str], left: str) -> None:
    # It was left out in silence, and the answer taken for one that heeds it.
    found = CliRunner().invoke(app, ["query", *asked, "--url", "http://127.0.0.1:9"])
    assert isinstance(found.exception, ConfigError)
    assert left in str(found.exception)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
@pytest.mark.parametrize(
    ("known", "host", "days", "advice"),
    [
        # OpenSSL's words alone: nobody could guess from them that --ca takes the authority.
        (False, "127.0.0.1", 9, r"the authority that signed .*--ca"),
        # Of these too, to give the authority was the advice: it was given, or would not help.
        (True, "127.0.0.1", -1, r"the service's operator has to renew"),
        (True, "shop.example", 9, r"by a name that stands in its certificate"),
    ],
)
def test_what_to_do_about_a_certificate_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    known: bool,
    host: str,
    days: int,
    advice: str,
) -> None:
    monkeypatch.setattr("server.operating.authority._BEFORE", timedelta(days=2))
    ca, pair = (Pair(tmp_path / f"{name}.key", tmp_path / f"{name}.crt") for name in ("ca", "tls"))
    for where in (ca, pair):
        made = make_authority("test") if where == ca else issue(ca, [host], days=days)
        where.key.write_bytes(made[0])
        where.certificate.write_bytes(made[1])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=answer, daemon=True).start()
        url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        with (
            Client(url, timeout=5.0, ca=ca.certificate if known else None) as client,
            pytest.raises(UnavailableError, match=advice) as told,
        ):
            client.models()
    assert ("--ca" in str(told.value)) == (not known)
