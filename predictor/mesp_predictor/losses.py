"""What a forecast is judged by: proper scores of quantiles and of activity, and calibration.

Free functions under their literature names. Counts and quantiles are invocations per step, shapes are (..., H) and
(..., H, L) for H steps and L quantile levels; `active` is the probability of at least one invocation in the step.
Lower is better for all but `pit`, whose values should be uniform. `quantile_loss` takes torch tensors as well: it
trains what the others judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch

    #: Any real or boolean array.
    Array = npt.NDArray[np.float32] | npt.NDArray[np.float64] | npt.NDArray[np.int64] | npt.NDArray[np.bool_]
    Doubles = npt.NDArray[np.float64]
    Values = TypeVar("Values", Doubles, npt.NDArray[np.float32], torch.Tensor)

#: Least naive error that scales a series, in invocations: many functions are nearly all zeros.
NAIVE_FLOOR = 0.01

#: Probabilities are kept this far from 0 and 1 in the log loss, as float32 holds them.
PROBABILITY_FLOOR = 1e-7


def quantile_loss(actual: Values, quantiles: Values, levels: Values) -> Values:
    """The pinball loss of each quantile: max(q * e, (q - 1) * e) with e = actual - quantile.

    Koenker and Bassett, "Regression Quantiles", Econometrica 1978; without the factor 2 that some libraries put before it.
    Written as (|e| + (2q - 1) e) / 2, which is the same and has one form for numpy and torch.

    Args:
        actual: counts, (..., H).
        quantiles: forecast, (..., H, L).
        levels: (L,), in (0, 1).

    Returns:
        The loss per step and level, (..., H, L), in the unit of `actual`.
    """
    error = actual[..., None] - quantiles
    return 0.5 * (abs(error) + (2 * levels - 1) * error)


def naive_error(history: Array) -> Doubles:
    """Mean absolute error of forecasting each count by the one before: mean |y_t - y_(t-1)|, (..., T) -> (...).

    Hyndman and Koehler, "Another look at measures of forecast accuracy", International Journal of Forecasting 2006.
    """
    error: Doubles = np.abs(np.diff(np.asarray(history, np.float64), axis=-1)).mean(axis=-1)
    return error


def scaled_quantile_loss(
    actual: Array, quantiles: Array, levels: Sequence[float], naive: Array, floor: float = NAIVE_FLOOR
) -> Doubles:
    """Mean quantile loss of each series in units of its naive error: mean_(h,l) pinball / max(naive, floor).

    Hyndman and Koehler's scaling (2006), applied to the quantile loss as in the M5 uncertainty competition
    (Makridakis et al., International Journal of Forecasting 2022).

    Args:
        actual: counts, (..., H).
        quantiles: forecast, (..., H, L).
        levels: L of them.
        naive: `naive_error` of each series, invocations, (...).
        floor: least scale, invocations.

    Returns:
        (...), without unit.
    """
    loss: Doubles = _pinball(actual, quantiles, levels).mean(axis=(-2, -1)) / np.maximum(naive, floor)
    return loss


def wql(actual: Array, quantiles: Array, levels: Sequence[float]) -> float:
    """Weighted quantile loss, pooled: 2 * sum of the quantile loss / (L * sum |y|); NaN where nothing was invoked.

    Gasthaus et al., "Probabilistic Forecasting with Spline Quantile Function RNNs", AISTATS 2019 (as in GluonTS): volume
    weighs, so a few busy functions decide it.

    Args:
        actual: counts, (..., H).
        quantiles: forecast, (..., H, L).
        levels: L of them.
    """
    volume = float(np.abs(np.asarray(actual, np.float64)).sum())
    if volume == 0:
        return float("nan")
    return 2 * float(_pinball(actual, quantiles, levels).sum()) / (len(levels) * volume)


def log_loss(occurred: Array, active: Array) -> Doubles:
    """Mean negative log likelihood of what occurred: -mean(y log p + (1 - y) log(1 - p)), nats, (..., T) -> (...).

    Good, "Rational Decisions", Journal of the Royal Statistical Society B 1952.
    """
    p = np.clip(np.asarray(active, np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    loss: Doubles = -np.log(np.where(np.asarray(occurred, np.bool_), p, 1 - p)).mean(axis=-1)
    return loss


def brier_score(occurred: Array, active: Array) -> Doubles:
    """Mean squared error of the probability: mean((p - y)^2), (..., T) -> (...).

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.
    """
    score: Doubles = np.square(np.asarray(active, np.float64) - np.asarray(occurred, np.bool_)).mean(axis=-1)
    return score


def calibration_error(occurred: Array, active: Array, bins: int = 15) -> float:
    """Expected calibration error: sum over bins of n_b / n * |mean p - share that occurred|, bins of equal width.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Args:
        occurred: whether the step was active, any shape.
        active: forecast probability, the same shape.
        bins: number of bins over [0, 1]; 1 falls into the last.
    """
    p = np.asarray(active, np.float64).ravel()
    y = np.asarray(occurred, np.float64).ravel()
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, p - y, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def pit(actual: Array, quantiles: Array, active: Array, levels: Sequence[float], rng: np.random.Generator) -> Doubles:
    """Randomised probability integral transform: u = F(y - 1) + v (F(y) - F(y - 1)), v uniform; uniform if F is true.

    Smith, "Diagnostic checks of non-standard time series models", Journal of Forecasting 1985; Czado, Gneiting and Held,
    "Predictive Model Assessment for Count Data", Biometrics 2009. F(0) is 1 - active; above it F runs linearly between the
    quantiles; from the top quantile on it is 1, and the randomisation fills what lies above the top level.

    Args:
        actual: counts, (..., H).
        quantiles: forecast, non-decreasing along the levels, (..., H, L).
        active: probability of at least one invocation, (..., H).
        levels: L of them, ascending.
        rng: draws v.

    Returns:
        Values in [0, 1], (..., H).
    """
    y = np.asarray(actual, np.float64)
    silent = 1 - np.asarray(active, np.float64)[..., None]
    value = np.concatenate([np.zeros_like(silent), np.asarray(quantiles, np.float64)], axis=-1)
    level = np.concatenate([silent, np.maximum(np.asarray(levels, np.float64), silent)], axis=-1)
    above = np.where(y >= value[..., -1], 1.0, _distribution(y, value, level))
    below = np.where(y > 0, np.minimum(_distribution(y - 1, value, level), level[..., -1]), 0.0)
    values: Doubles = below + rng.random(y.shape) * np.maximum(above - below, 0)
    return values


def _distribution(y: Doubles, value: Doubles, level: Doubles) -> Doubles:
    """Probability of at most `y` under the line through (value, level) along the last axis; 0 below the first value."""
    passed = (value <= y[..., None]).sum(axis=-1)
    low = np.maximum(passed - 1, 0)[..., None]
    high = np.minimum(low + 1, value.shape[-1] - 1)
    (v0, v1), (l0, l1) = (
        (np.take_along_axis(a, low, -1)[..., 0], np.take_along_axis(a, high, -1)[..., 0]) for a in (value, level)
    )
    share = np.where(v1 > v0, (y - v0) / np.where(v1 > v0, v1 - v0, 1), 0)
    probability: Doubles = np.where(passed > 0, l0 + share * (l1 - l0), 0)
    return probability


def _pinball(actual: Array, quantiles: Array, levels: Sequence[float]) -> Doubles:
    return quantile_loss(
        np.asarray(actual, np.float64), np.asarray(quantiles, np.float64), np.asarray(levels, np.float64)
    )
