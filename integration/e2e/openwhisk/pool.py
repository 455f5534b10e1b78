"""An invoker's containers: which one takes a call, who must go for it, and how long the idle ones stay.

A call looks for a container of its own action and revision that is initialised (``warmed``), for one that is being
made and takes several calls at once (``warming``), for a stem cell of its kind and size (``prewarmed``), for room for
a new one (``cold``), and at last for idle containers that can go, the longest unused first (``recreated``). One that
finds nothing waits in a buffer which is served strictly in order: all who come later wait behind it, even those whose
own container gets free. A container rests 10 s ready, is paused, and 10 minutes after the pause it is removed.

Source: ContainerPool.scala and ContainerProxy.scala of apache/openwhisk (classic). Not modelled: the feed's limit on
messages taken at once, and stem cells that come and go with demand.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from e2e.openwhisk.containers import Answer, Container, Containers, Order, container_name

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.model import Action, Json


#: So many idle containers the real pool's map keeps in the order in which they became idle, and hands out the first;
#: from the next one on their order is that of hashes, whatever their number becomes.
_IN_ORDER = 4


@dataclass(frozen=True)
class StemCells:
    """Containers of a kind and size kept ready for whichever action needs them first."""

    kind: str = "nodejs:20"
    memory_mb: int = 256
    count: int = 1


@dataclass(frozen=True)
class PoolSettings:
    """What an invoker is configured with: `user_memory`, `pause-grace`, `idle-container`, stem cells."""

    memory_mb: int = 2048
    pause_grace_s: float = 10.0
    idle_container_s: float = 600.0
    stem_cells: tuple[StemCells, ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """A call and the action that it runs."""

    call: Json
    action: Action

    @property
    def key(self) -> tuple[str, str, str]:
        """Whose container it may use: of the same namespace, action and revision."""
        return self.call["user"]["namespace"]["name"], self.action.full_name, self.action.revision


@dataclass(frozen=True)
class Init:
    """How /init went."""

    start_ms: int
    end_ms: int
    answer: Answer


class Work(Protocol):
    """What the invoker does for its pool."""

    async def initialise(self, run: Run, container: Container) -> Init:
        """/init with what the call brings."""

    async def serve(self, run: Run, container: Container, init: Init | None) -> str:
        """/run and the answers: ``kept``, ``broken`` (the container goes) or ``refused`` (503: elsewhere, please)."""

    def started(self, run: Run, state: str, container: Container | None, active: int) -> None:
        """A call got its container."""

    def waits(self, run: Run, pool: Pool) -> None:
        """A call found none."""


@dataclass(eq=False)
class _Place:
    """A container in the pool, from the order on."""

    order: Order
    key: tuple[str, str, str] | None = None
    concurrency: int = 1
    active: int = 0
    last_used_ms: int = 0
    initialised: bool = False
    paused: bool = False
    container: Container | None = None
    made: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    rest: asyncio.Task[None] | None = None

    @property
    def has_capacity(self) -> bool:
        return self.active < self.concurrency


class Pool:
    """The containers of one invoker."""

    def __init__(self, invoker: int, settings: PoolSettings, engine: Containers, clock: Clock, work: Work) -> None:
        self.settings = settings
        self.buffer: deque[Run] = deque()
        self._invoker, self._engine, self._clock, self._work = invoker, engine, clock, work
        self._numbers = itertools.count(1)
        self._idle: list[_Place] = []
        self._busy: list[_Place] = []
        self._mixed = False
        self._stem: list[_Place] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        for cells in settings.stem_cells:
            for _ in range(cells.count):
                self._make_stem_cell(cells.kind, cells.memory_mb)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(containers, MB) that are idle and busy."""
        return {
            name: (len(places), sum(place.order.memory_mb for place in places))
            for name, places in (("free", self._idle), ("busy", self._busy))
        }

    def submit(self, run: Run) -> None:
        """Takes a call, now or, behind those who wait, later."""
        if self.buffer or not self._place(run):
            self.buffer.append(run)

    async def stop(self) -> None:
        """Drops everything it does; its containers stay where they are.

        Raises:
            ExceptionGroup: something of what it did has failed.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._errors:
            raise ExceptionGroup("the pool failed", self._errors)

    # --- Which container --------------------------------------------------------------------------------------------

    def _place(self, run: Run) -> bool:
        found = self._warm(run) or self._stem_cell(run, "prewarmed") or self._cold(run) or self._recreated(run)
        if found is None:
            self._work.waits(run, self)
            return False
        place, state = found
        place.key, place.concurrency = run.key, run.action.concurrency
        place.active += 1
        place.last_used_ms = self._clock.now_ms
        self._file(place)
        self._work.started(run, state, place.container if place.initialised else None, place.active)
        self._spawn(self._serve(place, run, retry=state == "warmed"))
        return True

    def _warm(self, run: Run) -> tuple[_Place, str] | None:
        mine = [place for place in self._idle if place.key == run.key and place.has_capacity]
        if self._mixed:
            mine.sort(key=lambda place: zlib.crc32(place.order.name.encode()))
        for place in sorted(mine, key=lambda place: not place.initialised):
            return place, "warmed" if place.initialised else "warming" if place.container else "warmingCold"
        return None

    def _stem_cell(self, run: Run, state: str) -> tuple[_Place, str] | None:
        wanted = run.action.kind, run.action.memory_mb
        for place in self._stem:
            if place.container and (place.order.kind, place.order.memory_mb) == wanted:
                self._stem.remove(place)
                self._make_stem_cell(*wanted)
                return place, state
        return None

    def _cold(self, run: Run) -> tuple[_Place, str] | None:
        return (self._new(run), "cold") if self._has_room(run.action.memory_mb) else None

    def _recreated(self, run: Run) -> tuple[_Place, str] | None:
        # As much as the idle ones can free, even if that is not enough: the real pool overcommits, too.
        needed_mb = min(run.action.memory_mb, sum(place.order.memory_mb for place in self._idle))
        unused = deque(
            sorted((place for place in self._idle if not place.active), key=lambda place: place.last_used_ms)
        )
        gone: list[_Place] = []
        while unused and 0 < needed_mb <= sum(place.order.memory_mb for place in unused):
            gone.append(unused.popleft())
            needed_mb -= gone[-1].order.memory_mb
        if not gone:
            return None
        for place in gone:
            self._remove(place)
        return self._stem_cell(run, "recreatedPrewarm") or (self._new(run), "recreated")

    def _has_room(self, memory_mb: int) -> bool:
        taken_mb = sum(place.order.memory_mb for place in (*self._idle, *self._busy, *self._stem))
        return taken_mb + memory_mb <= self.settings.memory_mb

    def _new(self, run: Run) -> _Place:
        action, namespace = run.action, run.call["user"]["namespace"]["name"]
        name = container_name(self._invoker, next(self._numbers), namespace, action.own_name)
        place = _Place(Order(name, action.kind, action.memory_mb, action, run.call["activationId"]))
        self._spawn(self._make(place))
        return place

    def _make_stem_cell(self, kind: str, memory_mb: int) -> None:
        if self._has_room(memory_mb):
            name = container_name(self._invoker, next(self._numbers), "prewarm", kind)
            place = _Place(Order(name, kind, memory_mb))
            self._stem.append(place)
            self._spawn(self._make(place))

    # --- A container's life -----------------------------------------------------------------------------------------

    async def _make(self, place: _Place) -> None:
        place.container = await self._engine.create(place.order)
        place.made.set()

    async def _serve(self, place: _Place, run: Run, *, retry: bool) -> None:
        await place.made.wait()
        container = place.container
        assert container is not None
        init: Init | None = None
        async with place.turn:  # after a pause that has begun, and one /init at most
            if place.paused:
                await container.unpause()
                place.paused = False
            if not place.initialised:
                init = await self._work.initialise(run, container)
                place.initialised = True
        ending = await self._work.serve(run, container, init)
        place.active -= 1
        if ending == "kept":
            self._file(place)
            if place.active == 0:
                place.rest = self._spawn(self._rest(place))
            self._drain()
            return
        self._remove(place)
        if ending == "refused" and retry:
            self.submit(run)
        else:
            self._drain()

    async def _rest(self, place: _Place) -> None:
        used_ms = place.last_used_ms
        await self._clock.sleep(self.settings.pause_grace_s)
        async with place.turn:
            if place.last_used_ms != used_ms or place not in self._idle or place.container is None:
                return
            await place.container.pause()
            place.paused = True
        await self._clock.sleep(self.settings.idle_container_s)
        if place.last_used_ms == used_ms and place in self._idle:
            self._remove(place)

    def _remove(self, place: _Place) -> None:
        """Its memory is free at once; the container goes when it can."""
        if place.rest and not place.turn.locked():
            place.rest.cancel()
        for places in (self._idle, self._busy):
            if place in places:
                places.remove(place)
        self._spawn(self._destroy(place))

    async def _destroy(self, place: _Place) -> None:
        await place.made.wait()
        async with place.turn:
            assert place.container is not None
            if place.paused:
                await place.container.unpause()
            await place.container.destroy()

    # --- Book-keeping -----------------------------------------------------------------------------------------------

    def _file(self, place: _Place) -> None:
        """Puts the container where its number of calls says."""
        if place.rest and place.active and not place.turn.locked():
            place.rest.cancel()
        for places in (self._idle, self._busy):
            if place in places:
                places.remove(place)
        (self._idle if place.has_capacity else self._busy).append(place)
        self._mixed |= len(self._idle) > _IN_ORDER

    def _drain(self) -> None:
        while self.buffer and self._place(self.buffer[0]):
            self.buffer.popleft()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._errors.append(error)
