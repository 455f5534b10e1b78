"""The families of experts by name; a family's module, and the libraries that it needs, load when it is first asked for."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

from mesp.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from mesp_predictor.experts.base import Expert, Family

#: Module and attribute of every family.
_FAMILIES = {
    "seasonal": ("light", "SEASONAL"),
    "intermittent": ("light", "INTERMITTENT"),
    "hazard": ("light", "HAZARD"),
    "context_mixing": ("context_mixing", "CONTEXT_MIXING"),
    "moving_window": ("moving_window", "MOVING_WINDOW"),
    "seasonal_empirical": ("seasonal_empirical", "SEASONAL_EMPIRICAL"),
    "fft": ("fft", "FFT"),
    "linear": ("linear", "LINEAR"),
    "gbm": ("gbm", "GBM"),
    "neural_hazard": ("neural_hazard", "NEURAL_HAZARD"),
    "patchtst": ("patchtst", "PATCHTST"),
    "chronos_bolt": ("chronos", "CHRONOS_BOLT"),
    "chronos_2": ("chronos", "CHRONOS_2"),
    "timesfm": ("timesfm", "TIMESFM"),
    "sundial": ("sundial", "SUNDIAL"),
}
#: `model_type` in the `config.json` of published weights, and the family that reads them.
_PUBLISHED = {"timesfm2_5": "timesfm", "sundial": "sundial"}


def names() -> tuple[str, ...]:
    """All families."""
    return tuple(_FAMILIES)


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        InputError: there is none, or a library that it needs is not installed.
    """
    if name not in _FAMILIES:
        raise InputError(f"there is no family of experts {name!r}; known are {', '.join(_FAMILIES)}")
    module, attribute = _FAMILIES[name]
    try:
        found: Family = getattr(importlib.import_module(f"mesp_predictor.experts.{module}"), attribute)
    except ModuleNotFoundError as error:
        raise InputError(
            f"experts of the family {name} need the package {error.name}, which is not installed"
        ) from error
    return found


def costly(name: str) -> bool:
    """Whether experts of that name cost so much that not every function is asked about; see `Family.costly`."""
    return name in names() and family(name).costly


def load_expert(directory: Path) -> Expert:
    """The expert in a directory: one that `Expert.save` wrote, or published weights with their own `config.json`.

    Raises:
        InputError: the directory is not readable as either; names file and key.
    """
    kind = _kind(directory / "config.json")
    try:
        found = family(kind)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error
    return found.load(directory)


def _kind(path: Path) -> str:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: must be an object")
    if isinstance(kind := config.get("kind"), str):
        return kind
    if "chronos_config" in config:  # Bolt has T5's own model type, so the settings tell
        return "chronos_2" if "Chronos2Model" in config.get("architectures", ()) else "chronos_bolt"
    if config.get("model_type") in _PUBLISHED:
        return _PUBLISHED[config["model_type"]]
    raise InputError(f"{path}: has neither 'kind' nor the keys of published weights that MESP reads")
