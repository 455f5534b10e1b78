"""The replay of held-out functions: experts say in it what they would have said when serving, and no more is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mesp.types import DEFAULT_LEVELS
from mesp_predictor import refit
from mesp_predictor import router as routing
from mesp_predictor.experts.base import Prediction, hurdle_quantiles
from mesp_predictor.experts.light import IntermittentExpert, SeasonalExpert
from mesp_predictor.refit import EVERY, EXAM_STEPS, LAG
from mesp_predictor.replay import Past, answer, gate_samples, moments

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Context
    from mesp_predictor.experts.samples import Samples

FUNCTIONS, STEPS, FIRST = 5, 90, 30


def past(steps: int = STEPS, first: int = FIRST) -> Past:
    """A timer, a function that is never invoked, and three irregular ones, one of them with an outage."""
    counts = (
        np.random.default_rng(0).poisson(np.array([[0], [0], [0.2], [1], [5]]), (FUNCTIONS, steps)).astype(np.float32)
    )
    counts[0, ::5] = 3
    counts[4, 40:44] = np.nan
    centroids = np.sin(np.arange(6, dtype=np.float32))[None]
    return Past(counts, 28_000_020, centroids, bin_steps=10, first=first, every=7, horizon=5)


def told(_share: float) -> None:
    """No progress."""


def test_every_step_has_its_answer_and_costly_experts_answer_at_the_samples_alone() -> None:
    """What is kept of a column is the forecast made just before it: activity and quantiles; NaN where nobody asked."""
    fleet, expert = past(), SeasonalExpert()
    cheap, costly = (answer(expert, fleet, costly=costly, progress=told) for costly in (False, True))
    assert cheap.counts.shape == (STEPS, FUNCTIONS, len(DEFAULT_LEVELS))
    for moment in moments(fleet):
        said = expert.predict(moment.context, 1, DEFAULT_LEVELS)
        np.testing.assert_array_equal(cheap.following[moment.column], said.active[:, 0])
        np.testing.assert_array_equal(cheap.counts[moment.column], said.quantiles[:, 0])
    assert np.isnan(cheap.following[:FIRST]).all()
    assert np.isnan(cheap.counts[:FIRST]).all()
    asked = np.isin(np.arange(STEPS), fleet.sampled)
    for one, two in ((cheap.following, costly.following), (cheap.counts, costly.counts)):
        np.testing.assert_array_equal(two[asked], one[asked])
        assert np.isnan(two[~asked]).all()
    np.testing.assert_array_equal(costly.quantiles, cheap.quantiles)


def test_the_other_answers_where_it_is_chosen() -> None:
    """Of two sets of answers each function's are from the one or the other, as its cluster was at that column."""
    fleet = past()
    one, two = (
        answer(expert, fleet, costly=False, progress=told) for expert in (SeasonalExpert(), IntermittentExpert())
    )
    chosen = np.random.default_rng(1).random((STEPS, FUNCTIONS)) < 0.5
    mixed = one.where(chosen, two, fleet.sampled)
    at = chosen[fleet.sampled]
    for name, where in (("following", chosen), ("counts", chosen), ("active", at), ("quantiles", at)):
        found, first, second = (getattr(each, name) for each in (mixed, one, two))
        np.testing.assert_array_equal(found[where], second[where], name)
        np.testing.assert_array_equal(found[~where], first[~where], name)


def test_the_gate_reads_the_losses_of_all_steps_before() -> None:
    """Its inputs at a sample are those of an expert that was scored, by hand, on every known step since an invocation."""
    fleet = past()
    said = [answer(expert, fleet, costly=False, progress=told) for expert in (SeasonalExpert(), IntermittentExpert())]
    samples = gate_samples(said, fleet, told)
    losses, inputs = routing.new_losses(FUNCTIONS, 2), []
    for moment in moments(fleet):
        t, statistics = moment.column, moment.context.statistics
        forecast = np.stack([each.following[t] for each in said], axis=1)
        if t in fleet.sampled:
            inputs.append(routing.gate_inputs(statistics.features(1)[:, 0], forecast, losses, moment.distances))
        quantiles = np.stack([each.counts[t] for each in said], axis=1)
        for row in np.flatnonzero((statistics.gap > 0) & ~np.isnan(fleet.counts[:, t])):
            one = slice(row, row + 1)
            levels, came = np.array(DEFAULT_LEVELS, np.float32), fleet.counts[one, t]
            routing.score(losses[one], Prediction(quantiles[one], forecast[one]), levels, came, np.array([True]))
    assert (losses[:, :, -1] > 0).any()
    np.testing.assert_array_equal(samples.inputs, np.concatenate(inputs))
    assert len(samples.inputs) == len(samples.counts) == FUNCTIONS * len(fleet.sampled)


@dataclass
class Pupil:
    """An expert that gives one probability, and after its refit another."""

    said: float
    successors: list[Pupil] = field(default_factory=list)
    name = "pupil"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        active = np.full((len(context.counts), horizon), self.said, np.float32)
        return Prediction(
            hurdle_quantiles(active, np.ones((len(active), 1), np.float32), np.ones(1, np.float32), levels), active
        )

    def activity(self, features: FloatArray) -> FloatArray:
        return np.full(len(features), self.said, np.float32)

    def refitted(self, lessons: Samples, seed: int) -> Pupil:
        return self.successors.pop(0)

    def save(self, directory: Path) -> None:
        raise NotImplementedError


def test_experts_are_refitted_as_when_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the step of its election on the newcomer answers, sampled and next steps alike; the trained one is as it was."""
    monkeypatch.setattr(refit, "LEAST", 1)
    monkeypatch.setattr(refit, "LEAST_ACTIVE", 1)
    fleet = past(steps=200, first=0)
    expert = Pupil(0.9, [Pupil(0.3), Pupil(0.95)])
    found = answer(expert, fleet, costly=False, progress=told)
    elected = EVERY + EXAM_STEPS + LAG
    np.testing.assert_allclose(np.unique(found.following[:elected]), 0.9)
    np.testing.assert_allclose(np.unique(found.following[elected:]), 0.3)  # the next one is no better
    assert set(np.unique(found.active[fleet.sampled >= elected])) == {np.float32(0.3)}
    assert expert.said == 0.9
