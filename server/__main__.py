"""``python -m server``: parses and calls. The operator's view of the federation."""

import typer

from common.cli import run
from server.catalogue.commands import catalogue_app
from server.operating.commands import operator_app
from server.query.commands import keys_app, serve
from server.query.query_command import query
from server.query.tree_command import explain_model
from server.registry.commands import registry_app
from server.training.commands import training_app

app = typer.Typer(
    help="The federation's side: train with the shops, keep the models, answer from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(registry_app, name="registry")
app.add_typer(catalogue_app, name="catalogue")
app.add_typer(operator_app)
app.add_typer(training_app)
app.add_typer(keys_app, name="keys")
app.command()(serve)
app.command()(query)
app.command("explain-model")(explain_model)

if __name__ == "__main__":
    run(app)
