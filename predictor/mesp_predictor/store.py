"""The series store's durable form: one file, whole or not there at all.

The sidecar writes it every few steps and when it stops, and reads it when it starts. A write goes to a temporary
name beside it, is forced to disk, and then takes the name in one step: whoever is killed at whatever moment leaves the
previous file or the new one. A file that cannot be used is moved aside, never deleted, and the sidecar starts empty:
forecasts of young functions are better than none.

The file is a compressed numpy archive (.npz): the arrays of `SeriesState`, and the rest of it as JSON.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_predictor.series import SeriesState, SeriesStore

if TYPE_CHECKING:
    from pathlib import Path

#: Counts up whenever older code could misread the file.
FORMAT = 1

_ARRAYS = ("counts", "first_seen", "last_seen", "complete", "part_counts")
_LATER = "triggers"  # not in files of earlier versions


def save(path: Path, state: SeriesState) -> None:
    """Puts `state` in place of whatever the file holds.

    Raises:
        InputError: the file cannot be written; what it held before is untouched.
    """
    told = {
        "format": FORMAT,
        "step_ms": state.step_ms,
        "newest": state.newest,
        "functions": state.functions,
        "owners": state.owners,
        "parts": state.parts,
    }
    arrays: dict[str, Any] = {name: getattr(state, name) for name in (*_ARRAYS, _LATER)}
    arrays["told"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: the state cannot be saved ({error.strerror})") from error


def load(path: Path, step_ms: int, context: int, max_functions: int) -> tuple[SeriesStore, str | None]:
    """The store that the file holds, or an empty one; and a sentence when a file was there that cannot be used.

    Raises:
        InputError: the file cannot be opened or moved aside, or its folder does not exist.
    """
    empty = SeriesStore(step_ms, context, max_functions)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist; create it first") from None
        return empty, None
    except OSError as error:
        raise InputError(f"{path}: the state cannot be read ({error.strerror})") from error
    try:
        return SeriesStore.from_state(_decode(data, step_ms), context, max_functions), None
    except InputError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001  damage shows in a dozen types, of zipfile, zlib, json and numpy
        reason = f"it is damaged: {error or type(error).__name__}"
    return empty, f"{path}: {reason}; kept as {_move_aside(path)}, starting without it"


def _decode(data: bytes, step_ms: int) -> SeriesState:
    """Reads the file's content; InputError when it is whole but made for something else."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        told = json.loads(archive["told"].tobytes())
        if told["format"] != FORMAT:
            raise InputError(f"its format is {told['format']}, this version reads {FORMAT}")
        if told["step_ms"] != step_ms:
            raise InputError(f"its step is {told['step_ms']} ms, the model's is {step_ms} ms")
        functions = tuple(None if key is None else FunctionKey(*key) for key in told["functions"])
        return SeriesState(
            step_ms=step_ms,
            newest=told["newest"],
            functions=functions,
            triggers=archive[_LATER] if _LATER in archive else np.zeros(len(functions), np.int8),
            owners=tuple(told["owners"]),
            parts=tuple((step, source) for step, source in told["parts"]),
            **{name: archive[name] for name in _ARRAYS},
        )


def _move_aside(path: Path) -> Path:
    """Renames the file to the first free name beside it."""
    aside = next(name for n in itertools.count(1) if not (name := path.with_name(f"{path.name}.aside-{n}")).exists())
    try:
        path.rename(aside)
    except OSError as error:
        raise InputError(f"{path}: the unusable state cannot be moved aside ({error.strerror})") from error
    return aside


def _sync_folder(folder: Path) -> None:
    """Forces the folder's entries to disk: without it a rename may not survive a power cut (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
