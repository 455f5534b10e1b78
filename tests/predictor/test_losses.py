"""The scores, each with its arithmetic written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesp_predictor import losses

LEVELS = (0.1, 0.5, 0.9)


def test_quantile_loss_weighs_an_actual_above_by_q_and_one_below_by_one_minus_q() -> None:
    """At level 0.9: 2 above costs 0.9 * 2 = 1.8; 2 below costs 0.1 * 2 = 0.2; equal costs nothing."""
    actual = np.array([5.0, 1.0, 3.0])
    loss = losses.quantile_loss(actual, np.full((3, 1), 3.0), np.full(1, 0.9))
    assert loss[:, 0] == pytest.approx([1.8, 0.2, 0.0])


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=5),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
)
def test_quantile_loss_is_the_pinball_and_the_same_in_torch(a: list[float], q: list[float], level: float) -> None:
    """(|e| + (2q - 1) e) / 2 is max(q e, (q - 1) e), in numpy and in torch."""
    actual, quantiles = np.array(a, np.float64), np.tile(np.array(q, np.float64), (len(a), 1))
    error = actual[:, None] - quantiles
    expected = np.maximum(level * error, (level - 1) * error)
    levels = np.full(len(q), level, np.float64)
    assert losses.quantile_loss(actual, quantiles, levels) == pytest.approx(expected, abs=1e-6)
    trained = losses.quantile_loss(*map(torch.from_numpy, (actual, quantiles, levels)))
    assert trained.numpy() == pytest.approx(expected, abs=1e-6)


def test_quantile_loss_is_least_at_the_quantile() -> None:
    """Of 100 counts 0..99 the level 0.9 is best forecast by 90 (or its neighbours), not by 80 or 99."""
    forecasts = np.tile(np.array([80.0, 90.0, 99.0]), (100, 1))
    cost = losses.quantile_loss(np.arange(100.0), forecasts, np.full(3, 0.9)).mean(axis=0)
    assert cost.argmin() == 1


def test_naive_error_is_the_mean_step_to_step_change() -> None:
    """0, 2, 2, 5 changes by 2, 0, 3: mean 5/3; a constant changes by 0."""
    assert losses.naive_error(np.array([[0, 2, 2, 5], [7, 7, 7, 7]])) == pytest.approx([5 / 3, 0])


def test_scaled_quantile_loss_is_in_units_of_the_naive_error_with_a_floor() -> None:
    """Median forecasts off by 1 cost 0.5: over naive error 2 that is 0.25, over 0 it is 0.5 / 0.01 = 50."""
    actual = np.array([[1.0, 3.0], [1.0, 3.0]])
    quantiles = np.full((2, 2, 1), 2.0)
    loss = losses.scaled_quantile_loss(actual, quantiles, (0.5,), np.array([2.0, 0.0]))
    assert loss == pytest.approx([0.25, 50])
    assert losses.scaled_quantile_loss(actual, quantiles, (0.5,), np.array([2.0, 0.0]), floor=1)[1] == pytest.approx(
        0.5
    )


def test_scaled_quantile_loss_does_not_see_the_unit() -> None:
    """Counts, forecast and naive error times 1000: the same score."""
    rng = np.random.default_rng(1)
    actual, quantiles = rng.random((4, 5)), np.sort(rng.random((4, 5, 3)))
    small = losses.scaled_quantile_loss(actual, quantiles, LEVELS, np.ones(4))
    large = losses.scaled_quantile_loss(1e3 * actual, 1e3 * quantiles, LEVELS, np.full(4, 1e3))
    assert large == pytest.approx(small)


def test_wql_pools_by_volume() -> None:
    """Errors 1 and 10 at the median, volume 10 + 90: 2 * (0.5 + 5) / (1 * 100) = 0.11; of nothing it is NaN."""
    actual, quantiles = np.array([10.0, 90.0]), np.array([[9.0], [80.0]])
    assert losses.wql(actual, quantiles, (0.5,)) == pytest.approx(0.11)
    assert math.isnan(losses.wql(np.zeros(2), quantiles, (0.5,)))


def test_log_loss_is_minus_the_log_of_what_was_given_to_what_happened() -> None:
    """Given 0.8 and active, 0.4 and silent: -(log 0.8 + log 0.6) / 2; certain and wrong stays finite."""
    occurred, active = np.array([[True, False]]), np.array([[0.8, 0.4]])
    assert losses.log_loss(occurred, active) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert losses.log_loss(np.array([True]), np.array([0.0])) == pytest.approx(-math.log(1e-7))


def test_brier_score_is_the_mean_squared_error() -> None:
    """Given 0.8 and active, 0.4 and silent: (0.2^2 + 0.4^2) / 2 = 0.1."""
    assert losses.brier_score(np.array([True, False]), np.array([0.8, 0.4])) == pytest.approx(0.1)


def test_calibration_error_is_the_weighted_gap_between_said_and_seen() -> None:
    """Said 0.2 four times and seen once: gap 0.05; said 1 once and not seen: gap 1; (4 * 0.05 + 1 * 1) / 5 = 0.24."""
    occurred = np.array([True, False, False, False, False])
    active = np.array([0.2, 0.2, 0.2, 0.2, 1.0])
    assert losses.calibration_error(occurred, active, bins=10) == pytest.approx(0.24)


def test_calibration_error_of_a_true_forecast_vanishes() -> None:
    """Events drawn with the very probabilities said leave next to nothing; with their square they do not."""
    rng = np.random.default_rng(2)
    p = rng.random(100_000)
    assert losses.calibration_error(rng.random(p.shape) < p, p) < 0.01
    assert losses.calibration_error(rng.random(p.shape) < p**2, p) > 0.1


def test_pit_spreads_a_count_over_its_share_of_the_distribution() -> None:
    """Active with 0.4, then 1 or 2 with 0.3 and 0.1: a silent step falls in [0, 0.6], a 1 in [0.6, 0.9], a 2 above."""
    levels = (0.5, 0.7, 0.9, 0.95)
    quantiles = np.tile([0.0, 1.0, 1.0, 2.0], (3000, 1))
    actual = np.repeat([0, 1, 2], 1000)
    u = losses.pit(actual, quantiles, np.full(3000, 0.4), levels, np.random.default_rng(3)).reshape(3, 1000)
    for values, low, high in zip(u, (0, 0.6, 0.9), (0.6, 0.9, 1), strict=True):
        assert values.min() == pytest.approx(low, abs=0.01)
        assert values.max() == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(("rate", "told", "uniform"), [(0.3, 0.3, True), (3.0, 3.0, True), (3.0, 6.0, False)])
def test_pit_is_uniform_where_the_forecast_is_true(rate: float, told: float, uniform: bool) -> None:
    """Poisson counts under their own quantiles give tenths of about a tenth; under another rate's they do not."""
    rng = np.random.default_rng(4)
    levels = tuple(np.arange(1, 100) / 100)
    draws = rng.poisson(told, 200_000)
    quantiles = np.quantile(draws, levels, method="inverted_cdf")
    actual = rng.poisson(rate, 20_000)
    active = np.full(actual.shape, 1 - math.exp(-told))
    u = losses.pit(actual, np.tile(quantiles, (len(actual), 1)), active, levels, rng)
    assert u.min() >= 0
    assert u.max() <= 1
    deviation = np.abs(np.histogram(u, 10, (0, 1))[0] / len(u) - 0.1).max()
    assert (deviation < 0.015) == uniform
