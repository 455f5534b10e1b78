"""Experts asked, and their answers made one: who fails or answers nonsense for a function has no say for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from mesp_predictor import router as routing
from mesp_predictor.experts.base import Context, Expert, IntArray, Prediction, hurdle_quantiles
from mesp_predictor.experts.clustered import rows_of
from mesp_predictor.forecaster import Mixed

if TYPE_CHECKING:
    from mesp.types import BoolArray
    from mesp_predictor.statistics import Statistics

logger = logging.getLogger(__name__)


def ask(
    experts: tuple[Expert, ...], context: Context, horizon: int, levels: tuple[float, ...], asked: BoolArray
) -> list[Prediction]:
    """Every expert's prediction of the rows that it is asked for, `asked` (R, E); the others are NaN.

    One that raises answers NaN everywhere and is logged, so that the others go on.
    """
    functions = len(context.counts)
    predictions = []
    for expert, rows in zip(experts, asked.T, strict=True):
        active = np.full((functions, horizon), np.nan, np.float32)
        quantiles = np.full((functions, horizon, len(levels)), np.nan, np.float32)
        try:
            if rows.all():
                said = expert.predict(context, horizon, levels)
                active, quantiles = said.active, said.quantiles
            elif rows.any():
                said = expert.predict(rows_of(context, np.flatnonzero(rows)), horizon, levels)
                active[rows], quantiles[rows] = said.active, said.quantiles
        except Exception:
            logger.exception("expert %s failed for a batch of %d functions", expert.name, int(rows.sum()))
        predictions.append(Prediction(quantiles, active))
    return predictions


def mix(
    weights: routing.Weights, predictions: list[Prediction], statistics: Statistics, levels: tuple[float, ...]
) -> Mixed:
    """The weighted answer for R functions, from the experts' predictions; those that make no sense have no say."""
    sane = np.stack([_sane(p) for p in predictions], axis=1)
    predictions = [_tamed(p) for p in predictions]
    weights = weights.among(sane)
    fallback = ~sane.any(axis=1)
    answer = routing.combine(weights, predictions, levels)
    if fallback.any():
        plain = _own_rate(statistics.take(np.flatnonzero(fallback)), answer.active.shape[1], levels)
        answer.active[fallback], answer.quantiles[fallback] = plain.active, plain.quantiles
    return Mixed(
        answer.quantiles, answer.active, weights.activity, np.asarray(statistics.gap == 0), np.asarray(fallback)
    )


def next_step(predictions: list[Prediction]) -> Prediction:
    """What each expert says of the next step, experts in the place of steps: (R, E, L) and (R, E)."""
    return Prediction(
        np.stack([p.quantiles[:, 0] for p in predictions], axis=1),
        np.stack([p.active[:, 0] for p in predictions], axis=1),
    )


def _sane(prediction: Prediction) -> BoolArray:
    in_range = (prediction.active >= 0) & (prediction.active <= 1)
    return np.asarray(in_range.all(axis=1) & np.isfinite(prediction.quantiles).all(axis=(1, 2)))


def _tamed(prediction: Prediction) -> Prediction:
    if np.isfinite(prediction.quantiles).all() and np.isfinite(prediction.active).all():
        return prediction
    return Prediction(np.nan_to_num(prediction.quantiles), np.nan_to_num(prediction.active))


def _own_rate(statistics: Statistics, horizon: int, levels: tuple[float, ...]) -> Prediction:
    """The fallback: activity at the function's smoothed rate, counts as its latest positive ones."""
    rate = np.nan_to_num(np.clip(statistics.tsb[:, :1], 0.001, 0.999))
    active = np.repeat(rate, horizon, axis=1)
    positive, grid = statistics.positive_quantiles()
    return Prediction(hurdle_quantiles(active, np.nan_to_num(positive, nan=1.0, posinf=1.0), grid, levels), active)


def take(mixed: Mixed, rows: IntArray, horizon: int) -> Mixed:
    """Some rows of an answer, and its first steps."""
    return Mixed(
        mixed.quantiles[rows, :horizon],
        mixed.active[rows, :horizon],
        mixed.weights[rows],
        mixed.prior[rows],
        mixed.fallback[rows],
    )


def choose(known: BoolArray, mixed: Mixed, stranger: Mixed) -> Mixed:
    """Known rows from the one, the others from the other."""
    return Mixed(
        np.where(known[:, None, None], mixed.quantiles, stranger.quantiles),
        np.where(known[:, None], mixed.active, stranger.active),
        np.where(known[:, None], mixed.weights, stranger.weights),
        np.where(known, mixed.prior, stranger.prior),
        np.where(known, mixed.fallback, stranger.fallback),
    )
