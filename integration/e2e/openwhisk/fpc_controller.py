"""One controller of a deployment with FPC: it has queues made, and keeps to what etcd says of throttling.

A call of an action without a queue has one made, and goes to ``scheduler<id>`` at the same time. It is refused (429)
where the action's throttling key says so, or, for want of one, the namespace's.

Source: FPCPoolBalancer.scala and FPCEntitlement.scala of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from e2e.openwhisk import fpc_wire, wire
from e2e.openwhisk.front import Front, ThrottledError, UnavailableError

if TYPE_CHECKING:
    import random

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.etcd import Etcd
    from e2e.openwhisk.fpc_scheduler import Scheduler
    from e2e.openwhisk.model import Action, Store, User
    from e2e.openwhisk.recording import Recording


class FpcController(Front):
    """The controller of a name, beside one scheduler."""

    peer = "scheduler"
    tells_concurrency = False

    def __init__(
        self,
        name: str,
        bus: Topics,
        clock: Clock,
        store: Store,
        recording: Recording,
        randomness: random.Random,
        etcd: Etcd,
        scheduler: Scheduler,
    ) -> None:
        super().__init__(name, bus, clock, store, recording, randomness)
        self._etcd, self._scheduler = etcd, scheduler
        self._throttled: dict[str, bool] = {}
        self._queues: set[str] = set()
        self._up: set[int] = set()

    async def start(self) -> None:
        """Begins to listen."""
        await super().start()
        for prefix, changed in (
            ("throttling/", self._throttling_changed),
            ("queue/", self._queue_changed),
            ("invokers/", self._invoker_changed),
        ):
            self.tasks.append(await self._etcd.watch(prefix, changed))
            for key, value in (await self._etcd.read(prefix)).items():
                changed(key, value)
        self.tasks.append(asyncio.create_task(self._watch()))

    def invokers(self) -> dict[str, str]:
        """What ``GET /invokers`` answers."""
        return {f"invoker{number}": "up" for number in sorted(self._up)}

    def admit(self, user: User, action: Action) -> None:
        """Raises `ThrottledError` as the keys say."""
        namespace = self._throttled.get(f"throttling/{user.namespace}", False)
        if self._throttled.get(f"throttling/{user.namespace}/{action.full_name}", namespace):
            self.event(wire.metric_event, user.to_json(), "ConcurrentRateLimit", 1)
            raise ThrottledError("Too many requests")

    async def place(self, user: User, action: Action, transid: list[Any]) -> int:  # noqa: ARG002 (of no use here)
        """The scheduler, which is told of an action that has no queue."""
        owner = fpc_wire.Owner(user.namespace, action.full_name, action.version, action.revision)
        key = fpc_wire.leader_key(owner)
        if key not in self._queues and key not in await self._etcd.read(key):
            if not await self._etcd.read("scheduler/"):
                raise UnavailableError("No scheduler endpoint available")
            about = fpc_wire.metadata(action, self.clock.now_ms)
            self.tasks.append(asyncio.create_task(self._scheduler.create_queue(owner, about)))
        return int(self._scheduler.name)

    def _throttling_changed(self, key: str, value: str | None) -> None:
        if value is None:
            self._throttled.pop(key, None)
        else:
            self._throttled[key] = value == "true"

    def _queue_changed(self, key: str, value: str | None) -> None:
        (self._queues.discard if value is None else self._queues.add)(key)

    def _invoker_changed(self, key: str, value: str | None) -> None:
        (self._up.discard if value is None else self._up.add)(int(key.split("/")[1]))

    async def _watch(self) -> None:
        while True:
            await self.clock.sleep(0.5)
            self.give_up()
