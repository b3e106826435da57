"""``python -m client ledger``: parses and calls."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.commands.arguments import Delta, Where
from common.cli import print_document, print_json
from common.errors import ConfigError, LedgerError
from common.options import Json
from common.wording import counted

ledger_app = typer.Typer(help="The shop's privacy ledger.", no_args_is_help=True)


@ledger_app.command()
def show(where: Where, delta: Delta = None, as_json: Json = False) -> None:
    """Show what was charged, what it cost, and what is left."""
    from client.commands.tables import ledger_table
    from client.inspection import Place
    from client.inspection import show as show_ledger

    print_document(show_ledger(Place.of(where, delta)), ledger_table, as_json=as_json)


@ledger_app.command()
def verify(
    where: Where,
    known_head: Annotated[
        str, typer.Option(help="A head that someone remembers: it must be in the chain.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check the whole chain; exit with 1 at the first entry that is not as it was written."""
    from client.inspection import Place
    from client.inspection import verify as verify_ledger

    if known_head and not re.fullmatch("[0-9a-f]{64}", known_head):
        raise ConfigError(
            f"--known-head {known_head!r} is no head: give all 64 digits that `ledger verify` "
            "printed"
        )
    place = Place.of(where)
    try:
        document = verify_ledger(place, known_head)
    except LedgerError as error:
        if as_json:
            print_json({"ok": False, "ledger": str(place.ledger), "error": str(error)})
        raise
    if as_json:
        print_json(document)
        return
    entries = counted(document["entries"], "entry", "entries")
    each = "as" if document["entries"] == 1 else "each as"
    sys.stdout.write(
        f"{document['ledger']}: {entries}, {each} it was written\nhead {document['head']}\n"
    )


@ledger_app.command()
def export(
    where: Where,
    out: Annotated[
        Path | None, typer.Option("--out", help="A new .csv or .jsonl file; default: stdout.")
    ] = None,
    file_format: Annotated[
        str, typer.Option("--format", help="csv or jsonl; default: as --out ends.")
    ] = "",
) -> None:
    """Write all entries as CSV or JSON lines, whole or not at all."""
    from client.inspection import Format, Place, write_export
    from client.inspection import export as export_ledger

    formats: dict[str, Format] = {"csv": "csv", "jsonl": "jsonl"}
    chosen = file_format or (out.suffix.removeprefix(".") if out else "jsonl")
    if chosen not in formats:
        raise ConfigError(f"{chosen!r} is neither csv nor jsonl: say which with --format")
    text = export_ledger(Place.of(where), formats[chosen])
    if out is None:
        sys.stdout.write(text)
    else:
        write_export(out, text)
