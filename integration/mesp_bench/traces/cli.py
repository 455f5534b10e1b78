"""`mesp trace`: look into a trace, write it in another format, make it smaller, or make one up."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003  # typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mesp_bench.sample import sample_trace

from . import parquet
from .convert import Format, convert_trace, new_folder
from .inspection import Inspection, inspect_trace
from .load import load_trace
from .synth import MAX_DAYS, MAX_FUNCTIONS, write_synthetic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

app = typer.Typer(
    help="Traces of invocations: inspect, convert, sample, synthesize.", no_args_is_help=True, rich_markup_mode="rich"
)

MaxFunctions = Annotated[
    int | None, typer.Option(min=1, help="Load only the first so many functions, in file order.", show_default="all")
]


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A trace's folder, or one of its files.")],
    *,
    max_functions: MaxFunctions = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Tell what is in a trace and what looks wrong with it.

    Reads Azure 2019, Azure 2021 and invitro files, plain or gzipped, and the Parquet cache.

    Example: [bold]mesp trace inspect ./azure2019[/bold]
    """
    inspection = inspect_trace(load_trace(path, max_functions=max_functions))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(inspection), indent=2))
    else:
        _print(inspection)


@app.command("convert")
def convert_command(
    path: Annotated[Path, typer.Argument(help="A trace's folder, or one of its files.")],
    *,
    out: Annotated[Path, typer.Option(help="The folder to write, new or empty.")],
    form: Annotated[Format, typer.Option("--format", help="Official CSV files, or a quick cache.")] = Format.PARQUET,
    max_functions: MaxFunctions = None,
) -> None:
    """Write a trace in another format.

    Example: [bold]mesp trace convert ./azure2019 --out ./cache --format parquet[/bold]
    """
    trace = load_trace(path, max_functions=max_functions)
    with _progress(f"writing {out}") as progress:
        convert_trace(trace, out, form, progress)


@app.command("sample")
def sample_command(
    *,
    trace: Annotated[Path, typer.Option(help="The trace to sample: its folder, or one of its files.")],
    out: Annotated[Path, typer.Option(help="The folder to write, new or empty: a cache, and sample.json.")],
    functions: Annotated[int, typer.Option(min=1, help="At most so many functions, of every pattern and rate.")] = 30,
    rate_per_s: Annotated[
        float, typer.Option(min=0.001, help="At most so many invocations a second in the busiest minute.")
    ] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed takes the same sample.")] = 0,
) -> None:
    """Shrink a trace to what a small machine carries, keeping its shape.

    Rare, periodic, bursty and busy functions keep their shares; invocations of the loudest are thinned by one factor.

    Example: [bold]mesp trace sample --trace ./azure2019 --out ./small[/bold]
    """
    sampled, note = sample_trace(load_trace(trace), functions=functions, rate_per_s=rate_per_s, seed=seed)
    with new_folder(out) as folder:
        parquet.write(sampled, folder)
        (folder / "sample.json").write_text(json.dumps(dataclasses.asdict(note), indent=2) + "\n", encoding="utf-8")
    typer.echo(note)


@app.command("synth")
def synth_command(
    *,
    out: Annotated[Path, typer.Option(help="The folder to write, new or empty.")],
    functions: Annotated[
        int, typer.Option(min=1, max=MAX_FUNCTIONS, help="Functions, each invoked at least once.")
    ] = 300,
    days: Annotated[int, typer.Option(min=1, max=MAX_DAYS, help="Days; the first is a Monday.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files, to the byte.")] = 0,
) -> None:
    """Make up a trace with the statistics of the Azure Functions 2019 trace, as official files.

    Example: [bold]mesp trace synth --out ./synth --functions 300 --days 2 --seed 1[/bold]
    """
    with _progress(f"writing {out}") as progress:
        write_synthetic(out, functions=functions, days=days, seed=seed, progress=progress)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr, told the share done."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _print(inspection: Inspection) -> None:
    table = Table("", "", title=f"Trace {inspection.name}", show_header=False, title_justify="left")
    table.columns[1].overflow = "fold"
    number = inspection.functions
    rates = "  ".join(f"{name} {rate:,.4g}" for name, rate in inspection.invocations_per_day.items())
    rows = {
        "functions": f"{number:,} of {inspection.apps:,} apps of {inspection.owners:,} owners",
        "minutes": f"{inspection.minutes:,} ({inspection.days:g} days) from minute {inspection.start_minute:,}",
        "invocations": f"{inspection.invocations:,}",
        "active": f"{100 * inspection.active_share:.2f} % of function-minutes",
        "invocations a day": rates,
        "triggers": "  ".join(f"{name} {100 * count / number:.1f} %" for name, count in inspection.triggers.items()),
        "run time known": f"{inspection.with_duration:,} functions",
        "memory known": f"{inspection.with_memory:,} functions",
        "arrival times known": f"{inspection.with_arrivals:,} functions",
        "SHA-256": inspection.checksum,
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console = Console()
    console.print(table)
    for warning in inspection.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
    if not inspection.warnings:
        console.print("Nothing looks wrong.")
