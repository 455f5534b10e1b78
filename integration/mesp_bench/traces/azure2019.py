"""The Azure Functions 2019 trace: three files a day, read as published.

Schema: github.com/Azure/AzurePublicDataset, AzureFunctionsDataset2019.md (CC-BY 4.0; Shahrad et al., ATC 2020).
invocations_per_function_md.anon.dNN.csv holds a row per function with 1,440 counts and lists only functions invoked
that day; function_durations_percentiles.anon.dNN.csv run times without cold start, in ms;
app_memory_percentiles.anon.dNN.csv the memory of an app, not of a function (missing for days 13 and 14).
invitro's files have the same columns and are read by the same code.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from mesp.errors import InputError

from . import csvtable
from .assemble import UNKNOWN, FunctionId, Invocations, Mean, build_trace
from .csvtable import Kind
from .model import DURATION_PERCENTILES, Trace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy.typing as npt

MINUTES_PER_DAY = 1_440

OWNER, APP, FUNCTION, TRIGGER = "HashOwner", "HashApp", "HashFunction", "Trigger"
PERCENTILE_COLUMNS = tuple(f"percentile_Average_{p}" for p in DURATION_PERCENTILES)
MEMORY_COLUMN = "AverageAllocatedMb"

INVOCATIONS_FILE = "invocations_per_function_md.anon.d{day:02}.csv"
DURATIONS_FILE = "function_durations_percentiles.anon.d{day:02}.csv"
MEMORY_FILE = "app_memory_percentiles.anon.d{day:02}.csv"


def day_files(folder: Path, template: str) -> dict[int, Path]:
    """The files of one kind in a folder by day, gzipped or not.

    Raises:
        InputError: a day stands there twice.
    """
    pattern = re.compile(re.escape(template).replace(re.escape("{day:02}"), r"(\d{2})") + r"(\.gz)?")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            day = int(match[1])
            if day in found:
                raise InputError(f"{folder} holds day {day} twice, as {found[day].name} and {path.name}; keep one.")
            found[day] = path
    return dict(sorted(found.items()))


def load(folder: Path, *, max_functions: int | None) -> Trace:
    """All days of a folder, concatenated by function; durations and memory where there are files of these days."""
    invocations = day_files(folder, INVOCATIONS_FILE)
    durations = day_files(folder, DURATIONS_FILE)
    memory = day_files(folder, MEMORY_FILE)
    days: list[Invocations] = []
    wanted: dict[FunctionId, None] = {}
    for day, path in invocations.items():
        days.append(read_invocations(path, day=day, wanted=wanted, max_functions=max_functions))
    run_times, counted, app_memory = Mean(), dict[FunctionId, int](), Mean()
    for day in sorted(durations.keys() & invocations.keys()):
        read_durations(durations[day], wanted, (OWNER, APP, FUNCTION), run_times, counted)
    apps = {function[:2] for function in wanted}
    for day in sorted(memory.keys() & invocations.keys()):
        read_app_memory(memory[day], apps, app_memory)
    return build_trace(
        folder.resolve().name,
        days,
        durations=run_times,
        duration_count=counted if invocations.keys() <= durations.keys() else None,
        app_memory=app_memory,
        function_memory=Mean(),
        checksum=csvtable.checksum([*invocations.values(), *durations.values(), *memory.values()]),
    )


def read_invocations(
    path: Path,
    *,
    day: int = 1,
    wanted: dict[FunctionId, None] | None = None,
    max_functions: int | None = None,
    ids_required: bool = True,
) -> Invocations:
    """One file of counts: ids and trigger, then consecutive minutes, numbered from 1 (or a window such as 480..959).

    Args:
        path: the file.
        day: the file's day, from 1: minute 1 of day 1 is absolute minute 0.
        wanted: functions met so far over all days; new ones are added up to `max_functions`, others are skipped.
        max_functions: the most functions to meet; None for all.
        ids_required: whether owner, app and trigger must be there; where they may lack, the owner and trigger read
            ``unknown``, and a function is its own app.

    Raises:
        InputError: naming file, row, column, value and what is allowed.
    """
    columns = csvtable.read_header(path)
    csvtable.require(path, columns, (OWNER, APP, FUNCTION, TRIGGER) if ids_required else (FUNCTION,))
    texts = [column for column in columns if column in {OWNER, APP, FUNCTION, TRIGGER}]
    minutes = [column for column in columns if column not in texts]
    start = _start_minute(path, minutes)
    kinds = {column: Kind.ID if column in texts else Kind.COUNT for column in columns}
    wanted = {} if wanted is None else wanted
    first_file = not wanted
    seen: dict[FunctionId, int] = {}
    ids: list[FunctionId] = []
    triggers: list[str] = []
    blocks: list[npt.NDArray[np.uint32]] = []
    for frame, first_row in csvtable.read_blocks(path, kinds):
        function = frame.get_column(FUNCTION).to_list()
        owner = frame.get_column(OWNER).to_list() if OWNER in texts else [UNKNOWN] * len(function)
        app = frame.get_column(APP).to_list() if APP in texts else function
        trigger = frame.get_column(TRIGGER).to_list() if TRIGGER in texts else [UNKNOWN] * len(function)
        keep: list[int] = []
        for row, key in enumerate(map(FunctionId, owner, app, function)):
            if key in seen:
                raise InputError(
                    f"{path}, row {first_row + row}, column {FUNCTION}: {key.function!r} stands in row {seen[key]} "
                    "already; a function is allowed once a day.",
                )
            seen[key] = first_row + row
            if key in wanted or max_functions is None or len(wanted) < max_functions:
                wanted[key] = None
                keep.append(row)
                ids.append(key)
                triggers.append(trigger[row])
        counts = frame.select(minutes).to_numpy(order="c")
        blocks.append(counts if len(keep) == len(function) else counts[keep])
        if first_file and max_functions is not None and len(wanted) >= max_functions:
            break
    id_columns = tuple(column for column in texts if column != TRIGGER)
    return Invocations(ids, triggers, _stack(blocks, len(minutes)), (day - 1) * MINUTES_PER_DAY + start, id_columns)


def _stack(blocks: list[npt.NDArray[np.uint32]], minutes: int) -> npt.NDArray[np.uint32]:
    """Blocks on top of each other; each is let go once copied, and the pages of the result are touched only then."""
    counts = np.empty((sum(len(block) for block in blocks), minutes), dtype=np.uint32)
    end = len(counts)
    while blocks:
        block = blocks.pop()
        counts[end - len(block) : end] = block
        end -= len(block)
    return counts


def _start_minute(path: Path, minutes: list[str]) -> int:
    """The minute, from 0, of the first count column.

    Column 1 is 00:00, so 480 is 07:59; a header that starts at 0 counts from 0.
    """
    if not minutes:
        raise InputError(f"{path}, row 1: no minute columns; expected consecutive numbers such as 1 to 1440.")
    first = int(minutes[0]) if re.fullmatch(r"[0-9]{1,9}", minutes[0]) else None
    for offset, column in enumerate(minutes):
        if first is None or column != str(first + offset):
            allowed = "a minute's number" if first is None else f"{first + offset}, as minutes are consecutive"
            raise InputError(f"{path}, row 1: column {column!r} is not allowed; expected {allowed}.")
    return max((first or 0) - 1, 0)


def read_durations(
    path: Path,
    wanted: Collection[FunctionId],
    id_columns: Collection[str],
    durations: Mean,
    counted: dict[FunctionId, int],
) -> None:
    """Add one file's run times (mean, then percentiles, in ms) and counts of the wanted functions.

    Args:
        path: the file.
        wanted: the functions to take; rows of others are checked and skipped.
        id_columns: the id columns that the invocations carry; functions are matched on those that both files have.
        durations: takes the run times, (1 + percentiles,) per function.
        counted: takes the counts.

    Raises:
        InputError: naming file, row, column, value and what is allowed.
    """
    columns = csvtable.read_header(path)
    csvtable.require(path, columns, (FUNCTION, "Average", "Count"))
    shared = [column for column in (OWNER, APP, FUNCTION) if column in columns and column in id_columns]
    kinds = dict.fromkeys(columns, Kind.IGNORED) | dict.fromkeys(shared, Kind.ID)
    kinds |= {"Average": Kind.MEASURE, "Count": Kind.TOTAL}
    kinds |= {column: Kind.MEASURE_OR_EMPTY for column in PERCENTILE_COLUMNS if column in columns}
    table = csvtable.read_table(path, kinds)
    lacking = [pl.lit(None, pl.Float64).alias(column) for column in PERCENTILE_COLUMNS if column not in columns]
    values = table.with_columns(lacking).select("Average", *PERCENTILE_COLUMNS).to_numpy().astype(np.float64)
    counts = table.get_column("Count").to_list()
    for row, function in _known_rows(path, table.select(shared), wanted):
        durations.add(function, counts[row], values[row])
        counted[function] = counted.get(function, 0) + counts[row]


def read_function_memory(path: Path, wanted: Collection[FunctionId], id_columns: Collection[str], memory: Mean) -> None:
    """Add one file's memory in MB of the wanted functions, as `read_durations`."""
    columns = csvtable.read_header(path)
    csvtable.require(path, columns, (FUNCTION, MEMORY_COLUMN))
    shared = [column for column in (OWNER, APP, FUNCTION) if column in columns and column in id_columns]
    kinds = dict.fromkeys(columns, Kind.IGNORED) | dict.fromkeys(shared, Kind.ID) | {MEMORY_COLUMN: Kind.MEASURE}
    table = csvtable.read_table(path, kinds)
    values = table.select(MEMORY_COLUMN).to_numpy()
    for row, function in _known_rows(path, table.select(shared), wanted):
        memory.add(function, 1, values[row])


def read_app_memory(path: Path, apps: Collection[tuple[str, str]], memory: Mean) -> None:
    """Add one file's memory in MB of the wanted apps; rows of the same app are averaged by SampleCount."""
    columns = csvtable.read_header(path)
    csvtable.require(path, columns, (OWNER, APP, "SampleCount", MEMORY_COLUMN))
    kinds = dict.fromkeys(columns, Kind.IGNORED) | dict.fromkeys((OWNER, APP), Kind.ID)
    kinds |= {"SampleCount": Kind.TOTAL, MEMORY_COLUMN: Kind.MEASURE}
    table = csvtable.read_table(path, kinds)
    values = table.select(MEMORY_COLUMN).to_numpy()
    samples = table.get_column("SampleCount").to_list()
    for row, app in enumerate(table.select(OWNER, APP).iter_rows()):
        if app in apps:
            memory.add(app, samples[row], values[row])


def _known_rows(path: Path, ids: pl.DataFrame, wanted: Collection[FunctionId]) -> Iterator[tuple[int, FunctionId]]:
    """The rows that name a wanted function, each function at most once."""
    fields = [(OWNER, APP, FUNCTION).index(column) for column in ids.columns]
    by_key = {tuple(function[i] for i in fields): function for function in wanted}
    seen: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(ids.iter_rows()):
        if key in seen:
            raise InputError(
                f"{path}, row {row + 2}, column {FUNCTION}: {key[-1]!r} stands in row {seen[key] + 2} already; "
                "a function is allowed once a file.",
            )
        seen[key] = row
        if key in by_key:
            yield row, by_key[key]
