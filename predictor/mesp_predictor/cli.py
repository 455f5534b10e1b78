"""The commands of ``mesp predictor``. Each imports what it needs when it runs: --help costs no torch."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads the annotations when it runs
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Train the forecasting model, and serve its forecasts.", no_args_is_help=True)


@app.callback()
def predictor() -> None:
    """Train the forecasting model, and serve its forecasts."""


@app.command()
def serve(
    model: Annotated[
        Path | None, typer.Option(help="Directory of a trained model; without it the model that comes with MESP.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")] = 50_151,
    state: Annotated[Path | None, typer.Option(help="File that keeps the counts over a restart.")] = None,
    max_functions: Annotated[int, typer.Option(min=1, max=1_000_000, help="Most functions known at once.")] = 100_000,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of the Prometheus metrics; none without it.")
    ] = None,
    virtual_time: Annotated[
        bool, typer.Option("--virtual-time", help="Accept steps anywhere in time, as replays send them.")
    ] = False,
    routing: Annotated[
        Literal["gate", "hedge", "hard"],
        typer.Option(help="Who weighs the experts: the trained gate, Hedge, or each cluster's best one answers alone."),
    ] = "gate",
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Experts per function that have a say; all without it.")
    ] = None,
    learn: Annotated[
        bool, typer.Option("--learn/--frozen", help="Go on learning from what is observed, or answer as trained.")
    ] = True,
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="Threads of the model; more than one pays above some 10,000 functions.")
    ] = 1,
    ready_file: Annotated[
        Path | None, typer.Option(help="File that holds the bound address while the sidecar answers.")
    ] = None,
) -> None:
    """Answer forecasts over gRPC until SIGINT or SIGTERM.

    Example: mesp predictor serve --port 50151 --state predictor.npz
    """
    import asyncio  # noqa: PLC0415
    import sys  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    from mesp_predictor.checkpoint import default_model, load_forecaster  # noqa: PLC0415
    from mesp_predictor.config import PredictorConfig  # noqa: PLC0415
    from mesp_predictor.server import serve_predictor  # noqa: PLC0415
    from mesp_predictor.threads import torch_threads  # noqa: PLC0415

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    config = PredictorConfig(
        model=model,
        host=host,
        port=port,
        state=state,
        max_functions=max_functions,
        metrics_port=metrics_port,
        virtual_time=virtual_time,
        routing=routing,
        top_k=top_k,
        learn=learn,
        ready_file=ready_file,
    )
    forecaster = load_forecaster(
        config.model or default_model(), learn=config.learn, routing_mode=config.routing, top=config.top_k
    )
    with torch_threads(threads):
        asyncio.run(serve_predictor(config, forecaster, say=typer.echo))
