"""`mesp predictor`: the sidecar's own commands; training, which reads traces and so lives in the workbench; what came of it."""

from __future__ import annotations

import enum
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mesp_bench.predictor_cluster_cli  # noqa: F401  # adds `cluster` and `experts` to the app
from mesp_predictor.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from rich.table import Table

    from mesp_bench.traces.model import Trace
    from mesp_predictor.jobs import Engine
    from mesp_predictor.runs import RunManifest
    from mesp_predictor.training import Trained, TrainingConfig

__all__ = ["app"]


class EngineName(enum.StrEnum):
    """Where the jobs of a training run."""

    PROCESSES = "processes"
    RAY = "ray"


@app.command()
def train(
    *,
    trace: Annotated[
        Path, typer.Option(help="The trace to learn from: a folder in the Azure, invitro or Parquet form.")
    ],
    out: Annotated[Path, typer.Option(help="The model directory to write; a model that is there is replaced.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with the training's settings.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Only the smoke run: all families, in seconds.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small model in a few minutes, without networks, for a first look.")
    ] = False,
    run: Annotated[Path | None, typer.Option(help="The run directory; one of its own in --runs without it.")] = None,
    runs: Annotated[Path, typer.Option(help="Where run directories are kept.")] = Path("runs"),
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same model; goes before the file's.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; goes before the file's.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Processes here, or a Ray cluster.")] = EngineName.PROCESSES,
    attribution: Annotated[
        str | None, typer.Option(help="Whose the trace is and under which licence, for the model's manifest.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow tracking URI that is given the run when it is done.")
    ] = None,
) -> None:
    """Train a model on a trace: clusters, experts, and the router that mixes them.

    A smoke run of the same families goes first. Whatever ends the training, the same command goes on where it was and
    ends with the same model.

    Example: mesp predictor train --trace azure2019-d01-pool --out models/small
    """
    import os  # noqa: PLC0415

    from mesp.errors import InputError  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_predictor.checkpoint import check_target  # noqa: PLC0415
    from mesp_predictor.runs import mlflow_client, publish, run_name  # noqa: PLC0415

    if quick and config is not None:
        raise InputError("--quick and --config exclude each other: a file says all settings itself")
    settings, resolved = _settings(config, seed, quick=quick)
    check_target(out)
    client = mlflow_client(mlflow) if mlflow else None
    fleet = load_trace(trace)
    directory = run or runs / run_name(_about(fleet), resolved)
    settings_file = config.name if config and config.is_absolute() else config
    named = {"--trace": fleet.name, "--config": settings_file, "--seed": seed, "--attribution": attribution}
    origin = {
        "data": _about(fleet),
        "attribution": attribution,
        "command": _command(named, *(["--quick"] if quick else []), *(["--smoke"] if smoke else [])),
    }
    if smoke or not (directory / "run.json").is_file():
        _smoke(fleet, settings.smoke(), origin, out if smoke else None)
    if smoke:
        return
    _train(fleet, settings, origin, directory, out, engine, workers or settings.workers or os.cpu_count() or 1)
    if client is not None:
        publish(directory, client, (out / "manifest.json", out / "experts.json"))


@app.command()
def show(
    model: Annotated[
        Path | None, typer.Option(help="A trained model directory; without it the model that MESP ships.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show what a model is: version, the data it learned from and whose they are, experts, clusters, scores, size.

    Example: mesp predictor show --model models/small
    """
    import json  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from mesp_predictor.checkpoint import default_model, describe  # noqa: PLC0415

    about = describe(model or default_model())
    if as_json:
        typer.echo(json.dumps(about, indent=2))
    else:
        Console().print(_card(about))


@app.command("runs")
def show_runs(
    directory: Annotated[Path, typer.Argument(help="Where run directories are kept.")] = Path("runs"),
    *,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="Two runs by name: settings that differ, and scores, side by side.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """List training runs, or compare two of them.

    Example: mesp predictor runs runs --compare pool-1f3c2b7a-seed0 pool-9e0d11c4-seed0
    """
    import json  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from mesp_predictor.runs import compare as side_by_side  # noqa: PLC0415
    from mesp_predictor.runs import list_runs, read_run  # noqa: PLC0415

    if compare:
        differences = side_by_side(*(read_run(directory / name) for name in compare))
        content: Any = {"runs": compare, **differences}
        table = _comparison(compare, differences)
    else:
        found = list_runs(directory)
        content = [manifest.model_dump(mode="json") for manifest in found]
        table = _list(found)
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    else:
        Console().print(table)


def _settings(path: Path | None, seed: int | None, *, quick: bool) -> tuple[TrainingConfig, dict[str, Any]]:
    """The settings, and all of them resolved; a mistake is told with the file's name."""
    from mesp.config import load_config  # noqa: PLC0415
    from mesp.errors import InputError  # noqa: PLC0415
    from mesp_predictor.training import QUICK, TrainingConfig  # noqa: PLC0415

    settings = load_config(path, TrainingConfig) if path else QUICK if quick else TrainingConfig()
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    try:
        return settings, settings.resolved()
    except InputError as error:
        if path is None:
            raise
        raise InputError(f"{path}: {error}") from error


def _about(fleet: Trace) -> dict[str, Any]:
    functions, steps = fleet.counts.shape
    return {"name": fleet.name, "checksum": fleet.checksum, "functions": functions, "steps": steps}


def _command(named: dict[str, Any], *flags: str) -> str:
    """The training command with all that decides the model; where files lay, and what it ran on, stays out."""
    import shlex  # noqa: PLC0415

    words = [word for option, value in named.items() if value is not None for word in (option, str(value))]
    return shlex.join(["mesp", "predictor", "train", *words, *flags])


def _smoke(fleet: Trace, settings: TrainingConfig, origin: dict[str, Any], out: Path | None) -> None:
    """Trains, saves and loads a model of the same families on some functions of the last day, and says so."""
    import tempfile  # noqa: PLC0415
    import time  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    from mesp_predictor.checkpoint import load_model  # noqa: PLC0415
    from mesp_predictor.training import smoke_rows  # noqa: PLC0415
    from mesp_predictor.training import train as train_model  # noqa: PLC0415

    began_s = time.monotonic()
    steps = min(settings.day_steps, fleet.minutes)
    counts = fleet.counts[:, -steps:].astype(np.float32)
    rows = smoke_rows(counts)
    some = fleet.select(rows)
    with _bars("smoke run") as progress:
        trained = train_model(
            counts[rows],
            fleet.start_minute + fleet.minutes - steps,
            settings,
            progress,
            keys=some.functions,
            triggers=some.invoked_by,
        )
        with tempfile.TemporaryDirectory() as scratch:
            directory = out or Path(scratch) / "model"
            _save(trained, directory, origin, settings)
            load_model(directory)
    took_s = time.monotonic() - began_s
    where = f", in {out}" if out else ""
    typer.echo(f"Smoke run: {len(trained.model.experts)} experts on {len(rows)} functions in {took_s:.0f} s{where}.")


def _train(
    fleet: Trace,
    settings: TrainingConfig,
    origin: dict[str, Any],
    directory: Path,
    out: Path,
    engine: EngineName,
    workers: int,
) -> None:
    """Trains, or goes on with a run, and writes the model."""
    import time  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    from mesp_predictor.runs import RunRecorder  # noqa: PLC0415
    from mesp_predictor.training import train as train_model  # noqa: PLC0415

    machine = {"engine": engine.value, "workers": workers, "threads_each": 1}
    with RunRecorder(directory, _about(fleet), settings.resolved(), machine, time.time) as record:
        with _engine(engine, workers) as submit, _bars(directory.name) as shown:

            def progress(job: str, share: float) -> None:
                record.progress(job, share)
                shown(job, share)

            trained = train_model(
                fleet.counts.astype(np.float32),
                fleet.start_minute,
                settings,
                progress,
                keys=fleet.functions,
                triggers=fleet.invoked_by,
                run=directory,
                engine=submit,
            )
        version = _save(trained, out, origin, settings)
        record.done({"next_step_log_loss": trained.log_loss}, version)
    scores = ", ".join(f"{name} {loss:.4f}" for name, loss in trained.log_loss.items())
    typer.echo(f"Model {version} in {out}. Next-step log loss on functions kept apart: {scores}.")


def _engine(name: EngineName, workers: int) -> AbstractContextManager[Engine]:
    from mesp_predictor.jobs import processes, ray_cluster  # noqa: PLC0415

    return ray_cluster(workers) if name is EngineName.RAY else processes(workers)


def _save(trained: Trained, out: Path, origin: dict[str, Any], settings: TrainingConfig) -> str:
    """Writes the model with its provenance, which tells neither time nor place; returns its version.

    `origin` is the data, their attribution and the command.
    """
    from mesp_predictor.checkpoint import save_model  # noqa: PLC0415

    about = {
        **origin,
        "config": settings.resolved(),
        "next_step_log_loss": trained.log_loss,
        "cluster_sizes": trained.cluster_sizes,
        "routed_away": trained.routed_away,
    }
    return save_model(trained.model, out, about, trained.table).version


@contextmanager
def _bars(title: str) -> Iterator[Callable[[str, float], None]]:
    """Yields a function that is told a job and its share done: one bar per running job, and a count of those done."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        whole = bars.add_task(title, total=None, said="")
        tasks: dict[str, TaskID] = {}
        done: set[str] = set()

        def told(job: str, share: float) -> None:
            if job not in tasks:
                tasks[job] = bars.add_task(job, total=1, said="")
            if share >= 1:
                done.add(job)
                bars.update(whole, said=f"{len(done)} jobs done")
            bars.update(tasks[job], completed=share, visible=share < 1, said=f"{share:.0%}")

        yield told
        bars.update(whole, total=1, completed=1)


def _card(about: dict[str, Any]) -> Table:
    """`describe` for people: a line for each thing to know, scores last, best first."""
    from rich.table import Table  # noqa: PLC0415

    training = about["training"]
    data, losses = training.get("data") or {}, training.get("next_step_log_loss") or {}
    tuned = (f"{name} ({len(clusters)} clusters)" for name, clusters in about["tuned"].items() if clusters)
    best = zip(
        [*range(about["clusters"]), "none"], (about["experts"][index] for index in about["selected"]), strict=False
    )
    lines = {
        "version": about["version"],
        "size": f"{about['size_bytes'] / 2**20:.2f} MiB",
        "data": data and f"{data['name']}: {data['functions']} functions, {data['steps']} steps",
        "SHA-256": data.get("checksum"),
        "attribution": training.get("attribution"),
        "command": training.get("command"),
        "step": f"{about['step_ms'] / 1000:g} s",
        "horizon": f"{about['default_horizon']} steps, at most {about['max_horizon']}",
        "experts": ", ".join(about["experts"]),
        "fine-tuned": ", ".join(tuned),
        "clusters": f"{about['clusters']}, of {', '.join(map(str, training.get('cluster_sizes', ())))} function-days",
        "best by cluster": ", ".join(f"{cluster} {name}" for cluster, name in best),
    }
    table = Table("", "", show_header=False, caption="log loss of the next step, on functions kept apart")
    table.columns[1].overflow = "fold"
    for name, line in lines.items():
        table.add_row(name, line or "-")
    table.add_section()
    for name in sorted(losses, key=lambda name: losses[name]):
        table.add_row(name, f"{losses[name]:.4f}")
    return table


def _list(runs: list[RunManifest]) -> Table:
    import datetime as dt  # noqa: PLC0415

    from rich.table import Table  # noqa: PLC0415

    table = Table("run", "when (UTC)", "data", "state", "mixture", "best expert", caption="next-step log loss")
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    for run in runs:
        when = dt.datetime.fromtimestamp(run.started_ms / 1000, dt.UTC)
        losses = dict(run.scores.get("next_step_log_loss", {}))
        mixture = losses.pop("mixture", None)
        best = min(losses, key=lambda name: losses[name], default=None)
        table.add_row(
            run.name,
            f"{when:%Y-%m-%d %H:%M}",
            str(run.data["name"]),
            f"{run.state}: {run.reason}" if run.reason else run.state,
            "" if mixture is None else f"{mixture:.4f}",
            "" if best is None else f"{best} {losses[best]:.4f}",
        )
    return table


def _comparison(names: tuple[str, str], differences: dict[str, dict[str, tuple[Any, Any]]]) -> Table:
    from rich.table import Column, Table  # noqa: PLC0415

    table = Table(Column(no_wrap=True), *(Column(name, overflow="fold") for name in names))
    for title, pairs in differences.items():
        table.add_section()
        table.add_row(f"[bold]{title}")
        for key, pair in pairs.items():
            table.add_row(key, *("" if value is None else _plain(value) for value in pair))
    return table


def _plain(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
