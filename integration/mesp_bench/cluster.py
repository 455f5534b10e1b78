"""The cluster behind `SimulatedPlatform`: a plain discrete-event simulation over nodes of finite memory.

A request is served by the most recently used ready container with room (a busy one before an idle one); else by the
one being created that is ready first, if that is no later than a container of its own would be; else it orders its own,
on the function's home node or the next that has memory for it, evicting the longest idle containers where none has;
else it queues, and the queue is strictly first come, first served (as in OpenWhisk's invokers). A container is removed
after its function's `keep_alive_s` without work, unless the floor protects it.

At one instant things happen in this order: containers get ready, requests complete, containers expire, prewarm timers
run out, decisions (whoever calls `advance_s` up to an instant, then decides), arrivals. Ties within a kind go by the
order in which containers were ordered, invocations arrived, or containers went idle.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mesp.errors import InputError
from mesp.types import MB_PER_GB
from mesp_bench.event_ledger import EventLedger
from mesp_bench.fastpath import check_containers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from mesp.types import FunctionKey
    from mesp_bench.arrivals import Arrivals
    from mesp_placement.model import Node

_READY, _COMPLETION, _EXPIRY, _TIMER = range(4)


@dataclass(slots=True, eq=False)
class SimContainer:
    """A container; `busy_since_s` may lie ahead while it is being created for a request."""

    serial: int
    function: SimFunction
    node: SimNode
    ordered_s: float
    ready_s: float
    owned: bool
    ready: bool = False
    in_flight: int = 0
    busy_since_s: float = 0.0
    idle_since_s: float = 0.0
    deadline_s: float = 0.0

    @property
    def id(self) -> str:
        """Unique over the simulation."""
        return f"{self.function.key}#{self.serial}"


_Order = OrderedDict[SimContainer, None]


@dataclass(slots=True, eq=False)
class SimNode:
    """A node and what its memory holds."""

    name: str
    memory_mb: float
    schedulable: bool
    used_mb: float
    idle: _Order = field(default_factory=OrderedDict)  # longest idle first

    def fits(self, memory_mb: float) -> bool:
        """Whether this much memory is free."""
        return self.used_mb + memory_mb <= self.memory_mb


@dataclass(slots=True, eq=False)
class SimFunction:
    """A function: its settings, its containers, and what it was charged so far."""

    row: int
    key: FunctionKey
    memory_mb: float
    start_times_s: npt.NDArray[np.float64]
    nodes: tuple[SimNode, ...]  # home first
    keep_alive_s: float
    prewarm_after_s: float = 0.0
    floor: int = 0
    timer_s: float = math.inf
    containers: dict[str, SimContainer] = field(default_factory=dict)
    idle: _Order = field(default_factory=OrderedDict)  # most recently used last
    room: _Order = field(default_factory=OrderedDict)  # busy, ready and not full; most recently used last
    starting: _Order = field(default_factory=OrderedDict)  # being created, not full
    created: int = 0
    in_flight: int = 0
    completed: int = 0
    run_s: float = 0.0  # of the completed
    started: int = 0
    lead_s: float = 0.0  # of the started
    invocations: int = 0
    cold: int = 0
    alive_s: float = 0.0
    busy_s: float = 0.0


class Cluster:
    """Functions, nodes and containers in virtual time; the arguments are those of `SimulatedPlatform`.

    Attributes:
        now_s: virtual time, in seconds from the trace's first column.
        functions: in row order.
        nodes: by name.
        containers: by id, oldest first.
        counts: invocations so far per minute and function; whoever reads a closed minute may drop it.
        evictions: idle containers removed for another's sake.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        memory_mb: npt.NDArray[np.float64],
        nodes: Sequence[Node],
        keep_alive_s: float,
        concurrency: int,
        score_from_s: float | None,
    ) -> None:
        check_containers(arrivals, memory_mb, concurrency)
        room_mb = max((node.memory_mb - node.other_memory_mb for node in nodes if node.schedulable), default=-math.inf)
        if not (memory_mb <= room_mb).all():
            largest = int(memory_mb.argmax())
            raise InputError(
                f"{arrivals.functions[largest]} takes {memory_mb[largest]} MB: no schedulable node has as much."
            )
        if not keep_alive_s >= 0:
            raise InputError(f"keep_alive_s = {keep_alive_s}: must be 0 or more.")
        self.arrivals = arrivals
        self.now_s = 60.0 * arrivals.first_minute
        self._score_from_s = self.now_s if score_from_s is None else score_from_s
        self._concurrency = concurrency
        self.nodes = {n.name: SimNode(n.name, n.memory_mb, n.schedulable, n.other_memory_mb) for n in nodes}
        ring = tuple(self.nodes.values())
        spills = [ring[home:] + ring[:home] for home in range(len(ring))]
        starts = arrivals.start_indptr
        self.functions = [
            SimFunction(
                row,
                key,
                float(memory_mb[row]),
                arrivals.start_times_s[starts[row] : starts[row + 1]],
                spills[zlib.crc32(str(key).encode()) % len(ring)],
                keep_alive_s,
            )
            for row, key in enumerate(arrivals.functions)
        ]
        self.containers: dict[str, SimContainer] = {}
        rows = np.repeat(np.arange(len(self.functions)), np.diff(arrivals.indptr))
        order = np.argsort(arrivals.times_s, kind="stable")
        self._coming = deque(zip(arrivals.times_s[order].tolist(), order.tolist(), rows[order].tolist(), strict=True))
        self._events: list[tuple[float, int, float, int, SimContainer | SimFunction]] = []
        self._pushed = 0
        self._queue: deque[tuple[int, SimFunction, float]] = deque()
        self.counts: defaultdict[int, Counter[FunctionKey]] = defaultdict(Counter)
        self._waits: list[tuple[int, float]] = []
        self._late = self._ordered = self.evictions = 0

    def set_keep_alive(self, row: int, keep_alive_s: float, prewarm_after_s: float = 0.0) -> None:
        """For containers of a function that go idle from now on; see `WarmSchedule`."""
        self.functions[row].keep_alive_s = keep_alive_s
        self.functions[row].prewarm_after_s = prewarm_after_s

    def set_floor(self, row: int, floor: int, *, release_idle_for_s: float | None = None) -> None:
        """Wants `floor` containers of a function from now on, and orders what is missing where memory is free.

        Nothing expires while no more than the floor exist. Ones above it that have been idle for `release_idle_for_s` go
        now, longest idle first; None: they stay.
        """
        function = self.functions[row]
        function.floor = floor
        if release_idle_for_s is not None:
            for container in list(function.idle):
                if len(function.containers) > floor and container.idle_since_s <= self.now_s - release_idle_for_s:
                    self.remove(container)
        for _ in range(floor - len(function.containers)):
            self._prewarm(function)
        overdue = [c for c in function.idle if c.deadline_s <= self.now_s]
        for container in sorted(overdue, key=lambda c: (c.deadline_s, c.idle_since_s)):
            if len(function.containers) > floor:
                self.remove(container)
        self.drain()

    def advance_s(self, until_s: float) -> None:
        """As `advance`, in seconds from the trace's first column."""
        until_s = min(until_s, 60.0 * self.arrivals.end_minute)
        while True:
            event_s = self._events[0][0] if self._events else math.inf
            arrival_s = self._coming[0][0] if self._coming else math.inf
            if event_s <= min(arrival_s, until_s):
                self._happen(*heapq.heappop(self._events))
                self.drain()
            elif arrival_s < until_s:
                self._arrive(*self._coming.popleft())
            else:
                break
        self.now_s = max(self.now_s, until_s)

    def ledger(self) -> EventLedger:
        """The account up to now, whose scored window ends here."""
        functions = self.functions
        alive_s, busy_s = (np.array([getattr(f, name) for f in functions], float) for name in ("alive_s", "busy_s"))
        for container in self.containers.values():
            alive_s[container.function.row] += self._scored(container.ordered_s, self.now_s)
            if container.in_flight:
                busy_s[container.function.row] += self._scored(container.busy_since_s, self.now_s)
        memory_gb = np.array([f.memory_mb for f in functions]) / MB_PER_GB
        waits = sorted(self._waits)
        return EventLedger(
            invocations=sum(f.invocations for f in functions),
            cold=sum(f.cold for f in functions),
            late_prewarms=self._late,
            created=self._ordered,
            waste_gb_s=float((memory_gb * (alive_s - busy_s)).sum()),
            total_gb_s=float((memory_gb * alive_s).sum()),
            invocations_by_function=np.array([f.invocations for f in functions], np.int64),
            cold_by_function=np.array([f.cold for f in functions], np.int64),
            waste_gb_s_by_function=memory_gb * (alive_s - busy_s),
            waited=np.array([i for i, _ in waits], np.int64),
            wait_s=np.array([wait_s for _, wait_s in waits], np.float64),
            evictions=self.evictions,
            unserved=sum(arrived_s >= self._score_from_s for _, _, arrived_s in self._queue),
        )

    # What happens

    def _push(self, at_s: float, kind: int, tie: float, what: SimContainer | SimFunction) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at_s, kind, tie, self._pushed, what))

    def _happen(self, at_s: float, kind: int, tie: float, _: int, what: SimContainer | SimFunction) -> None:
        self.now_s = at_s
        if isinstance(what, SimFunction):
            if what.timer_s == at_s:
                what.timer_s = math.inf
                if not what.containers:
                    self._prewarm(what)
        elif kind == _READY:
            self._get_ready(what)
        elif kind == _COMPLETION:
            self._complete(what, int(tie))
        else:
            self._expire(what, at_s, tie)

    def _expire(self, container: SimContainer, deadline_s: float, since_s: float) -> None:
        function = container.function
        current = container in function.idle and (container.deadline_s, container.idle_since_s) == (deadline_s, since_s)
        if current and len(function.containers) > function.floor:
            self.remove(container)

    def _arrive(self, at_s: float, invocation: int, row: int) -> None:
        self.now_s = at_s
        function = self.functions[row]
        function.timer_s = math.inf
        function.invocations += at_s >= self._score_from_s
        self.counts[int(at_s // 60.0)][function.key] += 1
        if self._queue or not self._serve(invocation, function, at_s):
            self._queue.append((invocation, function, at_s))

    def drain(self) -> None:
        """Serves the queue as far as warm containers and memory allow; due whenever either was freed."""
        while self._queue and self._serve(*self._queue[0]):
            self._queue.popleft()

    def _serve(self, invocation: int, function: SimFunction, arrived_s: float) -> bool:
        """Gives the request a container; False where there is none and no memory for one."""
        container = self._take_warm(function)
        begin_s = self.now_s
        scored = arrived_s >= self._score_from_s
        if container is None:
            first = min(function.starting, key=lambda c: (c.ready_s, c.serial), default=None)
            if first is not None and first.ready_s <= self.now_s + self._next_start_s(function):
                container = first
                self._late += scored and container.owned
            else:
                node = self._make_room(function)
                if node is None:
                    return False
                container = self.order(function, node, owned=False)
            begin_s = container.ready_s
            function.cold += scored
        if scored and (begin_s > arrived_s or not container.ready):
            self._waits.append((invocation, begin_s - arrived_s))
        if container.in_flight == 0:
            container.busy_since_s = begin_s
        container.in_flight += 1
        function.in_flight += 1
        if container.in_flight == self._concurrency:
            function.room.pop(container, None)
            function.starting.pop(container, None)
        self._push(begin_s + float(self.arrivals.durations_s[invocation]), _COMPLETION, invocation, container)
        return True

    def _take_warm(self, function: SimFunction) -> SimContainer | None:
        if function.room:
            return next(reversed(function.room))
        if not function.idle:
            return None
        container, _ = function.idle.popitem()
        del container.node.idle[container]
        function.room[container] = None
        return container

    def _get_ready(self, container: SimContainer) -> None:
        function = container.function
        container.ready = True
        function.started += 1
        function.lead_s += container.ready_s - container.ordered_s
        function.starting.pop(container, None)
        if container.in_flight == 0:
            self._go_idle(container, function.keep_alive_s)
        elif container.in_flight < self._concurrency:
            function.room[container] = None

    def _complete(self, container: SimContainer, invocation: int) -> None:
        function = container.function
        function.completed += 1
        function.run_s += float(self.arrivals.durations_s[invocation])
        container.in_flight -= 1
        function.in_flight -= 1
        function.room.pop(container, None)
        if container.in_flight:
            function.room[container] = None
            return
        function.busy_s += self._scored(container.busy_since_s, self.now_s)
        self._go_idle(container, 0.0 if function.prewarm_after_s > 0 else function.keep_alive_s)
        if function.prewarm_after_s > 0 and function.in_flight == 0:
            function.timer_s = self.now_s + function.prewarm_after_s
            self._push(function.timer_s, _TIMER, function.row, function)

    def _go_idle(self, container: SimContainer, stay_s: float) -> None:
        container.idle_since_s = self.now_s
        container.deadline_s = self.now_s + stay_s
        container.function.idle[container] = None
        container.node.idle[container] = None
        if container.deadline_s < math.inf:
            self._push(container.deadline_s, _EXPIRY, self.now_s, container)

    # Containers and memory

    def _next_start_s(self, function: SimFunction) -> float:
        return float(function.start_times_s[function.created % function.start_times_s.size])

    def order(self, function: SimFunction, node: SimNode, *, owned: bool) -> SimContainer:
        """Starts a container where memory is known to be free."""
        ready_s = self.now_s + self._next_start_s(function)
        function.created += 1
        container = SimContainer(function.created, function, node, self.now_s, ready_s, owned)
        function.containers[container.id] = self.containers[container.id] = container
        function.starting[container] = None
        node.used_mb += function.memory_mb
        self._ordered += self.now_s >= self._score_from_s
        self._push(container.ready_s, _READY, container.serial, container)
        return container

    def _prewarm(self, function: SimFunction) -> None:
        node = next((n for n in function.nodes if n.schedulable and n.fits(function.memory_mb)), None)
        if node is not None:
            self.order(function, node, owned=True)

    def _make_room(self, function: SimFunction) -> SimNode | None:
        """The first node with free memory, else the first where evicting idle containers frees enough."""
        nodes = [n for n in function.nodes if n.schedulable]
        for node in nodes:
            if node.fits(function.memory_mb):
                return node
        for node in nodes:
            idle_mb = sum(c.function.memory_mb for c in node.idle)
            if node.fits(function.memory_mb - idle_mb):
                while not node.fits(function.memory_mb):
                    self.remove(next(iter(node.idle)))
                    self.evictions += 1
                return node
        return None

    def remove(self, container: SimContainer) -> None:
        """Removes an idle container and frees its memory."""
        function = container.function
        del function.idle[container], container.node.idle[container]
        del function.containers[container.id], self.containers[container.id]
        container.node.used_mb -= function.memory_mb
        function.alive_s += self._scored(container.ordered_s, self.now_s)

    def _scored(self, from_s: float, to_s: float) -> float:
        return max(0.0, to_s - max(from_s, self._score_from_s))
