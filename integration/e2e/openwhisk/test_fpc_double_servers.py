"""The FPC double itself on a real Kafka, a real etcd, and gRPC over loopback: what all meet who live beside it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp

from e2e.openwhisk import fpc_wire
from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.fpc import running_fpc
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.rpc import GrpcRpc

if TYPE_CHECKING:
    from e2e.openwhisk.fpc import Fpc
    from e2e.servers.etcd import Etcd
    from e2e.servers.kafka import Kafka
    from mesp.openwhisk.activation_service_pb2 import FetchRequest, FetchResponse, RescheduleRequest, RescheduleResponse


class Holder:
    """Holds every first fetch until told to hand over."""

    def __init__(self) -> None:
        self.requests: list[FetchRequest] = []
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        self.requests.append(request)
        self.asked.set()
        await self.let_go.wait()
        return fpc_wire.response(fpc_wire.NO_QUEUE)

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        raise ValueError(request)


def keys(double: Fpc, kind: str) -> list[tuple[str, str]]:
    """PUT or DELETE, and the action, of all keys of the kind."""
    lines = (line for line in double.recording.of("etcd") if line["key"].startswith(f"whisk/{kind}/"))
    return [(line["type"], line["key"].split("/")[4]) for line in lines]


async def until(double: Fpc, change: tuple[str, str], count: int) -> None:
    """Returns once that change of a `warmed` key was seen so often."""
    async with asyncio.timeout(60):
        while keys(double, "warmed").count(change) < count:
            await double.clock.sleep(0.05)


async def call(double: Fpc, name: str) -> dict[str, object]:
    """The annotations of a blocking call by REST."""
    address = f"{double.api}/api/v1/namespaces/_/actions/{name}?blocking=true"
    headers = {"Authorization": aiohttp.encode_basic_auth(*GUEST.key.split(":"))}
    async with aiohttp.ClientSession(headers=headers) as session, session.post(address, json={}) as answer:
        assert answer.status == 200
        return {note["key"]: note["value"] for note in (await answer.json())["annotations"]}


async def test_a_call_goes_all_the_way(kafka: Kafka, etcd: Etcd) -> None:
    """Call, queue, creation, container, fetch, ack; then pause, reuse, and removal, each with its keys (01-first-warm).

    Pauses after 1 s and 2 s instead of 10 s and 60 s; the times are those of this machine.
    """
    options = {"bootstrap_servers": kafka.plain}
    settings = PoolSettings(pause_grace_s=1, idle_container_s=2)
    async with running_fpc(options, etcd.url, invokers=(settings,), prefix="way-", cluster="way") as double:
        double.store.put(Action("guest", "hello", 128))
        assert "initTime" in await call(double, "hello")
        assert "initTime" not in await call(double, "hello")
        await until(double, ("PUT", "hello"), 1)
        assert "initTime" not in await call(double, "hello")
        await until(double, ("DELETE", "hello"), 2)
        assert keys(double, "warmed") == [("PUT", "hello"), ("DELETE", "hello")] * 2
        assert keys(double, "queue") == [("PUT", "hello")]
        assert double.invokers[0].starts["warmed"] == 1


async def test_a_container_is_held_by_a_server_of_somebody_else(kafka: Kafka, etcd: Etcd) -> None:
    """Its creation names another host and port; let go once there is a queue, it moves there (04-arrival-in-hold, ac)."""
    options = {"bootstrap_servers": kafka.plain}
    holder = Holder()
    server = await GrpcRpc().serve(holder)
    async with AsyncExitStack() as ending:
        ending.push_async_callback(server.stop)
        double = await ending.enter_async_context(running_fpc(options, etcd.url, prefix="held-", cluster="held"))
        action = double.store.put(Action("guest", "hello", 128))
        owner = fpc_wire.Owner("guest", "guest/hello", action.version, action.revision)
        creation = fpc_wire.creation(
            owner, fpc_wire.metadata(action, 0), scheduler="prewarm0", host="127.0.0.1", port=server.port,
            creation_id="0" * 32, began_ms=1, retries=0,
        )  # fmt: skip
        await double.bus.make("creationAckprewarm0")
        watching = await double.etcd.watch("queue/", lambda *_: holder.let_go.set())
        ending.callback(watching.cancel)
        double.bus.send("invoker0", creation)
        async with asyncio.timeout(60):
            await holder.asked.wait()
        (request,) = holder.requests
        assert (request.invocationNamespace, request.warmed, request.alive) == ("guest", False, True)
        assert "initTime" in await call(double, "hello")  # its /init was saved for the call
        assert double.invokers[0].starts["cold"] <= 2  # and one, the surplus, at most was made beside it
