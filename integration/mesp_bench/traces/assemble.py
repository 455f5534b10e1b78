"""From what the files say, per day and per table, to one `Trace`.

Functions stand in the order of their first appearance; a function that a day does not list had no invocations that
day. Means of several days are weighted by their counts, in running form: the mean of equal values is that value, to
the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mesp.errors import InputError
from mesp.types import FunctionKey

from .model import DURATION_PERCENTILES, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

#: Stands for an owner or trigger that the files do not tell.
UNKNOWN = "unknown"


class FunctionId(NamedTuple):
    """A function as the files name it."""

    owner: str
    app: str
    function: str


@dataclass(frozen=True, slots=True)
class Invocations:
    """One file of invocation counts.

    Attributes:
        ids: the file's functions, distinct, in file order.
        triggers: trigger per function, (F,) entries.
        counts: invocations per minute, (F, M) uint32.
        start_minute: absolute number of the first column's minute.
        id_columns: the id columns that the file carries.
    """

    ids: list[FunctionId]
    triggers: list[str]
    counts: npt.NDArray[np.uint32]
    start_minute: int
    id_columns: tuple[str, ...]

    @property
    def end_minute(self) -> int:
        """The first minute after the last."""
        return self.start_minute + int(self.counts.shape[1])


class Mean:
    """Running means over days: key -> weight and the mean of a vector of values."""

    def __init__(self) -> None:
        self.weights: dict[tuple[str, ...], int] = {}
        self.values: dict[tuple[str, ...], npt.NDArray[np.float64]] = {}

    def add(self, key: tuple[str, ...], weight: int, values: npt.NDArray[np.float64]) -> None:
        """Take in one day's values; a weight of 0 counts as 1, so that a lone value is kept."""
        total = self.weights.get(key, 0) + max(weight, 1)
        mean = self.values.get(key)
        self.weights[key] = total
        self.values[key] = values if mean is None else mean + (values - mean) * (max(weight, 1) / total)

    def rows(self, keys: Iterable[tuple[str, ...]], width: int) -> npt.NDArray[np.float64]:
        """Means of these keys, (keys, width); NaN where unknown."""
        unknown = np.full(width, np.nan)
        return np.array([self.values.get(key, unknown) for key in keys]).reshape(-1, width)


def build_trace(
    name: str,
    days: list[Invocations],
    *,
    durations: Mean,
    duration_count: Mapping[FunctionId, int] | None,
    app_memory: Mean,
    function_memory: Mean,
    checksum: str,
) -> Trace:
    """Join days and tables into one trace; `days` is emptied as it is copied, to hold memory down.

    Args:
        name: the trace's name, for reports and errors.
        days: counts in the order of time.
        durations: per function id: mean and percentiles in ms, (1 + percentiles,).
        duration_count: invocations counted by the duration files of all days; None where a day has none.
        app_memory: per (owner, app): MB as recorded, (1,).
        function_memory: per function id: a function's own MB, (1,), where files are per function (invitro).
        checksum: of the files.

    Raises:
        InputError: no functions, or the days do not follow one another.
    """
    for before, after in pairwise(days):
        if after.start_minute != before.end_minute:
            raise InputError(
                f"{name}: minute {after.start_minute} follows minute {before.end_minute - 1}; "
                "days must follow one another without a gap (load a part that does).",
            )
    rows: dict[FunctionId, int] = {}
    triggers: list[str] = []
    for day in days:
        for function, trigger in zip(day.ids, day.triggers, strict=True):
            if function not in rows:
                rows[function] = len(rows)
                triggers.append(trigger)
    if not rows:
        raise InputError(f"{name} holds no functions: expected at least one row of invocations.")
    ids = list(rows)
    start_minute = days[0].start_minute
    counts = _join(days, rows)
    apps = [function[:2] for function in ids]
    app_mb, own_mb = _memory(ids, app_memory, function_memory)
    duration = durations.rows(ids, 1 + len(DURATION_PERCENTILES))
    return Trace(
        name=name,
        functions=tuple(FunctionKey(owner, f"{app}/{function}") for owner, app, function in ids),
        counts=counts,
        start_minute=start_minute,
        apps=tuple("/".join(app) for app in apps),
        triggers=tuple(triggers),
        memory_mb=own_mb,
        app_memory_mb=app_mb,
        duration_ms=duration[:, 0].copy(),
        duration_percentiles_ms=duration[:, 1:].copy(),
        arrivals_s=None,
        checksum=checksum,
        duration_count=None
        if duration_count is None
        else np.array([duration_count.get(function, -1) for function in ids], dtype=np.int64),
    )


def _join(days: list[Invocations], rows: Mapping[FunctionId, int]) -> npt.NDArray[np.uint32]:
    """Counts of all days side by side, (F, M); one day in file order is not copied."""
    if len(days) == 1:
        return days.pop().counts
    start = days[0].start_minute
    counts = np.zeros((len(rows), days[-1].end_minute - start), dtype=np.uint32)
    while days:
        day = days.pop()
        counts[[rows[function] for function in day.ids], day.start_minute - start : day.end_minute - start] = day.counts
    return counts


def _memory(
    ids: Sequence[FunctionId], app_memory: Mean, function_memory: Mean
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The app's memory and one function's share of it in MB, (F,) each.

    An app's recorded average is shared by the app's functions in the trace. Where a file gives each function's own,
    that is its share, and the app's memory is the sum of the known shares.
    """
    apps = [function[:2] for function in ids]
    number: dict[tuple[str, str], int] = {}
    for app in apps:
        number[app] = number.get(app, 0) + 1
    recorded = app_memory.rows(apps, 1)[:, 0]
    own = function_memory.rows(ids, 1)[:, 0]
    total: dict[tuple[str, str], float] = {}
    for app, share in zip(apps, own, strict=True):
        if not np.isnan(share):
            total[app] = total.get(app, 0.0) + float(share)
    app_mb = np.where(np.isnan(recorded), [total.get(app, np.nan) for app in apps], recorded)
    own_mb = np.where(np.isnan(own), recorded / [number[app] for app in apps], own)
    return app_mb, own_mb
