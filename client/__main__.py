"""``python -m client``: parses and calls. A shop's engineer's view of what leaves the shop."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.commands.arguments import Shop, as_text
from client.commands.ledger import ledger_app
from client.commands.serve import serve
from common.cli import print_document, print_json, run, stages
from common.errors import ConfigError
from common.options import Json

app = typer.Typer(
    help="One shop: what a plan would cost it, its privacy ledger and its privacy statement.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(ledger_app, name="ledger")
key_app = typer.Typer(help="The shop's key.", no_args_is_help=True)
app.add_typer(key_app, name="key")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, or one without shop.toml.")],
    merchant: Annotated[str, typer.Option(help="The shop's name; default: the folder's.")] = "",
    address: Annotated[
        str, typer.Option(help="The federation's gateway, host:port; default: an example.")
    ] = "",
) -> None:
    """Make a shop's folder: commented settings, keys, and places for its data and its ledger."""
    from client.joining.keys import public_path
    from client.joining.starting import NODE_KEY, start_shop
    from client.settings import read_settings

    for made in start_shop(folder, merchant, address):
        sys.stdout.write(f"made {made}\n")
    settings = folder / "shop.toml"
    name = read_settings(settings).merchant_id
    if not merchant and name != folder.resolve().name:
        sys.stderr.write(
            f"The shop is called {name!r}, not {folder.resolve().name!r} as its folder is: "
            f"merchant_id in {settings} must be what its data's merchant_id column has.\n"
        )
    sys.stdout.write(
        f"Give the operator of the federation {public_path(folder / NODE_KEY)}, which is no "
        f"secret, as the key of {name!r}, and ask for its address "
        f"and its certificate authority (save that as {folder / 'ca.crt'}).\n"
    )
    sys.stdout.write(
        f"Now: look through {settings}; put the shop's tables into {folder / 'data'}, or name a "
        f"database; put the operator's catalogue at {folder / 'catalogue'}; then\n"
        f"  python -m client check {shlex.quote(str(settings))}\n"
    )


@app.command()
def check(
    settings: Shop,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="JSON: price this plan, or the one in a manifest."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the shop's data and say what is in them; exit with 2 if they could not train.

    All of it stays on this machine, and nothing is written.
    """
    from client.check import check_shop
    from client.commands.check_table import check_table
    from client.forecast import read_plan
    from client.settings import read_settings

    chosen = None if plan_file is None else read_plan(plan_file)
    with stages() as stage:
        document = check_shop(settings, read_settings(settings), chosen, stage)
    print_document(document, check_table, as_json=as_json)
    if document["problems"]:
        raise typer.Exit(2)


@app.command()
def approve(
    settings: Shop,
    code: Annotated[str, typer.Argument(help="A bundle (.fab), or its digest.")] = "",
    own_code: Annotated[
        bool, typer.Option("--own-code", help="The code that is installed here.")
    ] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take an approval back.")] = False,
    show_all: Annotated[bool, typer.Option("--list", help="Only show what is approved.")] = False,
    note: Annotated[
        str, typer.Option(help="Why, for whoever reads the list later.", callback=as_text)
    ] = "",
    diff: Annotated[
        bool, typer.Option("--diff", help="Only show how a bundle differs from the code here.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve a bundle that differs from the code here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Approve the code that may run at this shop; any other is refused before it runs.

    Shows what a bundle holds first. Without a bundle: what is approved, and what was refused.
    """
    from client.commands.approve import approve_code

    if show_all and (code or own_code or revoke):
        raise ConfigError("--list shows all: leave out what else was chosen")
    if not approve_code(
        settings,
        code,
        own_code=own_code,
        revoke=revoke,
        note=note,
        only_diff=diff,
        yes=yes,
        as_json=as_json,
    ):
        raise typer.Exit(1)


@app.command()
def roster(
    settings: Shop,
    file: Annotated[
        Path | None, typer.Argument(help="The operator's; default: the accepted one.")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Make it the shop's own, whole or not at all.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show who may take part in secure sums, whether this shop is among them, and the digest."""
    from client.commands.roster_table import roster_table
    from client.joining.roster import accept as accept_roster
    from client.joining.roster import look
    from client.settings import read_settings

    shop = read_settings(settings)
    if accept and file is None:
        raise ConfigError("--accept needs the file that the operator sent")
    if accept and file is not None:
        document = accept_roster(settings, shop, file)
    else:
        document = look(settings, shop, file)
    print_document(document, roster_table, as_json=as_json)


@app.command("run")
def run_client(settings: Shop) -> None:
    """Connect this shop to its federation, until Ctrl-C; what it says is in logs/run.log too."""
    from client.joining.running import run_shop

    run_shop(settings)


@app.command()
def plan(
    context: typer.Context,
    shops: Annotated[
        list[Path] | None, typer.Argument(help="shop.toml files, or folders that hold some.")
    ] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="JSON: a plan, or a checkpoint or manifest with one."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of training.")] = 10,
    local_steps: Annotated[int, typer.Option(min=1, help="Steps a round.")] = 1,
    sample_rate: Annotated[float, typer.Option(help="Chance of a unit to be in one step.")] = 1.0,
    noise_multiplier: Annotated[float | None, typer.Option(help="Of the steps.")] = None,
    popularity_noise_multiplier: Annotated[
        float | None, typer.Option(help="Of the histogram.")
    ] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="Find the noise for this ε instead.")
    ] = None,
    popularity_share: Annotated[
        float, typer.Option(help="With a target: the histogram's part of it.")
    ] = 0.3,
    unit: Annotated[str, typer.Option(help="customer, basket or interaction.")] = "customer",
    delta: Annotated[float, typer.Option(help="δ of the plan.")] = 1e-5,
    trust: Annotated[
        str, typer.Option(help="shop, or federation: its noise is shared in secure sums.")
    ] = "shop",
    honest_shops: Annotated[
        int, typer.Option(min=0, help="Under trust federation: honest survivors of each sum.")
    ] = 0,
    colluding_shops: Annotated[
        int, typer.Option(min=0, help="Under trust federation: survivors that may collude.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Say before training what a plan will cost, and what it would leave of each shop's budget."""
    from client.commands.arguments import given
    from client.commands.tables import forecast_table
    from client.forecast import PlanFlags, find_shops, forecast, read_plan

    flags = PlanFlags(
        rounds=rounds,
        local_steps=local_steps,
        sample_rate=sample_rate,
        unit=unit,
        delta=delta,
        noise_multiplier=noise_multiplier,
        popularity_noise_multiplier=popularity_noise_multiplier,
        target_epsilon=target_epsilon,
        popularity_share=popularity_share,
        trust=trust,
        honest_shops=honest_shops,
        colluding_shops=colluding_shops,
    )
    if plan_file is not None and (others := given(context, vars(flags))):
        raise ConfigError(f"--plan FILE holds a whole plan: leave out {', '.join(others)}")
    chosen = flags.plan() if plan_file is None else read_plan(plan_file)
    document = forecast(chosen, find_shops(shops or []))
    print_document(document, forecast_table, as_json=as_json)


@app.command()
def statement(settings: Shop, as_json: Json = False) -> None:
    """Print the shop's own privacy statement, from its ledger."""
    from client.inspection import ledger_entries
    from client.settings import read_settings
    from client.statement import render_shop_statement, shop_statement

    shop = read_settings(settings)
    document = shop_statement(shop, ledger_entries(shop.ledger))
    if as_json:
        print_json(document)
    else:
        sys.stdout.write(render_shop_statement(document))


@app.command()
def adapt(
    settings: Shop,
    model: Annotated[
        Path | None, typer.Option(help="A model's folder; default: the one that came home last.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the global model to this shop, on its own data; what is fitted stays here."""
    from client.commands.home_tables import adapted_table
    from client.home.adapting import adapt as adapt_shop
    from client.settings import read_settings

    with stages() as progress:
        document = adapt_shop(settings, read_settings(settings), model, progress)
    print_document(document, adapted_table, as_json=as_json)


@app.command()
def evaluate(
    settings: Shop,
    model: Annotated[
        Path | None, typer.Option(help="A model's folder; default: the one that came home last.")
    ] = None,
    customers: Annotated[
        int, typer.Option(min=0, help="Measure at most so many, drawn by chance; 0: all.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Measure what the global model brings this shop; the figures stay here."""
    from client.commands.home_tables import evaluation_table
    from client.home.evaluation import evaluate_shop
    from client.settings import read_settings

    with stages() as progress:
        document = evaluate_shop(read_settings(settings), model, customers, progress)
    print_document(document, evaluation_table, as_json=as_json)


@app.command()
def recommend(
    settings: Shop,
    user: Annotated[str, typer.Option(help="A customer's user_id.", callback=as_text)] = "",
    history: Annotated[
        str,
        typer.Option(help="For a guest: item ids, separated by commas.", callback=as_text),
    ] = "",
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, such as age=35-44, for who has no history; repeatable.",
            callback=as_text,
        ),
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", help="How many products.")] = 20,
    tail_dial: Annotated[
        float, typer.Option(help="0: relevance alone; 1: rarely bought products first.")
    ] = 0.0,
    why: Annotated[bool, typer.Option(help="Take each score apart.")] = False,
    plain: Annotated[
        bool, typer.Option(help="The global model as it came, not the adapted one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a customer would be shown: what the shop stocks and they have no record of."""
    from client.commands.home_tables import recommendations_table
    from client.home.recommending import Request, attributes_of
    from client.home.recommending import recommend as recommend_to
    from client.settings import read_settings

    items = tuple(filter(None, (item.strip() for item in history.split(","))))
    request = Request(user, items, attributes_of(attribute or []), count, tail_dial, why, plain)
    document = recommend_to(settings, read_settings(settings), request)
    print_document(document, recommendations_table, as_json=as_json)


app.command()(serve)


@key_app.command("new")
def new_key(settings: Shop) -> None:
    """Make a new key for this shop, and keep the old one beside it."""
    from client.joining.keys import renew_keys
    from client.settings import read_settings

    federation = read_settings(settings).federation
    if federation is None:
        raise ConfigError(f"{settings} has no [federation] section: this shop needs no key")
    public, old = renew_keys(federation.key)
    if old is not None:
        sys.stdout.write(f"kept the old key as {old}\n")
    sys.stdout.write(f"made {federation.key}\nmade {public}\n")
    sys.stdout.write(
        f"Give the operator {public}, which is no secret, to be enrolled in place of the old one; "
        f"then start `python -m client run {shlex.quote(str(settings))}` again: until then it uses "
        "the old key. For secure sums, accept the roster with the new key that the operator hands "
        "out then.\n"
    )


if __name__ == "__main__":
    run(app)
