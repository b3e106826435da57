"""Events, and processes that write them to a ledger."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from client.privacy.ledger import DP_SGD, HISTOGRAM, Event, Ledger
from common.accounting import Spend, epsilon

DELTA = 1e-5
Process = subprocess.Popen[str]
HIST = Event(HISTOGRAM, 4.0, 1.0, 1, "customer", run_id="a", code_digest="c" * 64)
ROUND = Event(DP_SGD, 4.0, 1.0, 2, "customer", run_id="a", parameters={"plan": "p"})


def cost(*events: Event) -> float:
    return epsilon([Spend(e.noise_multiplier, e.sample_rate, e.steps) for e in events], DELTA).value


def rounds(n: int) -> list[Event]:
    return [replace(ROUND, server_round=i) for i in range(1, n + 1)]


def charge(path: Path, event: Event, cap: float, remaining: list[Event] | None = None) -> str:
    with Ledger.open(path) as ledger:
        return ledger.charge(event, cap_epsilon=cap, delta=DELTA, remaining=remaining or [])


def python(code: str, *arguments: object, fails_above: int | None = None) -> Process:
    """Start Python; ``fails_above`` is the size in bytes that no file can outgrow."""
    if fails_above is not None:
        # In the child, not as Popen's ``preexec_fn``: that makes Python fork, and gRPC's threads of
        # a test before this one crash the fork.
        limits = (fails_above, fails_above)
        code = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, {limits})\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
