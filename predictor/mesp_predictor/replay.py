"""A replay of held-out functions, step by step as when serving: what each expert would have said, and what then happened.

Every expert answers in a job of its own (`answer`), so that experts run side by side; the answers meet again where they
are compared (`selection`) and where the gate learns from them (`gate_samples`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mesp.types import DEFAULT_LEVELS
from mesp_predictor import router as routing
from mesp_predictor.experts.base import Context, Prediction
from mesp_predictor.losses import NAIVE_FLOOR
from mesp_predictor.mixture import CLUSTER_EVERY, WINDOW, binned, look_up
from mesp_predictor.refit import Refits
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from mesp.types import BoolArray, FloatArray, FunctionKey, Trigger
    from mesp_predictor.experts.base import Expert, IntArray

#: Steps ahead (from 0) at which experts and gate are judged.
JUDGED_STEPS = (0, 1, 4, 14)


@dataclass(frozen=True, slots=True)
class Past:
    """The held-out functions, and at which steps experts are asked.

    Attributes:
        counts: invocations per step, (F, M), NaN where missing.
        start_step: absolute index of the first column's step.
        centroids: the clusters' shapes, (K, B).
        bin_steps: steps in one bin of a shape.
        first: column from which on experts are asked; statistics learn from all.
        every: columns between two samples; at those, experts answer the whole horizon.
        horizon: steps ahead in a sample.
        keys: the functions' names, F of them, which tell who is related; none: nobody is.
        triggers: what invokes them, F of them; none: nobody knows.
    """

    counts: FloatArray
    start_step: int
    centroids: FloatArray
    bin_steps: int
    first: int
    every: int
    horizon: int
    keys: tuple[FunctionKey, ...] = ()
    triggers: tuple[Trigger, ...] = ()

    @property
    def ahead(self) -> IntArray:
        """The steps ahead, from 0, that are judged, (J,)."""
        return np.array([h for h in JUDGED_STEPS if h < self.horizon])

    @property
    def sampled(self) -> IntArray:
        """Columns of the samples, (S,); what is judged lies inside the trace."""
        steps = self.counts.shape[1]
        return np.arange(self.first, steps - int(self.ahead[-1]), self.every)

    @property
    def happened(self) -> FloatArray:
        """Counts at the judged steps of every sample, (S, F, J)."""
        return np.moveaxis(self.counts[:, self.sampled[:, None] + self.ahead], 0, 1)

    @property
    def scale(self) -> FloatArray:
        """Each function's naive error, the unit of its quantile loss, (F,)."""
        steps = np.abs(np.diff(self.counts, axis=1))
        known = (~np.isnan(steps)).sum(axis=1)
        naive = np.nansum(steps, axis=1) / np.maximum(known, 1)
        return np.asarray(np.maximum(naive, NAIVE_FLOOR), np.float32)


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of the replay, just before its column is known.

    Attributes:
        column: its index.
        context: what experts read; statistics are updated in place when the next moment is asked for.
        distances: to the centroids, (F, K).
    """

    column: int
    context: Context
    distances: FloatArray


def moments(past: Past) -> Iterator[Moment]:
    """Every step from `past.first` on."""
    functions, steps = past.counts.shape
    day_steps = past.centroids.shape[1] * past.bin_steps
    statistics = Statistics.empty(functions, past.start_step, past.keys, past.triggers)
    cluster, distances = np.full(functions, -1), np.ones((functions, len(past.centroids)), np.float32)
    offset = max(WINDOW, day_steps)
    padded = np.pad(np.nan_to_num(past.counts), ((0, 0), (offset, 0)))
    for t in range(steps):
        if t % CLUSTER_EVERY == 0 and t:
            window = padded[:, t + offset - day_steps : t + offset]
            cluster, distances = look_up(binned(window, past.bin_steps), past.centroids)
        if t >= past.first:
            window = padded[:, t + offset - WINDOW : t + offset]
            yield Moment(t, Context(past.start_step + t, window, statistics, cluster), distances)
        statistics.update(past.counts[:, t])


@dataclass(frozen=True, slots=True)
class Answers:
    """What one expert said.

    Attributes:
        following: probability that each column is active, said just before it, (M, F); NaN where it was not asked.
        counts: quantiles of each column's count, said just before it, (M, F, L); NaN likewise.
        active: probability of activity at the judged steps of every sample, (S, F, J).
        quantiles: at the judged steps, (S, F, J, L).
    """

    following: FloatArray
    counts: FloatArray
    active: FloatArray
    quantiles: FloatArray

    def where(self, chosen: BoolArray, other: Answers, sampled: IntArray) -> Answers:
        """The other's answers for the functions `chosen` at each column, (M, F), else these."""
        at = chosen[sampled][..., None]
        return Answers(
            np.where(chosen, other.following, self.following),
            np.where(chosen[..., None], other.counts, self.counts),
            np.where(at, other.active, self.active),
            np.where(at[..., None], other.quantiles, self.quantiles),
        )


def answer(expert: Expert, past: Past, *, costly: bool, progress: Callable[[float], None]) -> Answers:
    """Asks an expert, refitted as when serving; a costly one only at the samples, any other one before every step."""
    functions, steps = past.counts.shape
    sampled, ahead = past.sampled, past.ahead
    following = np.full((steps, functions), np.nan, np.float32)
    counts = np.full((steps, functions, len(DEFAULT_LEVELS)), np.nan, np.float32)
    active = np.zeros((len(sampled), functions, len(ahead)), np.float32)
    quantiles = np.zeros((*active.shape, len(DEFAULT_LEVELS)), np.float32)
    row = {int(column): i for i, column in enumerate(sampled)}
    refits, nobody = Refits((expert,)), np.zeros(0, np.int64)
    for moment in moments(past):
        t, step = moment.column, moment.context.step
        refits.turn(step)
        refits.expect(moment.context.statistics)
        if t in row or not costly:
            said = refits.experts[0].predict(moment.context, past.horizon if t in row else 1, DEFAULT_LEVELS)
            following[t], counts[t] = said.active[:, 0], said.quantiles[:, 0]
            if t in row:
                active[row[t]], quantiles[row[t]] = said.active[:, ahead], said.quantiles[:, ahead]
        refits.learn(step, past.counts[:, t], nobody)
        progress((t - past.first + 1) / (steps - past.first))
    return Answers(following, counts, active, quantiles)


def clusters_over_time(past: Past) -> tuple[npt.NDArray[np.int64], BoolArray]:
    """Cluster of each function at each column, (M, F), and whether it was invoked before; nothing before `past.first`."""
    shape = past.counts.T.shape
    cluster, seen = np.full(shape, -1), np.zeros(shape, np.bool_)
    for moment in moments(past):
        cluster[moment.column] = moment.context.cluster
        seen[moment.column] = moment.context.statistics.gap > 0
    return cluster, seen


def gate_samples(answers: list[Answers], past: Past, progress: Callable[[float], None]) -> routing.GateSamples:
    """What the gate would have read at every sample, and what then happened."""
    functions, steps = past.counts.shape
    losses = routing.new_losses(functions, len(answers))
    following = np.stack([each.following for each in answers], axis=2)
    sampled, levels = set(past.sampled.tolist()), np.asarray(DEFAULT_LEVELS, np.float32)
    inputs = []
    for moment in moments(past):
        t, statistics = moment.column, moment.context.statistics
        if t in sampled:
            features = statistics.features(1)[:, 0]
            inputs.append(routing.gate_inputs(features, following[t], losses, moment.distances))
        column = past.counts[:, t]
        said = Prediction(np.stack([each.counts[t] for each in answers], axis=1), following[t])
        routing.score(losses, said, levels, column, ~np.isnan(column) & (statistics.gap > 0))
        progress((t + 1) / steps)
    samples = len(inputs)
    return routing.GateSamples(
        np.concatenate(inputs),
        _rows(np.stack([each.active for each in answers], axis=2)),
        _rows(np.stack([each.quantiles for each in answers], axis=2)),
        _rows(past.happened),
        np.tile(past.scale, samples),
        np.tile(np.arange(functions), samples),
    )


def _rows(by_sample: FloatArray) -> FloatArray:
    """(S, F, ...) -> (S * F, ...)."""
    return by_sample.reshape(-1, *by_sample.shape[2:])
