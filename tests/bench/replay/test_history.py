"""The history: the trace's past on the platform's clock, nothing of it lost or in the future."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp_bench.replay.history import history, tell
from mesp_bench.replay.schedule import make_schedule
from mesp_bench.traces.synth import synthesize

if TYPE_CHECKING:
    from mesp_bench.traces.model import Trace

BEGIN_MS = 1_800_000_000_000 - 1_800_000_000_000 % 60_000


@pytest.fixture(scope="module")
def trace() -> Trace:
    return synthesize(functions=6, days=1, seed=3)


def test_at_speed_one_every_minute_is_a_step(trace: Trace) -> None:
    """Minute A-1 is the step before the beginning, and functions have the platform's names; silence is told as such."""
    counts = np.zeros_like(trace.counts)
    counts[0, 7], counts[1, 9], counts[2, 9], counts[0, 10] = 3, 1, 2, 99
    traced = replace(trace, counts=counts)
    known_as = {function: FunctionKey("guest", f"f{row}") for row, function in enumerate(trace.functions)}
    steps = history(traced, make_schedule(traced, (10, 11)), known_as, BEGIN_MS)
    assert [step.step_start_ms for step in steps] == [BEGIN_MS - 60_000 * ago for ago in range(10, 0, -1)]
    assert steps[-1].counts == {("guest", "f1"): 1, ("guest", "f2"): 2}
    assert steps[-3].counts == {("guest", "f0"): 3}
    assert steps[0].counts == {}
    assert all(step.complete for step in steps)


@settings(deadline=None, max_examples=30)
@given(speed=st.floats(0.2, 100), warm_up_s=st.integers(0, 1_200))
def test_speed_and_warm_up_move_the_past_and_lose_nothing(trace: Trace, speed: float, warm_up_s: int) -> None:
    """Every whole minute before the warm-up is in some step that ends before the replay begins; a step holds `speed` minutes."""
    same = {function: function for function in trace.functions}
    schedule = make_schedule(trace, (300, 301), speed=speed, warm_up_s=warm_up_s)
    steps = history(trace, schedule, same, BEGIN_MS)
    until = 300 - -(-warm_up_s // 60)
    told = sum(sum(step.counts.values()) for step in steps)
    assert told == trace.counts[:, :until].sum()
    starts = [step.step_start_ms for step in steps]
    assert starts == sorted(set(starts))
    assert starts[-1] <= BEGIN_MS - 60_000
    assert starts[0] >= BEGIN_MS - 60_000 * (300 / speed + 1)
    if speed == int(speed) and not warm_up_s:
        assert len(steps) == -(-300 // int(speed))


def test_functions_that_share_a_name_are_added_up(trace: Trace) -> None:
    """Two functions of the trace that are one action there are one series."""
    one = FunctionKey("guest", "all")
    steps = history(trace, make_schedule(trace, (60, 61)), dict.fromkeys(trace.functions, one), BEGIN_MS)
    assert [step.counts.get(one, 0) for step in steps] == trace.counts[:, :60].sum(axis=0).tolist()


def test_a_predictor_that_is_not_there_is_told(trace: Trace) -> None:
    """One sentence names its address."""
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 "):
        asyncio.run(
            tell("127.0.0.1:1", history(trace, make_schedule(trace, (2, 3)), {f: f for f in trace.functions}, BEGIN_MS))
        )
