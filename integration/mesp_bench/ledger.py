"""The ledger: what a policy cost in cold starts and in idle memory.

Minute accounting, comparable with published work: a function is cold in an active minute that did not begin with it
loaded, and wastes its memory in every loaded minute without a call. No lead time is charged. A knob wins either
number alone with ease, so scores always carry both, and the published sums of the two: FeMux's RUM and SPES's WMT.

The metrics below `MinuteScore` take plain numbers per function: event accounting uses the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mesp.errors import InputError
from mesp.types import MB_PER_GB
from mesp_bench.policies.base import MINUTE_S, mean_containers
from mesp_bench.policies.fixed import Fixed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import BoolArray
    from mesp_bench.traces.model import Trace

FloatVector = npt.NDArray[np.float64]

#: The policy that counts as 100 % waste: a fixed keep-alive of ten minutes.
REFERENCE_KEEP_ALIVE_MINUTES = 10

#: RUM's terms (FeMux, ASPLOS'24): seconds of a mean cold start, and GB s of waste that weigh as much as one second.
RUM_COLD_START_S = 0.808
RUM_GB_S_PER_S = 99.69

#: The median app of Shahrad et al., ATC'20: for traces that know no function's memory.
DEFAULT_MEMORY_MB = 170.0

#: For traces that know no function's duration.
DEFAULT_DURATION_MS = 1000.0


@dataclass(frozen=True, slots=True)
class ColdRates:
    """Cold starts in percent of a denominator: pooled over the fleet, and percentiles over functions.

    Functions whose denominator is 0 in the scored minutes have no rate and are left out; NaN if that leaves none.
    """

    pooled: float
    p50: float
    p75: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class MinuteScore:
    """A policy's row in minute accounting.

    Attributes:
        cold: active minutes that did not begin loaded, compulsory ones included.
        compulsory: functions whose first call in the whole trace falls in the scored minutes.
        waste_gb_s: memory of loaded minutes without a call, and of what is idle all the time.
        waste_pct: the same in percent of a fixed 10-minute keep-alive's; None where that wastes nothing.
        cold_rates: by denominator, ``invocations``, ``active_minutes`` and ``instances``: containers that a minute
            needs at its mean concurrency, summed over active minutes.
        rum: see `rum`.
        wmt: function-minutes loaded without a call, unweighted (SPES, ICDE'24).
    """

    cold: int
    compulsory: int
    waste_gb_s: float
    waste_pct: float | None
    cold_rates: Mapping[str, ColdRates]
    rum: float
    wmt: int


def minute_ledger(
    trace: Trace, loaded: BoolArray, scored: slice, memory_mb: FloatVector, constant_idle_mb: float = 0.0
) -> MinuteScore:
    """Score one policy on the `scored` minutes.

    Args:
        trace: the whole trace, warm-up included, with durations known (`fill_defaults`).
        loaded: whether each function is warm when each minute begins, (F, M).
        scored: the columns to score, e.g. ``slice(720, 1440)``.
        memory_mb: what an idle function is charged, (F,).
        constant_idle_mb: the policy's own memory, idle all the time.

    Raises:
        InputError: shapes that do not match, or memory or durations that are not known.
    """
    if loaded.shape != trace.counts.shape:
        raise InputError(f"loaded is {loaded.shape}, must be {trace.counts.shape} as the trace's counts")
    _require_known("memory_mb", memory_mb, trace)
    _require_known("duration_ms", trace.duration_ms, trace)
    counts = trace.counts[:, scored]
    active = counts > 0
    cold = np.count_nonzero(active & ~loaded[:, scored], axis=1)
    idle_minutes = np.count_nonzero(loaded[:, scored] & ~active, axis=1)
    constant_gb_s = constant_idle_mb / MB_PER_GB * MINUTE_S * counts.shape[1]
    waste_gb_s = _idle_gb_s(idle_minutes, memory_mb) + constant_gb_s

    reference = Fixed().loaded(trace, REFERENCE_KEEP_ALIVE_MINUTES)[:, scored]
    reference_gb_s = _idle_gb_s(np.count_nonzero(reference & ~active, axis=1), memory_mb)
    denominators = {
        "invocations": counts.sum(axis=1),
        "active_minutes": np.count_nonzero(active, axis=1),
        "instances": np.where(active, mean_containers(counts, trace.duration_ms), 0).sum(axis=1),
    }
    return MinuteScore(
        cold=int(cold.sum()),
        compulsory=compulsory_cold_starts(trace, scored),
        waste_gb_s=waste_gb_s,
        waste_pct=waste_pct(waste_gb_s, reference_gb_s),
        cold_rates={name: cold_rates(cold, total) for name, total in denominators.items()},
        rum=rum(int(cold.sum()), waste_gb_s),
        wmt=int(idle_minutes.sum()),
    )


def compulsory_cold_starts(trace: Trace, scored: slice) -> int:
    """Functions whose first call in the whole trace falls in the scored minutes: no history could warn of it."""
    called_before = np.any(trace.counts[:, : scored.indices(trace.minutes)[0]], axis=1)
    return int(np.count_nonzero(~called_before & np.any(trace.counts[:, scored], axis=1)))


def cold_rates(cold: npt.NDArray[np.integer], total: npt.NDArray[np.integer]) -> ColdRates:
    """Cold starts in percent of `total`, both per function, (F,)."""
    seen = total > 0
    if not seen.any():
        return ColdRates(*[float("nan")] * 5)
    pooled = 100.0 * float(cold.sum()) / float(total.sum())
    percentiles = np.percentile(100.0 * cold[seen] / total[seen], (50, 75, 90, 99))
    return ColdRates(pooled, *(float(p) for p in percentiles))


def rum(cold: float, waste_gb_s: float) -> float:
    """FeMux's RUM, in seconds: 0.808 s per cold start, and one second per 99.69 GB s wasted."""
    return RUM_COLD_START_S * cold + waste_gb_s / RUM_GB_S_PER_S


def waste_pct(waste_gb_s: float, reference_gb_s: float) -> float | None:
    """Waste in percent of the fixed 10-minute keep-alive's on the same functions and memory; None if that has none."""
    return 100.0 * waste_gb_s / reference_gb_s if reference_gb_s > 0 else None


def fill_defaults(trace: Trace) -> tuple[Trace, list[str]]:
    """The trace with every memory and mean duration known, and one sentence for each default that was used.

    Unknown values become the median of the known ones, or DEFAULT_MEMORY_MB and DEFAULT_DURATION_MS if none is known.
    Duration percentiles stay as they are: where they are unknown, so is the spread.
    """
    notes: list[str] = []

    def filled(values: FloatVector, default: float, what: str, unit: str) -> FloatVector:
        unknown = np.isnan(values)
        if not unknown.any():
            return values
        value, origin = default, "the default, as none is known"
        if not unknown.all():
            value, origin = float(np.median(values[~unknown])), "the median of the known ones"
        notes.append(f"{what} of {unknown.sum()} of {unknown.size} functions is unknown: {value:g} {unit} ({origin}).")
        return np.where(unknown, value, values)

    complete = replace(
        trace,
        memory_mb=filled(trace.memory_mb, DEFAULT_MEMORY_MB, "Memory", "MB"),
        app_memory_mb=filled(trace.app_memory_mb, DEFAULT_MEMORY_MB, "App memory", "MB"),
        duration_ms=filled(trace.duration_ms, DEFAULT_DURATION_MS, "Duration", "ms"),
    )
    return complete, notes


def _idle_gb_s(idle_minutes: npt.NDArray[np.integer], memory_mb: FloatVector) -> float:
    return float(idle_minutes @ memory_mb) / MB_PER_GB * MINUTE_S


def _require_known(what: str, values: FloatVector, trace: Trace) -> None:
    if values.shape != (len(trace.functions),):
        raise InputError(f"{what} is {values.shape}, must be ({len(trace.functions)},): one value per function")
    unknown = np.flatnonzero(~(values >= 0))
    if unknown.size:
        function = trace.functions[unknown[0]]
        raise InputError(f"{what} of {function} is {values[unknown[0]]:g}, must be a known, non-negative number")
