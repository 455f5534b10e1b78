"""The router: scores, Hedge, the trained gate, and the coherent answer that they weigh."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.types import DEFAULT_LEVELS
from mesp_predictor import router as routing
from mesp_predictor.experts.base import Prediction
from mesp_predictor.router import Gate, GateSamples, Router, fit_gate
from mesp_predictor.statistics import FEATURES

INPUTS = len(FEATURES)
RNG_SEED = 3


def scored(outcomes: list[bool], forecast: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    losses = routing.new_losses(1, len(forecast))
    for outcome in outcomes:
        routing.score(losses, np.array([forecast], np.float32), np.array([outcome]), np.array([True]))
    return losses


# -- losses and Hedge --------------------------------------------------------------------------------------------------


def test_losses_are_running_means_of_the_log_loss() -> None:
    """One step moves the mean with half-life 30 by 1 - 0.5^(1/30) of the way from a coin's loss to the step's."""
    losses = scored([True], [0.25])
    expected = [math.log(2) + (1 - 0.5 ** (1 / h)) * (-math.log(0.25) - math.log(2)) for h in routing.LOSS_HALF_LIVES]
    np.testing.assert_allclose(losses[0, 0], expected, rtol=1e-5)
    long = scored([False] * 5000, [0.25])
    np.testing.assert_allclose(long[0, 0], -math.log(0.75), rtol=1e-3)


def test_unknown_steps_and_absent_answers_are_not_scored() -> None:
    """A step that was not observed teaches nothing, nor does an expert without an answer, whoever else had one."""
    losses = routing.new_losses(2, 2)
    forecast = np.array([[0.9, np.nan], [0.9, 0.1]], np.float32)
    routing.score(losses, forecast, np.array([True, True]), np.array([True, False]))
    assert (losses[0, 0] < routing.INITIAL_LOSS).all()
    assert (losses[0, 1] == np.float32(routing.INITIAL_LOSS)).all()
    assert (losses[1] == np.float32(routing.INITIAL_LOSS)).all()


def test_certain_forecasts_lose_finitely() -> None:
    """A forecast of 0 or 1 that fails costs much, and not without bound."""
    losses = scored([True, False], [0.0, 1.0])
    assert np.isfinite(losses).all()
    assert (losses > routing.INITIAL_LOSS).all()


def test_hedge_follows_the_better_expert() -> None:
    """The expert that loses less gets nearly all of the weight, and loses it when its luck turns; at first all share."""
    np.testing.assert_allclose(routing.hedge(routing.new_losses(1, 2)), [[0.5, 0.5]])
    good = [t % 2 == 0 for t in range(100)]
    losses = scored(good, [0.5, 0.05])
    assert routing.hedge(losses)[0, 0] > 0.9
    for _ in range(1000):
        routing.score(losses, np.array([[0.5, 0.05]], np.float32), np.array([False]), np.array([True]))
    assert routing.hedge(losses)[0, 1] > 0.99


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 20))
def test_weights_are_shares(seed: int, scale: float) -> None:
    """Rows are non-negative and sum to 1, by Hedge and by a gate, whatever they read."""
    rng = np.random.default_rng(seed)
    losses = rng.uniform(0, 9, (4, 3, 2)).astype(np.float32)
    features = (scale * rng.standard_normal((4, INPUTS))).astype(np.float32)
    forecast, distances = rng.random((4, 3), np.float32), rng.random((4, 2), np.float32)
    gate = Gate(3, 2)
    torch.nn.init.normal_(next(iter(gate.body[2].parameters())))
    for router in (Router(), Router(gate)):
        weights = router.weights(features, forecast, losses, distances)
        assert weights.dtype == np.float32
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


# -- the combined answer -----------------------------------------------------------------------------------------------


def prediction(rng: np.random.Generator, levels: int) -> Prediction:
    quantiles = np.sort(rng.exponential(3, (2, 3, levels)).astype(np.float32) * rng.integers(0, 2), axis=2)
    return Prediction(quantiles, rng.choice([0, 0.001, 0.3, 0.5, 0.9, 1], (2, 3)).astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.floats(0.001, 0.999), min_size=1, max_size=11, unique=True))
def test_the_answer_is_coherent(seed: int, levels: list[float]) -> None:
    """Quantiles rise along the levels and are 0 exactly where the level is at most 1 - active, else at least 1."""
    rng = np.random.default_rng(seed)
    ascending = tuple(sorted(levels))
    weights = rng.dirichlet([1, 1, 1], 2).astype(np.float32)
    answer = routing.combine(weights, [prediction(rng, len(levels)) for _ in range(3)], ascending)
    assert ((answer.active > 0) & (answer.active < 1)).all()
    assert (np.diff(answer.quantiles, axis=2) >= 0).all()
    silent = np.asarray(ascending, np.float32) <= 1 - answer.active[..., None]
    assert (answer.quantiles[silent] == 0).all()
    assert (answer.quantiles[~silent] >= 1).all()


def test_the_answer_of_a_worked_example() -> None:
    """Odds of 1:1 and 1:16 at half weight each pool to 1:4; quantiles 10 and 2 average to 6."""
    answers = [
        Prediction(np.full((1, 1, 2), quantile, np.float32), np.full((1, 1), active, np.float32))
        for quantile, active in ((10, 1 / 2), (2, 1 / 17))
    ]
    mixed = routing.combine(np.array([[0.5, 0.5]], np.float32), answers, (0.75, 0.85))
    assert mixed.active[0, 0] == pytest.approx(0.2, abs=1e-6)
    assert mixed.quantiles[0, 0].tolist() == [0, 6]


def test_one_expert_with_all_the_weight_is_the_answer() -> None:
    """Weight 1 gives back that expert's own coherent forecast."""
    rng = np.random.default_rng(0)
    answers = [prediction(rng, len(DEFAULT_LEVELS)) for _ in range(2)]
    answers[0].active[:] = 0.4
    mixed = routing.combine(np.array([[1, 0], [1, 0]], np.float32), answers, DEFAULT_LEVELS)
    np.testing.assert_allclose(mixed.active, answers[0].active, atol=1e-6)


# -- the trained gate --------------------------------------------------------------------------------------------------


def two_experts(functions: int = 4000) -> GateSamples:
    """One of two experts is right, and the first feature that the gate reads says which."""
    rng = np.random.default_rng(RNG_SEED)
    first_knows = rng.random(functions) < 0.5
    active = rng.random(functions) < 0.5
    truth = np.where(active, 0.95, 0.05)
    forecast = np.where(np.stack([first_knows, ~first_knows], 1), truth[:, None], 1 - truth[:, None]).astype(np.float32)
    features = rng.standard_normal((functions, INPUTS)).astype(np.float32)
    features[:, FEATURES.index(routing.GATE_FEATURES[0])] = np.where(first_knows, 1, -1)
    inputs = routing.gate_inputs(
        features, forecast, routing.new_losses(functions, 2), np.ones((functions, 1), np.float32)
    )
    quantiles = np.broadcast_to((forecast > 0.5)[:, :, None, None], (functions, 2, 1, 2)).astype(np.float32)
    counts = active[:, None].astype(np.float32)
    counts[::10] = np.nan
    return GateSamples(
        inputs, forecast[..., None], quantiles, counts, np.ones(functions, np.float32), np.arange(functions) % 10
    )


def test_an_untaught_gate_starts_even() -> None:
    """Before its first lesson a gate gives every expert the same weight, whatever it reads."""
    weights = routing.gate_weights(
        Gate(4, 1), two_experts(8).inputs[:, :1] * np.ones((1, Gate(4, 1).mean.numel()), np.float32)
    )
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)


def test_the_gate_learns_whom_to_trust() -> None:
    """Where a feature says which of two experts is right, the trained gate gives that one the weight."""
    samples = two_experts()
    told: list[float] = []
    gate = fit_gate(samples, 1, (0.5, 0.9), seed=0, epochs=10, progress=told.append)
    weights = routing.gate_weights(gate, samples.inputs)
    right = np.where(samples.inputs[:, 0] > 0, weights[:, 0], weights[:, 1])
    assert right.mean() > 0.9
    assert told == [(epoch + 1) / 10 for epoch in range(10)]
    assert not gate.training


def test_the_gate_follows_from_its_seed_alone() -> None:
    """The same samples and seed give the same gate bit for bit; torch's own random state is as it was."""
    samples = two_experts(300)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one = fit_gate(samples, 1, (0.5, 0.9), seed=1, epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    two = fit_gate(samples, 1, (0.5, 0.9), seed=1, epochs=2)
    other = fit_gate(samples, 1, (0.5, 0.9), seed=2, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_handful_of_samples_is_enough_to_run() -> None:
    """Fewer samples than a batch train all the same."""
    gate = fit_gate(two_experts(20), 1, (0.5, 0.9), seed=0, epochs=1)
    assert all(torch.isfinite(p).all() for p in gate.parameters())
