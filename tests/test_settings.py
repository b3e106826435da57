import tomllib
from pathlib import Path

import numpy as np
import pytest

from client.database_settings import Database, TableSource
from client.settings import read_settings, refuse_run_config, shop_settings
from common.array_checks import check_arrays
from common.config import toml_value, with_overrides
from common.errors import ConfigError, ProtocolError
from common.protocol import TrainingPlan, parse_plan
from server.settings import read_home, read_run_config

ROOT = Path(__file__).resolve().parent.parent
SHOP = 'merchant_id = "m"\ndata = "data"\ncatalogue = "/c"\nledger = "ledger.sqlite"\n'


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "shop.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_relative_paths_start_from_the_settings_folder(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, SHOP + "cap_epsilon = 8\n"))
    assert settings.data == (tmp_path / "data").resolve()
    assert settings.catalogue == Path("/c")
    assert (settings.unit, settings.noise) == ("customer", "system")


def test_a_simulated_node_finds_its_own_shop(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / str(i), SHOP.replace('"m"', f'"m{i}"') + "cap_epsilon = 8\n")
    found = shop_settings({"partition-id": 2}, {"FEDTAIL_SHOPS": str(tmp_path)})
    assert found.merchant_id == "m2"


def test_the_nodes_own_config_wins_over_the_environment(tmp_path: Path) -> None:
    here = write(tmp_path / "a", SHOP + "cap_epsilon = 1\n")
    there = write(tmp_path / "b", SHOP + "cap_epsilon = 2\n")
    settings = shop_settings({"shop": str(here)}, {"FEDTAIL_SHOP": str(there)})
    assert settings.cap_epsilon == 1
    with pytest.raises(ConfigError, match="FEDTAIL_SHOP"):
        shop_settings({}, {})


@pytest.mark.parametrize("value", ["[" * 10_000, "9" * 5000, r'"a\u0000b"'])
def test_toml_that_python_stumbles_over_is_told_as_no_valid_one(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"{SHOP}cap_epsilon = 8\nmodels = {value}\n")
    with pytest.raises(ConfigError, match=f"{path} is not valid TOML: "):
        read_settings(path)
    # Of an override, where text needs no quotes, it is the text.
    assert with_overrides({}, [f"a.b={value}"]) == {"a": {"b": value}}


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    """As some editors write it: the file looks right, and its first line was no statement."""
    here = write(tmp_path, "\ufeff" + SHOP + "cap_epsilon = 1\n")
    assert read_settings(here).cap_epsilon == 1
    secret = tmp_path / "password"
    secret.write_text("\ufeffs3cret\r\n", encoding="utf-8")
    secret.chmod(0o600)
    orders = TableSource(table="orders")
    database = Database(url="sqlite://", password_file=secret, interactions=(orders,))
    assert database.password() == "s3cret"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHOP + "cap_epsilom = 8\n", "cap_epsilom.*cap_epsilon"),
        (SHOP, "cap_epsilon"),
        (SHOP + "cap_epsilon = 0\n", "cap_epsilon"),
        (SHOP + "cap_epsilon = inf\n", "cap_epsilon: Input should be a finite number"),
        (SHOP + 'cap_epsilon = 8\nunit = "person"\n', "unit"),
        (SHOP + 'cap_epsilon = 8\nnoise = "seeded"\n', "insecure_seeded_noise"),
        ("merchant_id = \n", "TOML"),
        (
            SHOP + "cap_epsilon = 8\n[evaluation]\nepsilon = inf\n",
            "epsilon: Input should be a finite",
        ),
        # Each would else end every round of the shop's, and only there.
        (SHOP + "cap_epsilon = 8\n[behavior_weights]\nbuy = 1\n", "no behaviour .* 'buy'; they"),
        (SHOP + "cap_epsilon = 8\n[behavior_weights]\nview = -1\n", "weights: a view weighs -1"),
        (SHOP + "cap_epsilon = 8\n[behavior_weights]\nview = nan\n", "a view weighs nan"),
        (SHOP + "cap_epsilon = 8\n[behavior_weights]\nview = 0\n", "no behaviour weighs any"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(write(tmp_path, text))


@pytest.mark.parametrize(
    "key",
    [
        "ledger",
        "ledger-path",
        "cap-epsilon",
        "data.folder",
        "unit",
        "Merchant_ID",
        "noise-seed",
        "insecure-seeded-noise",
        "allow-unprotected",
        "shop",
        "database",
        "catalogue",
        "behavior-weights",
        "roster",
        "sessions",
    ],
)
def test_a_run_config_that_names_a_shops_setting_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"only a shop itself"):
        refuse_run_config(["seed", key])


def run_defaults() -> dict[str, object]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    defaults: dict[str, object] = project["tool"]["flwr"]["app"]["config"]
    return defaults


def test_the_projects_own_run_defaults_are_valid_and_name_no_shops_setting() -> None:
    refuse_run_config(run_defaults())
    plan, settings = read_run_config(run_defaults())
    assert plan == TrainingPlan()
    assert settings.server_optimizer == "none"


def test_wrong_run_config_is_named() -> None:
    with pytest.raises(ConfigError, match="quorum"):
        read_run_config(run_defaults() | {"quorum": 2.0})
    with pytest.raises(ConfigError, match="quorun"):
        read_run_config(run_defaults() | {"quorun": 0.5})
    with pytest.raises(ProtocolError, match="rounds"):
        read_run_config(run_defaults() | {"plan": '{"rounds": -1}'})
    with pytest.raises(ProtocolError, match="version"):
        parse_plan('{"version": 99}')


def test_the_server_reads_its_home(tmp_path: Path) -> None:
    text = 'checkpoints = "c"\ncatalogue = "published"\n'
    (tmp_path / "server.toml").write_text(text, encoding="utf-8")
    home = read_home({"FEDTAIL_SERVER": str(tmp_path)})
    assert home.checkpoints == tmp_path / "c"
    assert home.catalogue == tmp_path / "published"
    (tmp_path / "server.toml").write_text(text + "x = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="x"):
        read_home({"FEDTAIL_SERVER": str(tmp_path)})
    with pytest.raises(ConfigError, match="FEDTAIL_SERVER"):
        read_home({})


def test_a_norm_bound_of_zero_is_no_bound() -> None:
    arrays = {"x": np.full(3, 1e6, np.float32)}
    check_arrays(arrays, {"x": (3,)}, max_norm=0.0)
    with pytest.raises(ProtocolError, match="norm"):
        check_arrays(arrays, {"x": (3,)}, max_norm=1.0)


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi"])
def test_an_optimiser_that_could_never_move_is_refused(optimizer: str) -> None:
    # What suits the subspace optimiser, the default plan's, is 1: adam learned nothing with it.
    values = run_defaults() | {"server-optimizer": optimizer, "server-momentum": 1.0}
    plan, settings = read_run_config(values)
    with pytest.raises(ConfigError, match="server_momentum below 1"):
        settings.optimizer(plan)


@pytest.mark.parametrize("text", ['a "b" \\ c', "Café 🛒", "x\x7fy", "tab\there", "\n"])
def test_what_is_written_as_toml_is_read_again(text: str) -> None:
    assert tomllib.loads(f"text = {toml_value(text)}")["text"] == text
