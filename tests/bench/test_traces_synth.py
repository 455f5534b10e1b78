"""The synthetic trace: the same bytes for a seed, and the published statistics within stated tolerances."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from mesp.errors import InputError
from mesp_bench.traces.cli import app
from mesp_bench.traces.inspection import inspect_trace
from mesp_bench.traces.load import load_trace
from mesp_bench.traces.population import TIMER_PERIODS, TRIGGER_SHARES, draw_population
from mesp_bench.traces.synth import _names, synthesize, write_synthetic

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from mesp_bench.traces.model import Trace


@pytest.fixture(scope="module")
def day() -> Trace:
    return synthesize(4_000, 1, seed=3)


def app_totals(trace: Trace) -> npt.NDArray[np.float64]:
    _, index = np.unique(trace.apps, return_inverse=True)
    return np.bincount(index, trace.counts.sum(axis=1, dtype=np.int64)).astype(np.float64)


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two runs write the same files; another seed writes others; in memory it is what the files say."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic(tmp_path / name, functions=120, days=2, seed=seed)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 6
    contents = {name: [(tmp_path / name / file).read_bytes() for file in files] for name in "abc"}
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]
    read, made = load_trace(tmp_path / "a"), synthesize(120, 2, seed=1)
    assert read.checksum == made.checksum
    assert read.functions == made.functions
    np.testing.assert_array_equal(read.counts, made.counts)
    np.testing.assert_array_equal(read.memory_mb, made.memory_mb)


@pytest.mark.parametrize(("functions", "days", "seed"), [(1, 1, 0), (7, 3, 5), (300, 2, 0), (2_500, 1, 0)])
def test_every_function_is_invoked_and_nothing_looks_wrong(functions: int, days: int, seed: int) -> None:
    """Exactly the functions asked for, each invoked, with run time and memory; inspection has no doubt."""
    trace = synthesize(functions, days, seed)
    assert trace.counts.shape == (functions, days * 1_440)
    assert trace.counts.any(axis=1).all()
    assert np.isfinite(trace.memory_mb).all()
    assert (np.diff(trace.duration_percentiles_ms, axis=1) >= 0).all()
    assert inspect_trace(trace).warnings == ()


def test_rates_are_those_published(day: Trace) -> None:
    """45 % of apps at most 1 an hour, 81 % at most 1 a minute (within 5 points), rates over 6 orders of magnitude."""
    totals = app_totals(day)
    assert np.mean(totals <= 24) == pytest.approx(0.45, abs=0.05)
    assert np.mean(totals <= 1_440) == pytest.approx(0.81, abs=0.05)
    assert totals.max() / totals.min() > 1e6


def test_few_calls_as_in_the_real_sample(day: Trace) -> None:
    """Functions of at most 5, 10, 24 invocations a day: 34, 40, 48 % of a real sample, within 7 points."""
    totals = day.counts.sum(axis=1, dtype=np.int64)
    for most, share in ((5, 0.34), (10, 0.40), (24, 0.48)):
        assert np.mean(totals <= most) == pytest.approx(share, abs=0.07)


def test_triggers_and_app_sizes_are_those_published(day: Trace) -> None:
    """Trigger shares within 3 points, and 54 % of apps have one function, 95 % at most ten, within 5."""
    for trigger, share in TRIGGER_SHARES.items():
        assert np.mean([t == trigger for t in day.triggers]) == pytest.approx(share, abs=0.03)
    _, sizes = np.unique(day.apps, return_counts=True)
    assert np.mean(sizes == 1) == pytest.approx(0.54, abs=0.05)
    assert np.mean(sizes <= 10) == pytest.approx(0.95, abs=0.05)


def test_run_times_and_memory_are_those_published(day: Trace) -> None:
    """Median mean run time 0.6 to 0.8 s; an app's median average memory 125 to 160 MB, 90 % under 400 MB."""
    assert 600 < np.median(day.duration_ms) < 800
    memory = np.array(sorted(dict(zip(day.apps, day.app_memory_mb, strict=True)).values()))
    assert 125 < np.median(memory) < 160
    assert np.mean(memory < 400) > 0.9


def test_timers_keep_time(day: Trace) -> None:
    """A timer's gaps are one whole period; functions that no clock drives are bursty: half have a CV over 1."""
    variation = []
    for counts, trigger in zip(day.counts, day.triggers, strict=True):
        gaps = np.diff(np.flatnonzero(counts))
        if trigger == "timer" and len(gaps):
            assert len(set(gaps.tolist())) == 1
            assert gaps[0] in TIMER_PERIODS
        elif len(gaps) >= 3:
            variation.append(gaps.std() / gaps.mean())
    assert 0.35 < np.mean(np.array(variation) > 1) < 0.65


def test_chained_functions_answer_one_minute_later() -> None:
    """Invocations of a chained function follow its parent's in the minute before, but for its sure one; also overnight."""
    trace = synthesize(800, 2, seed=5)
    people = draw_population(800, 2, np.random.default_rng([5, 0]))
    # Functions that were silent on day 1 are listed last: find each by the order of its app's ids.
    order = {key.name.split("/")[1]: row for row, key in enumerate(trace.functions)}
    rows = np.array([order[name.function] for name in _names(people, 5)])
    chained = np.flatnonzero(people.habit == "chained")
    assert len(chained) > 20
    for child in chained:
        own = trace.counts[rows[child]].astype(np.int64)
        own[people.anchor[child]] -= 1
        before = np.concatenate([[0], trace.counts[rows[people.parent[child]]][:-1].astype(np.int64)])
        assert (own <= before).all()
    overnight = [trace.counts[rows[child], 1_440] for child in chained]
    assert any(overnight)


def test_rates_drift_and_apps_come_and_go() -> None:
    """Over 7 days, steady apps aside, rates change by more than twice from block to block for some 5 to 30 % (13 % of
    real apps), and some apps appear late or vanish early."""
    trace = synthesize(1_000, 7, seed=2)
    _, index = np.unique(trace.apps, return_inverse=True)
    blocks = trace.counts.reshape(len(index), -1, 504).sum(axis=2, dtype=np.int64)
    per_app = np.stack([np.bincount(index, block) for block in blocks.T], axis=1)
    before, after = per_app[:, :-1], per_app[:, 1:]
    busy = (before > 20) & (after > 20)
    jumps = np.abs(np.log(after[busy] / before[busy])) > np.log(2)
    assert 0.05 < jumps.mean() < 0.30
    steady = per_app.mean(axis=1) > 50
    silent_start = (per_app[steady, :3] == 0).all(axis=1).mean()
    silent_end = (per_app[steady, -3:] == 0).all(axis=1).mean()
    assert 0.01 < silent_start < 0.15
    assert 0.01 < silent_end < 0.15


def test_days_and_weekends_have_shape() -> None:
    """Functions of no clock are busier around 15:00 than at 03:00, and on weekdays than at weekends."""
    trace = synthesize(1_000, 7, seed=4)
    totals = trace.counts.sum(axis=1, dtype=np.int64)
    quiet = (totals < 7 * 1_440) & np.array([trigger == "http" for trigger in trace.triggers])
    days = np.minimum(trace.counts[quiet], 5).reshape(int(quiet.sum()), 7, 24, 60).sum(axis=(0, 3), dtype=np.int64)
    assert days[:, 14:16].sum() > 1.2 * days[:, 2:4].sum()
    assert days[:5].mean() > 1.1 * days[5:].mean()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"functions": 0}, "functions = 0"),
        ({"functions": 100_001}, "100001"),
        ({"days": 100}, "days"),
        ({"seed": -1}, "seed"),
    ],
)
def test_numbers_out_of_range_are_told(tmp_path: Path, change: dict[str, int], told: str) -> None:
    """A number out of range names itself and its range; nothing is written."""
    numbers = {"functions": 1, "days": 1, "seed": 0} | change
    with pytest.raises(InputError, match=told):
        write_synthetic(tmp_path / "out", functions=numbers["functions"], days=numbers["days"], seed=numbers["seed"])
    assert list(tmp_path.iterdir()) == []


def test_commands(tmp_path: Path) -> None:
    """synth, convert and inspect work one on the other's output, and JSON is machine-readable."""
    run = CliRunner().invoke
    made, cache = tmp_path / "made", tmp_path / "cache"
    assert run(app, ["synth", "--out", str(made), "--functions", "20", "--seed", "4"]).exit_code == 0
    assert run(app, ["convert", str(made), "--out", str(cache), "--format", "parquet"]).exit_code == 0
    seen = [json.loads(run(app, ["inspect", str(path), "--json"]).stdout) for path in (made, cache)]
    assert seen[0] == seen[1]
    assert seen[0]["functions"] == 20
    table = run(app, ["inspect", str(made)]).stdout
    assert "20 of" in table
    assert "Nothing looks wrong" in table
    few = json.loads(run(app, ["inspect", str(made), "--json", "--max-functions", "3"]).stdout)
    assert few["functions"] == 3
    refused = run(app, ["synth", "--out", str(made)])
    assert isinstance(refused.exception, InputError)
