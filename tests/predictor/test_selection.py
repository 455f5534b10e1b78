"""The best expert of each cluster: by the arithmetic of its loss, with an interval that knows how few functions there are."""

from __future__ import annotations

import numpy as np
import pytest

from mesp.types import DEFAULT_LEVELS
from mesp_predictor.replay import Answers, Past
from mesp_predictor.selection import sample_losses, select

FUNCTIONS, STEPS = 40, 60


def past(counts: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Past:
    """Two clusters; every other step is a sample; only the next step is judged."""
    return Past(counts, 0, np.zeros((2, 6), np.float32), 10, 0, 2, 1)


def said(fleet: Past, active: float | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Answers:
    """An expert that gives each function one probability, and 0 invocations at every level."""
    samples, functions = len(fleet.sampled), len(fleet.counts)
    each = np.broadcast_to(np.asarray(active, np.float32), functions)
    following = np.broadcast_to(each, (fleet.counts.shape[1], functions)).copy()
    return Answers(
        following,
        np.zeros((*following.shape, len(DEFAULT_LEVELS)), np.float32),
        np.broadcast_to(each[:, None], (samples, functions, 1)).copy(),
        np.zeros((samples, functions, 1, len(DEFAULT_LEVELS)), np.float32),
    )


@pytest.fixture
def fleet() -> Past:
    """Even rows are invoked at every step, odd ones never."""
    counts = np.zeros((FUNCTIONS, STEPS), np.float32)
    counts[::2] = 1
    return past(counts)


def test_the_loss_is_log_loss_plus_scaled_quantile_loss(fleet: Past) -> None:
    """At probability 0.8 and 0 invocations: -ln 0.8 + mean level * 1 / 0.01 where one came, -ln 0.2 where none did."""
    losses = sample_losses(said(fleet, 0.8), fleet.happened, fleet.scale)
    assert fleet.scale == pytest.approx(0.01)
    assert losses[:, 0] == pytest.approx(-np.log(0.8) + np.mean(DEFAULT_LEVELS) / 0.01)
    assert losses[:, 1] == pytest.approx(-np.log(0.2), rel=1e-5)


def test_each_cluster_has_its_own_best(fleet: Past) -> None:
    """Who is right of the busy ones is selected in their cluster, and the other in the other; nobody is in none."""
    busy = np.arange(FUNCTIONS) % 2 == 0
    cluster = np.broadcast_to(np.where(busy, 0, 1), (STEPS, FUNCTIONS))
    seen = np.ones((STEPS, FUNCTIONS), np.bool_)
    experts = {"always": said(fleet, 0.9), "never": said(fleet, 0.1)}
    chosen = select(experts, {}, fleet, cluster, seen, seed=0)
    assert chosen.selected[:2] == (0, 1)
    assert chosen.table["selected"] == {"0": "always", "1": "never", "none": chosen.table["selected"]["none"]}
    assert chosen.table["functions"] == {"0": 20, "1": 20, "none": 0}
    assert chosen.table["scores"]["none"] == {}
    score = chosen.table["scores"]["1"]["never"]
    assert score["mean"] == pytest.approx(-np.log(0.9), rel=1e-4)
    assert score["ci95"] == pytest.approx([score["mean"]] * 2)  # all functions alike: nothing is uncertain


def test_the_interval_covers_the_truth() -> None:
    """Of 40 functions that differ, the interval of the mean is about its normal one, 1.96 deviations to each side."""
    rng = np.random.default_rng(0)
    fleet = past(np.zeros((FUNCTIONS, STEPS), np.float32))
    p = rng.uniform(0.05, 0.6, FUNCTIONS)
    cluster = np.zeros((STEPS, FUNCTIONS), np.int64)
    chosen = select({"some": said(fleet, p)}, {}, fleet, cluster, np.ones_like(cluster, np.bool_), seed=1)
    score = chosen.table["scores"]["0"]["some"]
    losses = -np.log(1 - p)
    half = 1.96 * losses.std() / np.sqrt(FUNCTIONS)
    assert score["mean"] == pytest.approx(losses.mean(), rel=1e-4)
    assert score["ci95"] == pytest.approx([losses.mean() - half, losses.mean() + half], abs=0.25 * half)


@pytest.mark.parametrize(("better", "kept"), [(0.02, {"expert": (0,)}), (0.0, {}), (-0.02, {})])
def test_tuning_is_kept_only_beyond_doubt(fleet: Past, better: float, kept: dict[str, tuple[int, ...]]) -> None:
    """A tuned expert better for every function is kept in its cluster; one that is alike or worse is not."""
    busy = np.arange(FUNCTIONS) % 2 == 0
    whole = np.where(busy, 0.9, 0.1)
    tuned = np.where(busy, 0.9 + better, 0.1 - better)
    cluster = np.zeros((STEPS, FUNCTIONS), np.int64)
    seen = np.ones_like(cluster, np.bool_)
    chosen = select(
        {"expert": said(fleet, whole)}, {"expert": (said(fleet, tuned), (0,))}, fleet, cluster, seen, seed=0
    )
    assert chosen.kept == kept
    assert set(chosen.table["scores"]["0"]) == {"expert", "expert_tuned"}
    assert chosen.table["selected"]["0"] == ("expert_tuned" if kept else "expert")
    assert chosen.selected[0] == 0


def test_noise_is_not_kept(fleet: Past) -> None:
    """Better on average but for a few functions alone is within the uncertainty; too few functions say nothing."""
    rng = np.random.default_rng(3)
    base = np.where(np.arange(FUNCTIONS) % 2 == 0, 0.5, 0.5)
    tuned = np.clip(base + rng.normal(0, 0.2, FUNCTIONS), 0.05, 0.95)
    cluster = np.zeros((STEPS, FUNCTIONS), np.int64)
    seen = np.ones_like(cluster, np.bool_)
    parts = {"expert": (said(fleet, tuned), (0,))}
    assert select({"expert": said(fleet, base)}, parts, fleet, cluster, seen, seed=0).kept == {}
    few = past(fleet.counts[:4])
    better = {"expert": (said(few, np.array([0.9, 0.1] * 2)), (0,))}
    assert select({"expert": said(few, 0.5)}, better, few, cluster[:, :4], seen[:, :4], seed=0).kept == {}


def test_unseen_and_missing_samples_do_not_count(fleet: Past) -> None:
    """What came before a function's first invocation, and steps whose counts are missing, change nothing."""
    cluster = np.zeros((STEPS, FUNCTIONS), np.int64)
    seen = np.ones_like(cluster, np.bool_)
    first = select({"a": said(fleet, 0.9)}, {}, fleet, cluster, seen, seed=0).table["scores"]["0"]["a"]
    seen[:20] = False
    counts = fleet.counts.copy()
    counts[:, 30:40] = np.nan
    second = select({"a": said(fleet, 0.9)}, {}, past(counts), cluster, seen, seed=0).table["scores"]["0"]["a"]
    assert second["mean"] == pytest.approx(first["mean"])
