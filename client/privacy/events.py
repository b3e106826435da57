"""What a ledger's rows say: facts that ε is derived from, each covering the one before it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

HISTOGRAM = "gaussian-histogram"
DP_SGD = "dp-sgd"
EVALUATED = "gaussian-evaluation"
#: A share of the noise of a secure sum over shops; the sum holds that of all honest survivors.
SHARED_HISTOGRAM = "shared-gaussian-histogram"
SHARED_STEP = "shared-gaussian-step"
#: Whose noise is of whole numbers.
DISCRETE = frozenset((SHARED_HISTOGRAM, SHARED_STEP))
#: A round of training.
ROUNDS = frozenset((DP_SGD, SHARED_STEP))
#: The logged act of raising the cap: costs nothing, has no steps.
CAP = "cap"
#: A run without privacy, which the shop's settings allowed: no ε counts what left in it, so it has
#: no steps. Its entry is there to be told of.
UNPROTECTED = "unprotected"
#: The parameter that names the session of a secure sum: no two events have the same.
SESSION = "session"


@dataclass(frozen=True)
class Event:
    """One fact: what a release or a round of private training does to the data.

    Attributes
    ----------
    mechanism
        ``gaussian-histogram``, ``dp-sgd``, ``gaussian-evaluation``, ``cap`` or ``unprotected``; in
        a secure sum ``shared-gaussian-histogram`` and ``shared-gaussian-step``, whose noise
        multiplier is that of the sum.
    steps
        Times that the mechanism is applied; 0 is in no ε.
    relation
        How neighbouring data sets differ, by one ``unit``.
    parameters
        Whatever else is worth keeping, as plain JSON values.
    """

    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    unit: str
    relation: str = "add-or-remove"
    run_id: str = ""
    server_round: int = 0
    code_digest: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An event as it stands in the ledger."""

    seq: int
    at: str
    event: Event
    prev_hash: str
    hash: str


EVENT_FIELDS = tuple(entry.name for entry in fields(Event))
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: object) -> str:
    """Return the one JSON text of a value that hashes are made of."""
    return _ENCODER.encode(value)


def entry_hash(seq: int, at: str, event: Event, prev_hash: str) -> str:
    """Return the SHA-256 of an entry and of the hash before it, 64 hex digits."""
    facts = {name: getattr(event, name) for name in EVENT_FIELDS}
    # As SQLite's REAL and INTEGER columns give them back.
    for name in ("noise_multiplier", "sample_rate"):
        facts[name] = float(facts[name])
    facts |= {"seq": seq, "at": at, "prev_hash": prev_hash}
    return hashlib.sha256(canonical(facts).encode()).hexdigest()
