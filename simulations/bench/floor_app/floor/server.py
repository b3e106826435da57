"""Rounds of Flower's own ``send_and_receive``, timed, with nothing done to the replies."""

import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Write one event a round, as the federation's own server does."""
    config = context.run_config
    shapes = json.loads(str(config["shapes"]))
    stream = np.random.default_rng()
    path = Path(str(config["events"]) or os.environ["FEDTAIL_FLOOR_EVENTS"])
    with path.open("a", encoding="utf-8") as events:
        print(json.dumps({"event": "start", "server_round": 0}), file=events, flush=True)
        while len(nodes := list(grid.get_node_ids())) < int(config["min-shops"]):
            time.sleep(0.02)
        for server_round in range(1, int(config["rounds"]) + 1):
            # Flower moves equal bytes once: a model is new in every round, in all its parts.
            drawn = {name: stream.random(s, np.float32) for name, s in shapes.items()}
            started = time.monotonic()
            content = RecordDict({"state": ArrayRecord({n: Array(a) for n, a in drawn.items()})})
            replies = grid.send_and_receive([Message(content, node, "train") for node in nodes])
            facts = {
                "event": "round",
                "server_round": server_round,
                "seconds": time.monotonic() - started,
                "accepted": sum(reply.has_content() for reply in replies),
            }
            print(json.dumps(facts), file=events, flush=True)
        print(json.dumps({"event": "end"}), file=events, flush=True)
