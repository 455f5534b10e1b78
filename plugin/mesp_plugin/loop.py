"""The loop: observe, forecast, plan, apply; one `tick` at a time, by the clock that drives it.

The wall clock drives it live and a virtual clock in the simulator: `tick` itself asks no clock. The predictor is
advisory. When it does not answer, the tick goes on with the last forecast that came, and once that is older than
``placement.stale_after_s`` with none, which makes the planner give back what MESP holds. A forecast changes only
when a step closes, so it is asked for only after the platform reported one, or after the last attempt failed.

The loop owns the planner's state and the last known good forecast; both die with it, and the platform's floors
expire by themselves.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from mesp.errors import MespError, UnavailableError
from mesp_placement.model import PlannerState
from mesp_placement.planner import plan
from mesp_plugin.metrics import LoopMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from mesp.types import Forecasts, FunctionKey, Rejection, StepCounts
    from mesp_placement.model import Plan
    from mesp_plugin.config import LoopConfig
    from mesp_plugin.platform import Outcomes, Platform

_log = structlog.get_logger(__name__)


class Predictor(Protocol):
    """What the loop needs of a predictor; `mesp.client.PredictorClient` is one. Failures are raised as `MespError`."""

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        """Takes counts in; after `UnavailableError` it keeps them and sends them with the next call."""
        ...

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        """Forecasts all known functions (None) over `horizon` steps (0: the model's)."""
        ...


class Clock(Protocol):
    """Milliseconds since the epoch, and waiting for them."""

    def now_ms(self) -> int:
        """The time."""
        ...

    async def sleep_until(self, at_ms: int) -> None:
        """Returns at `at_ms`, or at once when that has passed; may return early."""
        ...


class WallClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """The time."""
        return time.time_ns() // 1_000_000

    async def sleep_until(self, at_ms: int) -> None:
        """Sleeps for what is left until `at_ms`."""
        await asyncio.sleep(max(0, at_ms - self.now_ms()) / 1e3)


@dataclass(frozen=True, slots=True)
class TickReport:
    """What one tick saw and did.

    Attributes:
        steps: reports of closed steps that the platform gave.
        rejections: observed items that were refused.
        predictor_error: the first call to the predictor that failed, as a sentence; None when none did.
        fresh_forecast: a forecast arrived in this tick.
        forecast_as_of_ms: of the forecast that decided; None when there was none, or it was too old.
    """

    now_ms: int
    steps: int
    rejections: tuple[Rejection, ...]
    predictor_error: str | None
    fresh_forecast: bool
    forecast_as_of_ms: int | None
    plan: Plan
    outcomes: Outcomes


class Loop:
    """Drives one platform by one predictor's forecasts."""

    def __init__(
        self,
        platform: Platform,
        predictor: Predictor,
        config: LoopConfig,
        *,
        metrics: LoopMetrics | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.metrics = metrics or LoopMetrics()
        self._platform = platform
        self._predictor = predictor
        self._config = config
        self._timer = timer
        self._state = PlannerState()
        self._forecasts: Forecasts | None = None
        self._forecast_due = True

    async def tick(self, now_ms: int) -> TickReport:
        """One round: what the platform saw goes to the predictor, its forecast to the planner, the plan back.

        Never raises for the predictor. What the platform raises passes through, and the next tick starts anew.
        """
        begun_s = self._timer()
        steps = await self._platform.observe(now_ms)
        rejections, error, fresh = await self._ask(steps)
        forecasts = self._forecasts
        if forecasts is not None and now_ms - forecasts.as_of_ms >= self._config.stale_after_ms:
            forecasts = None
        snapshot = await self._platform.snapshot(now_ms)
        decided, self._state = plan(snapshot, forecasts, self._state, now_ms, self._config.placement)
        report = TickReport(
            now_ms=now_ms,
            steps=len(steps),
            rejections=tuple(rejections),
            predictor_error=error,
            fresh_forecast=fresh,
            forecast_as_of_ms=None if forecasts is None else forecasts.as_of_ms,
            plan=decided,
            outcomes=await self._platform.apply(decided, now_ms),
        )
        self.metrics.note(report)
        self.metrics.tick_seconds.observe(self._timer() - begun_s)
        return report

    async def run(self, clock: Clock, stop: asyncio.Event) -> None:
        """Ticks at every multiple of ``placement.tick_s`` until `stop` is set, which ends a wait at once.

        A tick that takes longer than the time to the next one costs those it overlaps: they are skipped, and
        counted. A tick that the platform fails (`MespError`) is logged and counted; the next one tries again.
        """
        tick_ms = self._config.tick_ms
        now_ms = clock.now_ms()
        due_ms = -(-now_ms // tick_ms) * tick_ms
        declined: Collection[str] = ()
        while True:
            # A sleep may end early; a clock that was set back must not hold the loop for more than a tick.
            while 0 < due_ms - now_ms <= tick_ms and not stop.is_set():
                await _until(clock, due_ms, stop)
                now_ms = clock.now_ms()
            if stop.is_set():
                return
            try:
                report = await self.tick(now_ms)
            except MespError as error:
                self.metrics.ticks_failed.inc()
                _log.warning("tick failed", error=str(error))
            else:
                _tell(report, declined)
                declined = report.outcomes.refused
            last_ms, now_ms = now_ms // tick_ms, clock.now_ms()
            due_ms = (now_ms // tick_ms + 1) * tick_ms
            self.metrics.ticks_skipped.inc(max(0, now_ms // tick_ms - last_ms))

    async def _ask(self, steps: Sequence[StepCounts]) -> tuple[list[Rejection], str | None, bool]:
        """Tells the predictor and asks it: (rejections, error if any, whether a new forecast came)."""
        rejections: list[Rejection] = []
        error: MespError | None = None
        self._forecast_due |= bool(steps)
        if not self._forecast_due:
            return rejections, None, False
        try:
            rejections = await self._predictor.observe(steps)
        except UnavailableError as failure:  # asking on would only wait for another deadline
            return rejections, str(failure), False
        except MespError as failure:
            error = failure
        try:
            self._forecasts = await self._predictor.forecast(horizon=self._config.horizon)
        except MespError as failure:
            return rejections, str(error or failure), False
        self._forecast_due = False
        return rejections, str(error) if error else None, True


async def _until(clock: Clock, at_ms: int, stop: asyncio.Event) -> None:
    """Sleeps until `at_ms` or `stop`, whichever comes first."""
    waits = (asyncio.ensure_future(clock.sleep_until(at_ms)), asyncio.ensure_future(stop.wait()))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def _tell(report: TickReport, declined: Collection[str]) -> None:
    # One line a tick and kind, and nothing that was `declined` a tick ago: a fleet of refusals must not drown the log.
    if report.predictor_error is not None:
        _log.warning("predictor failed", error=report.predictor_error, forecast_as_of_ms=report.forecast_as_of_ms)
    if report.rejections:
        _log.warning("observations refused", count=len(report.rejections), first=report.rejections[0].reason)
    if report.plan.errors:
        _log.warning("snapshot items make no sense", count=len(report.plan.errors), first=report.plan.errors[0])
    if news := [reason for reason in report.outcomes.refused if reason not in declined]:
        _log.warning("platform declined", count=len(news), first=news[0])
    if report.outcomes.prewarmed or report.outcomes.released:
        _log.info("applied", prewarmed=report.outcomes.prewarmed, released=report.outcomes.released)
