"""The best expert of every cluster, and whether fine-tuning for it was worth while, on functions that none has learned from.

An expert's loss on a sample is its log loss of activity in the next step plus its quantile loss at the judged steps in
units of the function's naive error. A sample counts for the cluster that its function was in at that moment, as it would
when serving. What is uncertain is which functions were held out, so these are drawn anew, all their samples together
(Efron's bootstrap, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mesp.types import DEFAULT_LEVELS
from mesp_predictor.losses import PROBABILITY_FLOOR, quantile_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import BoolArray, FloatArray
    from mesp_predictor.experts.base import IntArray
    from mesp_predictor.replay import Answers, Past

#: Draws of the bootstrap.
DRAWS = 1_000
#: Fewer held-out functions than this say nothing of whether tuning for their cluster was worth while.
FEWEST = 5
#: How functions without a cluster are called in the table.
NONE = "none"

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen, and why.

    Attributes:
        selected: index of the best expert of each cluster, (K + 1,), last for functions without one.
        kept: clusters for which the tuned expert is better than the whole one by more than its uncertainty, by name.
        table: `experts.json`: the `measure`; `functions` and `scores` (`mean` and `ci95` by expert, tuned ones as
            `<name>_tuned`) by cluster; `selected`, the best of those in use. A cluster in which no held-out function
            ever was has no scores, and the best of all functions together is selected for it.
    """

    selected: tuple[int, ...]
    kept: dict[str, tuple[int, ...]]
    table: dict[str, Any]


def select(
    wholes: Mapping[str, Answers],
    tuned: Mapping[str, tuple[Answers, tuple[int, ...]]],
    past: Past,
    cluster: IntArray,
    seen: BoolArray,
    seed: int,
) -> Selection:
    """Compares the experts in every cluster.

    Args:
        wholes: what each expert said, in the model's order.
        tuned: what the fine-tuned ones of an expert said, and for which clusters there is one.
        past: the held-out functions.
        cluster: of each function at each column, (M, F); -1 for none.
        seen: whether it was invoked before, (M, F); silence before the first invocation says little of an expert.
        seed: of the bootstrap.
    """
    sampled = past.sampled
    at, happened, clusters = cluster[sampled], past.happened, len(past.centroids)
    counted = seen[sampled] & ~np.isnan(happened).any(axis=2)
    losses = {name: sample_losses(each, happened, past.scale) for name, each in wholes.items()}
    tuned_losses = {name: sample_losses(each, happened, past.scale) for name, (each, _) in tuned.items()}
    rng = np.random.default_rng(seed)
    names = list(wholes)
    overall = min(names, key=lambda name: losses[name][counted].mean() if counted.any() else 0.0)
    scores: dict[str, dict[str, Any]] = {}
    functions: dict[str, int] = {}
    chosen: dict[str, str] = {}
    kept: dict[str, list[int]] = {name: [] for name in tuned}
    for k in [*range(clusters), -1]:
        label = NONE if k < 0 else str(k)
        samples = counted & (at == k)
        weights = _draws(samples, rng)
        functions[label] = int(samples.any(axis=0).sum())
        scores[label], in_use = {}, {}
        for name in names if samples.any() else ():
            scores[label][name] = _score(losses[name], samples, weights)
            in_use[name] = scores[label][name]["mean"]
            if name in tuned and k in tuned[name][1]:
                column = f"{name}_tuned"
                scores[label][column] = _score(tuned_losses[name], samples, weights)
                gain = _score(tuned_losses[name] - losses[name], samples, weights)
                if functions[label] >= FEWEST and _is_better(gain):
                    kept[name].append(k)
                    in_use[column] = scores[label][column]["mean"]
        chosen[label] = min(in_use, key=lambda name: in_use[name]) if in_use else overall
    table = {
        "measure": "log loss of activity in the next step + quantile loss in units of the naive error, held-out functions",
        "functions": functions,
        "scores": scores,
        "selected": chosen,
    }
    selected = tuple(names.index(name.removesuffix("_tuned")) for name in chosen.values())
    return Selection(selected, {name: tuple(ks) for name, ks in kept.items() if ks}, table)


def sample_losses(answers: Answers, happened: FloatArray, scale: FloatArray) -> Doubles:
    """Loss of every sample, (S, F); NaN where a count is missing."""
    p = np.clip(answers.active[..., 0].astype(np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    log_loss = -np.log(np.where(happened[..., 0] > 0, p, 1 - p))
    pinball = quantile_loss(happened, answers.quantiles, np.asarray(DEFAULT_LEVELS, np.float32)).mean(axis=(2, 3))
    loss: Doubles = log_loss + pinball / scale
    return loss


def _is_better(difference: dict[str, Any]) -> bool:
    """Whether a difference of losses is below 0 beyond its uncertainty."""
    return bool(difference["ci95"][1] < 0)


def _draws(samples: BoolArray, rng: np.random.Generator) -> Doubles:
    """How often each function is drawn, (DRAWS, F); of those that have samples."""
    present = np.flatnonzero(samples.any(axis=0))
    count = len(present)
    drawn = np.zeros((DRAWS, samples.shape[1]))
    if count:
        drawn[:, present] = rng.multinomial(count, np.full(count, 1 / count), DRAWS)
    return drawn


def _score(losses: Doubles, samples: BoolArray, draws: Doubles) -> dict[str, Any]:
    """Mean over the samples, and the interval that holds 95 percent of the draws' means."""
    total, number = np.where(samples, losses, 0).sum(axis=0), samples.sum(axis=0)
    means = (draws @ total) / (draws @ number)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(total.sum() / number.sum()), "ci95": [float(low), float(high)]}
