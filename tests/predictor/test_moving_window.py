"""The moving window: its laws against scipy's, its mixture, and what its windows teach it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.stats import nbinom  # type: ignore[import-untyped]

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.moving_window import (
    MOVING_WINDOW,
    MovingWindowExpert,
    MovingWindowSettings,
    _distribution,
    _Laws,
    _laws,
    _quantiles,
)
from mesp_predictor.losses import log_loss, quantile_loss
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray

LEVELS = np.array(DEFAULT_LEVELS)


def training_set(counts: FloatArray) -> TrainingSet:
    keys = tuple(FunctionKey("scope", str(i)) for i in range(len(counts)))
    return TrainingSet(counts, 0, np.full(len(counts), -1), 0, keys, 60)


def context(counts: FloatArray) -> Context:
    statistics = Statistics.empty(len(counts))
    statistics.age[:] = counts.shape[1]  # all that a moving window asks of them
    return Context(counts.shape[1], counts, statistics, np.full(len(counts), -1))


def bursty_fleet(functions: int, steps: int, seed: int) -> FloatArray:
    """Rates from 0.01 to 30 a step that change every 200 steps, counts more spread than a Poisson stream's."""
    rng = np.random.default_rng(seed)
    rate = np.exp(
        rng.uniform(np.log(0.01), np.log(30), (functions, 1)) + 0.7 * rng.normal(size=(functions, steps // 200))
    )
    return rng.poisson(rng.gamma(2.0, np.repeat(rate, 200, axis=1) / 2)).astype(np.float32)


# -- laws --------------------------------------------------------------------------------------------------------------

law = st.tuples(st.integers(0, 30), st.floats(0.01, 1e4), st.floats(1e-3, 50))


@settings(max_examples=60, deadline=None)
@given(st.lists(law, min_size=1, max_size=3))
def test_laws_are_scipys_negative_binomials(components: list[tuple[int, float, float]]) -> None:
    """Chance of 0, likelihood and distribution are scipy's, counted from the least count on."""
    least, mean, dispersion = (np.array(column, np.float64)[None] for column in zip(*components, strict=True))
    laws = _Laws(least, mean, dispersion)
    size = 1 / dispersion
    own = nbinom(size, size / (size + mean))
    np.testing.assert_allclose(laws.silent(), own.pmf(-least), rtol=1e-6, atol=1e-12)
    counts = np.array([[0.0, 1.0, 7.0, 40.0, 3000.0]])
    for count in counts[0]:
        np.testing.assert_allclose(
            laws.log_likelihood(np.array([[count]])), own.logpmf(count - least), rtol=1e-6, atol=1e-6
        )
    weights = np.full(len(components), 1 / len(components))
    expected = np.mean([own.cdf(counts.T - least)], axis=(0, 2))
    np.testing.assert_allclose(_distribution(counts, laws, weights)[0], expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(law, min_size=1, max_size=3))
def test_quantiles_are_where_the_mixture_comes_up_to_the_level(components: list[tuple[int, float, float]]) -> None:
    """Up to 12 exactly the least count that reaches the level; above, its probability is within 0.08 of the level."""
    laws = _Laws(*(np.array(column, np.float64)[None] for column in zip(*components, strict=True)))
    weights = np.full(len(components), 1 / len(components))
    found = _quantiles(laws, weights, DEFAULT_LEVELS)
    reached = _distribution(found, laws, weights)[0]
    before = _distribution(np.maximum(found - 1, 0), laws, weights)[0] * (found[0] > 0)
    small = found[0] <= 12
    assert (reached[small] >= LEVELS[small] - 1e-9).all()
    assert (before[small] < LEVELS[small] + 1e-9).all()
    assert (reached > LEVELS - 0.08).all()
    assert (before < LEVELS + 0.08).all()


def test_moments_of_a_worked_example() -> None:
    """Counts 1, 1, 4 (least 1, above it 0, 0, 3) with a prior of one step of rate 1 and dispersion 2 for one step.

    Mean (3 + 1) / (3 + 1) = 1. Squares sum to 9 - 3 * 1 = 6, 3 more than a Poisson law's: (3 + 2 * 1) / (3 + 1) = 1.25.
    """
    laws = _laws(np.array([[9, 1, 1, 4]], np.float32), np.array([4]), (3,), np.array([1.0, 1.0, 2.0, 1.0]))
    np.testing.assert_allclose(laws.least, [[1, 0]])
    np.testing.assert_allclose(laws.mean, [[1, 1]])
    np.testing.assert_allclose(laws.dispersion, [[1.25, 2]])


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> MovingWindowExpert:
    expert = MOVING_WINDOW.fit(
        training_set(bursty_fleet(60, 1000, 1)), MovingWindowSettings(samples=2_000), Training(0)
    )
    assert isinstance(expert, MovingWindowExpert)
    return expert


def test_it_beats_any_constant_forecast(trained: MovingWindowExpert) -> None:
    """On unseen functions the log loss of activity and the quantile loss are well below the best constant forecast's."""
    counts = bursty_fleet(150, 1000, 2)
    answer = trained.predict(context(counts[:, :-15]), 15, DEFAULT_LEVELS)
    came = counts[:, -15:]
    constant = np.full_like(answer.active, (came > 0).mean())
    assert log_loss(came > 0, answer.active).mean() < 0.6 * log_loss(came > 0, constant).mean()
    best = np.broadcast_to(np.quantile(came, LEVELS), answer.quantiles.shape)
    ours = quantile_loss(came.astype(np.float64), answer.quantiles.astype(np.float64), LEVELS).mean()
    assert ours < 0.6 * quantile_loss(came.astype(np.float64), best, LEVELS).mean()
    assert (came <= answer.quantiles[..., -1])[came > 0].mean() > 0.95


def test_a_steady_function_is_forecast_as_steady(trained: MovingWindowExpert) -> None:
    """Called 14 times every step, 14 is the forecast at levels 0.1 to 0.9; a silent function is hardly expected."""
    answer = trained.predict(
        context(np.stack([np.full(512, 14), np.zeros(512)]).astype(np.float32)), 2, (0.1, 0.5, 0.9)
    )
    assert (answer.quantiles[0] == 14).all()
    assert (answer.active[0] > 0.98).all()
    assert (answer.active[1] < 0.05).all()
    assert (answer.active[:, 0] == answer.active[:, 1]).all()


def test_without_a_past_the_prior_answers(trained: MovingWindowExpert) -> None:
    """Functions never observed and functions with a past of quiet steps differ: the latter are expected less."""
    empty = Context(0, np.zeros((1, 512), np.float32), Statistics.empty(1), np.array([-1]))
    quiet = trained.predict(context(np.zeros((1, 512), np.float32)), 1, (0.5,))
    assert trained.predict(empty, 1, (0.5,)).active[0, 0] > 2 * quiet.active[0, 0]


def test_weights_that_are_no_weights_are_refused(trained: MovingWindowExpert, tmp_path: Path) -> None:
    """Weights with another sum than 1, a prior that is not positive, and fewer weights than windows are named."""
    trained.save(tmp_path)
    halved = (trained.weights / 2).astype(np.float32)
    damaged: tuple[tuple[FloatArray, FloatArray, str], ...] = (
        (trained.prior, halved, "key weights"),
        (-trained.prior, trained.weights, "key prior"),
    )
    for prior, weights, said in damaged:
        save_file({"prior": prior, "weights": weights}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=said):
            MovingWindowExpert.load(tmp_path)
    config = {"kind": "moving_window", "windows": [15], "samples": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="key weights has shape"):
        MovingWindowExpert.load(tmp_path)
