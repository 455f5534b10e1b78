"""The pipeline whole: killed anywhere it ends with the same model, wherever its jobs run; what is tuned; what is given."""

from __future__ import annotations

import json
import multiprocessing
import operator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp.errors import InputError
from mesp_predictor import pipeline, selection
from mesp_predictor.checkpoint import load_model, save_model
from mesp_predictor.experts.clustered import ClusteredExpert
from mesp_predictor.jobs import is_done, processes
from mesp_predictor.training import TrainingConfig, smoke_rows, train

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.training import Trained

START = 28_000_000
LIGHT: dict[str, dict[str, object]] = {"seasonal": {}, "hazard": {}}


def silent(_job: str, _share: float) -> None:
    pass


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def written(trained: Trained, directory: Path) -> dict[str, bytes]:
    """The files of the trained model."""
    save_model(trained.model, directory, {}, trained.table)
    return files(directory)


def config_of(tiny_config: TrainingConfig, **changes: object) -> TrainingConfig:
    return TrainingConfig(**{**tiny_config.model_dump(), "router_steps": 60, **changes})


def test_killed_at_any_moment_it_ends_with_the_same_model(
    tiny_fleet: FloatArray, tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    """Kill -9 after the clusters, twice inside a network's training, in the replay and before the gate: the same bytes."""
    patchtst = {**tiny_config.experts["patchtst"], "training_steps": 150}
    config = config_of(tiny_config, experts={"seasonal": {}, "hazard": {}, "patchtst": patchtst})
    whole = written(train(tiny_fleet, START, config, silent), tmp_path / "whole")
    run = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mesp_predictor.training", "mesp_predictor.experts.patchtst"])
    moments = {
        "jobs/clusters": "expert-patchtst",
        "state/expert-patchtst/train_state.pt": "expert-patchtst",
        "jobs/answers-seasonal": "answers-patchtst",
        "jobs/selection": "gate",
    }
    for there, not_yet in moments.items():
        process = context.Process(target=train, args=(tiny_fleet, START, config, operator.ne), kwargs={"run": run})
        process.start()
        while not (run / there).exists():
            process.join(0.005)
            assert process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert not is_done(run, not_yet)
    assert written(train(tiny_fleet, START, config, silent, run=run), tmp_path / "resumed") == whole


def test_processes_make_the_same_model(tiny_fleet: FloatArray, tiny_config: TrainingConfig, tmp_path: Path) -> None:
    """A model trained by two other processes is that of this one, to the byte."""
    config = config_of(tiny_config, experts=LIGHT)
    here = written(train(tiny_fleet, START, config, silent), tmp_path / "here")
    with processes(2) as engine:
        there = train(tiny_fleet, START, config, silent, run=tmp_path / "run", engine=engine)
    assert written(there, tmp_path / "there") == here


def test_tuned_experts_are_judged_and_the_better_ones_kept(
    tiny_fleet: FloatArray, tiny_config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cluster has its own copy, which the table shows beside the whole one; a kept one is saved and loaded."""
    monkeypatch.setattr(pipeline, "TUNE_FROM", 2)
    monkeypatch.setattr(selection, "FEWEST", 1)
    monkeypatch.setattr(selection, "_is_better", lambda _score: True)
    neural = {"samples": 5_000, "epochs": 1, "tuning_epochs": 1}
    config = config_of(tiny_config, experts={"seasonal": {}, "neural_hazard": neural})
    trained = train(tiny_fleet, START, config, silent, run=tmp_path / "run")
    expert = trained.model.experts[1]
    assert isinstance(expert, ClusteredExpert)
    judged = {k for k, scores in trained.table["scores"].items() if "neural_hazard_tuned" in scores}
    assert judged == {str(k) for k in expert.tuned} <= {"0", "1"}
    directory = tmp_path / "model"
    saved = written(trained, directory)
    assert {f"experts/neural_hazard-{k}/model.safetensors" for k in expert.tuned} <= set(saved)
    loaded = load_model(directory)
    assert isinstance(loaded.experts[1], ClusteredExpert)
    assert set(loaded.experts[1].tuned) == set(expert.tuned)
    assert loaded.selected == trained.model.selected
    assert json.loads(saved["experts.json"]) == trained.table


def test_a_pretrained_expert_is_taken_or_trained_on(
    tiny_training: tuple[Trained, object], tiny_fleet: FloatArray, tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    """Zero-shot its weights stay as they are, and are not tuned for clusters; with `tune: true` they move."""
    given = tmp_path / "given"
    given.mkdir()
    tiny_training[0].model.experts[-1].save(given)
    weights = (given / "model.safetensors").read_bytes()
    for adapt in (False, True):
        said = {**tiny_config.experts["patchtst"], "pretrained": str(given), "tune": adapt, "tuning_rate": 0.1}
        config = config_of(tiny_config, experts={"seasonal": {}, "patchtst": said})
        run = tmp_path / f"run-{adapt}"
        train(tiny_fleet, START, config, silent, run=run)
        assert ((run / "jobs" / "expert-patchtst" / "model.safetensors").read_bytes() == weights) is not adapt
        assert is_done(run, "tune-patchtst-0") is adapt


def test_what_cannot_be_pretrained_is_one_sentence(
    tiny_training: tuple[Trained, object], tiny_fleet: FloatArray, tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    """A missing directory, an expert of another family, and training on what is not trained on are named."""
    given = tmp_path / "given"
    given.mkdir()
    tiny_training[0].model.experts[0].save(given)

    def refused(name: str, said: dict[str, object]) -> str:
        with pytest.raises(InputError) as caught:
            train(tiny_fleet, START, config_of(tiny_config, experts={name: said}), silent)
        return str(caught.value)

    assert "experts.patchtst.pretrained = 'nowhere', must be the directory" in refused(
        "patchtst", {"pretrained": "nowhere"}
    )
    assert "holds an expert 'seasonal'" in refused("patchtst", {"pretrained": str(given)})
    assert "experts.seasonal.tune = true, must be false" in refused(
        "seasonal", {"pretrained": str(given), "tune": True}
    )
    assert "experts.patchtst.tune = 'yes'" in refused("patchtst", {"pretrained": str(given), "tune": "yes"})
    assert "experts.patchtst: d_model = 7" in refused("patchtst", {"d_model": 7})


def test_a_smoke_run_trains_every_family_on_few_functions(tiny_fleet: FloatArray, tiny_config: TrainingConfig) -> None:
    """Its settings are the families' own, its functions alive ones from rare to busy."""
    smoke = tiny_config.smoke()
    assert [plan.name for plan in smoke.plans()] == list(tiny_config.experts)
    assert smoke.experts["patchtst"]["training_steps"] < 10
    fleet = np.tile(tiny_fleet, (10, 1))
    rows = smoke_rows(fleet)
    active = (fleet[rows] > 0).sum(axis=1)
    assert len(rows) == 40
    assert active.min() > 0
    assert active.max() == (fleet > 0).sum(axis=1).max()
    assert len(smoke_rows(np.zeros((20, 100), np.float32))) == 20
