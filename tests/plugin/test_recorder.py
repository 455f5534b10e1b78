"""The recorder, by hand-moved time: every arrival in exactly one place, late or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey, StepCounts
from mesp_plugin.recorder import Recorder

A, B = FunctionKey("guest", "a"), FunctionKey("guest", "b")
STEP_MS = 1_000


def report(start_ms: int, counts: dict[FunctionKey, int], *, complete: bool = True) -> StepCounts:
    return StepCounts("tee", start_ms, STEP_MS, counts, complete)


def test_a_diary() -> None:
    """Steps are reported once they ended, empty ones too; a late arrival makes its step reported again, in full."""
    recorder = Recorder("tee", STEP_MS, start_ms=10_000, lateness_steps=2)
    recorder.arrival(A, 10_000)
    recorder.arrival(A, 10_999)
    recorder.arrival(B, 11_000)
    assert recorder.close(10_999) == []
    assert recorder.close(11_000) == [report(10_000, {A: 2})]
    assert recorder.close(11_500) == []
    assert recorder.close(13_000) == [report(11_000, {B: 1}), report(12_000, {})]

    recorder.arrival(B, 11_999)  # late, within two steps
    recorder.arrival(A, 10_500)  # too late
    assert recorder.close(13_500) == [report(11_000, {B: 2})]
    assert recorder.dropped == 1

    recorder.arrival(A, 12_000)
    assert recorder.close(14_000) == [report(12_000, {A: 1}), report(13_000, {})]


def test_the_step_that_recording_begins_in_is_not_complete() -> None:
    """What came before the start was not seen, so of functions not listed nothing is said."""
    recorder = Recorder("tee", STEP_MS, start_ms=10_400)
    recorder.arrival(A, 10_500)
    assert recorder.close(12_000) == [report(10_000, {A: 1}, complete=False), report(11_000, {})]


def test_arrivals_before_the_start_are_dropped() -> None:
    """They belong to steps that this recorder did not watch."""
    recorder = Recorder("tee", STEP_MS, start_ms=10_000)
    recorder.arrival(A, 9_999)
    assert (recorder.close(11_000), recorder.dropped) == ([report(10_000, {})], 1)


def test_a_date_far_ahead_does_not_stay_in_memory() -> None:
    """An arrival dated further ahead than the bound is dropped at the next close and counted."""
    recorder = Recorder("tee", STEP_MS, start_ms=0, lateness_steps=2)
    recorder.arrival(A, 2_000)
    recorder.arrival(A, 60_000)
    assert recorder.close(0) == []
    assert recorder.dropped == 1
    assert sum(step.counts.get(A, 0) for step in recorder.close(61_000)) == 1


def test_a_clock_that_steps_back_closes_nothing_twice() -> None:
    """After an earlier `now` no step is reported again or skipped."""
    recorder = Recorder("tee", STEP_MS, start_ms=0)
    assert len(recorder.close(2_000)) == 2
    assert recorder.close(500) == []
    assert recorder.close(3_000) == [report(2_000, {})]


def test_keys_that_the_wire_refuses_are_refused_at_once() -> None:
    """A bad name costs itself, not the report that it would have been in."""
    recorder = Recorder("tee", STEP_MS, start_ms=0)
    with pytest.raises(InputError, match="function name ''"):
        recorder.arrival(FunctionKey("guest", ""), 1)
    recorder.arrival(A, 1)
    assert recorder.close(STEP_MS) == [report(0, {A: 1})]


LATENESS = 3


@given(
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 20_000), st.integers(0, LATENESS * STEP_MS))),
    st.lists(st.integers(0, 25_000), max_size=20),
)
def test_the_latest_reports_add_up_to_the_arrivals(
    arrivals: list[tuple[FunctionKey, int, int]], closes: list[int]
) -> None:
    """Whatever the order within the lateness bound: the latest report of each step holds its arrivals, none lost."""
    recorder = Recorder("tee", STEP_MS, start_ms=0, lateness_steps=LATENESS)
    latest: dict[int, StepCounts] = {}
    # Events by the time at which they are heard of: an arrival up to the bound after it happened.
    events = [(at_ms + late_ms, key, at_ms) for key, at_ms, late_ms in arrivals] + [(now, None, now) for now in closes]
    for heard_ms, key, at_ms in [*sorted(events, key=lambda event: event[0]), (30_000, None, 30_000)]:
        if key is None:
            latest |= {step.step_start_ms: step for step in recorder.close(heard_ms)}
        else:
            recorder.arrival(key, at_ms)
    assert sorted(latest) == list(range(0, 30_000, STEP_MS))
    assert recorder.dropped == 0
    for start_ms, step in latest.items():
        happened = [key for key, at_ms, _ in arrivals if start_ms <= at_ms < start_ms + STEP_MS]
        assert step.counts == {key: happened.count(key) for key in set(happened)}
        assert step.complete
