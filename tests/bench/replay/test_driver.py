"""The driver in virtual time: open loop, latency from when a call was due, nothing silently put off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import aiohttp
import numpy as np
import pytest

from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp_bench.replay.calls import Answer, Outcome, Run
from mesp_bench.replay.driver import Limits, replay
from mesp_bench.replay.schedule import Schedule

Virtual = Callable[[Any], Any]
KEY = FunctionKey("owner", "f")


def make_schedule(*due_s: float, duration_s: float = 10.0, warm_up_s: float = 0.0) -> Schedule:
    return Schedule(
        functions=(KEY,),
        minutes=(0, 1),
        speed=1.0,
        warm_up_s=warm_up_s,
        duration_s=duration_s,
        rows=np.zeros(len(due_s), np.int64),
        due_s=np.array(due_s, np.float64),
        run_ms=np.full(len(due_s), 5.0),
    )


class Scripted:
    """A target whose n-th call does what the script says."""

    name = "scripted"

    def __init__(self, act: Callable[[int], Awaitable[Any]]) -> None:
        self.calls = 0
        self._act = act

    async def call(self, _session: aiohttp.ClientSession, function: FunctionKey, run_ms: float) -> Answer:
        assert function == KEY
        assert run_ms == 5
        self.calls += 1
        answer = await self._act(self.calls - 1)
        return answer if isinstance(answer, Answer) else Answer(Outcome.OK)


async def play(schedule: Schedule, target: Scripted, stop: asyncio.Event | None = None, **options: Any) -> Run:
    session = cast("aiohttp.ClientSession", None)
    return await replay(schedule, target, session, stop=stop or asyncio.Event(), **options)


def taking(*seconds: float) -> Scripted:
    return Scripted(lambda at: asyncio.sleep(seconds[at]))


def test_calls_start_when_due_whatever_the_others_do(virtual: Virtual) -> None:
    """The first call takes 5 s, and the second, due after 1 s, starts after 1 s."""
    run: Run = virtual(play(make_schedule(0, 1, 2.5), taking(5, 0.1, 0.1)))
    assert [call.started_ms for call in run.calls] == pytest.approx([0, 1_000, 2_500])
    assert [call.latency_ms for call in run.calls] == pytest.approx([5_000, 100, 100])
    assert [call.lateness_ms for call in run.calls] == pytest.approx([0, 0, 0])
    assert run.played_s == 10
    assert not run.interrupted


def test_a_platform_that_stalls_is_charged_for_all_who_wait(virtual: Virtual) -> None:
    """Ten calls, a second apart, meet a platform that answers nobody until the ninth second: all of them are in flight, and
    each waited for as long as the stall still lasted. A closed loop would have sent one call, and seen one latency."""

    async def main() -> Run:
        opened = asyncio.Event()
        asyncio.get_running_loop().call_later(9.5, opened.set)
        return await play(make_schedule(*range(10)), Scripted(lambda _: opened.wait()))

    run = virtual(main())
    assert [call.latency_ms for call in run.calls] == pytest.approx([9_500 - 1_000 * at for at in range(10)])


def test_a_generator_that_is_held_up_hides_nothing(virtual: Virtual) -> None:
    """While the machine is busy for 3 s two calls fall due: they start late, and their latency counts from when they were
    due; how late the generator was is told apart."""

    async def hold(at: int) -> None:
        if at == 0:
            cast("Any", asyncio.get_running_loop()).jumping.now_s += 3  # nobody else runs meanwhile

    run: Run = virtual(play(make_schedule(0, 1, 2, 4), Scripted(hold)))
    assert [call.lateness_ms for call in run.calls] == pytest.approx([0, 2_000, 1_000, 0])
    assert [call.latency_ms for call in run.calls] == pytest.approx([3_000, 2_000, 1_000, 0])


def test_calls_beyond_the_bound_are_shed_and_never_sent(virtual: Virtual) -> None:
    """With two in flight a third is dropped when it is due, and once one ended the next is sent on time."""
    target = taking(5, 5, 1)
    run: Run = virtual(play(make_schedule(0, 1, 2, 3, 6), target, limits=Limits(max_in_flight=2)))
    outcomes = [call.answer.outcome for call in run.calls]
    assert outcomes == [Outcome.OK, Outcome.OK, Outcome.SHED, Outcome.SHED, Outcome.OK]
    assert target.calls == 3
    assert run.calls[4].lateness_ms == pytest.approx(0)


def test_a_call_without_end_is_given_up(virtual: Virtual) -> None:
    """After the timeout the call is counted as such, at its time, and the replay ends."""
    run: Run = virtual(play(make_schedule(0, 9.9), taking(1e9, 1e9), limits=Limits(timeout_s=3)))
    assert [(call.answer.outcome, round(call.latency_ms)) for call in run.calls] == [(Outcome.TIMEOUT, 3_000)] * 2


@pytest.mark.parametrize("error", [aiohttp.ClientError(), ConnectionResetError(), aiohttp.ServerDisconnectedError()])
def test_connections_that_fail_are_counted(virtual: Virtual, error: Exception) -> None:
    """They end neither the replay nor other calls."""

    async def fail(at: int) -> None:
        if at == 0:
            raise error

    run: Run = virtual(play(make_schedule(0, 1), Scripted(fail)))
    assert [call.answer.outcome for call in run.calls] == [Outcome.CONNECTION, Outcome.OK]


def test_a_bug_in_a_target_is_no_outcome(virtual: Virtual) -> None:
    """What is no failure of the network ends the replay and is raised."""

    async def fail(_at: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        virtual(play(make_schedule(0, 1), Scripted(fail)))


def test_a_stop_returns_what_was_done(virtual: Virtual) -> None:
    """Stopped at 2.5 s: what ended has its outcome, what is in flight is interrupted, the rest was never sent."""

    async def main() -> Run:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(2.5, stop.set)
        return await play(make_schedule(0, 1, 2, 3), taking(0.5, 1e9, 1e9, 0), stop)

    run = virtual(main())
    assert [call.answer.outcome for call in run.calls] == [Outcome.OK, Outcome.INTERRUPTED, Outcome.INTERRUPTED]
    assert run.interrupted
    assert run.played_s == pytest.approx(2.5)


def test_a_call_just_sent_when_the_stop_comes_leaves_its_trace(virtual: Virtual) -> None:
    """A call whose task had no turn yet is interrupted, not forgotten."""

    async def main() -> Run:
        stop = asyncio.Event()
        return await play(make_schedule(0, 1), taking(1e9, 1e9), stop, progress=lambda _share: stop.set())

    assert [call.answer.outcome for call in virtual(main()).calls] == [Outcome.INTERRUPTED]


def test_a_stop_ends_the_wait_for_the_last_answers(virtual: Virtual) -> None:
    """After the schedule's end the replay waits for what is in flight, but not when told to stop."""

    async def main() -> Run:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(15, stop.set)
        return await play(make_schedule(0), taking(1e9), stop)

    run = virtual(main())
    assert run.calls[0].done_ms == pytest.approx(15_000)
    assert run.played_s == 10


def test_warm_up_and_delay_come_before_time_zero(virtual: Virtual) -> None:
    """A delay of 7 s and a warm-up of 3 s: the warm-up's call is at -3 s, and it is all of 10 s until minute A."""

    async def main() -> tuple[Run, float]:
        run = await play(make_schedule(-3, 0, warm_up_s=3.0), taking(0, 0), delay_s=7)
        return run, asyncio.get_running_loop().time()

    run, ended_s = virtual(main())
    assert [call.intended_ms for call in run.calls] == [-3_000, 0]
    assert [call.lateness_ms for call in run.calls] == pytest.approx([0, 0])
    assert ended_s == pytest.approx(20)


def test_progress_rises_to_the_last_call(virtual: Virtual) -> None:
    """Its share is of the schedule's time, the warm-up included."""
    told: list[float] = []
    virtual(play(make_schedule(-5, 0, 10, warm_up_s=5.0), taking(0, 0, 0), progress=told.append))
    assert told == pytest.approx([0, 1 / 3, 1])


def test_idle_memory_is_integrated_over_the_counted_part(virtual: Virtual) -> None:
    """2 GB until the middle of a 10 s replay and 4 GB from then on are 31 GB s by trapezoids; a sample that fails and the
    warm-up change nothing but the number of samples missed."""

    async def main() -> Run:
        loop = asyncio.get_running_loop()

        async def idle_gb() -> float:
            at_s = round(loop.time() - 3)
            assert at_s >= 0
            if at_s == 2:
                raise UnavailableError("away")
            return 2.0 if at_s < 5 else 4.0

        return await play(make_schedule(-3, 0, warm_up_s=3.0), taking(0, 0), idle_gb=idle_gb)

    run = virtual(main())
    assert run.idle_gb_s == pytest.approx(4 * 2 + 3 + 5 * 4)
    assert run.missed_samples == 1


def test_memory_that_was_never_seen_is_not_zero(virtual: Virtual) -> None:
    """A sampler that always fails leaves no integral, and neither does none."""

    async def idle_gb() -> float:
        raise ConnectionRefusedError

    run: Run = virtual(play(make_schedule(0), taking(0), idle_gb=idle_gb))
    assert run.idle_gb_s is None
    assert run.missed_samples == 11
    assert virtual(play(make_schedule(0), taking(0))).idle_gb_s is None
