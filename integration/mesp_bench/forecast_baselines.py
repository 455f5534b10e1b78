"""Two plain forecasts that any model must beat, read off the last hours of counts: no training, no state.

Both are empirical distributions of past counts: their quantiles, and the share of active minutes after half a minute is
added to either side (Jeffreys' prior), so that no probability is 0 or 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mesp_predictor.experts.base import Prediction

if TYPE_CHECKING:
    import numpy.typing as npt

#: Minutes that the moving average looks back.
WINDOW_MINUTES = 60
#: Minutes of a season, and seasons looked back: one day of data has no daily season to repeat.
SEASON_MINUTES, SEASONS = 60, 8


def moving_average(history: npt.NDArray[np.float64], horizon: int, levels: tuple[float, ...]) -> Prediction:
    """Every minute ahead is like the last hour's.

    Args:
        history: counts per minute, oldest first, at least one, (F, T).
        horizon: minutes ahead, H.
        levels: quantile levels, L.
    """
    recent = _empirical(history[:, -WINDOW_MINUTES:, None], levels)
    return Prediction(np.repeat(recent.quantiles, horizon, axis=1), np.repeat(recent.active, horizon, axis=1))


def seasonal_naive(history: npt.NDArray[np.float64], horizon: int, levels: tuple[float, ...]) -> Prediction:
    """Every minute ahead is like the same minute of the past hours; the moving average until there is one hour.

    Arguments as in `moving_average`; the horizon is at most a season.
    """
    past = history[:, -SEASON_MINUTES * SEASONS :]
    whole = past.shape[1] // SEASON_MINUTES
    if not whole:
        return moving_average(history, horizon, levels)
    seasons = past[:, past.shape[1] - whole * SEASON_MINUTES :].reshape(len(past), whole, SEASON_MINUTES)
    return _empirical(seasons[:, :, :horizon], levels)


def _empirical(samples: npt.NDArray[np.float64], levels: tuple[float, ...]) -> Prediction:
    """The distribution of N past counts of each minute ahead, (F, N, H)."""
    quantiles = np.quantile(samples, levels, axis=1, method="inverted_cdf").transpose(1, 2, 0)
    active = ((samples > 0).sum(axis=1) + 0.5) / (samples.shape[1] + 1)
    return Prediction(quantiles.astype(np.float32), active.astype(np.float32))
