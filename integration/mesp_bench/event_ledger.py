"""`EventLedger`: what event accounting counts, the same from the fast path and the slow path.

Memory is charged from the order of a container to its removal; whatever part of that it did not execute is waste.
Only what happens inside the scored window counts; intervals that reach over its edges are clipped to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class EventLedger:
    """The account of one simulated run over F functions.

    Attributes:
        invocations: arrivals in the scored window.
        cold: of these, the ones that waited for a container to be created and initialised.
        late_prewarms: of the cold ones, those that waited for the rest of a prewarm under way.
        created: containers ordered in the window, for whatever reason.
        waste_gb_s: memory x time not executing.
        total_gb_s: memory x time from order to removal.
        invocations_by_function: (F,) int64.
        cold_by_function: (F,) int64.
        waste_gb_s_by_function: (F,) float64.
        waited: invocations that did not start at once, cold or queued, as indices into `Arrivals.times_s`, (W,) int64.
        wait_s: how long each of them waited, (W,) float64.
        evictions: idle containers removed for another's sake (0 with unbounded memory).
        unserved: invocations still queued at the end of the window (not in `wait_s`).
    """

    invocations: int
    cold: int
    late_prewarms: int
    created: int
    waste_gb_s: float
    total_gb_s: float
    invocations_by_function: npt.NDArray[np.int64]
    cold_by_function: npt.NDArray[np.int64]
    waste_gb_s_by_function: npt.NDArray[np.float64]
    waited: npt.NDArray[np.int64]
    wait_s: npt.NDArray[np.float64]
    evictions: int = 0
    unserved: int = 0

    def wait_quantile_s(self, level: float) -> float:
        """The smallest wait that at least this share of all scored invocations did not exceed; 0 when there were none."""
        rank = math.ceil(level * (self.invocations - self.unserved))
        at_once = self.invocations - self.unserved - self.wait_s.size
        if rank <= at_once:
            return 0.0
        place = rank - at_once - 1
        return float(np.partition(self.wait_s, place)[place])

    @property
    def wait_p50_s(self) -> float:
        """Median wait of an invocation."""
        return self.wait_quantile_s(0.5)

    @property
    def wait_p95_s(self) -> float:
        """95th percentile of the wait."""
        return self.wait_quantile_s(0.95)

    @property
    def wait_p99_s(self) -> float:
        """99th percentile of the wait."""
        return self.wait_quantile_s(0.99)
