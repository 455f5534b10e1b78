"""Context mixing: each function's own mixer of all readings, as compressors predict the next bit. Nothing to train.

The mixers live in the running statistics and learn with every step (`mesp_predictor.patterns`); here they answer. Their
weights are learned one step ahead; farther ahead they weigh the same readings of that step. Counts, once active, follow
the function's latest positive counts.

Source: Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", Florida Tech CS-2005-16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet, hurdle_quantiles
from mesp_predictor.experts.files import read_settings, write_expert
from mesp_predictor.experts.light import NoSettings
from mesp_predictor.patterns import MIXER_RATES
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

_MIXERS = [FEATURES.index(f"mixer_{i}") for i in range(len(MIXER_RATES))]
_NEVER = FEATURES.index("never")
#: Chance that a function never invoked so far is invoked in a step; its mixer has nothing to weigh.
_FIRST = 0.002


@dataclass(frozen=True, slots=True)
class ContextMixingExpert:
    """The mean log odds of a function's slow and fast mixer."""

    name = "context_mixing"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        features = context.statistics.features(horizon)
        odds = features[..., _MIXERS].mean(axis=-1)
        active = np.where(features[..., _NEVER] > 0, _FIRST, 1 / (1 + np.exp(-odds))).astype(np.float32)
        positive, grid = context.statistics.positive_quantiles()
        return Prediction(hurdle_quantiles(active, positive, grid, levels), active)

    def save(self, directory: Path) -> None:
        """Writes `config.json`; nothing is learned."""
        write_expert(directory, self.name, NoSettings())


def fit(_data: TrainingSet, _settings: NoSettings, _training: Training) -> ContextMixingExpert:
    """The expert; it learns where it serves."""
    return ContextMixingExpert()


def load(directory: Path) -> ContextMixingExpert:
    """Reads what `save` wrote; raises `InputError` when that is something else."""
    read_settings(directory, ContextMixingExpert.name, NoSettings)
    return ContextMixingExpert()


#: The family of experts.
CONTEXT_MIXING = Family(name=ContextMixingExpert.name, settings=NoSettings, smoke=NoSettings(), fit=fit, load=load)
