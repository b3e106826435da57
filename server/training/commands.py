"""``python -m server train, status``: parses and calls."""

from typing import Annotated

import typer

from common.cli import print_document
from common.options import Json
from server.arguments import HERE, Federation

training_app = typer.Typer()


@training_app.command()
def train(
    federation: Federation = HERE,
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds, instead of plan.toml's.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="VERSION", help="Go on from this model, or from `served`."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Follow a run, go on with it, or publish its finished model."
        ),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate", help="Ask shops for noisy figures of the model: each sets its own price."
        ),
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", "--dry-run", help="Say what it would cost and need; start nothing."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Publish even without privacy; the record will tell.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train what plan.toml says, follow it, and publish the model to the registry.

    Ctrl-C stops the run; --resume goes on with it, by the plan that it began with.
    """
    from rich.console import Console

    from server.operating.folder import open_federation
    from server.operating.shops import Shops
    from server.training import request as training_request
    from server.training.codes import shop_names
    from server.training.tables import plan_table, trained_table
    from server.training.view import TrainingView

    opened = open_federation(federation)
    request = training_request.Request(rounds, start_from, resume, force, evaluate)

    def names() -> dict[str, str]:
        return shop_names([shop.name for shop in Shops(opened.shops).all()])

    with TrainingView(names, Console(stderr=True)) as view:
        if plan_only:
            document = training_request.plan_only(opened, request, view)
        else:
            document = training_request.train(opened, request, view)
    print_document(document, plan_table if plan_only else trained_table, as_json=as_json)


@training_app.command()
def status(federation: Federation = HERE, as_json: Json = False) -> None:
    """Show what runs, who is connected, the last run, and what is served."""
    from server.operating.folder import open_federation
    from server.training.status import status as look
    from server.training.status_table import status_table

    print_document(look(open_federation(federation)), status_table, as_json=as_json)
