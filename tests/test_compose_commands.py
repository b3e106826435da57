"""Each command of docker-compose.yml, parsed by the very program that it starts."""

import argparse
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from flwr.supercore.cli.flower_superexec import _parse_args as superexec_parser
from flwr.supercore.grpc_health import run_health_server_grpc_no_tls
from flwr.supercore.routers import health
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink as superlink_parser
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode as supernode_parser

from client.__main__ import app as client_app
from client.joining import programs
from client.joining.starting import start_shop
from client.settings import read_settings
from client.shop_folder import ShopFolder
from common.errors import RunError
from common.programs.processes import free_port
from compose_support import ROOT, hidden, mounts, read_compose, words
from deploy.gateway import FILE, container_config
from server.__main__ import app as server_app
from server.operating import gateway
from server.operating import services as operating
from server.operating.folder import FEDERATION_VARIABLE, SUPERLINK_HOST, make_federation
from server.operating.services import control, is_up
from server.variables import SUPERLINK_VARIABLE

SERVICES = read_compose({"FEDTAIL_GATEWAY": "shops.example:8443"}).services
HEALTHY = ROOT / "deploy/healthy.py"


def parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse as the program does; a wrong word fails the test rather than ending it."""
    try:
        return parser.parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{arguments} is refused: {parser.format_usage()}")


def reached(app: typer.Typer, arguments: list[str]) -> str:
    """Return the command that these words reach, with all of its options parsed."""
    command: click.Command = typer.main.get_command(app)
    context = command.make_context("program", list(arguments), resilient_parsing=False)
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert name is not None
        assert found is not None
        context, command = found.make_context(name, rest, parent=context), found
    return context.command_path.removeprefix("program ")


def test_the_superlink_serves_tls_admits_known_nodes_only_and_keeps_its_state() -> None:
    program, *arguments = words(SERVICES["superlink"])
    assert program == "flower-superlink"
    given = parsed(superlink_parser(), arguments)
    assert (given.host, given.port, given.insecure) == ("0.0.0.0", 8000, False)
    assert given.enable_supernode_auth
    assert given.isolation == "process"
    assert given.ssl_certfile
    assert given.ssl_keyfile
    assert given.ssl_ca_certfile
    assert given.superexec_auth_secret_file
    assert not given.runtime_dependency_install
    assert not given.simulation
    folder = {v["target"] for v in SERVICES["superlink"]["volumes"]}
    assert str(Path(given.database).parent) in folder


@pytest.mark.parametrize(
    ("name", "address", "insecure"),
    [("superexec", "superlink:8000", False), ("shop-superexec", "supernode:9094", True)],
)
def test_a_superexec_asks_its_own_link_for_work(name: str, address: str, insecure: bool) -> None:
    program, *arguments = words(SERVICES[name])
    assert program == "flower-superexec"
    given = parsed(superexec_parser(), arguments)
    assert (given.runtime_api_address, given.insecure) == (address, insecure)
    assert bool(given.root_certificates) is not insecure
    assert given.superexec_auth_secret_file
    assert not given.runtime_dependency_install
    # It stays inside the container: no network of ours may ask.
    assert given.health_server_address.startswith("127.0.0.1:")
    assert address.partition(":")[0] in SERVICES
    # Not the image's code but the run's.
    assert SERVICES[name]["working_dir"] == "/tmp"


def test_the_supernode_is_the_one_that_refuses_what_is_not_approved() -> None:
    from client import node

    program, flag, module, *arguments = words(SERVICES["supernode"])
    assert (program, flag, module) == ("python", "-m", node.__name__)
    ours = [a for a in arguments if a.startswith(("--approved=", "--refused="))]
    assert len(ours) == 2
    given = parsed(supernode_parser(), [a for a in arguments if a not in ours])
    assert (given.host, given.port, given.insecure) == ("0.0.0.0", 9094, False)
    assert given.superlink == "shops.example:8443"
    assert given.isolation == "process"
    assert given.auth_supernode_private_key == "/run/secrets/node.key"
    assert given.superexec_auth_secret_file
    assert given.root_certificates
    assert not given.runtime_dependency_install


def test_the_gateways_configuration_is_the_one_of_server_up() -> None:
    """Told apart by paths alone; `python -m deploy.gateway` writes it again."""
    assert FILE.read_text(encoding="utf-8") == container_config()
    assert f"{SUPERLINK_HOST}:8000" in container_config()
    assert SUPERLINK_HOST in SERVICES
    program, *arguments = words(SERVICES["gateway"])
    assert program == "nginx"
    mounted = {v["target"]: ROOT / v["source"] for v in SERVICES["gateway"]["volumes"]}
    assert mounted[arguments[arguments.index("-c") + 1]] == FILE


def test_nginx_takes_the_gateways_configuration(tmp_path: Path) -> None:
    made = make_federation(tmp_path / "f", "test", "localhost:8443", superlink_port=8000)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for file in (made.gateway.certificate, made.gateway.key, made.authority.certificate):
        (secrets / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "gateway.conf"
    config.write_text(
        FILE.read_text(encoding="utf-8")
        .replace(" /tmp/", f" {tmp_path}/")
        .replace("/run/secrets", str(secrets))
        # nginx -t looks up the name, and opens the port.
        .replace(f"{SUPERLINK_HOST}:8000", "127.0.0.1:8000")
        .replace("0.0.0.0:8443", f"127.0.0.1:{free_port()}")
    )
    gateway.check(gateway.find_nginx(), config)
    (secrets / "gateway.key").write_bytes(made.superlink.key.read_bytes())
    with pytest.raises(RunError, match="nginx refuses"):
        gateway.check(gateway.find_nginx(), config)


@pytest.mark.parametrize(
    ("name", "app", "more", "command"),
    [
        ("registry", server_app, [], "registry list"),
        ("registry", server_app, ["--json"], "registry list"),
        ("query", server_app, [], "serve"),
        ("roster", server_app, [], "shops"),
        ("train", server_app, ["--rounds", "2"], "train"),
        ("server", server_app, ["enrol", "corner", "corner.pub"], "enrol"),
        ("client", client_app, ["check", "/shop/shop.toml"], "check"),
    ],
)
def test_our_own_command_lines_know_what_they_are_told(
    name: str, app: typer.Typer, more: list[str], command: str
) -> None:
    given = words(SERVICES[name])
    assert given[:2] == ["python", "-m"]
    arguments = [a for a in given[3:] if a != "--help"] + more
    assert reached(app, arguments) == command


def test_an_unknown_word_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        reached(server_app, ["registry", "list", "/registry", "--lots"])
    with pytest.raises(click.UsageError):
        reached(client_app, ["chekc", "/shop/shop.toml"])


def test_containers_find_what_init_makes_and_nothing_that_it_does_not(tmp_path: Path) -> None:
    """Every mount, covered folder and secret is there once both sides have made their folders."""
    make_federation(tmp_path / "federation", "test", "localhost:8443", superlink_port=8000)
    start_shop(tmp_path / "shop", "corner", "localhost:8443")
    # What the operator hands over.
    (tmp_path / "shop/ca.crt").write_bytes((tmp_path / "federation/ca/ca.crt").read_bytes())
    places = {
        "FEDTAIL_FEDERATION": str(tmp_path / "federation"),
        "FEDTAIL_SHOP": str(tmp_path / "shop"),
    }
    compose = read_compose(places)
    for name, service in compose.services.items():
        seen = mounts(service)
        for mount in seen:
            assert mount.source.exists(), (name, mount)
        for covered in hidden(service):
            mount = next(m for m in seen if covered.startswith(f"{m.target}/"))
            assert (mount.source / covered.removeprefix(f"{mount.target}/")).is_dir(), covered
    for secret in compose.document["secrets"]:
        assert compose.secret(secret).stat().st_size > 0, secret
    federation = read_settings(tmp_path / "shop/shop.toml").federation
    assert federation is not None
    assert compose.secret("shop-ca.crt") == federation.ca
    assert compose.secret("node.key") == federation.key


def test_commands_ask_a_superlink_in_another_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_federation(tmp_path / "f", "test", "localhost:8443", superlink_port=free_port())
    assert not is_up(made)
    with socket.create_server(("127.0.0.1", 0)) as superlink:
        monkeypatch.setenv(SUPERLINK_VARIABLE, f"127.0.0.1:{superlink.getsockname()[1]}")
        assert is_up(made)
        assert control(made).address == f"127.0.0.1:{superlink.getsockname()[1]}"
    assert not is_up(made)
    given = SERVICES["server"]["environment"]
    host, port = given[SUPERLINK_VARIABLE].split(":")
    assert host == SUPERLINK_HOST
    assert f"--port={port}" in words(SERVICES["superlink"])
    assert given[FEDERATION_VARIABLE] == "/federation"


def test_containers_start_with_the_options_that_up_and_run_give(tmp_path: Path) -> None:
    """Paths and places aside: what is missing here would be missing there."""
    made = make_federation(tmp_path / "f", "test", "localhost:8443", superlink_port=8000)
    start_shop(tmp_path / "shop", "corner", "localhost:8443")
    settings = tmp_path / "shop/shop.toml"
    folder, federation = ShopFolder.of(settings), read_settings(settings).federation
    assert federation is not None
    for name, started in (
        ("superlink", operating.superlink(made, tmp_path)),
        ("superexec", operating.superexec(made, tmp_path)),
        ("supernode", programs.supernode(settings, folder, federation, 1, tmp_path)),
        ("shop-superexec", programs.superexec(folder, 1, tmp_path)),
    ):
        outside = {word for word in started.command if word.startswith("--")}
        inside = {word.partition("=")[0] for word in words(SERVICES[name]) if word[:2] == "--"}
        # Health is asked for in containers only; the shop is named by FEDTAIL_SHOP there.
        assert inside - {"--health-server-address"} == outside - {"--node-config"}, name


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(url: str) -> int:
    return subprocess.run([sys.executable, str(HEALTHY), url], check=False, timeout=30).returncode


def test_the_health_check_takes_only_a_good_answer(web: str) -> None:
    assert asked(f"{web}/health") == 0
    assert asked(f"{web}/other") == 1
    assert asked(f"http://127.0.0.1:{free_port()}/health") == 1


def test_the_health_check_asks_flowers_health_server() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = run_health_server_grpc_no_tls(address)
    try:
        assert asked(f"grpc://{address}") == 0
    finally:
        server.stop(None).wait()
    assert asked(f"grpc://{address}") == 1


def test_what_the_health_checks_ask_for_is_served() -> None:
    assert "/health" in {route.path for route in health.router.routes}  # type: ignore[attr-defined]
    for name in ("superlink", "supernode"):
        assert SERVICES[name]["healthcheck"]["test"][3].endswith("/health")
    for name in ("superexec", "shop-superexec"):
        url = SERVICES[name]["healthcheck"]["test"][3]
        assert f"--health-server-address={url.removeprefix('grpc://')}" in words(SERVICES[name])
