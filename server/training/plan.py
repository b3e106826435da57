"""The operator's ``plan.toml``: what the next runs train, at which price, and how they are run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from common.bundle import FEDERATION
from common.config import ConfigValue, nearest, parse, read_toml
from common.errors import ConfigError
from common.features import CROSS, Catalogue, content_columns
from common.model import missing_columns, state_spec
from common.planning import check_start, has_groups, with_fitting_groups, with_noise
from common.protocol import Frozen, LossName, ModelPlan, Norm, RareRows, TrainingPlan, Trust, Unit
from server.operating.default_plan import PLAN_FILE
from server.settings import RunSettings

#: Groups that the catalogue decides: what a plan for any federation can ask for.
AUTO = "auto"
_PREFERRED = "type*brand"
_DAY = 24 * 3600
# A δ that promises little to a shop of so many customers is told: the operator cannot count them.
_FEW = 1000
# Bytes of a number of the state, and of all that Flower moves in one message.
_NUMBER, _MOST_BYTES = 4, 2**31
# Keys of the run config that the run itself fills in.
_OF_THE_RUN = frozenset({"plan", "run-name", "initial-model"})


class PrivacySection(Frozen):
    """What is promised to every shop's customers, and whom the promise has to trust.

    All that is said of shops, and of rows, counts under trust ``federation`` alone: see
    :class:`common.protocol.TrainingPlan`.
    """

    unit: Unit = "customer"
    trust: Trust = "shop"
    honest_shops: int = Field(0, ge=0, le=2**20)
    colluding_shops: int = Field(0, ge=0, le=2**20)
    honest_stockers: int = Field(3, ge=1, le=2**20)
    rare_rows: RareRows = "all"
    target_epsilon: float = Field(4.0, gt=0)
    target_delta: float = Field(1e-5, gt=0, lt=1)
    popularity_share: float = Field(0.3, gt=0, le=1)

    @model_validator(mode="after")
    def _shops_are_counted_where_it_matters(self) -> "PrivacySection":
        if self.trust == "shop" and (self.honest_shops or self.colluding_shops):
            raise ValueError(
                "honest_shops and colluding_shops say how shops share the noise of trust = "
                '"federation": take them out, or set trust'
            )
        if self.trust == "federation" and not self.honest_shops:
            raise ValueError(
                'trust = "federation" needs honest_shops: how many shops, of those that are still '
                "there at the end of a sum, do not collude with whoever looks at it. Each adds so "
                "large a part of the noise"
            )
        return self


class TrainingSection(Frozen):
    """The plan's other constants; see :class:`common.protocol.TrainingPlan`.

    ``only_new``: a run that goes on from an earlier model trains on records since that model's day
    alone. ``validation_days``: the popularity release and the first ``tuning_share`` of the rounds
    leave out so many days before the day of the plan.
    """

    rounds: int = Field(4, ge=0)
    local_steps: int = Field(1, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    max_grad_norm: float = Field(0.2, gt=0)
    first_norms: tuple[Norm, ...] = (0.06, 0.14)
    batch_normalizer: float = Field(100.0, gt=0)
    learning_rate: float = Field(1.0, gt=0)
    loss: LossName = "squared"
    negatives: int = Field(50, ge=1)
    target_share: float = Field(1.0, gt=0, le=1)
    half_life_days: float = Field(0.0, ge=0)
    only_new: bool = True
    tuning_share: float = Field(0.0, ge=0, le=1)
    validation_days: int = Field(0, ge=0)
    model: ModelPlan = ModelPlan(dimension=4, groups=AUTO, learned_items=600)


class PlanFile(Frozen):
    """All of ``plan.toml``; ``server`` holds changes to the defaults of pyproject.toml."""

    privacy: PrivacySection = PrivacySection()
    training: TrainingSection = TrainingSection()
    server: dict[str, ConfigValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A plan with its noise, and what the server is told beside it.

    Attributes
    ----------
    config
        The whole run config of the ServerApp, ``run-name`` aside.
    notes
        What the operator must know of how the plan was made.
    """

    plan: TrainingPlan
    settings: RunSettings
    config: Mapping[str, ConfigValue]
    notes: tuple[str, ...] = ()


def read_plan_file(path: Path) -> PlanFile:
    """Read a ``plan.toml``.

    Raises
    ------
    ConfigError
        Naming the key and what to write instead.
    """
    if not path.exists():
        raise ConfigError(
            f"there is no {path}: put it back, or copy the one that `python -m server init` writes "
            "into a new folder"
        )
    values = read_toml(path)
    _check_numbers(values, str(path))
    training = values.get("training")
    if isinstance(training, dict) and isinstance(training.get("model", {}), dict):
        # A key that is left out has plan.toml's default, not the one of a bare model.
        base = TrainingSection().model.model_dump()
        given = training.get("model", {})
        values["training"] = training | {"model": {**base, **given}}
    found = parse(PlanFile, values, str(path))
    _settings(found, str(path))
    return found


def prepare(
    file: PlanFile,
    catalogue: Catalogue,
    *,
    now: int,
    rounds: int | None = None,
    since: int = 0,
) -> Run:
    """Return the run that a plan file asks for on a catalogue.

    Parameters
    ----------
    now
        Epoch seconds; ages are counted from the beginning of this day, a public constant.
    rounds
        Overrides the file's.
    since
        Epoch seconds of the day of the model that the run goes on from; 0: it begins anew.

    Raises
    ------
    ConfigError
        If the catalogue lacks what the model learns of, or the target or its noise cannot be met.
    """
    section = file.training
    count = section.rounds if rounds is None else rounds
    today = now // _DAY * _DAY
    model, notes = _model(section.model, catalogue)
    values = section.model_dump(exclude={"only_new", "tuning_share", "validation_days", "model"})
    if since and section.only_new:
        values["train_from"] = since
    if section.tuning_share and not section.validation_days:
        raise ConfigError(
            f"training.tuning_share is {section.tuning_share:g} without validation_days: say how "
            "many days the first rounds leave out, or set tuning_share = 0"
        )
    plan = with_noise(
        parse(
            TrainingPlan,
            {
                **values,
                **file.privacy.model_dump(),
                "rounds": count,
                "reference_time": today,
                "validation_from": today - section.validation_days * _DAY,
                "tuning_round": round(section.tuning_share * count),
                "model": model,
            },
            PLAN_FILE,
        )
    )
    if plan.target_delta * _FEW > 1:
        note = (
            f"target_delta = {plan.target_delta:g} promises little to a shop of "
            f"{math.ceil(1 / plan.target_delta)} customers or more: what publishes some of them "
            "whole, each with that chance, would keep it. Take one far below 1 / the customers of "
            "the largest shop"
        )
        notes = (*notes, note)
    _check_size(plan, catalogue)
    if not since:  # else the weights are those of the model that it goes on from
        check_start(plan, catalogue.size)
    settings, config = _settings(file, PLAN_FILE)
    settings.optimizer(plan)
    settings.defender(plan)
    if plan.trust == "federation" and settings.max_update_norm:
        raise ConfigError(
            f"server.max_update_norm = {settings.max_update_norm:g} looks at single updates, and "
            'under trust = "federation" the server sees only their sum: set it to 0'
        )
    return Run(plan, settings, {**config, "plan": plan.model_dump_json()}, notes)


def run_defaults() -> dict[str, ConfigValue]:
    """Return the defaults of a run, as pyproject.toml has them."""
    values = read_toml(FEDERATION.folder / "pyproject.toml")
    defaults: dict[str, ConfigValue] = values["tool"]["flwr"]["app"]["config"]
    return defaults


def _check_numbers(values: Mapping[str, object], where: str, section: str = "") -> None:
    """Refuse what is TOML and no number to JSON, Flower or a shop: ``inf``, or over 64 bits.

    A run's record would hold null in its place, and could not be read again.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_numbers(value, where, f"{section}{key}.")
        for number in value if isinstance(value, list) else [value]:
            infinite = isinstance(number, float) and not math.isfinite(number)
            if infinite or (isinstance(number, int) and not -(2**63) <= number < 2**63):
                raise ConfigError(
                    f"{where}: {section}{key}: give a finite number of 64 bits (got {number})"
                )


def _check_size(plan: TrainingPlan, catalogue: Catalogue) -> None:
    """Refuse a state that no message could bring to a shop."""
    shapes = state_spec(plan.model, catalogue.size).values()
    size = _NUMBER * sum(math.prod(shape) for shape in shapes)
    if size > _MOST_BYTES:
        raise ConfigError(
            f"training.model: a state of {size / 2**30:,.1f} GiB goes into no message, which holds "
            "2 GiB: choose fewer learned_items or a smaller dimension"
        )


def _settings(file: PlanFile, where: str) -> tuple[RunSettings, dict[str, ConfigValue]]:
    """Return the server's settings, and its whole run config but the plan."""
    defaults = {key: v for key, v in run_defaults().items() if key not in _OF_THE_RUN}
    known = {key.replace("-", "_"): key for key in defaults}
    config = dict(defaults)
    for key, value in file.server.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"{where}: unknown key 'server.{key}'; {nearest(name, list(known))}")
        config[known[name]] = value
    given = {name: config[key] for name, key in known.items() if name in RunSettings.model_fields}
    return parse(RunSettings, given, f"{where}: server"), config


def _model(model: ModelPlan, catalogue: Catalogue) -> tuple[ModelPlan, tuple[str, ...]]:
    """Return the model with groups that the catalogue has, and what was chosen."""
    if model.feature_rows not in {0, hashed := catalogue.spec.hash_rows}:
        raise ConfigError(
            f"training.model.feature_rows is {model.feature_rows}, and the catalogue hashes into "
            f"{hashed} rows: set it to {hashed}, or to 0"
        )
    if model.groups != AUTO:
        if missing := missing_columns(model, catalogue):
            columns = content_columns(catalogue.products)
            raise ConfigError(
                f"training.model.groups is {model.groups!r}, and the catalogue has no column "
                f"{', '.join(map(repr, missing))}: it has {', '.join(columns) or 'none'}. Name "
                f'some of these, joined by {CROSS}, or set groups = "{AUTO}"'
            )
        return model, ()
    preferred = model.model_copy(update={"groups": _PREFERRED})
    chosen = (
        preferred if has_groups(preferred, catalogue) else with_fitting_groups(model, catalogue)
    )
    return chosen, (
        f"groups = {AUTO!r}: learns {chosen.groups or 'single products'} of this catalogue",
    )
