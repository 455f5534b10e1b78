"""Random windows: what an expert sees and what then came, from the same function, side by side in time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp_predictor.experts.windows import draw_windows


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(1, 50), st.integers(1, 20), st.integers(0, 30))
def test_windows_are_cut_from_one_function_at_one_time(steps: int, context: int, horizon: int, born: int) -> None:
    """Of a series that counts its own steps, the window ends just before the future begins; zeros before, NaN after."""
    series = np.arange(1, 2 * steps + 1, dtype=np.float32).reshape(2, steps)
    born = min(born, steps - 2)
    series[1, :born] = np.nan
    windows = draw_windows(series, 64, context, horizon, np.random.default_rng(0))
    assert (windows.age >= 1).all()
    for counts, age, future in zip(*windows, strict=True):
        last = counts[-1]
        late = last > steps
        step = last - steps * late
        assert age == step - born * late
        seen = min(int(age), context)
        np.testing.assert_array_equal(counts[context - seen :], last - np.arange(seen)[::-1])
        assert (counts[: context - seen] == 0).all()
        following = last + 1 + np.arange(horizon)
        np.testing.assert_array_equal(future, np.where(following > steps * (1 + late), np.nan, following))


def test_every_step_has_its_chance() -> None:
    """Windows end after every step but the last, and functions without a count are never drawn."""
    series = np.stack([np.arange(10), np.full(10, np.nan)]).astype(np.float32)
    windows = draw_windows(series, 2_000, 3, 1, np.random.default_rng(0))
    assert set(windows.future[:, 0].tolist()) == set(range(1, 10))
