"""Patterns read sequences: what follows a gap, what followed an earlier stretch, and whom each function should trust."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp_predictor import patterns
from mesp_predictor.losses import log_loss
from mesp_predictor.statistics import FEATURES, Statistics


def learned(history: np.ndarray) -> Statistics:
    """Statistics of one function after its activity, (M,)."""
    statistics = Statistics.empty(1)
    for active in history:
        statistics.update(np.array([active], np.float32))
    return statistics


def feature(statistics: Statistics, name: str, ahead: int = 0) -> float:
    return float(statistics.features(ahead + 1)[0, ahead, FEATURES.index(name)])


def alternating(short: int, long: int, steps: int) -> np.ndarray:
    """Active after a short gap, then a long one, and again."""
    cycle = np.zeros(short + long)
    cycle[[0, short]] = 1
    return np.resize(cycle, steps)


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 2**64 - 1))
def test_bits_are_counted(word: int) -> None:
    """As Python counts them."""
    assert patterns.bits_set(np.uint64(word)) == word.bit_count()


@pytest.mark.parametrize(("at", "expected"), [(4, True), (11, False)])
def test_the_gap_that_follows_is_told_by_the_gaps_before(at: int, expected: bool) -> None:
    """Gaps alternate between 4 and 11 steps: after a long one the short one is due, after a short one it is not."""
    history = alternating(4, 11, 15 * 12 + at)[: 15 * 12 + 4 if expected else 15 * 12 + 4 + 4]
    statistics = learned(history)
    assert statistics.gap[0] == 4  # four steps since the last: due only where the gap before was the long one
    odds = feature(statistics, "after_gaps_0")
    assert (odds > 1) == expected
    assert abs(feature(statistics, "hazard_all")) < 1  # lengths alone cannot tell


def test_what_followed_the_same_stretch_is_expected_again() -> None:
    """A rhythm of 15 steps seen 20 times: stretches longer than its longest silence know what comes in the next."""
    history = alternating(4, 11, 15 * 20)
    statistics = learned(history)
    following = alternating(4, 11, 15)
    for length in patterns.STRETCHES[1:]:
        said = [feature(statistics, f"analogues_{length}", h) for h in range(15)]
        assert [odds > 0 for odds in said] == following.astype(bool).tolist()


def test_a_function_never_invoked_has_no_analogues() -> None:
    """Silence is no stretch to be compared: there is no evidence."""
    statistics = learned(np.zeros(200))
    assert all(feature(statistics, f"analogues_{length}_seen") == 0 for length in patterns.STRETCHES)


def test_the_mixer_learns_whom_to_trust() -> None:
    """Of three readings one foretells, one misleads, one is noise: the mixer comes to beat the even mean of them."""
    rng = np.random.default_rng(0)
    active = rng.random(2_000) < 0.5
    sign = np.where(active, 1.5, -1.5)
    readings = np.stack([sign, -0.8 * sign, rng.normal(size=2_000)], axis=1)
    weights = np.full((len(patterns.MIXER_RATES), 3), 1 / 3)
    odds = np.zeros(2_000)
    for t in range(2_000):
        odds[t] = patterns.mixed(weights[1], readings[t])
        patterns.learn(weights, readings[t], active[t])
    late = slice(1_000, None)
    mixer, even = (1 / (1 + np.exp(-o[late])) for o in (odds, readings.mean(axis=1)))
    assert log_loss(active[late], mixer) < 0.5 * log_loss(active[late], even)
    assert weights[1, 0] > weights[1, 2] > weights[1, 1]


def test_the_mixer_of_a_rhythm_beats_its_rate() -> None:
    """On a rhythm seen for half an hour the mixer's log odds are far better than the mean rate, without any training."""
    history = alternating(4, 11, 600)
    statistics = Statistics.empty(1)
    said = []
    for active in history:
        said.append(feature(statistics, "mixer_1"))
        statistics.update(np.array([active], np.float32))
    probability = 1 / (1 + np.exp(-np.array(said[300:])))
    rate = np.full(300, history.mean())
    assert log_loss(history[300:], probability) < 0.2 * log_loss(history[300:], rate)
