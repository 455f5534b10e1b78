"""The neural hazard: a small network over the running statistics, one answer for every step ahead.

For a target step h it reads what the statistics say of that step (gap, phase, clock, lags, recent activity) and gives
the probability of activity and, given activity, quantiles of the count. Trained by sampling (function, step, h)
from a replay of the training trace: log loss of activity plus quantile loss of log(1 + count) where active.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from mesp.errors import InputError
from mesp_predictor.experts.base import Context, Family, Prediction, hurdle_quantiles
from mesp_predictor.experts.samples import Samples, draw_samples
from mesp_predictor.losses import quantile_loss
from mesp_predictor.statistics import FEATURES
from mesp_predictor.trainer import Budget, fit_network

if TYPE_CHECKING:
    from pathlib import Path

    from mesp_predictor.experts.base import Training, TrainingSet

#: Levels of the count given activity that the network gives.
GRID = np.array([0.0, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 1.0], np.float32)
_TRAINED = np.clip(GRID, 0.005, 0.995)  # the ends of the grid are trained as near ends: extremes have no quantile loss
_POSITIVE_MEAN = FEATURES.index("log_positive_mean")
_BATCH = 65_536  # rows a forward pass
_SMALLEST_BATCH, _LARGEST_BATCH = 64, 4096


class NeuralHazardSettings(BaseModel):
    """How the network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(2_000_000, ge=1_000, description="Samples, at most, in expectation: memory and time.")
    epochs: int = Field(6, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
    tuning_epochs: int = Field(3, ge=1, description="Of training on for one cluster.")
    tuning_rate: float = Field(5e-4, gt=0)
    validation_share: float = Field(0.05, gt=0, lt=1, description="Share of functions that pick the best state.")


class Network(nn.Module):
    """Features (N, D) to activity logits (N,) and quantiles of log(1 + count) given activity (N, len(GRID))."""

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, features: int = len(FEATURES), width: int = 96) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.body = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, 1 + len(GRID))
        )

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One answer per row; reads the first D features, as many as there were when it was trained."""
        features = features[:, : len(self.mean)]
        out = self.body(((features - self.mean) / self.spread).clamp(-6, 6))
        rise = torch.cumsum(functional.softplus(out[:, 2:] - 2), dim=1)
        lowest = features[:, _POSITIVE_MEAN] + out[:, 1] - functional.softplus(torch.tensor(0.0))
        return out[:, 0], torch.cat([lowest[:, None], lowest[:, None] + rise], dim=1)


@dataclass(frozen=True, slots=True)
class NeuralHazardExpert:
    """The trained network behind the experts' face."""

    network: Network
    name = "neural_hazard"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        features = context.statistics.features(horizon)
        rows = features.reshape(-1, len(FEATURES))
        logits, log_counts = [], []
        with torch.inference_mode():
            for start in range(0, len(rows) or 1, _BATCH):  # no rows are one empty batch
                logit, log_count = self.network(torch.from_numpy(rows[start : start + _BATCH]))
                logits.append(torch.sigmoid(logit).numpy())
                log_counts.append(log_count.numpy())
        active = np.concatenate(logits).reshape(features.shape[:2])
        positive = np.maximum(np.expm1(np.minimum(np.concatenate(log_counts), 20)), 1)
        quantiles = hurdle_quantiles(active.reshape(-1, 1), positive, GRID, levels)
        return Prediction(quantiles.reshape(*active.shape, len(levels)), active)

    def save(self, directory: Path) -> None:
        """Writes `config.json` with the features that it reads, and `model.safetensors`."""
        save_file(self.network.state_dict(), directory / "model.safetensors")
        config = {"kind": self.name, "features": FEATURES[: len(self.network.mean)]}
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def fit(data: TrainingSet, settings: NeuralHazardSettings, training: Training) -> NeuralHazardExpert:
    """Trains a network on samples of all functions; a share of the functions is kept aside to pick the best state.

    Raises:
        InputError: fewer than 2 functions, or no known counts.
    """
    samples, held = _split(data, settings, training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = Network()
    features = torch.from_numpy(samples.features)
    network.mean.copy_(features.mean(0))
    spread = features.std(0, correction=0)
    network.spread.copy_(torch.where(spread > 0, spread + 1e-3, torch.inf))  # what never varied says nothing
    return train_on(network, samples, held, settings.epochs, settings.learning_rate, training)


def tune(
    expert: NeuralHazardExpert, data: TrainingSet, settings: NeuralHazardSettings, training: Training
) -> NeuralHazardExpert:
    """Trains a copy on, with its scaling as it is; arguments and errors as of `fit`."""
    samples, held = _split(data, settings, training.seed)
    network = copy.deepcopy(expert.network)
    return train_on(network, samples, held, settings.tuning_epochs, settings.tuning_rate, training)


def train_on(
    network: Network, samples: Samples, held: Samples, epochs: int, rate: float, training: Training
) -> NeuralHazardExpert:
    """Trains a network on samples, in place; the state that did best on those held out is kept."""
    lesson, exam = _tensors(samples, training.device), _tensors(held, training.device)
    batch = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, len(samples.counts) // 16))

    def loss(network: Network, rng: np.random.Generator) -> torch.Tensor:
        rows = torch.from_numpy(rng.integers(0, len(samples.counts), batch))
        return _loss(network, *(part[rows] for part in lesson))

    def examined(network: Network) -> float:
        return float(_loss(network, *exam))

    steps = max(1, epochs * len(samples.counts) // batch)
    return NeuralHazardExpert(fit_network(network, loss, examined, Budget(steps, rate), training))


def load(directory: Path) -> NeuralHazardExpert:
    """Reads what `save` wrote.

    Raises:
        InputError: a file is missing or damaged, or the network was trained on other features.
    """
    path = directory / "config.json"
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        weights = load_file(directory / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{directory}: not readable as a neural hazard: {error}") from error
    features = tuple(config.get("features", ())) if isinstance(config, dict) else ()
    if not features or features != FEATURES[: len(features)]:
        raise InputError(f"{path}: features are others than this version computes: train the model anew")
    network = Network(len(features))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{directory / 'model.safetensors'}: {' '.join(str(error).split())}") from error
    return NeuralHazardExpert(network.eval())


def _split(data: TrainingSet, settings: NeuralHazardSettings, seed: int) -> tuple[Samples, Samples]:
    """Samples to learn from, and of the functions kept aside."""
    functions = len(data.counts)
    if functions < 2:
        raise InputError(f"neural_hazard: functions to learn from = {functions}, must be at least 2")
    kept = min(max(round(settings.validation_share * functions), 1), functions - 1)
    order = np.random.default_rng(seed).permutation(functions)
    parts = []
    for rows in (np.sort(order[kept:]), np.sort(order[:kept])):
        limit = max(1, settings.samples * len(rows) // functions)
        part = data.select(rows)
        parts.append(
            draw_samples(part.counts, part.start_step, part.max_horizon, seed, limit, part.keys, part.triggers)
        )
    taught, held = parts
    if not (data.counts > 0).any() or not len(taught.counts):
        raise InputError("neural_hazard: none of the functions to learn from has a known count")
    return taught, held if len(held.counts) else taught  # where only the functions kept aside are unknown


def _tensors(samples: Samples, device: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(part).to(device) for part in (samples.features, samples.counts, samples.weights))


def _loss(network: Network, features: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the log loss of activity plus the quantile loss of log(1 + count) where active."""
    logit, log_counts = network(features)
    active = (counts > 0).float()
    pinball = quantile_loss(torch.log1p(counts), log_counts, log_counts.new_tensor(_TRAINED)).mean(1)
    loss: torch.Tensor = functional.binary_cross_entropy_with_logits(logit, active, reduction="none")
    loss = loss + active * pinball
    return (loss * weights).mean()


#: The family of experts.
NEURAL_HAZARD = Family(
    name=NeuralHazardExpert.name,
    settings=NeuralHazardSettings,
    smoke=NeuralHazardSettings(samples=10_000, epochs=1, tuning_epochs=1),
    fit=fit,
    load=load,
    tune=tune,
)
