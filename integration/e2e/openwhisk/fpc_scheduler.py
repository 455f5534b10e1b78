"""The scheduler of a deployment with FPC: queues, their containers, and the ActivationService that these fetch from.

A controller has a queue made (in the real one by a message between actors, here by `create_queue`) and sends calls to
``scheduler<id>`` at the same time; a call that comes before its queue waits for it. Where containers are missing, one
that is paused is taken, wherever it is (``warmed`` keys); else an invoker with memory is drawn by lot. The order goes to
``invokerN``, an ``in-progress`` key stands until its ack comes on ``creationAck<id>``; failed ones are tried again.

Source: QueueManager.scala, ContainerManager.scala, CreationJobManager.scala, ContainerCounter.scala and
ActivationServiceImpl.scala of apache/openwhisk. Not modelled: several schedulers, and what operators may ask it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import uuid
from typing import TYPE_CHECKING, Any, Final

from e2e.openwhisk import fpc_wire, wire
from e2e.openwhisk.fpc_queue import Counts, Queue
from e2e.openwhisk.rpc import HOST
from mesp.openwhisk.activation_service_pb2 import FetchRequest, FetchResponse, RescheduleRequest, RescheduleResponse

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.etcd import Etcd, Session
    from e2e.openwhisk.fpc_wire import Owner
    from e2e.openwhisk.model import Json, Store
    from e2e.openwhisk.recording import Recording
    from e2e.openwhisk.rpc import Rpc, Server

#: Of queues that miss their first look (13 of 45 in the golden traces), and when the first and the second decision are.
LATE, FIRST_S, SECOND_S = 0.3, 0.010, 0.115
#: Until an ack that has arrived is read.
_ACK_S: Final = 0.030
_RETRIES: Final = 5
_IN_PROGRESS_S: Final = 20.0
#: A call that waits for its queue looks so often, each time after twice as long.
_LOOKS: Final = 13
_TOO_OLD_MS: Final = 20_000


class Draws:
    """What a scheduler leaves to chance; actions by their full name."""

    def __init__(self, randomness: random.Random) -> None:
        self._randomness = randomness

    def invoker(self, action: str, numbers: list[int]) -> int:  # noqa: ARG002 (others look at the action)
        """One of those that have room."""
        return self._randomness.choice(numbers)

    def creation_id(self, action: str) -> str:  # noqa: ARG002 (as above)
        """A UUID without dashes."""
        return uuid.UUID(int=self._randomness.getrandbits(128), version=4).hex

    def first_decision_s(self, action: str) -> float:  # noqa: ARG002 (as above)
        """From a queue's birth to its first decision."""
        return SECOND_S if self._randomness.random() < LATE else FIRST_S


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
        self._bus, self._store, self._recording, self._draws = bus, store, recording, draws
        self._etcd, self._rpc, self._default_limit = etcd, rpc, default_limit
        self._began_ms = 0
        self._server: Server | None = None
        self._session: Session | None = None
        self._leaders: dict[str, str | None] = {}
        self._electing: set[str] = set()
        self._counts: dict[str, Counts] = {}
        self._warmed: dict[str, None] = {}
        self._taken: dict[str, str] = {}
        self._jobs: dict[str, Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []

    async def start(self, port: int = 0) -> None:
        """Listens on the bus and for fetches."""
        self._began_ms = self.clock.now_ms
        await self._bus.make(f"scheduler{self.name}", f"creationAck{self.name}", "events")
        self._session = await self._etcd.open(f"scheduler{self.name}")
        self._server = await self._rpc.serve(self, port)
        for topic, handle in ((f"scheduler{self.name}", self._take), (f"creationAck{self.name}", self._acknowledged)):
            self._keep(await self._bus.read(topic, topic, handle))
        for kind, changed in (
            ("namespace/", self._existing_changed),
            ("in-progress/", self._progress_changed),
            ("warmed/", self._warmed_changed),
        ):
            self._keep(await self._etcd.watch(kind, changed))
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
            leader = fpc_wire.compact(fpc_wire.endpoints(HOST, self.port))
            if await self.session.create(key, leader):
                self._open(owner, about)
                self.spawn(self._create_once(f"throttling/{owner.namespace}", "false"))
                self.session.write(f"throttling/{owner.base}", "false")
        finally:
            self._electing.discard(key)

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

    async def _create_once(self, key: str, value: str) -> None:
        await self.session.create(key, value)

    @staticmethod
    def _key(owner: Owner) -> tuple[str, str, str | None]:
        return owner.namespace, owner.action, owner.revision

    # --- Calls ------------------------------------------------------------------------------------------------------

    def _take(self, call: Json) -> None:
        try:
            wire.check_call(call)
        except wire.DroppedError as dropped:
            self.dropped += 1
            self._log("WARN", "sid_unknown", "QueueManager", f"Failed to parse message to ActivationMessage, {dropped}")
            return
        if f"{call['action']['path']}/{call['action']['name']}" != fpc_wire.WARM_UP:
            self.spawn(self._deliver(call))

    async def _deliver(self, call: Json) -> None:
        """To its queue, which may be about to be made, or of another revision."""
        owner = _owner_of_call(call)
        for look in range(_LOOKS + 1):
            if queue := self.queues.get(self._key(owner)):
                queue.offer(call)
                return
            if owner.base in self._leaders:
                current = self._leaders[owner.base]
                if fpc_wire.number_of(owner.revision) > fpc_wire.number_of(current):
                    queue = self._update(owner, owner.at(current))
                else:
                    queue = self.queues[self._key(owner.at(current))]
                queue.offer(call | {"revision": queue.owner.revision})
                return
            await self._etcd.read(fpc_wire.leader_key(owner))
            await self.clock.sleep(0.001 * 2**look)
        self._answer(call, "unknown", None, "The activation has not been processed: failed to get the queue endpoint.")

    def _update(self, owner: Owner, old: Owner) -> Queue:
        if queue := self.queues.get(self._key(old)):
            queue.outdate()
        action = self._store.get(owner.action, owner.revision) or self._store.get(owner.action)
        assert action is not None
        return self._open(owner, fpc_wire.metadata(action, action.updated_ms))

    # --- Fetches ----------------------------------------------------------------------------------------------------

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        """See `Service.fetch`."""
        name, revision = json.loads(request.fqn), json.loads(request.rev)
        action = _full_name(name)
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
        key = request.invocationNamespace, _full_name(json.loads(request.fqn)), json.loads(request.rev)
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
        return self._draws.first_decision_s(action)

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
            for key in await self._etcd.read(f"{kind}/{owner.base}/"):
                place, revision = key.split("/")[-3], key.removeprefix(f"{kind}/{owner.base}/").partition("/")[0]
                if fpc_wire.number_of(revision) <= fpc_wire.number_of(owner.revision):
                    invokers.add(place.removeprefix("invoker"))
        for invoker in sorted(invokers):
            self._bus.send(f"invoker{invoker}", fpc_wire.deletion(owner, about, self._began_ms))

    def _answer(self, call: Json, kind: str, limits: Json | None, message: str, status: int = 3) -> None:
        """A record without a run, and its ack in the name of an invoker that does not exist."""
        record = wire.fallback(call, kind, wire.Response(status, {"error": message}), self.clock.now_ms, limits)
        nobody, failed = wire.instance(0, 0) | {"userMemory": "0 MB"}, status == 3
        if call["blocking"]:
            ack = wire.combined(call["transid"], record, nobody, system_error=failed)
        else:
            ack = wire.completion(call["transid"], call["activationId"], nobody, system_error=failed)
        event = wire.activation_event(f"scheduler{self.name}", call["user"], record, self.clock.now_ms)
        self._bus.send("events", event)
        self._bus.send(f"completed{call['rootControllerIndex']['asString']}", ack)
        self._store.records[record["activationId"]] = record

    # --- Containers -------------------------------------------------------------------------------------------------

    def order(self, queue: Queue, count: int) -> None:
        """See `Desk.order`."""
        for _ in range(count):
            creation_id = self._draws.creation_id(queue.owner.action)
            queue.creations.add(creation_id)
            self.spawn(self._order(queue, creation_id, retries=0))

    async def _order(self, queue: Queue, creation_id: str, *, retries: int) -> None:
        found = await self._etcd.read("invokers/")
        free_mb = {int(key.split("/")[1]): int(json.loads(value)["freeMemory"]) for key, value in found.items()}
        needed_mb = queue.about["limits"]["memory"]
        usable = [number for number, free in free_mb.items() if free >= needed_mb]
        invoker = self._paused(queue, creation_id, usable)
        if invoker is None:
            managed = list(free_mb)[: max(1, math.ceil(len(free_mb) * 0.9))]
            if not (candidates := [number for number in managed if number in usable]):
                queue.failed(creation_id, "NoAvailableInvokersError", "NoAvailableInvokersError")
                return
            invoker = self._draws.invoker(queue.owner.action, candidates)
        if creation_id not in self._jobs:
            self._jobs[creation_id] = queue
            self.session.write(fpc_wire.progress_key(queue.owner, self.name, creation_id))
            self.spawn(self._expire(creation_id))
        creation = fpc_wire.creation(
            queue.owner, queue.about, scheduler=self.name, host=HOST, port=self.port, creation_id=creation_id,
            began_ms=self._began_ms, retries=retries,
        )  # fmt: skip
        self._bus.send(f"invoker{invoker}", creation)

    def _paused(self, queue: Queue, creation_id: str, usable: list[int]) -> int | None:
        """The invoker of a paused container that nobody else is about to take."""
        mine = f"warmed/{queue.owner.base}/{queue.owner.revision or 'null'}/"
        free = {
            key: int(key.split("/")[-3])
            for key in self._warmed
            if key.startswith(mine) and key not in self._taken.values() and int(key.split("/")[-3]) in usable
        }
        if not free:
            return None
        number = self._draws.invoker(queue.owner.action, list(free.values()))
        self._taken[creation_id] = next(key for key, invoker in free.items() if invoker == number)
        return number

    async def _expire(self, creation_id: str) -> None:
        await self.clock.sleep(_IN_PROGRESS_S)
        if queue := self._finish(creation_id):
            queue.failed(creation_id, "TimeoutError", "timeout waiting for the ack of the creation")

    def _acknowledged(self, ack: Json) -> None:
        try:
            creation_id, error, retries = ack["creationId"], ack.get("error"), ack["retryCount"]
        except KeyError as missing:
            self.dropped += 1
            self._log("ERROR", "sid_unknown", "CreationJobManager", f"failed processing message: {missing!r}")
            return
        if error is None:
            self.spawn(self._succeed(creation_id))
        elif error in fpc_wire.RETRYABLE and retries < _RETRIES:
            if queue := self._jobs.get(creation_id):
                self._taken.pop(creation_id, None)
                self.spawn(self._again(queue, creation_id, retries))
        elif queue := self._finish(creation_id):
            queue.failed(creation_id, error, ack.get("reason", "unknown reason"))

    async def _succeed(self, creation_id: str) -> None:
        await self.clock.sleep(_ACK_S)
        if queue := self._finish(creation_id):
            queue.created(creation_id)

    async def _again(self, queue: Queue, creation_id: str, retries: int) -> None:
        await self.clock.sleep(0.1 * 2**retries)
        await self._order(queue, creation_id, retries=retries + 1)

    def _finish(self, creation_id: str) -> Queue | None:
        self._taken.pop(creation_id, None)
        queue = self._jobs.pop(creation_id, None)
        if queue is not None:
            self.session.remove(fpc_wire.progress_key(queue.owner, self.name, creation_id))
        return queue

    # --- What etcd tells --------------------------------------------------------------------------------------------

    def _existing_changed(self, key: str, value: str | None) -> None:
        for queue in self._queues_of(key):
            queue.container_key(key.rpartition("/")[2], there=value is not None)
        self._count(key)

    def _progress_changed(self, key: str, value: str | None) -> None:
        for queue in self._queues_of(key):
            queue.creation_key(key.rpartition("/")[2], there=value is not None)
        self._count(key)

    def _warmed_changed(self, key: str, value: str | None) -> None:
        if value is None:
            self._warmed.pop(key, None)
        else:
            self._warmed[key] = None

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
        existing = len(await self._etcd.read(f"namespace/{namespace}/"))
        in_progress = len(await self._etcd.read(f"in-progress/{namespace}/"))
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

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """See `Desk.spawn`."""
        self._keep(asyncio.create_task(coroutine))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._errors.append(error)

    async def _drop(self) -> Session:
        session, self._session = self.session, None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()
        for known in (self.queues, self._leaders, self._counts, self._warmed, self._taken, self._jobs):
            known.clear()
        if self._errors:
            raise ExceptionGroup(f"scheduler{self.name} failed", [e for e in self._errors if isinstance(e, Exception)])
        return session

    def _log(self, level: str, transid: str, source: str, message: str) -> None:
        self._recording.log(f"scheduler{self.name}", level, transid, source, message)


def _full_name(name: Any) -> str:
    if not (isinstance(name, dict) and isinstance(name.get("path"), str) and isinstance(name.get("name"), str)):
        raise ValueError("fully qualified entity name malformed")  # noqa: TRY004 (as whatever cannot be read)
    return f"{name['path']}/{name['name']}"


def _owner_of_call(call: Json) -> Owner:
    name = call["action"]
    return fpc_wire.Owner(
        call["user"]["namespace"]["name"], _full_name(name), name.get("version", "0.0.1"), call["revision"]
    )
