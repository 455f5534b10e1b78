"""Samples for experts that read the running statistics: what was known of a step some steps before, and what came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mesp_predictor.statistics import FEATURES, Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesp.types import FloatArray, FunctionKey, Trigger


@dataclass(frozen=True, slots=True)
class Samples:
    """Training samples: features (N, D), counts of the target step (N,), weights (N,)."""

    features: FloatArray
    counts: FloatArray
    weights: FloatArray


def draw_samples(
    counts: FloatArray,
    start_step: int,
    max_horizon: int,
    seed: int,
    limit: int = 2_000_000,
    keys: Sequence[FunctionKey] = (),
    triggers: Sequence[Trigger] = (),
) -> Samples:
    """Replays a training set and samples what was known of later steps.

    Two thirds of the weight are on the next step, the rest on steps up to 15 and up to `max_horizon` ahead.

    Args:
        counts: invocations per step, (N, M), NaN where missing.
        start_step: absolute index of the first column's step.
        max_horizon: farthest step ahead that is sampled.
        seed: of the sampling.
        limit: samples at most, in expectation.
        keys: the functions' names, N of them, which tell who is related; none: nobody is.
        triggers: what invokes them, N of them; none: nobody knows.
    """
    rng = np.random.default_rng(seed)
    functions, steps = counts.shape
    statistics = Statistics.empty(functions, start_step, keys, triggers)
    share = min(1.0, 0.5 * limit / (functions * steps))
    features, targets, weights = [np.zeros((0, len(FEATURES)), np.float32)], [counts[0, :0]], [counts[0, :0]]
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
