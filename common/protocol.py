"""The names and shapes on the wire, and their version.

One run is up to five kinds of exchange: ``JOIN`` (does this shop take part in this plan?),
``RELEASE`` (once: the private popularity histogram), ``TRAIN`` (each round: a private delta of the
global state), ``HOME`` (the finished model, for every shop to keep) and, where the run asks for it,
``EVALUATE`` (private figures of the model, of shops that allow it at a price of their own). Where
shops share the noise (``trust = "federation"``), a secure sum of five exchanges of its own, and a
sixth where there is reason, ``SUM_STAGES``, takes the place of each ``RELEASE`` and ``TRAIN``.
Everything in a message is either a public constant of the plan, the released global state, a
planned private release, or what hides one.
"""

import hashlib
import re
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import ProtocolError

PROTOCOL_VERSION = 3
#: Protocol version since which plans are made of what they are made of now.
FIRST_OF_THESE_PLANS = 2

JOIN = "join"
RELEASE = "release"
TRAIN = "update"
HOME = "home"
EVALUATE = "evaluate"

#: The stages of a secure sum (:mod:`common.secure_sum.messages`), in their order. ``SUM_OPEN`` is
#: part of the release, and of what is summed after shares were missing or wrong.
SUM_KEYS, SUM_SHARES, SUM_OPEN = "sum_keys", "sum_shares", "sum_open"
SUM_MASKED, SUM_VIEW, SUM_UNMASK = "sum_masked", "sum_view", "sum_unmask"
SUM_STAGES = (SUM_KEYS, SUM_SHARES, SUM_OPEN, SUM_MASKED, SUM_VIEW, SUM_UNMASK)

#: Records of a message. ``STATE`` and ``UPDATE`` are array records, ``HEADER`` is a config record
#: with the fields of :class:`RoundHeader` or :class:`ReplyHeader`; ``MANIFEST``, in ``HOME`` alone,
#: one with the JSON text of the model's manifest under the same name; ``SAID``, in the stages of a
#: secure sum, one with the JSON text of what is said there.
STATE = "state"
UPDATE = "update"
HEADER = "header"
MANIFEST = "manifest"
SAID = "said"
WEIGHT = "weight"
POPULARITY = "popularity"
#: What a shop adds to a secure sum, under all its masks: the one array of such a reply.
MASKED_VECTOR = "masked_vector"
ITEMS = "item_embedding"
SPECTRUM = "spectrum"
#: What is sent of the state, beside trained arrays, where what shops stock is published
#: (:mod:`common.shop_state`): which products or groups are learned, one bit each; gains and rates
#: of learned rows and the popular direction among them; each product's weight in its group and
#: what a history loses of each group; the Gram matrix and expected basket of all learned rows.
LEARNED = "learned_bits"
GAIN, RATES, POPULAR = "gain", "rates", "popular_direction"
WEIGHTS, OFFSET = "group_weights", "group_offset"
GRAM, EXPECTED = "gram", "expected"

#: What every shop weighs. A weight that followed a shop's customers would tell how many it has.
PUBLIC_WEIGHT = 1.0

Unit = Literal["customer", "basket", "interaction"]
Trust = Literal["shop", "federation"]
#: What a unit's scores are held against (:mod:`common.losses`).
LossName = Literal["squared", "softmax"]
#: A clipping norm.
Norm = Annotated[float, Field(gt=0)]
#: Where a shop's noise comes from: the operating system, or a seed that lets it be replayed.
Noise = Literal["system", "seeded"]
#: Where rows of a secure sum travel from that too few shops stock.
RareRows = Literal["all", "enough", "none"]
Arrays = dict[str, np.ndarray]

#: A manifest names arrays and settings, the plan among them; more than this is no manifest.
MAX_MANIFEST_CHARS = 2**20
# Fields that are named of a plan in which more are wrong.
_SHOWN = 5
FINGERPRINT_CHARS = 64
NO_FINGERPRINT = "0" * FINGERPRINT_CHARS
_FINGERPRINT = f"^[0-9a-f]{{{FINGERPRINT_CHARS}}}$"
_RUN_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{FINGERPRINT_CHARS - 1}}}")

#: What a reply may say of itself. Details of a failure stay in the shop's own log.
StatusCode = Literal[
    "ok",
    "over-budget",
    "refused-config",
    "wrong-catalogue",
    "wrong-stock",
    "wrong-protocol",
    "ledger-error",
    "data-error",
    "no-evaluation",
    "no-secure-sum",
    "sum-refused",
    "failed",
]


class Frozen(BaseModel):
    """Base of all wire and configuration types: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelPlan(Frozen):
    """Shape of the model; public.

    Attributes
    ----------
    dimension
        Width of the learned block.
    learned_items
        How many products have learned rows of their own: the most popular ones of the released
        popularity. 0: all of them. Every other product is scored by content and popularity.
    feature_rows, customer_rows
        Rows of the hashed tables of product features and customer attributes; 0: no such table.
    popularity_exponent
        β of a product's gain (:mod:`common.model`): how much less a popular product says of taste.
    groups
        A content feature, such as ``type*brand``: the learned rows are then the ``learned_items``
        most popular of its values, each product weighing as popular as it is within its value.
        Few rows that many customers touch: what little privacy noise leaves.
    group_weights
        ``popular``: each product weighs in its group as popular as it is. ``even``: all of a group
        count alike in a history, which then has no more entries than products, however many groups
        there are; the group has a gain, as a product has without groups.
    row_exponent
        A unit with history ``x`` trains with ``x / |x|^e``: 1 gives all units the same say, 0 gives
        those with long histories more.
    centred
        Whether the expected basket is taken off a history in the learned block.
    popular_share
        Of what a unit's training row has along the released popularity, so much is trained on. All
        units have much there, and all know it from the histogram: less of it leaves a unit's norm,
        and so the noise, to what sets units apart. :meth:`common.model.GlobalModel.
        pseudo_customers` puts it back. 1: all of it.
    content_scale
        The ``a`` before the content block, until a shop's own adaptation chooses it.
    learned_scale
        The same for the learned block; popularity has scale 1.
    tower
        From the pooled history to the customer's vector: as it is, or two ReLU layers.
    """

    dimension: int = Field(16, ge=1, le=1024)
    learned_items: int = Field(0, ge=0)
    feature_rows: int = Field(0, ge=0)
    customer_rows: int = Field(0, ge=0)
    popularity_exponent: float = Field(0.3, ge=0, le=1)
    groups: str = ""
    group_weights: Literal["popular", "even"] = "popular"
    row_exponent: float = Field(1.0, ge=0, le=1)
    centred: bool = True
    popular_share: float = Field(1.0, gt=0, le=1)
    content_scale: float = Field(1.0, ge=0, allow_inf_nan=False)
    learned_scale: float = Field(1.0, ge=0, allow_inf_nan=False)
    tower: Literal["linear", "mlp"] = "linear"
    hidden: int = Field(512, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _groups_fit(self) -> "ModelPlan":
        if self.groups and (not self.learned_items or self.feature_rows or self.tower != "linear"):
            raise ValueError(
                "groups needs learned_items (how many groups), feature_rows = 0 and a linear tower"
            )
        return self

    @model_validator(mode="after")
    def _share_fits(self) -> "ModelPlan":
        other = self.centred or self.groups or self.feature_rows or self.tower != "linear"
        if self.popular_share < 1 and other:
            raise ValueError(
                "popular_share below 1 needs centred = false, no groups, feature_rows = 0 and a "
                "linear tower"
            )
        return self


class TrainingPlan(Frozen):
    """The public constants of one run.

    Nothing here may depend on a shop's data. ``noise_multiplier`` and
    ``popularity_noise_multiplier`` are those that ``common.accounting`` found for
    (``target_epsilon``, ``target_delta``); a shop charges its ledger with exactly what it uses.
    Rounds train on records at or after ``train_from`` (epoch seconds; 0: all of them): a run that
    goes on from an earlier model learns what is new. Popularity is of older ones too. Up to
    ``tuning_round``, 0 for none, neither reads records at or after ``validation_from``.
    With ``private = False`` no noise is added and nothing is clipped: only simulations accept it.

    Attributes
    ----------
    honest_shops, colluding_shops
        Under ``trust = "federation"``: at least so many survivors of every exchange do not collude
        with whoever looks at its sum, however many up to the latter do. Each shop adds a share
        ``1 / honest_shops`` of the noise's variance.
    honest_stockers, rare_rows
        Under ``trust = "federation"``, where a stock table is published: a product's row travels
        from the shops that stock it alone if so many honest survivors are sure to be among them
        (:mod:`common.secure_sum.layout`); the others travel from ``all`` shops, from ``enough`` of
        the others to have so many, or from ``none``.
    noise_steps
        Under ``trust = "federation"``: the clipping norm in whole steps, which sums are made of.
    """

    version: int = PROTOCOL_VERSION
    private: bool = True
    unit: Unit = "customer"
    trust: Trust = "shop"
    target_epsilon: float = Field(8.0, gt=0)
    target_delta: float = Field(1e-5, gt=0, lt=1)
    popularity_noise_multiplier: float = Field(0.0, ge=0)
    noise_multiplier: float = Field(0.0, ge=0)
    popularity_share: float = Field(0.3, gt=0, le=1)
    rounds: int = Field(10, ge=0)
    local_steps: int = Field(1, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    first_norms: tuple[Norm, ...] = ()
    batch_normalizer: float = Field(100.0, gt=0)
    learning_rate: float = Field(0.1, gt=0)
    local_momentum: float = Field(0.0, ge=0, lt=1)
    loss: LossName = "squared"
    negatives: int = Field(50, ge=1)
    target_share: float = Field(1.0, gt=0, le=1)
    half_life_days: float = Field(0.0, ge=0)
    reference_time: int = 0
    train_from: int = 0
    validation_from: int = 0
    tuning_round: int = Field(0, ge=0)
    honest_shops: int = Field(0, ge=0, le=2**20)
    colluding_shops: int = Field(0, ge=0, le=2**20)
    honest_stockers: int = Field(3, ge=1, le=2**20)
    rare_rows: RareRows = "all"
    noise_steps: int = Field(4096, ge=1, le=2**20)
    model: ModelPlan = ModelPlan()

    def noise_variances(self, shops: int) -> float:
        """Return how many times the plan's noise variance is in the sum of so many shops."""
        return shops if self.trust == "shop" else shops / self.honest_shops

    @property
    def unlike_rounds(self) -> range:
        """Rounds that are clipped unlike each other: with norms of their own, and one more."""
        return range(1, min(self.rounds, len(self.first_norms) + 1) + 1)

    def clipping_norm(self, server_round: int) -> float:
        """Return the clipping norm of a round, from 1: ``first_norms``, then ``max_grad_norm``.

        Noise is a multiple of it, so the price of a round is the same whatever it is. Directions
        drawn at random see little of a unit: a small norm there keeps the noise small too.
        """
        early = self.first_norms[server_round - 1 : server_round]
        return early[0] if early else self.max_grad_norm


class RoundHeader(Frozen):
    """Header of every message from the server.

    Round 0 is the popularity release; a ``JOIN`` names the first round that the shop would serve,
    a ``HOME`` and an ``EVALUATE`` the last one. ``stock_fingerprint`` is that of the published
    stock table, zeros where there is none: it decides which rows a reply holds.
    """

    version: int = PROTOCOL_VERSION
    run_id: str = Field(min_length=1, max_length=FINGERPRINT_CHARS)
    server_round: int
    plan_json: str
    catalogue_fingerprint: str = Field(pattern=_FINGERPRINT)
    stock_fingerprint: str = Field(NO_FINGERPRINT, pattern=_FINGERPRINT)
    ledger_head: str = Field(NO_FINGERPRINT, pattern=_FINGERPRINT)


class ReplyHeader(Frozen):
    """Header of every reply: fixed-size fields only, and no text of a shop's own.

    ``shop`` is :func:`shop_key` of the answering shop. Node ids change from run to run; this
    does not, so that sums and samples have one order whoever answers first. ``noise`` is the
    shop's source of noise, a setting and not data: ``none`` where the exchange draws none.
    ``noise_multiplier`` is that of an ``EVALUATE``, which follows from the shop's own price; 0 in
    all other exchanges, whose noise stands in the plan.
    """

    version: int = PROTOCOL_VERSION
    status: StatusCode
    server_round: int
    shop: str = Field(pattern=_FINGERPRINT)
    catalogue_fingerprint: str = Field(pattern=_FINGERPRINT)
    ledger_head: str = Field(pattern=_FINGERPRINT)
    noise: Literal[Noise, "none"]
    noise_multiplier: float = Field(0.0, ge=0, le=2.0**40, allow_inf_nan=False)


def shop_key(merchant_id: str) -> str:
    """Return the fixed-size public name of a shop: SHA-256 of its merchant id, 64 hex digits."""
    return hashlib.sha256(merchant_id.encode()).hexdigest()


def check_run_name(name: str) -> str:
    """Return a run's name if it can name a folder of the server's and of every shop's.

    Raises
    ------
    ProtocolError
        If it cannot.
    """
    if not _RUN_NAME.fullmatch(name) or name == "current":
        raise ProtocolError(
            f"the run's name {name[:FINGERPRINT_CHARS]!r} is no folder name: use letters, digits, "
            f"'-', '_' and '.', {FINGERPRINT_CHARS} at most, a letter or digit first, not 'current'"
        )
    return name


def plan_digest(plan: TrainingPlan) -> str:
    """Return the SHA-256 of a plan's canonical JSON, 64 hex digits."""
    return hashlib.sha256(plan.model_dump_json().encode()).hexdigest()


def parse_plan(text: str, *, oldest: int = PROTOCOL_VERSION) -> TrainingPlan:
    """Return the plan in ``text``; an empty text is the default plan.

    Parameters
    ----------
    oldest
        Protocol version from which on plans are read: to look at what was run, rather than run it,
        it may be :data:`FIRST_OF_THESE_PLANS`.

    Raises
    ------
    ProtocolError
        If the text is no plan, or a plan of another protocol version.
    """
    if not text:
        return TrainingPlan()
    if len(text) > MAX_MANIFEST_CHARS:
        # Each wrong number of it would be an error to collect: some hundred times its size.
        raise ProtocolError("the training plan is longer than any")
    try:
        plan = TrainingPlan.model_validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        fields = sorted({".".join(map(str, e["loc"])) for e in wrong})
        shown = ", ".join(fields[:_SHOWN]) + (", ..." if len(fields) > _SHOWN else "")
        raise ProtocolError(f"the training plan is not valid in: {shown}") from error
    if not oldest <= plan.version <= PROTOCOL_VERSION:
        raise ProtocolError(
            f"the plan speaks protocol version {plan.version}, this code {PROTOCOL_VERSION}"
        )
    return plan
