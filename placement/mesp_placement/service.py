"""PlacementService: one call, one decision. Stateless, and no request can end it.

A request that cannot be read is INVALID_ARGUMENT with the sentence that says what to change. Anything unforeseen is
a bug: it is logged with its traceback, and the caller gets INTERNAL.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import structlog

from mesp.errors import InputError
from mesp.v1 import placement_service_pb2_grpc as pb_grpc
from mesp_placement.planner import plan
from mesp_placement.wire import plan_request_from_pb, plan_response_to_pb

if TYPE_CHECKING:
    from mesp.v1 import placement_service_pb2 as pb
    from mesp_placement.config import PlacementConfig

log = structlog.get_logger(__name__)


class PlacementServicer(pb_grpc.PlacementServiceServicer):
    """Answers `Plan` by the planner; the request's price or budget goes before the configuration's."""

    def __init__(self, config: PlacementConfig) -> None:
        self._config = config

    async def Plan(  # noqa: N802 (the stub's name)
        self, request: pb.PlanRequest, context: grpc.aio.ServicerContext[pb.PlanRequest, pb.PlanResponse]
    ) -> pb.PlanResponse:
        """See ``placement_service.proto``."""
        try:
            # A thread: health and other calls are answered while a large plan is made.
            return await asyncio.to_thread(decide, request, self._config)
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception as error:
            log.exception("plan failed", now_ms=request.now_ms)
            await context.abort(
                grpc.StatusCode.INTERNAL, f"the plan failed by a bug, {type(error).__name__}: see the server's log"
            )


def decide(request: pb.PlanRequest, config: PlacementConfig) -> pb.PlanResponse:
    """The answer to a request: decode, plan, encode. Raises `InputError` for a request that cannot be read."""
    given = plan_request_from_pb(request)
    objective = {
        "cold_start_price_gb_s": given.cold_start_price_gb_s,
        "memory_budget_mb": given.memory_budget_mb,
    }
    if any(value is not None for value in objective.values()):
        config = config.model_copy(update=objective)
    made, state = plan(given.snapshot, given.forecasts, given.state, given.now_ms, config)
    return plan_response_to_pb(made, state)
