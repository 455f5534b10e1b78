"""The distribution behind a sequence model's quantiles, and the probability of activity that it implies.

A network's answer is a few quantiles of the count, here and there crossed or negative, often none above 0.9.
`QuantileFunction` makes a whole distribution of them, `Activity` sets its probability of activity right, and
`QuantileFunction.hurdle` bends the quantiles until they agree with that probability. `activity_log_loss` teaches a network
what will be read off its quantiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy.special import expit, logit, ndtr, ndtri  # type: ignore[import-untyped]

from mesp_predictor.series import MAX_COUNT

if TYPE_CHECKING:
    import numpy.typing as npt

    from mesp.types import FloatArray

    Doubles = npt.NDArray[np.float64]

#: Probability of activity, before and after calibration, stays this far from 0 and 1.
ACTIVITY_FLOOR: Final = 1e-3
#: Where quantile functions end, in standard deviations of the normal law.
FARTHEST: Final = 4.0

#: In training two nodes are at least so far apart, the ends rise at least so much a deviation (both in asinh space), and
#: one half lies at most so many deviations out: where quantiles are equal the gradient would else be infinite, or none.
_LEAST_GAP: Final = 0.05
_LEAST_SLOPE: Final = 0.15
_FARTHEST_LEARNED: Final = 6.0


@dataclass(frozen=True, slots=True)
class Activity:
    """Calibration of the probability of activity: p -> sigmoid(a * logit(p) + b); by default as it is.

    Platt, "Probabilistic Outputs for Support Vector Machines", 1999, on log odds instead of margins.
    """

    a: float = 1.0
    b: float = 0.0

    def __call__(self, raw: Doubles) -> Doubles:
        """Calibrated probabilities, within the floor."""
        calibrated: Doubles = expit(self.a * logit(raw) + self.b)
        return np.clip(calibrated, ACTIVITY_FLOOR, 1 - ACTIVITY_FLOOR)

    @classmethod
    def fit(cls, raw: Doubles, occurred: npt.NDArray[np.bool_]) -> Activity:
        """The most likely a >= 0 and b, by Newton's method; a little prior keeps them near 1 and 0 where data are few.

        Args:
            raw: probabilities strictly inside (0, 1), (N,).
            occurred: whether the step was active, (N,).
        """
        x = np.stack([logit(raw), np.ones_like(raw)], axis=1)
        prior = np.array([1.0, 0.0])
        theta = prior.copy()
        for _ in range(30):
            p = expit(x @ theta)
            gradient = x.T @ (p - occurred) + (theta - prior)
            curvature = (x * (p * (1 - p))[:, None]).T @ x + np.eye(2)
            step = np.linalg.solve(curvature, gradient)
            theta -= step / max(1.0, float(np.abs(step).max()))  # far from the optimum a whole step may overshoot
        return cls(max(float(theta[0]), 0.0), float(theta[1]))


class QuantileFunction:
    """The distribution behind a network's quantiles: asinh(count) runs linearly in the normal deviate z between levels.

    Beyond the highest level it goes on as a normal tail in asinh space: q(l) = q.9 + (q.9 - q.5) (z_l - z.9) / (z.9 - z.5),
    for networks that stop at 0.9, and the same way below the lowest; both end `FARTHEST` deviations out.
    """

    def __init__(self, quantiles: FloatArray, levels: tuple[float, ...]) -> None:
        """From N answers, (N, Q) counts, in any order along Q."""
        z = ndtri(np.asarray(levels, np.float64))
        value = np.sort(np.arcsinh(np.clip(quantiles.astype(np.float64), -MAX_COUNT, MAX_COUNT)), axis=1)
        middle = levels.index(0.5)
        spread = value - value[:, middle, None]
        low = value[:, 0] + spread[:, 0] * (FARTHEST + z[0]) / (z[middle] - z[0])
        high = value[:, -1] + spread[:, -1] * (FARTHEST - z[-1]) / (z[-1] - z[middle])
        self._z: Doubles = np.concatenate([[-FARTHEST], z, [FARTHEST]])
        self._value: Doubles = np.column_stack([low, value, high])

    def active(self) -> Doubles:
        """The probability of at least one invocation, 1 - F(1/2), within the floor, (N,)."""
        threshold = np.arcsinh(0.5)
        last = len(self._z) - 1
        passed = (self._value <= threshold).sum(axis=1)
        high = np.clip(passed, 1, last)
        v0, v1 = (np.take_along_axis(self._value, at[:, None], 1)[:, 0] for at in (high - 1, high))
        inside = (passed > 0) & (passed <= last)
        share = np.where(inside, (threshold - v0) / np.where(inside, v1 - v0, 1), passed > last)
        z = self._z[high - 1] + share * (self._z[high] - self._z[high - 1])
        active: Doubles = np.clip(ndtr(-z), ACTIVITY_FLOOR, 1 - ACTIVITY_FLOOR)
        return active

    def at(self, levels: Doubles) -> Doubles:
        """The counts at levels of each, (N, L) -> (N, L), non-decreasing where the levels are."""
        bound = ndtr(FARTHEST)
        position = np.interp(ndtri(np.clip(levels, 1 - bound, bound)), self._z, np.arange(len(self._z)))
        low = np.minimum(position.astype(np.int64), len(self._z) - 2)
        v0, v1 = (np.take_along_axis(self._value, at, 1) for at in (low, low + 1))
        value = np.clip(v0 + (position - low) * (v1 - v0), 0, np.arcsinh(MAX_COUNT))
        return np.maximum.accumulate(np.sinh(value), axis=1)  # rounding may turn equal values into falling ones

    def hurdle(self, active: Doubles, levels: tuple[float, ...]) -> Doubles:
        """Quantiles of the count once its probability of activity is `active`, (N,) -> (N, L).

        As `hurdle_quantiles`: the level q is 0 where q <= 1 - active, else the level (q - 1 + active) / active of the
        positive part, which is this distribution's own, and at least 1.
        """
        raw = self.active()[:, None]
        inside = (np.asarray(levels) - 1 + active[:, None]) / active[:, None]
        positive = self.at(1 - raw + np.clip(inside, 0, 1) * raw)
        return np.where(inside > 0, np.maximum(positive, 1), 0)


def activity_log_loss(quantiles: torch.Tensor, levels: tuple[float, ...], active: torch.Tensor) -> torch.Tensor:
    """The log loss of the activity that quantiles imply: read off as by `QuantileFunction.active`, but with a gradient.

    Args:
        quantiles: counts, (..., Q), in any order along Q.
        levels: Q of them.
        active: whether the step was active, (...) bool.

    Returns:
        Nats, (...).
    """
    z = torch.special.ndtri(torch.tensor(levels, device=quantiles.device))
    value = torch.asinh(quantiles).sort(dim=-1).values
    middle, ends = levels.index(0.5), [0, -1]
    far = torch.tensor([-FARTHEST, FARTHEST], device=z.device)
    slope = ((value[..., ends] - value[..., middle, None]) / (z[ends] - z[middle])).clamp(min=_LEAST_SLOPE)
    outer = value[..., ends] + slope * (far - z[ends])
    value = torch.cat([outer[..., :1], value, outer[..., 1:]], dim=-1)
    z = torch.cat([far[:1], z, far[1:]])
    threshold = math.asinh(0.5)
    high = (value <= threshold).sum(dim=-1).clamp(1, len(z) - 1)
    v0, v1 = (value.gather(-1, at[..., None])[..., 0] for at in (high - 1, high))
    share = (threshold - v0) / (v1 - v0).clamp(min=_LEAST_GAP)
    half = (z[high - 1] + share * (z[high] - z[high - 1])).clamp(-_FARTHEST_LEARNED, _FARTHEST_LEARNED)
    loss: torch.Tensor = -torch.special.log_ndtr(torch.where(active, -half, half))
    return loss
