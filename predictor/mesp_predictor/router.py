"""The router: whom to trust for which function, from what it looks like and how each expert did on it lately.

After each step every expert's forecast of that step is scored on every function, and exponentially weighted means are
kept per function and expert, from the function's first invocation on: two of the log loss of activity, one of the
quantile loss of the count. Who knows *whether* a function is invoked need not know *how often*: an expert has one weight
for its probability of activity and another for its quantiles.

Hedge weighs by the losses alone (Freund and Schapire, 1997): weights fall with the exponential of the discounted loss. The
gate corrects Hedge: to its log weights it adds what a small network makes of the losses, the function's age and rhythm, the
experts' present answers and the distances to the clusters' centroids, and it learns how far to trust each loss. What it
reads is kept small, for a gate that knows functions too well trusts the wrong expert on others. Without a trained gate
Hedge answers.
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
    from mesp_predictor.experts.base import IntArray

#: Half-lives, in steps, of the running means of an expert's log loss on a function, and of its quantile loss.
LOSS_HALF_LIVES = (30.0, 240.0)
COUNT_HALF_LIFE = 240.0
_LOSS_DECAY = (0.5 ** (1 / np.array(LOSS_HALF_LIVES))).astype(np.float32)
_COUNT_DECAY = np.float32(0.5 ** (1 / COUNT_HALF_LIFE))
#: Steps that the running means of log losses remember, which Hedge on their sums learns from at rate 1.
_MEMORY = torch.tensor(1 / (1 - _LOSS_DECAY))
#: Running means kept of each expert and function: of the log loss, then of the quantile loss.
LOSSES = len(LOSS_HALF_LIVES) + 1
#: Quantile loss, invocations, that is too small to tell experts apart.
_COUNT_FLOOR = np.float32(0.01)
#: Hedge's weight of a count falls with this power of the quantile loss.
_COUNT_POWER = 4.0
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


def filled(forecast: FloatArray) -> FloatArray:
    """Probabilities (R, E) in which an expert without an answer, NaN, says what the others do on average."""
    answered = np.isfinite(forecast)
    said = np.where(answered, forecast, 0).sum(axis=1, keepdims=True)
    mean = np.where(answered.any(axis=1, keepdims=True), said / np.maximum(answered.sum(axis=1, keepdims=True), 1), 0.5)
    return np.where(answered, forecast, mean).astype(np.float32)


def new_losses(functions: int, experts: int) -> FloatArray:
    """Running losses of functions that nobody has forecast yet, (F, E, LOSSES)."""
    losses = np.full((functions, experts, LOSSES), INITIAL_LOSS, np.float32)
    losses[..., -1] = 0
    return losses


def score(losses: FloatArray, forecast: Prediction, levels: FloatArray, counts: FloatArray, known: BoolArray) -> None:
    """Takes one step's outcome into the running losses, in place.

    Args:
        losses: (F, E, LOSSES).
        forecast: every expert's of that step, experts in the place of steps: (F, E, L) and (F, E); NaN where one had
            no answer: not scored.
        levels: of the quantiles, (L,).
        counts: what came, (F,).
        known: whether the step was observed, (F,).
    """
    p = np.clip(forecast.active, _CERTAINTY, 1 - _CERTAINTY)
    loss = -np.where(counts[:, None] > 0, np.log(p), np.log1p(-p))[..., None]
    means = losses[..., :-1]
    means += np.where(known[:, None, None] & np.isfinite(loss), (1 - _LOSS_DECAY) * (loss - means), 0)
    error = counts[:, None, None] - forecast.quantiles
    pinball = np.maximum(levels * error, (levels - 1) * error).mean(axis=2)
    means = losses[..., -1]
    means += np.where(known[:, None] & np.isfinite(pinball), (1 - _COUNT_DECAY) * (pinball - means), 0)


def gate_inputs(features: FloatArray, forecast: FloatArray, losses: FloatArray, distances: FloatArray) -> FloatArray:
    """What the gate reads.

    Args:
        features: of the next step, (R, len(FEATURES)).
        forecast: the experts' probabilities of activity in the next step, (R, E).
        losses: running losses, (R, E, LOSSES); of the quantile losses it sees their ratios to the experts' mean.
        distances: to the clusters' centroids, (R, K).
    """
    counts = losses[..., -1] + _COUNT_FLOOR
    relative = np.log(counts / counts.mean(axis=1, keepdims=True))
    rows, experts, kept = losses.shape
    log_losses = losses[..., :-1].reshape(rows, experts * (kept - 1))
    return np.concatenate([features[:, _GATE_COLUMNS], logit(forecast), log_losses, relative, distances], axis=1)


class Gate(nn.Module):
    """Gate inputs (N, D) to log weights of activity and of counts, each (N, E)."""

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, experts: int, clusters: int, width: int = 32) -> None:
        super().__init__()
        self.experts = experts
        self.trust = nn.Parameter(torch.tensor([0.0, 1.0]))  # in each log loss, in units of Hedge's learning rate
        self.power = nn.Parameter(torch.tensor(1.0))  # of the quantile loss, in units of Hedge's
        inputs = len(GATE_FEATURES) + experts * (1 + LOSSES) + clusters
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.activity, self.counts = (_even_network(inputs, width, experts) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log weights, normalised over experts."""
        scaled = self.scaled(inputs)
        lost, relative = self._losses(inputs)
        activity = self.activity(scaled) - (lost * self.trust * _MEMORY).sum(dim=2)
        counts = self.counts(scaled) - _COUNT_POWER * self.power * relative
        return functional.log_softmax(activity, dim=1), functional.log_softmax(counts, dim=1)

    def scaled(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs as the networks read them."""
        return ((inputs - self.mean) / self.spread).clamp(-6, 6)

    def learning(self) -> list[nn.Parameter]:
        """What goes on learning while it serves: all that weighs activity."""
        return [*self.activity.parameters(), self.trust]

    def _losses(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of `gate_inputs`: regrets in log loss, (N, E, 2), and logarithms of relative quantile losses, (N, E)."""
        first = len(GATE_FEATURES) + self.experts
        last = first + self.experts * len(LOSS_HALF_LIVES)
        lost = inputs[:, first:last].unflatten(1, (self.experts, len(LOSS_HALF_LIVES)))
        return lost - lost.amin(dim=1, keepdim=True), inputs[:, last : last + self.experts]


def _even_network(inputs: int, width: int, experts: int) -> nn.Sequential:
    """A network that corrects nothing until it has learned."""
    last = nn.Linear(width, experts)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), last)


class Weights(NamedTuple):
    """Weights over E experts of R functions; rows sum to 1.

    Attributes:
        activity: of their log odds of activity, (R, E).
        counts: of their quantiles, (R, E).
    """

    activity: FloatArray
    counts: FloatArray

    def among(self, usable: BoolArray) -> Weights:
        """The same among usable experts alone, (R, E); even among all where none is, or none of those had any weight."""
        return Weights(*(_normalised(part * usable) for part in self))

    def top(self, best: int) -> Weights:
        """The same among each function's `best` experts alone."""
        return Weights(*(_normalised(part * _highest(part, best)) for part in self))

    def wanted(self, best: int) -> BoolArray:
        """Whose word counts: experts among a function's `best` ones in either part, (R, E)."""
        return _highest(self.activity, best) | _highest(self.counts, best)


def _highest(weights: FloatArray, best: int) -> BoolArray:
    """The `best` weights of each row; the first of equal ones."""
    rank = np.argsort(np.argsort(-weights, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(rank < best)


def _normalised(weights: FloatArray) -> FloatArray:
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / weights.shape[1]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Router:
    """Weights over experts per function.

    Attributes:
        gate: the trained gate; None: Hedge.
        selected: hard assignment, index of the one expert of each cluster that answers alone, last of functions without
            a cluster, (K + 1,); empty: gate or Hedge.
        top: experts per function that have a say, the best ones; None: all.
    """

    gate: Gate | None = None
    selected: tuple[int, ...] = ()
    top: int | None = None

    def weights(
        self, features: FloatArray, forecast: FloatArray, losses: FloatArray, distances: FloatArray, cluster: IntArray
    ) -> Weights:
        """Weights of the experts; arguments as in `gate_inputs`, and each function's cluster, -1 for none, (R,)."""
        if self.selected:
            alone = np.eye(losses.shape[1], dtype=np.float32)[np.asarray(self.selected)[cluster]]
            return Weights(alone, alone)
        if self.gate is None:
            weights = hedge(losses)
        else:
            weights = gate_weights(self.gate, gate_inputs(features, forecast, losses, distances))
        return weights if self.top is None else weights.top(self.top)


def gate_weights(gate: Gate, inputs: FloatArray) -> Weights:
    """Weights that a trained gate gives for its inputs (R, D)."""
    with torch.inference_mode():
        return Weights(*(np.asarray(part.exp().numpy(), np.float32) for part in gate(torch.from_numpy(inputs))))


def hedge(losses: FloatArray) -> Weights:
    """Hedge on running losses (R, E, LOSSES): learning rate 1 on log losses discounted with the longer half-life.

    Counts have no unit that all functions share: there the weight falls with a power of the loss, whose exponent is the
    regret in its logarithm.
    """
    memory = 1 / (1 - _LOSS_DECAY[-1])
    regret = losses[..., -2] - losses[..., -2].min(axis=1, keepdims=True)
    counts = losses[..., -1] + _COUNT_FLOOR
    return Weights(
        _normalised(np.exp(-memory * regret)), _normalised((counts.min(axis=1, keepdims=True) / counts) ** _COUNT_POWER)
    )


def combine(weights: Weights, predictions: Sequence[Prediction], levels: tuple[float, ...]) -> Prediction:
    """The weighted answer: log odds of activity and quantiles averaged over experts, made coherent.

    Averaging log odds is the logarithmic opinion pool, which keeps experts' sharpness; averaging quantiles is
    Vincentization, rounded, for counts are whole. Coherent: the quantile at level q is 0 where q <= 1 - active, at least 1 above.
    """
    odds = sum(w[:, None] * logit(p.active) for w, p in zip(weights.activity.T, predictions, strict=True))
    active = (1 / (1 + np.exp(-odds))).astype(np.float32)
    quantiles = sum(w[:, None, None] * p.quantiles for w, p in zip(weights.counts.T, predictions, strict=True))
    positive = np.asarray(levels, np.float32) > 1 - active[..., None]
    return Prediction(np.where(positive, np.maximum(np.floor(quantiles + 0.5), 1), 0).astype(np.float32), active)


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

    It starts from Hedge, and the epoch that did best on functions kept aside is the one returned.
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
    optimizer = torch.optim.AdamW(gate.parameters(), 3e-3, weight_decay=0.1)
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
    """Log loss of activity plus scaled quantile loss, per sample and step ahead, (N, S)."""
    activity, shares = gate(samples.inputs)
    pooled = torch.einsum("ne,nes->ns", activity.exp(), samples.odds)
    mixed = torch.einsum("ne,nesl->nsl", shares.exp(), samples.quantiles)
    positive = level > torch.sigmoid(-pooled.detach())[..., None]
    mixed = torch.where(positive, mixed.clamp(min=1), 0)  # as `combine` does
    known = ~torch.isnan(samples.counts)
    counts = samples.counts.nan_to_num()
    error = (counts[..., None] - mixed) / samples.scale[:, None, None]
    pinball = torch.maximum(level * error, (level - 1) * error).mean(2)
    log_loss = functional.binary_cross_entropy_with_logits(pooled, (counts > 0).float(), reduction="none")
    importance = torch.ones(counts.shape[1])
    importance[0] = 2.0  # decisions hang on the next step
    return (importance * log_loss + pinball) * known


def _examine(gate: Gate, exam: _Tensors, level: torch.Tensor) -> float:
    """Mean loss on the functions kept aside."""
    with torch.inference_mode():
        return float(_gate_loss(gate, exam, level).mean())
