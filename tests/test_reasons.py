"""What is taken apart is the score that the model gives."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from common.errors import InputError
from common.explanation import explain
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, attribute_matrix, initial_state
from common.protocol import ModelPlan
from common.queries.reasons import sides_of

SIZE = 40


def model_of(**more: object) -> GlobalModel:
    rng = np.random.default_rng(0)
    products = pd.DataFrame(
        {
            "item_id": [f"p{i:02d}" for i in range(SIZE)],
            "brand": rng.choice(["A", "B", "C"], SIZE),
            "genres": rng.choice(["x|y", "y", "x|z|y", ""], SIZE),
        }
    )
    spec = ContentSpec(content_width=256, hash_rows=64)
    plan = ModelPlan.model_validate(
        {"dimension": 4, "feature_rows": 64, "customer_rows": 16, "content_scale": 0.6, **more}
    )
    state = initial_state(plan, SIZE)
    state = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in state.items()}
    counts = rng.integers(1, 50, SIZE)
    state["popularity"] = (counts / counts.sum()).astype(np.float32)
    return GlobalModel(plan, Catalogue.of(products, spec), state)


def history() -> sparse.csr_matrix:
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((1, SIZE)) < 0.2, rng.random((1, SIZE)), 0)
    return sparse.csr_matrix(dense.astype(np.float32))


@pytest.mark.parametrize("learned_items", [0, 15])
@pytest.mark.parametrize("feature_rows", [0, 64])
def test_parts_add_up_to_the_model_s_own_score(learned_items: int, feature_rows: int) -> None:
    model = model_of(learned_items=learned_items, feature_rows=feature_rows)
    attributes = {"gender": "F", "age": ""}
    columns = {name: np.array([value], object) for name, value in attributes.items()}
    scores = model.scores(history(), attribute_matrix(columns, 1, 16))[0]
    for item in range(SIZE):
        sides = sides_of(model, history(), item, attributes)
        for found in (explain(*sides), explain(*sides, by="product")):
            total = sum(part.value for part in found.parts)
            size = sum(abs(part.value) for part in found.parts)
            assert total == pytest.approx(found.score, rel=1e-6, abs=1e-9 * size)
            assert found.score == pytest.approx(scores[item], abs=1e-5 * size)  # float32 there


def test_reasons_are_named() -> None:
    model = model_of()
    sides = sides_of(model, history(), 3, {"gender": "F"})
    labels = {part.label for part in explain(*sides).parts}
    assert {"gender F", "everywhere"} <= labels
    assert {f"p{row:02d}" for row in history().indices} <= labels
    brand = model.catalogue.products["brand"][3]
    assert f"brand = {brand}" in {part.label for part in explain(*sides, by="product").parts}


def test_an_empty_history_is_explained_by_popularity() -> None:
    model = model_of()
    found = explain(*sides_of(model, sparse.csr_matrix(np.zeros((1, SIZE), np.float32)), 3))
    assert found.score == pytest.approx(float(model.popularity_bias[3]))


def test_a_tower_is_refused() -> None:
    with pytest.raises(InputError, match="'mlp' tower cannot be taken apart"):
        sides_of(model_of(tower="mlp", hidden=8), history(), 0)
