"""OpenWhisk's bus as a driver needs it: everything that the platform says, in order; a few messages of our own; a lease.

*Read* are the topics of invokers, acks, pings and user events, those that appear later too, by a reader that no group
knows: each plugin sees everything. It begins as far back as containers live, so that what a plugin knows survives a
restart, but at most `_MOST_BACK` messages back. Read messages wait here for `take`; when they are many, the reader waits.

*Acks* of our own messages come to a topic that is made beforehand, ``completed<group>``. It has one partition, and
who holds that in the consumer group of the same name *leads*: of two plugins one acts (classic; FPC has a lease in
etcd). Acks of containers that were ordered (FPC) come to ``creationAck<group>``.

aiokafka is imported here alone. It reconnects by itself; what fails is told by the kind of failure, never in its words
and never with the password.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import structlog

from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk.estimate import KEPT_MS
from mesp_plugin.openwhisk.passwords import read_password

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

    from mesp_plugin.openwhisk.config import KafkaConfig

_log = structlog.get_logger(__name__)
# aiokafka tells each failed attempt; who wants that asks Python's logging for it.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())

#: What is read, beside the topics of other deployments.
CLASSIC_TOPICS: Final = re.compile(r"invoker\d{1,4}|completed.+|health|events")
FPC_TOPICS: Final = re.compile(r"invoker\d{1,4}|scheduler.+|creationAck.+|completed.+|events")
_WHOLE_MS: Final = 60_000
_MOST_BACK: Final = 20_000
_MOST_WAITING_BYTES: Final = 256 * 2**20
#: How soon a new topic, or that the broker is away, is noticed.
_REFRESH_S: Final = 2.0
_DEADLINE_MS: Final = 5_000
_RETRY_S: Final = 1.0


class Message(NamedTuple):
    """What was read: the topic without prefix, when it was sent, and its bytes, which may hold secrets."""

    topic: str
    at_ms: int
    value: bytes

    def __repr__(self) -> str:
        return f"Message({self.topic}, {self.at_ms}, {len(self.value)} bytes)"


class Bus(Protocol):
    """Kafka, or what a test puts in its place. Failures are raised as `UnavailableError`."""

    @property
    def leads(self) -> bool:
        """This plugin is the one that acts."""
        ...

    @property
    def since_ms(self) -> int:
        """Since when every call was read; there is one after the first `take`."""
        ...

    @property
    def unbroken_ms(self) -> tuple[int, int]:
        """From when until when silence is known to be somebody's own: a bus that fails is silent, too."""
        ...

    async def take(self, now_ms: int) -> list[Message]:
        """What was said since the last call, oldest first; the first call begins to listen, and looks back."""
        ...

    async def send(self, topic: str, values: Sequence[bytes], now_ms: int) -> None:
        """Puts messages on a topic, at once; returns when they are there."""
        ...


class KafkaBus:
    """See `Bus`; made by `open_bus`."""

    def __init__(
        self,
        config: KafkaConfig,
        names: re.Pattern[str],
        reader: AIOKafkaConsumer,
        lease: AIOKafkaConsumer,
        producer: AIOKafkaProducer,
    ) -> None:
        self._config = config
        self._names = names
        self._reader = reader
        self._lease = lease
        self._producer = producer
        self.since_ms = 0
        self.unbroken_ms = (0, 0)
        self._answered = self._failed = False
        self._waiting: list[Message] = []
        self._waiting_bytes = 0
        self._pump: asyncio.Task[None] | None = None

    @property
    def leads(self) -> bool:
        """See `Bus.leads`."""
        return bool(self._lease.assignment())

    async def take(self, now_ms: int) -> list[Message]:
        """See `Bus.take`."""
        if self._pump is None:
            await self._begin(now_ms)
            self._failed = True  # whatever came before
            self._pump = asyncio.create_task(self._read_on())
        elif self._pump.done():
            self._pump.result()
        if self._failed:
            self.unbroken_ms = (now_ms, now_ms)
        elif self._answered:
            self.unbroken_ms = (self.unbroken_ms[0], now_ms)
        self._answered = self._failed = False
        taken = [one if one.at_ms >= 0 else one._replace(at_ms=now_ms) for one in self._waiting]
        self._waiting, self._waiting_bytes = [], 0
        return sorted(taken, key=lambda one: one.at_ms)

    async def send(self, topic: str, values: Sequence[bytes], now_ms: int) -> None:
        """See `Bus.send`."""
        from aiokafka.errors import KafkaError  # noqa: PLC0415 (see the module's docstring)

        try:
            name = self._config.prefix + topic
            sent = [await self._producer.send(name, value, timestamp_ms=now_ms) for value in values]
            await asyncio.gather(*sent)
        except KafkaError as error:
            raise _unavailable(self._config, error) from None

    async def close(self) -> None:
        """Stops listening."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _begin(self, now_ms: int) -> None:
        from aiokafka.errors import KafkaError  # noqa: PLC0415

        try:
            partitions = await self._partitions()
            ends = await self._reader.end_offsets(partitions)
            first = await self._reader.beginning_offsets(partitions)
            # From a whole minute on: a part of one would replace what an earlier life reported of all of it.
            look_back_ms = max(0, now_ms - KEPT_MS) // _WHOLE_MS * _WHOLE_MS
            since = await self._reader.offsets_for_times(dict.fromkeys(partitions, look_back_ms))
            begins = {
                one: max(first[one], ends[one] - _MOST_BACK, found.offset if (found := since[one]) else ends[one])
                for one in partitions
            }
            cut = any(begins[one] == ends[one] - _MOST_BACK for one in partitions)
            self.since_ms = now_ms if cut else look_back_ms
            self._assign(begins)
            while any([await self._reader.position(one) < ends[one] for one in partitions]):
                await self._read(_DEADLINE_MS)
        except KafkaError as error:
            raise _unavailable(self._config, error) from None

    async def _read_on(self) -> None:
        from aiokafka.errors import KafkaError  # noqa: PLC0415

        clock, due_s, failing = asyncio.get_running_loop().time, 0.0, False
        while True:
            try:
                if clock() >= due_s:
                    due_s = clock() + _REFRESH_S
                    await self._refresh()
                    self._answered, failing = True, False
                if self._waiting_bytes < _MOST_WAITING_BYTES:
                    await self._read(200)
                else:
                    await asyncio.sleep(_RETRY_S)
                await self._lease.getmany(timeout_ms=0)
            except KafkaError as error:
                self._failed = True
                if not failing:
                    _log.warning("Kafka fails, trying again every second", error=type(error).__name__)
                failing = True
                await asyncio.sleep(_RETRY_S)

    async def _read(self, timeout_ms: int) -> None:
        cut = len(self._config.prefix)
        for records in (await self._reader.getmany(timeout_ms=timeout_ms)).values():
            fresh = [Message(one.topic[cut:], one.timestamp, one.value or b"") for one in records]
            self._waiting += fresh
            self._waiting_bytes += sum(len(one.value) for one in fresh)

    async def _refresh(self) -> None:
        """Topics that appeared are read from their beginning, the others from where they were."""
        known = self._reader.assignment()
        if fresh := [one for one in await self._partitions() if one not in known]:
            begins = {one: await self._reader.position(one) for one in known}
            self._assign(begins | await self._reader.beginning_offsets(fresh))

    def _assign(self, begins: dict[TopicPartition, int]) -> None:
        self._reader.assign(list(begins))
        for partition, offset in begins.items():  # nothing is fetched in between: there is no await
            self._reader.seek(partition, offset)

    async def _partitions(self) -> list[TopicPartition]:
        from aiokafka import TopicPartition  # noqa: PLC0415

        # OpenWhisk makes every topic with one partition (KafkaMessagingProvider.scala, `ensureTopic`).
        return [TopicPartition(name, 0) for name in sorted(await self._reader.topics()) if self._is_ours(name)]

    def _is_ours(self, name: str) -> bool:
        prefix = self._config.prefix
        return name.startswith(prefix) and self._names.fullmatch(name[len(prefix) :]) is not None


def ack_topic(config: KafkaConfig) -> str:
    """Where acks of our own messages come, without prefix."""
    return f"completed{config.group}"


def creation_ack_topic(config: KafkaConfig) -> str:
    """Where acks of containers that we ordered come (FPC), without prefix."""
    return f"creationAck{config.group}"


@asynccontextmanager
async def open_bus(config: KafkaConfig, names: re.Pattern[str] = CLASSIC_TOPICS) -> AsyncIterator[KafkaBus]:
    """Connects, makes our own topics among `names` where they are missing, and asks for the lease.

    Raises:
        InputError: the password or the certificates cannot be read, or aiokafka is not installed.
        UnavailableError: the broker does not answer, or not to us.
    """
    aiokafka, options = _client(config), _options(config)
    own = config.prefix + ack_topic(config)
    for topic in (ack_topic(config), creation_ack_topic(config)):
        if names.fullmatch(topic):
            await _make_topic(config, options, config.prefix + topic)
    # Nobody waits for what was not committed: the group is a lease, not a place in the log.
    lease = aiokafka.AIOKafkaConsumer(
        own,
        **options,
        group_id=f"{config.prefix}mesp-{config.group}",
        enable_auto_commit=False,
        session_timeout_ms=10_000,
    )
    reader = aiokafka.AIOKafkaConsumer(**options, auto_offset_reset="latest")
    producer = aiokafka.AIOKafkaProducer(**options, acks=1, request_timeout_ms=_DEADLINE_MS)
    bus = KafkaBus(config, names, reader, lease, producer)
    try:
        for part in (producer, reader, lease):
            try:
                await part.start()
            except aiokafka.errors.KafkaError as error:
                raise _unavailable(config, error) from None
        yield bus
    finally:
        await bus.close()
        for part in (lease, reader, producer):
            await part.stop()


async def topics(config: KafkaConfig) -> set[str]:
    """The topics that the broker shows us, without prefix; raises as `open_bus`."""
    _client(config)
    names = await _make_topic(config, _options(config), None)
    return {name[len(config.prefix) :] for name in names if name.startswith(config.prefix)}


async def _make_topic(config: KafkaConfig, options: dict[str, Any], own: str | None) -> Iterable[str]:
    """Makes the topic unless it is None or there; the names of all that were there."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # noqa: PLC0415
    from aiokafka.errors import KafkaError  # noqa: PLC0415

    admin = AIOKafkaAdminClient(**options, request_timeout_ms=_DEADLINE_MS)
    try:
        await admin.start()
        there: list[str] = await admin.list_topics()
        if own and own not in there:
            await admin.create_topics([NewTopic(own, 1, 1)])
    except KafkaError as error:
        raise _unavailable(config, error) from None
    finally:
        await admin.close()
    return there


def _client(config: KafkaConfig) -> Any:
    try:
        import aiokafka  # noqa: PLC0415
        import aiokafka.errors  # noqa: PLC0415
    except ImportError:
        raise InputError(
            f"kafka.bootstrap_servers = {config.bootstrap_servers}: needs aiokafka, install mesp[openwhisk]"
        ) from None
    return aiokafka


def _options(config: KafkaConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap_servers": config.bootstrap_servers,
        "security_protocol": config.security.upper(),
        "client_id": f"mesp-{config.group}",
    }
    if "ssl" in config.security:
        try:
            options["ssl_context"] = ssl.create_default_context(cafile=config.ca_file)
        except OSError:  # ssl.SSLError is one
            raise InputError(f"kafka.ca_file = {config.ca_file}: cannot be read as certificates in PEM form") from None
    if "sasl" in config.security:
        user = {
            "sasl_plain_username": config.username,
            "sasl_plain_password": read_password("kafka", config.password_env, config.password_file),
        }
        options |= {"sasl_mechanism": "PLAIN"} | user
    return options


def _unavailable(config: KafkaConfig, error: Exception) -> UnavailableError:
    return UnavailableError(f"Kafka at {config.bootstrap_servers} fails: {type(error).__name__}")
