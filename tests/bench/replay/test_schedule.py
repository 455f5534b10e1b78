"""Schedules: the simulator's arrivals, closer together, whatever warm-up there is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp_bench.arrivals import ArrivalMode, draw_arrivals
from mesp_bench.replay.schedule import make_schedule, parse_minutes
from mesp_bench.traces.synth import synthesize

if TYPE_CHECKING:
    from mesp_bench.traces.model import Trace


@pytest.fixture(scope="module")
def trace() -> Trace:
    return synthesize(functions=20, days=1, seed=3)


def test_counted_calls_are_the_simulators_arrivals(trace: Trace) -> None:
    """At speed 1 the calls due from minute A on are the arrivals drawn for the simulator, run times too."""
    schedule = make_schedule(trace, (600, 630), seed=5)
    arrivals = draw_arrivals(trace, ArrivalMode.UNIFORM, 5, minutes=(600, 630))
    order = np.argsort(arrivals.times_s, kind="stable")
    np.testing.assert_array_equal(schedule.due_s, arrivals.times_s[order] - 36_000)
    np.testing.assert_array_equal(schedule.run_ms, 1000 * arrivals.durations_s[order])
    assert np.bincount(schedule.rows, minlength=20).tolist() == trace.counts[:, 600:630].sum(axis=1).tolist()
    assert schedule.duration_s == 1_800


@settings(deadline=None, max_examples=25)
@given(speed=st.floats(0.01, 1_000), warm_up_s=st.floats(0, 7_200))
@example(speed=1, warm_up_s=5e-324)  # less than any minute
def test_speed_divides_times_and_warm_up_changes_no_counted_call(trace: Trace, speed: float, warm_up_s: float) -> None:
    """Times are divided by the speed; what comes before minute A is within the warm-up and leaves the rest as it is."""
    plain = make_schedule(trace, (600, 610), seed=1)
    schedule = make_schedule(trace, (600, 610), seed=1, speed=speed, warm_up_s=warm_up_s)
    warm = schedule.due_s < 0
    assert (np.diff(schedule.due_s) >= 0).all()
    assert (schedule.due_s >= -warm_up_s / speed - 1e-9).all()
    np.testing.assert_allclose(schedule.due_s[~warm], plain.due_s / speed)
    np.testing.assert_allclose(schedule.run_ms[~warm], plain.run_ms / speed)
    np.testing.assert_array_equal(schedule.rows[~warm], plain.rows)
    whole = int(warm_up_s // 60)
    assert warm.sum() >= trace.counts[:, 600 - whole : 600].sum()


def test_the_limit_keeps_the_earliest_calls(trace: Trace) -> None:
    """So many calls and no more, and how many were left out is known."""
    everything = make_schedule(trace, (600, 660))
    some = make_schedule(trace, (600, 660), limit=7)
    np.testing.assert_array_equal(some.due_s, everything.due_s[:7])
    assert some.left_out == everything.due_s.size - 7
    assert everything.left_out == 0


@pytest.mark.parametrize(
    ("text", "minutes"), [("0:30", (0, 30)), (":", (0, 1_440)), ("1410:", (1_410, 1_440)), (":5", (0, 5))]
)
def test_minutes_are_read(text: str, minutes: tuple[int, int], trace: Trace) -> None:
    """A:B, either of which may be left out."""
    assert parse_minutes(text, trace) == minutes


@pytest.mark.parametrize("text", ["30", "5:5", "7:3", "0:1441", "-1:5", "a:b", "1:2:3", ""])
def test_minutes_that_are_none_are_told(text: str, trace: Trace) -> None:
    """One sentence names the option and its value."""
    with pytest.raises(InputError, match=rf"^--minutes {text}: must be A:B"):
        parse_minutes(text, trace)


def test_impossible_schedules_are_told(trace: Trace) -> None:
    """A speed of nothing, no call at all, more warm-up than there is."""
    with pytest.raises(InputError, match="must be positive"):
        make_schedule(trace, (0, 1), speed=0)
    with pytest.raises(InputError, match="must be positive"):
        make_schedule(trace, (0, 1), limit=0)
    with pytest.raises(InputError, match=r"warm-up = 61 s: must be in \[0, 60\]"):
        make_schedule(trace, (1, 2), warm_up_s=61)
    with pytest.raises(InputError, match="seed -1"):
        make_schedule(trace, (0, 1), seed=-1)


def test_an_empty_trace_has_an_empty_schedule(trace: Trace) -> None:
    """Minutes without a call are played as silence."""
    schedule = make_schedule(replace(trace, counts=np.zeros_like(trace.counts)), (0, 2))
    assert schedule.due_s.size == 0
    assert schedule.duration_s == 120
