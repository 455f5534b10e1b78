"""How well the mixture's probabilities hold, tracked while it serves.

Each step's forecast of the next one is put into bins by its probability and held against what came, with older steps
weighing less. The calibration error is that of `mesp_predictor.losses`, over the bins' decayed sums; beside it stands the
log loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mesp_predictor.losses import PROBABILITY_FLOOR

if TYPE_CHECKING:
    from mesp.types import BoolArray, FloatArray

BINS = 15
#: Steps after which a step weighs half.
HALF_LIFE = 720.0
_DECAY = 0.5 ** (1 / HALF_LIFE)


@dataclass(slots=True)
class Calibration:
    """Decayed sums by bin: forecasts, their probabilities, active steps; and the log loss over all."""

    sums: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = field(default_factory=lambda: np.zeros((BINS, 3)))
    lost: float = 0.0

    def add(self, forecast: FloatArray, active: BoolArray) -> None:
        """One step: probabilities that functions are active in it, and whether they were, (R,) each."""
        p = np.clip(forecast.astype(np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
        self.sums *= _DECAY
        np.add.at(self.sums, bins, np.stack([np.ones_like(p), p, active], axis=1))
        self.lost = self.lost * _DECAY - float(np.log(np.where(active, p, 1 - p)).sum())

    @property
    def error(self) -> float:
        """Calibration error: mean distance of probability and frequency over forecasts; 0 before the first."""
        return float(np.abs(self.sums[:, 1] - self.sums[:, 2]).sum() / max(self.sums[:, 0].sum(), 1e-9))

    @property
    def log_loss(self) -> float:
        """Mean log loss, nats; 0 before the first forecast."""
        return self.lost / max(float(self.sums[:, 0].sum()), 1e-9)
