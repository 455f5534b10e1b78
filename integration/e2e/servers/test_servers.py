"""The servers themselves: that tests meet real ones, each way of connecting included."""

from __future__ import annotations

import urllib.error
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from e2e.servers.docker import running_docker
from e2e.servers.etcd import Etcd, running_etcd
from e2e.servers.kafka import running_kafka
from e2e.servers.process import unavailable
from mesp.errors import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.servers.kafka import Kafka


async def create(topic: str, options: dict[str, Any]) -> None:
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


@pytest.mark.parametrize("way", ["plain", "sasl", "tls"])
async def test_kafka_carries_a_message(kafka: Kafka, way: str) -> None:
    """What is produced is consumed, with the record's own timestamp, in plain, by password, and inside TLS."""
    options: dict[str, Any] = {
        "plain": {"bootstrap_servers": kafka.plain},
        "sasl": kafka.sasl_options(),
        "tls": kafka.tls_options(),
    }[way]
    await create(f"servers-{way}", options)
    async with AIOKafkaProducer(**options) as producer:
        await producer.send_and_wait(f"servers-{way}", b"hello", timestamp_ms=1_795_244_297_038)
    async with AIOKafkaConsumer(f"servers-{way}", auto_offset_reset="earliest", **options) as consumer:
        record = await consumer.getone()
    assert (record.value, record.timestamp, record.key) == (b"hello", 1_795_244_297_038, None)


async def test_kafka_refuses_a_wrong_password(kafka: Kafka) -> None:
    """A client with another password gets nowhere."""
    producer = AIOKafkaProducer(**(kafka.sasl_options() | {"sasl_plain_password": "guess"}))
    with pytest.raises(KafkaError):
        await producer.start()
    await producer.stop()


async def test_kafka_makes_no_topic_by_itself(kafka: Kafka) -> None:
    """A message to a topic that nobody made is not taken."""
    async with AIOKafkaProducer(bootstrap_servers=kafka.plain, request_timeout_ms=500) as producer:
        with pytest.raises(KafkaError):
            await producer.send_and_wait("nobody-made-me", b"lost")


def test_etcd_keeps_a_key(etcd: Etcd) -> None:
    """The JSON gateway writes and reads."""
    etcd.put("whisk/hello", "world")
    assert etcd.get("whisk/hello") == "world"
    assert etcd.get("whisk/absent") is None


def test_secured_etcd_wants_its_password(etcd_secured: Etcd) -> None:
    """Inside TLS, root's token opens the store, and no token opens nothing."""
    etcd_secured.put("whisk/hello", "world")
    assert etcd_secured.get("whisk/hello") == "world"
    stranger = Etcd(etcd_secured.url, etcd_secured.authority)
    with pytest.raises(urllib.error.HTTPError):
        stranger.get("whisk/hello")


def test_a_killed_etcd_comes_back_as_it_was(tmp_path: Path) -> None:
    """After SIGKILL it starts again at the same address, with what was written."""
    with running_etcd(tmp_path) as etcd:
        assert etcd.server is not None
        etcd.put("whisk/hello", "world")
        etcd.server.kill()
        with pytest.raises(OSError, match="refused"):
            etcd.get("whisk/hello")
        etcd.server.start()
        assert etcd.get("whisk/hello") == "world"


async def test_a_killed_kafka_comes_back_as_it_was(tmp_path: Path) -> None:
    """After SIGKILL it starts again on the same ports, with its topics and messages."""
    with running_kafka(tmp_path) as broker:
        options = {"bootstrap_servers": broker.plain}
        await create("kept", options)
        async with AIOKafkaProducer(**options) as producer:
            await producer.send_and_wait("kept", b"hello")
        broker.server.kill()
        broker.server.start()
        async with AIOKafkaConsumer("kept", auto_offset_reset="earliest", **options) as consumer:
            assert (await consumer.getone()).value == b"hello"


def test_a_program_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a test a missing server is an error with the same sentence."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(UnavailableError, match=r"^No such server\.$"):
        unavailable("No such server.")


def test_without_root_there_is_no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no engine can be started the test is skipped, also where servers are required: not every kernel allows it."""
    monkeypatch.setenv("MESP_REQUIRE_SERVERS", "1")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with (
        pytest.raises(pytest.skip.Exception, match="no Docker engine can be started here"),
        running_docker(tmp_path, b""),
    ):
        pass
