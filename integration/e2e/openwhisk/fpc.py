"""The double of an OpenWhisk with FPC: a controller, a scheduler, and invokers at wire level, in one process.

On real Kafka, etcd and gRPC (`running_fpc`), or, for a stepped clock, all of these within one event loop
(`running_fpc_in_memory`, on a `memory.QuietLoop`). See each module for what it stands for: `fpc_controller`,
`fpc_scheduler`, `fpc_queue`, `fpc_creations`, `fpc_invoker`, `fpc_container`, `fpc_wire`, `rpc`, `etcd`.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from e2e.openwhisk import memory
from e2e.openwhisk.bus import Bus
from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.clock import Clock
from e2e.openwhisk.containers import Simulated, Sleeper
from e2e.openwhisk.etcd import Gateway
from e2e.openwhisk.fpc_controller import FpcController
from e2e.openwhisk.fpc_creations import Draws
from e2e.openwhisk.fpc_invoker import FpcInvoker
from e2e.openwhisk.fpc_scheduler import Scheduler
from e2e.openwhisk.model import Store
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.recording import Recording
from e2e.openwhisk.rest import application
from e2e.openwhisk.rpc import GrpcRpc, MemoryRpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import SteppedClock
    from e2e.openwhisk.containers import Containers, Program
    from e2e.openwhisk.etcd import Etcd
    from e2e.openwhisk.rpc import Rpc


@dataclass(frozen=True)
class Fpc:
    """A platform that runs; `api` is the controller's address, empty in memory."""

    clock: Clock
    bus: Topics
    etcd: Etcd
    rpc: Rpc
    store: Store
    recording: Recording
    engine: Containers
    controller: FpcController
    scheduler: Scheduler
    invokers: tuple[FpcInvoker, ...]
    api: str = ""

    async def until_up(self) -> None:
        """Returns once every invoker can be seen; `TimeoutError` after a minute of the wall."""
        async with asyncio.timeout(60):
            while len(self.controller.invokers()) < len(self.invokers) or not await self.etcd.read("scheduler/"):
                await self.clock.sleep(0.05)


@dataclass(frozen=True)
class _World:
    """What the parts share with all others."""

    clock: Clock
    bus: Topics
    etcd: Etcd
    rpc: Rpc
    recording: Recording


@asynccontextmanager
async def running_fpc(
    options: dict[str, Any],
    etcd_url: str,
    *,
    invokers: Sequence[PoolSettings] = (PoolSettings(),),
    clock: Clock | None = None,
    program: Program | None = None,
    engine: Containers | None = None,
    prefix: str = "",
    cluster: str = "whisk",
    seed: int = 1,
) -> AsyncIterator[Fpc]:
    """A controller ``0``, a scheduler ``0`` and invokers from 0, all up, while the block runs.

    Args:
        options: how aiokafka clients reach the broker.
        etcd_url: of etcd's JSON gateway.
        invokers: settings of each.
        clock: the wall's where None.
        program: of simulated containers.
        engine: instead of simulated containers.
        prefix: of every topic (`whisk.kafka.topics.prefix`), so that several doubles can share a broker.
        cluster: before every key (`whisk.cluster.name`), so that several can share an etcd.
        seed: of ids, of the choice of invokers, of when queues decide first, and of answers that overtake one another.
    """
    clock = clock or Clock()
    recording, bus, etcd = Recording(clock), Bus(options, clock, prefix), Gateway(etcd_url, cluster)
    async with AsyncExitStack() as ending:
        ending.push_async_callback(etcd.stop)
        await bus.start("events")
        ending.push_async_callback(bus.stop)
        await recording.start(bus)
        ending.push_async_callback(recording.stop)
        world = _World(clock, bus, etcd, GrpcRpc(), recording)
        double = await ending.enter_async_context(_running(world, invokers, program, engine, None, seed))
        server = web.AppRunner(application(double.controller))
        await server.setup()
        ending.push_async_callback(server.cleanup)
        await web.TCPSite(server, "127.0.0.1", 0).start()
        yield Fpc(**(vars(double) | {"api": f"http://127.0.0.1:{server.addresses[0][1]}"}))


@asynccontextmanager
async def running_fpc_in_memory(
    clock: SteppedClock,
    *,
    invokers: Sequence[PoolSettings] = (PoolSettings(),),
    program: Program | None = None,
    draws: Draws | None = None,
    seed: int = 1,
) -> AsyncIterator[Fpc]:
    """The same without servers; drives the clock."""
    recording, bus, etcd = Recording(clock), memory.MemoryBus(clock), memory.MemoryEtcd(clock)
    bus.watchers.append(recording.message)
    async with AsyncExitStack() as ending:
        ending.push_async_callback(bus.stop)
        ending.push_async_callback(etcd.stop)
        driving = asyncio.create_task(clock.drive(memory.settled))
        ending.callback(driving.cancel)
        world = _World(clock, bus, etcd, MemoryRpc(clock), recording)
        yield await ending.enter_async_context(_running(world, invokers, program, None, draws, seed))


@asynccontextmanager
async def _running(
    world: _World,
    invokers: Sequence[PoolSettings],
    program: Program | None,
    engine: Containers | None,
    draws: Draws | None,
    seed: int,
) -> AsyncIterator[Fpc]:
    clock, bus, etcd, rpc, recording = world.clock, world.bus, world.etcd, world.rpc, world.recording
    store = Store(GUEST)
    engine = engine or Simulated(clock, recording, random.Random(seed), program or Sleeper())
    scheduler = Scheduler("0", bus, clock, store, recording, draws or Draws(random.Random(seed + 1)), etcd, rpc)
    controller = FpcController("0", bus, clock, store, recording, random.Random(seed + 2), etcd, scheduler)
    parts = [
        FpcInvoker(number, bus, clock, store, engine, recording, random.Random(seed + 3 + number), etcd, rpc)
        for number in range(len(invokers))
    ]
    async with AsyncExitStack() as ending:
        watching = await etcd.watch("", recording.key)
        ending.callback(watching.cancel)
        await controller.start()
        ending.push_async_callback(controller.stop)
        await scheduler.start()
        ending.push_async_callback(scheduler.stop)
        for part, settings in zip(parts, invokers, strict=True):
            await part.start(settings)
            ending.push_async_callback(part.stop)
        double = Fpc(clock, bus, etcd, rpc, store, recording, engine, controller, scheduler, tuple(parts))
        await double.until_up()
        yield double
