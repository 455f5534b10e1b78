"""The same calls without and with MESP, pair by pair: what those that were cold without it waited, and whom it delayed.

    python -m e2e.openwhisk.paired out/calls-classic-off.csv out/calls-classic-on.csv

The files are those of two `mesp replay` of the same minutes and seed; calls of the warm-up are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import polars as pl

#: What a caller may notice.
_NOTICEABLE_MS = 10


def lines(off: Path, on: Path) -> list[str]:
    """What is told of two files of calls; times are medians but where it says otherwise."""
    without, beside = (_read(path) for path in (off, on))
    was_cold, is_cold = without["cold"] == 1, beside["cold"] == 1
    off_ms, on_ms = without["start_ms"], beside["start_ms"]
    spared = was_cold & ~is_cold
    later_ms = (beside["latency_ms"] - without["latency_ms"]).filter(~was_cold)
    late_ms = later_ms.filter(later_ms >= _NOTICEABLE_MS).to_list()
    most_ms = max(on_ms.filter(spared).to_list(), default=0.0)
    return [
        f"{len(without)} calls, {was_cold.sum()} cold without MESP, {is_cold.sum()} with",
        f"wait and /init of these {was_cold.sum()}: {_median(off_ms, was_cold)} ms, {_median(on_ms, was_cold)} ms with MESP",
        f"of the {spared.sum()} made warm: {_median(off_ms, spared)} ms, {_median(on_ms, spared)} ms, {most_ms:.0f} at most",
        f"{len(later_ms)} warm without: {(is_cold & ~was_cold).sum()} cold with",
        f"{len(late_ms)} of them took {_NOTICEABLE_MS} ms longer or more, {max(late_ms, default=0.0):.0f} ms at most",
    ]


def _median(values: pl.Series, of: pl.Series) -> str:
    chosen = values.filter(of).to_list()
    return f"{median(chosen):.0f}" if chosen else "-"


def _read(path: Path) -> pl.DataFrame:
    calls = pl.read_csv(path).filter(pl.col("intended_ms") >= 0).sort("intended_ms", "function")
    return calls.with_columns(
        start_ms=pl.col("wait_ms") + pl.col("init_ms").cast(pl.Float64).fill_null(0),
        latency_ms=pl.col("done_ms") - pl.col("intended_ms"),
    )


if __name__ == "__main__":
    print("\n".join(lines(*map(Path, sys.argv[1:]))))  # noqa: T201 (its voice)
