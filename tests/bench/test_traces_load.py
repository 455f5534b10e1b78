"""Loading traces: what is read from each schema, and what each kind of damage is answered with."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.traces.load import load_trace

KEYS = "HashOwner,HashApp,HashFunction"
PERCENTILES = ",".join(f"percentile_Average_{p}" for p in (0, 1, 25, 50, 75, 99, 100))
DURATIONS_HEADER = f"{KEYS},Average,Count,Minimum,Maximum,{PERCENTILES}"
MEMORY_HEADER = "HashOwner,HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct1"
INVOCATIONS = "invocations_per_function_md.anon.d{:02}.csv"
DURATIONS = "function_durations_percentiles.anon.d{:02}.csv"
MEMORY = "app_memory_percentiles.anon.d{:02}.csv"
DATA = Path(os.environ.get("MESP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def minutes(counts: dict[int, int]) -> str:
    return ",".join(str(counts.get(minute, 0)) for minute in range(1, 1_441))


def day_text(rows: dict[str, dict[int, int]]) -> str:
    header = ",".join(map(str, range(1, 1_441)))
    return "\n".join([f"{KEYS},Trigger,{header}", *(f"{key},{minutes(counts)}" for key, counts in rows.items())]) + "\n"


def tiny(rows: str, header: str = f"{KEYS},Trigger,1,2,3") -> str:
    return f"{header}\n{rows}\n"


def write_days(folder: Path) -> None:
    (folder / INVOCATIONS.format(1)).write_text(
        day_text({"o,a,f,http": {1: 5}, "o,a,g,timer": {2: 1}, "p,b,h,queue": {1_440: 7}})
    )
    (folder / (INVOCATIONS.format(2) + ".gz")).write_bytes(
        gzip.compress(day_text({"q,c,i,event": {1: 1}, "o,a,f,http": {3: 2}}).encode())
    )
    (folder / DURATIONS.format(1)).write_text(f"{DURATIONS_HEADER}\no,a,f,100,5,1,2,1,2,3,4,5,6,7\n")
    (folder / DURATIONS.format(2)).write_text(f"{DURATIONS_HEADER}\no,a,f,170,2,1,2,8,9,10,11,12,13,14\n")
    (folder / MEMORY.format(1)).write_text(f"{MEMORY_HEADER}\no,a,10,120,100\n")


def test_days_of_azure_2019_are_joined_by_function(tmp_path: Path) -> None:
    """Two days, one gzipped, stand side by side; a function missing for a day has zeros; memory is the app's, shared."""
    write_days(tmp_path)
    trace = load_trace(tmp_path)
    assert trace.functions == (
        FunctionKey("o", "a/f"),
        FunctionKey("o", "a/g"),
        FunctionKey("p", "b/h"),
        FunctionKey("q", "c/i"),
    )
    assert trace.apps == ("o/a", "o/a", "p/b", "q/c")
    assert trace.triggers == ("http", "timer", "queue", "event")
    assert trace.counts.shape == (4, 2_880)
    assert trace.counts.dtype == np.uint32
    expected = {(0, 0): 5, (1, 1): 1, (2, 1_439): 7, (3, 1_440): 1, (0, 1_442): 2}
    assert {(int(f), int(m)): int(trace.counts[f, m]) for f, m in np.argwhere(trace.counts)} == expected
    np.testing.assert_array_equal(trace.memory_mb, [60, 60, np.nan, np.nan])
    np.testing.assert_array_equal(trace.app_memory_mb, [120, 120, np.nan, np.nan])
    # 100 ms of 5 runs and 170 ms of 2 runs: 840 ms of 7 runs.
    np.testing.assert_allclose(trace.duration_ms, [120, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(trace.duration_percentiles_ms[0], np.arange(1, 8) + 7 * 2 / 7)
    assert trace.duration_count is not None
    assert trace.duration_count.tolist() == [7, -1, -1, -1]
    assert (trace.start_minute, trace.minutes, trace.arrivals_s) == (0, 2_880, None)


def test_tables_may_be_missing(tmp_path: Path) -> None:
    """Invocations alone load, with unknown run times and memory; a later day starts at its own minute."""
    (tmp_path / INVOCATIONS.format(3)).write_text(day_text({"o,a,f,http": {1: 5}}))
    trace = load_trace(tmp_path)
    assert trace.start_minute == 2_880
    assert trace.duration_count is None
    assert np.isnan([*trace.memory_mb, *trace.duration_ms, *trace.duration_percentiles_ms[0]]).all()


def test_max_functions_takes_the_first(tmp_path: Path) -> None:
    """With max_functions the trace is the first functions over all days, their memory shared among those."""
    write_days(tmp_path)
    trace = load_trace(tmp_path, max_functions=1)
    assert trace.functions == (FunctionKey("o", "a/f"),)
    assert trace.counts.sum() == 7
    assert trace.memory_mb.tolist() == [120]
    with pytest.raises(InputError, match="max_functions = 0"):
        load_trace(tmp_path, max_functions=0)


def test_checksum_is_of_the_bytes(tmp_path: Path) -> None:
    """One changed digit changes the checksum."""
    write_days(tmp_path)
    before = load_trace(tmp_path).checksum
    (tmp_path / MEMORY.format(1)).write_text(f"{MEMORY_HEADER}\no,a,10,121,100\n")
    assert load_trace(tmp_path).checksum != before


def test_invitro_window(tmp_path: Path) -> None:
    """invitro: minutes 480 to 482 start at absolute minute 479; memory is a function's own; ids may be HashFunction alone."""
    (tmp_path / "invocations.csv").write_text(tiny("o,a,f,http,1,2,3\no,a,g,http,0,0,4", f"{KEYS},Trigger,480,481,482"))
    (tmp_path / "durations.csv").write_text("HashFunction,Average,Count\nf,12.5,4\n")
    (tmp_path / "memory.csv").write_text("HashFunction,SampleCount,AverageAllocatedMb\nf,9,50\ng,9,70.0\n")
    trace = load_trace(tmp_path)
    assert trace.start_minute == 479
    assert trace.counts.tolist() == [[1, 2, 3], [0, 0, 4]]
    np.testing.assert_array_equal(trace.duration_ms, [12.5, np.nan])
    assert np.isnan(trace.duration_percentiles_ms).all()
    assert trace.memory_mb.tolist() == [50, 70]
    assert trace.app_memory_mb.tolist() == [120, 120]


def test_invitro_with_function_ids_only(tmp_path: Path) -> None:
    """Without owner, app and trigger these read unknown, and a function is its own app."""
    (tmp_path / "invocations.csv").write_text("HashFunction,1,2\nf,1.0,2\n")
    trace = load_trace(tmp_path)
    assert trace.functions == (FunctionKey("unknown", "f/f"),)
    assert (trace.apps, trace.triggers) == (("unknown/f",), ("unknown",))
    assert trace.counts.tolist() == [[1, 2]]


def test_azure_2021_arrivals(tmp_path: Path) -> None:
    """2021: an invocation arrives at end - duration, what began before the trace at 0; run times are per invocation."""
    path = tmp_path / "AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt"
    path.write_text("app,func,end_timestamp,duration\na,f,61.5,1\na,g,0.5,0.7\na,f,10,4\n")
    for trace in (load_trace(path), load_trace(tmp_path)):
        assert trace.functions == (FunctionKey("unknown", "a/f"), FunctionKey("unknown", "a/g"))
        assert trace.counts.tolist() == [[1, 1], [1, 0]]
        assert trace.arrivals_s is not None
        assert [part.tolist() for part in trace.arrivals_s] == [[6.0, 60.5], [0.0]]
        assert trace.duration_ms.tolist() == [2_500, 700]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiny("o,a,f,http,1,-2,3"), "row 2, column 2: '-2' is not allowed; expected a whole number from 0"),
        (tiny("o,a,f,http,1,2,3\no,a,g,http,1,nan,3"), "row 3, column 2: 'nan'"),
        (tiny("o,a,f,http,1,inf,3"), "row 2, column 2: 'inf'"),
        (tiny("o,a,f,http,1,2.5,3"), "row 2, column 2: '2.5'"),
        (tiny("o,a,f,http,1,4294967296,3"), "column 2: '4294967296'"),
        (tiny("o,a,f,http,1,,3"), "column 2: ''"),
        (tiny("o,,f,http,1,2,3"), "column HashApp: ''"),
        (tiny("o,a,f,http,1,2,3\no,a,g,http,1"), "row 3: 5 columns where the header has 7; the file may be cut off"),
        (tiny("o,a,f,http,1,2,3,4"), "row 2: 8 columns where the header has 7"),
        (tiny("o,a,f,http,1,2,3\no,a,f,http,1,2,3"), "row 3, column HashFunction: 'f' stands in row 2 already"),
        (tiny("o,a,f,http,1,2,3", f"{KEYS},Trigger,1,2,2"), "row 1: column '2' stands twice"),
        (tiny("o,a,f,http,1,2,3", f"{KEYS},Trigger,1,2,4"), "row 1: column '4' is not allowed; expected 3"),
        (tiny("o,a,f,http,1,2,3", f"{KEYS},Trigger,a,2,4"), "row 1: column 'a' is not allowed"),
        (tiny("o,a,f,http", f"{KEYS},Trigger"), "no minute columns"),
        (tiny("o,a,http,1,2,3", "HashOwner,HashApp,Trigger,1,2,3"), "column 'HashFunction' is missing"),
        ("", "is empty"),
        (f"{KEYS},Trigger,1,2,3\n", "holds no functions"),
        (tiny("o,a,f,http,1,2,3").encode() + b"o,a,\xff,http,1,2,3\n", "row 3: byte 0xff is not UTF-8"),
        (tiny("o,a,f,http,1,2,3\n\no,a,g,http,1,2,3"), "row 3: 1 columns"),
    ],
)
def test_broken_invocations_are_told_in_one_sentence(tmp_path: Path, content: str | bytes, told: str) -> None:
    """Each kind of damage names file, row, column, value and what is allowed."""
    path = tmp_path / INVOCATIONS.format(1)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        load_trace(tmp_path)
    assert told in str(caught.value)
    assert tmp_path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (DURATIONS.format(1), f"{DURATIONS_HEADER}\no,a,f,-1,5,1,2,1,2,3,4,5,6,7\n", "row 2, column Average: '-1'"),
        (DURATIONS.format(1), f"{KEYS},Average\no,a,f,1\n", "column 'Count' is missing"),
        (DURATIONS.format(1), f"{KEYS},Average,Count\no,a,f,1,1\no,a,f,1,1\n", "row 3, column HashFunction: 'f'"),
        (MEMORY.format(1), f"{MEMORY_HEADER}\no,a,1,inf,1\n", "row 2, column AverageAllocatedMb: 'inf'"),
        (INVOCATIONS.format(3), day_text({"o,a,f,http": {1: 1}}), "minute 2880 follows minute 1439"),
        (INVOCATIONS.format(1) + ".gz", "", "holds day 1 twice"),
        (INVOCATIONS.format(2) + ".gz", "no gzip", "not a complete gzip file"),
    ],
)
def test_broken_neighbours_are_told_in_one_sentence(tmp_path: Path, name: str, content: str, told: str) -> None:
    """Damage in any of the files is told, and a hole between days is none of them."""
    (tmp_path / INVOCATIONS.format(1)).write_text(day_text({"o,a,f,http": {1: 1}}))
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=told):
        load_trace(tmp_path)


def test_truncated_gzip_is_told(tmp_path: Path) -> None:
    """A gzip file cut off is an error, however many whole rows it still holds."""
    data = gzip.compress(day_text({f"o,a,f{i},http": {i: i} for i in range(1, 50)}).encode())
    (tmp_path / (INVOCATIONS.format(1) + ".gz")).write_bytes(data[:-20])
    with pytest.raises(InputError, match="not a complete gzip file"):
        load_trace(tmp_path)


def test_unknown_places_say_what_was_looked_for(tmp_path: Path) -> None:
    """A missing or foreign folder, or a foreign file, is told with the names that would have been known."""
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    for path, told in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "holds no trace"),
        (tmp_path / "table.csv", "a,b"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            load_trace(path)
        assert "Azure 2021" in str(caught.value)


def test_azure_2021_dates_are_refused(tmp_path: Path) -> None:
    """A time stamp that is a date, not an offset, would allocate years of minutes: refused."""
    path = tmp_path / "trace.csv"
    path.write_text("app,func,end_timestamp,duration\na,f,1,1\na,f,1611100800,1\n")
    with pytest.raises(InputError, match=r"row 3, column end_timestamp: 1611100800\.0"):
        load_trace(path)


VALID = {
    "azure2019": {
        INVOCATIONS.format(1): tiny("o,a,f,http,1,2,3\no,a,g,timer,10,0,0\np,b,h,queue,0,0,7").encode(),
        DURATIONS.format(1): f"{DURATIONS_HEADER}\no,a,f,100,5,1,2,1,2,3,4,5,6,7\n".encode(),
        MEMORY.format(1): f"{MEMORY_HEADER}\no,a,10,120,100\n".encode(),
    },
    "gzip": {
        INVOCATIONS.format(1) + ".gz": gzip.compress(tiny("o,a,f,http,1,2,3\no,a,g,timer,10,0,0").encode(), mtime=0)
    },
    "azure2021": {"AzureFunctionsInvocationTrace.csv": b"app,func,end_timestamp,duration\na,f,61.5,1\na,g,0.5,0.7\n"},
}


@pytest.mark.parametrize("schema", sorted(VALID))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_files_load_or_are_told(schema: str, data: st.DataObject) -> None:
    """Whatever bytes change, a file either loads or raises InputError in one sentence; nothing else escapes."""
    files = dict(VALID[schema])
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        length = data.draw(st.integers(0, 3))
        content[at : at + length] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b",", b"\n", b"-", b"nan", b'"']))
        )
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    files[name] = bytes(content[:cut])
    with tempfile.TemporaryDirectory() as folder:
        for file, text in files.items():
            (Path(folder) / file).write_bytes(text)
        try:
            trace = load_trace(Path(folder))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either outcome is right; neither may be anything else
        else:
            assert trace.counts.shape == (len(trace.functions), trace.minutes)


@pytest.mark.skipif(not (DATA / "azure2019-d01-a").is_dir(), reason="the real traces are not here (MESP_DATA)")
def test_real_traces_load() -> None:
    """The public traces load whole, with every run time and memory known where their files are."""
    trace = load_trace(DATA / "azure2019-d01-a")
    assert trace.counts.shape == (198, 1_440)
    assert int(trace.counts.sum(dtype=np.int64)) == 16_527_507
    assert np.isfinite(trace.duration_ms).all()
    assert np.isfinite(trace.memory_mb).all()
    sample = load_trace(DATA / "azure2021-sample")
    assert int(sample.counts.sum()) == 998
