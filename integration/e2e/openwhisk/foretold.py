"""Calls that a test lists, a predictor that knows of them, and what came of them: shared by the drivers beside their doubles."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.oracle import STEP_MS, STEPS, foreseen
from mesp.types import FunctionKey

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from e2e.openwhisk.classic import Classic
    from e2e.openwhisk.fpc import Fpc
    from e2e.openwhisk.model import Json
    from mesp.types import Forecasts, Rejection, StepCounts
    from mesp_plugin.openwhisk.platform import OpenWhiskPlatform

#: When, and an action of the guest's.
Call: TypeAlias = tuple[int, str]


class Oracle:
    """A predictor that knows all calls but those of `unforeseen` actions, and keeps what it is told."""

    def __init__(self, calls: Sequence[Call], now_ms: Callable[[], int], unforeseen: Collection[str] = ()) -> None:
        self.told: dict[int, StepCounts] = {}
        self._calls = [call for call in calls if call[1] not in unforeseen]
        self._functions = tuple(FunctionKey("guest", name) for name in dict.fromkeys(name for _, name in calls))
        self._now_ms = now_ms

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        self.told |= {step.step_start_ms: step for step in steps}
        return []

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        del functions, horizon, levels
        as_of_ms = self._now_ms() // STEP_MS * STEP_MS
        counts = np.zeros((len(self._functions), STEPS), np.float32)
        for at_ms, name in self._calls:
            if 0 <= (step := (at_ms - as_of_ms) // STEP_MS) < STEPS:
                counts[self._functions.index(FunctionKey("guest", name)), step] += 1
        return foreseen(self._functions, counts, as_of_ms)


@dataclass(frozen=True)
class Played:
    """What came of the calls: their records, every message on the bus, and what MESP says of itself."""

    records: dict[Call, Json]
    messages: list[Json]
    user_runs: list[str]
    told: dict[int, StepCounts]
    tally: dict[str, int]

    def harmed_nobody(self) -> bool:
        """Every call succeeded and ran once, and no marker ran a user's code."""
        ran_once = sorted(self.user_runs) == sorted(record["activationId"] for record in self.records.values())
        return ran_once and all(record["response"]["statusCode"] == 0 for record in self.records.values())

    def told_the_truth(self) -> bool:
        """The predictor was told of each call, once, in its minute, and of no other."""
        truth: dict[int, dict[FunctionKey, int]] = {}
        for at_ms, name in self.records:
            step, key = truth.setdefault(at_ms // STEP_MS * STEP_MS, {}), FunctionKey("guest", name)
            step[key] = step.get(key, 0) + 1
        return {step.step_start_ms: dict(step.counts) for step in self.told.values() if step.counts} == truth


def calling(double: Classic | Fpc, calls: Sequence[Call]) -> asyncio.Future[dict[Call, Json]]:
    """Each at its time, for 0.2 s of work; their records, once all are over."""

    async def call(at_ms: int, name: str) -> Json:
        await double.clock.sleep_until(at_ms)
        action = double.store.get(f"guest/{name}")
        assert action is not None
        _, record = await double.controller.invoke(GUEST, action, {"ms": 200}, blocking=True)
        assert record is not None
        return record

    async def all_of_them() -> dict[Call, Json]:
        return dict(zip(calls, await asyncio.gather(*running), strict=True))

    running = [asyncio.create_task(call(*one)) for one in calls]
    return asyncio.ensure_future(all_of_them())


def played(
    double: Classic | Fpc, records: dict[Call, Json], oracle: Oracle, platform: OpenWhiskPlatform | None
) -> Played:
    """All of it; without `platform` nobody told anybody anything."""
    assert isinstance(double.engine, Simulated)
    return Played(
        records,
        [line["value"] for line in double.recording.lines if line["src"] == "kafka"],
        [run.activation_id for run in double.engine.user_runs if not run.action.startswith("/whisk.system/")],
        oracle.told,
        {name: getattr(platform.tally, name) for name in ("calls", "cold", "ordered", "met")} if platform else {},
    )
