"""The tracked calibration is that of the losses' module over what was lately forecast, and forgets what was long ago."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp_predictor import losses
from mesp_predictor.calibration import HALF_LIFE, Calibration


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_of_one_step_it_is_what_the_losses_say(seed: int, rows: int) -> None:
    """Calibration error and log loss of a single step equal `losses.calibration_error` and `losses.log_loss`."""
    rng = np.random.default_rng(seed)
    forecast, active = rng.random(rows, np.float32), rng.random(rows) < 0.3
    tracked = Calibration()
    tracked.add(forecast, active)
    assert tracked.error == pytest.approx(losses.calibration_error(active, forecast), abs=1e-6)
    assert tracked.log_loss == pytest.approx(float(losses.log_loss(active, forecast)), rel=1e-6)


def test_before_the_first_step_there_is_none() -> None:
    """Nothing forecast, nothing wrong."""
    assert Calibration().error == Calibration().log_loss == 0


def test_the_past_fades() -> None:
    """A half-life after forecasts went from always wrong to always right, the error is about half of what it was."""
    tracked = Calibration()
    rows = np.zeros(10, np.float32)
    for _ in range(10 * int(HALF_LIFE)):
        tracked.add(rows, np.ones(10, np.bool_))
    assert tracked.error == pytest.approx(1, abs=0.01)
    for _ in range(int(HALF_LIFE)):
        tracked.add(rows, np.zeros(10, np.bool_))
    assert tracked.error == pytest.approx(0.5, abs=0.01)
