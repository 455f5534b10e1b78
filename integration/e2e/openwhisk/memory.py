"""Kafka and etcd without servers, for doubles that live by a stepped clock: the same faces, in one event loop.

Messages and keys take a few milliseconds of the clock, as they do between real parts; order is kept. A `QuietLoop`
knows exactly when nothing is left to do at this instant, so time passes as fast as the work allows, and what happens is
the same each time.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack, cast

from e2e.openwhisk.etcd import LEASE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.etcd import Handler
    from e2e.openwhisk.model import Json

_Result = TypeVar("_Result")
_Ts = TypeVarTuple("_Ts")
#: From a producer to the handler of a reader.
MESSAGE_S = 0.008
#: From a write to the store, and from the store to an answer.
KEY_S = 0.003


class QuietLoop(asyncio.SelectorEventLoop):
    """`soon` counts the callbacks that were ever put in the queue."""

    def __init__(self) -> None:
        self.soon = 0
        super().__init__()

    def call_soon(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.AbstractEventLoop.call_soon`."""
        self.soon += 1
        return super().call_soon(callback, *args, context=context)


async def settled() -> None:
    """Returns once nobody but the caller has anything to do."""
    loop = cast("QuietLoop", asyncio.get_running_loop())
    before = -1
    while loop.soon - before != 1:  # all who were before us in the queue have had their turn, and asked for no other
        before = loop.soon
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs it on a `QuietLoop`."""
    with asyncio.Runner(loop_factory=QuietLoop) as runner:
        return runner.run(main)


class MemoryBus:
    """Topics of one partition that remember all messages, and how far each group has read."""

    def __init__(self, clock: Clock) -> None:
        #: Called with topic and message for whatever reaches a topic.
        self.watchers: list[Callable[[str, Json], None]] = []
        self._clock = clock
        self._topics: dict[str, list[str]] = {}
        self._read: dict[tuple[str, str], int] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def make(self, *topics: str) -> None:
        """See `Topics.make`."""
        for topic in topics:
            self._topics.setdefault(topic, [])
            self._news.setdefault(topic, asyncio.Event())

    def send(self, topic: str, message: Json) -> None:
        """See `Topics.send`."""
        if topic in self._topics:
            for watcher in self.watchers:
                watcher(topic, message)
            task = asyncio.create_task(self._deliver(topic, json.dumps(message)))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def read(self, topic: str, group: str, handle: Callable[[Json], None]) -> asyncio.Task[None]:
        """See `Topics.read`."""
        self._read.setdefault((topic, group), len(self._topics[topic]))
        return asyncio.create_task(self._pump(topic, group, handle))

    async def stop(self) -> None:
        """What is on its way is lost."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def _deliver(self, topic: str, raw: str) -> None:
        await self._clock.sleep(MESSAGE_S)
        self._topics[topic].append(raw)
        self._news[topic].set()

    async def _pump(self, topic: str, group: str, handle: Callable[[Json], None]) -> None:
        messages = self._topics[topic]
        while True:
            while (place := self._read[topic, group]) < len(messages):
                self._read[topic, group] = place + 1  # at most once
                value = json.loads(messages[place])
                handle(value if isinstance(value, dict) else {})
            self._news[topic].clear()
            await self._news[topic].wait()


@dataclass(frozen=True, eq=False)
class _Watch:
    prefix: str
    handle: Handler


class MemoryEtcd:
    """Keys and their values; leases run out by the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._values: dict[str, tuple[str, MemorySession]] = {}
        self._watches: list[_Watch] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, owner: str) -> MemorySession:
        """See `Etcd.open`."""
        session = MemorySession(self)
        session.write(f"instance/{owner}/lease", str(id(session)))
        return session

    async def read(self, prefix: str) -> dict[str, str]:
        """See `Etcd.read`."""
        await self.clock.sleep(KEY_S)
        return {key: value for key, (value, _) in sorted(self._values.items()) if key.startswith(prefix)}

    async def watch(self, prefix: str, handle: Handler) -> asyncio.Task[None]:
        """See `Etcd.watch`."""
        watch = _Watch(prefix, handle)
        self._watches.append(watch)
        return asyncio.create_task(self._keep(watch))

    async def stop(self) -> None:
        """What is on its way is lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Does it after that time."""

        async def wait() -> None:
            await self.clock.sleep(seconds)
            what()

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def put(self, key: str, value: str, session: MemorySession) -> None:
        """The key is there."""
        self._values[key] = value, session
        self._tell(key, value)

    def delete(self, key: str) -> None:
        """The key is gone."""
        if self._values.pop(key, None):
            self._tell(key, None)

    def has(self, key: str) -> bool:
        """Whether it is there."""
        return key in self._values

    def end(self, session: MemorySession) -> None:
        """All that was written under that lease is gone."""
        for key in [key for key, (_, owner) in self._values.items() if owner is session]:
            self.delete(key)

    def _tell(self, key: str, value: str | None) -> None:
        for watch in list(self._watches):
            if key.startswith(watch.prefix):
                watch.handle(key, value)

    async def _keep(self, watch: _Watch) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        self._watches.remove(watch)


class MemorySession:
    """One part's lease; see `Session`."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        self._etcd = etcd

    def write(self, key: str, value: str = "") -> None:
        """See `Session.write`."""
        self._etcd.later(KEY_S, lambda: self._etcd.put(key, value, self))

    def remove(self, key: str) -> None:
        """See `Session.remove`."""
        self._etcd.later(KEY_S, lambda: self._etcd.delete(key))

    async def create(self, key: str, value: str) -> bool:
        """See `Session.create`."""
        await self._etcd.clock.sleep(KEY_S)
        if absent := not self._etcd.has(key):
            self._etcd.put(key, value, self)
        return absent

    async def close(self) -> None:
        """See `Session.close`."""
        self._etcd.end(self)

    async def abandon(self) -> None:
        """See `Session.abandon`."""
        self._etcd.later(LEASE_S, lambda: self._etcd.end(self))
