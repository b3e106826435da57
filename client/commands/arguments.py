"""What several commands of a shop are given; nothing but typer is imported."""

from pathlib import Path
from typing import Annotated

import typer


def _settings_file(path: Path) -> Path:
    from client.shop_folder import settings_file

    return settings_file(path)


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
