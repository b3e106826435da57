"""The part of a simulation's ``report.json`` that is shown: no shop by itself, no customer."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.errors import ConfigError


class _Part(BaseModel):
    """What a report holds beside the named fields is not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Answered(_Part):
    """Whether the shops should federate, in the report's own words."""

    verdict: str
    arm: str | None = None
    headline: str
    details: tuple[str, ...] = ()


class ReportData(_Part):
    """How large the data were."""

    source: str = ""
    shops: int | None = None
    customers: int | None = None
    products: int | None = None
    interactions: int | None = None


class Interval(_Part):
    """A mean difference and its 95% interval."""

    mean: float | None
    low: float | None
    high: float | None


class ArmPromise(_Part):
    """What an arm's privacy cost, the largest over its shops."""

    epsilon: float | None
    delta: float | None
    unit: str | None
    trust: str | None


class Mean(_Part):
    """What a figure is over all draws of the noise."""

    mean: float | None


class Draws(_Part):
    """An arm's figures over several trainings, each with other noise."""

    metrics: dict[str, Mean]
    quintiles: dict[str, tuple[float | None, ...]]
    vs_local: dict[str, Interval] | None
    level_share: Mean | None


class ReportArm(_Part):
    """One way to recommend, over all shops' customers."""

    metrics: dict[str, float | None]
    quintiles: dict[str, tuple[float | None, ...]] = Field(
        default_factory=dict, description="By popularity fifth of the products, the rarest first."
    )
    vs_local: dict[str, Interval] | None = None
    level_share: float | None = None
    privacy: ArmPromise | None = None

    @model_validator(mode="before")
    @classmethod
    def _over_all_draws(cls, written: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """Take the figures over all draws, where there are several, as the report's page does.

        The report's answer judges by those; an arm's own are of its first draw.
        """
        if not isinstance(written, dict) or not written.get("draws"):
            return written
        draws = Draws.model_validate(written["draws"])
        return {
            **written,
            "metrics": {name: found.mean for name, found in draws.metrics.items()},
            "quintiles": draws.quintiles,
            "vs_local": draws.vs_local,
            "level_share": draws.level_share and draws.level_share.mean,
        }


class ReportRound(_Part):
    """The global model after one round; not every round is measured."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    round: int
    epsilon: float | None = None
    ndcg: float | None = Field(None, alias="ndcg@20")
    tail_ndcg: float | None = Field(None, alias="tail_ndcg@20")


class Report(_Part):
    """A simulation, as the page shows it."""

    seed: int
    answer: Answered
    data: ReportData
    warnings: tuple[str, ...] = ()
    rounds: dict[str, tuple[ReportRound, ...]] = Field(default_factory=dict)
    arms: dict[str, ReportArm]


def read_report(path: Path) -> Report:
    """Read a report.

    Raises
    ------
    ConfigError
        If the file can't be read.
    pydantic.ValidationError
        If it is no report.
    """
    try:
        text: Any = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return Report.model_validate_json(text)
