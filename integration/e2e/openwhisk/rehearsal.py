"""A replay of a trace beside a double, with MESP off, in shadow or on: what is the same whatever the double.

The plugin, its loop and the load generator speak with the double as they would with the real one, a predictor sidecar
runs as a process of its own and is told the trace's counts before the replay. A double brings its `Stage`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import aiohttp
import numpy as np

from mesp.client import ClientConfig, PredictorClient
from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp_bench.arrivals import ArrivalMode
from mesp_bench.replay.driver import Limits, replay
from mesp_bench.replay.functions import ActionMap, function_id
from mesp_bench.replay.history import history
from mesp_bench.replay.openwhisk import OpenWhiskTarget
from mesp_bench.replay.schedule import make_schedule
from mesp_bench.replay.summary import summarize
from mesp_plugin.loop import Loop
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.start import open_platform

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from pathlib import Path

    from mesp.types import Forecasts, Rejection, StepCounts
    from mesp_bench.replay.calls import Call, Run
    from mesp_bench.replay.schedule import Schedule
    from mesp_bench.traces.model import Trace
    from mesp_plugin.openwhisk.platform import OpenWhiskPlatform

_Answer = TypeVar("_Answer")
Mode = Literal["off", "shadow", "on"]
MODES: tuple[Mode, ...] = ("off", "shadow", "on")
#: The namespace of every double.
NAMESPACE = "guest"
#: Of every action.
TIMEOUT_MS = 300_000
LIMITS = Limits(timeout_s=900)
#: Midnight of some day: the trace's first minute.
_EPOCH_MS = 1_795_219_200_000
_MINUTE_MS = 60_000
#: Limits on an action's memory (standalone's).
_LEAST_MB, _MOST_MB = 128, 512
#: A small machine's; the default of 1024 holds four functions of 256.
POOL_MB = 4_096
_TRIES = 60
#: Less is not told from chance: results are overtaken by completions.
_NOTICEABLE_MS = 10.0
#: A failed attempt must not be waited out in a time that stands still.
_ONCE = ClientConfig(observe_deadline_s=120, forecast_deadline_s=120, max_attempts=1)


@dataclass(frozen=True, slots=True)
class Setting:
    """What every mode meets alike.

    Attributes:
        user_memory_mb: of all pools together.
        stem_mb: of each of the two stem cells.
        per_minute: the namespace's limit, raised as an operator would for a load; `concurrent` likewise.
    """

    user_memory_mb: int = POOL_MB
    stem_mb: int = 256
    per_minute: int = 6_000
    concurrent: int = 300
    tick_s: float = 10.0
    warm_up_s: float = 600.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Played:
    """One replay: the report, and what the double alone knows."""

    result: dict[str, Any]
    run: Run
    marker_user_runs: int
    starts: dict[str, int]
    tally: dict[str, int]


@dataclass(frozen=True)
class Scene:
    """What is to be played: `mode` ``off`` needs no predictor.

    Attributes:
        folder: for the plugin's state.
        predictor: address of a sidecar in the double's time that has seen nothing.
    """

    trace: Trace
    schedule: Schedule
    mode: Mode
    folder: Path
    predictor: str | None
    setting: Setting

    @property
    def first_ms(self) -> int:
        """When the minutes that count begin."""
        return _EPOCH_MS + (self.trace.start_minute + self.schedule.minutes[0]) * _MINUTE_MS

    @property
    def begin_ms(self) -> int:
        """When the warm-up begins."""
        return self.first_ms - round(1e3 * self.schedule.warm_up_s)


@dataclass(frozen=True)
class Stage:
    """A double that runs, at its `Scene.begin_ms`.

    Attributes:
        config: the plugin's settings that this double needs.
        sleep: the parameter that tells an action for how many ms to run.
        held: inside, the double's time stands still.
        live: runs the load generator in the double's time.
        drive: runs the plugin's loop in the double's time, until the event.
        idle_gb: the idle memory now; None where the double adds it up by itself.
        opens: the plugin's platform.
    """

    host: str
    key: str
    config: dict[str, Any]
    sleep: str
    held: Callable[[], AbstractContextManager[None]]
    live: Callable[[Coroutine[Any, Any, Run]], Awaitable[Run]]
    drive: Callable[[Loop, asyncio.Event], Coroutine[Any, Any, None]]
    idle_gb: Callable[[], Awaitable[float]] | None = None
    opens: Callable[[OpenWhiskConfig], AbstractAsyncContextManager[OpenWhiskPlatform]] = open_platform


@dataclass
class Performed:
    """The run, what the plugin counted, and how long it all took."""

    run: Run
    tally: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0
    took_cpu_s: float = 0.0


class HeldPredictor:
    """A predictor whose answers take no time of the double; on a busy machine its process may need a while to come up."""

    def __init__(self, client: PredictorClient, held: Callable[[], AbstractContextManager[None]]) -> None:
        self._client = client
        self._held = held

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        waiting = [steps]  # what could not be sent the client keeps for the next call
        return await self._patiently(lambda: self._client.observe(waiting.pop() if waiting else ()))

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        return await self._patiently(lambda: self._client.forecast(functions, horizon, levels))

    async def _patiently(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        loop = asyncio.get_running_loop()
        with self._held():
            for _ in range(_TRIES):
                with contextlib.suppress(UnavailableError):
                    return await ask()
                await loop.run_in_executor(None, time.sleep, 0.5)  # the loop's own sleep might not end
            return await ask()


def make_scene(
    trace: Trace, minutes: tuple[int, int], mode: Mode, *, folder: Path, predictor: str | None, setting: Setting
) -> Scene:
    """The minutes [A, B) of a trace that is small enough for one machine; the warm-up before A must be in it, too."""
    warm_up_s = min(setting.warm_up_s, 60.0 * minutes[0])
    schedule = make_schedule(trace, minutes, mode=ArrivalMode.UNIFORM, seed=setting.seed, warm_up_s=warm_up_s)
    return Scene(trace, schedule, mode, folder, predictor, setting)


async def perform(scene: Scene, stage: Stage) -> Performed:
    """Plays the scene; returns when every call has its outcome and the plugin has stopped."""
    stop, begun_s, begun_cpu_s = asyncio.Event(), time.perf_counter(), time.process_time()
    tally: dict[str, int] = {}
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        loop_task = None
        if scene.mode != "off":
            config = _config(scene, stage)
            with stage.held():
                platform = await stack.enter_async_context(stage.opens(config))
                client = await stack.enter_async_context(
                    PredictorClient(scene.predictor or "", rng=random.Random(0), config=_ONCE)
                )
                held = HeldPredictor(client, stage.held)
                known_as = {key: FunctionKey(NAMESPACE, action_name(key)) for key in scene.trace.functions}
                await held.observe(history(scene.trace, scene.schedule, known_as, scene.begin_ms))
            loop_task = asyncio.create_task(stage.drive(Loop(platform, held, config.loop), stop))
        actions = {"default": {"action": "f-{id}", "parameters": {stage.sleep: "{run_ms}"}}}
        entries = ActionMap.model_validate(actions).entries(scene.trace.functions, None)
        target = OpenWhiskTarget(stage.host, stage.key, entries)
        run = await stage.live(
            replay(scene.schedule, target, session, stop=asyncio.Event(), limits=LIMITS, idle_gb=stage.idle_gb)
        )
        stop.set()
        if loop_task:
            await loop_task
            tally = {name: getattr(platform.tally, name) for name in ("calls", "cold", "ordered", "met")}
    return Performed(run, tally, time.perf_counter() - begun_s, time.process_time() - begun_cpu_s)


def report(
    scene: Scene, performed: Performed, *, driver: str, pools: str, starts: dict[str, int], marker_user_runs: int
) -> Played:
    """The result as `mesp replay` writes it, with what the plugin counted and how containers started."""
    took = f"Played in {performed.took_s:.0f} s; double, plugin and load generator took {performed.took_cpu_s:.0f} s"
    notes = [
        "Not a real OpenWhisk: a double at wire level, with recorded start times of the real one, in virtual time.",
        pools,
        f"{took} of one core.",
    ]
    result = summarize(
        performed.run, scene.schedule, LIMITS, platform="openwhisk (double)", driver=driver, mode=scene.mode,
        arrivals=ArrivalMode.UNIFORM, notes=notes, measured={"marker_user_runs": float(marker_user_runs)},
    )  # fmt: skip
    extra = {"plugin": performed.tally, "starts": starts}
    return Played(result | extra, performed.run, marker_user_runs, starts, performed.tally)


def delayed(off: Run, run: Run) -> dict[str, float]:
    """Counted calls that took noticeably longer than the same ones without MESP, and by how much at most (ms)."""
    both = zip(_in_order(off), _in_order(run), strict=True)
    later_ms = [call.latency_ms - before.latency_ms for before, call in both]
    noticed_ms = [late_ms for late_ms in later_ms if late_ms >= _NOTICEABLE_MS]
    return {"calls": len(noticed_ms), "at_most_ms": round(max(noticed_ms, default=0.0), 1)}


def _in_order(run: Run) -> list[Call]:
    return sorted(
        (call for call in run.calls if call.intended_ms >= 0), key=lambda call: (call.intended_ms, call.function)
    )


def action_name(function: FunctionKey) -> str:
    """The double's action for a function of the trace."""
    return f"f-{function_id(function)}"


def size_mb(memory_mb: float) -> int:
    """The memory that an operator would give to what needs so much, the least where nobody knows."""
    return _LEAST_MB if np.isnan(memory_mb) else min(_MOST_MB, max(_LEAST_MB, 2 ** int(np.ceil(np.log2(memory_mb)))))


def _config(scene: Scene, stage: Stage) -> OpenWhiskConfig:
    os.environ["MESP_OPENWHISK_AUTH"] = stage.key
    scene.folder.mkdir(parents=True, exist_ok=True)
    return OpenWhiskConfig.model_validate(
        {
            "api_host": stage.host,
            "mode": scene.mode,
            "state_file": scene.folder / f"state-{scene.mode}.json",
            "loop": {"placement": {"tick_s": scene.setting.tick_s}},
            **stage.config,
        }
    )
