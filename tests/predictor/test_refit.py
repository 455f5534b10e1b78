"""Refits: what an expert learns from, who is elected and when, and that nothing of it can hurt."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

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
from mesp_predictor.refit import EVERY, EXAM_STEPS, FARTHEST, LAG, Election, Refits
from mesp_predictor.series import SeriesStore
from mesp_predictor.statistics import FEATURES, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Context, Expert, IntArray
    from mesp_predictor.experts.samples import Samples

START, MINUTE = 28_000_020, 60_000  # a step at which refits are due
FUNCTIONS = 4
NOBODY = np.zeros(0, np.int64)
#: The first refit that has anything to learn from, and when it is over.
FIRST, ELECTED = EVERY + EXAM_STEPS, EVERY + EXAM_STEPS + LAG


@dataclass(eq=False)
class Pupil:
    """An expert that gives one probability everywhere, and each of whose refits ends as was laid down.

    Attributes:
        active: what it says; NaN: it knows nothing.
        successors: whom the next refits make of it, or what they raise.
        taught: the lessons and seeds of the refits so far.
        examined: the features it was examined on.
    """

    active: float
    successors: list[Pupil | Exception] = field(default_factory=list)
    taught: list[tuple[Samples, int]] = field(default_factory=list)
    examined: list[FloatArray] = field(default_factory=list)
    name = "pupil"

    def activity(self, features: FloatArray) -> FloatArray:
        self.examined.append(features)
        return np.full(len(features), self.active, np.float32)

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        active = np.full((len(context.counts), horizon), self.active, np.float32)
        one, grid = np.ones((len(active), 2), np.float32), np.array([0, 1], np.float32)
        quantiles = hurdle_quantiles(np.nan_to_num(active), one, grid, levels)
        return Prediction(np.where(np.isnan(active)[..., None], np.float32(np.nan), quantiles), active)

    def refitted(self, lessons: Samples, seed: int) -> Pupil:
        self.taught.append((lessons, seed))
        successor = self.successors.pop(0)
        if isinstance(successor, Exception):
            raise successor
        return successor

    def save(self, directory: Path) -> None:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of lessons is learned from, and every function that is drawn has one farther ahead as well."""
    for name, value in {"LEAST": 1, "LEAST_ACTIVE": 1, "FARTHER_SHARE": 1.0}.items():
        monkeypatch.setattr(refit, name, value)


def fleet(steps: int) -> FloatArray:
    """Functions that differ from the first step on, so that what is known of one is known of no other."""
    counts = np.random.default_rng(1).poisson(0.5, (FUNCTIONS, steps)).astype(np.float32)
    counts[:, 0] = 10 ** np.arange(FUNCTIONS)
    return counts


def drive(refits: Refits, counts: FloatArray, taken: Mapping[int, IntArray] | None = None) -> None:
    """Step by step as the mixture does it; `taken` are the rows that another function took in a step, counted from 0."""
    statistics = Statistics.empty(len(counts), START)
    for step, column in enumerate(counts.T):
        rows = (taken or {}).get(step, NOBODY)
        refits.learn(statistics.step, column, rows)
        statistics.update(column)
        refits.turn(statistics.step)
        refits.expect(statistics)
        refits.forget(rows)


class Lesson(NamedTuple):
    """A row of features by where it comes from; steps are counted from 0.

    Attributes:
        row: of the function.
        known: the first step that was not known yet.
        target: the step that it is about.
        came: invocations in it.
    """

    row: int
    known: int
    target: int
    came: float


def traced(features: FloatArray, came: FloatArray, counts: FloatArray) -> list[Lesson]:
    """Each row of features, found again in a replay by hand of the counts."""
    statistics, origin = Statistics.empty(len(counts), START), {}
    for known, column in enumerate(counts.T, 1):
        statistics.update(column)
        laid = statistics.features(FARTHEST)
        for row, h in np.ndindex(len(counts), FARTHEST):
            origin[laid[row, h].tobytes()] = row, known, known + h
    assert len(origin) == counts.size * FARTHEST  # no two are alike
    return [Lesson(*origin[each.tobytes()], count) for each, count in zip(features, came.tolist(), strict=True)]


def lessons_of(counts: FloatArray, taken: Mapping[int, IntArray] | None = None) -> list[Lesson]:
    """What the first refit learns from, when `FIRST` steps have closed."""
    pupil = Pupil(0.5, [Pupil(0.5)])
    refits = Refits((pupil,))
    drive(refits, counts[:, :FIRST], taken)
    refits.turn(START + ELECTED)
    ((lessons, _),) = pupil.taught
    assert (lessons.weights == 1).all()
    return traced(lessons.features, lessons.counts, counts)


# -- lessons -----------------------------------------------------------------------------------------------------------


def test_lessons_are_what_was_known_before_and_what_came() -> None:
    """Every function and step is one lesson about the next step, and one about a step up to 14 farther, to the bit."""
    counts = fleet(FIRST)
    lessons = lessons_of(counts)
    assert all(lesson.came == counts[lesson.row, lesson.target] for lesson in lessons)
    near = sorted((each.row, each.known) for each in lessons if each.known == each.target)
    assert near == [(row, step) for row in range(FUNCTIONS) for step in range(1, FIRST - EXAM_STEPS)]
    far = sorted((each.row, each.known) for each in lessons if each.known < each.target)
    assert len(set(far)) == len(far)
    certain = FIRST - EXAM_STEPS - FARTHEST  # what is asked later may be about a step of the exam
    assert {(row, step) for row in range(FUNCTIONS) for step in range(1, certain)} <= set(far)
    assert {each.target - each.known for each in lessons} == set(range(FARTHEST))


def test_a_missing_count_is_no_lesson() -> None:
    """A step that was not observed is learned from for no function, or for the others alone; all else is as it was."""
    counts = fleet(FIRST)
    counts[:, 20] = counts[1, 30] = np.nan
    missing = {(row, 20) for row in range(FUNCTIONS)} | {(1, 30)}
    lessons = lessons_of(counts)
    assert not np.isnan([lesson.came for lesson in lessons]).any()
    near = {(each.row, each.known) for each in lessons if each.known == each.target}
    assert near == {(row, step) for row in range(FUNCTIONS) for step in range(1, FIRST - EXAM_STEPS)} - missing
    assert missing.isdisjoint((each.row, each.target) for each in lessons)


def test_a_row_that_another_function_took_is_no_lesson() -> None:
    """What was known of the old function and is about the step in which it was replaced, or a later one, is dropped."""
    counts, step = fleet(FIRST), 30
    lessons = lessons_of(counts, {step: np.array([1])})
    ours, others = ([each for each in lessons if (each.row == 1) is own] for own in (True, False))
    assert not [each for each in ours if each.known <= step + 1 and each.target >= step]
    assert [each for each in ours if each.known > step + 1]
    assert others == [each for each in lessons_of(counts) if each.row != 1]


def test_a_deleted_function_s_successor_is_not_taken_for_it() -> None:
    """In the mixture, too: whatever came of the new function was learned with what was known of the new one."""
    pupil = Pupil(0.5, [Pupil(0.5)])
    forecaster, store = MixtureForecaster(model_of(pupil)), new_store()
    serve(forecaster, store, range(30), lambda _step: {A: 3, B: 1})
    store.delete([A])
    serve(forecaster, store, range(30, ELECTED), lambda _step: {C: 77, B: 1})
    assert store.row_of(C) == 0
    ((lessons, _),) = pupil.taught
    known = lessons.features[lessons.counts == 77, FEATURES.index("log_last_count")]
    assert len(known) > EXAM_STEPS / 2
    np.testing.assert_allclose(known, np.log1p(77), rtol=1e-5)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than REMEMBERED lessons are kept, those of the latest steps."""
    monkeypatch.setattr(refit, "REMEMBERED", 100)
    refits = Refits((Pupil(0.5),))
    drive(refits, fleet(50))
    held = [(lessons.target - START, len(lessons.counts)) for lessons in refits._lessons]
    assert 100 - 2 * FUNCTIONS < sum(size for _, size in held) <= 100
    targets = sorted({target for target, _ in held})
    assert targets == list(range(targets[0], 50))


def test_the_functions_of_a_step_are_drawn_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than DRAWN functions a step are asked about, others at other steps, so that all have their turn."""
    monkeypatch.setattr(refit, "DRAWN", 2)
    near = [each for each in lessons_of(fleet(FIRST)) if each.known == each.target]
    assert len(near) == 2 * (FIRST - EXAM_STEPS - 1)
    assert {each.row for each in near} == set(range(FUNCTIONS))


@pytest.mark.parametrize(("name", "least"), [("LEAST", 700), ("LEAST_ACTIVE", 250)])
def test_too_few_lessons_are_not_learned_from(name: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when there are few of them nor when few are active; the next turn has an hour's more, and they suffice."""
    monkeypatch.setattr(refit, name, least)
    pupil = Pupil(0.5, [Pupil(0.5)])
    refits = Refits((pupil,))
    drive(refits, fleet(ELECTED + EVERY))
    ((lessons, seed),) = pupil.taught
    assert seed == START + FIRST + EVERY
    assert (lessons.counts > 0).sum() >= least if name == "LEAST_ACTIVE" else len(lessons.counts) >= least
    assert len(refits.elections) == 1


# -- elections ---------------------------------------------------------------------------------------------------------


def busy(rows: int = FUNCTIONS, steps: int = FIRST + EVERY + LAG) -> FloatArray:
    """Functions invoked at every step."""
    return np.ones((rows, steps), np.float32)


def test_the_last_hour_is_for_the_exam_alone() -> None:
    """All are examined on the same lessons, about the hour before the refit began; none of them was learned from."""
    counts = fleet(ELECTED)
    successor = Pupil(0.5)
    pupil = Pupil(0.5, [successor])
    refits = Refits((pupil,))
    drive(refits, counts)
    ((lessons, _),) = pupil.taught
    exam = traced(successor.examined[0], np.zeros(len(successor.examined[0]), np.float32), counts)
    assert {each.target for each in exam} == set(range(FIRST - EXAM_STEPS, FIRST))
    assert sum(each.known == each.target for each in exam) == FUNCTIONS * EXAM_STEPS
    assert max(each.target for each in traced(lessons.features, lessons.counts, counts)) < FIRST - EXAM_STEPS
    for examined in pupil.examined:
        np.testing.assert_array_equal(examined, successor.examined[0])


def test_the_better_candidate_serves_and_the_worse_does_not() -> None:
    """Log losses in the exam decide, and are told with who was elected."""
    better, worse = Pupil(0.9), Pupil(0.3)
    refits = Refits((Pupil(0.5, [better, worse]),))
    drive(refits, busy())
    assert refits.experts == (better,)
    first, second = refits.elections
    assert (first.step, first.expert, first.elected) == (START + ELECTED, "pupil", "candidate")
    assert first.log_loss == pytest.approx(
        {"serving": -np.log(0.5), "trained": -np.log(0.5), "candidate": -np.log(0.9)}, rel=1e-5
    )
    assert first.lessons > FUNCTIONS * (FIRST - EXAM_STEPS - 1)
    assert (second.step, second.elected) == (START + ELECTED + EVERY, "serving")
    assert second.log_loss == pytest.approx(
        {"serving": -np.log(0.9), "trained": -np.log(0.5), "candidate": -np.log(0.3)}, rel=1e-5
    )


def test_one_that_got_worse_is_put_back_to_the_trained_one() -> None:
    """When the fleet falls silent the refit that served its busy hours goes, and no worse one comes in its place."""
    pupil = Pupil(0.5, [Pupil(0.9), Pupil(0.8)])
    refits = Refits((pupil,))
    counts = busy()
    counts[:, FIRST:] = 0
    drive(refits, counts)
    assert [election.elected for election in refits.elections] == ["candidate", "trained"]
    assert refits.experts == (pupil,)


def test_equals_change_nothing() -> None:
    """A newcomer must be better than the one that serves, not as good."""
    pupil = Pupil(0.5, [Pupil(0.5)])
    refits = Refits((pupil,))
    drive(refits, busy(steps=ELECTED))
    assert [election.elected for election in refits.elections] == ["serving"]
    assert refits.experts == (pupil,)


class Mute(Pupil):
    """An expert that raises when it is asked."""

    def activity(self, features: FloatArray) -> FloatArray:
        raise RuntimeError(f"no answer for {len(features)} rows")


@pytest.mark.parametrize("fault", [RuntimeError("out of trees"), Mute(0.9)], ids=["while it learns", "in the exam"])
def test_a_refit_that_fails_is_logged_and_the_old_one_serves(
    fault: Exception | Pupil, caplog: pytest.LogCaptureFixture
) -> None:
    """One that raises, while it learns or when it is examined, is no candidate; the next hour's is as if it had not been."""
    better = Pupil(0.9)
    pupil = Pupil(0.5, [fault, better])
    refits = Refits((pupil,))
    with caplog.at_level(logging.ERROR, logger=refit.__name__):
        drive(refits, busy(steps=ELECTED))
    (record,) = caplog.records
    assert "expert pupil" in record.getMessage()
    assert record.exc_info is not None
    assert refits.experts == (pupil,)
    assert [election.elected for election in refits.elections] == ["serving"]
    drive(other := Refits((Pupil(0.5, [fault, better]),)), busy())
    assert other.experts == (better,)


def test_a_late_refit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refit that has not ended when its election is due holds that up, and serves from the same step all the same."""
    ask, may_end = Future.result, threading.Event()

    class Slow(Pupil):
        def refitted(self, lessons: Samples, seed: int) -> Pupil:
            assert may_end.wait(60)
            return super().refitted(lessons, seed)

    def result(future: Future[Any], timeout: float | None = None) -> Any:
        assert not future.done()
        may_end.set()
        return ask(future, timeout)

    monkeypatch.setattr(Future, "result", result)
    better = Pupil(0.9)
    refits = Refits((Slow(0.5, [better]),))
    drive(refits, busy(steps=ELECTED))
    assert refits.experts == (better,)
    assert [election.step for election in refits.elections] == [START + ELECTED]


def test_experts_that_cannot_be_refitted_stay() -> None:
    """They keep their place beside those that can, and alone nothing is even remembered."""
    better, fixed = Pupil(0.9), SeasonalExpert()
    refits = Refits((fixed, Pupil(0.5, [better]), fixed))
    drive(refits, busy(steps=ELECTED))
    assert refits.experts == (fixed, better, fixed)
    alone = Refits((fixed,))
    drive(alone, busy(steps=ELECTED))
    assert not alone._lessons
    assert alone.elections == []


# -- in the mixture ----------------------------------------------------------------------------------------------------

A, B, C = (FunctionKey("scope", name) for name in "abc")


class Says(Pupil):
    """An expert that is not refitted: it has no face for that."""

    activity = None  # type: ignore[assignment]


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


def test_a_frozen_mixture_is_never_refitted() -> None:
    """With learn=False nothing is taught, however long it serves."""
    pupil = Pupil(0.5, [Pupil(0.9)])
    forecaster = MixtureForecaster(model_of(pupil), learn=False)
    assert serve(forecaster, new_store(), range(ELECTED + EVERY)) == []
    assert pupil.taught == pupil.examined == []
    assert active(forecaster) == pytest.approx(0.5, abs=1e-5)


# -- real trees --------------------------------------------------------------------------------------------------------


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
