"""Writing the official Azure 2019 files: a day's invocations, durations and app memory.

Rows come in chunks, so that a day of any number of functions is written in bounded memory, and the same values always
give the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import polars as pl

from .azure2019 import (
    APP,
    DURATIONS_FILE,
    FUNCTION,
    INVOCATIONS_FILE,
    MEMORY_COLUMN,
    MEMORY_FILE,
    OWNER,
    PERCENTILE_COLUMNS,
    TRIGGER,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from .assemble import FunctionId

#: Percentiles over samples of an app's memory that the official files give.
MEMORY_PERCENTILES: tuple[int, ...] = (1, 5, 25, 50, 75, 95, 99, 100)


class DayWriter:
    """The three files of one day in a folder; use as a context manager.

    Args:
        folder: where the files go.
        day: from 1; names the files.
        first_minute: label of the first minute column (1 for a whole day).
    """

    def __init__(self, folder: Path, day: int, *, first_minute: int = 1) -> None:
        names = (INVOCATIONS_FILE, DURATIONS_FILE, MEMORY_FILE)
        self._files = [(folder / name.format(day=day)).open("wb") for name in names]
        self._started = [False] * 3
        self._first_minute = first_minute

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def invocations(self, ids: Sequence[FunctionId], triggers: Sequence[str], counts: npt.NDArray[np.uint32]) -> None:
        """Append functions with their counts, (F, minutes)."""
        labels = [str(self._first_minute + minute) for minute in range(counts.shape[1])]
        keys = [*_columns((OWNER, APP, FUNCTION), ids), pl.Series(TRIGGER, triggers, pl.String)]
        self._append(0, [*keys, *(pl.Series(*column) for column in zip(labels, counts.T, strict=True))])

    def durations(
        self, ids: Sequence[FunctionId], count: npt.NDArray[np.int64], mean_percentiles_ms: npt.NDArray[np.float64]
    ) -> None:
        """Append functions with their invocations, (F,), and mean and percentiles, (F, 1 + percentiles); NaN unknown."""
        mean, *percentiles = mean_percentiles_ms.T
        self._append(
            1,
            [
                *_columns((OWNER, APP, FUNCTION), ids),
                pl.Series("Average", mean),
                pl.Series("Count", count),
                pl.Series("Minimum", percentiles[0]),
                pl.Series("Maximum", percentiles[-1]),
                *(pl.Series(*column) for column in zip(PERCENTILE_COLUMNS, percentiles, strict=True)),
            ],
        )

    def memory(
        self,
        apps: Sequence[tuple[str, str]],
        samples: npt.NDArray[np.int64],
        average_mb: npt.NDArray[np.float64],
        percentiles_mb: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Append apps with their samples and average, (A,), and (A, MEMORY_PERCENTILES) where known."""
        names = [f"{MEMORY_COLUMN}_pct{p}" for p in MEMORY_PERCENTILES]
        known = [] if percentiles_mb is None else [pl.Series(*c) for c in zip(names, percentiles_mb.T, strict=True)]
        average = pl.Series(MEMORY_COLUMN, average_mb)
        self._append(2, [*_columns((OWNER, APP), apps), pl.Series("SampleCount", samples), average, *known])

    def _append(self, file: int, columns: list[pl.Series]) -> None:
        frame = pl.DataFrame(columns)
        frame = frame.with_columns(pl.col(pl.Float64).fill_nan(None))
        frame.write_csv(self._files[file], include_header=not self._started[file], quote_style="never")
        self._started[file] = True


def _columns(names: Sequence[str], ids: Sequence[tuple[str, ...]]) -> list[pl.Series]:
    return [pl.Series(name, [key[i] for key in ids], pl.String) for i, name in enumerate(names)]
