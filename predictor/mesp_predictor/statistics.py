"""Running statistics of every function: what its gaps, phases and recent steps say of the next ones.

One step comes in by `Statistics.update`; state lives in flat arrays with one row per function, touched by compiled
loops, so that 50,000 functions cost a fraction of a second. A function is *young* until its first step; a missing
step (NaN) ages the gap and teaches nothing. `features` lays the statistics out for a target step h ahead, which is
what the learned experts and the gate read; `renewal` is the hazard expert's arithmetic.

Ideas: gap histogram and its hazard (Shahrad et al., ATC 2020); recency-weighted share of cycles active at a phase;
what gap followed the last time the previous gap was this long.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numba
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mesp.types import FloatArray

    IntArray = npt.NDArray[np.int64]

#: Longest gap told apart, in steps; longer ones count as this long.
LONGEST_GAP = 480
#: Periods, in steps, whose phases are tracked.
PERIODS = (2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 90, 120, 180, 240)
#: Steps of activity remembered one by one.
RECENT = 512

_GAPS = 64  # latest gaps kept for their quantiles
_POSITIVE = 16  # latest positive counts kept
_WINDOWS = (2, 4, 8, 15, 30, 60, 120, 240, 480)
_LAGS = (5, 10, 15, 20, 30, 45, 60, 120, 180, 240)
_HALF_LIVES = (2.0, 8.0, 30.0, 120.0, 480.0)
_COUNT_HALF_LIVES = (3.0, 15.0, 120.0)
_CLOCK = (5, 10, 15, 30, 60)
_PHASE_MEMORY = 0.9  # weight of the previous cycle
_GAP_MEMORY = 0.93  # weight of the previous gap in the recency-weighted histogram
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TSB_ALPHA = 0.1  # smoothing of the demand's size
_TSB_BETA = 0.05  # smoothing of its probability

_PERIODS = np.array(PERIODS, np.int64)
_PHASE_START = np.concatenate([[0], np.cumsum(_PERIODS)]).astype(np.int64)
_WINDOW_ARRAY = np.array(_WINDOWS, np.int64)
_LAG_ARRAY = np.array(_LAGS, np.int64)
_CLOCK_ARRAY = np.array(_CLOCK, np.int64)
_QUANTILE_ARRAY = np.array(_QUANTILES, np.float64)
_DECAY = (0.5 ** (1 / np.array(_HALF_LIVES))).astype(np.float32)
_COUNT_DECAY = (0.5 ** (1 / np.array(_COUNT_HALF_LIVES))).astype(np.float32)

FEATURES: tuple[str, ...] = (
    "log_ahead", "never", "log_gap", "log_elapsed", "log_age", "log_active", "log_gaps",
    "hazard_all", "hazard_recent", "near_all", "near_recent", "log_at_all", "log_at_recent", "log_survivors", "renewal",
    "gap_mean", "gap_spread",
    *(f"log_gap_q{int(100 * q)}" for q in _QUANTILES),
    *(f"elapsed_over_q{int(100 * q)}" for q in _QUANTILES),
    "previous_gap", "previous_gap_here", "previous_gap_past", "last_but_one", "last_but_one_here",
    "followed", "followed_here", "followed_past",
    *(f"share_{w}" for w in _WINDOWS),
    *(f"lag_{lag}" for lag in _LAGS),
    *(f"phase_{p}" for p in PERIODS),
    *(f"activity_{int(h)}" for h in _HALF_LIVES),
    *(f"log_count_{int(h)}" for h in _COUNT_HALF_LIVES),
    "log_last_count", "log_positive_mean",
    *(f"clock_{c}" for c in _CLOCK),
)  # fmt: skip


@dataclass(slots=True)
class Statistics:
    """State of R functions after `step` closed steps; every array has R rows.

    Attributes:
        step: absolute index of the next step.
        age: steps since first observed, -1 before.
        gap: steps since the last active one, 1 when the last step was active, 0 when none ever was.
        active_steps: active steps so far.
        gaps_seen: gaps between active steps so far.
        histogram: gaps by length, (R, LONGEST_GAP + 1).
        recent_histogram: the same, older gaps weighing less.
        latest_gaps: ring of the latest gaps, (R, 64).
        gap_statistics: mean and spread of log gaps, then quantiles of the latest gaps, (R, 7).
        previous: the last two gaps, (R, 2).
        follower: the gap that followed a gap of this length last time, (R, LONGEST_GAP + 1).
        phases: recency-weighted activity by phase, all periods joined, (R, sum of PERIODS).
        phase_loss: recency-weighted log loss of each period's share as a forecast, (R, periods).
        ring: activity of the last 512 steps by step index modulo 512, (R, 512).
        windows: active steps in the windows, (R, windows).
        activity: exponentially weighted activity, (R, half-lives).
        log_counts: exponentially weighted log(1 + count), (R, count half-lives).
        positive: ring of the latest positive counts, (R, 16).
        tsb: probability and size of demand after Teunter, Syntetos and Babai (2011), (R, 2).
    """

    step: int
    age: npt.NDArray[np.int32]
    gap: npt.NDArray[np.int32]
    active_steps: npt.NDArray[np.int32]
    gaps_seen: npt.NDArray[np.int32]
    histogram: FloatArray
    recent_histogram: FloatArray
    latest_gaps: FloatArray
    gap_statistics: FloatArray
    previous: npt.NDArray[np.int32]
    follower: npt.NDArray[np.int16]
    phases: FloatArray
    phase_loss: FloatArray
    ring: npt.NDArray[np.uint8]
    windows: npt.NDArray[np.int16]
    activity: FloatArray
    log_counts: FloatArray
    positive: FloatArray
    tsb: FloatArray

    @classmethod
    def empty(cls, rows: int, step: int = 0) -> Statistics:
        """Statistics of functions never observed, whose next step is `step`."""
        f32, i32 = np.float32, np.int32
        gaps = LONGEST_GAP + 1
        return cls(
            step=step,
            age=np.full(rows, -1, i32),
            gap=np.zeros(rows, i32),
            active_steps=np.zeros(rows, i32),
            gaps_seen=np.zeros(rows, i32),
            histogram=np.zeros((rows, gaps), f32),
            recent_histogram=np.zeros((rows, gaps), f32),
            latest_gaps=np.zeros((rows, _GAPS), f32),
            gap_statistics=np.zeros((rows, 2 + len(_QUANTILES)), f32),
            previous=np.zeros((rows, 2), i32),
            follower=np.zeros((rows, gaps), np.int16),
            phases=np.zeros((rows, int(_PHASE_START[-1])), f32),
            phase_loss=np.full((rows, len(PERIODS)), np.log(2), f32),
            ring=np.zeros((rows, RECENT), np.uint8),
            windows=np.zeros((rows, len(_WINDOWS)), np.int16),
            activity=np.zeros((rows, len(_HALF_LIVES)), f32),
            log_counts=np.zeros((rows, len(_COUNT_HALF_LIVES)), f32),
            positive=np.zeros((rows, _POSITIVE), f32),
            tsb=np.zeros((rows, 2), f32),
        )

    def __len__(self) -> int:
        """Number of functions."""
        return len(self.age)

    def take(self, rows: IntArray) -> Statistics:
        """A copy of these rows (itself when they are all of them in order)."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        return Statistics(self.step, *(getattr(self, name)[rows] for name in _ARRAYS))

    def put(self, rows: IntArray, other: Statistics) -> None:
        """Replaces these rows by another's; both must be at the same step."""
        for name in _ARRAYS:
            getattr(self, name)[rows] = getattr(other, name)

    def grow(self, rows: int) -> None:
        """Appends never observed functions until there are `rows`."""
        extra = Statistics.empty(rows - len(self), self.step)
        for name in _ARRAYS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(extra, name)]))

    def update(self, counts: FloatArray) -> None:
        """Takes in one step's counts, (R,); NaN where missing."""
        _update(self.step, counts, *(getattr(self, name) for name in _ARRAYS))
        self.step += 1

    def features(self, horizon: int) -> FloatArray:
        """What is known about each of the next `horizon` steps, (R, H, len(FEATURES)) float32, all finite."""
        out = np.empty((len(self), horizon, len(FEATURES)), np.float32)
        _features(self.step, out, *(getattr(self, name) for name in _ARRAYS))
        return out

    def renewal(self, curves: FloatArray, curve: IntArray, strength: float, horizon: int) -> FloatArray:
        """Probability of activity in each of the next steps, (R, H), were gaps independent draws.

        The hazard after g quiet steps is (k_g + strength * prior_g) / (S_g + strength), where k_g of the S_g
        gaps that lasted g steps ended there (beta-binomial shrinkage), and the renewal equation
        u_h = a_h + sum_j u_j f_{h-j} carries it past the next arrival.

        Args:
            curves: prior hazard by gap length for each curve, (K, LONGEST_GAP + 1); index 0 is for functions never active.
            curve: which curve is each function's prior, (R,).
            strength: how many gaps the prior is worth.
            horizon: steps ahead.
        """
        out = np.empty((len(self), horizon), np.float32)
        _renewal(out, self.gap, self.histogram, curves, curve, strength)
        return out

    def phase_shares(self, horizon: int) -> FloatArray:
        """Recency-weighted share of cycles active at each target step's phase, (R, H, periods).

        Shrunk to the function's own activity by 0.3 cycles' weight, so that a phase seen once is no certainty.
        """
        out = np.empty((len(self), horizon, len(PERIODS)), np.float32)
        _phase_shares(self.step, out, self.age, self.phases, self.active_steps)
        return out

    def positive_quantiles(self) -> tuple[FloatArray, FloatArray]:
        """Quantiles of the latest positive counts: values (R, 16), each >= 1, and their levels (16,)."""
        out = np.empty((len(self), _POSITIVE), np.float32)
        _positive_quantiles(out, self.positive, self.active_steps)
        return out, np.linspace(0, 1, _POSITIVE, dtype=np.float32)


_ARRAYS = tuple(field.name for field in fields(Statistics))[1:]


@numba.njit(cache=True, nogil=True)
def _share(step, age, p, start, phases_row, rate):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    cycles = age // p
    weight = (1 - _PHASE_MEMORY**cycles) / (1 - _PHASE_MEMORY)
    return (phases_row[start + step % p] + 0.3 * rate) / (weight + 0.3)


@numba.njit(cache=True, nogil=True)
def _update(  # type: ignore[no-untyped-def]  # noqa: ANN202, C901, PLR0912
    step, counts, age, gap, active_steps, gaps_seen, histogram, recent_histogram, latest_gaps, gap_statistics,  # noqa: ANN001
    previous, follower, phases, phase_loss, ring, windows, activity, log_counts, positive, tsb,  # noqa: ANN001
):  # fmt: skip
    scratch = np.empty(_GAPS, np.float32)
    for r in range(len(counts)):
        count = counts[r]
        missing = np.isnan(count)
        if age[r] < 0:
            if missing:
                continue
            age[r] = 0
        active = (not missing) and count > 0
        slot = step % RECENT
        for w in range(len(_WINDOW_ARRAY)):
            windows[r, w] += active - ring[r, (step - _WINDOW_ARRAY[w]) % RECENT]
        ring[r, slot] = active
        if not missing:
            rate = (active_steps[r] + 0.1) / (age[r] + 1.0)
            for i in range(len(_PERIODS)):
                p = _PERIODS[i]
                if age[r] >= p:
                    share = min(max(_share(step, age[r], p, _PHASE_START[i], phases[r], rate), 0.01), 0.99)
                    loss = -np.log(share) if active else -np.log(1 - share)
                    phase_loss[r, i] += 0.02 * (loss - phase_loss[r, i])
                j = _PHASE_START[i] + step % p
                phases[r, j] = phases[r, j] * _PHASE_MEMORY + active
            for i in range(len(_DECAY)):
                activity[r, i] += (1 - _DECAY[i]) * (active - activity[r, i])
            for i in range(len(_COUNT_DECAY)):
                log_counts[r, i] += (1 - _COUNT_DECAY[i]) * (np.log1p(count) - log_counts[r, i])
            tsb[r, 0] += _TSB_BETA * (active - tsb[r, 0])
        age[r] += 1
        if not active:
            if gap[r] > 0:
                gap[r] += 1
            continue
        tsb[r, 1] = count if active_steps[r] == 0 else tsb[r, 1] + _TSB_ALPHA * (count - tsb[r, 1])
        positive[r, active_steps[r] % _POSITIVE] = count
        active_steps[r] += 1
        if gap[r] > 0:
            g = min(gap[r], LONGEST_GAP)
            histogram[r, g] += 1
            for i in range(LONGEST_GAP + 1):
                recent_histogram[r, i] *= _GAP_MEMORY
            recent_histogram[r, g] += 1
            latest_gaps[r, gaps_seen[r] % _GAPS] = g
            gaps_seen[r] += 1
            follower[r, previous[r, 0]] = g
            previous[r, 1] = previous[r, 0]
            previous[r, 0] = g
            n = min(gaps_seen[r], _GAPS)
            ordered = scratch[:n]
            ordered[:] = np.log(latest_gaps[r, :n])
            gap_statistics[r, 0] = ordered.mean()
            gap_statistics[r, 1] = ordered.std()
            ordered.sort()
            for i in range(len(_QUANTILE_ARRAY)):
                at = _QUANTILE_ARRAY[i] * (n - 1)
                low = int(at)
                high = min(low + 1, n - 1)
                gap_statistics[r, 2 + i] = ordered[low] + (at - low) * (ordered[high] - ordered[low])
        gap[r] = 1


@numba.njit(cache=True, nogil=True)
def _survivors(row):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    out = np.empty(LONGEST_GAP + 2, np.float64)
    out[LONGEST_GAP + 1] = 0
    for g in range(LONGEST_GAP, -1, -1):
        out[g] = out[g + 1] + row[g]
    return out


@numba.njit(cache=True, nogil=True)
def _renew(first, again, out, pmf):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """u_h from the hazards of the running gap (`first`) and of a fresh one (`again`)."""
    alive = 1.0
    fresh = 1.0
    for h in range(len(out)):
        pmf[h] = fresh * again[h]
        fresh -= pmf[h]
        total = alive * first[h]
        alive -= total
        for j in range(h):
            total += out[j] * pmf[h - 1 - j]
        out[h] = min(total, 1.0)


@numba.njit(cache=True, nogil=True)
def _renewal(out, gap, histogram, curves, curve, strength):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    horizon = out.shape[1]
    first = np.empty(horizon)
    again = np.empty(horizon)
    pmf = np.empty(horizon)
    for r in range(len(out)):
        prior = curves[curve[r]]
        row = histogram[r]
        survivors = _survivors(row)
        for h in range(horizon):
            if gap[r] == 0:
                first[h] = prior[0]
            else:
                g = min(gap[r] + h, LONGEST_GAP)
                first[h] = (row[g] + strength * prior[g]) / (survivors[g] + strength)
            g = min(h + 1, LONGEST_GAP)
            again[h] = (row[g] + strength * prior[g]) / (survivors[g] + strength)
        _renew(first, again, out[r], pmf)


@numba.njit(cache=True, nogil=True)
def _phase_shares(step, out, age, phases, active_steps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for r in range(len(out)):
        born = max(age[r], 0)
        rate = (active_steps[r] + 0.1) / (born + 1.0)
        for h in range(out.shape[1]):
            for i in range(len(_PERIODS)):
                out[r, h, i] = _share(step + h, born, _PERIODS[i], _PHASE_START[i], phases[r], rate)


@numba.njit(cache=True, nogil=True)
def _positive_quantiles(out, positive, active_steps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for r in range(len(out)):
        n = min(active_steps[r], _POSITIVE)
        if n == 0:
            out[r] = 1
            continue
        ordered = np.sort(positive[r, :n])
        for i in range(_POSITIVE):
            at = i / (_POSITIVE - 1) * (n - 1)
            low = int(at)
            high = min(low + 1, n - 1)
            out[r, i] = ordered[low] + (at - low) * (ordered[high] - ordered[low])


@numba.njit(cache=True, nogil=True)
def _logit(p):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    p = min(max(p, 0.002), 0.998)
    return np.log(p / (1 - p))


@numba.njit(cache=True, nogil=True)
def _signed_log(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return np.log1p(x) if x >= 0 else -np.log1p(-x)


@numba.njit(cache=True, nogil=True)
def _features(  # type: ignore[no-untyped-def]  # noqa: ANN202, C901, PLR0912
    step, out, age, gap, active_steps, gaps_seen, histogram, recent_histogram, latest_gaps, gap_statistics,  # noqa: ANN001, ARG001
    previous, follower, phases, phase_loss, ring, windows, activity, log_counts, positive, tsb,  # noqa: ANN001, ARG001
):  # fmt: skip
    horizon = out.shape[1]
    first = np.empty(horizon)
    again = np.empty(horizon)
    pmf = np.empty(horizon)
    renewed = np.empty(horizon)
    for r in range(len(out)):
        every, recent = histogram[r], recent_histogram[r]
        survivors, recent_survivors = _survivors(every), _survivors(recent)
        born = max(age[r], 0)
        rate = (active_steps[r] + 0.1) / (born + 1.0)
        for h in range(horizon):
            g = min(gap[r] + h, LONGEST_GAP)
            first[h] = (recent[g] + 0.2) / (recent_survivors[g] + 1)
            g = min(h + 1, LONGEST_GAP)
            again[h] = (recent[g] + 0.2) / (recent_survivors[g] + 1)
        _renew(first, again, renewed, pmf)
        seen = min(active_steps[r], _POSITIVE)
        positive_mean = positive[r, :seen].mean() if seen else 0.0
        last_count = positive[r, (active_steps[r] - 1) % _POSITIVE] if seen else 0.0
        follow = follower[r, previous[r, 0]] if gaps_seen[r] > 1 else 0
        for h in range(horizon):
            f = out[r, h]
            elapsed = gap[r] + h
            g = min(elapsed, LONGEST_GAP)
            f[0] = np.log1p(h)
            f[1] = gap[r] == 0
            f[2] = np.log1p(gap[r])
            f[3] = np.log1p(elapsed)
            f[4] = np.log1p(born)
            f[5] = np.log1p(active_steps[r])
            f[6] = np.log1p(gaps_seen[r])
            f[7] = _logit((every[g] + 0.2) / (survivors[g] + 1))
            f[8] = _logit((recent[g] + 0.2) / (recent_survivors[g] + 1))
            lower, upper = max(g - 1, 0), min(g + 1, LONGEST_GAP)
            f[9] = _logit((every[lower] + every[upper] + 0.1) / (survivors[lower] + 1))
            f[10] = _logit((recent[lower] + recent[upper] + 0.1) / (recent_survivors[lower] + 1))
            f[11] = np.log1p(every[g])
            f[12] = np.log1p(recent[g])
            f[13] = np.log1p(survivors[g])
            f[14] = _logit(renewed[h])
            f[15] = gap_statistics[r, 0]
            f[16] = gap_statistics[r, 1]
            k = 17
            for i in range(len(_QUANTILE_ARRAY)):
                f[k] = gap_statistics[r, 2 + i]
                f[k + len(_QUANTILE_ARRAY)] = np.log(max(elapsed, 0.5)) - gap_statistics[r, 2 + i]
                k += 1
            k += len(_QUANTILE_ARRAY)
            for i in range(2):
                ahead = previous[r, i] - elapsed if previous[r, i] > 0 else 10
                f[k] = _signed_log(ahead)
                f[k + 1] = ahead == 0
                if i == 0:
                    f[k + 2] = ahead < 0
                k += 3 - i
            ahead = follow - elapsed if follow > 0 else 10
            f[k] = _signed_log(ahead)
            f[k + 1] = ahead == 0
            f[k + 2] = ahead < 0
            k += 3
            for i in range(len(_WINDOW_ARRAY)):
                f[k] = windows[r, i] / _WINDOW_ARRAY[i]
                k += 1
            for i in range(len(_LAG_ARRAY)):
                back = _LAG_ARRAY[i] - h
                f[k] = ring[r, (step - back) % RECENT] if 0 < back <= born else 0.5
                k += 1
            for i in range(len(_PERIODS)):
                f[k] = _logit(_share(step + h, born, _PERIODS[i], _PHASE_START[i], phases[r], rate))
                k += 1
            for i in range(len(_DECAY)):
                f[k] = activity[r, i]
                k += 1
            for i in range(len(_COUNT_DECAY)):
                f[k] = log_counts[r, i]
                k += 1
            f[k] = np.log1p(last_count)
            f[k + 1] = np.log1p(positive_mean)
            k += 2
            for i in range(len(_CLOCK_ARRAY)):
                f[k] = (step + h) % _CLOCK_ARRAY[i] == 0
                k += 1
