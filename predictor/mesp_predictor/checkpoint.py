"""The model directory: written whole or not at all, checked when read.

::

    manifest.json                 format, version, grid, levels, experts in order, how it was trained and scored
    clusters.safetensors          centroids (K, B)
    router.safetensors            the gate (absent: Hedge)
    experts.json                  how every expert did in every cluster on held-out functions (absent: not trained)
    experts/<name>/               config.json, and files of the family's own for what was learned
    experts/<name>-<cluster>/     the same, fine-tuned for one cluster

The version is a checksum over all other files and over what the manifest says of the model, so two directories of the
same version are the same model. One such directory comes with MESP (`default_model`) and answers where no other is named.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mesp.errors import InputError
from mesp_predictor.experts.clustered import ClusteredExpert
from mesp_predictor.experts.registry import load_expert
from mesp_predictor.mixture import MixtureForecaster
from mesp_predictor.model import Model
from mesp_predictor.router import Gate, Router

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Expert
    from mesp_predictor.forecaster import Forecaster
    from mesp_predictor.model import RoutingMode

#: Raised by one when a reader of the former format would misread the directory.
FORMAT = 2
#: The model that comes with MESP; docs/models.md has the command that trained it.
DEFAULT_MODEL = Path(__file__).with_name("default_model")
#: All that a model directory holds.
_CONTENT = {"manifest.json", "clusters.safetensors", "router.safetensors", "experts.json", "experts"}


class Manifest(BaseModel):
    """What `manifest.json` says."""

    model_config = ConfigDict(extra="forbid")

    format: int
    version: str
    step_ms: int = Field(gt=0)
    default_horizon: int = Field(ge=1)
    max_horizon: int = Field(ge=1)
    levels: tuple[float, ...]
    bin_steps: int = Field(ge=1)
    experts: tuple[str, ...]
    tuned: dict[str, tuple[int, ...]] = {}
    selected: tuple[int, ...] = ()
    training: dict[str, Any] = {}


def save_model(
    model: Model, directory: Path, training: dict[str, Any], table: Mapping[str, Any] | None = None
) -> Manifest:
    """Writes the model to `directory`, replacing a model that is there; whatever fails leaves the old one as it was.

    A kill between the two last renames leaves no model there; the old one then stands in a directory beside it, whose
    name is a dot, the model's name and `-old-`.

    Args:
        model: what to write; its version is set from the content.
        directory: where to; its parent is made if need be.
        training: provenance and scores, as they stand in the manifest.
        table: how every expert did in every cluster, as `selection.Selection.table` gives it.

    Raises:
        InputError: the directory holds something that is not a model, or cannot be written.
    """
    check_target(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            manifest = _write(model, fresh, training, table)
            fresh.chmod(0o755)
            _swap(fresh, directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory}: the model cannot be written: {error}") from error
    return manifest


def _write(model: Model, directory: Path, training: dict[str, Any], table: Mapping[str, Any] | None) -> Manifest:
    save_file({"centroids": torch.from_numpy(model.centroids).contiguous()}, directory / "clusters.safetensors")
    if model.router.gate is not None:
        save_file(model.router.gate.state_dict(), directory / "router.safetensors")
    if table is not None:
        (directory / "experts.json").write_text(json.dumps(table, indent=2) + "\n")
    for expert in model.experts:
        place = directory / "experts" / expert.name
        place.mkdir(parents=True)
        expert.save(place)
    manifest = Manifest(
        format=FORMAT,
        version="",
        step_ms=model.step_ms,
        default_horizon=model.default_horizon,
        max_horizon=model.max_horizon,
        levels=model.levels,
        bin_steps=model.bin_steps,
        experts=tuple(expert.name for expert in model.experts),
        tuned={e.name: tuple(sorted(e.tuned)) for e in model.experts if isinstance(e, ClusteredExpert)},
        selected=model.selected,
        training=training,
    )
    manifest.version = _version(directory, manifest)
    (directory / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def check_target(directory: Path) -> None:
    """Refuses (`InputError`) a directory that `save_model` would not write to, before hours are spent on a model."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; choose a directory")
    found = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if foreign := sorted(found - _CONTENT):
        raise InputError(f"{directory}: holds {foreign[0]!r}, which is no part of a model; choose another directory")
    if found and "manifest.json" not in found:
        raise InputError(f"{directory}: holds files that are no model (no manifest.json); choose another directory")


def default_model() -> Path:
    """The directory of the model that comes with MESP.

    Raises:
        InputError: this installation lacks it.
    """
    if not (DEFAULT_MODEL / "manifest.json").is_file():
        raise InputError(
            f"{DEFAULT_MODEL}: this installation of MESP lacks its model; `mesp predictor train` makes one"
        )
    return DEFAULT_MODEL


def describe(directory: Path) -> dict[str, Any]:
    """What a model directory holds and where it comes from, as JSON: its manifest, clusters, and the bytes of its files.

    Raises:
        InputError: the directory is missing, of another format, incomplete, or its content is not its version's.
    """
    manifest = _whole_manifest(directory)
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {
        **manifest.model_dump(mode="json"),
        "clusters": len(_centroids(directory)),
        "size_bytes": sum(path.stat().st_size for path in files),
    }


def load_model(directory: Path) -> Model:
    """Reads a model directory.

    Raises:
        InputError: the directory is missing, of another format, incomplete, or its content is not its version's.
    """
    manifest = _whole_manifest(directory)
    try:
        centroids = _centroids(directory)
        experts = tuple(
            _load_expert(directory / "experts", name, manifest.tuned.get(name, ())) for name in manifest.experts
        )
        return Model(
            version=manifest.version,
            step_ms=manifest.step_ms,
            default_horizon=manifest.default_horizon,
            max_horizon=manifest.max_horizon,
            levels=manifest.levels,
            experts=experts,
            router=_load_router(directory / "router.safetensors", len(experts), len(centroids)),
            centroids=centroids,
            bin_steps=manifest.bin_steps,
            selected=manifest.selected,
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{directory}: cannot be read as a model: {error}") from error


def load_forecaster(
    directory: Path, *, learn: bool = True, routing_mode: RoutingMode = "gate", top: int | None = None
) -> Forecaster:
    """A forecaster over the model in `directory`; arguments as of `MixtureForecaster`, raises as that and `load_model`."""
    return MixtureForecaster(load_model(directory), learn=learn, routing_mode=routing_mode, top=top)


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks `manifest.json` alone; raises `InputError` in one sentence."""
    path = directory / "manifest.json"
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: not found; a model directory is written by `mesp predictor train`") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not readable JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        said = content.get("format") if isinstance(content, dict) else None
        raise InputError(f"{path}: format = {said!r}, this version of MESP reads {FORMAT}: train the model anew")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {key} = {first['input']!r}: {first['msg']}") from error


def _whole_manifest(directory: Path) -> Manifest:
    """The manifest, once its version is found to be that of the files."""
    manifest = read_manifest(directory)
    try:
        found = _version(directory, manifest)
    except OSError as error:
        raise InputError(f"{directory}: cannot be read as a model: {error}") from error
    if manifest.version != found:
        raise InputError(
            f"{directory}: the files' checksum is {found}, manifest.json says {manifest.version}: incomplete or altered"
        )
    return manifest


def _centroids(directory: Path) -> FloatArray:
    centroids: FloatArray = load_file(directory / "clusters.safetensors")["centroids"].numpy()
    return centroids


def _load_expert(directory: Path, name: str, tuned: tuple[int, ...]) -> Expert:
    whole = load_expert(directory / name)
    if whole.name != name:
        raise InputError(f"{directory / name}: holds an expert {whole.name!r}, must be {name!r}")
    if not tuned:
        return whole
    return ClusteredExpert(whole, {cluster: load_expert(directory / f"{name}-{cluster}") for cluster in tuned})


def _load_router(path: Path, experts: int, clusters: int) -> Router:
    if not path.is_file():
        return Router()
    gate = Gate(experts, clusters)
    gate.load_state_dict(load_file(path))
    return Router(gate.eval())


def _version(directory: Path, manifest: Manifest) -> str:
    """The format and 12 hex digits of SHA-256 over the manifest's say on the model and every other file, with its name."""
    digest = hashlib.sha256(manifest.model_dump_json(exclude={"version", "training"}).encode())
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "manifest.json"):
        digest.update(str(path.relative_to(directory)).encode() + b"\0")
        digest.update(path.read_bytes())
    return f"{FORMAT}-{digest.hexdigest()[:12]}"


def _swap(fresh: Path, directory: Path) -> None:
    """Moves `fresh` to `directory`; an old model there is moved aside first and removed last."""
    if not directory.exists():
        fresh.rename(directory)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    try:
        directory.rename(aside / "model")
        try:
            fresh.rename(directory)
        except BaseException:
            (aside / "model").rename(directory)
            raise
    finally:
        if directory.exists():  # else what stands aside is the only model left
            shutil.rmtree(aside, ignore_errors=True)
