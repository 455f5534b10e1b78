"""Counts on the step grid: what was reported, by whom, for which function, over the last `context` steps.

Reports flow in, columns and windows of counts flow out to the forecaster. One row per function, one column per
step, in a ring: the column of step s is s modulo the context, and a step that falls out of the context is gone.
A cell is NaN while no report said anything of it; zero is a statement, not a gap. A function's row exists from
its first report until its deletion; then another function may take the row.

The latest report of a (source, function, step) replaces the earlier, and sources are summed. As long as one source
alone has reported a step, replacing is an assignment and costs no memory. The first report of a second source splits
that step into one column per source, kept for `RECENT_STEPS` steps: an hour outlasts the restart and resend of a
controller, and bounds the cost at `RECENT_STEPS * MAX_SOURCES` columns (384 MB for 50,000 functions at the very worst,
36 MB with three sources). After that such a step's sum stands, and a correction of it is refused with a sentence.

Single-threaded: the sidecar touches it from one worker thread.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mesp.errors import InputError
from mesp.types import FunctionKey, Rejection, Trigger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesp.types import BoolArray, FloatArray, StepCounts

Rows = npt.NDArray[np.int64]

#: Steps for which the columns of several sources are kept apart, so that each can still be corrected.
RECENT_STEPS = 60

#: Sources that may report one step.
MAX_SOURCES = 32

#: Largest count of one function in one step, as on the wire (`mesp.wire`).
MAX_COUNT = 2**32 - 1

#: The owner of a step that several sources reported. No source has this name: a source is never empty.
_SEVERAL = ""


class StepWidthError(InputError):
    """A report on another step grid than the model's."""


@dataclass(frozen=True, slots=True)
class SeriesState:
    """All that a store remembers, in order of time: F rows, C steps that end at `newest`, P parts.

    Attributes:
        newest: absolute index of the newest reported step, -1 for none.
        functions: the function of each row, None for free rows, F.
        counts: invocations, NaN where missing, (F, C).
        first_seen: step of the first invocation, -1 for none, (F,).
        last_seen: step of the last invocation, -1 for none, (F,).
        triggers: what invokes each function, as a `Trigger`, (F,).
        complete: a source reported everything it saw in the step, (C,).
        owners: the step's only source, None for no report, empty for several sources, C.
        parts: step and source of each source's own column, P.
        part_counts: those columns, NaN where the source said nothing, (P, F).
    """

    step_ms: int
    newest: int
    functions: tuple[FunctionKey | None, ...]
    counts: FloatArray
    first_seen: Rows
    last_seen: Rows
    triggers: npt.NDArray[np.int8]
    complete: BoolArray
    owners: tuple[str | None, ...]
    parts: tuple[tuple[int, str], ...]
    part_counts: FloatArray


class SeriesStore:
    """The last `context` steps of every known function.

    How a forecaster follows it (rows are stable; F is the number of rows, ``len(store.functions)``)::

        fresh = store.columns_since(self.as_of_ms)        # (F, n): steps closed since, oldest first
        changed = store.take_changed()                    # rows to learn anew; call it once per advance
        ...grow own state to F rows, feed `fresh` to all rows...
        ...rebuild `changed` rows from store.window(changed, length)...
        self.as_of_ms = store.as_of_ms

    `take_changed` also draws the line: all steps closed by then count as learned, and a later report that alters
    one of them, a deletion, or a function that moves into a row, puts the row into the next `take_changed`.

    "Seen" means invoked: `first_seen_step` and `last_seen_ms` do not depend on whether reports list zeros, and are not
    taken back when a count is corrected to zero. Steps before the first sight that a complete report covers are zeros.

    Attributes:
        step_ms: width of a step.
        context: steps kept.
        max_functions: most functions known at once.
        functions: the function of each row, None for free rows (whose counts mean nothing). Do not modify.
        version: counts up with every change, so that an answer can be cached.
    """

    def __init__(self, step_ms: int, context: int, max_functions: int) -> None:
        self.step_ms = step_ms
        self.context = context
        self.max_functions = max_functions
        self.functions: list[FunctionKey | None] = []
        self.version = 0
        # Address space for every row; the system gives memory only to the rows in use, so nothing is ever copied.
        self._counts: FloatArray = np.empty((max_functions, context), np.float32)
        self._first_seen = np.full(max_functions, -1, np.int64)
        self._last_seen = np.full(max_functions, -1, np.int64)
        self._triggers = np.zeros(max_functions, np.int8)
        self._changed = np.zeros(max_functions, np.bool_)
        self._complete: BoolArray = np.zeros(context, np.bool_)
        self._owner: list[str | None] = [None] * context
        self._parts: dict[int, dict[str, FloatArray]] = {}
        self._row: dict[FunctionKey, int] = {}
        self._free: list[int] = []
        self._newest = -1
        self._learned = -1

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def as_of_ms(self) -> int:
        """End of the newest reported step, 0 when none was."""
        return (self._newest + 1) * self.step_ms

    @property
    def known(self) -> int:
        """Number of functions known."""
        return len(self._row)

    def row_of(self, key: FunctionKey) -> int:
        """The function's row, -1 when it is unknown."""
        return self._row.get(key, -1)

    def rows_of(self, keys: Iterable[FunctionKey]) -> Rows:
        """Each function's row, -1 for unknown ones, (R,)."""
        return np.fromiter((self._row.get(key, -1) for key in keys), np.int64)

    def window(self, rows: Rows, length: int) -> FloatArray:
        """The newest `length` steps (1 to `context`) of rows, oldest first, ending at `as_of_ms`, (R, length).

        NaN where nothing was reported, and for row -1.
        """
        if not 1 <= length <= self.context:
            raise ValueError(f"length = {length}, must be in [1, {self.context}]")
        counts = self._newest_columns(rows, length)
        counts[rows < 0] = np.nan
        return counts

    def columns_since(self, as_of_ms: int) -> FloatArray:
        """The steps closed after `as_of_ms`, oldest first, of all rows, (F, n) with n at most `context`."""
        fresh = min((self.as_of_ms - as_of_ms) // self.step_ms, self.context)
        return self._newest_columns(slice(len(self.functions)), fresh)

    def first_seen_step(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Absolute index (start / step_ms) of the first step with an invocation, -1 when there was none, (R,)."""
        return np.where(rows < 0, -1, self._first_seen[rows])

    def last_seen_ms(self, rows: Rows) -> npt.NDArray[np.int64]:
        """End of the last step with an invocation, -1 when there was none, (R,)."""
        last = self._last_seen[rows]
        return np.where((rows < 0) | (last < 0), -1, (last + 1) * self.step_ms)

    @property
    def triggers(self) -> npt.NDArray[np.int8]:
        """What invokes the function of each row, as a `Trigger`, (F,); a copy."""
        return self._triggers[: len(self.functions)].copy()

    def take_changed(self) -> Rows:
        """Rows whose learned past is no longer what it was, ascending, (R,); from here on all of it is learned.

        A row given to another function, or freed, is among them.
        """
        changed = np.flatnonzero(self._changed).astype(np.int64)
        self._changed[changed] = False
        self._learned = self._newest
        return changed

    # -- writing ---------------------------------------------------------------------------------------------------

    def report(self, step: StepCounts) -> tuple[int, list[Rejection]]:
        """Takes one source's counts of one step: how many were accepted, and what was refused, with the reason.

        Raises:
            StepWidthError: the report's steps are not as wide as the store's; nothing was taken.
        """
        self.check_width(step)
        reason = self._refusal(step)
        if reason is not None:
            return 0, [Rejection(None, step.step_start_ms, reason)]
        index = step.step_start_ms // self.step_ms
        if index > self._newest:
            self._open(index)
        rows, counts, rejections = self._admit(step)
        self._write(index, step, rows, counts)
        seen = rows[counts > 0]
        earliest = self._first_seen[seen]
        self._first_seen[seen] = np.where(earliest < 0, index, np.minimum(earliest, index))
        self._last_seen[seen] = np.maximum(self._last_seen[seen], index)
        self.version += 1
        return len(rows), rejections

    def check_width(self, step: StepCounts) -> None:
        """Raises StepWidthError when the report's steps are not as wide as the store's."""
        if step.step_ms != self.step_ms:
            raise StepWidthError(f"step_ms = {step.step_ms}, but the model's step is {self.step_ms} ms")

    def delete(self, keys: Iterable[FunctionKey]) -> int:
        """Forgets functions and their history; how many were known. Their rows will be used again."""
        rows = [row for row in (self._row.pop(key, None) for key in keys) if row is not None]
        for row in rows:
            self.functions[row] = None
            heapq.heappush(self._free, row)
        self._counts[rows] = np.nan
        self._changed[rows] = True
        self.version += bool(rows)
        return len(rows)

    # -- remembering -----------------------------------------------------------------------------------------------

    def state(self) -> SeriesState:
        """A copy of all that the store remembers, but for what was learned of it."""
        known = len(self.functions)
        columns = np.arange(self._newest - self.context + 1, self._newest + 1) % self.context
        parts = [(step, source, part) for step, parts in self._parts.items() for source, part in parts.items()]
        return SeriesState(
            step_ms=self.step_ms,
            newest=self._newest,
            functions=tuple(self.functions),
            counts=self._newest_columns(slice(known), self.context),
            first_seen=self._first_seen[:known].copy(),
            last_seen=self._last_seen[:known].copy(),
            triggers=self.triggers,
            complete=self._complete[columns],
            owners=tuple(self._owner[column] for column in columns),
            parts=tuple((step, source) for step, source, _ in parts),
            part_counts=np.array([part[:known] for *_, part in parts], np.float32).reshape(len(parts), known),
        )

    @classmethod
    def from_state(cls, state: SeriesState, context: int, max_functions: int) -> SeriesStore:
        """The store that `state` was taken from, with another context if need be; nothing of it counts as learned.

        Raises:
            InputError: the state holds more functions than `max_functions`.
        """
        known = len(state.functions)
        if known > max_functions:
            raise InputError(f"it holds {known} functions, but max_functions = {max_functions}")
        store = cls(state.step_ms, context, max_functions)
        store.functions = list(state.functions)
        store._row = {key: row for row, key in enumerate(state.functions) if key is not None}
        store._free = [row for row, key in enumerate(state.functions) if key is None]
        store._newest = state.newest
        store._first_seen[:known] = state.first_seen
        store._last_seen[:known] = state.last_seen
        store._triggers[:known] = state.triggers
        store._counts[:known] = np.nan
        kept = min(context, len(state.owners))
        columns = np.arange(state.newest - kept + 1, state.newest + 1) % context
        store._counts[:known, columns] = state.counts[:, -kept:]
        store._complete[columns] = state.complete[-kept:]
        for column, owner in zip(columns, state.owners[-kept:], strict=True):
            store._owner[column] = owner
        for (step, source), counts in zip(state.parts, state.part_counts, strict=True):
            if step > state.newest - context:
                store._parts.setdefault(step, {})[source] = part = store._silence()
                part[:known] = counts
        return store

    # -- inside ----------------------------------------------------------------------------------------------------

    def _newest_columns(self, rows: Rows | slice, length: int) -> FloatArray:
        """A copy of the newest `length` columns: the ring's tail, then its head."""
        if length <= 0:
            return self._counts[rows, :0].copy()
        end = self._newest % self.context + 1
        start = end - length
        if start >= 0:
            return self._counts[rows, start:end].copy()
        return np.concatenate((self._counts[rows, start:], self._counts[rows, :end]), axis=1)

    def _refusal(self, step: StepCounts) -> str | None:
        """Why the whole step cannot be taken, None when it can."""
        start = step.step_start_ms
        if start < 0 or start % self.step_ms:
            return f"step_start_ms = {start}, must be a multiple of {self.step_ms} and not negative"
        index = start // self.step_ms
        if self._newest < 0 or index > self._newest:
            return None
        oldest = max(self._newest - self.context + 1, 0)
        if index < oldest:
            return (
                f"step_start_ms = {start} is older than the {self.context} steps kept: "
                f"allowed from {oldest * self.step_ms} on"
            )
        return self._source_refusal(index, step)

    def _source_refusal(self, index: int, step: StepCounts) -> str | None:
        """Why this source can no longer be told apart in a step that others reported, None when it can."""
        if self._owner[index % self.context] in {None, step.source}:
            return None
        if index <= self._newest - RECENT_STEPS:
            return (
                f"step_start_ms = {step.step_start_ms} was reported by other sources than {step.source!r}, which can be "
                f"added or corrected for {RECENT_STEPS} steps: "
                f"allowed from {(self._newest - RECENT_STEPS + 1) * self.step_ms} on"
            )
        parts = self._parts.get(index, {})
        if step.source not in parts and len(parts) >= MAX_SOURCES:
            return f"source = {step.source!r} is one too many for this step: at most {MAX_SOURCES} sources"
        return None

    def _open(self, index: int) -> None:
        """Moves the ring's head to a newer step; steps in between were skipped and are missing."""
        for step in range(max(self._newest + 1, index - self.context + 1), index + 1):
            column = step % self.context
            self._counts[: len(self.functions), column] = np.nan
            self._complete[column] = False
            self._owner[column] = None
        self._newest = index
        for step in [step for step in self._parts if step <= index - RECENT_STEPS]:
            del self._parts[step]

    def _admit(self, step: StepCounts) -> tuple[Rows, FloatArray, list[Rejection]]:
        """Rows and counts of the functions that are taken in, new ones included."""
        rows, counts, rejections = [], [], []
        for key, count in step.counts.items():
            row = -1
            if not 0 <= count <= MAX_COUNT:
                reason = f"count = {count}, must be in [0, {MAX_COUNT}]"
            elif (row := self._row_for(key)) < 0:
                reason = f"{self.max_functions} functions are known, which is the limit: delete some, or raise it"
            if row < 0:
                rejections.append(Rejection(key, step.step_start_ms, reason))
            else:
                rows.append(row)
                counts.append(count)
                if (trigger := step.triggers.get(key, Trigger.UNKNOWN)) != Trigger.UNKNOWN:
                    self._triggers[row] = trigger
        return np.array(rows, np.int64), np.array(counts, np.float32), rejections

    def _row_for(self, key: FunctionKey) -> int:
        """The function's row, a new one at its first report, -1 when all are taken."""
        row = self._row.get(key, -1)
        if row >= 0 or self.known >= self.max_functions:
            return row
        if self._free:
            row = heapq.heappop(self._free)
            self.functions[row] = key
        else:
            row = len(self.functions)
            self.functions.append(key)
        self._row[key] = row
        self._counts[row] = np.where(self._complete, np.float32(0), np.float32(np.nan))
        for part in (part for parts in self._parts.values() for part in parts.values()):
            part[row] = np.nan
        self._first_seen[row] = self._last_seen[row] = -1
        self._triggers[row] = Trigger.UNKNOWN
        self._changed[row] = self._learned >= 0
        return row

    def _write(self, index: int, step: StepCounts, rows: Rows, counts: FloatArray) -> None:
        """Puts admitted counts into their column, and notes the rows whose learned past it alters."""
        column = index % self.context
        total = self._counts[:, column]
        touched: Rows | slice = slice(len(self.functions)) if step.complete else rows
        before = total[touched].copy()
        if self._owner[column] in {None, step.source}:
            self._owner[column] = step.source
            if step.complete:
                total[touched] = 0
            total[rows] = counts
        else:
            parts = self._split(index, step.source)
            if step.complete:
                parts[step.source][touched] = 0
            parts[step.source][rows] = counts
            # Whatever is touched was told by this source: no cell is without a number. Sums are exact, rounded once.
            total[touched] = np.nansum([part[touched] for part in parts.values()], axis=0, dtype=np.float64)
        self._complete[column] |= step.complete
        if index <= self._learned:
            self._changed[touched] |= ~((before == total[touched]) | (np.isnan(before) & np.isnan(total[touched])))

    def _split(self, index: int, source: str) -> dict[str, FloatArray]:
        """The step's columns by source, with one for `source`; NaN where a source said nothing."""
        column = index % self.context
        owner = self._owner[column]
        parts = self._parts.setdefault(index, {})
        if owner is not None and owner != _SEVERAL:
            parts[owner] = self._silence()
            parts[owner][: len(self.functions)] = self._counts[: len(self.functions), column]
            self._owner[column] = _SEVERAL
        if source not in parts:
            parts[source] = self._silence()
        return parts

    def _silence(self) -> FloatArray:
        """A column of which nothing was said."""
        return np.full(self.max_functions, np.nan, np.float32)
