"""A forecaster small enough to predict by hand, for whatever stands around the model."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp_predictor.forecaster import Mixed

if TYPE_CHECKING:
    import numpy.typing as npt

    from mesp_predictor.series import SeriesStore


class FakeForecaster:
    """Every step will be like the last: its count times the level; a row never seen is 0.5 of an invocation.

    Attributes:
        advances, forecasts: calls so far.
        fault: raised by the next call of either, if set.
        spoil: answer NaN.
        gate: cleared, it holds `advance` back.
    """

    model_version = "fake-1"
    step_ms = 60_000
    context_length = 4
    default_horizon = 3
    max_horizon = 60
    levels = (0.5, 0.9)
    experts = ("last", "prior")
    clusters = 1

    def __init__(self) -> None:
        self.advances = 0
        self.forecasts = 0
        self.fault: Exception | None = None
        self.spoil = False
        self.gate = threading.Event()
        self.gate.set()
        self._last: npt.NDArray[np.float32] = np.empty(0, np.float32)

    def advance(self, store: SeriesStore) -> None:
        self.gate.wait()
        self.advances += 1
        self._raise()
        store.take_changed()
        rows = np.arange(len(store.functions))
        self._last = np.nan_to_num(store.window(rows, 1)[:, 0]) if store.as_of_ms else np.zeros(len(rows), np.float32)

    def forecast(self, rows: npt.NDArray[np.int64], horizon: int, levels: tuple[float, ...]) -> Mixed:
        self.forecasts += 1
        self._raise()
        prior = rows < 0
        last = np.where(prior, np.float32(0.5), np.append(self._last, np.float32(0))[rows])
        shape = (len(rows), horizon, len(levels))
        quantiles = np.broadcast_to(last[:, None, None] * np.array(levels), shape).astype(np.float32)
        if self.spoil:
            quantiles[...] = np.nan
        return Mixed(
            quantiles=quantiles,
            active=np.broadcast_to(np.minimum(last, 1)[:, None], shape[:2]).astype(np.float32),
            weights=np.stack((~prior, prior), axis=1).astype(np.float32),
            prior=prior,
            fallback=np.zeros(len(rows), np.bool_),
        )

    def _raise(self) -> None:
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault


@pytest.fixture
def forecaster() -> FakeForecaster:
    return FakeForecaster()
