"""`load_trace`: whatever trace lies at a path, by its file names and headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesp.errors import InputError

from . import azure2019, azure2021, csvtable, invitro, parquet

if TYPE_CHECKING:
    from pathlib import Path

    from .model import Trace

AZURE2021_FILES = "AzureFunctionsInvocationTrace*"

_LOOKED_FOR = (
    "invocations_per_function_md.anon.dNN.csv (Azure 2019), invocations.csv (invitro), "
    f"{AZURE2021_FILES}.csv or .txt (Azure 2021; each may end in .gz), or {parquet.MANIFEST_FILE} (mesp trace convert)"
)


def load_trace(path: Path, *, max_functions: int | None = None) -> Trace:
    """Load the trace in a folder, or in one file of counts or invocations, detecting its schema.

    Known are the official Azure 2019 files (all days in the folder), the Azure 2021 file, invitro's three files, all
    as .csv or .csv.gz, and the Parquet cache of `mesp trace convert`.

    Args:
        path: the folder or file.
        max_functions: load only the first so many functions in file order; the trace is then those functions.

    Raises:
        InputError: nothing known there, or a broken file: names file, row, column, value and what is allowed.
    """
    if max_functions is not None and max_functions < 1:
        raise InputError(f"max_functions = {max_functions} is not allowed; expected 1 or more.")
    try:
        return _load_folder(path, max_functions) if path.is_dir() else _load_file(path, max_functions)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _load_folder(folder: Path, max_functions: int | None) -> Trace:
    if (folder / parquet.MANIFEST_FILE).exists():
        return parquet.load(folder, max_functions=max_functions)
    if azure2019.day_files(folder, azure2019.INVOCATIONS_FILE):
        return azure2019.load(folder, max_functions=max_functions)
    if invocations := _plain_or_gzip(folder, invitro.INVOCATIONS_FILE):
        durations = _plain_or_gzip(folder, invitro.DURATIONS_FILE)
        memory = _plain_or_gzip(folder, invitro.MEMORY_FILE)
        return invitro.load(invocations, durations, memory, max_functions=max_functions)
    traces_2021 = sorted(folder.glob(AZURE2021_FILES))
    if len(traces_2021) == 1:
        return azure2021.load(traces_2021[0], max_functions=max_functions)
    if traces_2021:
        raise InputError(f"{folder} holds {len(traces_2021)} files {AZURE2021_FILES}; name the one to load.")
    raise InputError(f"{folder} holds no trace; looked for {_LOOKED_FOR}.")


def _plain_or_gzip(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _load_file(path: Path, max_functions: int | None) -> Trace:
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a folder or file of a trace: {_LOOKED_FOR}.")
    columns = csvtable.read_header(path)
    if set(azure2021.COLUMNS) <= set(columns):
        return azure2021.load(path, max_functions=max_functions)
    if azure2019.FUNCTION in columns:
        return invitro.load(path, None, None, max_functions=max_functions)
    raise InputError(
        f"{path}, row 1: the header starts with {','.join(columns)[:60]!r}; expected {','.join(azure2021.COLUMNS)} "
        "(Azure 2021), or HashOwner,HashApp,HashFunction,Trigger and minutes (Azure 2019, invitro).",
    )
