"""The double's clocks. Every timer of the double sleeps here, so that ten minutes of idleness need not last as long.

`Clock` runs with the wall's, faster if wished; messages on the real Kafka between the parts take their real time.
`SteppedClock` knows no wall: it goes from one sleeper's deadline to the next as soon as every message sent has been
handled. What happens on it depends on no machine's load, and is the same each time. `HeldClock` is one that whoever
looks or acts from outside (the plugin) can stop meanwhile.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Clock:
    """Epoch milliseconds, `speed` of them in one of the wall's; it met the wall's at `met_ms`, None: now."""

    def __init__(self, speed: float = 1.0, met_ms: float | None = None) -> None:
        self.speed = speed
        wall_ms = time.time() * 1000
        self.met_ms = wall_ms if met_ms is None else met_ms
        self._begin_ms = self.met_ms + (wall_ms - self.met_ms) * speed
        self._begin = time.monotonic()

    @property
    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return int(self._begin_ms + (time.monotonic() - self._begin) * 1000 * self.speed)

    async def sleep(self, seconds: float) -> None:
        """Returns after that many seconds of this clock."""
        await self.sleep_until(self.now_ms + seconds * 1000)

    async def sleep_until(self, at_ms: float) -> None:
        """Returns at that time of this clock, at once if it has passed."""
        await asyncio.sleep(max(0.0, at_ms - self.now_ms) / 1000 / self.speed)


class SteppedClock(Clock):
    """Stands still until somebody `drive`s it."""

    def __init__(self, start_ms: float) -> None:
        super().__init__()
        self._now_ms = start_ms
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @property
    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return int(self._now_ms)

    @property
    def exact_ms(self) -> float:
        """`now_ms` with its fraction."""
        return self._now_ms

    async def sleep_until(self, at_ms: float) -> None:
        """Returns at that time of this clock, at once if it has passed."""
        if at_ms > self._now_ms:
            await self.waked_at(at_ms)

    def waked_at(self, at_ms: float) -> asyncio.Future[None]:
        """Done at that time of this clock; cancel it where nobody waits any more, and no time is spent on it."""
        waked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (at_ms, next(self._numbers), waked))
        return waked

    async def drive(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Lets the time pass, for ever: each step as soon as what the last one set off has `settled`."""
        while True:
            await settled()
            while self._sleepers:
                at_ms, _, waked = heapq.heappop(self._sleepers)
                if not waked.done():  # as it is after a cancellation
                    self._now_ms = max(self._now_ms, at_ms)
                    waked.set_result(None)
                    break


class HeldClock(SteppedClock):
    """Stands still while somebody holds it."""

    def __init__(self, start_ms: float) -> None:
        super().__init__(start_ms)
        self._holders = 0
        self._free = asyncio.Event()
        self._free.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no time passes."""
        self._holders += 1
        self._free.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._free.set()

    async def drive(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Lets the time pass, for ever, whenever nobody holds it."""

        async def free() -> None:
            await settled()
            while not self._free.is_set():
                await self._free.wait()
                await settled()

        await super().drive(free)
