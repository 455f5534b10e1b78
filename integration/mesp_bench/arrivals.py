"""From counts per minute to single invocations: when each arrives, how long it runs, how long a container starts.

A trace of counts does not say where in its minute an invocation fell, and a prewarm policy's standing depends on it.
So there are three modes, and a conclusion that flips between them is no claim (EVALUATION.md):

- ``uniform``: the recorded count, each arrival uniform in its minute.
- ``poisson``: the recorded count n is taken for a rate, and Poisson(n) arrivals are uniform in the minute. (Given its
  count, a Poisson stream *is* uniform; what sets it apart is that the count itself varies.)
- ``bunched``: the recorded count, all in the first second of the minute, as timers and batch triggers do.

Recorded arrival times, where a trace has them, are used as they are in every mode.

Every function draws from a generator of its own, seeded by the run's seed and its key: a function's randomness does not
change when others join or leave. All of it is drawn before the simulation, so that both paths see the same.
"""

from __future__ import annotations

import enum
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mesp.errors import InputError
from mesp_bench.traces.model import DURATION_PERCENTILES

if TYPE_CHECKING:
    from mesp.types import FunctionKey
    from mesp_bench.traces.model import Trace

#: Run time where a trace has none: the median of the log-normal fitted to functions' mean run times (log mean -0.38)
#: by Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 3.4.
DEFAULT_DURATION_MS = 1000 * math.exp(-0.38)

#: Spread of run times around a mean without percentiles: a coefficient of variation of 1, as a log-normal's sigma.
_DURATION_SIGMA = math.sqrt(math.log(2))

#: Most start times drawn per function; its containers take them in turn.
_MAX_START_TIMES = 4096


class ArrivalMode(enum.StrEnum):
    """Where in its minute an invocation falls."""

    UNIFORM = "uniform"
    POISSON = "poisson"
    BUNCHED = "bunched"


@dataclass(frozen=True, slots=True)
class StartTime:
    """Time from the order of a container to its readiness: log-normal, or fixed when `sd_s` is 0."""

    mean_s: float = 3.24
    sd_s: float = 7.10

    def __post_init__(self) -> None:
        """Refuses what no log-normal has."""
        if not (0 <= self.mean_s < math.inf and 0 <= self.sd_s < math.inf) or (self.mean_s == 0 < self.sd_s):
            raise InputError(
                f"start time {self.mean_s} s with sd {self.sd_s} s: both must be finite, the mean positive."
            )

    def draw(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
        """`size` start times in seconds, (size,) float64."""
        if self.sd_s == 0:
            return np.full(size, self.mean_s)
        variance = math.log1p((self.sd_s / self.mean_s) ** 2)
        return rng.lognormal(math.log(self.mean_s) - variance / 2, math.sqrt(variance), size)


#: The sensitivity case of the protocol.
FIXED_START = StartTime(mean_s=0.808, sd_s=0.0)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """N single invocations of F functions inside the minutes [first_minute, end_minute) of a trace.

    Function f owns ``times_s[indptr[f]:indptr[f+1]]``. Its k-th container takes the (k modulo n)-th of the n start times
    ``start_times_s[start_indptr[f]:start_indptr[f+1]]``; every function has at least one.

    Attributes:
        indptr: (F+1,) int64.
        times_s: seconds from the trace's first column, sorted within each function, (N,) float64.
        durations_s: run time of each invocation, (N,) float64.
        start_indptr: (F+1,) int64.
        start_times_s: from the order of a container to its readiness, float64.
    """

    functions: tuple[FunctionKey, ...]
    first_minute: int
    end_minute: int
    indptr: npt.NDArray[np.int64]
    times_s: npt.NDArray[np.float64]
    durations_s: npt.NDArray[np.float64]
    start_indptr: npt.NDArray[np.int64]
    start_times_s: npt.NDArray[np.float64]


def draw_arrivals(
    trace: Trace,
    mode: ArrivalMode,
    seed: int,
    *,
    minutes: tuple[int, int] | None = None,
    start_time: StartTime | None = None,
) -> Arrivals:
    """Single invocations of a trace's minutes [A, B), all of them by default.

    Args:
        trace: where the counts, durations and (perhaps) arrival times come from.
        mode: where in its minute an invocation falls.
        seed: the run's seed, not negative.
        minutes: columns [A, B) of the trace.
        start_time: the distribution of container start times; `StartTime()` by default.

    Raises:
        InputError: the minutes are not inside the trace, or the seed is negative.
    """
    first, end = minutes or (0, trace.minutes)
    if not 0 <= first < end <= trace.minutes:
        raise InputError(f"minutes [{first}, {end}) of {trace.name}: must lie within [0, {trace.minutes}), not empty.")
    if seed < 0:
        raise InputError(f"seed {seed}: must not be negative.")
    starts = start_time or StartTime()
    times: list[npt.NDArray[np.float64]] = []
    durations: list[npt.NDArray[np.float64]] = []
    start_times: list[npt.NDArray[np.float64]] = []
    for row, key in enumerate(trace.functions):
        rng = _generator(seed, key)
        arrived = _times(trace, row, mode, rng, first, end)
        times.append(arrived)
        durations.append(_durations(trace, row, rng, arrived.size))
        start_times.append(starts.draw(rng, min(max(arrived.size, 1), _MAX_START_TIMES)))
    return Arrivals(
        functions=trace.functions,
        first_minute=first,
        end_minute=end,
        indptr=_indptr(times),
        times_s=np.concatenate([np.empty(0), *times]),
        durations_s=np.concatenate([np.empty(0), *durations]),
        start_indptr=_indptr(start_times),
        start_times_s=np.concatenate([np.empty(0), *start_times]),
    )


def _generator(seed: int, key: FunctionKey) -> np.random.Generator:
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


def _times(
    trace: Trace, row: int, mode: ArrivalMode, rng: np.random.Generator, first: int, end: int
) -> npt.NDArray[np.float64]:
    if trace.arrivals_s is not None:
        recorded = trace.arrivals_s[row]
        low, high = np.searchsorted(recorded, [60.0 * first, 60.0 * end])
        return recorded[low:high]
    counts: npt.NDArray[np.int64] = trace.counts[row, first:end].astype(np.int64)
    if mode is ArrivalMode.POISSON:
        counts = rng.poisson(counts)
    width_s = 1.0 if mode is ArrivalMode.BUNCHED else 60.0
    times = rng.random(int(counts.sum()))
    times *= width_s
    times += np.repeat(60.0 * np.arange(first, end), counts)
    # The sum may round up to the next minute's first instant, which belongs to that minute.
    np.minimum(times, np.nextafter(60.0 * end, 0.0), out=times)
    times.sort()
    return times


def _durations(trace: Trace, row: int, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """Seconds, (size,): piecewise linear between the recorded percentiles, else log-normal around the recorded mean."""
    percentiles = trace.duration_percentiles_ms[row]
    if np.isfinite(percentiles).all():
        share = np.asarray(DURATION_PERCENTILES) / 100
        return np.interp(rng.random(size), share, np.maximum.accumulate(percentiles) / 1000)
    mean_ms = float(trace.duration_ms[row])
    mean_s = (mean_ms if math.isfinite(mean_ms) else DEFAULT_DURATION_MS) / 1000
    return mean_s * rng.lognormal(-(_DURATION_SIGMA**2) / 2, _DURATION_SIGMA, size)


def _indptr(parts: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([part.size for part in parts], dtype=np.int64)]).astype(np.int64)
