"""The one face of every expert, what it reads, and what it answers.

An expert is a pure function of its `Context` and its own trained parameters: what the fleet's past has taught it is
in the context's `statistics`, which are kept once for all experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import BaseModel

    from mesp.types import FloatArray, FunctionKey, Trigger
    from mesp_predictor.experts.samples import Samples
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

    def save(self, directory: Path) -> None:
        """Writes `config.json`, with its family under `kind`, and what was learned into an existing, empty directory."""
        ...


@runtime_checkable
class Refittable(Expert, Protocol):
    """An expert cheap enough to learn from the fleet's own past again and again while it serves."""

    def activity(self, features: FloatArray) -> FloatArray:
        """Probability of activity by features alone, (N, len(FEATURES)) -> (N,); NaN where it knows nothing yet."""
        ...

    def refitted(self, lessons: Samples, seed: int) -> Refittable:
        """This expert as it was trained, and what the lessons add to that; itself stays as it is."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The functions that experts learn from.

    Attributes:
        counts: invocations per step, (N, M) float32, NaN where missing.
        start_step: absolute index of the first column's step, for the clock's phase.
        cluster: index of each function's cluster, (N,); -1 for none.
        clusters: number of clusters.
        keys: the functions' names, N of them; scope and the name's path tell owner and app.
        max_horizon: farthest step ahead that is ever asked for.
        triggers: what invokes the functions, N of them; none: nobody knows.
    """

    counts: FloatArray
    start_step: int
    cluster: IntArray
    clusters: int
    keys: tuple[FunctionKey, ...]
    max_horizon: int
    triggers: tuple[Trigger, ...] = ()

    def select(self, rows: IntArray) -> TrainingSet:
        """Some of its functions."""
        return replace(
            self,
            counts=self.counts[rows],
            cluster=self.cluster[rows],
            keys=tuple(self.keys[row] for row in rows) if self.keys else (),
            triggers=tuple(self.triggers[row] for row in rows) if self.triggers else (),
        )

    def members(self, cluster: int) -> TrainingSet:
        """The functions of one cluster."""
        return self.select(np.flatnonzero(self.cluster == cluster))


@dataclass(frozen=True, slots=True)
class Training:
    """How one expert's training is run.

    Attributes:
        seed: decides everything that is random.
        progress: told the share done, in [0, 1].
        state: directory for what lets the training go on after a kill; None: it starts over.
        device: torch's name of the device, `cpu` or `cuda`.
        save_every: training steps of a network between two of its states on disk.
    """

    seed: int
    progress: Callable[[float], None] = lambda _share: None
    state: Path | None = None
    device: str = "cpu"
    save_every: int = 200


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of expert: how it is trained, trained on, and read back.

    Attributes:
        name: of its experts, in weights and tables, and under `kind` in their `config.json`.
        settings: pydantic model of its settings; the defaults are those of a full training.
        smoke: settings of a training that takes seconds and shows that everything works.
        fit: a new expert from the training set and an instance of `settings`.
        load: an expert from its directory; raises `InputError` naming file and key.
        tune: trains a copy of an expert on a part of the functions; None where that is not worth while.
        costly: asked only for the functions that the router sends to it, and in turn for a share of the others.
    """

    name: str
    settings: type[BaseModel]
    smoke: BaseModel
    fit: Callable[[TrainingSet, Any, Training], Expert]
    load: Callable[[Path], Expert]
    tune: Callable[[Any, TrainingSet, Any, Training], Expert] | None = None
    costly: bool = False


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
