"""A trace as a Parquet cache: everything a `Trace` holds, quick to read back, exactly.

A folder with `trace.parquet` (a row per function) and `manifest.json`, which carries what is not per function and
the Parquet file's checksum, so that damage is told before it is read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mesp.errors import InputError
from mesp.types import FunctionKey

from .csvtable import checksum
from .model import Trace

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_FILE = "manifest.json"
TABLE_FILE = "trace.parquet"
_FORMAT = "mesp-trace-1"


def write(trace: Trace, folder: Path) -> None:
    """Write the cache into an existing, empty folder."""
    table = pl.DataFrame(
        {
            "scope": [key.scope for key in trace.functions],
            "name": [key.name for key in trace.functions],
            "app": trace.apps,
            "trigger": trace.triggers,
            "memory_mb": trace.memory_mb,
            "app_memory_mb": trace.app_memory_mb,
            "duration_ms": trace.duration_ms,
            "duration_percentiles_ms": trace.duration_percentiles_ms,
            "counts": trace.counts,
        },
    )
    if trace.arrivals_s is not None:
        arrivals = pl.Series("arrivals_s", [part.tolist() for part in trace.arrivals_s], pl.List(pl.Float64))
        table = table.with_columns(arrivals)
    if trace.duration_count is not None:
        table = table.with_columns(pl.Series("duration_count", trace.duration_count))
    table.write_parquet(folder / TABLE_FILE, row_group_size=10_000)
    manifest = {
        "format": _FORMAT,
        "name": trace.name,
        "start_minute": trace.start_minute,
        "checksum": trace.checksum,
        "table_checksum": checksum([folder / TABLE_FILE]),
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, *, max_functions: int | None) -> Trace:
    """Read back what `write` wrote.

    Raises:
        InputError: no such cache, of another version, or damaged.
    """
    manifest = _manifest(folder / MANIFEST_FILE)
    if checksum([folder / TABLE_FILE]) != manifest["table_checksum"]:
        raise InputError(f"{folder / TABLE_FILE} is not the file its manifest describes; convert the trace again.")
    table = pl.read_parquet(folder / TABLE_FILE, n_rows=max_functions)
    columns = {name: table.get_column(name) for name in table.columns}
    arrivals = columns.get("arrivals_s")
    counted = columns.get("duration_count")
    return Trace(
        name=manifest["name"],
        functions=tuple(FunctionKey(*key) for key in table.select("scope", "name").iter_rows()),
        counts=columns["counts"].to_numpy(),
        start_minute=manifest["start_minute"],
        apps=tuple(columns["app"].to_list()),
        triggers=tuple(columns["trigger"].to_list()),
        memory_mb=columns["memory_mb"].to_numpy(),
        app_memory_mb=columns["app_memory_mb"].to_numpy(),
        duration_ms=columns["duration_ms"].to_numpy(),
        duration_percentiles_ms=columns["duration_percentiles_ms"].to_numpy(),
        arrivals_s=None if arrivals is None else tuple(np.array(part, dtype=np.float64) for part in arrivals),
        checksum=manifest["checksum"],
        duration_count=None if counted is None else counted.to_numpy(),
    )


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, checked."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no manifest of a trace ({error}); convert the trace again.") from error
    fields = {"format": str, "name": str, "start_minute": int, "checksum": str, "table_checksum": str}
    for field, kind in fields.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(field), kind):
            raise InputError(f"{path}, key {field}: missing or not of type {kind.__name__}; convert the trace again.")
    if manifest["format"] != _FORMAT:
        raise InputError(f"{path}, key format: {manifest['format']!r} is not allowed; expected {_FORMAT!r}.")
    return dict(manifest)
