"""One expert that is several: fine-tuned for some clusters, and for the rest as it was trained on all functions.

It has the face of one expert, so the mixture, the router and the tables know nothing of it; its parts are of one family
and lie side by side in the model directory, `experts/<name>` and `experts/<name>-<cluster>`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mesp_predictor.experts.base import Context, Expert, IntArray, Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ClusteredExpert:
    """Asks for each function the part that was tuned for its cluster.

    Attributes:
        whole: trained on all functions; answers wherever nothing was tuned.
        tuned: by cluster.
    """

    whole: Expert
    tuned: Mapping[int, Expert]

    @property
    def name(self) -> str:
        """The name of its parts."""
        return self.whole.name

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        functions = len(context.counts)
        quantiles = np.empty((functions, horizon, len(levels)), np.float32)
        active = np.empty((functions, horizon), np.float32)
        rest = ~np.isin(context.cluster, list(self.tuned))
        parts = [(self.whole, rest), *((expert, context.cluster == k) for k, expert in self.tuned.items())]
        for expert, chosen in parts:
            if len(rows := np.flatnonzero(chosen)):
                answer = expert.predict(rows_of(context, rows), horizon, levels)
                quantiles[rows], active[rows] = answer.quantiles, answer.active
        return Prediction(quantiles, active)

    def save(self, directory: Path) -> None:
        """Writes the whole into the directory, and each tuned part into a new one beside it, `<directory>-<cluster>`."""
        self.whole.save(directory)
        for cluster, expert in self.tuned.items():
            beside = directory.with_name(f"{directory.name}-{cluster}")
            beside.mkdir()
            expert.save(beside)


def rows_of(context: Context, rows: IntArray) -> Context:
    """The context of some of its functions."""
    return replace(
        context,
        counts=context.counts[rows],
        statistics=context.statistics.take(rows),
        cluster=context.cluster[rows],
    )
