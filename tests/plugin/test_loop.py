"""The loop in virtual time: what it does when all is well, and when the predictor, the platform or time is not."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from mesp.client import PredictorClient
from mesp.errors import InputError, MespError, UnavailableError
from mesp.types import Rejection
from mesp_placement.config import PlacementConfig
from mesp_plugin.config import LoopConfig
from mesp_plugin.loop import Loop, WallClock
from mesp_plugin.platform import Outcomes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mesp_plugin.loop import Predictor, TickReport

MINUTE_MS = 60_000
CONFIG = LoopConfig(placement=PlacementConfig(tick_s=10, stale_after_s=180))


def value(loop: Loop, name: str) -> float | None:
    return loop.metrics.registry.get_sample_value(f"mesp_loop_{name}")


async def test_a_tick_carries_counts_to_the_predictor_and_its_forecast_to_the_platform(world: Any, oracle: Any) -> None:
    """One tick after the first minute: the closed step is observed, and one container is warmed for a sure call."""
    report = await Loop(world, oracle, CONFIG).tick(MINUTE_MS)
    assert [step.step_start_ms for step in oracle.seen] == [0]
    assert (report.steps, report.fresh_forecast, report.forecast_as_of_ms) == (1, True, MINUTE_MS)
    assert [(wish.function.name, wish.count) for wish in report.plan.prewarms] == [("hello", 1)]
    assert report.outcomes.prewarmed == len(world.containers) == 1
    assert world.plans == [report.plan]
    assert report.predictor_error is None


async def test_a_forecast_is_asked_for_once_a_step(world: Any, oracle: Any) -> None:
    """Between two closed steps the predictor is left alone, and the last forecast decides."""
    loop = Loop(world, oracle, CONFIG)
    reports = [await loop.tick(now_ms) for now_ms in range(MINUTE_MS, 3 * MINUTE_MS, 10_000)]
    assert oracle.calls == ["observe", "forecast"] * 2
    assert [report.fresh_forecast for report in reports] == ([True] + [False] * 5) * 2
    assert {report.forecast_as_of_ms for report in reports} == {MINUTE_MS, 2 * MINUTE_MS}


async def test_without_its_predictor_the_loop_goes_on_and_lets_go(world: Any, oracle: Any) -> None:
    """The last forecast decides until it is stale; from then on none does, and what MESP holds is given back."""
    loop = Loop(world, oracle, CONFIG)
    await loop.tick(MINUTE_MS)
    oracle.observe_failures.extend([UnavailableError("predictor is away")] * 30)
    reports = [await loop.tick(now_ms) for now_ms in range(2 * MINUTE_MS, 6 * MINUTE_MS, 10_000)]
    assert {report.predictor_error for report in reports} == {"predictor is away"}
    known = [report.now_ms for report in reports if report.forecast_as_of_ms is not None]
    assert known == list(range(2 * MINUTE_MS, 4 * MINUTE_MS, 10_000))  # 60 s + 180 s
    assert world.containers == []
    assert value(loop, "predictor_failures_total") == 24
    assert value(loop, "ticks_without_forecast_total") == 12
    assert "forecast" not in oracle.calls[2:]  # one deadline a tick is enough to wait for


async def test_a_predictor_that_was_away_is_asked_again_without_a_new_step(world: Any, oracle: Any) -> None:
    """After a failure the next tick asks again at once, not only when another step closes."""
    loop = Loop(world, oracle, CONFIG)
    oracle.forecast_failures.append(UnavailableError("restarting"))
    first, second = await loop.tick(MINUTE_MS), await loop.tick(MINUTE_MS + 10_000)
    assert (first.predictor_error, first.fresh_forecast, first.forecast_as_of_ms) == ("restarting", False, None)
    assert (second.predictor_error, second.fresh_forecast) == (None, True)


async def test_refused_observations_do_not_cost_the_forecast(world: Any, oracle: Any) -> None:
    """A predictor that refuses the counts is still asked for its forecast, and the refusal is reported."""
    loop = Loop(world, oracle, CONFIG)
    oracle.observe_failures.append(InputError("step_ms = 60000, must be 30000"))
    oracle.rejections.append(Rejection(None, 0, "too old"))
    first, second = await loop.tick(MINUTE_MS), await loop.tick(2 * MINUTE_MS)
    assert (first.predictor_error, first.fresh_forecast) == ("step_ms = 60000, must be 30000", True)
    assert [rejection.reason for rejection in second.rejections] == ["too old"]
    assert value(loop, "rejections_total") == 1


async def test_a_bug_in_the_predictor_is_not_swallowed(world: Any, oracle: Any) -> None:
    """Only what a predictor raises on purpose is survived: a bug keeps its traceback."""
    oracle.forecast_failures.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await Loop(world, oracle, CONFIG).tick(MINUTE_MS)


async def run(loop: Loop, clock: Any, monkeypatch: pytest.MonkeyPatch) -> list[TickReport]:
    """Runs until the clock stops the loop; the reports of its ticks."""
    reports = []
    tick = loop.tick

    async def noted(now_ms: int) -> TickReport:
        reports.append(await tick(now_ms))
        return reports[-1]

    monkeypatch.setattr(loop, "tick", noted)
    await loop.run(clock, clock.stop)
    return reports


async def test_ticks_fall_on_the_grid(
    world: Any, oracle: Any, hand_clock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started off the grid, the loop ticks at multiples of tick_s until it is stopped."""
    clock = hand_clock(asyncio.Event(), end_ms=100_000, now=61_234)
    reports = await run(Loop(world, oracle, CONFIG), clock, monkeypatch)
    assert [report.now_ms for report in reports] == [70_000, 80_000, 90_000]


async def test_ticks_that_time_ran_over_are_skipped(
    world: Any, oracle: Any, hand_clock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick that lasts 25 s costs the two that it overlaps; the next falls on the grid again."""
    clock = hand_clock(asyncio.Event(), end_ms=120_000, now=60_000)
    loop = Loop(world, oracle, CONFIG)
    apply = world.apply

    async def slow(plan: Any, now_ms: int) -> Any:
        clock.now += 25_000 if now_ms == 70_000 else 0
        return await apply(plan, now_ms)

    monkeypatch.setattr(world, "apply", slow)
    reports = await run(loop, clock, monkeypatch)
    assert [report.now_ms for report in reports] == [60_000, 70_000, 100_000, 110_000]
    assert value(loop, "ticks_skipped_total") == 2


async def test_early_and_late_wake_ups(
    world: Any, oracle: Any, hand_clock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken early, the loop sleeps on; woken late, it ticks at once and returns to the grid."""
    clock = hand_clock(asyncio.Event(), end_ms=100_000, now=65_000, late_ms=[-300, 0, 4_000, 0])
    reports = await run(Loop(world, oracle, CONFIG), clock, monkeypatch)
    assert [report.now_ms for report in reports] == [70_000, 84_000, 90_000]


async def test_a_clock_set_back_does_not_hold_the_loop(
    world: Any, oracle: Any, hand_clock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set back by an hour while asleep, the loop ticks on, instead of sleeping for an hour."""
    hour_ms = 3_600_000
    clock = hand_clock(asyncio.Event(), end_ms=2 * hour_ms, now=hour_ms, late_ms=[0, -hour_ms, 0, 2 * hour_ms])
    reports = await run(Loop(world, oracle, CONFIG), clock, monkeypatch)
    assert [report.now_ms for report in reports] == [hour_ms, hour_ms + 10_000, 20_000, 30_000]


async def test_a_platform_that_fails_costs_its_tick_only(
    world: Any, oracle: Any, hand_clock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick that the platform fails is counted, and the next one works again."""
    clock = hand_clock(asyncio.Event(), end_ms=90_000, now=60_000)
    world.failures.append(MespError("the platform is away"))
    loop = Loop(world, oracle, CONFIG)
    reports = await run(loop, clock, monkeypatch)
    assert [report.now_ms for report in reports] == [70_000, 80_000]
    assert value(loop, "ticks_failed_total") == 1


async def test_what_is_declined_again_is_not_told_again(
    world: Any, oracle: Any, hand_clock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that stands is told at its first tick, a new one beside it alone, and both count at every tick."""
    answers = iter([("a",), ("a",), ("a", "b"), (), ("a",)])

    async def apply(plan: Any, now_ms: int) -> Outcomes:
        return Outcomes(refused=next(answers))

    monkeypatch.setattr(world, "apply", apply)
    loop = Loop(world, oracle, CONFIG)
    with capture_logs() as logs:
        await run(loop, hand_clock(asyncio.Event(), end_ms=110_000, now=60_000), monkeypatch)
    told = [(line["count"], line["first"]) for line in logs if line["event"] == "platform declined"]
    assert told == [(1, "a"), (1, "b"), (1, "a")]
    assert value(loop, "refused_total") == 5


async def test_stopping_ends_a_wait_at_once(world: Any, oracle: Any) -> None:
    """With the wall clock and a tick an hour away, setting `stop` ends the loop, without a tick."""
    stop = asyncio.Event()
    loop = Loop(world, oracle, LoopConfig(placement=PlacementConfig(tick_s=3_600)))
    running = asyncio.create_task(loop.run(WallClock(), stop))
    await asyncio.sleep(0)
    stop.set()
    await running
    assert world.plans == []


async def test_the_client_is_a_predictor(world: Any) -> None:
    """The loop takes the gRPC client as it is; with nobody listening it goes on without a forecast."""

    async def no_wait(_: float) -> None:
        return

    async with PredictorClient("127.0.0.1:1", rng=Random(0), sleep=no_wait) as client:
        predictor: Predictor = client
        report = await Loop(world, predictor, CONFIG).tick(MINUTE_MS)
        assert client.waiting_reports == 1
    assert report.predictor_error is not None
    assert "127.0.0.1:1" in report.predictor_error
    assert report.plan.prewarms == ()
