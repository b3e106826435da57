"""``python -m server catalogue``: parses and calls."""

from pathlib import Path
from typing import Annotated

import typer

from common.cli import print_document

catalogue_app = typer.Typer(
    help="The catalogue that all shops share: publish, show, diff.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Federation = Annotated[
    Path,
    typer.Option(
        "--federation", envvar="FEDTAIL_FEDERATION", help="The operator's folder; default: here."
    ),
]
HERE = Path()


@catalogue_app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Holds products.csv or products.parquet.")],
    federation: Federation = HERE,
    content: Annotated[
        list[str] | None,
        typer.Option(help="Columns that describe a product, and pairs: type,brand,type*brand."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a products table and publish it as the next version, whole or not at all."""
    from server.catalogue_publishing import publish as publish_folder
    from server.catalogue_tables import publish_table
    from server.catalogues import Catalogues

    names = None
    if content is not None:
        names = [name.strip() for text in content for name in text.split(",") if name.strip()]
    document = publish_folder(Catalogues(federation / "catalogue"), folder, names)
    print_document(document, publish_table, as_json=as_json)
