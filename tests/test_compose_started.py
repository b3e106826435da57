"""The containers' own commands, started for real on loopback, with a folder for each mount."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from client.joining.starting import start_shop
from common.programs.processes import end_carriers, environment, free_port
from compose_support import ROOT, Compose, read_compose, words
from deploy.gateway import FILE
from query_support import make_place
from server.operating import gateway
from server.operating.folder import make_federation
from server.operating.shops import Shops

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_TOKEN = "FEDTAIL_TEST_COMPOSE"
_SECONDS = 150.0


class Stage:
    """Stands in for an engine: places instead of mounts, loopback instead of networks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.compose: Compose = read_compose(
            {
                "FEDTAIL_FEDERATION": str(root / "federation"),
                "FEDTAIL_SHOP": str(root / "shop"),
                "FEDTAIL_GATEWAY": f"localhost:{(gate := free_port())}",
            }
        )
        link, node = free_port(), free_port()
        self.places = {
            "superlink:8000": f"localhost:{link}",
            "--port=8000": f"--port={link}",
            "supernode:9094": f"127.0.0.1:{node}",
            "127.0.0.1:9094": f"127.0.0.1:{node}",
            "--port=9094": f"--port={node}",
            "0.0.0.0:8443": f"127.0.0.1:{gate}",
            "127.0.0.1:8443": f"127.0.0.1:{gate}",
            "0.0.0.0": "127.0.0.1",
            "/etc/fedtail/gateway.conf": str(root / "gateway.conf"),
            "/app/": f"{ROOT}/",
        }
        for secret in self.compose.document["secrets"]:
            self.places[f"/run/secrets/{secret}"] = str(self.compose.secret(secret))
        self.health = {name: f"127.0.0.1:{free_port()}" for name in ("superexec", "shop-superexec")}
        (root / "gateway.conf").write_text(self.put(FILE.read_text().replace(" /tmp", f" {root}")))

    def put(self, text: str, name: str = "") -> str:
        """Return a text of a container's with our places in it."""
        for inside, outside in self.places.items():
            text = text.replace(inside, outside)
        for folder in ("federation", "shop"):
            for start in ("", "="):
                if text.startswith(f"{start}/{folder}"):
                    text = text.replace(f"/{folder}", str(self.root / folder), 1)
            text = text.replace(f"=/{folder}/", f"={self.root / folder}/")
        return text.replace("127.0.0.1:9099", self.health.get(name, ""))

    def command(self, name: str) -> list[str]:
        return self._with_tools(
            [self.put(word, name) for word in words(self.compose.services[name])]
        )

    def check(self, name: str) -> list[str]:
        test = self.compose.services[name]["healthcheck"]["test"][1:]
        return self._with_tools([self.put(word, name) for word in test])

    def environment(self, name: str) -> dict[str, str]:
        given: Mapping[str, str] = self.compose.services[name].get("environment", {})
        own = {key: self.put(value) for key, value in given.items()}
        own |= {"FLWR_HOME": str(self.root / f"home-{name}"), "HOME": str(self.root)}
        code = (
            {"PYTHONPATH": str(ROOT)} if words(self.compose.services[name])[0] == "python" else {}
        )
        return environment(self.root, {**own, **code, _TOKEN: str(self.root)})

    def run(self, command: list[str], name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(name),
            cwd=self.root / "empty",
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )

    def start(self, name: str) -> None:
        with (self.root / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                self.command(name),
                env=self.environment(name),
                cwd=self.root / "empty",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_healthy(self, name: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while self.run(self.check(name), name).returncode:
            log = (self.root / f"{name}.log").read_text(errors="replace")
            assert time.monotonic() < deadline, f"{name} is not healthy\n{log[-4000:]}"
            time.sleep(0.5)

    def end(self) -> None:
        # nginx's master ends its workers, which carry nothing to find them by.
        for process in self.started.values():
            process.terminate()
        try:
            for process in self.started.values():
                process.wait(timeout=20)
        finally:
            end_carriers(_TOKEN, str(self.root))
            for process in self.started.values():
                process.wait(timeout=20)

    @staticmethod
    def _with_tools(command: list[str]) -> list[str]:
        tools = {"python": sys.executable, "nginx": gateway.find_nginx()}
        return [tools.get(command[0], command[0]), *command[1:]]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = make_federation(tmp_path / "federation", "t", "localhost:8443", superlink_port=1)
    start_shop(tmp_path / "shop", "corner", "localhost:8443")
    (tmp_path / "shop/ca.crt").write_bytes(made.authority.certificate.read_bytes())
    (tmp_path / "empty").mkdir()
    Shops(made.shops).enrol("corner", tmp_path / "shop/keys/node.pub")
    stage = Stage(tmp_path)
    try:
        yield stage
    finally:
        stage.end()


def test_the_query_service_is_healthy_answers_and_writes_nothing(stage: Stage) -> None:
    place = make_place(stage.root / "published")
    rest, grpc = free_port(), free_port()
    stage.places |= {
        "/registry": str(stage.root / "published/registry"),
        "/catalogue": str(stage.root / "published/catalogue"),
        "--port=8080": f"--port={rest}",
        "--grpc-port=50051": f"--grpc-port={grpc}",
        "127.0.0.1:8080": f"127.0.0.1:{rest}",
    }
    before = sorted(place.root.rglob("*"))
    stage.start("query")
    stage.wait_until_healthy("query")
    asked = [sys.executable, "-m", "server", "query", "p0003", "-k", "3", "--json"]
    for url in (f"http://127.0.0.1:{rest}", f"grpc://127.0.0.1:{grpc}"):
        done = stage.run([*asked, "--url", url], "query")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["items"]) == 3
    assert sorted(place.root.rglob("*")) == before
    stage.end()
    assert stage.run(stage.check("query"), "query").returncode != 0


def test_both_sides_come_up_are_healthy_and_find_each_other(stage: Stage) -> None:
    stage.start("superlink")
    stage.wait_until_healthy("superlink")
    roster = stage.run(stage.command("roster"), "roster")
    assert roster.returncode == 0, roster.stderr
    assert "corner" in roster.stdout
    for name in ("superexec", "gateway", "supernode", "shop-superexec"):
        stage.start(name)
    for name in ("superexec", "gateway", "supernode", "shop-superexec"):
        stage.wait_until_healthy(name)
    deadline = time.monotonic() + _SECONDS
    asked = [*stage.command("roster")[:3], "shops", "--json"]
    while True:
        answer = json.loads(stage.run(asked, "server").stdout)
        if [shop["status"] for shop in answer["shops"]] == ["online"]:
            break
        log = (stage.root / "supernode.log").read_text(errors="replace")
        assert time.monotonic() < deadline, f"{answer}\n{log[-4000:]}"
        time.sleep(1.0)
    # What is down is found out, too.
    stage.end()
    for name in ("superlink", "superexec", "gateway", "supernode", "shop-superexec"):
        assert stage.run(stage.check(name), name).returncode != 0, name
    assert not list((stage.root / "empty").iterdir())
