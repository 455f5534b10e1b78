"""Refits as the mixture lives with them: when they come to serve, what an expert that awakes starts with, real trees."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp.types import DEFAULT_LEVELS, FunctionKey, StepCounts
from mesp_predictor import refit
from mesp_predictor import router as routing
from mesp_predictor.experts import gbm
from mesp_predictor.experts.base import Prediction, Refittable, hurdle_quantiles
from mesp_predictor.experts.gbm import GbmExpert, GbmSettings
from mesp_predictor.experts.light import SeasonalExpert
from mesp_predictor.mixture import MixtureForecaster
from mesp_predictor.model import Model
from mesp_predictor.refit import EVERY, EXAM_STEPS, LAG
from mesp_predictor.series import SeriesStore
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Context, Expert
    from mesp_predictor.experts.samples import Samples
    from mesp_predictor.refit import Election

START, MINUTE = 28_000_020, 60_000  # a step at which refits are due
#: When the first refit that has anything to learn from is over.
ELECTED = EVERY + EXAM_STEPS + LAG
A, B, C = (FunctionKey("scope", name) for name in "abc")


@dataclass
class Says:
    """An expert that gives one probability, and counts of 1; NaN: it knows nothing."""

    said: float
    name = "says"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        active = np.full((len(context.counts), horizon), self.said, np.float32)
        one, grid = np.ones((len(active), 2), np.float32), np.array([0, 1], np.float32)
        quantiles = hurdle_quantiles(np.nan_to_num(active), one, grid, levels)
        return Prediction(np.where(np.isnan(active)[..., None], np.float32(np.nan), quantiles), active)

    def save(self, directory: Path) -> None:
        raise NotImplementedError


@dataclass
class Pupil(Says):
    """One that is refitted, to each of its successors in turn; it keeps what it was taught."""

    successors: list[Pupil] = field(default_factory=list)
    taught: list[Samples] = field(default_factory=list)

    def activity(self, features: FloatArray) -> FloatArray:
        return np.full(len(features), self.said, np.float32)

    def refitted(self, lessons: Samples, seed: int) -> Pupil:
        assert seed % EVERY == 0
        self.taught.append(lessons)
        return self.successors.pop(0)


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of lessons is learned from, and every function that is drawn has one farther ahead as well."""
    for name, value in {"LEAST": 1, "LEAST_ACTIVE": 1, "FARTHER_SHARE": 1.0}.items():
        monkeypatch.setattr(refit, name, value)


def model_of(*experts: Expert) -> Model:
    return Model(
        version="test",
        step_ms=MINUTE,
        default_horizon=3,
        max_horizon=15,
        levels=DEFAULT_LEVELS,
        experts=experts,
        router=routing.Router(),
        centroids=np.sin(np.arange(24, dtype=np.float32))[None],
        bin_steps=10,
    )


def new_store() -> SeriesStore:
    return SeriesStore(MINUTE, 240, 10)


def serve(
    forecaster: MixtureForecaster,
    store: SeriesStore,
    steps: Iterable[int],
    counts: Callable[[int], dict[FunctionKey, int]] = lambda _step: {A: 1, B: 2},
    every: int = 1,
) -> list[Election]:
    """Reports the steps and advances after `every` so many; how refits ended."""
    for done, step in enumerate(steps, 1):
        store.report(StepCounts("test", (START + step) * MINUTE, MINUTE, counts(step)))
        if done % every == 0:
            forecaster.advance(store)
    forecaster.advance(store)
    return forecaster.take_elections()


def active(forecaster: MixtureForecaster) -> float:
    return float(forecaster.forecast(np.array([0]), 1, DEFAULT_LEVELS).active[0, 0])


def test_the_swap_is_at_its_step_and_no_other() -> None:
    """With one step left the old one answers, and from the step of the election on the new one."""
    forecaster, store = MixtureForecaster(model_of(Pupil(0.5, [Pupil(0.9)]))), new_store()
    assert serve(forecaster, store, range(ELECTED - 1)) == []
    assert active(forecaster) == pytest.approx(0.5, abs=1e-5)
    (election,) = serve(forecaster, store, range(ELECTED - 1, ELECTED))
    assert election.step == START + ELECTED
    assert active(forecaster) == pytest.approx(0.9, abs=1e-5)
    assert forecaster.take_elections() == []


def test_many_steps_at_once_refit_as_one_at_a_time() -> None:
    """Whatever the number of steps that close together, up to an hour: the same elections, losses and answers."""
    seen = []
    for every in (1, 7, 60):
        other, pupil = Says(0.6), Pupil(np.nan, [Pupil(0.9), Pupil(0.95)])
        forecaster, store = MixtureForecaster(model_of(other, pupil)), new_store()
        elections = serve(forecaster, store, range(ELECTED + EVERY + 5), every=every)
        answer = forecaster.forecast(np.arange(2), 3, DEFAULT_LEVELS)
        seen.append((elections, forecaster._losses, answer.active, answer.quantiles, answer.weights))
    assert [election.step - START for election in seen[0][0]] == [ELECTED, ELECTED + EVERY]
    for each in seen[1:]:
        assert repr(each[0]) == repr(seen[0][0])  # NaN is not equal to itself
        for one, two in zip(each[1:], seen[0][1:], strict=True):
            np.testing.assert_array_equal(one, two)


def test_an_expert_that_awakes_is_taken_to_have_done_as_the_others_did() -> None:
    """Until its first election it has no say and no losses; then the others' mean is its own, and it has its share."""
    others, pupil = (Says(0.6), Says(0.7)), Pupil(np.nan, [Pupil(0.65)])
    forecaster, store = MixtureForecaster(model_of(*others, pupil)), new_store()
    serve(forecaster, store, range(ELECTED - 1))
    np.testing.assert_array_equal(forecaster._losses[:, 2:], routing.new_losses(2, 1))
    assert (forecaster.forecast(np.arange(2), 1, DEFAULT_LEVELS).weights[:, 2] == 0).all()
    (election,) = serve(forecaster, store, range(ELECTED - 1, ELECTED))
    assert np.isnan(election.log_loss["serving"])
    assert election.elected == "candidate"
    np.testing.assert_allclose(forecaster._losses[:, 2], forecaster._losses[:, :2].mean(axis=1), rtol=1e-6)
    assert (forecaster.forecast(np.arange(2), 1, DEFAULT_LEVELS).weights[:, 2] > 0).all()
    before = forecaster._losses[:, 2].copy()
    serve(forecaster, store, range(ELECTED, ELECTED + 1))
    assert (forecaster._losses[:, 2] != before).all()


def test_an_expert_that_is_refitted_keeps_its_losses() -> None:
    """A swap of one that had answers is no fresh start: what it lost is what the gate goes on from."""
    losses = []
    for successor in (Pupil(0.9), Pupil(0.2)):
        forecaster, store = MixtureForecaster(model_of(Says(0.6), Pupil(0.5, [successor]))), new_store()
        serve(forecaster, store, range(ELECTED))
        losses.append(forecaster._losses)
    np.testing.assert_array_equal(losses[0], losses[1])


def test_a_deleted_function_s_successor_is_not_taken_for_it() -> None:
    """Whatever came of the new function was learned with what was known of the new one."""
    pupil = Pupil(0.5, [Pupil(0.5)])
    forecaster, store = MixtureForecaster(model_of(pupil)), new_store()
    serve(forecaster, store, range(30), lambda _step: {A: 3, B: 1})
    store.delete([A])
    serve(forecaster, store, range(30, ELECTED), lambda _step: {C: 77, B: 1})
    assert store.row_of(C) == 0
    (lessons,) = pupil.taught
    known = lessons.features[lessons.counts == 77, FEATURES.index("log_last_count")]
    assert len(known) > EXAM_STEPS / 2
    np.testing.assert_allclose(known, np.log1p(77), rtol=1e-5)


def test_a_frozen_mixture_is_never_refitted() -> None:
    """With learn=False nothing is taught, however long it serves."""
    pupil = Pupil(0.5, [Pupil(0.9)])
    forecaster = MixtureForecaster(model_of(pupil), learn=False)
    assert serve(forecaster, new_store(), range(ELECTED + EVERY)) == []
    assert pupil.taught == []
    assert active(forecaster) == pytest.approx(0.5, abs=1e-5)


# -- real trees --------------------------------------------------------------------------------------------------------


def test_a_backlog_learned_in_slices_does_not_wait_for_a_refit() -> None:
    """Until the newcomer is ready the rest of the backlog is left to later; then the outcome is as if it had been waited for."""
    ready = threading.Event()

    class Slow(Pupil):
        def refitted(self, lessons: Samples, seed: int) -> Pupil:
            ready.wait(60)
            return super().refitted(lessons, seed)

    forecaster, store = MixtureForecaster(model_of(Slow(0.5, [Pupil(0.9)]))), new_store()
    for step in range(ELECTED + 5):
        store.report(StepCounts("test", (START + step) * MINUTE, MINUTE, {A: 1, B: 2}))
    for _ in range(3):
        assert not forecaster.advance(store, lambda: True)
        assert forecaster.take_elections() == []
    ready.set()
    while not forecaster.advance(store, lambda: True):
        ready.wait(0.01)
    (election,) = forecaster.take_elections()
    assert (election.step, election.elected) == (START + ELECTED, "candidate")
    assert active(forecaster) == pytest.approx(0.9, abs=1e-5)


def timers(step: int) -> dict[FunctionKey, int]:
    """Functions of different periods, one of them irregular."""
    clock = {FunctionKey("scope", str(period)): 2 * int(step % period == 0) for period in (2, 3, 5, 7, 10)}
    return clock | {A: int(np.random.default_rng(step).random() < 0.2)}


def test_trees_grow_on_the_fleet_s_own_past_alike_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees that knew nothing foretell timers after an hour of lessons; the same counts give the same ones, bit for bit."""
    monkeypatch.setattr(gbm, "OWN", GbmSettings(rounds=20, leaves=7, rate=0.2, least_samples=10))
    grown, answers, elections = [], [], []
    for _ in range(2):
        forecaster, store = MixtureForecaster(model_of(SeasonalExpert(), GbmExpert.new())), new_store()
        elections.append(serve(forecaster, store, range(ELECTED + EVERY), timers))
        trees = forecaster._experts[1]
        assert isinstance(trees, GbmExpert)
        assert trees.trained is None
        assert trees.own is not None
        grown.append(trees.own.model_to_string())
        answers.append(forecaster.forecast(np.arange(6), 3, DEFAULT_LEVELS))
    first = elections[0][0]
    assert first.elected == "candidate"
    assert first.log_loss["candidate"] < 0.3  # a tenth to a half of the steps are active: 0.33 to 0.69 by rate alone
    assert repr(elections[0]) == repr(elections[1])  # NaN is not equal to itself
    assert grown[0] == grown[1]
    np.testing.assert_array_equal(answers[0].active, answers[1].active)
    np.testing.assert_array_equal(answers[0].quantiles, answers[1].quantiles)
    assert (answers[0].weights[:, 1] > 0).all()
    assert isinstance(GbmExpert.new(), Refittable)
