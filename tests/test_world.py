"""One experiment on data that it was not written for."""

from pathlib import Path

import pandas as pd
import pytest

from common.errors import ConfigError
from simulations.experiment import Experiment, read_experiment
from simulations.run import run_experiment
from simulations.world import build_world

DEMO = Path(__file__).parent.parent / "simulations" / "experiments" / "demo.toml"
WEEK = 7 * 86_400


class Silent:
    def stage(self, text: str, total: int | None = None) -> None: ...

    def step(self, text: str = "") -> None: ...


def demo_on(folder: Path, columns: dict[str, list[str]], *changes: str) -> Experiment:
    """Write two shops of six customers each, and return the demo's experiment on them."""
    items = [f"p{k}" for k in range(8)]
    pd.DataFrame({"item_id": items, **columns}).to_csv(folder / "products.csv", index=False)
    pd.DataFrame(
        [
            (shop, f"u{user}", items[(user + 3 * week) % 8], 1_700_000_000 + week * WEEK, "view")
            for shop in ("east", "west")
            for user in range(6)
            for week in range(12)
        ],
        columns=["merchant_id", "user_id", "item_id", "timestamp", "behavior"],
    ).to_csv(folder / "interactions.csv", index=False)
    return read_experiment(DEMO, [f"data.path={folder}", *changes])


def test_a_folder_without_the_columns_that_the_experiment_names_uses_all_of_its_own(
    tmp_path: Path,
) -> None:
    world = build_world(demo_on(tmp_path, {"colour": ["red", "blue"] * 4}))
    assert [feature.name for feature in world.catalogue.features] == ["colour"]
    assert any("no columns for type, type*manufacturer" in note for note in world.dataset.notes)


def test_a_folder_with_those_columns_is_described_by_them_alone(tmp_path: Path) -> None:
    columns = {name: ["a", "b"] * 4 for name in ("type", "manufacturer", "category", "colour")}
    experiment = demo_on(tmp_path, columns)
    world = build_world(experiment)
    assert tuple(f.name for f in world.catalogue.features) == experiment.content.features
    assert not world.dataset.notes


def test_a_built_in_data_set_refuses_a_column_that_it_does_not_have() -> None:
    experiment = read_experiment(
        DEMO,
        [
            "data.source=marketplace",
            "data.marketplace.shops=2",
            "data.marketplace.customers_per_shop=3",
            "data.marketplace.products=20",
        ],
    )
    with pytest.raises(ConfigError, match="manufacturer"):
        build_world(experiment)


def test_arms_that_train_nothing_together_leave_a_whole_folder(tmp_path: Path) -> None:
    tables, out = tmp_path / "tables", tmp_path / "out"
    tables.mkdir()
    colours = {"colour": ["red", "blue"] * 4}
    experiment = demo_on(tables, colours, 'run.arms=["popularity", "local"]')
    report = run_experiment(experiment, out, Silent())
    assert set(report["arms"]) == {"popularity", "local"}
    assert (out / "report.html").exists()
    assert not (out / "work").exists()
