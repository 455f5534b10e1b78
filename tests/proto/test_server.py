"""The server helper over real loopback sockets."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mesp.errors import InputError, UnavailableError
from mesp.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = "mesp.v1.PlacementService"


@asynccontextmanager
async def running() -> AsyncIterator[int]:
    """A server without methods of its own, by its port."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve([(NAME, lambda _: None)], "127.0.0.1:0", ready=port.set_result, stop=stop))
    try:
        yield await port
    finally:
        stop.set()
        await task


async def test_health_names_each_service() -> None:
    """Health reports the server and each of its services as serving, and knows no other."""
    async with running() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Check(health_pb2.HealthCheckRequest(service="mesp.v1.Other"))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services() -> None:
    """A client without stubs (grpcurl) finds the services by reflection."""
    async with running() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        names = {service.name async for answer in call for service in answer.list_services_response.service}
    assert {NAME, "grpc.health.v1.Health"} <= names


async def test_a_taken_port_is_one_sentence() -> None:
    """A second server on the same port is refused by a sentence that names the address and the cause."""
    async with running() as port:
        with pytest.raises(
            UnavailableError, match=rf"cannot listen on 127\.0\.0\.1:{port}: address already in use; free it"
        ):
            await serve([], f"127.0.0.1:{port}", stop=asyncio.Event())


@pytest.mark.parametrize("address", ["", "127.0.0.1", ":50051", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:-1"])
async def test_a_malformed_address_is_refused(address: str) -> None:
    """An address that is not host:port with a valid port is bad input, by value."""
    with pytest.raises(InputError, match="must be host:port"):
        await serve([], address, stop=asyncio.Event())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_gracefully(number: signal.Signals) -> None:
    """Without a stop event, SIGINT and SIGTERM end `serve` normally and the port is free again."""
    ports: list[int] = []

    def ready(port: int) -> None:
        ports.append(port)
        os.kill(os.getpid(), number)

    await serve([], "127.0.0.1:0", ready=ready)
    await serve([], f"127.0.0.1:{ports[0]}", ready=ready)
    assert ports[0] == ports[1]
