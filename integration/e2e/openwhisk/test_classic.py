"""The classic driver on a real Kafka: beside the double of classic OpenWhisk, beside another plugin, behind a password.

The double's time is stepped (`clock`): half an hour passes as fast as the machine can, and stands still while the
plugin looks and acts.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import count
from typing import TYPE_CHECKING, cast

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from e2e.openwhisk.beside_bus import HELLO, FakeApi, invoker
from e2e.openwhisk.classic import GUEST, running_classic
from e2e.openwhisk.clock import HeldClock
from e2e.openwhisk.foretold import Oracle, Played, calling, played
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.wire import annotations_of
from e2e.servers.kafka import PASSWORD, USER
from mesp.errors import UnavailableError
from mesp_placement.model import Prewarm
from mesp_plugin.loop import Loop
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.classic import ClassicDriver
from mesp_plugin.openwhisk.config import KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.fields import encode
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.kafka import open_bus
from mesp_plugin.openwhisk.messages import Caller, is_marker_id
from mesp_plugin.openwhisk.start import open_platform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from e2e.openwhisk.model import Json
    from e2e.servers.kafka import Kafka
    from mesp_plugin.openwhisk.kafka import KafkaBus, Message
    from mesp_plugin.openwhisk.rest import OpenWhiskApi

#: A whole minute.
BEGIN_MS = 1_795_245_000_000
MINUTE_MS = 60_000
TICK_MS = 10_000
END_MS = BEGIN_MS + 5 * MINUTE_MS
#: Each is called twice. `plain` has not opted in.
NAMES = ("f0", "f1", "f2", "f3", "plain")
CALLS = tuple(
    (BEGIN_MS + round((1.5 + 0.3 * place + again) * MINUTE_MS), name)
    for again in range(2)
    for place, name in enumerate(NAMES)
)


def cold(played: Played) -> list[str]:
    return [record["name"] for record in played.records.values() if "initTime" in annotations_of(record)]


def markers(played: Played) -> list[Json]:
    return [one for one in played.messages if is_marker_id(one.get("activationId", "")) and "user" in one]


async def play(kafka: Kafka, folder: Path, *, on: bool) -> tuple[Played, set[str]]:
    """`CALLS` beside two invokers, with MESP or without; and the nodes that it saw."""
    clock, prefix = HeldClock(BEGIN_MS - MINUTE_MS), f"{folder.name}-{'on' if on else 'off'}-"
    options = {"bootstrap_servers": kafka.plain}
    pools = (PoolSettings(memory_mb=1024),) * 2
    async with AsyncExitStack() as stack:
        double = await stack.enter_async_context(running_classic(options, invokers=pools, clock=clock, prefix=prefix))
        for name in NAMES:
            double.store.put(Action("guest", name, annotations={"mesp-prewarm": name != "plain"}))
        oracle, plugin, platform = Oracle(CALLS, lambda: clock.now_ms), None, None
        if on:
            config = OpenWhiskConfig(
                api_host=double.api,
                mode="on",
                state_file=folder / "state.json",
                kafka=KafkaConfig(bootstrap_servers=kafka.plain, prefix=prefix),
            )
            with clock.held():
                platform = await stack.enter_async_context(open_platform(config))
            plugin = asyncio.create_task(_tick(Loop(platform, oracle, config.loop), clock))
        calls = calling(double, CALLS)
        nodes: set[str] = set()
        await clock.sleep_until(END_MS)
        if plugin and platform:
            plugin.cancel()
            nodes = {node.name for node in (await platform.snapshot(clock.now_ms)).nodes}
        return played(double, await calls, oracle, platform), nodes


async def _tick(loop: Loop, clock: HeldClock) -> None:
    for at_ms in range(BEGIN_MS, END_MS, TICK_MS):
        await clock.sleep_until(at_ms)
        with clock.held():
            await loop.tick(at_ms)


async def test_fewer_calls_are_cold_and_nobody_is_harmed(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same calls without and with MESP: each succeeds and runs once; of those that opted in none is cold any more."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", GUEST.key)
    off, _ = await play(kafka, tmp_path, on=False)
    on, nodes = await play(kafka, tmp_path, on=True)
    assert off.harmed_nobody()
    assert on.harmed_nobody()
    assert (markers(off), sorted(cold(off)), cold(on)) == ([], sorted(NAMES), ["plain"])
    assert {one["action"]["name"] for one in markers(on)} == {"f0", "f1", "f2", "f3"}
    assert on.told_the_truth()
    assert (on.tally["calls"], on.tally["cold"]) == (len(CALLS), len(cold(on)))
    assert (on.tally["ordered"], on.tally["met"]) == (4, 4)
    assert nodes == {"invoker0", "invoker1"}


# --- The bus itself ---------------------------------------------------------------------------------------------------


async def read(bus: KafkaBus, wanted: int, now_ms: int = BEGIN_MS) -> list[Message]:
    """Takes until so many messages came."""
    found: list[Message] = []
    async with asyncio.timeout(20):
        while len(found) < wanted:
            found += await bus.take(now_ms)
            await asyncio.sleep(0.02)
    return found


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (aiokafka sets no event when the group settles)
            await asyncio.sleep(0.05)


async def test_a_reader_looks_back_and_finds_new_topics(kafka: Kafka) -> None:
    """What was said while containers live is read first, then the rest; a topic that appears is read from its start."""
    config = KafkaConfig(bootstrap_servers=kafka.plain, prefix="look-")
    other = KafkaConfig(bootstrap_servers=kafka.plain, prefix="look-", group="other")
    async with open_bus(other) as old:  # its own topic stands for one of a controller
        await old.send("completedother", [b"too old"], BEGIN_MS - 700_000)
        await old.send("completedother", [b"1", b"2"], BEGIN_MS - 600_000)
        async with open_bus(config) as bus:
            assert [(one.topic, one.value) for one in await bus.take(BEGIN_MS)] == [
                ("completedother", b"1"),
                ("completedother", b"2"),
            ]
            assert bus.since_ms == BEGIN_MS - 11 * MINUTE_MS  # containers live for 610 s; a whole minute
            async with open_bus(KafkaConfig(bootstrap_servers=kafka.plain, prefix="look-", group="late")) as late:
                await late.send("completedlate", [b"3"], BEGIN_MS)
                await old.send("completedother", [b"4"], BEGIN_MS + 1)
                assert {one.value for one in await read(bus, 2)} == {b"3", b"4"}


@pytest.mark.parametrize("way", ["sasl_plaintext", "sasl_ssl"])
async def test_behind_a_password(kafka: Kafka, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """In the clear and inside TLS; with another password nobody gets in, and none is told."""
    host = kafka.sasl if way == "sasl_plaintext" else kafka.tls
    config = KafkaConfig.model_validate(
        {
            "bootstrap_servers": host,
            "security": way,
            "username": USER,
            "ca_file": kafka.authority if way == "sasl_ssl" else None,
            "prefix": f"{way}-",
        }
    )
    monkeypatch.setenv("MESP_KAFKA_PASSWORD", PASSWORD)
    async with open_bus(config) as bus:
        await bus.take(BEGIN_MS)
        await bus.send("completedmesp", [b"hello"], BEGIN_MS)
        assert [one.value for one in await read(bus, 1)] == [b"hello"]
    monkeypatch.setenv("MESP_KAFKA_PASSWORD", "another-secret")
    with pytest.raises(UnavailableError, match="Kafka at 127") as caught:
        async with open_bus(config):
            pass
    assert "secret" not in str(caught.value)


async def test_of_two_plugins_one_acts(kafka: Kafka, tmp_path: Path) -> None:
    """Both see the same; one orders. When it ends, the other does."""
    config = OpenWhiskConfig(kafka=KafkaConfig(bootstrap_servers=kafka.plain, prefix="lease-"))
    assert config.kafka is not None
    async with AsyncExitStack() as stack:
        buses = {}
        for name in "ab":
            closing = await stack.enter_async_context(AsyncExitStack())
            buses[name] = (await closing.enter_async_context(open_bus(config.kafka)), closing)
        await until(lambda: sum(bus.leads for bus, _ in buses.values()) == 1)
        drivers = {name: driver(bus, tmp_path / name, config) for name, (bus, _) in buses.items()}
        writer = buses["a"][0]
        await make_topics(kafka, "lease-invoker0", "lease-health")
        for one in drivers.values():
            await one.observe(BEGIN_MS)
        await writer.send("health", [encode({"name": invoker(), "isEnabled": True})], BEGIN_MS)
        for one in drivers.values():
            await seen(one)
        wish = Prewarm(HELLO, "invoker0", 1, "because")
        done = {name: await one.prewarm(wish, BEGIN_MS) for name, one in drivers.items()}
        assert sorted(one.count for one in done.values()) == [0, 1]
        standby = next(name for name, one in done.items() if one.count == 0)
        assert "standby" in (done[standby].refused or "")
        leader = next(name for name in "ab" if name != standby)
        await buses[leader][1].aclose()
        await until(lambda: buses[standby][0].leads)
        assert (await drivers[standby].prewarm(wish, BEGIN_MS)).count == 1


def driver(bus: KafkaBus, folder: Path, config: OpenWhiskConfig) -> ClassicDriver:
    folder.mkdir()
    api, ids = FakeApi(), count(1)
    api.put("hello", annotations={"mesp-prewarm": True})
    actions = Actions(cast("OpenWhiskApi", api), "guest", config.opt_in)
    owner = Caller("guest", "guest", "an-id", ("ACTIVATE",))
    return ClassicDriver(
        bus, "guest", owner, actions, Holdings(folder / "state"), config, random_bits=lambda _: next(ids)
    )


async def seen(one: ClassicDriver) -> None:
    """Until the invoker's ping was read."""
    async with asyncio.timeout(20):
        while not (await one.snapshot(BEGIN_MS)).nodes:
            await one.observe(BEGIN_MS)
            await asyncio.sleep(0.05)


async def make_topics(kafka: Kafka, *names: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.plain)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1) for name in names])
    finally:
        await admin.close()
