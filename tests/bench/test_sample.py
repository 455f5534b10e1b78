"""Samples: never above the limits, the same for the same seed, every habit still there, nothing made up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.sample import Pattern, pattern_of, sample_trace
from mesp_bench.traces.cli import app
from mesp_bench.traces.load import load_trace
from mesp_bench.traces.model import Trace

DATA = Path(os.environ.get("MESP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def make_trace(counts: np.ndarray, *, arrivals: bool = False) -> Trace:
    number = len(counts)
    times = None
    if arrivals:
        times = tuple(
            np.concatenate(
                [60.0 * minute + np.linspace(0, 59, int(n)) for minute, n in enumerate(row)] or [np.empty(0)]
            )
            for row in counts
        )
    return Trace(
        name="trace",
        functions=tuple(FunctionKey("owner", f"app/f{row}") for row in range(number)),
        counts=counts.astype(np.uint32),
        start_minute=0,
        apps=("owner/app",) * number,
        triggers=("http",) * number,
        memory_mb=np.full(number, 128.0),
        app_memory_mb=np.full(number, 128.0),
        duration_ms=np.full(number, 100.0),
        duration_percentiles_ms=np.full((number, 7), 100.0),
        arrivals_s=times,
        checksum="0" * 64,
        duration_count=counts.sum(axis=1).astype(np.int64),
    )


counts_of = hnp.arrays(
    np.uint32,
    st.tuples(st.integers(1, 12), st.integers(1, 40)),
    elements=st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 5_000)),
)


@settings(deadline=None, max_examples=60)
@given(counts=counts_of, functions=st.integers(1, 15), rate_per_s=st.floats(0.005, 30), seed=st.integers(0, 99))
def test_a_sample_stays_within_its_limits_and_makes_nothing_up(
    counts: np.ndarray, functions: int, rate_per_s: float, seed: int
) -> None:
    """At most so many functions and calls a minute; each function is one of the trace, and its counts only shrink."""
    if not counts.any():
        counts[0, 0] = 1
    trace = make_trace(counts, arrivals=int(counts.sum()) < 20_000)
    sampled, note = sample_trace(trace, functions=functions, rate_per_s=rate_per_s, seed=seed)
    assert 1 <= len(sampled.functions) <= functions
    assert sampled.counts.sum(axis=0).max() <= 60 * rate_per_s
    rows = [trace.functions.index(function) for function in sampled.functions]
    assert rows == sorted(set(rows))
    assert (trace.counts[rows].sum(axis=1) > 0).all()
    assert (sampled.counts <= trace.counts[rows]).all()
    assert note.functions == len(rows) == sum(kept for kept, _ in note.patterns.values())
    assert note.invocations == sampled.counts.sum()
    assert (sampled.counts == trace.counts[rows]).all() == (
        note.thinning == 1 or note.invocations == note.of_invocations
    )
    if sampled.arrivals_s is not None:
        assert trace.arrivals_s is not None
        for at, row in enumerate(rows):
            times = sampled.arrivals_s[at]
            assert set(times) <= set(trace.arrivals_s[row])
            assert (np.diff(times) >= 0).all()
            minutes = np.bincount((times // 60).astype(int), minlength=trace.minutes)
            np.testing.assert_array_equal(minutes, sampled.counts[at])


@settings(deadline=None, max_examples=20)
@given(counts=counts_of, seed=st.integers(0, 99))
def test_the_same_seed_takes_the_same_sample(counts: np.ndarray, seed: int) -> None:
    """Chosen functions and thinned counts are a function of trace and seed."""
    counts[0, 0] += 1
    first, again = (sample_trace(make_trace(counts), functions=4, rate_per_s=2, seed=seed) for _ in range(2))
    assert first[0].functions == again[0].functions
    np.testing.assert_array_equal(first[0].counts, again[0].counts)
    assert first[1] == again[1]


def habits() -> dict[Pattern, np.ndarray]:
    """One function of each pattern over 600 minutes."""
    minutes = np.arange(600)
    rng = np.random.default_rng(1)
    bursts = np.isin(minutes // 10, (3, 20, 47))
    return {
        Pattern.RARE: minutes == 300,
        Pattern.BUSY: np.full(600, 7),
        Pattern.PERIODIC: minutes % 15 == 4,
        Pattern.BURSTY: 3 * bursts,
        Pattern.IRREGULAR: np.isin(minutes, np.cumsum(5 + rng.poisson(20, 20) * rng.integers(1, 3, 20))),
    }


@pytest.mark.parametrize("pattern", list(Pattern))
def test_patterns_are_told_apart(pattern: Pattern) -> None:
    """A lone call is rare, a clock periodic, and so on."""
    assert pattern_of(habits()[pattern].astype(np.uint32)) is pattern


def test_every_pattern_has_a_place_and_the_large_ones_their_share() -> None:
    """Of 90 rare functions and one of each other pattern, ten places hold one of each other pattern and six rare ones."""
    one = habits()
    counts = np.array([one[Pattern.RARE]] * 90 + [one[pattern] for pattern in Pattern if pattern is not Pattern.RARE])
    _, note = sample_trace(make_trace(counts), functions=10)
    assert note.patterns == {"rare": (6, 90), "busy": (1, 1), "periodic": (1, 1), "bursty": (1, 1), "irregular": (1, 1)}


def test_quiet_and_loud_functions_of_a_pattern_are_both_there() -> None:
    """Of 100 busy functions called 1 to 100 times a minute, ten taken lie in every tenth of that range."""
    counts = np.repeat(np.arange(1, 101)[:, None], 50, axis=1)
    sampled, _ = sample_trace(make_trace(counts), functions=10, rate_per_s=1_000)
    assert sorted((sampled.counts[:, 0] - 1) // 10) == list(range(10))


def test_only_the_loud_are_thinned_and_by_one_factor() -> None:
    """Two functions far above the limit keep their ratio; the quiet third keeps every call."""
    counts = np.stack([np.full(200, 4_000), np.full(200, 1_000), np.full(200, 2)])
    sampled, note = sample_trace(make_trace(counts), functions=3, rate_per_s=10)
    assert note.thinned_functions == 2
    assert 0.08 < note.thinning < 0.12
    np.testing.assert_array_equal(sampled.counts[2], counts[2])
    np.testing.assert_allclose(sampled.counts[:2].sum(axis=1) / counts[:2].sum(axis=1), note.thinning, rtol=0.03)
    assert sampled.duration_count is not None
    assert sampled.duration_count.tolist() == [-1, -1, 400]
    assert "2 functions thinned" in str(note)


@pytest.mark.parametrize(
    ("functions", "rate_per_s", "seed"), [(0, 1.0, 0), (1, 0.0, 0), (1, float("nan"), 0), (1, 1.0, -1)]
)
def test_impossible_limits_are_told(functions: int, rate_per_s: float, seed: int) -> None:
    """A limit that is none is an error in a sentence."""
    with pytest.raises(InputError, match="functions must be at least 1"):
        sample_trace(make_trace(np.ones((2, 2))), functions=functions, rate_per_s=rate_per_s, seed=seed)


def test_a_silent_trace_is_told() -> None:
    """There is nothing to sample where nothing was invoked."""
    with pytest.raises(InputError, match="no invocation"):
        sample_trace(make_trace(np.zeros((2, 2))))


def test_the_command_writes_a_trace_and_what_was_kept(tmp_path: Path) -> None:
    """`mesp trace sample` leaves a trace that loads, and sample.json beside it."""
    run = CliRunner().invoke(app, ["synth", "--out", str(tmp_path / "whole"), "--functions", "60"])
    assert run.exit_code == 0, run.output
    arguments = ["--trace", str(tmp_path / "whole"), "--out", str(tmp_path / "small"), "--functions", "12"]
    run = CliRunner().invoke(app, ["sample", *arguments, "--rate-per-s", "2"])
    assert run.exit_code == 0, run.output
    sampled = load_trace(tmp_path / "small")
    note = json.loads((tmp_path / "small" / "sample.json").read_text())
    assert note["functions"] == len(sampled.functions) == 12
    assert note["peak_per_minute"] == sampled.counts.sum(axis=0).max() <= 120
    assert "12 of 60 functions" in run.output


@pytest.mark.skipif(not (DATA / "azure2019-d01-a").is_dir(), reason="the real traces are not here (MESP_DATA)")
def test_a_real_trace_keeps_every_pattern() -> None:
    """30 functions of the real trace hold each pattern in its share, to a place."""
    trace = load_trace(DATA / "azure2019-d01-a")
    sampled, note = sample_trace(trace, seed=1)
    assert sampled.counts.sum(axis=0).max() <= 1_200
    assert set(note.patterns) == set(Pattern)
    for kept, of in note.patterns.values():
        assert abs(kept - 30 * of / 198) <= 1
