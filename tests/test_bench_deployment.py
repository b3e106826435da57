"""What the deployment's benchmarks make of what the runs told, and that they run at all."""

from typing import Any

import pytest

from common.errors import RunError
from simulations.bench_deployment import SIZES, bench_deployment, per_round


def told(*seconds: float, accepted: int = 3) -> list[dict[str, Any]]:
    rounds = [{"event": "round", "seconds": s, "accepted": accepted} for s in seconds]
    return [{"event": "start"}, *rounds, {"event": "end"}]


def test_the_first_round_is_left_out() -> None:
    assert per_round(told(90.0, 4.0, 6.0, 5.0), 3) == 5.0


def test_a_round_without_all_shops_is_no_measurement() -> None:
    with pytest.raises(RunError, match="not every shop answered"):
        per_round(told(5.0, 5.0, accepted=2), 3)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_small_model_is_timed_beside_the_floor() -> None:
    stages: list[str] = []
    result = bench_deployment(stages.append, shops=2, rounds=2, sizes=("small",))
    size = result["sizes"]["small"]
    products, width = SIZES["small"]
    assert size["megabytes"] == pytest.approx(4e-6 * products * (width + 1), rel=0.01)
    assert all(seconds > 0 for seconds in size["seconds_per_round"].values())
    assert size["ratio"] > 0
    assert any("floor" in stage for stage in stages)
