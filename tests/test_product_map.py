"""What was planted together lies together on the map, however the model knows it."""

import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state
from common.protocol import ModelPlan
from query_support import SIZE, make_place, running
from server.query.answering import RefusedError
from server.query.product_map import lay_out, map_products
from server.query.viewing import Views

GROUPS, EACH = 6, 50


def planted(*, by_content: bool) -> tuple[GlobalModel, np.ndarray]:
    """Return a model of six groups of products that either content or learned vectors tell."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(GROUPS), EACH))
    size = len(group)
    products = pd.DataFrame(
        {
            "item_id": [f"p{i:03d}" for i in range(size)],
            "category": [f"c{g}" for g in group] if by_content else "all",
            "brand": rng.choice([f"b{i}" for i in range(30)], size),
        }
    )
    features = ("category", "category*brand") if by_content else ("category",)
    catalogue = Catalogue.of(products, ContentSpec(features=features, content_width=4096))
    plan = ModelPlan(dimension=8)
    state = initial_state(plan, size)
    state["popularity"] = np.full(size, 1 / size, np.float32)
    if not by_content:
        directions = rng.normal(size=(GROUPS, 8))
        noise = 0.2 * rng.normal(size=(size, 8))
        state["item_embedding"] = (directions[group] + noise).astype(np.float32)
    return GlobalModel(plan, catalogue, state), group


@pytest.mark.parametrize("by_content", [True, False])
def test_planted_groups_come_out_apart(by_content: bool) -> None:
    model, group = planted(by_content=by_content)
    found = map_products(model)
    assert found.places.min() >= 0
    assert found.places.max() <= 1
    mine = group[found.rows]
    gaps = np.linalg.norm(found.places[:, None] - found.places[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    near = np.argsort(gaps, axis=1)[:, :10]
    assert (mine[near] == mine[:, None]).mean() > 0.95
    assert gaps.min() > 0  # none hides another
    again = map_products(model)
    np.testing.assert_array_equal(found.places, again.places)


def test_groups_are_named_with_their_middle() -> None:
    model, group = planted(by_content=True)
    found = map_products(model)
    assert found.column == "brand"  # the more telling of two that can be surveyed
    assert sum(g.products for g in found.groups) <= len(group)
    for place, named in enumerate(found.groups):
        inside = found.places[found.group == place]
        assert named.products == len(inside)
        assert named.x == pytest.approx(float(np.median(inside[:, 0])))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 9])
def test_few_or_equal_products_have_places_too(size: int) -> None:
    for vectors in (np.zeros((size, 4)), np.ones((size, 4)), np.eye(size, 6)):
        places = lay_out(sparse.csr_matrix(vectors))
        assert places.shape == (size, 2)
        assert np.isfinite(places).all()
        assert len(np.unique(places, axis=0)) == size


def test_a_view_is_made_once_and_only_so_many_wait() -> None:
    model, _ = planted(by_content=True)
    may_end, made = threading.Event(), []

    def make(_: GlobalModel) -> str:
        made.append(1)
        may_end.wait(30)
        return "view"

    views, found = Views[str](make), []
    threads = [threading.Thread(target=lambda: found.append(views.of(1, model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    refused = None
    while refused is None and time.monotonic() < deadline:
        if views._places._value:
            continue
        with pytest.raises(RefusedError) as refused:
            views.of(1, model)
    may_end.set()
    for thread in threads:
        thread.join()
    assert found == ["view"] * 4
    assert made == [1]
    assert refused is not None
    assert refused.value.retry_after > 0
    assert views.of(1, model) == "view"
    for version in range(2, 7):
        views.of(version, model)
    views.of(1, model)  # long gone: made again
    assert len(made) == 7


@pytest.mark.e2e
def test_the_map_is_served(tmp_path: Path) -> None:
    with running(make_place(tmp_path)) as service, httpx.Client(base_url=service.rest) as rest:
        found = rest.get("/v1/models/0/map", params={"most": 50}, timeout=60).json()
        assert found["version"] == 1
        assert found["laid_out"] == found["catalogue_products"] == SIZE
        lists = ("item_ids", "x", "y", "titles", "group", "tail", "popularity")
        assert {len(found[name]) for name in lists} == {50}
        assert found["popularity"] == sorted(found["popularity"], reverse=True)
        assert 15 <= sum(found["tail"]) < 50  # half is drawn from all but the very top
        assert found["column"] == "category"
        assert {g["value"] for g in found["groups"]} == {"tea", "coffee", "bread"}
        assert found["titles"][0].startswith("Product ")
        rare = next(f"p{i:04d}" for i in range(SIZE) if f"p{i:04d}" not in found["item_ids"])
        wanted: dict[str, int | list[str]] = {"most": 50, "include": [rare, "nothing"]}
        more = rest.get("/v1/models/1/map", params=wanted).json()
        assert set(more["item_ids"]) == {*found["item_ids"], rare}
        assert rest.get("/v1/models/7/map").status_code == 404
        assert rest.get("/v1/models/0/map", params={"most": 0}).status_code == 422
