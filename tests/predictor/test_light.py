"""Light experts: quantiles of a hurdle, closed-form answers, prior curves counted by hand, and what all families promise."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor.experts import registry
from mesp_predictor.experts.base import Context, Training, TrainingSet, hurdle_quantiles
from mesp_predictor.experts.light import (
    HAZARD,
    HazardExpert,
    HazardSettings,
    IntermittentExpert,
    SeasonalExpert,
    above_hurdle,
    fit_hazard,
)
from mesp_predictor.kernels import LONGEST_GAP
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Expert

LIGHT = ("seasonal", "intermittent", "hazard", "context_mixing", "moving_window", "seasonal_empirical", "fft", "linear")
#: Light families that learn arrays.
LEARNED = ("hazard", "moving_window", "fft", "linear")


def training_set(counts: FloatArray) -> TrainingSet:
    keys = tuple(FunctionKey("scope", f"app/{i}") for i in range(len(counts)))
    return TrainingSet(counts, 1_000, np.arange(len(counts)) % 3 - 1, 2, keys, max_horizon=60)


def fleet() -> FloatArray:
    """Timers, Poisson streams, a steady one, a burst, a dead one and one born late, (12, 400)."""
    rng = np.random.default_rng(3)
    minute = np.arange(400)
    timers = [3.0 * (minute % period == 1) for period in (2, 5, 15, 60)]
    streams = [rng.poisson(rate, 400) for rate in (0.02, 0.1, 1.0, 30.0)]
    late = np.where(minute < 250, np.nan, minute % 10 == 0)
    return np.array([*timers, *streams, np.full(400, 14), 50 * (minute // 100 == 2), 0 * minute, late], np.float32)


@cache
def fitted(name: str, seed: int = 0) -> Expert:
    family = registry.family(name)
    return family.fit(training_set(fleet()), family.smoke, Training(seed))


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


HISTORIES = st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 40.0, 1e9, np.nan]), max_size=130)
LEVELS = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True).map(lambda levels: tuple(sorted(levels)))


def keeps_the_face(expert: Expert, counts: FloatArray, horizon: int, levels: tuple[float, ...]) -> None:
    answer = expert.predict(context(counts), horizon, levels)
    assert answer.active.shape == (len(counts), horizon)
    assert answer.quantiles.shape == (len(counts), horizon, len(levels))
    assert answer.active.dtype == answer.quantiles.dtype == np.float32
    assert ((answer.active > 0) & (answer.active < 1)).all()
    assert np.isfinite(answer.quantiles).all()
    assert (np.diff(answer.quantiles, axis=2) >= 0).all()
    silent = np.asarray(levels, np.float32) - 1 + answer.active[..., None] <= 0
    assert (answer.quantiles[silent] == 0).all()
    assert (answer.quantiles[~silent] > 0.999).all()


@pytest.mark.parametrize("name", LIGHT)
@settings(max_examples=15, deadline=None)
@given(HISTORIES, st.integers(1, 60), LEVELS)
def test_every_expert_keeps_the_face(name: str, history: list[float], horizon: int, levels: tuple[float, ...]) -> None:
    """Shapes, ranges, order and agreement of quantiles with activity hold for any history; so they do for no functions."""
    counts = np.array([history, [np.nan] * len(history)], np.float32)
    keeps_the_face(fitted(name), counts, horizon, levels)
    keeps_the_face(fitted(name), counts[:0], horizon, levels)


@pytest.mark.parametrize("name", LIGHT)
def test_extreme_series_are_series(name: str) -> None:
    """All zeros, constants from 1 to the greatest count, a single call long ago, one column: all get a forecast."""
    single = np.zeros(512)
    single[5] = 4e9
    constants = [np.full(512, value) for value in (0, 1, 14, 1e9, 2.0**32 - 1)]
    counts = np.array([*constants, single, single[::-1], np.arange(512) % 2 * 1e9], np.float32)
    keeps_the_face(fitted(name), counts, 60, DEFAULT_LEVELS)
    keeps_the_face(fitted(name), counts[:, -1:], 60, DEFAULT_LEVELS)


@pytest.mark.parametrize("name", LIGHT)
def test_rows_do_not_know_of_each_other(name: str) -> None:
    """A function's forecast is the same whoever else is asked about, and a longer horizon begins like a shorter one."""
    counts = np.nan_to_num(fleet())
    whole = fitted(name).predict(context(counts), 20, DEFAULT_LEVELS)
    alone = fitted(name).predict(context(counts[6:8]), 5, DEFAULT_LEVELS)
    np.testing.assert_allclose(alone.active, whole.active[6:8, :5], atol=1e-5)
    np.testing.assert_allclose(alone.quantiles, whole.quantiles[6:8, :5], rtol=1e-4)


def test_quantiles_and_activity_are_made_to_agree() -> None:
    """Below the hurdle 0, above it whole and at least 1: worked by hand for a chance of activity of 0.5."""
    quantiles = np.array([[[3.0, 0.2, 4.4]]], np.float32)
    answer = above_hurdle(quantiles, np.array([[0.5]], np.float32), (0.5, 0.6, 0.9))
    np.testing.assert_array_equal(answer[0, 0], [0, 1, 4])


# -- files and training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIGHT)
def test_what_is_saved_is_read_back_whole(name: str, tmp_path: Path) -> None:
    """load(save(expert)) forecasts with difference 0; nothing is left under a temporary name."""
    fitted(name).save(tmp_path)
    again = registry.load_expert(tmp_path)
    assert again.name == name
    asked = context(np.nan_to_num(fleet()))
    one, two = (expert.predict(asked, 15, DEFAULT_LEVELS) for expert in (fitted(name), again))
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    np.testing.assert_array_equal(one.active, two.active)
    assert {path.name for path in tmp_path.iterdir()} <= {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", LIGHT)
def test_a_seed_decides_the_training(name: str) -> None:
    """Two trainings with the same seed forecast alike bit for bit."""
    family = registry.family(name)
    again = family.fit(training_set(fleet()), family.smoke, Training(0))
    asked = context(np.nan_to_num(fleet()))
    np.testing.assert_array_equal(
        again.predict(asked, 15, DEFAULT_LEVELS).quantiles, fitted(name).predict(asked, 15, DEFAULT_LEVELS).quantiles
    )


@pytest.mark.parametrize("name", LIGHT)
def test_a_foreign_config_is_refused(name: str, tmp_path: Path) -> None:
    """Another kind, an unknown key, or no JSON at all: one sentence names the file and what is wrong."""
    fitted(name).save(tmp_path)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    load = registry.family(name).load
    for content, said in (
        (json.dumps(whole | {"kind": "oracle"}), "kind"),
        (json.dumps(whole | {"colour": "red"}), "colour"),
        ("[]", "object"),
        ("{", "JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=said) as raised:
            load(tmp_path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", LEARNED)
def test_damaged_weights_are_refused(name: str, tmp_path: Path) -> None:
    """A file cut short, a key that is missing or unknown, a wrong shape, a NaN: one sentence names the file and the key."""
    fitted(name).save(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    key = min(whole)
    poisoned = np.full_like(whole[key], np.nan)
    for arrays, said in (
        ({k: v for k, v in whole.items() if k != key}, key),
        (whole | {"more": poisoned}, "more"),
        (whole | {key: np.zeros((1, 1, 1), np.float32)}, key),
        (whole | {key: poisoned}, key),
    ):
        save_file(arrays, path)
        with pytest.raises(InputError, match=f"key {said}") as raised:
            registry.load_expert(tmp_path)
        assert str(path) in str(raised.value)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="safetensors"):
        registry.load_expert(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A directory that is not there is one sentence, not a stack of errors."""
    with pytest.raises(InputError, match="nowhere: the expert hazard cannot be written"):
        fitted("hazard").save(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["strength", "longest_gap"])
def test_settings_out_of_range_are_named(key: str, tmp_path: Path) -> None:
    """A hazard of another gap range or with a negative strength is refused under the key's name."""
    fitted("hazard").save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: -1}))
    with pytest.raises(InputError, match=f"{key} = -1"):
        registry.load_expert(tmp_path)


def test_curves_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    """A hazard above 1 is named."""
    HazardExpert(np.full((1, LONGEST_GAP + 1), 1.5, np.float32), 2.0).save(tmp_path)
    with pytest.raises(InputError, match="key curves"):
        registry.load_expert(tmp_path)


@pytest.mark.parametrize("name", ["moving_window", "seasonal_empirical", "fft", "linear"])
@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (np.zeros((3, 1)), "2 steps"),
        (np.full((2, 9), -1.0), "at least 0"),
        (np.full((2, 9), np.inf), "finite"),
        (np.full((2, 9), np.nan), "NaN"),
    ],
)
def test_nothing_is_learned_from_what_are_no_counts(name: str, counts: FloatArray, said: str) -> None:
    """One step, negative or infinite counts, or none at all: refused in one sentence."""
    family = registry.family(name)
    with pytest.raises(InputError, match=said):
        family.fit(training_set(counts.astype(np.float32)), family.smoke, Training(0))


@pytest.mark.parametrize("name", LIGHT)
def test_the_least_training_set_trains(name: str) -> None:
    """One function with two steps, or one that was never called, is a training set."""
    family = registry.family(name)
    for counts in (np.ones((1, 2), np.float32), np.zeros((1, 90), np.float32)):
        keeps_the_face(family.fit(training_set(counts), family.smoke, Training(0)), counts, 3, DEFAULT_LEVELS)


# -- answers of the closed forms ---------------------------------------------------------------------------------------


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


def test_hazard_learns_through_its_family() -> None:
    """The family's training is `fit_hazard` on the set's clusters, with the strength that the settings say."""
    data = training_set(fleet())
    expert = HAZARD.fit(data, HazardSettings(strength=7.0), Training(0))
    assert isinstance(expert, HazardExpert)
    assert expert.strength == 7
    np.testing.assert_array_equal(expert.curves, fit_hazard(data.counts, data.cluster, data.clusters).curves)


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
