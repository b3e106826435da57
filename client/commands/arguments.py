"""What several commands of a shop are given; nothing slow but typer is imported."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError


def _settings_file(path: Path) -> Path:
    from client.shop_folder import settings_file

    return settings_file(path)


def as_text(value: str | list[str] | None) -> str | list[str] | None:
    """Refuse what was typed in another encoding: no table, and no file, could hold it."""
    for text in [value] if isinstance(value, str) else value or ():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{text!a} is not UTF-8: set the terminal to it") from error
    return value


def given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Return the options of these names that were typed, also those with their default value."""
    sources = ((name, context.get_parameter_source(name)) for name in names)
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources
        if source is not None and source.name == "COMMANDLINE"
    ]


Where = Annotated[
    Path,
    typer.Argument(
        help="A shop's folder, its settings (shop.toml), or a ledger.", callback=_settings_file
    ),
]
Shop = Annotated[
    Path,
    typer.Argument(help="The shop's folder, or its settings (shop.toml).", callback=_settings_file),
]
Delta = Annotated[float | None, typer.Option(help="δ of the stated ε; default: the shop's own.")]
