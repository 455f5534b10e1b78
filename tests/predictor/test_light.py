"""Light experts: quantiles of a hurdle, closed-form answers, and prior curves counted by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.types import DEFAULT_LEVELS
from mesp_predictor.experts.base import Context, hurdle_quantiles
from mesp_predictor.experts.light import HazardExpert, IntermittentExpert, SeasonalExpert, fit_hazard
from mesp_predictor.kernels import LONGEST_GAP
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Expert

FLAT = np.full((3, LONGEST_GAP + 1), 0.02, np.float32)
EXPERTS: tuple[Expert, ...] = (SeasonalExpert(), IntermittentExpert(), HazardExpert(FLAT, 2.0))


def context(counts: FloatArray, cluster: list[int] | None = None) -> Context:
    statistics = Statistics.empty(len(counts))
    for column in counts.T:
        statistics.update(column)
    labels = np.array(cluster if cluster is not None else [-1] * len(counts), np.int64)
    return Context(counts.shape[1], np.nan_to_num(counts), statistics, labels)


def rows(*histories: list[float]) -> FloatArray:
    return np.array(histories, np.float32)


# -- hurdle quantiles --------------------------------------------------------------------------------------------------


def test_hurdle_quantiles_of_a_worked_example() -> None:
    """Active half of the time and then uniform on [2, 4]: level 0.75 is the middle of the positive part, 3."""
    answer = hurdle_quantiles(
        np.array([[0.5]], np.float32),
        np.array([[2.0, 4.0]], np.float32),
        np.array([0.0, 1.0], np.float32),
        (0.25, 0.5, 0.625, 0.75, 1.0),
    )
    np.testing.assert_allclose(answer[0, 0], [0, 0, 2.5, 3, 4])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4),
    st.lists(st.floats(1, 1e6, width=32), min_size=2, max_size=9),
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=8, unique=True),
)
def test_hurdle_quantiles_are_monotone_and_zero_below_the_hurdle(
    active: list[float], positive: list[float], levels: list[float]
) -> None:
    """Non-decreasing along the levels, zero exactly where the level is at most 1 - active, else a positive count."""
    ascending = tuple(sorted(levels))
    probability = np.array([active], np.float32)
    grid = np.linspace(0, 1, len(positive), dtype=np.float32)
    values = np.sort(np.array([positive], np.float32))
    answer = hurdle_quantiles(probability, values, grid, ascending)
    assert answer.shape == (1, len(active), len(ascending))
    assert (np.diff(answer, axis=2) >= 0).all()
    silent = np.asarray(ascending, np.float32) - 1 + probability[..., None] <= 0
    assert (answer[silent] == 0).all()
    assert (answer[~silent] >= values[0, 0] * (1 - 1e-6)).all()
    assert (answer <= values[0, -1] * (1 + 1e-6)).all()


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert", EXPERTS, ids=lambda expert: str(expert.name))
@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 40.0, np.nan]), max_size=300), st.integers(1, 70))
def test_every_expert_keeps_the_face(expert: Expert, history: list[float], horizon: int) -> None:
    """Shapes, dtypes, ranges and order of levels hold for any history; so they do for no functions at all."""
    given_counts = np.array([history, [np.nan] * len(history)], np.float32)
    for counts in (given_counts, given_counts[:0]):
        answer = expert.predict(context(counts), horizon, DEFAULT_LEVELS)
        assert answer.active.shape == (len(counts), horizon)
        assert answer.quantiles.shape == (len(counts), horizon, len(DEFAULT_LEVELS))
        assert answer.active.dtype == answer.quantiles.dtype == np.float32
        assert ((answer.active > 0) & (answer.active < 1)).all()
        assert np.isfinite(answer.quantiles).all()
        assert (np.diff(answer.quantiles, axis=2) >= 0).all()
        assert ((answer.quantiles == 0) | (answer.quantiles > 0.999)).all()


def test_seasonal_follows_the_best_period() -> None:
    """A timer of 12 steps is expected at its steps and not between, with the counts it always had."""
    counts = rows(([0.0] * 7 + [3.0] + [0.0] * 4) * 12)
    answer = SeasonalExpert().predict(context(counts), 24, (0.5,))
    due = np.arange(24) % 12 == 7
    assert (answer.active[0, due] > 0.9).all()
    assert (answer.active[0, ~due] < 0.1).all()
    np.testing.assert_allclose(answer.quantiles[0, :, 0], np.where(due, 3, 0))


def test_intermittent_is_flat_and_fades() -> None:
    """The same probability at every step ahead: near the rate while demand lasts, falling when it has died out."""
    alive = ([1.0, 0.0, 0.0, 0.0]) * 100
    answer = IntermittentExpert().predict(context(rows(alive + [0.0] * 200, [0.0] * 200 + alive)), 5, (0.5,))
    assert (answer.active == answer.active[:, :1]).all()
    assert answer.active[1, 0] == pytest.approx(0.25, abs=0.05)
    assert answer.active[0, 0] == pytest.approx(0.001)


def test_hazard_reads_the_curve_of_the_cluster() -> None:
    """A function with one gap of its own follows its cluster's curve; without a cluster the fleet's, which is last."""
    curves = np.stack([np.full(LONGEST_GAP + 1, p, np.float32) for p in (0.1, 0.9, 0.4)])
    counts = rows(*[[1.0, 0.0]] * 3)
    answer = HazardExpert(curves, 1e9).predict(context(counts, [0, 1, -1]), 1, (0.5,))
    np.testing.assert_allclose(answer.active[:, 0], [0.1, 0.9, 0.4], rtol=1e-4)


# -- prior curves ------------------------------------------------------------------------------------------------------


def hazard_by_hand(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Trials and hits of every gap length, step by step: weights 1 / sqrt(gaps, the running one included)."""
    trials, hits = np.zeros((2, LONGEST_GAP + 1), np.float32)
    for row in counts:
        active = np.flatnonzero(row > 0)
        if not len(active):
            continue
        weight = 1 / np.sqrt(len(active))
        gap = 0
        for t in range(active[0] + 1, len(row)):
            gap += 1
            trials[min(gap, LONGEST_GAP)] += weight
            if row[t] > 0:
                hits[min(gap, LONGEST_GAP)] += weight
                gap = 0
    return trials, hits


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.002, 0.02, 0.2]))
def test_prior_curves_count_every_step_at_risk(seed: int, rate: float) -> None:
    """The pooled hazard of a gap length is hits over trials, each observed step being one trial of its gap length."""
    counts = (np.random.default_rng(seed).random((5, 1200)) < rate).astype(np.float32)
    trials, hits = hazard_by_hand(counts)
    curve = fit_hazard(counts, np.full(5, -1), 0).curves[-1]
    pooled = np.convolve(hits, [0.25, 0.5, 0.25], "same") / np.maximum(
        np.convolve(trials, [0.25, 0.5, 0.25], "same"), 1e-9
    )
    seen = np.flatnonzero(trials[1:-1] > 0)[1:] + 1  # the curve's first and last entries have no neighbours
    expected = (hits[seen] + 2 * pooled[seen]) / (trials[seen] + 2)
    np.testing.assert_allclose(curve[seen], np.clip(expected, 1e-5, 0.999), rtol=1e-3, atol=1e-5)


def test_curves_know_when_functions_start_and_what_clusters_do() -> None:
    """Index 0 is births over the steps waited for them; a cluster's curve peaks where its members' gaps are."""
    fast, slow = [1.0, 0.0] * 200, ([1.0] + [0.0] * 9) * 40
    counts = rows(*[fast] * 6, *[slow] * 6, [0.0] * 400, [0.0] * 99 + [1.0] + [0.0] * 300)
    expert = fit_hazard(counts, np.array([0] * 6 + [1] * 6 + [-1, -1]), 2)
    assert expert.curves.shape == (3, LONGEST_GAP + 1)
    np.testing.assert_allclose(expert.curves[:, 0], 13 / (12 + 400 + 100), rtol=1e-5)
    assert expert.curves[0, 1:30].argmax() + 1 == 2
    assert expert.curves[1, 1:30].argmax() + 1 == 10
    assert expert.curves[1, 2] < 0.1 < expert.curves[2, 2]


def test_a_training_set_without_life_gives_a_prior() -> None:
    """Functions that are never active teach a curve of small finite hazards."""
    curves = fit_hazard(np.zeros((4, 100), np.float32), np.full(4, -1), 3).curves
    assert ((curves >= 1e-5) & (curves < 0.01)).all()
