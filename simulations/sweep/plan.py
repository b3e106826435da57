"""What a sweep file says: one experiment, and the grids of points at which it is run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from common.config import parse, read_toml, with_overrides
from common.errors import ConfigError
from common.protocol import Unit
from simulations.experiment import Experiment, Section, read_experiment

#: Where a file is an experiment and no sweep.
EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0)
#: What every point shares, unless the file says otherwise: Ray's start would cost more than most
#: points' training.
_ENGINE = "run.engine=in-process"
#: A sweep asks many points once: neighbours show how far one draw of the noise goes.
_ONE_DRAW = "run.noise_draws=1"
_POINT_KEYS = ("privacy.unit", "privacy.target_epsilon", "run.arms")


class Grid(Section):
    """Points: every value of ``vary`` with every unit and every ε.

    Attributes
    ----------
    name
        Of the curves that these points are on; grids of one name share them.
    set
        Changes to the experiment, ``section.key=value``, for all points of the grid.
    vary, values
        A key of the experiment, such as ``data.customers_share``, and what it is set to.
    units, epsilons
        The privacy units, the experiment's own where none are named, and the ε asked for.
    """

    name: str = ""
    set: tuple[str, ...] = ()
    vary: str = ""
    values: tuple[float | int | str, ...] = ()
    units: tuple[Unit, ...] | None = Field(None, min_length=1)
    epsilons: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        EPSILONS, min_length=1
    )


class SweepFile(Section):
    """A sweep: ``experiment`` is the path of its file, from the sweep's folder."""

    experiment: str
    title: str = ""
    set: tuple[str, ...] = ()
    grid: tuple[Grid, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Setting:
    """Data that points share, and with them all arms but the private one.

    Attributes
    ----------
    curve
        Name of the curves that its points are on.
    label
        What varies, in words; "" where nothing does.
    changes
        Over the experiment file.
    """

    curve: str
    label: str
    changes: tuple[str, ...]
    experiment: Experiment


@dataclass(frozen=True)
class Point:
    """One private federation to run."""

    setting: int
    unit: Unit
    epsilon: float

    @property
    def name(self) -> str:
        """Of the point's file."""
        # Every digit: two points that read alike must not be one file.
        return f"{self.setting:02d}-{self.unit}-{repr(self.epsilon).removesuffix('.0')}"


@dataclass(frozen=True)
class Sweep:
    """A sweep to run: settings in the order of the file, and the points of each."""

    title: str
    settings: tuple[Setting, ...]
    points: tuple[Point, ...]

    def of(self, setting: int) -> list[Point]:
        """Return the points of one setting."""
        return [point for point in self.points if point.setting == setting]

    def facts(self) -> dict[str, Any]:
        """Return all that decides the figures, as JSON values."""
        return {
            "title": self.title,
            "settings": [
                {"curve": s.curve, "label": s.label, "experiment": s.experiment.facts()}
                for s in self.settings
            ],
            "points": [[p.setting, p.unit, p.epsilon] for p in self.points],
        }

    def point_experiment(self, point: Point) -> Experiment:
        """Return the experiment of a point: its setting's, with the point's promise."""
        experiment = self.settings[point.setting].experiment
        privacy = experiment.privacy.model_copy(
            update={"unit": point.unit, "target_epsilon": point.epsilon}
        )
        return experiment.model_copy(update={"privacy": privacy})


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, or an experiment file, which is swept over ε.

    Raises
    ------
    ConfigError
        Naming the key and what to write instead.
    """
    values = read_toml(path)
    if "grid" in values or "experiment" in values:
        file = parse(SweepFile, values, path.name)
        base, title = path.parent / file.experiment, file.title or path.stem
        shared = (_ENGINE, *file.set, *overrides)
        grids = file.grid
    else:
        base, title, shared = path, path.stem, (_ENGINE, *overrides)
        grids = (Grid(),)
    settings: list[Setting] = []
    points: dict[Point, None] = {}
    for grid in grids:
        for label, changes in _variants(grid, path.name):
            changed = (*shared, *changes)
            _refuse_what_points_set(changed, path.name)
            experiment = read_experiment(base, (*changed, _ONE_DRAW))
            setting = Setting(grid.name, label, changes, experiment)
            known = [
                s.curve == setting.curve and s.experiment == setting.experiment for s in settings
            ]
            if not any(known):
                settings.append(setting)
                known.append(True)
            number = known.index(True)
            points |= {
                Point(number, unit, float(epsilon)): None
                for unit in grid.units or (experiment.privacy.unit,)
                for epsilon in grid.epsilons
            }
    ordered = sorted(points, key=lambda p: p.setting)
    return Sweep(title, tuple(settings), tuple(ordered))


def _variants(grid: Grid, where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if bool(grid.vary) != bool(grid.values):
        raise ConfigError(f"{where}: grid: vary and values go together: name a key and its values")
    if not grid.vary:
        yield "", grid.set
    for value in grid.values:
        yield f"{grid.vary} = {value}", (*grid.set, f"{grid.vary}={value}")


def _refuse_what_points_set(changes: Sequence[str], where: str) -> None:
    for change in changes:
        key = change.partition("=")[0].strip()
        if key in _POINT_KEYS:
            raise ConfigError(
                f"{where}: {key} is the sweep's own: give units and epsilons of a grid"
            )
    # One draw, which is what a sweep has, may be said.
    if with_overrides({}, changes).get("run", {}).get("noise_draws", 1) != 1:
        raise ConfigError(
            f"{where}: a sweep trains each point under one draw of the noise: leave "
            "run.noise_draws out, or say simulations run at the points that matter"
        )
