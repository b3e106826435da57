"""A small decision tree that says in a few rules what a model as a whole does.

It is fitted on made-up customers: each is drawn to one to three kinds of products and takes them as
often as the released popularity says. Products, their content and released popularity are public,
so is all that the tree knows; no customer's record comes near it. The tree sees of a product how
much of a history shares its content, and its released popularity; it tells how far up the model's
list the product comes. How well it does that is measured on customers that it has not seen
(Craven & Shavlik 1996, "Extracting Tree-Structured Representations of Trained Networks").
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import spearmanr

from common.errors import InputError
from common.features import CROSS, Feature
from common.model import GlobalModel
from common.rng import derive

_LEAVES, _DEPTH = 12, 4
_PROFILES, _FRESH = 160, 40
#: Products looked at for each made-up customer: some of the best, and some of all.
_BEST, _ANY = 60, 140
_BEST_SHARE = 0.01
#: Of a leaf, among those looked at.
_LEAST_SHARE = 0.002
#: Sizes of a made-up history, evenly on a logarithmic scale.
_HISTORY = (3, 200)
_BLOCK = 20
_TOP = 20
_ANYWHERE: Mapping[str, tuple[float, float]] = MappingProxyType({})
_POPULARITY = "popularity"


@dataclass(frozen=True)
class Node:
    """One question of the tree, or one of its answers.

    Attributes
    ----------
    feature, threshold
        What is asked: is it more than the threshold? "" for an answer.
    yes, no
        Numbers of the nodes that follow; -1 for an answer.
    best_share
        Where the products come in the model's list, in the middle: 0.01 is among the best 1%.
    share
        Of the products looked at that come here.
    """

    feature: str
    threshold: float
    yes: int
    no: int
    best_share: float
    share: float


@dataclass(frozen=True)
class Fidelity:
    """How well the tree tells what the model does, on made-up customers that it has not seen.

    Attributes
    ----------
    r2
        Share of the variance of ``log10`` of places in the list that it tells, over products drawn
        as for the fit: some of each customer's best, and some of all.
    r2_by_popularity
        The same of a tree of that size that knows nothing but released popularity.
    rank_correlation
        Spearman's, of all products of a customer; the mean over customers.
    top_20_overlap
        Share of the model's 20 best that are among the tree's; of equals, the more popular first.
    top_20_by_popularity
        The same of the 20 most popular products: what knowing nothing of the model would give.
    """

    profiles: int
    r2: float
    r2_by_popularity: float
    rank_correlation: float
    top_20_overlap: float
    top_20_by_popularity: float


@dataclass(frozen=True)
class ModelTree:
    """The tree, its rules in words, the best products' first, and how far to trust them."""

    nodes: tuple[Node, ...]
    rules: tuple[str, ...]
    fidelity: Fidelity


def fit_tree(model: GlobalModel) -> ModelTree:
    """Fit the tree of a model; the same model gives the same tree. Seconds for 20,000 products.

    Raises
    ------
    InputError
        If there are too few products to tell anything of.
    """
    if int(model.catalogue.offered.sum()) <= _TOP:
        raise InputError(f"a tree tells of a model with more than {_TOP} products")
    from sklearn.tree import DecisionTreeRegressor  # Slow to import.

    content = _Content.of(model)
    stream = derive(0, purpose="model-tree")
    seen, places = [], []
    for history, scores in _ranked(model, content, stream, _PROFILES):
        place = _log_place(scores)
        chosen = _looked_at(place, np.flatnonzero(np.isfinite(scores)), stream)
        seen.append(content.of_products(history, chosen))
        places.append(place[chosen])
    tree, popular = (
        DecisionTreeRegressor(
            max_leaf_nodes=_LEAVES, max_depth=_DEPTH, min_samples_leaf=_LEAST_SHARE, random_state=0
        )
        for _ in range(2)
    )
    told, place = np.concatenate(seen), np.concatenate(places)
    tree.fit(told, place)
    popular.fit(told[:, -1:], place)
    nodes = tuple(_nodes(tree, content.names))
    rules = sorted(_rules(nodes), key=lambda rule: rule[0])
    words = tuple(said for _, said in rules)
    return ModelTree(nodes, words, _fidelity(model, content, tree, popular, stream))


@dataclass(frozen=True)
class _Content:
    """What the tree may know of products.

    Attributes
    ----------
    names
        Kinds of content, then popularity.
    shares
        Of each kind (n, V): a product's values, which sum to 1.
    popularity
        (n,) released, 1 for an average product.
    """

    names: tuple[str, ...]
    shares: tuple[sparse.csr_matrix, ...]
    popularity: np.ndarray

    @classmethod
    def of(cls, model: GlobalModel) -> "_Content":
        features = [f for f in model.catalogue.features if len(f.rows)]
        names = (*(f.name for f in features), _POPULARITY)
        shares = tuple(_shares(feature, model.catalogue.size) for feature in features)
        return cls(names, shares, np.maximum(model.popularity_bias, 0.0).astype(np.float64))

    def of_products(self, history: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        """Return (m, F) float32: how much of a history shares a product's content; popularity."""
        columns = []
        for shares in self.shares:
            has = (shares[history] > 0).astype(np.float64)
            common = np.asarray(has.sum(axis=0)).ravel() / max(len(history), 1)
            columns.append(np.asarray(shares[rows] @ common))
        return np.column_stack([*columns, self.popularity[rows]]).astype(np.float32)


def _shares(feature: Feature, size: int) -> sparse.csr_matrix:
    ones = np.ones(len(feature.rows))
    values = sparse.csr_matrix(
        (ones, (feature.rows, feature.codes)), shape=(size, len(feature.values))
    )
    counts = np.asarray(values.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags_array(1.0 / np.maximum(counts, 1.0)) @ values)


def _ranked(
    model: GlobalModel, content: _Content, stream: np.random.Generator, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield made-up histories (rows) with the model's (n,) scores, ``-inf`` where not listed."""
    histories = [_profile(model, content, stream) for _ in range(count)]
    for start in range(0, count, _BLOCK):
        block = histories[start : start + _BLOCK]
        owners = np.repeat(np.arange(len(block)), [len(h) for h in block])
        rows = np.concatenate(block)
        ones = np.ones(len(rows), np.float32)
        matrix = sparse.csr_matrix(
            (ones, (owners, rows)), shape=(len(block), content.popularity.size)
        )
        scores = model.scores(matrix)
        scores[:, ~model.catalogue.offered] = -np.inf
        scores[owners, rows] = -np.inf
        yield from zip(block, scores, strict=True)


def _profile(model: GlobalModel, content: _Content, stream: np.random.Generator) -> np.ndarray:
    """Draw one customer's rows: of a few kinds, and some of anything; by released popularity."""
    size = content.popularity.size
    chance = np.where(model.catalogue.offered, content.popularity + 0.05, 0.0)
    if content.shares:
        kinds = content.shares[int(stream.integers(len(content.shares)))]
        drawn = stream.choice(size, int(stream.integers(1, 4)), p=chance / chance.sum())
        liked = np.asarray((kinds @ kinds[drawn].T).sum(axis=1)).ravel() > 0
        if liked.any():  # Of products without content of this kind nothing tells what is liked.
            chance = chance * np.where(liked, 1.0, 0.2 * chance[liked].sum() / chance.sum())
    wanted = round(math.exp(stream.uniform(*np.log(_HISTORY))))
    count = min(wanted, int((chance > 0).sum()) - _TOP)
    return np.sort(stream.choice(size, max(count, 1), replace=False, p=chance / chance.sum()))


def _looked_at(place: np.ndarray, listed: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Draw rows: some of the best by (n,) ``place``, since lists are short, and some of all."""
    count = max(_TOP, round(_BEST_SHARE * len(listed)))
    best = np.argsort(-place, kind="stable")[:count]
    return np.concatenate([stream.choice(best, _BEST), stream.choice(listed, _ANY)])


def _log_place(scores: np.ndarray) -> np.ndarray:
    """Return (n,) ``-log10`` of each product's place as a share of the list: 2 is the best 1%."""
    order = np.argsort(-scores, kind="stable")
    place = np.empty(len(scores))
    place[order] = np.arange(1, len(scores) + 1)
    found: np.ndarray = -np.log10(np.minimum(place / np.isfinite(scores).sum(), 1.0))
    return found


def _fidelity(
    model: GlobalModel,
    content: _Content,
    tree: Any,  # noqa: ANN401 - sklearn has no types
    by_popularity: Any,  # noqa: ANN401
    stream: np.random.Generator,
) -> Fidelity:
    left = left_by_popularity = total = 0.0
    correlations, overlaps, popular = [], [], []
    for history, scores in _ranked(model, content, stream, _FRESH):
        listed = np.flatnonzero(np.isfinite(scores))
        seen = content.of_products(history, listed)
        told, place = np.asarray(tree.predict(seen)), _log_place(scores)[listed]
        drawn = _looked_at(place, np.arange(len(listed)), stream)
        popularity_told = by_popularity.predict(seen[drawn, -1:])
        left += float(((place[drawn] - told[drawn]) ** 2).sum())
        left_by_popularity += float(((place[drawn] - popularity_told) ** 2).sum())
        total += float(((place[drawn] - place[drawn].mean()) ** 2).sum())
        # A tree of one answer orders nothing.
        correlations.append(float(spearmanr(place, told)[0]) if np.ptp(told) else 0.0)
        best = set(np.argsort(-place, kind="stable")[:_TOP].tolist())
        rarest = -content.popularity[listed]
        overlaps.append(len(best & set(np.lexsort((rarest, -told))[:_TOP].tolist())) / _TOP)
        popular.append(len(best & set(np.argsort(rarest, kind="stable")[:_TOP].tolist())) / _TOP)
    return Fidelity(
        profiles=_FRESH,
        r2=1.0 - left / total,
        r2_by_popularity=1.0 - left_by_popularity / total,
        rank_correlation=float(np.mean(correlations)),
        top_20_overlap=float(np.mean(overlaps)),
        top_20_by_popularity=float(np.mean(popular)),
    )


def _nodes(tree: Any, names: Sequence[str]) -> Iterator[Node]:  # noqa: ANN401 - no types
    found = tree.tree_
    whole = float(found.weighted_n_node_samples[0])
    for number in range(found.node_count):
        leaf = found.children_left[number] < 0
        yield Node(
            feature="" if leaf else names[found.feature[number]],
            threshold=0.0 if leaf else float(found.threshold[number]),
            # sklearn goes left where the value is at most the threshold.
            yes=int(found.children_right[number]),
            no=int(found.children_left[number]),
            best_share=float(10.0 ** -found.value[number].item()),
            share=float(found.weighted_n_node_samples[number]) / whole,
        )


def _rules(
    nodes: Sequence[Node], number: int = 0, within: Mapping[str, tuple[float, float]] = _ANYWHERE
) -> Iterator[tuple[float, str]]:
    """Yield where products come in the list, and that in words with all that leads to it."""
    node = nodes[number]
    if node.yes < 0:
        when = ", and ".join(_range(name, *edges) for name, edges in within.items())
        best = _two_digits(100 * node.best_share)
        yield node.best_share, f"about the best {best}% of the list: {when or 'any product'}"
        return
    low, high = within.get(node.feature, (-math.inf, math.inf))
    yield from _rules(nodes, node.yes, {**within, node.feature: (node.threshold, high)})
    yield from _rules(nodes, node.no, {**within, node.feature: (low, node.threshold)})


def _range(name: str, low: float, high: float) -> str:
    """Say that a feature is above ``low`` and at most ``high``."""
    popularity = name == _POPULARITY
    edges = [
        _two_digits(edge) if popularity else f"{_two_digits(100 * edge)}%" for edge in (low, high)
    ]
    between = (
        f"at most {edges[1]}"
        if low == -math.inf
        else f"more than {edges[0]}"
        if high == math.inf
        else f"{edges[0]} to {edges[1]}"
    )
    if popularity:
        return f"{between} times as popular as the average product"
    return f"{between} of the history has its {' and '.join(name.split(CROSS))}"


def _two_digits(value: float) -> str:
    """Return a number rounded to two significant digits, of 100 and more written out."""
    return f"{float(f'{value:.2g}'):g}"
