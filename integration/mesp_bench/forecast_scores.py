"""What forecasts of a fleet score, summed up as they are made: per model and function, in memory that does not grow.

A `Tally` holds one model's sums per function. It is told two things: the next minute, as every minute is forecast
(`add_step`), and whole windows of the horizon (`add_window`), which cost more and come at fewer origins. A row that the
model left without a forecast (NaN) is not counted for it. Sums per function are enough for every table: a slice takes
some of the rows, an oracle picks each row from the best model, and a bootstrap draws rows again.

The scores are those of `mesp_predictor.losses`; the same names mean the same here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mesp_predictor.losses import NAIVE_FLOOR, PROBABILITY_FLOOR, log_loss, pit, quantile_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesp.types import BoolArray
    from mesp_predictor.experts.base import Prediction

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

#: Bins of the reliability diagram and of the calibration error, as in `losses.calibration_error`.
BINS = 15
#: Levels whose coverage is counted, where the model forecasts them.
COVERED_LEVELS = (0.9, 0.99)
#: Raw coverage is read on functions active in at least this share of the scored minutes: a perfect forecast of a count
#: that is mostly zero covers more than it says.
ACTIVE_SHARE = 0.9
#: By how much a quantile may fall short of the count it covers: weights in float32 make 4.9999995 of five fives.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Tally:
    """One model's sums over what was forecast, per function; F functions.

    Attributes:
        levels: quantile levels of the forecasts, L.
        horizon: steps of a window, H.
        windows: windows scored, (F,).
        pinball: quantile loss, invocations, summed over windows, steps and levels, (F,).
        volume: invocations that happened in the windows' steps, (F,).
        window_log_loss: log loss of activity, nats, its mean over a window's steps summed over windows, (F,).
        steps: next minutes scored, (F,).
        active_steps: of these with an invocation, (F,).
        step_log_loss: log loss of activity in the next minute, nats, (F,).
        step_brier: squared error of its probability, (F,).
        seen_steps: next minutes scored after the function's first invocation, (F,).
        seen_log_loss: their log loss, (F,).
        reliability: by bin of the probability of activity in the next minute: minutes, sum of probabilities, active
            minutes, (F, BINS, 3).
        deciles: randomised PIT of the next minute's count by decile, (F, 10).
        covered: next minutes whose count is at most the quantile at each of COVERED_LEVELS, (F, 2).
        covered_randomised: next minutes whose PIT is at most each of COVERED_LEVELS, (F, 2).
    """

    levels: tuple[float, ...]
    horizon: int
    windows: Doubles
    pinball: Doubles
    volume: Doubles
    window_log_loss: Doubles
    steps: Doubles
    active_steps: Doubles
    step_log_loss: Doubles
    step_brier: Doubles
    seen_steps: Doubles
    seen_log_loss: Doubles
    reliability: Doubles
    deciles: Doubles
    covered: Doubles
    covered_randomised: Doubles

    @classmethod
    def empty(cls, functions: int, levels: tuple[float, ...], horizon: int) -> Tally:
        """Nothing scored yet."""
        shapes = {"reliability": (BINS, 3), "deciles": (10,), "covered": (2,), "covered_randomised": (2,)}
        sums = {name: np.zeros((functions, *shapes.get(name, ()))) for name in _SUMS}
        return cls(levels, horizon, **sums)

    def add_window(self, actual: Doubles, forecast: Prediction) -> None:
        """Takes in what came of a forecast of the whole horizon: counts (F, H), forecast of the same shape."""
        rows = answered(forecast)
        y, active = actual[rows], forecast.active[rows]
        self.windows[rows] += 1
        self.pinball[rows] += window_pinball(y, forecast.quantiles[rows], self.levels)
        self.volume[rows] += y.sum(axis=1)
        self.window_log_loss[rows] += log_loss(y > 0, active)

    def add_step(self, actual: Doubles, seen: BoolArray, forecast: Prediction, rng: np.random.Generator) -> None:
        """Takes in what came of the next minute.

        Args:
            actual: counts, (F,).
            seen: whether the function was invoked before that minute, (F,).
            forecast: only its first step is read.
            rng: draws the randomised PIT's ties.
        """
        rows = np.flatnonzero(answered(forecast))
        every, active_every = np.nan_to_num(forecast.quantiles[:, 0]), np.nan_to_num(forecast.active[:, 0])
        u = pit(actual, every, active_every, self.levels, rng)[rows]  # drawn for every row: models share the ties
        y, p, quantiles = actual[rows], active_every[rows].astype(np.float64), every[rows]
        active = y > 0
        loss = log_loss(active[:, None], p[:, None])
        self.steps[rows] += 1
        self.active_steps[rows] += active
        self.step_log_loss[rows] += loss
        self.step_brier[rows] += np.square(p - active)
        self.seen_steps[rows] += seen[rows]
        self.seen_log_loss[rows] += loss * seen[rows]
        index = np.minimum((p * BINS).astype(np.int64), BINS - 1)
        self.reliability[rows, index] += np.stack([np.ones(len(rows)), p, active], axis=1)
        self.deciles[rows, np.minimum((u * 10).astype(np.int64), 9)] += 1
        for column, level in enumerate(COVERED_LEVELS):
            if level in self.levels:
                self.covered[rows, column] += y <= quantiles[:, self.levels.index(level)] * (1 + ROUNDING)
                self.covered_randomised[rows, column] += u <= level

    def take(self, rows: Rows | BoolArray) -> Tally:
        """The same sums for some of the functions."""
        return Tally(self.levels, self.horizon, **{name: getattr(self, name)[rows] for name in _SUMS})


#: The fields of a tally that are sums per function.
_SUMS = tuple(field.name for field in fields(Tally) if field.name not in {"levels", "horizon"})


def answered(forecast: Prediction) -> BoolArray:
    """Whether the model said anything of each function, (F,)."""
    whole = np.isfinite(forecast.active).all(axis=1) & np.isfinite(forecast.quantiles).all(axis=(1, 2))
    return np.asarray(whole)


def window_pinball(actual: Doubles, quantiles: npt.NDArray[np.float32], levels: Sequence[float]) -> Doubles:
    """Quantile loss summed over steps and levels, (F, H), (F, H, L) -> (F,); NaN where the forecast is."""
    loss = quantile_loss(actual, quantiles.astype(np.float64), np.asarray(levels, np.float64))
    return np.asarray(loss.sum(axis=(1, 2)))


def step_log_loss(actual: Doubles, active: npt.NDArray[np.float32]) -> Doubles:
    """Log loss of each function's next minute, nats, (F,), (F,) -> (F,); NaN where the forecast is."""
    p = np.clip(active.astype(np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return np.asarray(-np.log(np.where(actual > 0, p, 1 - p)))


def best_in_hindsight(tallies: Sequence[Tally]) -> Tally:
    """Each function scored by the model that did best on it: by quantile loss in windows, by log loss in next minutes.

    No model without foresight can choose so well; functions that no model forecast keep the first one's (empty) sums.
    """
    by_window = _least([tally.pinball for tally in tallies], [tally.windows for tally in tallies])
    by_step = _least([tally.step_log_loss for tally in tallies], [tally.steps for tally in tallies])
    rows = np.arange(len(by_window))
    sums = {}
    for name in _SUMS:
        pick = by_window if name in {"windows", "pinball", "volume", "window_log_loss"} else by_step
        sums[name] = np.stack([getattr(tally, name) for tally in tallies])[pick, rows]
    return Tally(tallies[0].levels, tallies[0].horizon, **sums)


def scaled_quantile_losses(tally: Tally, naive: Doubles, floor: float = NAIVE_FLOOR) -> Doubles:
    """Each function's mean quantile loss in units of its naive error, (F,); NaN where no window was scored."""
    values = _ratio(tally.pinball, tally.windows) / (tally.horizon * len(tally.levels))
    return np.asarray(values / np.maximum(naive, floor))


def log_losses_next_step(tally: Tally) -> Doubles:
    """Each function's mean log loss of activity in the next minute, nats, (F,); NaN where none was scored."""
    return np.asarray(_ratio(tally.step_log_loss, tally.steps))


def scores(tally: Tally, naive: Doubles, floor: float = NAIVE_FLOOR) -> dict[str, Any]:
    """A model's scores over the tally's functions, as `forecasts.json` has them; NaN where nothing was scored.

    Every function weighs the same in `scaled_quantile_loss`, every invocation in `wql`, every minute in the rest.

    Args:
        tally: of F functions.
        naive: their naive errors, invocations, (F,).
        floor: least scale of the quantile loss, invocations.
    """
    reliability = tally.reliability.sum(axis=0)
    deciles = _ratio(tally.deciles.sum(axis=0), tally.deciles.sum())
    busy = tally.active_steps >= ACTIVE_SHARE * np.maximum(tally.steps, 1)
    minutes = tally.steps[busy].sum()
    scaled = scaled_quantile_losses(tally, naive, floor)
    means = {
        "scaled_quantile_loss": _ratio(np.nansum(scaled), np.isfinite(scaled).sum()),
        "wql": 2 * _ratio(tally.pinball.sum(), tally.volume.sum()) / len(tally.levels),
        "log_loss_next_step": _ratio(tally.step_log_loss.sum(), tally.steps.sum()),
        "calibration_error": _ratio(np.abs(reliability[:, 1] - reliability[:, 2]).sum(), reliability[:, 0].sum()),
        "pit_deviation": 100 * np.abs(deciles - 0.1).max(),
        "brier_next_step": _ratio(tally.step_brier.sum(), tally.steps.sum()),
        "log_loss_horizon": _ratio(tally.window_log_loss.sum(), tally.windows.sum()),
        "log_loss_next_step_seen": _ratio(tally.seen_log_loss.sum(), tally.seen_steps.sum()),
    }
    return {name: float(value) for name, value in means.items()} | {
        "coverage_active": _coverage(tally, tally.covered[busy], minutes),
        "coverage_active_randomised": _coverage(tally, tally.covered_randomised[busy], minutes),
        "reliability": {
            "minutes": reliability[:, 0].tolist(),
            "forecast": _ratio(reliability[:, 1], reliability[:, 0]).tolist(),
            "observed": _ratio(reliability[:, 2], reliability[:, 0]).tolist(),
        },
        "pit": deciles.tolist(),
    }


def _coverage(tally: Tally, covered: Doubles, minutes: float) -> dict[str, float]:
    """Percent of the busy functions' minutes covered, by level."""
    share = 100 * _ratio(covered.sum(axis=0), minutes)
    return {
        f"{level:g}": float(value) for level, value in zip(COVERED_LEVELS, share, strict=True) if level in tally.levels
    }


def _least(losses: Sequence[Doubles], counts: Sequence[Doubles]) -> Rows:
    """Index of the model with the least mean loss on each function, (F,)."""
    means = np.stack([_ratio(loss, count) for loss, count in zip(losses, counts, strict=True)])
    return np.asarray(np.where(np.isnan(means), np.inf, means).argmin(axis=0))


def _ratio(numerator: Any, denominator: Any) -> Any:
    """The quotient; NaN where nothing stands below."""
    below = np.asarray(denominator, np.float64)
    return np.asarray(numerator, np.float64) / np.where(below > 0, below, np.nan)
