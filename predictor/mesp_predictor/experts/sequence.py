"""What all sequence models have in common: they read raw counts and answer quantiles of counts, step by step.

A family brings a `SequenceNetwork` and says how it is built; `sequence_family` makes the rest of it. `fit_sequence` shows
the network random windows of most functions and keeps the state that does best on those held back. These models know no
probability of activity: it is read off their quantiles as 1 - F(1/2), and two numbers learned on held-back windows set it
right (`Activity`). `SequenceExpert` then bends the quantiles until they agree with that probability.

An expert is two files: `config.json` (`kind`, the network's own `network`, `context`, `activity`) and
`model.safetensors`. A directory of published weights, whose `config.json` has no `kind`, loads through the same door.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from pathlib import Path  # noqa: TC003  # pydantic reads it
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mesp.errors import InputError
from mesp_predictor.experts.base import Family, Prediction
from mesp_predictor.experts.quantile_function import Activity, QuantileFunction, activity_log_loss
from mesp_predictor.losses import quantile_loss
from mesp_predictor.trainer import Budget, fit_network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Context, Training, TrainingSet

#: Held-back windows that are the exam of a training, and those on which activity is calibrated.
EXAM_WINDOWS: Final = 1024
CALIBRATION_WINDOWS: Final = 2048
#: Weight of the activity's log loss beside the quantile loss.
ACTIVITY_WEIGHT: Final = 0.5


class SequenceNetwork(nn.Module, ABC):
    """A network from counts to quantiles of counts.

    Attributes:
        kind: name of its family.
        levels: quantile levels of its answer, ascending, 0.5 among them.
        context: steps that it reads.
        horizon: steps that it forecasts at most.
        rows: windows in one pass.
    """

    kind: ClassVar[str]
    levels: tuple[float, ...]
    context: int
    horizon: int
    rows: int = 256

    @abstractmethod
    def forecast(self, counts: Tensor, horizon: int) -> Tensor:
        """Quantiles at `levels`, in counts, (B, C) -> (B, horizon, Q), for any horizon up to its own.

        They may cross or be negative here and there; rows must not see each other.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What it takes to build the network anew, without its weights; goes through JSON unchanged."""

    def loss(self, counts: Tensor, future: Tensor, known: Tensor) -> Tensor:
        """Of windows (B, C), what came (B, H), and where that is known (B, H) bool; a scalar.

        Networks that learn something else than quantiles replace it; in eval mode it draws nothing at random.
        """
        return forecast_loss(self.forecast(counts, future.shape[1]), self.levels, counts, future, known)


def forecast_loss(
    quantiles: Tensor, levels: tuple[float, ...], counts: Tensor, future: Tensor, known: Tensor
) -> Tensor:
    """What a forecast of quantiles is trained on: the quantile loss, and the log loss of the activity they imply; a scalar.

    The quantile loss is taken in the space asinh(x / (mean + 0.1)), the mean being the window's. Quantiles keep their
    meaning in any rising transform; in this one relative errors weigh alike, and an invocation after a window of zeros is
    an error of 3, not of 1e5 standard deviations. It says little of where counts pass from 0 to 1, so that is asked for as
    well. Of the known steps the nearest weigh most: 1 / sqrt(h).

    Args:
        quantiles: in counts, (B, H, Q).
        levels: Q of them.
        counts: windows, (B, C).
        future: what came, (B, H).
        known: where it is known, (B, H).
    """
    scale = counts.mean(dim=1, keepdim=True) + 0.1
    target, answer = torch.asinh(future / scale), torch.asinh(quantiles / scale[..., None])
    pinball = quantile_loss(target, answer, torch.tensor(levels, device=counts.device)).mean(dim=2)
    loss = pinball + ACTIVITY_WEIGHT * activity_log_loss(quantiles, levels, future > 0)
    weight = known * torch.arange(1, future.shape[1] + 1, device=counts.device).rsqrt()
    return (weight * loss).sum() / weight.sum().clamp(min=1e-9)


class SequenceExpert:
    """A sequence network as an `Expert`: the same windows give the same forecast, whoever else is in the batch."""

    def __init__(self, network: SequenceNetwork, activity: Activity) -> None:
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.activity = activity

    @property
    def name(self) -> str:
        """Its family's name."""
        return self.network.kind

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts from the last `network.context` counts; a shorter past is taken as zeros before it.

        Steps beyond the network's own horizon are as its last one: sparse counts forget, and feeding a median of 0 back
        in would make them forget too much.
        """
        rows = len(context.counts)
        active = np.empty((rows, horizon), np.float32)
        quantiles = np.empty((rows, horizon, len(levels)), np.float32)
        for start in range(0, rows, self.network.rows):
            part = slice(start, start + self.network.rows)
            whole = _distributions(self.network, torch.from_numpy(self._window(context.counts[part])), horizon)
            calibrated = self.activity(whole.active())
            active[part] = calibrated.reshape(-1, horizon)
            quantiles[part] = whole.hurdle(calibrated, levels).reshape(-1, horizon, len(levels))
        return Prediction(quantiles, active)

    def _window(self, counts: FloatArray) -> FloatArray:
        """The last `context` columns, zeros before the first."""
        recent = counts[:, -self.network.context :]
        missing = self.network.context - recent.shape[1]
        return np.ascontiguousarray(np.pad(recent, ((0, 0), (missing, 0))), np.float32)

    def save(self, directory: Path) -> None:
        """Writes `model.safetensors`, then `config.json`, each under a temporary name first."""
        config = {
            "kind": self.name,
            "network": self.network.config(),
            "context": self.network.context,
            "activity": [self.activity.a, self.activity.b],
        }
        weights = _untied(self.network)
        temporary = directory / "model.tmp"
        save_file(weights, temporary)
        temporary.replace(directory / "model.safetensors")
        temporary = directory / "config.tmp"
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        temporary.replace(directory / "config.json")


def _distributions(network: SequenceNetwork, counts: Tensor, horizon: int) -> QuantileFunction:
    """What the network says of each window and step, (B, C) -> B * horizon distributions; steps run fastest."""
    steps = min(horizon, network.horizon)
    with torch.inference_mode():
        answer = network.forecast(counts, steps).float().numpy()
    answer = np.pad(answer, ((0, 0), (0, horizon - steps), (0, 0)), mode="edge")
    return QuantileFunction(answer.reshape(-1, len(network.levels)), network.levels)


class SequenceSettings(BaseModel):
    """Settings that all families share; each adds the shape of its small network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pretrained: Path | None = Field(None, description="Start from this directory of weights, not from a new network.")
    context: int = Field(512, ge=32, le=4096, description="Steps that it reads.")
    steps: int = Field(3_000, ge=0, description="Training steps; 0: only activity is calibrated.")
    rate: float = Field(2e-3, gt=0, description="Largest learning rate; a tenth or less suits pretrained weights.")
    batch: int = Field(64, ge=1, description="Windows in one training step.")
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of functions held back.")


class Windows(NamedTuple):
    """Windows (B, C), what came (B, H), and where that is known (B, H)."""

    counts: Tensor
    future: Tensor
    known: Tensor


def draw_windows(series: FloatArray, size: int, context: int, horizon: int, rng: np.random.Generator) -> Windows:
    """Windows of random functions of (N, M) series, NaN where missing, at random times; before the first step are zeros."""
    functions, length = series.shape
    row = rng.integers(0, functions, size)[:, None]
    now = rng.integers(min(context // 8, length // 2), length, size)[:, None]
    past, ahead = now + np.arange(-context, 0), now + np.arange(horizon)
    counts = np.where(past >= 0, np.nan_to_num(series[row, past.clip(min=0)]), 0)
    future = np.where(ahead < length, series[row, ahead.clip(max=length - 1)], np.nan)
    return Windows(*map(torch.from_numpy, (counts, np.nan_to_num(future), ~np.isnan(future))))


def fit_sequence(
    network: SequenceNetwork, data: TrainingSet, settings: SequenceSettings, training: Training
) -> SequenceExpert:
    """Trains a network in place, on random windows dense over its horizon, and calibrates its activity.

    Args:
        network: with its first weights, new or trained before.
        data: at least 2 functions and 2 steps; a share of the functions is held back.
        settings: budget, batch, share held back; context as the network has it.
        training: seed, progress, device, where its state survives.

    Raises:
        InputError: too few functions or steps.
    """
    if min(data.counts.shape) < 2:
        raise InputError(
            f"{network.kind}: the training set has {data.counts.shape[0]} functions and {data.counts.shape[1]} steps, "
            "needed are at least 2 of each"
        )
    rng = np.random.default_rng(training.seed)
    order = rng.permutation(len(data.counts))
    kept = min(max(round(settings.validation_share * len(order)), 1), len(order) - 1)
    held_back, taught = data.counts[order[:kept]], data.counts[order[kept:]]
    horizon = min(data.max_horizon, network.horizon)

    def draw(series: FloatArray, size: int, rng: np.random.Generator) -> Windows:
        return draw_windows(series, size, network.context, horizon, rng)

    def loss(learning: SequenceNetwork, rng: np.random.Generator) -> Tensor:
        return _loss(learning, draw(taught, settings.batch, rng), training.device)

    exam = _chunks(draw(held_back, EXAM_WINDOWS, rng), network.rows)
    network.requires_grad_(requires_grad=True)
    if settings.steps:
        budget = Budget(settings.steps, settings.rate)
        fit_network(
            network,
            loss,
            lambda learned: float(np.mean([_loss(learned, part, training.device).item() for part in exam])),
            budget,
            training,
        )
    return SequenceExpert(network, _calibrate(network.eval(), draw(held_back, CALIBRATION_WINDOWS, rng)))


def _loss(network: SequenceNetwork, windows: Windows, device: str) -> Tensor:
    return network.loss(*(part.to(device) for part in windows))


def _chunks(windows: Windows, rows: int) -> list[Windows]:
    return [Windows(*parts) for parts in zip(*(part.split(rows) for part in windows), strict=True)]


def _calibrate(network: SequenceNetwork, windows: Windows) -> Activity:
    raw = [
        _distributions(network, part.counts, part.future.shape[1]).active() for part in _chunks(windows, network.rows)
    ]
    known = windows.known.numpy().ravel()
    return Activity.fit(np.concatenate(raw)[known], windows.future.numpy().ravel()[known] > 0)


Settings = TypeVar("Settings", bound=SequenceSettings)


def sequence_family(
    smoke: Settings,
    network: type[SequenceNetwork],
    small: Callable[[Settings], SequenceNetwork],
    rebuild: Callable[[dict[str, Any], int], SequenceNetwork],
    published: Callable[[Path], SequenceNetwork],
) -> Family:
    """A family of sequence models.

    Args:
        smoke: settings of a training of seconds.
        network: its class.
        small: a new network of the shape that the settings tell, its weights drawn from torch's global state.
        rebuild: the network that `SequenceNetwork.config` and `context` describe; its weights do not matter.
        published: the network in a directory of published weights; raises `InputError`.
    """

    def load(directory: Path) -> SequenceExpert:
        with torch.random.fork_rng(devices=[]):  # networks are born with random weights
            if "kind" not in read_config(directory):
                return SequenceExpert(published(directory), Activity())
            return _load(directory, rebuild)

    def fit(data: TrainingSet, settings: Settings, training: Training) -> SequenceExpert:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            start = small(settings) if settings.pretrained is None else load(settings.pretrained).network
        return fit_sequence(start, data, settings, training)

    def tune(expert: SequenceExpert, data: TrainingSet, settings: Settings, training: Training) -> SequenceExpert:
        return fit_sequence(copy.deepcopy(expert.network), data, settings, training)

    return Family(network.kind, type(smoke), smoke, fit, load, tune, costly=True)


class _File(BaseModel):
    """What `config.json` of an own expert says."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    network: dict[str, Any]
    context: int = Field(ge=1)
    activity: tuple[float, float]


def read_config(directory: Path) -> dict[str, Any]:
    """What `config.json` says; raises `InputError` where it is not readable as an object."""
    path = directory / "config.json"
    try:
        return TypeAdapter(dict[str, Any]).validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a JSON object: {error}") from error


def _load(directory: Path, rebuild: Callable[[dict[str, Any], int], SequenceNetwork]) -> SequenceExpert:
    """Reads what `SequenceExpert.save` wrote."""
    path = directory / "config.json"
    try:
        config = _File.model_validate(read_config(directory))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}") from error
    try:
        network = rebuild(config.network, config.context)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{path}: network does not describe a network of the kind {config.kind}: {error}") from error
    load_weights(network, directory / "model.safetensors")
    return SequenceExpert(network, Activity(*config.activity))


def load_weights(network: nn.Module, path: Path, renamed: Mapping[str, str] | None = None) -> None:
    """Fills a network from a file of weights.

    Args:
        network: filled in place.
        path: the file, safetensors.
        renamed: parts of keys as the file has them, and what they are called in the network.

    Raises:
        InputError: the file is missing or damaged, or a key is missing, too many, of another shape, or not finite.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not readable as safetensors: {error}") from error
    for theirs, ours in (renamed or {}).items():
        weights = {key.replace(theirs, ours): value for key, value in weights.items()}
    expected, untied = network.state_dict(), _untied(network)
    for key in sorted(expected.keys() | weights.keys()):
        if key not in weights and key not in untied:
            continue
        if key not in weights:
            raise InputError(f"{path}: key {key} is missing")
        if key not in expected:
            raise InputError(f"{path}: key {key} is not part of the network")
        if weights[key].shape != expected[key].shape:
            shapes = f"{tuple(weights[key].shape)}, must be {tuple(expected[key].shape)}"
            raise InputError(f"{path}: key {key} has shape {shapes}")
        if not weights[key].isfinite().all():
            raise InputError(f"{path}: key {key} holds NaN or infinity, must be finite")
    network.load_state_dict(weights, strict=False)


def _untied(network: nn.Module) -> dict[str, Tensor]:
    """The weights under one name each: tied ones share their memory, which a file cannot tell."""
    state = network.state_dict()
    first = {value.data_ptr(): key for key, value in reversed(state.items())}
    return {key: state[key].contiguous() for key in state if key in first.values()}
