"""`mesp demo`: which model answers, and that notes and provenance say so; the loop itself is shown in integration/e2e."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mesp_bench import cli
from mesp_predictor import checkpoint
from mesp_predictor.training import untrained_model

if TYPE_CHECKING:
    from pathlib import Path

    from mesp_bench.traces.model import Trace


@pytest.mark.parametrize(
    ("train", "note"),
    [
        (False, "The model that comes with MESP answered, trained on pool."),
        (True, "MESP's model was trained on a synthetic fleet of 300 other functions."),
    ],
)
def test_the_shipped_model_answers_unless_one_is_trained(
    train: bool, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained without --train; either way the report names the model that the sidecar served."""
    written: list[dict[str, Any]] = []
    for name, data in (("shipped", "pool"), ("trained", "synth")):
        checkpoint.save_model(untrained_model(), tmp_path / name, {"data": {"name": data}})

    def trained_model(fleet: Trace, *_: Any) -> Path:
        assert train
        assert len(fleet.functions) == 300
        return tmp_path / "trained"

    def run_demo(_trace: Trace, model: Path, _minutes: int, _seed: int, notes: list[str], _progress: Any) -> Any:
        return {"notes": notes, "served": model}

    monkeypatch.setattr(checkpoint, "DEFAULT_MODEL", tmp_path / "shipped")
    monkeypatch.setattr("mesp_bench.forecasting.trained_model", trained_model)
    monkeypatch.setattr("mesp_bench.demo.run_demo", run_demo)
    monkeypatch.setattr("mesp_bench.report.write_frontier_report", lambda result, _out: written.append(result))
    monkeypatch.setattr("mesp_bench.report.print_frontier_table", lambda *_: None)
    cli.demo(trace=None, out=tmp_path / "out", functions=16, minutes=10, train=train, seed=0)
    (result,) = written
    assert result["served"] == tmp_path / ("trained" if train else "shipped")
    assert result["notes"][-1] == note
    assert result["provenance"]["model"]["shipped"] is not train
    assert result["provenance"]["model"]["data"] == {"name": "synth" if train else "pool"}
