"""The router: scores, Hedge, the trained gate, and the coherent answer that they weigh."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.types import DEFAULT_LEVELS
from mesp_predictor import router as routing
from mesp_predictor.experts.base import Prediction
from mesp_predictor.router import Gate, GateSamples, Router, Weights, fit_gate
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from mesp.types import FloatArray

INPUTS = len(FEATURES)
RNG_SEED = 3
LEVELS = (0.5, 0.9)


def said(active: list[list[float]], quantiles: list[list[list[float]]] | None = None) -> Prediction:
    """Every expert's forecast of one step, (F, E) and (F, E, levels); without quantiles none of them had any."""
    probabilities = np.array(active, np.float32)
    none = np.full((*probabilities.shape, len(LEVELS)), np.nan)
    return Prediction(np.array(none if quantiles is None else quantiles, np.float32), probabilities)


def score(losses: FloatArray, forecast: Prediction, counts: list[float], known: list[bool]) -> None:
    routing.score(losses, forecast, np.array(LEVELS, np.float32), np.array(counts, np.float32), np.array(known))


def scored(outcomes: list[bool], forecast: list[float]) -> FloatArray:
    """Losses of experts that said the same of one function at every step."""
    losses = routing.new_losses(1, len(forecast))
    for outcome in outcomes:
        score(losses, said([forecast]), [outcome], [True])
    return losses


# -- losses and Hedge --------------------------------------------------------------------------------------------------


def test_losses_are_running_means_of_the_log_loss() -> None:
    """One step moves the mean with half-life 30 by 1 - 0.5^(1/30) of the way from a coin's loss to the step's."""
    losses = scored([True], [0.25])
    expected = [math.log(2) + (1 - 0.5 ** (1 / h)) * (-math.log(0.25) - math.log(2)) for h in routing.LOSS_HALF_LIVES]
    np.testing.assert_allclose(losses[0, 0, :-1], expected, rtol=1e-5)
    long = scored([False] * 5000, [0.25])
    np.testing.assert_allclose(long[0, 0, :-1], -math.log(0.75), rtol=1e-3)


def test_the_last_loss_is_the_running_mean_of_the_quantile_loss() -> None:
    """Said 2 at 0.5 and 6 at 0.9, came 4: (0.5 * 2 + 0.1 * 2) / 2 = 0.6; the mean goes there from 0, by half in 240 steps."""
    losses = routing.new_losses(1, 1)
    assert losses[0, 0, -1] == 0
    forecast = said([[0.7]], [[[2, 6]]])
    score(losses, forecast, [4], [True])
    assert losses[0, 0, -1] == pytest.approx((1 - 0.5 ** (1 / 240)) * 0.6, rel=1e-4)
    for _ in range(239):
        score(losses, forecast, [4], [True])
    assert losses[0, 0, -1] == pytest.approx(0.3, rel=1e-3)


def test_unknown_steps_and_absent_answers_are_not_scored() -> None:
    """A step that was not observed teaches nothing, nor does an expert without an answer, whoever else had one."""
    losses, untouched = routing.new_losses(3, 2), routing.new_losses(3, 2)
    nothing = [math.nan, math.nan]
    forecast = said([[0.9, math.nan], [0.9, 0.1], [0.9, 0.1]], [[[3, 3], nothing], [[3, 3]] * 2, [[3, 3]] * 2])
    score(losses, forecast, [1, 1, math.nan], [True, False, False])
    assert (losses[0, 0, :-1] < routing.INITIAL_LOSS).all()
    assert losses[0, 0, -1] > 0
    np.testing.assert_array_equal(losses[0, 1], untouched[0, 1])
    np.testing.assert_array_equal(losses[1:], untouched[1:])


def test_either_part_of_an_answer_is_scored_without_the_other() -> None:
    """Who gives a probability but no quantiles is scored on that, and the other way round."""
    losses, untouched = routing.new_losses(1, 2), routing.new_losses(1, 2)
    score(losses, said([[0.9, math.nan]], [[[math.nan, math.nan], [3, 3]]]), [1], [True])
    moved = (losses != untouched)[0].tolist()
    assert moved == [[True, True, False], [False, False, True]]


def test_certain_forecasts_lose_finitely() -> None:
    """A forecast of 0 or 1 that fails costs much, and not without bound."""
    losses = scored([True, False], [0.0, 1.0])
    assert np.isfinite(losses).all()
    assert (losses[..., :-1] > routing.INITIAL_LOSS).all()


def test_hedge_follows_the_better_expert() -> None:
    """The expert that loses less gets nearly all of the weight, and loses it when its luck turns; at first all share."""
    for part in routing.hedge(routing.new_losses(1, 2)):
        np.testing.assert_allclose(part, [[0.5, 0.5]])
    good = [t % 2 == 0 for t in range(100)]
    losses = scored(good, [0.5, 0.05])
    assert routing.hedge(losses).activity[0, 0] > 0.9
    for _ in range(1000):
        score(losses, said([[0.5, 0.05]]), [0], [True])
    assert routing.hedge(losses).activity[0, 1] > 0.99


def test_hedge_weighs_counts_and_activity_apart() -> None:
    """Who knows when but not how often has the weight of the activity alone, and the other that of the quantiles alone."""
    losses = routing.new_losses(1, 2)
    for step in range(100):
        count = 20.0 * (step % 2)
        knows_when, knows_how_often = [0.95 if count else 0.05, 0.5], [[200.0, 300.0], [count, count]]
        score(losses, said([knows_when], [knows_how_often]), [count], [True])
    weights = routing.hedge(losses)
    assert weights.activity[0, 0] > 0.99
    assert weights.counts[0, 1] > 0.99


def test_hedge_s_weights_of_counts_have_no_unit() -> None:
    """A quantile loss of twice the other's has a sixteenth of its weight, in ones as in millions; none at all, an even one."""
    losses = routing.new_losses(3, 2)
    losses[:, :, -1] = np.array([[10, 20], [1e7, 2e7], [0, 0]])
    expected = np.array([[16 / 17, 1 / 17]] * 2 + [[0.5, 0.5]])
    np.testing.assert_allclose(routing.hedge(losses).counts, expected, rtol=5e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 20))
def test_weights_are_shares(seed: int, scale: float) -> None:
    """Rows are non-negative and sum to 1, by Hedge and by a gate, whatever they read and however large counts are."""
    rng = np.random.default_rng(seed)
    losses = rng.uniform(0, 9, (4, 3, routing.LOSSES)).astype(np.float32)
    losses[..., -1] *= 10 ** rng.uniform(-3, 9, (4, 3))
    features = (scale * rng.standard_normal((4, INPUTS))).astype(np.float32)
    forecast, distances = rng.random((4, 3), np.float32), rng.random((4, 2), np.float32)
    gate = Gate(3, 2)
    for network in (gate.activity, gate.counts):
        torch.nn.init.normal_(next(iter(network[2].parameters())))
    for router in (Router(), Router(gate)):
        for part in router.weights(features, forecast, losses, distances, np.full(4, -1)):
            assert part.dtype == np.float32
            assert (part >= 0).all()
            np.testing.assert_allclose(part.sum(axis=1), 1, atol=1e-5)


def test_weights_among_the_usable() -> None:
    """The others' weight is shared in proportion; where nobody is usable, or nobody usable had a weight, all are alike."""
    part = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [1, 0, 0]], np.float32)
    usable = np.array([[True, False, True], [False] * 3, [False, True, True]])
    among = Weights(part, part[:, ::-1]).among(usable)
    third = [1 / 3] * 3
    np.testing.assert_allclose(among.activity, np.array([[5 / 7, 0, 2 / 7], third, third]), rtol=1e-6)
    np.testing.assert_allclose(among.counts, np.array([[2 / 7, 0, 5 / 7], third, [0, 0, 1]]), rtol=1e-6)


def test_an_expert_without_an_answer_is_taken_to_say_what_the_others_do() -> None:
    """The mean of those that have one; a coin where nobody has; answers themselves stay as they are."""
    forecast = np.array([[0.2, np.nan, 0.6], [np.nan] * 3, [0.1, 0.2, 0.3]], np.float32)
    expected = np.array([[0.2, 0.4, 0.6], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    np.testing.assert_allclose(routing.filled(forecast), expected, rtol=1e-6)


def test_the_top_experts_alone_have_a_say() -> None:
    """The best two of each part share in proportion, the first of equal ones; whose word counts is best in either part."""
    activity = np.array([[0.5, 0.3, 0.2, 0], [0.25] * 4], np.float32)
    counts = np.array([[0, 0.1, 0.1, 0.8], [0.25] * 4], np.float32)
    top = Weights(activity, counts).top(2)
    np.testing.assert_allclose(top.activity, np.array([[5 / 8, 3 / 8, 0, 0], [0.5, 0.5, 0, 0]]), rtol=1e-6)
    np.testing.assert_allclose(top.counts, np.array([[0, 1 / 9, 0, 8 / 9], [0.5, 0.5, 0, 0]]), rtol=1e-6)
    wanted = Weights(activity, counts).wanted(2)
    assert wanted.tolist() == [[True, True, False, True], [True, True, False, False]]


def test_a_router_keeps_to_its_top() -> None:
    """With top = 1 the best expert of each part answers alone, by Hedge as by a gate."""
    losses = routing.new_losses(1, 3)
    losses[0, :, :-1], losses[0, :, -1] = np.array([[0.1], [0.2], [0.3]]), [3, 2, 1]
    arguments = np.zeros((1, INPUTS), np.float32), np.full((1, 3), 0.5, np.float32), losses, np.ones((1, 2), np.float32)
    hedged = Router(top=1).weights(*arguments, np.array([-1]))
    assert (hedged.activity.tolist(), hedged.counts.tolist()) == ([[1, 0, 0]], [[0, 0, 1]])
    untaught = Router(Gate(3, 2), top=1).weights(*arguments, np.array([-1]))
    np.testing.assert_array_equal(untaught, hedged)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_an_untaught_gate_is_hedge(seed: int, experts: int) -> None:
    """Before it has learned, the gate adds nothing to Hedge's weights, whatever it reads."""
    rng = np.random.default_rng(seed)
    losses = rng.uniform(0.01, 3, (5, experts, routing.LOSSES)).astype(np.float32)
    features, forecast = rng.standard_normal((5, INPUTS)).astype(np.float32), rng.random((5, experts), np.float32)
    distances, cluster = rng.random((5, 2), np.float32), np.full(5, -1)
    gate, hedge = (
        router.weights(features, forecast, losses, distances, cluster)
        for router in (Router(Gate(experts, 2)), Router())
    )
    np.testing.assert_allclose(gate.activity, hedge.activity, atol=1e-4)
    np.testing.assert_allclose(gate.counts, hedge.counts, atol=1e-4)


def test_hard_assignment_asks_nobody_but_the_cluster_s_best() -> None:
    """Each function's one expert has all the weight of either part, whatever it lost; the last is for those without."""
    losses = np.random.default_rng(0).uniform(0, 9, (3, 3, routing.LOSSES)).astype(np.float32)
    arguments = np.zeros((3, INPUTS), np.float32), np.full((3, 3), 0.5, np.float32), losses, np.ones((3, 2), np.float32)
    weights = Router(selected=(2, 0, 1)).weights(*arguments, np.array([0, 1, -1]))
    for part in weights:
        assert part.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


# -- the combined answer -----------------------------------------------------------------------------------------------


def prediction(rng: np.random.Generator, levels: int) -> Prediction:
    quantiles = np.sort(rng.exponential(3, (2, 3, levels)).astype(np.float32) * rng.integers(0, 2), axis=2)
    return Prediction(quantiles, rng.choice([0, 0.001, 0.3, 0.5, 0.9, 1], (2, 3)).astype(np.float32))


def shares(rng: np.random.Generator) -> FloatArray:
    return rng.dirichlet([1, 1, 1], 2).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.floats(0.001, 0.999), min_size=1, max_size=11, unique=True))
def test_the_answer_is_coherent(seed: int, levels: list[float]) -> None:
    """Quantiles rise along the levels and are 0 exactly where the level is at most 1 - active, else at least 1."""
    rng = np.random.default_rng(seed)
    ascending = tuple(sorted(levels))
    weights = Weights(shares(rng), shares(rng))
    answer = routing.combine(weights, [prediction(rng, len(levels)) for _ in range(3)], ascending)
    assert ((answer.active > 0) & (answer.active < 1)).all()
    assert (np.diff(answer.quantiles, axis=2) >= 0).all()
    silent = np.asarray(ascending, np.float32) <= 1 - answer.active[..., None]
    assert (answer.quantiles[silent] == 0).all()
    assert (answer.quantiles[~silent] >= 1).all()


def test_the_answer_of_a_worked_example() -> None:
    """Odds of 1:1 and 1:16 at half weight each pool to 1:4; quantiles 10 and 2 at 3:1 average to 8."""
    answers = [
        Prediction(np.full((1, 1, 2), quantile, np.float32), np.full((1, 1), active, np.float32))
        for quantile, active in ((10, 1 / 2), (2, 1 / 17))
    ]
    weights = Weights(np.array([[0.5, 0.5]], np.float32), np.array([[0.75, 0.25]], np.float32))
    mixed = routing.combine(weights, answers, (0.75, 0.85))
    assert mixed.active[0, 0] == pytest.approx(0.2, abs=1e-6)
    assert mixed.quantiles[0, 0].tolist() == [0, 8]


def test_one_expert_with_all_the_weight_is_the_answer() -> None:
    """Weight 1 gives back that expert's own activity, and another's counts, whole, where that one has their weight."""
    rng = np.random.default_rng(0)
    answers = [prediction(rng, len(DEFAULT_LEVELS)) for _ in range(2)]
    answers[0].active[:] = 0.4
    answers[1].quantiles[:] += 2
    first, second = (np.eye(2, dtype=np.float32)[[expert, expert]] for expert in (0, 1))
    mixed = routing.combine(Weights(first, second), answers, DEFAULT_LEVELS)
    np.testing.assert_allclose(mixed.active, answers[0].active, atol=1e-6)
    silent = np.array(DEFAULT_LEVELS) <= 1 - 0.4
    np.testing.assert_allclose(mixed.quantiles, np.where(silent, 0, np.floor(answers[1].quantiles + 0.5)), rtol=1e-6)


# -- the trained gate --------------------------------------------------------------------------------------------------


def two_experts(functions: int = 4000) -> GateSamples:
    """One of two experts is right about activity, the other about counts; the gate's first feature says which is which."""
    rng = np.random.default_rng(RNG_SEED)
    first_knows = rng.random(functions) < 0.5
    active = rng.random(functions) < 0.5
    truth = np.where(active, 0.95, 0.05)
    knows = np.stack([first_knows, ~first_knows], 1)
    forecast = np.where(knows, truth[:, None], 1 - truth[:, None]).astype(np.float32)
    features = rng.standard_normal((functions, INPUTS)).astype(np.float32)
    features[:, FEATURES.index(routing.GATE_FEATURES[0])] = np.where(first_knows, 1, -1)
    inputs = routing.gate_inputs(
        features, forecast, routing.new_losses(functions, 2), np.ones((functions, 1), np.float32)
    )
    quantiles = np.repeat(np.where(knows, 9, 3)[:, :, None, None], 2, axis=3).astype(np.float32)
    counts = 3 * active[:, None].astype(np.float32)
    counts[::10] = np.nan
    return GateSamples(
        inputs, forecast[..., None], quantiles, counts, np.ones(functions, np.float32), np.arange(functions) % 10
    )


def test_an_untaught_gate_starts_even() -> None:
    """Before its first lesson a gate gives every expert the same weight, whatever it reads."""
    weights = routing.gate_weights(
        Gate(4, 1), two_experts(8).inputs[:, :1] * np.ones((1, Gate(4, 1).mean.numel()), np.float32)
    )
    for part in weights:
        np.testing.assert_allclose(part, 0.25, rtol=1e-6)


def test_the_gate_is_judged_on_what_would_be_answered() -> None:
    """Its loss is that of `combine`: log loss, twice that of the next step, and quantile loss in the function's scale."""
    rng = np.random.default_rng(0)
    forecast = rng.random((6, 2, 2), np.float32)
    quantiles = np.sort(2 * rng.poisson(2, (6, 2, 2, 2)), axis=3)  # of two even numbers the mean is whole
    counts, scale = rng.poisson(1, (6, 2)).astype(np.float32), np.linspace(0.5, 3, 6, dtype=np.float32)
    counts[0, 1] = np.nan
    gate = Gate(2, 1)
    inputs = np.zeros((6, gate.mean.numel()), np.float32)
    samples = GateSamples(inputs, forecast, quantiles.astype(np.float32), counts, scale, np.arange(6))
    loss = routing._gate_loss(gate, routing._tensors(samples, np.ones(6, np.bool_)), torch.tensor(LEVELS))
    even = np.full((6, 2), 0.5, np.float32)
    answers = [Prediction(samples.quantiles[:, expert], forecast[:, expert]) for expert in range(2)]
    answer = routing.combine(Weights(even, even), answers, LEVELS)
    log_loss = -np.log(np.where(counts > 0, answer.active, 1 - answer.active))
    error, level = (counts[..., None] - answer.quantiles) / scale[:, None, None], np.array(LEVELS)
    pinball = np.maximum(level * error, (level - 1) * error).mean(axis=2)
    expected = np.where(np.isnan(counts), 0, np.array([2, 1]) * log_loss + np.nan_to_num(pinball))
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_gate_learns_whom_to_trust_for_what() -> None:
    """Where a feature says who is right about activity, and the other about counts, each gets the weight for that alone."""
    samples = two_experts()
    told: list[float] = []
    gate = fit_gate(samples, 1, LEVELS, seed=0, epochs=10, progress=told.append)
    weights = routing.gate_weights(gate, samples.inputs)
    knows = np.where(samples.inputs[:, 0] > 0, 0, 1)
    rows = np.arange(len(knows))
    assert weights.activity[rows, knows].mean() > 0.9
    likely = samples.forecast[rows, knows, 0] > 0.5  # elsewhere the answer is 0, whoever has the weight
    assert weights.counts[rows, 1 - knows][likely].mean() > 0.9
    assert told == [(epoch + 1) / 10 for epoch in range(10)]
    assert not gate.training


def test_the_gate_follows_from_its_seed_alone() -> None:
    """The same samples and seed give the same gate bit for bit; torch's own random state is as it was."""
    samples = two_experts(300)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one = fit_gate(samples, 1, LEVELS, seed=1, epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    two = fit_gate(samples, 1, LEVELS, seed=1, epochs=2)
    other = fit_gate(samples, 1, LEVELS, seed=2, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_handful_of_samples_is_enough_to_run() -> None:
    """Fewer samples than a batch train all the same."""
    gate = fit_gate(two_experts(20), 1, LEVELS, seed=0, epochs=1)
    assert all(torch.isfinite(p).all() for p in gate.parameters())
