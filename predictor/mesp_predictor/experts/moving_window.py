"""The moving window: how a function was called in the last quarter of an hour, hour and four hours, as a count's law.

Each window gives a negative binomial by the method of moments: mean and dispersion, both leaning on a weak prior that the
training set taught, so that a window without a call, or without a past, still has a law. It counts from the window's least
count on: a function called 14 times every minute is steadier than any Poisson law from 0 could be. Global weights mix the
windows' laws and the prior's own, which stands for whatever no window foretells. Prior and weights maximise the likelihood
of counts that came after random windows. The forecast is the mixture's own: its chance of 0, its quantiles, the same for
every step ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import betainc, gammaincinv, gammaln  # type: ignore[import-untyped]

from mesp.errors import InputError
from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet
from mesp_predictor.experts.files import WEIGHTS_FILE, Settings, read_arrays, read_settings, write_expert
from mesp_predictor.experts.light import above_hurdle
from mesp_predictor.experts.windows import check_counts, draw_windows
from mesp_predictor.series import MAX_COUNT

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import IntArray

    Doubles = npt.NDArray[np.float64]

#: Functions whose quantiles are sought at once.
CHUNK: Final = 4096

#: Counts at which every mixture is known exactly; a wider one also at its components' quantiles at `_PROBES`.
_SMALL: Final = 12
_PROBES: Final = np.array([0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.96, 0.985, 0.995])

#: Dispersions, 1 / (the negative binomial's size): below, a Poisson law for all purposes; above, a single spike.
_LEAST, _MOST = 1e-4, 1e3


class MovingWindowSettings(Settings):
    """The windows, and how many samples teach their weights."""

    windows: tuple[Annotated[int, Field(ge=1, le=512)], ...] = Field((15, 60, 240), min_length=1, max_length=8)
    samples: int = Field(
        8_000, ge=10, description="Random windows of the training set that the likelihood is taken on."
    )


@dataclass(frozen=True, slots=True)
class _Laws:
    """Negative binomials from `least` on, one per function and window, (R, W) each.

    Attributes:
        least: smallest count of the law.
        mean: of what a count has above it.
        dispersion: a in the variance, mean + a * mean^2.
    """

    least: Doubles
    mean: Doubles
    dispersion: Doubles

    def silent(self) -> Doubles:
        """Probability of 0: (1 + a m)^(-1/a), (R, W)."""
        quiet: Doubles = np.exp(-np.log1p(self.dispersion * self.mean) / self.dispersion)
        return np.where(self.least > 0, 0, quiet)

    def rows(self, rows: IntArray) -> _Laws:
        """Of these functions."""
        return _Laws(self.least[rows], self.mean[rows], self.dispersion[rows])

    def log_likelihood(self, count: Doubles) -> Doubles:
        """Of counts (R, 1), (R, W)."""
        size = 1 / self.dispersion
        share = self.dispersion * self.mean
        more = (count - self.least).clip(min=0)
        likelihood = gammaln(more + size) - gammaln(size) - gammaln(more + 1)
        likelihood += more * np.log(share) - (more + size) * np.log1p(share)
        return np.where(count < self.least, -np.inf, likelihood)


def _laws(counts: FloatArray, age: IntArray, windows: tuple[int, ...], prior: Doubles) -> _Laws:
    """The law of each window's counts, with the prior's share in it; last the prior's own, so (R, W + 1) each.

    Of what x the counts have above the least one, the mean is (sum x + s * rate) / (n + s). What the squares say beyond a
    Poisson law, sum (x - m)^2 - n m, is n * a * m^2 by the method of moments; the prior adds t steps of the dispersion a0 at
    the law's mean.

    Args:
        counts: (R, C).
        age: steps observed, (R,); of a younger function a window holds fewer steps.
        windows: W lengths.
        prior: rate, its strength s in steps, dispersion a0, its strength t in steps.
    """
    rate, strength, dispersion, dispersion_strength = prior
    laws = _Laws(*np.zeros((3, len(counts), len(windows) + 1)))
    laws.mean[:, -1], laws.dispersion[:, -1] = rate, dispersion
    for i, window in enumerate(windows):
        recent = counts[:, -window:].astype(np.float64)
        n = np.minimum(age.clip(min=0), recent.shape[1])
        least = np.where(n == window, recent.min(axis=1, initial=MAX_COUNT), 0)  # a window not yet full proves no least
        recent -= least[:, None]
        total = recent.sum(axis=1)
        own = total / np.maximum(n, 1)
        square = np.einsum("rc,rc->r", recent, recent) - n * own**2
        mean = (total + strength * rate) / (n + strength)
        told, leaned = n * own**2, dispersion_strength * mean**2
        laws.least[:, i], laws.mean[:, i] = least, mean
        laws.dispersion[:, i] = (np.maximum(square - total, 0) + dispersion * leaned) / (told + leaned)
    return _Laws(laws.least, laws.mean, laws.dispersion.clip(_LEAST, _MOST))


@dataclass(frozen=True, slots=True)
class MovingWindowExpert:
    """Negative binomials of the last windows, mixed.

    Attributes:
        settings: the windows.
        prior: rate (invocations per step), its strength (steps), dispersion, its strength (steps), (4,), positive.
        weights: of the windows and the prior, (W + 1,), positive, their sum is 1.
    """

    settings: MovingWindowSettings
    prior: FloatArray
    weights: FloatArray
    name = "moving_window"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        rows = len(context.counts)
        active = np.empty((rows, 1), np.float32)
        quantiles = np.empty((rows, 1, len(levels)), np.float32)
        weights = self.weights.astype(np.float64)
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            age = context.statistics.age[part].astype(np.int64)
            laws = _laws(context.counts[part], age, self.settings.windows, self.prior.astype(np.float64))
            active[part] = np.clip(1 - laws.silent() @ weights, 0.0005, 0.9995)[:, None]
            quantiles[part, 0] = _quantiles(laws, weights, levels)
        quantiles = above_hurdle(quantiles, active, levels)
        return Prediction(np.repeat(quantiles, horizon, axis=1), np.repeat(active, horizon, axis=1))

    def save(self, directory: Path) -> None:
        """Writes `config.json`, the prior and the weights."""
        write_expert(directory, self.name, self.settings, {"prior": self.prior, "weights": self.weights})

    @classmethod
    def load(cls, directory: Path) -> MovingWindowExpert:
        """Reads what `save` wrote; raises `InputError` where a file or a key does not fit."""
        settings = read_settings(directory, cls.name, MovingWindowSettings)
        arrays = read_arrays(directory, {"prior": (4,), "weights": (len(settings.windows) + 1,)})
        for key, array in arrays.items():
            if not (array > 0).all():
                raise InputError(f"{directory / WEIGHTS_FILE}: key {key} must hold positive numbers")
        if abs(arrays["weights"].sum() - 1) > 1e-4:
            raise InputError(f"{directory / WEIGHTS_FILE}: key weights must have the sum 1")
        return cls(settings, arrays["prior"], arrays["weights"])


def _quantiles(laws: _Laws, weights: Doubles, levels: tuple[float, ...]) -> Doubles:
    """The least count whose probability not to be exceeded reaches each level, (R, L); between known counts by a line."""
    small = np.broadcast_to(np.arange(_SMALL + 1.0), (len(laws.mean), _SMALL + 1))
    reached = _distribution(small, laws, weights)
    found = _inverse(small, reached, levels)
    wide = np.flatnonzero(reached[:, -1] < levels[-1])
    if len(wide):
        part = laws.rows(wide)
        shape = 1 / (1 / part.mean + part.dispersion)  # of the gamma law with the same mean and variance
        probes = np.rint(gammaincinv(shape[..., None], _PROBES) * (part.mean / shape)[..., None])
        probes = part.least[..., None] + np.pad(probes, ((0, 0), (0, 0), (1, 0)), constant_values=-1)
        grid = np.concatenate([small[wide], probes.reshape(len(wide), -1).clip(min=0)], axis=1)
        grid.sort(axis=1)
        found[wide] = _inverse(grid, _distribution(grid, part, weights), levels)
    return found


def _distribution(counts: Doubles, laws: _Laws, weights: Doubles) -> Doubles:
    """Probability that the mixture is at most these counts, (R, P)."""
    total = np.zeros_like(counts)
    for i, weight in enumerate(weights):
        size, mean, least = 1 / laws.dispersion[:, i, None], laws.mean[:, i, None], laws.least[:, i, None]
        total += weight * betainc(size, (counts - least + 1).clip(min=0), size / (size + mean))
    return total


def _inverse(counts: Doubles, reached: Doubles, levels: tuple[float, ...]) -> Doubles:
    """Where the distribution `reached` (R, P) at ascending `counts` first comes up to each level, (R, L)."""
    below = (reached[..., None] < np.asarray(levels)).sum(axis=1)
    high = below.clip(max=counts.shape[1] - 1)
    low = (below - 1).clip(min=0)
    (x0, x1), (f0, f1) = ([np.take_along_axis(a, at, 1) for at in (low, high)] for a in (counts, reached))
    rise = np.where(f1 > f0, f1 - f0, 1)
    share = ((np.asarray(levels) - f0) / rise).clip(0, 1)
    found: Doubles = np.ceil(x0 + share * (x1 - x0) - 1e-6)
    return np.maximum.accumulate(found, axis=1)


def fit_moving_window(data: TrainingSet, settings: MovingWindowSettings, training: Training) -> MovingWindowExpert:
    """Learns the prior and the weights by maximum likelihood (L-BFGS), from an even start.

    Raises:
        InputError: the training set holds no counts to learn from.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # noqa: PLC0415  only training needs it

    check_counts(data.counts)
    rng = np.random.default_rng(training.seed)
    windows = draw_windows(data.counts, settings.samples, max(settings.windows), min(15, data.max_horizon), rng)
    ahead = rng.integers(0, windows.future.shape[1], settings.samples)
    count = windows.future[np.arange(settings.samples), ahead]
    known = ~np.isnan(count)
    if not known.any():
        known, count = windows.age > 0, windows.counts[:, -1]
    target = count[known, None].astype(np.float64)
    seen, age = windows.counts[known], windows.age[known]

    def surprise(theta: Doubles) -> float:
        laws = _laws(seen, age, settings.windows, np.exp(theta[:4]))
        return -float(np.logaddexp.reduce(laws.log_likelihood(target) + _log_weights(theta), axis=1).mean())

    start = np.zeros(5 + len(settings.windows))
    start[:4] = np.log([0.01, 1.0, 1.0, 5.0])
    bounds = [(-14, 7), (-9, 5), (-7, 5), (-5, 7), *[(-6, 6)] * (len(settings.windows) + 1)]
    theta = minimize(surprise, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x
    training.progress(1.0)
    weights = np.exp(_log_weights(theta)).astype(np.float32)
    return MovingWindowExpert(settings, np.exp(theta[:4]).astype(np.float32), weights)


def _log_weights(theta: Doubles) -> Doubles:
    """Of the windows and the prior, from their free logits past the prior's four numbers."""
    logits = theta[4:]
    weights: Doubles = logits - np.logaddexp.reduce(logits)
    return weights


MOVING_WINDOW: Final = Family(
    name=MovingWindowExpert.name,
    settings=MovingWindowSettings,
    smoke=MovingWindowSettings(samples=500),
    fit=fit_moving_window,
    load=MovingWindowExpert.load,
)
