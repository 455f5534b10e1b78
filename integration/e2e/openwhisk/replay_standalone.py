"""A replay beside the double of standalone OpenWhisk: all parts on one loop whose time jumps (`virtual`)."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from e2e.openwhisk import virtual
from e2e.openwhisk.rehearsal import TIMEOUT_MS, Stage, action_name, perform, report, size_mb
from e2e.openwhisk.standalone import KEY, Standalone
from e2e.openwhisk.standalone_pool import Spec
from e2e.openwhisk.timeline import WallTimeline

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from e2e.openwhisk.rehearsal import Played, Scene
    from mesp_bench.replay.calls import Run


def play(scene: Scene) -> Played:
    """Replays the minutes; the same scene gives the same result."""
    return virtual.run(_play(scene))


async def _play(scene: Scene) -> Played:
    setting, timeline = scene.setting, WallTimeline(scene.begin_ms)
    double = Standalone(
        timeline,
        seed=setting.seed,
        per_minute=setting.per_minute,
        concurrent=setting.concurrent,
        user_memory_mb=setting.user_memory_mb,
        stems=(("nodejs:20", setting.stem_mb),) * 2,
    )
    for function, memory_mb in zip(scene.trace.functions, scene.trace.memory_mb, strict=True):
        opted_in = (("mesp-prewarm", True),)
        name, memory = action_name(function), size_mb(memory_mb)
        double.put(Spec(name, memory, timeout_ms=TIMEOUT_MS, annotations=opted_in, answers_marker=True))
    idle_gb_s: list[float] = []
    for at_s in (0.0, scene.schedule.duration_s):
        timeline.call_at(scene.first_ms + round(1e3 * at_s), lambda: idle_gb_s.append(double.pool.account()))
    loop = cast("virtual.VirtualLoop", asyncio.get_running_loop())

    async def live(generator: Coroutine[Any, Any, Run]) -> Run:
        return await generator

    async with double.serve() as host:
        stage = Stage(
            host=host,
            key=KEY,
            config={"pool_memory_mb": setting.user_memory_mb},
            sleep="sleep_ms",
            held=loop.held,
            live=live,
            drive=lambda plugin, stop: plugin.run(timeline, stop),
        )
        performed = await perform(scene, stage)
    performed.run = replace(performed.run, idle_gb_s=idle_gb_s[-1] - idle_gb_s[0])
    starts: Counter[str] = Counter()
    for (state, _), count in sorted(double.pool.starts.items()):
        starts[state] += count
    return report(
        scene,
        performed,
        driver="standalone",
        pools=f"The pool has {setting.user_memory_mb} MB, two stem cells of {setting.stem_mb} MB among them.",
        starts=dict(starts),
        marker_user_runs=double.pool.marker_user_runs,
    )
