"""The router: whom to trust for which function, from what it looks like and how each expert did on it lately.

After each step every expert's forecast of that step is scored on every function (log loss of activity), and two
exponentially weighted means are kept per function and expert, from the function's first invocation on. A gate network
reads them beside the function's age and rhythm, the experts' present answers and the distances to the clusters'
centroids, and gives the weights; what it reads is kept small, for a gate that knows functions too well trusts the
wrong expert on others. Without
a trained gate Hedge answers (Freund and Schapire, 1997): weights fall with the exponential of the discounted loss.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from mesp_predictor.experts.base import Prediction
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesp.types import BoolArray, FloatArray

#: Half-lives, in steps, of the two running means of an expert's loss on a function.
LOSS_HALF_LIVES = (30.0, 240.0)
_LOSS_DECAY = (0.5 ** (1 / np.array(LOSS_HALF_LIVES))).astype(np.float32)
#: What a new function's experts are taken to have lost: a coin's log loss, which all share.
INITIAL_LOSS = float(np.log(2))
#: The statistics that the gate reads.
GATE_FEATURES = ("log_age", "log_active", "log_gaps", "log_gap", "gap_mean", "gap_spread")
_GATE_COLUMNS = [FEATURES.index(name) for name in GATE_FEATURES]
#: Share of functions that the gate's training keeps aside to stop at its best.
_HELD_OUT = 0.2
_CERTAINTY = 1e-4  # probabilities are kept this far from 0 and 1 wherever a logarithm is taken


def logit(p: FloatArray) -> FloatArray:
    """Log odds of probabilities, kept finite."""
    p = np.clip(p, _CERTAINTY, 1 - _CERTAINTY)
    return np.asarray(np.log(p / (1 - p)), np.float32)


def new_losses(functions: int, experts: int) -> FloatArray:
    """Running losses of functions that nobody has forecast yet, (F, E, 2)."""
    return np.full((functions, experts, len(LOSS_HALF_LIVES)), INITIAL_LOSS, np.float32)


def score(losses: FloatArray, forecast: FloatArray, active: BoolArray, known: BoolArray) -> None:
    """Takes one step's outcome into the running losses, in place.

    Args:
        losses: (F, E, 2).
        forecast: each expert's probability that the step is active, (F, E); NaN where it had no answer: not scored.
        active: whether it was, (F,).
        known: whether the step was observed, (F,).
    """
    p = np.clip(forecast, _CERTAINTY, 1 - _CERTAINTY)
    loss = -np.where(active[:, None], np.log(p), np.log1p(-p))[..., None]
    losses += np.where(known[:, None, None] & np.isfinite(loss), (1 - _LOSS_DECAY) * (loss - losses), 0)


def gate_inputs(features: FloatArray, forecast: FloatArray, losses: FloatArray, distances: FloatArray) -> FloatArray:
    """What the gate reads: next-step features (R, D), expert probabilities (R, E), losses (R, E, 2), distances (R, K)."""
    return np.concatenate(
        [features[:, _GATE_COLUMNS], logit(forecast), losses.reshape(len(losses), -1), distances], axis=1
    )


class Gate(nn.Module):
    """Gate inputs (N, D) to log weights (N, E)."""

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, experts: int, clusters: int, width: int = 32) -> None:
        super().__init__()
        self.experts = experts
        inputs = len(GATE_FEATURES) + experts * (1 + len(LOSS_HALF_LIVES)) + clusters
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        last = nn.Linear(width, experts)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), last)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Log weights, normalised over experts."""
        return functional.log_softmax(self.body(((inputs - self.mean) / self.spread).clamp(-6, 6)), dim=1)


@dataclass(frozen=True, slots=True)
class Router:
    """Weights over experts per function.

    Attributes:
        gate: the trained gate; None: Hedge.
    """

    gate: Gate | None = None

    def weights(
        self, features: FloatArray, forecast: FloatArray, losses: FloatArray, distances: FloatArray
    ) -> FloatArray:
        """Weights of the experts, (R, E), rows sum to 1; arguments as in `gate_inputs`."""
        if self.gate is None:
            return hedge(losses)
        return gate_weights(self.gate, gate_inputs(features, forecast, losses, distances))


def gate_weights(gate: Gate, inputs: FloatArray) -> FloatArray:
    """Weights (R, E) that a trained gate gives for its inputs (R, D)."""
    with torch.inference_mode():
        return np.asarray(gate(torch.from_numpy(inputs)).exp().numpy(), np.float32)


def hedge(losses: FloatArray) -> FloatArray:
    """Hedge with learning rate 1 on losses discounted with the longer half-life, (R, E)."""
    memory = 1 / (1 - _LOSS_DECAY[-1])
    regret = losses[..., -1] - losses[..., -1].min(axis=1, keepdims=True)
    weights = np.exp(-memory * regret)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def combine(weights: FloatArray, predictions: Sequence[Prediction], levels: tuple[float, ...]) -> Prediction:
    """The weighted answer: log odds of activity and quantiles averaged over experts, made coherent.

    Averaging log odds is the logarithmic opinion pool, which keeps experts' sharpness; averaging quantiles is
    Vincentization. Coherent: the quantile at level q is 0 where q <= 1 - active, at least 1 above.
    """
    odds = sum(w[:, None] * logit(p.active) for w, p in zip(weights.T, predictions, strict=True))
    active = (1 / (1 + np.exp(-odds))).astype(np.float32)
    quantiles = sum(w[:, None, None] * p.quantiles for w, p in zip(weights.T, predictions, strict=True))
    positive = np.asarray(levels, np.float32) > 1 - active[..., None]
    return Prediction(np.where(positive, np.maximum(quantiles, 1), 0).astype(np.float32), active)


@dataclass(frozen=True, slots=True)
class GateSamples:
    """Training samples of the gate.

    Attributes:
        inputs: (N, D), as `gate_inputs`.
        forecast: each expert's probability of activity at each sampled step ahead, (N, E, S).
        quantiles: each expert's quantiles there, (N, E, S, L).
        counts: what happened, (N, S); NaN where it is not known.
        scale: of each function's counts, (N,).
        function: which function each sample is of, (N,).
    """

    inputs: FloatArray
    forecast: FloatArray
    quantiles: FloatArray
    counts: FloatArray
    scale: FloatArray
    function: npt.NDArray[np.int64]


def fit_gate(
    samples: GateSamples,
    clusters: int,
    levels: tuple[float, ...],
    seed: int,
    epochs: int = 12,
    progress: Callable[[float], None] = lambda _share: None,
) -> Gate:
    """Trains the gate on the proper scores of the combined forecast: log loss of activity plus scaled quantile loss.

    It starts from even weights, and the epoch that did best on functions kept aside is the one returned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = Gate(samples.forecast.shape[1], clusters)
    rng = np.random.default_rng(seed)
    functions = np.unique(samples.function)
    aside = np.isin(samples.function, rng.permutation(functions)[: max(1, round(_HELD_OUT * len(functions)))])
    exam, lesson = _tensors(samples, aside), _tensors(samples, ~aside)
    gate.mean.copy_(lesson.inputs.mean(0))
    gate.spread.copy_(lesson.inputs.std(0) + 1e-3)
    level = torch.tensor(levels, dtype=torch.float32)
    rows = len(lesson.inputs)
    batch = min(1024, max(64, rows // 16))
    per_epoch = max(1, rows // batch)
    optimizer = torch.optim.AdamW(gate.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * per_epoch + 1)
    best, best_state = _examine(gate, exam, level), copy.deepcopy(gate.state_dict())
    for epoch in range(epochs):
        order = torch.from_numpy(rng.permutation(rows))
        for i in range(per_epoch):
            loss = _gate_loss(gate, lesson.rows(order[i * batch : (i + 1) * batch]), level).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (loss_now := _examine(gate, exam, level)) < best:
            best, best_state = loss_now, copy.deepcopy(gate.state_dict())
        progress((epoch + 1) / epochs)
    gate.load_state_dict(best_state)
    return gate.eval()


class _Tensors(NamedTuple):
    """`GateSamples` as the training reads them; counts that are not known are NaN."""

    inputs: torch.Tensor
    odds: torch.Tensor
    quantiles: torch.Tensor
    counts: torch.Tensor
    scale: torch.Tensor

    def rows(self, rows: torch.Tensor) -> _Tensors:
        return _Tensors(*(part[rows] for part in self))


def _tensors(samples: GateSamples, rows: BoolArray) -> _Tensors:
    parts = (samples.inputs, logit(samples.forecast), samples.quantiles, samples.counts, samples.scale)
    return _Tensors(*(torch.from_numpy(part[rows]) for part in parts))


def _gate_loss(gate: Gate, samples: _Tensors, level: torch.Tensor) -> torch.Tensor:
    """Log loss of activity plus a fifth of the scaled quantile loss, per sample and step ahead, (N, S)."""
    weights = gate(samples.inputs).exp()
    pooled = torch.einsum("ne,nes->ns", weights, samples.odds)
    mixed = torch.einsum("ne,nesl->nsl", weights, samples.quantiles)
    known = ~torch.isnan(samples.counts)
    counts = samples.counts.nan_to_num()
    error = (counts[..., None] - mixed) / samples.scale[:, None, None]
    pinball = torch.maximum(level * error, (level - 1) * error).mean(2)
    log_loss = functional.binary_cross_entropy_with_logits(pooled, (counts > 0).float(), reduction="none")
    importance = torch.ones(counts.shape[1])
    importance[0] = 2.0  # decisions hang on the next step
    return (log_loss + 0.2 * pinball) * known * importance


def _examine(gate: Gate, exam: _Tensors, level: torch.Tensor) -> float:
    """Mean loss on the functions kept aside."""
    with torch.inference_mode():
        return float(_gate_loss(gate, exam, level).mean())
