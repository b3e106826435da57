"""``python -m simulations bench``: parses and calls."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from common.cli import terminal
from common.errors import RunError
from common.options import Json
from simulations.progress import Bars

bench_app = typer.Typer(help="Ratios, measured side by side.", no_args_is_help=True)


@bench_app.command("round")
def bench_round_command(
    rounds: Annotated[int, typer.Option(min=2, help="Of each run; the first is left out.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, in turns.")] = 2,
    as_json: Json = False,
) -> None:
    """Time a round beside Flower's own floor for the same arrays, in turns."""
    from simulations.bench.rounds import bench_round

    with Bars() as bars:
        result = bench_round(rounds=rounds, repeats=repeats, progress=bars.stage)
    _print(result, (f"{key}: {value}" for key, value in result.items()), as_json=as_json)


@bench_app.command("deployment")
def bench_deployment_command(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each app, in turns.")] = 2,
    shops: Annotated[int, typer.Option(min=1, help="Real nodes on this machine.")] = 3,
    size: Annotated[list[str] | None, typer.Option(help="small, large; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Time deployed rounds beside do-nothing apps through the same gateway: 0.3 and 100 MB."""
    from simulations.bench.deployment import SIZES, bench_deployment

    if unknown := sorted(set(size or ()) - set(SIZES)):
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(SIZES)}")
    with Bars() as bars:
        result = bench_deployment(
            bars.stage, shops=shops, rounds=rounds, repeats=repeats, sizes=tuple(size or SIZES)
        )
    lines = (f"{name}: {found}" for name, found in result["sizes"].items())
    _print(result, lines, as_json=as_json)


@bench_app.command("shops")
def bench_shops_command(
    shops: Annotated[
        list[int] | None, typer.Option(min=1, help="How many; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what 5, 10 and 25 deployed shops take of this machine: memory, and seconds a round."""
    from simulations.bench.shops import COUNTS, bench_shops

    with Bars() as bars:
        result = bench_shops(bars.stage, counts=tuple(shops or COUNTS), rounds=rounds)
    lines = (f"{count} shops: {found}" for count, found in result["shops"].items())
    _print(result, lines, as_json=as_json)


@bench_app.command("dp-step")
def bench_step_command(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of 20 steps of each cell.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the batches; noise is the system's.")] = 0,
    as_json: Json = False,
) -> None:
    """Time the private step beside plain SGD and stock Opacus: time, memory, up to 4M products."""
    from simulations.bench.step import bench_step, targets_missed

    with Bars() as bars:
        result = bench_step(rounds=rounds, seed=seed, progress=bars.stage)
    _say_missed(targets_missed(result["cells"]))
    _print(result, (*result["cells"], *result["curve"]), as_json=as_json)


@bench_app.command("secure-sum")
def bench_sums_command(
    sizes: Annotated[
        list[float] | None, typer.Option(help="Megabytes of 32-bit numbers; may be repeated.")
    ] = None,
    shops: Annotated[list[int] | None, typer.Option(help="How many; may be repeated.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="File of what is measured so far: go on from there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Weigh and time a secure sum beside a plain exchange and Flower's SecAgg+: 1 to 64 MB."""
    from simulations.bench.sums import MEGABYTES, SHOPS, bench_sums, lines

    with Bars() as bars:
        result = bench_sums(sizes or MEGABYTES, shops or SHOPS, bars.stage, keep)
    _say_missed(result["missed"])
    _print(result, lines(result), as_json=as_json)


@bench_app.command("homomorphic")
def bench_homomorphic_command(
    sizes: Annotated[
        list[float] | None, typer.Option(help="Megabytes of 32-bit numbers; may be repeated.")
    ] = None,
    shops: Annotated[list[int] | None, typer.Option(help="How many; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Weigh and time homomorphic encryption beside a secure sum; takes TenSEAL."""
    from simulations.bench.homomorphic import MEGABYTES, SHOPS, bench_homomorphic, lines

    with Bars() as bars:
        result = bench_homomorphic(sizes or MEGABYTES, shops or SHOPS, bars.stage)
    _print(result, lines(result), as_json=as_json)


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
    only: Annotated[
        list[str] | None,
        typer.Option(help="flat, core, graph, model, grpc; may be repeated. Default: all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of vectors, customers and arrivals.")] = 0,
    as_json: Json = False,
) -> None:
    """Time answers on one core beside numpy.sum, faiss and usearch, and a server's latency."""
    from simulations.bench.serving import PARTS, ServingSizes, bench_serving, targets_missed

    if unknown := sorted(set(only or ()) - set(PARTS)):
        raise typer.BadParameter(f"--only {unknown[0]!r} is none of {', '.join(PARTS)}")
    if "model" in (only or ()) and model is None:
        raise typer.BadParameter("--only model is of a run's model: say --model and its folder")
    sizes = ServingSizes(
        products=products,
        graph_products=graph_products,
        latency_products=latency_products,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )
    with Bars() as bars:
        parts = tuple(part for part in PARTS if not only or part in only)
        result = bench_serving(sizes, model=model, only=parts, progress=bars.stage)
    if result["missing"]:
        sys.stderr.write(f"not installed, so not measured: {', '.join(result['missing'])}\n")
    _say_missed(targets_missed(result["cells"]))
    _print(result, result["cells"], as_json=as_json)


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
    from simulations.bench.soak import SoakSettings, soak

    settings = SoakSettings(seconds=60 * minutes, every=every, products=products, seed=seed)
    with Bars() as bars:
        result = soak(settings, progress=bars.stage)
    _print(result, (result,), as_json=as_json)
    if result["failed"] or result["wrong"] or result["not_followed"]:
        raise RunError("requests failed, were answered wrongly, or a version was not taken")


def _print(result: dict[str, Any], lines: Iterable[Any], *, as_json: bool) -> None:
    """Print what was measured: one JSON document, or lines for people."""
    from simulations.documents import to_json

    if as_json:
        sys.stdout.write(to_json(result))
        return
    for line in lines:
        terminal().print(line)


def _say_missed(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(f"missed: {line}\n")
