"""An event loop on which some live by a double's clock, and all others by the machine's.

Who speaks with Kafka needs real seconds: its requests, its heartbeats. A load generator that calls the double must not
have them: hours of calls would take hours. `living_by` runs a coroutine, and all that it starts, so that the loop's time,
its timers and sleeps are the clock's. Time goes on once the bus has settled *and* no socket has anything to say.
"""

from __future__ import annotations

import asyncio
import selectors
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack, cast

from e2e.openwhisk.clock import HeldClock, SteppedClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextvars import Context

_Result = TypeVar("_Result")
_Ts = TypeVarTuple("_Ts")
_clock: ContextVar[SteppedClock | None] = ContextVar("clock", default=None)


class ClockedLoop(asyncio.SelectorEventLoop):
    """`heard` counts what sockets said so far."""

    def __init__(self) -> None:
        self.heard = 0
        super().__init__(_CountingSelector(self))

    def time(self) -> float:
        """Seconds: of the clock by which the caller lives."""
        clock = _clock.get()
        return super().time() if clock is None else clock.exact_ms / 1e3

    def call_at(
        self, when: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Calls back at that `time`."""
        clock = _clock.get()
        if clock is None:
            return super().call_at(when, callback, *args, context=context)
        return _Timer(clock.waked_at(when * 1e3), when, callback, args, self, context or copy_context())


class _Timer(asyncio.TimerHandle):
    def __init__(
        self,
        waked: asyncio.Future[None],
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: ClockedLoop,
        context: Context,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._waked = waked
        waked.add_done_callback(lambda _: None if self.cancelled() else callback(*args), context=context)

    def cancel(self) -> None:
        super().cancel()
        self._waked.cancel()


class _CountingSelector(selectors.DefaultSelector):
    def __init__(self, loop: ClockedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        self._loop.heard += len(ready)
        return ready


class LoopClock(HeldClock):
    """On a `ClockedLoop`; waits for HTTP, too."""

    async def drive(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Lets the time pass, for ever, whenever nobody holds it and nobody has anything to say."""
        loop = cast("ClockedLoop", asyncio.get_running_loop())

        async def silent() -> None:
            heard = -1
            while heard != loop.heard:
                heard = loop.heard
                await settled()

        await super().drive(silent)


async def living_by(clock: SteppedClock, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What the coroutine returns, which lives by that clock."""
    context = copy_context()
    context.run(_clock.set, clock)
    return await asyncio.create_task(work, context=context)


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs it on a `ClockedLoop`."""
    with asyncio.Runner(loop_factory=ClockedLoop) as runner:
        return runner.run(main)
