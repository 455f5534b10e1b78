"""FFT: waves carried on exactly, what the extrapolation says of activity, and the spread that the residuals give."""

from __future__ import annotations

import numpy as np
import pytest

from mesp.types import DEFAULT_LEVELS, FloatArray, FunctionKey
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.fft import FFT, FFTExpert, FFTSettings, _extrapolate, _logistic
from mesp_predictor.losses import log_loss, quantile_loss
from mesp_predictor.statistics import Statistics


def context(counts: FloatArray) -> Context:
    return Context(counts.shape[1], counts, Statistics.empty(len(counts)), np.full(len(counts), -1))


def waving_fleet(functions: int, seed: int) -> FloatArray:
    """Poisson counts whose rate swings over a day's part of 48 to 240 steps, (functions, 700)."""
    rng = np.random.default_rng(seed)
    minute = np.arange(700)
    period, phase = rng.choice([48, 60, 120, 240], (functions, 1)), rng.uniform(0, 2 * np.pi, (functions, 1))
    rate = np.exp(rng.uniform(np.log(0.3), np.log(20), (functions, 1)))
    counts: FloatArray = rng.poisson(rate * (1 + np.sin(2 * np.pi * minute / period + phase))).astype(np.float32)
    return counts


@pytest.mark.parametrize("period", [2, 5, 12, 15, 60])
def test_timers_of_human_periods_are_carried_on(period: int) -> None:
    """With harmonics enough, calls at one phase of a cycle that divides eight hours go on exactly where they stood."""
    counts = 9 * (np.arange(480 + 60) % period == period // 2).astype(np.float32)[None]
    found = _extrapolate(counts[:, :480], 240, 60)
    np.testing.assert_allclose(found.ahead, counts[:, 480:], atol=1e-3)


def test_a_line_is_carried_on() -> None:
    """Growth by one a step goes on without a wave."""
    found = _extrapolate(np.arange(480, dtype=np.float32)[None], 3, 5)
    np.testing.assert_allclose(found.ahead[0], np.arange(480, 485), rtol=1e-4)


def test_a_few_harmonics_leave_the_noise_out() -> None:
    """One wave in noise: the extrapolation is near the wave, however many harmonics are allowed, as none stands out."""
    rng = np.random.default_rng(0)
    wave = 50 + 30 * np.sin(2 * np.pi * np.arange(540) / 60)
    counts = (wave + rng.normal(0, 10, (50, 540))).astype(np.float32)
    one, all_of_them = (
        np.sqrt(np.square(_extrapolate(counts[:, :480], k, 60).ahead - wave[480:]).mean()) for k in (1, 240)
    )
    assert one < 5
    assert all_of_them < 5


def test_the_level_is_that_of_the_last_steps() -> None:
    """A function that was called 100 times a step until an hour ago, and not since, is forecast near 0, not near 85."""
    counts = np.where(np.arange(480) < 420, 100, 0).astype(np.float32)[None]
    found = _extrapolate(counts, 4, 15)
    assert np.abs(found.ahead).max() < 30


def test_logistic_regression_finds_the_log_odds() -> None:
    """On draws from known log odds the weights come back, and the gradient of the loss is 0 there."""
    rng = np.random.default_rng(0)
    inputs = np.stack([np.ones(20_000), rng.normal(size=20_000)], axis=1)
    hit = rng.random(20_000) < 1 / (1 + np.exp(-(inputs @ [-1.0, 2.0])))
    np.testing.assert_allclose(_logistic(inputs, hit), [-1, 2], atol=0.1)


def test_it_beats_any_constant_forecast() -> None:
    """On unseen functions that swing, activity and quantiles are well below the losses of the best constants."""
    taught = waving_fleet(80, 1)
    keys = tuple(FunctionKey("scope", str(i)) for i in range(80))
    data = TrainingSet(taught, 0, np.full(80, -1), 0, keys, 60)
    expert = FFT.fit(data, FFTSettings(harmonics=4, samples=2_000), Training(0))
    assert isinstance(expert, FFTExpert)
    counts = waving_fleet(200, 2)
    answer = expert.predict(context(counts[:, :-15]), 15, DEFAULT_LEVELS)
    came, levels = counts[:, -15:].astype(np.float64), np.array(DEFAULT_LEVELS)
    constant = np.full_like(answer.active, (came > 0).mean())
    assert log_loss(came > 0, answer.active).mean() < 0.75 * log_loss(came > 0, constant).mean()
    own = np.quantile(counts[:, :-15], levels, axis=1).T[
        :, None
    ]  # every function's own distribution, whatever the phase
    ours = quantile_loss(came, answer.quantiles.astype(np.float64), levels).mean()
    assert ours < 0.85 * quantile_loss(came, np.broadcast_to(own, answer.quantiles.shape), levels).mean()
