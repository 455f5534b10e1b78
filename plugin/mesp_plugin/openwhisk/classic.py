"""The classic driver: on Kafka, beside ShardingContainerPoolBalancer and InvokerReactive.

*Seen* is every call at its admission on ``invokerN``, each once by its id; its end on ``completed<controller>``; who
is alive on ``health``; and, where they are on, user events (`kafka`, `messages`). From these comes what each invoker's
pool holds (`invokers`). A message that cannot be read is counted and skipped, its content told to nobody.

*Added* are containers made by markers: the function's last real call once more, without its key and parameters, on the
topic of the invoker where the balancer will look for it. Where n idle containers are believed, n + k markers go out at
once. Their acks come to a topic of our own and say whether each made a container. Only with headroom: when no call
waits for room, and nothing has to go for it.

Only a run that fails destroys a container before its time. So nothing is removed early, unless the operator wants it
(`kafka.early_removal`): then a marker asks for such a failure. Of several plugins of one group one acts, the others
watch (`Bus.leads`).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import TYPE_CHECKING, Final

import structlog

from mesp.errors import InputError, MespError
from mesp_placement.model import Snapshot
from mesp_plugin.openwhisk.classic_functions import Functions
from mesp_plugin.openwhisk.driver import Done, NothingEarly, Observed, together
from mesp_plugin.openwhisk.holdings import Holding, HoldingState
from mesp_plugin.openwhisk.invokers import MARKER_LOST_MS, Call, Invokers, outcome
from mesp_plugin.openwhisk.messages import is_marker_id, marker_id, parse_ack, parse_activation, parse_ping
from mesp_plugin.openwhisk.user_events import ActivationEvent, parse_event
from mesp_plugin.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FunctionKey
    from mesp_placement.model import Prewarm, Release
    from mesp_plugin.metrics import OpenWhiskMetrics
    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.classic_functions import Template
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.holdings import Holdings
    from mesp_plugin.openwhisk.invokers import Pool
    from mesp_plugin.openwhisk.kafka import Bus, Message
    from mesp_plugin.openwhisk.messages import Ack, ActivationMessage, ActivationRecord, Caller

_log = structlog.get_logger(__name__)

_STEP_MS: Final = 60_000
_ACTIONS_EVERY_MS: Final = 30_000
#: An ack may be read before its call, from another topic.
_EARLY_MS: Final = 15_000
#: Messages read before others get a turn.
_AT_ONCE: Final = 500
_INVOKER: Final = re.compile(r"invoker(\d+)")


class ClassicDriver(NothingEarly):
    """Beside the controllers and invokers of one bus."""

    name = "classic"

    def __init__(
        self,
        bus: Bus,
        namespace: str,
        owner: Caller | None,
        actions: Actions,
        holdings: Holdings,
        config: OpenWhiskConfig,
        metrics: OpenWhiskMetrics | None = None,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """Reads all of `bus`; `actions` are those of `namespace`, in the name of whose `owner` markers are sent for
        functions of which no call was seen yet.
        """
        if config.kafka is None:
            raise InputError("kafka is null, must be set for driver: classic")
        super().__init__(holdings)
        self._bus = bus
        self._actions = actions
        self._functions = Functions(actions, namespace, owner, config)
        self._config = config
        self._group = config.kafka.group
        self._removes_early = config.kafka.early_removal
        self._metrics = metrics
        self._random_bits = random_bits
        self._invokers = Invokers(config.kafka.stem_cells_mb)
        self._early: dict[str, list[tuple[int, Ack]]] = {}
        self._recorder: Recorder | None = None
        self._began_ms = 0
        self._actions_due_ms = 0
        self._refreshed_ms = -1
        self._skipped: list[str] = []
        self._deaf: dict[FunctionKey, int | None] = {}

    # --- Seeing ---------------------------------------------------------------------------------------------------

    async def observe(self, now_ms: int) -> Observed:
        """See `Driver.observe`."""
        messages = await self._bus.take(now_ms)
        if self._recorder is None:
            self._recorder, self._began_ms = Recorder(f"openwhisk-{self._group}", _STEP_MS, self._bus.since_ms), now_ms
        if now_ms >= self._actions_due_ms:
            await self._refresh(now_ms)
        for place, message in enumerate(messages):
            if place % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            at_ms = min(message.at_ms, now_ms)  # the sender's clock may be ahead
            self._read(message._replace(at_ms=at_ms), self._recorder)
        self._tell_skipped()
        self._early = {key: acks for key, acks in self._early.items() if now_ms - acks[0][0] < _EARLY_MS}
        ended, changes = self._invokers.sweep(now_ms, self._bus.unbroken_ms)
        self._holdings.note(changes)
        self._give_up(now_ms)
        calls = [call for call in ended if not call.is_marker and (call.freed_ms or 0) >= self._began_ms]
        for call in calls:
            if call.ended is None and call.freed_ms is not None and not call.fresh:
                self._functions.ran(call.function, call.freed_ms - call.arrived_ms)  # nobody tells more exactly
        cold = tuple(call.function for call in calls if call.was_cold)
        return Observed(self._recorder.close(now_ms), len(calls), cold)

    async def snapshot(self, now_ms: int) -> Snapshot:
        """See `Driver.snapshot`; the containers are what the calls and acks seen so far add up to."""
        names, nodes = self._invokers.names, self._invokers.nodes(now_ms)
        known = {node.name for node in nodes}
        owned = [item.marker for item in self._holdings.alive()]
        containers = tuple(self._invokers.containers(now_ms, owned))
        return Snapshot(nodes, containers, self._functions.profiles(names, known))

    async def _refresh(self, now_ms: int) -> None:
        """The API tells who opted in; without it, what is known stays."""
        self._actions_due_ms, self._refreshed_ms = now_ms + _ACTIONS_EVERY_MS, now_ms
        try:
            await self._actions.refresh()
        except MespError as error:
            _log.warning("actions are as they were", error=str(error))

    def _read(self, message: Message, recorder: Recorder) -> None:
        topic, at_ms, value = message
        try:
            if found := _INVOKER.fullmatch(topic):
                self._arrived(int(found[1]), parse_activation(value, topic), at_ms, recorder)
            elif topic.startswith("completed"):
                self._acknowledged(parse_ack(value, topic), at_ms)
            elif topic == "health":
                self._invokers.ping(parse_ping(value, topic), at_ms)
            elif topic == "events":
                event = parse_event(value, topic)
                if isinstance(event, ActivationEvent):
                    self._ended(event.activation_id, event)
        except InputError as error:
            self._skipped.append(str(error))  # which names what is wrong, and quotes nothing

    def _tell_skipped(self) -> None:
        if self._skipped:
            _log.warning("messages skipped", count=len(self._skipped), first=self._skipped[0])
            if self._metrics:
                self._metrics.malformed.inc(len(self._skipped))
            self._skipped.clear()

    def _give_up(self, now_ms: int) -> None:
        """Orders without an answer."""
        silent = [
            item.marker
            for item in self._holdings.alive()
            if item.state is HoldingState.ORDERED and now_ms - item.ordered_ms >= MARKER_LOST_MS
        ]
        self._holdings.note((one, HoldingState.GONE) for one in silent)
        if silent and self._metrics:
            self._metrics.unanswered.inc(len(silent))

    def _arrived(self, invoker: int, message: ActivationMessage, at_ms: int, recorder: Recorder) -> None:
        key = message.function
        if message.is_platform_made:
            return  # its containers of 128 MB live for a minute at most
        self._functions.arrived(message)
        call = Call(
            message.activation_id,
            key,
            at_ms,
            message.is_marker,
            memory_mb=self._functions.memory_mb(key),
            concurrency=self._functions.concurrency(key),
        )
        if not self._invokers.arrive(invoker, call):
            return
        if message.is_call:
            recorder.arrival(key, at_ms)
        for acked_ms, ack in self._early.pop(message.activation_id, ()):
            self._acknowledged(ack, acked_ms)

    def _acknowledged(self, ack: Ack, at_ms: int) -> None:
        if not self._invokers.knows(ack.activation_id):
            self._early.setdefault(ack.activation_id, []).append((at_ms, ack))
            if ack.record and is_marker_id(ack.activation_id):  # sent before a restart that looked back less far
                self._holdings.note([(ack.activation_id, outcome(ack.record))])
            return
        if ack.record:
            self._ended(ack.activation_id, ack.record)
        if ack.frees_slot:
            self._invokers.free(ack.activation_id, at_ms, failed=ack.system_error is True)

    def _ended(self, activation_id: str, ended: ActivationRecord | ActivationEvent) -> None:
        call = self._invokers.told(activation_id, ended)
        if call is None or call.is_marker:
            if call and call.ends and outcome(ended) is not HoldingState.GONE:
                self._deaf[call.function] = self._functions.updated_ms(call.function)
            return
        self._functions.ended(call.function, ended)

    # --- Acting ---------------------------------------------------------------------------------------------------

    async def prewarm(self, wish: Prewarm, now_ms: int) -> Done:
        """See `Driver.prewarm`: markers at once, on the node of the wish."""
        template = await self._template(wish.function, now_ms)
        if isinstance(template, str):
            return Done(refused=f"{wish.function}: {template}")
        if lacking := self._lacks(wish, now_ms):
            return Done(refused=f"{wish.function}: {lacking}")
        await self._send(wish, template, now_ms)
        return Done(wish.count)

    async def _template(self, key: FunctionKey, now_ms: int) -> Template | str:
        """What a marker repeats, or why the function is sent none, as a clause."""
        if not self._bus.leads:
            return f"standby, another plugin of group {self._group} acts"
        if now_ms != self._refreshed_ms:  # who was updated just now may have opted out, or need more at /init
            await self._refresh(now_ms)
        if self._functions.opted_in(key) is None:
            return "it has not opted in to markers"
        return self._functions.template(key)

    def _lacks(self, wish: Prewarm, now_ms: int) -> str | None:
        """Why the node is not the place or has no room, as a clause."""
        key, memory_mb = wish.function, self._functions.memory_mb(wish.function)
        nodes = {node.name: node for node in self._invokers.nodes(now_ms) if node.schedulable}
        node, pool = nodes.get(wish.node), self._invokers.pool(wish.node)
        if node is None or pool is None:
            return f"{wish.node} is offline or disabled"
        route = self._functions.route(key, self._invokers.names)
        if wish.node not in route:
            return f"the balancer never looks for it on {wish.node}"
        for name in route[: route.index(wish.node)]:
            before = self._invokers.pool(name)
            if name in nodes and before and before.takes(key, memory_mb):
                return f"the balancer would not look for it on {wish.node}, for {name} has room for calls"
        if pool.waiting:
            return f"{pool.waiting} calls wait for room on {wish.node}"
        wanted_mb = wish.count * memory_mb
        if pool.taken_mb + wanted_mb > node.memory_mb:
            return (
                f"no headroom on {wish.node}, {pool.taken_mb:.0f} of {node.memory_mb:.0f} MB are taken, "
                f"{wanted_mb:.0f} are wanted"
            )
        return None

    async def _send(self, wish: Prewarm, template: Template, now_ms: int) -> None:
        """As many markers as the idle containers take, and so many more that the last one wanted is made."""
        key, pool = wish.function, self._invokers.pool(wish.node)
        idle = pool.spare(key) if pool else 0
        await self._mark(
            key, wish.node, idle + (wish.count - 1) * self._functions.concurrency(key) + 1, template, now_ms
        )

    async def _mark(
        self, key: FunctionKey, node: str, count: int, template: Template, now_ms: int, *, ends: bool = False
    ) -> None:
        """So many markers, remembered before they go out."""
        ids = [marker_id(self._random_bits(88)) for _ in range(count)]
        until_ms = now_ms + self._config.expiry_ms
        self._holdings.add(Holding(one, key, node, now_ms, until_ms, activation_id=one) for one in ids)
        memory_mb, concurrency = self._functions.memory_mb(key), self._functions.concurrency(key)
        try:
            await self._bus.send(node, [template.marker(one, self._group, now_ms, ends=ends) for one in ids], now_ms)
        finally:  # what failed may be there nevertheless: it is given up in its time
            for one in ids:
                call = Call(one, key, now_ms, True, memory_mb, concurrency, ends=ends)
                self._invokers.arrive(int(node.removeprefix("invoker")), call)

    # --- Taking back --------------------------------------------------------------------------------------------------

    async def release(self, wish: Release, now_ms: int) -> Done:
        """See `Driver.release`: a marker whose run fails, where the operator allows it."""
        if not self._removes_early:
            return await super().release(wish, now_ms)
        return await self._end(wish.container_id, now_ms)

    async def release_all(self, now_ms: int) -> Done:
        """See `Driver.release_all`."""
        if not self._removes_early:
            return await super().release_all(now_ms)
        owned = {item.marker for item in self._holdings.alive()}
        idle = [
            one.id for one in self._invokers.containers(now_ms, owned) if one.owned and one.idle_since_ms is not None
        ]
        return together([await self._end(container_id, now_ms) for container_id in idle])

    async def _end(self, container_id: str, now_ms: int) -> Done:
        """One of the function's idle containers goes: they are alike, and the invoker chooses."""
        pool, key = self._invokers.held(container_id) or (None, None)
        if pool is None or key is None:
            return Done(refused=f"{container_id}: a call uses it, or it is gone")
        template = await self._template(key, now_ms)
        if isinstance(template, str):
            return Done(refused=f"{container_id}: {template}")
        if lacking := self._keeps(key, pool):
            return Done(refused=f"{container_id}: {lacking}")
        pool.ends_next(container_id)
        await self._mark(key, pool.node, 1, template, now_ms, ends=True)
        return Done(1)

    def _keeps(self, key: FunctionKey, pool: Pool) -> str | None:
        """Why nothing of the function is to be ended, as a clause."""
        if key in self._deaf and self._deaf[key] == self._functions.updated_ms(key):
            return f"{key} does not end its container when asked to, it goes by itself"
        if pool.waiting or pool.taken_mb + self._functions.memory_mb(key) > pool.memory_mb:
            return f"{pool.node} is full: were no container of {key} idle, another would go for one"
        return None
