"""What an experiment file says: every section, key and default."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from client.home_settings import (
    LEARNED_PARTS,
    OWN_PARTS,
    SHARED_PARTS,
    TRAINED_PARTS,
    HomeSettings,
)
from common.built_in.marketplace import MarketplaceConfig
from common.config import nearest, parse, read_toml, with_overrides
from common.errors import ConfigError
from common.features import ContentSpec
from common.partitioning import Partitioner, by_column, dirichlet, uniform
from common.planning import with_noise
from common.protocol import Frozen, LossName, ModelPlan, Norm, RareRows, TrainingPlan, Trust, Unit
from common.tables.contract import BEHAVIOR_WEIGHTS, BadRows, fault_of_weights
from simulations.attack.settings import AttackSection
from simulations.audit.settings import AuditSection

ARMS = (
    "popularity",
    "local",
    "home-only",
    "centralized",
    "federated",
    "federated-global",
    "federated-dp",
    "federated-dp-global",
)
#: Arm whose model an arm without home adaptation shows.
TRAINED_BY = {"federated-global": "federated", "federated-dp-global": "federated-dp"}


class Section(Frozen):
    """A section of an experiment: keys may be written with hyphens where Python can't."""

    # A plan travels as JSON, in which there are no other numbers.
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


class PartitionSection(Section):
    """Who is whose customer, where a data set has no merchants of its own or others are asked for.

    ``kind``: ``natural`` (the merchant_id column), ``uniform``, ``dirichlet`` (by the category that
    a customer buys most, concentration ``alpha``) or ``column`` (one merchant a value).
    """

    kind: Literal["natural", "uniform", "dirichlet", "column"] = "natural"
    merchants: int = Field(20, ge=1)
    alpha: float = Field(1.0, gt=0)
    skew: float = Field(0.0, ge=0)
    column: str = "category"

    def partitioner(self, seed: int) -> Partitioner | None:
        """Return the partitioner; None leaves the merchants as they are."""
        if self.kind == "uniform":
            return uniform(self.merchants, seed=seed, skew=self.skew)
        if self.kind == "dirichlet":
            return dirichlet(
                self.merchants, alpha=self.alpha, seed=seed, column=self.column, skew=self.skew
            )
        return by_column(self.column) if self.kind == "column" else None


class DataSection(Section):
    """Where the records come from; ``path`` overrides ``source``.

    ``rating_scale``: the best possible rating; a rating weighs by its share of that.
    ``customers_share``: of each merchant's customers, drawn by ``run.seed``; those of a smaller
    share are among those of a larger one.
    """

    source: Literal["complete-journey", "movielens", "marketplace"] = "complete-journey"
    path: str = ""
    merchants: Literal["market", "store"] = "market"
    bad_rows: BadRows = "refuse"
    partition: PartitionSection = Field(default_factory=PartitionSection)
    marketplace: MarketplaceConfig = Field(default_factory=MarketplaceConfig)
    behaviors: dict[str, float] = Field(default_factory=lambda: dict(BEHAVIOR_WEIGHTS))
    rating_scale: float = Field(5.0, gt=0)
    customers_share: float = Field(1.0, gt=0, le=1)

    @field_validator("behaviors")
    @classmethod
    def _something_counts(cls, behaviors: dict[str, float]) -> dict[str, float]:
        if fault := fault_of_weights(behaviors):
            raise ValueError(f"{fault}. What is not named counts for nothing")
        return behaviors


class SplitSection(Section):
    """Where testing begins (epoch seconds or ISO 8601; 0: the data set's own, or 75%)."""

    train_until: int | str = 0
    validation_share: float = Field(0.2, gt=0, lt=1)


class RunSection(Section):
    """What is run, where it is trained, and at whom it is measured.

    ``engine``: ``flower`` starts Flower's simulation engine, ``in-process`` runs the same apps in
    this process. ``measured_shops`` and ``measured_customers`` (of each): every shop trains with
    all of its customers, but arms are tuned and measured at so many of them; 0 stands for all.
    ``noise_draws``: how often a private arm is trained, with other noise and all else the same; the
    first with ``engine``, the others in this process.
    """

    seed: int = Field(0, ge=0)
    noise_draws: int = Field(1, ge=1)
    arms: tuple[str, ...] = ARMS
    engine: Literal["flower", "in-process"] = "flower"
    measured_shops: int = Field(0, ge=0)
    measured_customers: int = Field(0, ge=0)


class PrivacySection(Section):
    """The private arms' promise, and what each shop allows.

    ``cap_epsilon`` 0 stands for twice the target: a round that is interrupted is paid for twice.
    ``caps`` names shops with another cap. Under ``trust`` ``federation``, ``honest_shops``,
    ``colluding_shops``, ``honest_stockers`` and ``rare_rows`` are the plan's; the first is two
    thirds of the shops where it is 0. ``publish_stock``: whether what shops stock, where the data
    say it, is published with the catalogue: only stocked products' rows travel then.
    """

    unit: Unit = "customer"
    target_epsilon: float = Field(8.0, gt=0)
    target_delta: float = Field(1e-5, gt=0, lt=1)
    trust: Trust = "shop"
    honest_shops: int = Field(0, ge=0)
    colluding_shops: int = Field(0, ge=0)
    honest_stockers: int = Field(3, ge=1)
    rare_rows: RareRows = "all"
    publish_stock: bool = True
    cap_epsilon: float = Field(0.0, ge=0)
    caps: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


class FederationSection(Section):
    """One federated arm: the plan's constants, and how the server runs it.

    ``tuning_share`` is the share of the rounds that stop at the validation weeks, as the popularity
    release before them does: the shops choose their mixing weights with the model of the last of
    them. 0: there are none, all records count in everything, and weights are chosen on what the
    model before its first round has seen too.
    """

    rounds: int = Field(10, ge=0)
    tuning_share: float = Field(0.7, ge=0, le=1)
    local_steps: int = Field(1, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    max_grad_norm: float = Field(0.3, gt=0)
    first_norms: tuple[Norm, ...] = ()
    batch_normalizer: float = Field(100.0, gt=0)
    learning_rate: float = Field(1.0, gt=0)
    popularity_share: float = Field(0.3, gt=0, le=1)
    loss: LossName = "squared"
    negatives: int = Field(50, ge=1)
    target_share: float = Field(1.0, gt=0, le=1)
    half_life_days: float = Field(0.0, ge=0)
    model: ModelPlan = Field(default_factory=ModelPlan)
    server: dict[str, float | int | str] = Field(default_factory=dict)


class AdaptationSection(Section):
    """How the shops of each kind of arm mix at home.

    ``pooled_ridge`` and ``pooled_power`` are what ``shared_lambda`` and ``shared_power`` are, for
    the ceiling's EASE over everybody's customers.
    """

    local: HomeSettings
    centralized: HomeSettings
    federated: HomeSettings
    federated_dp: HomeSettings = Field(alias="federated-dp")
    basket: HomeSettings | None = None
    pooled_ridge: float = Field(1000.0, gt=0)
    pooled_power: float = Field(0.5, gt=0, le=1)

    def of_plan(self, plan: TrainingPlan) -> HomeSettings:
        """Return the settings of the shops around a federation's model.

        Where a unit is less than a customer those of ``basket``, if it is set. Without rounds the
        model has learned nothing but popularity, and they mix as shops do around such a model:
        :func:`client.home.adapting.fitting`.
        """
        settings = self.federated_dp if plan.private else self.federated
        if plan.private and plan.unit != "customer" and self.basket is not None:
            settings = self.basket
        return settings if plan.rounds else settings.without(*LEARNED_PARTS)

    def home_only(self) -> HomeSettings:
        """Return the settings around an untrained model: the federated ones, less what it lacks.

        Its pseudo-customers are none, so that part is the shop's own EASE, with the ridge and the
        weights for best sellers that were chosen for shops alone.
        """
        alone = {
            "ease_lambda": self.local.ease_lambda,
            "own_expectation": 1.0,
            "best_sellers": self.local.best_sellers,
            "best": self.local.best,
        }
        return self.federated.without(*TRAINED_PARTS).model_copy(update=alone)


class Experiment(Section):
    """A whole experiment file."""

    data: DataSection = Field(default_factory=DataSection)
    split: SplitSection = Field(default_factory=SplitSection)
    run: RunSection = Field(default_factory=RunSection)
    privacy: PrivacySection = Field(default_factory=PrivacySection)
    content: ContentSpec = Field(default_factory=ContentSpec)
    home: AdaptationSection
    federated: FederationSection = Field(default_factory=FederationSection)
    federated_dp: FederationSection = Field(default_factory=FederationSection, alias="federated-dp")
    basket: FederationSection | None = None
    audit: AuditSection = Field(default_factory=AuditSection)
    attack: AttackSection = Field(default_factory=AttackSection)

    def facts(self) -> dict[str, Any]:
        """Return the configuration as run, nested by section, as JSON values.

        What an audit or attack would do changes nothing of a run, and is not in it.
        """
        left_out = {"audit", "attack"}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=left_out)


def read_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file with ``--set`` overrides.

    Raises
    ------
    ConfigError
        Naming the key and what to write instead.
    """
    experiment = parse(Experiment, with_overrides(read_toml(path), overrides), path.name)
    arms = experiment.run.arms
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"run.arms: no arm is called {arm!r}; {nearest(arm, ARMS)}")
    if not arms or len(set(arms)) < len(arms):
        raise ConfigError(f"run.arms is {list(arms)}: name at least one arm, and each just once")
    _check_home(experiment.home)
    return experiment


def check_mixtures(experiment: Experiment, arms: Sequence[str]) -> None:
    """Refuse arms that would have nothing to mix at home, before anything is trained.

    Raises
    ------
    ConfigError
        Naming the section.
    """
    home = experiment.home
    private = home.federated_dp
    if experiment.privacy.unit != "customer" and home.basket is not None:
        private = home.basket
    for arm, settings in (
        ("local", home.local),
        ("home-only", home.home_only()),
        ("centralized", home.centralized),
        ("federated", home.federated),
        ("federated-dp", private),
    ):
        if arm in arms and not settings.start:
            only = f", less what training makes ({', '.join(TRAINED_PARTS)})"
            raise ConfigError(
                f"home.{'federated' if arm == 'home-only' else arm}.start names nothing by which "
                f"{arm} could recommend{only if arm == 'home-only' else ''}: name a part such as "
                "own_ease, or leave the arm out of run.arms"
            )


def _check_home(home: AdaptationSection) -> None:
    """Refuse what would else come to light, or to nothing, after all is trained."""
    from common.metrics import CUTOFF, PER_CUSTOMER
    from common.model import GLOBAL_PARTS

    metrics = [f"{metric}@{CUTOFF}" for metric in PER_CUSTOMER]
    for name, settings in home:
        if not isinstance(settings, HomeSettings):
            continue
        key = AdaptationSection.model_fields[name].alias or name
        known = [*GLOBAL_PARTS, *OWN_PARTS, *SHARED_PARTS]
        if name == "centralized":
            known.append("pooled_ease")  # of all shops' records, which no other arm has
        for part in (*settings.start, *settings.outside, *settings.best):
            if part not in known:
                raise ConfigError(f"home.{key}: no part is called {part!r}; {nearest(part, known)}")
        for metric in settings.reference:
            if metric not in metrics:
                raise ConfigError(
                    f"home.{key}.reference: {metric!r} is nothing that can be asked of each "
                    f"customer; {nearest(metric, metrics)}"
                )


def section_of(experiment: Experiment, arm: str) -> str:
    """Return the field of the section that a federated arm is trained by."""
    if arm == "federated-dp" and experiment.privacy.unit == "basket" and experiment.basket:
        return "basket"
    return arm.replace("-", "_")


def training_plan(
    experiment: Experiment, arm: str, *, validation_from: int, train_until: int, shops: int = 0
) -> TrainingPlan:
    """Return the public plan of a federated arm; for a private one, with the noise it needs.

    Parameters
    ----------
    shops
        How many there are.

    Raises
    ------
    ConfigError
        If the setting asks for what cannot be kept.
    """
    private = arm == "federated-dp"
    privacy = experiment.privacy
    section: FederationSection = getattr(experiment, section_of(experiment, arm))
    rounds = 0 if private and privacy.unit == "interaction" else section.rounds
    values = section.model_dump(exclude={"tuning_share", "server", "model"})
    plan = TrainingPlan(
        **{**values, "rounds": rounds},
        private=private,
        unit=privacy.unit if private else "customer",
        trust=privacy.trust if private else "shop",
        honest_shops=privacy.honest_shops or 2 * shops // 3,
        colluding_shops=privacy.colluding_shops,
        honest_stockers=privacy.honest_stockers,
        rare_rows=privacy.rare_rows,
        target_epsilon=privacy.target_epsilon,
        target_delta=privacy.target_delta,
        reference_time=train_until,
        validation_from=validation_from,
        tuning_round=round(section.tuning_share * rounds),
        model=section.model,
    )
    return with_noise(plan) if private else plan


def server_config(experiment: Experiment, arm: str) -> dict[str, float | int | str]:
    """Return the run config of a federated arm, over the defaults of ``pyproject.toml``."""
    section: FederationSection = getattr(experiment, section_of(experiment, arm))
    # Flower knows each key by its hyphens alone.
    named = {key.replace("_", "-"): value for key, value in section.server.items()}
    return {"seed": experiment.run.seed, **named}
