"""The recorder: arrivals in, counts per step out, late ones put right.

Arrivals come in any order. `close` reports each step once its end has passed, a step without arrivals too: zero is
not missing. A closed step stays in memory for `lateness_steps` more; an arrival that belongs to it is counted there
and the next `close` reports the whole step again, which replaces the earlier report at the predictor. Arrivals
later than that, or dated so far ahead that a clock must be wrong, are dropped and counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from mesp.errors import InputError
from mesp.types import StepCounts
from mesp.wire import check_key

if TYPE_CHECKING:
    from mesp.types import FunctionKey


class Recorder:
    """Counts what one source sees; all times are milliseconds since the epoch."""

    def __init__(self, source: str, step_ms: int, start_ms: int, lateness_steps: int = 5) -> None:
        """Sees everything from `start_ms` on; the step that this falls into is reported as not complete.

        Args:
            source: name in the reports; one per recorder, or their counts would replace each other's.
            step_ms: width of a step.
            start_ms: when recording begins.
            lateness_steps: closed steps that late arrivals still reach, and steps ahead that arrivals may be dated.
        """
        if step_ms <= 0 or lateness_steps < 0:
            raise InputError(f"step_ms = {step_ms} must be positive, lateness_steps = {lateness_steps} not negative")
        self.dropped = 0
        self._source = source
        self._step_ms = step_ms
        self._start_ms = start_ms
        self._lateness_ms = lateness_steps * step_ms
        self._closed_until_ms = self._first_ms = start_ms - start_ms % step_ms
        self._counts: defaultdict[int, Counter[FunctionKey]] = defaultdict(Counter)
        self._corrected: set[int] = set()

    def arrival(self, function: FunctionKey, at_ms: int) -> None:
        """Counts one invocation; `InputError` for a key that the wire would refuse."""
        step_start_ms = at_ms - at_ms % self._step_ms
        if step_start_ms < max(self._first_ms, self._closed_until_ms - self._lateness_ms):
            self.dropped += 1
            return
        counts = self._counts[step_start_ms]
        if function not in counts:
            check_key(function)
        counts[function] += 1
        if step_start_ms < self._closed_until_ms:
            self._corrected.add(step_start_ms)

    def close(self, now_ms: int) -> list[StepCounts]:
        """Reports of the steps that ended since the last call, and of closed ones corrected since; oldest first."""
        until_ms = max(self._closed_until_ms, now_ms - now_ms % self._step_ms)
        starts = sorted(self._corrected) + list(range(self._closed_until_ms, until_ms, self._step_ms))
        reports = [
            StepCounts(
                source=self._source,
                step_start_ms=start,
                step_ms=self._step_ms,
                counts=dict(self._counts[start]),
                complete=start >= self._start_ms,
            )
            for start in starts
        ]
        self._corrected.clear()
        self._closed_until_ms = until_ms
        self._forget()
        return reports

    def _forget(self) -> None:
        oldest_ms, newest_ms = self._closed_until_ms - self._lateness_ms, self._closed_until_ms + self._lateness_ms
        for start in [start for start in self._counts if not oldest_ms <= start <= newest_ms]:
            counts = self._counts.pop(start)
            if start > newest_ms:
                self.dropped += counts.total()
