"""Flower's own SecAgg+ over the same arrays, its server and client code as they are installed.

SecAgg+ (Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS)
comes with Flower as a workflow of its older server and a mod of its clients. Every shop has all
others for neighbours, and the threshold is that of our own sum, so that both bear the same
drop-outs and collusion by design. (Its masks come of seeds of 32 bits at most, so that what is
built is weaker than its design: that costs nothing here and is not compared.)
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitRes,
    Parameters,
    Status,
    ndarray_to_bytes,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_combine, parameters_multiply
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
    Stage,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from common.errors import RunError
from simulations.bench.metered import Meter, MeteredGrid
from simulations.bench.sum_arms import Cell

_MAX_WEIGHT, _CLIPPING = 1000.0, 8.0
_QUANTIZATION = 2**22
_SEED_BYTES = 32
# Its function has the same name, and hides it.
_MOD = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
_WORKFLOW = import_module("flwr.server.workflow.secure_aggregation.secaggplus_workflow")


def secagg_plus_exchange(cell: Cell) -> Meter:
    """Run one round of SecAgg+."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    meter = Meter()
    clients = _Clients(cell)
    grid = _LateGrid(clients.answer, cell.nodes, _stage, meter)
    workflow = SecAggPlusWorkflow(
        1.0,
        cell.threshold,
        max_weight=_MAX_WEIGHT,
        clipping_range=_CLIPPING,
        quantization_range=_QUANTIZATION,
    )
    manager = SimpleClientManager()
    for node in cell.nodes:
        manager.register(_proxy(node))
    strategy = FedAvg(min_fit_clients=cell.shops, min_available_clients=cell.shops)
    context = LegacyContext(
        Context(1, 1, {}, RecordDict(), {}), strategy=strategy, client_manager=manager
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    with meter.whole():
        parameters = ndarrays_to_parameters([*cell.state.values()])
        record = compat.parameters_to_arrayrecord(parameters, keep_input=True)
        context.state.array_records[MAIN_PARAMS_RECORD] = record
        with patch.object(_WORKFLOW, "combine_shares", clients.sharing.combine):
            workflow(grid, context)
    meter.all_seconds += clients.sharing.seconds_left_out
    found = context.state.array_records[MAIN_PARAMS_RECORD]
    arrays = parameters_to_ndarrays(compat.arrayrecord_to_parameters(found, keep_input=True))
    # The mean of equal arrays, each quantised after it was weighted.
    for array, sent in zip(arrays, cell.state.values(), strict=True):
        step = 2 * _CLIPPING / _QUANTIZATION * _MAX_WEIGHT
        if array is sent or not np.allclose(array, sent, atol=2 * step):
            raise RunError("SecAgg+ does not add up")
    return meter


class _Clients:
    """All shops of a cell: Flower's mod around an app that sends back what it got."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._timed = [node for node, shop in cell.nodes.items() if shop < cell.timed]
        self._quantized: list[np.ndarray] = []
        self.sharing = _Sharing()

    def answer(self, message: Message, context: Context) -> Message:
        """Answer one stage."""
        stage = _stage(message)
        if context.node_id in self._timed:
            return secaggplus_mod(message, context, _same)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            return self._stand_in(message, context)
        if stage == Stage.SHARE_KEYS:
            with patch.object(_MOD, "create_shares", self.sharing.create):
                return secaggplus_mod(message, context, _same)
        return secaggplus_mod(message, context, _same)

    def _stand_in(self, message: Message, context: Context) -> Message:
        """Answer with a vector whose masks among such shops are left out: they cancel.

        The mod keeps the shares that it needs later by way of a vector of one number.
        """
        sent = compat.recorddict_to_fitins(message.content, keep_input=True).parameters
        one = ndarrays_to_parameters([np.zeros(1, np.float32)])
        reply = secaggplus_mod(message, context, lambda m, _: _fit(m, one))
        # Of what kind each entry is, Flower's own types do not say.
        state: dict[str, Any] = dict(context.state.config_records[RECORD_KEY_STATE])
        if not self._quantized:
            self._quantized = _quantized(parameters_to_ndarrays(sent))
        vector = [array.astype(np.int64) for array in self._quantized]
        shapes = [array.shape for array in vector]
        _add(vector, pseudo_rand_gen(state["rd_seed"], 2**32, shapes), 1)
        keys = dict(zip(state["public_keys_dict:K"], state["public_keys_dict:V"][::2], strict=True))
        for other in self._timed:
            own = bytes_to_private_key(state["sk1"])
            seed = generate_shared_key(own, bytes_to_public_key(keys[other]))
            sign = 1 if context.node_id > other else -1
            _add(vector, pseudo_rand_gen(seed, 2**32, shapes), sign)
        said = reply.content.config_records[RECORD_KEY_CONFIGS]
        said[Key.MASKED_PARAMETERS] = [ndarray_to_bytes(array % 2**32) for array in vector]
        return reply


class _Sharing:
    """Sharing of secrets where it is not timed: Flower's takes minutes with 94 shops.

    The shops that are not timed send their secret for each of its shares, as long as a share; the
    server puts secrets of the timed ones together, and is charged the same for each of the others.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._left_out = 0

    @staticmethod
    def create(secret: bytes, _threshold: int, count: int) -> list[bytes]:
        """Return what is as long as Flower's shares: an index, and blocks of 16 bytes, padded."""
        size = 4 + (len(secret) // 16 + 1) * 16
        return [secret.ljust(size, b"\0")] * count

    def combine(self, shares: list[bytes]) -> bytes:
        """Return a seed from its shares, or as it was sent."""
        if len(set(shares)) == 1:
            self._left_out += 1
            return shares[0][:_SEED_BYTES]
        started = time.process_time()
        secret = combine_shares(shares)
        self._seconds.append(time.process_time() - started)
        return secret

    @property
    def seconds_left_out(self) -> float:
        """What the secrets would have taken that were not put together."""
        return self._left_out * statistics.fmean(self._seconds)


class _LateReply:
    """A reply that is made when the server first reads it, and then forgotten but for its frame.

    Flower's workflow holds all masked vectors of a round at once: gigabytes at the largest sizes.
    """

    def __init__(self, node: int, make: Callable[[], Message]) -> None:
        self.metadata = SimpleNamespace(src_node_id=node)
        self._make, self._frame = make, RecordDict()

    @staticmethod
    def has_error() -> bool:
        """No shop of a measurement fails."""
        return False

    @property
    def content(self) -> RecordDict:
        """What the reply holds: all of it the first time."""
        if self._frame:
            return self._frame
        content = self._make().content
        self._frame = RecordDict({k: v for k, v in content.items() if k != RECORD_KEY_CONFIGS})
        return content


class _LateGrid(MeteredGrid):
    """Answers with late replies where masked vectors are asked for."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        asked = list(messages)
        if _stage(asked[0]) != Stage.COLLECT_MASKED_VECTORS:
            return super().send_and_receive(asked, timeout=timeout)
        late = [_LateReply(m.metadata.dst_node_id, partial(self.answer, m)) for m in asked]
        return cast("list[Message]", late)


def _same(message: Message, _: Context) -> Message:
    return _fit(message, compat.recorddict_to_fitins(message.content, keep_input=True).parameters)


def _fit(message: Message, parameters: Parameters) -> Message:
    result = FitRes(Status(Code.OK, ""), parameters, 1, {})
    return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def _quantized(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return what the mod makes of arrays of weight 1 before it masks them."""
    ratio = round(_QUANTIZATION / _MAX_WEIGHT)
    weighted = parameters_multiply(arrays, ratio / _QUANTIZATION)
    return factor_combine(ratio, quantize(weighted, _CLIPPING, _QUANTIZATION))


def _add(vector: list[np.ndarray], mask: list[np.ndarray], sign: int) -> None:
    for array, part in zip(vector, mask, strict=True):
        array += sign * part


def _proxy(node: int) -> ClientProxy:
    class Proxy(ClientProxy):
        get_properties = get_parameters = fit = evaluate = reconnect = None  # type: ignore[assignment]

    proxy = Proxy(str(node))
    proxy.node_id = node
    return proxy


def _stage(message: Message) -> str:
    return str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
