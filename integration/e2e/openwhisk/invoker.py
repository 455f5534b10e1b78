"""One invoker of a classic deployment: calls from ``invokerN``, a ping every second.

What lacks a required member is dropped with a line in the log and never answered; all else is run (`runner`) in a
container of the `pool`.

Source: InvokerReactive.scala of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from e2e.openwhisk import wire
from e2e.openwhisk.pool import Init, Pool, Run
from e2e.openwhisk.runner import Runner

if TYPE_CHECKING:
    import random

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.containers import Container, Containers
    from e2e.openwhisk.model import Json, Store
    from e2e.openwhisk.pool import PoolSettings
    from e2e.openwhisk.recording import Recording


class Invoker(Runner):
    """The invoker of a number; `start` it again after `stop` or `kill`, with other settings if need be."""

    def __init__(
        self,
        number: int,
        bus: Topics,
        clock: Clock,
        store: Store,
        engine: Containers,
        recording: Recording,
        randomness: random.Random,
    ) -> None:
        super().__init__(number, bus, clock, store, engine, recording, randomness)
        self._pool: Pool | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, settings: PoolSettings) -> None:
        """Removes what a predecessor left, reads its topic from where that one stopped, and begins to ping."""
        self.identity = wire.instance(self.number, settings.memory_mb)
        await self.engine.clear(f"wsk{self.number}_")
        await self.bus.make(self.name, "health", "events")
        self._pool = Pool(self.number, settings, self.engine, self.clock, self)
        reading = await self.bus.read(self.name, self.name, self._take)
        self._tasks = [reading, asyncio.create_task(self._ping())]

    async def kill(self) -> None:
        """Dies in the middle: no more pings and answers, its containers stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.stop()

    async def stop(self) -> None:
        """Ends in order: its containers go."""
        await self.kill()
        await self.engine.clear(f"wsk{self.number}_")

    def idle_mb(self) -> int:
        """Memory of initialised containers that run nothing; 0 while it is not started."""
        return self._pool.sizes()["free"][1] if self._pool else 0

    async def _ping(self) -> None:
        for at_ms in itertools.count(self.clock.now_ms, 1000):
            await self.clock.sleep_until(at_ms)
            self.bus.send("health", wire.ping(self.identity))

    # --- Calls ------------------------------------------------------------------------------------------------------

    def _take(self, call: Json) -> None:
        assert self._pool is not None
        try:
            wire.check_call(call)
        except wire.DroppedError as dropped:
            failure = f"terminal failure while processing message: spray.json.DeserializationException: {dropped}"
            self.log("ERROR", "sid_unknown", "InvokerReactive", failure)
            return
        full_name = f"{call['action']['path']}/{call['action']['name']}"
        if not call["revision"]:
            self.log("WARN", call["transid"][0], "InvokerReactive", f"revision was not provided for {full_name}")
        if action := self.store.get(full_name, call["revision"] or None):
            self._pool.submit(Run(call, action))
        else:
            now_ms = self.clock.now_ms
            response = wire.Response(1, {"error": wire.NOT_FOUND})
            record = wire.record(call, None, response, now_ms, now_ms)
            self.complete(call, record, with_result=True, stored=False)

    async def serve(self, run: Run, container: Container, init: Init | None) -> str:
        """/run, the answers, and what becomes of the container."""
        verdict, _ = await self.finish(run, container, init)
        return verdict

    # --- The log ----------------------------------------------------------------------------------------------------

    def started(self, run: Run, state: str, container: Container | None, active: int) -> None:
        """The line by which a dispatch is known."""
        call, action = run.call, run.action
        where = f"Some(ContainerId({container.id}))" if container else "None"
        message = (
            f"containerStart containerState: {state} container: {where} activations: {active} of max "
            f"{action.concurrency} action: {action.own_name} namespace: {call['user']['namespace']['name']} "
            f"activationId: {call['activationId']}"
        )
        self.log("INFO", call["transid"][0], "ContainerPool", message)

    def waits(self, run: Run, pool: Pool) -> None:
        """The line that tells of a full pool."""
        sizes = pool.sizes()
        told = ", ".join(f"{name}PoolSize: {count} containers and {mb} MB" for name, (count, mb) in sizes.items())
        message = (
            f"Rescheduling Run message, too many message in the pool, {told}, maxContainersMemory "
            f"{pool.settings.memory_mb} MB, userNamespace: {run.call['user']['namespace']['name']}, "
            f"action: {run.action.full_name}, needed memory: {run.action.memory_mb} MB, "
            f"waiting messages: {len(pool.buffer)}"
        )
        self.log("WARN", run.call["transid"][0], "ContainerPool", message)
