"""A shop that answers rubbish: enrolled, with a real key, and none of it enters the model."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common.artifact import load_model
from common.programs.processes import listens
from deployment_support import SECONDS, Deployed
from faults_support import check_ended_well, end_of, fragile, start_by_hand
from simulations.loopback.deployment import LocalShop

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

#: What the hostile shop does in each round, from 1.
ROUNDS = ("shapes", "nan", "norm", "replay", "names")
PLAN = {"rounds": len(ROUNDS), "max_update_norm": 50.0}

#: Takes the place of Flower's own program: the app is the approved one, what it answers is not.
HOSTILE = """#!{python}
import json, pathlib, pickle, sys
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp

kept = pathlib.Path({kept!r})
honest = ClientApp.__call__

def hostile(self, message, context):
    reply = honest(self, message, context)
    if not message.metadata.message_type.endswith("update"):
        return reply
    number = int(message.metadata.group_id)
    what = {rounds!r}[number - 1]
    arrays = {{name: a.numpy().copy() for name, a in reply.content.array_records["update"].items()}}
    header = dict(reply.content.config_records["header"])
    (kept / f"answer-{{number}}").write_bytes(pickle.dumps((header, arrays)))
    first = next(iter(arrays))
    with (kept / "done").open("a") as done:
        done.write(json.dumps([number, what]) + "\\n")
    if what == "shapes":
        arrays[first] = arrays[first][:-1]
    elif what == "nan":
        arrays[first].flat[0] = np.nan
    elif what == "norm":
        arrays[first] += 1e6
    elif what == "names":
        arrays["extra"] = arrays.pop(first)
    elif what == "replay":
        # All that an earlier round was answered, whole and well-formed.
        header, arrays = pickle.loads((kept / "answer-1").read_bytes())
        reply.content["header"] = ConfigRecord(header)
    reply.content["update"] = ArrayRecord({{name: Array(a) for name, a in arrays.items()}})
    return reply

ClientApp.__call__ = hostile
from flwr.supernode.cli import flwr_clientapp
sys.exit(flwr_clientapp())
"""


@contextmanager
def hostile(federation: Deployed, shop: LocalShop) -> Iterator[None]:
    """Run a shop's node and executor with a program of the attacker's in place of Flower's."""
    script = HOSTILE.format(python=sys.executable, kept=str(shop.folder), rounds=ROUNDS)
    started, port = start_by_hand(federation, shop, script)
    try:
        federation.programs.wait_until(lambda: listens(port), "the hostile node", 120)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(60)


def test_a_shop_that_answers_rubbish(tmp_path: Path) -> None:
    with fragile(tmp_path, ("north", "evil"), PLAN, start=False) as federation:
        north, evil = federation.shops.values()
        federation.up()
        federation.open(north)
        federation.wait_until_connected(north, SECONDS)
        with hostile(federation, evil):
            federation.wait_until_online("evil", SECONDS)
            federation.train()
            status, said = end_of(federation)
        check_ended_well(federation, status, said)
        done = [json.loads(line) for line in (evil.folder / "done").read_text().splitlines()]
        assert done == [[number, what] for number, what in enumerate(ROUNDS, 1)], said
        rounds = federation.events("round")
        for event in rounds:
            assert event["declined"] == {"rubbish": 1}, event
            assert event["accepted"] == 1, event
        assert "evil: rubbish" in said
        # It has paid for what nobody took: a ledger never knows what became of a reply.
        run = rounds[-1]["run"]
        assert federation.paid(evil) == [(run, number) for number in range(len(ROUNDS) + 1)]
        arrays = load_model(federation.operator / "runs" / run / "model").arrays
        assert all(np.isfinite(array).all() for array in arrays.values())
        assert max(np.abs(array).max() for array in arrays.values()) < 1e3
