"""From calls to a result: the dictionary of `replay-….json`, whose names mean what they mean in every other result.

Rates are of the calls that were sent and answered. A percentile is the smallest value that at least this share of calls
did not exceed, as in the simulator's ledger. Nothing here is estimated: what was not measured is null.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mesp_bench.replay.calls import ANSWERED, FAILED, WAITED, Outcome
from mesp_bench.replay.functions import function_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mesp.types import FunctionKey
    from mesp_bench.replay.calls import Call, Run
    from mesp_bench.replay.driver import Limits
    from mesp_bench.replay.schedule import Schedule

#: Levels at which a latency's distribution is kept, in percent: fine where the tail is.
LEVELS = (*range(1, 100), 99.5, 99.9, 100)

#: What a replay by itself does not see; who watches the platform meanwhile may give it.
ELSEWHERE = ("memory_gb_s", "pod_seconds", "stranded", "marker_user_runs", "plugin_cpu_share", "plugin_rss_mb")


def summarize(
    run: Run,
    schedule: Schedule,
    limits: Limits,
    *,
    platform: str,
    driver: str,
    mode: str,
    arrivals: str,
    notes: Iterable[str] = (),
    measured: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """The result of a replay, without its provenance.

    Args:
        run: what happened.
        schedule: what was to happen.
        limits: the generator's.
        platform: the target's name.
        driver: what stood behind it, such as ``standalone``.
        mode: ``off``, ``shadow`` or ``on``: what MESP did meanwhile.
        arrivals: the arrival mode.
        notes: sentences that belong to the result.
        measured: values for the names in ELSEWHERE.
    """
    counted = [call for call in run.calls if call.intended_ms >= 0]
    answered = [call for call in counted if call.answer.outcome in ANSWERED]
    cold = [call for call in answered if call.answer.cold]
    known = [call for call in answered if call.answer.cold is not None]
    failed = [call for call in answered if call.answer.outcome in FAILED]
    waited = [call for call in answered if call.answer.outcome in WAITED]
    outcomes = Counter(call.answer.outcome for call in counted)
    latency_s = _seconds(call.latency_ms for call in waited)
    first, end = schedule.minutes
    given = measured or {}
    return {
        "notes": [*notes, *_notes(run, schedule, counted, outcomes, given)],
        "protocol": {
            "minutes": [first, end],
            "functions": len(schedule.functions),
            "arrivals": arrivals,
            "warm_up_s": schedule.warm_up_s,
            "scheduled": int(np.count_nonzero(schedule.due_s >= 0)),
            "played_s": run.played_s,
            "interrupted": run.interrupted,
            "max_in_flight": limits.max_in_flight,
            "timeout_s": limits.timeout_s,
            "latency_from": "intended start",
        },
        "platform": platform,
        "driver": driver,
        "mode": mode,
        "speed": schedule.speed,
        "invocations": len(answered),
        "cold": len(cold) if known else None,
        "cold_pct": 100 * len(cold) / len(known) if known else None,
        "cold_known": len(known),
        "failed": len(failed),
        "shed": outcomes[Outcome.SHED],
        "outcomes": {str(outcome): outcomes[outcome] for outcome in Outcome if outcomes[outcome]},
        "waste_gb_s": run.idle_gb_s,
        **{name: given.get(name) for name in ELSEWHERE},
        "latency_s": _percentiles(latency_s),
        "cold_latency_s": _percentiles(_seconds(call.latency_ms for call in waited if call.answer.cold)),
        "warm_latency_s": _percentiles(_seconds(call.latency_ms for call in waited if call.answer.cold is False)),
        "added_latency_s": _percentiles(
            _seconds(call.latency_ms - call.answer.run_ms for call in waited if call.answer.run_ms is not None)
        ),
        "init_s": _percentiles(_seconds(call.answer.init_ms for call in answered if call.answer.init_ms is not None)),
        "wait_s": _percentiles(_seconds(call.answer.wait_ms for call in answered if call.answer.wait_ms is not None)),
        "lateness_s": _percentiles(_seconds(call.lateness_ms for call in answered)),
        "latency_quantiles_s": {"levels_pct": list(LEVELS), "latency_s": _quantiles(latency_s, LEVELS)},
        "per_minute": _per_minute(answered, schedule),
        "functions": _by_function(answered),
    }


def _notes(
    run: Run, schedule: Schedule, counted: Sequence[Call], outcomes: Counter[Outcome], given: Mapping[str, float | None]
) -> list[str]:
    said = []
    if run.interrupted:
        said.append(f"Stopped after {run.played_s:.0f} of {schedule.duration_s:.0f} s: the rest was not played.")
    if schedule.left_out:
        said.append(f"The limit on calls left out the last {schedule.left_out:,} of the schedule.")
    if outcomes[Outcome.SHED]:
        said.append(
            f"{outcomes[Outcome.SHED]:,} of {len(counted):,} calls were shed, as too many were in flight: the platform met "
            "less than the trace, and latencies are too good."
        )
    if schedule.speed != 1:
        said.append(
            f"Speed {schedule.speed:g} divides the times between arrivals, and run times handed over as {{run_ms}}. It does "
            "not scale the platform's own timers (OpenWhisk pauses an idle container after 10 s and removes it after 10 min), "
            "start times, or a predictor's minutes: idle containers cover more of the trace than they would at speed 1."
        )
    if run.idle_gb_s is None:
        said.append("Idle memory was not sampled.")
    if run.missed_samples:
        said.append(f"{run.missed_samples} samples of idle memory failed; the integral bridges them.")
    if counted and all(call.answer.cold is None for call in counted):
        said.append("The answers do not tell cold starts from warm ones.")
    if missing := [name for name in ELSEWHERE if given.get(name) is None]:
        said.append(f"Not seen by the load generator: {', '.join(missing)}.")
    return said


def _per_minute(answered: Sequence[Call], schedule: Schedule) -> dict[str, list[int]]:
    """Calls, cold starts and failures by the trace's minute."""
    first, end = schedule.minutes

    def by_minute(calls: Iterable[Call]) -> list[int]:
        minutes = [min(int(call.intended_ms * schedule.speed // 60_000), end - first - 1) for call in calls]
        return [int(count) for count in np.bincount(np.array(minutes, np.int64), minlength=end - first)]

    return {
        "invocations": by_minute(answered),
        "cold": by_minute(call for call in answered if call.answer.cold),
        "failed": by_minute(call for call in answered if call.answer.outcome in FAILED),
    }


def _by_function(answered: Sequence[Call]) -> list[dict[str, Any]]:
    """A row per function that was called, the busiest first."""
    grouped: defaultdict[FunctionKey, list[Call]] = defaultdict(list)
    for call in answered:
        grouped[call.function].append(call)
    rows = []
    for function, calls in sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0])):
        latency_s = _seconds(call.latency_ms for call in calls if call.answer.outcome in WAITED)
        p50, p99 = _quantiles(latency_s, (50, 99)) or (None, None)
        rows.append(
            {
                "id": function_id(function),
                "function": str(function),
                "invocations": len(calls),
                "cold": sum(call.answer.cold is True for call in calls),
                "failed": sum(call.answer.outcome in FAILED for call in calls),
                "latency_p50_s": p50,
                "latency_p99_s": p99,
            }
        )
    return rows


def _seconds(milliseconds: Iterable[float]) -> npt.NDArray[np.float64]:
    return np.array(list(milliseconds), dtype=np.float64) / 1000


def _percentiles(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    found: Sequence[float | None] = _quantiles(values, (50, 95, 99, 100)) or (None,) * 4
    return dict(zip(("p50", "p95", "p99", "max"), found, strict=True))


def _quantiles(values: npt.NDArray[np.float64], levels_pct: Sequence[float]) -> list[float]:
    """The smallest value that at least each share of values does not exceed; none without values."""
    if not values.size:
        return []
    return [float(value) for value in np.percentile(values, levels_pct, method="inverted_cdf")]
