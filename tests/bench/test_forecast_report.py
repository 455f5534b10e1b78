"""The forecast report: files whole, pages safe, and pictures and tables that survive any gap in the result."""

from __future__ import annotations

import copy
import io
import json
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from mesp.errors import InputError
from mesp_bench import cli
from mesp_bench.forecast_plots import forecast_figure
from mesp_bench.forecast_report import forecast_page, print_forecast_tables, write_forecast_report
from mesp_bench.forecast_tables import best_single, comparison, headline, models_table, slice_title
from mesp_bench.plots import figure_bytes
from mesp_bench.traces.convert import Format, convert_trace
from mesp_bench.traces.synth import synthesize
from mesp_predictor import checkpoint
from mesp_predictor.training import untrained_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def score(loss: float) -> dict[str, Any]:
    return {
        "scaled_quantile_loss": loss,
        "wql": loss / 2,
        "log_loss_next_step": loss / 4,
        "calibration_error": 0.004,
        "pit_deviation": 1.2,
        "series_per_s": 1000.0,
        "brier_next_step": 0.01,
        "log_loss_horizon": loss / 3,
        "coverage_active": {"0.9": 90.5, "0.99": 98.9},
        "reliability": {"minutes": [90.0, 0.0, 10.0], "forecast": [0.01, None, 0.9], "observed": [0.02, None, 0.95]},
        "pit": [0.1] * 10,
        "ci95": {"scaled_quantile_loss": [0.9 * loss, 1.1 * loss], "log_loss_next_step": [0.2 * loss, 0.3 * loss]},
    }


def gain(against: str, metric: str, percent: float) -> dict[str, Any]:
    expert = {"expert": "gbm"} if against == "best_single" else {}
    ci95 = [percent - 2, percent + 2]
    return {"model": "mesp", "against": against, "metric": metric, "improvement_pct": percent, "ci95": ci95, **expert}


def sample() -> dict[str, Any]:
    models = {"mesp": score(0.2), "hard": score(0.23), "gbm": score(0.22), "uniform": score(0.3), "oracle": score(0.18)}
    against = ("best_single", "hard", "gbm", "uniform", "oracle")
    gains = [gain(other, metric, 9.0) for other in against for metric in ("scaled_quantile_loss", "log_loss_next_step")]
    return {
        "provenance": {"git_revision": "abc"},
        "notes": ["Owners are <unknown> & cannot be split."],
        "protocol": {
            "functions": 198,
            "table": "online",
            "slice_functions": {"never_seen": 198, "by_trigger/http": 65},
        },
        "models": models,
        "comparisons": gains,
        "slice_comparisons": {"never_seen": gains, "by_trigger/http": gains[:2]},
        "weights": {"all": {"gbm": 0.7, "patchtst": 0.3}, "1": {"gbm": 1.0}},
        "slices": {
            "never_seen": models,
            "by_trigger": {"http": models},
            "floor_sensitivity": {"0.1": {"mesp": {"scaled_quantile_loss": 0.1}}},
        },
    }


def emptied(value: Any) -> Any:
    """The same nesting with nothing measured."""
    if isinstance(value, dict):
        return {key: emptied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [emptied(inner) for inner in value]
    return None if isinstance(value, float) else value


def printed(result: Mapping[str, Any]) -> str:
    console = Console(width=220, file=io.StringIO(), force_terminal=False)
    print_forecast_tables(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_is_three_whole_files_and_the_same_each_time(tmp_path: Path) -> None:
    """Drawn twice, byte for byte the same; the JSON is the result; the page is safe and needs nothing else."""
    write_forecast_report(sample(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecasts.json", "forecasts.png", "report.html"]
    assert (tmp_path / "forecasts.png").read_bytes() == figure_bytes(forecast_figure(sample()), "png")
    assert json.loads((tmp_path / "forecasts.json").read_text()) == sample()
    assert "&lt;unknown&gt; &amp; cannot" in (tmp_path / "report.html").read_text()
    page = unescape((tmp_path / "report.html").read_text())
    assert page.count("data:image/svg+xml;base64,") == 2
    parts = ["<h1>MESP's quantile loss is 9.0 %", "<picture>", "Every model's scores", "loss is less by"]
    parts += [
        "Every slice at a glance",
        "by the floor",
        "<summary>Never seen",
        "<summary>trigger http",
        "Notes",
        "Protocol",
    ]
    found = [page.index(part) for part in parts]
    assert found == sorted(found)


def test_the_sentence_says_what_was_found() -> None:
    """Lower, higher, or not told apart from 0; without a comparison it says so."""
    assert headline(sample()) == (
        "MESP's quantile loss is 9.0 % (7.0 to 11.0) lower than that of the best single model (gbm), "
        "its next-minute log loss 9.0 % (7.0 to 11.0) lower (gbm)."
    )
    result = sample()
    result["comparisons"] = [
        gain("best_single", "scaled_quantile_loss", -9.0),
        gain("best_single", "log_loss_next_step", 1.0),
    ]
    assert "is 9.0 % (7.0 to 11.0) higher than" in headline(result)
    assert "log loss 1.0 % (95 % interval holds 0) lower" in headline(result)
    assert headline({}) == "The models alone: nothing was there to compare MESP with."


def test_results_are_read_by_slice() -> None:
    """Comparisons, titles and tables of the top level, a slice, and a part of a group."""
    result = sample()
    found = comparison(result, "best_single", "log_loss_next_step", "by_trigger/http")
    assert found is not None
    assert (found.improvement_pct, found.ci95, found.expert) == (9.0, (7.0, 11.0), "gbm")
    assert comparison(result, "best_single", "wql") is None
    assert best_single(result, "scaled_quantile_loss") == "gbm"
    assert slice_title(result, "by_trigger/http", short=True) == "trigger http (65)"
    assert slice_title(result, "never_seen").startswith("Never seen")
    assert models_table(result, "by_trigger/http").rows[0].cells[:2] == ("MESP", "0.2000")


@pytest.mark.parametrize("strip", [emptied, lambda _result: {}], ids=["nothing measured", "nothing there"])
def test_gaps_are_shown_and_break_nothing(strip: Any) -> None:
    """A result without any number still has its page, its pictures and its tables."""
    result = strip(copy.deepcopy(sample()))
    assert forecast_page(result).startswith("<!doctype html>")  # with its pictures, for light and dark paper
    assert printed(result)


def test_the_console_shows_models_gains_and_slices() -> None:
    """Every model by name, the gains with their intervals, the notes with their markup shown."""
    text = printed(sample())
    assert "9.0 (7.0 to 11.0)" in text
    assert "trigger http (65)" in text
    assert "<unknown>" in text
    for model in ("MESP", "hard", "gbm", "uniform", "oracle"):
        assert model in text


def test_the_command_refuses_contradictions(tmp_path: Path) -> None:
    """--train beside --model is one sentence, and nothing is written."""
    with pytest.raises(InputError, match="--train and --model exclude each other"):
        cli.forecasts(trace=tmp_path, out=tmp_path / "out", train=tmp_path, model=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --model and --train it answers online, never seen and from zero beside it; the report names model and data."""
    monkeypatch.setattr("mesp_bench.forecast_report.forecast_figure", lambda *_, **__: None)
    monkeypatch.setattr("mesp_bench.forecast_report.figure_bytes", lambda *_: b"<svg/>")
    # In its place a model of three light experts, which is quick.
    monkeypatch.setattr(checkpoint, "DEFAULT_MODEL", tmp_path / "model")
    data = {"name": "pool", "checksum": "0", "functions": 9, "steps": 1440}
    version = checkpoint.save_model(
        untrained_model(), tmp_path / "model", {"data": data, "attribution": "theirs"}
    ).version
    trace = synthesize(functions=8, days=1, seed=5)
    trace = type(trace)(**{name: getattr(trace, name) for name in trace.__slots__} | {"counts": trace.counts[:, :120]})
    convert_trace(trace, tmp_path / "trace", Format.PARQUET, lambda _share: None)
    cli.forecasts(trace=tmp_path / "trace", out=tmp_path / "out", train=None, model=None, seed=0)
    result = json.loads((tmp_path / "out" / "forecasts.json").read_text())
    assert result["protocol"]["table"] == "online"
    assert {"never_seen", "from_zero"} <= set(result["slices"])
    assert result["provenance"]["model"] == {
        "version": version, "shipped": True, "data": data, "attribution": "theirs"
    }  # fmt: skip
    assert "The model that comes with MESP answered, trained on pool." in result["notes"]
    assert {"mesp", "oracle", "seasonal_naive"} <= set(result["models"])
    assert version in (tmp_path / "out" / "report.html").read_text()
