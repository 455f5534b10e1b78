"""The plugin is killed with SIGKILL beside the FPC double, on real Kafka, etcd and gRPC, while it holds one container, not
initialised, and another one is paused; it comes back.

The double's time and the plugin's run five times as fast as the wall's; leases in etcd last by the wall's. What becomes
of a container whose server is gone, the golden traces say (03-replies, rc, and 13-misc, ma).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.clock import Clock
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.etcd import Gateway
from e2e.openwhisk.fpc import running_fpc
from e2e.openwhisk.model import Action
from e2e.openwhisk.oracle import STEP_MS, running_oracle
from e2e.openwhisk.plugin_process import PluginProcess, until
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.wire import annotations_of
from e2e.servers.process import free_ports
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.holdings import HoldingState

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.openwhisk.fpc import Fpc
    from e2e.openwhisk.model import Json
    from e2e.servers.etcd import Etcd
    from e2e.servers.kafka import Kafka

SPEED, EXPIRY_S = 5.0, 600.0
POOL = PoolSettings(memory_mb=1024, idle_container_s=600.0)
HELD, PAUSED = FunctionKey("guest", "held"), FunctionKey("guest", "paused")


async def call(double: Fpc, function: FunctionKey) -> Json:
    action = double.store.get(str(function))
    assert action is not None
    _, record = await double.controller.invoke(GUEST, action, {"ms": 100}, blocking=True)
    assert record is not None
    assert record["response"]["statusCode"] == 0
    return record


def orders(double: Fpc, function: FunctionKey) -> int:
    """Containers of it that MESP has ordered so far. (The recording may hold a message more than once.)"""
    sent = [line["value"] for line in double.recording.of("kafka", topic="invoker0")]
    ours = (one for one in sent if one.get("rootSchedulerIndex") == {"asString": "mesp"})
    return len({one["creationId"] for one in ours if one["action"]["name"] == function.name})


def alive(double: Fpc, function: FunctionKey) -> int:
    assert isinstance(double.engine, Simulated)
    return sum(one.name.endswith(f"_{function.name}") for one in double.engine.alive.values())


def truth(double: Fpc, upto_ms: int) -> dict[int, dict[FunctionKey, int]]:
    """Users' calls by the minute, of minutes that are over."""
    counts: dict[int, dict[FunctionKey, int]] = {}
    calls = {line["value"]["activationId"]: line for line in double.recording.of("kafka", topic="scheduler0")}
    for line in calls.values():
        step_ms, name = line["ts"] // STEP_MS * STEP_MS, line["value"]["action"]
        if step_ms + STEP_MS <= upto_ms and name["path"] == "guest":
            step, key = counts.setdefault(step_ms, {}), FunctionKey("guest", name["name"])
            step[key] = step.get(key, 0) + 1
    return counts


async def prepared(double: Fpc) -> None:
    """Each was called once, by which its revision is known; queues and containers are gone again."""
    for function in (HELD, PAUSED):
        double.store.put(Action("guest", function.name, annotations={"mesp-prewarm": function is PAUSED}))
        await call(double, function)
    await double.invokers[0].stop()
    await double.invokers[0].start(POOL)

    async def forgotten() -> bool:
        return not await double.etcd.read("queue/guest/")

    await until(forgotten)


async def test_the_plugin_is_killed_while_a_container_is_held(kafka: Kafka, etcd: Etcd, tmp_path: Path) -> None:
    """The held container is destroyed, for there is no queue to move to; the paused one stays, and is known again. Only the
    first is ordered again, within two ticks of the right to act; both are met; no call is counted twice; and after the
    expiry nothing is left.
    """
    async with AsyncExitStack() as stack:
        clock = Clock(SPEED)
        options, prefix = {"bootstrap_servers": kafka.plain}, "killfpc-"
        double = await stack.enter_async_context(
            running_fpc(options, etcd.url, invokers=(POOL,), clock=clock, prefix=prefix, cluster="killfpc")
        )
        oracle = await stack.enter_async_context(running_oracle(lambda: clock.now_ms))
        rights = Gateway(etcd.url, "mesp")
        stack.push_async_callback(rights.stop)
        await prepared(double)
        oracle.wanted += [HELD, PAUSED]
        (port,) = free_ports(1)
        config = {
            "api_host": double.api, "driver": "fpc", "mode": "on", "expiry_s": EXPIRY_S,
            "kafka": {"bootstrap_servers": kafka.plain, "prefix": prefix},
            "etcd": {"endpoints": [etcd.url], "cluster": "killfpc"},
            "fpc": {"port": port, "hold_s": 10}, "loop": {"predictor_address": oracle.address},
        }  # fmt: skip
        plugin = await stack.enter_async_context(PluginProcess(tmp_path / "a", GUEST.key, config, clock).running())

        def states() -> dict[str, HoldingState]:
            return {item.function.name: item.state for item in plugin.holdings.values() if item.is_alive}

        async def both_wait() -> bool:
            paused = await double.etcd.read(f"warmed/guest/{PAUSED}/")
            return bool(paused) and states() == dict.fromkeys(("held", "paused"), HoldingState.HELD)

        await until(both_wait)
        await plugin.kill()
        acted = await rights.read("mesp/acts")
        await until(lambda: alive(double, HELD) == 0)
        assert not await double.etcd.read(f"namespace/guest/{HELD}/")
        assert len(await double.etcd.read(f"warmed/guest/{PAUSED}/")) == 1

        await plugin.start()

        async def acts() -> bool:
            return (await rights.read("mesp/acts")) not in ({}, acted)

        await until(acts)
        for _ in range(2):
            await plugin.tick()
        assert (orders(double, HELD), orders(double, PAUSED)) == (2, 1)
        await until(both_wait)
        for function in (HELD, PAUSED):
            await call(double, function)
        assert "initTime" not in annotations_of(await call(double, PAUSED))
        oracle.wanted.clear()

        async def met() -> bool:
            return await plugin.metric("mesp_openwhisk_prewarmed_met_total") == 2

        await until(met)
        until_ms = max(item.until_ms for item in plugin.holdings.values())
        await until(lambda: clock.now_ms >= until_ms and oracle.counts() == truth(double, clock.now_ms))
        await until(lambda: alive(double, HELD) + alive(double, PAUSED) == 0)
        assert not states()
