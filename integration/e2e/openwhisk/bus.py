"""The double's way to Kafka: messages with null keys and the clock's timestamps, topics that someone must make first.

A reader commits its place *before* it handles a message (at most once), as the real feed does: what a part had taken
when it was killed is lost.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.model import Json


#: Rounds of the event loop after which everyone has had his turn.
_TURNS = 25


class Topics(Protocol):
    """What the double's parts need of a bus."""

    async def make(self, *topics: str) -> None:
        """Makes topics of one partition, unless they are there."""

    def send(self, topic: str, message: Json) -> None:
        """Puts the message on its way with the time of now; one that cannot be delivered is lost."""

    async def read(self, topic: str, group: str, handle: Callable[[Json], None]) -> asyncio.Task[None]:
        """Hands every message from now on to `handle`, until the task is cancelled."""


class Bus:
    """One producer and any number of readers; every topic's name begins with `prefix`."""

    def __init__(self, options: dict[str, Any], clock: Clock, prefix: str = "") -> None:
        self.options = options
        self.prefix = prefix
        self.delivered = 0
        #: Called with topic and message for whatever is sent.
        self.watchers: list[Callable[[str, Json], None]] = []
        self._busy = 0
        self._handled = asyncio.Event()
        self._unread: dict[str, int] = {}
        self._clock = clock
        self._producer: AIOKafkaProducer | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self, *topics: str) -> None:
        """Makes the topics and connects."""
        await self.make(*topics)
        self._producer = AIOKafkaProducer(**self.options, acks=1)
        await self._producer.start()

    async def stop(self) -> None:
        """Waits for nothing that is still to be sent."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        if self._producer is not None:
            await self._producer.stop()

    async def make(self, *topics: str) -> None:
        """Makes topics of one partition, unless they are there."""
        with self._working():
            admin = AIOKafkaAdminClient(**self.options)
            await admin.start()
            try:
                missing = {self.prefix + topic for topic in topics} - set(await admin.list_topics())
                await admin.create_topics([NewTopic(topic, 1, 1) for topic in sorted(missing)])
            finally:
                await admin.close()

    async def settled(self) -> None:
        """Returns once all that was sent to a reader of this bus has been handled, and what that set off, too."""
        turns = 0
        while turns < _TURNS:
            if self._busy or any(self._unread.values()):
                turns = 0
                self._handled.clear()
                await self._handled.wait()
            turns += 1
            await asyncio.sleep(0)

    def send(self, topic: str, message: Json) -> None:
        """Puts the message on its way with the time of now; one that cannot be delivered is lost."""
        for watcher in self.watchers:
            watcher(topic, message)
        if topic in self._unread:
            self._unread[topic] += 1
        raw = json.dumps(message, separators=(",", ":")).encode()
        task = asyncio.create_task(self._deliver(topic, raw, self._clock.now_ms))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def read(self, topic: str, group: str, handle: Callable[[Json], None]) -> asyncio.Task[None]:
        """Hands every message from now on, or from where the group stopped, to `handle`, until the task is cancelled.

        What is no JSON object is handed on as an empty one: it lacks all that any message must have.
        """
        with self._working():
            consumer = AIOKafkaConsumer(**self.options, group_id=self.prefix + group, enable_auto_commit=False)
            partition = TopicPartition(self.prefix + topic, 0)
            consumer.assign([partition])
            await consumer.start()
            await consumer.position(partition)  # what is sent from here on is read
            self._unread[topic] = 0
            return asyncio.create_task(self._pump(topic, consumer, handle))

    async def _pump(self, topic: str, consumer: AIOKafkaConsumer, handle: Callable[[Json], None]) -> None:
        try:
            while True:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    with suppress(KafkaError):
                        await consumer.commit()
                    for record in records:
                        handle(_object(record.value))
                        self._unread[topic] = max(0, self._unread[topic] - 1)  # 0: it was sent before anyone read
                        self._handled.set()
        finally:
            del self._unread[topic]
            with self._working():
                await consumer.stop()

    async def _deliver(self, topic: str, raw: bytes, at_ms: int) -> None:
        assert self._producer is not None
        try:
            await self._producer.send_and_wait(self.prefix + topic, raw, timestamp_ms=at_ms)
            self.delivered += 1
        except KafkaError:  # such as a topic that nobody made
            if topic in self._unread:
                self._unread[topic] = max(0, self._unread[topic] - 1)
                self._handled.set()

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._handled.set()


def _object(raw: bytes) -> Json:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
