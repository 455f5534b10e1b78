"""Sums per function: each score is the literature's, whatever the order in which forecasts came."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp_bench.forecast_baselines import moving_average, seasonal_naive
from mesp_bench.forecast_scores import (
    ACTIVE_SHARE,
    Tally,
    best_in_hindsight,
    log_losses_next_step,
    scaled_quantile_losses,
    scores,
)
from mesp_predictor import losses
from mesp_predictor.experts.base import Prediction

LEVELS = (0.1, 0.5, 0.9, 0.99)


def drawn(seed: int, functions: int, horizon: int) -> tuple[np.ndarray, Prediction]:
    """Counts and a forecast of them, (F, H)."""
    rng = np.random.default_rng(seed)
    quantiles = np.sort(rng.gamma(1, 2, (functions, horizon, len(LEVELS))).astype(np.float32), axis=-1)
    return rng.poisson(1.0, (functions, horizon)).astype(np.float64), Prediction(
        quantiles, rng.random((functions, horizon)).astype(np.float32)
    )


def test_a_hand_computed_case() -> None:
    """Two functions, one window of two steps, levels 0.5 and 0.9: every sum written out."""
    tally = Tally.empty(2, (0.5, 0.9), 2)
    quantiles = np.array([[[1, 3], [0, 2]], [[0, 0], [0, 1]]], np.float32)
    forecast = Prediction(quantiles, np.array([[0.8, 0.5], [0.1, 0.25]], np.float32))
    actual = np.array([[2.0, 0.0], [0.0, 4.0]])
    tally.add_window(actual, forecast)
    tally.add_step(actual[:, 0], np.array([True, False]), forecast, np.random.default_rng(0))
    # First function: 2 against 1 and 3: 0.5 * 1 + 0.1 * 1; 0 against 0 and 2: 0 + 0.1 * 2. Second: 0; 0.5 * 4 + 0.9 * 3.
    np.testing.assert_allclose(tally.pinball, [0.8, 4.7])
    naive = np.array([0.5, 0.001])
    np.testing.assert_allclose(scaled_quantile_losses(tally, naive), [0.2 / 0.5, 1.175 / 0.01])
    np.testing.assert_allclose(scaled_quantile_losses(tally, naive, floor=1), [0.2, 1.175])
    read = scores(tally, naive)
    assert read["scaled_quantile_loss"] == pytest.approx((0.4 + 117.5) / 2)
    assert read["wql"] == pytest.approx(2 * 5.5 / (2 * 6))
    assert read["log_loss_next_step"] == pytest.approx(-(np.log(0.8) + np.log(0.9)) / 2)
    assert read["log_loss_next_step_seen"] == pytest.approx(-np.log(0.8))
    assert read["brier_next_step"] == pytest.approx((0.2**2 + 0.1**2) / 2)
    assert read["log_loss_horizon"] == pytest.approx(-(np.log(0.8) + np.log(0.5) + np.log(0.9) + np.log(0.25)) / 4)
    assert read["calibration_error"] == pytest.approx((0.2 + 0.1) / 2)
    assert read["coverage_active"] == {"0.9": 100.0}  # the first function alone: the second was never active
    assert read["reliability"]["observed"][1] == 0
    assert read["reliability"]["observed"][12] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 30))
def test_streamed_sums_are_the_losses_of_the_whole(seed: int, functions: int, minutes: int) -> None:
    """Minute by minute or all at once: the scores are those of `mesp_predictor.losses`."""
    tally = Tally.empty(functions, LEVELS, 1)
    actual, forecast = drawn(seed, functions, minutes)
    for m in range(minutes):
        step = Prediction(forecast.quantiles[:, m : m + 1], forecast.active[:, m : m + 1])
        tally.add_step(actual[:, m], np.ones(functions, np.bool_), step, np.random.default_rng(m))
        tally.add_window(actual[:, m : m + 1], step)
    naive = np.linspace(0, 2, functions)
    read = scores(tally, naive)
    scaled = losses.scaled_quantile_loss(actual, forecast.quantiles, LEVELS, naive)
    np.testing.assert_allclose(scaled_quantile_losses(tally, naive), scaled, rtol=1e-6)
    np.testing.assert_allclose(log_losses_next_step(tally), losses.log_loss(actual > 0, forecast.active), rtol=1e-6)
    assert read["log_loss_horizon"] == pytest.approx(read["log_loss_next_step"])
    assert read["brier_next_step"] == pytest.approx(losses.brier_score(actual > 0, forecast.active).mean(), rel=1e-6)
    assert read["calibration_error"] == pytest.approx(losses.calibration_error(actual > 0, forecast.active), abs=1e-9)
    if actual.any():
        assert read["wql"] == pytest.approx(losses.wql(actual, forecast.quantiles, LEVELS), rel=1e-6)
    else:
        assert np.isnan(read["wql"])


def test_a_true_forecast_has_a_flat_pit_and_a_false_one_has_not() -> None:
    """Counts drawn from the forecast distribution fall evenly into its deciles; twice as many do not."""
    rng = np.random.default_rng(3)
    levels = tuple(np.linspace(0.02, 0.98, 49).tolist())
    sample = np.sort(rng.poisson(20_000, 200_000))
    quantiles = np.quantile(sample, levels).astype(np.float32)[None, None].repeat(400, axis=0)
    forecast = Prediction(quantiles, np.ones((400, 1), np.float32))
    true, false = Tally.empty(400, levels, 1), Tally.empty(400, levels, 1)
    for m in range(40):
        counts = rng.poisson(20_000, 400).astype(np.float64)
        true.add_step(counts, np.ones(400, np.bool_), forecast, np.random.default_rng(m))
        false.add_step(2 * counts, np.ones(400, np.bool_), forecast, np.random.default_rng(m))
    assert scores(true, np.ones(400))["pit_deviation"] < 1.5
    assert scores(false, np.ones(400))["pit_deviation"] > 80


def test_coverage_is_read_on_active_functions_alone() -> None:
    """A function silent in most minutes, covered always, does not flatter the busy one's coverage."""
    tally = Tally.empty(2, LEVELS, 1)
    forecast = Prediction(np.full((2, 1, 4), 3, np.float32), np.ones((2, 1), np.float32))
    for m in range(100):
        busy = 0.0 if m % 20 == 0 else (9.0 if m % 4 == 1 else 2.0)
        tally.add_step(np.array([busy, 0.0]), np.ones(2, np.bool_), forecast, np.random.default_rng(m))
    assert tally.active_steps[0] / 100 > ACTIVE_SHARE
    assert scores(tally, np.ones(2))["coverage_active"] == {"0.9": 75.0, "0.99": 75.0}
    assert np.isnan(scores(tally.take(np.array([1])), np.ones(1))["coverage_active"]["0.9"])


def test_a_rounded_average_covers_its_count() -> None:
    """Experts that all say 5 are averaged to a little less in float32: 5 is covered, 6 is not."""
    forecast = Prediction(np.full((1, 1, 4), np.nextafter(np.float32(5), np.float32(0))), np.ones((1, 1), np.float32))
    tally = Tally.empty(1, LEVELS, 1)
    for count in (5.0, 6.0):
        tally.add_step(np.array([count]), np.ones(1, np.bool_), forecast, np.random.default_rng(0))
    assert scores(tally, np.ones(1))["coverage_active"] == {"0.9": 50.0, "0.99": 50.0}


def test_what_a_model_does_not_say_is_not_scored() -> None:
    """A row of NaN adds nothing to its function and changes nothing of the others, the randomised PIT included."""
    actual, forecast = drawn(1, 3, 2)
    whole, holed = Tally.empty(3, LEVELS, 2), Tally.empty(3, LEVELS, 2)
    missing = dataclasses.replace(forecast, active=forecast.active.copy())
    missing.active[1] = np.nan
    for tally, said in ((whole, forecast), (holed, missing)):
        tally.add_window(actual, said)
        tally.add_step(actual[:, 0], np.ones(3, np.bool_), said, np.random.default_rng(0))
    np.testing.assert_array_equal(holed.steps, [1, 0, 1])
    np.testing.assert_array_equal(holed.windows, [1, 0, 1])
    others = np.array([0, 2])
    for name in ("pinball", "step_log_loss", "deciles", "reliability", "covered"):
        np.testing.assert_array_equal(getattr(holed, name)[others], getattr(whole, name)[others])
        assert not getattr(holed, name)[1].any()
    assert np.isnan(scaled_quantile_losses(holed, np.ones(3))[1])
    assert scores(holed, np.ones(3))["scaled_quantile_loss"] == pytest.approx(
        scores(whole.take(others), np.ones(2))["scaled_quantile_loss"]
    )


def test_nothing_scored_is_nan_and_no_warning() -> None:
    """An empty tally has no scores, rather than zeros that look like perfection."""
    read = scores(Tally.empty(2, LEVELS, 3), np.ones(2))
    assert all(np.isnan(value) for value in read.values() if isinstance(value, float))


def test_the_oracle_takes_each_function_from_its_best_expert() -> None:
    """Quantile loss and log loss are chosen apart; an expert that said nothing is never chosen."""
    experts = [Tally.empty(3, LEVELS, 1) for _ in range(3)]
    for expert, pinball, log_loss in zip(
        experts, ((1, 5, 3), (2, 4, 9), (0, 0, 0)), ((7, 1, 1), (6, 2, 2), (0, 0, 0)), strict=True
    ):
        expert.pinball[:], expert.step_log_loss[:] = pinball, log_loss
    for expert in experts[:2]:
        expert.windows[:], expert.steps[:] = 1, 1
    oracle = best_in_hindsight(experts)
    np.testing.assert_array_equal(oracle.pinball, [1, 4, 3])
    np.testing.assert_array_equal(oracle.step_log_loss, [6, 1, 1])


def test_the_moving_average_is_the_last_hour() -> None:
    """20 active minutes of the last 60, each of 3 invocations: a share of 20.5 / 61, and quantiles 0 and 3."""
    history = np.zeros((1, 100))
    history[0, :40] = 50
    history[0, -20:] = 3
    said = moving_average(history, 4, (0.5, 0.9))
    np.testing.assert_allclose(said.active, np.full((1, 4), 20.5 / 61), rtol=1e-6)
    np.testing.assert_array_equal(said.quantiles, np.broadcast_to([0, 3], (1, 4, 2)))


def test_the_seasonal_naive_repeats_the_hour() -> None:
    """An hourly timer on minute 7 is expected on minute 7 of the next hour alone; before an hour has passed there is no season."""
    history = np.zeros((1, 180))
    history[0, 7::60] = 2
    said = seasonal_naive(history, 15, (0.5,))
    np.testing.assert_array_equal(np.flatnonzero(said.quantiles[0, :, 0]), [7])
    assert said.active[0, 7] == pytest.approx(3.5 / 4)
    assert said.active[0, 8] == pytest.approx(0.5 / 4)
    young = seasonal_naive(history[:, :30], 15, (0.5,))
    np.testing.assert_array_equal(young.active, moving_average(history[:, :30], 15, (0.5,)).active)
