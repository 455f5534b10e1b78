"""The state file: exact, whole at every moment, and never lost when it cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey, StepCounts, Trigger
from mesp_predictor import store as files
from mesp_predictor.series import SeriesState, SeriesStore

if TYPE_CHECKING:
    from pathlib import Path

STEP_MS = 60_000
CONTEXT = 8
KEYS = [FunctionKey("ns", name) for name in ("a", "b", "ä\u2028", "d")]


def filled() -> SeriesStore:
    """Late and partial reports, two sources, a gap, a free row."""
    store = SeriesStore(STEP_MS, CONTEXT, 10)
    for index, counts, source, complete in [
        (10, {KEYS[0]: 3, KEYS[1]: 1}, "one", True),
        (12, {KEYS[2]: 2**24, KEYS[3]: 0}, "one", False),
        (12, {KEYS[0]: 5}, "two", True),
        (11, {KEYS[1]: 9}, "two", False),
    ]:
        triggers = {key: Trigger.TIMER for key in counts if key in KEYS[2:]}
        store.report(StepCounts(source, index * STEP_MS, STEP_MS, counts, complete, triggers=triggers))
    store.delete([KEYS[1]])
    return store


def assert_same(state: SeriesState, other: SeriesState) -> None:
    for part in fields(SeriesState):
        one, two = getattr(state, part.name), getattr(other, part.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, two, err_msg=part.name)
        else:
            assert one == two


def test_what_was_saved_is_loaded_and_goes_on_alike(tmp_path: Path) -> None:
    """A loaded store equals the saved one, takes the next reports as it would, and tells a follower everything anew."""
    path, saved = tmp_path / "state.npz", filled()
    files.save(path, saved.state())
    loaded, sentence = files.load(path, STEP_MS, CONTEXT, 10)
    assert sentence is None
    assert_same(loaded.state(), saved.state())
    assert loaded.columns_since(0).shape == (4, CONTEXT)
    for source, index in (("two", 12), ("one", 11), ("three", 15)):
        report = StepCounts(source, index * STEP_MS, STEP_MS, {KEYS[0]: 2, KEYS[1]: 7})
        assert loaded.report(report) == saved.report(report)
    assert_same(loaded.state(), saved.state())
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("context", [2, 20])
def test_another_context_keeps_what_fits(tmp_path: Path, context: int) -> None:
    """A model with a shorter or longer context starts with the steps that both know."""
    path, saved = tmp_path / "state.npz", filled()
    files.save(path, saved.state())
    loaded, sentence = files.load(path, STEP_MS, context, 10)
    assert sentence is None
    rows = saved.rows_of(KEYS)
    np.testing.assert_array_equal(loaded.window(rows, 2), saved.window(rows, 2))
    assert np.isnan(loaded.window(rows, context)[:, :-CONTEXT]).all()


def test_a_file_without_triggers_is_one_of_an_earlier_version(tmp_path: Path) -> None:
    """Everything else is as it was saved, and nobody's trigger is known."""
    path, saved = tmp_path / "state.npz", filled()
    files.save(path, saved.state())
    with np.load(path) as archive:
        kept = {name: archive[name] for name in archive.files if name != "triggers"}
    np.savez_compressed(path, **kept)
    loaded, sentence = files.load(path, STEP_MS, CONTEXT, 10)
    assert sentence is None
    assert saved.triggers.any()
    assert_same(loaded.state(), replace(saved.state(), triggers=np.zeros(4, np.int8)))


def test_an_empty_store_and_a_missing_file(tmp_path: Path) -> None:
    """No file means an empty store without a word; an empty store survives the round trip too."""
    path = tmp_path / "state.npz"
    store, sentence = files.load(path, STEP_MS, CONTEXT, 10)
    assert (store.as_of_ms, sentence) == (0, None)
    files.save(path, store.state())
    loaded, sentence = files.load(path, STEP_MS, CONTEXT, 10)
    assert (loaded.as_of_ms, loaded.known, sentence) == (0, 0, None)


def test_a_file_for_something_else_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another step, too many functions or another format: one sentence each, the file kept under a new name."""
    path = tmp_path / "state.npz"
    sentences = []
    for arguments in ((1_000, CONTEXT, 10), (STEP_MS, CONTEXT, 3)):
        files.save(path, filled().state())
        store, sentence = files.load(path, *arguments)
        assert store.known == 0
        sentences.append(sentence)
    monkeypatch.setattr(files, "FORMAT", 2)
    files.save(path, filled().state())
    monkeypatch.undo()
    sentences.append(files.load(path, STEP_MS, CONTEXT, 10)[1])
    assert sentences == [
        f"{path}: its step is 60000 ms, the model's is 1000 ms; kept as {path}.aside-1, starting without it",
        f"{path}: it holds 4 functions, but max_functions = 3; kept as {path}.aside-2, starting without it",
        f"{path}: its format is 2, this version reads 1; kept as {path}.aside-3, starting without it",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"state.npz.aside-{n}" for n in (1, 2, 3)]


@given(cut=st.integers(0, 3_000), flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=3))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_becomes_history(tmp_path: Path, cut: int, flips: list[tuple[int, int]]) -> None:
    """Truncated or flipped bytes are noticed, or did not matter; the damaged file is kept byte for byte."""
    path, saved = tmp_path / "state.npz", filled().state()
    files.save(path, saved)
    data = bytearray(path.read_bytes())
    del data[max(len(data) - cut, 0) :]
    for position, mask in flips:
        if data:
            data[position % len(data)] ^= mask
    path.write_bytes(data)
    store, sentence = files.load(path, STEP_MS, CONTEXT, 10)
    if sentence is None:
        assert_same(store.state(), saved)
    else:
        [aside] = tmp_path.glob("*.aside-*")
        assert store.known == 0
        assert aside.read_bytes() == data
        aside.unlink()


def test_files_that_cannot_be_touched_say_so(tmp_path: Path) -> None:
    """A missing folder and a folder in the file's place are errors that name the path; nothing half-written stays."""
    with pytest.raises(InputError, match="does not exist; create it first"):
        files.load(tmp_path / "no" / "state.npz", STEP_MS, CONTEXT, 10)
    (tmp_path / "state.npz").mkdir()
    with pytest.raises(InputError, match="the state cannot be read"):
        files.load(tmp_path / "state.npz", STEP_MS, CONTEXT, 10)
    with pytest.raises(InputError, match="the state cannot be saved"):
        files.save(tmp_path / "state.npz", filled().state())
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.npz"]


WRITER = """
import itertools, pathlib, sys
from mesp.types import FunctionKey, StepCounts, Trigger
from mesp_predictor import store
from mesp_predictor.series import SeriesStore
series = SeriesStore(60_000, 500, 500)
functions = [FunctionKey("ns", str(n)) for n in range(500)]
for index in itertools.count(1):
    series.report(StepCounts("one", index * 60_000, 60_000, dict.fromkeys(functions, index)))
    store.save(pathlib.Path(sys.argv[1]), series.state())
    print(index, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    """SIGKILL during a write leaves the last announced state, or the one being written."""
    path = tmp_path / "state.npz"
    for lines in (1, 3, 7):
        path.unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            announced = [int(writer.stdout.readline()) for _ in range(lines)]
            writer.kill()
            announced += [int(line) for line in writer.stdout.read().split()]
        loaded, sentence = files.load(path, 60_000, 500, 500)
        assert sentence is None
        newest = loaded.as_of_ms // 60_000 - 1
        assert newest in {announced[-1], announced[-1] + 1}
        rows = loaded.rows_of([FunctionKey("ns", str(n)) for n in range(500)])
        assert (loaded.window(rows, 1) == newest).all()
