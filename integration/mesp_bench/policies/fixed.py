"""Fixed keep-alive: a container stays for the same time after every use, whatever the function is like."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mesp_bench.policies.base import MINUTE_S, keep_alive_schedule, minutes_since_active, whole_minutes

if TYPE_CHECKING:
    from mesp.types import BoolArray
    from mesp_bench.schedule import WarmSchedule
    from mesp_bench.traces.model import Trace


class Fixed:
    """Keep every container for `knob` minutes after it goes idle (AWS, Azure and OpenWhisk of old: 10)."""

    name: ClassVar[str] = "fixed"
    knob_unit: ClassVar[str] = "minutes"
    knobs: ClassVar[tuple[float, ...]] = (1, 2, 5, 10, 20, 30, 60, 120, 240)
    constant_idle_mb: ClassVar[float] = 0.0

    def loaded(self, trace: Trace, knob: float) -> BoolArray:
        """Loaded in minute m iff active in one of minutes m-knob..m-1, (F, M)."""
        return minutes_since_active(trace.counts > 0) <= whole_minutes(self.name, knob)

    def schedule(self, trace: Trace, knob: float) -> WarmSchedule:
        """`knob` minutes of keep-alive, in seconds."""
        keep_alive_s = whole_minutes(self.name, knob) * MINUTE_S
        return keep_alive_schedule(np.full(trace.counts.shape, keep_alive_s, np.float32))
