"""What several commands of the operator are given; nothing but typer is imported."""

from pathlib import Path
from typing import Annotated

import typer

Federation = Annotated[
    Path,
    typer.Option(
        "--federation", envvar="FEDTAIL_FEDERATION", help="The operator's folder; default: here."
    ),
]
HERE = Path()
