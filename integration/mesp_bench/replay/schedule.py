"""What a replay calls and when: the arrivals of a trace's minutes, closer together by the replay's speed.

Arrivals are those of the simulator (`mesp_bench.arrivals`), so a live run and a simulated one of the same trace, minutes,
mode and seed meet the same calls. The warm-up comes from draws of its own: the counted calls are the same with and
without it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mesp.errors import InputError
from mesp_bench.arrivals import ArrivalMode, draw_arrivals

if TYPE_CHECKING:
    from mesp.types import FunctionKey
    from mesp_bench.traces.model import Trace

#: Calls of one replay unless the caller allows more: a platform is not to be flooded by a slip of the hand.
DEFAULT_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class Schedule:
    """N calls of F functions in the order of their times.

    Attributes:
        functions: all of the trace's, row order.
        minutes: columns [A, B) of the trace that count.
        speed: seconds of the trace in one second of the replay.
        warm_up_s: seconds of the trace played before minute A, not counted.
        duration_s: seconds of the replay from minute A's beginning to minute B's.
        rows: the function called, (N,) int64.
        due_s: when, in seconds of the replay from minute A's beginning; negative in the warm-up, (N,) float64.
        run_ms: how long the trace says that this run takes, divided by the speed as the arrivals are, (N,) float64.
        left_out: calls at the end that the limit cut off.
    """

    functions: tuple[FunctionKey, ...]
    minutes: tuple[int, int]
    speed: float
    warm_up_s: float
    duration_s: float
    rows: npt.NDArray[np.int64]
    due_s: npt.NDArray[np.float64]
    run_ms: npt.NDArray[np.float64]
    left_out: int = 0


def parse_minutes(text: str, trace: Trace) -> tuple[int, int]:
    """Columns [A, B) of the trace from ``A:B``; either may be left out.

    Raises:
        InputError: not of this form, or outside the trace.
    """
    found = re.fullmatch(r"(\d*):(\d*)", text.strip())
    if not found:
        raise InputError(
            f"--minutes {text}: must be A:B, whole minutes of the trace, the last not included, as in 0:30"
        )
    first, end = int(found[1] or 0), int(found[2] or trace.minutes)
    if not first < end <= trace.minutes:
        raise InputError(
            f"--minutes {text}: must be A:B with 0 <= A < B <= {trace.minutes}, the minutes of {trace.name}"
        )
    return first, end


def make_schedule(
    trace: Trace,
    minutes: tuple[int, int],
    *,
    mode: ArrivalMode = ArrivalMode.UNIFORM,
    seed: int = 0,
    speed: float = 1.0,
    warm_up_s: float = 0.0,
    limit: int = DEFAULT_LIMIT,
) -> Schedule:
    """The calls of a trace's minutes [A, B), and of `warm_up_s` seconds before them.

    Args:
        trace: what was recorded.
        minutes: columns [A, B).
        mode: where in its minute an invocation falls.
        seed: of the arrivals, not negative.
        speed: times are divided by it.
        warm_up_s: seconds of the trace.
        limit: at most so many calls, warm-up included, the earliest ones.

    Raises:
        InputError: minutes outside the trace, a speed or limit that is not positive, a negative seed, or more warm-up
            than the trace has before minute A.
    """
    first, end = minutes
    if not 0 < speed < math.inf or limit < 1:
        raise InputError(f"speed = {speed:g} and limit = {limit}: both must be positive")
    if not 0 <= warm_up_s <= 60 * first:
        raise InputError(
            f"warm-up = {warm_up_s:g} s: must be in [0, {60 * first}], what {trace.name} has before minute {first}"
        )
    counted = draw_arrivals(trace, mode, seed, minutes=minutes)
    parts = [counted]
    if warm_up_minutes := math.ceil(warm_up_s / 60):
        parts.append(draw_arrivals(trace, mode, seed + 1, minutes=(first - warm_up_minutes, first)))
    rows = np.concatenate([np.repeat(np.arange(len(part.functions)), np.diff(part.indptr)) for part in parts])
    times_s = np.concatenate([part.times_s for part in parts]) - 60 * first
    durations_s = np.concatenate([part.durations_s for part in parts])
    order = np.argsort(times_s, kind="stable")
    order = order[np.searchsorted(times_s[order], -warm_up_s) :]
    kept = order[:limit]
    return Schedule(
        functions=trace.functions,
        minutes=minutes,
        speed=speed,
        warm_up_s=warm_up_s,
        duration_s=60 * (end - first) / speed,
        rows=rows[kept],
        due_s=times_s[kept] / speed,
        run_ms=1000 * durations_s[kept] / speed,
        left_out=order.size - kept.size,
    )
