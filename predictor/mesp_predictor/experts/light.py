"""The light experts: closed-form readings of the running statistics, no training beyond the hazard's prior curves.

Each gives a probability of activity; counts, once active, follow the function's latest positive counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import Field

from mesp.errors import InputError
from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet, hurdle_quantiles
from mesp_predictor.experts.files import WEIGHTS_FILE, Settings, read_arrays, read_settings, write_expert
from mesp_predictor.kernels import LONGEST_GAP
from mesp_predictor.series import MAX_COUNT

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import IntArray
    from mesp_predictor.statistics import Statistics


def _with_latest_counts(active: FloatArray, statistics: Statistics, levels: tuple[float, ...]) -> Prediction:
    positive, grid = statistics.positive_quantiles()
    return Prediction(hurdle_quantiles(active, positive, grid, levels), active)


def above_hurdle(quantiles: FloatArray, active: FloatArray, levels: tuple[float, ...]) -> FloatArray:
    """Quantiles of the whole count made to agree with the probability of activity, by the rule of `hurdle_quantiles`.

    Args:
        quantiles: invocations per step, (R, H, L), non-decreasing along L.
        active: probability of at least one invocation, (R, H).
        levels: L of them, ascending.

    Returns:
        (R, H, L) float32: 0 where the level is at most 1 - active, else a whole number of at least 1.
    """
    inside = (np.asarray(levels, np.float32) - 1 + active[..., None]) > 0
    return np.where(inside, np.rint(quantiles).clip(1, MAX_COUNT), 0).astype(np.float32)


class NoSettings(Settings):
    """There is nothing to set."""


@dataclass(frozen=True, slots=True)
class SeasonalExpert:
    """Seasonal naive, made fit for mostly zero series: what this phase of the best period did in past cycles.

    Of the tracked periods the one whose shares forecast the function best lately (by log loss) answers.
    """

    name = "seasonal"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        statistics = context.statistics
        shares = statistics.phase_shares(horizon)
        best = np.argmin(statistics.phase_loss, axis=1)
        active = np.take_along_axis(shares, best[:, None, None], axis=2)[..., 0]
        return _with_latest_counts(np.clip(active, 0.001, 0.999), statistics, levels)

    def save(self, directory: Path) -> None:
        """Writes `config.json`; nothing is learned."""
        write_expert(directory, self.name, NoSettings())


@dataclass(frozen=True, slots=True)
class IntermittentExpert:
    """TSB (Teunter, Syntetos and Babai, EJOR 2011): smoothed probability of demand, the same for every step ahead.

    Its smoothed size of demand is not used: on real functions the latest counts as they were have the lower quantile loss
    than the same counts scaled to that mean, which turns steady whole counts into fractions.
    """

    name = "intermittent"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        statistics = context.statistics
        active = np.repeat(np.clip(statistics.tsb[:, :1], 0.001, 0.999), horizon, axis=1)
        return _with_latest_counts(active, statistics, levels)

    def save(self, directory: Path) -> None:
        """Writes `config.json`; nothing is learned."""
        write_expert(directory, self.name, NoSettings())


class HazardSettings(Settings):
    """How far the hazard leans on its prior curves."""

    strength: float = Field(2.0, gt=0, description="Gaps that a prior curve is worth against the function's own.")


class _HazardConfig(HazardSettings):
    longest_gap: int = Field(ge=LONGEST_GAP, le=LONGEST_GAP)


@dataclass(frozen=True, slots=True)
class HazardExpert:
    """The gap histogram's hazard, shrunk to the curve of the function's cluster.

    Attributes:
        curves: hazard by gap length, one per cluster and last the whole fleet's, (K + 1, LONGEST_GAP + 1);
            at index 0 the chance that a function never active so far is so in the next step.
        strength: how many gaps a curve is worth against the function's own.
    """

    curves: FloatArray
    strength: float
    name = "hazard"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        whole_fleet = len(self.curves) - 1
        known = (context.cluster >= 0) & (context.cluster < whole_fleet)
        curve = np.where(known, context.cluster, whole_fleet)
        active = context.statistics.renewal(self.curves, curve, self.strength, horizon)
        return _with_latest_counts(np.clip(active, 0.0005, 0.9995), context.statistics, levels)

    def save(self, directory: Path) -> None:
        """Writes `config.json` and the curves."""
        config = _HazardConfig(strength=self.strength, longest_gap=LONGEST_GAP)
        write_expert(directory, self.name, config, {"curves": self.curves})

    @classmethod
    def load(cls, directory: Path) -> HazardExpert:
        """Reads what `save` wrote; raises `InputError` where a file or a key does not fit."""
        config = read_settings(directory, cls.name, _HazardConfig)
        curves = read_arrays(directory, {"curves": (None, LONGEST_GAP + 1)})["curves"]
        if not ((curves > 0) & (curves < 1)).all():
            raise InputError(f"{directory / WEIGHTS_FILE}: key curves must hold probabilities between 0 and 1")
        return cls(curves, config.strength)


def fit_hazard(counts: FloatArray, labels: IntArray, clusters: int, strength: float = 2.0) -> HazardExpert:
    """Learns the prior curves from a training set.

    Args:
        counts: invocations per step, (N, M); a missing one (NaN) counts as quiet.
        labels: cluster of each function, -1 for none, (N,).
        clusters: K.
        strength: as in `HazardExpert`.

    Returns:
        An expert with K + 1 curves, each pooled over the gaps of its members (a function's gaps weigh
        1 / sqrt(their number), so that busy ones do not drown the rest) and smoothed towards the fleet's.
    """
    ended = np.zeros((clusters + 1, LONGEST_GAP + 1))
    reached = np.zeros_like(ended)
    births = exposure = 0.0
    for row, label in zip(counts, labels, strict=True):
        active = np.flatnonzero(row > 0)
        exposure += active[0] + 1 if len(active) else len(row)
        births += len(active) > 0
        if not len(active):
            continue
        gaps = np.diff(active)
        running = len(row) - 1 - active[-1]  # reached this length and did not end
        weight = 1 / np.sqrt(len(gaps) + 1)
        ends = np.bincount(np.minimum(gaps, LONGEST_GAP), minlength=LONGEST_GAP + 1) * weight
        survivors = np.cumsum(ends[::-1])[::-1].copy()
        survivors[: running + 1] += weight
        # The last entry stands for all longer gaps: it was survived at every step from there on, not once.
        survivors[-1] = weight * np.maximum(np.append(gaps, running) - LONGEST_GAP + 1, 0).sum()
        for k in {int(label) if label >= 0 else clusters, clusters}:
            ended[k] += ends
            reached[k] += survivors
    kernel = np.array([0.25, 0.5, 0.25])
    fleet = np.convolve(ended[-1], kernel, "same") / np.maximum(np.convolve(reached[-1], kernel, "same"), 1e-9)
    curves = (ended + 2 * np.where(reached[-1] > 0, fleet, 0.002)) / (reached + 2)
    curves[:, 0] = births / max(exposure, 1.0)
    return HazardExpert(np.clip(curves, 1e-5, 0.999).astype(np.float32), strength)


def _load_seasonal(directory: Path) -> SeasonalExpert:
    read_settings(directory, SeasonalExpert.name, NoSettings)
    return SeasonalExpert()


def _load_intermittent(directory: Path) -> IntermittentExpert:
    read_settings(directory, IntermittentExpert.name, NoSettings)
    return IntermittentExpert()


def _fit_hazard(data: TrainingSet, settings: HazardSettings, training: Training) -> HazardExpert:
    expert = fit_hazard(data.counts, data.cluster, data.clusters, settings.strength)
    training.progress(1.0)
    return expert


SEASONAL: Final = Family(
    name=SeasonalExpert.name,
    settings=NoSettings,
    smoke=NoSettings(),
    fit=lambda _data, _settings, _training: SeasonalExpert(),
    load=_load_seasonal,
)
INTERMITTENT: Final = Family(
    name=IntermittentExpert.name,
    settings=NoSettings,
    smoke=NoSettings(),
    fit=lambda _data, _settings, _training: IntermittentExpert(),
    load=_load_intermittent,
)
HAZARD: Final = Family(
    name=HazardExpert.name,
    settings=HazardSettings,
    smoke=HazardSettings(),
    fit=_fit_hazard,
    load=HazardExpert.load,
)
