"""`mesp predictor`: the sidecar's own commands, and training, which reads traces and so lives in the workbench."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads annotations when it runs
from typing import Annotated

import typer

import mesp_bench.predictor_cluster_cli  # noqa: F401  # adds `cluster` and `experts` to the app
from mesp_bench.progress import stages
from mesp_predictor.cli import app

__all__ = ["app"]


@app.command()
def train(
    *,
    trace: Annotated[
        Path, typer.Option(help="The trace to learn from: a folder in the Azure, invitro or Parquet form.")
    ],
    out: Annotated[Path, typer.Option(help="The model directory to write; a model that is there is replaced.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with the training's settings.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small model in about a minute, for a first look.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same model; goes before the file's.")
    ] = None,
) -> None:
    """Train a model on a trace: clusters, experts, and the router that mixes them.

    Example: mesp predictor train --trace azure2019-d01-pool --out models/small
    """
    import numpy as np  # noqa: PLC0415

    from mesp.config import load_config  # noqa: PLC0415
    from mesp.errors import InputError  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_predictor.checkpoint import check_target, save_model  # noqa: PLC0415
    from mesp_predictor.training import QUICK, TrainingConfig  # noqa: PLC0415
    from mesp_predictor.training import train as train_model  # noqa: PLC0415

    if quick and config is not None:
        raise InputError("--quick and --config exclude each other: a file says all settings itself")
    settings = load_config(config, TrainingConfig) if config else QUICK if quick else TrainingConfig()
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    check_target(out)
    fleet = load_trace(trace)
    with stages() as progress:
        trained = train_model(fleet.counts.astype(np.float32), fleet.start_minute, settings, progress)
    about = {
        "data": fleet.name,
        "checksum": fleet.checksum,
        "functions": len(fleet.functions),
        "config": settings.model_dump(mode="json"),
        "next_step_log_loss": trained.log_loss,
        "cluster_sizes": trained.cluster_sizes,
        "routed_away": trained.routed_away,
    }
    manifest = save_model(trained.model, out, about)
    scores = ", ".join(f"{name} {loss:.4f}" for name, loss in trained.log_loss.items())
    typer.echo(f"Model {manifest.version} in {out}. Next-step log loss on functions kept apart: {scores}.")
