"""Killed with SIGKILL beside standalone OpenWhisk: the plugin, and the predictor that ships. Real processes.

The double lives in the test's own process; its time and the plugin's are moved by hand.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from e2e.openwhisk.oracle import running_oracle
from e2e.openwhisk.plugin_process import PluginProcess
from e2e.openwhisk.standalone import KEY, NAMESPACE, Standalone
from e2e.openwhisk.standalone_pool import Spec
from e2e.openwhisk.timeline import HandTimeline
from e2e.servers.process import Server, free_ports, listens
from mesp.client import PredictorClient
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.holdings import HoldingState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: A whole minute.
BEGIN_MS = 1_795_245_000_000
TICK_MS, MINUTE_MS = 10_000, 60_000
#: A client waits at most so long between two attempts to connect; ticks are 10 s apart, where time is not moved by hand.
RECONNECT_S = 2.5


@dataclass
class Scene:
    """A platform, the plugin beside it, and their time."""

    double: Standalone
    time: HandTimeline
    config: dict[str, Any]
    folder: Path
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def now_ms(self) -> int:
        return self.time.now_ms()

    def put(self, name: str, *, opted_in: bool = True) -> None:
        """An action that answers markers."""
        notes = (("mesp-prewarm", True),) if opted_in else ()
        self.double.put(Spec(name, memory_mb=128, annotations=notes, answers_marker=True))

    def call(self, name: str) -> str:
        """A user's call; its id."""
        self.calls[name] += 1
        return self.double.call(name)

    def plugin(self, predictor: str, **placement: Any) -> PluginProcess:
        """The one, which orders and remembers; not started yet."""
        loop = {"predictor_address": predictor, "placement": placement}
        return PluginProcess(self.folder / "plugin", KEY, {**self.config, "loop": loop})

    def wait(self, ms: int = TICK_MS) -> int:
        """Calls come and go; the time after."""
        for _ in range(ms // 2_000):
            self.call("busy")
            self.time.advance(self.now_ms + 2_000)
        return self.now_ms

    def is_cold(self, call: str) -> bool:
        """Whether it waited for a container."""
        return "initTime" in {note["key"] for note in self.double.records[call]["annotations"]}

    def made(self, name: str) -> int:
        """Containers that were ever made for an action."""
        starts = self.double.pool.starts.items()
        return sum(count for (state, action), count in starts if action == name and state != "warmed")


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    timeline = HandTimeline(BEGIN_MS)
    double = Standalone(timeline, user_memory_mb=4096, stems=())
    async with double.serve() as host:
        config = {"api_host": host, "driver": "standalone", "mode": "on", "pool_memory_mb": 4096.0}
        here = Scene(double, timeline, config, folder)
        here.put("busy", opted_in=False)
        yield here


@pytest.mark.parametrize("answer", ["comes", "is lost"])
async def test_a_killed_plugin_comes_back_knowing_what_it_added(tmp_path: Path, answer: str) -> None:
    """Killed when its orders are out, or before it heard that they are: the next life finds them, orders nothing twice,
    takes no marker for a call and no call for two, and keeps nothing beyond its expiry.
    """
    async with scene(tmp_path) as here, running_oracle(lambda: here.now_ms) as oracle:
        for name in ("f0", "f1"):
            here.put(name)
            oracle.wanted.append(FunctionKey(NAMESPACE, name))
        here.double.lose_answers = answer == "is lost"
        async with here.plugin(oracle.address).running(here.wait()) as plugin:
            await plugin.kill()
            here.double.lose_answers = False
            ordered = plugin.holdings
            assert sorted(item.function.name for item in ordered.values()) == ["f0", "f1"]
            here.wait(30_000)
            met = here.call("f0")
            await plugin.start(here.wait())
            assert not here.is_cold(met)
            states = {item.function.name: item.state for item in plugin.holdings.values()}
            assert states == {"f0": HoldingState.USED, "f1": HoldingState.HELD}
            assert await plugin.metric("mesp_openwhisk_prewarmed_met_total") == 1
            while here.now_ms < max(item.until_ms for item in ordered.values()):
                await plugin.tick(here.wait())
        assert not any(item.is_alive for item in plugin.holdings.values())
        assert plugin.holdings.keys() == ordered.keys()
        assert (here.made("f0"), here.made("f1")) == (1, 1)
        assert here.double.pool.marker_user_runs == 0
        told = {key: sum(step.get(key, 0) for step in oracle.counts().values()) for key in map(guest, ("busy", "f0"))}
        until_ms = max(start_ms for _, start_ms in oracle.told) + MINUTE_MS
        late = (here.now_ms - until_ms) // 2_000
        assert told == {guest("busy"): here.calls["busy"] - late, guest("f0"): 1}


async def test_the_predictor_is_killed_and_comes_back(tmp_path: Path) -> None:
    """The plugin goes on acting by the last forecast; two ticks after the predictor answers again it has a new one. What
    was observed before is still known.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mesp", "predictor", "serve", "--virtual-time"]
    command += ["--port", str(port), "--state", str(tmp_path / "predictor.npz")]
    predictor = Server(command, tmp_path / "predictor.log", lambda: listens(port))
    async with scene(tmp_path) as here, AsyncExitStack() as stack:
        here.put("f0")
        here.put("late", opted_in=False)
        for name in ("f0", "late"):
            here.call(name)
        stack.callback(predictor.kill)
        await asyncio.to_thread(predictor.start)
        # One more is wanted than there is of everything that the predictor knows.
        plugin = here.plugin(f"127.0.0.1:{port}", min_containers=2)
        await stack.enter_async_context(plugin.running(here.wait(MINUTE_MS)))
        assert {item.function.name for item in plugin.holdings.values()} == {"f0"}
        await asyncio.to_thread(predictor.kill)
        here.put("late")
        await plugin.tick(here.wait(MINUTE_MS))
        assert await plugin.metric("mesp_loop_predictor_failures_total") == 1
        assert {item.function.name for item in plugin.holdings.values()} == {"f0", "late"}
        assert await plugin.metric("mesp_loop_ticks_without_forecast_total") == 0
        await asyncio.to_thread(predictor.start)
        await asyncio.sleep(RECONNECT_S)
        for _ in range(2):
            await plugin.tick(here.wait())
        assert await plugin.metric("mesp_loop_forecasts_total") == 2
        async with PredictorClient(f"127.0.0.1:{port}", rng=random.Random(0)) as client:
            assert {key.name for key in await client.list_functions()} == {"busy", "f0", "late"}


def guest(name: str) -> FunctionKey:
    return FunctionKey(NAMESPACE, name)
