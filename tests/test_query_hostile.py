"""What comes over REST: a clear status, no crash, no stack trace, nothing of it written down."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from hostile_support import HEALTHY, PLANTED, raw, status_of, unharmed
from query_support import Running, make_place, running
from server.operating.authority import Pair, issue, make_authority
from server.query.rest import MAX_BODY
from server.query.security import Keys

pytestmark = pytest.mark.e2e
PATIENCE = 2.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = make_place(tmp_path_factory.mktemp("hostile"))
    options = ("--rate", "1e6", "--burst", "1e6", "--patience", str(PATIENCE))
    with running(place, *options) as found:
        yield found


@pytest.fixture(autouse=True)
def _unharmed(service: Running) -> Iterator[None]:
    with unharmed(service):
        yield


@pytest.fixture
def rest(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.rest, timeout=30) as client:
        yield client


def refused(answer: httpx.Response, *statuses: int) -> str:
    """Return the words of a refusal: one JSON object, and nothing of what was sent."""
    assert answer.status_code in statuses, answer.text[:300]
    assert list(answer.json()) == ["error"]
    text: str = answer.json()["error"]
    assert len(text) < 2000
    return text


JSON = {"content-type": "application/json"}
WHOLE = ["-1", "0", "1001", "1" + "0" * 40, "2.5", '"5"', "true", "null", "[]", "NaN", "1e999"]
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1", '"0.5"', "true", "[0.5]", "{}"]


def test_a_length_that_is_none_is_refused(rest: httpx.Client) -> None:
    for value in WHOLE:
        body = f'{{"k": {value}, "attributes": {{"age": "{PLANTED}"}}}}'
        assert "k: " in refused(rest.post("/v1/recommend", content=body, headers=JSON), 422)


@pytest.mark.parametrize(
    ("where", "shape"),
    [
        ("weight", '{"history": [{"item_id": "x", "weight": VALUE}]}'),
        ("tail_dial", '{"tail_dial": VALUE}'),
        ("price_from", '{"filters": {"price_from": VALUE}}'),
        ("minimum_score", '{"filters": {"minimum_score": VALUE}}'),
    ],
)
def test_a_number_that_is_none_is_refused(rest: httpx.Client, where: str, shape: str) -> None:
    for value in NUMBERS:
        answer = rest.post("/v1/recommend", content=shape.replace("VALUE", value), headers=JSON)
        if (where, value) == ("minimum_score", "-1"):
            assert answer.status_code == 200
        else:
            assert where in refused(answer, 422), value


NO_REQUESTS = [
    b"",
    b"null",
    b"[]",
    b'"' + PLANTED.encode() + b'"',
    b"{",
    b'{"k": 5}' + PLANTED.encode(),
    b"\xff\xfe\x00" + PLANTED.encode(),
    b'{"history": [{"item_id": "\xc3\x28"}]}',
    b'{"history": [{"item_id": "\\ud800%s"}]}' % PLANTED.encode(),
    b'{"attributes": {"\\udfff": "x"}}',
    b"[" * 1_000_000,
    b'{"filters":' * 100_000,
    b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"k": ' + b"9" * 1_000_000 + b"}",
    b'{"%s": 1}' % PLANTED.encode(),
    b'{"k": 5, "k": "%s"}' % PLANTED.encode(),
]


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/recommend/batch", "/v1/explain"])
def test_what_is_no_request_is_refused(rest: httpx.Client, path: str) -> None:
    for content in NO_REQUESTS:
        refused(rest.post(path, content=content, headers=JSON), 422)


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({}, (422,)),
        ({"content-type": "text/plain"}, (422,)),
        ({"content-type": "application/xml"}, (422,)),
        ({"content-type": "application/x-www-form-urlencoded"}, (422,)),
        ({"content-type": "multipart/form-data; boundary=x"}, (422,)),
        ({"content-type": f"application/{PLANTED}"}, (422,)),
        ({"content-type": "application/json", "content-encoding": "gzip"}, (200, 422)),
        ({"content-type": "application/json; charset=utf-16"}, (200, 422)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_kinds_of_content_are_refused(
    rest: httpx.Client, headers: dict[str, str], statuses: tuple[int, ...]
) -> None:
    body = json.dumps({"attributes": {"age": PLANTED}}).encode()
    answer = rest.post("/v1/recommend", content=body, headers=headers)
    assert answer.status_code in statuses
    assert PLANTED not in answer.text


def test_products_that_nobody_knows_are_told_back_or_refused(rest: httpx.Client) -> None:
    names = [f"{PLANTED}-{i}" for i in range(9_999)] + ["\x00\x1b[31m\n" + PLANTED]
    body = {"history": [{"item_id": name} for name in names], "k": 3}
    found = rest.post("/v1/recommend", json=body).raise_for_status().json()
    assert found["unknown_items"] == names
    assert len(found["items"]) == 3
    for path in ("/v1/similar", "/v1/explain"):
        assert "no product" in refused(rest.post(path, json={"item_id": PLANTED}), 422)
    for field in ("category", "brand", "merchant_id"):
        refused(rest.post("/v1/recommend", json={"filters": {field: PLANTED}}), 422)
    exclude = {"filters": {"exclude": names}}
    assert rest.post("/v1/recommend", json=exclude).status_code == 200


def errors_by_the_million() -> dict[str, tuple[str, str]]:
    """Path and body, below the largest size, of what would be a million errors to collect."""
    fields = ",".join(f'"{i:x}":1' for i in range(380_000))
    ones = ",".join("1" * 1_000_000)
    return {
        "products": ("/v1/recommend", '{"history":[' + "{}," * 999_999 + "{}]}"),
        "numbers": ("/v1/explain", '{"item_id":"a","history":[' + ones + "]}"),
        "excluded": ("/v1/similar", '{"filters":{"exclude":[' + ones + "]}}"),
        "requests": ("/v1/recommend/batch", '{"requests":[' + ones + "]}"),
        "fields": ("/v1/recommend", "{" + fields + "}"),
        "attributes": ("/v1/recommend", '{"attributes":{' + fields + "}}"),
    }


def test_a_history_of_a_million_products_is_refused(rest: httpx.Client) -> None:
    body = '{"history": [' + ",".join(['{"item_id":"a"}'] * 1_000_000) + "]}"
    refused(rest.post("/v1/recommend", content=body, headers=JSON), 413)


@pytest.mark.parametrize("kind", errors_by_the_million())
def test_a_million_errors_are_not_collected(rest: httpx.Client, kind: str) -> None:
    path, body = errors_by_the_million()[kind]
    assert len(body) < MAX_BODY
    started = time.monotonic()
    refused(rest.post(path, content=body, headers=JSON), 422)
    # Reading it takes a tenth of a second; collecting all errors took ten.
    assert time.monotonic() - started < 5


def test_long_strings_are_refused_wherever_they_stand(rest: httpx.Client) -> None:
    for size, status in ((10 * 2**20, 413), (3 * 2**20, 422)):
        long = PLANTED + "x" * size
        refused(rest.post("/v1/recommend", json={"attributes": {"age": long}}), status)
        refused(rest.post("/v1/recommend", json={"attributes": {long: "x"}}), status)
        refused(rest.post("/v1/similar", json={"item_id": long}), status)
        refused(rest.post("/v1/recommend", json={long: 1}), status)
    many = {"attributes": {f"{PLANTED}{i}": "x" for i in range(33)}}
    refused(rest.post("/v1/recommend", json=many), 422)
    largest = {"requests": [{"history": [{"item_id": PLANTED}] * 10_001}]}
    refused(rest.post("/v1/recommend/batch", json=largest), 422)
    refused(rest.post("/v1/recommend/batch", json={"requests": [{}] * 101}), 422)


def test_paths_and_methods_that_there_are_not(rest: httpx.Client) -> None:
    for path in (f"/{PLANTED}", f"/v1/{PLANTED}?{PLANTED}=1", "/v1/../../etc/passwd", "/v1/%00"):
        assert rest.get(path).status_code == 404
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", PLANTED.upper()[:7]):
        assert rest.request(method, "/v1/recommend").status_code in (400, 405)
    for version in ("-1", "99", "9" * 30, "9" * 5000, PLANTED, "1e9", "%00", "NaN"):
        answer = rest.get(f"/v1/models/{version}/privacy")
        assert answer.status_code in (404, 422)
        assert PLANTED not in answer.text


HEAD = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (PLANTED.encode() + b"\r\n\r\n", 400),
        (b"GET /healthz HTTP/9.9\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00" + b"\x00" * 300, 400),
        (b"GET /%s\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n" % PLANTED.encode(), 400),
        (HEAD + b"content-length: -5\r\n\r\n", 400),
        (HEAD + b"content-length: 99999999999999999999999\r\n\r\n", 400),
        (HEAD + b"content-length: 99999999999\r\n\r\n" + PLANTED.encode(), 413),
        (HEAD + b"content-length: 4\r\ncontent-length: 5\r\n\r\n{}  ", 400),
        (HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n" + PLANTED.encode() + b"\r\n", 400),
        (HEAD + b"x: %s\r\n\r\n" % (PLANTED.encode() * 100_000), 431),
        (HEAD + b"x: y\r\n" * 50_000 + b"\r\n", 431),
        (b"GET /" + PLANTED.encode() * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"x" * 200_000, 400),
        (HEAD + b"x: " + b"y" * 300_000, 431),
    ],
    ids=range(16),
)
def test_bytes_that_are_no_request_get_a_status(service: Running, sent: bytes, status: int) -> None:
    answer = raw(service, sent)
    assert status_of(answer) == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert PLANTED.encode() not in answer


def test_who_is_slow_is_told_so_and_keeps_nobody_waiting(service: Running) -> None:
    body = b"content-length: 50\r\n\r\n{" + PLANTED.encode()
    pieces = {
        "nothing": (b"",),
        "head": (HEAD,),
        "body": (HEAD + body,),
        "drop by drop": tuple(HEAD[i : i + 1] for i in range(30)),
    }
    answers: dict[str, bytes] = {}

    def send(name: str) -> None:
        answers[name] = raw(service, *pieces[name], pause=0.1)

    threads = [threading.Thread(target=send, args=(name,)) for name in pieces]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    httpx.post(f"{service.rest}/v1/recommend", json=HEALTHY).raise_for_status()
    assert time.monotonic() - started < PATIENCE
    for thread in threads:
        thread.join()
    assert {name: status_of(answer) for name, answer in answers.items()} == dict.fromkeys(
        pieces, 408
    )


def test_a_slow_request_that_arrives_in_time_is_answered(service: Running) -> None:
    body = json.dumps(HEALTHY).encode()
    head = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    whole = head + body
    third = len(whole) // 3
    pieces = (whole[:third], whole[third : 2 * third], whole[2 * third :])
    assert status_of(raw(service, *pieces, pause=PATIENCE / 5)) == 200


def test_hundreds_of_silent_connections_keep_nobody_waiting(service: Running) -> None:
    host, port = service.rest.removeprefix("http://").rsplit(":", 1)
    silent = [socket.create_connection((host, int(port))) for _ in range(300)]
    try:
        answer = httpx.post(f"{service.rest}/v1/recommend", json=HEALTHY, timeout=PATIENCE)
        assert answer.status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_callers_who_leave_before_the_answer_do_no_harm(service: Running) -> None:
    host, port = service.rest.removeprefix("http://").rsplit(":", 1)
    body = json.dumps({"requests": [{"attributes": {"age": PLANTED}}] * 100}).encode()
    head = HEAD.replace(b"recommend", b"recommend/batch")
    for sent in (
        head + b"content-length: %d\r\n\r\n" % len(body) + body,
        HEAD + b"content-length:",
    ):
        for _ in range(20):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
                # Closed with a reset: the answer cannot be delivered.
                linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def test_several_requests_at_once_are_answered_in_their_order(service: Running) -> None:
    body = json.dumps(HEALTHY).encode()
    one = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    last = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = raw(service, one * 3 + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.endswith(b"ok\n")


WRONG_KEYS: list[bytes | None] = [
    None,
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer " + PLANTED.encode(),
    b"Bearer ft_" + b"A" * 43,
    b"Bearer " + PLANTED.encode() * 1000,
    b"Basic " + PLANTED.encode(),
    b"bearer\t" + PLANTED.encode(),
    b"Bearer \xff\xfe" + PLANTED.encode(),
    PLANTED.encode(),
]


def test_without_a_right_key_nothing_is_answered(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    keys = tmp_path / "keys.json"
    good = Keys(keys).add("shop")
    with (
        running(place, "--keys", str(keys), "--burst", "60", "--rate", "0.01") as service,
        httpx.Client(base_url=service.rest, timeout=30) as rest,
    ):
        for wrong in WRONG_KEYS:
            line = b"" if wrong is None else b"authorization: " + wrong + b"\r\n"
            told = raw(service, HEAD + line + b"content-length: 2\r\nconnection: close\r\n\r\n{}")
            assert status_of(told) == 401
            assert b"www-authenticate: Bearer\r\n" in told
            assert PLANTED.encode() not in told
        both = [(b"authorization", b"Bearer x"), (b"authorization", b"Bearer " + good.encode())]
        assert rest.post("/v1/recommend", json={}, headers=both).status_code in (200, 401)
        # The body is not even read, up to any size.
        head = HEAD + b"content-length: 99999999999\r\nconnection: close\r\n\r\n"
        assert status_of(raw(service, head)) == 401
        right = {"authorization": f"Bearer {good}"}
        codes = [rest.post("/v1/recommend", json={}, headers=right).status_code for _ in range(70)]
        assert codes == [200] * 60 + [429] * 10
        late = rest.post("/v1/recommend", json={}, headers=right)
        assert int(late.headers["retry-after"]) >= 1
        assert "too many requests" in refused(late, 429)
        # Another caller is not made to wait for it.
        guesses = [rest.post("/v1/recommend", json={}).status_code for _ in range(60)]
        assert guesses[0] == 401
        assert guesses[-1] == 429
        assert rest.get("/healthz").status_code == 200
        log = "".join(service.log)
        assert PLANTED not in log
        assert good not in log
        assert "Traceback" not in log


def test_a_file_of_keys_that_cannot_be_read_is_told_to_the_log_alone(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    keys = tmp_path / "keys.json"
    good = Keys(keys).add("shop")
    spoilt = {"keys": [{"name": "till", "sha256": PLANTED, "created_at": "", "note": PLANTED}]}
    with (
        running(place, "--keys", str(keys)) as service,
        httpx.Client(base_url=service.rest, timeout=30) as rest,
        grpc.insecure_channel(service.grpc) as channel,
    ):
        keys.write_text(json.dumps(spoilt), encoding="utf-8")
        for key in (good, "a guess"):
            header = {"authorization": f"Bearer {key}"}
            call = channel.unary_unary("/fedtail.v1.Recommender/ListModels").future(
                b"", timeout=20, metadata=tuple(header.items())
            )
            assert str(keys) not in (call.details() or "")
            assert call.code() == grpc.StatusCode.INTERNAL
            assert str(keys) not in refused(rest.get("/v1/models", headers=header), 500)
        log = "".join(service.log)
        assert "keys.0.sha256: String should match pattern" in log
        assert PLANTED not in log
        assert "Traceback" not in log


def test_talking_in_clear_to_a_service_with_a_certificate(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    authority = Pair(tmp_path / "ca.key", tmp_path / "ca.crt")
    pair = Pair(tmp_path / "server.key", tmp_path / "server.crt")
    for one, made in ((authority, make_authority("test")), (pair, None)):
        key, certificate = made or issue(authority, ["127.0.0.1"])
        one.key.write_bytes(key)
        one.certificate.write_bytes(certificate)
    with running(place, "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)) as service:
        clear = Running(service.process, service.rest.replace("https", "http"), "", service.log)
        assert not raw(clear, HEAD + b"\r\n").startswith(b"HTTP/1.1 2")
        trust = ssl.create_default_context(cafile=str(authority.certificate))
        with httpx.Client(base_url=service.rest, verify=trust) as rest:
            assert rest.post("/v1/recommend", json=HEALTHY).status_code == 200
            refused(rest.post("/v1/recommend", content=b"\xff", headers=JSON), 422)
        assert "Traceback" not in "".join(service.log)
