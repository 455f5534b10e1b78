"""TimesFM 2.5: transformers' network under a forward pass and a loss of our own.

Das et al., "A decoder-only foundation model for time-series forecasting", ICML 2024. The network normalises every patch
by the mean and spread of all that came before it and of itself, so each patch's state forecasts what follows without a
look ahead. That makes the training dense: a target after every patch. Transformers' own `forward` gives the last patch's
answer alone, pads every call to 16,384 steps, and its loss matches levels and quantiles off by one; so the parts are
called here one by one. On the last patch the answer is that `forward`'s `full_predictions[..., 1:]`, without the averaging
over flipped signs: that is for series that may be negative, and costs as much again.

A new network reads asinh of the counts, in which a thousand invocations are not a thousand times one; published weights
(google/timesfm-2.5-200m-transformers) read the counts, as they always did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional
from transformers import TimesFm2_5Config, TimesFm2_5ModelForPrediction

from mesp.errors import InputError
from mesp_predictor.experts.sequence import (
    SequenceNetwork,
    SequenceSettings,
    forecast_loss,
    load_weights,
    read_config,
    sequence_family,
)

if TYPE_CHECKING:
    from pathlib import Path

#: Levels that a new network learns.
LEVELS: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

#: Least spread of an answer, in the unit that the network reads: below that of one invocation in 512 steps, above none,
#: so that a window of zeros still has a forecast to learn.
SPREAD_FLOOR: Final = 0.03

#: asinh is inverted no further out than this, which is beyond every count and finite in float32.
SQUASHED_LIMIT: Final = 30.0

#: Parts of published keys, and what transformers' modules call them.
_RENAMED: Final = {".mlp.ff0.": ".mlp.fc1.", ".mlp.ff1.": ".mlp.fc2."}

#: Steps that published weights are shown, of 16,384 that they could read.
PUBLISHED_CONTEXT: Final = 512


class TimesFMNetwork(SequenceNetwork):
    """Counts in, quantiles of the counts to come out; see the module."""

    kind: ClassVar[str] = "timesfm"

    def __init__(self, config: TimesFm2_5Config, context: int, *, squash: bool) -> None:
        super().__init__()
        self.levels = tuple(config.quantiles)
        middle = config.decode_index - 1
        if not 0 <= middle < len(self.levels) or self.levels[middle] != 0.5:
            raise ValueError(f"quantiles = {list(self.levels)} must hold 0.5 at decode_index - 1 = {middle}")
        self.timesfm = TimesFm2_5ModelForPrediction(config)
        self.context = context
        two_heads = config.use_continuous_quantile_head
        self.horizon = min(config.horizon_length, config.output_quantile_len if two_heads else config.horizon_length)
        self.squash = squash

    def config(self) -> dict[str, Any]:
        """Whether it reads asinh of counts, and transformers' own configuration."""
        return {"squash": self.squash, "timesfm": self.timesfm.config.to_dict()}

    def forecast(self, counts: Tensor, horizon: int) -> Tensor:
        """Quantiles at `levels`, in counts, (B, C) -> (B, horizon, Q); C may be any length."""
        return self._answers(counts, horizon, last=1)[:, 0]

    def loss(self, counts: Tensor, future: Tensor, known: Tensor) -> Tensor:
        """`forecast_loss` after every patch of windows (B, C), not after the last one alone."""
        patch, horizon = self.timesfm.config.patch_length, future.shape[1]
        counts = counts[:, counts.shape[1] % patch :]
        answers = self._answers(counts, horizon, last=counts.shape[1] // patch)
        target = torch.cat([counts, future], dim=1)[:, patch:].unfold(1, horizon, patch)
        told = torch.cat([torch.ones_like(counts, dtype=torch.bool), known], dim=1)[:, patch:].unfold(1, horizon, patch)
        windows = counts.repeat_interleave(target.shape[1], dim=0)
        return forecast_loss(answers.flatten(0, 1), self.levels, windows, target.flatten(0, 1), told.flatten(0, 1))

    def _answers(self, counts: Tensor, horizon: int, last: int) -> Tensor:
        """Quantiles after each of the `last` patches, (B, C) -> (B, last, horizon, Q)."""
        config = self.timesfm.config
        missing = -counts.shape[1] % config.patch_length
        values = functional.pad(torch.asinh(counts) if self.squash else counts, (missing, 0))
        padding = functional.pad(torch.zeros_like(counts, dtype=torch.long), (missing, 0), value=1)
        read = self.timesfm.model(past_values=values, past_values_padding=padding)
        mean, spread = (part[:, -last:, None, None] for part in (read.context_mu, read.context_sigma))
        state = read.last_hidden_state[:, -last:]
        outputs = len(self.levels) + 1  # before the quantiles comes a mean, which nobody reads
        point = self.timesfm.output_projection_point(state).unflatten(2, (-1, outputs))[:, :, :horizon]
        answer = point[..., 1:]
        if config.use_continuous_quantile_head:
            # The second head tells distances from the median, the first the median.
            middle = config.decode_index
            quantiles = self.timesfm.output_projection_quantiles(state).unflatten(2, (-1, outputs))[:, :, :horizon]
            answer = quantiles[..., 1:] - quantiles[..., middle, None] + point[..., middle, None]
        answer = answer * spread.clamp(min=SPREAD_FLOOR) + mean
        return torch.sinh(answer.clamp(-SQUASHED_LIMIT, SQUASHED_LIMIT)) if self.squash else answer


class TimesFMShape(BaseModel):
    """The shape of a new network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(16, ge=1, description="Steps in one patch.")
    horizon: int = Field(64, ge=1, description="Steps that it forecasts.")
    width: int = Field(64, ge=2, description="Features of a patch; a multiple of twice the heads.")
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> TimesFMShape:
        if self.width % (2 * self.heads):
            raise ValueError(f"width = {self.width} must be a multiple of twice heads = {self.heads}")
        return self


class TimesFMSettings(SequenceSettings):
    """Settings of a training; a directory under `pretrained` brings its own network."""

    network: TimesFMShape = Field(TimesFMShape(), description="Shape of a new network.")


def _small(settings: TimesFMSettings) -> TimesFMNetwork:
    shape = settings.network
    config = TimesFm2_5Config(
        patch_length=shape.patch,
        context_length=settings.context,
        horizon_length=shape.horizon,
        use_continuous_quantile_head=False,  # one head for median and quantiles is as good in the small, and faster
        output_quantile_len=1,
        quantiles=LEVELS,
        decode_index=1 + LEVELS.index(0.5),
        hidden_size=shape.width,
        intermediate_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        initializer_range=0.05,
    )
    return TimesFMNetwork(config, settings.context, squash=True)


def _configuration(keys: dict[str, Any]) -> TimesFm2_5Config:
    try:
        return TimesFm2_5Config(**keys)
    except StrictDataclassError as error:  # no ValueError; what it was raised from says it in one line
        raise ValueError(str(error.__cause__ or error)) from error


def _rebuild(config: dict[str, Any], context: int) -> TimesFMNetwork:
    return TimesFMNetwork(_configuration(config["timesfm"]), context, squash=config["squash"])


def _published(directory: Path) -> TimesFMNetwork:
    path = directory / "config.json"
    try:
        config = _configuration(read_config(directory))
        network = TimesFMNetwork(config, min(config.context_length, PUBLISHED_CONTEXT), squash=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    load_weights(network.timesfm, directory / "model.safetensors", _RENAMED)
    return network


TIMESFM = sequence_family(
    smoke=TimesFMSettings(context=64, steps=60, batch=16, network=TimesFMShape(width=16, layers=1, heads=2)),
    network=TimesFMNetwork,
    small=_small,
    rebuild=_rebuild,
    published=_published,
)
