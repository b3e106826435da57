"""What the serving bench compares finds the same products, and its latencies hide no stall."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc
from simulations.bench.asking import open_loop
from simulations.bench.serving import ServingSizes, bench_serving, targets_missed
from simulations.bench.serving_indexes import flat_searches, graph_makers, missing_libraries
from simulations.bench.serving_models import customer_vectors, taste_vectors


def test_every_search_finds_the_largest_products() -> None:
    draw = np.random.default_rng(3)
    vectors = taste_vectors(3000, 24, draw)
    customers = customer_vectors(vectors, 10, draw)
    truth = [set(np.argsort(-(vectors @ customer))[:20].tolist()) for customer in customers]
    searches = flat_searches(vectors)
    for name, make in graph_makers().items():
        searches[name] = make(vectors)(1024)
    assert {"exact", "int8"} <= set(searches)
    for name, search in searches.items():
        found = [
            len(right & set(search(c, 20))) / 20 for c, right in zip(customers, truth, strict=True)
        ]
        # Only a graph may miss some; faiss' 8 bits are not refined with exact scores.
        assert np.mean(found) >= {"exact": 1.0, "int8": 0.99}.get(name, 0.9), name


def test_a_target_is_missed_on_its_own_side() -> None:
    cell = {"cell": "flat", "name": "x", "ratio": 1.4, "recall": 0.995}
    cell["targets"] = {"ratio": "<= 1.3", "recall": ">= 0.99"}
    assert targets_missed([cell]) == ["flat x: ratio 1.4, wanted <= 1.3"]
    assert targets_missed([{"cell": "flat", "name": "y"}]) == []


class Stalling(wire_grpc.RecommenderServicer):
    """Answers at once, but for one request that keeps all others waiting for half a second."""

    def __init__(self) -> None:
        self.asked = 0
        self.lock = threading.Lock()

    def Recommend(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self.lock:
            self.asked += 1
            if self.asked == 20:
                time.sleep(0.5)
        return wire.RecommendResponse()


def test_a_stall_counts_for_all_who_were_due_meanwhile() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    wire_grpc.add_RecommenderServicer_to_server(Stalling(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        found = open_loop(f"127.0.0.1:{port}", [{"p1": 1.0}], 200.0, 1.0, 0)
    finally:
        server.stop(None).wait()
    assert found.failed == 0
    assert len(found.seconds) == len(found.late) == 200
    # One caller after the other would have seen one slow answer. About 100 were due in the stall,
    # half of them in its first half.
    assert sum(seconds > 0.2 for seconds in found.seconds) > 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bench_measures_all_its_cells() -> None:
    sizes = ServingSizes(
        products=3000, graph_products=2000, latency_products=1000, rounds=2, seconds=1.0
    )
    found = bench_serving(sizes)
    names = {(cell["cell"], cell["name"]) for cell in found["cells"]}
    assert {("flat", "exact"), ("flat", "int8"), ("latency", "gRPC float32, steady")} <= names
    assert {("served core", "served-float32"), ("served core", "served-int8")} <= names
    for cell in found["cells"]:
        if cell["cell"] == "latency":
            assert cell["failed"] == 0
            assert 0 < cell["p50_ms"] <= cell["p99_ms"] <= cell["largest_ms"]
        if "int8" in cell["name"] and "recall@20" in cell:
            assert cell["recall@20"] >= 0.99
    assert found["missing"] == missing_libraries()


@pytest.mark.slow
def test_the_command_says_what_is_missing_and_goes_on() -> None:
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "hidden = ('faiss', 'usearch')\n"
        "u.find_spec = lambda name, *more: None if name in hidden else find(name, *more)\n"
        "from simulations.__main__ import main\n"
        "sys.argv = ['simulations', 'bench', 'serving', '--products', '1000', '--rounds', '1',\n"
        " '--graph-products', '1000', '--latency-products', '1000', '--seconds', '1', '--json']\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True
    )
    assert "not installed, so not measured: faiss, usearch" in done.stderr
    assert json.loads(done.stdout)["missing"] == ["faiss", "usearch"]
