"""Inspection: each doubt is raised by the damage it is for, and by nothing in a healthy trace."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mesp.types import FunctionKey
from mesp_bench.traces.inspection import inspect_trace
from mesp_bench.traces.load import load_trace
from mesp_bench.traces.model import Trace

DATA = Path(os.environ.get("MESP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def trace_of(counts: npt.NDArray[Any], triggers: tuple[str, ...] | None = None) -> Trace:
    number = len(counts)
    unknown = np.full(number, np.nan)
    return Trace(
        name="made",
        functions=tuple(FunctionKey(f"o{i % 2}", f"a{i}/f") for i in range(number)),
        counts=counts.astype(np.uint32),
        start_minute=0,
        apps=tuple(f"o{i % 2}/a{i}" for i in range(number)),
        triggers=triggers or ("http",) * number,
        memory_mb=unknown,
        app_memory_mb=unknown,
        duration_ms=unknown,
        duration_percentiles_ms=np.full((number, 7), np.nan),
        arrivals_s=None,
        checksum="0" * 64,
    )


def healthy() -> npt.NDArray[np.int64]:
    counts = np.random.default_rng(0).poisson(0.5, (50, 1_440)).astype(np.int64)
    counts[:, ::5] += 1
    return counts


def test_contents_are_summed_up() -> None:
    """Numbers of an obvious trace: two days of one call a minute, and of one call in all."""
    counts = np.zeros((2, 2_880), dtype=np.uint32)
    counts[0] = 1
    counts[1, 7] = 1
    seen = inspect_trace(replace(trace_of(counts, ("timer", "http")), duration_ms=np.array([1.0, np.nan])))
    assert (seen.functions, seen.apps, seen.owners, seen.minutes, seen.days) == (2, 2, 2, 2_880, 2.0)
    assert seen.invocations == 2_881
    assert seen.active_share == 2_881 / 5_760
    assert seen.invocations_per_day["p0"] == 0.5
    assert seen.invocations_per_day["p100"] == 1_440
    assert seen.triggers == {"timer": 1, "http": 1}
    assert (seen.with_duration, seen.with_memory, seen.with_arrivals) == (1, 0, 0)
    assert seen.warnings == ()


def test_a_healthy_trace_raises_no_doubt() -> None:
    """Random functions and true timers (also one that trades neighbours: 0, 2) pass every check."""
    counts = healthy()
    counts[0] = 1
    counts[1] = 1
    counts[1, 10::10] -= 1
    counts[1, 11::10] += 1
    trace = trace_of(counts, ("timer", "timer", *("http",) * 48))
    totals = counts.sum(axis=1).astype(np.int64)
    assert inspect_trace(replace(trace, duration_count=totals + 1)).warnings == ()


def only_warning(trace: Trace) -> str:
    (warning,) = inspect_trace(trace).warnings
    return warning


def test_silent_functions_are_doubted() -> None:
    """A function without any invocation would not have been listed."""
    counts = healthy()
    counts[:2] = 0
    assert only_warning(trace_of(counts)).startswith("2 of 50 functions have no invocation")


def test_a_hole_is_doubted() -> None:
    """An hour without any invocation in a busy trace is a hole in the recording, also at its end."""
    counts = healthy()
    counts[:, 1_380:] = 0
    assert "minutes 1,380 to 1,439" in only_warning(trace_of(counts))


def test_uneven_timers_are_doubted() -> None:
    """An every-minute timer whose minutes were resampled reads 1.1 a minute on average."""
    counts = healthy()
    counts[0] = 1
    counts[0, ::10] = 2
    assert only_warning(trace_of(counts, ("timer", *("http",) * 49))).startswith("1 of 1 every-minute timers")


def test_counts_unlike_the_durations_are_doubted() -> None:
    """A Count half the row's invocations is told with both numbers; -1 (unknown) is not compared."""
    counts = healthy()
    totals = counts.sum(axis=1).astype(np.int64)
    counted = totals.copy()
    counted[3] //= 2
    counted[4] = -1
    warning = only_warning(replace(trace_of(counts), duration_count=counted))
    assert warning.startswith("1 of 49 functions")
    assert f"{counted[3]:,} against {totals[3]:,}" in warning


def test_clones_are_doubted() -> None:
    """The same random series four times is no chance; four functions of one plain period are."""
    counts = healthy()
    counts[1:4] = counts[0]
    assert "one 4 times" in only_warning(trace_of(counts))
    counts = healthy()
    counts[:4] = np.arange(1_440) % 15 == 0
    assert inspect_trace(trace_of(counts)).warnings == ()


def test_one_series_per_total_is_doubted() -> None:
    """Pairs that share total and every minute say that minutes were made from totals; one that differs, that they do not."""
    counts = np.random.default_rng(1).poisson(np.repeat(np.linspace(0.2, 4, 25), 2)[:, None], (50, 1_440))
    counts[1::2] = counts[::2]
    assert "all 50 functions" in only_warning(trace_of(counts))
    counts[1] = np.roll(counts[1], 7)
    assert inspect_trace(trace_of(counts)).warnings == ()


@pytest.mark.skipif(not (DATA / "azure2019-d01-pool").is_dir(), reason="the real traces are not here (MESP_DATA)")
def test_real_series_raise_no_doubt() -> None:
    """1,175 real series pass every check that needs no durations."""
    assert inspect_trace(load_trace(DATA / "azure2019-d01-pool")).warnings == ()
