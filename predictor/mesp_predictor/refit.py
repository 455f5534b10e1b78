"""Experts refitted on the fleet's own recent past while they serve: in the background, elected, and reversible.

At every step some functions are drawn, and what the statistics say of their next step, and for some of one farther
ahead, waits until that step has closed: then it is a lesson. Every `EVERY` steps each refittable expert learns from all
lessons but the last hour's, in a thread of its own; `LAG` steps later that hour elects who serves from then on: the
newcomer, the one that serves, or the expert as it was trained.

Lessons, seeds and the steps of each election follow from the counts alone, so a replay refits as the server did; of many
steps that close at once, as after a long silence, only the last ones can begin or end a refit.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import structlog

from mesp_predictor.experts.base import Expert, Refittable
from mesp_predictor.experts.samples import Samples
from mesp_predictor.losses import log_loss
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import IntArray
    from mesp_predictor.statistics import Statistics

_log = structlog.get_logger(__name__)

#: Steps between two refits, and from the start of one to its election.
EVERY = 60
LAG = 10
#: Steps of the newest lessons that elect and are not learned from.
EXAM_STEPS = 60
#: Functions that a step's lessons are drawn from, at most; of these, the share with a lesson farther ahead as well.
DRAWN = 300
FARTHER_SHARE = 0.25
#: Steps ahead of the farthest lesson.
FARTHEST = 15
#: Lessons remembered at most: some 20 hours of 200 functions or more, 168 MB.
REMEMBERED = 320_000
#: Lessons, and active ones among them, without which nothing is learned.
LEAST, LEAST_ACTIVE = 5_000, 200


class _Question(NamedTuple):
    """What was known of a step that has not closed."""

    target: int
    rows: IntArray
    features: FloatArray


class _Lessons(NamedTuple):
    """What was known of a step that has closed, and what came."""

    target: int
    features: FloatArray
    counts: FloatArray


@dataclass(slots=True)
class _Seat:
    """An expert's place in the mixture.

    Attributes:
        trained: as the model holds it.
        serving: now.
        candidate: who learns, or has.
    """

    trained: Refittable
    serving: Refittable
    candidate: Future[Refittable] | None = None


@dataclass(frozen=True, slots=True)
class Election:
    """How a refit ended.

    Attributes:
        step: from which on the elected one serves.
        expert: its name.
        elected: `trained`, `serving` or `candidate`.
        log_loss: of each in the last hour, nats; NaN of an expert that knows nothing yet.
        lessons: steps of functions that were learned from.
    """

    step: int
    expert: str
    elected: str
    log_loss: dict[str, float]
    lessons: int


@dataclass(slots=True)
class Refits:
    """The model's experts, the refittable ones as the fleet's past has made them."""

    experts: tuple[Expert, ...]
    elections: list[Election] = field(default_factory=list)
    _seats: dict[int, _Seat] = field(default_factory=dict)
    _questions: list[_Question] = field(default_factory=list)
    _lessons: deque[_Lessons] = field(default_factory=deque)
    _held: int = 0
    _started: int | None = None
    _taught: int = 0

    def __post_init__(self) -> None:
        """Every refittable expert has a seat."""
        self._seats = {i: _Seat(e, e) for i, e in enumerate(self.experts) if isinstance(e, Refittable)}

    def expect(self, statistics: Statistics) -> None:
        """Keeps what is known of coming steps, of some functions drawn by the step's number."""
        if not self._seats:
            return
        rng = np.random.default_rng(statistics.step)
        rows = rng.permutation(np.flatnonzero(statistics.age >= 0))[:DRAWN]
        if not len(rows):
            return
        self._questions.append(_Question(statistics.step, rows, statistics.take(rows).features(1)[:, 0]))
        farther = rows[rng.random(len(rows)) < FARTHER_SHARE]
        features = statistics.take(farther).features(FARTHEST)
        ahead = rng.integers(1, FARTHEST, len(farther))
        for h in np.unique(ahead):
            chosen = ahead == h
            self._questions.append(_Question(statistics.step + int(h), farther[chosen], features[chosen, h]))

    def learn(self, step: int, counts: FloatArray, taken: IntArray) -> None:
        """Answers the questions about a step that closed.

        Args:
            step: its index.
            counts: (F,), NaN where missing.
            taken: rows that hold another function by now.
        """
        waiting = []
        for question in self._questions:
            if question.target > step:
                waiting.append(question)
            elif question.target == step:
                known = ~np.isnan(counts[question.rows]) & ~np.isin(question.rows, taken)
                if known.any():
                    lessons = _Lessons(step, question.features[known], counts[question.rows[known]])
                    self._lessons.append(lessons)
                    self._held += len(lessons.counts)
        self._questions = waiting
        while self._held > REMEMBERED:
            self._held -= len(self._lessons.popleft().counts)

    def forget(self, rows: IntArray) -> None:
        """Drops the open questions about rows that another function took."""
        if len(rows):
            self._questions = [
                _Question(q.target, q.rows[kept], q.features[kept])
                for q in self._questions
                for kept in [~np.isin(q.rows, rows)]
            ]

    def awaits(self, step: int) -> bool:
        """Whether `turn` at this step would wait for a refit that is late."""
        due = self._started is not None and step >= self._started + LAG
        return due and any(seat.candidate is not None and not seat.candidate.done() for seat in self._seats.values())

    def turn(self, step: int) -> list[int]:
        """Starts and ends refits where `step`, the next one, says so; indices of experts that came to know something."""
        started, awoken = self._started, []
        if started is not None and step >= started + LAG:
            self._started, awoken = None, self._elect(started, step)
        if self._started is None and step % EVERY == 0:
            self._start(step)
        return awoken

    def _start(self, step: int) -> None:
        lessons = self._samples(lambda target: target < step - EXAM_STEPS)
        if len(lessons.counts) < LEAST or (lessons.counts > 0).sum() < LEAST_ACTIVE:
            return
        self._started, self._taught = step, len(lessons.counts)
        for seat in self._seats.values():
            seat.candidate = _refitted(seat.trained, lessons, step)

    def _elect(self, started: int, step: int) -> list[int]:
        """The last hour before the refit began decides; a refit that is late is waited for."""
        exam = self._samples(lambda target: started - EXAM_STEPS <= target < started)
        awoken = []
        for index, seat in self._seats.items():
            candidates: dict[str, Refittable] = {"serving": seat.serving, "trained": seat.trained}
            try:
                if seat.candidate is not None:
                    candidates["candidate"] = seat.candidate.result()
            except Exception:  # noqa: BLE001  whatever it is, the one that serves goes on
                _log.exception("not refitted; the one that serves goes on", expert=seat.serving.name)
            seat.candidate = None
            losses = {name: _examined(expert, exam) for name, expert in candidates.items()}
            elected = min(losses, key=lambda name: np.nan_to_num(losses[name], nan=np.inf))
            if np.isnan(losses["serving"]) and not np.isnan(losses[elected]):
                awoken.append(index)
            seat.serving = candidates[elected]
            self.elections.append(Election(step, seat.serving.name, elected, losses, self._taught))
        self.experts = tuple(
            self._seats[i].serving if i in self._seats else expert for i, expert in enumerate(self.experts)
        )
        return awoken

    def _samples(self, wanted: Callable[[int], bool]) -> Samples:
        chosen = [lessons for lessons in self._lessons if wanted(lessons.target)]
        if not chosen:
            return Samples(*(np.zeros(shape, np.float32) for shape in ((0, len(FEATURES)), 0, 0)))
        counts = np.concatenate([lessons.counts for lessons in chosen])
        features = np.concatenate([lessons.features for lessons in chosen])
        return Samples(features, counts, np.ones(len(counts), np.float32))


def _refitted(expert: Refittable, lessons: Samples, seed: int) -> Future[Refittable]:
    """The refit in a thread of its own, which does not keep the process from ending."""
    future: Future[Refittable] = Future()

    def work() -> None:
        try:
            future.set_result(expert.refitted(lessons, seed))
        except Exception as error:  # noqa: BLE001  told where the result is asked for
            future.set_exception(error)

    Thread(target=work, name=f"refit-{expert.name}", daemon=True).start()
    return future


def _examined(expert: Refittable, exam: Samples) -> float:
    """Mean log loss of the exam's lessons; NaN of an expert that has no answer, or fails."""
    try:
        active = expert.activity(exam.features)
    except Exception:  # noqa: BLE001  an expert that fails is not elected
        _log.exception("failed in the exam", expert=expert.name)
        return float("nan")
    if not len(active) or np.isnan(active).any():
        return float("nan")
    return float(log_loss((exam.counts > 0)[:, None], active[:, None].astype(np.float64)).mean())
