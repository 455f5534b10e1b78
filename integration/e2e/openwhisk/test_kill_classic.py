"""Killed with SIGKILL in the middle of a replay: the plugin that acts of two, and Kafka. Real processes.

The double of classic OpenWhisk lives in the test's own process. Its time and the plugins' stand still but for `Scene.go`;
Kafka lives by the wall's.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from e2e.openwhisk.classic import GUEST, running_classic
from e2e.openwhisk.clock import HeldClock
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.model import Action
from e2e.openwhisk.oracle import WireOracle, running_oracle
from e2e.openwhisk.plugin_process import PluginProcess, until
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

#: A whole minute.
BEGIN_MS = 1_795_245_000_000
TICK_MS, MINUTE_MS = 10_000, 60_000
#: What is ordered counts as MESP's for so long; an idle container is removed sooner.
EXPIRY_S, IDLE_S = 300.0, 200.0


@dataclass
class Scene:
    """A platform, the predictor's stand-in, how plugins get there, and the time of all."""

    double: Classic
    oracle: WireOracle
    clock: HeldClock
    hold: ExitStack
    config: dict[str, Any]
    folder: Path
    calls: list[asyncio.Task[Json]] = field(default_factory=list)

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms

    def plugin(self, name: str) -> PluginProcess:
        """One that is not started; those of one scene are of one group."""
        return PluginProcess(
            self.folder / name, GUEST.key, {**self.config, "loop": {"predictor_address": self.oracle.address}}
        )

    def put(self, *names: str, wanted: bool = True) -> None:
        """Actions that opted in, and of which the predictor foresees calls."""
        for name in names:
            self.double.store.put(Action("guest", name, annotations={"mesp-prewarm": wanted}))
        self.oracle.wanted += [FunctionKey("guest", name) for name in names if wanted]

    def call(self, name: str) -> asyncio.Task[Json]:
        """A user's call; its record, once time has gone on."""
        action = self.double.store.get(f"guest/{name}")
        assert action is not None

        async def record() -> Json:
            _, found = await self.double.controller.invoke(GUEST, action, {"ms": 100}, blocking=True)
            assert found is not None
            assert found["response"]["statusCode"] == 0
            return found

        self.calls.append(asyncio.create_task(record()))
        return self.calls[-1]

    async def go(self, ms: int = TICK_MS) -> int:
        """Time goes on, with a call every 2 s; the time after."""
        end_ms = self.now_ms + ms
        self.hold.close()
        for at_ms in range(self.now_ms, end_ms, 2_000):
            self.call("busy")
            await self.clock.sleep_until(min(at_ms + 2_000, end_ms))
        self.hold.enter_context(self.clock.held())
        return self.now_ms

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

    def has_told(self) -> bool:
        """Whether the predictor knows of every call in minutes that closed, and of no other."""
        truth = {start_ms: counts for start_ms, counts in self.truth().items() if start_ms + MINUTE_MS <= self.now_ms}
        return self.oracle.counts() == truth


@asynccontextmanager
async def scene(kafka: Kafka, folder: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        clock, prefix = HeldClock(BEGIN_MS - MINUTE_MS), f"{folder.name}-"
        options, pool = {"bootstrap_servers": kafka.plain}, PoolSettings(memory_mb=4096, idle_container_s=IDLE_S)
        double = await stack.enter_async_context(running_classic(options, invokers=(pool,), clock=clock, prefix=prefix))
        oracle = await stack.enter_async_context(running_oracle(lambda: clock.now_ms))
        bus = {"bootstrap_servers": kafka.plain, "prefix": prefix}
        config = {"api_host": double.api, "driver": "classic", "mode": "on", "expiry_s": EXPIRY_S, "kafka": bus}
        here = Scene(double, oracle, clock, stack.enter_context(ExitStack()), config, folder)
        here.put("busy", wanted=False)
        await clock.sleep_until(BEGIN_MS)
        here.hold.enter_context(clock.held())
        yield here
        here.hold.close()
        await asyncio.gather(*here.calls, return_exceptions=True)  # a call that Kafka never got ends with nobody


async def test_the_one_that_acts_is_killed(kafka: Kafka, tmp_path: Path) -> None:
    """Killed when its orders are out: the one that stood by acts, and knows from the bus what was ordered. The killed one
    comes back, knows whom calls met meanwhile, and keeps nothing beyond its expiry. Nothing is ordered twice, no call
    counted twice.
    """
    async with scene(kafka, tmp_path) as here, AsyncExitStack() as stack:
        here.put("f0", "f1", "f2")
        first, second = here.plugin("first"), here.plugin("second")
        await stack.enter_async_context(first.running(here.now_ms))
        await until(lambda: sorted(here.markers()) == ["f0", "f1", "f2"])
        await first.kill()
        ordered = first.holdings
        assert sorted(item.function.name for item in ordered.values()) == ["f0", "f1", "f2"]
        here.put("late")
        await here.go()
        warm = [here.call(name) for name in ("f0", "f1")]
        await stack.enter_async_context(second.running(await here.go(MINUTE_MS - TICK_MS)))
        assert not any("initTime" in annotations_of(one.result()) for one in warm)
        while "late" not in here.markers():  # until Kafka has given the dead one's session up
            await second.tick(await here.go())
            await asyncio.sleep(1)
        assert [item.function.name for item in second.holdings.values()] == ["late"]
        await first.start(await here.go())
        states = {item.function.name: item.state for item in first.holdings.values()}
        assert states == {"f0": HoldingState.USED, "f1": HoldingState.USED, "f2": HoldingState.HELD}
        assert await first.metric("mesp_openwhisk_prewarmed_met_total") == 2
        now_ms = await here.go(max(item.until_ms for item in ordered.values()) - here.now_ms)
        for plugin in (first, second):
            await plugin.tick(now_ms - now_ms % TICK_MS)
        assert not any(first.holdings[marker].is_alive for marker in ordered)
        assert here.alive("f2") == 0
        assert here.has_told()
        assert sorted(here.markers()) == ["f0", "f1", "f2", "late"]
        assert [here.made(name) for name in ("f0", "f1", "f2", "late")] == [1, 1, 1, 1]


async def test_kafka_is_killed_and_comes_back(kafka: Kafka, tmp_path: Path) -> None:
    """Ticks go on meanwhile. Two ticks after Kafka took a call again the plugin knows of it; none is counted twice, and
    what was ordered before is not ordered again.
    """
    async with scene(kafka, tmp_path) as here, AsyncExitStack() as stack:
        here.put("f0", "f1")
        plugin = here.plugin("a")
        await stack.enter_async_context(plugin.running(here.now_ms))
        while [item.state for item in plugin.holdings.values()] != [HoldingState.HELD] * 2:
            await plugin.tick(await here.go())
        await asyncio.to_thread(kafka.server.kill)
        here.put("late")
        for _ in range(3):
            here.call("busy")
        for at_ms in range(here.now_ms, here.now_ms + 3 * TICK_MS, TICK_MS):
            await plugin.tick(at_ms + TICK_MS)
        await asyncio.to_thread(kafka.server.start)
        await here.go(3 * TICK_MS)
        met = here.call("f0")
        for _ in range(2):
            await plugin.tick(await here.go())
        assert "initTime" not in annotations_of(met.result())
        assert await plugin.metric("mesp_openwhisk_prewarmed_met_total") == 1
        while "late" not in here.markers():
            await plugin.tick(await here.go())
        await plugin.tick(await here.go(MINUTE_MS - here.now_ms % MINUTE_MS))
        assert here.has_told()
        assert sorted(here.markers()) == ["f0", "f1", "late"]
        assert [here.made(name) for name in ("f0", "f1", "late")] == [1, 1, 1]
