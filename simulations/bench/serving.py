"""What an answer costs on one core: beside a sum over the same numbers, and beside libraries.

Everything that is compared is measured in turns, in one process with one thread on one processor,
in processor seconds: on a busy machine those are still the work's own. Latency is measured at a
real server on one processor by a client on another, from the moment a request was due.
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from common.artifact import load_model
from common.errors import RunError
from common.features import read_catalogue
from common.queries.asking import Answer, Query
from server.query.core import ServedModel
from server.query.index import Int8Index
from simulations.bench.asking import ARRIVALS, Arrivals, Latencies, open_loop
from simulations.bench.one_core import alone, in_turns, kernel, quiet_environment, ratio
from simulations.bench.served import on_processor, served
from simulations.bench.serving_indexes import (
    BUILDING,
    NEIGHBOURS,
    SEARCHING,
    Search,
    flat_searches,
    graph_makers,
    missing_libraries,
)
from simulations.bench.serving_models import (
    CONTENT_WIDTH,
    DISTRIBUTION,
    HISTORY,
    customer_vectors,
    histories,
    planted_catalogue,
    planted_model,
    taste_vectors,
    write_served,
)
from simulations.machine import machine_facts

K = 20
Part = Literal["flat", "core", "graph", "model", "grpc"]
PARTS: tuple[Part, ...] = get_args(Part)
_RECALL_QUERIES = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingSizes:
    """How much is measured.

    Attributes
    ----------
    products, graph_products, latency_products
        Of the searches that read all vectors and of the served core; of the graphs; of the server.
    rounds
        Turns of everything that is compared.
    rate, seconds
        Requests a second, and for how long.
    """

    products: int = 1_000_000
    graph_products: int = 1_000_000
    latency_products: int = 100_000
    dimension: int = 64
    rounds: int = 30
    rate: float = 100.0
    seconds: float = 60.0
    seed: int = 0


def bench_serving(
    sizes: ServingSizes | None = None,
    *,
    model: Path | None = None,
    only: Collection[Part] = PARTS,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Measure the cells of all parts, or of some.

    Parameters
    ----------
    model
        Folder of a run with ``models/federated-dp`` and ``catalogue``: recall on it is stated, too.
    only
        The parts to be measured.

    Returns
    -------
    dict
        ``cells``, each with the figures and, where there is one, the ratio, its target and whether
        it is met; ``setting``; ``missing`` libraries; ``machine``.
    """
    sizes = sizes or ServingSizes()
    cells: list[dict[str, Any]] = []
    steps: dict[Part, tuple[str, Callable[..., list[dict[str, Any]]], tuple[Any, ...]]] = {}
    if model is not None:
        # First: a folder that can't be read is told before minutes have gone by.
        steps["model"] = (f"recall on {model.name}", _model_cells, (model, sizes.seed))
    steps |= {
        "flat": (f"flat: {sizes.products:,} x {sizes.dimension}", _flat_cells, (sizes,)),
        "core": (f"served core: {sizes.products:,} products", _core_cells, (sizes,)),
        "graph": (f"graphs: {sizes.graph_products:,} x {sizes.dimension}", _graph_cells, (sizes,)),
    }
    blas = alone(kernel)
    for part, (words, measure, arguments) in steps.items():
        if part in only:
            progress(words)
            cells += alone(measure, *arguments)
    for precision in ("float32", "int8") if "grpc" in only else ():
        progress(f"latency: {sizes.latency_products:,} products, {precision}")
        cells += _latency_cells(sizes, precision)
    setting = {
        "k": K,
        "history": HISTORY,
        "vectors": DISTRIBUTION,
        "content_width": CONTENT_WIDTH,
        "graph": {"neighbours": NEIGHBOURS, "building": BUILDING},
        "rounds": sizes.rounds,
        "seed": sizes.seed,
        "threads": 1,
        "clock": "processor seconds; latency: wall, from the moment a request was due",
        "blas": blas,
    }
    return {
        "cells": cells,
        "setting": setting,
        "missing": missing_libraries(),
        "machine": machine_facts(),
    }


def targets_missed(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each target that was not met."""
    return [
        f"{cell['cell']} {cell['name']}: {name} {cell[name]:.3g}, wanted {wanted}"
        for cell in cells
        for name, wanted in cell.get("targets", {}).items()
        if not _meets(cell[name], wanted)
    ]


def _meets(value: float, wanted: str) -> bool:
    relation, limit = wanted.split()
    return value <= float(limit) if relation == "<=" else value >= float(limit)


def _flat_cells(sizes: ServingSizes) -> list[dict[str, Any]]:
    draw = np.random.default_rng(sizes.seed)
    vectors = taste_vectors(sizes.products, sizes.dimension, draw)
    customers = customer_vectors(vectors, _RECALL_QUERIES, draw)
    searches = flat_searches(vectors)
    acts: dict[str, Callable[[int], object]] = {"numpy.sum": lambda _: np.sum(vectors)}
    for name, search in searches.items():
        acts[name] = partial(_search, search, customers)
    times = in_turns(acts, sizes.rounds, draw)
    truth = [set(searches["exact"](vector, K)) for vector in customers]
    cells = []
    for name, found in times.items():
        cell: dict[str, Any] = {"cell": "flat", "name": name, "products": sizes.products}
        cell |= {"milliseconds": 1e3 * statistics.median(found)}
        cell["ratio_to_sum"] = ratio(found, times["numpy.sum"])
        cell["times_faster_than_exact"] = ratio(times["exact"], found)
        if name in searches:
            cell["recall@20"] = _recall(searches[name], customers, truth)
        cells.append(cell)
    by_name = {cell["name"]: cell for cell in cells}
    by_name["exact"]["targets"] = {"ratio_to_sum": "<= 1.3"}
    by_name["int8"]["targets"] = {"recall@20": ">= 0.99", "times_faster_than_exact": ">= 2.5"}
    return cells


def _core_cells(sizes: ServingSizes) -> list[dict[str, Any]]:
    draw = np.random.default_rng(sizes.seed)
    catalogue = planted_catalogue(sizes.products, draw)
    artifact = planted_model(catalogue, sizes.dimension, draw)
    models = {
        "served-float32": ServedModel.of(1, artifact, catalogue),
        "served-int8": ServedModel.of(1, artifact, catalogue, make_index=Int8Index.of),
    }
    vectors = models["served-float32"].model.lifted_vectors
    asked = [Query(history, k=K) for history in histories(catalogue, _RECALL_QUERIES, draw)]
    acts: dict[str, Callable[[int], object]] = {"numpy.sum": lambda _: np.sum(vectors)}
    for name, model in models.items():
        acts[name] = partial(_recommend, model, asked)
    times = in_turns(acts, sizes.rounds, draw)
    recall = _model_recall(models["served-float32"], models["served-int8"], asked)
    return [
        {
            "cell": "served core",
            "name": name,
            "products": sizes.products,
            "milliseconds": 1e3 * statistics.median(times[name]),
            "ratio_to_sum": ratio(times[name], times["numpy.sum"]),
            "recall@20": recall if name == "served-int8" else 1.0,
        }
        for name in models
    ]


def _graph_cells(sizes: ServingSizes) -> list[dict[str, Any]]:
    draw = np.random.default_rng(sizes.seed)
    vectors = taste_vectors(sizes.graph_products, sizes.dimension, draw)
    customers = customer_vectors(vectors, _RECALL_QUERIES, draw)
    exact, int8 = (flat_searches(vectors)[name] for name in ("exact", "int8"))
    truth = [set(exact(vector, K)) for vector in customers]
    cells = []
    for name, make in graph_makers().items():
        started = time.process_time()
        with_candidates = make(vectors)
        building = time.process_time() - started
        for candidates in SEARCHING:
            search = with_candidates(candidates)
            kinds = (("exact", exact), ("int8", int8), (name, search))
            acts = {kind: partial(_search, find, customers) for kind, find in kinds}
            times = in_turns(acts, sizes.rounds, draw)
            cells.append(
                {
                    "cell": "graph",
                    "name": name,
                    "products": sizes.graph_products,
                    "candidates": candidates,
                    "milliseconds": 1e3 * statistics.median(times[name]),
                    "int8_milliseconds": 1e3 * statistics.median(times["int8"]),
                    "times_faster_than_exact": ratio(times["exact"], times[name]),
                    "recall@20": _recall(search, customers, truth),
                    "building_seconds": building,
                }
            )
    return cells


def _model_cells(folder: Path, seed: int) -> list[dict[str, Any]]:
    catalogue = read_catalogue(folder / "catalogue")
    artifact = load_model(folder / "models" / "federated-dp")
    exact = ServedModel.of(1, artifact, catalogue)
    int8 = ServedModel.of(1, artifact, catalogue, make_index=Int8Index.of)
    asked = [
        Query(history, k=K)
        for history in histories(catalogue, _RECALL_QUERIES, np.random.default_rng(seed))
    ]
    return [
        {
            "cell": "a run's model",
            "name": "served-int8",
            "products": catalogue.size,
            "dimension": int(exact.model.lifted_vectors.shape[1]),
            "recall@20": _model_recall(exact, int8, asked),
            "targets": {"recall@20": ">= 0.99"},
        }
    ]


def _latency_cells(sizes: ServingSizes, precision: str) -> list[dict[str, Any]]:
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="ft-serving-") as name, quiet_environment():
        folder = Path(name)
        catalogue = write_served(folder, sizes.latency_products, sizes.dimension, sizes.seed)
        asked = histories(catalogue, 1000, np.random.default_rng(sizes.seed))
        with (
            served(folder, "--precision", precision, processor=last) as service,
            on_processor(first),
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client,
        ):

            def ask(arrivals: Arrivals, seconds: float) -> Latencies:
                found: Latencies = client.submit(
                    open_loop, service.grpc, asked, sizes.rate, seconds, sizes.seed, arrivals
                ).result()
                return found

            ask("steady", 3.0)  # Until all is loaded on both sides.
            cells = []
            for arrivals in ARRIVALS:
                before = service.processor_seconds()
                found = ask(arrivals, sizes.seconds)
                used = service.processor_seconds() - before
                cells.append(_latency_cell(sizes, precision, arrivals, found, used))
    processors = {"server": last, "client": first}
    return [{**cell, "processors": processors} for cell in cells]


def _latency_cell(
    sizes: ServingSizes, precision: str, arrivals: Arrivals, found: Latencies, used: float
) -> dict[str, Any]:
    if not found.seconds:
        raise RunError(f"none of {found.failed} requests to the server was answered")
    milliseconds = np.array(found.seconds) * 1e3
    levels = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "largest": 100}
    cell: dict[str, Any] = {
        "cell": "latency",
        "name": f"gRPC {precision}, {arrivals}",
        "products": sizes.latency_products,
        "requests": len(milliseconds) + found.failed,
        "failed": found.failed,
        "requests_per_second": sizes.rate,
        **{f"{name}_ms": float(np.percentile(milliseconds, at)) for name, at in levels.items()},
        "server_processor_ms": 1e3 * used / (len(milliseconds) + found.failed),
        "sent_late_p99_ms": float(np.percentile(found.late, 99)) * 1e3,
    }
    if arrivals == "steady":
        cell["targets"] = {"p99_ms": "<= 10", "failed": "<= 0"}
    return cell


def _search(search: Search, customers: np.ndarray, turn: int) -> np.ndarray:
    return search(customers[turn % len(customers)], K)


def _recommend(model: ServedModel, asked: Sequence[Query], turn: int) -> Answer:
    return model.recommend(asked[turn % len(asked)])


def _model_recall(exact: ServedModel, other: ServedModel, asked: Sequence[Query]) -> float:
    return statistics.mean(
        len({*exact.recommend(query).item_ids} & {*other.recommend(query).item_ids}) / K
        for query in asked
    )


def _recall(search: Search, customers: np.ndarray, truth: Sequence[set[Any]]) -> float:
    return statistics.mean(
        len(right & set(search(vector, K))) / K
        for vector, right in zip(customers, truth, strict=True)
    )
