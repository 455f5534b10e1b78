"""An event loop whose time jumps: hours of calls over real sockets in as long as the processor needs.

Everything that takes part (double, plugin, load generator) lives on one loop and speaks through loopback sockets. When
no socket has anything to say, the time is set to the next timer's. Who must wait for another process (the predictor)
holds the time meanwhile: it stands still. The order of events, and so a replay's result, depends on seeds alone.
"""

from __future__ import annotations

import asyncio
import selectors
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any

_Result = TypeVar("_Result")
#: Looks at the sockets before time jumps: what was sent over loopback is there at once, or nearly.
_LOOKS = 3
#: A wait for another process ends at its first word; this only bounds it.
_WAIT_S = 0.05


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time` begins at 0."""

    def __init__(self) -> None:
        self.virtual_s = 0.0
        self.holders = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds."""
        return self.virtual_s

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, time stands still while there is anything to wait for."""
        self.holders += 1
        try:
            yield
        finally:
            self.holders -= 1


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        for _ in range(_LOOKS):
            ready = super().select(0)
            if ready or timeout == 0:
                return ready
        if self._loop.holders or timeout is None:
            return super().select(_WAIT_S)
        self._loop.virtual_s += max(timeout, 0.0)
        return []


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs it on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
