"""Plants one mistake that ruins privacy, named by the environment, before any test is collected.

A pytest plugin (``-p planting``) for ``test_planted_bugs.py``: what the suite does not notice when
it is planted here, it would not notice in a change either.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc
import torch
from flwr.app import MetricRecord

import client.app
import client.rounds.popularity_release
import client.rounds.secure_participation
import client.training
import client.units
import common.tables.columns
import common.tables.folders
from client.privacy import layers
from client.privacy.layers import Reads
from client.privacy.ledger import Ledger
from client.privacy.optimizer import UnitOptimizer
from client.privacy.rows import OwedNoise
from common.protocol import ITEMS, WEIGHT, Arrays, TrainingPlan
from common.schema import ShopEvents
from common.shop_state import ShopState

VARIABLE = "FEDTAIL_PLANTED_BUG"


@dataclass(frozen=True)
class Bug:
    """A mistake, the test of the suite that must notice it, and how it is made."""

    what: str
    caught_by: str
    plant: Callable[[], None]


def _clip_per_table() -> None:
    def clip(self: UnitOptimizer, norms: torch.Tensor) -> torch.Tensor:
        factors: torch.Tensor = (self.max_grad_norm / norms.clamp(min=1e-300)).clamp(max=1.0)
        return factors

    UnitOptimizer.clip = clip  # type: ignore[method-assign]


def _clip_duplicates_apart() -> None:
    def of(ids: torch.Tensor) -> Reads:
        reads = right(ids)
        return replace(
            reads, repeats=reads.repeats[:0], groups=reads.groups[:0], apart=reads.apart[:0]
        )

    right = Reads.of
    layers.Reads.of = of  # type: ignore[method-assign]


def _scale_noise(factor: Callable[[str], float]) -> None:
    right = UnitOptimizer.noise_std

    def noise_std(self: UnitOptimizer, name: str) -> float:
        return right(self, name) * factor(name)

    UnitOptimizer.noise_std = noise_std  # type: ignore[method-assign]


def _pad_row_without_noise() -> None:
    right = OwedNoise.pay_all

    def pay_all(self: OwedNoise) -> None:
        kept = self._weight[0].copy()
        right(self)
        self._weight[0] = kept

    OwedNoise.pay_all = pay_all  # type: ignore[method-assign]


def _train_with(change: Callable[[TrainingPlan, int], Mapping[str, object]]) -> None:
    right = client.training.train_round

    def train_round(plan: TrainingPlan, server_round: int, *rest: object) -> object:
        customers = len(rest[1].user_ids)  # type: ignore[attr-defined]
        changed = plan.model_copy(update=dict(change(plan, customers)))
        return right(changed, server_round, *rest)  # type: ignore[arg-type]

    client.training.train_round = train_round  # type: ignore[assignment]


def _forget_a_round() -> None:
    right = Ledger.charge

    def charge(self: Ledger, event: object, **rest: object) -> str:
        known = {(e.event.run_id, e.event.server_round) for e in self.events()}
        if (event.run_id, event.server_round) in known:  # type: ignore[attr-defined]
            return self.head()
        return right(self, event, **rest)  # type: ignore[arg-type]

    Ledger.charge = charge  # type: ignore[method-assign]


def _charge_a_session_again() -> None:
    """No entry of a ledger says which session it paid for."""
    vars(client.rounds.secure_participation)["SESSION"] = "sum"


def _send_a_metric() -> None:
    right = client.app._reply

    def reply(*arguments: object) -> object:
        message = right(*arguments)  # type: ignore[arg-type]
        message.content[WEIGHT] = MetricRecord({WEIGHT: 1.0, "loss": 0.25})
        return message

    client.app._reply = reply  # type: ignore[assignment]


def _share_as_if_all_stocked() -> None:
    def honest_senders(plan: TrainingPlan, _members: int, _senders: int) -> np.ndarray:
        return np.asarray(plan.honest_shops)

    vars(client.rounds.secure_participation)["honest_senders"] = honest_senders


def _rows_of_what_was_bought() -> None:
    right = client.training.train_round

    def train_round(
        plan: TrainingPlan,
        server_round: int,
        state: Arrays | ShopState,
        events: ShopEvents,
        *others: Any,
    ) -> Arrays:
        left = right(plan, server_round, state, events, *others)
        rows = np.arange(len(left[ITEMS]))
        if isinstance(state, ShopState) and state.products is not None:
            rows = state.products
        return {**left, ITEMS: left[ITEMS][np.isin(rows, events.items)]}

    client.training.train_round = train_round  # type: ignore[assignment]


def _count_what_is_not_stocked() -> None:
    right = client.units.round_units

    def round_units(*known: Any) -> client.units.Units:
        return right(*known[:4])

    vars(client.rounds.popularity_release)["round_units"] = round_units


def _draw_by_number() -> None:
    vars(client.training)["unit_digests"] = lambda units, _: np.arange(len(units.owners))


def _ids_by_block() -> None:
    def text(column: arrow.Array) -> arrow.Array:
        column = pc.if_else(pc.is_nan(column), None, column)
        if pc.all(pc.equal(pc.floor(column), column)).as_py():
            column = column.cast(arrow.int64())
        return column.cast(arrow.string())

    vars(common.tables.columns)["_float_text"] = text


def _attributes_by_column() -> None:
    def small_frame(table: arrow.Table, *_: object, **__: object) -> pd.DataFrame:
        frame: pd.DataFrame = table.to_pandas().map(str, na_action="ignore")
        return frame

    vars(common.tables.folders)["small_frame"] = small_frame


_NORMS = "test_step.py::test_norms_and_updates_equal_brute_force"
_VARIANCE = "test_step.py::test_the_noise_has_its_variance_in_every_parameter"
_NEIGHBOURS = (
    "test_neighbouring_files.py::test_a_customer_adds_the_same_bits_whoever_else_is_in_the_files"
)
_RATE = "test_sampling.py::test_every_step_samples_at_the_rate_that_the_ledger_is_charged"

BUGS = {
    "clipping-per-table": Bug(
        "clipping per table instead of jointly",
        "test_step.py::test_no_unit_adds_more_than_the_bound",
        _clip_per_table,
    ),
    "duplicates-apart": Bug(
        "duplicates of a product clipped apart", _NORMS, _clip_duplicates_apart
    ),
    "half-the-noise": Bug(
        "noise too small by half", _VARIANCE, lambda: _scale_noise(lambda _: 0.5)
    ),
    "table-without-noise": Bug(
        "a table left without noise",
        _VARIANCE,
        lambda: _scale_noise(lambda name: float(not name.startswith("item"))),
    ),
    "pad-row-without-noise": Bug(
        "a pad row without noise",
        "test_step.py::test_an_empty_batch_is_pure_noise_on_every_entry",
        _pad_row_without_noise,
    ),
    "sampling-without-accounting": Bug(
        "everyone in every step, accounted as a sample",
        _RATE,
        lambda: _train_with(lambda *_: {"sample_rate": 1.0}),
    ),
    "steps-without-accounting": Bug(
        "more steps than the ledger is charged",
        _RATE,
        lambda: _train_with(lambda plan, _: {"local_steps": plan.local_steps + 1}),
    ),
    "rate-from-customer-count": Bug(
        "a rate derived from the customer count",
        _RATE,
        lambda: _train_with(lambda _, customers: {"sample_rate": min(1.0, 8 / max(customers, 1))}),
    ),
    "forgotten-round": Bug(
        "a ledger that forgets a round that is done again",
        "test_participation.py::test_each_release_and_round_is_charged_once",
        _forget_a_round,
    ),
    "session-charged-twice": Bug(
        "a second vector under the masks of the first, once the file of sessions was put back",
        "test_secure_rounds.py::test_sessions_that_were_put_back_get_no_second_vector_out_of_a_shop",
        _charge_a_session_again,
    ),
    "uncharged-metric": Bug(
        "a metric released uncharged",
        "test_participation.py::test_the_real_client_app_serves_a_whole_run",
        _send_a_metric,
    ),
    "share-of-all": Bug(
        "a row that few shops stock with the noise share of one that all send",
        "test_secure_rounds_sparse.py::test_the_noise_of_the_rarest_row_is_what_the_plan_says",
        _share_as_if_all_stocked,
    ),
    "rows-of-purchases": Bug(
        "the rows that travel chosen by what was bought",
        "test_stocked_rounds.py::test_bytes_grow_with_what_a_shop_stocks",
        _rows_of_what_was_bought,
    ),
    "unlisted-records": Bug(
        "records of what a shop does not stock in what it releases of the rest",
        "test_stocked_training.py::test_records_of_what_is_not_stocked_change_no_bit_of_what_leaves",
        _count_what_is_not_stocked,
    ),
    "draws-by-number": Bug(
        "a unit's draws by its number in the shop",
        "test_training.py::test_a_customer_more_moves_nothing_but_by_what_that_customer_adds",
        _draw_by_number,
    ),
    "ids-by-block": Bug(
        "ids that are read in the notation that all of a block allows", _NEIGHBOURS, _ids_by_block
    ),
    "attributes-by-column": Bug(
        "attributes of the type that pandas finds for all customers",
        _NEIGHBOURS,
        _attributes_by_column,
    ),
}


def pytest_configure() -> None:
    """Plant the bug that the environment names."""
    if name := os.environ.get(VARIABLE):
        BUGS[name].plant()
