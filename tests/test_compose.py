"""docker-compose.yml, held to what a deployment must never lose. No engine is needed."""

import re
from pathlib import Path
from typing import Any

import pytest
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

from client.joining.starting import start_shop
from client.settings import read_settings, secure_sum_settings
from compose_support import COMPOSE_FILE, ROOT, hidden, mounts, read_compose, words
from deploy.gateway import FILE
from server.query.serving import GRACE_SECONDS
from server.variables import ROSTER_FILE

COMPOSE = read_compose()
SERVICES = COMPOSE.services
RUNNING = [name for name in COMPOSE.of("operator", "shop", "query") if name != "roster"]
TOOLS = [*COMPOSE.of("operator-tools", "shop-tools"), "roster"]
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*(@sha256:[0-9a-f]{64})?")

service = pytest.mark.parametrize("name", SERVICES)
running = pytest.mark.parametrize("name", RUNNING)


def test_it_follows_the_schema_of_compose_files() -> None:
    arguments = ["--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)]
    done = CliRunner().invoke(check_jsonschema, arguments)
    assert done.exit_code == 0, done.output


def test_the_schema_check_notices_a_mistake(tmp_path: Any) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE_FILE.read_text().replace("read_only:", "readonly:", 1))
    done = CliRunner().invoke(
        check_jsonschema, ["--builtin-schema", "vendor.compose-spec", str(wrong)]
    )
    assert done.exit_code == 1


def test_every_service_is_on_one_side_and_both_sides_are_there() -> None:
    assert sorted(RUNNING + TOOLS) == sorted(SERVICES)
    assert COMPOSE.of("operator") == ["gateway", "superlink", "roster", "superexec"]
    assert COMPOSE.of("shop") == ["supernode", "shop-superexec"]
    assert COMPOSE.of("query") == ["query"]
    assert {"roster", "train", "registry", "server", "client"} == set(TOOLS)


@service
def test_no_container_has_more_rights_than_it_needs(name: str) -> None:
    given = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", given["user"])
    assert given["read_only"] is True
    assert given["cap_drop"] == ["ALL"]
    assert "cap_add" not in given
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert not given.get("privileged")
    assert given.get("pid") is None
    assert given.get("network_mode") in (None, "none")
    assert "docker.sock" not in str(given)


@service
def test_every_container_has_limits(name: str) -> None:
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert re.fullmatch(r"\d+[mg]", limits["memory"])
    assert 0 < limits["pids"] <= 512
    assert SERVICES[name]["logging"]["options"]["max-size"]


@service
def test_every_image_is_pinned(name: str) -> None:
    given = SERVICES[name]
    assert PINNED.fullmatch(given["image"]), given["image"]
    if "build" in given:
        assert PINNED.fullmatch(given["build"]["args"]["PYTHON_IMAGE"])
        assert (ROOT / given["build"]["dockerfile"]).is_file()
    assert given.get("pull_policy") != "always"


def test_no_host_to_fetch_packages_from_is_written_down() -> None:
    assert SERVICES["superlink"]["build"]["args"]["TORCH_INDEX"] == ""


@running
def test_what_stays_up_is_watched_and_restarted(name: str) -> None:
    given = SERVICES[name]
    assert given["restart"] == "unless-stopped"
    assert given["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(given["healthcheck"])


@pytest.mark.parametrize("name", TOOLS)
def test_a_command_ends_and_is_not_restarted(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"


def test_only_the_gateway_is_published_to_others() -> None:
    published = {name: given["ports"] for name, given in SERVICES.items() if given.get("ports")}
    assert published == {
        "gateway": ["0.0.0.0:8443:8443"],
        "query": ["127.0.0.1:8080:8080", "127.0.0.1:50051:50051"],
    }


def test_what_answers_developers_sees_public_files_and_nobody_else() -> None:
    given = SERVICES["query"]
    assert given["networks"] == ["questions"]
    assert [name for name, s in SERVICES.items() if "questions" in s.get("networks", [])] == [
        "query"
    ]
    assert not given.get("secrets")
    seen = mounts(given)
    assert all(mount.read_only for mount in seen)
    assert {(m.source.name, m.target) for m in seen} == {
        ("registry", "/registry"),
        ("catalogue", "/catalogue"),
    }
    assert given["healthcheck"]["test"][-1] == "http://127.0.0.1:8080/healthz"


def test_what_answers_developers_may_finish_before_it_is_killed() -> None:
    # An engine kills after 10 s, unless told otherwise; both interfaces may take that long.
    seconds = SERVICES["query"]["stop_grace_period"].removesuffix("s")
    assert int(seconds) >= GRACE_SECONDS + 5


def test_flowers_interfaces_are_on_networks_that_lead_nowhere() -> None:
    networks = COMPOSE.document["networks"]
    internal = {name for name, given in networks.items() if given.get("internal")}
    assert internal == {"control", "shop"}
    placed = {name: set(given.get("networks", [])) for name, given in SERVICES.items()}
    # The Control API: no authentication.
    assert placed["superlink"] == {"control"}
    for name in ("superexec", "roster", "server", "train"):
        assert placed[name] == {"control"}
    assert placed["gateway"] == {"fleet", "control"}
    # Whoever holds data or the CA has no way out; whoever has a way out holds neither.
    assert placed["shop-superexec"] == {"shop"}
    assert placed["supernode"] == {"outside", "shop"}
    assert placed["client"] == {"shop"}
    assert SERVICES["registry"]["network_mode"] == "none"
    assert not placed["registry"]


@service
def test_what_is_mounted_must_be_there(name: str) -> None:
    assert all(mount.must_exist for mount in mounts(SERVICES[name]))


def test_a_shops_data_are_read_only_and_out_of_reach_of_the_node_that_talks_to_outside() -> None:
    trained = {mount.target: mount for mount in mounts(SERVICES["shop-superexec"])}
    writable = {target for target, mount in trained.items() if not mount.read_only}
    assert writable == {"/shop/ledger", "/shop/models", "/shop/logs"}
    assert trained.keys() - writable == {"/shop"}
    # The key signs what the shop says in secure sums; other secrets stay where they are of use.
    assert hidden(SERVICES["shop-superexec"]) == {"/shop/sums"}
    node = {mount.target: mount for mount in mounts(SERVICES["supernode"])}
    assert {target for target, mount in node.items() if not mount.read_only} == {"/shop/logs"}
    assert node.keys() == {"/shop", "/shop/logs"}
    # What was fitted at home is made of the customers' records as much as these are.
    private = {"adapted", "data", "keys", "ledger", "models", "secrets", "sums"}
    assert hidden(SERVICES["supernode"]) == {f"/shop/{name}" for name in private}


def test_what_a_shop_says_in_sums_is_in_memory_and_its_roster_out_of_the_runs_reach(
    tmp_path: Path,
) -> None:
    """Sessions are in no backup, whose return could have a shop say something else again."""
    (sums,) = [v for v in SERVICES["shop-superexec"]["volumes"] if v["target"] == "/shop/sums"]
    assert sums["type"] == "tmpfs"
    assert not sums.get("read_only")
    assert int(sums["tmpfs"]["mode"]) == 0o1777
    settings = start_shop(tmp_path / "shop")[0]
    new = secure_sum_settings(settings, read_settings(settings))
    inside = {
        name: Path("/shop", getattr(new, name).relative_to(settings.parent.resolve()))
        for name in ("key", "roster", "sessions")
    }
    assert str(inside["sessions"].parent) == sums["target"]
    # /shop itself is read-only: a run can change neither who is believed to be a shop nor the key.
    place = next(m for m in mounts(SERVICES["shop-superexec"]) if m.target == "/shop")
    assert place.read_only
    for path in (inside["roster"], inside["key"]):
        assert not any(path.is_relative_to(h) for h in hidden(SERVICES["shop-superexec"]))
    # Shops' keys are hidden from the server's app: the roster that it needs is not among them.
    assert not any(
        Path("/federation", ROSTER_FILE).is_relative_to(h) for h in hidden(SERVICES["superexec"])
    )


def test_the_authoritys_key_is_in_no_container_that_stays() -> None:
    for name in RUNNING:
        seen = mounts(SERVICES[name])
        for mount in seen:
            if (ROOT / "federation/ca/ca.key").is_relative_to(mount.source):
                assert f"{mount.target}/ca" in hidden(SERVICES[name]), name
        assert "ca.key" not in str(SERVICES[name].get("secrets"))
    private = {f"/federation/{part}" for part in ("ca", "secrets", "shops", "state", "tls")}
    assert hidden(SERVICES["superexec"]) == private


def test_the_gateway_opens_only_when_removed_shops_are_refused() -> None:
    waits = SERVICES["gateway"]["depends_on"]
    assert waits["superlink"]["condition"] == "service_healthy"
    assert waits["roster"]["condition"] == "service_completed_successfully"
    assert words(SERVICES["roster"])[-2:] == ["shops", "--tell"]


def test_every_secret_that_a_command_names_is_given_and_none_is_spare() -> None:
    for name, given in SERVICES.items():
        named = set(re.findall(r"/run/secrets/([\w.-]+)", " ".join(words(given))))
        named |= set(re.findall(r"/run/secrets/([\w.-]+)", str(given.get("healthcheck"))))
        if name == "gateway":
            named |= set(re.findall(r"/run/secrets/([\w.-]+);", FILE.read_text()))
        assert named == set(given.get("secrets", [])), name
    assert set(COMPOSE.document["secrets"]) == {
        secret for given in SERVICES.values() for secret in given.get("secrets", [])
    }


def test_variables_move_folders_port_user_and_limits() -> None:
    moved = read_compose(
        {
            "FEDTAIL_FEDERATION": "/srv/fed",
            "FEDTAIL_SHOP": "/srv/shop",
            "FEDTAIL_PORT": "443",
            "FEDTAIL_ADDRESS": "192.0.2.1",
            "FEDTAIL_UID": "1000",
            "FEDTAIL_GID": "1001",
            "FEDTAIL_CPUS": "16",
            "FEDTAIL_MEMORY": "64g",
            "FEDTAIL_GATEWAY": "shops.example:443",
            "FEDTAIL_QUERY_ADDRESS": "192.0.2.2",
            "FEDTAIL_QUERY_PORT": "80",
            "FEDTAIL_QUERY_GRPC_PORT": "50",
        }
    )
    services = moved.services
    assert services["query"]["ports"] == ["192.0.2.2:80:8080", "192.0.2.2:50:50051"]
    assert services["gateway"]["ports"] == ["192.0.2.1:443:8443"]
    assert {given["user"] for given in services.values()} == {"1000:1001"}
    limits = services["shop-superexec"]["deploy"]["resources"]["limits"]
    assert (limits["cpus"], limits["memory"]) == ("16", "64g")
    assert "--superlink=shops.example:443" in words(services["supernode"])
    assert str(moved.secret("node.key")) == "/srv/shop/keys/node.key"
    sources = {str(m.source) for given in services.values() for m in mounts(given)}
    assert all(s.startswith(("/srv/", str(ROOT / "deploy"))) for s in sources)


def test_nothing_is_sent_to_flowers_makers() -> None:
    for name, given in SERVICES.items():
        if name != "gateway":
            assert given["environment"]["FLWR_TELEMETRY_ENABLED"] == "0"
            assert given["environment"]["FLWR_DISABLE_UPDATE_CHECK"] == "1"
