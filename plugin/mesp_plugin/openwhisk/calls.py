"""Calls on the bus of an FPC deployment: who calls what, when runs end, and what a container of each function must be.

| topic | read for |
| --- | --- |
| ``schedulerN`` | a call at its admission: counted once by its id, its caller, its action's version and revision |
| ``completedC``, ``events`` | the end of its run; whether it was initialised |
| ``invokerN`` | containers that schedulers order: the action's description and revision |
| ``creationAckG`` | what became of containers that we ordered |

A message that cannot be read is noted in `Calls.skipped` and left out. An end may be read before its call, from another
topic: it is tried once more with the next messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mesp.errors import InputError
from mesp_plugin.openwhisk.containers import ContainerCreation, CreationAck, parse_container_message, parse_creation_ack
from mesp_plugin.openwhisk.invokers import LOST_MS
from mesp_plugin.openwhisk.messages import is_marker_id, parse_ack, parse_activation
from mesp_plugin.openwhisk.names import is_platform_action
from mesp_plugin.openwhisk.run_time import mean_run_ms
from mesp_plugin.openwhisk.user_events import ActivationEvent, parse_event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.kafka import Message
    from mesp_plugin.openwhisk.messages import Ack, ActivationMessage, ActivationRecord
    from mesp_plugin.openwhisk.parts import ActionMetaData
    from mesp_plugin.recorder import Recorder

#: A record, or an event, may come so long after the ack that ends a call.
_TELLS_MS: Final = 15_000


@dataclass(slots=True)
class Seen:
    """What the bus told of a function.

    Attributes:
        last: its last call.
        described: its action as a scheduler last described it.
        version, revision: of its action, the newest that a call or a scheduler's order had.
        duration_ms: mean run time; None before any run ended.
        ended_ms: when its last run ended.
    """

    last: ActivationMessage | None = None
    described: ActionMetaData | None = None
    version: str | None = None
    revision: str | None = None
    duration_ms: float | None = None
    ended_ms: int | None = None


@dataclass(slots=True)
class Call:
    """One activation on its way. `initialised` is None where nobody told."""

    function: FunctionKey
    arrived_ms: int
    freed_ms: int | None = None
    initialised: bool | None = None


class Calls:
    """All calls that are open, and what is known of every function. Times are injected.

    Attributes:
        limits: by namespace its own limit on concurrent invocations, None where the platform's holds.
        refused: acks of containers that could not be made, ours among them.
        skipped: why messages could not be read.
    """

    def __init__(self, group: str) -> None:
        """`group` is the name under which MESP itself orders containers."""
        self._group = group
        self.seen: dict[FunctionKey, Seen] = {}
        self.limits: dict[str, int | None] = {}
        self.refused: list[CreationAck] = []
        self.skipped: list[str] = []
        self._open: dict[str, Call] = {}
        self._over: dict[str, int] = {}
        self._early: list[Message] = []

    def read(self, messages: Iterable[Message], recorder: Recorder, now_ms: int) -> None:
        """Takes messages in, oldest first; `refused` and `skipped` grow until somebody clears them."""
        again, self._early = self._early, []
        for message in messages:
            at_ms = min(message.at_ms, now_ms)  # the sender's clock may be ahead
            self._read(message._replace(at_ms=at_ms), recorder, is_first=True)
        for message in again:
            self._read(message, recorder, is_first=False)

    def ended(self, now_ms: int) -> list[Call]:
        """Calls that are over, and of which all is known that will be; those without an end are given up."""
        over = []
        for activation_id, call in list(self._open.items()):
            told = call.initialised is not None
            if call.freed_ms is not None and (told or now_ms - call.freed_ms >= _TELLS_MS):
                over.append(call)
            elif now_ms - call.arrived_ms < LOST_MS:
                continue
            del self._open[activation_id]
            self._over[activation_id] = now_ms
        self._over = {key: at_ms for key, at_ms in self._over.items() if now_ms - at_ms < LOST_MS}
        return over

    def running(self) -> dict[FunctionKey, int]:
        """Calls that are admitted and not over, by function."""
        found: dict[FunctionKey, int] = {}
        for call in self._open.values():
            if call.freed_ms is None:
                found[call.function] = found.get(call.function, 0) + 1
        return found

    def _read(self, message: Message, recorder: Recorder, *, is_first: bool) -> None:
        topic, at_ms, value = message
        try:
            if topic.startswith("scheduler"):
                self._arrived(parse_activation(value, topic), at_ms, recorder)
            elif topic.startswith("completed"):
                ack = parse_ack(value, topic)
                if not self._acknowledged(ack, at_ms) and is_first and not is_marker_id(ack.activation_id):
                    self._early.append(message)
            elif topic == "events":
                event = parse_event(value, topic)
                if isinstance(event, ActivationEvent) and not self._told(event.activation_id, event) and is_first:
                    self._early.append(message)
            elif topic.startswith("creationAck"):
                ack_of_ours = parse_creation_ack(value, topic)
                self.refused += [ack_of_ours] if ack_of_ours.error else []
            elif topic.startswith("invoker"):
                order = parse_container_message(value, topic)
                if isinstance(order, ContainerCreation):
                    self._described(order)
        except InputError as error:
            self.skipped.append(str(error))  # which names what is wrong, and quotes nothing

    def _arrived(self, message: ActivationMessage, at_ms: int, recorder: Recorder) -> None:
        known = message.activation_id in self._open or message.activation_id in self._over
        if not message.is_call or known:
            return
        self.limits[message.caller.namespace] = message.caller.concurrent_invocations
        self._open[message.activation_id] = Call(message.function, at_ms)
        seen = self._of(message.function)
        seen.last, seen.version, seen.revision = message, message.action.version, message.revision
        recorder.arrival(message.function, at_ms)

    def _described(self, order: ContainerCreation) -> None:
        if order.scheduler == self._group or is_platform_action(order.action.full_name):
            return  # an order of ours repeats what was known
        seen = self._of(order.function)
        seen.described, seen.version, seen.revision = order.metadata, order.action.version, order.revision

    def _acknowledged(self, ack: Ack, at_ms: int) -> bool:
        """Whether the call is known."""
        call = self._open.get(ack.activation_id)
        if call is None:
            return ack.activation_id in self._over
        if ack.record:
            self._told(ack.activation_id, ack.record)
        if ack.frees_slot and call.freed_ms is None:
            call.freed_ms = self._of(call.function).ended_ms = at_ms
        return True

    def _told(self, activation_id: str, ended: ActivationRecord | ActivationEvent) -> bool:
        """How a run went; whether the call is known."""
        call = self._open.get(activation_id)
        if call is None:
            return activation_id in self._over
        if call.initialised is None:
            call.initialised = ended.init_ms > 0
            seen = self._of(call.function)
            seen.duration_ms = mean_run_ms(seen.duration_ms, ended.duration_ms - ended.init_ms)
        return True

    def _of(self, function: FunctionKey) -> Seen:
        return self.seen.setdefault(function, Seen())
