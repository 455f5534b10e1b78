"""The hybrid histogram: its windows told as a diary, and against a slow reading of the same rules."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesp.types import FunctionKey
from mesp_bench.policies import BASELINES
from mesp_bench.traces.model import Trace

HYBRID, HYBRID_APP = BASELINES["hybrid_histogram"], BASELINES["hybrid_histogram_app"]


def trace_of(counts: np.ndarray, apps: tuple[str, ...] | None = None) -> Trace:
    functions = len(counts)
    return Trace(
        name="test",
        functions=tuple(FunctionKey("owner", f"app/{f}") for f in range(functions)),
        counts=counts.astype(np.uint32),
        start_minute=0,
        apps=apps or tuple(f"owner/app{f}" for f in range(functions)),
        triggers=("http",) * functions,
        memory_mb=np.full(functions, 170.0),
        app_memory_mb=np.full(functions, 170.0),
        duration_ms=np.full(functions, 100.0),
        duration_percentiles_ms=np.full((functions, 7), 100.0),
        arrivals_s=None,
        checksum="",
    )


def called_at(length: int, *calls: int) -> np.ndarray:
    """One row of counts with calls in these minutes, (1, length)."""
    counts = np.zeros((1, length), np.uint32)
    counts[0, list(calls)] = 1
    return counts


def minutes(loaded: np.ndarray) -> list[int]:
    return np.flatnonzero(loaded[0]).tolist()


def test_until_it_knows_two_gaps_it_keeps_the_range() -> None:
    """One gap is no pattern: after calls in minutes 0 and 20 the function stays for all 60 minutes of the range."""
    loaded = HYBRID.loaded(trace_of(called_at(100, 0, 20)), 60)
    assert minutes(loaded) == list(range(1, 81))


def test_a_timer_is_dropped_and_made_anew() -> None:
    """Gaps of 20: head floor(18), tail ceil(22), so from the third call on minutes 18 to 22 after it are loaded."""
    loaded = HYBRID.loaded(trace_of(called_at(100, 0, 20, 40)), 60)
    assert minutes(loaded) == [*range(1, 41), *range(58, 63)]


def test_its_seconds_start_with_the_earliest_moment_of_the_head() -> None:
    """An order 17 minutes after the last idle moment and a window to 22: the head rounded down to its bin's edge."""
    schedule = HYBRID.schedule(trace_of(called_at(100, 0, 20, 40)), 60)
    assert (schedule.prewarm_after_s[0, 41], schedule.keep_alive_s[0, 41]) == (17 * 60, 5 * 60)
    assert (schedule.prewarm_after_s[0, 40], schedule.keep_alive_s[0, 40]) == (0, 60 * 60)  # known once 40 is over


def test_a_burst_is_not_dropped_between_its_calls() -> None:
    """Five calls a minute every 20 minutes: most gaps are short, so in seconds nothing is dropped before the tail."""
    schedule = HYBRID.schedule(trace_of(5 * called_at(100, 0, 20, 40)), 60)
    assert (schedule.prewarm_after_s[0, 41], schedule.keep_alive_s[0, 41]) == (0, 22 * 60)


def test_gaps_within_minutes_alone_keep_one_minute() -> None:
    """Whatever the share of short gaps, a container stays for the one minute to which the tail is rounded up."""
    schedule = HYBRID.schedule(trace_of(100 * called_at(100, 0)), 60)
    assert (schedule.prewarm_after_s[0, 1], schedule.keep_alive_s[0, 1]) == (0, 60)


def test_margins_are_exact_where_floats_are_not() -> None:
    """1.1 x 50 is 55 minutes, though in floating point it rounds up to 56."""
    assert math.ceil(1.1 * 50) == 56
    loaded = HYBRID.loaded(trace_of(called_at(200, 0, 50, 100)), 60)
    assert minutes(loaded) == [*range(1, 101), *range(145, 156)]


def test_half_of_the_gaps_out_of_bounds_keeps_the_range() -> None:
    """Gaps of 60 and more teach nothing: one in two and the function is simply kept."""
    loaded = HYBRID.loaded(trace_of(called_at(300, 0, 5, 65)), 60)
    assert minutes(loaded)[-60:] == list(range(66, 126))


def test_evenly_spread_gaps_are_not_representative() -> None:
    """Two gaps each of 1, 2, 3 and 4 in a range of 5: the bins vary by 0.5 of their mean, so the range is kept."""
    counts = called_at(60, 0, 1, 3, 6, 10, 11, 13, 16, 20)
    assert minutes(HYBRID.loaded(trace_of(counts), 5))[-5:] == [21, 22, 23, 24, 25]


def test_the_app_learns_from_all_its_functions() -> None:
    """Two functions that alternate every 20 minutes look like a 20-minute timer to their app, and share its warmth."""
    counts = np.vstack([called_at(100, 0, 40), called_at(100, 20)])
    loaded = HYBRID_APP.loaded(trace_of(counts, apps=("owner/app", "owner/app")), 60)
    assert np.array_equal(loaded[0], loaded[1])
    assert minutes(loaded) == [*range(1, 41), *range(58, 63)]


def slow_loaded(counts: np.ndarray, range_minutes: int) -> list[bool]:
    """The rules of the module's docstring, one sentence per line."""
    loaded = []
    gaps: list[int] = []
    last: int | None = None
    for minute, count in enumerate(counts):
        within = sorted(gap for gap in gaps if gap < range_minutes)
        head, tail = 1, range_minutes
        if len(gaps) >= 2 and 2 * len(within) > len(gaps):
            bins = np.bincount(within, minlength=range_minutes)
            # population variance >= 4 mean², in whole numbers: five gaps of one length in five bins are on the edge
            if len(bins) * int((bins**2).sum()) >= 5 * int(bins.sum()) ** 2:
                head = max(1, within[math.ceil(len(within) * 5 / 100) - 1] * 9 // 10)
                tail = -(-within[math.ceil(len(within) * 99 / 100) - 1] * 11 // 10)
        loaded.append(last is not None and head <= minute - last <= tail)
        if count:
            if last is not None:
                gaps.append(minute - last)
            last = minute
    return loaded


@settings(deadline=None)  # the first example compiles
@given(
    counts=hnp.arrays(np.uint32, st.integers(1, 150), elements=st.sampled_from([0, 0, 0, 1])),
    range_minutes=st.integers(2, 40),
)
def test_compiled_windows_agree_with_the_slow_reading(counts: np.ndarray, range_minutes: int) -> None:
    """The compiled histogram and the sorted list of gaps decide every minute alike."""
    assert HYBRID.loaded(trace_of(counts[None]), range_minutes)[0].tolist() == slow_loaded(counts, range_minutes)
