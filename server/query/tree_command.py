"""``python -m server explain-model``: a model in a few rules."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from common.cli import print_document
from common.options import Json


def explain_model(
    registry: Annotated[str, typer.Argument(help="The registry: a folder, or an fsspec URL.")],
    catalogue: Annotated[
        Path, typer.Option(help="The published catalogue, or the folder of its versions.")
    ],
    version: Annotated[int, typer.Option(min=0, help="0: the one that is served.")] = 0,
    as_json: Json = False,
) -> None:
    """Say in a few rules what a model as a whole does, and how well the rules tell it."""
    from common.cli import stages
    from common.model import GlobalModel
    from server.query.core import plan_of
    from server.query.model_tree import fit_tree
    from server.query.registry_service import find_catalogue
    from server.query.viewing import tree_body
    from server.registry.versions import Registry

    with stages() as stage:
        stage("reading the registry")
        record, artifact = Registry(registry).read(version or None)
        found, _ = find_catalogue(catalogue, None)(record.manifest.catalogue_fingerprint)
        plan = plan_of(record.version, artifact)
        stage("asking the model for made-up customers")
        tree = fit_tree(GlobalModel(plan.model, found, artifact.arrays))
    body = tree_body(record.version, tree).model_dump(mode="json")
    print_document(body, tree_table, as_json=as_json)


def tree_table(document: dict[str, Any]) -> Group:
    """Return the rules, best products first, and how far to trust them."""
    how = document["fidelity"]
    trust = (
        f"How far to trust this: on {how['profiles']} made-up customers that it was not fitted on, "
        f"it tells {_percent(how['r2'])} of what decides places in the list (popularity "
        f"alone: {_percent(how['r2_by_popularity'])}); of the model's 20 best it finds "
        f"{how['top_20_overlap']:.0%} (the 20 most popular: {how['top_20_by_popularity']:.0%})."
    )
    lines = [Text(f"Version {document['version']} ranks a product", style="bold")]
    lines += [Text(f"  {rule}") for rule in document["rules"]]
    return Group(*lines, Text(trust))


def _percent(share: float) -> str:
    # What is a little below 0 is no "-0%".
    return f"{round(share, 2) + 0.0:.0%}"
