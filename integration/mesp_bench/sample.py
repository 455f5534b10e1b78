"""A trace that a small machine can carry: some of its functions, all of their habits.

Functions fall into patterns (rare, busy, periodic, bursty, irregular). Each pattern keeps its share of the sample, and at
least one place where there are places enough; within a pattern the functions are ordered by how often they are called
and taken at equal distances, so that quiet and loud ones are there as in the whole.

What is then still too much for the machine comes from a few functions. Those whose busiest minute alone is above an
equal part of the limit are thinned: each of their invocations is kept with one common probability, so they keep their
times and their sizes relative to each other. No other function is changed, and no invocation is made up.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mesp.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from mesp_bench.traces.model import Trace

#: Fewer active minutes than this show no pattern.
_RARE_BELOW_MINUTES = 6
#: Active in at least this share of all minutes.
_BUSY_SHARE = 0.5
#: Coefficient of variation of the gaps between active minutes: a clock is below the first, a burst above the second.
_PERIODIC_CV, _BURSTY_CV = 0.35, 1.0


class Pattern(enum.StrEnum):
    """How a function is called over the trace."""

    RARE = "rare"
    BUSY = "busy"
    PERIODIC = "periodic"
    BURSTY = "bursty"
    IRREGULAR = "irregular"


@dataclass(frozen=True, slots=True)
class SampleNote:
    """What was kept of a trace.

    Attributes:
        source: the trace's name.
        seed: the same seed takes the same sample.
        functions: kept.
        of_functions: in the trace; `never_invoked` of these were not eligible.
        invocations: kept.
        of_invocations: in the trace.
        patterns: per pattern functions kept, and functions in the trace.
        thinned_functions: those whose invocations were thinned, by `thinning`, the probability to keep one (else 1).
        peak_per_minute: invocations of the sample's busiest minute; never above `limit_per_minute`.
    """

    source: str
    seed: int
    functions: int
    of_functions: int
    never_invoked: int
    invocations: int
    of_invocations: int
    patterns: dict[str, tuple[int, int]]
    thinned_functions: int
    thinning: float
    peak_per_minute: int
    limit_per_minute: float

    def __str__(self) -> str:
        kept = ", ".join(f"{kept} of {of} {pattern}" for pattern, (kept, of) in self.patterns.items())
        thinned = (
            f"{self.thinned_functions} functions thinned to {100 * self.thinning:.2g} % of their invocations"
            if self.thinned_functions
            else "none thinned"
        )
        return (
            f"{self.functions} of {self.of_functions} functions of {self.source} ({kept}); {thinned}; "
            f"{self.invocations:,} of {self.of_invocations:,} invocations, "
            f"{self.peak_per_minute:,} in the busiest minute; seed {self.seed}."
        )


def sample_trace(
    trace: Trace, *, functions: int = 30, rate_per_s: float = 20.0, seed: int = 0
) -> tuple[Trace, SampleNote]:
    """A smaller trace with the shape of a large one, and what was done to it.

    Args:
        trace: with at least one invocation.
        functions: at most so many are kept, in the trace's order; functions never invoked are not.
        rate_per_s: at most 60 times so many invocations fall into any minute.
        seed: of the choice and of the thinning.

    Raises:
        InputError: a limit that is not positive, a negative seed, or a trace without an invocation.
    """
    if functions < 1 or not 0 < rate_per_s < math.inf or seed < 0:
        raise InputError(
            f"functions = {functions}, rate_per_s = {rate_per_s:g}, seed = {seed}: functions must be at least 1, the "
            "rate positive and finite, the seed not negative."
        )
    totals = trace.counts.sum(axis=1, dtype=np.int64)
    invoked = np.flatnonzero(totals)
    if not invoked.size:
        raise InputError(f"{trace.name} has no invocation: there is nothing to sample.")
    patterns = {int(row): pattern_of(trace.counts[row]) for row in invoked}
    rng = np.random.default_rng(seed)
    strata = {
        pattern: np.array([row for row in invoked if patterns[int(row)] is pattern], dtype=np.int64)
        for pattern in Pattern
    }
    places = _places([rows.size for rows in strata.values()], functions)
    chosen = {
        pattern: _spread(rows[np.argsort(totals[rows], kind="stable")], count, rng)
        for (pattern, rows), count in zip(strata.items(), places, strict=True)
    }
    kept = trace.select(np.sort(np.concatenate(list(chosen.values()))))
    thinned, share = _thin(kept, 60 * rate_per_s, rng)
    sampled = _with_counts(kept, thinned, rng)
    note = SampleNote(
        source=trace.name,
        seed=seed,
        functions=len(sampled.functions),
        of_functions=len(trace.functions),
        never_invoked=len(trace.functions) - invoked.size,
        invocations=int(thinned.sum(dtype=np.int64)),
        of_invocations=int(totals.sum()),
        patterns={str(pattern): (chosen[pattern].size, rows.size) for pattern, rows in strata.items() if rows.size},
        thinned_functions=int(_loud(kept, 60 * rate_per_s).sum()) if share < 1 else 0,
        thinning=share,
        peak_per_minute=int(thinned.sum(axis=0, dtype=np.int64).max()),
        limit_per_minute=60 * rate_per_s,
    )
    return replace(sampled, name=f"{trace.name}, sample of {note.functions} functions, seed {seed}"), note


def pattern_of(counts: npt.NDArray[np.uint32]) -> Pattern:
    """The pattern of one function's counts per minute, (M,)."""
    active = np.flatnonzero(counts)
    if active.size < _RARE_BELOW_MINUTES:
        return Pattern.RARE
    if active.size >= _BUSY_SHARE * counts.size:
        return Pattern.BUSY
    gaps = np.diff(active)
    variation = gaps.std() / gaps.mean()
    if variation <= _PERIODIC_CV:
        return Pattern.PERIODIC
    return Pattern.BURSTY if variation > _BURSTY_CV else Pattern.IRREGULAR


def _places(sizes: list[int], wanted: int) -> list[int]:
    """How many of `wanted` places each stratum gets: one each while they last, the rest by the largest remainder."""
    wanted = min(wanted, sum(sizes))
    exact = np.array(sizes) * wanted / sum(sizes)
    places = np.zeros(len(sizes), dtype=np.int64)
    for at in np.argsort(-exact, kind="stable")[:wanted]:  # the largest strata first where places are scarce
        places[at] = min(1, sizes[at])
    while places.sum() < wanted:
        places[np.argmax(np.where(places < sizes, exact - places, -np.inf))] += 1
    return [int(place) for place in places]


def _spread(rows: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """`count` of the ordered rows at equal distances, the first one random (systematic sampling)."""
    return rows[np.floor((np.arange(count) + rng.random()) * rows.size / max(count, 1)).astype(np.int64)]


def _loud(trace: Trace, limit: float) -> npt.NDArray[np.bool_]:
    """Functions whose busiest minute is above an equal part of the limit; the others together stay below it, (F,)."""
    return np.asarray(trace.counts.max(axis=1, initial=0) > limit / len(trace.functions))


def _thin(trace: Trace, limit: float, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint32], float]:
    """Counts with at most `limit` in any minute, (F, M), and the share of the loud functions' invocations kept."""
    counts = trace.counts.astype(np.int64)
    peak = counts.sum(axis=0).max()
    if peak <= limit:
        return trace.counts, 1.0
    loud = _loud(trace, limit)
    recorded, share = counts[loud], 1.0
    while peak > limit:  # the quiet ones stay below the limit: some share, be it next to nothing, fits
        share *= min(limit / peak, 0.98)
        counts[loud] = rng.binomial(recorded, share)
        peak = counts.sum(axis=0).max()
    return counts.astype(np.uint32), float(share)


def _with_counts(trace: Trace, counts: npt.NDArray[np.uint32], rng: np.random.Generator) -> Trace:
    """The trace with these counts, each at most the recorded one; recorded arrival times are dropped to match."""
    changed = np.any(counts != trace.counts, axis=1)
    arrivals = trace.arrivals_s
    if arrivals is not None:
        arrivals = tuple(
            _fewer(times, counts[row], rng) if changed[row] else times for row, times in enumerate(arrivals)
        )
    counted = trace.duration_count
    return replace(
        trace,
        counts=counts,
        arrivals_s=arrivals,
        duration_count=None if counted is None else np.where(changed, -1, counted),
    )


def _fewer(
    times_s: npt.NDArray[np.float64], counts: npt.NDArray[np.uint32], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Of each minute's arrivals a random choice of as many as `counts` says, sorted."""
    minute = (times_s // 60).astype(np.int64)
    order = np.lexsort((rng.random(times_s.size), minute))
    place = np.arange(times_s.size) - np.searchsorted(minute, minute)  # within the minute, as `order` shuffled it
    return times_s[np.sort(order[place < counts[minute]])]
