"""`mesp evaluate forecasts`: the mixture against every single model, by the protocol of EVALUATION.

Replays leave sums per function and model (`forecast_replay`); here they become `forecasts.json`: scores of every model,
the same for slices of the functions and for models trained otherwise, and paired comparisons of the mixture with each
of the others. Functions are what is drawn anew in the bootstrap: minutes of one function are no independent witnesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mesp_bench.evaluate import provenance
from mesp_bench.forecast_baselines import SEASON_MINUTES, SEASONS, WINDOW_MINUTES
from mesp_bench.forecast_replay import BASELINES, HARD, MESP, REFITTED, TIMED_RUNS, WINDOW_EVERY
from mesp_bench.forecast_scores import (
    ACTIVE_SHARE,
    best_in_hindsight,
    log_losses_next_step,
    scaled_quantile_losses,
    scores,
)
from mesp_bench.forecast_tables import BEST_SINGLE, COMPARED, ORACLE
from mesp_predictor.losses import NAIVE_FLOOR, naive_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mesp.types import BoolArray
    from mesp_bench.forecast_replay import Replay
    from mesp_bench.forecast_scores import Doubles, Tally
    from mesp_bench.traces.model import Trace

    Table = dict[str, dict[str, Any]]

#: Floors of the naive error shown beside the one scored with, invocations.
FLOORS = (0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are drawn: functions with replacement, so many times, from that seed."""

    resamples: int = 2_000
    seed: int = 0


def evaluate_forecasts(
    trace: Trace,
    replays: Mapping[str, Replay],
    speeds: Mapping[str, float],
    notes: Iterable[str],
    bootstrap: Bootstrap | None = None,
) -> dict[str, Any]:
    """Turns replays of a trace into the dictionary of `forecasts.json`.

    Args:
        trace: the scored trace, F functions.
        replays: by table: ``online``, ``never_seen``, ``from_zero``; the first one is the top level's.
        speeds: functions forecast per second, by model of the top level.
        notes: sentences that belong to the result.
        bootstrap: how intervals are drawn; None: the default way.
    """
    bootstrap = bootstrap or Bootstrap()
    table, top = next(iter(replays.items()))
    counts = trace.counts.astype(np.float64)
    naive = naive_error(counts)
    everything = np.ones(len(counts), np.bool_)
    tables = {name: (replay, everything) for name, replay in replays.items() if name != table}
    tables |= {name: (top, rows) for name, rows in _slices(trace, top) if rows.any()}
    if "never_seen" in replays and (without := _without_timers(trace)).any():
        tables["never_seen_no_timers"] = (replays["never_seen"], without)
    models = _table(top, everything, naive, bootstrap)
    for name, score in models.items():
        score["series_per_s"] = speeds.get(name)
    slices: dict[str, Any] = {}
    for name, (replay, rows) in tables.items():
        group, _, part = name.partition("/")
        scored = _table(replay, rows, naive, bootstrap)
        if part:
            slices.setdefault(group, {})[part] = scored
        else:
            slices[group] = scored
    slices["floor_sensitivity"] = _floor_sensitivity(top, counts, naive)
    return {
        "provenance": provenance(trace, seeds=1, workers=1),
        "notes": [*notes, *_own_notes(top, naive)],
        "protocol": {
            "table": table,
            "scored_minutes": [top.first, trace.minutes - 1],
            "functions": len(counts),
            "horizon": top.horizon,
            "levels": list(top.levels),
            "window_origins": f"every {WINDOW_EVERY}th minute; the next minute is scored at every one",
            "known_functions": "all from the trace's start, with zeros before their first invocation",
            "naive_error": "mean |y_t - y_(t-1)| over the whole trace",
            "naive_floor": NAIVE_FLOOR,
            "oracle": "best expert per function over the scored minutes, in hindsight, by quantile loss or log loss",
            "best_single": "best expert, as it was trained, over all scored functions, in hindsight, for each metric",
            "coverage_active": f"functions active in at least {100 * ACTIVE_SHARE:.0f} % of the scored minutes",
            "active_and_varying": f"those of them whose commonest count fills less than {100 * ACTIVE_SHARE:.0f} % of the minutes",
            "rate_quartiles": "functions by invocations in the whole trace, 1 the rarest",
            "behaviour_change": _BEHAVIOUR_RULE,
            "moving_average": f"last {WINDOW_MINUTES} minutes",
            "seasonal_naive": f"the same minute of the last {SEASONS} seasons of {SEASON_MINUTES} minutes",
            "bootstrap": f"{bootstrap.resamples} paired resamples of the functions, percentile intervals, seed {bootstrap.seed}",
            "series_per_s": f"median of {TIMED_RUNS} runs over {len(counts)} functions at once, 1 thread of torch",
            "slice_functions": {name: int(rows.sum()) for name, (_, rows) in tables.items()},
        },
        "models": models,
        "comparisons": _comparisons(top, everything, naive, bootstrap),
        "slice_comparisons": {
            name: _comparisons(replay, rows, naive, bootstrap) for name, (replay, rows) in tables.items()
        },
        "weights": _weights(trace, top),
        "slices": slices,
    }


def improvements(ours: Doubles, theirs: Doubles, bootstrap: Bootstrap) -> list[tuple[float, tuple[float, float]]]:
    """By how many percent our loss is below theirs, with 95 % intervals from a paired bootstrap over functions.

    Args:
        ours: C pairs' losses per function, (F, C); functions with a NaN on either side are left out of their pair.
        theirs: the same, (F, C).
        bootstrap: how intervals are drawn.

    Returns:
        Per pair the improvement and its interval, in percent; NaN where there is nothing to compare.
    """
    both = np.isfinite(ours) & np.isfinite(theirs)
    estimate, low, high = ratios(np.where(both, ours, 0), np.where(both, theirs, 0), bootstrap)
    least, most = 100 * (1 - high), 100 * (1 - low)
    return list(zip((100 * (1 - estimate)).tolist(), zip(least.tolist(), most.tolist(), strict=True), strict=True))


def ratios(above: Doubles, below: Doubles, bootstrap: Bootstrap) -> tuple[Doubles, Doubles, Doubles]:
    """Ratios of sums over functions with 95 % bootstrap intervals (Efron and Tibshirani, 1993, percentiles).

    Args:
        above: C numerators per function, (F, C).
        below: C denominators per function, (F, C); in each resample both have the same functions.
        bootstrap: how intervals are drawn.

    Returns:
        Estimates and both ends of their intervals, each (C,); NaN where the denominator is 0. One function has no interval.
    """
    rng = np.random.default_rng(bootstrap.seed)
    functions = len(above)
    values = np.concatenate([above, below], axis=1)
    drawn = np.empty((bootstrap.resamples, values.shape[1]))
    for i in range(bootstrap.resamples):
        drawn[i] = np.bincount(rng.integers(0, functions, functions), minlength=functions) @ values
    estimate = _quotients(values.sum(axis=0, keepdims=True))[0]
    spread = np.where(np.isnan(estimate), 0, _quotients(drawn))
    low, high = np.nanpercentile(spread, (2.5, 97.5), axis=0)
    nothing = np.isnan(estimate) | (functions < 2)
    return estimate, np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)


def behaviour_changed(counts: Doubles) -> BoolArray:
    """Functions that do something else in the second half than in the first, (F, M) -> (F,).

    The rate: active minutes differ by a factor of 2 and by 3 standard deviations of a Poisson difference. The rhythm: the
    median gap between active minutes differs by a factor of 1.5, with 8 gaps or more in each half.
    """
    halves = counts[:, : counts.shape[1] // 2] > 0, counts[:, counts.shape[1] // 2 :] > 0
    n, m = (half.sum(axis=1) for half in halves)
    rate = (np.maximum(n, m) >= 2 * np.minimum(n, m)) & (np.abs(n - m) > 3 * np.sqrt(n + m))
    gaps = np.array([[_median_gap(row) for row in half] for half in halves]).reshape(2, -1)
    rhythm = gaps.max(axis=0) >= 1.5 * gaps.min(axis=0)  # a comparison with NaN is false
    return np.asarray(rate | rhythm)


def active_and_varying(counts: Doubles) -> BoolArray:
    """Functions active in at least ACTIVE_SHARE of the minutes in which no count is as common as that, (F, M) -> (F,).

    Where one count is, every quantile but the outermost covers it, so that raw coverage says nothing of the forecast.
    """
    active = (counts > 0).mean(axis=1) >= ACTIVE_SHARE
    commonest = np.array([np.unique(row, return_counts=True)[1].max() for row in counts]) / counts.shape[1]
    return np.asarray(active & (commonest < ACTIVE_SHARE))


_BEHAVIOUR_RULE = (
    "first half against second: active minutes differ by a factor of 2 and by 3 Poisson standard deviations, "
    "or the median gap by a factor of 1.5 (8 gaps or more in each half)"
)


def _median_gap(active: BoolArray) -> float:
    gaps = np.diff(np.flatnonzero(active))
    return float(np.median(gaps)) if len(gaps) >= 8 else np.nan


def _quotients(sums: Doubles) -> Doubles:
    above, below = np.split(sums, 2, axis=1)
    return np.asarray(above / np.where(below > 0, below, np.nan))


def _losses(tally: Tally, naive: Doubles) -> dict[str, Doubles]:
    """Losses per function whose sums compare models, by metric, (F,)."""
    windows = np.where(tally.windows > 0, tally.windows, np.nan)
    return {
        "scaled_quantile_loss": scaled_quantile_losses(tally, naive),
        "log_loss_next_step": log_losses_next_step(tally),
        "wql": tally.pinball / windows,
    }


def _models(replay: Replay, rows: BoolArray) -> dict[str, Tally]:
    """Every model's tally of some functions, the oracle among them."""
    taken = {name: tally.take(rows) for name, tally in replay.tallies.items()}
    experts = [taken[name] for name in taken if name.removesuffix(REFITTED) in replay.experts]
    ordered = {name: taken.pop(name) for name in (MESP, HARD, HARD + REFITTED) if name in taken}
    return ordered | taken | {ORACLE: best_in_hindsight(experts)}


def _table(replay: Replay, rows: BoolArray, naive: Doubles, bootstrap: Bootstrap) -> Table:
    """Every model's scores over some functions, with bootstrap intervals of those that are compared."""
    tallies = _models(replay, rows)
    table = {name: scores(tally, naive[rows]) for name, tally in tallies.items()}
    above, below = [], []
    for tally in tallies.values():
        losses = _losses(tally, naive[rows])
        volume = len(tally.levels) * tally.volume / (2 * np.where(tally.windows > 0, tally.windows, np.nan))
        for metric in COMPARED:
            known = np.isfinite(losses[metric])
            above.append(np.where(known, losses[metric], 0))
            below.append(np.where(known, volume if metric == "wql" else 1.0, 0))
    _, low, high = ratios(np.stack(above, axis=1), np.stack(below, axis=1), bootstrap)
    for score, lows, highs in zip(table.values(), low.reshape(-1, 3), high.reshape(-1, 3), strict=True):
        score["ci95"] = {metric: [float(lows[i]), float(highs[i])] for i, metric in enumerate(COMPARED)}
    return table


def _comparisons(replay: Replay, rows: BoolArray, naive: Doubles, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The mixture against every other model, the best single one first."""
    losses = {name: _losses(tally, naive[rows]) for name, tally in _models(replay, rows).items()}
    pairs = []
    for metric in COMPARED:
        means = {
            name: np.nanmean(losses[name][metric]) for name in replay.experts if np.isfinite(losses[name][metric]).any()
        }
        if means:
            pairs.append((BEST_SINGLE, min(means, key=lambda name: means[name]), metric))
    pairs += [(name, name, metric) for name in losses if name != MESP for metric in COMPARED]
    ours = np.stack([losses[MESP][metric] for _, _, metric in pairs], axis=1)
    theirs = np.stack([losses[name][metric] for _, name, metric in pairs], axis=1)
    return [
        {"model": MESP, "against": against, "metric": metric, "improvement_pct": improvement, "ci95": list(ci95)}
        | ({"expert": name} if against == BEST_SINGLE else {})
        for (against, name, metric), (improvement, ci95) in zip(
            pairs, improvements(ours, theirs, bootstrap), strict=True
        )
    ]


def _slices(trace: Trace, top: Replay) -> Iterator[tuple[str, BoolArray]]:
    """Groups of functions, ``slice`` or ``slice/part`` and their rows."""
    without = _without_timers(trace)
    if not without.all():
        yield "no_timers", without
    triggers = np.array(trace.triggers)
    for trigger in sorted(set(trace.triggers)):
        yield f"by_trigger/{trigger}", triggers == trigger
    quartile = rate_quartile(trace)
    for q in range(1, 5):
        yield f"by_rate_quartile/{q}", quartile == q
    for k in np.unique(top.cluster):
        yield f"by_cluster/{'none' if k < 0 else k}", top.cluster == k
    yield "behaviour_change", behaviour_changed(trace.counts.astype(np.float64))
    scored = trace.counts[:, top.first :].astype(np.float64)
    varying = active_and_varying(scored)
    if varying.any():
        yield "active_and_varying", varying


def rate_quartile(trace: Trace) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Each function's quartile by invocations in the whole trace, 1 (the rarest) to 4, (F,)."""
    rank = trace.counts.sum(axis=1, dtype=np.int64).argsort(kind="stable").argsort()
    return np.asarray(1 + 4 * rank // max(len(rank), 1))


def _without_timers(trace: Trace) -> BoolArray:
    return np.array([trigger != "timer" for trigger in trace.triggers])


def _floor_sensitivity(top: Replay, counts: Doubles, naive: Doubles) -> dict[str, Table]:
    """The scaled quantile loss with other floors, and scaled by the warm-up half alone, as models would know it."""
    history = naive_error(counts[:, : top.first])
    ways = {f"{floor:g}": (naive, floor) for floor in (NAIVE_FLOOR, *FLOORS)} | {"first_half": (history, NAIVE_FLOOR)}
    tallies = _models(top, np.ones(len(counts), np.bool_))
    return {
        way: {
            name: {"scaled_quantile_loss": scores(tally, scale, floor)["scaled_quantile_loss"]}
            for name, tally in tallies.items()
        }
        for way, (scale, floor) in ways.items()
    }


def _weights(trace: Trace, top: Replay) -> dict[str, Any]:
    """Mean weight of each expert over the scored minutes, of all functions and by rate quartile."""
    quartile = rate_quartile(trace)
    groups = {"all": quartile > 0} | {str(q): quartile == q for q in range(1, 5)}
    return {
        group: dict(zip(top.experts, top.weights[rows].mean(axis=0).tolist(), strict=True))
        for group, rows in groups.items()
        if rows.any()
    }


def _own_notes(top: Replay, naive: Doubles) -> Iterator[str]:
    if HARD not in top.tallies:
        yield "hard was not scored: the model has no selected expert per cluster."
    for name, tally in top.tallies.items():
        if (missing := int((top.tallies[MESP].steps - tally.steps).sum())) > 0:
            yield f"{name} gave no forecast in {missing} of the scored function-minutes; it is scored on the others."
    bound = scores(top.best_per_window, naive)
    yield (
        "The expert best on each single window and minute, in hindsight, has a scaled quantile loss of "
        f"{bound['scaled_quantile_loss']:.4f} and a next-minute log loss of {bound['log_loss_next_step']:.4f}."
    )
    yield f"Speed was measured for mesp, the experts and the baselines ({', '.join(BASELINES)}) alone."
