"""The gate while it serves: it follows a fleet that changes, stays near what was trained, and can go back to it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch

from mesp_predictor import learning, router
from mesp_predictor.learning import LearningRouter
from mesp_predictor.router import Gate, Router
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from mesp.types import BoolArray, FloatArray

FUNCTIONS = 60


class Step(NamedTuple):
    """What the router is told of one step."""

    features: FloatArray
    forecast: FloatArray
    losses: FloatArray
    distances: FloatArray
    active: BoolArray
    known: BoolArray


def drift(steps: int, seed: int = 0) -> list[Step]:
    """A fleet on which the second expert is right and the first is wrong, at every step."""
    rng = np.random.default_rng(seed)
    told = []
    for _ in range(steps):
        active = rng.random(FUNCTIONS) < 0.5
        truth = np.where(active, 0.9, 0.1)
        told.append(
            Step(
                rng.standard_normal((FUNCTIONS, len(FEATURES))).astype(np.float32),
                np.stack([1 - truth, truth], axis=1).astype(np.float32),
                router.new_losses(FUNCTIONS, 2),
                np.ones((FUNCTIONS, 1), np.float32),
                active,
                np.ones(FUNCTIONS, np.bool_),
            )
        )
    return told


def follow(learner: LearningRouter, told: list[Step], start: int = 0) -> None:
    for step, (features, forecast, losses, distances, active, known) in enumerate(told, start):
        learner.expect(features, forecast, losses, distances)
        learner.learn(step, active, known)


def log_loss(learner: LearningRouter, told: list[Step]) -> float:
    total = 0.0
    for step in told:
        nowhere = np.full(FUNCTIONS, -1)
        weights = learner.router.weights(step.features, step.forecast, step.losses, step.distances, nowhere)
        odds = (weights.activity * router.logit(step.forecast)).sum(axis=1)
        total += float(np.logaddexp(0, np.where(step.active, -odds, odds)).mean())
    return total / len(told)


@pytest.fixture
def wrong() -> Gate:
    """A gate that trusts the first expert, whatever it reads."""
    torch.manual_seed(0)
    gate = Gate(2, 1).eval()
    with torch.no_grad():
        for network in (gate.activity, gate.counts):
            list(network.parameters())[-1].copy_(torch.tensor([1.0, -1.0]))
    return gate


def state(gate: Gate | None) -> dict[str, torch.Tensor]:
    assert gate is not None
    return copy.deepcopy(gate.state_dict())


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


def test_a_wrong_gate_is_put_right(wrong: Gate) -> None:
    """Where the trusted expert is always wrong the log loss falls by more than half within 150 steps."""
    learner = LearningRouter(Router(wrong))
    exam = drift(5, seed=1)
    before = log_loss(learner, exam)
    follow(learner, drift(150))
    assert log_loss(learner, exam) < before / 2


def test_the_weights_of_counts_are_not_learned(wrong: Gate) -> None:
    """Steps in which one expert was right about activity move its weight for that, and no parameter of the other."""
    learner = LearningRouter(Router(wrong))
    follow(learner, drift(20))
    now, trained = state(learner.router.gate), state(wrong)
    assert {key for key in trained if torch.equal(now[key], trained[key])} == {
        key for key in trained if not key.startswith("activity.")
    }


def test_reset_goes_back_bit_for_bit(wrong: Gate) -> None:
    """The trained gate itself is never touched, and `reset` puts it back; learning then goes the same way again."""
    trained = state(wrong)
    learner = LearningRouter(Router(wrong))
    follow(learner, drift(10))
    once = state(learner.router.gate)
    assert not same(once, trained)
    assert same(state(wrong), trained)
    learner.reset()
    assert same(state(learner.router.gate), trained)
    follow(learner, drift(10))
    assert same(state(learner.router.gate), once)


def test_a_replay_gives_the_same_gate(wrong: Gate) -> None:
    """The same steps in the same order give the same gate, whatever state torch's and numpy's randomness is in."""
    gates = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        learner = LearningRouter(Router(wrong))
        before = torch.random.get_rng_state()
        follow(learner, drift(10))
        assert torch.equal(torch.random.get_rng_state(), before)
        gates.append(state(learner.router.gate))
    assert same(*gates)


def test_the_trained_gate_pulls_back(wrong: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stronger pull leaves the gate nearer to the trained one."""
    distance = []
    for pull in (0.0, 1.0):
        monkeypatch.setattr(learning, "PULL", pull)
        learner = LearningRouter(Router(wrong))
        follow(learner, drift(60))
        gate = learner.router.gate
        assert gate is not None
        pairs = zip(gate.parameters(), wrong.parameters(), strict=True)
        distance.append(sum(float(((p - a) ** 2).sum().detach()) for p, a in pairs))
    assert distance[1] < distance[0] / 2


def test_what_is_unknown_teaches_nothing(wrong: Gate) -> None:
    """Unobserved steps, and functions for which an expert had no answer, leave the gate as it was."""
    trained = state(wrong)
    learner = LearningRouter(Router(wrong))
    for step in drift(3):
        follow(learner, [step._replace(known=np.zeros(FUNCTIONS, np.bool_))])
        step.forecast[:, 0] = np.nan
        follow(learner, [step])
    assert same(state(learner.router.gate), trained)


def test_an_unknown_outcome_is_not_read(wrong: Gate) -> None:
    """Of a step that was observed for some functions only theirs count: what stands for the others changes nothing."""
    gates = []
    for flipped in (False, True):
        learner = LearningRouter(Router(wrong))
        for step in drift(5):
            step.known[::3] = False
            step.active[::3] ^= flipped
            follow(learner, [step])
        gates.append(state(learner.router.gate))
    assert same(*gates)


def test_a_step_is_learned_once_and_only_if_expected(wrong: Gate) -> None:
    """Without a forecast that waits for it a step teaches nothing; and no forecast is used twice."""
    learner = LearningRouter(Router(wrong))
    step = drift(1)[0]
    learner.learn(0, step.active, step.known)
    assert same(state(learner.router.gate), state(wrong))
    follow(learner, [step])
    once = state(learner.router.gate)
    learner.learn(1, step.active, step.known)
    assert same(state(learner.router.gate), once)


def test_the_latest_past_is_remembered(wrong: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read, forecast and seen is kept row by row, the oldest making room for the latest."""
    monkeypatch.setattr(learning, "MEMORY_ROWS", 100 * FUNCTIONS)
    learner, told = LearningRouter(Router(wrong)), drift(101)
    follow(learner, told)
    assert len(learner._inputs) == 100 * FUNCTIONS
    for at, step in ((0, told[1]), (99, told[100])):
        rows = slice(at * FUNCTIONS, (at + 1) * FUNCTIONS)
        kept = np.column_stack([learner._inputs[rows], learner._odds[rows], learner._active[rows]])
        inputs = router.gate_inputs(step.features, step.forecast, step.losses, step.distances)
        came = np.column_stack([inputs, router.logit(step.forecast), step.active])
        np.testing.assert_allclose(kept[kept[:, 0].argsort()], came[came[:, 0].argsort()], rtol=1e-5)


def test_hedge_needs_no_learning() -> None:
    """Without a trained gate there is nothing to move: the router stays Hedge."""
    learner = LearningRouter(Router())
    follow(learner, drift(2))
    learner.reset()
    assert learner.router == Router()
