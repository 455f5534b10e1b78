"""The placement service as a process: configuration in, one gRPC server up until a signal or an event ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesp.server import serve as serve_grpc
from mesp.v1.placement_service_pb2 import DESCRIPTOR
from mesp.v1.placement_service_pb2_grpc import add_PlacementServiceServicer_to_server
from mesp_placement.service import PlacementServicer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from mesp_placement.config import PlacementConfig

SERVICE_NAME = DESCRIPTOR.services_by_name["PlacementService"].full_name
DEFAULT_PORT = 50052


async def serve(
    config: PlacementConfig,
    address: str = f"127.0.0.1:{DEFAULT_PORT}",
    *,
    ready: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves PlacementService with health and reflection; arguments and errors as in `mesp.server.serve`."""
    servicer = PlacementServicer(config)
    await serve_grpc(
        [(SERVICE_NAME, lambda server: add_PlacementServiceServicer_to_server(servicer, server))],
        address,
        ready=ready,
        stop=stop,
    )
