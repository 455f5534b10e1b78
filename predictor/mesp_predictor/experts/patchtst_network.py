"""The network of the PatchTST expert: patches of the window, and a head that knows what serverless counts look like.

Counts flow in as asinh(x / (mean + 0.1)), the mean taken per window, so that a function called twice a day and one called
a thousand times a minute look alike. The backbone is transformers' `PatchTSTModel` (Nie et al., "A Time Series is Worth 64
Words", ICLR 2023) under the key names of published checkpoints; it is built from its configuration, so nothing is ever
fetched. The head is ours: counts of serverless functions are mostly zeros, and the mean that normalisation removed, the
time since the last arrival and the gaps between arrivals say more about the next minute than any patch does. It answers,
per step, the logit of activity and the quantiles of the positive part in the transformed space, from the image of one
invocation upwards: the increments between the window's own quantiles, shrunk, plus softplus increments. Whatever the
weights, the forecast is a distribution of counts, and before any training that of a constant is nearly right.
"""

from __future__ import annotations

from typing import Final

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PatchTSTConfig as BackboneConfig
from transformers import PatchTSTModel

#: Levels at which the positive part's quantiles are trained; what is asked of the whole falls between them.
GRID: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

#: Periods, in steps, whose phase the head is shown: the cycles that people write into schedules.
PERIODS: Final = (2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120)

#: Trailing windows, in steps, whose mean and share of active steps the head is shown.
SPANS: Final = (1, 2, 5, 15, 60, 240)

#: Weight of a gap, or of a cycle, against the next newer one.
RECENCY: Final = 0.9

_GAP_FEATURES = 9
_STEP_FEATURES = _GAP_FEATURES + len(PERIODS)
_WINDOW_FEATURES = 4 + 2 * len(SPANS)


class PatchTSTConfig(BaseModel):
    """The network's shape, and how long it is trained; steps of the count grid unless said otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int = Field(512, ge=32)
    patch: int = Field(16, ge=2)
    stride: int = Field(16, ge=1)
    d_model: int = Field(48, ge=4)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1)
    feed_forward: int = Field(96, ge=4)
    hidden: int = Field(64, ge=4)
    token_width: int = Field(16, ge=1)
    step_width: int = Field(12, ge=1)
    max_horizon: int = Field(60, ge=1, description="Farthest step answered; a training that asks for more gets more.")
    dropout: float = Field(0.1, ge=0, lt=1)
    batch: int = Field(128, ge=1)
    training_steps: int = Field(4_500, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    tuning_steps: int = Field(600, ge=1, description="Of training on for one cluster.")
    tuning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    quantile_weight: float = Field(2.0, gt=0)
    validation_share: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _shapes_fit(self) -> PatchTSTConfig:
        if self.d_model % self.heads:
            raise ValueError(f"d_model = {self.d_model} must be a multiple of heads = {self.heads}")
        if self.patch > self.context // 2:
            raise ValueError(f"patch = {self.patch} must be at most half of context = {self.context}")
        return self


def window_scale(counts: Tensor) -> Tensor:
    """The unit of each window (R, C) in the transformed space asinh(x / scale): its mean + 0.1, invocations, (R, 1)."""
    return counts.mean(dim=1, keepdim=True) + 0.1


def _window_features(counts: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """What normalisation removed, and the recent level: (R, C) -> (R, _WINDOW_FEATURES)."""
    active = (counts > 0).float()
    context = counts.shape[1]
    arrivals = active.sum(dim=1, keepdim=True)
    since = (active * torch.arange(1, context + 1, device=counts.device)).amax(dim=1, keepdim=True).neg() + context
    spans = [s for span in SPANS for s in (values[:, -span:].mean(1), active[:, -span:].mean(1))]
    scalars = [torch.log(scale), torch.log1p(arrivals), arrivals / context, torch.log1p(since)]
    return torch.cat([*scalars, torch.stack(spans, dim=1)], dim=1)


def _gap_features(active: Tensor, steps: Tensor) -> Tensor:
    """How often a gap between arrivals ended where step h lies, of those that lasted so long: (R, C) -> (R, H, _GAP_FEATURES).

    Log odds of the gap histogram's hazard, and the evidence behind it, three times: all gaps of the window alike, the
    recent ones before the older, and those that followed a gap as long as the last one (10, 11, 10, 11, ...).
    """
    rows, context = active.shape
    index = torch.arange(context, device=active.device)
    latest = torch.where(active, index, -1).cummax(dim=1).values
    before = functional.pad(latest[:, :-1], (1, 0), value=-1)
    is_gap = (active & (before >= 0)).float()
    gap = (index - before) * is_gap.long()
    last_gap = gap.gather(1, latest[:, -1:].clamp(min=0))
    recent = RECENCY ** (is_gap.sum(dim=1, keepdim=True) - is_gap.cumsum(dim=1))
    alike = (gap.gather(1, before.clamp(min=0)) == last_gap).float()
    due = (context - 1 - latest[:, -1:]) + steps
    features = []
    for weight in (is_gap, is_gap * recent, is_gap * recent * alike):
        ended = weight.new_zeros(rows, context + int(steps.max()) + 2).scatter_add_(1, gap, weight)
        lasted = ended.flip(1).cumsum(1).flip(1).gather(1, due)
        at, near = ended.gather(1, due), ended.gather(1, due - 1) + ended.gather(1, due + 1)
        features += [_log_odds(at, lasted), _log_odds(near, lasted + ended.gather(1, due - 1)), torch.log1p(lasted)]
    return torch.stack(features, dim=2)


def _log_odds(hits: Tensor, trials: Tensor) -> Tensor:
    """Log odds of hits among trials, a twentieth of each added: 0 without evidence, 3 after one hit and no miss."""
    return torch.log((hits + 0.05) / (trials - hits + 0.05).clamp(min=0.05))


def _phase_features(active: Tensor, steps: Tensor) -> Tensor:
    """For each period, the recency-weighted share of cycles that were active at step h's phase: (R, C) -> (R, H, P)."""
    rows, context = active.shape
    features = []
    for period in PERIODS:
        cycles = max(context // period, 1)
        folded = active[:, -cycles * period :].float().view(rows, cycles, -1)
        weight = RECENCY ** torch.arange(cycles - 1, -1, -1, device=active.device)
        profile = _log_odds(torch.einsum("rcp,c->rp", folded, weight), weight.sum())
        features.append(profile[:, (steps - 1) % profile.shape[1]])
    return torch.stack(features, dim=2)


def _positive_quantiles(values: Tensor, floor: Tensor) -> Tensor:
    """Empirical quantiles at `GRID` of what is positive in each window, (R, C) -> (R, G); `floor` (R, 1) where nothing is."""
    ordered = torch.where(values > 0, values, torch.inf).sort(dim=1).values
    last = (values > 0).sum(dim=1, keepdim=True) - 1
    at = (last * values.new_tensor(GRID)).round().long().clamp(min=0)
    return torch.where(last >= 0, ordered.gather(1, at), floor)


class PatchTSTNetwork(nn.Module):
    """Windows of counts (R, C) -> logit of activity (R, H) and transformed quantiles of the positive part (R, H, G).

    Tokens and level are summed up once per window; each step then mixes its share of the summary with what the gaps and
    phases say of that very step. The last layer sees those log odds directly, so that a timer is learned in seconds.
    """

    def __init__(self, config: PatchTSTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = PatchTSTModel(
            BackboneConfig(
                num_input_channels=1,
                context_length=config.context,
                patch_length=config.patch,
                patch_stride=config.stride,
                d_model=config.d_model,
                num_attention_heads=config.heads,
                num_hidden_layers=config.layers,
                ffn_dim=config.feed_forward,
                norm_type="layernorm",
                scaling=None,  # the counts arrive transformed
            )
        )
        patches = (config.context - config.patch) // config.stride + 1
        self.token = nn.Linear(config.d_model, config.token_width)
        self.window = nn.Linear(patches * config.token_width + _WINDOW_FEATURES, config.hidden)
        self.steps = nn.Linear(config.hidden, config.max_horizon * config.step_width)
        seen = config.step_width + _STEP_FEATURES + _WINDOW_FEATURES
        self.mix = nn.Sequential(
            nn.Linear(seen, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
        )
        self.out = nn.Linear(config.hidden + seen, 1 + 2 * len(GRID))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, counts: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Forecasts the `steps` asked for, counted from 1, ascending, (H,)."""
        scale = window_scale(counts)
        values = torch.asinh(counts / scale)
        active = counts > 0
        level = _window_features(counts, values, scale)
        tokens = self.model(past_values=values[..., None]).last_hidden_state[:, 0]
        summary = torch.cat([self.token(tokens).flatten(1), level], dim=1)
        hidden = self.dropout(functional.gelu(self.window(summary)))
        per_step = self.steps(hidden).view(len(counts), self.config.max_horizon, -1)[:, steps - 1]
        level = level[:, None].expand(-1, len(steps), -1)
        seen = torch.cat([per_step, _gap_features(active, steps), _phase_features(active, steps), level], dim=2)
        out = self.out(torch.cat([self.mix(seen), seen], dim=2))
        logit, keep, add = out.split([1, len(GRID), len(GRID)], dim=2)
        one = torch.asinh(1 / scale)
        known = _positive_quantiles(values, one).diff(dim=1, prepend=one).clamp(min=0)
        # Known increments only shrink: a factor above 1 would be an exponent on the way back. Most counts are 1, so what
        # is added starts small.
        increments = known[:, None] * torch.sigmoid(keep + 3) + functional.softplus(add - 4)
        return logit[..., 0], one[..., None] + increments.cumsum(dim=2)
