"""What only deployments with FPC say: creations, deletions and their acks on Kafka, keys in etcd, fetches.

Member for member as in the golden traces, and read as strictly as the real ones read (connector/Message.scala,
etcd/EtcdUtils.scala and queue/QueueManager.scala of apache/openwhisk). Apart from the plugin's own code on purpose.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from e2e.openwhisk import wire
from mesp.openwhisk.activation_service_pb2 import FetchResponse

if TYPE_CHECKING:
    from e2e.openwhisk.model import Action, Json
    from e2e.openwhisk.wire import Shape

_NAME_SHAPE: Final[dict[str, Shape]] = {"path": str, "name": wire.NAME}
_METADATA: Final[dict[str, Shape]] = {
    "namespace": str,
    "name": wire.NAME,
    "exec": {"kind": str, "binary": bool},
    "parameters": list,
    "limits": {"memory": int, "timeout": int},
    "version": str,
    "publish": bool,
    "annotations": list,
}
_DELETION: Final[dict[str, Shape]] = {
    "invocationNamespace": str,
    "action": _NAME_SHAPE,
    "whiskActionMetaData": _METADATA,
}
_CREATION: Final[dict[str, Shape]] = _DELETION | {
    "rootSchedulerIndex": {"asString": re.compile(r"[\w.-]+", re.ASCII)},
    "schedulerHost": str,
    "rpcPort": int,
    "retryCount": int,
    "creationId": re.compile(r"[0-9a-f]{32}"),
}

#: A connection's first message, to an action that does not exist.
WARM_UP: Final = "whisk.system/warmUp"
NO_ACTIVATION: Final[Json] = {"noActivationMessage": "no activation message exist", "type": "NoActivationMessage"}
NO_QUEUE: Final[Json] = {"noMemoryQueue": "no memory queue exist", "type": "NoMemoryQueue"}
MISMATCH: Final[Json] = {"actionMisMatch": "action version does not match", "type": "ActionMismatch"}
NOT_ENOUGH: Final = "ResourceNotEnoughError"
#: Errors after which a scheduler tries again.
RETRYABLE: Final = frozenset(
    {"NoAvailableInvokersError", "NoAvailableResourceInvokersError", NOT_ENOUGH, "WhiskError", "ShuttingDownError"}
    | {"UnknownError", "TimeoutError"}
)
#: In whose name queues give calls up: an invoker that does not exist (MemoryQueue.scala).
NOBODY: Final[Json] = wire.instance(0, 0) | {"userMemory": "0 MB"}
TOO_MANY: Final = "Too many concurrent requests in flight."


@dataclass(frozen=True)
class Owner:
    """Whose containers: one revision of an action, invoked by a namespace; `action` is its full name."""

    namespace: str
    action: str
    version: str
    revision: str | None

    @property
    def base(self) -> str:
        """namespace/action, as most keys hold it."""
        return f"{self.namespace}/{self.action}"

    def name(self) -> Json:
        """The action as messages name it."""
        path, _, name = self.action.rpartition("/")
        return {"path": path, "name": name, "version": self.version}

    def at(self, revision: str | None) -> Owner:
        """The same at another revision."""
        return replace(self, revision=revision)


def owner_of(message: Json) -> Owner:
    """Of a creation or deletion."""
    name = message["action"]
    full_name = f"{name['path']}/{name['name']}"
    version = name.get("version", "0.0.1")
    return Owner(message["invocationNamespace"], full_name, version, message["revision"])


def owner_of_call(call: Json) -> Owner:
    """Of an activation message."""
    name = call["action"]
    namespace, version = call["user"]["namespace"]["name"], name.get("version", "0.0.1")
    return Owner(namespace, full_name(name), version, call["revision"])


def full_name(name: Any) -> str:
    """An action's, from how messages name it.

    Raises:
        ValueError: it is the name of no action.
    """
    if not (isinstance(name, dict) and isinstance(name.get("path"), str) and isinstance(name.get("name"), str)):
        raise ValueError("fully qualified entity name malformed")  # noqa: TRY004 (as whatever cannot be read)
    return f"{name['path']}/{name['name']}"


def number_of(revision: str | None) -> int:
    """Revisions are ordered by what stands before the dash."""
    return int((revision or "0").partition("-")[0])


# --- Kafka ----------------------------------------------------------------------------------------------------------


def check_order(message: Json) -> bool:
    """Whether it is a creation; else it is a deletion.

    Raises:
        DroppedError: it is neither.
    """
    for key in ("transid", "revision"):
        if key not in message:
            raise wire.DroppedError(f"Object is missing required member '{key}'")
    if not (message["revision"] is None or isinstance(message["revision"], str)):
        raise wire.DroppedError("document revision must be a string or null")
    is_creation = "creationId" in message
    wire.check(message, _CREATION if is_creation else _DELETION)
    return is_creation


def metadata(action: Action, now_ms: int) -> Json:
    """An action's description as a controller passes it on, which dates it anew."""
    document = action.document()
    document["exec"] = {"kind": action.kind, "binary": False}
    return document | {"parameters": [], "updated": now_ms}


def creation(
    owner: Owner, about: Json, *, scheduler: str, port: int, host: str, creation_id: str, began_ms: int, retries: int
) -> Json:
    """An order for one container; its transaction is the scheduler's, from when that started."""
    return deletion(owner, about, began_ms) | {
        "transid": ["sid_containerCreation", began_ms],
        "rootSchedulerIndex": {"asString": scheduler},
        "schedulerHost": host,
        "rpcPort": port,
        "retryCount": retries,
        "creationId": creation_id,
    }


def deletion(owner: Owner, about: Json, began_ms: int) -> Json:
    """An order to stop all of an owner's containers up to its revision."""
    return {
        "transid": ["sid_containerDeletion", began_ms],
        "invocationNamespace": owner.namespace,
        "action": owner.name(),
        "revision": owner.revision,
        "whiskActionMetaData": about,
    }


def creation_ack(creation: Json, invoker: Json, error: str | None = None, reason: str | None = None) -> Json:
    """What became of a creation: the container is up, or `error`."""
    kept = ("transid", "creationId", "invocationNamespace", "action", "revision", "schedulerHost", "rpcPort")
    members = {key: creation[key] for key in (*kept, "retryCount")}
    members |= {"actionMetaData": creation["whiskActionMetaData"], "rootInvokerIndex": invoker}
    return members if error is None else members | {"error": error, "reason": reason}


def surrender(call: Json, record: Json, acker: Json) -> Json:
    """The ack for a call that a scheduler gives up."""
    failed = record["response"]["statusCode"] == 3
    if call["blocking"]:
        return wire.combined(call["transid"], record, acker, system_error=failed)
    return wire.completion(call["transid"], call["activationId"], acker, system_error=failed)


# --- etcd -----------------------------------------------------------------------------------------------------------


def existing_key(owner: Owner, invoker: int, container: str) -> str:
    """A container is up."""
    return f"namespace/{owner.base}/{owner.revision or 'null'}/invoker{invoker}/container/{container}"


def warmed_key(owner: Owner, invoker: int, container: str) -> str:
    """A container is paused."""
    return f"warmed/{owner.base}/{owner.revision or 'null'}/invoker/{invoker}/container/{container}"


def progress_key(owner: Owner, scheduler: str, creation_id: str) -> str:
    """A scheduler waits for a container."""
    return f"in-progress/{owner.base}/{owner.revision or 'null'}/scheduler/{scheduler}/creationId/{creation_id}"


def leader_key(owner: Owner) -> str:
    """The action has a queue."""
    return f"queue/{owner.base}/leader"


def compact(members: Json | list[Any]) -> str:
    """A value as the real ones write it: members in the order of their names."""
    return json.dumps(members, separators=(",", ":"), sort_keys=True)


def endpoints(host: str, port: int) -> Json:
    """Where a scheduler listens."""
    return {"host": host, "pekkoPort": 25520, "rpcPort": port}


def resources(free_mb: int, busy_mb: int, in_progress_mb: int) -> Json:
    """An invoker's memory."""
    memory = {"freeMemory": free_mb, "busyMemory": busy_mb, "inProgressMemory": in_progress_mb}
    return memory | {"status": "up", "tags": [], "dedicatedNamespaces": []}


# --- Fetches --------------------------------------------------------------------------------------------------------


def response(message: Json) -> FetchResponse:
    """A call, or one of the reasons above."""
    return FetchResponse(activationMessage=json.dumps({"message": message}, separators=(",", ":")))


class UnreadableError(Exception):
    """A fetch's answer that is no JSON at all; the container asks again."""


def read_response(response: FetchResponse) -> Json:
    """The call, or the reason why there is none.

    Raises:
        UnreadableError: it is no JSON.
        DroppedError: it is JSON, and neither of the two.
    """
    try:
        answer: Any = json.loads(response.activationMessage)
    except ValueError as error:
        raise UnreadableError from error
    message = answer.get("message") if isinstance(answer, dict) else None
    if not isinstance(message, dict):
        raise wire.DroppedError("Object is missing required member 'message'")
    if message not in (NO_ACTIVATION, NO_QUEUE, MISMATCH):
        wire.check_call(message)
    return message
