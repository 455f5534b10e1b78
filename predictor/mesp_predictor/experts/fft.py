"""FFT extrapolation, as IceBreaker forecasts: a straight line plus the strongest harmonics, carried on past the window.

After Roy, Patel and Tiwari, "IceBreaker: Warming Serverless Functions Better with Heterogeneity" (ASPLOS 2022). Three things
make it fit for counts that are mostly zeros. The window is a whole number of hours, at most 8: the cycles that people
write into schedules then fall on the transform's own frequencies, where the extrapolation is exact. Only harmonics that
stand out are kept, and the level is set to that of the last steps: else noise, and what a function did hours ago before it
changed its ways, would come back as waves. And what the extrapolated number says of activity is learned: a logistic
regression on it and on the spread of the residuals, fitted on the training set. Quantiles are the extrapolation plus the
residuals' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import scipy.fft  # type: ignore[import-untyped]
from pydantic import Field

from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet
from mesp_predictor.experts.files import Settings, read_arrays, read_settings, write_expert
from mesp_predictor.experts.light import above_hurdle
from mesp_predictor.experts.windows import check_counts, draw_windows

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from mesp.types import BoolArray, FloatArray

#: Functions transformed at once.
CHUNK: Final = 2048

#: Steps in the longest window, and the multiple of steps that a shorter one has as long as there are so many.
LONGEST: Final = 480
WHOLE: Final = 60

#: A harmonic stands out with this many times the mean power: of 240 harmonics of white noise hardly one does.
STANDS_OUT: Final = 6.0

#: Steps that set the level.
LATEST: Final = 15

#: Steps of Newton's method: the loss is convex, and it has settled by then.
NEWTON_STEPS: Final = 12

#: Number of the logistic regression's inputs; see `_inputs`.
_INPUTS: Final = 7


class FFTSettings(Settings):
    """How many harmonics are kept, and how many samples teach what they say of activity."""

    harmonics: int = Field(4, ge=1, le=LONGEST // 2)
    samples: int = Field(8_000, ge=10, description="Random windows of the training set that the regression sees.")


class _Extrapolated(NamedTuple):
    """The line and harmonics at the steps ahead, (R, H), and the residuals in the window in ascending order, (R, n)."""

    ahead: FloatArray
    residuals: FloatArray


def _extrapolate(counts: FloatArray, harmonics: int, horizon: int) -> _Extrapolated:
    """Fits and carries on the last whole hours of (R, C) counts; without a column there is nothing to say but 0."""
    columns = min(counts.shape[1], LONGEST)
    n = columns - columns % WHOLE if columns >= WHOLE else columns
    if n == 0:
        return _Extrapolated(np.zeros((len(counts), horizon), np.float32), np.zeros((len(counts), 1), np.float32))
    window = counts[:, -n:]
    time = np.arange(n, dtype=np.float32) - (n - 1) / 2
    mean = window.mean(axis=1, keepdims=True)
    half = n // 2  # cycles that fit into half a window cancel in its mean, in a least-squares line they do not
    rise = window[:, n - half :].mean(axis=1) - window[:, :half].mean(axis=1) if half else np.zeros(len(window))
    slope = (rise / max(n - half, 1)).astype(np.float32)[:, None]
    spectrum = scipy.fft.rfft(window - mean - slope * time, axis=1)
    spectrum[:, 0] = 0
    power = np.abs(spectrum) ** 2
    spectrum[power < STANDS_OUT * power.mean(axis=1, keepdims=True)] = 0
    weak = spectrum.shape[1] - harmonics
    if weak > 0:
        np.put_along_axis(spectrum, np.argpartition(power, weak, axis=1)[:, :weak], 0, axis=1)
    waves = scipy.fft.irfft(spectrum, n, axis=1) if n > 1 else np.zeros_like(window)
    residuals = window - (mean + slope * time + waves)
    level = residuals[:, -LATEST:].mean(axis=1, keepdims=True)
    residuals.sort(axis=1)
    steps = np.arange(horizon)
    return _Extrapolated(mean + level + slope * (time[-1] + 1 + steps) + waves[:, steps % n], residuals)


def _inputs(found: _Extrapolated) -> FloatArray:
    """What the regression reads, (R, H, _INPUTS): powers of the extrapolation's and of the residual spread's logarithm."""
    spread = np.log(found.residuals.std(axis=1, dtype=np.float64) + 0.01)[:, None]
    value = np.arcsinh(found.ahead.astype(np.float64) / 0.1)
    spread = np.broadcast_to(spread, value.shape)
    ratio = np.clip(found.ahead / np.exp(spread), -5, 5)
    powers = [np.ones_like(value), value, spread, value * spread, value**2, spread**2, ratio]
    return np.stack(powers, axis=2).clip(-100, 100).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FFTExpert:
    """A line and harmonics.

    Attributes:
        settings: how many harmonics.
        weights: of the logistic regression from `_inputs` to the log odds of activity, (_INPUTS,).
    """

    settings: FFTSettings
    weights: FloatArray
    name = "fft"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        rows = len(context.counts)
        active = np.empty((rows, horizon), np.float32)
        quantiles = np.empty((rows, horizon, len(levels)), np.float32)
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            found = _extrapolate(context.counts[part], self.settings.harmonics, horizon)
            active[part] = (1 / (1 + np.exp(-(_inputs(found) @ self.weights).clip(-30, 30)))).clip(0.001, 0.999)
            last = found.residuals.shape[1] - 1
            at = np.rint(np.asarray(levels) * last).astype(np.int64)
            quantiles[part] = found.ahead[..., None] + found.residuals[:, None, at]
        return Prediction(above_hurdle(quantiles, active, levels), active)

    def save(self, directory: Path) -> None:
        """Writes `config.json` and the regression's weights."""
        write_expert(directory, self.name, self.settings, {"weights": self.weights})

    @classmethod
    def load(cls, directory: Path) -> FFTExpert:
        """Reads what `save` wrote; raises `InputError` where a file or a key does not fit."""
        settings = read_settings(directory, cls.name, FFTSettings)
        return cls(settings, read_arrays(directory, {"weights": (_INPUTS,)})["weights"])


def fit_fft(data: TrainingSet, settings: FFTSettings, training: Training) -> FFTExpert:
    """Fits the logistic regression by Newton's method with a small ridge, on random windows.

    Raises:
        InputError: the training set holds no counts to learn from.
    """
    check_counts(data.counts)
    rng = np.random.default_rng(training.seed)
    windows = draw_windows(data.counts, settings.samples, LONGEST, min(15, data.max_horizon), rng)
    parts = (windows.counts[i : i + CHUNK] for i in range(0, settings.samples, CHUNK))
    horizon = windows.future.shape[1]
    inputs = np.concatenate([_inputs(_extrapolate(part, settings.harmonics, horizon)) for part in parts])
    known = ~np.isnan(windows.future)
    weights = _logistic(inputs[known].astype(np.float64), windows.future[known] > 0)
    training.progress(1.0)
    return FFTExpert(settings, weights.astype(np.float32))


def _logistic(inputs: npt.NDArray[np.float64], hit: BoolArray) -> npt.NDArray[np.float64]:
    """Weights (D,) of the logistic regression of `hit` (S,) on `inputs` (S, D)."""
    weights = np.zeros(inputs.shape[1])
    ridge = 1e-4 * max(len(inputs), 1)
    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-(inputs @ weights).clip(-30, 30)))
        slope = inputs.T @ (hit - chance) - ridge * weights
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + ridge * np.eye(len(weights))
        weights = weights + np.linalg.solve(curvature, slope)
    return weights


FFT: Final = Family(
    name=FFTExpert.name,
    settings=FFTSettings,
    smoke=FFTSettings(samples=500),
    fit=fit_fft,
    load=FFTExpert.load,
)
