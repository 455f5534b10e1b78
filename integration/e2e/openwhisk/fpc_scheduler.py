"""The scheduler of a deployment with FPC: queues, their containers, and the ActivationService that these fetch from.

A controller has a queue made (in the real one by a message between actors, here by `create_queue`) and sends calls to
``scheduler<id>`` at the same time; a call that comes before its queue waits for it. What containers a queue lacks,
`fpc_creations` orders.

Source: QueueManager.scala, ContainerCounter.scala and ActivationServiceImpl.scala of apache/openwhisk. Not modelled:
several schedulers, and what operators may ask it.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final

from e2e.openwhisk import fpc_wire, wire
from e2e.openwhisk.fpc_creations import Creations
from e2e.openwhisk.fpc_queue import Counts, Queue
from e2e.openwhisk.rpc import HOST
from e2e.openwhisk.tasks import Tasks
from mesp.openwhisk.activation_service_pb2 import FetchRequest, FetchResponse, RescheduleRequest, RescheduleResponse

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.etcd import Etcd, Session
    from e2e.openwhisk.fpc_creations import Draws
    from e2e.openwhisk.fpc_wire import Owner
    from e2e.openwhisk.model import Json, Store
    from e2e.openwhisk.recording import Recording
    from e2e.openwhisk.rpc import Rpc, Server

#: How long a call that finds no queue waits from look to look (`retryFuture`): 8.2 s in all.
_LOOKS_S: Final = tuple(0.001 * 2**again for again in range(13))
#: To look up the action of a queue that is made again.
_LOOK_UP_S: Final = 0.012


class Scheduler:
    """The scheduler of a name.

    Attributes:
        dropped: messages that could not be read.
    """

    def __init__(
        self,
        name: str,
        bus: Topics,
        clock: Clock,
        store: Store,
        recording: Recording,
        draws: Draws,
        etcd: Etcd,
        rpc: Rpc,
        default_limit: int = 30,
    ) -> None:
        self.name, self.clock = name, clock
        self.queues: dict[tuple[str, str, str | None], Queue] = {}
        self.dropped = 0
        self._bus, self._store, self._recording = bus, store, recording
        self.etcd, self.creations = etcd, Creations(self, draws)
        self._rpc, self._default_limit = rpc, default_limit
        self._began_ms = 0
        self._server: Server | None = None
        self._session: Session | None = None
        self._leaders: dict[str, str | None] = {}
        self._routes: set[str] = set()
        self._electing: set[str] = set()
        self._counts: dict[str, Counts] = {}
        self._tasks = Tasks()

    async def start(self, port: int = 0) -> None:
        """Listens on the bus and for fetches."""
        self._began_ms = self.clock.now_ms
        await self._bus.make(f"scheduler{self.name}", f"creationAck{self.name}", "events")
        self._session = await self.etcd.open(f"scheduler{self.name}")
        self._server = await self._rpc.serve(self, port)
        for topic, handle in ((f"scheduler{self.name}", self.receive), (f"creationAck{self.name}", self._acknowledged)):
            self._tasks.keep(await self._bus.read(topic, topic, handle))
        for kind, changed in (
            ("queue/", self._leader_changed),
            ("namespace/", self._existing_changed),
            ("in-progress/", self._progress_changed),
            ("warmed/", self.creations.warmed_changed),
        ):
            self._tasks.keep(await self.etcd.watch(kind, changed))
        self.spawn(self._show())

    async def kill(self) -> None:
        """Dies in the middle: queues and fetches are lost, keys stay until the lease runs out.

        Raises:
            ExceptionGroup: something of what it did has failed.
        """
        session = await self._drop()
        await session.abandon()

    async def stop(self) -> None:
        """Ends: its keys go; `ExceptionGroup` as in `kill`."""
        if self._session is not None:
            session = await self._drop()
            await session.close()

    @property
    def port(self) -> int:
        """Where containers fetch."""
        assert self._server is not None
        return self._server.port

    # --- Queues -----------------------------------------------------------------------------------------------------

    async def create_queue(self, owner: Owner, about: Json) -> None:
        """The queue, unless it is there or being made, and its leader key."""
        key = fpc_wire.leader_key(owner)
        if self._key(owner) in self.queues or key in self._electing:
            return
        self._electing.add(key)
        try:
            if await self.session.create(key, self._leader):
                self._begin(owner, about)
        finally:
            self._electing.discard(key)

    @property
    def _leader(self) -> str:
        return fpc_wire.compact(fpc_wire.endpoints(HOST, self.port))

    def _begin(self, owner: Owner, about: Json) -> Queue:
        queue = self._open(owner, about)
        self.spawn(self.session.create(f"throttling/{owner.namespace}", "false"))
        self.session.write(f"throttling/{owner.base}", "false")
        return queue

    def _open(self, owner: Owner, about: Json) -> Queue:
        counts = self._counts.setdefault(owner.namespace, Counts())
        counts.queues += 1
        queue = self.queues[self._key(owner)] = Queue(self, owner, about, counts)
        self._leaders[owner.base] = owner.revision
        return queue

    def _close(self, queue: Queue) -> None:
        self.queues.pop(self._key(queue.owner), None)
        queue.counts.queues -= 1
        if not queue.counts.queues:
            self._counts.pop(queue.owner.namespace, None)

    @staticmethod
    def _key(owner: Owner) -> tuple[str, str, str | None]:
        return owner.namespace, owner.action, owner.revision

    # --- Calls ------------------------------------------------------------------------------------------------------

    def receive(self, call: Json) -> None:
        """A message from ``scheduler<name>``."""
        try:
            wire.check_call(call)
        except wire.DroppedError as dropped:
            self.dropped += 1
            self._log("WARN", "sid_unknown", "QueueManager", f"Failed to parse message to ActivationMessage, {dropped}")
            return
        if f"{call['action']['path']}/{call['action']['name']}" != fpc_wire.WARM_UP:
            self.spawn(self._deliver(call))

    async def _deliver(self, call: Json) -> None:
        """To its queue, which may be about to be made, of another revision, or have ended a moment ago.

        Then it is made again, if this scheduler has not heard that its leader key is gone. Else nobody makes one: the
        call looks for 8.2 s, and fails unless another one had a queue made meanwhile (`sendActivationByLeaderKey`).
        """
        owner = fpc_wire.owner_of_call(call)
        key = fpc_wire.leader_key(owner)
        for wait_s in (*_LOOKS_S, None):
            if queue := self._queue_for(owner):
                queue.offer(call | {"revision": queue.owner.revision})
                return
            if key not in self._electing and (key in self._routes or key in await self.etcd.read(key)):
                await self._recover(owner, call)
                return
            if wait_s is not None:
                await self.clock.sleep(wait_s)
        message = "The activation has not been processed: failed to get the queue endpoint."
        self._answer(call, "unknown", None, message, by={"asString": self.name})

    def _queue_for(self, owner: Owner) -> Queue | None:
        """Of its revision, or the newest: a call of a newer one brings that one's."""
        if (queue := self.queues.get(self._key(owner))) or owner.base not in self._leaders:
            return queue
        current = self._leaders[owner.base]
        if fpc_wire.number_of(owner.revision) > fpc_wire.number_of(current):
            return self._update(owner, owner.at(current))
        return self.queues[self._key(owner.at(current))]

    async def _recover(self, owner: Owner, call: Json) -> None:
        await self.clock.sleep(_LOOK_UP_S)
        queue = self._queue_for(owner) or self._begin(owner, self._about(owner))
        queue.offer(call | {"revision": queue.owner.revision})

    def _about(self, owner: Owner) -> Json:
        action = self._store.get(owner.action, owner.revision) or self._store.get(owner.action)
        assert action is not None
        return fpc_wire.metadata(action, action.updated_ms)

    def _update(self, owner: Owner, old: Owner) -> Queue:
        if queue := self.queues.get(self._key(old)):
            queue.outdate()
        return self._open(owner, self._about(owner))

    # --- Fetches ----------------------------------------------------------------------------------------------------

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        """See `Service.fetch`."""
        name, revision = json.loads(request.fqn), json.loads(request.rev)
        action = fpc_wire.full_name(name)
        if action == fpc_wire.WARM_UP:
            return fpc_wire.response(fpc_wire.NO_ACTIVATION)
        queue = self.queues.get((request.invocationNamespace, action, revision))
        if queue is None:
            known = any(key[:2] == (request.invocationNamespace, action) for key in self.queues)
            return fpc_wire.response(fpc_wire.MISMATCH if known else fpc_wire.NO_QUEUE)
        if name.get("version") != queue.owner.version:
            return fpc_wire.response(fpc_wire.MISMATCH)
        duration_ms = request.lastDuration.value if request.HasField("lastDuration") else None
        answer = await queue.fetch(
            request.containerId, warmed=request.warmed, duration_ms=duration_ms, alive=request.alive
        )
        return fpc_wire.response(answer)

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        """See `Service.reschedule`."""
        key = request.invocationNamespace, fpc_wire.full_name(json.loads(request.fqn)), json.loads(request.rev)
        call = json.loads(request.activationMessage)
        try:
            wire.check_call(call)
        except wire.DroppedError as dropped:
            raise ValueError(str(dropped)) from dropped
        if queue := self.queues.get(key):
            queue.offer(call)
        return RescheduleResponse(isRescheduled=queue is not None)

    # --- What queues ask for ----------------------------------------------------------------------------------------

    def limit(self, namespace: str) -> int:
        """See `Desk.limit`."""
        return int(self._store.limits.get(namespace, {}).get("concurrent", self._default_limit))

    def first_decision_s(self, action: str) -> float:
        """See `Desk.first_decision_s`."""
        return self.creations.draws.first_decision_s(action)

    def throttle(self, queue: Queue, *, on: bool) -> None:
        """See `Desk.throttle`."""
        self.session.write(f"throttling/{queue.owner.namespace}", str(on).lower())

    def fail(self, queue: Queue, call: Json, message: str, *, whisk: bool) -> None:
        """See `Desk.fail`."""
        if message == fpc_wire.TOO_MANY:
            event = wire.metric_event(
                f"scheduler{self.name}", call["user"], "ConcurrentRateLimit", 1, self.clock.now_ms
            )
            self._bus.send("events", event)
        about = queue.about
        self._answer(call, about["exec"]["kind"], about["limits"], message, status=3 if whisk else 2)

    def retire(self, queue: Queue) -> None:
        """See `Desk.retire`."""
        self._close(queue)
        self._leaders.pop(queue.owner.base, None)
        for key in (fpc_wire.leader_key(queue.owner), f"throttling/{queue.owner.namespace}"):
            self.session.remove(key)
        self.session.remove(f"throttling/{queue.owner.base}")

    def replace(self, queue: Queue) -> None:
        """See `Desk.replace`."""
        self._close(queue)
        self.spawn(self._delete_containers(queue.owner, queue.about))

    async def _delete_containers(self, owner: Owner, about: Json) -> None:
        """Orders to all invokers that have containers of the action up to that revision."""
        invokers = set()
        for kind in ("namespace", "warmed"):
            for key in await self.etcd.read(f"{kind}/{owner.base}/"):
                place, revision = key.split("/")[-3], key.removeprefix(f"{kind}/{owner.base}/").partition("/")[0]
                if fpc_wire.number_of(revision) <= fpc_wire.number_of(owner.revision):
                    invokers.add(place.removeprefix("invoker"))
        for invoker in sorted(invokers):
            self._bus.send(f"invoker{invoker}", fpc_wire.deletion(owner, about, self._began_ms))

    def _answer(
        self, call: Json, kind: str, limits: Json | None, message: str, status: int = 3, by: Json = fpc_wire.NOBODY
    ) -> None:
        """A record without a run, and its ack in somebody's name."""
        record = wire.fallback(call, kind, wire.Response(status, {"error": message}), self.clock.now_ms, limits)
        ack = fpc_wire.surrender(call, record, by)
        event = wire.activation_event(f"scheduler{self.name}", call["user"], record, self.clock.now_ms)
        self._bus.send("events", event)
        self._bus.send(f"completed{call['rootControllerIndex']['asString']}", ack)
        self._store.records[record["activationId"]] = record

    def order(self, queue: Queue, count: int) -> None:
        """See `Desk.order`."""
        self.creations.order(queue, count)

    def send_creation(self, queue: Queue, invoker: int, creation_id: str, retries: int) -> None:
        """The order for one container."""
        creation = fpc_wire.creation(
            queue.owner, queue.about, scheduler=self.name, host=HOST, port=self.port, creation_id=creation_id,
            began_ms=self._began_ms, retries=retries,
        )  # fmt: skip
        self._bus.send(f"invoker{invoker}", creation)

    def _acknowledged(self, ack: Json) -> None:
        try:
            creation_id, error, retries = ack["creationId"], ack.get("error"), ack["retryCount"]
        except KeyError as missing:
            self.dropped += 1
            self._log("ERROR", "sid_unknown", "CreationJobManager", f"failed processing message: {missing!r}")
            return
        self.creations.acknowledged(creation_id, error, ack.get("reason", "unknown reason"), retries)

    # --- What etcd tells --------------------------------------------------------------------------------------------

    def _leader_changed(self, key: str, value: str | None) -> None:
        """The way to a queue; one that is led here, and whose key somebody removed, has it written again."""
        (self._routes.discard if value is None else self._routes.add)(key)
        if value is None and any(fpc_wire.leader_key(queue.owner) == key for queue in self.queues.values()):
            self.spawn(self.session.create(key, self._leader))

    def _existing_changed(self, key: str, value: str | None) -> None:
        for queue in self._queues_of(key):
            queue.container_key(key.rpartition("/")[2], there=value is not None)
        self._count(key)

    def _progress_changed(self, key: str, value: str | None) -> None:
        for queue in self._queues_of(key):
            queue.creation_key(key.rpartition("/")[2], there=value is not None)
        self._count(key)

    def _queues_of(self, key: str) -> list[Queue]:
        _, _, rest = key.partition("/")
        return [
            queue
            for queue in self.queues.values()
            if rest.startswith(f"{queue.owner.base}/{queue.owner.revision or 'null'}/")
        ]

    def _count(self, key: str) -> None:
        namespace = key.split("/")[1]
        if namespace in self._counts:
            self.spawn(self._recount(namespace))

    async def _recount(self, namespace: str) -> None:
        existing = len(await self.etcd.read(f"namespace/{namespace}/"))
        in_progress = len(await self.etcd.read(f"in-progress/{namespace}/"))
        if counts := self._counts.get(namespace):
            counts.existing, counts.in_progress = existing, in_progress
            for queue in self.queues.values():
                if queue.owner.namespace == namespace:
                    queue.counted()

    async def _show(self) -> None:
        """How many queues it leads, whenever that changed, each second at most."""
        shown = -1
        for at_ms in itertools.count(self.clock.now_ms + 1000, 1000):
            await self.clock.sleep_until(at_ms)
            if len(self.queues) != shown:
                shown = len(self.queues)
                state = {"sid": {"asString": self.name}, "queueSize": shown}
                state["endpoints"] = fpc_wire.endpoints(HOST, self.port)
                self.session.write(f"scheduler/{self.name}", fpc_wire.compact(state))

    # --- Tasks ------------------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """Its keys."""
        assert self._session is not None
        return self._session

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """See `Desk.spawn`."""
        self._tasks.spawn(coroutine)

    async def _drop(self) -> Session:
        session, self._session = self.session, None
        try:
            await self._tasks.end(f"scheduler{self.name}")
        finally:
            if self._server is not None:
                await self._server.stop()
            for forget in (self.queues.clear, self._leaders.clear, self._counts.clear, self._routes.clear):
                forget()
            self.creations.forget()
        return session

    def _log(self, level: str, transid: str, source: str, message: str) -> None:
        self._recording.log(f"scheduler{self.name}", level, transid, source, message)
