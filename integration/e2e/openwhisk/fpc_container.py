"""One container with FPC: it fetches its calls itself, from whichever address its creation message named.

Made, it asks for its first call; /init comes with that. After each run it asks for the next. `NoActivationMessage` lets
it ask again, until 10 s after its last run (or, before the first, after it came up): then it pauses, or, never
initialised, it is destroyed. `NoMemoryQueue`, and a server that does not answer, move it to the queue's leader in etcd;
without one it is destroyed, as it is by everything that it does not understand. Paused, it waits for the next creation
message of its action and revision, 10 minutes at most, or longer where the namespace's limits document says so.

Moved, it still counts as connected to the address of its creation message: a later one with that same address does
not make it connect again (`ActivationClientProxy.createActivationClient`). Not modelled: several calls at once.

Source: FunctionPullingContainerProxy.scala and ActivationClientProxy.scala of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import json
import string
from typing import TYPE_CHECKING, Final, Protocol

from e2e.openwhisk import fpc_wire, wire
from e2e.openwhisk.pool import Init, Run
from e2e.openwhisk.rpc import RpcError
from mesp.openwhisk.activation_service_pb2 import FetchRequest, RescheduleRequest

if TYPE_CHECKING:
    import random

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.containers import Container, Containers, Order
    from e2e.openwhisk.etcd import Etcd, Session
    from e2e.openwhisk.fpc_wire import Owner
    from e2e.openwhisk.model import Json, Store
    from e2e.openwhisk.pool import PoolSettings
    from e2e.openwhisk.rpc import Channel, Rpc

#: From a container that is there to its first fetch, and from a resumed one to its ack.
_READY_S: Final = 0.010
#: A stem cell's way to the same; the recorded ones took 65 to 272 ms to their first fetch.
_STEM_READY_S: Final = 0.050


class Home(Protocol):
    """What its invoker does for a container."""

    number: int
    clock: Clock
    store: Store
    engine: Containers
    etcd: Etcd
    session: Session
    rpc: Rpc
    settings: PoolSettings
    randomness: random.Random

    async def initialise(self, run: Run, container: Container) -> Init:
        """/init with what the call brings."""

    async def finish(self, run: Run, container: Container, init: Init | None) -> tuple[str, int]:
        """/run and the answers: ``kept``, ``broken`` or ``refused``, and the duration in ms."""

    def refuse(self, call: Json, kind: str, response: wire.Response) -> None:
        """The call will not be run."""

    def up(self, place: Pulling) -> None:
        """It is about to fetch: the creation succeeded."""

    def removed(self, place: Pulling) -> None:
        """It goes."""


class Pulling:
    """A container from its order to its end; `creation` is what it was last wanted for, None for a stem cell.

    Attributes:
        state: ``starting`` and ``stem`` (a stem cell), ``in-progress``, ``busy``, ``paused``, ``gone``.
        revision: that of the call which initialised it.
        waits: for a call, busy as it may count.
    """

    def __init__(self, home: Home, order: Order, creation: Json | None) -> None:
        self.order, self.creation = order, creation
        self.state = "starting" if creation is None else "in-progress"
        self.revision: str | None = None
        self.last_used_ms = 0
        self.waits = False
        self._home, self._clock = home, home.clock
        self._orders: asyncio.Queue[Json | None] = asyncio.Queue()
        self._owner: Owner | None = None
        self._container: Container | None = None
        self._channel: Channel | None = None
        self._address = ("", 0)
        self._initialised = False
        self._leaving = False
        self._farewells = 1

    def use(self, creation: Json) -> None:
        """Wanted: a stem cell becomes the action's, a paused one resumes."""
        self.creation, self.state = creation, "in-progress"
        self._orders.put_nowait(creation)

    def leave(self) -> None:
        """Goes: at once where it is paused, else after what it does."""
        self._leaving = True
        if self.state in {"paused", "stem"}:
            self._orders.put_nowait(None)
        elif self._initialised:
            self._forget()

    async def live(self) -> None:
        """All its life."""
        self._container = await self._home.engine.create(self.order)
        if self.creation is None:
            self.state = "stem"
            if await self._orders.get() is None:
                await self._end()
                return
            await self._clock.sleep(_STEM_READY_S)
        assert self.creation is not None
        self._owner = fpc_wire.owner_of(self.creation)
        await self._clock.sleep(_READY_S)
        self._connect()
        self._come_up()
        while await self._serve() and await self._rest():
            pass
        await self._end()

    def belongs(self, namespace: str, full_name: str) -> bool:
        """Whether it is of that action."""
        return self._owner is not None and (self._owner.namespace, self._owner.action) == (namespace, full_name)

    # --- Busy -------------------------------------------------------------------------------------------------------

    def _come_up(self) -> None:
        self.state = "busy"
        self._home.session.write(self._existing_key)
        self._home.up(self)

    async def _serve(self) -> bool:
        """Fetches and runs; whether it was paused then."""
        grace_ms = self._home.settings.pause_grace_s * 1000
        idle_from_ms: float = self._clock.now_ms
        duration_ms: int | None = None
        while True:
            self.waits = True
            message = await self._fetch(duration_ms)
            self.waits, duration_ms = False, None
            if message is None:
                return False
            if message != fpc_wire.NO_ACTIVATION:
                duration_ms = await self._run(message)
                if duration_ms is None:
                    return False
                idle_from_ms = self._clock.now_ms
            if self._leaving and self._initialised:
                return False
            if message == fpc_wire.NO_ACTIVATION and self._clock.now_ms - idle_from_ms >= grace_ms:
                return self._initialised and await self._pause()

    async def _fetch(self, duration_ms: int | None) -> Json | None:
        """A call, or `NO_ACTIVATION`; None where there will be none."""
        assert self._channel is not None
        while True:
            try:
                message = fpc_wire.read_response(await self._channel.fetch(self._request(duration_ms)))
            except fpc_wire.UnreadableError:
                return fpc_wire.NO_ACTIVATION
            except RpcError:
                message = fpc_wire.NO_QUEUE
            except wire.DroppedError:
                self._farewells = 2  # the client's own and the container's
                return None
            if message == fpc_wire.MISMATCH:
                self._farewells = 0
                return None
            if message != fpc_wire.NO_QUEUE:
                return message
            if (self._leaving and self._initialised) or not await self._move():
                self._farewells = int(self._leaving)
                return None
            duration_ms = None

    async def _move(self) -> bool:
        """To the leader of the action's queue, if there is one."""
        assert self._owner is not None
        assert self._channel is not None
        await self._channel.close()
        found = await self._home.etcd.read(key := fpc_wire.leader_key(self._owner))
        if key not in found:
            return False
        leader = json.loads(found[key])
        self._channel = self._home.rpc.connect(leader["host"], leader["rpcPort"])
        return True

    async def _run(self, call: Json) -> int | None:
        """How long the run took, ms; None where the container does not survive it."""
        assert self._container is not None
        assert self._channel is not None
        name, revision = f"{call['action']['path']}/{call['action']['name']}", call["revision"]
        action = self._home.store.get(name, revision)
        if action is None:
            action, revision = self._home.store.get(name), None  # updated since: the newest
        if action is None:
            self._home.refuse(call, self.order.kind, wire.Response(1, {"error": wire.NOT_FOUND}))
            return None
        run = Run(call, action)
        init: Init | None = None
        if not self._initialised:
            init = await self._home.initialise(run, self._container)
            self._initialised, self.revision = init.answer.status == 200, revision
            if self._leaving:
                self._forget()
        self.last_used_ms = self._clock.now_ms
        verdict, duration_ms = await self._home.finish(run, self._container, init)
        if verdict == "refused":
            await self._give_back(call)
        return duration_ms if verdict == "kept" else None

    async def _give_back(self, call: Json) -> None:
        assert self._channel is not None
        request = self._request(None)
        again = RescheduleRequest(
            invocationNamespace=request.invocationNamespace,
            fqn=request.fqn,
            rev=request.rev,
            activationMessage=json.dumps(call),
        )
        try:
            taken = (await self._channel.reschedule(again)).isRescheduled
        except RpcError:
            taken = False
        if not taken:
            self._home.refuse(call, self.order.kind, wire.Response(3, {"error": wire.NO_RESPONSE}))

    # --- Paused -----------------------------------------------------------------------------------------------------

    async def _pause(self) -> bool:
        assert self._container is not None
        await self._container.pause()
        self.state = "paused"
        self._home.session.write(self._warmed_key)
        self._home.session.remove(self._existing_key)
        return True

    async def _rest(self) -> bool:
        """Whether it was resumed."""
        assert self._container is not None
        got, creation = await self._order_within(self._home.settings.idle_container_s)
        if not got and (keeping_s := await self._keeping_s()):
            got, creation = await self._order_within(keeping_s)
        if not got and not self._orders.empty():  # it came in the very last moment
            creation = self._orders.get_nowait()
        self._home.session.remove(self._warmed_key)
        if creation is None:
            return False
        await self._container.unpause()
        await self._clock.sleep(_READY_S)
        self._come_up()
        if self._address != (creation["schedulerHost"], creation["rpcPort"]):
            assert self._channel is not None
            await self._channel.close()
            self._connect()
        return True

    async def _order_within(self, seconds: float) -> tuple[bool, Json | None]:
        order = asyncio.ensure_future(self._orders.get())
        limit = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({order, limit}, return_when=asyncio.FIRST_COMPLETED)
            return (True, order.result()) if order.done() else (False, None)
        finally:
            order.cancel()
            limit.cancel()

    async def _keeping_s(self) -> float:
        """How much longer it stays: it must be among the few of its action that the namespace may keep."""
        assert self._owner is not None
        limits = self._home.store.limits.get(self._owner.namespace, {})
        count = 0
        for kind in ("namespace", "in-progress", "warmed"):
            count += len(await self._home.etcd.read(f"{kind}/{self._owner.base}/{self.revision or 'null'}/"))
        return float(limits.get("keeping_s", 0)) if count <= limits.get("keeping_count", 0) else 0.0

    # --- Gone -------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._home.session.remove(self._existing_key)

    async def _end(self) -> None:
        was_paused, self.state = self.state == "paused", "gone"
        self._home.removed(self)
        if self._owner is not None:
            self._forget()
        await asyncio.gather(self._say_farewell(), self._destroy(was_paused=was_paused))

    async def _say_farewell(self) -> None:
        if self._channel is None:
            return
        for _ in range(self._farewells):
            try:
                await self._channel.fetch(self._request(None, alive=False))
            except RpcError:
                break
        await self._channel.close()

    async def _destroy(self, *, was_paused: bool) -> None:
        assert self._container is not None
        if was_paused:
            await self._container.unpause()
        await self._container.destroy()

    # --- Small things -----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        assert self.creation is not None
        self._address = (self.creation["schedulerHost"], self.creation["rpcPort"])
        self._channel = self._home.rpc.connect(*self._address)

    def _request(self, duration_ms: int | None, *, alive: bool = True) -> FetchRequest:
        assert self._owner is not None
        assert self._container is not None
        letters = self._home.randomness.choices(string.ascii_letters + string.digits, k=32)
        request = FetchRequest(
            transactionId=fpc_wire.compact(["".join(letters), self._clock.now_ms]),
            invocationNamespace=self._owner.namespace,
            fqn=fpc_wire.compact(self._owner.name()),
            rev=json.dumps(self._owner.revision),
            containerId=self._container.id,
            warmed=self._initialised,
            alive=alive,
        )
        if duration_ms is not None:
            request.lastDuration.value = duration_ms
        return request

    @property
    def _existing_key(self) -> str:
        assert self._owner is not None
        assert self._container is not None
        return fpc_wire.existing_key(self._owner, self._home.number, self._container.id)

    @property
    def _warmed_key(self) -> str:
        assert self._owner is not None
        assert self._container is not None
        return fpc_wire.warmed_key(self._owner.at(self.revision), self._home.number, self._container.id)
