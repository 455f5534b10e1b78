"""Refits: what an expert learns from, who is elected and when, and that nothing of it can hurt."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from structlog.testing import capture_logs

from mesp_predictor import refit
from mesp_predictor.experts.light import SeasonalExpert
from mesp_predictor.refit import EVERY, EXAM_STEPS, FARTHEST, LAG, Refits
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Context, IntArray, Prediction
    from mesp_predictor.experts.samples import Samples

START = 28_000_020  # a step at which refits are due
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
        raise NotImplementedError

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
    fault: Exception | Pupil,
) -> None:
    """One that raises, while it learns or when it is examined, is no candidate; the next hour's is as if it had not been."""
    better = Pupil(0.9)
    pupil = Pupil(0.5, [fault, better])
    refits = Refits((pupil,))
    with capture_logs() as logged:
        drive(refits, busy(steps=ELECTED))
    (failed,) = logged
    assert (failed["log_level"], failed["expert"], bool(failed["exc_info"])) == ("error", "pupil", True)
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
