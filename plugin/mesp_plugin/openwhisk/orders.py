"""What MESP itself puts on OpenWhisk's bus: markers, creations, deletions. Pure: ids and the time are arguments.

A *marker* is an ordinary call that asks for no work: /init runs, /run finds the parameter `__ow_prewarm` and returns.
Its content is always sent, because without it the function's code would run for real. It carries a placeholder
where the caller's API key would be: invokers do not look at it, and pass it on only to the action. A *creation* asks
an invoker for a container without any call (FPC).

No key, no parameter and no result of anyone goes into these messages, but for the parameters that /init makes
environment variables: without them the container would later serve real calls without its environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mesp_plugin.openwhisk.messages import MARKER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp_plugin.openwhisk.fields import Json, JsonObject
    from mesp_plugin.openwhisk.messages import Caller
    from mesp_plugin.openwhisk.names import ActionName
    from mesp_plugin.openwhisk.parts import ActionMetaData

#: What stands where a key would be.
NO_KEY: Final = "none:none"


def marker(
    *,
    action: ActionName,
    caller: Caller,
    activation_id: str,
    controller: str,
    now_ms: int,
    revision: str | None = None,
    hold_ms: int = 0,
    ends: bool = False,
    init_content: Mapping[str, Json] | None = None,
    locked_init: Mapping[str, str] | None = None,
) -> JsonObject:
    """A call that makes a container and does no work, for ``invokerN`` (classic) or a fetch's answer (FPC).

    Args:
        action: with or without version; the invoker looks neither at it nor for it (classic).
        caller: who the container is for.
        activation_id: from `messages.marker_id`, so that it is known again.
        controller: the acks come to ``completed<controller>``, which must be a topic of our own.
        now_ms: when it is sent; `waitTime` is counted from it.
        revision: None is the safe choice (classic): a stale one makes a container that nobody uses. FPC: that of the
            creation.
        hold_ms: how long the run lasts, so that several markers sent at once make several containers.
        ends: the run is asked to fail, by which its container is destroyed (ContainerProxy.scala).
        init_content: `ActivationMessage.init_content` of the function's last real call.
        locked_init: `ActivationMessage.locked_init` of the same.
    """
    init = dict(init_content or {})
    names: list[Json] = list(init)
    rights: list[Json] = list(caller.rights)
    return {
        "transid": [f"prewarm-{activation_id[:16]}", now_ms],
        "action": action.to_json(),
        "revision": revision,
        "user": {
            "subject": caller.subject,
            "namespace": {"name": caller.namespace, "uuid": caller.namespace_uuid},
            "authkey": {"api_key": NO_KEY},
            "rights": rights,
            "limits": {"storeActivations": False},
        },
        "activationId": activation_id,
        "rootControllerIndex": {"asString": controller, "instanceType": "controller"},
        "blocking": True,
        "content": init | {MARKER: {"op": "end" if ends else "warm", "hold_ms": hold_ms}},
        "initArgs": names,
        "lockedArgs": dict(locked_init or {}),
    }


def creation(
    *,
    namespace: str,
    action: ActionName,
    revision: str,
    metadata: ActionMetaData,
    scheduler: str,
    host: str,
    rpc_port: int,
    creation_id: str,
    now_ms: int,
) -> JsonObject:
    """An order for one container, for ``invokerN`` (FPC).

    Args:
        namespace: the invoking one.
        action: path, name and version.
        revision: `_rev` of the action's document; no other would be found again.
        metadata: the action's description.
        scheduler: the ack comes to ``creationAck<scheduler>``, which must be a topic of our own.
        host: of our ActivationService, where the container fetches its calls. A real scheduler without a queue for
            the action would have it destroyed, and paused ones with it.
        rpc_port: of the same.
        creation_id: 32 hexadecimal digits, random.
        now_ms: when it is sent.
    """
    return {
        "transid": ["sid_containerCreation", now_ms],
        "invocationNamespace": namespace,
        "action": action.to_json(),
        "revision": revision,
        "whiskActionMetaData": metadata_to_json(metadata),
        "rootSchedulerIndex": {"asString": scheduler},
        "schedulerHost": host,
        "rpcPort": rpc_port,
        "retryCount": 0,
        "creationId": creation_id,
    }


def deletion(*, namespace: str, action: ActionName, revision: str, metadata: ActionMetaData, now_ms: int) -> JsonObject:
    """An order to stop a function's containers on one invoker, for ``invokerN`` (FPC).

    All of them up to `revision` go, whoever made them: paused ones at once, busy ones after their run.
    """
    return {
        "transid": ["sid_containerDeletion", now_ms],
        "invocationNamespace": namespace,
        "action": action.to_json(),
        "revision": revision,
        "whiskActionMetaData": metadata_to_json(metadata),
    }


def metadata_to_json(metadata: ActionMetaData) -> JsonObject:
    """The description as `WhiskActionMetaData` is written, without the action's parameters."""
    execution: JsonObject = {"kind": metadata.kind, "binary": metadata.binary}
    limits: JsonObject = {
        "concurrency": metadata.concurrency,
        "logs": metadata.logs_mb,
        "memory": metadata.memory_mb,
        "timeout": metadata.timeout_ms,
    }
    if metadata.image is not None:
        execution["image"] = metadata.image
    if metadata.main is not None:
        execution["main"] = metadata.main
    if metadata.max_instances is not None:
        limits["instances"] = metadata.max_instances
    return {
        "namespace": metadata.action.path,
        "name": metadata.action.name,
        "exec": execution,
        "parameters": [],
        "limits": limits,
        "version": metadata.action.version,
        "publish": metadata.publish,
        "annotations": [{"key": key, "value": value} for key, value in metadata.annotations],
        "updated": metadata.updated_ms,
    }
