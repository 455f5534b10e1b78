"""A replay beside the double of classic OpenWhisk on a real Kafka.

The double and the load generator live by a clock that is stepped; the plugin, which speaks with Kafka, by the machine's,
and the double's stands still while it ticks. Two invokers share the memory that standalone's pool has alone.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from e2e.openwhisk import clocked
from e2e.openwhisk.classic import GUEST, running_classic
from e2e.openwhisk.containers import Simulated, Sleeper
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings, StemCells
from e2e.openwhisk.rehearsal import TIMEOUT_MS, Stage, action_name, perform, report, size_mb
from mesp_plugin.openwhisk.messages import is_marker_id

if TYPE_CHECKING:
    from e2e.openwhisk.classic import Classic
    from e2e.openwhisk.containers import Reply
    from e2e.openwhisk.model import Json
    from e2e.openwhisk.rehearsal import Played, Scene
    from e2e.servers.kafka import Kafka
    from mesp_plugin.loop import Loop

_INVOKERS = 2
#: Before the warm-up: invokers come up.
_LEAD_MS = 60_000
#: On a wall clock a reader that is some ms behind misses nothing; on a stepped one that would be a second.
_READ_S = 0.05
_STARTED = re.compile(r"containerStart containerState: (\w+) .* namespace: guest ")


class InTime(Sleeper):
    """As long as the trace says, but never beyond the action's limit."""

    def reply(self, action_code: str, env: Json, body: Json) -> Reply:
        """See `Program.reply`."""
        reply = super().reply(action_code, env, body)
        return replace(reply, run_ms=min(reply.run_ms, TIMEOUT_MS - 1))


class _Ticks:
    """The plugin's clock: time stands still from when it wakes the plugin until that waits again."""

    def __init__(self, clock: clocked.LoopClock) -> None:
        self._clock = clock
        self._hold = AsyncExitStack()

    def now_ms(self) -> int:
        return self._clock.now_ms

    async def sleep_until(self, at_ms: int) -> None:
        await self.let_go()
        await self._clock.sleep_until(at_ms)
        self._hold.enter_context(self._clock.held())
        await asyncio.sleep(_READ_S)

    async def let_go(self) -> None:
        await self._hold.aclose()


def play(scene: Scene, kafka: Kafka) -> Played:
    """Replays the minutes on a broker that has seen no replay of this mode."""
    return clocked.run(_play(scene, kafka))


async def _play(scene: Scene, kafka: Kafka) -> Played:
    setting, prefix = scene.setting, f"{scene.mode}-"
    clock = clocked.LoopClock(scene.begin_ms - _LEAD_MS)
    pool = PoolSettings(setting.user_memory_mb // _INVOKERS, stem_cells=(StemCells(memory_mb=setting.stem_mb),))
    options = {"bootstrap_servers": kafka.plain}
    async with running_classic(
        options, invokers=(pool,) * _INVOKERS, clock=clock, program=InTime(), prefix=prefix, seed=setting.seed
    ) as double:
        for function, memory_mb in zip(scene.trace.functions, scene.trace.memory_mb, strict=True):
            name, memory = action_name(function), size_mb(memory_mb)
            opted_in = {"mesp-prewarm": True}
            double.store.put(Action(GUEST.namespace, name, memory, timeout_ms=TIMEOUT_MS, annotations=opted_in))

        async def idle_gb() -> float:
            return sum(invoker.idle_mb() for invoker in double.invokers) / 1024

        async def drive(plugin: Loop, stop: asyncio.Event) -> None:
            ticks = _Ticks(clock)
            try:
                await plugin.run(ticks, stop)
            finally:
                await ticks.let_go()

        await clock.sleep_until(scene.begin_ms)
        stage = Stage(
            host=double.api,
            key=GUEST.key,
            config={"kafka": {"bootstrap_servers": kafka.plain, "prefix": prefix, "stem_cells_mb": setting.stem_mb}},
            sleep="ms",
            held=clock.held,
            live=partial(clocked.living_by, clock),
            drive=drive,
            idle_gb=idle_gb,
        )
        performed = await perform(scene, stage)
        return report(
            scene,
            performed,
            driver="classic",
            pools=f"{_INVOKERS} invokers of {pool.memory_mb} MB, a stem cell of {setting.stem_mb} MB in each.",
            starts=_starts(double),
            marker_user_runs=_marker_user_runs(double),
        )


def _starts(double: Classic) -> dict[str, int]:
    found = (_STARTED.search(line["line"]) for line in double.recording.of("log"))
    return dict(sorted(Counter(match[1] for match in found if match).items()))


def _marker_user_runs(double: Classic) -> int:
    assert isinstance(double.engine, Simulated)
    return sum(is_marker_id(run.activation_id) for run in double.engine.user_runs)
