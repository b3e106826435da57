"""Options that all command lines have; nothing but typer is imported."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RestPort = Annotated[
    int, typer.Option(min=0, max=65535, help="REST and the page; 0: any free one.")
]
GrpcPort = Annotated[int, typer.Option(min=0, max=65535, help="gRPC; 0: any free one.")]
