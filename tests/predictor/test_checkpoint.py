"""The model directory: what was saved answers alike, what was damaged is refused, what was there stays."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor import checkpoint
from mesp_predictor.checkpoint import check_target, load_forecaster, load_model, read_manifest, save_model
from mesp_predictor.experts import registry
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.router import new_losses
from mesp_predictor.statistics import Statistics
from mesp_predictor.training import DEFAULT_EXPERTS, untrained_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FloatArray
    from mesp_predictor.model import Model
    from mesp_predictor.training import Trained

FILES = [
    "clusters.safetensors",
    "router.safetensors",
    "manifest.json",
    "experts/hazard/config.json",
    "experts/hazard/model.safetensors",
    "experts/intermittent/config.json",
    "experts/neural_hazard/config.json",
    "experts/neural_hazard/model.safetensors",
    "experts/patchtst/config.json",
    "experts/patchtst/model.safetensors",
    "experts/seasonal/config.json",
]


@pytest.fixture(scope="session")
def trained(tiny_training: tuple[Trained, list[tuple[str, float]]]) -> Model:
    return tiny_training[0].model


@pytest.fixture(scope="session")
def saved(trained: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "saved"
    save_model(trained, directory, {"data": "tiny", "log_loss": {"mixture": 0.1}})
    return directory


@pytest.fixture
def model_dir(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "model")


def refused(directory: Path) -> str:
    """The one sentence with which loading is refused; it names a path of the directory."""
    with pytest.raises(InputError) as caught:
        load_model(directory)
    sentence = str(caught.value)
    assert str(directory) in sentence
    return sentence


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -- there and back ----------------------------------------------------------------------------------------------------


def test_what_was_saved_answers_alike(trained: Model, saved: Path, tiny_fleet: FloatArray) -> None:
    """After saving and loading every expert and the gate give the same numbers, with no difference at all."""
    loaded = load_model(saved)
    statistics = Statistics.empty(len(tiny_fleet))
    for column in tiny_fleet.T:
        statistics.update(column)
    context = Context(480, tiny_fleet, statistics, np.arange(24) % 3 - 1)
    asked = [[expert.predict(context, 20, DEFAULT_LEVELS) for expert in model.experts] for model in (trained, loaded)]
    for one, two in zip(*asked, strict=True):
        np.testing.assert_array_equal(one.active, two.active)
        np.testing.assert_array_equal(one.quantiles, two.quantiles)
    rng = np.random.default_rng(0)
    read = (
        statistics.features(1)[:, 0],
        rng.random((24, 5), np.float32),
        new_losses(24, 5),
        rng.random((24, len(trained.centroids)), np.float32),
        context.cluster,
    )
    for one, two in zip(trained.router.weights(*read), loaded.router.weights(*read), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(trained.centroids, loaded.centroids)
    for field in set(dataclasses.asdict(untrained_model())) - {"version", "experts", "router", "centroids"}:
        assert getattr(trained, field) == getattr(loaded, field)


def test_the_manifest_tells_what_is_there(saved: Path) -> None:
    """Files, experts in order, levels, version and provenance; the forecaster answers under that version."""
    assert sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()) == sorted(FILES)
    manifest = read_manifest(saved)
    assert manifest.experts == ("seasonal", "intermittent", "hazard", "neural_hazard", "patchtst")
    assert manifest.levels == DEFAULT_LEVELS
    assert manifest.training == {"data": "tiny", "log_loss": {"mixture": 0.1}}
    assert load_forecaster(saved).model_version == manifest.version == load_model(saved).version


def test_a_model_without_a_gate_is_one_too(tmp_path: Path) -> None:
    """Light experts under Hedge are saved, in a directory whose parents are made, and loaded; the untrained version goes."""
    directory = tmp_path / "some" / "where"
    version = save_model(untrained_model(), directory, {}).version
    loaded = load_model(directory)
    assert loaded.router.gate is None
    assert loaded.version == version != "untrained"


def test_the_version_is_the_content(trained: Model, tmp_path: Path) -> None:
    """Saved twice it is the same, whatever the provenance; whatever else of the model differs makes it another."""
    other_gate = dataclasses.replace(trained, router=untrained_model().router)
    variants = [
        trained,
        trained,
        dataclasses.replace(trained, bin_steps=5),
        dataclasses.replace(trained, default_horizon=10),
        dataclasses.replace(trained, centroids=trained.centroids + 1),
        dataclasses.replace(trained, experts=trained.experts[::-1]),
        other_gate,
    ]
    versions = [
        save_model(model, tmp_path / str(number), {"run": number}).version for number, model in enumerate(variants)
    ]
    assert versions[0] == versions[1]
    assert len(set(versions)) == len(variants) - 1


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(model_dir: Path, name: str) -> None:
    """Whatever file is missing, the model is refused."""
    (model_dir / name).unlink()
    sentence = refused(model_dir)
    assert ("not found" if name == "manifest.json" else "incomplete or altered") in sentence


@pytest.mark.parametrize("name", FILES)
def test_an_altered_byte_is_noticed(model_dir: Path, name: str) -> None:
    """One flipped bit, at any of several places in any file, is refused; in the manifest all but the provenance counts."""
    path = model_dir / name
    original = path.read_bytes()
    end = original.index(b'"training"') - 5 if name == "manifest.json" else len(original) - 1
    for position in {0, end // 3, end // 2, end}:
        path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        refused(model_dir)
    path.write_bytes(original[: len(original) // 2])
    refused(model_dir)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(format=1), "format = 1, this version of MESP reads 2: train the model anew"),
        (lambda m: m.pop("format"), "format = None"),
        (lambda m: m.update(step_ms=0), "step_ms = 0"),
        (lambda m: m.update(levels="high"), "levels = 'high'"),
        (lambda m: m.update(surprise=1), "surprise = 1"),
        (lambda m: m["experts"].append("oracle"), "incomplete or altered"),
        (lambda m: m["experts"].reverse(), "incomplete or altered"),
        (lambda m: m.update(bin_steps=5), "incomplete or altered"),
    ],
)
def test_a_manifest_of_another_kind_is_one_sentence(
    model_dir: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    """The sentence names key and value, and what is read here."""
    rewrite(model_dir / "manifest.json", change)
    assert told in refused(model_dir)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}'])
def test_what_is_no_manifest_is_one_sentence(model_dir: Path, content: bytes) -> None:
    """Not JSON, not an object, not text, not complete: each is refused."""
    (model_dir / "manifest.json").write_bytes(content)
    assert "manifest.json" in refused(model_dir)


def sign(directory: Path) -> None:
    """Makes the manifest agree with whatever the files are now, as a model of other code would."""
    manifest = read_manifest(directory)
    version = checkpoint._version(directory, manifest)
    rewrite(directory / "manifest.json", lambda content: content.update(version=version))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("experts/hazard/config.json", b'{"kind": "hazard", "longest_gap": 7, "strength": 2.0}', "longest_gap = 7"),
        ("experts/hazard/config.json", b"{}", "has neither 'kind'"),
        ("experts/hazard/config.json", b"[", "not readable as JSON"),
        ("experts/hazard/config.json", b"3", "must be an object"),
        ("experts/hazard/model.safetensors", b"", "not readable as safetensors"),
        (
            "experts/neural_hazard/config.json",
            b'{"kind": "neural_hazard", "features": ["mood"]}',
            "features are others",
        ),
        ("experts/patchtst/config.json", b'{"kind": "patchtst", "surprise": 1}', "patchtst/config.json"),
        ("router.safetensors", None, "cannot be read as a model"),
    ],
)
def test_consistent_files_of_other_code_are_refused(
    model_dir: Path, name: str, content: bytes | None, told: str
) -> None:
    """Files that agree with their manifest and yet are not what this version reads: one sentence each."""
    other = (model_dir / "clusters.safetensors").read_bytes()
    (model_dir / name).write_bytes(other if content is None else content)
    sign(model_dir)
    assert told in refused(model_dir)


def test_an_expert_nobody_knows_is_named(model_dir: Path) -> None:
    """A model of a later version, with an expert unknown here, is refused with the known ones listed."""
    (model_dir / "experts" / "seasonal").rename(model_dir / "experts" / "oracle")
    rewrite(model_dir / "experts" / "oracle" / "config.json", lambda config: config.update(kind="oracle"))
    rewrite(model_dir / "manifest.json", lambda m: m.update(experts=["oracle", *m["experts"][1:]]))
    sign(model_dir)
    assert "there is no family of experts 'oracle'; known are seasonal, intermittent" in refused(model_dir)


def test_no_directory_is_one_sentence(tmp_path: Path) -> None:
    """A path that is missing, or a file, is told how a model directory comes about."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        assert "not found; a model directory is written by `mesp predictor train`" in refused(path)


# -- where it may be written -------------------------------------------------------------------------------------------


def test_targets_that_are_no_model_are_refused(tmp_path: Path) -> None:
    """A file, a directory of other files, even one that happens to hold a manifest.json: nothing of it is touched."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text("{}")
    (tmp_path / "site" / "index.html").write_text("mine")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "experts").mkdir()
    for name, told in {"file": "is a file", "photos": "cat.jpg", "site": "index.html", "half": "manifest.json"}.items():
        before = sorted(tmp_path.rglob("*"))
        for attempt in (check_target, lambda directory: save_model(untrained_model(), directory, {})):
            with pytest.raises(InputError, match=told) as caught:
                attempt(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    save_model(untrained_model(), tmp_path / "empty", {})


def test_a_target_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    """A parent that cannot be made is told, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the model cannot be written"):
        save_model(untrained_model(), tmp_path / "file" / "model", {})


def test_a_model_replaces_a_model(model_dir: Path) -> None:
    """Nothing is left of the old one, nor of the making of the new one; it can be read by others than its maker."""
    version = save_model(untrained_model(), model_dir, {}).version
    assert load_model(model_dir).version == version
    assert not (model_dir / "router.safetensors").exists()
    assert [path.name for path in model_dir.parent.iterdir()] == ["model"]
    assert model_dir.stat().st_mode & 0o777 == 0o755


# -- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("where", ["save_file", "write_text", "rename", "mkdir", "chmod"])
def test_an_interrupted_save_leaves_the_old_model(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, where: str, call: int, failure: BaseException
) -> None:
    """Whatever call of whichever kind fails, the old model (or the new one, whole) loads, and no scratch is left."""
    before = load_model(model_dir).version
    owner: Any = checkpoint if where == "save_file" else Path
    original = getattr(owner, where)
    calls = 0

    def fails(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise failure
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, where, fails)
    interrupted: BaseException | None = None
    try:
        save_model(untrained_model(), model_dir, {})
    except (InputError, KeyboardInterrupt) as error:
        interrupted = error
    monkeypatch.undo()
    assert (load_model(model_dir).version == before) == (interrupted is not None)
    assert (interrupted is not None) == (calls > call)
    if isinstance(failure, OSError) and interrupted is not None:
        assert str(interrupted).endswith("cannot be written: disk full")
    assert [path.name for path in model_dir.parent.iterdir()] == ["model"]


def test_a_first_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no model was there is none, and no scratch."""

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(InputError, match="disk full"):
        save_model(untrained_model(), tmp_path / "model", {})
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_put_back_is_not_thrown_away(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If after the old model was moved aside nothing can be renamed any more, it stays whole where it is."""
    original, calls = Path.rename, 0

    def fails(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError("read-only")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(InputError, match="read-only"):
        save_model(untrained_model(), model_dir, {})
    (aside,) = model_dir.parent.iterdir()
    assert aside.name.startswith(".model-old-")
    assert load_model(aside / "model").experts


# -- every family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFAULT_EXPERTS)
def test_every_family_comes_back_the_same(name: str, tiny_fleet: FloatArray, tmp_path: Path) -> None:
    """Trained small, saved in a model nobody may write to and loaded, it answers with no difference at all."""
    family = registry.family(name)
    keys = tuple(FunctionKey("owner", f"app/{row}") for row in range(24))
    data = TrainingSet(tiny_fleet, 0, np.arange(24) % 2, 2, keys, max_horizon=60)
    expert = family.fit(data, family.smoke, Training(0))
    model = dataclasses.replace(untrained_model(), experts=(expert,), selected=(0, 0))
    save_model(model, tmp_path / "model", {}, {"scores": {}, "selected": {}})
    for path in (tmp_path / "model", *(tmp_path / "model").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    loaded = load_model(tmp_path / "model")
    assert loaded.selected == (0, 0)
    statistics = Statistics.empty(len(tiny_fleet))
    for column in tiny_fleet.T:
        statistics.update(column)
    context = Context(480, tiny_fleet, statistics, np.arange(24) % 3 - 1)
    one, two = (each.predict(context, 20, DEFAULT_LEVELS) for each in (expert, loaded.experts[0]))
    np.testing.assert_array_equal(one.active, two.active)
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    for path in (tmp_path / "model", *(tmp_path / "model").rglob("*")):
        path.chmod(0o755)
