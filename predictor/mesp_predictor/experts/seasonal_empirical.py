"""Seasonal empirical: the counts that stood at the same phase of the function's best period, as they were.

Of the periods that the running statistics track, the one whose phases foretold the function best lately is taken. The
counts one, two, three ... cycles before the step ahead are its distribution, newer cycles weighing more. As few cycles
say little, and a bad period nothing, they are shrunk to the latest counts of any phase: these weigh as much as `doubt`
cycles for every nat that the period's forecasts lost per step. A timer is hardly shrunk, a Poisson stream nearly whole.
How fast cycles age, and the doubt, are what the training set teaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from pydantic import Field

from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet
from mesp_predictor.experts.files import Settings, read_settings, write_expert
from mesp_predictor.experts.light import above_hurdle
from mesp_predictor.experts.windows import check_counts
from mesp_predictor.kernels import PERIODS, POSITIVE_KEPT
from mesp_predictor.losses import log_loss
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray

#: Functions whose quantiles are sought at once.
CHUNK: Final = 2048

#: Latest cycles that are looked at.
CYCLES: Final = 16

#: Steps that the counts of any phase are taken from.
RECENT: Final = 120

#: What `fit` chooses from: weight of a cycle against the next newer one, and doubt.
MEMORIES: Final = (0.6, 0.75, 0.85, 0.95)
DOUBTS: Final = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class SeasonalEmpiricalSettings(Settings):
    """What is replayed to choose how fast cycles age and how far they are doubted."""

    functions: int = Field(400, ge=1, description="Functions of the training set that are replayed, at most.")
    moments: int = Field(24, ge=1, description="Steps of the replay at which a forecast is judged.")


class _Learned(Settings):
    memory: float = Field(gt=0, lt=1)
    doubt: float = Field(gt=0)


class _Cycles(NamedTuple):
    """The counts at the same phase in the latest cycles, (R, H, CYCLES), and which of them were observed."""

    counts: FloatArray
    seen: FloatArray


class _Base(NamedTuple):
    """What is known whatever the phase.

    Attributes:
        share: of the recent steps that were active, (R, 1).
        lost: what the best period's forecasts lost lately, nats per step, (R, 1).
    """

    share: FloatArray
    lost: FloatArray


def _read(context: Context, horizon: int, rows: slice) -> tuple[_Cycles, _Base]:
    counts, statistics = context.counts[rows], context.statistics
    functions, columns = counts.shape
    loss = statistics.phase_loss[rows]
    best = loss.argmin(axis=1)
    period = np.asarray(PERIODS)[best][:, None, None]
    ahead = np.arange(horizon)[:, None]
    column = columns + ahead - period * (ahead // period + 1 + np.arange(CYCLES))
    known = np.minimum(statistics.age[rows].clip(min=0), columns)
    seen = column >= (columns - known)[:, None, None]
    row = np.arange(functions)[:, None, None]
    at = np.where(seen, counts[row, column.clip(min=0)], 0) if columns else np.zeros(column.shape, np.float32)
    recent = np.minimum(known, RECENT)
    share = ((counts[:, -RECENT:] > 0).sum(axis=1) + 0.02) / (recent + 1)
    base = _Base(
        share.astype(np.float32)[:, None],
        np.take_along_axis(loss, best[:, None], axis=1),
    )
    return _Cycles(at, seen.astype(np.float32)), base


def _active(cycles: _Cycles, base: _Base, memory: float, doubt: float) -> FloatArray:
    """Probability of activity, (R, H)."""
    weight = cycles.seen * memory ** np.arange(CYCLES, dtype=np.float32)
    shrink = doubt * base.lost
    hits = (weight * (cycles.counts > 0)).sum(axis=2)
    active: FloatArray = (hits + shrink * base.share) / (weight.sum(axis=2) + shrink)
    return active.clip(0.001, 0.999)


@dataclass(frozen=True, slots=True)
class SeasonalEmpiricalExpert:
    """Weighted empirical distribution of one phase, shrunk to that of all phases.

    Attributes:
        memory: weight of a cycle against the next newer one.
        doubt: cycles that the distribution of all phases is worth, for every nat lost by the period.
    """

    memory: float
    doubt: float
    name = "seasonal_empirical"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        rows = len(context.counts)
        active = np.empty((rows, horizon), np.float32)
        quantiles = np.empty((rows, horizon, len(levels)), np.float32)
        positive = context.statistics.positive_quantiles()[0][:, :POSITIVE_KEPT]  # the counts themselves
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            cycles, base = _read(context, horizon, part)
            active[part] = _active(cycles, base, self.memory, self.doubt)
            quantiles[part] = self._quantiles(cycles, base, positive[part], active[part], levels)
        return Prediction(above_hurdle(quantiles, active, levels), active)

    def save(self, directory: Path) -> None:
        """Writes `config.json`, which holds the two numbers that are learned."""
        write_expert(directory, self.name, _Learned(memory=self.memory, doubt=self.doubt))

    @classmethod
    def load(cls, directory: Path) -> SeasonalEmpiricalExpert:
        """Reads what `save` wrote; raises `InputError` where the file or a key does not fit."""
        learned = read_settings(directory, cls.name, _Learned)
        return cls(learned.memory, learned.doubt)

    def _quantiles(
        self, cycles: _Cycles, base: _Base, positive: FloatArray, active: FloatArray, levels: tuple[float, ...]
    ) -> FloatArray:
        """Quantiles of the positive counts at the levels that are left of the whole's above its zeros, (R, H, L).

        Args:
            cycles: counts at the steps' phases.
            base: what is known whatever the phase.
            positive: quantiles of the latest positive counts, (R, G).
            active: probability of activity, (R, H).
            levels: of the whole, L of them.
        """
        functions, horizon = active.shape
        grid = positive.shape[1]
        weight = cycles.seen * (cycles.counts > 0) * self.memory ** np.arange(CYCLES, dtype=np.float32)
        each = (self.doubt * base.lost * base.share / grid)[:, None]
        values = np.concatenate([cycles.counts, np.broadcast_to(positive[:, None], (functions, horizon, grid))], axis=2)
        weight = np.concatenate([weight, np.broadcast_to(each, (functions, horizon, grid))], axis=2)
        order = values.argsort(axis=2)
        values = np.take_along_axis(values, order, axis=2)
        reached = np.take_along_axis(weight, order, axis=2).cumsum(axis=2)
        reached /= reached[..., -1:]
        out = np.empty((functions, horizon, len(levels)), np.float32)
        for i, level in enumerate(levels):
            inside = (level - 1 + active) / active
            at = (reached < inside[..., None]).sum(axis=2).clip(max=values.shape[2] - 1)
            out[..., i] = np.take_along_axis(values, at[..., None], axis=2)[..., 0]
        return out


def fit_seasonal_empirical(
    data: TrainingSet, settings: SeasonalEmpiricalSettings, training: Training
) -> SeasonalEmpiricalExpert:
    """Replays a part of the training set and takes the memory and doubt with the least log loss of activity.

    Raises:
        InputError: the training set holds no counts to learn from.
    """
    check_counts(data.counts)
    rng = np.random.default_rng(training.seed)
    counts = data.counts[np.sort(rng.permutation(len(data.counts))[: settings.functions])]
    functions, steps = counts.shape
    horizon = min(15, data.max_horizon, steps - 1)
    moments = set(rng.integers(steps // 4, steps - horizon, settings.moments).tolist())
    losses = np.zeros((len(MEMORIES), len(DOUBTS)))
    statistics = Statistics.empty(functions, data.start_step)
    for t in range(steps):
        if t in moments:
            seen = np.nan_to_num(counts[:, max(t - max(PERIODS) * 2, 0) : t])
            context = Context(data.start_step + t, seen, statistics, np.full(functions, -1))
            cycles, base = _read(context, horizon, slice(None))
            came = counts[:, t : t + horizon]
            known = ~np.isnan(came) & (statistics.gap[:, None] > 0)
            for (i, memory), (j, doubt) in product(enumerate(MEMORIES), enumerate(DOUBTS)):
                active = _active(cycles, base, memory, doubt)
                losses[i, j] += log_loss(came[known] > 0, active[known]) * known.sum() if known.any() else 0
        statistics.update(counts[:, t])
        training.progress((t + 1) / steps)
    best = np.unravel_index(losses.argmin(), losses.shape)
    return SeasonalEmpiricalExpert(MEMORIES[int(best[0])], DOUBTS[int(best[1])])


SEASONAL_EMPIRICAL: Final = Family(
    name=SeasonalEmpiricalExpert.name,
    settings=SeasonalEmpiricalSettings,
    smoke=SeasonalEmpiricalSettings(functions=40, moments=6),
    fit=fit_seasonal_empirical,
    load=SeasonalEmpiricalExpert.load,
)
