"""``python -m server registry``: parses and calls."""

from pathlib import Path
from typing import Annotated

import typer

from common.cli import print_document
from common.errors import ConfigError
from common.options import Json

registry_app = typer.Typer(
    help="Versioned models: publish, list, show, pin, roll back.", no_args_is_help=True
)

_NEWEST = "newest"

Where = Annotated[str, typer.Argument(help="The registry: a folder, or an fsspec URL.")]


@registry_app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="The folder of a model (manifest.json in it).")],
    to: Annotated[str, typer.Option("--to", help="The registry: a folder, or an fsspec URL.")],
    evaluation: Annotated[
        Path | None, typer.Option(help="JSON: figures to release together with the model.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even without privacy; the record will tell.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a model and publish it as the next version, whole or not at all."""
    from server.registry.records import read_evaluation
    from server.registry.tables import publish_table, served, summary
    from server.registry.versions import Registry

    figures = None if evaluation is None else read_evaluation(evaluation)
    registry = Registry(to)
    record = registry.publish(model, evaluation=figures, force=force)
    document = {"where": registry.where, "served": served(registry), **summary(record)}
    print_document(document, publish_table, as_json=as_json)


@registry_app.command("list")
def list_versions(where: Where, as_json: Json = False) -> None:
    """List all versions, which one is served, and who was published by force."""
    from server.registry.tables import list_table, listed
    from server.registry.versions import Registry

    print_document(listed(Registry(where)), list_table, as_json=as_json)


@registry_app.command()
def show(
    where: Where,
    version: Annotated[int | None, typer.Argument(help="Default: the served one.")] = None,
    as_json: Json = False,
) -> None:
    """Verify a version and show its privacy statement, manifest and evaluation."""
    from server.registry.tables import show_table, shown
    from server.registry.versions import Registry

    print_document(shown(Registry(where), version), show_table, as_json=as_json)


@registry_app.command()
def pin(
    where: Where,
    version: Annotated[str, typer.Argument(help=f"A version, or {_NEWEST}.")],
    as_json: Json = False,
) -> None:
    """Serve this version until another is pinned, or follow the newest again."""
    from server.registry.tables import decided, decision_table
    from server.registry.versions import Registry

    if version != _NEWEST and not version.isdecimal():
        raise ConfigError(f"{version!r} is neither a version's number nor {_NEWEST}")
    registry = Registry(where)
    found = registry.pin(None if version == _NEWEST else int(version))
    print_document(decided(registry, found), decision_table, as_json=as_json)


@registry_app.command()
def rollback(where: Where, as_json: Json = False) -> None:
    """Serve the version before the served one until another is pinned."""
    from server.registry.tables import decided, decision_table
    from server.registry.versions import Registry

    registry = Registry(where)
    print_document(decided(registry, registry.roll_back()), decision_table, as_json=as_json)
