"""Containers for queues: where they are ordered, and what becomes of the orders.

A paused container is taken, wherever it is (``warmed`` keys); else an invoker with memory is drawn by lot. The order goes
to ``invokerN``, an ``in-progress`` key stands until its ack comes on ``creationAck<id>``, 20 s at most; what failed for
want of room is tried again, five times.

Source: ContainerManager.scala and CreationJobManager.scala of apache/openwhisk.
"""

from __future__ import annotations

import json
import math
import uuid
from typing import TYPE_CHECKING, Any, Final, Protocol

from e2e.openwhisk import fpc_wire

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.etcd import Etcd, Session
    from e2e.openwhisk.fpc_queue import Queue

#: Of queues that miss their first look (13 of 45 in the golden traces), and when the first and the second decision are.
LATE, FIRST_S, SECOND_S = 0.3, 0.010, 0.115
#: Until an ack that has arrived is read.
_ACK_S: Final = 0.030
_RETRIES: Final = 5
_IN_PROGRESS_S: Final = 20.0


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


class Home(Protocol):
    """What the scheduler does for its orders."""

    name: str
    clock: Clock
    etcd: Etcd

    @property
    def session(self) -> Session:
        """Its keys."""

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Does it beside all else."""

    def send_creation(self, queue: Queue, invoker: int, creation_id: str, retries: int) -> None:
        """The order for one container."""


class Creations:
    """The orders of one scheduler."""

    def __init__(self, home: Home, draws: Draws) -> None:
        self.draws = draws
        self._home = home
        self._warmed: dict[str, None] = {}
        self._taken: dict[str, str] = {}
        self._jobs: dict[str, Queue] = {}

    def forget(self) -> None:
        """All that is under way."""
        for known in (self._warmed, self._taken, self._jobs):
            known.clear()

    def warmed_changed(self, key: str, value: str | None) -> None:
        """A ``warmed`` key came or went."""
        if value is None:
            self._warmed.pop(key, None)
        else:
            self._warmed[key] = None

    def order(self, queue: Queue, count: int) -> None:
        """Containers, please; their ids go to the queue's `creations`."""
        for _ in range(count):
            creation_id = self.draws.creation_id(queue.owner.action)
            queue.creations.add(creation_id)
            self._home.spawn(self._order(queue, creation_id, retries=0))

    async def _order(self, queue: Queue, creation_id: str, *, retries: int) -> None:
        found = await self._home.etcd.read("invokers/")
        free_mb = {int(key.split("/")[1]): int(json.loads(value)["freeMemory"]) for key, value in found.items()}
        needed_mb = queue.about["limits"]["memory"]
        usable = [number for number, free in free_mb.items() if free >= needed_mb]
        invoker = self._paused(queue, creation_id, usable)
        if invoker is None:
            managed = list(free_mb)[: max(1, math.ceil(len(free_mb) * 0.9))]
            if not (candidates := [number for number in managed if number in usable]):
                queue.failed(creation_id, "NoAvailableInvokersError", "NoAvailableInvokersError")
                return
            invoker = self.draws.invoker(queue.owner.action, candidates)
        if creation_id not in self._jobs:
            self._jobs[creation_id] = queue
            self._home.session.write(fpc_wire.progress_key(queue.owner, self._home.name, creation_id))
            self._home.spawn(self._expire(creation_id))
        self._home.send_creation(queue, invoker, creation_id, retries)

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
        number = self.draws.invoker(queue.owner.action, list(free.values()))
        self._taken[creation_id] = next(key for key, invoker in free.items() if invoker == number)
        return number

    async def _expire(self, creation_id: str) -> None:
        await self._home.clock.sleep(_IN_PROGRESS_S)
        if queue := self._finish(creation_id):
            queue.failed(creation_id, "TimeoutError", "timeout waiting for the ack of the creation")

    def acknowledged(self, creation_id: str, error: str | None, reason: str, retries: int) -> None:
        """What became of an order."""
        if error is None:
            self._home.spawn(self._succeed(creation_id))
        elif error in fpc_wire.RETRYABLE and retries < _RETRIES:
            if queue := self._jobs.get(creation_id):
                self._taken.pop(creation_id, None)
                self._home.spawn(self._again(queue, creation_id, retries))
        elif queue := self._finish(creation_id):
            queue.failed(creation_id, error, reason)

    async def _succeed(self, creation_id: str) -> None:
        await self._home.clock.sleep(_ACK_S)
        if queue := self._finish(creation_id):
            queue.created(creation_id)

    async def _again(self, queue: Queue, creation_id: str, retries: int) -> None:
        await self._home.clock.sleep(0.1 * 2**retries)
        await self._order(queue, creation_id, retries=retries + 1)

    def _finish(self, creation_id: str) -> Queue | None:
        self._taken.pop(creation_id, None)
        queue = self._jobs.pop(creation_id, None)
        if queue is not None:
            self._home.session.remove(fpc_wire.progress_key(queue.owner, self._home.name, creation_id))
        return queue
