"""MESP as a policy: its forecasts of a trace, sized by the price of a cold start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mesp.types import MB_PER_GB
from mesp_bench.policies.base import MINUTE_S, loaded_by_price
from mesp_bench.schedule import WarmSchedule
from mesp_placement.sizing import Demand, hold_s, warm_count

if TYPE_CHECKING:
    import numpy.typing as npt

    from mesp.types import BoolArray
    from mesp_bench.forecasting import TraceForecast
    from mesp_bench.traces.model import Trace

#: A container for the next minute is ordered this long before it begins.
LEAD_S = 10.0


@dataclass(frozen=True, slots=True)
class Mesp:
    """Warm counts from the placement module's own sizing; the knob is the price of a cold start in GB s."""

    forecast: TraceForecast
    name: str = "mesp"
    knob_unit: str = "GB s"
    knobs: tuple[float, ...] = (5, 10, 20, 40, 60, 80.5, 120, 160, 240, 320, 480, 640, 800, 900, 1000, 1200, 1600, 3200)
    constant_idle_mb: float = 0.0

    def loaded(self, trace: Trace, knob: float) -> BoolArray:
        """Loaded in minute m iff the forecast from the minutes before makes it worth the price, (F, M)."""
        return loaded_by_price(self.forecast.active[0], trace.memory_mb, knob)

    def schedule(self, trace: Trace, knob: float) -> WarmSchedule:
        """Floors at the start of each minute, the next minute's known `LEAD_S` ahead; what exceeds them is released.

        As the planner does: at once where no call is expected, after the break-even time where some are.
        """
        return WarmSchedule(
            keep_alive_s=np.full(trace.counts.shape, np.inf, np.float32),
            prewarm_after_s=np.zeros(trace.counts.shape, np.float32),
            floor=self._floor(trace, knob, 0),
            early_floor=self._floor(trace, knob, 1),
            lead_s=LEAD_S,
            release=True,
            hold_s=hold_s(trace.memory_mb / MB_PER_GB, knob).astype(np.float32),
        )

    def _floor(self, trace: Trace, price_gb_s: float, ahead: int) -> npt.NDArray[np.int16]:
        active = self.forecast.active[ahead].astype(np.float64)
        functions, minutes = active.shape
        count = warm_count(
            Demand(
                active=active.ravel(),
                levels=np.array(self.forecast.levels),
                quantiles=self.forecast.quantiles[ahead].reshape(functions * minutes, -1).astype(np.float64),
                duration_s=np.repeat(trace.duration_ms / 1e3, minutes),
                concurrency=np.ones(functions * minutes, np.int64),
                step_s=MINUTE_S,
            ),
            np.repeat(trace.memory_mb / MB_PER_GB, minutes),
            price_gb_s,
        )
        return np.minimum(count, np.iinfo(np.int16).max).astype(np.int16).reshape(functions, minutes)
