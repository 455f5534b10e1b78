"""The invoker inside a standalone OpenWhisk, as far as it can be seen: its pool of containers, and what runs in them.

A call gets the first of: a warm container of its action and revision; a stem cell of its kind and memory, which is
replaced; a new container where memory is left; a new one in place of the longest unused idle ones; else it waits in
one FIFO buffer, and so does everything after it. ("warming" containers serve only actions with a concurrency above 1,
which standalone does not allow.) A container is paused 10 s after its run and removed 10 min later; a run that throws
takes its container with it, and so does one whose `docker logs` take longer than 2 s, as they do on a machine without
room. Source: containerpool/ContainerPool.scala, ContainerProxy.scala and DockerCliLogStore.scala of apache/openwhisk.

Nothing here is real but the order of events and their times.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mesp_plugin.openwhisk.messages import MARKER

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.openwhisk.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Times:
    """How long things take, ms: medians of the golden recordings; the timers are OpenWhisk's defaults."""

    dispatch: int = 7
    create: int = 330
    init: int = 149
    stem_dispatch: int = 34
    stem_init: int = 21
    stem_create: int = 400
    unpause: int = 35
    marker: int = 5
    stored: int = 20
    logs_limit: int = 2_000
    pause_grace: int = 10_000
    idle_container: int = 600_000
    gauges_first: int = 30_000
    gauges_every: int = 10_000


@dataclass(frozen=True, slots=True)
class Spec:
    """An action.

    Attributes:
        answers_marker: its runtime image or its code does; without it a marker runs the user's code.
    """

    name: str
    memory_mb: int = 256
    kind: str = "nodejs:20"
    timeout_ms: int = 60_000
    annotations: tuple[tuple[str, Any], ...] = ()
    answers_marker: bool = False
    version: str = "0.0.1"
    updated_ms: int = 0


@dataclass(slots=True)
class Job:
    """A call on its way through the invoker."""

    activation_id: str
    action: Spec
    parameters: dict[str, Any]
    arrived_ms: int
    finished: Callable[[Job], None]
    state: str = ""
    start_ms: int = 0
    init_ms: int = 0
    end_ms: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    status: str = "success"
    has_logs: bool = True

    @property
    def is_marker(self) -> bool:
        return MARKER in self.parameters


@dataclass(slots=True)
class _Container:
    memory_mb: int
    action: Spec | None = None
    busy: bool = False
    paused: bool = False
    used_ms: int = 0
    cancel: Callable[[], None] = lambda: None


class Pool:
    """Containers of one invoker.

    Attributes:
        slow_logs: actions whose `docker logs` run into the limit. (In the real one a blocking caller does not wait for
            logs; here it does.)
        starts: containers' starts by (state, action), as the platform counts them.
        marker_user_runs: runs of users' code that a marker caused.
        idle_mb_ms: idle warm memory times time so far, stem cells left out.
    """

    def __init__(
        self,
        timeline: Timeline,
        *,
        user_memory_mb: int = 1024,
        stems: tuple[tuple[str, int], ...] = (("nodejs:20", 256),),
        times: Times | None = None,
    ) -> None:
        self.times = times or Times()
        self.user_memory_mb = user_memory_mb
        self.slow_logs: set[str] = set()
        self.starts: Counter[tuple[str, str]] = Counter()
        self.log: list[tuple[int, str, str, str]] = []
        self.marker_user_runs = 0
        self.runs = 0
        self.idle_mb_ms = 0
        self.gauges: dict[str, float] | None = None
        self._timeline = timeline
        self._stem_kinds = stems
        self._stems: list[tuple[str, int]] = list(stems)
        self._stems_starting = 0
        self._containers: list[_Container] = []
        self._buffer: deque[Job] = deque()
        self._counted_ms = timeline.now_ms()
        timeline.call_at(timeline.now_ms() + self.times.gauges_first, self._emit)

    def run(self, job: Job) -> None:
        """Takes a call in."""
        self._account()
        if self._buffer or not self._place(job):
            self._buffer.append(job)

    def containers(self, name: str | None = None) -> int:
        """Containers of an action, or of all; stem cells left out."""
        return sum(one.action is not None and name in {None, one.action.name} for one in self._containers)

    def idle_mb(self) -> int:
        """Memory of idle containers now."""
        return sum(one.memory_mb for one in self._containers if not one.busy)

    def account(self) -> float:
        """Idle warm memory times time so far, GB s."""
        self._account()
        return self.idle_mb_ms / 1024 / 1e3

    def _place(self, job: Job) -> bool:
        action, times, now_ms = job.action, self.times, self._timeline.now_ms()
        warm = next((one for one in self._containers if not one.busy and one.action == action), None)
        stem = (action.kind, action.memory_mb)
        if warm:
            container = warm
            job.state, wait_ms = "warmed", times.dispatch + (times.unpause if warm.paused else 0)
        elif stem in self._stems:
            self._stems.remove(stem)
            container = _Container(action.memory_mb)
            job.state, wait_ms, job.init_ms = "prewarmed", times.stem_dispatch, times.stem_init
            self._containers.append(container)
            self._fill_stem(stem)
        else:
            evicted = [] if self._has_room(action.memory_mb) else self._evictable(action.memory_mb)
            if evicted is None:
                return False
            for one in evicted:
                one.cancel()
                self._containers.remove(one)
            container = _Container(action.memory_mb)
            job.state, wait_ms, job.init_ms = ("recreated" if evicted else "cold"), times.create, times.init
            self._containers.append(container)
        container.cancel()
        container.busy, container.paused, container.action, container.used_ms = True, False, action, now_ms
        self.starts[job.state, action.name] += 1
        self.log.append((now_ms, job.state, action.name, job.activation_id))
        job.start_ms = now_ms + wait_ms
        job.end_ms = job.start_ms + job.init_ms + self._run_ms(job)
        job.has_logs = action.name not in self.slow_logs
        free_ms = job.end_ms + (0 if job.has_logs else times.logs_limit)
        self._timeline.call_at(free_ms, lambda: self._ended(job, container))
        return True

    def _run_ms(self, job: Job) -> int:
        if job.is_marker and job.action.answers_marker:
            marker = job.parameters[MARKER]
            return self.times.marker + min(1_000, int(marker.get("hold_ms", 0)))
        self.runs += 1
        self.marker_user_runs += job.is_marker
        match job.parameters.get("fail"):
            case "app":
                job.result, job.status = {"error": "told to fail"}, "application error"
            case "throw":
                job.result, job.status = {"error": "An error has occurred: Error: boom"}, "action developer error"
            case _:
                job.result = {"n": 0}
        return min(job.action.timeout_ms, int(job.parameters.get("sleep_ms", 50)))

    def _ended(self, job: Job, container: _Container) -> None:
        self._account()
        if job.status == "action developer error" or not job.has_logs:
            self._containers.remove(container)
        else:
            container.busy = False
            container.cancel = self._timeline.call_at(
                job.end_ms + self.times.pause_grace, lambda: self._pause(container)
            )
        job.finished(job)
        while self._buffer and self._place(self._buffer[0]):
            self._buffer.popleft()

    def _pause(self, container: _Container) -> None:
        container.paused = True
        at_ms = self._timeline.now_ms() + self.times.idle_container
        container.cancel = self._timeline.call_at(at_ms, lambda: self._remove(container))

    def _remove(self, container: _Container) -> None:
        self._account()
        self._containers.remove(container)

    def _taken_mb(self) -> int:
        stems = sum(memory_mb for _, memory_mb in self._stems) + self._stems_starting
        return stems + sum(one.memory_mb for one in self._containers)

    def _has_room(self, memory_mb: int) -> bool:
        return self._taken_mb() + memory_mb <= self.user_memory_mb

    def _evictable(self, memory_mb: int) -> list[_Container] | None:
        """The idle containers to remove, longest unused first; None where they are not enough."""
        idle = sorted((one for one in self._containers if not one.busy), key=lambda one: one.used_ms)
        memory_mb = min(memory_mb, sum(one.memory_mb for one in self._containers if not one.busy)) or memory_mb
        found, freed_mb = [], 0
        for one in idle:
            if freed_mb >= memory_mb:
                break
            found.append(one)
            freed_mb += one.memory_mb
        return found or None

    def _fill_stem(self, stem: tuple[str, int]) -> None:
        if not self._has_room(stem[1]):
            return
        self._stems_starting += stem[1]

        def up() -> None:
            self._stems_starting -= stem[1]
            self._stems.append(stem)

        self._timeline.call_at(self._timeline.now_ms() + self.times.stem_create, up)

    def _emit(self) -> None:
        busy = [one.memory_mb for one in self._containers if one.busy]
        idle = [one.memory_mb for one in self._containers if not one.busy]
        stems = [memory_mb for _, memory_mb in self._stems]
        self.gauges = {
            "activeCount": len(busy),
            "activeSize": sum(busy) * 2**20,
            "idlesCount": len(idle),
            "idlesSize": sum(idle) * 2**20,
            "prewarmCount": len(stems),
            "prewarmSize": (sum(stems) + self._stems_starting) * 2**20,
            "runBufferCount": len(self._buffer),
            "runBufferSize": sum(job.action.memory_mb for job in self._buffer) * 2**20,
        }
        self._timeline.call_at(self._timeline.now_ms() + self.times.gauges_every, self._emit)

    def _account(self) -> None:
        now_ms = self._timeline.now_ms()
        self.idle_mb_ms += self.idle_mb() * (now_ms - self._counted_ms)
        self._counted_ms = now_ms
