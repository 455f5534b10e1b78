"""The domain types that cross package borders: function keys, step counts, forecasts.

Past the wire everything is one of these frozen dataclasses or a numpy array. Times are integer
milliseconds since the epoch (`*_ms`); a *step* is one bucket of the count grid.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

#: Quantile levels every forecast carries unless the caller asks for others.
DEFAULT_LEVELS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

#: Platforms and traces count memory in MB of 2**20 bytes; prices and waste are in GB of 2**30.
MB_PER_GB = 1024.0

#: The step width every shipped model is trained for.
DEFAULT_STEP_MS = 60_000


class FunctionKey(NamedTuple):
    """A function's identity over deploys: never a revision or version, or a deploy would erase history.

    `scope` is the OpenWhisk namespace, the Kubernetes namespace, or a trace's owner.
    """

    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope}/{self.name}"


class Trigger(enum.IntEnum):
    """What invokes a function (values are those of the wire, names those of the Azure Functions traces)."""

    UNKNOWN = 0
    HTTP = 1
    TIMER = 2
    QUEUE = 3
    EVENT = 4
    STORAGE = 5
    ORCHESTRATION = 6
    OTHERS = 7


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one source saw in one step.

    Zero is not missing: with `complete`, functions not listed had no invocation; without it nothing is
    said of them. The latest report of a (source, function, step) replaces the earlier; sources are summed.
    `triggers` says what invokes functions, where that is known; it stands until something else is said.
    """

    source: str
    step_start_ms: int
    step_ms: int
    counts: Mapping[FunctionKey, int]
    complete: bool = True
    arrival_offsets_ms: Mapping[FunctionKey, tuple[int, ...]] = field(default_factory=dict)
    triggers: Mapping[FunctionKey, Trigger] = field(default_factory=dict)


class ForecastStatus(enum.IntEnum):
    """How a function's forecast came about (values are those of the wire)."""

    OK = 1
    PRIOR = 2  # never seen: the fleet's prior answers
    FALLBACK = 3  # the mixture failed for this function: the cheap expert answers
    UNKNOWN_FUNCTION = 4  # asked for by name, refused (over the limit, or an invalid key)


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Forecasts of one tick for F functions, H steps, L levels, mixed from E experts.

    Step h (0-based) covers ``[as_of_ms + h*step_ms, as_of_ms + (h+1)*step_ms)``.

    Attributes:
        quantiles: invocations per step, (F, H, L), non-decreasing along L.
        active: probability of at least one invocation in the step, (F, H).
        weights: share of each expert in the mixture, (F, E), rows sum to 1.
        age_ms: time since the function was last observed, (F,); -1 for never.
    """

    tick_id: int
    as_of_ms: int
    step_ms: int
    levels: tuple[float, ...]
    functions: tuple[FunctionKey, ...]
    status: tuple[ForecastStatus, ...]
    quantiles: FloatArray
    active: FloatArray
    experts: tuple[str, ...]
    weights: FloatArray
    age_ms: npt.NDArray[np.int64]
    model_version: str

    @property
    def horizon(self) -> int:
        """Number of steps forecast."""
        return int(self.active.shape[1])


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a predictor says of itself.

    Attributes:
        context_length: steps of history that it keeps; older reports are rejected.
        functions: functions known now, of at most `max_functions`.
        clusters: number of clusters of similar functions in the model.
        as_of_ms: end of the newest closed step; 0 when none was seen.
    """

    model_version: str
    step_ms: int
    context_length: int
    default_horizon: int
    max_horizon: int
    levels: tuple[float, ...]
    experts: tuple[str, ...]
    functions: int
    max_functions: int
    clusters: int
    as_of_ms: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """One observed item that was not taken, and why (one sentence). `function` is None for a whole step."""

    function: FunctionKey | None
    step_start_ms: int
    reason: str
