"""Training: a trace's counts in; clusters, experts, and the router that mixes them, out.

Functions are split once: experts learn from one part, the router from how the finished experts do on the other,
which none of them has seen. In order: K-Shape over function-days; the hazard's prior curves per cluster; the neural
hazard and PatchTST on all of the experts' part; a replay of the router's part, step by step as when serving, that
records what the gate would have read and what then happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, DEFAULT_STEP_MS
from mesp_predictor import router as routing
from mesp_predictor import shapes
from mesp_predictor.experts.base import Context, Expert, IntArray
from mesp_predictor.experts.light import HazardExpert, IntermittentExpert, SeasonalExpert, fit_hazard
from mesp_predictor.experts.neural_hazard import draw_samples, fit_neural_hazard
from mesp_predictor.experts.patchtst import PatchTSTConfig, train_patchtst
from mesp_predictor.kernels import LONGEST_GAP
from mesp_predictor.mixture import CLUSTER_EVERY, WINDOW, Model, ask, binned, look_up
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FloatArray

    Progress = Callable[[str, float], None]

#: Steps ahead (from 0) at which the gate is judged.
JUDGED_STEPS = (0, 1, 4, 14)
#: A series' scale never falls below this many invocations a step.
SCALE_FLOOR = 0.01


class TrainingConfig(BaseModel):
    """How a model is trained; the defaults are those of the shipped command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0)
    clusters: int = Field(8, ge=2, le=64, description="Clusters of similar functions; fewer where shapes are fewer.")
    kshape: Literal["auto", "tslearn", "batched"] = Field("auto", description="Engine of K-Shape; see `shapes.kshape`.")
    bin_steps: int = Field(10, ge=1, description="Steps in one bin of a shape.")
    day_steps: int = Field(1440, ge=60, description="Steps in one day, the unit of clustering.")
    default_horizon: int = Field(15, ge=1, le=60)
    max_horizon: int = Field(60, ge=15, le=240)
    samples: int = Field(2_000_000, ge=1_000, description="Samples for the neural hazard, at most.")
    epochs: int = Field(6, ge=1)
    patchtst: PatchTSTConfig = PatchTSTConfig()
    router_share: float = Field(0.25, gt=0, lt=1, description="Share of functions kept for the router.")
    router_functions: int = Field(300, ge=1, description="Functions replayed for the router, at most.")
    router_every: int = Field(5, ge=1, description="Steps between two of the router's samples.")
    router_epochs: int = Field(12, ge=1)

    @model_validator(mode="after")
    def _horizons_fit(self) -> TrainingConfig:
        if not self.default_horizon <= self.max_horizon <= self.patchtst.max_horizon:
            raise ValueError(
                f"max_horizon = {self.max_horizon} must be at least default_horizon = {self.default_horizon} "
                f"and at most patchtst.max_horizon = {self.patchtst.max_horizon}"
            )
        return self


#: A model in about a minute on two cores, for the demo and a first look.
QUICK = TrainingConfig(
    kshape="batched",  # tslearn compiles its loops anew in every process
    samples=400_000,
    epochs=4,
    patchtst=PatchTSTConfig(training_steps=300),
    router_functions=80,
    router_every=4,
)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and how its parts did on the router's functions (next step, second half of the replay).

    Attributes:
        log_loss: of activity in the next step, by expert and for the `mixture`, whose gate has learned from these very
            samples: its number flatters.
        cluster_sizes: function-days in each cluster.
        routed_away: function-days without a shape, by reason.
    """

    model: Model
    log_loss: dict[str, float]
    cluster_sizes: tuple[int, ...]
    routed_away: dict[str, int]


def train(counts: FloatArray, start_step: int, config: TrainingConfig, progress: Progress) -> Trained:
    """Trains a model.

    Args:
        counts: invocations per step, (N, M), NaN where missing; at least one day and 16 functions.
        start_step: absolute index of the first column's step, for the clock's phase.
        config: sizes, budgets and the seed.
        progress: told the stage and its share done.

    Raises:
        InputError: too few functions or steps.
    """
    if len(counts) < 16 or counts.shape[1] < config.day_steps:
        raise InputError(
            f"the training trace has {len(counts)} functions and {counts.shape[1]} steps, "
            f"needed are at least 16 functions and {config.day_steps} steps"
        )
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(counts))
    held = order[: max(4, min(int(config.router_share * len(counts)), config.router_functions))]
    taught = np.setdiff1d(order, held)

    progress("clusters", 0)
    clusters, labels, routed_away = _cluster(counts[taught], config)
    hazard = fit_hazard(counts[taught], labels, clusters.k)
    samples = draw_samples(counts[taught], start_step, config.max_horizon, config.seed, config.samples)
    neural = fit_neural_hazard(samples, config.seed, config.epochs, lambda share: progress("neural_hazard", share))
    del samples
    patchtst = train_patchtst(
        np.nan_to_num(counts[taught]), config.patchtst, config.seed, lambda share, _message: progress("patchtst", share)
    )
    experts: tuple[Expert, ...] = (SeasonalExpert(), IntermittentExpert(), hazard, neural, patchtst)
    replayed = _replay(experts, clusters.centroids, counts[held], start_step, config, progress)
    gate = routing.fit_gate(
        replayed, clusters.k, DEFAULT_LEVELS, config.seed, config.router_epochs, lambda share: progress("router", share)
    )
    model = Model(
        version="unsaved",
        step_ms=DEFAULT_STEP_MS,
        default_horizon=config.default_horizon,
        max_horizon=config.max_horizon,
        levels=DEFAULT_LEVELS,
        experts=experts,
        router=routing.Router(gate),
        centroids=clusters.centroids,
        bin_steps=config.bin_steps,
    )
    sizes = tuple(np.bincount(clusters.labels, minlength=clusters.k).tolist())
    return Trained(model, _log_losses(experts, gate, replayed), sizes, routed_away)


def untrained_model() -> Model:
    """A model that knows nothing yet: light experts with a flat prior, weighed by Hedge."""
    bins = 144
    flat = np.full((2, LONGEST_GAP + 1), 0.02, np.float32)
    return Model(
        version="untrained",
        step_ms=DEFAULT_STEP_MS,
        default_horizon=15,
        max_horizon=60,
        levels=DEFAULT_LEVELS,
        experts=(SeasonalExpert(), IntermittentExpert(), HazardExpert(flat, strength=0.5)),
        router=routing.Router(),
        centroids=np.zeros((1, bins), np.float32),
        bin_steps=10,
    )


def _cluster(counts: FloatArray, config: TrainingConfig) -> tuple[shapes.Clusters, IntArray, dict[str, int]]:
    """K-Shape over function-days; a function's label is its last shaped day's, -1 where no day has a shape."""
    series, function = shapes.bin_days(np.nan_to_num(counts), config.bin_steps, config.day_steps)
    kinds = shapes.route_away(series, function)
    shaped = kinds == shapes.Kind.SHAPED.value
    if shaped.sum() < 2:
        raise InputError(
            f"only {int(shaped.sum())} function-days of the training trace have a shape, needed are at least 2"
        )
    clusters = shapes.kshape(series[shaped], min(config.clusters, int(shaped.sum())), config.seed, engine=config.kshape)
    labels = np.full(len(counts), -1, np.int64)
    labels[function[shaped]] = clusters.labels
    away = {kind.value: int((kinds == kind.value).sum()) for kind in shapes.Kind if kind is not shapes.Kind.SHAPED}
    return clusters, labels, away


def _replay(
    experts: tuple[Expert, ...],
    centroids: FloatArray,
    counts: FloatArray,
    start_step: int,
    config: TrainingConfig,
    progress: Progress,
) -> routing.GateSamples:
    """What the gate would have read at every `router_every`-th step, and what then happened."""
    functions, steps = counts.shape
    statistics = Statistics.empty(functions, start_step)
    losses = routing.new_losses(functions, len(experts))
    cluster, distances = np.full(functions, -1), np.ones((functions, len(centroids)), np.float32)
    padded = np.pad(counts, ((0, 0), (max(WINDOW, config.day_steps), 0)))
    offset = padded.shape[1] - steps
    ahead = np.array([h for h in JUDGED_STEPS if h < config.default_horizon])
    inputs, forecasts, quantiles, happened = [], [], [], []
    for t in range(steps):
        if t % CLUSTER_EVERY == 0 and t:
            window = padded[:, t + offset - config.day_steps : t + offset]
            cluster, distances = look_up(binned(np.nan_to_num(window), config.bin_steps), centroids)
        sampled = t % config.router_every == 0
        context = Context(
            start_step + t, np.nan_to_num(padded[:, t + offset - WINDOW : t + offset]), statistics, cluster
        )
        predictions = ask(experts, context, config.default_horizon if sampled else 1, DEFAULT_LEVELS)
        forecast = np.stack([p.active[:, 0] for p in predictions], axis=1)
        if sampled and t + ahead[-1] < steps:
            inputs.append(routing.gate_inputs(statistics.features(1)[:, 0], forecast, losses, distances))
            forecasts.append(np.stack([p.active[:, ahead] for p in predictions], axis=1))
            quantiles.append(np.stack([p.quantiles[:, ahead] for p in predictions], axis=1))
            happened.append(counts[:, t + ahead])
        routing.score(losses, forecast, counts[:, t] > 0, ~np.isnan(counts[:, t]) & (statistics.gap > 0))
        statistics.update(counts[:, t])
        if t % 10 == 0:
            progress("router replay", t / steps)
    scale = np.maximum(np.nan_to_num(np.nanmean(np.abs(np.diff(counts, axis=1)), axis=1)), SCALE_FLOOR)
    return routing.GateSamples(
        np.concatenate(inputs),
        np.concatenate(forecasts),
        np.concatenate(quantiles),
        np.concatenate(happened),
        np.tile(scale, len(inputs)).astype(np.float32),
        np.tile(np.arange(functions), len(inputs)),
    )


def _log_losses(experts: tuple[Expert, ...], gate: routing.Gate, samples: routing.GateSamples) -> dict[str, float]:
    """Next-step log loss by expert and of the mixture, over the second half of the replay."""
    half = slice(len(samples.inputs) // 2, None)
    count = samples.counts[half, 0]
    known = ~np.isnan(count)
    active = count[known] > 0
    odds = routing.logit(samples.forecast[half, :, 0])[known]
    weights = routing.gate_weights(gate, samples.inputs[half][known])
    columns = {expert.name: odds[:, i] for i, expert in enumerate(experts)}
    columns["mixture"] = (odds * weights).sum(axis=1)
    return {
        name: float(np.where(active, np.logaddexp(0, -o), np.logaddexp(0, o)).mean()) for name, o in columns.items()
    }
