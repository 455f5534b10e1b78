"""Converting traces: what is written reads back the same, or nothing is written."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.traces.convert import Format, convert_trace, new_folder
from mesp_bench.traces.load import load_trace
from mesp_bench.traces.model import Trace

positive = st.floats(1e-3, 1e9)
ids = st.text("abcdef0123456789", min_size=1, max_size=8)


@st.composite
def traces(draw: st.DrawFn, *, official: bool) -> Trace:
    """Any trace; an official one has no arrivals, and memory that apps share."""
    keys = draw(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=6, unique=True))
    start = draw(st.integers(0, 3_000))
    counts = np.zeros((len(keys), draw(st.integers(1, 3_000))), dtype=np.uint32)
    for _ in range(draw(st.integers(0, 10))):
        at = draw(st.integers(0, len(keys) - 1)), draw(st.integers(0, counts.shape[1] - 1))
        counts[at] = draw(st.integers(1, 2**32 - 1))
    app_mb = {app: draw(st.one_of(st.just(np.nan), positive)) for app in sorted({key[:2] for key in keys})}
    number = [sum(key[:2] == other[:2] for other in keys) for key in keys]
    duration = np.array([draw(st.one_of(st.just(np.nan), positive)) for _ in keys])
    percentiles = np.array([draw(hnp.arrays(np.float64, 7, elements=positive)) for _ in keys])
    percentiles[np.isnan(duration)] = np.nan
    arrivals = None
    if not official and draw(st.booleans()):
        arrivals = tuple(np.sort(draw(hnp.arrays(np.float64, st.integers(0, 4), elements=positive))) for _ in keys)
    recorded = np.array([app_mb[key[:2]] for key in keys])
    return Trace(
        name="trace",
        functions=tuple(FunctionKey(owner, f"{app}/{function}") for owner, app, function in keys),
        counts=counts,
        start_minute=start,
        apps=tuple(f"{owner}/{app}" for owner, app, _ in keys),
        triggers=tuple(draw(st.sampled_from(["http", "timer"])) for _ in keys),
        memory_mb=recorded / number,
        app_memory_mb=recorded,
        duration_ms=duration,
        duration_percentiles_ms=percentiles,
        arrivals_s=arrivals,
        checksum="0" * 64,
        duration_count=draw(st.one_of(st.none(), st.just(counts.sum(axis=1, dtype=np.int64)))),
    )


def assert_same(a: Trace, b: Trace) -> None:
    for field in ("name", "functions", "start_minute", "apps", "triggers", "checksum"):
        assert getattr(a, field) == getattr(b, field)
    for field in ("counts", "memory_mb", "app_memory_mb", "duration_ms", "duration_percentiles_ms", "duration_count"):
        x, y = getattr(a, field), getattr(b, field)
        np.testing.assert_array_equal(x, y)
        assert (x is None) == (y is None)
        assert x is None or x.dtype == y.dtype
    assert (a.arrivals_s is None) == (b.arrivals_s is None)
    for x, y in zip(a.arrivals_s or (), b.arrivals_s or (), strict=True):
        np.testing.assert_array_equal(x, y)


@settings(max_examples=40, deadline=None)
@given(trace=traces(official=False))
def test_parquet_reads_back_identically(trace: Trace) -> None:
    """The cache keeps everything of any trace, to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        convert_trace(trace, Path(folder) / "out", Format.PARQUET)
        assert_same(load_trace(Path(folder) / "out"), trace)


@settings(max_examples=40, deadline=None)
@given(trace=traces(official=True))
def test_official_files_read_back_identically(trace: Trace) -> None:
    """The official files keep any window of minutes, days split; name and checksum are those of the new files."""
    with tempfile.TemporaryDirectory() as folder:
        convert_trace(trace, Path(folder) / "out", Format.AZURE2019)
        back = load_trace(Path(folder) / "out")
    counted = np.where(np.isfinite(trace.duration_ms), trace.counts.sum(axis=1, dtype=np.int64), -1)
    assert_same(replace(back, name=trace.name, checksum=trace.checksum), replace(trace, duration_count=counted))


def small_trace() -> Trace:
    return Trace(
        name="small",
        functions=(FunctionKey("o", "a/f"), FunctionKey("o", "a/g")),
        counts=np.array([[1, 0, 2], [0, 3, 0]], dtype=np.uint32),
        start_minute=0,
        apps=("o/a", "o/a"),
        triggers=("http", "http"),
        memory_mb=np.array([50.0, 50.0]),
        app_memory_mb=np.array([100.0, 100.0]),
        duration_ms=np.array([np.nan, 10.0]),
        duration_percentiles_ms=np.full((2, 7), np.nan),
        arrivals_s=None,
        checksum="0" * 64,
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that holds anything, or a file, is refused and left as it was; an empty folder is taken."""
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    empty.mkdir()
    file.write_text("file")
    for out in (full, file):
        with pytest.raises(InputError, match="nothing is overwritten"):
            convert_trace(small_trace(), out, Format.PARQUET)
    assert (full / "mine.txt").read_text() == "mine"
    convert_trace(small_trace(), empty, Format.PARQUET)
    assert load_trace(empty).counts.tolist() == [[1, 0, 2], [0, 3, 0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """If writing stops midway, neither the folder nor a temporary one remains."""

    def stop() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_days_past_the_schema_are_refused(tmp_path: Path) -> None:
    """The official schema numbers days 01 to 99: a later one is told, not written."""
    with pytest.raises(InputError, match="reaches day 100"):
        convert_trace(replace(small_trace(), start_minute=99 * 1_440), tmp_path / "out", Format.AZURE2019)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("trace.parquet", b"x", "not the file its manifest describes"),
        ("manifest.json", b"{", "no manifest"),
        ("manifest.json", b"[]", "key format"),
        ("manifest.json", json.dumps({"format": "mesp-trace-1", "name": 3}).encode(), "key name"),
    ],
)
def test_damaged_caches_are_told(tmp_path: Path, file: str, change: bytes, told: str) -> None:
    """A cache that is damaged, foreign or of another version is an error in a sentence."""
    convert_trace(small_trace(), tmp_path / "out", Format.PARQUET)
    (tmp_path / "out" / file).write_bytes(change)
    with pytest.raises(InputError, match=told):
        load_trace(tmp_path / "out")


def test_another_version_is_told(tmp_path: Path) -> None:
    """A cache of a later format is refused by its name."""
    convert_trace(small_trace(), tmp_path / "out", Format.PARQUET)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("mesp-trace-1", "mesp-trace-2"))
    with pytest.raises(InputError, match="'mesp-trace-2' is not allowed; expected 'mesp-trace-1'"):
        load_trace(tmp_path / "out")


def test_progress_ends_at_one(tmp_path: Path) -> None:
    """Progress rises to 1."""
    told: list[float] = []
    convert_trace(small_trace(), tmp_path / "out", Format.AZURE2019, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
