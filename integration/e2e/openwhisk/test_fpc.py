"""The FPC driver beside the double: in memory to the millisecond, and on real Kafka, etcd and gRPC."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from e2e.openwhisk import fpc_beside
from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.clocked import LoopClock
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.fpc import running_fpc_in_memory
from e2e.openwhisk.fpc_beside import PluginClock, beside, serving_api
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.wire import annotations_of
from mesp.types import Forecasts, ForecastStatus, FunctionKey
from mesp_plugin.loop import Loop
from mesp_plugin.openwhisk.config import EtcdConfig, KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.messages import is_marker_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from e2e.openwhisk.fpc import Fpc
    from e2e.openwhisk.model import Json
    from mesp.types import Rejection, StepCounts
    from mesp_plugin.loop import Clock

#: A whole minute.
BEGIN_MS = 1_795_245_000_000
MINUTE_MS = 60_000
#: `f` have opted in, `h` have not; nobody foresees `plain`. What was used goes after a minute.
NAMES = ("f0", "f1", "h0", "h1", "plain")
CALLS = tuple(
    (BEGIN_MS + round((0.2 + 0.1 * place + 4 * again) * MINUTE_MS), name)
    for again in range(2)
    for place, name in enumerate(NAMES)
)
END_MS = BEGIN_MS + 6 * MINUTE_MS
POOLS = (PoolSettings(memory_mb=1024, idle_container_s=60.0),) * 2


class Oracle:
    """A predictor that knows `CALLS`, but those of `plain`; keeps what it is told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.told: dict[int, StepCounts] = {}

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        self.told |= {step.step_start_ms: step for step in steps}
        return []

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        del functions, horizon, levels
        now_ms = self._clock.now_ms()
        as_of_ms = now_ms - now_ms % MINUTE_MS
        counts = np.zeros((len(NAMES), 3), np.float32)
        for at_ms, name in CALLS:
            if 0 <= (step := (at_ms - as_of_ms) // MINUTE_MS) < 3 and name != "plain":
                counts[NAMES.index(name), step] += 1
        return Forecasts(
            tick_id=as_of_ms,
            as_of_ms=as_of_ms,
            step_ms=MINUTE_MS,
            levels=(0.1, 0.5, 0.9),
            functions=tuple(FunctionKey("guest", name) for name in NAMES),
            status=(ForecastStatus.OK,) * len(NAMES),
            quantiles=np.repeat(counts[:, :, None], 3, axis=2),
            active=np.minimum(counts, 1),
            experts=("oracle",),
            weights=np.ones((len(NAMES), 1), np.float32),
            age_ms=np.zeros(len(NAMES), np.int64),
            model_version="1",
        )


@dataclass(frozen=True)
class Played:
    """What came of `CALLS`: their records, every message on the bus, and what MESP says of itself."""

    records: dict[tuple[int, str], Json]
    messages: list[Json]
    user_runs: list[str]
    told: dict[int, StepCounts]
    tally: dict[str, int]

    def second(self, *names: str) -> list[Json]:
        """Annotations of the second calls."""
        return [annotations_of(self.records[at_ms, name]) for at_ms, name in CALLS[len(NAMES) :] if name in names]

    def waits_ms(self, *names: str) -> list[int]:
        return [notes["waitTime"] + notes.get("initTime", 0) for notes in self.second(*names)]


async def call_all(double: Fpc) -> dict[tuple[int, str], Json]:
    async def call(at_ms: int, name: str) -> Json:
        await double.clock.sleep_until(at_ms)
        action = double.store.get(f"guest/{name}")
        assert action is not None
        _, record = await double.controller.invoke(GUEST, action, {"ms": 200}, blocking=True)
        assert record is not None
        return record

    calls = [asyncio.create_task(call(*one)) for one in CALLS]
    return dict(zip(CALLS, await asyncio.gather(*calls), strict=True))


def put_actions(double: Fpc) -> None:
    for name in NAMES:
        double.store.put(Action("guest", name, annotations={"mesp-prewarm": name.startswith("f")}))


def played(double: Fpc, records: dict[tuple[int, str], Json], oracle: Oracle, tally: object) -> Played:
    assert isinstance(double.engine, Simulated)
    return Played(
        records,
        [line["value"] for line in double.recording.lines if line["src"] == "kafka"],
        [run.activation_id for run in double.engine.user_runs if not run.action.startswith("/whisk.system/")],
        oracle.told,
        {name: getattr(tally, name) for name in ("calls", "cold", "ordered", "met")} if tally else {},
    )


async def in_memory(folder: Path, *, on: bool) -> Played:
    clock = LoopClock(BEGIN_MS - MINUTE_MS)
    async with AsyncExitStack() as stack:
        double = await stack.enter_async_context(running_fpc_in_memory(clock, invokers=POOLS))
        put_actions(double)
        api, ticks = await stack.enter_async_context(serving_api(double)), PluginClock(clock)
        oracle, platform, plugin, stop = Oracle(ticks), None, None, asyncio.Event()
        if on:
            config = settings(api, folder)
            platform = await stack.enter_async_context(beside(double, config))
            plugin = asyncio.create_task(Loop(platform, oracle, config.loop).run(ticks, stop))
        records = await call_all(double)
        await clock.sleep_until(END_MS)
        stop.set()
        if plugin:
            await plugin
        return played(double, records, oracle, platform.tally if platform else None)


def settings(api: str, folder: Path, **members: object) -> OpenWhiskConfig:
    return OpenWhiskConfig.model_validate(
        {
            "api_host": api,
            "mode": "on",
            "state_file": folder / "state.json",
            "kafka": KafkaConfig(bootstrap_servers="none:9092"),
            "etcd": EtcdConfig(endpoints=("http://none:2379",)),
            **members,
        }
    )


def test_calls_meet_what_waits_and_nobody_is_harmed(tmp_path: Path) -> None:
    """The same calls without and with MESP: each succeeds and runs once; those foreseen wait for no container."""
    off = fpc_beside.run(in_memory(tmp_path, on=False))
    on = fpc_beside.run(in_memory(tmp_path, on=True))
    for one in (off, on):
        assert [record["response"]["statusCode"] for record in one.records.values()] == [0] * len(CALLS)
        assert sorted(one.user_runs) == sorted(record["activationId"] for record in one.records.values())
    # From the call to the end of /init: a container has to be made, or one is held, initialised or not.
    assert min(off.waits_ms("f0", "f1", "h0", "h1")) > 400
    assert max(on.waits_ms("f0", "f1")) < 150
    assert max(on.waits_ms("h0", "h1")) < 200
    assert min(on.waits_ms("plain")) > 400
    assert not any("initTime" in notes for notes in on.second("f0", "f1"))
    # A marker is sent to whom has opted in, and runs nobody's code; to be held needs none.
    markers = [ack for ack in on.messages if is_marker_id(str(ack.get("activationId")))]
    assert {
        one["body"]["name"] for one in on.messages if is_marker_id(one.get("body", {}).get("activationId", ""))
    } == {
        "guest/f0",
        "guest/f1",
    }
    assert markers
    assert on.tally == {"calls": 10, "cold": 6, "ordered": 4, "met": 4}
    told = {step.step_start_ms: dict(step.counts) for step in on.told.values() if step.counts}
    truth: dict[int, dict[FunctionKey, int]] = {}
    for at_ms, name in CALLS:
        step, key = truth.setdefault(at_ms - at_ms % MINUTE_MS, {}), FunctionKey("guest", name)
        step[key] = step.get(key, 0) + 1
    assert told == truth
