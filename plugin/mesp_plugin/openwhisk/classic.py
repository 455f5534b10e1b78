"""The classic driver: on Kafka, beside ShardingContainerPoolBalancer and InvokerReactive.

*Seen* is every call at its admission on ``invokerN``, each once by its id; its end on ``completed<controller>``; who
is alive on ``health``; and, where they are on, user events (`kafka`, `messages`). From these comes what each invoker's
pool holds (`invokers`). A message that cannot be read is counted and skipped, its content told to nobody.

*Added* are containers made by markers: the function's last real call once more, without its key and parameters, on the
topic of the invoker where the balancer will look for it. Where n idle containers are believed, n + k markers go out at
once. Their acks come to a topic of our own and say whether each made a container. Only with headroom: when no call
waits for room, and nothing has to go for it.

Nothing can be removed early: only a run that fails destroys a container, and MESP makes no run fail. Of several
plugins of one group one acts, the others watch (`Bus.leads`).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from mesp.errors import InputError, MespError
from mesp_placement.model import FunctionProfile, Snapshot
from mesp_plugin.openwhisk.actions import opted_in_by
from mesp_plugin.openwhisk.balancer import preferred_nodes
from mesp_plugin.openwhisk.driver import Done, NothingEarly, Observed
from mesp_plugin.openwhisk.fields import Fields, encode
from mesp_plugin.openwhisk.holdings import Holding, HoldingState
from mesp_plugin.openwhisk.invokers import MARKER_LOST_MS, Call, Invokers, outcome
from mesp_plugin.openwhisk.messages import Caller, is_marker_id, marker_id, parse_ack, parse_activation, parse_ping
from mesp_plugin.openwhisk.names import ActionName, action_path
from mesp_plugin.openwhisk.orders import marker
from mesp_plugin.openwhisk.user_events import ActivationEvent, parse_event
from mesp_plugin.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesp.types import FunctionKey
    from mesp_placement.model import Prewarm
    from mesp_plugin.metrics import OpenWhiskMetrics
    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.fields import Json
    from mesp_plugin.openwhisk.holdings import Holdings
    from mesp_plugin.openwhisk.kafka import Bus, Message
    from mesp_plugin.openwhisk.messages import Ack, ActivationMessage, ActivationRecord

_log = structlog.get_logger(__name__)

_STEP_MS: Final = 60_000
_ACTIONS_EVERY_MS: Final = 30_000
#: What a container takes when nobody said (`whisk.memory.std`).
_STANDARD_MB: Final = 256.0
#: An ack may be read before its call, from another topic.
_EARLY_MS: Final = 15_000
#: Weight of the newest run in the mean run time.
_NEWEST: Final = 0.2
#: Messages read before others get a turn.
_AT_ONCE: Final = 500
_INVOKER: Final = re.compile(r"invoker(\d+)")


@dataclass(slots=True)
class _Seen:
    """What the bus told of a function."""

    memory_mb: float = _STANDARD_MB
    kind: str = ""
    duration_ms: float | None = None
    last: ActivationMessage | None = None


@dataclass(frozen=True, slots=True)
class _Template:
    """What a marker repeats of a real call."""

    action: ActionName
    caller: Caller
    revision: str | None
    init_content: Mapping[str, Json]
    locked_init: Mapping[str, str]


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
        self._namespace = namespace
        self._owner = owner
        self._actions = actions
        self._config = config
        self._group = config.kafka.group
        self._metrics = metrics
        self._random_bits = random_bits
        self._invokers = Invokers(config.kafka.stem_cells_mb)
        self._seen: dict[FunctionKey, _Seen] = {}
        self._early: dict[str, list[tuple[int, Ack]]] = {}
        self._recorder: Recorder | None = None
        self._began_ms = 0
        self._actions_due_ms = 0
        self._refreshed_ms = -1
        self._skipped: list[str] = []

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
                self._ran(call.function, call.freed_ms - call.arrived_ms)  # nobody tells more exactly
        cold = tuple(call.function for call in calls if call.was_cold)
        return Observed(self._recorder.close(now_ms), len(calls), cold)

    async def snapshot(self, now_ms: int) -> Snapshot:
        """See `Driver.snapshot`; the containers are what the calls and acks seen so far add up to."""
        names, nodes = self._invokers.names, self._invokers.nodes(now_ms)
        known = {node.name for node in nodes}
        owned = [item.marker for item in self._holdings.alive()]
        functions = dict.fromkeys([*self._actions.known, *self._seen])
        return Snapshot(
            nodes,
            tuple(self._invokers.containers(now_ms, owned)),
            tuple(self._profile(key, names, known) for key in functions),
        )

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
        key, action = message.function, self._actions.known.get(message.function)
        if message.is_platform_made:
            return  # its containers of 128 MB live for a minute at most
        seen = self._seen.setdefault(key, _Seen())
        call = Call(
            message.activation_id,
            key,
            at_ms,
            message.is_marker,
            memory_mb=float(action.metadata.memory_mb) if action else seen.memory_mb,
            concurrency=max(1, action.metadata.concurrency) if action else 1,
        )
        if not self._invokers.arrive(invoker, call):
            return
        if message.is_call:
            recorder.arrival(key, at_ms)
            seen.last = message
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
            return
        seen = self._seen.setdefault(call.function, _Seen())
        seen.memory_mb, seen.kind = float(ended.memory_mb or seen.memory_mb), ended.kind or seen.kind
        self._ran(call.function, ended.duration_ms - ended.init_ms)

    def _ran(self, key: FunctionKey, run_ms: int) -> None:
        seen, run_ms = self._seen.setdefault(key, _Seen()), max(0, run_ms)
        mean_ms = run_ms if seen.duration_ms is None else seen.duration_ms
        seen.duration_ms = mean_ms + _NEWEST * (run_ms - mean_ms)

    def _profile(self, key: FunctionKey, invokers: tuple[str, ...], known: set[str]) -> FunctionProfile:
        seen, action = self._seen.get(key) or _Seen(), self._actions.known.get(key)
        nodes = tuple(node for node in self._route(key, invokers) if node in known)
        duration_ms, lead_ms = seen.duration_ms or 0.0, self._config.lead_ms
        if action:
            return action.profile(duration_ms=duration_ms, lead_ms=lead_ms, nodes=nodes)
        return FunctionProfile(
            key,
            seen.memory_mb,
            duration_ms=duration_ms,
            lead_ms=lead_ms,
            preferred_nodes=nodes,
            enabled=self._opted_in(key) is not None,
        )

    def _route(self, key: FunctionKey, invokers: tuple[str, ...]) -> tuple[str, ...]:
        """Where the balancer looks for the function's containers, home first."""
        action, seen = self._actions.known.get(key), self._seen.get(key)
        kind = action.metadata.kind if action else seen.kind if seen else ""
        return preferred_nodes(key.scope, action_path(key), invokers, blackbox=kind == "blackbox")

    def _opted_in(self, key: FunctionKey) -> str | None:
        """The rule by which it may be sent markers; others' actions, whose annotations the API does not show to this
        key, only by the operator's.
        """
        if action := self._actions.known.get(key):
            return action.opted_in_by
        if action_path(key).startswith(f"{self._namespace}/"):
            return None  # deleted, or not listed yet
        seen = self._seen.get(key)
        return opted_in_by(
            Fields("action", {"annotations": []}), seen.kind if seen else "", key, self._config.opt_in
        )  # fmt: skip

    # --- Acting ---------------------------------------------------------------------------------------------------

    async def prewarm(self, wish: Prewarm, now_ms: int) -> Done:
        """See `Driver.prewarm`: markers at once, on the node of the wish."""
        key = wish.function
        if not self._bus.leads:
            return Done(refused=f"standby: another plugin of group {self._group} acts")
        if now_ms != self._refreshed_ms:  # who was updated just now may have opted out, or need more at /init
            await self._refresh(now_ms)
        if self._opted_in(key) is None:
            return Done(refused=f"{key} has not opted in to markers")
        template = self._template(key)
        if isinstance(template, str):
            return Done(refused=f"{key}: {template}")
        if lacking := self._lacks(wish, now_ms):
            return Done(refused=f"{key}: {lacking}")
        await self._send(wish, template, now_ms)
        return Done(wish.count)

    def _template(self, key: FunctionKey) -> _Template | str:
        """The call that markers repeat, or why there is none, as a clause."""
        action, seen = self._actions.known.get(key), self._seen.get(key)
        init_names = action.init_names if action else frozenset()
        last = seen.last if seen else None
        if last is not None:
            if not init_names <= last.init_content.keys():
                return "/init takes parameters that its last call did not bring: wait for the next one"
            # With content of one revision only that revision may be made: a container of a newer one would serve real
            # calls with the old values, while one of an old revision merely goes unused.
            revision = last.revision if last.init_content else None
            return _Template(last.action, last.caller, revision, last.init_content, last.locked_init)
        if init_names:
            return "/init takes parameters that only a call brings, and none was seen yet"
        if action is None or self._owner is None:
            return "no call of it was seen yet, and who calls it is not known otherwise"
        return _Template(action.metadata.action, self._owner, None, {}, {})

    def _lacks(self, wish: Prewarm, now_ms: int) -> str | None:
        """Why the node is not the place or has no room, as a clause."""
        key, memory_mb = wish.function, self._memory_mb(wish.function)
        nodes = {node.name: node for node in self._invokers.nodes(now_ms) if node.schedulable}
        node, pool = nodes.get(wish.node), self._invokers.pool(wish.node)
        if node is None or pool is None:
            return f"{wish.node} is offline or disabled"
        route = self._route(key, self._invokers.names)
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

    def _memory_mb(self, key: FunctionKey) -> float:
        if action := self._actions.known.get(key):
            return float(action.metadata.memory_mb)
        return self._seen[key].memory_mb if key in self._seen else _STANDARD_MB

    async def _send(self, wish: Prewarm, template: _Template, now_ms: int) -> None:
        """As many markers as the idle containers take, and so many more that the last one wanted is made."""
        key, action = wish.function, self._actions.known.get(wish.function)
        pool = self._invokers.pool(wish.node)
        concurrency = max(1, action.metadata.concurrency) if action else 1
        count = (pool.spare(key) if pool else 0) + (wish.count - 1) * concurrency + 1
        ids = [marker_id(self._random_bits(88)) for _ in range(count)]
        until_ms = now_ms + self._config.expiry_ms
        self._holdings.add(Holding(one, key, wish.node, now_ms, until_ms, activation_id=one) for one in ids)
        try:
            await self._bus.send(wish.node, [self._marker(template, one, now_ms) for one in ids], now_ms)
        finally:  # what failed may be there nevertheless: it is given up in its time
            for one in ids:
                call = Call(one, key, now_ms, is_marker=True, memory_mb=self._memory_mb(key), concurrency=concurrency)
                self._invokers.arrive(int(wish.node.removeprefix("invoker")), call)

    def _marker(self, template: _Template, activation_id: str, now_ms: int) -> bytes:
        return encode(
            marker(
                action=template.action,
                caller=template.caller,
                activation_id=activation_id,
                controller=self._group,
                now_ms=now_ms,
                revision=template.revision,
                init_content=template.init_content,
                locked_init=template.locked_init,
            )
        )
