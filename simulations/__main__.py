"""``python -m simulations``: parses and calls."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from common.cli import run as run_command_line
from common.cli import terminal
from common.complete_journey import Merchants
from common.datasets import write_dataset
from common.errors import RunError
from common.marketplace import MarketplaceConfig
from common.partitioning import uniform

app = typer.Typer(
    help="Questions answered on one machine, with the server and clients that shops deploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
bench_app = typer.Typer(help="Ratios, measured side by side.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


Out = Annotated[Path, typer.Option("--out", help="Folder to write; new or empty.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


class _Bars:
    """Progress on stderr: a bar a stage."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: Any = None
        self._plain = not console.is_terminal

    def __enter__(self) -> Self:
        if not self._plain:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def stage(self, text: str, total: int | None = None) -> None:
        """Begin a stage."""
        if self._plain:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
            return
        if self._task is not None:
            self._progress.update(self._task, total=1, completed=1, detail="")
        self._task = self._progress.add_task(text, total=total, detail="")

    def step(self, text: str = "") -> None:
        """Finish one step."""
        if self._plain:
            if text:
                sys.stderr.write(f"  {text}\n")
                sys.stderr.flush()
            return
        self._progress.update(self._task, advance=1, detail=text)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="An experiment file (TOML).")],
    out: Out,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run an experiment: every arm, a report, a page, recommendations, models and ledgers."""
    from simulations.experiment import read_experiment
    from simulations.report import to_json
    from simulations.run import run_experiment
    from simulations.tables import result_table

    with _Bars() as bars:
        try:
            document = run_experiment(read_experiment(experiment, change or []), out, bars)
        except KeyboardInterrupt:
            # Caught here: Typer would end with a status and a word of its own.
            raise RunError("interrupted: the same command goes on where it stopped") from None
    if as_json:
        sys.stdout.write(to_json(document) + "\n")
        return
    console = terminal()
    console.print(result_table(document))
    console.print(f"The page to look at: {out / 'report.html'}")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file, or an experiment file (TOML).")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, or to go on with.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Quality against ε and customers a shop; the same command goes on where it stopped."""
    from simulations.report import to_json
    from simulations.sweep import run_sweep
    from simulations.sweep_plan import read_sweep
    from simulations.tables import sweep_table

    with _Bars() as bars:
        try:
            document = run_sweep(read_sweep(file, change or []), out, bars)
        except KeyboardInterrupt:
            raise RunError("interrupted: the same command goes on where it stopped") from None
    if as_json:
        sys.stdout.write(to_json(document) + "\n")
        return
    terminal().print(sweep_table(document))
    terminal().print(f"The page to look at: {out / 'sweep.html'}")


@app.command()
def audit(
    experiment: Annotated[Path, typer.Argument(help="An experiment file (TOML).")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write: new, or that of a run of it.")
    ],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Attack an experiment's own steps and models, and hold each attack against the promise."""
    from simulations.audit import run_audit
    from simulations.audit_plots import audit_words
    from simulations.experiment import read_experiment
    from simulations.report import to_json

    with _Bars() as bars:
        try:
            document = run_audit(read_experiment(experiment, change or []), out, bars)
        except KeyboardInterrupt:
            raise RunError("interrupted: the same command goes on where it stopped") from None
    if as_json:
        sys.stdout.write(to_json(document) + "\n")
        return
    for sentence in audit_words(document):
        terminal().print(sentence)
    terminal().print(f"The page to look at: {out / 'audit.html'}")


@app.command("cold-start")
def cold_start(
    experiment: Annotated[Path, typer.Argument(help="An experiment file (TOML).")],
    out: Out,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="customer, product, shop; default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure customers, products and shops that the federation does not know, by popularity."""
    from simulations.cold_start import CASES, run_cold_start
    from simulations.cold_start_page import cold_start_tables
    from simulations.experiment import read_experiment
    from simulations.report import to_json

    with _Bars() as bars:
        try:
            asked = read_experiment(experiment, change or [])
            document = run_cold_start(asked, out, bars, case or CASES)
        except KeyboardInterrupt:
            raise RunError("interrupted: the same command goes on where it stopped") from None
    if as_json:
        sys.stdout.write(to_json(document) + "\n")
        return
    terminal().print(cold_start_tables(document))
    terminal().print(f"The page to look at: {out / 'cold-start.html'}")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders that runs wrote.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for compare.html.")] = None,
    as_json: Json = False,
) -> None:
    """Put runs side by side."""
    from simulations.compare import compare as compare_runs
    from simulations.report import to_json
    from simulations.tables import comparison_table

    document = compare_runs(folders, out)
    if as_json:
        sys.stdout.write(to_json(document) + "\n")
    else:
        terminal().print(comparison_table(document))


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
    from simulations.local_federation import run_local_federation
    from simulations.local_tables import keep_up, local_table
    from simulations.report import to_json

    with _Bars() as bars:
        hold = (lambda here: keep_up(here, bars.stage)) if keep else None
        try:
            document = run_local_federation(out, bars, rounds=rounds, hold=hold)
        except KeyboardInterrupt:
            raise RunError(f"interrupted: all is taken down, and {out} can be removed") from None
    if as_json:
        sys.stdout.write(to_json(document) + "\n")
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
    from common.config import parse

    kinds: dict[str, Merchants] = {"market": "market", "store": "store"}
    if merchants not in kinds:
        raise typer.BadParameter(f"{merchants!r} is neither market nor store")
    sizes = {
        "shops": shops,
        "customers_per_shop": customers,
        "products": products,
        "seed": seed,
    }
    with _Bars() as bars:
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
    terminal().print(f"{name} is in {out}")


@bench_app.command("round")
def bench_round_command(
    rounds: Annotated[int, typer.Option(help="Rounds of both runs.")] = 10,
    as_json: Json = False,
) -> None:
    """Time a round beside Flower's own floor for the same arrays."""
    from simulations.bench import bench_round
    from simulations.report import to_json

    result = bench_round(rounds=rounds)
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
        return
    for key, value in result.items():
        terminal().print(f"{key}: {value}")


@bench_app.command("deployment")
def bench_deployment_command(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each app, in turns.")] = 2,
    shops: Annotated[int, typer.Option(min=1, help="Real nodes on this machine.")] = 3,
    size: Annotated[list[str] | None, typer.Option(help="small, large; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Time deployed rounds beside do-nothing apps through the same gateway: 0.3 and 100 MB."""
    from simulations.bench_deployment import SIZES, bench_deployment
    from simulations.report import to_json

    if unknown := sorted(set(size or ()) - set(SIZES)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SIZES)}")
    with _Bars() as bars:
        result = bench_deployment(
            bars.stage, shops=shops, rounds=rounds, repeats=repeats, sizes=tuple(size or SIZES)
        )
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
        return
    for name, found in result["sizes"].items():
        terminal().print(f"{name}: {found}")


@bench_app.command("shops")
def bench_shops_command(
    shops: Annotated[list[int] | None, typer.Option(help="How many; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what 5, 10 and 25 deployed shops take of this machine: memory, and seconds a round."""
    from simulations.bench_shops import COUNTS, bench_shops
    from simulations.report import to_json

    with _Bars() as bars:
        result = bench_shops(bars.stage, counts=tuple(shops or COUNTS), rounds=rounds)
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
        return
    for count, found in result["shops"].items():
        terminal().print(f"{count} shops: {found}")


@bench_app.command("dp-step")
def bench_step_command(
    rounds: Annotated[int, typer.Option(help="Rounds of 20 steps of each cell.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the batches; noise is the system's.")] = 0,
    as_json: Json = False,
) -> None:
    """Time the private step beside plain SGD and stock Opacus: time, memory, up to 4M products."""
    from simulations.bench_step import bench_step, targets_missed
    from simulations.report import to_json

    with _Bars() as bars:
        result = bench_step(rounds=rounds, seed=seed, progress=bars.stage)
    for line in targets_missed(result["cells"]):
        sys.stderr.write(f"missed: {line}\n")
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
        return
    for cell in (*result["cells"], *result["curve"]):
        terminal().print(cell)


@bench_app.command("serving")
def bench_serving_command(
    products: Annotated[int, typer.Option(min=1000, help="Of the searches in memory.")] = 1_000_000,
    graph_products: Annotated[
        int, typer.Option(min=1000, help="Of the graphs: a million take minutes to build.")
    ] = 1_000_000,
    latency_products: Annotated[int, typer.Option(min=1000, help="Of the server.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of what is compared.")] = 30,
    seconds: Annotated[float, typer.Option(min=1, help="Of requests to the server.")] = 60.0,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a run: state the recall on its model, too.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of vectors, customers and arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """Time answers on one core beside numpy.sum, faiss and usearch, and a server's latency."""
    from simulations.bench_serving import ServingSizes, bench_serving, targets_missed
    from simulations.report import to_json

    sizes = ServingSizes(
        products=products,
        graph_products=graph_products,
        latency_products=latency_products,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )
    with _Bars() as bars:
        result = bench_serving(sizes, model=model, progress=bars.stage)
    if result["missing"]:
        sys.stderr.write(f"not installed, so not measured: {', '.join(result['missing'])}\n")
    for line in targets_missed(result["cells"]):
        sys.stderr.write(f"missed: {line}\n")
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
        return
    for cell in result["cells"]:
        terminal().print(cell)


@bench_app.command("soak")
def bench_soak_command(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10.0,
    every: Annotated[
        float, typer.Option(min=1, help="Seconds between two events at the registry.")
    ] = 30.0,
    products: Annotated[int, typer.Option(min=1000, help="Of the catalogue.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of models, questions and callers.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask a server for minutes, while models are published, damaged and rolled back."""
    from simulations.report import to_json
    from simulations.soak import SoakSettings, soak

    settings = SoakSettings(seconds=60 * minutes, every=every, products=products, seed=seed)
    with _Bars() as bars:
        result = soak(settings, progress=bars.stage)
    if as_json:
        sys.stdout.write(to_json(result) + "\n")
    else:
        terminal().print(result)
    if result["failed"] or result["wrong"] or result["not_followed"]:
        raise RunError("requests failed, were answered wrongly, or a version was not taken")


def main(command: Callable[[], object] = app) -> None:
    """Run the command line: errors are one line, and 2 is the status of bad input."""
    run_command_line(command)


if __name__ == "__main__":
    main()
