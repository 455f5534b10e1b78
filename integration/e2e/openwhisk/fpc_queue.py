"""One queue of the scheduler: the calls of one revision of an action for one namespace, and how many containers they need.

Calls wait for containers' fetches, and fetches for calls, one second at most; initialised containers come first. Each
tenth of a second in which something changed or a call waits, `_decide` looks whether containers are missing. It counts
as existing those whose key it saw appear or who fetched from it, so one that somebody else made is unknown to it until it
fetches: a new queue, which always orders one container, then has one more than it needs (the surplus).

At the namespace's limit the queue is throttled: controllers refuse calls of actions that have no queue, and calls of one
without containers fail. Without calls and containers for 20 s it is idle, and gone 20 s later.

Source: MemoryQueue.scala and SchedulingDecisionMaker.scala of apache/openwhisk. Not modelled: limits of single
actions, action throttling (10,000 calls wait), calls that wait in vain for a minute while containers run.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from e2e.openwhisk import fpc_wire

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.fpc_wire import Owner
    from e2e.openwhisk.model import Json

#: A call that has waited so long is stale; decisions are so far apart.
STALE_MS: Final = 100
#: A second, and what the real ones' timers and actors add.
POLL_S: Final = 1.03
IDLE_GRACE_S: Final = 20.0
#: How long calls wait where no container can be made, and how long an unused queue of that kind stays.
RETENTION_S: Final = 60.0


@dataclass
class Counts:
    """Containers of a namespace, as a scheduler that has a queue of it knows them: 0 until some key changes."""

    existing: int = 0
    in_progress: int = 0
    queues: int = 0


@dataclass(eq=False)
class _Request:
    """A container waits for a call."""

    order: tuple[bool, str]
    answer: asyncio.Future[Json]


class Desk(Protocol):
    """What the scheduler does for a queue."""

    clock: Clock

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Does it beside all else."""

    def limit(self, namespace: str) -> int:
        """Containers that the namespace may have."""

    def first_decision_s(self, action: str) -> float:
        """From a queue's birth to its first decision."""

    def order(self, queue: Queue, count: int) -> None:
        """Containers, please; their ids go to `creations`."""

    def throttle(self, queue: Queue, *, on: bool) -> None:
        """Tells controllers that the namespace is at its limit, or no more."""

    def fail(self, queue: Queue, call: Json, message: str, *, whisk: bool) -> None:
        """Answers a call that will not run."""

    def retire(self, queue: Queue) -> None:
        """The queue is gone, and its keys with it."""

    def replace(self, queue: Queue) -> None:
        """The queue of an older revision has done its duty: its containers go."""


class Queue:
    """See the module.

    Attributes:
        about: the action's description, which goes into creations.
        state: ``Running``, ``NamespaceThrottled``, ``Flushing`` (no container can be made), ``Idle``, ``Removing`` (of an
            older revision), ``Removed``.
    """

    def __init__(self, desk: Desk, owner: Owner, about: Json, counts: Counts) -> None:
        self.owner, self.about, self.counts = owner, about, counts
        self.state = "Running"
        self.containers: set[str] = set()
        self.creations: set[str] = set()
        self.messages: deque[tuple[int, Json]] = deque()
        self._desk, self._clock = desk, desk.clock
        self._requests: list[_Request] = []
        self._durations_ms: deque[int] = deque(maxlen=10)
        self._ordered_first = False
        self._reason = ""
        self._grid_ms = self._clock.now_ms + int(desk.first_decision_s(owner.action) * 1000)
        self._decision: int | None = None
        self._last_ms = self._clock.now_ms
        self._nudge()
        desk.spawn(self._grow_old())

    # --- Calls and fetches ------------------------------------------------------------------------------------------

    def offer(self, call: Json) -> None:
        """A call arrives."""
        self._touch()
        if self.state == "NamespaceThrottled" and not (self.containers or self.creations):
            self._desk.fail(self, call, fpc_wire.TOO_MANY, whisk=False)
            return
        if self.state == "Idle":
            self.state = "Running"
        if self._requests:
            request = max(self._requests, key=lambda one: one.order)
            self._requests.remove(request)
            request.answer.set_result(call)
        else:
            self.messages.append((self._clock.now_ms, call))
            self._nudge()

    async def fetch(self, container: str, *, warmed: bool, duration_ms: int | None, alive: bool) -> Json:
        """A call for the container, or why there is none."""
        self._touch()
        if not alive:
            self._lose(container)
        if not alive or self.state == "Idle":
            return fpc_wire.NO_ACTIVATION
        self.containers.add(container)
        if duration_ms is not None:
            self._durations_ms.append(duration_ms)
        if self.messages:
            return self.messages.popleft()[1]
        request = _Request((warmed, container), asyncio.get_running_loop().create_future())
        self._requests.append(request)
        limit = asyncio.ensure_future(self._clock.sleep(POLL_S))
        try:
            either: set[asyncio.Future[Any]] = {request.answer, limit}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return request.answer.result() if request.answer.done() else fpc_wire.NO_ACTIVATION
        finally:
            limit.cancel()
            if request in self._requests:
                self._requests.remove(request)

    # --- What is told about containers ------------------------------------------------------------------------------

    def container_key(self, container: str, *, there: bool) -> None:
        """A ``namespace`` key came or went."""
        self._touch()
        if there:
            self.containers.add(container)
        else:
            self._lose(container)
        self._nudge()

    def creation_key(self, creation: str, *, there: bool) -> None:
        """An ``in-progress`` key came or went."""
        self._touch()
        (self.creations.add if there else self.creations.discard)(creation)
        self._nudge()

    def counted(self) -> None:
        """`counts` are new."""
        self._nudge()

    def created(self, creation: str) -> None:
        """A container is up."""
        self._touch()
        self.creations.discard(creation)
        if self.state == "Flushing":
            self.state = "Running"
        self._nudge()

    def failed(self, creation: str, error: str, reason: str) -> None:
        """There will be no container, for all that was tried."""
        self._touch()
        self.creations.discard(creation)
        if self.state == "Running" and not self.containers:
            if error not in fpc_wire.RETRYABLE:
                self._fail_all(reason, whisk=False)
            self.state = "Flushing"
        self._reason = reason
        self._nudge()

    def outdate(self) -> None:
        """A newer revision has a queue of its own."""
        self.state = "Removing"
        self._desk.spawn(self._run_dry())

    def _lose(self, container: str) -> None:
        self.containers.discard(container)
        for request in [one for one in self._requests if one.order[1] == container]:
            self._requests.remove(request)
            request.answer.set_result(fpc_wire.NO_ACTIVATION)

    # --- Decisions --------------------------------------------------------------------------------------------------

    def _nudge(self) -> None:
        """There will be a decision at the next tenth of a second."""
        if self._decision is None and self.state not in {"Idle", "Removed"}:
            behind_ms = self._clock.now_ms - self._grid_ms
            self._decision = self._grid_ms + max(0, behind_ms // STALE_MS + 1) * STALE_MS
            self._desk.spawn(self._decide_at(self._decision))

    async def _decide_at(self, at_ms: int) -> None:
        await self._clock.sleep_until(at_ms)
        self._decision = None
        if self.state in {"Idle", "Removed"}:
            return
        self._decide()
        if self.messages or self.state == "Flushing":
            self._nudge()

    def _decide(self) -> None:
        room = self._desk.limit(self.owner.namespace) - self.counts.existing - self.counts.in_progress
        count, waiting = len(self.containers) + len(self.creations), len(self.messages)
        if room <= 0:
            if self.state == "Running":
                self._throttle(fail_all=count == 0)
        elif self.state == "NamespaceThrottled":
            self.state = "Running"
            self._touch()
            self._desk.throttle(self, on=False)
        elif self.state == "Running" and count == 0 and not (self._ordered_first or self._durations_ms):
            self._ordered_first = True
            self._desk.order(self, 1)
        elif count == 0 and ((self.state == "Running" and waiting) or self.state == "Flushing"):
            self._desk.order(self, 1)
        elif self.state in {"Running", "Removing"} and (missing := self._missing()) > 0:
            if missing > room:
                self._throttle(fail_all=False)
            self._desk.order(self, min(missing, room))

    def _missing(self) -> int:
        """Containers that the waiting calls need beyond those on their way."""
        waiting, on_way = len(self.messages), len(self.creations)
        stale = sum(self._clock.now_ms - since_ms >= STALE_MS for since_ms, _ in self.messages)
        if not self._durations_ms:
            return min(stale - on_way, waiting) if stale else 0
        duration_ms = sum(self._durations_ms) / len(self._durations_ms)
        throughput = STALE_MS / duration_ms if duration_ms > 0 else 1.0
        missing = min(math.ceil(stale / throughput), stale) - on_way if stale else 0
        count, fresh = len(self.containers) + on_way, waiting - stale
        if self.state == "Running" and fresh >= throughput * count and count < fresh:
            wanted = math.ceil(fresh / throughput - count)
            missing += min(wanted, fresh - count)
        return missing

    def _throttle(self, *, fail_all: bool) -> None:
        self.state = "NamespaceThrottled"
        self._desk.throttle(self, on=True)
        if fail_all:
            self._fail_all(fpc_wire.TOO_MANY, whisk=False)

    def _fail_all(self, message: str, *, whisk: bool) -> None:
        while self.messages:
            self._desk.fail(self, self.messages.popleft()[1], message, whisk=whisk)

    # --- The end ----------------------------------------------------------------------------------------------------

    def _touch(self) -> None:
        self._last_ms = self._clock.now_ms

    async def _grow_old(self) -> None:
        while self.state not in {"Removed", "Removing"}:
            grace_s = RETENTION_S if self.state == "Flushing" else IDLE_GRACE_S
            due_ms = self._last_ms + grace_s * 1000
            if due_ms > self._clock.now_ms:
                await self._clock.sleep_until(due_ms)
                continue
            self._touch()
            if self.state == "Flushing":
                self._fail_all(self._reason, whisk=True)
            if self.state == "Running" and not (self.messages or self.containers or self.creations):
                self.state = "Idle"
            elif self.state in {"Idle", "Flushing"}:
                self.state = "Removed"
                self._desk.retire(self)

    async def _run_dry(self) -> None:
        while self.messages or self._requests:
            await self._clock.sleep(POLL_S)
        self.state = "Removed"
        self._desk.replace(self)
