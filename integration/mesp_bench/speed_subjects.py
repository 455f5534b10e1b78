"""What `mesp bench forecast` times, each in a process of its own: ``python -m mesp_bench.speed_subjects JOB``.

A subject sets itself up and then hands out calls, one after the other; only the calls are timed. All of them see the
same fleet and the same past, `HISTORY` steps of it, and answer the same horizon. The process prints the median of its
timings and its own peak of memory as JSON; its imports and its data are in that peak.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mesp.types import DEFAULT_STEP_MS, FunctionKey, StepCounts
from mesp_predictor import shapes
from mesp_predictor.checkpoint import load_model
from mesp_predictor.experts.base import Context
from mesp_predictor.mixture import WINDOW, MixtureForecaster
from mesp_predictor.series import SeriesStore
from mesp_predictor.statistics import Statistics
from mesp_predictor.training import untrained_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mesp.types import FloatArray
    from mesp_predictor.model import Model

    Call = Callable[[], object]

#: Steps of the past that every forecaster has seen.
HISTORY = WINDOW


@dataclass(frozen=True, slots=True)
class Job:
    """One subject's measurement.

    Attributes:
        what: the subject: `mixture`, `observe`, `naive_loop`, `auto_ets`, `chronos_bolt_tiny` or an expert's name.
        counts: file of the fleet's counts (functions, steps), as numpy saves them, at least HISTORY + repeats + 1 steps.
        functions: how many of the fleet are forecast, evenly chosen.
        repeats: timed calls, after one that warms up.
        model: the model directory.
    """

    what: str
    counts: str
    functions: int
    repeats: int
    model: str

    def text(self) -> str:
        """The job as the process's argument."""
        return json.dumps(asdict(self))


def measure(job: Job) -> dict[str, float]:
    """Seconds (median of the repeats after a warm-up) and peak memory of this process in MB."""
    fleet = np.load(job.counts, mmap_mode="r")
    chosen = np.linspace(0, len(fleet) - 1, job.functions).round().astype(np.int64)
    counts = np.asarray(fleet[chosen, -(HISTORY + job.repeats + 1) :], np.float32)
    calls = _calls(job, counts)
    next(calls)()
    seconds = []
    for _ in range(job.repeats):
        call = next(calls)
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    """Most memory that this process ever held, in MB.

    The kernel's `ru_maxrss` begins with that of the process that started this one, so where /proc tells, it tells.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _calls(job: Job, counts: FloatArray) -> Iterator[Call]:
    past = counts[:, :HISTORY]
    match job.what:
        case "auto_ets":
            return _auto_ets(past)
        case "chronos_bolt_tiny":
            return _chronos_bolt_tiny(past)
        case "naive_loop":
            return _naive_loop(past)
        case "mixture" | "observe":
            return _sidecar(load_model(Path(job.model)), counts, tick=job.what == "mixture")
        case name:
            return _expert(load_model(Path(job.model)), name, past)


def _expert(model: Model, name: str, past: FloatArray) -> Iterator[Call]:
    """One expert of the model asked for every function in one batch."""
    expert = next(expert for expert in model.experts if expert.name == name)
    context = _context(past, model)
    while True:
        yield lambda: expert.predict(context, model.default_horizon, model.levels)


def _naive_loop(past: FloatArray) -> Iterator[Call]:
    """The closed-form light experts, function by function in a Python loop: what batches save."""
    model = untrained_model()
    context = _context(past, model)
    rows = [np.array([row]) for row in range(len(past))]

    def loop() -> None:
        for row in rows:
            one = Context(context.step, context.counts[row], context.statistics.take(row), context.cluster[row])
            for expert in model.experts:
                expert.predict(one, model.default_horizon, model.levels)

    while True:
        yield loop


def _sidecar(model: Model, counts: FloatArray, *, tick: bool) -> Iterator[Call]:
    """A step that closes, as the sidecar lives it: its report taken in, then the tick that learns and forecasts."""
    store = SeriesStore(model.step_ms, max(model.context_length, HISTORY), len(counts))
    forecaster = MixtureForecaster(model)
    keys = [FunctionKey("bench", f"f{row}") for row in range(len(counts))]
    for at, column in enumerate(counts.T):
        active = np.flatnonzero(column)
        listed = {keys[row]: int(column[row]) for row in (active if at else range(len(counts)))}
        report = StepCounts("bench", at * DEFAULT_STEP_MS, DEFAULT_STEP_MS, listed)
        if at < HISTORY:
            store.report(report)
        elif tick:
            if at == HISTORY:
                forecaster.advance(store)
            store.report(report)
            yield lambda: forecaster.advance(store)
        else:
            yield lambda report=report: store.report(report)  # type: ignore[misc]


def _auto_ets(past: FloatArray) -> Iterator[Call]:
    """AutoETS of statsforecast without a season, its fastest form, fitted to every series as it is meant to be."""
    from statsforecast.models import AutoETS  # noqa: PLC0415

    horizon = untrained_model().default_horizon

    def fit_and_forecast() -> None:
        for row in past:
            AutoETS(season_length=1).forecast(row.astype(np.float64), horizon)

    while True:
        yield fit_and_forecast


def _chronos_bolt_tiny(past: FloatArray) -> Iterator[Call]:
    """The architecture of amazon/chronos-bolt-tiny on the same steps that our own networks see."""
    from mesp_predictor.bolt_tiny import BoltTiny  # noqa: PLC0415

    network = BoltTiny()
    while True:
        yield lambda: network.quantiles(past)


def _context(past: FloatArray, model: Model) -> Context:
    """What experts read after these steps, (F, HISTORY): statistics, counts, and the nearest cluster."""
    running = Statistics.empty(len(past))
    for column in past.T:
        running.update(np.ascontiguousarray(column))
    day = np.pad(past, ((0, 0), (model.context_length, 0)))[:, -model.context_length :]
    series, _ = shapes.bin_days(day, model.bin_steps, model.context_length)
    labels, _ = shapes.assign(series, model.centroids)
    return Context(running.step, past, running, labels)


def main(arguments: list[str]) -> int:
    """Measures one job; prints the figures, or ``{"missing": PACKAGE}``."""
    job = Job(**json.loads(arguments[0]))
    answer: dict[str, Any]
    try:
        answer = measure(job)
    except ModuleNotFoundError as error:
        answer = {"missing": (error.name or str(error)).partition(".")[0]}
    print(json.dumps(answer))  # noqa: T201  # the answer to the process that started this one
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
