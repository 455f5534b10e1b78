"""The same minutes of a trace against a double of OpenWhisk, MESP off, in shadow and on: `make e2e-openwhisk`.

    python -m e2e.openwhisk.replaying --trace DIR --minutes 600:630 --out OUT

A sample of the trace (what a small machine carries) is replayed in virtual time: the double, the plugin, its loop and
the load generator speak HTTP with one another as they would on a wall clock, a predictor sidecar runs as a process of
its own, and is told the trace's counts before the replay. Every mode begins with the same warm-up, which is not
counted. Each writes ``replay-<driver>-<mode>.json`` as `mesp replay` does; the last table lays them side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path  # noqa: TC003 (typer reads annotations when it runs)
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import aiohttp
import numpy as np
import structlog
import typer

from e2e.openwhisk import virtual
from e2e.openwhisk.standalone import KEY, NAMESPACE, Standalone
from e2e.openwhisk.standalone_pool import Spec
from e2e.openwhisk.timeline import WallTimeline
from mesp.client import ClientConfig, PredictorClient
from mesp.errors import MespError, UnavailableError
from mesp.types import FunctionKey
from mesp_bench.arrivals import ArrivalMode
from mesp_bench.evaluate import provenance
from mesp_bench.replay.driver import Limits, replay
from mesp_bench.replay.functions import ActionMap, function_id
from mesp_bench.replay.history import history
from mesp_bench.replay.openwhisk import OpenWhiskTarget
from mesp_bench.replay.schedule import make_schedule, parse_minutes
from mesp_bench.replay.summary import summarize
from mesp_bench.sample import sample_trace
from mesp_bench.sidecar import sidecar
from mesp_plugin.loop import Loop
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.start import open_platform

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mesp.types import Forecasts, Rejection, StepCounts
    from mesp_bench.replay.calls import Run
    from mesp_bench.replay.schedule import Schedule
    from mesp_bench.traces.model import Trace

_Answer = TypeVar("_Answer")
Mode = Literal["off", "shadow", "on"]
MODES: tuple[Mode, ...] = ("off", "shadow", "on")
#: Midnight of some day: the trace's first minute.
_EPOCH_MS = 1_795_219_200_000
_MINUTE_MS = 60_000
#: A small machine's; standalone's own default of 1024 holds four functions of 256.
_POOL_MB = 4_096
#: Standalone's limits on an action's memory.
_LEAST_MB, _MOST_MB = 128, 512
_TRIES = 60
#: A failed attempt must not be waited out in a time that stands still.
_ONCE = ClientConfig(observe_deadline_s=120, forecast_deadline_s=120, max_attempts=1)


@dataclass(frozen=True, slots=True)
class Setting:
    """What every mode meets alike.

    Attributes:
        user_memory_mb: of the pool.
        stem_mb: of each of the two stem cells.
        per_minute: the namespace's limit, raised as an operator would for a load; `concurrent` likewise.
    """

    user_memory_mb: int = _POOL_MB
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


class HeldPredictor:
    """A predictor whose answers take no virtual time; on a busy machine its process may need a while to come up."""

    def __init__(self, client: PredictorClient) -> None:
        self._client = client
        self._loop = cast("virtual.VirtualLoop", asyncio.get_running_loop())

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        waiting = [steps]  # what could not be sent the client keeps for the next call
        return await self._patiently(lambda: self._client.observe(waiting.pop() if waiting else ()))

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        return await self._patiently(lambda: self._client.forecast(functions, horizon, levels))

    async def _patiently(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        with self._loop.held():
            for _ in range(_TRIES):
                with contextlib.suppress(UnavailableError):
                    return await ask()
                await self._loop.run_in_executor(None, time.sleep, 0.5)  # the loop's own sleep would not end
            return await ask()


def play(
    trace: Trace, minutes: tuple[int, int], mode: Mode, *, folder: Path, predictor: str | None, setting: Setting
) -> Played:
    """Replays the minutes with MESP in this mode; the same arguments give the same result.

    Args:
        trace: small enough for one machine.
        minutes: columns [A, B); the warm-up before A must be in the trace.
        mode: ``off`` needs no predictor.
        folder: for the plugin's state.
        predictor: address of a sidecar in virtual time that has seen nothing.
        setting: the platform.
    """
    warm_up_s = min(setting.warm_up_s, 60.0 * minutes[0])
    schedule = make_schedule(trace, minutes, mode=ArrivalMode.UNIFORM, seed=setting.seed, warm_up_s=warm_up_s)
    return virtual.run(_play(trace, schedule, mode, folder, predictor, setting))


async def _play(
    trace: Trace, schedule: Schedule, mode: Mode, folder: Path, address: str | None, setting: Setting
) -> Played:
    first_ms = _EPOCH_MS + (trace.start_minute + schedule.minutes[0]) * _MINUTE_MS
    timeline = WallTimeline(first_ms - round(1e3 * schedule.warm_up_s))
    double = Standalone(
        timeline,
        seed=setting.seed,
        per_minute=setting.per_minute,
        concurrent=setting.concurrent,
        user_memory_mb=setting.user_memory_mb,
        stems=(("nodejs:20", setting.stem_mb),) * 2,
    )
    for function, memory_mb in zip(trace.functions, trace.memory_mb, strict=True):
        double.put(_spec(function, memory_mb))
    limits = Limits(timeout_s=900)
    idle_gb_s: list[float] = []
    for at_s in (0.0, schedule.duration_s):
        timeline.call_at(first_ms + round(1e3 * at_s), lambda: idle_gb_s.append(double.pool.account()))
    stop, tally, begun_s, begun_cpu_s = asyncio.Event(), {}, time.perf_counter(), time.process_time()
    async with contextlib.AsyncExitStack() as stack:
        host = await stack.enter_async_context(double.serve())
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        loop_task = None
        if mode != "off":
            config = _config(host, mode, folder, setting)
            platform = await stack.enter_async_context(open_platform(config))
            client = await stack.enter_async_context(
                PredictorClient(address or "", rng=random.Random(0), config=_ONCE)
            )  # fmt: skip
            held = HeldPredictor(client)
            known_as = {key: FunctionKey(NAMESPACE, _action(key)) for key in trace.functions}
            await held.observe(history(trace, schedule, known_as, timeline.now_ms()))
            loop_task = asyncio.create_task(Loop(platform, held, config.loop).run(timeline, stop))
        target = OpenWhiskTarget(host, KEY, ActionMap.model_validate(_MAP).entries(trace.functions, None))
        run = await replay(schedule, target, session, stop=asyncio.Event(), limits=limits)
        stop.set()
        if loop_task:
            await loop_task
            tally = {name: getattr(platform.tally, name) for name in ("calls", "cold", "ordered", "met")}
    run = replace(run, idle_gb_s=idle_gb_s[-1] - idle_gb_s[0])
    took_s, took_cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    notes = [
        "Not a real OpenWhisk: a double at wire level, with recorded start times of the real one, in virtual time.",
        f"The pool has {setting.user_memory_mb} MB, two stem cells of {setting.stem_mb} MB among them.",
        f"Played in {took_s:.0f} s; double, plugin and load generator took {took_cpu_s:.0f} s of one core.",
    ]
    result = summarize(
        run, schedule, limits, platform="openwhisk (double)", driver="standalone", mode=mode,
        arrivals=ArrivalMode.UNIFORM, notes=notes, measured={"marker_user_runs": float(double.pool.marker_user_runs)},
    )  # fmt: skip
    starts: dict[str, int] = {}
    for (state, _), count in sorted(double.pool.starts.items()):
        starts[state] = starts.get(state, 0) + count
    return Played(result | {"plugin": tally, "starts": starts}, run, double.pool.marker_user_runs, starts, tally)


_MAP = {"default": {"action": "f-{id}", "parameters": {"sleep_ms": "{run_ms}"}}}


def _action(function: FunctionKey) -> str:
    return f"f-{function_id(function)}"


def _spec(function: FunctionKey, memory_mb: float) -> Spec:
    size_mb = _LEAST_MB if np.isnan(memory_mb) else min(_MOST_MB, max(_LEAST_MB, 2 ** int(np.ceil(np.log2(memory_mb)))))
    return Spec(
        _action(function),
        memory_mb=size_mb,
        timeout_ms=300_000,
        annotations=(("mesp-prewarm", True),),
        answers_marker=True,
    )


def _config(host: str, mode: Mode, folder: Path, setting: Setting) -> OpenWhiskConfig:
    os.environ["MESP_OPENWHISK_AUTH"] = KEY
    folder.mkdir(parents=True, exist_ok=True)
    return OpenWhiskConfig.model_validate(
        {
            "api_host": host,
            "mode": mode,
            "state_file": folder / f"state-{mode}.json",
            "pool_memory_mb": setting.user_memory_mb,
            "loop": {"placement": {"tick_s": setting.tick_s}},
        }
    )


def main(
    trace: Annotated[Path, typer.Option(help="The trace: a folder that mesp trace inspect can read.")],
    out: Annotated[Path, typer.Option(help="Folder for replay-standalone-<mode>.json and the comparison.")],
    minutes: Annotated[str, typer.Option(metavar="A:B", help="Minutes of the trace, B not included.")] = "600:630",
    functions: Annotated[int, typer.Option(help="Functions of the sample, at most.")] = 30,
    rate: Annotated[float, typer.Option(help="Calls a second in the sample's busiest minute, at most.")] = 20.0,
    memory_mb: Annotated[int, typer.Option(help="Memory of the container pool.")] = _POOL_MB,
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0,
) -> None:
    """Replays a sample of a trace against the double of standalone OpenWhisk: MESP off, shadow, on."""
    from rich.console import Console  # noqa: PLC0415

    from mesp_bench.replay.report import named, print_replays, write_comparison, write_replay  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_predictor.checkpoint import default_model  # noqa: PLC0415

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    sample, note = sample_trace(load_trace(trace), functions=functions, rate_per_s=rate, seed=seed)
    chosen = parse_minutes(minutes, sample)
    setting = Setting(user_memory_mb=memory_mb, seed=seed)
    results = []
    for mode in MODES:
        state = out / "state"
        for old in state.glob(f"state-{mode}.json*"):
            old.unlink()
        if mode == "off":
            played = play(sample, chosen, mode, folder=state, predictor=None, setting=setting)
        else:
            with sidecar(default_model()) as address:
                played = play(sample, chosen, mode, folder=state, predictor=address, setting=setting)
        result = {"provenance": provenance(sample, seeds=1, workers=1) | {"seeds": [seed]}, **played.result}
        result["notes"] = [str(note), *result["notes"]]
        results.append(result)
        write_replay(result, played.run.calls, out)
        print(mode, played.starts, played.tally)  # noqa: T201 (a program's own voice)
    print_replays(named(results), Console())
    print("Report:", write_comparison(results, out))  # noqa: T201


if __name__ == "__main__":
    try:
        typer.run(main)
    except MespError as error:
        sys.exit(f"error: {error}")
