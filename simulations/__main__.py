"""``python -m simulations``: parses and calls."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from common.cli import run as run_command_line
from common.cli import terminal
from common.errors import RunError
from common.options import Json
from simulations.bench.commands import bench_app
from simulations.progress import Bars

app = typer.Typer(
    help="Questions answered on one machine, with the server and clients that shops deploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(bench_app, name="bench")

ExperimentFile = Annotated[Path, typer.Argument(help="An experiment file (TOML).")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; new or empty.")]
OutOrBegun = Annotated[Path, typer.Option("--out", help="Folder to write, or to go on with.")]
Change = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
]


@app.command()
def run(
    experiment: ExperimentFile,
    out: Out,
    change: Change = None,
    as_json: Json = False,
) -> None:
    """Run an experiment: every arm, a report, a page, recommendations, models and ledgers."""
    from simulations.experiment import read_experiment
    from simulations.report.tables import result_table
    from simulations.run import run_experiment

    _answer(
        lambda bars: run_experiment(read_experiment(experiment, change or []), out, bars),
        lambda document: [result_table(document)],
        out / "report.html",
        as_json=as_json,
    )


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file, or an experiment file (TOML).")],
    out: OutOrBegun,
    change: Change = None,
    as_json: Json = False,
) -> None:
    """Quality against ε and customers a shop; the same command goes on where it stopped."""
    from simulations.sweep.page import sweep_table
    from simulations.sweep.plan import read_sweep
    from simulations.sweep.run import run_sweep

    _answer(
        lambda bars: run_sweep(read_sweep(file, change or []), out, bars),
        lambda document: [sweep_table(document)],
        out / "sweep.html",
        as_json=as_json,
    )


@app.command()
def audit(
    experiment: ExperimentFile,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write: new, or that of a run of it.")
    ],
    change: Change = None,
    as_json: Json = False,
) -> None:
    """Attack an experiment's own steps and models, and hold each attack against the promise."""
    from simulations.audit.run import run_audit
    from simulations.audit.section import audit_words
    from simulations.experiment import read_experiment
    from simulations.report.tables import warning_lines

    _answer(
        lambda bars: run_audit(read_experiment(experiment, change or []), out, bars),
        lambda document: [*warning_lines(document["warnings"]), *audit_words(document)],
        out / "audit.html",
        as_json=as_json,
    )


@app.command()
def attack(
    experiment: ExperimentFile,
    out: OutOrBegun,
    change: Change = None,
    as_json: Json = False,
) -> None:
    """Let some shops send poison, and measure what each defence leaves of it."""
    from simulations.attack.page import attack_table, attack_words
    from simulations.attack.run import run_attack
    from simulations.experiment import read_experiment
    from simulations.report.tables import warning_lines

    _answer(
        lambda bars: run_attack(read_experiment(experiment, change or []), out, bars),
        lambda document: [
            *attack_table(document),
            *warning_lines(document["warnings"]),
            *attack_words(document),
        ],
        out / "attack.html",
        as_json=as_json,
    )


@app.command("cold-start")
def cold_start(
    experiment: ExperimentFile,
    out: Out,
    change: Change = None,
    case: Annotated[
        list[str] | None, typer.Option(help="customer, product, shop; default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure customers, products and shops that the federation does not know, by popularity."""
    from simulations.cold_start.page import cold_start_tables
    from simulations.cold_start.run import CASES, run_cold_start
    from simulations.experiment import read_experiment

    _answer(
        lambda bars: run_cold_start(
            read_experiment(experiment, change or []), out, bars, case or CASES
        ),
        lambda document: [cold_start_tables(document)],
        out / "cold-start.html",
        as_json=as_json,
    )


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders that runs wrote.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for compare.html.")] = None,
    svg: Annotated[Path | None, typer.Option(help="File for a picture of private runs.")] = None,
    as_json: Json = False,
) -> None:
    """Put runs side by side."""
    from simulations.documents import to_json, write_text
    from simulations.report.compare import compare as compare_runs
    from simulations.report.compare_picture import picture
    from simulations.report.tables import comparison_table

    document = compare_runs(folders, out)
    if svg is not None:
        write_text(svg, picture(document))
    if as_json:
        sys.stdout.write(to_json(document))
    else:
        terminal().print(comparison_table(document))
        for page in (out and out / "compare.html", svg):
            if page:
                _show_where(page)


@app.command()
def federation(
    out: Out,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training.")] = 2,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running until Ctrl-C, to look around.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring a whole federation up on loopback, train, recommend, and take it down again.

    Gateway, SuperLink and three shops (CSV, Parquet, PostgreSQL) are real processes, started by the
    command lines that an operator and a shop's engineer would type.
    """
    from simulations.documents import to_json
    from simulations.loopback.federation import run_local_federation
    from simulations.loopback.tables import keep_up, local_table

    with Bars() as bars:
        hold = (lambda here: keep_up(here, bars.stage)) if keep else None
        try:
            document = run_local_federation(out, bars, rounds=rounds, hold=hold)
        except KeyboardInterrupt:
            raise RunError(f"interrupted: all is taken down, and {out} can be removed") from None
    if as_json:
        sys.stdout.write(to_json(document))
        return
    terminal().print(local_table(document))


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="complete-journey, movielens or marketplace.")],
    out: Out,
    merchants: Annotated[str, typer.Option(help="complete-journey: market or store.")] = "market",
    path: Annotated[Path | None, typer.Option(help="movielens: your unpacked copy.")] = None,
    shops: Annotated[int, typer.Option(help="marketplace, movielens: number of shops.")] = 20,
    customers: Annotated[int, typer.Option(help="marketplace: customers a shop.")] = 114,
    products: Annotated[int, typer.Option(help="marketplace: products.")] = 20_000,
    seed: Annotated[int, typer.Option(help="marketplace, movielens.")] = 0,
) -> None:
    """Write a data set as the contract's tables."""
    from common.built_in.complete_journey import Merchants
    from common.built_in.marketplace import MarketplaceConfig
    from common.config import parse
    from common.datasets import write_dataset
    from common.partitioning import uniform

    kinds: dict[str, Merchants] = {"market": "market", "store": "store"}
    if merchants not in kinds:
        raise typer.BadParameter(f"{merchants!r} is neither market nor store")
    if name == "movielens" and path is None:
        raise typer.BadParameter("movielens needs --path, your unpacked copy of it")
    sizes = {
        "shops": shops,
        "customers_per_shop": customers,
        "products": products,
        "seed": seed,
    }
    with Bars() as bars:
        bars.stage(f"writing {name}", shops if name == "marketplace" else None)
        write_dataset(
            name,
            out,
            progress=lambda done, total: bars.step(f"{done} of {total}"),
            merchants=kinds[merchants],
            path=path,
            partitioner=uniform(shops, seed=seed, skew=0.5),
            marketplace=parse(MarketplaceConfig, sizes, "marketplace"),
        )
    terminal().print(f"{name} is in {out}", soft_wrap=True, markup=False)


def _answer(
    work: Callable[[Bars], dict[str, Any]],
    words: Callable[[dict[str, Any]], Iterable[RenderableType]],
    page: Path,
    *,
    as_json: bool,
) -> None:
    """Do what takes long, then show what was found: one JSON document, or words and a page."""
    from simulations.documents import to_json

    with Bars() as bars:
        try:
            document = work(bars)
        except KeyboardInterrupt:
            # Caught here: Typer would end with a status and a word of its own.
            raise RunError("interrupted: the same command goes on where it stopped") from None
    if as_json:
        sys.stdout.write(to_json(document))
        return
    console = terminal()
    for part in words(document):
        console.print(part)
    _show_where(page)


def _show_where(page: Path) -> None:
    # To be copied: neither broken over lines nor read as markup.
    terminal().print(f"The page to look at: {page}", soft_wrap=True, markup=False)


def main(command: Callable[[], object] = app) -> None:
    """Run the command line: errors are one line, and 2 is the status of bad input."""
    run_command_line(command)


if __name__ == "__main__":
    main()
