from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.types import FunctionKey
from mesp_bench.arrivals import Arrivals
from mesp_bench.fastpath import simulate
from mesp_bench.schedule import WarmSchedule
from mesp_bench.simulator import SimulatedPlatform, run_schedule

if TYPE_CHECKING:
    from mesp_bench.event_ledger import EventLedger


def make_arrivals(
    times: list[list[float]], durations: list[list[float]], starts: list[list[float]], first: int, end: int
) -> Arrivals:
    def flat(parts: list[list[float]]) -> np.ndarray:
        return np.array([x for part in parts for x in part], np.float64)

    def indptr(parts: list[list[float]]) -> np.ndarray:
        return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)

    return Arrivals(
        functions=tuple(FunctionKey("test", f"f{row}") for row in range(len(times))),
        first_minute=first,
        end_minute=end,
        indptr=indptr(times),
        times_s=flat(times),
        durations_s=flat(durations),
        start_indptr=indptr(starts),
        start_times_s=flat(starts),
    )


# Times on a coarse grid collide with each other and with minutes; times off it round.
def instants(longest: float) -> st.SearchStrategy[float]:
    return st.one_of(
        st.integers(0, int(longest / 10)).map(lambda n: 10.0 * n), st.floats(0, longest, allow_subnormal=False)
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Arrivals, WarmSchedule, int, float]:
    functions = draw(st.integers(1, 2))
    first = draw(st.integers(0, 1))
    end = first + draw(st.integers(1, 4))
    times, durations, starts = [], [], []
    for _ in range(functions):
        offsets = draw(st.lists(instants(60.0 * (end - first)), max_size=14))
        times.append(sorted(at for at in (60.0 * first + offset for offset in offsets) if at < 60.0 * end))
        durations.append(draw(st.lists(instants(50), min_size=len(times[-1]), max_size=len(times[-1]))))
        starts.append(draw(st.lists(instants(30), min_size=1, max_size=3)))
    shape = (functions, end)

    def grid(values: st.SearchStrategy[float]) -> np.ndarray:
        cells = functions * end
        return np.array(draw(st.lists(values, min_size=cells, max_size=cells))).reshape(shape)

    keep_alive = st.one_of(instants(200), st.just(math.inf))
    schedule = WarmSchedule(
        keep_alive_s=grid(keep_alive).astype(np.float32),
        prewarm_after_s=grid(st.one_of(st.just(0.0), instants(90))).astype(np.float32),
        floor=grid(st.integers(-1, 3)).astype(np.int16),
        early_floor=grid(st.integers(-1, 3)).astype(np.int16),
        lead_s=draw(instants(60)),
        release=draw(st.booleans()),
    )
    score_from_s = draw(instants(60.0 * end))
    return make_arrivals(times, durations, starts, first, end), schedule, draw(st.integers(1, 3)), score_from_s


def assert_same(fast: EventLedger, slow: EventLedger) -> None:
    np.testing.assert_array_equal(fast.cold_by_function, slow.cold_by_function)
    np.testing.assert_array_equal(fast.invocations_by_function, slow.invocations_by_function)
    np.testing.assert_array_equal(fast.waited, slow.waited)
    np.testing.assert_array_equal(fast.wait_s, slow.wait_s)
    np.testing.assert_allclose(fast.waste_gb_s_by_function, slow.waste_gb_s_by_function, atol=1e-6)
    assert fast.total_gb_s == pytest.approx(slow.total_gb_s, abs=1e-6)
    assert (fast.invocations, fast.cold, fast.late_prewarms, fast.created) == (
        slow.invocations,
        slow.cold,
        slow.late_prewarms,
        slow.created,
    )


@settings(max_examples=400, deadline=None)
@given(cases())
def test_both_paths_keep_the_same_ledger(case: tuple[Arrivals, WarmSchedule, int, float]) -> None:
    """Fast and slow path agree on every cold start, every wait and the waste, for random traces and schedules."""
    arrivals, schedule, concurrency, score_from_s = case
    memory_mb = np.linspace(128.0, 512.0, len(arrivals.functions))
    fast = simulate(arrivals, schedule, memory_mb, concurrency, score_from_s=score_from_s)
    platform = SimulatedPlatform(arrivals, memory_mb, concurrency=concurrency, score_from_s=score_from_s)
    assert_same(fast, run_schedule(platform, schedule))
