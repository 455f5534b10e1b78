"""`mesp bench`: how fast, and in how much memory, on this machine."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads annotations when it runs
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

app = typer.Typer(help="Measure speed and memory on this machine.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure speed and memory on this machine."""


@app.command()
def forecast(
    *,
    out: Annotated[Path, typer.Option(help="Folder for bench.json.")],
    model: Annotated[
        Path | None, typer.Option(help="Directory of a trained model; without it the model that MESP ships.")
    ] = None,
    functions: Annotated[int, typer.Option(min=1, max=100_000, help="Functions of the synthetic fleet.")] = 1_000,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads that every forecaster may take.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Timed calls of each, after one that warms up.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fleet.")] = 0,
) -> None:
    """Forecast a fleet: series per second of every expert and of the mixture, beside AutoETS and Chronos-Bolt-tiny.

    Example: mesp bench forecast --model models/small --functions 2000 --out out/bench
    """
    from mesp_bench.pages import rich_table  # noqa: PLC0415
    from mesp_bench.progress import stages  # noqa: PLC0415
    from mesp_bench.report import json_text, write_files  # noqa: PLC0415
    from mesp_bench.speed import bench_forecast, speed_table  # noqa: PLC0415

    with stages() as progress:
        result = bench_forecast(model, functions, progress, threads=threads, repeats=repeats, seed=seed)
    write_files(out, {"bench.json": json_text(result).encode()})
    console = Console()
    console.print(rich_table(speed_table(result)))
    for note in result["notes"]:
        console.print(Text(f"- {note}", style="dim"))
    typer.echo(f"Results: {out / 'bench.json'}")


@app.command()
def openwhisk(
    *,
    out: Annotated[Path, typer.Option(help="Folder for bench.json.")],
    rate: Annotated[int, typer.Option(min=1, max=100_000, help="Calls a second that the plugin reads.")] = 1_000,
    functions: Annotated[int, typer.Option(min=1, max=100_000, help="Functions that are called, in turn.")] = 300,
    seconds: Annotated[int, typer.Option(min=10, max=86_400, help="Time that is played, after a minute's start.")] = 60,
) -> None:
    """Read a classic platform's bus: the plugin's share of a core and memory, by calls a second; without Kafka's client.

    Example: mesp bench openwhisk --rate 1000 --out out/bench
    """
    from mesp_bench.overhead import bench_overhead, overhead_table  # noqa: PLC0415
    from mesp_bench.pages import rich_table  # noqa: PLC0415
    from mesp_bench.progress import stages  # noqa: PLC0415
    from mesp_bench.report import json_text, write_files  # noqa: PLC0415

    with stages() as progress:
        result = bench_overhead(rate, functions, seconds, progress)
    write_files(out, {"bench.json": json_text(result).encode()})
    console = Console()
    console.print(rich_table(overhead_table(result)))
    for note in result["notes"]:
        console.print(Text(f"- {note}", style="dim"))
    typer.echo(f"Results: {out / 'bench.json'}")
