"""The double of a classic OpenWhisk: controllers and invokers at wire level, on a real Kafka, in one process.

What leaves a part goes over the bus, and nothing else passes between a controller and an invoker but the store of
actions and records, which in the real one is a database. See each module for what it stands for: `controller`,
`sharding`, `invoker`, `pool`, `containers`, `wire`.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from e2e.openwhisk.bus import Bus
from e2e.openwhisk.clock import Clock, SteppedClock
from e2e.openwhisk.containers import Simulated, Sleeper
from e2e.openwhisk.controller import Controller
from e2e.openwhisk.invoker import Invoker
from e2e.openwhisk.model import Store, User
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.recording import Recording
from e2e.openwhisk.rest import application

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from e2e.openwhisk.containers import Containers, Program

GUEST = User("guest", "23bc46b1-71f6-4ed5-8c54-816aa4f8c502", "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:double")


@dataclass(frozen=True)
class Classic:
    """A platform that runs; `api` is the controller's address."""

    clock: Clock
    bus: Bus
    store: Store
    recording: Recording
    engine: Containers
    controller: Controller
    invokers: tuple[Invoker, ...]
    api: str

    async def until_up(self) -> None:
        """Returns once every invoker takes calls; `TimeoutError` after a minute of the wall."""
        async with asyncio.timeout(60):
            while list(self.controller.invokers().values()) != ["up"] * len(self.invokers):
                await self.clock.sleep(0.05)


@asynccontextmanager
async def running_classic(
    options: dict[str, Any],
    *,
    invokers: Sequence[PoolSettings] = (PoolSettings(),),
    clock: Clock | None = None,
    program: Program | None = None,
    engine: Containers | None = None,
    prefix: str = "",
    seed: int = 1,
) -> AsyncIterator[Classic]:
    """A controller ``0`` and invokers from 0, all up, while the block runs.

    Args:
        options: how aiokafka clients reach the broker.
        invokers: settings of each.
        clock: the wall's where None.
        program: of simulated containers.
        engine: instead of simulated containers.
        prefix: of every topic (`whisk.kafka.topics.prefix`), so that several doubles can share a broker.
        seed: of ids, of the choice at overload, and of answers that overtake one another.
    """
    clock = clock or Clock()
    recording, store = Recording(clock), Store(GUEST)
    bus = Bus(options, clock, prefix)
    engine = engine or Simulated(clock, recording, random.Random(seed), program or Sleeper())
    controller = Controller("0", bus, clock, store, recording, random.Random(seed + 1))
    parts = [
        Invoker(number, bus, clock, store, engine, recording, random.Random(seed + 2 + number))
        for number in range(len(invokers))
    ]
    async with AsyncExitStack() as ending:
        await bus.start("health", "events", "completed0", *(part.name for part in parts))
        ending.push_async_callback(bus.stop)
        await recording.start(bus)
        ending.push_async_callback(recording.stop)
        if isinstance(clock, SteppedClock):
            ending.callback(asyncio.create_task(clock.drive(bus.settled)).cancel)
        server = web.AppRunner(application(controller))
        await server.setup()
        ending.push_async_callback(server.cleanup)
        await web.TCPSite(server, "127.0.0.1", 0).start()
        ending.push_async_callback(controller.stop)
        await controller.start()
        for part, settings in zip(parts, invokers, strict=True):
            ending.push_async_callback(part.stop)
            await part.start(settings)
        api = f"http://127.0.0.1:{server.addresses[0][1]}"
        double = Classic(clock, bus, store, recording, engine, controller, tuple(parts), api)
        await double.until_up()
        yield double
