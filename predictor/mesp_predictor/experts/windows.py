"""Random windows of a training set: what an expert that reads counts alone would have seen, and what then came."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mesp.errors import InputError

if TYPE_CHECKING:
    from mesp.types import FloatArray
    from mesp_predictor.experts.base import IntArray


class Windows(NamedTuple):
    """S windows of C steps and the H steps after each.

    Attributes:
        counts: invocations per step, (S, C) float32; missing and unborn are 0, as in `Context`.
        age: steps since the function was first heard of, (S,), at least 1.
        future: invocations per step, (S, H) float32; NaN where missing or past the trace's end.
    """

    counts: FloatArray
    age: IntArray
    future: FloatArray


def draw_windows(counts: FloatArray, size: int, context: int, horizon: int, rng: np.random.Generator) -> Windows:
    """Windows of random functions that end at random steps, at least one step after the function's first.

    Args:
        counts: invocations per step, (N, M), NaN where missing.
        size: how many.
        context: steps in a window.
        horizon: steps after it.
        rng: draws them.
    """
    length = counts.shape[1]
    known = ~np.isnan(counts[:, :-1])
    heard = np.flatnonzero(known.any(axis=1))
    row = heard[rng.integers(0, len(heard), size)]
    born = known[row].argmax(axis=1)
    now = born + 1 + (rng.random(size) * (length - 1 - born)).astype(np.int64)
    past = now[:, None] + np.arange(-context, 0)
    future = now[:, None] + np.arange(horizon)
    seen = np.where(past >= 0, np.nan_to_num(counts[row[:, None], past.clip(min=0)]), 0)
    came = np.where(future < length, counts[row[:, None], future.clip(max=length - 1)], np.nan)
    return Windows(seen.astype(np.float32), now - born, came.astype(np.float32))


def check_counts(counts: FloatArray) -> None:
    """Refuses (`InputError`) counts (N, M) that no window can be drawn from, or that are no counts."""
    if counts.ndim != 2 or len(counts) < 1 or counts.shape[1] < 2:
        raise InputError(f"training counts: shape = {counts.shape}, must be at least 1 function by 2 steps")
    if np.isinf(counts).any() or (counts < 0).any():
        raise InputError("training counts: must be finite and at least 0, or NaN where missing")
    if np.isnan(counts[:, :-1]).all():
        raise InputError("training counts: nothing but NaN, must hold a count before the last step")
