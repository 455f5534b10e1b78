"""The face between the model and the sidecar: learn what closed, forecast rows of the series store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from mesp.types import BoolArray, FloatArray
    from mesp_predictor.calibration import Calibration
    from mesp_predictor.refit import Election
    from mesp_predictor.series import SeriesStore


@dataclass(frozen=True, slots=True)
class Mixed:
    """The mixture's answer for R rows, H steps, L levels, E experts.

    Attributes:
        quantiles: invocations per step, (R, H, L), finite, >= 0, non-decreasing along L.
        active: probability of at least one invocation, (R, H), in [0, 1].
        weights: share of each expert in the activity, (R, E), rows sum to 1.
        prior: the row was never active (or is -1): the fleet's prior answers, (R,).
        fallback: the mixture failed for the row and the cheap expert answers, (R,).
    """

    quantiles: FloatArray
    active: FloatArray
    weights: FloatArray
    prior: BoolArray
    fallback: BoolArray


class Forecaster(Protocol):
    """A loaded model with its online state, one row of state per row of the series store.

    Single-threaded: the sidecar calls it from one worker thread.
    """

    @property
    def model_version(self) -> str:
        """Identifies the model directory's content."""
        ...

    @property
    def step_ms(self) -> int:
        """Step width that the model was trained for."""
        ...

    @property
    def context_length(self) -> int:
        """Steps of history that it reads."""
        ...

    @property
    def default_horizon(self) -> int:
        """Steps forecast when the caller does not say."""
        ...

    @property
    def max_horizon(self) -> int:
        """Most steps it can forecast."""
        ...

    @property
    def levels(self) -> tuple[float, ...]:
        """Quantile levels given when the caller does not say."""
        ...

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, in the order of the weights."""
        ...

    @property
    def clusters(self) -> int:
        """Number of clusters of similar functions."""
        ...

    @property
    def calibration(self) -> Calibration:
        """How well its probabilities of the next step have held lately."""
        ...

    def take_elections(self) -> list[Election]:
        """How refits of experts ended since the last call, oldest first."""
        ...

    def advance(self, store: SeriesStore, go_on: Callable[[], bool] | None = None) -> bool:
        """Learns from every step closed since the last call, and anew for rows whose past changed.

        Asks `go_on` now and then, and leaves the rest to the next call where it says no. Whether everything is learned.
        """
        ...

    def forecast(self, rows: npt.NDArray[np.int64], horizon: int, levels: tuple[float, ...]) -> Mixed:
        """Forecasts rows of the store as of the last `advance`; row -1 is a function never seen."""
        ...
