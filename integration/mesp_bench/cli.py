"""`mesp evaluate` and `mesp demo`: what the workbench measures, as commands."""

from __future__ import annotations

from pathlib import Path  # typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mesp.errors import InputError
from mesp_bench.arrivals import ArrivalMode
from mesp_bench.progress import stages

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp_bench.forecasting import TraceForecast
    from mesp_bench.traces.model import Trace
    from mesp_predictor.model import Model

evaluate = typer.Typer(help="Measure policies and forecasts on a trace.", no_args_is_help=True)

#: The synthetic fleet that `mesp demo --train` learns from.
_TRAINING_FUNCTIONS, _TRAINING_SEED = 300, 1_000_003


@evaluate.callback()
def _evaluate() -> None:
    """Measure policies and forecasts on a trace."""


@evaluate.command()
def frontier(
    *,
    trace: Annotated[Path, typer.Option(help="The trace to score on: a folder in the Azure, invitro or Parquet form.")],
    out: Annotated[Path, typer.Option(help="Folder for frontier.json, frontier.png and report.html.")],
    train: Annotated[Path | None, typer.Option(help="A trace of other functions to train MESP on.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A trained model directory; without it and --train the model that MESP ships.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, max=100, help="Runs of event accounting per arrival mode.")] = 5,
    full: Annotated[
        bool, typer.Option("--full", help="Event accounting for every knob, and fixed start times.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
) -> None:
    """Cold starts against wasted memory: MESP and today's policies, each a curve over its knob.

    Without --train or --model the model that MESP ships answers. How MESP does from zero, knowing only what it sees on
    the trace, is always beside it.

    Example: mesp evaluate frontier --trace azure2019-d01-a --train azure2019-d01-pool --out out/frontier
    """
    from mesp_bench.evaluate import EventPlan, evaluate_frontier, model_provenance  # noqa: PLC0415
    from mesp_bench.ledger import fill_defaults  # noqa: PLC0415
    from mesp_bench.report import print_frontier_table, write_frontier_report  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_predictor.checkpoint import load_model  # noqa: PLC0415

    if train is not None and model is not None:
        raise InputError("--train and --model exclude each other: a model is trained, or it is given")
    scored, notes = fill_defaults(load_trace(trace))
    _refuse_short(scored)
    with stages() as progress:
        directory = _model(train, model, seed, notes, scored, progress)
        forecasts = _forecasts(scored, load_model(directory), progress)
        plan = EventPlan(modes=tuple(ArrivalMode) if seeds else (), seeds=seeds, full=full)
        result = evaluate_frontier(scored, forecasts, plan, notes, progress)
    result["provenance"]["model"] = model_provenance(directory)
    write_frontier_report(result, out)
    print_frontier_table(result, Console())
    typer.echo(f"Report: {out / 'report.html'}")


@evaluate.command()
def forecasts(
    *,
    trace: Annotated[Path, typer.Option(help="The trace to score on: a folder in the Azure, invitro or Parquet form.")],
    out: Annotated[Path, typer.Option(help="Folder for forecasts.json, forecasts.png and report.html.")],
    train: Annotated[Path | None, typer.Option(help="A trace of other functions to train MESP on.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A trained model directory; without it and --train the model that MESP ships.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training and of the bootstrap.")] = 0,
) -> None:
    """The mixture against every single model: proper scores, calibration, gains with their intervals.

    Without --train or --model the model that MESP ships answers. How MESP does from zero, knowing only what it sees on
    the trace, is always beside it.

    Example: mesp evaluate forecasts --trace azure2019-d01-a --train azure2019-d01-pool --out out/forecasts
    """
    from mesp_bench.evaluate import model_provenance  # noqa: PLC0415
    from mesp_bench.forecast_comparison import Bootstrap, evaluate_forecasts  # noqa: PLC0415
    from mesp_bench.forecast_replay import replay_tables, series_per_s  # noqa: PLC0415
    from mesp_bench.forecast_report import print_forecast_tables, write_forecast_report  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_predictor.checkpoint import load_model  # noqa: PLC0415

    if train is not None and model is not None:
        raise InputError("--train and --model exclude each other: a model is trained, or it is given")
    scored = load_trace(trace)
    _refuse_short(scored)
    notes: list[str] = []
    with stages() as progress:
        directory = _model(train, model, seed, notes, scored, progress)
        answering = load_model(directory)
        replays = replay_tables(answering, scored, seed, progress)
        progress("speed", 0)
        speeds = series_per_s(answering, scored)
        progress("scores", 0)
        result = evaluate_forecasts(scored, replays, speeds, notes, Bootstrap(seed=seed))
    result["provenance"]["model"] = model_provenance(directory)
    write_forecast_report(result, out)
    print_forecast_tables(result, Console())
    typer.echo(f"Report: {out / 'report.html'}")


def demo(
    *,
    trace: Annotated[Path | None, typer.Option(help="A real trace; without it a synthetic one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/demo"),
    functions: Annotated[int, typer.Option(min=16, max=2000, help="Functions of the synthetic trace.")] = 200,
    minutes: Annotated[int, typer.Option(min=10, max=720, help="Minutes that the loop runs, in virtual time.")] = 240,
    train: Annotated[
        bool,
        typer.Option("--train", help="Train a small model on a synthetic fleet first, instead of the shipped one."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")] = 0,
) -> None:
    """Show the whole loop on a trace in minutes: MESP beside today's platforms.

    Starts the predictor sidecar with the model that MESP ships, runs the loop against a simulated cluster in virtual
    time, and compares with the policies of today's platforms on the same arrivals.

    Example: mesp demo --trace azure2019-d01-a
    """
    from mesp_bench.demo import run_demo  # noqa: PLC0415
    from mesp_bench.evaluate import model_notes, model_provenance, provenance  # noqa: PLC0415
    from mesp_bench.ledger import fill_defaults  # noqa: PLC0415
    from mesp_bench.report import print_frontier_table, write_frontier_report  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_bench.traces.synth import synthesize  # noqa: PLC0415
    from mesp_predictor.checkpoint import default_model  # noqa: PLC0415

    shown = load_trace(trace) if trace else synthesize(functions=functions, days=1, seed=seed)
    shown, notes = fill_defaults(shown)
    _refuse_short(shown)
    with stages() as progress:
        directory = _small_model(seed, progress) if train else default_model()
        answering = model_provenance(directory)
        notes += model_notes(answering, shown)
        if train:
            notes.append(f"MESP's model was trained on a synthetic fleet of {_TRAINING_FUNCTIONS} other functions.")
        result = run_demo(shown, directory, minutes, seed, notes, progress)
    result["provenance"] = provenance(shown, seeds=1, workers=1) | {"model": answering}
    write_frontier_report(result, out)
    print_frontier_table(result, Console())
    typer.echo(f"Report: {out / 'report.html'}")


def _small_model(seed: int, progress: Callable[[str, float], None]) -> Path:
    """Directory of a model trained on a synthetic fleet, of the same kind as the demo's but of other functions."""
    from mesp_bench.forecasting import trained_model  # noqa: PLC0415
    from mesp_bench.traces.synth import synthesize  # noqa: PLC0415
    from mesp_predictor.training import QUICK  # noqa: PLC0415

    progress("training fleet", 0)
    others = synthesize(functions=_TRAINING_FUNCTIONS, days=1, seed=_TRAINING_SEED + seed)
    return trained_model(others, QUICK.model_copy(update={"seed": seed}), progress)


def _refuse_short(trace: Trace) -> None:
    if trace.minutes < 120:
        raise InputError(f"{trace.name}: covers {trace.minutes} minutes, at least 120 are needed to warm up and score")


def _model(
    train: Path | None,
    model: Path | None,
    seed: int,
    notes: list[str],
    scored: Trace,
    progress: Callable[[str, float], None],
) -> Path:
    """Directory of the model that answers; functions that are scored are kept out of a training."""
    from mesp_bench.evaluate import model_notes, model_provenance  # noqa: PLC0415
    from mesp_bench.forecasting import trained_model, without_functions_of  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_predictor.checkpoint import default_model  # noqa: PLC0415
    from mesp_predictor.training import TrainingConfig  # noqa: PLC0415

    if train is None:
        directory = model or default_model()
        notes += model_notes(model_provenance(directory), scored)
        return directory
    fleet, removed = without_functions_of(load_trace(train), scored)
    if removed:
        notes.append(f"{removed} functions of the training trace have a series of the scored trace and were left out.")
    return trained_model(fleet, TrainingConfig(seed=seed), progress)


def _forecasts(trace: Trace, model: Model, progress: Callable[[str, float], None]) -> dict[str, TraceForecast]:
    """MESP's forecasts by table, the top level's first."""
    from mesp_bench.forecasting import cached_forecast  # noqa: PLC0415
    from mesp_predictor.training import untrained_model  # noqa: PLC0415

    tables = {"online": (model, True), "never_seen": (model, False), "from_zero": (untrained_model(), True)}
    forecasts = {}
    for table, (answering, learn) in tables.items():

        def told(share: float, table: str = table) -> None:
            progress(f"forecasts, {table}", share)

        forecasts[table] = cached_forecast(answering, trace, told, learn=learn)
    return forecasts
