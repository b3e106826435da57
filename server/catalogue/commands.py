"""``python -m server catalogue``: parses and calls."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.cli import print_document, stages
from common.options import Json
from server.arguments import HERE, Federation

if TYPE_CHECKING:
    from server.catalogue.versions import Catalogues

catalogue_app = typer.Typer(
    help="The catalogue that all shops share: publish, show, diff, export.", no_args_is_help=True
)


@catalogue_app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(help="Holds products.csv or products.parquet, and perhaps stock.")
    ],
    federation: Federation = HERE,
    content: Annotated[
        list[str] | None,
        typer.Option(
            help="Columns that describe a product, alone or joined: type,brand,type*size*brand. "
            "Default: as before, and for the first version every column, and pairs of them."
        ),
    ] = None,
    reread: Annotated[
        bool,
        typer.Option("--reread", help="Let FOLDER decide anew how columns are read, such as bins."),
    ] = False,
    drop_retired: Annotated[
        bool,
        typer.Option(
            "--drop-retired", help="Let products that FOLDER lacks go, instead of retiring them."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if most products would be retired or dropped.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a products table and publish it as the next version, whole or not at all."""
    from server.catalogue.publishing import Publishing
    from server.catalogue.publishing import publish as publish_folder
    from server.catalogue.tables import publish_table

    names = None
    if content is not None:
        names = [name.strip() for text in content for name in text.split(",") if name.strip()]
    how = Publishing(names, reread, drop_retired, force, dry_run)
    with stages() as stage:
        document = publish_folder(_catalogues(federation), folder, how, stage)
    print_document(document, publish_table, as_json=as_json)


@catalogue_app.command()
def show(
    version: Annotated[
        str | None, typer.Argument(help="A number or fingerprint; default: the current one.")
    ] = None,
    federation: Federation = HERE,
    as_json: Json = False,
) -> None:
    """Verify a version and show what it holds, and which models and runs are of it."""
    from server.catalogue.tables import show_table
    from server.catalogue.view import show as show_version
    from server.operating.folder import open_federation

    with stages() as stage:
        stage("verifying")
        document = show_version(open_federation(federation), version)
    print_document(document, show_table, as_json=as_json)


@catalogue_app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A version's number or fingerprint.")],
    new: Annotated[str, typer.Argument(help="Another's.")],
    federation: Federation = HERE,
    examples: Annotated[int, typer.Option(min=0, help="How many of each kind to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what differs between two versions: products, their content, what describes them."""
    from server.catalogue.tables import diff_table
    from server.catalogue.view import diff as diff_versions

    with stages() as stage:
        stage("comparing")
        document = diff_versions(_catalogues(federation), old, new, examples)
    print_document(document, diff_table, as_json=as_json)


@catalogue_app.command()
def export(
    out: Annotated[Path, typer.Argument(help="A new folder, or a new .zip file.")],
    version: Annotated[
        str | None, typer.Argument(help="A number or fingerprint; default: the current one.")
    ] = None,
    federation: Federation = HERE,
    as_json: Json = False,
) -> None:
    """Copy a version for shops to take, whole or not at all."""
    from server.catalogue.tables import export_table
    from server.catalogue.view import export as export_version

    with stages() as stage:
        stage("copying")
        document = export_version(_catalogues(federation), version, out)
    print_document(document, export_table, as_json=as_json)


def _catalogues(federation: Path) -> "Catalogues":
    from server.catalogue.versions import Catalogues
    from server.operating.folder import open_federation

    return Catalogues(open_federation(federation).catalogue)
