"""Minute accounting: the arithmetic written out, and the known points on a real trace."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.ledger import (
    ColdRates,
    cold_rates,
    compulsory_cold_starts,
    fill_defaults,
    minute_ledger,
    rum,
    waste_pct,
)
from mesp_bench.policies import BASELINES
from mesp_bench.traces.load import load_trace
from mesp_bench.traces.model import Trace

ALL = slice(None)


def trace_of(counts: list[list[int]] | np.ndarray, memory_mb: float = 1024.0, duration_ms: float = 1000.0) -> Trace:
    array = np.array(counts, np.uint32)
    functions = len(array)
    return Trace(
        name="test",
        functions=tuple(FunctionKey("owner", f"app/{f}") for f in range(functions)),
        counts=array,
        start_minute=0,
        apps=("owner/app",) * functions,
        triggers=("http",) * functions,
        memory_mb=np.full(functions, memory_mb),
        app_memory_mb=np.full(functions, memory_mb),
        duration_ms=np.full(functions, duration_ms),
        duration_percentiles_ms=np.full((functions, 7), duration_ms),
        arrivals_s=None,
        checksum="",
    )


def test_cold_and_waste_of_a_small_day() -> None:
    """Two cold active minutes, three idle loaded minutes at 512 MB (90 GB s), against a reference of four (120)."""
    trace = trace_of([[1, 0, 0, 5, 0, 0]], memory_mb=512)
    loaded = np.array([[0, 1, 1, 0, 1, 0]], np.bool_)
    score = minute_ledger(trace, loaded, ALL, trace.memory_mb)
    assert (score.cold, score.compulsory, score.wmt) == (2, 1, 3)
    assert score.waste_gb_s == pytest.approx(3 * 0.5 * 60)
    assert score.waste_pct == pytest.approx(75)
    assert score.rum == pytest.approx(2 * 0.808 + 90 / 99.69)


def test_the_three_denominators() -> None:
    """Cold in 1 of 2 active minutes, 1 of 91 invocations, 1 of 1 + 3 instances (90 calls of 2 s: 3 on average)."""
    trace = trace_of([[1, 90]], duration_ms=2000)
    rates = minute_ledger(trace, np.array([[False, True]]), ALL, trace.memory_mb).cold_rates
    assert {name: rate.pooled for name, rate in rates.items()} == pytest.approx(
        {"invocations": 100 / 91, "active_minutes": 50, "instances": 25}
    )


def test_rates_over_functions_leave_the_silent_out() -> None:
    """Rates of 0, 50 and 100 %: median 50; a function without calls has no rate. Pooled is 3 of 12."""
    rates = cold_rates(np.array([0, 1, 2, 0]), np.array([8, 2, 2, 0]))
    assert (rates.pooled, rates.p50, rates.p75, rates.p99) == pytest.approx((25, 50, 75, 99))


def test_no_calls_have_no_rate() -> None:
    """Nothing over nothing is unknown, not zero."""
    assert all(np.isnan(getattr(cold_rates(np.zeros(2, int), np.zeros(2, int)), name)) for name in ColdRates.__slots__)


def test_only_scored_minutes_count() -> None:
    """Warm-up teaches the policies and is not charged; a first call in it is not compulsory in the score."""
    trace = trace_of([[1, 0, 1, 0], [0, 0, 0, 1]])
    loaded = np.array([[0, 1, 0, 1], [0, 0, 0, 0]], np.bool_)
    score = minute_ledger(trace, loaded, slice(2, 4), trace.memory_mb)
    assert (score.cold, score.compulsory, score.wmt) == (2, 1, 1)
    assert compulsory_cold_starts(trace, ALL) == 2


def test_stem_cells_are_wasted_all_the_time() -> None:
    """512 MB for 4 minutes are 120 GB s on top, and no function-minute of SPES."""
    trace = trace_of([[1, 0, 0, 0]])
    score = minute_ledger(trace, np.zeros((1, 4), np.bool_), ALL, trace.memory_mb, constant_idle_mb=512)
    assert score.waste_gb_s == pytest.approx(120)
    assert score.wmt == 0


def test_the_reference_is_a_hundred_percent() -> None:
    """A fixed 10-minute keep-alive is its own reference; where that wastes nothing there is no percentage."""
    trace = trace_of(np.random.default_rng(7).poisson(0.1, (5, 300)))
    loaded = BASELINES["fixed"].loaded(trace, 10)
    assert minute_ledger(trace, loaded, slice(150, 300), trace.memory_mb).waste_pct == pytest.approx(100)
    assert waste_pct(5, 0) is None


def test_rum_weighs_a_cold_start_against_memory() -> None:
    """0.808 s x 100 cold starts + 996.9 GB s / 99.69 = 90.8 s."""
    assert rum(100, 996.9) == pytest.approx(90.8)


counts_arrays = hnp.arrays(np.uint32, (3, 60), elements=st.sampled_from([0, 0, 0, 1, 4]))


@given(counts=counts_arrays, scored_from=st.integers(0, 59))
def test_oracle_prewarm_is_cold_exactly_where_it_must_be(counts: np.ndarray, scored_from: int) -> None:
    """Perfect foresight wastes nothing and is cold in compulsory starts only; keeping everything is no colder."""
    trace, scored = trace_of(counts), slice(scored_from, 60)
    score = minute_ledger(trace, BASELINES["oracle_prewarm"].loaded(trace, 3.24), scored, trace.memory_mb)
    assert (score.cold, score.waste_gb_s) == (score.compulsory, 0)
    kept = minute_ledger(trace, BASELINES["fixed"].loaded(trace, 240), scored, trace.memory_mb)
    assert kept.cold == score.compulsory


def test_defaults_are_the_median_of_the_known_and_are_named() -> None:
    """Unknown memory becomes the known median; a trace that knows no duration gets 1,000 ms; both are said."""
    trace = replace(
        trace_of([[1], [1], [1]]), memory_mb=np.array([100.0, np.nan, 300.0]), duration_ms=np.full(3, np.nan)
    )
    filled, notes = fill_defaults(trace)
    assert filled.memory_mb.tolist() == [100, 200, 300]
    assert filled.duration_ms.tolist() == [1000, 1000, 1000]
    assert notes == [
        "Memory of 1 of 3 functions is unknown: 200 MB (the median of the known ones).",
        "Duration of 3 of 3 functions is unknown: 1000 ms (the default, as none is known).",
    ]
    assert fill_defaults(filled)[1] == []


def test_unknown_memory_is_refused() -> None:
    """A NaN would poison every sum: the function is named."""
    trace = trace_of([[1], [1]])
    with pytest.raises(InputError, match="memory_mb of owner/app/1 is nan, must be a known, non-negative number"):
        minute_ledger(trace, np.zeros((2, 1), np.bool_), ALL, np.array([1.0, np.nan]))
    with pytest.raises(InputError, match=r"loaded is \(1, 1\), must be \(2, 1\)"):
        minute_ledger(trace, np.zeros((1, 1), np.bool_), ALL, trace.memory_mb)


@pytest.fixture(scope="module")
def azure_day() -> Trace:
    root = Path(os.environ.get("MESP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    folder = root / "azure2019-d01-a"
    if not folder.is_dir():
        pytest.skip("The real trace azure2019-d01-a is missing: set MESP_DATA to the folder that holds it.")
    return fill_defaults(load_trace(folder))[0]


KNOWN_POINTS = {
    "all": {
        ("fixed", 5): (1734, 73.7),
        ("fixed", 10): (839, 100.0),
        ("fixed", 20): (502, 120.7),
        ("fixed", 30): (427, 136.5),
        ("fixed", 60): (164, 173.9),
        ("fixed", 120): (113, 202.4),
        ("hybrid_histogram", 240): (151, 152.8),
        ("oracle_prewarm", 3.24): (36, 0.0),
    },
    "no_timers": {
        ("fixed", 5): (998, 66.4),
        ("fixed", 10): (587, 100.0),
        ("fixed", 20): (318, 137.2),
        ("fixed", 30): (268, 162.9),
        ("fixed", 60): (137, 221.8),
        ("fixed", 120): (95, 287.1),
        ("hybrid_histogram", 240): (126, 284.8),
        ("oracle_prewarm", 3.24): (35, 0.0),
    },
}


@pytest.mark.parametrize("subset", KNOWN_POINTS)
def test_known_points_of_the_azure_day(azure_day: Trace, subset: str) -> None:
    """On the second half of the day every published point comes out: cold starts exactly, waste to 0.1 %."""
    timers = np.array([trigger == "timer" for trigger in azure_day.triggers])
    trace = azure_day if subset == "all" else azure_day.select(~timers)
    measured = {}
    for name, knob in KNOWN_POINTS[subset]:
        score = minute_ledger(trace, BASELINES[name].loaded(trace, knob), slice(720, 1440), trace.memory_mb)
        assert score.waste_pct is not None
        measured[name, knob] = (score.cold, round(score.waste_pct, 1))
    assert measured == KNOWN_POINTS[subset]
