"""The tree finds the rule that was planted, says how well it holds, and is told by all fronts."""

import json

import httpx
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from cli_support import status_of
from common.errors import InputError
from common.features import Catalogue, ContentSpec
from common.model import GlobalModel, initial_state
from common.protocol import ModelPlan
from query_support import Place, make_place, running
from server.__main__ import app
from server.query.model_tree import ModelTree, fit_tree
from server.query.tree_command import explain_model, tree_table
from server.query.viewing import tree_body

SIZE = 600


def planted(rule: str, size: int = SIZE, gaps: float = 0.0) -> GlobalModel:
    """Return a model of one rule: content, popularity, or vectors that content does not tell."""
    rng = np.random.default_rng(0)
    products = pd.DataFrame(
        {
            "item_id": [f"p{i:04d}" for i in range(size)],
            "category": rng.choice([f"c{i}" for i in range(12)], size),
            "brand": rng.choice([f"b{i}" for i in range(8)], size),
        }
    )
    products.loc[np.arange(size) < gaps * size, ["category", "brand"]] = None
    catalogue = Catalogue.of(products, ContentSpec(features=("category", "brand")))
    scale = {"content": 50.0, "popularity": 0.0, "hidden": 0.0}[rule]
    plan = ModelPlan(dimension=8, content_scale=scale, learned_scale=100.0, centred=False)
    state = initial_state(plan, size)
    if rule != "hidden":
        state["item_embedding"] = np.zeros_like(state["item_embedding"])
    counts = rng.pareto(1.5, size) + 0.1 if rule == "popularity" else np.ones(size)
    state["popularity"] = (counts / counts.sum()).astype(np.float32)
    return GlobalModel(plan, catalogue, state)


def asked(tree: ModelTree) -> set[str]:
    return {node.feature for node in tree.nodes if node.feature}


def test_a_planted_rule_is_found() -> None:
    by_content = fit_tree(planted("content"))
    assert {"category", "brand"} <= asked(by_content)
    assert by_content.fidelity.r2 > 0.5
    assert by_content.fidelity.r2_by_popularity < 0.05
    assert by_content.fidelity.top_20_overlap > 2 * by_content.fidelity.top_20_by_popularity
    assert all("of the history has its" in rule for rule in by_content.rules)
    by_popularity = fit_tree(planted("popularity"))
    assert asked(by_popularity) == {"popularity"}
    assert by_popularity.fidelity.r2 > 0.8
    assert by_popularity.fidelity.top_20_overlap == 1.0
    assert by_popularity.rules[0].endswith("times as popular as the average product")


def test_products_without_content_are_drawn_like_any_other() -> None:
    # A made-up customer may be drawn to such products alone.
    assert fit_tree(planted("content", gaps=0.7)).rules


def test_a_tree_that_tells_little_says_so() -> None:
    hidden = fit_tree(planted("hidden"))
    assert hidden.fidelity.r2 < 0.2


def test_questions_and_rules_are_one_tree() -> None:
    tree = fit_tree(planted("content"))
    assert tree == fit_tree(planted("content"))
    leaves = [node for node in tree.nodes if not node.feature]
    assert len(tree.rules) == len(leaves) <= 12
    assert sum(node.share for node in leaves) == pytest.approx(1.0)
    followed = sorted(n for node in tree.nodes for n in (node.yes, node.no) if n >= 0)
    assert followed == list(range(1, len(tree.nodes)))


def test_the_best_products_rule_comes_first() -> None:
    tree = fit_tree(planted("content"))
    said = [float(rule.removeprefix("about the best ").partition("%")[0]) for rule in tree.rules]
    assert said == sorted(said)
    leaves = sorted(node.best_share for node in tree.nodes if not node.feature)
    assert said == pytest.approx([100 * share for share in leaves], rel=0.06)  # Of two digits.
    console = Console(width=400)
    with console.capture() as shown:
        console.print(tree_table(tree_body(1, tree).model_dump(mode="json")))
    lines = [line.strip() for line in shown.get().splitlines()]
    assert lines[1:-1] == list(tree.rules)
    # Popularity alone tells a little less than nothing here, which is no minus nothing.
    assert "(popularity alone: 0%)" in lines[-1]


def test_too_few_products_are_refused() -> None:
    with pytest.raises(InputError, match="more than 20 products"):
        fit_tree(planted("content", size=20))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("served"))


@pytest.mark.e2e
def test_the_service_and_the_command_line_tell_the_same_tree(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain-model", place.root / "registry", "--catalogue", place.root / "catalogue"]
    assert status_of(app, *command, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    with running(place) as service, httpx.Client(base_url=service.rest, timeout=60) as rest:
        found = rest.get("/v1/models/0/tree").raise_for_status().json()
        assert rest.get("/v1/models/9/tree").status_code == 404
    assert found == told
    assert found["version"] == 1
    assert 0 <= found["fidelity"]["top_20_overlap"] <= 1


def test_an_unknown_version_is_bad_input(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain-model", place.root / "registry", "--catalogue", place.root / "catalogue"]
    assert status_of(app, *command, "--version", "7") == 2
    said = capsys.readouterr().err
    assert "7" in said
    assert "Traceback" not in said


def test_the_tree_is_told_in_words(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    explain_model(str(place.root / "registry"), place.root / "catalogue", version=1)
    said = capsys.readouterr().out
    assert "% of the list" in said
    assert "trust" in said
