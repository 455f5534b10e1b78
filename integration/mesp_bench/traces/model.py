"""The `Trace`: counts per function and minute, with durations, memory and triggers where recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mesp.types import Trigger

if TYPE_CHECKING:
    from mesp.types import FunctionKey

_TRIGGERS = {trigger.name.lower(): trigger for trigger in Trigger}
#: Percentiles of the duration distribution that the Azure 2019 files give.
DURATION_PERCENTILES: tuple[int, ...] = (0, 1, 25, 50, 75, 99, 100)


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded invocations of F functions over M minutes.

    Attributes:
        name: where it came from, for reports.
        functions: keys in row order; scope is the owner, name is ``app/function``.
        counts: invocations per minute, (F, M) uint32.
        start_minute: absolute number of the first column's minute (0 = 00:00 of day 1).
        apps: the app of each function, ``owner/app``, (F,) entries.
        triggers: trigger per function, ``http``, ``timer``, ... or ``unknown``, (F,) entries.
        memory_mb: one function's share: the app's recorded average / the app's functions in the trace, (F,); NaN unknown.
        app_memory_mb: the app's memory as recorded, (F,); NaN where unknown.
        duration_ms: mean run time, (F,); NaN where unknown.
        duration_percentiles_ms: (F, 7) at DURATION_PERCENTILES; NaN where unknown.
        arrivals_s: recorded arrival times in seconds from the first column's start, one sorted array per
            function, where the source has them (Azure 2021); None where only counts are known.
        checksum: SHA-256 over the source files' bytes.
        duration_count: invocations that the duration files counted, (F,) int64, -1 where unknown; None without
            duration files for every day. It should equal the row sum: a difference is a sign of a corrupt copy.
    """

    name: str
    functions: tuple[FunctionKey, ...]
    counts: npt.NDArray[np.uint32]
    start_minute: int
    apps: tuple[str, ...]
    triggers: tuple[str, ...]
    memory_mb: npt.NDArray[np.float64]
    app_memory_mb: npt.NDArray[np.float64]
    duration_ms: npt.NDArray[np.float64]
    duration_percentiles_ms: npt.NDArray[np.float64]
    arrivals_s: tuple[npt.NDArray[np.float64], ...] | None
    checksum: str
    duration_count: npt.NDArray[np.int64] | None = None

    @property
    def minutes(self) -> int:
        """Number of minutes recorded."""
        return int(self.counts.shape[1])

    @property
    def invoked_by(self) -> tuple[Trigger, ...]:
        """The triggers in the words of the wire, (F,) entries."""
        return tuple(_TRIGGERS.get(name, Trigger.OTHERS) for name in self.triggers)

    def select(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Trace:
        """The same trace with only these rows (indices or mask, (F,)); memory shares stay as computed on the whole."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Trace(
            name=self.name,
            functions=tuple(self.functions[i] for i in index),
            counts=self.counts[index],
            start_minute=self.start_minute,
            apps=tuple(self.apps[i] for i in index),
            triggers=tuple(self.triggers[i] for i in index),
            memory_mb=self.memory_mb[index],
            app_memory_mb=self.app_memory_mb[index],
            duration_ms=self.duration_ms[index],
            duration_percentiles_ms=self.duration_percentiles_ms[index],
            arrivals_s=None if self.arrivals_s is None else tuple(self.arrivals_s[i] for i in index),
            checksum=self.checksum,
            duration_count=None if self.duration_count is None else self.duration_count[index],
        )
