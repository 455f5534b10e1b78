"""The time of a double: callbacks at given milliseconds, on a clock moved by hand or on one that runs faster than ours."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Timeline(Protocol):
    """Milliseconds since the epoch, as the double lives them."""

    def now_ms(self) -> int:
        """The time."""
        ...

    def call_at(self, at_ms: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back at that time; the function returned cancels it."""
        ...


class HandTimeline:
    """Stands still until `advance`; callbacks run in the order of their times, those of one time as they were given."""

    def __init__(self, begin_ms: int) -> None:
        self._now_ms = begin_ms
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._order = itertools.count()

    def now_ms(self) -> int:
        return self._now_ms

    def call_at(self, at_ms: int, callback: Callable[[], None]) -> Callable[[], None]:
        order = next(self._order)
        heapq.heappush(self._due, (max(at_ms, self._now_ms), order, callback))
        return lambda: self._cancelled.add(order)

    def advance(self, to_ms: int) -> None:
        while self._due and self._due[0][0] <= to_ms:
            self._now_ms, order, callback = heapq.heappop(self._due)
            if order not in self._cancelled:
                callback()
        self._now_ms = to_ms


class WallTimeline:
    """Runs `speed` times as fast as the machine's clock, from `begin_ms` on; also a clock that a loop can run by."""

    def __init__(self, begin_ms: int, speed: float = 1.0) -> None:
        self.speed = speed
        self._loop = asyncio.get_running_loop()
        self._begin_ms = begin_ms
        self._begin_s = self._loop.time()

    def now_ms(self) -> int:
        return self._begin_ms + round((self._loop.time() - self._begin_s) * 1e3 * self.speed)

    def call_at(self, at_ms: int, callback: Callable[[], None]) -> Callable[[], None]:
        return self._loop.call_at(self._begin_s + (at_ms - self._begin_ms) / 1e3 / self.speed, callback).cancel

    async def sleep_until(self, at_ms: int) -> None:
        await asyncio.sleep(max(0, at_ms - self.now_ms()) / 1e3 / self.speed)
