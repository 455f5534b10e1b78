"""What a baseline is: a named curve over one knob, told once for each accounting.

A policy looks at a `Trace` and says when each function is warm. `Policy.loaded` says it per minute, for minute
accounting; `Policy.schedule` says it in seconds and floors, for event accounting, where a simulator obeys it. Both
decide minute m from the counts of minutes <= m-1 alone; only the oracles look ahead, and say so.

Most baselines need a single fact: how long ago a function was last active, or when it will be again. Those two
clocks, the keep-alive schedule and the units are kept here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from mesp.errors import InputError
from mesp.types import MB_PER_GB
from mesp_bench.schedule import WarmSchedule

if TYPE_CHECKING:
    from mesp.types import BoolArray, FloatArray
    from mesp_bench.traces.model import Trace

IntArray = npt.NDArray[np.int32]

MINUTE_S = 60.0

#: "No such minute": longer than any trace, and far enough from overflow to be added up.
NEVER = 1 << 29


class Policy(Protocol):
    """A way to keep functions warm, and the knob that trades cold starts against wasted memory."""

    @property
    def name(self) -> str:
        """The name it has in `frontier.json`."""
        ...

    @property
    def knob_unit(self) -> str:
        """What the knob counts, e.g. ``minutes``."""
        ...

    @property
    def knobs(self) -> tuple[float, ...]:
        """The sweep that draws the policy's curve."""
        ...

    @property
    def constant_idle_mb(self) -> float:
        """Memory held idle all the time, whatever is called; both accountings charge it as waste."""
        ...

    def loaded(self, trace: Trace, knob: float) -> BoolArray:
        """Minute accounting: whether each function is warm when each minute begins, (F, M).

        Raises InputError for a knob out of range.
        """
        ...

    def schedule(self, trace: Trace, knob: float) -> WarmSchedule:
        """Event accounting: the warmth that a simulator obeys, arrays (F, M).

        Raises InputError for a knob out of range.
        """
        ...


def minutes_since_active(active: BoolArray) -> IntArray:
    """Minutes from the last active minute before m to m, (F, M): at least 1, NEVER where there was none."""
    minute = np.arange(active.shape[1], dtype=np.int32)
    last = np.maximum.accumulate(np.where(active, minute, -NEVER), axis=1)
    since = np.full(active.shape, NEVER, np.int32)
    since[:, 1:] = np.minimum(minute[1:] - last[:, :-1], NEVER)
    return since


def minutes_until_active(active: BoolArray) -> IntArray:
    """Minutes from m to the next active minute after m, (F, M): at least 1, NEVER where there is none."""
    return minutes_since_active(active[:, ::-1])[:, ::-1]


def mean_containers(counts: npt.NDArray[np.uint32], duration_ms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Containers that carry a minute's mean concurrency (Little's law), at least 1, (F, M)."""
    return np.maximum(np.ceil(counts * (duration_ms[:, None] / 1000.0 / MINUTE_S)), 1).astype(np.int64)


def keep_alive_schedule(keep_alive_s: FloatArray, prewarm_after_s: FloatArray | None = None) -> WarmSchedule:
    """A schedule without floors: containers live by `keep_alive_s` (and `prewarm_after_s`) alone, both (F, M)."""
    no_directive = np.full(keep_alive_s.shape, -1, np.int16)
    return WarmSchedule(
        keep_alive_s=keep_alive_s,
        prewarm_after_s=np.zeros_like(keep_alive_s) if prewarm_after_s is None else prewarm_after_s,
        floor=no_directive,
        early_floor=no_directive,
        lead_s=0.0,
        release=False,
    )


def whole_minutes(policy: str, knob: float) -> int:
    """The knob as a whole number of minutes; raises InputError unless it is one, and at least 1."""
    if not (knob >= 1 and float(knob).is_integer()):
        raise InputError(f"{policy}: knob = {knob:g}, must be a whole number of minutes, at least 1")
    return int(knob)


def loaded_by_price(
    active_probability: npt.NDArray[np.floating], memory_mb: npt.NDArray[np.float64], price_gb_s: float
) -> BoolArray:
    """Whether a minute's warmth is worth its price: the expected cold start against the expected idle memory.

    A function that is active with probability p saves ``p * price`` by being loaded and wastes
    ``(1 - p) * memory_gb * 60`` on average; it is loaded where the saving is no smaller.

    Args:
        active_probability: forecast of at least one invocation in the minute, (F, M) in [0, 1].
        memory_mb: memory of one container, (F,).
        price_gb_s: price of a cold start.
    """
    idle_minute_gb_s = memory_mb[:, None] / MB_PER_GB * MINUTE_S
    return np.asarray(active_probability * price_gb_s >= (1.0 - active_probability) * idle_minute_gb_s)
