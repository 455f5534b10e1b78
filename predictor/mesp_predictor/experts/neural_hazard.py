"""The neural hazard: a small network over the running statistics, one answer for every step ahead.

For a target step h it reads what the statistics say of that step (gap, phase, clock, lags, recent activity) and gives
the probability of activity and, given activity, quantiles of the count. Trained by sampling (function, step, h)
from a replay of the training trace: log loss of activity plus quantile loss of log(1 + count) where active.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mesp_predictor.experts.base import Context, Prediction, hurdle_quantiles
from mesp_predictor.statistics import FEATURES, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FloatArray

#: Levels of the count given activity that the network gives.
GRID = np.array([0.0, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 1.0], np.float32)
_TRAINED = np.clip(GRID, 0.005, 0.995)  # the ends of the grid are trained as near ends: extremes have no quantile loss
_POSITIVE_MEAN = FEATURES.index("log_positive_mean")
_BATCH = 65_536  # rows a forward pass


class Network(nn.Module):
    """Features (N, D) to activity logits (N,) and quantiles of log(1 + count) given activity (N, len(GRID))."""

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("spread", torch.ones(len(FEATURES)))
        self.body = nn.Sequential(
            nn.Linear(len(FEATURES), width), nn.SiLU(), nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, 1 + len(GRID))
        )

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One answer per row."""
        out = self.body(((features - self.mean) / self.spread).clamp(-6, 6))
        rise = torch.cumsum(functional.softplus(out[:, 2:] - 2), dim=1)
        lowest = features[:, _POSITIVE_MEAN] + out[:, 1] - functional.softplus(torch.tensor(0.0))
        return out[:, 0], torch.cat([lowest[:, None], lowest[:, None] + rise], dim=1)


@dataclass(frozen=True, slots=True)
class NeuralHazardExpert:
    """The trained network behind the experts' face."""

    network: Network
    name = "neural_hazard"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        features = context.statistics.features(horizon)
        rows = features.reshape(-1, len(FEATURES))
        logits, log_counts = [], []
        with torch.inference_mode():
            for start in range(0, len(rows) or 1, _BATCH):  # no rows are one empty batch
                logit, log_count = self.network(torch.from_numpy(rows[start : start + _BATCH]))
                logits.append(torch.sigmoid(logit).numpy())
                log_counts.append(log_count.numpy())
        active = np.concatenate(logits).reshape(features.shape[:2])
        positive = np.maximum(np.expm1(np.minimum(np.concatenate(log_counts), 20)), 1)
        quantiles = hurdle_quantiles(active.reshape(-1, 1), positive, GRID, levels)
        return Prediction(quantiles.reshape(*active.shape, len(levels)), active)


@dataclass(frozen=True, slots=True)
class Samples:
    """Training samples: features (N, D), counts of the target step (N,), weights (N,)."""

    features: FloatArray
    counts: FloatArray
    weights: FloatArray


def draw_samples(counts: FloatArray, start_step: int, max_horizon: int, seed: int, limit: int = 2_000_000) -> Samples:
    """Replays a training set and samples what was known of later steps.

    Two thirds of the weight are on the next step, the rest on steps up to 15 and up to `max_horizon` ahead.

    Args:
        counts: invocations per step, (N, M), NaN where missing.
        start_step: absolute index of the first column's step.
        max_horizon: farthest step ahead that is sampled.
        seed: of the sampling.
        limit: samples at most, in expectation.
    """
    rng = np.random.default_rng(seed)
    functions, steps = counts.shape
    statistics = Statistics.empty(functions, start_step)
    share = min(1.0, 0.5 * limit / (functions * steps))
    features, targets, weights = [], [], []
    for t in range(steps):
        for horizon, kept in ((1, share), (min(15, max_horizon), share / 25), (max_horizon, share / 200)):
            rows = np.flatnonzero(rng.random(functions) < kept)
            rows = rows[statistics.age[rows] >= 0]
            ahead = min(horizon, steps - t)
            if len(rows):
                target = counts[rows, t : t + ahead]
                known = ~np.isnan(target)
                features.append(statistics.take(rows).features(ahead)[known])
                targets.append(target[known])
                weights.append(np.full(int(known.sum()), 1.0 if horizon == 1 else 0.5, np.float32))
        statistics.update(counts[:, t])
    return Samples(np.concatenate(features), np.concatenate(targets), np.concatenate(weights))


def fit_neural_hazard(
    samples: Samples,
    seed: int,
    epochs: int = 6,
    progress: Callable[[float], None] = lambda _share: None,
    network: Network | None = None,
    rate: float = 4e-3,
) -> NeuralHazardExpert:
    """Trains the network (or trains `network` on, leaving its scaling as it is) by AdamW with a one-cycle rate."""
    generator = torch.Generator().manual_seed(seed)
    features, counts = torch.from_numpy(samples.features), torch.from_numpy(samples.counts)
    weights = torch.from_numpy(samples.weights)
    if network is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Network()
        network.mean.copy_(features.mean(0))
        network.spread.copy_(features.std(0) + 1e-3)
    levels = torch.from_numpy(_TRAINED)
    batch = min(4096, max(64, len(features) // 16), len(features))
    steps = max(1, epochs * (len(features) // batch))
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    order = torch.randperm(len(features), generator=generator)
    for step in range(steps):
        at = step * batch % (len(features) - batch + 1)
        if at < batch:
            order = torch.randperm(len(features), generator=generator)
        rows = order[at : at + batch]
        logit, log_counts = network(features[rows])
        active = (counts[rows] > 0).float()
        error = torch.log1p(counts[rows])[:, None] - log_counts
        pinball = torch.maximum(levels * error, (levels - 1) * error).mean(1)
        loss = functional.binary_cross_entropy_with_logits(logit, active, reduction="none") + active * pinball
        optimizer.zero_grad()
        (loss * weights[rows]).mean().backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress(step / steps)
    return NeuralHazardExpert(network.eval())
