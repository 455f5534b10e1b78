"""The hybrid histogram policy (Shahrad et al., "Serverless in the Wild", ATC'20, section 4.2), learned online.

Every function keeps a histogram of its gaps in 1-minute bins up to a range. When the histogram is representative,
an idle container is dropped at once, made anew shortly before the earliest likely call (the head, 5th percentile)
and kept until the latest likely one (the tail, 99th percentile), with a margin of 10 % on either side. Otherwise it
is simply kept for the whole range.

The paper leaves room; these readings meet the known points (range 240, second half of Azure day 1: 151 cold starts
at 152.8 % of the waste of a fixed 10 minutes; without timers 126 at 284.8 %):

- a gap is the difference between two active minutes, 1 for neighbours, and neighbours count (event accounting
  also counts the gaps within a minute, see `HybridHistogram.schedule`);
- a gap of the range or longer is out of bounds: it is counted, and enters no bin;
- learning starts with the trace, one histogram per function (`hybrid_histogram`) or app (`hybrid_histogram_app`);
- representative: at least two gaps seen, fewer than half of them out of bounds, and a coefficient of variation
  (population standard deviation / mean) over the counts of all bins of at least 2;
- percentile: the first bin at which the cumulative count reaches its share of the gaps within bounds;
- margins: ``floor(0.9 * head)`` and ``ceil(1.1 * tail)``; the tail may pass the range;
- loaded from head to tail minutes after the last active minute, both included; a head of 0 or 1 drops nothing.

The published policy turns to ARIMA where half of the gaps are out of bounds; here, as in the known points, such a
function is kept for the whole range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numba
import numpy as np

from mesp_bench.policies.base import MINUTE_S, IntArray, keep_alive_schedule, minutes_since_active, whole_minutes

if TYPE_CHECKING:
    import numpy.typing as npt

    from mesp.types import BoolArray
    from mesp_bench.schedule import WarmSchedule
    from mesp_bench.traces.model import Trace

MIN_GAPS = 2
MIN_VARIATION = 2.0


@numba.njit(cache=True)
def _percentile_bin(bins: npt.NDArray[np.int64], percent: int) -> int:
    cumulative = 0
    enough = percent * bins.sum()
    for gap in range(bins.size):
        cumulative += bins[gap]
        if cumulative * 100 >= enough:
            return gap
    return bins.size - 1


@numba.njit(cache=True)
def _windows(counts: npt.NDArray[np.uint32], range_minutes: int, same_minute: bool) -> tuple[IntArray, IntArray]:
    """First and last minute of warmth after the last active one, as known once minute m is over, both (F, M).

    With `same_minute` the calls of one minute count as gaps of 0.
    """
    functions, minutes = counts.shape
    head = np.empty((functions, minutes), np.int32)
    tail = np.empty((functions, minutes), np.int32)
    for f in range(functions):
        bins = np.zeros(range_minutes, np.int64)
        within = beyond = squares = np.int64(0)  # squares: of the bins' counts, for their variation
        last = -1
        first_warm, last_warm = 1, range_minutes
        for m in range(minutes):
            calls = np.int64(counts[f, m])
            if calls > 0:
                if same_minute:
                    squares += (2 * bins[0] + calls - 1) * (calls - 1)
                    bins[0] += calls - 1
                    within += calls - 1
                if last >= 0:
                    gap = m - last
                    if gap < range_minutes:
                        squares += 2 * bins[gap] + 1
                        bins[gap] += 1
                        within += 1
                    else:
                        beyond += 1
                last = m
                first_warm, last_warm = 1, range_minutes
                # variance >= (MIN_VARIATION * mean)**2, times range_minutes**2: whole numbers, so the edge is exact
                varied = float(range_minutes) * squares >= (1.0 + MIN_VARIATION**2) * float(within) * within
                if varied and within + beyond >= MIN_GAPS and beyond < within:
                    first_warm = max(1, _percentile_bin(bins, 5) * 9 // 10)
                    last_warm = max(1, (_percentile_bin(bins, 99) * 11 + 9) // 10)
            head[f, m] = first_warm
            tail[f, m] = last_warm
    return head, tail


class HybridHistogram:
    """One histogram per function; `knob` is the range, and the keep-alive while nothing better is known."""

    name: ClassVar[str] = "hybrid_histogram"
    knob_unit: ClassVar[str] = "minutes of range"
    knobs: ClassVar[tuple[float, ...]] = (60, 120, 240)
    constant_idle_mb: ClassVar[float] = 0.0

    def loaded(self, trace: Trace, knob: float) -> BoolArray:
        """Loaded in minute m iff the last active minute lies head to tail minutes back, (F, M)."""
        owner, counts = self._pool(trace)
        head, tail = self._known_windows(counts, knob, same_minute=False)
        since = minutes_since_active(counts > 0)
        return ((head <= since) & (since <= tail))[owner]

    def schedule(self, trace: Trace, knob: float) -> WarmSchedule:
        """The same windows in seconds from the last idle moment.

        Minute gap g stands for idle times of g-1 to g+1 minutes; as in the paper's bins the head is rounded down, to
        g-1. So the new container is ordered ``head - 1`` minutes after the last idle moment, and the window ends
        `tail` minutes after it, as a fixed keep-alive of `tail` minutes would. For a container that goes idle in
        minute m the window is the one known when m began. Here the calls of one minute are gaps too, of bin 0, as
        they are in the paper: or a function that is called in bursts would be dropped between two calls of a burst.
        """
        owner, counts = self._pool(trace)
        head, tail = self._known_windows(counts, knob, same_minute=True)
        return keep_alive_schedule(
            keep_alive_s=((tail - head + 1) * MINUTE_S).astype(np.float32)[owner],
            prewarm_after_s=((head - 1) * MINUTE_S).astype(np.float32)[owner],
        )

    def _pool(self, trace: Trace) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
        """The histogram of each function, (F,), and the counts that each histogram sees, (histograms, M)."""
        return np.arange(len(trace.functions)), trace.counts

    def _known_windows(
        self, counts: npt.NDArray[np.uint32], knob: float, *, same_minute: bool
    ) -> tuple[IntArray, IntArray]:
        """Head and tail known when each minute begins, both (histograms, M)."""
        range_minutes = whole_minutes(self.name, knob)
        head, tail = _windows(counts, range_minutes, same_minute)
        head[:, 1:], tail[:, 1:] = head[:, :-1].copy(), tail[:, :-1].copy()
        head[:, :1], tail[:, :1] = 1, range_minutes
        return head, tail


class HybridHistogramApp(HybridHistogram):
    """The published form, one histogram per app: a call of any function warms and teaches all of its app."""

    name: ClassVar[str] = "hybrid_histogram_app"

    def _pool(self, trace: Trace) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
        apps, owner = np.unique(np.array(trace.apps, dtype=np.str_), return_inverse=True)
        counts = np.zeros((apps.size, trace.minutes), np.uint32)
        np.add.at(counts, owner, trace.counts)
        return owner, counts
