"""What a part of the double does beside all else: kept while it runs, ended with the part, and no failure of it lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Tasks:
    """The tasks of one part."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._errors: list[Exception] = []

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Begins it."""
        self.keep(asyncio.create_task(coroutine))

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Takes over what somebody else began."""
        self._running.add(task)
        task.add_done_callback(self._done)

    async def end(self, name: str) -> None:
        """Cancels all that still runs.

        Raises:
            ExceptionGroup: some of it has failed since the last end; `name` is the part's.
        """
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        errors, self._errors = self._errors, []
        if errors:
            raise ExceptionGroup(f"{name} failed", errors)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._errors.append(error)
