"""`WarmSchedule`: what a policy does in event accounting, in one form that the fast path and the slow path obey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class WarmSchedule:
    """Warmth per function f and minute m, decided from the counts of earlier minutes.

    Attributes:
        keep_alive_s: a container that goes idle in minute m is removed after this long without work, (F, M)
            float32; inf means never, 0 at once.
        prewarm_after_s: 0: none. Otherwise a container that goes idle in minute m is removed at once, and a new one is
            ordered this long after the function's last idle moment, unless the function was invoked again before;
            it stays `keep_alive_s` after it is ready, (F, M) float32 (hybrid histogram).
        floor: containers (idle, busy or creating) wanted from the start of minute m, known from minutes <= m-1;
            -1: no directive, (F, M) int16.
        early_floor: the same, known from minutes <= m-2, in force from `lead_s` before minute m begins, so that a
            container is ready when it does; -1: no directive, (F, M) int16. At the start of minute m `floor` replaces it.
        lead_s: how long before minute m `early_floor` is in force.
        release: at the start of minute m idle containers above `floor` are removed, longest idle first. Containers
            inside the floor outlive their keep-alive.
        hold_s: with `release`, while the floor is at least 1, idle containers above it stay until they have been idle for
            this long, (F,) float32; None: they go at once.
    """

    keep_alive_s: npt.NDArray[np.float32]
    prewarm_after_s: npt.NDArray[np.float32]
    floor: npt.NDArray[np.int16]
    early_floor: npt.NDArray[np.int16]
    lead_s: float
    release: bool
    hold_s: npt.NDArray[np.float32] | None = None
