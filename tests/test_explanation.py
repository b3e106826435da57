"""Explanations add up, in both directions, and notice arrays that do not fit."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.explanation import (
    CustomerSide,
    Explanation,
    ProductSide,
    explain,
    explain_neighbours,
    mix,
)


def sides(seed: int, history: int = 4, scale: float = 1.0) -> tuple[CustomerSide, ProductSide]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    customer = CustomerSide(
        labels=[f"p{j}" for j in range(history)],
        weights=rng.random(history).astype(np.float32),
        content=draw(history, 32),
        vectors=draw(history, 8),
        attributes={"age 25-34": draw(8), "gender F": draw(8)},
    )
    product = ProductSide(
        content_scale=0.7,
        content={"type": draw(32), "manufacturer": draw(32)},
        vectors={"product": draw(8), "brand": draw(8)},
        popularity={"everywhere": 0.2, "here": -0.05},
    )
    return customer, product


def direct(customer: CustomerSide, product: ProductSide) -> float:
    c_u, u = np.zeros(32), np.zeros(8)
    for weight, content, vector in zip(
        customer.weights, customer.content, customer.vectors, strict=True
    ):
        c_u, u = c_u + weight * content.astype(float), u + weight * vector.astype(float)
    u = u + sum(vector.astype(float) for vector in customer.attributes.values())
    c_i = sum(content.astype(float) for content in product.content.values())
    v_i = sum(vector.astype(float) for vector in product.vectors.values())
    return float(0.7 * (c_u @ c_i) + u @ v_i + sum(product.popularity.values()))


def assert_adds_up(found: Explanation, score: float) -> None:
    size = math.fsum(abs(part.value) for part in found.parts)
    assert math.fsum(part.value for part in found.parts) == pytest.approx(score, abs=1e-6 * size)
    assert found.score == pytest.approx(score, abs=1e-6 * size)


@given(st.integers(0, 9999), st.integers(0, 6), st.sampled_from([1e-3, 1.0, 100.0]))
@settings(max_examples=60, deadline=None)
def test_parts_add_up_to_the_score_both_ways(seed: int, history: int, scale: float) -> None:
    customer, product = sides(seed, history, scale)
    score = direct(customer, product)
    for by in ("customer", "product"):
        assert_adds_up(explain(customer, product, by), score)


def test_each_part_is_what_its_label_says() -> None:
    customer, product = sides(1)
    found = explain(customer, product)
    without = CustomerSide(
        labels=customer.labels[1:],
        weights=customer.weights[1:],
        content=customer.content[1:],
        vectors=customer.vectors[1:],
        attributes={"gender F": customer.attributes["gender F"]},
    )
    gone = {part.kind: part.value for part in found.parts if part.label in {"p0", "age 25-34"}}
    assert set(gone) == {"history-content", "history-learned", "attribute"}
    assert found.score - explain(without, product).score == pytest.approx(sum(gone.values()))
    assert found.total("popularity") == pytest.approx(0.15)
    brand = next(p.value for p in explain(customer, product, "product").parts if p.label == "brand")
    rest = dataclasses.replace(
        product, vectors={**product.vectors, "brand": np.zeros(8, np.float32)}
    )
    assert found.score - explain(customer, rest).score == pytest.approx(brand)


def test_a_mixture_at_home_adds_up() -> None:
    customer, product = sides(2)
    model = explain(customer, product)
    ease = explain_neighbours(customer.labels, np.array([0.4, -0.1, 0.0, 0.2]))
    mixed = mix([(1.5, 0.3, model), (8.0, 0.05, ease)])
    assert_adds_up(mixed, 1.5 * (direct(customer, product) - 0.3) + 8 * (0.5 - 0.05))
    assert mixed.total("neighbours") == pytest.approx(4.0)
    assert mixed.total("constant") == pytest.approx(-(1.5 * 0.3 + 8 * 0.05))


def test_arrays_that_do_not_fit_are_named() -> None:
    customer, product = sides(3)
    with pytest.raises(InputError, match="history content"):
        explain(dataclasses.replace(customer, content=customer.content[:2]), product)
    short = dataclasses.replace(product, vectors={"brand": np.zeros(3)})
    with pytest.raises(InputError, match="vector of 'brand'"):
        explain(customer, short)
    with pytest.raises(InputError, match="needs a content row"):
        explain(customer, dataclasses.replace(product, content={}))
