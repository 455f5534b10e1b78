"""A trace replayed minute by minute through the code that serves, and everything that forecast it scored on the way.

At the end of each minute its counts are reported, the mixture learns them, and what it and all of its experts say of
the coming minutes is held against what then came. Beside the mixture as it serves (`mesp`) stand other ways to use the
same experts: the best one of the function's cluster (`hard`), Hedge, and even weights; and plain baselines. A single model is
an expert as it was trained, and the hard assignment picks among these; where MESP refitted experts on the way, what became of
them stands beside it (`gbm_refitted`, `hard_refitted`). Hedge and even weights mix the refitted ones.

Every function is known from the trace's start, with zeros before its first invocation, so that each minute of each
function is forecast by every model. Nothing is held but sums: see `Tally`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mesp.types import DEFAULT_STEP_MS, StepCounts
from mesp_bench.forecast_baselines import moving_average, seasonal_naive
from mesp_bench.forecast_scores import Tally, answered, step_log_loss, window_pinball
from mesp_predictor import router as routing
from mesp_predictor.experts.base import Context, Prediction, Refittable
from mesp_predictor.mixture import WINDOW, MixtureForecaster
from mesp_predictor.series import SeriesStore
from mesp_predictor.statistics import Statistics
from mesp_predictor.threads import torch_threads
from mesp_predictor.training import untrained_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mesp.types import BoolArray, FloatArray
    from mesp_bench.forecast_scores import Doubles, Rows
    from mesp_bench.traces.model import Trace
    from mesp_predictor.mixture import Asked
    from mesp_predictor.model import Model

#: Minutes between two origins of a whole window; the next minute is scored at every one.
WINDOW_EVERY = 5
#: Runs of which a speed is the median.
TIMED_RUNS = 3

REFITTED = "_refitted"
MESP, HARD, HEDGE, UNIFORM = "mesp", "hard", "hedge", "uniform"
BASELINES = {"moving_average": moving_average, "seasonal_naive": seasonal_naive}


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay left.

    Attributes:
        tallies: by model: mesp, hard (where the model has selected experts; as trained, and of refitted experts), hedge,
            uniform, every expert as it was trained, those that were refitted, baselines.
        best_per_window: the expert that did best on each single window and minute, in hindsight.
        experts: names of the experts.
        weights: mean weight of each expert on each function over the scored minutes, (F, E).
        cluster: index of each function's cluster at the last minute, -1 for none, (F,).
        first: first scored minute.
        levels: quantile levels, L.
        horizon: minutes in a window.
    """

    tallies: Mapping[str, Tally]
    best_per_window: Tally
    experts: tuple[str, ...]
    weights: FloatArray
    cluster: Rows
    first: int
    levels: tuple[float, ...]
    horizon: int


def replay_tables(
    model: Model | None, trace: Trace, seed: int, progress: Callable[[str, float], None]
) -> dict[str, Replay]:
    """The replays of a trace by table, the top level's first: online, never seen, from zero; the last alone without model."""
    tables = {} if model is None else {"online": (model, True), "never_seen": (model, False)}
    replays = {}
    with torch_threads(1):
        for table, (answering, learn) in {**tables, "from_zero": (untrained_model(), True)}.items():

            def told(share: float, table: str = table) -> None:
                progress(f"forecasts, {table}", share)

            replays[table] = replay(answering, trace, told, learn=learn, seed=seed)
    return replays


def replay(model: Model, trace: Trace, progress: Callable[[float], None], *, learn: bool, seed: int = 0) -> Replay:
    """Scores all forecasts of the trace's second half; the first half warms up.

    Args:
        model: its default horizon and levels are scored.
        trace: F functions over M minutes.
        progress: told the share done.
        learn: whether the mixture goes on learning from what it sees, as it does when serving.
        seed: of the randomised PIT.
    """
    functions, minutes = trace.counts.shape
    counts = trace.counts.astype(np.float64)
    first, horizon, levels = minutes // 2, model.default_horizon, model.levels
    store = SeriesStore(DEFAULT_STEP_MS, model.context_length, max(functions, 1))
    forecaster = MixtureForecaster(model, learn=learn)
    tallies: dict[str, Tally] = {}
    best = Tally.empty(functions, levels, horizon)
    weights = np.zeros((functions, len(model.experts)), np.float32)
    cluster = np.full(functions, -1)
    triggers = dict(zip(trace.functions, trace.invoked_by, strict=True))
    for m in range(1, minutes):
        column = zip(trace.functions, trace.counts[:, m - 1].tolist(), strict=True)
        started_ms = (trace.start_minute + m - 1) * DEFAULT_STEP_MS
        store.report(StepCounts("trace", started_ms, DEFAULT_STEP_MS, dict(column), triggers=triggers))
        forecaster.advance(store)
        asked = forecaster.asked
        if m >= first and asked is not None:
            whole = (m - first) % WINDOW_EVERY == 0 and m + horizon <= minutes
            rows, ahead = store.rows_of(trace.functions), horizon if whole else 1
            serving = _experts(forecaster.experts, asked, rows, ahead)
            mixed = forecaster.forecast(rows, horizon, levels)
            said = {MESP: _ahead(Prediction(mixed.quantiles, mixed.active), ahead)}
            trained = _trained(model, asked, rows, ahead) if learn else {}
            said |= hard(serving, trained, model, asked.cluster[rows])
            said |= combinations(serving, asked, rows, levels) | serving | trained
            said |= {name + REFITTED: serving[name] for name in trained}
            said |= {name: forecast(counts[:, :m], ahead, levels) for name, forecast in BASELINES.items()}
            actual, seen = counts[:, m : m + ahead], counts[:, :m].max(axis=1) > 0
            for name, forecast in said.items():
                tally = tallies.setdefault(name, Tally.empty(functions, levels, horizon))
                _add(tally, actual, seen, forecast, np.random.default_rng([seed, m]), whole=whole)
            _add_best(best, actual, seen, tuple(serving.values()), whole=whole)
            weights += mixed.weights / (minutes - first)
            cluster = asked.cluster[rows]
        progress(m / minutes)
    return Replay(tallies, best, forecaster.experts, weights, cluster, first, levels, horizon)


def hard(
    serving: Mapping[str, Prediction], trained: Mapping[str, Prediction], model: Model, cluster: Rows
) -> dict[str, Prediction]:
    """The forecast by the expert selected for each function's cluster: among experts as trained, and as they serve.

    Args:
        serving: each expert's forecast, in the order of the mixture's weights.
        trained: of experts that were refitted since, what they would have said.
        model: nothing comes back where it has no selected experts.
        cluster: of each function, -1 for none, (F,).
    """
    if not model.selected:
        return {}
    chosen = np.asarray(model.selected)[cluster]  # the last entry is that of functions without a cluster, which is -1
    ways = {HARD: {**serving, **trained}} | ({HARD + REFITTED: serving} if trained else {})
    return {name: _picked(tuple(said.values()), chosen) for name, said in ways.items()}


def combinations(
    experts: Mapping[str, Prediction], asked: Asked, rows: Rows, levels: tuple[float, ...]
) -> dict[str, Prediction]:
    """Other ways to mix the experts' forecasts: Hedge and uniform; F functions.

    Args:
        experts: each expert's forecast, in the order of the mixture's weights.
        asked: what the mixture last went by.
        rows: the functions' rows in it, (F,).
        levels: L.
    """
    predictions = tuple(experts.values())
    usable = np.stack([answered(prediction) for prediction in predictions], axis=1)
    even = np.full(usable.shape, 1 / usable.shape[1], np.float32)
    weights = {HEDGE: routing.hedge(asked.losses[rows]), UNIFORM: routing.Weights(even, even)}
    return {name: _combine(weight, usable, predictions, levels) for name, weight in weights.items()}


def series_per_s(model: Model | None, trace: Trace) -> dict[str, float]:
    """Functions forecast per second, each model asked alone for the whole fleet at the trace's end, horizon and levels as served.

    `mesp` is the mixture whole: statistics read, all experts, router. It is asked for a minute more than the horizon,
    which it has no answer ready for. No model: the untrained one.
    """
    model = model or untrained_model()
    functions, minutes = trace.counts.shape
    counts = trace.counts.astype(np.float32)
    learned = Statistics.empty(functions, trace.start_minute, trace.functions, trace.invoked_by)
    store = SeriesStore(DEFAULT_STEP_MS, model.context_length, max(functions, 1))
    for m, column in enumerate(counts.T):
        learned.update(column)
        report = dict(zip(trace.functions, trace.counts[:, m].tolist(), strict=True))
        store.report(StepCounts("trace", (trace.start_minute + m) * DEFAULT_STEP_MS, DEFAULT_STEP_MS, report))
    forecaster = MixtureForecaster(model, learn=False)
    forecaster.advance(store)
    window = np.pad(counts[:, -WINDOW:], ((0, 0), (max(WINDOW - minutes, 0), 0)))
    rows = store.rows_of(trace.functions)
    cluster = np.full(functions, -1) if forecaster.asked is None else forecaster.asked.cluster[rows]
    context = Context(trace.start_minute + minutes, window, learned, cluster)
    runs: dict[str, Callable[[], object]] = {
        expert.name: lambda expert=expert: expert.predict(context, model.default_horizon, model.levels)  # type: ignore[misc]
        for expert in model.experts
    }
    runs[MESP] = lambda: forecaster.forecast(rows, model.default_horizon + 1, model.levels)
    for name, baseline in BASELINES.items():
        runs[name] = lambda baseline=baseline: baseline(  # type: ignore[misc]
            counts.astype(np.float64), model.default_horizon, model.levels
        )
    with torch_threads(1):
        return {
            name: functions / statistics.median(_seconds(run) for _ in range(TIMED_RUNS)) for name, run in runs.items()
        }


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return max(time.perf_counter() - started, 1e-9)


def _add(
    tally: Tally, actual: Doubles, seen: BoolArray, forecast: Prediction, rng: np.random.Generator, *, whole: bool
) -> None:
    tally.add_step(actual[:, 0], seen, forecast, rng)
    if whole:
        tally.add_window(actual, forecast)


def _experts(names: Sequence[str], asked: Asked, rows: Rows, ahead: int) -> dict[str, Prediction]:
    taken = (Prediction(p.quantiles[rows], p.active[rows]) for p in asked.predictions)
    return {name: _ahead(prediction, ahead) for name, prediction in zip(names, taken, strict=True)}


def _trained(model: Model, asked: Asked, rows: Rows, ahead: int) -> dict[str, Prediction]:
    """What the refittable experts would say had they stayed as they were trained."""
    said = {}
    for expert in model.experts:
        if isinstance(expert, Refittable):
            prediction = expert.predict(asked.context, ahead, model.levels)
            said[expert.name] = Prediction(prediction.quantiles[rows], prediction.active[rows])
    return said


def _ahead(prediction: Prediction, steps: int) -> Prediction:
    return Prediction(prediction.quantiles[:, :steps], prediction.active[:, :steps])


def _combine(
    weights: routing.Weights, usable: BoolArray, predictions: Sequence[Prediction], levels: tuple[float, ...]
) -> Prediction:
    """The weighted forecast of those experts that answered; NaN where none did."""
    tamed = [Prediction(np.nan_to_num(p.quantiles), np.nan_to_num(p.active)) for p in predictions]
    combined = routing.combine(weights.among(usable), tamed, levels)
    combined.active[~usable.any(axis=1)] = np.nan
    return combined


def _picked(predictions: Sequence[Prediction], expert: Rows) -> Prediction:
    """Each function's forecast by the expert of that index, (F,)."""
    rows = np.arange(len(expert))
    return Prediction(
        np.stack([p.quantiles for p in predictions])[expert, rows],
        np.stack([p.active for p in predictions])[expert, rows],
    )


def _add_best(best: Tally, actual: Doubles, seen: BoolArray, predictions: Sequence[Prediction], *, whole: bool) -> None:
    """Each function scored by the expert that comes closest: in the next minute's activity, and over the window."""
    step = _least([step_log_loss(actual[:, 0], p.active[:, 0]) for p in predictions])
    best.add_step(actual[:, 0], seen, _picked(predictions, step), np.random.default_rng(0))
    if whole:
        window = _least([window_pinball(actual, p.quantiles, best.levels) for p in predictions])
        best.add_window(actual, _picked(predictions, window))


def _least(losses: Sequence[Doubles]) -> Rows:
    return np.asarray(np.nan_to_num(np.stack(losses), nan=np.inf).argmin(axis=0))
