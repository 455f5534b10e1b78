"""How the operator may have the experts weighed: by the gate, by Hedge, by cluster, by the best few; and who is asked at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey, StepCounts
from mesp_predictor import mixture
from mesp_predictor.experts.base import Context, Prediction, hurdle_quantiles
from mesp_predictor.mixture import COSTLY_BEST, SHADOW_TURNS, MixtureForecaster
from mesp_predictor.model import Model, RoutingMode, routed
from mesp_predictor.router import Gate, Router, Weights, filled
from mesp_predictor.series import SeriesStore

if TYPE_CHECKING:
    from pathlib import Path

MINUTE = 60_000
FLEET = tuple(FunctionKey("scope", f"f{i}") for i in range(20))


@dataclass
class Says:
    """An expert that gives every step the same probability, and remembers how many functions each call was about."""

    name: str
    active: float
    asked: list[int] = field(default_factory=list)

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        self.asked.append(len(context.counts))
        active = np.full((len(context.counts), horizon), self.active, np.float32)
        ones = np.ones((len(context.counts), 2), np.float32)
        return Prediction(hurdle_quantiles(active, ones, np.array([0, 1], np.float32), levels), active)

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def model_of(*experts: Says, selected: tuple[int, ...] = (), router: Router | None = None) -> Model:
    shape = np.sin(np.arange(24, dtype=np.float32))[None]
    return Model("test", MINUTE, 5, 30, DEFAULT_LEVELS, experts, router or Router(), shape, 10, selected)


def served(forecaster: MixtureForecaster, steps: int) -> MixtureForecaster:
    """Every function is invoked in every step."""
    store = SeriesStore(MINUTE, 240, len(FLEET))
    for step in range(steps):
        store.report(StepCounts("test", step * MINUTE, MINUTE, dict.fromkeys(FLEET, 1)))
        forecaster.advance(store)
    return forecaster


def answer(forecaster: MixtureForecaster) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return forecaster.forecast(np.arange(len(FLEET)), 1, DEFAULT_LEVELS).active[:, 0]


# -- modes -------------------------------------------------------------------------------------------------------------


def test_hard_assignment_asks_the_cluster_s_best_alone() -> None:
    """Functions without a cluster are answered by the last of `selected`, whatever the losses say."""
    model = model_of(Says("right", 0.9), Says("wrong", 0.2), selected=(0, 1))
    forecaster = served(MixtureForecaster(model, routing_mode="hard"), 30)
    np.testing.assert_allclose(answer(forecaster), 0.2, atol=1e-5)
    assert served(MixtureForecaster(model), 30).forecast(np.array([0]), 1, DEFAULT_LEVELS).active[0, 0] > 0.8


def test_hard_assignment_follows_the_cluster() -> None:
    """Each row's expert is that of its cluster; -1 takes the last."""
    losses, empty = np.zeros((3, 2, 3), np.float32), np.zeros((3, 0), np.float32)
    weights = Router(selected=(1, 0, 1)).weights(empty, empty, losses, empty, np.array([0, 1, -1]))
    assert weights.activity.tolist() == weights.counts.tolist() == [[0, 1], [1, 0], [0, 1]]


def test_hard_assignment_needs_selected_experts() -> None:
    """A model that knows no cluster's best expert is refused in one sentence."""
    with pytest.raises(InputError, match=r"routing = 'hard'.*must be 'gate' or 'hedge'"):
        MixtureForecaster(model_of(Says("one", 0.5)), routing_mode="hard")


@pytest.mark.parametrize(("mode", "gated"), [("gate", True), ("hedge", False)])
def test_hedge_leaves_the_gate_aside(mode: RoutingMode, gated: bool) -> None:
    """In mode `hedge` a trained gate has no say."""
    model = model_of(Says("one", 0.5), Says("two", 0.5), router=Router(Gate(2, 1)))
    assert (routed(model, mode).gate is not None) == gated


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_the_best_few_share_all_the_weight(seed: int, best: int) -> None:
    """Top-k keeps the k largest weights in their proportions and nothing else; rows still sum to 1."""
    weights = Weights(*np.random.default_rng(seed).dirichlet(np.ones(4), (2, 6)).astype(np.float32))
    for whole, kept in zip(weights, weights.top(best), strict=True):
        assert ((kept > 0).sum(axis=1) == min(best, 4)).all()
        np.testing.assert_allclose(kept.sum(axis=1), 1, atol=1e-5)
        for before, after in zip(whole, kept, strict=True):
            assert before[after > 0].min() >= before[after == 0].max(initial=0)
            np.testing.assert_allclose(after, np.where(after > 0, before, 0) / before[after > 0].sum(), atol=1e-5)


def test_one_of_two_has_the_say() -> None:
    """With top = 1 the better expert alone answers."""
    model = model_of(Says("right", 0.9), Says("wrong", 0.2))
    np.testing.assert_allclose(answer(served(MixtureForecaster(model, top=1), 60)), 0.9, atol=1e-5)


# -- costly experts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts whose name starts with `dear` are costly."""
    monkeypatch.setattr(mixture, "costly", lambda name: name.startswith("dear"))


@pytest.mark.usefixtures("costly")
def test_a_costly_expert_is_asked_in_turn() -> None:
    """One that is nobody's best is asked for each function once in SHADOW_TURNS steps, and scored there."""
    dear = Says("dear", 0.01)
    cheap = [Says(f"cheap{i}", 0.9) for i in range(COSTLY_BEST)]
    forecaster = served(MixtureForecaster(model_of(*cheap, dear)), 60)
    later = dear.asked[-SHADOW_TURNS:]
    assert sum(later) == len(FLEET)
    assert all(len(FLEET) == asked for asked in cheap[0].asked)
    assert (forecaster._losses[:, -1, 0] > forecaster._losses[:, 0, 0]).all()
    np.testing.assert_allclose(answer(forecaster), 0.9, atol=0.02)


@pytest.mark.usefixtures("costly")
def test_a_costly_expert_that_is_best_is_asked_at_every_step() -> None:
    """Once its turns have shown that it is the better one, it answers for all of the functions."""
    dear = Says("dear", 0.99)
    forecaster = served(MixtureForecaster(model_of(*(Says(f"cheap{i}", 0.3) for i in range(3)), dear)), 120)
    assert dear.asked[-3:] == [len(FLEET)] * 3
    assert (answer(forecaster) > 0.9).all()


def test_who_was_not_asked_says_what_the_others_do() -> None:
    """For the router an absent answer is the mean of the others; a coin where nobody answered."""
    said = np.array([[0.2, np.nan, 0.4], [np.nan, np.nan, np.nan]], np.float32)
    np.testing.assert_allclose(filled(said), [[0.2, 0.3, 0.4], [0.5, 0.5, 0.5]], rtol=1e-6)
