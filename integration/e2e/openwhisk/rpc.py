"""The ActivationService between containers and schedulers: protobuf messages, over gRPC or within one event loop.

A container connects to whichever address its creation message names, a real scheduler's or somebody else's. What fails
on the way (nobody listens, the server stopped while it held the call) is `RpcError`; connections are plain HTTP/2.

Source: core/scheduler/src/main/protobuf/activation.proto of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Protocol, cast

import grpc
import grpc.aio

from mesp.openwhisk.activation_service_pb2 import FetchRequest, FetchResponse, RescheduleRequest, RescheduleResponse
from mesp.openwhisk.activation_service_pb2_grpc import (
    ActivationServiceServicer,
    ActivationServiceStub,
    add_ActivationServiceServicer_to_server,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from e2e.openwhisk.clock import Clock
    from mesp.openwhisk.activation_service_pb2_grpc import ActivationServiceAsyncStub

HOST = "127.0.0.1"
#: To open a connection, and for a message each way, where no network takes its own time.
_CONNECT_S, _MESSAGE_S = 0.035, 0.002


class RpcError(Exception):
    """No answer came."""


class Service(Protocol):
    """What a server does."""

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        """A container's next call; `ValueError` where the request cannot be read."""

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        """A call back to its queue."""


class Server(Protocol):
    """A service that listens."""

    @property
    def port(self) -> int:
        """Where, on `HOST`."""

    async def stop(self) -> None:
        """At once: what is held fails."""


class Channel(Protocol):
    """One container's connection; every method raises `RpcError` where no answer comes."""

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        """See `Service.fetch`."""

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        """See `Service.reschedule`."""

    async def close(self) -> None:
        """Ends it."""


class Rpc(Protocol):
    """A network."""

    async def serve(self, service: Service, port: int = 0) -> Server:
        """Listens on `HOST`, on a free port where 0."""

    def connect(self, host: str, port: int) -> Channel:
        """Never fails: calls do."""


# --- gRPC -----------------------------------------------------------------------------------------------------------


class GrpcRpc:
    """Real sockets."""

    async def serve(self, service: Service, port: int = 0) -> GrpcServer:
        """See `Rpc.serve`."""
        server = grpc.aio.server()
        add_ActivationServiceServicer_to_server(_Servicer(service), server)
        bound = server.add_insecure_port(f"{HOST}:{port}")
        await server.start()
        return GrpcServer(server, bound)

    def connect(self, host: str, port: int) -> GrpcChannel:
        """See `Rpc.connect`."""
        return GrpcChannel(grpc.aio.insecure_channel(f"{host}:{port}"))


class GrpcServer:
    """See `Server`."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self.port = port
        self._server = server

    async def stop(self) -> None:
        """See `Server.stop`."""
        await self._server.stop(None)


class GrpcChannel:
    """See `Channel`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub = cast("ActivationServiceAsyncStub", ActivationServiceStub(channel))

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        """See `Channel.fetch`."""
        try:
            return await self._stub.FetchActivation(request)
        except grpc.aio.AioRpcError as error:
            raise RpcError(error.code().name) from error

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        """See `Channel.reschedule`."""
        try:
            return await self._stub.RescheduleActivation(request)
        except grpc.aio.AioRpcError as error:
            raise RpcError(error.code().name) from error

    async def close(self) -> None:
        """See `Channel.close`."""
        await self._channel.close(None)


class _Servicer(ActivationServiceServicer):
    """The generated face of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def FetchActivation(  # noqa: N802 (the name on the wire)
        self, request: FetchRequest, context: grpc.aio.ServicerContext[FetchRequest, FetchResponse]
    ) -> FetchResponse:
        try:
            return await self._service.fetch(request)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
            raise

    async def RescheduleActivation(  # noqa: N802 (the name on the wire)
        self, request: RescheduleRequest, context: grpc.aio.ServicerContext[RescheduleRequest, RescheduleResponse]
    ) -> RescheduleResponse:
        try:
            return await self._service.reschedule(request)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
            raise


# --- In memory ------------------------------------------------------------------------------------------------------


class MemoryRpc:
    """Servers by port, whatever the host; messages are written and read as on a wire."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.servers: dict[int, MemoryServer] = {}
        self._ports = itertools.count(13_001)

    async def serve(self, service: Service, port: int = 0) -> MemoryServer:
        """See `Rpc.serve`."""
        server = MemoryServer(self, service, port or next(self._ports))
        self.servers[server.port] = server
        return server

    def connect(self, host: str, port: int) -> MemoryChannel:  # noqa: ARG002 (there is one host)
        """See `Rpc.connect`."""
        return MemoryChannel(self, port)


class MemoryServer:
    """See `Server`."""

    def __init__(self, network: MemoryRpc, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.stopped = asyncio.Event()
        self._network = network

    async def stop(self) -> None:
        """See `Server.stop`."""
        self._network.servers.pop(self.port, None)
        self.stopped.set()


class MemoryChannel:
    """See `Channel`."""

    def __init__(self, network: MemoryRpc, port: int) -> None:
        self._network, self._port = network, port
        self._connected = False

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        """See `Channel.fetch`."""
        server = await self._arrive()
        raw = FetchRequest.FromString(request.SerializeToString())
        return FetchResponse.FromString(await self._answer(server, server.service.fetch(raw)))

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        """See `Channel.reschedule`."""
        server = await self._arrive()
        raw = RescheduleRequest.FromString(request.SerializeToString())
        return RescheduleResponse.FromString(await self._answer(server, server.service.reschedule(raw)))

    async def close(self) -> None:
        """See `Channel.close`."""

    async def _arrive(self) -> MemoryServer:
        await self._network.clock.sleep(_MESSAGE_S if self._connected else _CONNECT_S)
        self._connected = True
        if self._port not in self._network.servers:
            raise RpcError("UNAVAILABLE")
        return self._network.servers[self._port]

    async def _answer(
        self, server: MemoryServer, work: Awaitable[FetchResponse] | Awaitable[RescheduleResponse]
    ) -> bytes:
        answer = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(server.stopped.wait())
        try:
            await asyncio.wait({answer, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise RpcError("UNAVAILABLE")
            try:
                raw = answer.result().SerializeToString()
            except ValueError as error:
                raise RpcError("INTERNAL") from error
        finally:
            answer.cancel()
            stopped.cancel()
        await self._network.clock.sleep(_MESSAGE_S)
        return raw
