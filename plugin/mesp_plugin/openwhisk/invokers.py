"""What the pools of a classic cluster's invokers hold, told from the bus alone.

Every call is seen twice: on ``invokerN``, where it takes an idle container of its function or has one made, for which
idle ones of others may have to go, the longest unused first; and when its ack says that the container is free again.
The record of its run, which comes with the ack of a blocking call, or as a user event, puts the belief right: a cold
run (`init_ms` above 0) proves that no container of the function was idle, a warm one that there was one.

A container rests for 10 s, is paused, and goes 10 minutes later (see `estimate`). An invoker that has not pinged for
10 s is offline, and what it held is lost: it clears its node when it comes back. Where the bus itself was away, nobody
could be heard, and nothing is known to be lost.

Source: ContainerPool.scala, ContainerProxy.scala and InvokerSupervision.scala of apache/openwhisk (classic).
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mesp.errors import InputError
from mesp_placement.model import Container, ContainerState, Node
from mesp_plugin.openwhisk.estimate import KEPT_MS, READY_MS
from mesp_plugin.openwhisk.holdings import HoldingState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.messages import ActivationRecord, Ping
    from mesp_plugin.openwhisk.user_events import ActivationEvent

#: Numbers beyond are no invoker's: the balancer's order has a place for each number below the highest.
MOST_INVOKERS: Final = 10_000
#: An invoker without a ping for so long is offline (InvokerSupervision.scala, `healthyTimeout`).
OFFLINE_MS: Final = 10_000
#: The platform itself gives up an ack after twice the longest run and a minute.
LOST_MS: Final = 660_000
#: A marker that has no ack by then is given up.
MARKER_LOST_MS: Final = 60_000
#: A record, or an event, may come so long after the ack that frees the container.
_TELLS_MS: Final = 15_000
#: How a run ended that takes its container with it: the code threw, ran too long, or the platform failed.
_DESTROYS: Final = frozenset({2, 3})


@dataclass(slots=True, eq=False)
class _Warm:
    """One container. `maker` is the call for which it is being made; `marker` the order that made it, until it is met."""

    id: str
    function: FunctionKey
    memory_mb: float
    concurrency: int
    used_ms: int
    maker: str | None
    running: set[str] = field(default_factory=set)
    marker: str | None = None


@dataclass(slots=True, eq=False)
class Call:
    """One activation on its way, or just over.

    Attributes:
        function: who calls what.
        arrived_ms: on the invoker's topic.
        is_marker: it asks for no work.
        memory_mb: of its container.
        concurrency: calls that one of them takes at once.
        container: which one it is believed to use; None while it waits for room, and when that container is gone.
        fresh: that one was made for it, as far as believed.
        met: the order whose container it took.
        freed_ms: when its ack came.
        ended: how its run went.
        ends: a marker that asks its container to go (see `orders.marker`).
    """

    activation_id: str
    function: FunctionKey
    arrived_ms: int
    is_marker: bool
    memory_mb: float
    concurrency: int = 1
    container: _Warm | None = None
    fresh: bool = False
    met: str | None = None
    freed_ms: int | None = None
    ended: ActivationRecord | ActivationEvent | None = None
    ends: bool = False

    @property
    def was_cold(self) -> bool:
        """It waited for /init: as its record says, else as believed."""
        return self.ended.init_ms > 0 if self.ended else self.fresh


class Pool:
    """One invoker's containers. `changes` collects what became of orders, for whoever reads and clears it."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.memory_mb = self.slots_mb = float("inf")
        self.heard_ms = 0
        self.enabled = False
        self.changes: list[tuple[str, HoldingState]] = []
        self._warm: defaultdict[FunctionKey, list[_Warm]] = defaultdict(list)
        self._waiting: deque[Call] = deque()
        self._ids = itertools.count(1)

    @property
    def waiting(self) -> int:
        """Calls that wait for room, in the order of their arrival."""
        return len(self._waiting)

    @property
    def taken_mb(self) -> float:
        """Memory of all containers."""
        return sum(one.memory_mb for one in self._all())

    def spare(self, function: FunctionKey) -> int:
        """Calls that would meet a container rather than have one made."""
        return sum(one.concurrency - len(one.running) for one in self._free(function))

    def takes(self, function: FunctionKey, memory_mb: float) -> bool:
        """Whether the balancer, which counts running calls alone, has a slot here beyond idle ones of the function."""
        busy_mb = sum(one.memory_mb for one in self._all() if one.running) + sum(one.memory_mb for one in self._waiting)
        return busy_mb + self.spare(function) * memory_mb + memory_mb <= self.slots_mb

    def held(self, container_id: str) -> FunctionKey | None:
        """Whose that idle container is, which an order made and no call has met."""
        found = (one for one in self._all() if one.id == container_id and one.marker and not one.running)
        return next((one.function for one in found), None)

    def ends_next(self, container_id: str) -> None:
        """The function's next call will end its container: the order that made this one now stands for that one."""
        for one in self._all():
            if one.id == container_id:
                taken = self._next(one.function)
                one.marker, taken.marker = taken.marker, one.marker
                return

    def arrive(self, call: Call, at_ms: int) -> None:
        """A call came; behind one that waits for room, all wait."""
        if self._waiting or not self._place(call, at_ms):
            self._waiting.append(call)

    def free(self, call: Call, at_ms: int, *, destroyed: bool) -> None:
        """The run is over, and its container idle or gone."""
        call.freed_ms = at_ms
        if call in self._waiting:
            self._waiting.remove(call)
        if (warm := call.container) is not None:
            warm.running.discard(call.activation_id)
            warm.used_ms = at_ms
            warm.maker = None if warm.maker == call.activation_id else warm.maker
            if destroyed:
                self._lose(warm)
        while self._waiting and self._place(self._waiting[0], at_ms):
            self._waiting.popleft()

    def told(self, call: Call, ended: ActivationRecord | ActivationEvent) -> None:
        """How the run went, which may become known before or after it is over; once for each call."""
        call.ended = ended
        warm, cold = call.container, ended.init_ms > 0
        if cold and not call.fresh:
            if call.met:
                self._note(call.met, HoldingState.GONE)
                call.met = None
            for other in self._free(call.function):
                if other is not warm and other.used_ms <= call.arrived_ms:
                    self._lose(other)
            if warm and warm.marker:
                self._note(warm.marker, HoldingState.GONE)
                warm.marker = None
        if call.is_marker:
            became = outcome(ended)
            self._note(call.activation_id, became)
            if warm and became is HoldingState.HELD:
                warm.marker = call.activation_id
        if warm and not _leaves_container(ended):
            self._lose(warm)

    def settle(self, call: Call) -> None:
        """What a call has met is the platform's now."""
        if call.met:
            self._note(call.met, HoldingState.USED)

    def give_up(self, call: Call) -> None:
        """No ack came: nobody knows of the container either."""
        if call in self._waiting:
            self._waiting.remove(call)
        if call.container:
            self._lose(call.container)

    def sweep(self, now_ms: int, unbroken_ms: tuple[int, int]) -> None:
        """What was idle for too long is gone; everything, when the invoker was silent on a bus that was not."""
        since_ms, until_ms = unbroken_ms
        lost = until_ms - max(self.heard_ms, since_ms) > OFFLINE_MS
        for one in list(self._all()):
            if lost or (not one.running and now_ms - one.used_ms >= KEPT_MS):
                self._lose(one)
        if lost:
            self._waiting.clear()

    def is_offline(self, now_ms: int) -> bool:
        """No ping for too long."""
        return now_ms - self.heard_ms > OFFLINE_MS

    def containers(self, now_ms: int, owned: Iterable[str]) -> list[Container]:
        """What is there now; `owned` are the orders that still are MESP's."""
        owned = set(owned)
        found = []
        for one in self._all():
            ours = one.maker in owned or one.marker in owned
            if one.running:
                state = ContainerState.CREATING if one.maker in owned else ContainerState.BUSY
                found.append(Container(one.id, one.function, self.node, state, one.memory_mb, None, ours))
            else:
                state = ContainerState.IDLE if now_ms - one.used_ms < READY_MS else ContainerState.PAUSED
                found.append(Container(one.id, one.function, self.node, state, one.memory_mb, one.used_ms, ours))
        return found

    def _all(self) -> Iterator[_Warm]:
        return itertools.chain.from_iterable(self._warm.values())

    def _place(self, call: Call, at_ms: int) -> bool:
        if self._free(call.function):
            warm = self._next(call.function)
            if not call.is_marker:
                call.met, warm.marker = warm.marker, None
        else:
            if not self._make_room(call.memory_mb):
                return False
            name = f"{self.node}/{call.function}#{next(self._ids)}"
            warm = _Warm(name, call.function, call.memory_mb, call.concurrency, at_ms, maker=call.activation_id)
            self._warm[call.function].append(warm)
            call.fresh = True
        call.container = warm
        warm.running.add(call.activation_id)
        warm.used_ms = at_ms
        return True

    def _free(self, function: FunctionKey) -> list[_Warm]:
        """Containers that take one more call of the function; those being made only where they take several at once."""
        return [
            one
            for one in self._warm.get(function, ())
            if len(one.running) < one.concurrency and (one.maker is None or one.concurrency > 1)
        ]

    def _next(self, function: FunctionKey) -> _Warm:
        """Which of them a call takes."""
        return max(self._free(function), key=lambda one: one.used_ms)

    def _make_room(self, memory_mb: float) -> bool:
        lacking_mb = self.taken_mb + memory_mb - self.memory_mb
        idle = sorted((one for one in self._all() if not one.running), key=lambda one: one.used_ms)
        if lacking_mb > sum(one.memory_mb for one in idle):
            return False
        for one in idle:
            if lacking_mb <= 0:
                break
            self._lose(one)
            lacking_mb -= one.memory_mb
        return True

    def _lose(self, warm: _Warm) -> None:
        if warm in (same := self._warm[warm.function]):
            same.remove(warm)
            if warm.marker:
                self._note(warm.marker, HoldingState.GONE)

    def _note(self, marker: str, state: HoldingState) -> None:
        self.changes.append((marker, state))


class Invokers:
    """All invokers, by number, and the calls that are open on them. Times are injected."""

    def __init__(self, stem_cells_mb: float) -> None:
        """Each keeps `stem_cells_mb` in containers of no function."""
        self._stem_cells_mb = stem_cells_mb
        self._pools: dict[int, Pool] = {}
        self._calls: dict[str, tuple[Pool, Call]] = {}

    def pool(self, node: str) -> Pool | None:
        """That of the node, if anything was ever heard of it."""
        return next((pool for pool in self._pools.values() if pool.node == node), None)

    def held(self, container_id: str) -> tuple[Pool, FunctionKey] | None:
        """Where an idle container is that an order made and no call has met, and whose; None for any other."""
        found = ((pool, pool.held(container_id)) for pool in self._pools.values())
        return next(((pool, function) for pool, function in found if function), None)

    @property
    def names(self) -> tuple[str, ...]:
        """In the balancer's order: by number from 0 to the highest that ever pinged, without a gap."""
        return tuple(node_name(number) for number in range(max(self._known, default=-1) + 1))

    @property
    def _known(self) -> list[int]:
        return [number for number, pool in self._pools.items() if pool.heard_ms]

    def knows(self, activation_id: str) -> bool:
        """Whether the call is open, or was until just now."""
        return activation_id in self._calls

    def ping(self, ping: Ping, at_ms: int) -> None:
        """An invoker is alive; `InputError` for a number that none can have."""
        if ping.invoker.instance >= MOST_INVOKERS:
            raise InputError(f"health: name.instance = {ping.invoker.instance} must be below {MOST_INVOKERS}")
        pool = self._of(ping.invoker.instance)
        pool.slots_mb = ping.invoker.user_memory_mb
        pool.memory_mb = max(0.0, pool.slots_mb - self._stem_cells_mb)
        pool.heard_ms, pool.enabled = max(at_ms, pool.heard_ms), ping.enabled

    def arrive(self, number: int, call: Call) -> bool:
        """A call came on ``invoker<number>``; False for one that is known."""
        if call.activation_id in self._calls:
            return False
        pool = self._of(number)
        self._calls[call.activation_id] = pool, call
        pool.arrive(call, call.arrived_ms)
        return True

    def free(self, activation_id: str, at_ms: int, *, failed: bool) -> Call | None:
        """The ack came that ends a call; None for one that is not known, or is over."""
        pool, call = self._calls.get(activation_id, (None, None))
        if pool is None or call is None or call.freed_ms is not None:
            return None
        pool.free(call, at_ms, destroyed=failed)
        return call

    def told(self, activation_id: str, ended: ActivationRecord | ActivationEvent) -> Call | None:
        """A run's record or event; None for a call that is not known, or was told of."""
        pool, call = self._calls.get(activation_id, (None, None))
        if pool is None or call is None or call.ended is not None:
            return None
        pool.told(call, ended)
        return call

    def sweep(self, now_ms: int, unbroken_ms: tuple[int, int]) -> tuple[list[Call], list[tuple[str, HoldingState]]]:
        """Closes what is over, and gives up calls without an ack.

        Args:
            now_ms: the time.
            unbroken_ms: see `Bus.unbroken_ms`.

        Returns:
            calls that ended and of which all is known that will be; what became of orders since the last time.
        """
        ended = []
        for activation_id, (pool, call) in list(self._calls.items()):
            if call.freed_ms is not None:
                if call.ended is None and now_ms - call.freed_ms < _TELLS_MS:
                    continue
                pool.settle(call)
                ended.append(call)
            elif now_ms - call.arrived_ms >= (MARKER_LOST_MS if call.is_marker else LOST_MS):
                pool.give_up(call)
            else:
                continue
            del self._calls[activation_id]
        for pool in self._pools.values():
            pool.sweep(now_ms, unbroken_ms)
        changes = [change for pool in self._pools.values() for change in pool.changes]
        for pool in self._pools.values():
            pool.changes.clear()
        return ended, changes

    def nodes(self, now_ms: int) -> tuple[Node, ...]:
        """Those that ever pinged and have memory for functions."""
        return tuple(
            Node(pool.node, pool.memory_mb, schedulable=pool.enabled and not pool.is_offline(now_ms))
            for pool in self._shown()
        )

    def containers(self, now_ms: int, owned: Iterable[str]) -> list[Container]:
        """Those on `nodes`."""
        owned = set(owned)
        return [one for pool in self._shown() for one in pool.containers(now_ms, owned)]

    def _shown(self) -> list[Pool]:
        return [pool for number in sorted(self._known) if (pool := self._pools[number]).memory_mb > 0]

    def _of(self, number: int) -> Pool:
        return self._pools.setdefault(number, Pool(node_name(number)))


def outcome(ended: ActivationRecord | ActivationEvent) -> HoldingState:
    """What became of an order, by how its marker's run went."""
    if not _leaves_container(ended):
        return HoldingState.GONE
    return HoldingState.HELD if ended.init_ms > 0 else HoldingState.REUSED


def _leaves_container(ended: ActivationRecord | ActivationEvent) -> bool:
    """A call of an action that is not there (kind ``unknown``) never had one."""
    return ended.status_code not in _DESTROYS and ended.kind != "unknown"


def node_name(number: int) -> str:
    """As the invoker's topic is called."""
    return f"invoker{number}"
