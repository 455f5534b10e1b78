"""The containers of a pool that shows only its size, told from the runs that were seen.

A cold run made a container, a warm one used one that was idle; after its run a container stays ready for 10 s
(pause-grace) and paused for 10 min (idle-container), then it is gone, and a failed run destroys it. Two things put the
estimate right: a cold run while a container of the function was believed idle proves that this one had been evicted,
and the pool's gauge of memory bounds how many there can be, of which the longest idle were evicted first
(ContainerPool.scala of apache/openwhisk, `remove`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mesp_placement.model import Container, ContainerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.messages import ActivationRecord

#: `whisk.container-proxy.timeouts`: pause-grace and idle-container.
READY_MS: Final = 10_000
PAUSED_MS: Final = 600_000
KEPT_MS: Final = READY_MS + PAUSED_MS
#: The gauges are at most so old: they are set every 10 s and collected within 2 s.
GAUGE_AGE_MS: Final = 12_000
#: How a run ended that takes its container with it: the code threw, ran too long, or the platform failed.
_DESTROYS: Final = frozenset({2, 3})


@dataclass(slots=True)
class _Warm:
    id: str
    memory_mb: float
    idle_since_ms: int
    marker: str | None


class PoolEstimate:
    """Warm containers by function on one node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._warm: defaultdict[FunctionKey, list[_Warm]] = defaultdict(list)
        self._ids = itertools.count(1)

    def ran(self, record: ActivationRecord, memory_mb: float, marker: str | None = None) -> str | None:
        """Takes in a run that ended; records must come in the order of their arrivals.

        Args:
            record: of the run.
            memory_mb: of the function's container.
            marker: the order that the run was for; None for a user's call.

        Returns:
            the marker whose container a user's call has met, once.
        """
        arrived_ms = record.start_ms - record.wait_ms
        warm = self._warm[record.function]
        idle = [container for container in warm if container.idle_since_ms <= arrived_ms]
        met: str | None = None
        if record.init_ms > 0:
            for evicted in idle:
                warm.remove(evicted)
            container = _Warm(f"{record.function}#{next(self._ids)}", memory_mb, record.end_ms, marker)
        elif idle:
            container = max(idle, key=lambda one: one.idle_since_ms)
            warm.remove(container)
            container.idle_since_ms = record.end_ms
            if marker is None:
                met, container.marker = container.marker, None
        else:
            container = _Warm(f"{record.function}#{next(self._ids)}", memory_mb, record.end_ms, None)
        if record.status_code not in _DESTROYS:
            warm.append(container)
        return met

    def bound(self, total_mb: float, now_ms: int) -> None:
        """No more than `total_mb`, as a gauge told, are in containers that have been idle for as long as it is old."""
        old = [
            (container.idle_since_ms, function, container)
            for function, warm in self._warm.items()
            for container in warm
            if container.idle_since_ms <= now_ms - GAUGE_AGE_MS
        ]
        surplus_mb = sum(container.memory_mb for _, _, container in old) - total_mb
        for _, function, container in sorted(old, key=lambda item: (item[0], item[2].id)):
            if surplus_mb <= 0:
                return
            self._warm[function].remove(container)
            surplus_mb -= container.memory_mb

    def containers(
        self, now_ms: int, in_flight: Mapping[FunctionKey, int], memory_mb: Mapping[FunctionKey, float]
    ) -> list[Container]:
        """What is there now, of the functions in `memory_mb`; each call in flight occupies one.

        Calls take the idle ones first, then stand for one each that is being made. What was kept too long is gone.
        """
        found: list[Container] = []
        for function, size_mb in memory_mb.items():
            warm = [one for one in self._warm.get(function, ()) if now_ms - one.idle_since_ms < KEPT_MS]
            self._warm[function] = warm
            busy = in_flight.get(function, 0)
            by_use = sorted(warm, key=lambda one: (-one.idle_since_ms, one.id))
            for place, one in enumerate(by_use):
                state = ContainerState.IDLE if now_ms - one.idle_since_ms < READY_MS else ContainerState.PAUSED
                if place < busy:
                    found.append(Container(one.id, function, self._node, ContainerState.BUSY, size_mb))
                else:
                    since_ms, owned = one.idle_since_ms, one.marker is not None
                    found.append(Container(one.id, function, self._node, state, size_mb, since_ms, owned))
            found += [
                Container(f"{function}+{extra}", function, self._node, ContainerState.BUSY, size_mb)
                for extra in range(busy - len(by_use))
            ]
        return found

    def idle(self, now_ms: int, function: FunctionKey) -> int:
        """Warm containers of the function: those that a marker would meet rather than add to, unless calls do."""
        return sum(now_ms - one.idle_since_ms < KEPT_MS for one in self._warm.get(function, ()))

    def markers(self) -> set[str]:
        """Orders whose containers are there and were not used."""
        return {one.marker for warm in self._warm.values() for one in warm if one.marker}
