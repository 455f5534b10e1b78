"""The bounds: what perfect foresight of the counts would do. Both look ahead, as no policy can.

`oracle_keepalive` may only keep what is there: in minute accounting it has, of every keep-alive policy, the least
price-weighted sum of cold starts and wasted memory. `oracle_prewarm` may also start containers ahead of a call.

Their schedules for event accounting foresee minutes, not arrivals: they know neither the moment in the minute nor how
many calls overlap, so there they are strong policies rather than bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mesp.errors import InputError
from mesp.types import MB_PER_GB
from mesp_bench.policies.base import (
    MINUTE_S,
    NEVER,
    IntArray,
    keep_alive_schedule,
    mean_containers,
    minutes_since_active,
    minutes_until_active,
)
from mesp_bench.schedule import WarmSchedule

if TYPE_CHECKING:
    from mesp.types import BoolArray
    from mesp_bench.traces.model import Trace


class OracleKeepAlive:
    """Keep a container over a gap iff the idle memory costs less than the cold start that it saves.

    The gap is the idle minutes between two active ones: 0 between neighbours. The trace's memory must be known
    (`mesp_bench.ledger.fill_defaults`).
    """

    name: ClassVar[str] = "oracle_keepalive"
    knob_unit: ClassVar[str] = "price of a cold start, GB s"
    knobs: ClassVar[tuple[float, ...]] = (5, 10, 20, 40, 80.5, 160, 320, 640, 1280, 2560)
    constant_idle_mb: ClassVar[float] = 0.0

    def loaded(self, trace: Trace, knob: float) -> BoolArray:
        """Loaded in every minute of a gap worth keeping, its closing active minute included, (F, M)."""
        active = trace.counts > 0
        since = minutes_since_active(active)
        until = np.where(active, 0, minutes_until_active(active))
        return (since < NEVER) & (until < NEVER) & self._worth(trace, since + until - 1, knob)

    def schedule(self, trace: Trace, knob: float) -> WarmSchedule:
        """Keep-alive to the end of the next active minute where the gap is worth it, to the end of this one otherwise.

        Foresight is of minutes: a container is kept through a minute with more calls than one, and removed
        when idle after a minute's only call if the gap that follows is not worth it.
        """
        until = minutes_until_active(trace.counts > 0)
        worth = (until < NEVER) & self._worth(trace, until - 1, knob)
        ahead = np.where(worth, until + 1, trace.counts > 1)
        return keep_alive_schedule((ahead * MINUTE_S).astype(np.float32))

    def _worth(self, trace: Trace, idle_minutes: IntArray, price_gb_s: float) -> BoolArray:
        if not price_gb_s > 0:
            raise InputError(f"{self.name}: knob = {price_gb_s:g} GB s, the price of a cold start must be above 0")
        idle_gb_s = trace.memory_mb[:, None] / MB_PER_GB * MINUTE_S * idle_minutes
        return np.asarray(idle_gb_s < price_gb_s)


class OraclePrewarm:
    """Load exactly what is called, from the second active minute on; only compulsory cold starts are left.

    In minute accounting it wastes nothing, whatever the knob. In event accounting containers are ordered `knob`
    seconds before the minute begins, and the rest of the minute is charged. Durations must be known
    (`mesp_bench.ledger.fill_defaults`).
    """

    name: ClassVar[str] = "oracle_prewarm"
    knob_unit: ClassVar[str] = "s of lead"
    knobs: ClassVar[tuple[float, ...]] = (0.808, 3.24, 10, 30, 60)
    constant_idle_mb: ClassVar[float] = 0.0

    def loaded(self, trace: Trace, knob: float) -> BoolArray:  # noqa: ARG002  minutes charge no lead
        """Loaded in every active minute but a function's first, (F, M)."""
        active = trace.counts > 0
        return active & (minutes_since_active(active) < NEVER)

    def schedule(self, trace: Trace, knob: float) -> WarmSchedule:
        """A floor of the minute's mean concurrency, rounded up, in every active minute but the first."""
        if not 0 <= knob <= MINUTE_S:
            raise InputError(f"{self.name}: knob = {knob:g} s, the lead must be within 0 and 60 s")
        containers = np.minimum(mean_containers(trace.counts, trace.duration_ms), np.iinfo(np.int16).max)
        floor = np.where(self.loaded(trace, knob), containers, 0).astype(np.int16)
        return WarmSchedule(
            keep_alive_s=np.full(floor.shape, MINUTE_S, np.float32),
            prewarm_after_s=np.zeros(floor.shape, np.float32),
            floor=floor,
            early_floor=floor,
            lead_s=knob,
            release=True,
        )
