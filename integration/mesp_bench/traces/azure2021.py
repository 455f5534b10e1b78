"""The Azure Functions 2021 trace: one row per invocation, `app,func,end_timestamp,duration`, in seconds.

Schema: github.com/Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md (CC-BY 4.0; Zhang et al.,
SOSP 2021). An invocation arrived at end_timestamp - duration; what was running when the recording began counts as
arriving at 0. The files tell neither owner, trigger nor memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mesp.errors import InputError
from mesp.types import FunctionKey

from . import csvtable
from .assemble import UNKNOWN
from .csvtable import Kind
from .model import DURATION_PERCENTILES, Trace

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

COLUMNS = ("app", "func", "end_timestamp", "duration")

#: A year. The published trace is two weeks long; far beyond it a time stamp is no offset but a date, or damage.
MAX_END_S = 366 * 86_400


def load(path: Path, *, max_functions: int | None) -> Trace:
    """Counts per minute, arrival times and run times of the functions in order of their first row.

    Raises:
        InputError: naming file, row, column, value and what is allowed.
    """
    columns = csvtable.read_header(path)
    csvtable.require(path, columns, COLUMNS)
    kinds = dict.fromkeys(columns, Kind.IGNORED) | dict.fromkeys(("app", "func"), Kind.ID)
    kinds |= dict.fromkeys(("end_timestamp", "duration"), Kind.MEASURE)
    rows: dict[tuple[str, str], int] = {}
    functions, arrivals, durations = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0)]
    for frame, first_row in csvtable.read_blocks(path, kinds):
        end_s = frame.get_column("end_timestamp").to_numpy()
        if end_s.size and end_s.max() > MAX_END_S:
            row = int(np.argmax(end_s > MAX_END_S))
            raise InputError(
                f"{path}, row {first_row + row}, column end_timestamp: {end_s[row]} is not allowed; "
                f"expected seconds from the start of the trace, 0 to {MAX_END_S}.",
            )
        duration_s = frame.get_column("duration").to_numpy()
        codes = np.array([_code(rows, key, max_functions) for key in frame.select("app", "func").iter_rows()], np.int64)
        functions.append(codes[codes >= 0])
        arrivals.append(np.maximum(end_s - duration_s, 0.0)[codes >= 0])
        durations.append(duration_s[codes >= 0])
    if not rows:
        raise InputError(f"{path} holds no functions: expected at least one row.")
    return _trace(path, list(rows), np.concatenate(functions), np.concatenate(arrivals), np.concatenate(durations))


def _code(rows: dict[tuple[str, str], int], key: tuple[str, str], max_functions: int | None) -> int:
    """The row of a function, a new one if there is room, else -1."""
    if key not in rows and max_functions is not None and len(rows) >= max_functions:
        return -1
    return rows.setdefault(key, len(rows))


def _trace(
    path: Path,
    keys: list[tuple[str, str]],
    codes: npt.NDArray[np.int64],
    arrivals_s: npt.NDArray[np.float64],
    durations_s: npt.NDArray[np.float64],
) -> Trace:
    """Group the invocations by function."""
    order = np.lexsort((arrivals_s, codes))
    bounds = np.searchsorted(codes[order], np.arange(1, len(keys)))
    per_function = tuple(np.split(arrivals_s[order], bounds))
    durations_ms = [1_000 * part for part in np.split(durations_s[order], bounds)]
    minutes = int(arrivals_s.max() // 60) + 1
    counts = np.zeros((len(keys), minutes), dtype=np.uint32)
    np.add.at(counts, (codes, (arrivals_s // 60).astype(np.int64)), 1)
    return Trace(
        name=path.resolve().parent.name,
        functions=tuple(FunctionKey(UNKNOWN, f"{app}/{function}") for app, function in keys),
        counts=counts,
        start_minute=0,
        apps=tuple(f"{UNKNOWN}/{app}" for app, _ in keys),
        triggers=(UNKNOWN,) * len(keys),
        memory_mb=np.full(len(keys), np.nan),
        app_memory_mb=np.full(len(keys), np.nan),
        duration_ms=np.array([part.mean() for part in durations_ms]),
        duration_percentiles_ms=np.array([np.percentile(part, DURATION_PERCENTILES) for part in durations_ms]),
        arrivals_s=per_function,
        checksum=csvtable.checksum([path]),
    )
