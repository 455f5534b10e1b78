"""Forecasts of what a test foresees for sure, and a predictor on the wire that gives them, and keeps what it is told."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio
import numpy as np

from mesp import wire
from mesp.forecast_wire import forecasts_to_chunks
from mesp.types import Forecasts, ForecastStatus, FunctionKey
from mesp.v1 import predictor_service_pb2 as predictor_pb
from mesp.v1 import predictor_service_pb2_grpc as predictor_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from mesp.types import FloatArray, StepCounts

STEP_MS = 60_000
STEPS = 3


def foreseen(functions: Sequence[FunctionKey], counts: FloatArray, as_of_ms: int) -> Forecasts:
    """Forecasts that know `counts`, (functions, `STEPS`), for sure."""
    rows = len(functions)
    return Forecasts(
        tick_id=as_of_ms // STEP_MS,
        as_of_ms=as_of_ms,
        step_ms=STEP_MS,
        levels=(0.1, 0.5, 0.9),
        functions=tuple(functions),
        status=(ForecastStatus.OK,) * rows,
        quantiles=np.repeat(counts[:, :, None], 3, axis=2),
        active=np.minimum(counts, 1),
        experts=(),
        weights=np.ones((rows, 0), np.float32),
        age_ms=np.zeros(rows, np.int64),
        model_version="oracle",
    )


class WireOracle(predictor_grpc.PredictorServiceServicer):
    """Foresees one call a minute of each of `wanted`; `told` is the latest report of each source and step."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.wanted: list[FunctionKey] = []
        self.told: dict[tuple[str, int], StepCounts] = {}
        self.address = ""
        self._now_ms = now_ms

    def counts(self) -> dict[int, dict[FunctionKey, int]]:
        """What the steps add up to over all sources, without empty ones."""
        sums: dict[int, dict[FunctionKey, int]] = {}
        for (_, start_ms), report in self.told.items():
            for function, count in report.counts.items():
                step = sums.setdefault(start_ms, {})
                step[function] = step.get(function, 0) + count
        return sums

    async def Observe(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 (gRPC's names)
        steps, rejections = wire.observe_from_pb(request)
        self.told |= {(step.source, step.step_start_ms): step for step in steps}
        return predictor_pb.ObserveResponse(rejections=map(wire.rejection_to_pb, rejections))

    async def Forecast(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 (gRPC's names)
        for chunk in forecasts_to_chunks(self._forecasts()):
            yield predictor_pb.ForecastResponse(chunk=chunk)

    def _forecasts(self) -> Forecasts:
        as_of_ms = self._now_ms() // STEP_MS * STEP_MS
        return foreseen(self.wanted, np.ones((len(self.wanted), STEPS), np.float32), as_of_ms)


@asynccontextmanager
async def running_oracle(now_ms: Callable[[], int]) -> AsyncIterator[WireOracle]:
    """One that answers at its `address` while the block runs."""
    oracle = WireOracle(now_ms)  # type: ignore[abstract]  # what plugins do not ask
    server = grpc.aio.server()
    predictor_grpc.add_PredictorServiceServicer_to_server(oracle, server)
    oracle.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield oracle
    finally:
        await server.stop(None)
