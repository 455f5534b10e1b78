"""Sundial: a decoder over patches whose head samples the future by flow matching, from the paper's description.

Liu et al., "Sundial: A Family of Highly Capable Time Series Foundation Models", ICML 2025. A window of counts is
normalised by its own mean and spread, cut into patches, and read by a causal Transformer; the state after each patch
conditions TimeFlow, a small network that turns noise into the counts that follow the patch. Modules and parameters bear
the key names of the published weights (thuml/sundial-base-128m), so that those load as they are.

Two things are ours. Small models learn in asinh of the normalised counts (`squash`): serverless counts have tails that
the squared error of flow matching would otherwise follow alone. And the noise is a Latin hypercube from a fixed seed, one
for all rows: a forecast depends on its window alone, and a score of samples covers every step's distribution evenly.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mesp_predictor.experts.sequence import SequenceNetwork

#: Least unit of the normalised counts, invocations: without it a window of zeros would make one invocation infinite.
SCALE_FLOOR: Final = 0.1

#: asinh is inverted no further out than this many, which is beyond every count and finite in float32.
SQUASHED_LIMIT: Final = 30.0

#: Seed of the noise that forecasts start from, and of that at which held-out loss is taken.
NOISE_SEED: Final = 2502_00816

_TIME_FEATURES = 256
_TIME_UNIT = 1000.0


class SundialConfig(BaseModel):
    """The network's shape, under the keys of the published `config.json` (but for `samples` and `squash`).

    The defaults are those of a small network that learns on a processor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_token_len: int = Field(16, ge=1, description="Steps in one patch.")
    output_token_lens: tuple[int, ...] = Field(
        (64,), min_length=1, description="Steps forecast at once: the last counts."
    )
    hidden_size: int = Field(64, ge=2)
    intermediate_size: int = Field(128, ge=1)
    num_hidden_layers: int = Field(2, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    hidden_act: Literal["silu"] = "silu"
    rope_theta: float = Field(10_000.0, gt=1)
    dropout_rate: float = Field(0.0, ge=0, lt=1)
    flow_loss_depth: int = Field(2, ge=1, description="Residual blocks of TimeFlow.")
    num_sampling_steps: int = Field(4, ge=1, description="Euler steps from noise to counts.")
    samples: int = Field(21, ge=3, description="Futures drawn per forecast; odd, so that one is the median.")
    squash: bool = Field(default=True, description="Learn in asinh of the normalised counts.")

    @model_validator(mode="after")
    def _shapes_fit(self) -> SundialConfig:
        if self.samples % 2 == 0:
            raise ValueError(f"samples = {self.samples} must be odd")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of twice "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        return self

    @property
    def reach(self) -> int:
        """Steps ahead that one state forecasts."""
        return self.output_token_lens[-1]


class SundialNetwork(SequenceNetwork):
    """Counts in, samples of the counts to come out; see the module.

    Attributes:
        levels: the quantile levels that `samples` ordered draws stand for: (i + 1/2) / samples.
    """

    kind: ClassVar[str] = "sundial"

    def __init__(self, shape: SundialConfig, context: int) -> None:
        super().__init__()
        self.shape = shape
        self.levels = tuple((i + 0.5) / shape.samples for i in range(shape.samples))
        self.context = context
        self.horizon = shape.reach
        self.model = _Decoder(shape)
        self.flow_loss = _TimeFlow(shape)

    def config(self) -> dict[str, Any]:
        """The keys of `SundialConfig`."""
        return self.shape.model_dump(mode="json")

    def forecast(self, counts: Tensor, horizon: int) -> Tensor:
        """Quantiles at `levels`, in counts, non-decreasing, (B, C) -> (B, horizon, Q); C may be any length."""
        mean, scale = _moments(counts)
        state = self.model(self._normal(counts, mean, scale))[:, -1]
        drawn = self.flow_loss.sample(state)[..., :horizon]
        if self.shape.squash:
            drawn = torch.sinh(drawn.clamp(-SQUASHED_LIMIT, SQUASHED_LIMIT))
        return (drawn * scale[..., None] + mean[..., None]).sort(dim=1).values.transpose(1, 2)

    def loss(self, counts: Tensor, future: Tensor, known: Tensor) -> Tensor:
        """TimeFlow's loss after every patch of windows (B, C), not after the last one alone.

        Time and noise are torch's random numbers in training, and the same at every call in eval mode.
        """
        patch, reach = self.shape.input_token_len, self.shape.reach
        counts = counts[:, counts.shape[1] % patch :]
        mean, scale = _moments(counts)
        missing = reach - future.shape[1]  # a negative one cuts what is beyond reach
        following = functional.pad(torch.where(known, future, 0), (0, missing))
        told = functional.pad(known.to(counts.dtype), (0, missing))
        target = self._normal(torch.cat([counts, following], dim=1), mean, scale)
        told = torch.cat([torch.ones_like(counts), told], dim=1)
        target, told = (series[:, patch:].unfold(1, reach, patch) for series in (target, told))
        loss: Tensor = self.flow_loss(target, told, self.model(self._normal(counts, mean, scale)))
        return loss

    def _normal(self, counts: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        normal = (counts - mean) / scale
        return torch.asinh(normal) if self.shape.squash else normal


def _moments(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each window, (R, C) -> (R, 1) twice; in float64, or a constant of 1e9 would seem to waver."""
    exact = counts.double()
    mean, spread = exact.mean(dim=1, keepdim=True), exact.std(dim=1, keepdim=True, correction=0)
    return mean.to(counts.dtype), spread.clamp(min=SCALE_FLOOR).to(counts.dtype)


class _Decoder(nn.Module):
    """The causal Transformer: normalised counts (R, C) -> the state after each patch (R, P, hidden_size)."""

    def __init__(self, config: SundialConfig) -> None:
        super().__init__()
        self.theta = config.rope_theta
        self.embed_layer = _PatchEmbedding(config)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head_size = config.hidden_size // config.num_attention_heads

    def forward(self, normal: Tensor) -> Tensor:
        state = self.embed_layer(normal)
        turn = _rotation(state.shape[1], self.head_size, self.theta, state.device)
        for layer in self.layers:
            state = layer(state, turn)
        normed: Tensor = self.norm(state)
        return normed


class _PatchEmbedding(nn.Module):
    """Patches, each with the mask of its true steps, through a residual network of one hidden layer."""

    def __init__(self, config: SundialConfig) -> None:
        super().__init__()
        self.patch = config.input_token_len
        self.hidden_layer = nn.Linear(2 * self.patch, config.intermediate_size)
        self.output_layer = nn.Linear(config.intermediate_size, config.hidden_size)
        self.residual_layer = nn.Linear(2 * self.patch, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, normal: Tensor) -> Tensor:
        missing = -normal.shape[1] % self.patch
        both = (functional.pad(part, (missing, 0)) for part in (normal, torch.ones_like(normal)))
        patches = torch.cat([part.unflatten(1, (-1, self.patch)) for part in both], dim=2)
        hidden = functional.silu(self.hidden_layer(patches))
        embedded: Tensor = self.dropout(self.output_layer(hidden)) + self.residual_layer(patches)
        return embedded


class _Layer(nn.Module):
    """One decoder layer: attention and a gated network, each after its LayerNorm and added to the stream."""

    def __init__(self, config: SundialConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.self_attn = _Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.ffn_layer = _GatedNetwork(config)

    def forward(self, state: Tensor, turn: Tensor) -> Tensor:
        state = state + self.self_attn(self.norm1(state), turn)
        fed: Tensor = state + self.ffn_layer(self.norm2(state))
        return fed


class _Attention(nn.Module):
    def __init__(self, config: SundialConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout_rate = config.dropout_rate
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, state: Tensor, turn: Tensor) -> Tensor:
        query, key, value = (
            project(state).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout_rate if self.training else 0.0
        heard = functional.scaled_dot_product_attention(
            _turned(query, turn), _turned(key, turn), value, dropout_p=dropout, is_causal=True
        )
        spoken: Tensor = self.o_proj(heard.transpose(1, 2).flatten(2))
        return spoken


class _GatedNetwork(nn.Module):
    """SwiGLU: Shazeer, "GLU Variants Improve Transformer", 2020."""

    def __init__(self, config: SundialConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, state: Tensor) -> Tensor:
        gated: Tensor = self.down_proj(functional.silu(self.gate_proj(state)) * self.up_proj(state))
        return gated


def _rotation(positions: int, head_size: int, theta: float, device: torch.device) -> Tensor:
    """Unit complex numbers by which each pair of features is turned, (positions, head_size / 2).

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    rate = theta ** (-torch.arange(0, head_size, 2, device=device) / head_size)
    angle = torch.arange(positions, device=device)[:, None] * rate
    return torch.polar(torch.ones_like(angle), angle)


def _turned(features: Tensor, turn: Tensor) -> Tensor:
    """Turns feature i together with feature i + head_size / 2, the pairing of the published weights."""
    real, imaginary = features.chunk(2, dim=-1)
    return torch.cat([real * turn.real - imaginary * turn.imag, real * turn.imag + imaginary * turn.real], dim=-1)


class _TimeFlow(nn.Module):
    """Flow matching along straight lines from noise to counts: at time t a point is t * counts + (1 - t) * noise.

    The network tells, from the point, the time and the state, the counts at the line's end.
    """

    def __init__(self, config: SundialConfig) -> None:
        super().__init__()
        self.steps = config.num_sampling_steps
        self.net = _FlowNetwork(config)
        noise = _latin_normals(config.samples, config.reach, NOISE_SEED)
        self.register_buffer("noise", noise, persistent=False)
        self.noise: Tensor

    def forward(self, target: Tensor, told: Tensor, state: Tensor) -> Tensor:
        """Squared error of the told end, near steps weighing most (1 / i for the i-th), the mean over all that is known.

        Args:
            target: normalised counts that followed each patch, (B, P, reach).
            told: 1 where they are known, else 0, the same shape.
            state: after each patch, (B, P, hidden_size).
        """
        generator = None if self.training else torch.Generator().manual_seed(NOISE_SEED)
        noise = torch.randn(target.shape, generator=generator).to(target)
        time = torch.rand((*target.shape[:2], 1), generator=generator).to(target)
        end = self.net(time * target + (1 - time) * noise, time, self.net.cond_embed(state))
        weight = told / torch.arange(1, target.shape[2] + 1, device=target.device)
        loss: Tensor = (weight * (end - target).square()).sum() / weight.sum()
        return loss

    def sample(self, state: Tensor) -> Tensor:
        """Normalised futures by Euler's method, (R, hidden_size) -> (R, samples, reach)."""
        point = self.noise.expand(len(state), -1, -1)
        condition = self.net.cond_embed(state)[:, None]
        for step in range(self.steps):
            time = torch.full((1, 1, 1), step / self.steps).to(state)
            point = point + (self.net(point, time, condition) - self.noise) / self.steps
        return point


def _latin_normals(samples: int, dimensions: int, seed: int) -> Tensor:
    """Standard normals of which every dimension's `samples` hold one from each slice of equal probability.

    McKay, Beckman and Conover, "A Comparison of Three Methods for Selecting Values of Input Variables", Technometrics
    1979, with each slice's midpoint.
    """
    generator = torch.Generator().manual_seed(seed)
    slices = torch.rand((samples, dimensions), generator=generator, device="cpu").argsort(dim=0)
    normals: Tensor = torch.special.ndtri((slices + 0.5) / samples)
    return normals


class _FlowNetwork(nn.Module):
    """Residual blocks whose LayerNorms are shifted, scaled and gated by time and state (adaptive LayerNorm).

    Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023; modulations and output start at zero.
    """

    def __init__(self, config: SundialConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.time_embed = _TimeEmbedding(width)
        self.cond_embed = nn.Linear(width, width)
        self.input_proj = nn.Linear(config.reach, width)
        self.res_blocks = nn.ModuleList(_FlowBlock(width) for _ in range(config.flow_loss_depth))
        self.final_layer = _FlowOutput(width, config.reach)

    def forward(self, point: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Points (..., reach), times (..., 1) in [0, 1), `cond_embed` of states (..., width), all broadcast."""
        given = self.time_embed(time) + condition
        state = self.input_proj(point)
        for block in self.res_blocks:
            state = block(state, given)
        end: Tensor = self.final_layer(state, given)
        return end


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        half = _TIME_FEATURES // 2
        rate = torch.exp(-math.log(10_000) / half * torch.arange(half, device=time.device))
        angle = _TIME_UNIT * time * rate
        embedded: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return embedded


class _FlowBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), _zeroed(nn.Linear(width, 3 * width)))

    def forward(self, state: Tensor, given: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(given).chunk(3, dim=-1)
        moved: Tensor = state + gate * self.mlp(self.in_ln(state) * (1 + scale) + shift)
        return moved


class _FlowOutput(nn.Module):
    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = _zeroed(nn.Linear(width, reach))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), _zeroed(nn.Linear(width, 2 * width)))

    def forward(self, state: Tensor, given: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(given).chunk(2, dim=-1)
        end: Tensor = self.linear(self.norm_final(state) * (1 + scale) + shift)
        return end


def _zeroed(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
