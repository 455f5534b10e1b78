"""How every MESP service comes up and goes down: one grpc.aio server with health and reflection on one address.

A caller hands over its services by full name; they are served, and reported SERVING, until the stop event is set
or, without one, until SIGINT or SIGTERM. Then health says NOT_SERVING, calls in flight get a few seconds to
finish, and `serve` returns. Nothing outlives it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mesp.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Largest message taken or sent: forecasts of 50,000 functions x 15 steps x 11 levels are 33 MB.
MAX_MESSAGE_BYTES = 256 * 2**20

#: Calls in flight when the server stops have this long to finish.
GRACE_S = 5.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def serve(
    services: Sequence[tuple[str, Callable[[grpc.aio.Server], None]]],
    address: str,
    *,
    ready: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves `services` on `address` until stopped.

    Args:
        services: full name (``mesp.v1.PlacementService``) and a function that adds the servicer to a server.
        address: ``host:port``; port 0 takes a free one; an IPv6 host stands in brackets.
        ready: called once with the port when calls are answered.
        stop: ends the server when set; None: SIGINT and SIGTERM end it (main thread only).

    Raises:
        InputError: the address is not ``host:port``.
        UnavailableError: the address cannot be bound, saying why (taken, no such host, not allowed).
    """
    _check_bindable(address)
    # Without so_reuseport=0 Linux would let a second server share the port, and each would get half the calls.
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
    )
    # grpc-stubs knows only the synchronous servicer.
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for _, add_to_server in services:
        add_to_server(server)
    names = [name for name, _ in services]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:  # taken between the check and now
        raise UnavailableError(f"cannot listen on {address}: {error}") from error

    with _stopping(stop) as stopping:
        await server.start()
        try:
            for name in ["", *names]:
                await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
            if ready is not None:
                ready(port)
            await stopping.wait()
        finally:
            await health_servicer.enter_graceful_shutdown()
            await server.stop(GRACE_S)


def _check_bindable(address: str) -> None:
    """Binds and lets go: gRPC's own failure names no cause in its exception and writes noise to stderr."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65_535:
        raise InputError(f"address = {address!r}, must be host:port with a port in 0..65535, such as 127.0.0.1:50051")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        # socket.create_server adds the address once more, in brackets.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise UnavailableError(
            f"cannot listen on {address}: {reason[:1].lower()}{reason[1:]}; free it or choose another port"
        ) from error


@contextmanager
def _stopping(stop: asyncio.Event | None) -> Iterator[asyncio.Event]:
    """The caller's event, or one that SIGINT and SIGTERM set while the context is open."""
    if stop is not None:
        yield stop
        return
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
