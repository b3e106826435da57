"""What the command lines share: help on every argument, and a folder for its settings."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from cli_support import status_of
from client.__main__ import app as client
from server.__main__ import app as server
from simulations.__main__ import app as simulations


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command below a group with the words that it is called by."""
    if isinstance(command, click.Group):
        for part, inner in command.commands.items():
            yield from commands(inner, f"{name} {part}")
    else:
        yield name, command


@pytest.mark.parametrize("app", [client, server, simulations], ids=["client", "server", "sim"])
def test_help_explains_every_argument_and_option(app: typer.Typer) -> None:
    # A release of click took the text of all arguments away from typer: nobody saw it go.
    found = list(commands(typer.main.get_command(app), ""))
    assert len(found) > 5
    silent = [
        f"{name}: {parameter.name}"
        for name, command in found
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []
    assert [name for name, command in found if not command.help] == []


@pytest.mark.parametrize(
    "words", [["ledger", "show"], ["ledger", "verify"], ["statement"], ["approve"]]
)
def test_the_folder_of_a_shop_stands_for_its_settings(tmp_path: Path, words: list[str]) -> None:
    # `serve` and `plan` took a folder: the others said "Is a directory" and left it at that.
    (tmp_path / "shop.toml").write_text(
        'merchant_id = "corner"\ndata = "data"\ncatalogue = "catalogue"\nledger = "l"\n',
        encoding="utf-8",
    )
    by_file = CliRunner().invoke(client, [*words, str(tmp_path / "shop.toml"), "--json"])
    by_folder = CliRunner().invoke(client, [*words, str(tmp_path), "--json"])
    assert by_file.output == by_folder.output
    assert type(by_file.exception) is type(by_folder.exception)
    assert str(by_file.exception) == str(by_folder.exception)


def test_movielens_without_its_path_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert status_of(simulations, "data", "movielens", "--out", out) == 2
    assert "movielens needs --path" in capsys.readouterr().err
    assert not out.exists()


def test_where_tables_were_written_is_said_as_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "[bold]"
    size = ("--shops", 1, "--customers", 1, "--products", 5)
    assert status_of(simulations, "data", "marketplace", *size, "--out", out) == 0
    assert capsys.readouterr().out == f"marketplace is in {out}\n"
