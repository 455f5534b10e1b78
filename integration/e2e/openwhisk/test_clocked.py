"""Who lives by a stepped clock meets its time in everything that asyncio offers; all others keep the machine's."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from e2e.openwhisk.clocked import LoopClock, living_by, run
from e2e.openwhisk.rehearsal import delayed
from mesp.types import FunctionKey
from mesp_bench.replay.calls import Answer, Call, Outcome, Run

BEGIN_MS = 1_795_245_000_000


async def settled() -> None:
    """Sees nothing but the loop's next turns."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_sleeps_and_timeouts_are_the_clocks() -> None:
    """Hours pass at once, a timeout ends what outlasts it to the millisecond, and a cancelled one costs no time."""

    async def sleeper() -> list[float]:
        loop, times_s = asyncio.get_running_loop(), []
        for limit_s in (7_200, 5):
            try:
                async with asyncio.timeout(limit_s):
                    await asyncio.sleep(3_600)
            except TimeoutError:
                pass
            times_s.append(loop.time() - BEGIN_MS / 1e3)
        return times_s

    async def main() -> tuple[list[float], int]:
        clock = LoopClock(BEGIN_MS)
        driving = asyncio.create_task(clock.drive(settled))
        found = await living_by(clock, sleeper())
        assert asyncio.get_running_loop().time() < BEGIN_MS / 1e3 - 1e6  # not ours
        driving.cancel()
        return found, clock.now_ms - BEGIN_MS

    times_s, passed_ms = run(main())
    assert times_s == pytest.approx([3_600, 3_605], abs=1e-3)
    assert passed_ms == 3_605_000


def test_time_waits_for_http_and_for_who_holds_it() -> None:
    """A request over a new connection and its answer take none of the clock's time, and nothing else does while held."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="pong")

    async def main() -> list[int]:
        clock, app = LoopClock(BEGIN_MS), web.Application()
        app.add_routes([web.get("/ping", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host = f"http://127.0.0.1:{runner.addresses[0][1]}"

        async def ticking() -> None:
            while True:
                await clock.sleep(0.001)

        async def ask() -> list[int]:
            times_ms = []
            for _ in range(3):
                await asyncio.sleep(1)
                asked_ms = clock.now_ms
                async with aiohttp.ClientSession() as session, session.get(f"{host}/ping") as response:
                    assert await response.text() == "pong"
                times_ms.append(clock.now_ms - asked_ms)
            return times_ms

        tasks = [asyncio.create_task(clock.drive(settled)), asyncio.create_task(ticking())]
        times_ms = await living_by(clock, ask())
        with clock.held(), clock.held():
            await settled()
            held_ms = clock.now_ms
            await asyncio.sleep(0.02)
            times_ms.append(clock.now_ms - held_ms)
        await clock.sleep(1)  # goes on
        for task in tasks:
            task.cancel()
        await runner.cleanup()
        return times_ms

    assert run(main()) == [0, 0, 0, 0]


def test_delayed_are_calls_that_took_noticeably_longer() -> None:
    """Each call is laid beside itself; what is quicker, as quick, or of the warm-up does not count."""

    def run_of(*latencies_ms: float) -> Run:
        calls = [
            Call(FunctionKey("guest", f"f{at}"), 100 * (at - 1), 100 * (at - 1), 100 * (at - 1) + took_ms, Answer(Outcome.OK))
            for at, took_ms in enumerate(latencies_ms)
        ]  # fmt: skip
        return Run(tuple(calls), 1.0, interrupted=False)

    assert delayed(run_of(5, 5, 5, 900, 5), run_of(500, 9, 45.26, 5, 85)) == {"calls": 2, "at_most_ms": 80.0}
    assert delayed(run_of(5, 5), run_of(5, 5)) == {"calls": 0, "at_most_ms": 0.0}
