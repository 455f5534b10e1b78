"""The plugin beside the FPC double that lives in memory: the same clock, no Kafka, no etcd, no gRPC between the two.

The plugin's own parts are all there but its clients: what the double puts on its bus is read from there, what changes
in its etcd is heard at once, and containers reach the ActivationService over the double's own network. HTTP, to the
double's API, is real. Run it by `run`: on its loop time goes on when nobody has anything to do, sockets included.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.clocked import ClockedLoop
from e2e.openwhisk.memory import QuietLoop
from e2e.openwhisk.rest import application
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.cluster import Cluster
from mesp_plugin.openwhisk.etcd import Change
from mesp_plugin.openwhisk.fpc import FpcDriver
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.holds import Holds
from mesp_plugin.openwhisk.kafka import FPC_TOPICS, Message
from mesp_plugin.openwhisk.platform import OpenWhiskPlatform
from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi, connect
from mesp_plugin.openwhisk.service import ActivationService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.fpc import Fpc
    from mesp.openwhisk.activation_service_pb2 import (
        FetchRequest,
        FetchResponse,
        RescheduleRequest,
        RescheduleResponse,
    )
    from mesp_plugin.openwhisk.config import OpenWhiskConfig

_Result = TypeVar("_Result")


class Loop(QuietLoop, ClockedLoop):
    """Knows when nothing is left to do, within it and on its sockets."""


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs it on a `Loop`."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


class DoublesBus:
    """See `mesp_plugin.openwhisk.kafka.Bus`: on the double's bus."""

    leads = True

    def __init__(self, double: Fpc) -> None:
        self.since_ms = double.clock.now_ms
        self.unbroken_ms = (self.since_ms, self.since_ms)
        self._double = double
        self._waiting: list[Message] = []
        double.bus.watchers.append(self._note)  # type: ignore[attr-defined]  # as every bus of the double's

    async def take(self, now_ms: int) -> list[Message]:
        self.unbroken_ms = (self.since_ms, now_ms)
        taken, self._waiting = self._waiting, []
        return taken

    async def send(self, topic: str, values: Sequence[bytes], now_ms: int) -> None:
        del now_ms
        for value in values:
            self._double.bus.send(topic, json.loads(value))

    def _note(self, topic: str, message: dict[str, Any]) -> None:
        if FPC_TOPICS.fullmatch(topic):
            self._waiting.append(Message(topic, self._double.clock.now_ms, json.dumps(message).encode()))


@dataclass(frozen=True)
class PluginClock:
    """See `mesp_plugin.loop.Clock`: the double's."""

    clock: Clock

    def now_ms(self) -> int:
        return self.clock.now_ms

    async def sleep_until(self, at_ms: int) -> None:
        await self.clock.sleep_until(at_ms)


@dataclass(frozen=True)
class _Service:
    """The plugin's service, as the double's network has them."""

    service: ActivationService

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        return await self.service.FetchActivation(request, None)  # type: ignore[arg-type]  # it needs no context

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        return await self.service.RescheduleActivation(request, None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Always:
    is_ours: bool = True


@asynccontextmanager
async def serving_api(double: Fpc) -> AsyncIterator[str]:
    """The controller's address."""
    server = web.AppRunner(application(double.controller))
    await server.setup()
    try:
        await web.TCPSite(server, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{server.addresses[0][1]}"
    finally:
        await server.cleanup()


@asynccontextmanager
async def beside(double: Fpc, config: OpenWhiskConfig) -> AsyncIterator[OpenWhiskPlatform]:
    """As `mesp_plugin.openwhisk.start.open_platform` opens it."""
    await double.bus.make("completedmesp", "creationAckmesp")
    cluster, holdings = Cluster(), Holdings(config.state_file)
    holds = Holds(cluster, holdings, PluginClock(double.clock))

    def heard(key: str, value: str | None) -> None:
        cluster.apply(Change(f"whisk/{key}", None if value is None else value.encode()))

    async def look() -> None:
        for key, value in (await double.etcd.read("")).items():
            heard(key, value)
        cluster.fresh = True

    watching = await double.etcd.watch("", heard)
    looking = asyncio.create_task(look())  # which takes time, that may stand still now
    server = await double.rpc.serve(_Service(ActivationService(holds)), config.fpc.port)
    try:
        async with connect(config) as session:
            actions = Actions(OpenWhiskApi(session, config.api_host, Key(GUEST.key)), "guest", config.opt_in)
            limit = config.fpc.namespace_limit
            driver = FpcDriver(
                DoublesBus(double), cluster, holds, _Always(), "guest", None, actions, holdings, config, limit
            )
            yield OpenWhiskPlatform(driver, holdings, mode=config.mode, expiry_ms=config.expiry_ms)
    finally:
        watching.cancel()
        looking.cancel()
        await server.stop()
