"""What the benchmarks of real processes say of what they measured; the processes are left out."""

import json
from typing import Any

import pandas as pd
import pytest

from common.errors import RunError
from common.features import Catalogue
from simulations.bench.deployment import modules_of_a_round, parts, round_seconds, summary
from simulations.bench.rounds import bench_plan
from simulations.bench.shops import SERVER, SHOP, figures, program_of
from simulations.documents import to_json

COSTS = {"training": 2.0, "optimizer": 1.0, "checkpoint": 0.5}
TIMES = {
    "federation": [[16.0, 18.0], [14.0, 16.0], [34.0, 36.0]],
    "floor": [[10.0, 10.0], [10.0, 12.0], [20.0, 20.0]],
    "flower": [[5.0, 5.0], [4.0, 4.0], [8.0, 8.0]],
}


def test_a_ratio_is_the_median_of_the_turns_without_what_is_learning() -> None:
    # Three shops on two processors train one and a half times as long as one: 4 s with the server.
    found = summary(TIMES, COSTS, shops=3, cpus=2)
    assert found["ratio"] == pytest.approx(13.0 / 10.0)
    assert found["ratio_whole"] == pytest.approx(17.0 / 10.0)
    assert found["ratio_to_flower"] == pytest.approx(11.0 / 4.0)
    assert found["seconds_per_round"] == {
        "federation": 17.0,
        "floor": 11.0,
        "flower": 5.0,
        "learning": 4.0,
    }
    assert json.loads(to_json(found))["beyond_the_floor"] == COSTS


def test_more_processors_than_shops_train_one_no_faster() -> None:
    # Less was taken off as learning than a single shop takes.
    assert summary(TIMES, COSTS, shops=3, cpus=64)["seconds_per_round"]["learning"] == 3.0


def test_a_round_that_a_shop_missed_is_no_measurement() -> None:
    told: list[dict[str, Any]] = [
        {"event": "join", "seconds": 9.0},
        {"event": "round", "seconds": 1.5, "accepted": 3},
        {"event": "round", "seconds": 2.5, "accepted": 3},
    ]
    assert round_seconds(told, 3) == [1.5, 2.5]
    told[1]["accepted"] = 2
    with pytest.raises(RunError, match="not every shop answered"):
        round_seconds(told, 3)


def test_every_part_of_a_round_is_timed() -> None:
    products = pd.DataFrame({"item_id": [f"i{k}" for k in range(20)], "category": "any"})
    found = parts(bench_plan(2, 3), Catalogue.of(products), 3)
    assert list(found) == [
        *("read_catalogue", "check_state", "ledger", "training", "encode"),
        *("check_replies", "mean", "optimizer", "checkpoint"),
    ]
    assert all(seconds > 0 for seconds in found.values())


def test_memory_is_told_by_program_and_summed_by_shop() -> None:
    peaks = {
        1: ("clientapp", 300.0, 480.0),
        2: ("clientapp", 310.0, 480.0),
        3: ("clientapp", 350.0, 480.0),
        4: ("supernode", 100.0, 140.0),
        5: ("shop superexec", 90.0, 125.0),
        6: ("client run", 30.0, 45.0),
        7: ("superlink", 150.0, 170.0),
        8: ("gateway", 3.0, 8.0),
        9: ("gateway", 5.0, 9.0),
        10: ("", 500.0, 500.0),
    }
    found = figures(peaks)
    assert found["programs"]["clientapp"] == {"processes": 3, "mb": 310.0, "rss_mb": 480.0}
    assert found["shop_mb"] == {"working": 530.0, "waiting": 220.0}
    assert found["server_mb"] == 158.0
    assert "" not in found["programs"]


@pytest.mark.parametrize(
    ("command", "of_a_shop", "program"),
    [
        ("python -P -m client.node --approved a", True, "supernode"),
        ("python flower-superexec --insecure", True, "shop superexec"),
        ("python flower-superexec --root-certificates ca.crt", False, "server superexec"),
        ("python flwr-clientapp --runtime-api-address x", True, "clientapp"),
        ("python flwr-serverapp --runtime-api-address x", False, "serverapp"),
        ("python flower-superlink --host 127.0.0.1", False, "superlink"),
        ("nginx: worker process", False, "gateway"),
        ("python -m client run shop.toml", False, "client run"),
        ("python -m server up --federation x", False, "server up"),
        ("python -m server train --federation x", False, ""),
    ],
)
def test_programs_are_known_by_their_command_lines(
    command: str, of_a_shop: bool, program: str
) -> None:
    assert program_of(command.split(), of_a_shop) == program
    assert not program or program in (*SHOP, *SERVER)


@pytest.mark.slow
def test_a_client_loads_opacus_for_a_round_and_not_torchs_compiler() -> None:
    """The compiler is a second of processor time in each process, and nothing here uses it."""
    found = modules_of_a_round()
    assert {"torch", "opacus", "flwr.clientapp", "cryptography"} <= set(found)
    assert "torch._dynamo" not in found
    assert not [name for name in found if name.startswith(("client", "common.", "server"))]
