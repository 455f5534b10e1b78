"""What is in a trace, and what looks wrong with it.

The warnings are the checks that caught corrupt copies of public traces: generated files that kept the totals but not
the minutes. A doubt is a warning, for the reader to judge; only a file that cannot be read is an error.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from .model import Trace

RATE_QUANTILES: tuple[float, ...] = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

#: Identical series beyond this many are clones, if they are not trivial.
MAX_IDENTICAL = 3

#: A series is trivial (coincidence can repeat it) with fewer invocations, or with fewer different gaps.
NONTRIVIAL_INVOCATIONS = 20
NONTRIVIAL_GAPS = 4

#: Functions that share their total with another, below which clones by total cannot be told from chance.
MIN_SHARED_TOTALS = 20


@dataclass(frozen=True, slots=True)
class Inspection:
    """The contents of a trace in numbers, and its doubts in sentences.

    Attributes:
        start_minute: absolute minute of the first column (0 = 00:00 of day 1).
        active_share: share of (function, minute) pairs with an invocation, 0 to 1.
        invocations_per_day: quantile -> a function's average invocations a day.
        triggers: trigger -> number of functions, most frequent first.
        with_duration, with_memory, with_arrivals: functions of which it is known.
        warnings: what looks wrong, a sentence each.
    """

    name: str
    functions: int
    apps: int
    owners: int
    start_minute: int
    minutes: int
    days: float
    invocations: int
    active_share: float
    invocations_per_day: dict[str, float]
    triggers: dict[str, int]
    with_duration: int
    with_memory: int
    with_arrivals: int
    warnings: tuple[str, ...]
    checksum: str


def inspect_trace(trace: Trace) -> Inspection:
    """Sum up a trace and run every check on it."""
    totals = trace.counts.sum(axis=1, dtype=np.int64)
    days = trace.minutes / 1_440
    quantiles = np.quantile(totals / days, RATE_QUANTILES)
    return Inspection(
        name=trace.name,
        functions=len(trace.functions),
        apps=len(set(trace.apps)),
        owners=len({key.scope for key in trace.functions}),
        start_minute=trace.start_minute,
        minutes=trace.minutes,
        days=round(days, 3),
        invocations=int(totals.sum()),
        active_share=float(np.count_nonzero(trace.counts) / trace.counts.size),
        invocations_per_day={f"p{100 * q:g}": float(x) for q, x in zip(RATE_QUANTILES, quantiles, strict=True)},
        triggers=dict(Counter(trace.triggers).most_common()),
        with_duration=int(np.isfinite(trace.duration_ms).sum()),
        with_memory=int(np.isfinite(trace.app_memory_mb).sum()),
        with_arrivals=0 if trace.arrivals_s is None else len(trace.arrivals_s),
        warnings=tuple(_warnings(trace, totals)),
        checksum=trace.checksum,
    )


def _warnings(trace: Trace, totals: npt.NDArray[np.int64]) -> Iterator[str]:
    series = _nontrivial_series(trace)
    yield from _silent_functions(totals)
    yield from _silent_hours(trace)
    yield from _uneven_timers(trace)
    yield from _counts_unlike_durations(trace, totals)
    yield from _clones(trace, series)
    yield from _one_series_per_total(series, totals)


def _silent_functions(totals: npt.NDArray[np.int64]) -> Iterator[str]:
    if silent := int((totals == 0).sum()):
        yield f"{silent:,} of {len(totals):,} functions have no invocation at all; the published files list none such."


def _silent_hours(trace: Trace) -> Iterator[str]:
    """No invocation of any function for an hour, in a trace that is otherwise never silent for long."""
    active = np.flatnonzero(trace.counts.any(axis=0))
    if len(active) < trace.minutes / 2:
        return  # too sparse a trace for its silence to be odd
    edges = np.concatenate([[-1], active, [trace.minutes]])
    gaps = np.diff(edges) - 1
    if gaps.max() >= 60:
        start = int(edges[gaps.argmax()]) + 1
        yield f"no function was invoked in minutes {start:,} to {start + int(gaps.max()) - 1:,}: the recording may have a hole."


def _uneven_timers(trace: Trace) -> Iterator[str]:
    """A timer that fires every minute reads 1 a minute, but for neighbours that trade one: 0, 2."""
    timers = np.array([trigger == "timer" for trigger in trace.triggers])
    every_minute = uneven = 0
    for row in np.flatnonzero(timers):
        counts = trace.counts[row]
        active = np.flatnonzero(counts)
        if not len(active):
            continue
        alive = counts[active[0] : active[-1] + 1]
        if len(alive) >= 60 and len(active) >= 0.75 * len(alive) and np.median(alive) == 1:
            every_minute += 1
            uneven += bool(abs(alive.mean(dtype=np.float64) - 1) > 0.02)
    if uneven:
        yield (
            f"{uneven:,} of {every_minute:,} every-minute timers do not read 1 invocation a minute: "
            "the minutes may be resampled."
        )


def _counts_unlike_durations(trace: Trace, totals: npt.NDArray[np.int64]) -> Iterator[str]:
    """The duration files count the same invocations; in true copies a few functions differ by a few percent."""
    if trace.duration_count is None:
        return
    known = trace.duration_count >= 0
    off = known & (np.abs(trace.duration_count - totals) > np.maximum(2, 0.1 * totals))
    if off.any():
        row = int(np.argmax(np.where(off, np.abs(trace.duration_count - totals), -1)))
        yield (
            f"{int(off.sum()):,} of {int(known.sum()):,} functions have a Count in the duration files over 10 % off their "
            f"invocations (most in {trace.functions[row].name}: {trace.duration_count[row]:,} against {totals[row]:,})."
        )


def _nontrivial_series(trace: Trace) -> dict[bytes, list[int]]:
    """Rows by their series, for series that do not coincide by chance (rare calls, plain periods)."""
    series: dict[bytes, list[int]] = defaultdict(list)
    for row, counts in enumerate(trace.counts):
        active = np.flatnonzero(counts)
        if len(active) < NONTRIVIAL_INVOCATIONS:
            continue
        marks = np.diff(active) * 100_003 + counts[active[1:]]  # a gap and the count after it
        if len(np.unique(marks)) >= NONTRIVIAL_GAPS:
            series[counts.tobytes()].append(row)
    return series


def _clones(trace: Trace, series: dict[bytes, list[int]]) -> Iterator[str]:
    groups = [rows for rows in series.values() if len(rows) > MAX_IDENTICAL]
    if groups:
        largest = max(groups, key=len)
        yield (
            f"{sum(map(len, groups)):,} functions are clones: {len(groups):,} series stand more than {MAX_IDENTICAL} "
            f"times (one {len(largest):,} times, first {trace.functions[largest[0]].name})."
        )


def _one_series_per_total(series: dict[bytes, list[int]], totals: npt.NDArray[np.int64]) -> Iterator[str]:
    """Different functions with the same total have different minutes, unless minutes were drawn from the total."""
    per_total: dict[int, list[int]] = defaultdict(list)
    for rows in series.values():
        per_total[int(totals[rows[0]])].append(len(rows))
    shared = [groups for groups in per_total.values() if sum(groups) > 1]
    functions = sum(map(sum, shared))
    if functions >= MIN_SHARED_TOTALS and all(len(groups) == 1 for groups in shared):
        yield f"all {functions:,} functions that share their total share every minute: one series per total, clones."
