"""One invoker of a deployment with FPC: creations and deletions from ``invokerN``, its memory in etcd each second.

A creation takes a paused container of its action and revision, else a stem cell of its kind and size, else makes one,
for which the longest unused paused ones are forgotten. Its ack, on ``creationAck<rootSchedulerIndex>``, says that the
container is up (not that it is initialised), or why there is none. Paused containers count as free memory, stem cells
not at all. What is neither a creation nor a deletion is dropped with a line in the log, and counted.

Source: FPCInvokerReactive.scala, ContainerMessageConsumer.scala and FunctionPullingContainerPool.scala of
apache/openwhisk.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Final

from e2e.openwhisk import fpc_wire, wire
from e2e.openwhisk.containers import Order, container_name
from e2e.openwhisk.fpc_container import Pulling
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.runner import Runner
from e2e.openwhisk.tasks import Tasks

if TYPE_CHECKING:
    import random

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.containers import Containers
    from e2e.openwhisk.etcd import Etcd, Session
    from e2e.openwhisk.model import Action, Json, Store
    from e2e.openwhisk.recording import Recording
    from e2e.openwhisk.rpc import Rpc

#: To look up whose container it is, and what it shall run.
_LOOK_UP_S: Final = 0.012
_MISMATCH: Final = "Action version is not compatible and cannot be invoked."


class FpcInvoker(Runner):
    """The invoker of a number; `start` it again after `stop` or `kill`, with other settings if need be.

    Attributes:
        starts: containers that were warmed, prewarmed (taken from a stem cell) or cold.
        dropped: messages that could not be read.
    """

    def __init__(
        self,
        number: int,
        bus: Topics,
        clock: Clock,
        store: Store,
        engine: Containers,
        recording: Recording,
        randomness: random.Random,
        etcd: Etcd,
        rpc: Rpc,
    ) -> None:
        super().__init__(number, bus, clock, store, engine, recording, randomness)
        self.etcd, self.rpc = etcd, rpc
        self.settings = PoolSettings()
        self.session: Session
        self.starts: Counter[str] = Counter()
        self.dropped = 0
        self._places: list[Pulling] = []
        self._numbers = itertools.count(1)
        self._tasks = Tasks()
        self._session: Session | None = None

    async def start(self, settings: PoolSettings) -> None:
        """Removes what a predecessor left, reads its topic from where that one stopped, and shows its memory."""
        self.settings = settings
        self.identity = wire.instance(self.number, settings.memory_mb)
        await self.engine.clear(f"wsk{self.number}_")
        await self.bus.make(self.name, "events")
        self.session = self._session = await self.etcd.open(self.name)
        for cells in settings.stem_cells:
            for _ in range(cells.count):
                self._make_stem_cell(cells.kind, cells.memory_mb)
        self._tasks.spawn(self._show())
        self._tasks.keep(await self.bus.read(self.name, self.name, self._take))

    async def kill(self) -> None:
        """Dies in the middle: its containers stay, its keys until its lease runs out.

        Raises:
            ExceptionGroup: something of what it did has failed.
        """
        await self._drop()
        if self._session is not None:
            await self._session.abandon()
            self._session = None

    async def stop(self) -> None:
        """Ends in order: its containers and keys go; `ExceptionGroup` as in `kill`."""
        await self._drop()
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self.engine.clear(f"wsk{self.number}_")

    def memory_mb(self, *states: str) -> int:
        """Of containers in these states, see `Pulling.state`."""
        return sum(place.order.memory_mb for place in self._places if place.state in states)

    def idle_mb(self) -> int:
        """Memory of containers that run nothing: paused, or waiting for a call."""
        return self.memory_mb("paused") + sum(place.order.memory_mb for place in self._places if place.waits)

    # --- Messages ---------------------------------------------------------------------------------------------------

    def _take(self, message: Json) -> None:
        try:
            is_creation = fpc_wire.check_order(message)
        except wire.DroppedError as dropped:
            self.dropped += 1
            self.log("ERROR", "sid_unknown", "ContainerMessageConsumer", f"Failed to parse, error: {dropped}")
            return
        owner = fpc_wire.owner_of(message)
        if owner.action == fpc_wire.WARM_UP:
            return
        kind = "container creation" if is_creation else "deletion"
        told = f"{kind} message for {owner.base}@{owner.version} is received"
        self.log("INFO", message["transid"][0], "ContainerMessageConsumer", told)
        self._tasks.spawn(self._create(message) if is_creation else self._delete(message))

    async def _create(self, creation: Json) -> None:
        owner = fpc_wire.owner_of(creation)
        await self.clock.sleep(_LOOK_UP_S)
        action = self.store.get(owner.action, owner.revision)
        if owner.namespace not in self.store.users or action is None:
            known = self.store.get(owner.action) is not None
            self._tell(creation, "DBFetchError", _MISMATCH if known else wire.NOT_FOUND)
        elif state := self._choose(creation, action):
            self.starts[state] += 1
        else:
            # Scala's own words for the identity, as recorded: invoker[invoker0]
            reason = (
                f"creationId: {creation['creationId']}, invoker[{self.name}] doesn't have enough resource for "
                f"container: {owner.action}@{owner.version}"
            )
            self._tell(creation, fpc_wire.NOT_ENOUGH, reason)

    async def _delete(self, deletion: Json) -> None:
        owner = fpc_wire.owner_of(deletion)
        for place in list(self._places):
            up_to = fpc_wire.number_of(place.revision) <= fpc_wire.number_of(owner.revision)
            if place.belongs(owner.namespace, owner.action) and up_to and place.state in {"paused", "busy"}:
                place.leave()

    def _tell(self, creation: Json, error: str | None = None, reason: str | None = None) -> None:
        scheduler = creation["rootSchedulerIndex"]["asString"]
        self.bus.send(f"creationAck{scheduler}", fpc_wire.creation_ack(creation, self.identity, error, reason))

    # --- Which container --------------------------------------------------------------------------------------------

    def _choose(self, creation: Json, action: Action) -> str | None:
        """How it starts; None where there is no room."""
        owner, needed_mb = fpc_wire.owner_of(creation), action.memory_mb
        for place in self._places:
            same = place.belongs(owner.namespace, owner.action) and place.revision == owner.revision
            if place.state == "paused" and same:
                place.use(creation)
                return "warmed"
        free_mb = self.settings.memory_mb - self.memory_mb("busy", "paused", "in-progress")
        if needed_mb > free_mb + self.memory_mb("paused"):
            return None
        self._evict(needed_mb - free_mb)
        for place in self._places:
            if place.state == "stem" and (place.order.kind, place.order.memory_mb) == (action.kind, needed_mb):
                place.use(creation)
                self._make_stem_cell(action.kind, needed_mb)
                return "prewarmed"
        name = container_name(self.number, next(self._numbers), action.namespace, action.own_name)
        order = Order(name, action.kind, needed_mb, action, creation["creationId"])
        self._add(Pulling(self, order, creation))
        return "cold"

    def _evict(self, needed_mb: int) -> None:
        """Forgets paused containers: they stay, and nobody uses them, until their time is over.

        As recorded: the pool tells them to go by an object that they do not know (`v2.Remove`, not `Remove`).
        """
        paused = sorted((place for place in self._places if place.state == "paused"), key=lambda one: one.last_used_ms)
        while needed_mb > 0:
            oldest = paused.pop(0)
            self._places.remove(oldest)
            needed_mb -= oldest.order.memory_mb

    def _make_stem_cell(self, kind: str, memory_mb: int) -> None:
        name = container_name(self.number, next(self._numbers), "prewarm", kind)
        self._add(Pulling(self, Order(name, kind, memory_mb), None))

    def _add(self, place: Pulling) -> None:
        self._places.append(place)
        self._tasks.spawn(place.live())

    # --- What containers tell ---------------------------------------------------------------------------------------

    def up(self, place: Pulling) -> None:
        """The creation succeeded."""
        assert place.creation is not None
        self._tell(place.creation)

    def removed(self, place: Pulling) -> None:
        """Its memory is free."""
        if place in self._places:
            self._places.remove(place)

    def refuse(self, call: Json, kind: str, response: wire.Response) -> None:
        """The call will not be run: an answer without a run."""
        record = wire.fallback(call, kind, response, self.clock.now_ms)
        self.complete(call, record, with_result=True)

    async def _show(self) -> None:
        """Free, busy and in-progress memory, whenever it changed, each second at most."""
        shown: Json = {}
        for at_ms in itertools.count(self.clock.now_ms, 1000):
            await self.clock.sleep_until(at_ms)
            busy_mb, in_progress_mb = self.memory_mb("busy"), self.memory_mb("in-progress")
            free_mb = self.settings.memory_mb - busy_mb - in_progress_mb
            now = fpc_wire.resources(free_mb, busy_mb, in_progress_mb)
            if now != shown:
                shown = now
                self.session.write(f"invokers/{self.number}", fpc_wire.compact(now))

    async def _drop(self) -> None:
        try:
            await self._tasks.end(self.name)
        finally:
            self._places.clear()
