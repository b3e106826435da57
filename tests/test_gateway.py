"""What can be had through the gateway's port, with a real nginx and a real SuperLink."""

import http.client
import json
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.addresses import split_address
from common.programs.processes import free_port, listens
from operator_support import (
    WAIT_SECONDS,
    Up,
    need_nginx,
    new_federation,
    new_key,
    running,
    server,
    start_up,
    supernode,
    wait_for,
)
from server.operating import gateway
from server.operating.enrolling import remove
from server.operating.folder import Federation
from server.operating.listening import listeners
from server.operating.services import control, read_up
from server.operating.shops import Shop, Shops, read_key, reconcile

pytestmark = pytest.mark.e2e

PROTOBUF = {"Content-Type": "application/protobuf"}
FLEET = "/v1/fleet/pull-messages"
#: What SuperLink answers to a body that no node signed; nginx never does.
UNSIGNED = 401


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(new_federation(tmp_path_factory.mktemp("up") / "federation")) as found:
        yield found


def ask(
    port: int,
    context: ssl.SSLContext,
    path: str,
    method: str = "POST",
    body: bytes | Iterator[bytes] = b"",
    headers: dict[str, str] | None = None,
) -> http.client.HTTPResponse:
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=30)
    # A body may be refused before all of it was sent: the answer is there.
    with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        connection.request(method, path, body, headers or PROTOBUF)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def _is_new(up: Up, program: str, old: int) -> bool:
    return up.pid(program) not in (0, old)


def gate(up: Up) -> int:
    return split_address(up.federation.settings.gateway.listen)[1]


def trusting(up: Up) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=up.federation.authority.certificate)


def test_a_fleet_path_reaches_superlink_and_nothing_else_does(up: Up) -> None:
    direct = ask(up.federation.settings.superlink_port, trusting(up), FLEET)
    through = ask(gate(up), trusting(up), FLEET)
    assert through.status == direct.status == UNSIGNED
    # The same ports, asked for what the Control API gives to anybody: the gateway has none of it.
    control_path = "/v1/control/list-nodes"
    assert ask(up.federation.settings.superlink_port, trusting(up), control_path).status == 200
    refused = ask(gate(up), trusting(up), control_path)
    assert refused.status == 404
    assert refused.headers["Server"] == "nginx"  # without its version


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/control/start-run",
        "/v1/runtime/pull-task",
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/%2e%2e%2fcontrol/list-nodes",
        "/v1/fleet/..;/control/list-nodes",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/V1/FLEET/pull-messages",
        "/v1/control/../fleet/pull-messages",
        "/v1/control/list-nodes?/v1/fleet/pull-messages",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages%00",
        "https://localhost/v1/control/list-nodes",
    ],
)
def test_no_other_path_passes(up: Up, path: str) -> None:
    assert ask(gate(up), trusting(up), path).status in (400, 404)


def test_only_post_passes(up: Up) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        answer = ask(gate(up), trusting(up), FLEET, method)
        # In nginx's words: SuperLink, which would refuse it too, was not asked.
        assert (answer.status, answer.headers["Content-Type"]) == (405, "text/html")


def test_plain_http_is_refused(up: Up) -> None:
    connection = http.client.HTTPConnection("localhost", gate(up), timeout=30)
    connection.request("POST", FLEET, b"", PROTOBUF)
    assert connection.getresponse().status == 400
    connection.close()


def test_old_tls_is_refused(up: Up) -> None:
    client = subprocess.run(
        ["openssl", "s_client", "-connect", f"localhost:{gate(up)}", "-tls1_1",
         "-cipher", "ALL:@SECLEVEL=0"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert client.returncode != 0
    assert "alert protocol version" in client.stderr


@pytest.mark.slow
def test_whoever_trusts_another_authority_refuses_the_gateway(up: Up, tmp_path: Path) -> None:
    foreign = new_federation(tmp_path / "foreign").authority.certificate
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        ask(gate(up), ssl.create_default_context(cafile=foreign), FLEET)
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        ask(gate(up), ssl.create_default_context(), FLEET)
    with supernode(up.federation, new_key(tmp_path, "node"), authority=foreign) as (node, log):
        assert node.wait(WAIT_SECONDS) != 0
    assert "CERTIFICATE_VERIFY_FAILED" in log.read_text()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversized_body_is_refused(up: Up, chunked: bool) -> None:
    limit = up.federation.settings.gateway.body_limit_mb * 1024 * 1024
    path, piece = "/v1/fleet/push-object", bytes(64 * 1024)

    def send(size: int) -> int:
        pieces = [piece] * (size // len(piece))
        body = iter(pieces) if chunked else b"".join(pieces)
        return ask(gate(up), trusting(up), path, body=body).status

    assert send(2 * limit) == 413
    # An array's largest chunk comes through: SuperLink itself answers.
    assert send(5 * 1024 * 1024 + len(piece)) not in (413, 502)


@contextmanager
def another_gateway(
    up: Up, own: Federation, folder: Path, requests_per_second: int = 200
) -> Iterator[int]:
    """Yield the port of a second gateway to the same SuperLink, and end it."""
    port, state = free_port(), folder / "state"
    state.mkdir(mode=0o700)
    config = folder / "nginx.conf"
    config.write_text(
        gateway.render(
            listen=f"127.0.0.1:{port}",
            certificate=own.gateway.certificate,
            key=own.gateway.key,
            authority=own.authority.certificate,
            upstream=up.federation.superlink_address,
            upstream_name="localhost",
            state=state,
            access_log=folder / "access.log",
            error_log="stderr",
            user=gateway.worker_user(),
            requests_per_second=requests_per_second,
        )
    )
    with (folder / "log").open("wb") as log:
        nginx = subprocess.Popen([need_nginx(), "-c", config, "-e", "stderr"], stderr=log)
    try:
        wait_for(lambda: listens(port), "a gateway")
        yield port
    finally:
        nginx.terminate()
        nginx.wait(30)


def test_the_gateway_asks_superlink_for_its_certificate(up: Up, tmp_path: Path) -> None:
    foreign = new_federation(tmp_path / "foreign")
    context = ssl.create_default_context(cafile=foreign.authority.certificate)
    with another_gateway(up, foreign, tmp_path) as port:
        assert ask(port, context, FLEET).status == 502
    assert "certificate verify error" in (tmp_path / "log").read_text()


def test_who_asks_too_often_is_told_what_a_node_tries_again_after(up: Up, tmp_path: Path) -> None:
    with another_gateway(up, up.federation, tmp_path, requests_per_second=1) as port:
        seen = [ask(port, trusting(up), FLEET).status for _ in range(40)]
    # A burst of ten goes through, and after it one a second. Flower's node ends itself after 429.
    assert seen[:11] == [UNSIGNED] * 11
    assert set(seen) == {UNSIGNED, 503}


def node_client(up: Up, key: Path) -> FleetHttpClient:
    """Return Flower's own client, which signs as the node with this key does."""
    private = serialization.load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return FleetHttpClient.from_server_address(
        up.federation.settings.address,
        insecure=False,
        root_certificates=up.federation.authority.certificate.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, private.public_key()),
        ],
    )


def test_a_key_speaks_for_its_own_node_alone(up: Up, tmp_path: Path) -> None:
    shops = Shops(up.federation.shops)
    keys = {name: new_key(tmp_path, name) for name in ("one", "two", "stranger")}
    for name in ("one", "two"):
        shops.enrol(name, keys[name].with_suffix(".pub"))
    asked = control(up.federation)
    assert reconcile(shops, asked) == []
    try:
        nodes = {node.name: Node(node_id=node.node_id) for node in asked.nodes()}

        def poll(key: str, node: str) -> int:
            with node_client(up, keys[key]) as client:
                try:
                    client.PullMessages(PullMessagesRequest(node=nodes[node]))
                except httpx.HTTPStatusError as error:
                    return error.response.status_code
            return 200

        assert poll("one", "one") == 200
        assert poll("two", "one") == UNSIGNED
        assert poll("stranger", "one") == UNSIGNED
        # Nor does anybody enrol themselves.
        own = read_key(keys["stranger"].with_suffix(".pub"))
        with node_client(up, keys["stranger"]) as client, pytest.raises(httpx.HTTPStatusError):
            client.RegisterNode(RegisterNodeFleetRequest(public_key=Shop("x", own).pem))
        assert {node.name for node in asked.nodes()} == {"one", "two"}
    finally:
        shops.remove("one")
        shops.remove("two")
        reconcile(shops, asked)


@pytest.mark.slow
def test_only_enrolled_shops_are_let_in_and_removed_ones_are_put_out(
    up: Up, tmp_path: Path
) -> None:
    stranger = new_key(tmp_path, "stranger")
    with supernode(up.federation, stranger) as (node, log):
        assert node.wait(WAIT_SECONDS) != 0
        assert "Exit Code: 305" in log.read_text()

    key = new_key(tmp_path, "shop")
    told = server(up.federation, "enrol", "Shop 1/a", str(key.with_suffix(".pub")), "--json")
    assert json.loads(told.stdout)["superlink_told"], told.stderr
    with supernode(up.federation, key) as (node, log):

        def status() -> dict[str, str]:
            return {one.name: one.status for one in control(up.federation).nodes()}

        wait_for(lambda: status() == {"Shop 1/a": "online"}, "the shop's node online")
        listed = json.loads(server(up.federation, "shops", "--json").stdout)
        assert [(s["shop"], s["status"]) for s in listed["shops"]] == [("Shop 1/a", "online")]
        renamed = server(up.federation, "rename", "Shop 1/a", "Shop 1/b")
        assert renamed.returncode == 2
        assert "takes none under a second name" in renamed.stderr
        assert server(up.federation, "remove", "Shop 1/a").returncode == 0
        node.wait(WAIT_SECONDS)
    (key.with_suffix("") / "secret").unlink()
    key.with_suffix("").rename(tmp_path / "first")
    with supernode(up.federation, key) as (node, log):
        assert node.wait(WAIT_SECONDS) != 0
        assert "Exit Code: 305" in log.read_text()
    again = server(up.federation, "enrol", "Shop 1/a", str(key.with_suffix(".pub")))
    assert again.returncode == 2
    assert "never admits one again" in again.stderr


def test_what_listens_where(up: Up) -> None:
    settings = up.federation.settings
    found = {one.port: one for one in listeners(up.federation)}
    assert set(found) == {settings.superlink_port, gate(up)}
    assert (found[gate(up)].program, found[settings.superlink_port].program) == (
        "gateway",
        "superlink",
    )
    assert found[settings.superlink_port].address == "127.0.0.1"
    assert not found[settings.superlink_port].outside
    # The same from outside of those processes: SuperLink's port is on no other address.
    others = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    assert not [host for host in others if listens(settings.superlink_port, host)]
    shown = json.loads(server(up.federation, "ports", "--json").stdout)
    assert {one["port"] for one in shown["listeners"]} == set(found)


def test_bodies_and_queries_are_not_logged(up: Up) -> None:
    ask(gate(up), trusting(up), "/v1/fleet/push-object?secret-query", body=b"secret-body")
    ask(gate(up), trusting(up), "/v1/fleet/push-object", body=b"secret-body",
        headers=PROTOBUF | {"X-Own": "secret-header"})  # fmt: skip
    log = up.federation.logs / "access.log"
    wait_for(lambda: "POST /v1/fleet/push-object" in log.read_text(), "the request in the log")
    assert "secret" not in log.read_text()
    assert not [path for path in (up.federation.state / "nginx").rglob("*") if "body/" in str(path)]


@pytest.mark.slow
def test_what_dies_is_started_again_and_a_second_up_is_refused(tmp_path: Path) -> None:
    federation = new_federation(tmp_path / "federation")
    shop = new_key(tmp_path, "shop").with_suffix(".pub")
    Shops(federation.shops).enrol("one", shop)
    with running(federation) as up:
        second = server(federation, "up")
        assert (second.returncode, "already" in second.stderr) == (1, True)
        assert read_up(federation)["pid"] == up.process.pid

        for program in ("gateway", "superlink", "superexec"):
            old = up.pid(program)
            psutil.Process(old).kill()
            wait_for(partial(_is_new, up, program, old), f"a new {program}")
        wait_for(
            lambda: listens(federation.settings.superlink_port) and listens(gate(up)), "both ports"
        )
        wait_for(lambda: ask(gate(up), trusting(up), FLEET).status == UNSIGNED, "SuperLink")
        # Killed as it was, it still knows who is enrolled.
        assert [node.name for node in control(federation).nodes()] == ["one"]

        up.process.send_signal(signal.SIGKILL)
        up.process.wait()
        left = up.family()
        assert len(left) >= 3
        with running(federation) as next_up:
            assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
            next_up.process.send_signal(signal.SIGINT)
            assert next_up.process.wait(WAIT_SECONDS) == 0
        assert next_up.family() == []
        assert not (federation.state / "up.json").exists()


@pytest.mark.slow
def test_a_shop_removed_while_superlink_was_away_is_refused_once_it_is_back(tmp_path: Path) -> None:
    federation = new_federation(tmp_path / "federation")
    shops = Shops(federation.shops)
    for name in ("one", "two"):
        shops.enrol(name, new_key(tmp_path, name).with_suffix(".pub"))
    port = federation.settings.superlink_port
    with running(federation) as up:
        psutil.Process(up.pid("superlink")).kill()
        wait_for(lambda: not listens(port), "SuperLink's end")
        assert remove(federation, "one")["superlink_told"] is False
        wait_for(lambda: listens(port), "SuperLink")
        wait_for(lambda: [n.name for n in control(federation).nodes()] == ["two"], "its refusal")


@pytest.mark.slow
def test_up_says_what_is_in_the_way(tmp_path: Path) -> None:
    federation = new_federation(tmp_path / "federation")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", federation.settings.superlink_port))
        taken.listen()
        refused = server(federation, "up")
    assert (refused.returncode, "superlink_port" in refused.stderr) == (1, True)

    (federation.state / "superlink.db").write_bytes(b"not a database" * 100)
    process = start_up(federation)
    try:
        assert process.wait(WAIT_SECONDS) == 1
    finally:
        process.kill()
        process.wait()
    assert "superlink ended" in (federation.folder / "up.log").read_text()
    (federation.state / "superlink.db").unlink()
