"""`mesp predictor train` and `runs`: one command trains, goes on, and tells; mistakes are one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mesp.errors import InputError
from mesp_bench.predictor_cli import app
from mesp_bench.traces.convert import Format, convert_trace
from mesp_bench.traces.synth import synthesize
from mesp_predictor.checkpoint import load_model, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

TINY: dict[str, Any] = {
    "clusters": 2,
    "kshape": "batched",
    "experts": {"seasonal": {}, "hazard": {}},
    "router_functions": 8,
    "router_steps": 60,
    "router_every": 4,
    "router_epochs": 2,
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day of 30 functions."""
    folder = tmp_path_factory.mktemp("traces") / "tiny"
    convert_trace(synthesize(functions=30, days=1, seed=3), folder, Format.PARQUET, lambda *_: None)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path


def mesp(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def train(trace: Path, *more: object) -> Result:
    return mesp("train", "--trace", trace, "--out", "model", "--config", "run.yaml", *more)


def test_a_training_is_recorded_and_goes_on(trace: Path, home: Path) -> None:
    """The smoke run goes first, then the model; the same command again has nothing left to do and says the same."""
    told = train(trace, "--workers", 1).stdout
    assert "Smoke run: 2 experts on" in told
    version = read_manifest(home / "model").version
    assert f"Model {version} in model" in told
    load_model(home / "model")
    again = train(trace, "--workers", 1).stdout
    assert "Smoke run" not in again
    assert f"Model {version} in model" in again
    (run,) = json.loads(mesp("runs", "--json").stdout)
    assert (run["state"], run["model"], run["data"]["functions"]) == ("done", version, 30)
    assert set(run["scores"]["next_step_log_loss"]) == {"seasonal", "hazard", "mixture"}
    assert run["config"]["experts"]["hazard"] == {"strength": 2.0}
    both = json.loads(mesp("runs", "runs", "--compare", run["name"], run["name"], "--json").stdout)
    assert both["settings"] == {}
    assert "mixture" in mesp("runs").stdout
    assert "next_step_log_loss.hazard" in mesp("runs", "runs", "--compare", run["name"], run["name"]).stdout


def test_a_model_tells_where_it_comes_from(trace: Path, home: Path) -> None:
    """The manifest has the data with their checksum and attribution and the command without any place; `show` prints them."""
    train(trace, "--smoke", "--seed", 3, "--attribution", "A fleet, (c) its owner, CC-BY 4.0")
    about = json.loads(mesp("show", "--model", "model", "--json").stdout)
    assert about["version"] == read_manifest(home / "model").version
    assert about["size_bytes"] == sum(path.stat().st_size for path in (home / "model").rglob("*") if path.is_file())
    assert about["clusters"] == len(about["selected"]) - 1
    told = about["training"]
    assert (told["data"]["functions"], told["data"]["steps"], len(told["data"]["checksum"])) == (30, 1440, 64)
    assert told["command"] == (
        f"mesp predictor train --trace {told['data']['name']} --config run.yaml --seed 3 "
        "--attribution 'A fleet, (c) its owner, CC-BY 4.0' --smoke"
    )
    assert str(home) not in json.dumps(about)
    table = " ".join(mesp("show", "--model", "model").stdout.split())
    for part in (about["version"], "A fleet, (c) its owner", "seasonal, hazard", "30 functions, 1440 steps", "mixture"):
        assert part in table


def test_a_damaged_model_is_not_shown(trace: Path, home: Path) -> None:
    """What the manifest says of other files is not repeated."""
    train(trace, "--smoke")
    (home / "model" / "experts" / "hazard" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="incomplete or altered"):
        mesp("show", "--model", "model")


def test_a_smoke_run_writes_its_model_and_stops(trace: Path, home: Path) -> None:
    """All families, in seconds; no run is recorded."""
    assert "in model" in train(trace, "--smoke").stdout
    assert [expert.name for expert in load_model(home / "model").experts] == ["seasonal", "hazard"]
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"experts": {"linear": {"steps": 3, "rank": -2}}}, r"run.yaml: .*experts\.linear\.\w+"),
        ({"experts": {"hazard": {"strength": "much"}}}, r"run.yaml: experts\.hazard\.strength = 'much'"),
        ({"experts": {"prophet": {}}}, r"run.yaml: unknown key experts\.prophet, allowed are seasonal"),
        ({"experts": {}}, r"run.yaml: experts is empty"),
        ({"clusters": 1}, r"run.yaml: clusters = 1, must be in \[2, 64\]"),
        ({"day_steps": 1441}, r"run.yaml: day_steps = 1441 must be a multiple of bin_steps = 10"),
    ],
)
def test_a_bad_setting_is_one_sentence(trace: Path, home: Path, said: dict[str, Any], told: str) -> None:
    """File, key, value and what is allowed, before anything is read or written."""
    (home / "run.yaml").write_text(yaml.safe_dump({**TINY, **said}))
    with pytest.raises(InputError, match=told):
        train(trace)
    assert {path.name for path in home.iterdir()} == {"run.yaml"}


def test_a_run_that_cannot_be_written_leaves_the_old_model(trace: Path, home: Path) -> None:
    """A run directory below a file is one sentence, and the model that was there stays."""
    train(trace, "--smoke")
    before = read_manifest(home / "model").version
    (home / "file").touch()
    with pytest.raises(InputError, match="the run cannot be recorded"):
        train(trace, "--run", home / "file" / "run", "--workers", 1)
    assert read_manifest(home / "model").version == before


def test_contradictions_are_refused(trace: Path, home: Path) -> None:
    """--quick beside --config; a run of other settings; a directory without runs."""
    with pytest.raises(InputError, match="--quick and --config exclude each other"):
        train(trace, "--quick")
    with pytest.raises(InputError, match="no such directory of runs"):
        mesp("runs", "nowhere")
    with pytest.raises(InputError, match=r"run.json: cannot be read"):
        mesp("runs", ".", "--compare", "one", "two")


def test_the_trace_and_the_seed_decide_the_model(trace: Path, home: Path) -> None:
    """The seed on the command line goes before the file's, and is another model."""
    versions = set()
    for seed in (0, 0, 1):
        train(trace, "--smoke", "--seed", seed)
        versions.add(read_manifest(home / "model").version)
    assert len(versions) == 2
    assert np.isfinite(list(read_manifest(home / "model").training["next_step_log_loss"].values())).all()
