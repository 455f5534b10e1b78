"""Killed with SIGKILL in the middle of a replay: the plugin, the one of two that acts, and Kafka. Real processes.

The double of classic OpenWhisk lives in the test's own process, five times as fast as the wall; plugins run beside it on
the same clock, Kafka on the wall's. (Faster would do no good: an invoker whose machine is busy for 10 s is offline.) Ticks are counted by the plugin itself: a loaded machine makes them later, not more.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2e.openwhisk.classic import GUEST, running_classic
from e2e.openwhisk.clock import Clock
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.model import Action
from e2e.openwhisk.oracle import WireOracle, running_oracle
from e2e.openwhisk.plugin_process import PluginProcess, SharedClock, until
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.wire import annotations_of
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.openwhisk.messages import is_marker_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from e2e.openwhisk.classic import Classic
    from e2e.openwhisk.model import Json
    from e2e.servers.kafka import Kafka

SPEED = 5.0
TICK_MS = 10_000
MINUTE_MS = 60_000
#: An idle container is removed after these, and what was ordered counts as MESP's a little longer.
REST_S, IDLE_S = 10.0, 60.0


@dataclass
class Scene:
    """A platform, the predictor's stand-in, and how plugins get there."""

    double: Classic
    oracle: WireOracle
    clock: SharedClock
    config: dict[str, Any]
    folder: Path

    def plugin(self, name: str) -> PluginProcess:
        """One that is not started; those of one scene are of one group."""
        loop = {"predictor_address": self.oracle.address, "placement": {"tick_s": TICK_MS / 1e3}}
        return PluginProcess(self.folder / name, self.clock, GUEST.key, {**self.config, "loop": loop})

    def put(self, *names: str, wanted: bool = True) -> None:
        """Actions that opted in, and of which the predictor foresees calls."""
        for name in names:
            self.double.store.put(Action("guest", name, annotations={"mesp-prewarm": wanted}))
        self.oracle.wanted += [FunctionKey("guest", name) for name in names if wanted]

    async def call(self, name: str) -> Json:
        """A user's call, and its record."""
        action = self.double.store.get(f"guest/{name}")
        assert action is not None
        _, record = await self.double.controller.invoke(GUEST, action, {"ms": 100}, blocking=True)
        assert record is not None
        assert record["response"]["statusCode"] == 0
        return record

    @asynccontextmanager
    async def replay(self, name: str, every_ms: int = 2_000) -> AsyncIterator[None]:
        """Calls in open loop while the block runs."""
        calls = []

        async def play() -> None:
            at_ms = self.double.clock.now_ms
            while True:
                calls.append(asyncio.create_task(self.call(name)))
                await self.double.clock.sleep_until(at_ms := at_ms + every_ms)

        playing = asyncio.create_task(play())
        try:
            yield
        finally:
            playing.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def said(self) -> list[Json]:
        """Every activation message on the bus, once."""
        lines = [line for line in self.double.recording.of("kafka") if line["topic"].startswith("invoker")]
        lines = [line for line in lines if line["value"]["action"]["path"] != "whisk.system"]
        return list({line["value"]["activationId"]: line for line in lines}.values())

    def markers(self) -> list[str]:
        """For whom markers were sent."""
        return [line["value"]["action"]["name"] for line in self.said() if is_marker_id(line["value"]["activationId"])]

    def made(self, name: str) -> int:
        """Containers that were ever made for an action."""
        return sum(line["name"].endswith(f"_{name}") for line in self.double.recording.of("docker", action="create"))

    def alive(self, name: str) -> int:
        """Containers of an action that are there now."""
        assert isinstance(self.double.engine, Simulated)
        return sum(one.name.endswith(f"_{name}") for one in self.double.engine.alive.values())

    def truth(self) -> dict[int, dict[FunctionKey, int]]:
        """Users' calls by the minute."""
        counts: dict[int, dict[FunctionKey, int]] = {}
        for line in self.said():
            if not is_marker_id(line["value"]["activationId"]):
                key = FunctionKey("guest", line["value"]["action"]["name"])
                step = counts.setdefault(line["ts"] // MINUTE_MS * MINUTE_MS, {})
                step[key] = step.get(key, 0) + 1
        return counts

    async def has_told(self, plugin: PluginProcess) -> None:
        """Returns once the predictor knows of every call, by the minute, and still knows of no other two ticks later."""
        await until(lambda: self.oracle.counts() == self.truth())
        await plugin.ticks(2)
        assert self.oracle.counts() == self.truth()


@asynccontextmanager
async def scene(kafka: Kafka, folder: Path, idle_s: float = 600.0) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        clock, prefix = Clock(SPEED), f"{folder.name}-"
        options = {"bootstrap_servers": kafka.plain}
        pool = PoolSettings(memory_mb=4096, pause_grace_s=REST_S, idle_container_s=idle_s)
        double = await stack.enter_async_context(running_classic(options, invokers=(pool,), clock=clock, prefix=prefix))
        shared = SharedClock(clock.now_ms, time.monotonic(), SPEED)
        oracle = await stack.enter_async_context(running_oracle(shared.now_ms))
        bus = {"bootstrap_servers": kafka.plain, "prefix": prefix}
        config = {
            "api_host": double.api,
            "driver": "classic",
            "mode": "on",
            "expiry_s": idle_s + 5 * REST_S,
            "kafka": bus,
        }
        yield Scene(double, oracle, shared, config, folder)


async def test_the_one_that_acts_is_killed(kafka: Kafka, tmp_path: Path) -> None:
    """Killed when its orders are out: the one that stood by acts, and knows from the bus what was ordered. The killed one
    comes back, knows whom calls met meanwhile, and keeps nothing beyond its expiry. Nothing is ordered twice, no call
    counted twice.
    """
    async with scene(kafka, tmp_path, IDLE_S) as here, AsyncExitStack() as stack:
        here.put("busy", wanted=False)
        here.put("f0", "f1", "f2")
        replay = await stack.enter_async_context(AsyncExitStack())
        await replay.enter_async_context(here.replay("busy"))
        first = await stack.enter_async_context(here.plugin("first"))
        await until(lambda: set(here.markers()) == {"f0", "f1", "f2"})
        second = await stack.enter_async_context(here.plugin("second"))
        await first.kill()
        ordered = first.holdings
        assert sorted(item.function.name for item in ordered.values()) == ["f0", "f1", "f2"]
        here.put("late")
        warm = [await here.call(name) for name in ("f0", "f1")]
        assert not any("initTime" in annotations_of(record) for record in warm)
        await until(lambda: "late" in here.markers())  # once Kafka has given the dead one's session up
        assert [item.function.name for item in second.holdings.values()] == ["late"]
        await first.start()
        await first.reaches("mesp_openwhisk_prewarmed_met_total", 2)
        await until(lambda: not any(first.holdings[marker].is_alive for marker in ordered))
        states = {item.function.name: item.state for item in first.holdings.values()}
        assert states == {"f0": HoldingState.USED, "f1": HoldingState.USED, "f2": HoldingState.GONE}
        assert here.alive("f2") == 0
        await replay.aclose()
        await here.has_told(second)
        await first.ticks(2)
        assert sorted(here.markers()) == ["f0", "f1", "f2", "late"]
        assert [here.made(name) for name in ("f0", "f1", "f2", "late")] == [1, 1, 1, 1]


async def test_kafka_is_killed_and_comes_back(kafka: Kafka, tmp_path: Path) -> None:
    """Ticks go on meanwhile. Two ticks after Kafka took a call again the plugin knows of it; none is counted twice, and
    what was ordered before is not ordered again.
    """
    async with scene(kafka, tmp_path) as here, AsyncExitStack() as stack:
        here.put("busy", wanted=False)
        here.put("f0", "f1")
        replay = await stack.enter_async_context(AsyncExitStack())
        await replay.enter_async_context(here.replay("busy"))
        plugin = await stack.enter_async_context(here.plugin("a"))
        await until(lambda: [item.state for item in plugin.holdings.values()] == [HoldingState.HELD] * 2)
        await asyncio.to_thread(kafka.server.kill)
        here.put("late")
        await plugin.ticks(2)
        await asyncio.to_thread(kafka.server.start)
        await here.double.until_up()
        assert "initTime" not in annotations_of(await here.call("f0"))
        before = await plugin.ticks()
        await plugin.reaches("mesp_openwhisk_prewarmed_met_total", 1)
        assert await plugin.ticks() - before <= 2
        await until(lambda: "late" in here.markers())
        await replay.aclose()
        await here.has_told(plugin)
        assert sorted(here.markers()) == ["f0", "f1", "late"]
        assert [here.made(name) for name in ("f0", "f1", "late")] == [1, 1, 1]
