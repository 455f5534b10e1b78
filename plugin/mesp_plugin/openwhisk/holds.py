"""Containers that MESP ordered (FPC) and that wait: held at their fetch, or paused; and when they are let go.

A container asks our ActivationService for a call. It is *held* by answering later: it stands ready for as long as it is
held, and takes busy memory and a place in its namespace's limit. It is *handed over* to its function's real queue (the
answer is `NoCall.NO_QUEUE`) the moment a call asks for it: when the queue's leader key appears in etcd, or, where there
is a queue, when its scheduler orders a container. Of a function that opted in, it first runs a marker; then
it may stay held, or be *paused* (`NoCall.NO_ACTIVATION`, 10 s after the run at the earliest), which costs neither
busy memory nor a place, and is found again by the scheduler itself. What is *let go* is destroyed.

`verdict` is the whole decision over one container; `Holds` collects the facts for it, answers, and writes what became of
each order into the `Holdings`. An order is known again by its function and node: fetches name no order.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mesp_plugin.openwhisk.etcd_keys import ContainerKey, CreationKey, QueueKey
from mesp_plugin.openwhisk.fetches import NoCall
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.openwhisk.invokers import node_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FunctionKey
    from mesp_plugin.loop import Clock
    from mesp_plugin.openwhisk.cluster import Cluster
    from mesp_plugin.openwhisk.etcd_keys import Key
    from mesp_plugin.openwhisk.fetches import Fetch
    from mesp_plugin.openwhisk.fields import JsonObject
    from mesp_plugin.openwhisk.holdings import Holding, Holdings

#: A container pauses 10 s after its run at the earliest (`pause-grace`); half a second for two clocks.
PAUSE_GRACE_MS: Final = 10_500
#: Asked again before it can pause: never at once, a container would ask a thousand times a second.
_AGAIN_MS: Final = 1_000
#: A container that was handed over is used by then; without /init it is destroyed otherwise.
_UNUSED_MS: Final = 12_000
#: The call that it was handed over for was admitted so long before, at most.
_CALLED_MS: Final = 10_000
#: A call's end is known so long after it was admitted, at most: the longest run, and what the platform gives acks.
_TOLD_MS: Final = 660_000
#: From this probability of a call on, what may be paused is held for a while first.
_NEAR: Final = 0.5


class Stance(enum.Enum):
    """How an ordered container waits."""

    HELD = "held"  # without marker, until a call asks
    READY = "ready"  # after a marker, for a while; then paused
    PAUSED = "paused"  # after a marker, as soon as it can be


def stance(*, opted_in: bool, likely: float) -> Stance:
    """Held where no marker may be sent; else held only while a call is more likely than not.

    Args:
        opted_in: a marker may be sent, and there is what it needs.
        likely: probability of a call in what is left of the nearest step.
    """
    if not opted_in:
        return Stance.HELD
    return Stance.READY if likely >= _NEAR else Stance.PAUSED


@dataclass(frozen=True, slots=True)
class Order:
    """What an order wants beyond a container; one of an earlier life of the plugin wants nothing.

    Attributes:
        hold_ms: from the marker's run to the pause.
        marker: makes the call that runs no work, given the time and returning its activation id with it; None: none
            may be sent.
    """

    hold_ms: int = 0
    marker: Callable[[int], tuple[str, JsonObject]] | None = None


@dataclass(slots=True, eq=False)
class Kept:
    """A container that asks us.

    Attributes:
        marker: the order that made it; None for a container of others that an order resumed.
        version: of its action.
        asked: a call wants a container of the function.
        unwanted: it is to go.
        pause_ms: when it may be paused; None: never, for it has not been initialised.
        fetches: how many of its fetches wait: two, where it asks again over a new connection and the old one's end is
            not known yet; none, while it runs a marker.
    """

    container_id: str
    function: FunctionKey
    node: str
    version: str | None
    since_ms: int
    order: Order
    marker: str | None
    initialised: bool = False
    asked: bool = False
    unwanted: bool = False
    pause_ms: int | None = None
    fetches: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


def verdict(kept: Kept, *, has_queue: bool, now_ms: int) -> NoCall | None:
    """What the container is answered now; None: it is held on."""
    if kept.unwanted:
        # Without a leader NO_QUEUE destroys it as well, and is what a scheduler would say.
        return NoCall.ACTION_MISMATCH if has_queue else NoCall.NO_QUEUE
    if has_queue and (kept.asked or kept.initialised):  # an initialised one waits in a queue as well, and nearer
        return NoCall.NO_QUEUE
    if kept.pause_ms is not None and now_ms >= kept.pause_ms:
        return NoCall.NO_ACTIVATION
    return None


class Holds:
    """All of them. Hears of the cluster's changes, answers fetches, notes what became of orders."""

    def __init__(self, cluster: Cluster, holdings: Holdings, clock: Clock) -> None:
        self._cluster = cluster
        self._holdings = holdings
        self._clock = clock
        self._kept: dict[str, Kept] = {}
        self._orders: dict[str, Order] = {}
        self._paused: set[str] = set()
        self._moved: set[str] = set()
        self._missing: set[str] = set()
        self._handed: defaultdict[tuple[FunctionKey, bool], deque[tuple[int, str]]] = defaultdict(deque)
        cluster.listeners.append(self._hear)

    @property
    def kept(self) -> dict[str, Kept]:
        """Containers that are held, by id."""
        return self._kept

    def expect(self, marker: str, order: Order) -> None:
        """A container was ordered."""
        self._orders[marker] = order

    def let_go(self, container_id: str) -> bool:
        """Destroys a container that is held; whether it was."""
        kept = self._kept.get(container_id)
        if kept is None:
            return False
        kept.unwanted = True
        kept.changed.set()
        return True

    def stays_away(self, container_id: str) -> bool:
        """Whether a paused container would not ask us again, were it resumed by an order of ours.

        One that was handed over still counts as connected to our address: such an order does not make it connect again,
        and where it is there may be no queue, which destroys it (ActivationClientProxy.scala).
        """
        if container_id in self._moved:
            return True
        known = (item for item in self._holdings.all() if item.container_id == container_id)
        return any(not item.is_alive for item in known)

    def met(self, function: FunctionKey, arrived_ms: int, *, initialised: bool) -> bool:
        """Whether a call met one of ours, handed over for it; each counts once.

        Args:
            function: whose call.
            arrived_ms: when it was admitted.
            initialised: the container was, for this call: then it can only have been one that waited without.
        """
        handed, now_ms = self._handed[function, not initialised], self._clock.now_ms()
        while handed and handed[0][0] + _TOLD_MS < now_ms:
            handed.popleft()
        for one in handed:
            handed_ms, marker = one
            if handed_ms - _CALLED_MS <= arrived_ms <= handed_ms + _UNUSED_MS:
                handed.remove(one)
                self._holdings.note([(marker, HoldingState.USED)])
                return True
        return False

    def sweep(self) -> None:
        """Lets go of what is none of ours any more, and notes containers that are gone.

        A container may show nowhere for a moment, on its way from paused to up: gone is what two looks have missed.
        """
        alive = {item.marker: item for item in self._holdings.alive()}
        for kept in list(self._kept.values()):
            if kept.marker is not None and kept.marker not in alive:
                self.let_go(kept.container_id)
        asking = {one for one, kept in self._kept.items() if kept.fetches}
        there = self._cluster.existing.keys() | self._cluster.warmed.keys() | asking
        known = {item.container_id for item in alive.values() if item.container_id}
        known |= self._paused | self._moved | self._kept.keys()
        gone, self._missing = (known - there) & self._missing, known - there
        for container_id in gone:
            self._kept.pop(container_id, None)
        self._paused -= gone
        self._moved -= gone
        self._holdings.note((item.marker, HoldingState.GONE) for item in alive.values() if item.container_id in gone)
        self._orders = {marker: order for marker, order in self._orders.items() if marker in alive}

    def forget_former_life(self) -> None:
        """After a start: what was held then is the real queue's now, or destroyed; paused ones are still there."""
        former, warmed = [item for item in self._holdings.alive() if item.container_id], self._cluster.warmed
        self._paused |= {item.container_id for item in former if item.container_id in warmed}
        lost = [item.marker for item in former if item.container_id not in self._paused | self._kept.keys()]
        self._holdings.note((marker, HoldingState.GONE) for marker in lost)

    async def fetch(self, fetch: Fetch) -> JsonObject | NoCall:
        """See `service.Answers.fetch`."""
        if not fetch.alive:
            self._kept.pop(fetch.container_id, None)
            return NoCall.NO_ACTIVATION
        kept = self._kept.get(fetch.container_id) or self._welcome(fetch)
        if kept is None:
            return NoCall.NO_QUEUE  # nobody ordered it here
        if fetch.warmed and not kept.initialised:
            kept.initialised = True
            kept.pause_ms = self._clock.now_ms() + max(kept.order.hold_ms, PAUSE_GRACE_MS)
        answer = self._verdict(kept)
        if answer is None and not kept.initialised and (call := self._marker(kept)):
            return call
        kept.fetches += 1
        try:
            while answer is None:
                await self._something_changes(kept)
                answer = self._verdict(kept)
        except asyncio.CancelledError:
            if kept.fetches == 1:
                self._kept.pop(fetch.container_id, None)
            raise
        finally:
            kept.fetches -= 1
        self._answered(kept, answer)
        return answer

    def _welcome(self, fetch: Fetch) -> Kept | None:
        """A container's first fetch: the order that it answers; None where there is none."""
        alive, function = self._holdings.alive(), fetch.function
        key = self._cluster.existing.get(fetch.container_id) or self._cluster.warmed.get(fetch.container_id)
        node = None if key is None else node_name(key.invoker)  # the key may come after the fetch

        def matches(item: Holding) -> bool:
            return item.state is HoldingState.ORDERED and item.function == function and node in {None, item.node}

        own = next((item for item in alive if item.container_id == fetch.container_id), None)
        ordered = next(filter(matches, alive), None)
        if own is None and ordered is None:
            return None
        marker = own.marker if own else None
        order = Order()
        if ordered is not None:
            order = self._orders.pop(ordered.marker, order)
            if fetch.warmed:  # the order resumed a paused one
                self._holdings.note([(ordered.marker, HoldingState.REUSED)])
            else:
                marker = ordered.marker
                changes, ids = [(marker, HoldingState.HELD)], [(marker, fetch.container_id)]
                self._holdings.note(changes, containers=ids)
        node = node or (own or ordered or alive[0]).node
        since_ms, asked = self._clock.now_ms(), self._cluster.is_creating(function)
        kept = Kept(fetch.container_id, function, node, fetch.action.version, since_ms, order, marker, asked=asked)
        self._kept[fetch.container_id] = kept
        return kept

    def _marker(self, kept: Kept) -> JsonObject | None:
        if kept.order.marker is None or kept.marker is None:
            return None
        activation_id, call = kept.order.marker(self._clock.now_ms())
        kept.order = Order(kept.order.hold_ms)
        self._holdings.note(activations=[(kept.marker, activation_id)])
        return call

    def _verdict(self, kept: Kept) -> NoCall | None:
        has_queue = self._cluster.has_queue(kept.function)
        return verdict(kept, has_queue=has_queue, now_ms=self._clock.now_ms())

    async def _something_changes(self, kept: Kept) -> None:
        kept.changed.clear()
        waits: list[asyncio.Task[object]] = [asyncio.create_task(kept.changed.wait())]
        if kept.pause_ms is not None:
            waits.append(asyncio.create_task(self._clock.sleep_until(kept.pause_ms)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _answered(self, kept: Kept, answer: NoCall) -> None:
        if answer is NoCall.NO_ACTIVATION:
            kept.pause_ms = self._clock.now_ms() + _AGAIN_MS
            return  # it shows by its key that it is paused
        told = kept.container_id in self._moved  # by another fetch of the same container
        self._kept.pop(kept.container_id, None)
        self._moved.add(kept.container_id)
        if kept.marker is None or told:
            return
        if kept.unwanted or kept.asked:  # several may be handed over for one call: used is what a call has met
            self._holdings.note([(kept.marker, HoldingState.GONE)])
        if kept.asked and not kept.unwanted:
            self._handed[kept.function, kept.initialised].append((self._clock.now_ms(), kept.marker))

    def _hear(self, key: Key, begins: bool) -> None:
        match key:
            case QueueKey() | CreationKey() if begins:
                for kept in self._kept.values():
                    if kept.function == key.function:
                        kept.asked = True
                        kept.changed.set()
            case ContainerKey(warmed=True) if begins:
                self._kept.pop(key.container_id, None)
                self._paused.add(key.container_id)
            case ContainerKey(warmed=False) if begins and key.container_id in self._paused:
                self._paused.discard(key.container_id)
                self._resumed(key)
            case ContainerKey(warmed=False) if not begins:
                self.let_go(key.container_id)  # it is gone: whoever still asks for it is answered
                self._kept.pop(key.container_id, None)
            case _:
                pass

    def _resumed(self, key: ContainerKey) -> None:
        """A paused container is up: a scheduler took it for a call, unless an order of ours did."""
        alive = self._holdings.alive()
        ordered = any(item.state is HoldingState.ORDERED and item.function == key.function for item in alive)
        if not ordered and key.container_id not in self._kept:
            own = (item.marker for item in alive if item.container_id == key.container_id)
            self._holdings.note((marker, HoldingState.USED) for marker in itertools.islice(own, 1))
