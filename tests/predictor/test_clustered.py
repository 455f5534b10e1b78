"""Several experts behind one face: each function is answered by the one tuned for its cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mesp_predictor.experts.base import Context, Prediction
from mesp_predictor.experts.clustered import ClusteredExpert
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Says:
    """Answers the window's last count plus a number of its own, and is never asked for nobody."""

    number: float
    name = "says"

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        rows = len(context.counts)
        assert rows == len(context.statistics) == len(context.cluster) > 0
        last = context.counts[:, -1:] + self.number
        quantiles = np.broadcast_to(last[..., None], (rows, horizon, len(levels))).astype(np.float32)
        return Prediction(quantiles, np.full((rows, horizon), self.number / 10, np.float32))

    def save(self, directory: Path) -> None:
        (directory / "number").write_text(str(self.number))


EXPERT = ClusteredExpert(Says(0), {1: Says(1), 3: Says(3)})


@given(st.lists(st.integers(-1, 4), max_size=12))
def test_each_function_is_asked_of_its_own(cluster: list[int]) -> None:
    """Whatever the clusters, a row has the answer of the expert tuned for its cluster, else of the whole one."""
    rows = len(cluster)
    counts = 100 * np.arange(rows * 5, dtype=np.float32).reshape(rows, 5)
    context = Context(7, counts, Statistics.empty(rows, 7), np.array(cluster, np.int64))
    answer = EXPERT.predict(context, 2, (0.5, 0.9))
    number = [k if k in {1, 3} else 0 for k in cluster]
    assert answer.quantiles.shape == (rows, 2, 2)
    assert answer.quantiles[:, 1, 0].tolist() == [100.0 * (5 * r + 4) + number[r] for r in range(rows)]
    assert answer.active[:, 0].tolist() == [np.float32(n / 10) for n in number]


def test_its_parts_are_saved_side_by_side(tmp_path: Path) -> None:
    """The whole into the directory, the tuned ones beside it under their cluster's number."""
    directory = tmp_path / "says"
    directory.mkdir()
    EXPERT.save(directory)
    assert {path.name: (path / "number").read_text() for path in tmp_path.iterdir()} == {
        "says": "0",
        "says-1": "1",
        "says-3": "3",
    }
    assert EXPERT.name == "says"
