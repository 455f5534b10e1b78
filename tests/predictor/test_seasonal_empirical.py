"""The seasonal empirical distribution: phases read as they were, doubt where no period helps, and what is learned."""

from __future__ import annotations

import numpy as np
import pytest

from mesp.types import FloatArray, FunctionKey
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.seasonal_empirical import (
    DOUBTS,
    MEMORIES,
    SEASONAL_EMPIRICAL,
    SeasonalEmpiricalExpert,
    SeasonalEmpiricalSettings,
)
from mesp_predictor.losses import log_loss
from mesp_predictor.statistics import Statistics

EXPERT = SeasonalEmpiricalExpert(memory=0.85, doubt=3.0)


def context(counts: FloatArray, missing_before: int = 0) -> Context:
    statistics = Statistics.empty(len(counts))
    for t, column in enumerate(counts.T):
        statistics.update(column if t >= missing_before else np.full_like(column, np.nan))
    return Context(counts.shape[1], counts, statistics, np.full(len(counts), -1))


def test_each_phase_has_its_own_counts() -> None:
    """Of a period of 12 with 3 calls at one phase and 70 or 90 in turn at another, the forecast is just that."""
    cycle = np.zeros((40, 12), np.float32)
    cycle[:, 2] = 3
    cycle[:, 7] = np.where(np.arange(40) % 2, 90, 70)
    answer = EXPERT.predict(context(cycle.reshape(1, -1)), 24, (0.3, 0.5, 0.7))
    phase = np.arange(24) % 12
    due = (phase == 2) | (phase == 7)
    assert (answer.active[0, due] > 0.95).all()
    assert (answer.active[0, ~due] < 0.02).all()
    np.testing.assert_array_equal(answer.quantiles[0, phase == 2], 3)
    assert (answer.quantiles[0, phase == 7][:, 0] == 70).all()
    assert (answer.quantiles[0, phase == 7][:, 2] == 90).all()
    assert (answer.quantiles[0, ~due] == 0).all()


def test_newer_cycles_weigh_more() -> None:
    """A timer whose count rose from 5 to 9 three cycles ago is expected with 9 at the median."""
    counts = np.zeros((1, 200), np.float32)
    counts[0, 9::10] = 5
    counts[0, -50::10] = 0
    counts[0, [159, 169, 179, 189, 199]] = 9
    assert EXPERT.predict(context(counts), 10, (0.5,)).quantiles[0, 9, 0] == 9


def test_a_function_without_period_is_forecast_at_its_rate() -> None:
    """Poisson streams have no best period worth the name: forecasts at all phases are near the recent rate."""
    counts = np.random.default_rng(0).poisson(0.3, (40, 500)).astype(np.float32)
    expert = SeasonalEmpiricalExpert(memory=0.95, doubt=100.0)
    answer = expert.predict(context(counts), 15, (0.5,))
    recent = (counts[:, -120:] > 0).mean(axis=1, keepdims=True)
    assert np.abs(answer.active - recent).max() < 0.12


def test_what_was_not_observed_is_no_zero() -> None:
    """A timer heard of four cycles ago is as certain at its phase as those four cycles make it, zeros before or not."""
    counts = np.zeros((1, 240), np.float32)
    counts[0, 211::10] = 2
    late = EXPERT.predict(context(counts, missing_before=200), 10, (0.5,)).active[0, 1]
    silent = EXPERT.predict(context(counts), 10, (0.5,)).active[0, 1]
    assert late > silent
    assert late > 0.5


@pytest.mark.parametrize(("regular", "doubted"), [(True, False), (False, True)])
def test_the_training_set_decides_the_doubt(regular: bool, doubted: bool) -> None:
    """A fleet of timers teaches little doubt, a fleet of streams much; both beat the fleet's rate on unseen functions."""
    rng = np.random.default_rng(4)

    def fleet(functions: int) -> FloatArray:
        if not regular:
            rate = np.exp(rng.uniform(np.log(0.02), np.log(2), (functions, 1)))
            return rng.poisson(rate, (functions, 700)).astype(np.float32)
        period, phase = rng.choice([5, 10, 15, 30], (2, functions, 1))
        timers: FloatArray = (np.arange(700) % period == phase % period).astype(np.float32)
        return timers

    counts = fleet(40)
    keys = tuple(FunctionKey("scope", str(i)) for i in range(40))
    data = TrainingSet(counts, 0, np.full(40, -1), 0, keys, 60)
    expert = SEASONAL_EMPIRICAL.fit(data, SeasonalEmpiricalSettings(moments=8), Training(0))
    assert isinstance(expert, SeasonalEmpiricalExpert)
    assert expert.memory in MEMORIES
    assert (expert.doubt >= np.median(DOUBTS)) == doubted
    unseen = fleet(60)
    answer = expert.predict(context(unseen[:, :-15]), 15, (0.5,))
    came = unseen[:, -15:] > 0
    constant = np.full_like(answer.active, came.mean())
    assert log_loss(came, answer.active).mean() < 0.85 * log_loss(came, constant).mean()
