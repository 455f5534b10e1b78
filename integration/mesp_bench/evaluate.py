"""`mesp evaluate frontier`: every policy a curve of cold starts against wasted memory, by the protocol of EVALUATION.

The first half of the trace warms every policy up, the second half is scored. Minute accounting takes every knob in every
table; event accounting plays drawn arrivals through the fast path, per arrival mode and seed, one process per core. The
result is the dictionary that `frontier.json` holds and that the report draws.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

import mesp
from mesp.types import MB_PER_GB
from mesp_bench.arrivals import FIXED_START, ArrivalMode, StartTime, draw_arrivals
from mesp_bench.ledger import REFERENCE_KEEP_ALIVE_MINUTES, compulsory_cold_starts, minute_ledger, waste_pct
from mesp_bench.play import play
from mesp_bench.policies import BASELINES
from mesp_bench.policies.base import MINUTE_S, Policy
from mesp_bench.policies.fixed import Fixed
from mesp_bench.policies.mesp import Mesp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from mesp_bench.forecasting import TraceForecast
    from mesp_bench.traces.model import Trace

    Table = dict[str, list[dict[str, Any]]]

#: Minutes played before the scored ones: the longest keep-alive of the sweep, so that every policy's state is its own.
WARM_UP_MINUTES = 240
#: Knobs of the default run in event accounting; ``full`` takes every knob.
EVENT_KNOBS: dict[str, tuple[float, ...]] = {
    "fixed": (5, 10, 30, 60),
    "openwhisk": (10,),
    "hybrid_histogram": (60, 240),
    "kpa": (60, 300),
    "mesp": (40, 80.5, 160, 320, 640, 1600),
}
#: Policies that see the future: their event schedules know counts, not arrivals, so they bound nothing there.
_MINUTE_ONLY = frozenset({"oracle_keepalive", "oracle_prewarm", "hybrid_histogram_app"})


@dataclass(frozen=True, slots=True)
class EventPlan:
    """How much of event accounting is run.

    Attributes:
        modes: where in its minute an invocation falls; none runs minute accounting alone.
        seeds: runs per mode.
        full: every knob, and start times fixed at 0.808 s as a sensitivity.
        workers: processes.
    """

    modes: tuple[ArrivalMode, ...] = tuple(ArrivalMode)
    seeds: int = 5
    full: bool = False
    workers: int = os.cpu_count() or 1


def evaluate_frontier(
    trace: Trace,
    forecasts: Mapping[str, TraceForecast],
    plan: EventPlan,
    notes: Iterable[str],
    progress: Callable[[str, float], None],
) -> dict[str, Any]:
    """Scores every policy on a trace.

    Args:
        trace: with memory and durations filled in (`fill_defaults`).
        forecasts: MESP's, by table: ``online``, ``never_seen``, ``from_zero``; the first one is the top level's.
        plan: how much of event accounting is run.
        notes: sentences that belong to the result.
        progress: told the stage and the share done.

    Returns:
        The dictionary of `frontier.json`.
    """
    scored = slice(trace.minutes // 2, trace.minutes)
    top, *others = forecasts
    policies: list[Policy] = [*BASELINES.values(), Mesp(forecasts[top])]
    fixed_ten = minute_ledger(trace, Fixed().loaded(trace, REFERENCE_KEEP_ALIVE_MINUTES), scored, trace.memory_mb)
    table = _minute_table(policies, trace, trace.memory_mb, scored, lambda share: progress("minute accounting", share))
    said = list(notes)
    if plan.modes and plan.seeds:
        _add_events(
            table, policies, trace, scored, plan, StartTime(), lambda share: progress("event accounting", share)
        )
    else:
        said.append("Event accounting was not run.")
    slices: dict[str, Table] = {
        name: _minute_table([Mesp(forecasts[name])], trace, trace.memory_mb, scored) for name in others
    }
    without = np.array([trigger != "timer" for trigger in trace.triggers])
    if 0 < without.sum() < len(without):
        slices["no_timers"] = _minute_table(
            [*BASELINES.values(), Mesp(_rows(forecasts[top], without))],
            trace.select(without),
            trace.memory_mb[without],
            scored,
        )
    slices["app_memory"] = _minute_table(policies, trace, trace.app_memory_mb, scored)
    slices["unweighted"] = _minute_table(policies, trace, np.full(len(trace.functions), MB_PER_GB), scored)
    if plan.full and plan.modes:
        slices["fixed_start"] = {name: [dict(point) for point in points] for name, points in table.items()}
        _add_events(
            slices["fixed_start"],
            policies,
            trace,
            scored,
            plan,
            FIXED_START,
            lambda share: progress("fixed start", share),
        )
    return {
        "provenance": provenance(trace, plan.seeds, plan.workers),
        "notes": said,
        "protocol": {
            "scored_minutes": [scored.start, scored.stop - 1],
            "functions": len(trace.functions),
            "compulsory": compulsory_cold_starts(trace, scored),
            "table": top,
            "knob_units": {policy.name: policy.knob_unit for policy in policies},
            "reference_gb_s": fixed_ten.waste_gb_s,
            "price_gb_s": 80.5,
            "cold_rate_denominator": "active_minutes",
        },
        "policies": table,
        "slices": slices,
    }


def provenance(trace: Trace, seeds: int, workers: int) -> dict[str, Any]:
    """Where a result comes from: code, command, data, machine, versions."""
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "mesp": mesp.__version__,
        "git_revision": revision.stdout.strip() or None,
        "command": shlex.join(["mesp", *sys.argv[1:]]),
        "data": {"name": trace.name, "checksum": trace.checksum},
        "seeds": list(range(seeds)),
        "machine": f"{platform.machine()} {platform.system()}",
        "cores": os.cpu_count(),
        "workers": workers,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("numpy", "numba", "torch", "transformers", "tslearn")},
    }


def model_provenance(directory: Path) -> dict[str, Any]:
    """Which model answered: its version, whether it is the one that comes with MESP, and the data it learned from."""
    from mesp_predictor.checkpoint import DEFAULT_MODEL, read_manifest  # noqa: PLC0415  # needs torch

    manifest = read_manifest(directory)
    return {
        "version": manifest.version,
        "shipped": directory == DEFAULT_MODEL,
        "data": manifest.training.get("data"),
        "attribution": manifest.training.get("attribution"),
    }


def model_notes(model: Mapping[str, Any], trace: Trace) -> list[str]:
    """What a reader must know of the model (`model_provenance`) that answers on a trace."""
    data = model["data"] or {}
    said = []
    if model["shipped"]:
        said.append(f"The model that comes with MESP answered, trained on {data.get('name')}.")
    if data.get("checksum") == trace.checksum:
        said.append("The model was trained on this very trace: what is said of MESP flatters it.")
    return said


def _minute_table(
    policies: Iterable[Policy],
    trace: Trace,
    memory_mb: np.ndarray[tuple[int], np.dtype[np.float64]],
    scored: slice,
    progress: Callable[[float], None] = lambda _share: None,
) -> Table:
    """One point per policy and knob, minute accounting only."""
    policies = list(policies)
    weighted = replace(trace, memory_mb=memory_mb)
    table: Table = {}
    for done, policy in enumerate(policies):
        points = []
        for knob in policy.knobs:
            score = minute_ledger(trace, policy.loaded(weighted, knob), scored, memory_mb, policy.constant_idle_mb)
            rates = score.cold_rates
            points.append(
                {
                    "knob": knob,
                    "minute": {
                        "cold": score.cold,
                        "waste_pct": score.waste_pct,
                        "waste_gb_s": score.waste_gb_s,
                        "cold_rate_p75": rates["active_minutes"].p75,
                        "cold_rates": {name: _percentiles(rate) for name, rate in rates.items()},
                        "rum": score.rum,
                        "wmt": score.wmt,
                    },
                    "event": None,
                }
            )
        table[policy.name] = points
        progress((done + 1) / len(policies))
    return table


def _percentiles(rate: Any) -> dict[str, float]:
    return {"pooled": rate.pooled, "p50": rate.p50, "p75": rate.p75, "p90": rate.p90, "p99": rate.p99}


def _rows(forecast: TraceForecast, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> TraceForecast:
    return replace(forecast, active=forecast.active[:, rows], quantiles=forecast.quantiles[:, rows])


@dataclass(frozen=True, slots=True)
class _EventJob:
    """All policies under one arrival mode and seed."""

    trace: Trace
    policies: tuple[tuple[Policy, tuple[float, ...]], ...]
    scored: slice
    mode: ArrivalMode
    seed: int
    start_time: StartTime

    def run(self) -> dict[tuple[str, float], tuple[float, float, float]]:
        """Cold starts, waste in percent of fixed 10 minutes, and the 99th percentile of the wait in s."""
        trace = self.trace
        first = max(0, self.scored.start - WARM_UP_MINUTES)
        minutes = (first, self.scored.stop)
        arrivals = draw_arrivals(trace, self.mode, self.seed, minutes=minutes, start_time=self.start_time)
        score_from_s = MINUTE_S * self.scored.start
        reference = play(Fixed(), REFERENCE_KEEP_ALIVE_MINUTES, trace, arrivals, score_from_s)
        results: dict[tuple[str, float], tuple[float, float, float]] = {}
        for policy, knobs in self.policies:
            for knob in knobs:
                ledger = play(policy, knob, trace, arrivals, score_from_s)
                percent = waste_pct(ledger.waste_gb_s, reference.waste_gb_s)
                results[policy.name, knob] = (ledger.cold, np.nan if percent is None else percent, ledger.wait_p99_s)
        return results


def _add_events(
    table: Table,
    policies: Iterable[Policy],
    trace: Trace,
    scored: slice,
    plan: EventPlan,
    start_time: StartTime,
    progress: Callable[[float], None],
) -> None:
    """Fills in the event accounting of the table's points."""
    swept = tuple(
        (policy, policy.knobs if plan.full else EVENT_KNOBS.get(policy.name, ()))
        for policy in policies
        if policy.name not in _MINUTE_ONLY
    )
    jobs = [
        _EventJob(trace, swept, scored, mode, seed, start_time) for mode in plan.modes for seed in range(plan.seeds)
    ]
    results: dict[tuple[str, float], dict[str, list[tuple[float, float, float]]]] = {}
    with ProcessPoolExecutor(min(plan.workers, len(jobs))) as pool:
        futures = {pool.submit(job.run): job for job in jobs}
        for done, future in enumerate(as_completed(futures)):
            for key, measured in future.result().items():
                results.setdefault(key, {}).setdefault(futures[future].mode.value, []).append(measured)
            progress((done + 1) / len(jobs))
    for name, points in table.items():
        for point in points:
            by_mode = results.get((name, point["knob"]))
            if by_mode is not None:
                point["event"] = {mode: _event_point(np.array(runs)) for mode, runs in sorted(by_mode.items())}


def _event_point(runs: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Means over seeds, (S, 3): cold starts and waste with their 95 % intervals, and the wait's 99th percentile."""
    cold, waste, wait_s = runs.T
    return {"cold": _mean_ci(cold), "waste_pct": _mean_ci(waste), "wait_s_p99": float(wait_s.mean())}


#: Student's t, 97.5 %, by degrees of freedom 1 to 10.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def _mean_ci(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Mean and 95 % interval (Student's t) of S runs."""
    mean = float(values.mean())
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    half = _T[min(len(values) - 1, len(_T)) - 1] * float(values.std(ddof=1)) / len(values) ** 0.5
    return {"mean": mean, "ci95": [mean - half, mean + half]}
