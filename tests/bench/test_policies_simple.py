"""Fixed keep-alive, OpenWhisk and the oracles, minute by minute."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.policies import BASELINES
from mesp_bench.traces.model import Trace

FIXED, OPENWHISK = BASELINES["fixed"], BASELINES["openwhisk"]
KEEPALIVE, PREWARM = BASELINES["oracle_keepalive"], BASELINES["oracle_prewarm"]

#: 1 GB: an idle minute costs 60 GB s.
GB_MB = 1024.0


def one_function(counts: list[int] | np.ndarray, duration_ms: float = 100.0) -> Trace:
    return Trace(
        name="test",
        functions=(FunctionKey("owner", "app/f"),),
        counts=np.array([counts], np.uint32),
        start_minute=0,
        apps=("owner/app",),
        triggers=("http",),
        memory_mb=np.array([GB_MB]),
        app_memory_mb=np.array([GB_MB]),
        duration_ms=np.array([duration_ms]),
        duration_percentiles_ms=np.full((1, 7), duration_ms),
        arrivals_s=None,
        checksum="",
    )


def minutes(loaded: np.ndarray) -> list[int]:
    return np.flatnonzero(loaded[0]).tolist()


def test_fixed_keeps_its_minutes_after_each_call() -> None:
    """With 2 minutes, calls in minutes 1 and 5 load 2, 3, 6 and 7."""
    assert minutes(FIXED.loaded(one_function([0, 3, 0, 0, 0, 1, 0, 0, 0]), 2)) == [2, 3, 6, 7]


@given(
    counts=hnp.arrays(np.uint32, st.integers(1, 60), elements=st.integers(0, 1)),
    knob=st.sampled_from(BASELINES["fixed"].knobs),
)
def test_fixed_is_its_definition(counts: np.ndarray, knob: float) -> None:
    """Loaded in m iff active in one of minutes m-k..m-1."""
    by_definition = [bool(counts[max(0, m - int(knob)) : m].any()) for m in range(counts.size)]
    assert FIXED.loaded(one_function(counts), knob)[0].tolist() == by_definition


def test_fixed_speaks_seconds_to_the_simulator() -> None:
    """Ten minutes are 600 s of keep-alive, without floors or prewarms."""
    schedule = FIXED.schedule(one_function([1, 0]), 10)
    assert schedule.keep_alive_s.tolist() == [[600.0, 600.0]]
    assert (schedule.floor == -1).all()
    assert not schedule.prewarm_after_s.any()


def test_fixed_refuses_half_minutes() -> None:
    """Minute accounting knows no half minutes."""
    with pytest.raises(InputError, match=r"fixed: knob = 2\.5, must be a whole number of minutes"):
        FIXED.loaded(one_function([1]), 2.5)


def test_openwhisk_is_fixed_plus_stem_cells() -> None:
    """The same warmth as a fixed idle timeout, and 2 x 256 MB that are always idle."""
    trace = one_function([1] + 11 * [0])
    assert np.array_equal(OPENWHISK.loaded(trace, 10), FIXED.loaded(trace, 10))
    assert OPENWHISK.constant_idle_mb == 512.0
    assert FIXED.constant_idle_mb == 0.0


def test_oracle_keepalive_keeps_gaps_below_the_price() -> None:
    """At 1 GB a gap of 2 idle minutes costs 120 GB s: kept above that price, dropped at it."""
    trace = one_function([1, 0, 0, 1, 0, 0])
    assert minutes(KEEPALIVE.loaded(trace, 120)) == []
    assert minutes(KEEPALIVE.loaded(trace, 121)) == [1, 2, 3]
    assert KEEPALIVE.schedule(trace, 120).keep_alive_s[0, 0] == 0.0
    assert KEEPALIVE.schedule(trace, 121).keep_alive_s[0].tolist() == [240.0, 180.0, 120.0, 0.0, 0.0, 0.0]


def test_oracle_keepalive_holds_through_a_busy_minute() -> None:
    """A minute with several calls keeps its container to its end even when nothing follows."""
    assert KEEPALIVE.schedule(one_function([2, 0, 0]), 10).keep_alive_s[0].tolist() == [60.0, 0.0, 0.0]


@given(
    counts=hnp.arrays(np.uint32, st.integers(2, 120), elements=st.integers(0, 1)),
    price_gb_s=st.floats(1, 2000),
    knob=st.sampled_from(BASELINES["fixed"].knobs),
)
def test_no_keep_alive_beats_its_oracle(counts: np.ndarray, price_gb_s: float, knob: float) -> None:
    """Priced cold starts plus waste: fixed keep-alive never gets below perfect foresight."""
    trace = one_function(counts)

    def cost(loaded: np.ndarray) -> float:
        active = trace.counts > 0
        return price_gb_s * float((active & ~loaded).sum()) + 60.0 * float((loaded & ~active).sum())

    assert cost(KEEPALIVE.loaded(trace, price_gb_s)) <= cost(FIXED.loaded(trace, knob)) + 1e-6


def test_oracle_prewarm_leaves_compulsory_cold_starts_only() -> None:
    """Loaded exactly in active minutes after the first, whatever the lead."""
    trace = one_function([0, 1, 0, 1, 1, 0])
    assert minutes(PREWARM.loaded(trace, 3.24)) == [3, 4]


def test_oracle_prewarm_orders_the_mean_concurrency_ahead() -> None:
    """90 calls of 2 s ask for 3 containers, ordered `knob` seconds early and released when the minute is over."""
    schedule = PREWARM.schedule(one_function([1, 0, 90, 0], duration_ms=2000), 3.24)
    assert schedule.early_floor.tolist() == schedule.floor.tolist() == [[0, 0, 3, 0]]
    assert schedule.lead_s == 3.24
    assert schedule.release
