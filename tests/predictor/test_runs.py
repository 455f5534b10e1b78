"""Records of runs: what they say, what survives a kill, and that MLflow is told the same."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from mesp.errors import InputError
from mesp_predictor import runs
from mesp_predictor.runs import RunRecorder, compare, list_runs, read_log, read_run, run_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA = {"name": "a trace", "checksum": "c0ffee", "functions": 40, "steps": 1440}
CONFIG = {"seed": 7, "clusters": 8, "experts": {"gbm": {"rounds": 200}, "seasonal": {}}}
SCORES = {"next_step_log_loss": {"gbm": 0.06, "mixture": 0.05}}


def ticking(start_s: float = 1000.0) -> Callable[[], float]:
    """A clock that shows a second more at each look."""
    return map(float, itertools.count(int(start_s))).__next__


def recorder(
    directory: Path, config: dict[str, Any] | None = None, clock: Callable[[], float] | None = None
) -> RunRecorder:
    return RunRecorder(directory, DATA, config or CONFIG, {"engine": "processes", "workers": 2}, clock or ticking())


def record(directory: Path, config: dict[str, Any] | None = None, start_s: float = 1000.0) -> None:
    """A whole run with one network."""
    with recorder(directory, config, ticking(start_s)) as run:
        run.progress("expert-patchtst", 0.0)
        (directory / "state" / "expert-patchtst").mkdir(parents=True)
        (directory / "state" / "expert-patchtst" / "exams.json").write_text("[[0, 0.5], [10, 0.25]]")
        run.progress("expert-patchtst", 1.0)
        run.done(SCORES, "2-abc")


def test_a_run_is_told_whole(tmp_path: Path) -> None:
    """The manifest says what was trained on what by what; the log has each step in order, with the network's exams."""
    record(tmp_path / "one")
    run = read_run(tmp_path / "one")
    assert (run.name, run.state, run.data, run.seed, run.config) == ("one", "done", DATA, 7, CONFIG)
    assert (run.scores, run.model, run.reason) == (SCORES, "2-abc", None)
    assert run.code["packages"]["numpy"]
    assert {"mesp", "source", "git_revision", "python"} <= set(run.code)
    assert run.machine["workers"] == 2
    assert run.started_ms == 1_000_000
    log = read_log(tmp_path / "one")
    assert [line["event"] for line in log] == ["started", "progress", "exam", "exam", "progress", "done"]
    assert [(line["step"], line["held_out_loss"]) for line in log if line["event"] == "exam"] == [(0, 0.5), (10, 0.25)]
    assert run.ended_ms == log[-1]["at_ms"] == 1_006_000


def test_progress_is_logged_in_tenths_and_never_back(tmp_path: Path) -> None:
    """A thousand reports are eleven lines; a job that begins anew after a kill is logged from where it was."""
    with recorder(tmp_path) as run:
        for share in range(601):
            run.progress("a", share / 1000)
    with recorder(tmp_path) as run:
        for share in range(1001):
            run.progress("a", share / 1000)
    shares = [line["share"] for line in read_log(tmp_path) if line["event"] == "progress"]
    assert shares == [part / 10 for part in range(11)]


def test_a_failure_is_its_reason(tmp_path: Path) -> None:
    """What leaves the block is recorded and goes on its way; the next attempt clears it."""
    with pytest.raises(InputError), recorder(tmp_path):
        raise InputError("the disk is full")
    assert (read_run(tmp_path).state, read_run(tmp_path).reason) == ("failed", "the disk is full")
    with pytest.raises(KeyboardInterrupt), recorder(tmp_path):
        raise KeyboardInterrupt
    assert read_run(tmp_path).reason == "KeyboardInterrupt"
    with recorder(tmp_path) as run:
        run.done(SCORES, "2-abc")
    assert (read_run(tmp_path).state, read_run(tmp_path).reason) == ("done", None)


def test_a_killed_run_is_interrupted_and_taken_up(tmp_path: Path) -> None:
    """While its process lives it runs; then it is interrupted; a line written half is dropped and time does not fall."""
    with recorder(tmp_path, clock=ticking(5000)) as run:
        run.progress("a", 0.3)
        assert read_run(tmp_path).state == "running"
        manifest = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(manifest)  # as a kill leaves it
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"at_ms": 99')
    assert read_run(tmp_path).state == "interrupted"
    with recorder(tmp_path, clock=ticking(10)) as run:  # the clock was set back meanwhile
        run.done(SCORES, "2-abc")
    times = [line["at_ms"] for line in read_log(tmp_path)]
    assert times == sorted(times)
    assert (read_run(tmp_path).state, read_run(tmp_path).started_ms) == ("done", 5_000_000)


def test_a_directory_is_one_run_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings, other code and a second process are refused, naming the difference; nothing is changed."""
    record(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    other = {**CONFIG, "experts": {"gbm": {"rounds": 300}, "seasonal": {}}}
    with pytest.raises(InputError, match=r"holds a run with experts.gbm.rounds = 200, now it is 300"):
        recorder(tmp_path / "run", other).__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_source", lambda: "other")
        with pytest.raises(InputError, match=r"holds a run with code.source"):
            recorder(tmp_path / "run").__enter__()
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    with recorder(tmp_path / "run"), pytest.raises(InputError, match="another process trains there"):
        recorder(tmp_path / "run").__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: the run cannot be recorded"):
        recorder(tmp_path / "file").__enter__()


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """A manifest that cannot be written is told with directory and reason; the former one stays."""
    record(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    (tmp_path / ".run.json").symlink_to("/dev/full")
    with pytest.raises(InputError, match="the run cannot be recorded: No space left on device"):
        recorder(tmp_path).__enter__()
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_name_follows_from_what_is_trained() -> None:
    """The same data and settings have the same name, fit for a directory; others have another."""
    assert run_name(DATA, CONFIG) == run_name(dict(DATA), json.loads(json.dumps(CONFIG)))
    assert run_name(DATA, CONFIG).startswith("a-trace-")
    assert run_name(DATA, CONFIG).endswith("-seed7")
    names = {
        run_name(DATA, CONFIG),
        run_name({**DATA, "checksum": "tea"}, CONFIG),
        run_name(DATA, {**CONFIG, "seed": 8}),
    }
    assert len(names) == 3


def test_runs_are_listed_and_compared(tmp_path: Path) -> None:
    """The oldest first; side by side are the settings that differ and every score of either."""
    record(tmp_path / "late", {**CONFIG, "clusters": 4}, start_s=2000)
    record(tmp_path / "early")
    assert [run.name for run in list_runs(tmp_path)] == ["early", "late"]
    differences = compare(*list_runs(tmp_path))
    assert differences["settings"] == {"clusters": (8, 4)}
    assert differences["scores"]["next_step_log_loss.mixture"] == (0.05, 0.05)
    with pytest.raises(InputError, match="no such directory of runs"):
        list_runs(tmp_path / "none")
    (tmp_path / "late" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"late/run.json: name is missing"):
        list_runs(tmp_path)


def test_mlflow_is_told_the_same(tmp_path: Path) -> None:
    """Parameters, metrics with their steps and times, and the files, read back from MLflow, are those of the run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow's own modules warn of
        pytest.importorskip("mlflow", reason="MLflow is an extra: pip install 'mesp[mlflow]'")
        record(tmp_path / "run")
        (tmp_path / "experts.json").write_text("{}")
        client = runs.mlflow_client(str(tmp_path / "store"))
        number = runs.publish(tmp_path / "run", client, (tmp_path / "experts.json",))
        told = client.get_run(number)
        ours, log = read_run(tmp_path / "run"), read_log(tmp_path / "run")
        assert told.data.params == {
            **{key: str(value) for key, value in runs.flat(CONFIG).items()},
            **{f"data.{key}": str(value) for key, value in DATA.items()},
            **{f"code.{key}": str(value) for key, value in runs.flat(ours.code).items()},
            **{f"machine.{key}": str(value) for key, value in ours.machine.items()},
        }
        assert told.data.metrics == {
            "next_step_log_loss.gbm": 0.06,
            "next_step_log_loss.mixture": 0.05,
            "held_out_loss.expert-patchtst": 0.25,
        }
        history = client.get_metric_history(number, "held_out_loss.expert-patchtst")
        exams = [line for line in log if line["event"] == "exam"]
        assert [(m.step, m.value, m.timestamp) for m in history] == [
            (line["step"], line["held_out_loss"], line["at_ms"]) for line in exams
        ]
        assert (told.info.run_name, told.info.status) == ("run", "FINISHED")
        assert (told.info.start_time, told.info.end_time) == (ours.started_ms, ours.ended_ms)
        assert {file.path for file in client.list_artifacts(number)} == {"run.json", "log.jsonl", "experts.json"}
        with pytest.raises(InputError, match="--mlflow what://ever"):
            runs.mlflow_client("what://ever")
