"""Messages as the double writes and reads them: member for member those of the golden traces.

Reading is as strict as the real invoker's: a required member that is absent or of another type, and the message is
dropped (connector/Message.scala of apache/openwhisk). Writing is apart from the plugin's own code on purpose.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from e2e.openwhisk.model import Action, Json

#: What a required member must be: a type, a pattern for texts, or the members of an object.
Shape: TypeAlias = "type | re.Pattern[str] | dict[str, Shape]"

#: A namespace, or the name of an action.
NAME: Final = re.compile(r"\w([\w@ .&-]*[\w@.&-])?", re.ASCII)
_CALL: Final[dict[str, Shape]] = {
    "action": {"path": str, "name": NAME},
    "user": {
        "subject": re.compile(r".{5,}"),
        "namespace": {"name": NAME, "uuid": str},
        "authkey": dict,
        "rights": list,
        "limits": dict,
    },
    "activationId": re.compile(r"[0-9a-f]{32}"),
    "rootControllerIndex": {"asString": re.compile(r"[\w.-]+", re.ASCII)},
    "blocking": bool,
    "initArgs": list,
    "lockedArgs": dict,
}

NOT_FOUND: Final = "Action could not be found or may have been deleted."
NO_RESPONSE: Final = "The action did not produce a valid response and exited unexpectedly."


class DroppedError(Exception):
    """A message that the invoker does not take; the text is that of its log."""


def check_call(message: Json) -> None:
    """Raises `DroppedError` for a message that is no activation message."""
    for key in ("transid", "revision"):
        if key not in message:
            raise DroppedError(f"Object is missing required member '{key}'")
    if not (message["revision"] is None or isinstance(message["revision"], str)):
        raise DroppedError("document revision must be a string or null")
    match message["transid"]:
        case [str(), int(), *_]:
            pass
        case _:
            raise DroppedError("'transid' must be a list of a text and a time")
    check(message, _CALL)


def check(members: Json, shape: dict[str, Shape]) -> None:
    """Raises `DroppedError` where a required member is absent or not as the shape says."""
    for key, wanted in shape.items():
        if key not in members:
            raise DroppedError(f"Object is missing required member '{key}'")
        value = members[key]
        if isinstance(wanted, dict):
            if not isinstance(value, dict):
                raise DroppedError(f"'{key}' must be an object")
            check(value, wanted)
        elif isinstance(wanted, re.Pattern):
            if not isinstance(value, str) or not wanted.fullmatch(value):
                raise DroppedError(f"'{key}' is malformed")
        elif not isinstance(value, wanted):
            raise DroppedError(f"'{key}' must be of type {wanted.__name__}")


@dataclass(frozen=True)
class Response:
    """How a run ended: 0 success, 1 application error, 2 action developer error, 3 internal error.

    `size` of the result in bytes; None where the platform made the answer.
    """

    status_code: int
    result: Any
    size: int | None = None

    @property
    def keeps_container(self) -> bool:
        """Success and the action's own errors; all else destroys."""
        return self.status_code in {0, 1}

    def to_json(self) -> Json:
        """The `response` of a record on the bus."""
        members: Json = {"result": self.result, "statusCode": self.status_code}
        return members if self.size is None else members | {"size": self.size}


def response_of(status: int, body: Json | None) -> Response:
    """What a container's answer to /run comes to (entity/ActivationResult.scala)."""
    if body is None:
        return Response(2, {"error": NO_RESPONSE})
    size = len(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode())
    if status == 200:
        return Response(1 if "error" in body else 0, body, size)
    return Response(2, body if "error" in body else {"error": NO_RESPONSE}, size)


def instance(number: int, memory_mb: int) -> Json:
    """An invoker's name of itself."""
    memory = f"{memory_mb * 2**20} B"
    return {
        "instance": number,
        "userMemory": memory,
        "instanceType": "invoker",
        "tags": [],
        "dedicatedNamespaces": [],
    }


def ping(invoker: Json, *, enabled: bool = True) -> Json:
    """The message on ``health``."""
    return {"name": invoker, "isEnabled": enabled}


def completion(transid: list[Any], activation_id: str, invoker: Json, *, system_error: bool) -> Json:
    """A slot is free."""
    return {
        "transid": transid,
        "activationId": activation_id,
        "isSystemError": system_error,
        "instance": invoker,
    }


def result(transid: list[Any], record: Json) -> Json:
    """A blocking call's answer; the slot is still taken."""
    return {"transid": transid, "response": record}


def combined(transid: list[Any], record: Json, invoker: Json, *, system_error: bool) -> Json:
    """Answer and free slot in one."""
    return result(transid, record) | {"isSystemError": system_error, "instance": invoker}


def record(
    call: Json, action: Action | None, response: Response, start_ms: int, end_ms: int, init_ms: int | None = None
) -> Json:
    """The record of an activation; one that never ran (`action` None) has neither waited nor been limited."""
    name = call["action"]
    annotations: Json = {"causedBy": "sequence"} if "cause" in call else {}
    annotations["path"] = f"{name['path']}/{name['name']}"
    if action is None:
        annotations["kind"] = "unknown"
    else:
        annotations["waitTime"] = max(0, start_ms - call["transid"][1])
        annotations |= {"kind": action.kind, "timeout": end_ms - start_ms >= action.timeout_ms}
        annotations["limits"] = action.limits()
        if init_ms is not None:
            annotations["initTime"] = init_ms
    cause = {"cause": call["cause"]} if "cause" in call else {}
    version = action.version if action else name.get("version", "0.0.1")
    return cause | {
        "activationId": call["activationId"],
        "annotations": [{"key": key, "value": value} for key, value in annotations.items()],
        "duration": end_ms - start_ms,
        "end": end_ms,
        "logs": [],
        "name": name["name"],
        "namespace": call["user"]["namespace"]["name"],
        "publish": False,
        "response": response.to_json(),
        "start": start_ms,
        "subject": call["user"]["subject"],
        "version": version,
    }


def fallback(call: Json, kind: str, response: Response, now_ms: int, limits: Json | None = None) -> Json:
    """The record of an activation that nobody ran, though its action is known (FPC)."""
    name = call["action"]
    annotations: Json = {"causedBy": "sequence"} if "cause" in call else {}
    annotations |= {"path": f"{name['path']}/{name['name']}", "kind": kind}
    annotations |= {} if limits is None else {"limits": limits}
    cause = {"cause": call["cause"]} if "cause" in call else {}
    return cause | {
        "activationId": call["activationId"],
        "annotations": [{"key": key, "value": value} for key, value in annotations.items()],
        "duration": 0,
        "end": now_ms,
        "logs": [],
        "name": name["name"],
        "namespace": call["user"]["namespace"]["name"],
        "publish": False,
        "response": response.to_json(),
        "start": now_ms,
        "subject": call["user"]["subject"],
        "version": name.get("version", "0.0.1"),
    }


def annotations_of(record: Json) -> Json:
    """The record's annotations by name."""
    return {pair["key"]: pair["value"] for pair in record["annotations"]}


def activation_event(source: str, user: Json, record: Json, now_ms: int) -> Json:
    """The message on ``events`` for an activation that ended."""
    notes, response = annotations_of(record), record["response"]
    body: Json = {
        "name": notes["path"],
        "activationId": record["activationId"],
        "statusCode": response["statusCode"],
        "duration": record["duration"],
        "waitTime": notes.get("waitTime", 0),
        "initTime": notes.get("initTime", 0),
        "kind": notes["kind"],
        "conductor": False,
        "memory": notes.get("limits", {}).get("memory", 0),
    }
    body |= {key: notes[key] for key in ("causedBy",) if key in notes}
    body |= {key: response[key] for key in ("size",) if key in response}
    return _event(source, user, "Activation", body, now_ms)


def metric_event(source: str, user: Json, name: str, value: int, now_ms: int) -> Json:
    """The message on ``events`` for a namespace's count."""
    return _event(source, user, "Metric", {"metricName": name, "metricValue": value}, now_ms)


def _event(source: str, user: Json, kind: str, body: Json, now_ms: int) -> Json:
    return {
        "source": source,
        "subject": user["subject"],
        "namespace": user["namespace"]["name"],
        "userId": user["namespace"]["uuid"],
        "eventType": kind,
        "timestamp": now_ms,
        "body": body,
    }
