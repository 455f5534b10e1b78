"""The double's clocks. Every timer of the double sleeps here, so that ten minutes of idleness need not last as long.

`Clock` runs with the wall's, faster if wished; messages on the real Kafka between the parts take their real time.
`SteppedClock` knows no wall: it goes from one sleeper's deadline to the next as soon as every message sent has been
handled. What happens on it depends on no machine's load, and is the same each time.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Clock:
    """Epoch milliseconds, `speed` of them in one of the wall's."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._begin_ms = time.time() * 1000
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

    async def sleep_until(self, at_ms: float) -> None:
        """Returns at that time of this clock, at once if it has passed."""
        if at_ms > self._now_ms:
            waked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._sleepers, (at_ms, next(self._numbers), waked))
            await waked

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
