"""How the predictor sidecar is set up."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic reads the annotations when it runs
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Port = Annotated[int, Field(ge=0, le=65_535)]


class PredictorConfig(BaseModel):
    """Everything `mesp predictor serve` is told.

    Attributes:
        model: the model's directory, None for the model that comes with MESP.
        host: address to listen on.
        port: port to listen on, 0 for any free one.
        state: file that keeps the counts over a restart, None for none.
        save_every_steps: closed steps between two writes of it.
        context: steps of history to keep; more when the model reads more.
        max_functions: most functions known at once.
        metrics_port: port of the Prometheus page, 0 for any free one, None for none.
        virtual_time: steps may lie anywhere in time, as in replays.
        routing: `gate` (Hedge where none was trained), `hedge`, or `hard`: each cluster's best expert alone.
        top_k: experts per function that have a say, None for all.
        learn: router and experts learn from what they see; else the model answers as it was trained.
        ready_file: file that holds the bound address while the sidecar answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path | None = None
    host: str = "127.0.0.1"
    port: Port = 50_151
    state: Path | None = None
    save_every_steps: Annotated[int, Field(ge=1)] = 15
    context: Annotated[int, Field(ge=1)] = 1_440
    max_functions: Annotated[int, Field(ge=1, le=1_000_000)] = 100_000
    metrics_port: Port | None = None
    virtual_time: bool = False
    routing: Literal["gate", "hedge", "hard"] = "gate"
    top_k: Annotated[int, Field(ge=1)] | None = None
    learn: bool = True
    ready_file: Path | None = None
