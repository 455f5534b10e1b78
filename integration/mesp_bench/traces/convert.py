"""Writing a trace: the official Azure 2019 files, or a Parquet cache, into a folder that appears complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mesp.errors import InputError

from . import parquet
from .assemble import FunctionId
from .azure2019 import MINUTES_PER_DAY
from .official import DayWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .model import Trace

#: Functions written at once.
CHUNK = 2_000


class Format(StrEnum):
    """What a trace can be written as."""

    AZURE2019 = "azure2019"
    PARQUET = "parquet"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name if the block succeeds, and vanishes if it fails.

    Raises:
        InputError: `out` is a file, or a folder that is not empty, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; name a new one, nothing is overwritten.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror or error}.") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert_trace(trace: Trace, out: Path, form: Format, progress: Callable[[float], None] = lambda _: None) -> None:
    """Write a trace to a new folder.

    `load_trace` reads the Parquet cache back identically. The official schema cannot hold everything: the name becomes
    the folder's, arrival times inside the minute are lost, an app's memory is shared anew among the functions written,
    and run times (which a `Trace` knows over all days) are written the same every day, with that day's invocations.

    Args:
        trace: what to write.
        out: the folder, new or empty.
        form: the format.
        progress: is told the share done, 0 to 1.

    Raises:
        InputError: the folder is not empty or cannot be written, or the trace does not fit the format.
    """
    with new_folder(out) as folder:
        if form is Format.PARQUET:
            parquet.write(trace, folder)
        else:
            _write_official(trace, folder, progress)
        progress(1.0)


def function_ids(trace: Trace) -> list[FunctionId]:
    """Owner, app and function of each row, taken apart again."""
    ids = []
    for key, app in zip(trace.functions, trace.apps, strict=True):
        app_id = app.removeprefix(f"{key.scope}/")
        ids.append(FunctionId(key.scope, app_id, key.name.removeprefix(f"{app_id}/")))
    return ids


def _write_official(trace: Trace, folder: Path, progress: Callable[[float], None]) -> None:
    ids = function_ids(trace)
    end = trace.start_minute + trace.minutes
    first_day, last_day = trace.start_minute // MINUTES_PER_DAY, (end - 1) // MINUTES_PER_DAY
    if last_day >= 99:
        raise InputError(f"{trace.name} reaches day {last_day + 1}; the official schema numbers days 01 to 99.")
    run_times = np.column_stack([trace.duration_ms, trace.duration_percentiles_ms])
    for day in range(first_day, last_day + 1):
        start, stop = max(trace.start_minute, day * MINUTES_PER_DAY), min(end, (day + 1) * MINUTES_PER_DAY)
        counts = trace.counts[:, start - trace.start_minute : stop - trace.start_minute]
        total = counts.sum(axis=1, dtype=np.int64)
        # The first day lists every function, to keep their order; later ones those invoked, as the published files do.
        listed = np.flatnonzero(total) if day > first_day else np.arange(len(total))
        with DayWriter(folder, day + 1, first_minute=start % MINUTES_PER_DAY + 1) as writer:
            for at in range(0, max(len(listed), 1), CHUNK):
                rows = listed[at : at + CHUNK]
                writer.invocations([ids[i] for i in rows], [trace.triggers[i] for i in rows], counts[rows])
                timed = rows[np.isfinite(trace.duration_ms[rows])]
                writer.durations([ids[i] for i in timed], total[timed], run_times[timed])
                done = start - trace.start_minute + (stop - start) * min((at + CHUNK) / max(len(listed), 1), 1)
                progress(done / trace.minutes)
            apps = {ids[i][:2]: i for i in listed if np.isfinite(trace.app_memory_mb[i])}
            samples = np.ones(len(apps), dtype=np.int64)
            writer.memory(list(apps), samples, trace.app_memory_mb[list(apps.values())])
