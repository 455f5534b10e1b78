"""The one face of every expert, what it reads, and what it answers.

An expert is a pure function of its `Context` and its own trained parameters: what the fleet's past has taught it is
in the context's `statistics`, which are kept once for all experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mesp.types import FloatArray
    from mesp_predictor.statistics import Statistics

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Context:
    """What experts read: R functions at one step boundary.

    Attributes:
        step: absolute index (time / step width) of the first step to forecast.
        counts: invocations per step, oldest first, the last column just closed, (R, C) float32; missing and unborn are 0.
        statistics: the running statistics of the same R functions.
        cluster: index of each function's cluster, (R,); -1 where none fits (young, dead, constant).
    """

    step: int
    counts: FloatArray
    statistics: Statistics
    cluster: IntArray


@dataclass(frozen=True, slots=True)
class Prediction:
    """An expert's answer.

    Attributes:
        quantiles: invocations per step, (R, H, L) float32, finite, >= 0, non-decreasing along L.
        active: probability of at least one invocation in the step, (R, H) float32.
    """

    quantiles: FloatArray
    active: FloatArray


class Expert(Protocol):
    """A forecaster of counts."""

    @property
    def name(self) -> str:
        """Its name in weights, tables and the checkpoint."""
        ...

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts the next `horizon` steps at the quantile `levels`; shapes (functions, horizon, levels)."""
        ...


def hurdle_quantiles(
    active: FloatArray, positive: FloatArray, grid: FloatArray, levels: tuple[float, ...]
) -> FloatArray:
    """Quantiles of a count that is 0 with probability 1 - active and else follows `positive`.

    The level q of the whole is 0 where q <= 1 - active, else the level (q - 1 + active) / active of the positive part.

    Args:
        active: probability of at least one invocation, (R, H).
        positive: quantiles of the positive part at `grid`, (R, G), each >= 1, non-decreasing.
        grid: levels of `positive`, ascending in [0, 1], (G,).
        levels: levels wanted, ascending.

    Returns:
        (R, H, L) float32, non-decreasing along L.
    """
    q = np.asarray(levels, np.float32)
    inside = (q - 1 + active[..., None]) / np.maximum(active[..., None], 1e-9)
    position = np.interp(np.clip(inside, 0, 1), grid, np.arange(len(grid)))
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, len(grid) - 1)
    share = (position - low).astype(np.float32)
    rows = np.arange(len(positive))[:, None, None]
    value = positive[rows, low] * (1 - share) + positive[rows, high] * share
    ascending = np.maximum.accumulate(value, axis=-1)  # rounding may turn equal values into falling ones
    return np.where(inside > 0, ascending, 0).astype(np.float32)
