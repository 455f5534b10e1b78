"""Fetches: what a container (FPC) asks the ActivationService for, and what may be answered.

A container that a creation made asks the address in it for its calls, again and again. The protobuf's strings hold
JSON; the answer is a call, or a reason why there is none, and the reason decides over the container:

| answer | the container |
| --- | --- |
| a call | initialises, if it has not, and runs it |
| `NoCall.NO_ACTIVATION` | pauses, 10 s after a run at the earliest; never initialised and 10 s old: is destroyed |
| `NoCall.NO_QUEUE` | moves to the queue's leader in etcd; without a leader it is destroyed |
| `NoCall.ACTION_MISMATCH` | is destroyed |

Whatever else is answered destroys it as well. To hold a container is to answer later.

Source: grpc/ActivationServiceImpl.scala and queue/QueueManager.scala in core/scheduler of apache/openwhisk.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesp_plugin.openwhisk.fields import Fields, encode, read_json
from mesp_plugin.openwhisk.names import NAME, ActionName, function_key, read_action_name
from mesp_plugin.openwhisk.parts import read_revision

if TYPE_CHECKING:
    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.fields import JsonObject


@dataclass(frozen=True, slots=True)
class Fetch:
    """A container asks for its next call.

    Attributes:
        warmed: it has run a call before.
        last_duration_ms: of that call; None before the first.
        alive: False says farewell: nothing it is given would be run.
    """

    namespace: str
    action: ActionName
    revision: str | None
    container_id: str
    warmed: bool
    last_duration_ms: int | None
    alive: bool

    @property
    def function(self) -> FunctionKey:
        """Whose container asks."""
        return function_key(self.namespace, self.action.full_name)


class NoCall(enum.Enum):
    """Why there is no call; the value is the error's type on the wire."""

    NO_ACTIVATION = "NoActivationMessage"
    NO_QUEUE = "NoMemoryQueue"
    ACTION_MISMATCH = "ActionMismatch"


_REASONS: dict[NoCall, JsonObject] = {
    NoCall.NO_ACTIVATION: {"noActivationMessage": "no activation message exist"},
    NoCall.NO_QUEUE: {"noMemoryQueue": "no memory queue exist"},
    NoCall.ACTION_MISMATCH: {"actionMisMatch": "action version does not match"},
}


def parse_fetch(
    *, namespace: str, fqn: str, rev: str, container_id: str, warmed: bool, last_duration_ms: int | None, alive: bool
) -> Fetch:
    """A FetchRequest's fields, of which `fqn` and `rev` hold JSON; `InputError` where they are not as they must be."""
    fields = Fields(
        "fetch",
        {
            "invocationNamespace": namespace,
            "fqn": read_json("fetch: fqn", fqn),
            "revision": read_json("fetch: rev", rev),
            "containerId": container_id,
            "lastDuration": last_duration_ms,
        },
    )
    return Fetch(
        namespace=fields.text("invocationNamespace", NAME),
        action=read_action_name(fields.object("fqn")),
        revision=read_revision(fields),
        container_id=fields.text("containerId"),
        warmed=warmed,
        last_duration_ms=fields.optional(fields.integer, "lastDuration"),
        alive=alive,
    )


def reply(answer: JsonObject | NoCall) -> str:
    """A FetchResponse's text: the call (an activation message, such as `orders.marker` makes), or why there is none."""
    if isinstance(answer, NoCall):
        answer = _REASONS[answer] | {"type": answer.value}
    return encode({"message": answer}).decode()
