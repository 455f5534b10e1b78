"""`mesp placement`: serve the decision over gRPC, or make one from a file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format

from mesp.config import load_config
from mesp.errors import InputError
from mesp.v1.placement_service_pb2 import PlanRequest
from mesp_placement.config import PlacementConfig
from mesp_placement.server import DEFAULT_PORT
from mesp_placement.server import serve as serve_placement
from mesp_placement.service import decide

app = typer.Typer(no_args_is_help=True, help="Decide how many containers each function has warm, and where.")

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML; defaults without it.")]


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = DEFAULT_PORT,
) -> None:
    """Serve PlacementService until Ctrl-C or SIGTERM.

    Example: mesp placement serve --config deploy/placement.yaml --port 50052
    """
    address = f"[{host}]" if ":" in host else host

    def ready(bound_port: int) -> None:
        typer.echo(f"placement serves on {address}:{bound_port}", err=True)

    asyncio.run(serve_placement(_config(config), f"{address}:{port}", ready=ready))


@app.command()
def plan(
    request: Annotated[Path, typer.Argument(metavar="REQUEST.json", help="A PlanRequest in protobuf's JSON form.")],
    config: ConfigOption = None,
) -> None:
    """Make one plan from a file and print the answer as JSON.

    Example: mesp placement plan request.json
    """
    try:
        message = json_format.Parse(request.read_bytes(), PlanRequest())
    except OSError as error:
        raise InputError(f"{request}: cannot be read: {error.strerror or error}") from error
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{request}: is no PlanRequest: {error}") from error
    typer.echo(json_format.MessageToJson(decide(message, _config(config)), ensure_ascii=False))


def _config(path: Path | None) -> PlacementConfig:
    return PlacementConfig() if path is None else load_config(path, PlacementConfig)
