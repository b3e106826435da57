"""A score taken apart exactly: its parts add up to it.

The model's score is ``a <c_u, c_i> + <u, v_i> + b_i`` with customer vectors that are sums over
the history, each product less an expected basket, plus attribute rows. Both products are bilinear,
so the score splits without remainder in either direction: by what speaks *for the customer* (this
product in your history, your age group) or by what speaks *for the product* (its brand, its
category, itself). What a shop mixes at home is linear too and splits alike.

What a history product adds is what it says beyond any product of an expected basket. So its part is
exactly what the score loses when the product is taken out of the history.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from common.errors import InputError

Kind = Literal[
    "history-content",
    "history-learned",
    "attribute",
    "feature-content",
    "feature-learned",
    "popularity",
    "neighbours",
    "constant",
]


@dataclass(frozen=True)
class Part:
    """One addend of a score: what kind of reason, which one, and how much."""

    kind: Kind
    label: str
    value: float


@dataclass(frozen=True)
class Explanation:
    """A score and the parts that it is the sum of; of the history, ``unknown`` is no part of it."""

    score: float
    parts: tuple[Part, ...]
    unknown: tuple[str, ...] = ()

    def total(self, kind: Kind) -> float:
        """Return the sum of the parts of one kind."""
        return math.fsum(part.value for part in self.parts if part.kind == kind)


@dataclass(frozen=True)
class CustomerSide:
    """What a customer's vectors are sums of; W wide in content, d wide in the learned part.

    Parameters
    ----------
    labels
        Names of the H products in the history.
    weights
        ``(H,)`` public weight of each (behaviour, age, pooling scale).
    content, vectors
        ``(H, W)`` and ``(H, d)`` of the products in the history, each less the expected basket.
    attributes
        Name -> ``(d,)`` rows that are added to the learned customer vector.
    """

    labels: Sequence[str]
    weights: np.ndarray
    content: np.ndarray
    vectors: np.ndarray
    attributes: Mapping[str, np.ndarray]

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the customer's ``c_u (W,)`` and ``u (d,)`` in float64."""
        weights = _f64(self.weights)
        content = weights @ _f64(self.content)
        learned = weights @ _f64(self.vectors)
        for row in self.attributes.values():
            learned = learned + _f64(row)
        return content, learned


@dataclass(frozen=True)
class ProductSide:
    """What a product's vectors are sums of.

    Parameters
    ----------
    content_scale
        The model's ``a``.
    content
        Feature -> ``(W,)``; their sum is ``c_i``. One entry if the block cannot be split.
    vectors
        Feature -> ``(d,)``; their sum is ``v_i`` (``E_id[i]`` and a row for each feature).
    popularity
        Where -> value, such as ``{"everywhere": b_i}``; their sum is the product's bias.
    """

    content_scale: float
    content: Mapping[str, np.ndarray]
    vectors: Mapping[str, np.ndarray]
    popularity: Mapping[str, float]

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the product's ``a c_i (W,)`` and ``v_i (d,)`` in float64."""
        content = self.content_scale * np.sum([_f64(c) for c in self.content.values()], axis=0)
        return content, np.sum([_f64(v) for v in self.vectors.values()], axis=0)


def explain(
    customer: CustomerSide, product: ProductSide, by: Literal["customer", "product"] = "customer"
) -> Explanation:
    """Take the score of one product for one customer apart.

    Parameters
    ----------
    by
        ``customer``: a content and a learned part for each product in the history, and one
        for each attribute. ``product``: a part for each feature of the product. Both give
        popularity its own parts.

    Raises
    ------
    InputError
        If the arrays' shapes do not fit together.
    """
    _check(customer, product)
    c_u, u = customer.sums()
    c_i, v_i = product.sums()
    popularity = tuple(Part("popularity", k, float(v)) for k, v in product.popularity.items())
    score = float(c_u @ c_i + u @ v_i) + math.fsum(part.value for part in popularity)
    if by == "product":
        parts = [
            *(
                Part("feature-content", label, product.content_scale * float(c_u @ _f64(row)))
                for label, row in product.content.items()
            ),
            *(
                Part("feature-learned", label, float(u @ _f64(row)))
                for label, row in product.vectors.items()
            ),
        ]
        return Explanation(score, (*parts, *popularity))
    weights = _f64(customer.weights)
    in_content = weights * (_f64(customer.content) @ c_i)
    in_learned = weights * (_f64(customer.vectors) @ v_i)
    parts = [
        *_parts("history-content", customer.labels, in_content),
        *_parts("history-learned", customer.labels, in_learned),
        *(
            Part("attribute", label, float(_f64(row) @ v_i))
            for label, row in customer.attributes.items()
        ),
    ]
    return Explanation(score, (*parts, *popularity))


def explain_neighbours(labels: Sequence[str], contributions: np.ndarray) -> Explanation:
    """Explain a score that is a plain sum over the history, such as EASE's ``sum_j x_j B_ji``.

    Parameters
    ----------
    contributions
        ``(H,)``, one for each product in the history.
    """
    values = _f64(contributions)
    return Explanation(float(values.sum()), _parts("neighbours", labels, values))


def mix(terms: Sequence[tuple[float, float, Explanation]]) -> Explanation:
    """Explain what a shop mixes at home: ``sum_k w_k (s_k - m_k)``.

    Parameters
    ----------
    terms
        ``(w, m, explanation)``: weight (a standard deviation divided out belongs into it), what
        is subtracted first (a mean), and the explanation of ``s``. The subtracted means come
        back as one constant part.
    """
    parts = [
        replace(part, value=weight * part.value)
        for weight, _, explanation in terms
        for part in explanation.parts
    ]
    shift = -math.fsum(weight * mean for weight, mean, _ in terms)
    score = math.fsum(weight * explanation.score for weight, _, explanation in terms) + shift
    return Explanation(score, (*parts, Part("constant", "average product", shift)))


def _parts(kind: Kind, labels: Sequence[str], values: np.ndarray) -> tuple[Part, ...]:
    return tuple(Part(kind, k, float(v)) for k, v in zip(labels, values, strict=True))


def add_part(parts: dict[str, np.ndarray], label: str, vector: np.ndarray) -> None:
    """Add a part; what is called the same is one part, so that nothing of the score is lost."""
    parts[label] = parts[label] + vector if label in parts else vector


def _f64(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


def _check(customer: CustomerSide, product: ProductSide) -> None:
    n = len(customer.labels)
    width, dimension = customer.content.shape[1:], customer.vectors.shape[1:]
    shapes = {
        "history weights": (customer.weights.shape, (n,)),
        "history content": (customer.content.shape, (n, *width)),
        "history vectors": (customer.vectors.shape, (n, *dimension)),
        **{f"attribute {k!r}": (v.shape, dimension) for k, v in customer.attributes.items()},
        **{f"content of {k!r}": (v.shape, width) for k, v in product.content.items()},
        **{f"vector of {k!r}": (v.shape, dimension) for k, v in product.vectors.items()},
    }
    for name, (actual, expected) in shapes.items():
        if actual != expected:
            raise InputError(f"{name} has shape {actual}, not {expected}")
    if not product.content or not product.vectors:
        raise InputError("a product needs a content row and a learned row, zero where it has none")
