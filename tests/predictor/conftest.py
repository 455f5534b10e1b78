"""A forecaster small enough to predict by hand, for whatever stands around the model; and a real model, tiny."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp_predictor.calibration import Calibration
from mesp_predictor.forecaster import Mixed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from mesp.types import FloatArray
    from mesp_predictor.refit import Election
    from mesp_predictor.series import SeriesStore
    from mesp_predictor.training import Trained, TrainingConfig


class FakeForecaster:
    """Every step will be like the last: its count times the level; a row never seen is 0.5 of an invocation.

    Attributes:
        advances, forecasts: calls so far.
        fault: raised by the next call of either, if set.
        spoil: answer NaN.
        gate: cleared, it holds `advance` back.
        backlog: so many calls of `advance` leave something to learn.
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
        self.calibration = Calibration()
        self.elections: list[Election] = []
        self.advances = 0
        self.forecasts = 0
        self.fault: Exception | None = None
        self.spoil = False
        self.backlog = 0
        self.gate = threading.Event()
        self.gate.set()
        self._last: npt.NDArray[np.float32] = np.empty(0, np.float32)

    def advance(self, store: SeriesStore, go_on: Callable[[], bool] | None = None) -> bool:
        self.gate.wait()
        self.advances += 1
        self._raise()
        if go_on is not None and self.backlog:
            self.backlog -= 1
            return False
        store.take_changed()
        rows = np.arange(len(store.functions))
        self._last = np.nan_to_num(store.window(rows, 1)[:, 0]) if store.as_of_ms else np.zeros(len(rows), np.float32)
        return True

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

    def take_elections(self) -> list[Election]:
        ended, self.elections = self.elections, []
        return ended

    def _raise(self) -> None:
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault


@pytest.fixture
def forecaster() -> FakeForecaster:
    return FakeForecaster()


@pytest.fixture(scope="session")
def tiny_fleet() -> FloatArray:
    """Two days, of four hours each, of 24 functions: timers, steady and bursty ones, dead ones, (24, 480)."""
    rng = np.random.default_rng(5)
    minute = np.arange(480)
    timers = [3.0 * (minute % period == period // 2) for period in (2, 5, 5, 10, 15, 15, 30, 60)]
    steady = [rng.poisson(rate, 480) for rate in (0.02, 0.05, 0.1, 0.2, 0.5, 2.0)]
    bursts = [rng.poisson(0.6 * (np.sin(minute / 38 + phase) > 0.5)) for phase in range(6)]
    dead = [np.zeros(480)] * 4
    return np.array([*timers, *steady, *bursts, *dead], np.float32)[rng.permutation(24)]


@pytest.fixture(scope="session")
def tiny_config() -> TrainingConfig:
    """Budgets that train in seconds."""
    from mesp_predictor.training import TrainingConfig  # noqa: PLC0415  most tests need no torch

    patchtst = {"context": 64, "d_model": 8, "heads": 2, "layers": 1, "feed_forward": 8, "batch": 8}
    return TrainingConfig(
        clusters=2,
        kshape="batched",  # tslearn compiles for half a minute before it starts
        day_steps=240,
        experts={
            "seasonal": {},
            "intermittent": {},
            "hazard": {},
            "neural_hazard": {"samples": 20_000, "epochs": 5, "tuning_epochs": 1},
            "patchtst": {**patchtst, "training_steps": 3, "tuning_steps": 2},
        },
        router_functions=8,
        router_every=2,
        router_epochs=6,
        save_every=2,
    )


@pytest.fixture(scope="session")
def tiny_training(tiny_fleet: FloatArray, tiny_config: TrainingConfig) -> tuple[Trained, list[tuple[str, float]]]:
    """A model trained on the tiny fleet, and the progress that was told."""
    from mesp_predictor.training import train  # noqa: PLC0415

    told: list[tuple[str, float]] = []
    trained = train(tiny_fleet, 28_000_000, tiny_config, lambda stage, share: told.append((stage, share)))
    return trained, told
