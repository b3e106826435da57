"""Ways to find the best products of a vector: ours, and those of libraries where installed."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from server.query.choosing import search
from server.query.index import ExactIndex, Index, Int8Index

#: Of the graphs: neighbours a product, and candidates while building.
NEIGHBOURS, BUILDING = 32, 80
#: Candidates while searching: more find more, later.
SEARCHING = (64, 256, 1024)

Search = Callable[[np.ndarray, int], np.ndarray]


def missing_libraries() -> list[str]:
    """Return which of the libraries to be held against are not installed."""
    return [name for name in ("faiss", "usearch") if find_spec(name) is None]


def ours(index: Index) -> Search:
    """Return what the served model does with an index, without content, filters and dial."""

    def find(vector: np.ndarray, k: int) -> np.ndarray:
        scores = index.scores(vector)
        return search(index, vector, scores, scores, k)[0]

    return find


def flat_searches(vectors: np.ndarray) -> dict[str, Search]:
    """Return the searches that read all of the (n, d) vectors."""
    found = {"exact": ours(ExactIndex(vectors)), "int8": ours(Int8Index.of(vectors))}
    missing = missing_libraries()
    if "faiss" not in missing:
        found |= _faiss_flat(vectors)
    if "usearch" not in missing:
        found["usearch-exact"] = _usearch_exact(vectors)
    return found


def graph_makers() -> Mapping[str, Callable[[np.ndarray], Callable[[int], Search]]]:
    """Return what builds a graph over vectors, and then searches with so many candidates."""
    makers = {"faiss-hnsw": _faiss_graph, "usearch-hnsw": _usearch_graph}
    return {n: make for n, make in makers.items() if n.split("-")[0] not in missing_libraries()}


def _faiss_flat(vectors: np.ndarray) -> dict[str, Search]:
    import faiss

    faiss.omp_set_num_threads(1)
    width = vectors.shape[1]
    flat = faiss.IndexFlatIP(width)
    coarse = faiss.IndexScalarQuantizer(
        width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    coarse.train(vectors)
    for index in (flat, coarse):
        index.add(vectors)
    return {"faiss-flat": _faiss_search(flat), "faiss-sq8": _faiss_search(coarse)}


def _faiss_search(index: Any) -> Search:  # noqa: ANN401 - of an untyped library
    def search(vector: np.ndarray, k: int) -> np.ndarray:
        rows: np.ndarray = index.search(vector[None, :], k)[1][0]
        return rows

    return search


def _usearch_exact(vectors: np.ndarray) -> Search:
    from usearch.index import search as find

    def search(vector: np.ndarray, k: int) -> np.ndarray:
        found = find(vectors, vector, k, "ip", exact=True, threads=1)
        return np.asarray(found.keys, dtype=np.int64)

    return search


def _faiss_graph(vectors: np.ndarray) -> Callable[[int], Search]:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexHNSWFlat(vectors.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILDING
    index.add(vectors)

    def with_candidates(candidates: int) -> Search:
        index.hnsw.efSearch = candidates
        return _faiss_search(index)

    return with_candidates


def _usearch_graph(vectors: np.ndarray) -> Callable[[int], Search]:
    from usearch.index import Index as Graph

    index: Any = Graph(
        ndim=vectors.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=NEIGHBOURS,
        expansion_add=BUILDING,
    )
    index.add(np.arange(len(vectors)), vectors, threads=1)

    def with_candidates(candidates: int) -> Search:
        index.expansion_search = candidates

        def search(vector: np.ndarray, k: int) -> np.ndarray:
            return np.asarray(index.search(vector, k, threads=1).keys, dtype=np.int64)

        return search

    return with_candidates
