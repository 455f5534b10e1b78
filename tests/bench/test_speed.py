"""`mesp bench forecast`: the form of `bench.json`, ratios that the seconds say, and what becomes of what fails."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesp_bench import bench_cli, speed, speed_subjects
from mesp_bench.speed_subjects import HISTORY, Job, main, measure
from mesp_predictor.checkpoint import read_manifest, save_model
from mesp_predictor.experts.light import IntermittentExpert, SeasonalExpert
from mesp_predictor.mixture import MixtureForecaster
from mesp_predictor.training import untrained_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mesp_predictor.series import SeriesStore

REPEATS = 2


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fleet of six: silent, busy, timers."""
    rng = np.random.default_rng(0)
    rates = np.array([[0], [0.02], [0.2], [1], [5], [30]])
    fleet = rng.poisson(rates, (6, HISTORY + REPEATS + 1)).astype(np.float32)
    path = tmp_path_factory.mktemp("fleet") / "counts.npy"
    np.save(path, fleet)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a model with two experts that need no training."""
    directory = tmp_path_factory.mktemp("models") / "light"
    save_model(dataclasses.replace(untrained_model(), experts=(SeasonalExpert(), IntermittentExpert())), directory, {})
    return directory


@pytest.fixture
def result(model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run in which every process answers at once: the i-th in i + 1 seconds; statsforecast is not installed."""
    seconds = itertools.count(1)

    def answer(job: Job, threads: int) -> dict[str, Any]:
        took = float(next(seconds))
        if job.what == "auto_ets":
            return {"why": "the package statsforecast is not installed"}
        return {"seconds": took, "peak_rss_mb": 300.0 + threads}

    monkeypatch.setattr(speed, "_run", answer)
    return speed.bench_forecast(model, 300, lambda _stage, _share: None, threads=2, repeats=REPEATS)


def test_every_subject_has_its_row(result: dict[str, Any], model: Path) -> None:
    """Experts by name, the tick, the report taken in, the references; with functions, threads and memory of each."""
    whats = [row["what"] for row in result["rows"]]
    assert whats == ["seasonal", "intermittent", "mixture", "observe", "naive_loop", "auto_ets", "chronos_bolt_tiny"]
    assert [row["functions"] for row in result["rows"]] == [300] * 4 + [200, 20, 300]
    assert {row["threads"] for row in result["rows"]} == {2}
    assert result["rows"][0]["peak_rss_mb"] == 302
    assert result["protocol"] == {"functions": 300, "history_steps": HISTORY, "repeats": REPEATS, "threads": 2}
    assert result["provenance"]["model"]["version"] == read_manifest(model).version
    assert result["provenance"]["model"]["shipped"] is False


def test_ratios_are_what_the_seconds_say(result: dict[str, Any]) -> None:
    """A ratio is of times per function, for every forecaster and each reference but itself, and for nothing else."""
    rows = {row["what"]: row for row in result["rows"]}
    per_function = {what: row["seconds"] / row["functions"] for what, row in rows.items() if row["seconds"]}
    for what, row in rows.items():
        others = {"naive_loop", "chronos_bolt_tiny"} - {what} if what not in {"observe", "auto_ets"} else set()
        assert set(row["ratio_to"]) == others
        for other, ratio in row["ratio_to"].items():
            assert ratio == pytest.approx(per_function[what] / per_function[other])
    assert rows["mixture"]["series_per_s"] == pytest.approx(300 / rows["mixture"]["seconds"])


def test_what_was_not_measured_is_null_with_a_note(result: dict[str, Any]) -> None:
    """A missing library costs its own row alone, and the notes say why."""
    row = next(row for row in result["rows"] if row["what"] == "auto_ets")
    assert row["seconds"] is row["peak_rss_mb"] is row["series_per_s"] is None
    assert "auto_ets was not measured: the package statsforecast is not installed." in result["notes"]
    assert sum("not measured" in note for note in result["notes"]) == 1


def test_the_table_tells_how_many_times_as_fast(result: dict[str, Any]) -> None:
    """A column per reference that was measured; 3 s for 300 against 5 s for 200 is 2.5 times as fast."""
    table = speed.speed_table(result)
    assert table.columns[-2:] == ("naive loop", "Bolt tiny")
    cells = {row.cells[0]: row.cells for row in table.rows}
    assert cells["mixture"] == ("mixture", "300", "3.0000", "100", "302", "2.5", "2.3")
    assert cells["auto ets"][2:] == ("—",) * 5
    assert [row.cells[0] for row in table.rows if row.strong] == ["mixture"]


@pytest.mark.usefixtures("result")
def test_the_command_writes_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`bench.json` is strict JSON, and the console shows the rows and the notes; without --model the shipped one's."""
    bench_cli.forecast(out=tmp_path / "out", model=None, functions=16, threads=1, repeats=1, seed=0)
    read = json.loads((tmp_path / "out" / "bench.json").read_text(), parse_constant=pytest.fail)
    assert {"provenance", "notes", "protocol", "rows"} == set(read)
    assert read["provenance"]["model"]["shipped"] is True
    assert any("The model that comes with MESP answered" in note for note in read["notes"])
    out = capsys.readouterr().out
    assert "mixture" in out
    assert "not measured" in out


@pytest.mark.parametrize("what", ["seasonal", "mixture", "observe", "naive_loop"])
def test_a_subject_measures_itself(what: str, counts: str, model: Path) -> None:
    """Every subject of our own sets up, is called as often as asked, and tells seconds and memory."""
    figures = measure(Job(what, counts, 5, REPEATS, str(model)))
    assert set(figures) == {"seconds", "peak_rss_mb"}
    assert figures["seconds"] > 0
    assert figures["peak_rss_mb"] > 10


@pytest.mark.parametrize("what", ["auto_ets", "chronos_bolt_tiny"])
def test_a_reference_forecasts_every_series(what: str, counts: str, model: Path) -> None:
    """The published libraries run on our counts, silent functions included; skipped where they are not installed."""
    pytest.importorskip({"auto_ets": "statsforecast", "chronos_bolt_tiny": "chronos"}[what])
    assert set(measure(Job(what, counts, 6, 1, str(model)))) == {"seconds", "peak_rss_mb"}


def test_a_tick_is_one_step_of_the_sidecar(counts: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixture takes in the history first; then every timed call closes one step more, for all functions."""
    lived: list[tuple[int, int]] = []

    class Watched(MixtureForecaster):
        def advance(self, store: SeriesStore, go_on: Callable[[], bool] | None = None) -> bool:
            lived.append((store.as_of_ms // store.step_ms, store.known))
            return super().advance(store, go_on)

    monkeypatch.setattr(speed_subjects, "MixtureForecaster", Watched)
    for call in speed_subjects._calls(Job("mixture", counts, 6, REPEATS, str(model)), np.load(counts)):
        call()
    assert lived == [(HISTORY + step, 6) for step in range(REPEATS + 2)]


def test_a_missing_library_is_told(
    counts: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subject whose library is not there answers with its name, not with a traceback."""
    for module in ("statsforecast", "statsforecast.models"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main([Job("auto_ets", counts, 2, 1, str(model)).text()]) == 0
    assert json.loads(capsys.readouterr().out) == {"missing": "statsforecast"}


def test_a_subject_that_fails_is_told_by_its_last_words(counts: str, tmp_path: Path) -> None:
    """A process that dies, here of a model that is none, is a reason and does not end the run."""
    answer = speed._run(Job("mixture", counts, 2, 1, str(tmp_path)), threads=1)
    assert "ended with 1" in answer["why"]
    assert "manifest.json: not found" in answer["why"]
