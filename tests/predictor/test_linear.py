"""The linear model: what it learns, that it is a distribution whatever its weights, and its fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FloatArray, FunctionKey
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.linear import (
    GRID,
    LINEAR,
    LinearExpert,
    LinearNetwork,
    LinearSettings,
    LinearShape,
    tune_linear,
    window_scale,
)
from mesp_predictor.losses import log_loss, quantile_loss
from mesp_predictor.statistics import Statistics

SETTINGS = LinearSettings(context=120, rank=4, batch=64, training_steps=250, learning_rate=1e-2)


def context(counts: FloatArray) -> Context:
    return Context(counts.shape[1], counts, Statistics.empty(len(counts)), np.full(len(counts), -1))


def training_set(counts: FloatArray) -> TrainingSet:
    keys = tuple(FunctionKey("scope", str(i)) for i in range(len(counts)))
    return TrainingSet(counts, 0, np.full(len(counts), -1), 0, keys, 20)


def hourly_fleet(functions: int, seed: int, period: int = 30) -> FloatArray:
    """Counts around 0.5 to 50 in a third of every half hour, at a phase of the function's own, (functions, 400)."""
    rng = np.random.default_rng(seed)
    minute, phase = np.arange(400), rng.integers(0, period, (functions, 1))
    level = np.exp(rng.uniform(np.log(0.5), np.log(50), (functions, 1)))
    return rng.poisson(level * ((minute + phase) % period < period // 3)).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> LinearExpert:
    counts = hourly_fleet(60, 1)
    counts[:5, :30] = np.nan
    expert = LINEAR.fit(training_set(counts), SETTINGS, Training(0))
    assert isinstance(expert, LinearExpert)
    return expert


def losses(expert: LinearExpert, counts: FloatArray) -> tuple[float, float, float, float]:
    """Log loss of activity and quantile loss of the forecast, each beside the best constant's."""
    answer = expert.predict(context(counts[:, :-20]), 20, DEFAULT_LEVELS)
    came, levels = counts[:, -20:].astype(np.float64), np.array(DEFAULT_LEVELS)
    constant = np.full_like(answer.active, (came > 0).mean())
    best = np.broadcast_to(np.quantile(came, levels), answer.quantiles.shape)
    return (
        float(log_loss(came > 0, answer.active).mean()),
        float(log_loss(came > 0, constant).mean()),
        float(quantile_loss(came, answer.quantiles.astype(np.float64), levels).mean()),
        float(quantile_loss(came, best, levels).mean()),
    )


def test_it_beats_any_constant_forecast(trained: LinearExpert) -> None:
    """It has learned the half hour from other functions: both losses are far below the best constant's, at all levels."""
    activity, constant_activity, ours, constant = losses(trained, hourly_fleet(150, 2))
    assert activity < 0.6 * constant_activity
    assert ours < 0.5 * constant


def test_any_weights_give_a_distribution_of_counts() -> None:
    """Untrained, with wild weights, quantiles rise along the levels from the image of one invocation on."""
    torch.manual_seed(0)
    network = LinearNetwork(LinearShape(context=40, max_horizon=7, rank=3))
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=2)
    counts = torch.from_numpy(hourly_fleet(9, 3)[:, :40])
    with torch.inference_mode():
        logit, quantiles = network(counts)
    assert logit.shape == (9, 7)
    assert quantiles.shape == (9, 7, len(GRID))
    assert (quantiles.diff(dim=2) >= 0).all()
    assert (quantiles >= torch.asinh(1 / window_scale(counts))[..., None]).all()


def test_tuning_helps_the_part_and_leaves_the_whole(trained: LinearExpert) -> None:
    """Trained on with functions of another period, a copy forecasts these better; the expert itself is as it was."""
    before = {key: weight.clone() for key, weight in trained.network.state_dict().items()}
    part = hourly_fleet(60, 5, period=20)
    tuned = tune_linear(trained, training_set(part), SETTINGS.model_copy(update={"training_steps": 800}), Training(0))
    unseen = hourly_fleet(150, 6, period=20)
    assert losses(tuned, unseen)[0] < 0.8 * losses(trained, unseen)[0]
    assert all(torch.equal(before[key], weight) for key, weight in trained.network.state_dict().items())
    assert LINEAR.tune is tune_linear


def test_training_leaves_torch_alone() -> None:
    """Torch's own random state is as it was; other seeds train other weights."""
    few = SETTINGS.model_copy(update={"training_steps": 2})
    before = torch.random.get_rng_state()
    one, other = (LINEAR.fit(training_set(hourly_fleet(5, 0)), few, Training(seed)) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    asked = context(hourly_fleet(5, 0))
    assert not np.array_equal(one.predict(asked, 3, (0.5,)).active, other.predict(asked, 3, (0.5,)).active)


@pytest.mark.parametrize("horizon", [0, 21])
def test_a_horizon_beyond_the_training_is_refused(trained: LinearExpert, horizon: int) -> None:
    """It says what it was asked and what it can."""
    with pytest.raises(InputError, match=rf"horizon = {horizon} steps, must be in \[1; 20\]"):
        trained.predict(context(hourly_fleet(2, 0)), horizon, (0.5,))
