from __future__ import annotations

import math

import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.arrivals import DEFAULT_DURATION_MS, FIXED_START, ArrivalMode, StartTime, draw_arrivals
from mesp_bench.traces.model import Trace


def trace(counts: list[list[int]], *, names: str = "abcdefgh", **changes: object) -> Trace:
    functions = len(counts)
    unknown = np.full(functions, np.nan)
    fields: dict[str, object] = {
        "name": "test",
        "functions": tuple(FunctionKey("owner", name) for name in names[:functions]),
        "counts": np.array(counts, np.uint32),
        "start_minute": 0,
        "apps": ("owner/app",) * functions,
        "triggers": ("http",) * functions,
        "memory_mb": unknown,
        "app_memory_mb": unknown,
        "duration_ms": unknown,
        "duration_percentiles_ms": np.full((functions, 7), np.nan),
        "arrivals_s": None,
        "checksum": "",
    }
    return Trace(**{**fields, **changes})  # type: ignore[arg-type]


def test_uniform_keeps_every_count() -> None:
    """In uniform mode each minute has its recorded number of arrivals, sorted, and only the asked minutes have any."""
    counts = [[3, 0, 5, 2], [0, 0, 0, 7]]
    arrivals = draw_arrivals(trace(counts), ArrivalMode.UNIFORM, 1, minutes=(1, 4))
    for row in range(2):
        times = arrivals.times_s[arrivals.indptr[row] : arrivals.indptr[row + 1]]
        assert (np.diff(times) >= 0).all()
        np.testing.assert_array_equal(np.bincount((times // 60).astype(int), minlength=4), [0, *counts[row][1:]])


def test_bunched_arrives_in_the_first_second() -> None:
    """In bunched mode the recorded count falls into the first second of its minute."""
    arrivals = draw_arrivals(trace([[5, 9]]), ArrivalMode.BUNCHED, 0)
    assert (arrivals.times_s % 60 < 1).all()
    np.testing.assert_array_equal(np.bincount((arrivals.times_s // 60).astype(int)), [5, 9])


def test_poisson_varies_the_count() -> None:
    """In poisson mode the count itself varies around the recorded one, by about its square root."""
    arrivals = draw_arrivals(trace([[100] * 400]), ArrivalMode.POISSON, 0)
    counts = np.bincount((arrivals.times_s // 60).astype(int), minlength=400)
    assert counts.mean() == pytest.approx(100, abs=2)
    assert counts.std() == pytest.approx(10, abs=1.5)


@pytest.mark.parametrize("mode", ArrivalMode)
def test_recorded_times_win(mode: ArrivalMode) -> None:
    """Where a trace has arrival times they are used as they are, cut to the asked minutes."""
    recorded = (np.array([3.0, 59.9, 60.0, 119.0, 120.0]),)
    arrivals = draw_arrivals(trace([[2, 2, 1]], arrivals_s=recorded), mode, 0, minutes=(1, 2))
    np.testing.assert_array_equal(arrivals.times_s, [60.0, 119.0])


def test_a_function_keeps_its_randomness_when_others_join() -> None:
    """A function's arrivals, durations and start times do not change when another is added before it."""
    alone = draw_arrivals(trace([[4, 9]], names="b"), ArrivalMode.UNIFORM, 5)
    joined = draw_arrivals(trace([[7, 7], [4, 9]]), ArrivalMode.UNIFORM, 5)
    np.testing.assert_array_equal(alone.times_s, joined.times_s[14:])
    np.testing.assert_array_equal(alone.durations_s, joined.durations_s[14:])
    np.testing.assert_array_equal(alone.start_times_s, joined.start_times_s[14:])


def test_seeds_differ_and_repeat() -> None:
    """The same seed draws the same arrivals, another seed others."""
    first, again, other = (draw_arrivals(trace([[50]]), ArrivalMode.UNIFORM, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.times_s, again.times_s)
    assert not np.array_equal(first.times_s, other.times_s)


def test_durations_follow_the_percentiles() -> None:
    """Durations stay within the recorded extremes and meet the recorded quartiles, in seconds."""
    percentiles = np.array([[10.0, 20, 100, 200, 400, 900, 1000]])
    arrivals = draw_arrivals(trace([[20_000]], duration_percentiles_ms=percentiles), ArrivalMode.UNIFORM, 0)
    assert 0.01 <= arrivals.durations_s.min() <= arrivals.durations_s.max() <= 1.0
    np.testing.assert_allclose(np.quantile(arrivals.durations_s, [0.25, 0.5, 0.75]), [0.1, 0.2, 0.4], rtol=0.05)


@pytest.mark.parametrize(("recorded_ms", "mean_ms"), [(250.0, 250.0), (math.nan, DEFAULT_DURATION_MS)])
def test_durations_without_percentiles_have_the_mean(recorded_ms: float, mean_ms: float) -> None:
    """Without percentiles durations are log-normal around the recorded mean, or around the default."""
    arrivals = draw_arrivals(trace([[50_000]], duration_ms=np.array([recorded_ms])), ArrivalMode.UNIFORM, 0)
    assert 1000 * arrivals.durations_s.mean() == pytest.approx(mean_ms, rel=0.03)
    assert arrivals.durations_s.std() / arrivals.durations_s.mean() == pytest.approx(1, rel=0.1)


def test_start_times_have_the_mean_of_the_protocol() -> None:
    """Start times are LogNormal with mean 3.24 s (median mean / sqrt(1 + (sd / mean)^2)), or fixed."""
    drawn = StartTime().draw(np.random.default_rng(0), 400_000)
    assert drawn.mean() == pytest.approx(3.24, rel=0.03)
    assert np.median(drawn) == pytest.approx(3.24 / math.sqrt(1 + (7.10 / 3.24) ** 2), rel=0.02)
    arrivals = draw_arrivals(trace([[3], [0]]), ArrivalMode.UNIFORM, 0, start_time=FIXED_START)
    np.testing.assert_array_equal(arrivals.start_times_s, [0.808] * 4)
    np.testing.assert_array_equal(arrivals.start_indptr, [0, 3, 4])


@pytest.mark.parametrize("minutes", [(0, 3), (1, 1), (-1, 1)])
def test_minutes_outside_the_trace_are_refused(minutes: tuple[int, int]) -> None:
    """Minutes outside the trace are one clear error."""
    with pytest.raises(InputError, match=r"must lie within \[0, 2\)"):
        draw_arrivals(trace([[1, 1]]), ArrivalMode.UNIFORM, 0, minutes=minutes)


def test_impossible_start_times_and_seeds_are_refused() -> None:
    """A negative seed and a start time that no log-normal has are refused."""
    with pytest.raises(InputError, match="seed -1"):
        draw_arrivals(trace([[1]]), ArrivalMode.UNIFORM, -1)
    with pytest.raises(InputError, match="start time 0"):
        StartTime(mean_s=0.0, sd_s=1.0)
