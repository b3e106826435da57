"""A map of the product space: products that go together lie together, in two dimensions.

What two products have in common is what the model sees of them: public content, and the learned
vectors. Both are brought to few dimensions by a truncated singular value decomposition. t-SNE (van
der Maaten & Hinton 2008) lays out some hundred landmarks, the means of a k-means clustering, and
each product is placed among its nearest ones: seconds, where t-SNE of every product takes minutes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from common.catalogue.content_columns import is_number
from common.features import content_columns
from common.model import GlobalModel

#: Products that are laid out: the most popular, where there are more.
LARGEST = 50_000
_RANK = 64
_LANDMARKS = 600
_NEAREST = 3
#: How much learned vectors count beside content, and how many of their strongest dimensions.
_LEARNED, _LEARNED_DIMENSIONS = 0.25, 16
#: Radius of a landmark's products around it, in distances to the next landmark.
_RADIUS = 0.3
#: So many values of a column can still be told apart by colour; the rest is one group.
_GROUPS = 20
#: A column with so many values still tells groups of products apart.
_SURVEYED = 60


@dataclass(frozen=True)
class Group:
    """Products of one value of the column that tells groups apart, and where they are."""

    value: str
    x: float
    y: float
    products: int


@dataclass(frozen=True)
class ProductMap:
    """Products in the plane, the most popular (as released) first.

    Attributes
    ----------
    rows
        (m,) catalogue rows.
    places
        (m, 2) float64 in 0 to 1.
    column
        Of the products table, which ``groups`` are of; "" where none tells groups apart.
    groups
        The largest first.
    group
        (m,) place in ``groups``; -1 for all others.
    """

    rows: np.ndarray
    places: np.ndarray
    column: str
    groups: tuple[Group, ...]
    group: np.ndarray


def map_products(model: GlobalModel, largest: int = LARGEST) -> ProductMap:
    """Lay out the most popular products of a model; the same model gives the same map."""
    order = np.argsort(-model.popularity_bias, kind="stable")
    order = order[model.catalogue.offered[order]][:largest]
    places = lay_out(product_vectors(model, order))
    column, codes, values = _grouping(model.catalogue.products.iloc[order])
    groups = tuple(
        Group(value, *_middle(places[codes == code]), int((codes == code).sum()))
        for code, value in enumerate(values)
    )
    return ProductMap(order, places, column, groups, codes)


def product_vectors(model: GlobalModel, rows: np.ndarray) -> sparse.csr_matrix:
    """Return (m, W + d) what the model sees of products: content, then learned, at most 1 long.

    A learned vector is given the length 1, or less where it is shorter than most: little is known
    of such a product.
    """
    strongest = np.argsort(-model.spectrum, kind="stable")[:_LEARNED_DIMENSIONS]
    spectrum = np.maximum(model.spectrum[strongest], 0.0)
    learned = model.lifted_vectors[rows][:, strongest] * np.sqrt(spectrum)
    norms = np.linalg.norm(learned, axis=1, keepdims=True)
    known = norms[norms > 0]
    usual = float(np.median(known)) if known.size else 1.0
    learned = _LEARNED * learned / np.maximum(norms, usual)
    return sparse.csr_matrix(sparse.hstack([model.catalogue.content[rows], learned]))


def lay_out(vectors: sparse.csr_matrix) -> np.ndarray:
    """Return (m, 2) float64 places in 0 to 1 of (m, D) vectors; seconds for 50,000 of them."""
    reduced = _reduced(vectors)
    if len(reduced) <= _NEAREST:
        return np.column_stack([np.linspace(0, 1, len(reduced)), np.full(len(reduced), 0.5)])
    from sklearn.cluster import MiniBatchKMeans  # Slow to import.

    distinct = len(np.unique(reduced, axis=0))
    count = min(_LANDMARKS, max(_NEAREST + 1, len(reduced) // 4), distinct)
    if count <= _NEAREST:
        return _scaled(_spread(np.zeros((len(reduced), 2)), np.zeros(len(reduced), int), 1.0))
    means = MiniBatchKMeans(count, random_state=0, n_init=1, max_iter=20, batch_size=4096)
    distances = means.fit_transform(reduced)
    landmarks = _tsne(means.cluster_centers_)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :_NEAREST]
    weights = 1.0 / (np.take_along_axis(distances, nearest, axis=1) ** 2 + 1e-3)
    weights /= weights.sum(axis=1, keepdims=True)
    places = np.einsum("mk,mkd->md", weights, landmarks[nearest])
    return _scaled(_spread(places, nearest[:, 0], _gap(landmarks)))


def _reduced(vectors: sparse.csr_matrix) -> np.ndarray:
    """Return (m, r) coordinates along the strongest directions, each row of norm 1 (or 0)."""
    if not min(vectors.shape):
        return np.zeros((vectors.shape[0], 1))
    from sklearn.utils.extmath import randomized_svd  # Slow to import.

    rank = min(_RANK, *vectors.shape)
    left, strength, _ = randomized_svd(vectors.astype(np.float64), rank, random_state=0)
    coordinates = left * strength
    norms = np.linalg.norm(coordinates, axis=1, keepdims=True)
    rounded: np.ndarray = np.round(coordinates / np.maximum(norms, 1e-9), 6)
    return rounded


def _tsne(landmarks: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    near = min(20.0, (len(landmarks) - 1) / 3)
    layout = TSNE(2, perplexity=near, init="pca", max_iter=500, random_state=0)
    return np.asarray(layout.fit_transform(landmarks), dtype=np.float64)


def _gap(landmarks: np.ndarray) -> float:
    """Return the median distance of a landmark to the next."""
    distances = np.linalg.norm(landmarks[:, None] - landmarks[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)))


def _spread(places: np.ndarray, cluster: np.ndarray, gap: float) -> np.ndarray:
    """Move products around their places, none onto another: a sunflower, earlier rows inside.

    Products with the same content would lie on one point. (Vogel 1979.)
    """
    order = np.argsort(cluster, kind="stable")
    sizes = np.bincount(cluster)
    number = np.empty(len(places))
    number[order] = np.arange(len(places)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    radius = _RADIUS * gap * np.sqrt((number + 0.5) / sizes[cluster])
    angle = number * np.pi * (3.0 - 5.0**0.5)
    moved: np.ndarray = places + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return moved


def _scaled(places: np.ndarray) -> np.ndarray:
    """Return the places in the unit square, both axes by the same factor."""
    low, high = places.min(axis=0), places.max(axis=0)
    span = float((high - low).max()) or 1.0
    scaled: np.ndarray = (places - (low + high) / 2) / span + 0.5
    return scaled


def _middle(places: np.ndarray) -> tuple[float, float]:
    x, y = np.median(places, axis=0)
    return float(x), float(y)


def _grouping(products: pd.DataFrame) -> tuple[str, np.ndarray, list[str]]:
    """Return the column that tells groups apart best, (m,) codes, and the values they stand for.

    Of the columns of text whose values a person can survey the one that has most of them; where
    none has so few, ``category``.
    """
    texts = [n for n in content_columns(products) if not is_number(products[n])]
    counts = {name: products[name].dropna().astype(str).value_counts() for name in texts}
    fits = [name for name in texts if 2 <= len(counts[name]) <= _SURVEYED]
    column = max(fits, key=lambda name: len(counts[name])) if fits else "category"
    if column not in counts:
        return "", np.full(len(products), -1), []
    values = [str(value) for value in counts[column].index[:_GROUPS]]
    named = products[column].astype(object).where(products[column].notna(), "").astype(str)
    place = {value: code for code, value in enumerate(values)}
    return column, np.array([place.get(value, -1) for value in named]), values
