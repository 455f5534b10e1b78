"""Running statistics against what a reader would count by hand from the whole history."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.types import FunctionKey, Trigger
from mesp_predictor import kernels
from mesp_predictor.kernels import LAGS, LONGEST_GAP, PERIODS, WINDOWS
from mesp_predictor.statistics import FEATURES, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FloatArray

NAN = math.nan
ARRAYS = tuple(field.name for field in dataclasses.fields(Statistics) if field.init and field.name != "step")

#: A history as runs of equal counts, so that long silences and outages are as likely as dense traffic.
runs = st.lists(st.tuples(st.sampled_from([0.0, 0.0, 1.0, 7.0, NAN]), st.sampled_from([1, 1, 2, 3, 5, 17, 61, 600])))
complete_runs = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([1, 1, 2, 3, 5, 17])), max_size=30)


def history_of(drawn: list[tuple[float, int]]) -> list[float]:
    return [count for count, length in drawn for _ in range(length)][:1500]


def learned(*histories: list[float], step: int = 0) -> Statistics:
    statistics = Statistics.empty(len(histories), step)
    for column in np.array(histories, np.float32).T:
        statistics.update(column)
    return statistics


def active_steps(history: list[float]) -> list[int]:
    return [t for t, count in enumerate(history) if count > 0]


def gaps_of(history: list[float]) -> list[int]:
    return [min(b - a, LONGEST_GAP) for a, b in itertools.pairwise(active_steps(history))]


def feature(statistics: Statistics, name: str, ahead: int = 0) -> float:
    return float(statistics.features(ahead + 1)[0, ahead, FEATURES.index(name)])


# -- against brute force -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(runs, st.integers(0, 30_000_000))
def test_gaps_and_windows_are_those_of_the_history(drawn: list[tuple[float, int]], step: int) -> None:
    """Gap, counters, windows, histograms, latest gaps and what followed are what the history holds."""
    history = history_of(drawn)
    statistics = learned(history, step=step)
    active, gaps = active_steps(history), gaps_of(history)
    known = [count for count in history if not math.isnan(count)]
    assert statistics.step == step + len(history)
    assert statistics.age[0] == (len(known) if known else -1)
    assert statistics.gap[0] == (len(history) - active[-1] if active else 0)
    assert (statistics.active_steps[0], statistics.gaps_seen[0]) == (len(active), len(gaps))
    for window, counted in zip(WINDOWS, statistics.windows[0], strict=True):
        assert counted == sum(t >= len(history) - window for t in active)
    np.testing.assert_array_equal(statistics.histogram[0], np.bincount(gaps, minlength=LONGEST_GAP + 1))
    recent = np.zeros(LONGEST_GAP + 1)
    for back, gap in enumerate(reversed(gaps)):
        recent[gap] += 0.93**back
    np.testing.assert_allclose(statistics.recent_histogram[0], recent, rtol=1e-4, atol=1e-6)
    assert sorted(statistics.latest_gaps[0, : len(gaps)]) == sorted(gaps[-kernels.GAPS_KEPT :])
    assert tuple(statistics.previous[0]) == tuple([*reversed(gaps), 0, 0][:2])
    assert dict(itertools.pairwise([0, *gaps])).items() <= dict(enumerate(statistics.follower[0])).items()


@settings(max_examples=40, deadline=None)
@given(runs)
def test_gap_statistics_are_moments_and_quantiles_of_the_latest_log_gaps(drawn: list[tuple[float, int]]) -> None:
    """Mean, spread and quantiles are numpy's over the logs of the 64 latest gaps."""
    history = history_of(drawn)
    latest = np.log(gaps_of(history)[-kernels.GAPS_KEPT :])
    expected = [latest.mean(), latest.std(), *np.quantile(latest, kernels.QUANTILES)] if len(latest) else [0.0] * 7
    np.testing.assert_allclose(learned(history).gap_statistics[0], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(runs)
def test_smoothed_means_skip_what_is_missing(drawn: list[tuple[float, int]]) -> None:
    """Activity, log counts and TSB are the plain recursions over the observed steps alone."""
    history = history_of(drawn)
    activity, log_counts, probability, size = np.zeros(5), np.zeros(3), 0.0, None
    for count in (count for count in history if not math.isnan(count)):
        active = float(count > 0)
        activity += (1 - 0.5 ** (1 / np.array(kernels.HALF_LIVES))) * (active - activity)
        log_counts += (1 - 0.5 ** (1 / np.array(kernels.COUNT_HALF_LIVES))) * (np.log1p(count) - log_counts)
        probability += 0.05 * (active - probability)
        if active:
            size = count if size is None else size + 0.1 * (count - size)
    statistics = learned(history)
    np.testing.assert_allclose(statistics.activity[0], activity, atol=1e-4)
    np.testing.assert_allclose(statistics.log_counts[0], log_counts, atol=1e-4)
    np.testing.assert_allclose(statistics.tsb[0], [probability, size or 0.0], atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(complete_runs, st.integers(0, 10_000), st.integers(0, 250))
def test_phase_shares_are_those_of_past_cycles(drawn: list[tuple[float, int]], step: int, ahead: int) -> None:
    """The share is the weighted mean over all past steps at that phase, the latest weighing 1, the one before 0.9."""
    history = history_of(drawn)
    shares = learned(history, step=step).phase_shares(ahead + 1)[0, ahead]
    rate = (len(active_steps(history)) + 0.1) / (len(history) + 1)
    for period, share in zip(PERIODS, shares, strict=True):
        past = [history[t] > 0 for t in reversed(range(len(history))) if (len(history) + ahead - t) % period == 0]
        weights = 0.9 ** np.arange(len(past))
        expected = (weights @ np.array(past, float) + 0.3 * rate) / (weights.sum() + 0.3)
        assert share == pytest.approx(expected, abs=2e-4)


@settings(max_examples=30, deadline=None)
@given(runs, st.integers(0, 260), st.integers(0, 10_000))
def test_lags_read_the_ring_at_the_right_step(drawn: list[tuple[float, int]], ahead: int, step: int) -> None:
    """lag_L of the target step is whether the step L before it was active, 0.5 where that is unborn or in the future."""
    history = history_of(drawn)
    statistics = learned(history, step=step)
    for lag in LAGS:
        back = lag - ahead
        known = 0 < back <= statistics.age[0]
        expected = float(history[-back] > 0) if known else 0.5
        assert feature(statistics, f"lag_{lag}", ahead) == expected


def test_positive_quantiles_are_of_the_latest_counts() -> None:
    """Values run from the least to the largest of the 16 latest positive counts, expected at 16/17; 1 where none was."""
    history = [*(float(n) for n in range(1, 21)), 0.0, NAN]
    values, levels = learned(history, [0.0] * len(history)).positive_quantiles()
    np.testing.assert_allclose(values[0, :16], np.arange(5, 21))
    np.testing.assert_array_equal(values[1], 1)
    np.testing.assert_allclose(levels, [*(i / 15 for i in range(15)), 16 / 17, 0.99, 1], rtol=1e-6)


def test_positive_counts_may_be_larger_than_any_seen() -> None:
    """Past the largest the tail is exponential: three quarters of the upper half's slope per unit of -log(1 - level)."""
    values, _ = learned([float(n) for n in range(5, 21)], [7.0] * 16).positive_quantiles()
    slope = 0.75 * (18 - 13) / math.log(5)
    expected = [20 + slope * math.log((1 / 17) / above) for above in (0.01, 0.001)]
    np.testing.assert_allclose(values[0, 16:], expected, rtol=1e-5)
    np.testing.assert_array_equal(values[1], 7)  # what never varied is not taken to


# -- what is missing, and who is who -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(runs, st.integers(1, 700))
def test_missing_steps_teach_nothing(drawn: list[tuple[float, int]], outage: int) -> None:
    """After an outage only the running gap and the windows have moved on; a function unborn before it stays unborn."""
    history = history_of(drawn)
    before, after = learned(history), learned([*history, *[NAN] * outage])
    for name in set(ARRAYS) - {"gap", "windows", "ring"}:
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name), name)
    assert after.gap[0] == before.gap[0] + (outage if before.gap[0] else 0)
    shown = after.ring[0, (after.step - 1 - np.arange(min(outage, kernels.RECENT))) % kernels.RECENT]
    assert not shown.any()


@settings(max_examples=20, deadline=None)
@given(st.lists(runs.map(history_of), min_size=2, max_size=4))
def test_rows_do_not_touch_each_other(histories: list[list[float]]) -> None:
    """Every row of a batch is what the function alone would be."""
    length = max(map(len, histories))
    padded = [[NAN] * (length - len(history)) + history for history in histories]
    together = learned(*padded)
    for row, history in enumerate(padded):
        alone = learned(history)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(together, name)[row], getattr(alone, name)[0], name)


def test_features_are_laid_out_once_and_never_stale() -> None:
    """Whoever asks before the next change reads the same array, the nearer steps first; after a change it is anew."""
    statistics = learned([1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    laid = statistics.features(5)
    assert np.shares_memory(statistics.features(2), laid)
    np.testing.assert_array_equal(statistics.features(9)[:, :5], laid)
    changes: tuple[Callable[[], None], ...] = (
        lambda: statistics.update(np.array([2.0, 0.0], np.float32)),
        lambda: statistics.put(np.array([1]), learned([0.0, 0.0, 3.0, 3.0])),
        lambda: statistics.grow(3),
    )
    for change in changes:
        before = statistics.features(9).copy()
        change()
        now = statistics.features(9)
        assert not np.array_equal(now, before)
        np.testing.assert_array_equal(now, dataclasses.replace(statistics).features(9))


def test_take_put_and_grow_keep_rows_apart() -> None:
    """A taken row is a copy, a put row replaces that row alone, a grown row is one never observed."""
    statistics = learned([1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    copy = statistics.take(np.array([1]))
    copy.update(np.array([5.0], np.float32))
    assert (copy.active_steps[0], statistics.active_steps[1]) == (2, 1)
    before = statistics.take(np.array([0]))
    statistics.put(np.array([1]), learned([1.0, 1.0, 1.0]))
    assert statistics.active_steps.tolist() == [2, 3]
    statistics.grow(4)
    assert len(statistics) == 4
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(statistics, name)[0], getattr(before, name)[0], name)
        np.testing.assert_array_equal(getattr(statistics, name)[3], getattr(Statistics.empty(1), name)[0], name)
    statistics.update(np.array([0, 1, NAN, 1], np.float32))
    assert statistics.age.tolist() == [4, 4, -1, 1]


def test_counts_may_come_as_a_column_of_anything() -> None:
    """A strided column of doubles teaches the same as a dense one of floats."""
    counts = np.array([[0, 1], [2, 0]], np.float64)
    one, two = Statistics.empty(2), Statistics.empty(2)
    one.update(counts[:, 1])  # type: ignore[arg-type]
    two.update(np.array([1, 0], np.float32))
    np.testing.assert_array_equal(one.features(3), two.features(3))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["f", "x/f", "x/g", "y/f"])), min_size=1, max_size=5),
    st.data(),
)
def test_related_is_what_the_others_of_the_app_and_of_the_owner_did(
    names: list[tuple[str, str]], data: st.DataObject
) -> None:
    """By brute force over all pairs; a function without an app has no app's others, and nobody is its own relative."""
    keys = [FunctionKey(*name) for name in names]
    cells = st.lists(st.sampled_from([0.0, 0.0, 2.0, NAN]), min_size=len(keys), max_size=len(keys))
    columns = data.draw(st.lists(cells, min_size=1, max_size=12))
    statistics = Statistics.empty(len(keys), keys=keys)
    for column in columns:
        statistics.update(np.array(column, np.float32))
    features = statistics.features(1)[:, 0]
    for row, key in enumerate(keys):
        app = key.name.rpartition("/")[0]
        related = {
            "app": [i for i, k in enumerate(keys) if app and k.scope == key.scope and k.name.startswith(f"{app}/")],
            "owner": [i for i, k in enumerate(keys) if k.scope == key.scope],
        }
        for relation, members in related.items():
            others = [sum(column[i] > 0 for i in members if i != row) for column in columns]
            active = [t for t, number in enumerate(others) if number]
            smooth = 0.0
            for number in others:
                smooth += (1 - 0.5 ** (1 / 8)) * ((number > 0) - smooth)
            expected = {
                "log_others_now": math.log1p(others[-1]),
                "log_others_before": math.log1p(others[-2]) if len(others) > 1 else 0,
                "log_others_gap": math.log1p(len(others) - 1 - active[-1] if active else LONGEST_GAP),
                "others_8": smooth,
            }
            found = {name: features[row, FEATURES.index(f"{relation}_{name}")] for name in expected}
            assert found == pytest.approx(expected, abs=1e-5)


def test_the_trigger_is_told_by_one_column() -> None:
    """One column of its own for each trigger, none for one that nobody knows; said anew, the features follow."""
    triggers = [Trigger.UNKNOWN, Trigger.HTTP, Trigger.OTHERS]
    statistics = Statistics.empty(3, triggers=triggers)
    columns = [FEATURES.index(f"trigger_{t.name.lower()}") for t in Trigger if t]
    np.testing.assert_array_equal(statistics.features(2)[:, 1][:, columns], np.eye(8)[triggers, 1:])
    statistics.identify(statistics.groups, np.array([Trigger.TIMER] * 3, np.int8))
    np.testing.assert_array_equal(statistics.features(2)[:, 1][:, columns], np.eye(8)[[Trigger.TIMER] * 3, 1:])


# -- features ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(runs, st.integers(1, 300), st.integers(0, 30_000_000))
def test_features_are_finite_for_any_history(drawn: list[tuple[float, int]], horizon: int, step: int) -> None:
    """Whatever was or was not observed, every feature of every step ahead is a number."""
    history = [*history_of(drawn), 4e9]
    features = learned(history[:-1], step=step).features(horizon)
    assert features.shape == (1, horizon, len(FEATURES))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.isfinite(learned(history, step=step).features(horizon)).all()


def test_features_mean_what_their_names_say() -> None:
    """Names and columns are in step: worked by hand for a function with gaps 3, 5, 3."""
    history = [0.0, 2.0, 0, 0, 4.0, 0, 0, 0, 0, 6.0, 0, 0, 8.0, 0]
    statistics = learned(history, step=46)  # the next step is 60
    expected = {
        "never": 0, "log_gap": math.log1p(2), "log_age": math.log1p(14), "log_active": math.log1p(4),
        "log_gaps": math.log1p(3), "log_ahead": math.log1p(1), "log_elapsed": math.log1p(3),
        "log_at_all": math.log1p(2), "log_survivors": math.log1p(3), "gap_mean": np.log([3, 5, 3]).mean(),
        "gap_spread": np.log([3, 5, 3]).std(), "log_gap_q50": math.log(3), "elapsed_over_q50": 0.0,
        "previous_gap": 0, "previous_gap_here": 1, "previous_gap_past": 0, "last_but_one": math.log1p(2),
        "last_but_one_here": 0, "followed": math.log1p(2), "followed_here": 0, "followed_past": 0,
        "share_2": 0.5, "share_8": 2 / 8, "lag_5": 0, "lag_20": 0.5, "log_last_count": math.log1p(8),
        "log_positive_mean": math.log1p(5), "clock_5": 0, "clock_60": 0,
        "hazard_all": math.log((2.2 / 4) / (1 - 2.2 / 4)),
    }  # fmt: skip
    found = {name: feature(statistics, name, 1) for name in expected}
    assert found == pytest.approx(expected, abs=1e-5)
    assert [feature(statistics, f"clock_{c}") for c in kernels.CLOCK] == [1] * 5


# -- renewal -----------------------------------------------------------------------------------------------------------


def renewal_by_states(hazard: FloatArray, gap: int, horizon: int) -> list[float]:
    """Follows the probability of every gap length, step by step: arrivals set it back to 1."""
    states, answer = {gap: 1.0}, []
    for _ in range(horizon):
        fired = {g: p * float(hazard[min(g, LONGEST_GAP)]) for g, p in states.items()}
        answer.append(sum(fired.values()))
        states = {g + 1 if g else 0: p - fired[g] for g, p in states.items()}
        states[1] = states.get(1, 0.0) + answer[-1]
    return answer


@settings(max_examples=40, deadline=None)
@given(runs, st.integers(0, 2**32), st.sampled_from([0.1, 2.0, 50.0]), st.integers(1, 40))
def test_renewal_is_the_chain_of_gap_lengths(
    drawn: list[tuple[float, int]], seed: int, strength: float, horizon: int
) -> None:
    """The renewal equation gives what following every gap length step by step gives, and it is a probability."""
    history = history_of(drawn)
    statistics = learned(history)
    curves = np.random.default_rng(seed).uniform(0, 1, (2, LONGEST_GAP + 1)).astype(np.float32)
    gaps = np.array(gaps_of(history), np.int64)
    ended = np.bincount(gaps, minlength=LONGEST_GAP + 1)
    survived = ended[::-1].cumsum()[::-1]
    hazard = (ended + strength * curves[1]) / (survived + strength)
    hazard[LONGEST_GAP] = curves[1, LONGEST_GAP]
    if statistics.gap[0] == 0:
        hazard[0] = curves[1, 0]
    answer = statistics.renewal(curves, np.array([1]), strength, horizon)
    assert answer.shape == (1, horizon)
    assert ((answer >= 0) & (answer <= 1)).all()
    np.testing.assert_allclose(answer[0], renewal_by_states(hazard, int(statistics.gap[0]), horizon), atol=2e-4)


def test_renewal_of_a_timer_is_its_timetable() -> None:
    """With next to no prior a period of 5 gives 1 at its steps and 0 between: three arrivals in fifteen steps."""
    statistics = learned([1.0, 0, 0, 0, 0] * 4 + [1.0, 0])
    flat = np.full((1, LONGEST_GAP + 1), 0.02, np.float32)
    answer = statistics.renewal(flat, np.array([0]), 1e-6, 15)[0]
    np.testing.assert_allclose(answer, [0, 0, 0, 1, 0] * 3, atol=1e-5)
    assert answer.sum() == pytest.approx(3, abs=1e-4)


def test_only_the_never_active_start_from_the_curve_s_first_entry() -> None:
    """Index 0 of the prior speaks for functions never active, and for no others."""
    statistics = learned([0.0] * 10, [0.0] * 9 + [1.0])
    curves = np.zeros((1, LONGEST_GAP + 1), np.float32)
    curves[0, 0] = 0.125
    answer = statistics.renewal(curves, np.array([0, 0]), 2.0, 3)
    assert answer[0].tolist() == [0.125, 0.125 * 0.875, pytest.approx(0.125 * 0.875**2)]
    assert answer[1].tolist() == [0, 0, 0]


def test_past_the_longest_gap_the_prior_speaks() -> None:
    """A daily function is not expected at every minute after eight quiet hours, however many days it kept to."""
    statistics = learned(([1.0] + [0.0] * 1439) * 8)
    prior = np.full((1, LONGEST_GAP + 1), 0.002, np.float32)
    np.testing.assert_allclose(statistics.renewal(prior, np.array([0]), 2.0, 5)[0], 0.002, atol=1e-4)


def test_a_timer_is_known_by_its_phase_within_a_few_cycles() -> None:
    """After six cycles the share at a period-5 timer's phase is near 1, and near 0 between."""
    shares = learned([0.0, 1.0, 0.0, 0.0, 0.0] * 6).phase_shares(10)[0, :, PERIODS.index(5)]
    assert (shares[[1, 6]] > 0.95).all()
    assert (np.delete(shares, [1, 6]) < 0.05).all()


def test_a_phase_seen_once_is_no_certainty_at_any_distance() -> None:
    """One active step does not promise the same phase of the next cycle, be it one step away or a hundred."""
    shares = learned([1.0, 0.0, 0.0]).phase_shares(240)
    assert shares.max() < 0.9
    assert shares.min() >= 0
