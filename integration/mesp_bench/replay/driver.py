"""The driver: every call starts at its time, whatever became of the others.

Open loop: a task per call, sent when it is due. At most `max_in_flight` are under way at once; a call that is due then is
shed and counted, never silently put off, for a queue inside the generator would hide the platform's. Each call ends
within `timeout_s`, so a replay ends at most that long after its schedule. While it runs, idle warm memory may be sampled.

One loop's clock (`asyncio`'s) times everything. A set `stop` ends the replay early: what is in flight is given up, and what
was done is returned all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from mesp.errors import MespError
from mesp_bench.replay.calls import Answer, Call, Outcome, Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesp_bench.replay.calls import Target
    from mesp_bench.replay.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Limits:
    """What the generator takes upon itself.

    Attributes:
        max_in_flight: calls under way at once; more are shed.
        timeout_s: a call that has no outcome after so long is given up.
        sample_s: between two samples of idle memory.
    """

    max_in_flight: int = 1_000
    timeout_s: float = 120.0
    sample_s: float = 1.0


async def replay(
    schedule: Schedule,
    target: Target,
    session: aiohttp.ClientSession,
    *,
    stop: asyncio.Event,
    limits: Limits | None = None,
    delay_s: float = 0.0,
    idle_gb: Callable[[], Awaitable[float]] | None = None,
    progress: Callable[[float], None] = lambda _share: None,
) -> Run:
    """Plays a schedule, and returns when every call has its outcome.

    Whatever a target raises beyond what `Target.call` allows ends the replay and is raised here.

    Args:
        schedule: what to call when.
        target: whom to call.
        session: the connections; must not bound their number, or calls would queue in it.
        stop: set it to end the replay early.
        limits: see `Limits`.
        delay_s: seconds from now until the schedule begins, its warm-up first.
        idle_gb: asked every `limits.sample_s` seconds for the warm idle memory in GB.
        progress: is told the share of the schedule's time that has passed.
    """
    begin_s = asyncio.get_running_loop().time() + delay_s + schedule.warm_up_s / schedule.speed
    generator = _Generator(schedule, target, session, stop, limits or Limits(), begin_s, progress)
    sampler = _Sampler(idle_gb, generator) if idle_gb else None
    sampling = asyncio.create_task(sampler.run()) if sampler else None
    try:
        await generator.run()
    finally:
        if sampling:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
    return Run(
        calls=tuple(sorted(generator.calls, key=lambda call: call.intended_ms)),
        played_s=generator.played_s,
        interrupted=stop.is_set(),
        idle_gb_s=sampler.integral() if sampler else None,
        missed_samples=sampler.missed if sampler else 0,
    )


@dataclass(slots=True)
class _Generator:
    """Sends the calls; `now_s` is the replay's time, 0 at minute A's beginning."""

    schedule: Schedule
    target: Target
    session: aiohttp.ClientSession
    stop: asyncio.Event
    limits: Limits
    begin_s: float
    progress: Callable[[float], None]
    calls: list[Call] = field(default_factory=list)
    played_s: float = 0.0
    in_flight: set[asyncio.Task[None]] = field(default_factory=set)
    bug: BaseException | None = None

    def now_s(self) -> float:
        return asyncio.get_running_loop().time() - self.begin_s

    async def run(self) -> None:
        schedule = self.schedule
        lead_s = schedule.warm_up_s / schedule.speed
        try:
            for at, due_s in enumerate(schedule.due_s.tolist()):
                if not await self._wait_until(due_s):
                    break
                self._send(at, due_s)
                self.progress((due_s + lead_s) / (schedule.duration_s + lead_s))
            else:
                await self._wait_until(schedule.duration_s)
            self.played_s = min(max(self.now_s(), 0.0), schedule.duration_s)
            await self._drain()
        finally:
            await asyncio.sleep(0)  # a task cancelled before its first step would leave no trace
            for task in self.in_flight:
                task.cancel()
            await asyncio.gather(*self.in_flight, return_exceptions=True)
        if self.bug:
            raise self.bug

    async def _wait_until(self, due_s: float) -> bool:
        """Returns once it is time, after others had their turn; False when the replay is to end."""
        delay_s = due_s - self.now_s()
        if delay_s <= 0:
            await asyncio.sleep(0)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), delay_s)
        return not self.stop.is_set() and self.bug is None

    def _send(self, at: int, due_s: float) -> None:
        if len(self.in_flight) >= self.limits.max_in_flight:
            self._note(at, due_s, self.now_s(), Answer(Outcome.SHED))
            return
        task = asyncio.create_task(self._call(at, due_s))
        self.in_flight.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.in_flight.discard(task)
        if not task.cancelled():
            self.bug = self.bug or task.exception()

    async def _call(self, at: int, due_s: float) -> None:
        schedule = self.schedule
        started_s = self.now_s()
        answer = Answer(Outcome.INTERRUPTED)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                answer = await self.target.call(
                    self.session, schedule.functions[schedule.rows[at]], float(schedule.run_ms[at])
                )
        except TimeoutError:
            answer = Answer(Outcome.TIMEOUT)
        except (aiohttp.ClientError, OSError):
            answer = Answer(Outcome.CONNECTION)
        finally:
            self._note(at, due_s, started_s, answer)

    def _note(self, at: int, due_s: float, started_s: float, answer: Answer) -> None:
        function = self.schedule.functions[self.schedule.rows[at]]
        self.calls.append(Call(function, 1000 * due_s, 1000 * started_s, 1000 * self.now_s(), answer))

    async def _drain(self) -> None:
        """Waits for what is in flight, or for the stop."""
        stopped = asyncio.create_task(self.stop.wait())
        try:
            while self.in_flight and not stopped.done():
                await asyncio.wait({*self.in_flight, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()


class _Sampler:
    """Asks for the idle memory while the counted part is played."""

    def __init__(self, idle_gb: Callable[[], Awaitable[float]], generator: _Generator) -> None:
        self.missed = 0
        self._idle_gb = idle_gb
        self._generator = generator
        self._samples: list[tuple[float, float]] = []

    async def run(self) -> None:
        generator = self._generator
        await asyncio.sleep(max(0.0, -generator.now_s()))
        at = 0
        while (due_s := at * generator.limits.sample_s) <= generator.schedule.duration_s:
            await asyncio.sleep(max(0.0, due_s - generator.now_s()))
            at_s = generator.now_s()
            try:
                async with asyncio.timeout(generator.limits.sample_s):
                    self._samples.append((at_s, await self._idle_gb()))
            except (aiohttp.ClientError, OSError, MespError):  # a timeout is an OSError
                self.missed += 1
            at += 1

    def integral(self) -> float | None:
        """GB s from the first sample to the last, by trapezoids; None without two samples."""
        if len(self._samples) < 2:
            return None
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return sum((after - before) * (low + high) / 2 for (before, low), (after, high) in pairs)
