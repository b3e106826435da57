"""A plain exchange and a secure sum of the same arrays, for measuring one beside the other."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from client.privacy.discrete import discrete_gaussian
from client.privacy.noise import SystemNoise
from client.secure_sum.party import Identity
from client.secure_sum.sessions import Sessions
from common.array_checks import check_arrays
from common.errors import RunError
from common.protocol import (
    HEADER,
    MASKED_VECTOR,
    NO_FINGERPRINT,
    PUBLIC_WEIGHT,
    SAID,
    STATE,
    SUM_KEYS,
    SUM_MASKED,
    SUM_SHARES,
    SUM_VIEW,
    UPDATE,
    WEIGHT,
    Arrays,
    ReplyHeader,
    RoundHeader,
    TrainingPlan,
    shop_key,
)
from common.secure_sum.encoding import coordinate_bound, to_words, vector_length
from common.secure_sum.members import read_roster, roster_text, threshold
from common.secure_sum.messages import MaskedRequest, parse, state_digest
from common.secure_sum.noise import share_std
from server.job import Job, Shapes
from server.rounds.messenger import Messenger
from server.rounds.roster import Roster
from server.secure_sum.rounds import SecureSums
from server.settings import RunSettings
from simulations.bench.metered import Meter, MeteredGrid
from simulations.engine.in_process import run_defaults

_CATALOGUE = "c" * len(NO_FINGERPRINT)
_FIRST_NODE = 2


@dataclass(frozen=True)
class Cell:
    """One size of model and number of shops.

    Attributes
    ----------
    shapes
        Name -> shape of the arrays that travel, float32 down and 32 bits a number up.
    timed
        How many shops do all of a shop's work; the others make vectors that differ from what they
        would send only by masks that cancel between them.
    """

    shapes: Shapes
    shops: int
    timed: int

    @cached_property
    def length(self) -> int:
        """Numbers in the vector."""
        return vector_length(self.shapes)

    @cached_property
    def plan(self) -> TrainingPlan:
        """A plan of ordinary size: two thirds of the shops are honest survivors."""
        return TrainingPlan(
            trust="federation",
            honest_shops=-(-2 * self.shops // 3),
            rounds=1,
            noise_multiplier=4.0,
            popularity_noise_multiplier=4.0,
        )

    @cached_property
    def nodes(self) -> dict[int, int]:
        """Node -> number of its shop."""
        return {_FIRST_NODE + shop: shop for shop in range(self.shops)}

    @property
    def threshold(self) -> int:
        """Shops that must still be there for the sum to be unmasked."""
        return threshold(self.shops, self.plan.honest_shops, self.plan.colluding_shops)

    @cached_property
    def state(self) -> Arrays:
        """What the server sends."""
        stream = np.random.default_rng(0)
        return {n: stream.random(s, np.float32) for n, s in self.shapes.items()}

    @cached_property
    def whole(self) -> np.ndarray:
        """What each shop adds, (n,) int64 whole steps."""
        return np.arange(self.length, dtype=np.int64) % 1999 - 999


def plain_exchange(cell: Cell) -> Meter:
    """Send arrays to every shop, and add up the arrays that come back: Flower's FedAvg messages.

    The server adds each reply as it comes, the least that any server does.
    """
    meter = Meter()

    def app(message: Message, _: Context) -> Message:
        arrays = {n: a.numpy() for n, a in message.content.array_records["arrays"].items()}
        content = RecordDict(
            {
                "arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    grid = MeteredGrid(app, cell.nodes, lambda _: "train", meter)
    with meter.whole():
        record = ArrayRecord({n: Array(a) for n, a in cell.state.items()})
        totals = {n: np.zeros(s, np.float32) for n, s in cell.shapes.items()}
        for node in cell.nodes:
            content = RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 1})})
            reply = grid.answer(Message(content, node, MessageType.TRAIN, group_id="1"))
            for name, array in reply.content.array_records["arrays"].items():
                totals[name] += array.numpy()
    for name, total in totals.items():
        if not np.allclose(total, cell.shops * cell.state[name], rtol=1e-4):
            raise RunError("the plain exchange does not add up")
    return meter


@dataclass(frozen=True)
class SecureMeter:
    """What a secure sum took; the noise, drawn by one shop, is told apart."""

    meter: Meter
    noise_seconds: float | None


def secure_exchange(cell: Cell, folder: Path, *, noisy: bool) -> SecureMeter:
    """Run one secure sum with the federation's own server and the shops' own sessions.

    Shops read their roster and key for every message, and keep their sessions on disk, as deployed
    ones do. Training, and the ledger's one line, are left out.

    Parameters
    ----------
    folder
        For the shops' files; made here.
    noisy
        Whether the first shop draws its share of the noise.
    """
    shops = _Shops(cell, folder, noisy=noisy)
    meter = Meter()
    grid = MeteredGrid(shops.answer, cell.nodes, _stage, meter)
    settings = RunSettings.model_validate(
        {
            name: value
            for key, value in run_defaults().items()
            if (name := key.replace("-", "_")) in RunSettings.model_fields
        }
    )
    members = read_roster(shops.roster)
    job = Job("sum", cell.plan, settings, _CATALOGUE, cell.shapes, (*cell.shapes,), (), members)
    roster = Roster(grid)
    names = {node: shop_key(_merchant(shop)) for node, shop in cell.nodes.items()}
    roster.join(names)
    with meter.whole():
        messenger = Messenger(grid, job, roster, heads=None)
        summed = SecureSums(messenger, job, members).collect(1, names, cell.state, cell.shapes)
    if summed.reason:
        raise RunError(f"the secure sum failed: {summed.reason}")
    total = np.concatenate([array.ravel() for array in summed.arrays.values()])
    if not np.array_equal(total, cell.shops * cell.whole + shops.noise):
        raise RunError("the secure sum does not add up")
    if shops.noise_seconds is not None:
        meter.leave_out(_FIRST_NODE, SUM_MASKED, shops.noise_seconds)
    return SecureMeter(meter, shops.noise_seconds)


class _Shops:
    """All shops of a cell: :mod:`client.rounds.secure_participation` of a sum, without data."""

    def __init__(self, cell: Cell, folder: Path, *, noisy: bool) -> None:
        self._cell, self._folder, self._noisy = cell, folder, noisy
        folder.mkdir(parents=True)
        self.roster = folder / "roster"
        shown = []
        for shop in range(cell.shops):
            key = ec.generate_private_key(ec.SECP384R1())
            text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            (folder / f"{shop}.key").write_bytes(text)
            shown.append((_merchant(shop), key.public_key()))
        self.roster.write_text(roster_text(shown), encoding="ascii")
        self._timed = {shop_key(_merchant(shop)) for shop in range(cell.timed)}
        self.noise = np.zeros(1, np.int64)
        self.noise_seconds: float | None = None

    def answer(self, message: Message, context: Context) -> Message:
        """Answer one stage, as the client's app does."""
        shop = self._cell.nodes[context.node_id]
        stage = _stage(message)
        records = message.content.config_records
        header = RoundHeader.model_validate(dict(records[HEADER]))
        said = str(records[SAID][SAID])
        identity = Identity(shop_key(_merchant(shop)), self._key(shop), read_roster(self.roster))
        sessions = Sessions(self._folder / f"{shop}.sqlite", identity)
        text, arrays = "", {}
        if stage == SUM_MASKED:
            state = {n: a.numpy() for n, a in message.content.array_records[STATE].items()}
            arrays = {MASKED_VECTOR: self._masked(shop, sessions, said, state)}
        elif stage == SUM_KEYS:
            text = sessions.begin(said, lambda _: None)
        elif stage == SUM_SHARES:
            text = sessions.share(said)
        else:
            text = sessions.see(said) if stage == SUM_VIEW else sessions.unmask(said)
        reply = ReplyHeader(
            status="ok",
            server_round=header.server_round,
            shop=identity.shop,
            catalogue_fingerprint=header.catalogue_fingerprint,
            ledger_head=NO_FINGERPRINT,
            noise="system" if stage == SUM_MASKED else "none",
        )
        content = RecordDict(
            {
                HEADER: ConfigRecord(reply.model_dump()),
                WEIGHT: MetricRecord({WEIGHT: PUBLIC_WEIGHT}),
            }
        )
        if arrays:
            content[UPDATE] = ArrayRecord({n: Array(a) for n, a in arrays.items()})
        if text:
            content[SAID] = ConfigRecord({SAID: text})
        return Message(content, reply_to=message)

    def _masked(
        self, shop: int, sessions: Sessions, said: str, state: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        cell = self._cell
        session = sessions.peek(parse(MaskedRequest, said).session).session
        check_arrays(state, cell.shapes, max_norm=0.0)
        if session.state_digest != state_digest(dict(state)):
            raise RunError("the state is not the session's")
        _, masks = sessions.mask(said)
        std = share_std(cell.plan, cell.plan.noise_multiplier)
        noise = np.zeros(cell.length, np.int64)
        if shop == 0 and self._noisy:
            started = time.process_time()
            noise = self.noise = discrete_gaussian(SystemNoise(), cell.length, std)
            self.noise_seconds = time.process_time() - started
        bound = coordinate_bound(cell.shops, cell.length, std, cell.plan.noise_steps)
        if shop >= cell.timed:
            # Masks among these shops cancel in the sum, and nothing else is looked at here.
            few = {other: key for other, key in masks.pairwise.items() if other in self._timed}
            masks = dataclasses.replace(masks, pairwise=few)
        return masks.hide(to_words(cell.whole, noise, bound))

    def _key(self, shop: int) -> ec.EllipticCurvePrivateKey:
        key = load_ssh_private_key((self._folder / f"{shop}.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise RunError("a shop's key is of another kind")
        return key


def _merchant(shop: int) -> str:
    return f"m{shop}"


def _stage(message: Message) -> str:
    return message.metadata.message_type.split(".")[1]
