"""A small world for the plugin's tests: one node, one function, a scripted predictor, a clock moved by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp.types import Forecasts, ForecastStatus, FunctionKey, StepCounts
from mesp_placement.model import Container, ContainerState, FunctionProfile, Node, Plan, Snapshot
from mesp_plugin.platform import Outcomes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from mesp.errors import MespError
    from mesp.types import Rejection

HELLO = FunctionKey("guest", "hello")
MINUTE_MS = 60_000


@dataclass
class World:
    """A platform that starts and removes containers at once, and closes a step every minute."""

    closed_ms: int = 0
    containers: list[Container] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    failures: list[MespError] = field(default_factory=list)

    async def observe(self, now_ms: int) -> list[StepCounts]:
        if self.failures:
            raise self.failures.pop(0)
        starts = range(self.closed_ms, now_ms - now_ms % MINUTE_MS, MINUTE_MS)
        self.closed_ms = max(self.closed_ms, starts.stop)
        return [StepCounts("world", start, MINUTE_MS, {HELLO: 1}) for start in starts]

    async def snapshot(self, now_ms: int) -> Snapshot:
        return Snapshot((Node("n1", 1024),), tuple(self.containers), (FunctionProfile(HELLO, 256),))

    async def apply(self, plan: Plan, now_ms: int) -> Outcomes:
        self.plans.append(plan)
        for wish in plan.prewarms:
            self.containers += [
                Container(
                    f"c{len(self.containers) + i}", wish.function, wish.node, ContainerState.IDLE, 256, now_ms, True
                )
                for i in range(wish.count)
            ]
        gone = {release.container_id for release in plan.releases}
        self.containers = [container for container in self.containers if container.id not in gone]
        return Outcomes(sum(wish.count for wish in plan.prewarms), len(plan.releases))


@dataclass
class Oracle:
    """A predictor that is sure of an invocation in every step; fails with what the scripts hold first."""

    observe_failures: list[MespError] = field(default_factory=list)
    forecast_failures: list[MespError] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    seen: list[StepCounts] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        self.calls.append("observe")
        self.seen.extend(steps)
        if self.observe_failures:
            raise self.observe_failures.pop(0)
        return self.rejections

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        self.calls.append("forecast")
        if self.forecast_failures:
            raise self.forecast_failures.pop(0)
        steps = horizon or 15
        as_of_ms = self.seen[-1].step_start_ms + MINUTE_MS if self.seen else 0
        return Forecasts(
            tick_id=len(self.seen),
            as_of_ms=as_of_ms,
            step_ms=MINUTE_MS,
            levels=(0.5,),
            functions=(HELLO,),
            status=(ForecastStatus.OK,),
            quantiles=np.ones((1, steps, 1), np.float32),
            active=np.ones((1, steps), np.float32),
            experts=(),
            weights=np.ones((1, 0), np.float32),
            age_ms=np.zeros(1, np.int64),
            model_version="oracle",
        )


@dataclass
class HandClock:
    """Sleeping moves it; reaching `end_ms` sets `stop`. `late_ms` is added to the wake-ups, in turn."""

    stop: asyncio.Event
    end_ms: int
    now: int = 0
    late_ms: list[int] = field(default_factory=list)

    def now_ms(self) -> int:
        return self.now

    async def sleep_until(self, at_ms: int) -> None:
        self.now = at_ms + (self.late_ms.pop(0) if self.late_ms else 0)
        if self.now >= self.end_ms:
            self.stop.set()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
def hand_clock() -> Callable[..., HandClock]:
    return HandClock
