"""`SimulatedPlatform`: the slow path of event accounting, a platform in virtual time that the real loop can drive.

Arrivals drawn beforehand meet the nodes of a `Cluster`, whose module tells its rules. What MESP does comes in through
`apply`: prewarms take their start time and evict nothing, releases take idle containers. `run_schedule` instead obeys a
`WarmSchedule`; with unbounded memory it keeps the ledger of `mesp_bench.fastpath`, to the invocation, although the two
share nothing but the rules.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mesp.types import DEFAULT_STEP_MS, StepCounts
from mesp_bench.cluster import Cluster, SimContainer
from mesp_bench.fastpath import check_inputs, hold_s
from mesp_placement.model import Container, ContainerState, FunctionProfile, Node, Snapshot
from mesp_plugin.platform import Outcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from mesp_bench.arrivals import Arrivals
    from mesp_bench.event_ledger import EventLedger
    from mesp_bench.schedule import WarmSchedule
    from mesp_placement.model import Plan

#: A single node whose memory never ends, as in the fast path.
UNBOUNDED: tuple[Node, ...] = (Node("unbounded", math.inf),)


class SimulatedPlatform:
    """A platform over drawn arrivals, in virtual time: `advance` moves it, and the three calls do so first.

    Args:
        arrivals: from `draw_arrivals`; virtual time begins with their first minute.
        memory_mb: memory of one container of each function, (F,), finite.
        nodes: at least one; `UNBOUNDED` takes everything.
        keep_alive_s: the platform's own keep-alive.
        concurrency: requests that one container executes at once.
        score_from_s: the ledger counts from here, in seconds from the trace's first column; None scores everything.
        epoch_ms: milliseconds since the epoch of the trace's first column.

    Raises:
        InputError: memory that is not finite or fits no node, no node, or a keep-alive that is no time.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        memory_mb: npt.NDArray[np.float64],
        *,
        nodes: Sequence[Node] = UNBOUNDED,
        keep_alive_s: float = 600.0,
        concurrency: int = 1,
        score_from_s: float | None = None,
        epoch_ms: int = 0,
    ) -> None:
        self.cluster = Cluster(arrivals, memory_mb, nodes, keep_alive_s, concurrency, score_from_s)
        self._nodes = tuple(nodes)
        self._concurrency = concurrency
        self._epoch_ms = epoch_ms
        self._by_key = {function.key: function for function in self.cluster.functions}
        self._observed = arrivals.first_minute

    def advance(self, until_ms: int) -> None:
        """Plays what happens before this time, and what ends at it; time never runs back."""
        self.cluster.advance_s((until_ms - self._epoch_ms) / 1000)

    def ledger(self) -> EventLedger:
        """The account up to now, whose scored window ends here."""
        return self.cluster.ledger()

    async def observe(self, now_ms: int) -> list[StepCounts]:
        """Counts of the minutes that closed since the last call, oldest first; complete."""
        self.advance(now_ms)
        closed = range(self._observed, int(self.cluster.now_s // 60.0))
        self._observed = max(self._observed, closed.stop)
        return [
            StepCounts(
                source="simulator",
                step_start_ms=self._epoch_ms + minute * DEFAULT_STEP_MS,
                step_ms=DEFAULT_STEP_MS,
                counts=dict(self.cluster.counts.pop(minute, {})),
            )
            for minute in closed
        ]

    async def snapshot(self, now_ms: int) -> Snapshot:
        """Nodes, containers and profiles; run and start times are means of what was seen so far."""
        self.advance(now_ms)
        return Snapshot(
            nodes=self._nodes,
            containers=tuple(self._shown(container) for container in self.cluster.containers.values()),
            profiles=tuple(
                FunctionProfile(
                    function=function.key,
                    memory_mb=function.memory_mb,
                    concurrency=self._concurrency,
                    duration_ms=1000 * function.run_s / max(function.completed, 1),
                    lead_ms=1000 * function.lead_s / max(function.started, 1),
                    preferred_nodes=tuple(node.name for node in function.nodes),
                )
                for function in self.cluster.functions
            ),
        )

    async def apply(self, plan: Plan, now_ms: int) -> Outcomes:
        """Releases idle containers, then starts prewarms where their node has free memory; says what it refused."""
        self.advance(now_ms)
        released = prewarmed = 0
        refused: list[str] = []
        for release in plan.releases:
            container = self.cluster.containers.get(release.container_id)
            if container is None or container.function.key != release.function:
                refused.append(f"release of {release.container_id}: {release.function} has no such container")
            elif container not in container.function.idle:
                refused.append(f"release of {release.container_id}: it is not idle")
            else:
                self.cluster.remove(container)
                released += 1
        self.cluster.drain()
        for prewarm in plan.prewarms:
            function, node = self._by_key.get(prewarm.function), self.cluster.nodes.get(prewarm.node)
            if function is None or node is None:
                what = prewarm.node if function else prewarm.function
                refused.append(f"prewarm of {prewarm.function} on {prewarm.node}: {what} is unknown")
                continue
            for _ in range(prewarm.count):
                if not (node.schedulable and node.fits(function.memory_mb)):
                    refused.append(
                        f"prewarm of {function.key} on {node.name}: no free memory for {function.memory_mb} MB"
                    )
                    break
                self.cluster.order(function, node, owned=True)
                prewarmed += 1
        return Outcomes(prewarmed, released, tuple(refused))

    def _shown(self, container: SimContainer) -> Container:
        state = ContainerState.BUSY if container.in_flight else ContainerState.IDLE
        if not container.ready:
            state = ContainerState.CREATING
        idle = state is ContainerState.IDLE
        return Container(
            id=container.id,
            function=container.function.key,
            node=container.node.name,
            state=state,
            memory_mb=container.function.memory_mb,
            idle_since_ms=self._epoch_ms + int(1000 * container.idle_since_s) if idle else None,
            owned=container.owned,
        )


def run_schedule(platform: SimulatedPlatform, schedule: WarmSchedule) -> EventLedger:
    """Applies a schedule minute by minute, as the fast path does, to the end of the arrivals; returns the ledger.

    Raises:
        InputError: a schedule of other functions or fewer minutes than the arrivals, or a lead outside [0, 60] s.
    """
    cluster = platform.cluster
    arrivals = cluster.arrivals
    memory_mb = np.zeros(len(arrivals.functions))
    check_inputs(arrivals, schedule, memory_mb, 1)
    rows = range(len(arrivals.functions))
    held_s = hold_s(schedule)
    for minute in range(arrivals.first_minute, arrivals.end_minute):
        cluster.advance_s(60.0 * minute)
        following = minute + 1 < arrivals.end_minute
        for row in rows:
            cluster.set_keep_alive(
                row, float(schedule.keep_alive_s[row, minute]), float(schedule.prewarm_after_s[row, minute])
            )
            floor = int(schedule.floor[row, minute])
            early = int(schedule.early_floor[row, minute + 1]) if following and schedule.lead_s == 60 else 0
            idle_for_s = float(held_s[row]) if floor > 0 else 0.0
            release = schedule.release and floor >= 0
            cluster.set_floor(row, max(floor, early, 0), release_idle_for_s=idle_for_s if release else None)
        if following and 0 < schedule.lead_s < 60:
            cluster.advance_s(60.0 * (minute + 1) - schedule.lead_s)
            for row in rows:
                floor = int(schedule.floor[row, minute])
                cluster.set_floor(row, max(floor, int(schedule.early_floor[row, minute + 1]), 0))
    cluster.advance_s(60.0 * arrivals.end_minute)
    return cluster.ledger()
