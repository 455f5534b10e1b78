"""The two files of an expert: `config.json` tells its kind and settings, `model.safetensors` holds what it learned.

Both are written under a temporary name and renamed, so that none is ever half there, and both are checked when read:
what does not fit is refused in one sentence that names the file and the key.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesp.types import FloatArray

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"


class Settings(BaseModel):
    """Settings that cannot change, and know no key that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Settings = TypeVar("_Settings", bound=Settings)


def write_expert(
    directory: Path, kind: str, settings: Settings, arrays: Mapping[str, FloatArray] | None = None
) -> None:
    """Writes the settings beside the kind, and the arrays where there are any.

    Raises:
        InputError: the directory cannot be written to.
    """
    try:
        if arrays is not None:
            temporary = directory / f"{WEIGHTS_FILE}.tmp"
            save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, temporary)
            temporary.replace(directory / WEIGHTS_FILE)
        temporary = directory / f"{CONFIG_FILE}.tmp"
        temporary.write_text(json.dumps({"kind": kind, **settings.model_dump()}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(directory / CONFIG_FILE)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory}: the expert {kind} cannot be written: {error}") from error


def read_settings(directory: Path, kind: str, model: type[_Settings]) -> _Settings:
    """The settings in `config.json`.

    Raises:
        InputError: it is not readable, of another kind, or a key is missing, unknown or out of range.
    """
    path = directory / CONFIG_FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict) or content.pop("kind", None) != kind:
        raise InputError(f"{path}: must be an object with kind = {kind!r}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "keys"
        raise InputError(f"{path}: {key} = {first['input']!r}: {first['msg']}") from error


def read_arrays(directory: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, FloatArray]:
    """The arrays in `model.safetensors`, float32 and finite.

    Args:
        directory: of the expert.
        shapes: of the arrays wanted, by key; None is any length but 0.

    Raises:
        InputError: the file is not readable, or a key is missing, unknown, of another shape or type, or not finite.
    """
    path = directory / WEIGHTS_FILE
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not readable as safetensors: {error}") from error
    for key in sorted(shapes.keys() | arrays.keys()):
        if key not in arrays:
            raise InputError(f"{path}: key {key} is missing")
        if key not in shapes:
            raise InputError(f"{path}: key {key} is not known; known are {', '.join(sorted(shapes))}")
        found, wanted = arrays[key], shapes[key]
        if found.ndim != len(wanted) or any(n != (m or max(n, 1)) for n, m in zip(found.shape, wanted, strict=True)):
            said = " x ".join("any" if n is None else str(n) for n in wanted)
            raise InputError(f"{path}: key {key} has shape {found.shape}, must be {said}")
        if found.dtype != np.float32 or not np.isfinite(found).all():
            raise InputError(f"{path}: key {key} must hold finite float32 numbers")
    return arrays
