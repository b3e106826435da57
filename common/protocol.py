"""The names and shapes on the wire, and their version.

One run is two kinds of exchange: ``RELEASE`` (once: the private popularity histogram) and
``TRAIN`` (each round: a private delta of the global state). Everything in a message is either
a public constant of the plan, the released global state, or a planned private release.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

PROTOCOL_VERSION = 1

RELEASE = "release"
TRAIN = "update"

#: Records of a message. ``STATE`` and ``UPDATE`` are array records, ``HEADER`` is a config record
#: with the fields of :class:`RoundHeader` or :class:`ReplyHeader`.
STATE = "state"
UPDATE = "update"
HEADER = "header"
WEIGHT = "weight"

Unit = Literal["customer", "basket", "interaction"]
Trust = Literal["shop", "federation"]
Arrays = dict[str, np.ndarray]

FINGERPRINT_CHARS = 64
NO_FINGERPRINT = "0" * FINGERPRINT_CHARS

#: What a reply may say of itself. Details of a failure stay in the shop's own log.
StatusCode = Literal[
    "ok",
    "over-budget",
    "refused-config",
    "wrong-catalogue",
    "wrong-protocol",
    "ledger-error",
    "data-error",
    "failed",
]


class Frozen(BaseModel):
    """Base of all wire and configuration types: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelPlan(Frozen):
    """Shape of the model; public."""

    dimension: int = Field(16, ge=1, le=1024)
    content_width: int = Field(1024, ge=0)
    hash_rows: int = Field(4096, ge=0)
    customer_rows: int = Field(64, ge=0)
    tower: Literal["linear", "mlp"] = "linear"
    hidden: int = Field(512, ge=1)
    seed: int = 0


class TrainingPlan(Frozen):
    """The public constants of one run.

    Nothing here may depend on a shop's data. ``noise_multiplier`` and
    ``popularity_noise_multiplier`` are those that ``common.accounting`` found for
    (``target_epsilon``, ``target_delta``); a shop charges its ledger with exactly what it uses.
    With ``private = False`` no noise is added and nothing is clipped: only simulations accept it.
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
    batch_normalizer: float = Field(100.0, gt=0)
    learning_rate: float = Field(0.1, gt=0)
    loss: Literal["squared", "softmax"] = "squared"
    negatives: int = Field(50, ge=0)
    max_history: int = Field(256, ge=1)
    half_life_days: float = Field(0.0, ge=0)
    reference_time: int = 0
    model: ModelPlan = ModelPlan()


class RoundHeader(Frozen):
    """Header of every message from the server."""

    version: int = PROTOCOL_VERSION
    run_id: str
    server_round: int
    plan_json: str
    catalogue_fingerprint: str = Field(min_length=FINGERPRINT_CHARS, max_length=FINGERPRINT_CHARS)
    ledger_head: str = Field(
        NO_FINGERPRINT, min_length=FINGERPRINT_CHARS, max_length=FINGERPRINT_CHARS
    )


class ReplyHeader(Frozen):
    """Header of every reply: fixed-size fields only."""

    version: int = PROTOCOL_VERSION
    status: StatusCode
    server_round: int
    catalogue_fingerprint: str = Field(min_length=FINGERPRINT_CHARS, max_length=FINGERPRINT_CHARS)
    ledger_head: str = Field(min_length=FINGERPRINT_CHARS, max_length=FINGERPRINT_CHARS)
