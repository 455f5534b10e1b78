"""A replay beside the double of OpenWhisk with FPC that lives in memory.

All live by one stepped clock: double, plugin and load generator; what the plugin has of its own to speak with Kafka, etcd
and gRPC is left out (see `fpc_beside`), and its time stands still only while the predictor thinks. Two invokers share
the memory that standalone's pool has alone.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from e2e.openwhisk import clocked, fpc_beside
from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.fpc import running_fpc_in_memory
from e2e.openwhisk.fpc_beside import PluginClock, beside, serving_api
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings, StemCells
from e2e.openwhisk.rehearsal import TIMEOUT_MS, Stage, action_name, perform, report, size_mb
from e2e.openwhisk.replay_classic import InTime
from mesp_plugin.openwhisk.messages import is_marker_id

if TYPE_CHECKING:
    import asyncio

    from e2e.openwhisk.rehearsal import Played, Scene
    from mesp_plugin.loop import Loop

_INVOKERS = 2
#: Before the warm-up: invokers come up.
_LEAD_MS = 60_000


def play(scene: Scene) -> Played:
    """Replays the minutes."""
    return fpc_beside.run(_play(scene))


async def _play(scene: Scene) -> Played:
    setting, clock = scene.setting, clocked.LoopClock(scene.begin_ms - _LEAD_MS)
    pool = PoolSettings(setting.user_memory_mb // _INVOKERS, stem_cells=(StemCells(memory_mb=setting.stem_mb),))
    async with AsyncExitStack() as stack:
        double = await stack.enter_async_context(
            running_fpc_in_memory(clock, invokers=(pool,) * _INVOKERS, program=InTime(), seed=setting.seed)
        )
        double.store.limits[GUEST.namespace] = {"concurrent": setting.concurrent}
        for function, memory_mb in zip(scene.trace.functions, scene.trace.memory_mb, strict=True):
            name, memory = action_name(function), size_mb(memory_mb)
            opted_in = {"mesp-prewarm": True}
            double.store.put(Action(GUEST.namespace, name, memory, timeout_ms=TIMEOUT_MS, annotations=opted_in))

        async def idle_gb() -> float:
            return sum(invoker.idle_mb() for invoker in double.invokers) / 1024

        async def drive(plugin: Loop, stop: asyncio.Event) -> None:
            await plugin.run(PluginClock(clock), stop)

        api = await stack.enter_async_context(serving_api(double))
        await clock.sleep_until(scene.begin_ms)
        stage = Stage(
            host=api,
            key=GUEST.key,
            config={
                "kafka": {"bootstrap_servers": "in-memory:0"},
                "etcd": {"endpoints": ["http://in-memory"]},
                "fpc": {"namespace_limit": setting.concurrent},
            },
            sleep="ms",
            held=clock.held,
            live=partial(clocked.living_by, clock),
            drive=drive,
            idle_gb=idle_gb,
            opens=partial(beside, double),
        )
        performed = await perform(scene, stage)
        assert isinstance(double.engine, Simulated)
        return report(
            scene,
            performed,
            driver="fpc",
            pools=f"{_INVOKERS} invokers of {pool.memory_mb} MB and a stem cell of {setting.stem_mb} MB in each.",
            starts=dict(sorted(sum((one.starts for one in double.invokers), Counter()).items())),
            marker_user_runs=sum(is_marker_id(run.activation_id) for run in double.engine.user_runs),
        )
