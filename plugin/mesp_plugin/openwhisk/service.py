"""Our ActivationService: what the containers that MESP ordered (FPC) ask in place of a scheduler's.

Strings are read into a `Fetch` here, and the answer is written; what it is, `holds` decides. A request that cannot be
read is answered like one of a stranger: there is no queue here. It is told by what is wrong with it, without its content.
The protocol has no TLS and no keys: whoever reaches the port can ask, and learns nothing but that nothing is there for him.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio
import structlog

from mesp.errors import InputError
from mesp.openwhisk import activation_service_pb2 as pb
from mesp.openwhisk.activation_service_pb2_grpc import (
    ActivationServiceServicer,
    add_ActivationServiceServicer_to_server,
)
from mesp_plugin.openwhisk.fetches import NoCall, parse_fetch, reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesp_plugin.metrics import OpenWhiskMetrics
    from mesp_plugin.openwhisk.fetches import Fetch
    from mesp_plugin.openwhisk.fields import JsonObject

_Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger(__name__)


class Answers(Protocol):
    """Who decides what a container is answered, and when."""

    async def fetch(self, fetch: Fetch) -> JsonObject | NoCall:
        """A call, or why there is none; returns when it is time to answer. Cancelled when the container is gone."""
        ...


class ActivationService(ActivationServiceServicer):
    """See the module; names and promises of the calls stand in activation_service.proto."""

    def __init__(self, answers: Answers, metrics: OpenWhiskMetrics | None = None) -> None:
        self._answers = answers
        self._metrics = metrics

    async def FetchActivation(self, request: pb.FetchRequest, context: _Context) -> pb.FetchResponse:  # noqa: N802, ARG002, D102
        try:
            fetch = parse_fetch(
                namespace=request.invocationNamespace,
                fqn=request.fqn,
                rev=request.rev,
                container_id=request.containerId,
                warmed=request.warmed,
                last_duration_ms=request.lastDuration.value if request.HasField("lastDuration") else None,
                alive=request.alive,
            )
        except InputError as error:
            _log.warning("fetch skipped", error=str(error))
            if self._metrics:
                self._metrics.malformed.inc()
            return pb.FetchResponse(activationMessage=reply(NoCall.NO_QUEUE))
        return pb.FetchResponse(activationMessage=reply(await self._answers.fetch(fetch)))

    async def RescheduleActivation(self, request: pb.RescheduleRequest, context: _Context) -> pb.RescheduleResponse:  # noqa: N802, ARG002, D102
        # Only a marker can come back here, and one that was not run is nobody's loss.
        return pb.RescheduleResponse(isRescheduled=False)


@asynccontextmanager
async def serving(answers: Answers, address: str, metrics: OpenWhiskMetrics | None = None) -> AsyncIterator[int]:
    """Listens at host:port while the block runs; gives the port.

    Raises:
        InputError: the address cannot be listened on.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_ActivationServiceServicer_to_server(ActivationService(answers, metrics), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise InputError(f"fpc.listen, fpc.port = {address}: cannot be listened on, choose a free port") from None
    await server.start()
    try:
        yield port
    finally:
        # Containers that are held move to the real queue, or go: in the recordings either was safe.
        await server.stop(grace=None)
