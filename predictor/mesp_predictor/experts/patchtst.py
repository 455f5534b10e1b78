"""PatchTST, one model for all functions: trained on random windows of a trace, then frozen.

The network and what it is shown live in `patchtst_network`. Here are its training, its two files (`config.json`,
`model.safetensors`) and the `Expert` face: windows of counts flow in, chunk by chunk, quantiles and activity flow out.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from mesp.errors import InputError
from mesp_predictor.experts.base import Family, Prediction, hurdle_quantiles
from mesp_predictor.experts.patchtst_network import GRID, PatchTSTConfig, PatchTSTNetwork, window_scale
from mesp_predictor.losses import quantile_loss
from mesp_predictor.series import MAX_COUNT
from mesp_predictor.trainer import Budget, fit_network

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Context, Training, TrainingSet

__all__ = ["PATCHTST", "PatchTSTConfig", "PatchTSTExpert", "fit", "tune"]

#: Windows in one pass through the network.
CHUNK: Final = 512

#: All of the first steps are trained in every batch, and this many drawn from those beyond.
NEAR: Final = 15
FAR_DRAWN: Final = 8

#: Batches of `CHUNK` windows in one exam on held-out functions.
EXAM_BATCHES: Final = 2

#: Version of the checkpoint's layout and of the features that its weights expect.
FORMAT: Final = 1

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"


class PatchTSTExpert:
    """The trained network as an `Expert`: the same windows give the same forecast, whoever else is in the batch."""

    name = "patchtst"

    def __init__(self, network: PatchTSTNetwork) -> None:
        self._network = network.eval().requires_grad_(requires_grad=False)

    @property
    def network(self) -> PatchTSTNetwork:
        """What was trained."""
        return self._network

    @property
    def config(self) -> PatchTSTConfig:
        """The network's shape."""
        return self._network.config

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts from the last `config.context` counts; a shorter past is taken as zeros before it.

        Quantiles are whole invocations, as counts are; 0 exactly where the level is at most 1 - active.

        Raises:
            InputError: the horizon is beyond what the model was trained for.
        """
        if not 1 <= horizon <= self.config.max_horizon:
            raise InputError(f"patchtst: horizon = {horizon} steps, must be in [1; {self.config.max_horizon}]")
        grid = np.asarray(GRID, np.float32)
        rows = len(context.counts)
        active = np.empty((rows, horizon), np.float32)
        quantiles = np.empty((rows, horizon, len(levels)), np.float32)
        steps = torch.arange(1, horizon + 1)
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            with torch.inference_mode():
                counts = torch.from_numpy(_window(context.counts[part], self.config.context))
                logit, transformed = self._network(counts, steps)
                scale = window_scale(counts)[..., None]
                positive = torch.sinh(transformed.minimum(torch.asinh(MAX_COUNT / scale))) * scale
                active[part] = torch.sigmoid(logit).numpy()
            whole = hurdle_quantiles(active[part].reshape(-1, 1), positive.flatten(0, 1).numpy(), grid, levels)
            quantiles[part] = np.rint(whole).reshape(-1, horizon, len(levels))
        return Prediction(quantiles, active)

    def save(self, directory: Path) -> None:
        """Writes `config.json` and `model.safetensors` into the directory."""
        config = {"kind": self.name, "format": FORMAT, **self.config.model_dump()}
        save_file(self._network.state_dict(), directory / _WEIGHTS_FILE)
        (directory / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> PatchTSTExpert:
        """Reads what `save` wrote.

        Raises:
            InputError: a file is missing or damaged, of another format, or its keys or shapes do not fit.
        """
        network = PatchTSTNetwork(_read_config(directory / _CONFIG_FILE))
        path = directory / _WEIGHTS_FILE
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not readable as safetensors: {error}") from error
        expected = network.state_dict()
        for key in sorted(expected.keys() | weights.keys()):
            if key not in weights:
                raise InputError(f"{path}: key {key} is missing")
            if key not in expected:
                raise InputError(f"{path}: key {key} is not part of the network that {_CONFIG_FILE} describes")
            if weights[key].shape != expected[key].shape:
                shapes = f"{tuple(weights[key].shape)}, must be {tuple(expected[key].shape)}"
                raise InputError(f"{path}: key {key} has shape {shapes}")
            if not weights[key].isfinite().all():
                raise InputError(f"{path}: key {key} holds NaN or infinity, must be finite")
        network.load_state_dict(weights)
        return cls(network)


def _read_config(path: Path) -> PatchTSTConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(f"{path}: must be an object with format = {FORMAT}")
    content.pop("kind", None)
    try:
        return PatchTSTConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "keys"
        raise InputError(f"{path}: {key} = {first['input']!r}: {first['msg']}") from error


def _window(counts: FloatArray, context: int) -> FloatArray:
    """The last `context` columns, zeros before the first."""
    recent = counts[:, -context:]
    missing = context - recent.shape[1]
    return np.ascontiguousarray(np.pad(recent, ((0, 0), (missing, 0))) if missing else recent, np.float32)


def fit(data: TrainingSet, settings: PatchTSTConfig, training: Training) -> PatchTSTExpert:
    """Trains one network on random windows of all functions; torch's global random state is left as it was.

    Every training step draws `settings.batch` windows, each of a random function at a random time: the loss is the log
    loss of activity plus the weighted quantile loss of the positive part in the transformed space, where relative errors
    weigh alike. A share of the functions is kept aside, and the state that did best on them is the one returned. The
    budget is counted in training steps, not minutes, so that a seed and a thread count give the same model anywhere.

    Args:
        data: at least 2 functions by 2 steps; the network answers `data.max_horizon` steps ahead, or more if set so.
        settings: shape and budget; of the default shape, 15 `training_steps` take about a second of one core.
        training: seed of the split, the windows and the initial weights; progress, state, device.

    Raises:
        InputError: fewer than 2 functions or 2 steps, or negative counts.
    """
    config = settings.model_copy(update={"max_horizon": max(settings.max_horizon, data.max_horizon)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = PatchTSTNetwork(config)
    return _trained(network, data, Budget(config.training_steps, config.learning_rate, config.weight_decay), training)


def tune(expert: PatchTSTExpert, data: TrainingSet, settings: PatchTSTConfig, training: Training) -> PatchTSTExpert:
    """Trains a copy on, with `tuning_steps` at `tuning_rate`; arguments and errors as of `fit`."""
    network = copy.deepcopy(expert.network).requires_grad_()
    return _trained(network, data, Budget(settings.tuning_steps, settings.tuning_rate, settings.weight_decay), training)


def _trained(network: PatchTSTNetwork, data: TrainingSet, budget: Budget, training: Training) -> PatchTSTExpert:
    series = np.nan_to_num(data.counts)
    if series.ndim != 2 or min(series.shape) < 2:
        raise InputError(f"training series: shape = {series.shape}, must be at least 2 functions by 2 steps")
    if not (np.isfinite(series).all() and (series >= 0).all()):
        raise InputError("training series: counts must be finite and at least 0")
    config = network.config
    rng = np.random.default_rng(training.seed)
    order = rng.permutation(len(series))
    kept = min(max(round(config.validation_share * len(series)), 1), len(series) - 1)
    held_out, taught = series[order[:kept]], series[order[kept:]]
    exam = [_draw(held_out, CHUNK, config, rng).to(training.device) for _ in range(EXAM_BATCHES)]

    def loss(network: PatchTSTNetwork, rng: np.random.Generator) -> Tensor:
        return _loss(network, _draw(taught, config.batch, config, rng).to(training.device))

    def examined(network: PatchTSTNetwork) -> float:
        return float(np.mean([_loss(network, batch).item() for batch in exam]))

    return PatchTSTExpert(fit_network(network, loss, examined, budget, training))


class _Batch(NamedTuple):
    """Windows (B, C), the counts that followed (B, H) at the steps (H,), and which of them are inside the trace."""

    counts: Tensor
    future: Tensor
    steps: Tensor
    known: Tensor

    def to(self, device: str) -> _Batch:
        return _Batch(*(part.to(device) for part in self))


def _draw(series: FloatArray, size: int, config: PatchTSTConfig, rng: np.random.Generator) -> _Batch:
    """Random windows, with all near steps as targets and a few of the far ones."""
    functions, length = series.shape
    near = np.arange(1, min(NEAR, config.max_horizon) + 1)
    far = rng.integers(NEAR + 1, config.max_horizon + 1, FAR_DRAWN) if config.max_horizon > NEAR else near[:0]
    steps = np.concatenate([near, np.sort(far)])
    row = rng.integers(0, functions, size)[:, None]
    now = rng.integers(min(config.context // 8, length // 2), length, size)[:, None]
    past = now + np.arange(-config.context, 0)
    future = now + steps - 1
    counts = np.where(past >= 0, series[row, past.clip(min=0)], 0)
    following = series[row, future.clip(max=length - 1)]
    return _Batch(*map(torch.from_numpy, (counts, following, steps, future < length)))


def _loss(network: PatchTSTNetwork, batch: _Batch) -> Tensor:
    """Log loss of activity plus quantile loss of the positive part, the nearest steps weighing most."""
    logit, quantiles = network(batch.counts, batch.steps)
    active = (batch.future > 0).float()
    log_loss = functional.binary_cross_entropy_with_logits(logit, active, reduction="none")
    target = torch.asinh(batch.future / window_scale(batch.counts))
    pinball = quantile_loss(target, quantiles, quantiles.new_tensor(GRID)).mean(dim=2)
    weight = batch.known * batch.steps.float().rsqrt() * torch.where(batch.steps > NEAR, 0.5, 1.0)
    loss: Tensor = log_loss + network.config.quantile_weight * active * pinball
    return (weight * loss).sum() / weight.sum()


#: The family of experts.
PATCHTST: Final = Family(
    name=PatchTSTExpert.name,
    settings=PatchTSTConfig,
    smoke=PatchTSTConfig(
        context=64, d_model=8, heads=2, layers=1, feed_forward=8, batch=16, training_steps=5, tuning_steps=2
    ),
    fit=fit,
    load=PatchTSTExpert.load,
    tune=tune,
)
