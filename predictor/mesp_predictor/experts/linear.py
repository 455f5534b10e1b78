"""The global linear quantile model: from the last counts and a few statistics straight to every step of the horizon.

One model for all functions, trained on random windows. Linear models of this kind are hard to beat on long horizons (Zeng
et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023); ours answers as a hurdle: a logit of activity
per step, and quantiles of the count once active. Counts flow in as asinh(x / (mean + 0.1)), the mean taken per window, so
that rare and busy functions look alike. Quantiles are the window's own, each increment shrunk or widened by what a map of
low rank says. All steps of the horizon are trained in every window.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mesp.errors import InputError
from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet, hurdle_quantiles
from mesp_predictor.experts.files import Settings, read_arrays, read_settings, write_expert
from mesp_predictor.experts.windows import Windows, check_counts, draw_windows
from mesp_predictor.losses import quantile_loss
from mesp_predictor.series import MAX_COUNT
from mesp_predictor.trainer import Budget, fit_network

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray

#: Levels at which the positive part's quantiles are trained; what is asked of the whole falls between them.
GRID: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

#: Trailing windows, in steps, whose share of active steps is an input.
SPANS: Final = (2, 5, 15, 60, 240, 512)

#: Windows forecast at once, and held-out windows that an exam asks about.
CHUNK: Final = 1024

#: A fine-tuning takes this share of the training's steps, at this share of its learning rate.
TUNING_STEPS, TUNING_RATE = 0.2, 0.3

_STATISTICS: Final = 3 + len(SPANS)


class LinearShape(Settings):
    """What the model reads and answers, in steps, and the rank of its map to quantiles."""

    context: int = Field(512, ge=1, le=512)
    max_horizon: int = Field(60, ge=1)
    rank: int = Field(16, ge=1)


class LinearSettings(Settings):
    """The model's size and how long it is trained."""

    context: int = Field(512, ge=1, le=512)
    rank: int = Field(16, ge=1)
    batch: int = Field(128, ge=1)
    training_steps: int = Field(2_500, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    quantile_weight: float = Field(1.0, gt=0, description="Of the quantile loss against the log loss of activity.")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of the functions that choose the best state.")


class LinearNetwork(nn.Module):
    """Windows (R, C) to logits of activity (R, H) and transformed quantiles of the positive part (R, H, G), all linear.

    What leaves the linear maps is only bent so that quantiles rise from the image of one invocation on.
    """

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self.shape = shape
        inputs = 2 * shape.context + _STATISTICS
        self.active = nn.Linear(inputs, shape.max_horizon)
        self.low = nn.Linear(inputs, shape.rank)
        self.increments = nn.Linear(shape.rank, shape.max_horizon * 2 * len(GRID))
        nn.init.zeros_(self.active.weight)
        nn.init.constant_(self.active.bias, -2.0)

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Forecasts all `max_horizon` steps."""
        scale = window_scale(counts)
        values = torch.asinh(counts / scale)
        inputs = _inputs(counts, values, scale)
        change = self.increments(self.low(inputs)).view(len(counts), self.shape.max_horizon, 2, len(GRID))
        one = torch.asinh(1 / scale)
        known = _positive_quantiles(values, one).diff(dim=1, prepend=one).clamp(min=0)
        # Known increments only shrink: a factor above 1 would be an exponent on the way back.
        rise = known[:, None] * torch.sigmoid(change[:, :, 0] + 3) + functional.softplus(change[:, :, 1] - 5)
        return self.active(inputs), one[..., None] + rise.cumsum(dim=2)


def window_scale(counts: Tensor) -> Tensor:
    """The unit of each window (R, C) in the transformed space asinh(x / scale): its mean + 0.1, invocations, (R, 1)."""
    return counts.mean(dim=1, keepdim=True) + 0.1


def _inputs(counts: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Transformed counts, activity, and what neither says linearly: level, time since the last, log odds of activity."""
    active = (counts > 0).float()
    length = counts.shape[1]
    since = length - (active * torch.arange(1, length + 1, device=counts.device)).amax(dim=1, keepdim=True)
    spans = [active[:, -span:].mean(dim=1, keepdim=True) for span in SPANS]
    odds = [torch.log((share + 0.01) / (1.01 - share)) for share in spans]
    return torch.cat([values, active, torch.log(scale), torch.log1p(since), 1 / (1 + since), *odds], dim=1)


def _positive_quantiles(values: Tensor, floor: Tensor) -> Tensor:
    """Empirical quantiles at `GRID` of what is positive in each window, (R, C) -> (R, G); `floor` (R, 1) where nothing is."""
    ordered = torch.where(values > 0, values, torch.inf).sort(dim=1).values
    last = (values > 0).sum(dim=1, keepdim=True) - 1
    at = (last * torch.tensor(GRID, device=values.device)).round().long().clamp(min=0)
    return torch.where(last >= 0, ordered.gather(1, at), floor)


class LinearExpert:
    """The trained model as an `Expert`."""

    name = "linear"

    def __init__(self, network: LinearNetwork) -> None:
        self.network = network.eval().requires_grad_(requires_grad=False)

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts from the last `context` counts; a shorter past is taken as zeros before it.

        Raises:
            InputError: the horizon is beyond what the model was trained for.
        """
        shape = self.network.shape
        if not 1 <= horizon <= shape.max_horizon:
            raise InputError(f"linear: horizon = {horizon} steps, must be in [1; {shape.max_horizon}]")
        rows = len(context.counts)
        active = np.empty((rows, horizon), np.float32)
        quantiles = np.empty((rows, horizon, len(levels)), np.float32)
        grid = np.asarray(GRID, np.float32)
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            recent = context.counts[part, -shape.context :]
            recent = np.pad(recent, ((0, 0), (shape.context - recent.shape[1], 0))).astype(np.float32)
            with torch.inference_mode():
                counts = torch.from_numpy(recent)
                logit, transformed = self.network(counts)
                scale = window_scale(counts)[..., None]
                positive = torch.sinh(transformed[:, :horizon].minimum(torch.asinh(MAX_COUNT / scale))) * scale
                active[part] = torch.sigmoid(logit[:, :horizon]).clamp(0.0005, 0.9995).numpy()
            once_active = positive.flatten(0, 1).clamp(min=1).numpy()
            whole = hurdle_quantiles(active[part].reshape(-1, 1), once_active, grid, levels)
            quantiles[part] = np.rint(whole).reshape(-1, horizon, len(levels))
        return Prediction(quantiles, active)

    def save(self, directory: Path) -> None:
        """Writes `config.json` and the weights."""
        weights = {key: weight.numpy() for key, weight in self.network.state_dict().items()}
        write_expert(directory, self.name, self.network.shape, weights)

    @classmethod
    def load(cls, directory: Path) -> LinearExpert:
        """Reads what `save` wrote; raises `InputError` where a file or a key does not fit."""
        network = LinearNetwork(read_settings(directory, cls.name, LinearShape))
        shapes = {key: tuple(weight.shape) for key, weight in network.state_dict().items()}
        weights = read_arrays(directory, shapes)
        network.load_state_dict({key: torch.from_numpy(weight) for key, weight in weights.items()})
        return cls(network)


def fit_linear(data: TrainingSet, settings: LinearSettings, training: Training) -> LinearExpert:
    """A new model, trained on random windows of all functions but those kept for its exams.

    Raises:
        InputError: the training set holds no counts to learn from.
    """
    shape = LinearShape(context=settings.context, max_horizon=data.max_horizon, rank=settings.rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = LinearNetwork(shape)
    return _train(network, data, settings, training, Budget(settings.training_steps, settings.learning_rate))


def tune_linear(expert: LinearExpert, data: TrainingSet, settings: LinearSettings, training: Training) -> LinearExpert:
    """A copy, trained on with these functions; raises as `fit_linear`."""
    network = copy.deepcopy(expert.network).requires_grad_(requires_grad=True)
    steps = max(round(TUNING_STEPS * settings.training_steps), 1)
    return _train(network, data, settings, training, Budget(steps, TUNING_RATE * settings.learning_rate))


def _train(
    network: LinearNetwork, data: TrainingSet, settings: LinearSettings, training: Training, budget: Budget
) -> LinearExpert:
    check_counts(data.counts)
    rng = np.random.default_rng([training.seed, 1])  # the trainer's own generator starts from the seed
    order = rng.permutation(np.flatnonzero(~np.isnan(data.counts[:, :-1]).all(axis=1)))
    kept = min(max(round(settings.validation_share * len(order)), 1), len(order) - 1)
    held_out, taught = data.counts[order[:kept] if kept else order], data.counts[order[kept:]]
    shape = network.shape

    def drawn(counts: FloatArray, size: int, rng: np.random.Generator) -> Windows:
        return draw_windows(counts, size, shape.context, shape.max_horizon, rng)

    asked = drawn(held_out, CHUNK, rng)
    fitted = fit_network(
        network,
        lambda net, rng: _loss(net, drawn(taught, settings.batch, rng), settings.quantile_weight),
        lambda net: _loss(net, asked, settings.quantile_weight).item(),
        budget,
        training,
    )
    return LinearExpert(fitted)


def _loss(network: LinearNetwork, windows: Windows, quantile_weight: float) -> Tensor:
    """Log loss of activity plus quantile loss of the positive part, where relative errors weigh alike; near steps first."""
    device = network.active.weight.device
    counts, future = torch.from_numpy(windows.counts).to(device), torch.from_numpy(windows.future).to(device)
    logit, quantiles = network(counts)
    known = ~future.isnan()
    came = future.nan_to_num()
    active = (came > 0).float()
    log_loss = functional.binary_cross_entropy_with_logits(logit, active, reduction="none")
    target = torch.asinh(came / window_scale(counts))
    pinball = quantile_loss(target, quantiles, torch.tensor(GRID, device=device)).mean(dim=2)
    weight = known * torch.arange(1, future.shape[1] + 1, device=device).rsqrt()
    loss: Tensor = weight * (log_loss + quantile_weight * active * pinball)
    return loss.sum() / weight.sum().clamp(min=1e-6)


LINEAR: Final = Family(
    name=LinearExpert.name,
    settings=LinearSettings,
    smoke=LinearSettings(training_steps=60, batch=32),
    fit=fit_linear,
    load=LinearExpert.load,
    tune=tune_linear,
)
