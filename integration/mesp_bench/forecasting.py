"""Forecasts of a whole trace, minute by minute, by the very code that serves: what the sidecar would have said.

The counts of minute m-1 are reported to a series store, the mixture learns them, and its forecast of the next minutes
is kept. Nothing of minute m is known when minute m is forecast. Models and forecasts are cached by what they follow
from: the data's checksum, the configuration and the code.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import mesp_predictor
from mesp.types import DEFAULT_STEP_MS, StepCounts
from mesp_predictor.checkpoint import save_model
from mesp_predictor.mixture import MixtureForecaster
from mesp_predictor.series import SeriesStore
from mesp_predictor.threads import torch_threads
from mesp_predictor.training import TrainingConfig, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FloatArray
    from mesp_bench.traces.model import Trace
    from mesp_predictor.model import Model

#: Steps ahead that are kept: the next minute, and the one after for what must be ordered early.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class TraceForecast:
    """What was forecast for every minute of a trace.

    ``active[h]`` and ``quantiles[h]`` at column m were said h+1 minutes before minute m ended, from the counts of minutes
    up to m-1-h; columns that nobody forecast are 0.

    Attributes:
        active: probability of at least one invocation, (AHEAD, F, M).
        quantiles: invocations, (AHEAD, F, M, L).
        levels: (L,).
    """

    active: FloatArray
    quantiles: FloatArray
    levels: tuple[float, ...]


def forecast_trace(model: Model, trace: Trace, progress: Callable[[float], None], *, learn: bool) -> TraceForecast:
    """Replays a trace through the mixture.

    Args:
        model: the trained model.
        trace: F functions over M minutes.
        progress: told the share done.
        learn: whether the mixture goes on learning from what it sees, as it does when serving.
    """
    functions, minutes = trace.counts.shape
    store = SeriesStore(DEFAULT_STEP_MS, model.context_length, max(functions, 1))
    forecaster = MixtureForecaster(model, learn=learn)
    active = np.zeros((AHEAD, functions, minutes), np.float32)
    quantiles = np.zeros((AHEAD, functions, minutes, len(model.levels)), np.float32)
    triggers = dict(zip(trace.functions, trace.invoked_by, strict=True))
    for m in range(1, minutes):
        column, started_ms = trace.counts[:, m - 1], (trace.start_minute + m - 1) * DEFAULT_STEP_MS
        counts = {trace.functions[f]: int(column[f]) for f in np.flatnonzero(column)}
        store.report(StepCounts("trace", started_ms, DEFAULT_STEP_MS, counts, triggers=triggers))
        forecaster.advance(store)
        rows = store.rows_of(trace.functions)
        known = rows >= 0  # nobody asks for a function that was never seen
        mixed = forecaster.forecast(rows[known], AHEAD, model.levels)
        for h in range(min(AHEAD, minutes - m)):
            active[h, known, m + h] = mixed.active[:, h]
            quantiles[h, known, m + h] = mixed.quantiles[:, h]
        progress(m / minutes)
    return TraceForecast(active, quantiles, model.levels)


def without_functions_of(fleet: Trace, scored: Trace) -> tuple[Trace, int]:
    """The fleet without functions whose series, as a whole, is one of the scored trace's; and how many those were."""
    seen = {row.tobytes() for row in scored.counts}
    kept = np.array([row.tobytes() not in seen for row in fleet.counts])
    return (fleet if kept.all() else fleet.select(kept)), int((~kept).sum())


def trained_model(trace: Trace, config: TrainingConfig, progress: Callable[[str, float], None]) -> Path:
    """Directory of the model trained on a trace; it is trained if the cache does not hold it."""
    directory = cache_dir() / f"model-{_key(trace.checksum, str(len(trace.functions)), config.model_dump_json())}"
    if not (directory / "manifest.json").is_file():
        result = train(
            trace.counts.astype(np.float32),
            trace.start_minute,
            config,
            progress,
            keys=trace.functions,
            triggers=trace.invoked_by,
        )
        functions, steps = trace.counts.shape
        data = {"name": trace.name, "checksum": trace.checksum, "functions": functions, "steps": steps}
        about = {"data": data, "config": config.resolved(), "next_step_log_loss": result.log_loss}
        save_model(result.model, directory, about)
    return directory


def cached_forecast(model: Model, trace: Trace, progress: Callable[[float], None], *, learn: bool) -> TraceForecast:
    """`forecast_trace`, from the cache when it was made before."""
    path = cache_dir() / f"forecast-{_key(trace.checksum, str(len(trace.functions)), model.version, str(learn))}.npz"
    if path.is_file():
        with np.load(path) as kept:
            return TraceForecast(kept["active"], kept["quantiles"], tuple(kept["levels"].tolist()))
    with torch_threads(1):
        forecast = forecast_trace(model, trace, progress, learn=learn)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez(file, active=forecast.active, quantiles=forecast.quantiles, levels=np.array(forecast.levels))
    Path(file.name).replace(path)
    return forecast


def cache_dir() -> Path:
    """Where trained models and forecasts are kept: ``$MESP_CACHE``, else ``mesp`` in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesp"
    directory = Path(os.environ.get("MESP_CACHE") or default)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _key(*parts: str) -> str:
    """Digest of what a result follows from, the predictor's own source included."""
    digest = hashlib.sha256()
    for source in sorted(Path(mesp_predictor.__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]
