"""Creations, deletions and their acks: every recorded one is read, and each of its members is required."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.containers import (
    ContainerCreation,
    ContainerDeletion,
    parse_container_message,
    parse_creation_ack,
)
from mesp_plugin.openwhisk.parts import parse_action_metadata


def test_every_recorded_order_is_read(golden: Any) -> None:
    """A creation has a creationId, a deletion none; one with revision null and an empty host tests a connection."""
    kinds = set()
    for _, message in golden.kafka("invoker"):
        if "user" in message or "invocationNamespace" not in message:
            continue
        order = parse_container_message(json.dumps(message))
        kinds.add(type(order))
        assert order.function.scope == order.namespace == message["invocationNamespace"]
        assert order.revision == message["revision"]
        assert order.metadata.memory_mb == message["whiskActionMetaData"]["limits"]["memory"]
        if isinstance(order, ContainerCreation):
            assert (order.host, order.rpc_port) == (message["schedulerHost"], message["rpcPort"])
            assert (order.scheduler, order.creation_id) == (
                message["rootSchedulerIndex"]["asString"],
                message["creationId"],
            )
    assert kinds == {ContainerCreation, ContainerDeletion}


def test_every_recorded_creation_ack_is_read(golden: Any) -> None:
    """The invoker that made the container, or the error that kept it from doing so."""
    errors = set()
    for _, message in golden.kafka("creationAck"):
        ack = parse_creation_ack(json.dumps(message))
        errors.add(ack.error)
        assert ack.creation_id == message["creationId"]
        assert ack.invoker.instance == message["rootInvokerIndex"]["instance"]
        assert ack.function == FunctionKey(message["invocationNamespace"], message["action"]["name"])
        assert ack.reason == message.get("reason")
    assert errors == {None, "ResourceNotEnoughError"}


def test_every_member_of_a_recorded_message_is_required(excerpt: Any) -> None:
    """Leave any one out (but an ack's error and reason) and the sentence names it; no creationId makes a deletion."""
    for topic, parse in (("invoker", parse_container_message), ("creationAck", parse_creation_ack)):
        for _, message in excerpt.kafka(topic):
            if "user" in message or "invocationNamespace" not in message:
                continue
            for key in set(message) - {"error", "reason"} - ({"creationId"} if topic == "invoker" else set()):
                with pytest.raises(InputError, match=f"{key} is missing"):
                    parse(json.dumps({name: value for name, value in message.items() if name != key}))


METADATA: dict[str, Any] = {
    "namespace": "guest/pkg", "name": "f", "version": "0.0.3", "publish": False, "updated": 7,
    "exec": {"kind": "Blackbox", "image": "me/img:1", "binary": True, "main": "run"},
    "parameters": [{"key": "password", "value": "hunter2"}],
    "limits": {"memory": 128, "timeout": 60000, "instances": 3},
    "annotations": [
        {"key": "require-whisk-auth", "value": "hunter2"}, {"key": "provide-api-key", "value": True},
        {"key": "mesp-prewarm", "value": {"not": "a flag"}},
    ],
}  # fmt: skip


def test_an_actions_description_keeps_no_parameter_and_no_strange_annotation() -> None:
    """From the document that REST gives; limits that it leaves out are the platform's defaults."""
    read = parse_action_metadata(json.dumps(METADATA))
    assert "hunter2" not in repr(read)
    assert read.annotations == (("provide-api-key", True),)
    assert (read.action.full_name, read.kind, read.image, read.main) == ("guest/pkg/f", "blackbox", "me/img:1", "run")
    assert (read.logs_mb, read.concurrency, read.max_instances) == (10, 1, 3)


@pytest.mark.parametrize("key", [*sorted(METADATA), "exec.kind", "exec.image", "limits.memory", "limits.timeout"])
def test_an_action_is_described_in_full(key: str) -> None:
    """Every member is required that the platform itself requires."""
    metadata = deepcopy(METADATA)
    holder, _, member = key.rpartition(".")
    del (metadata[holder] if holder else metadata)[member]
    with pytest.raises(InputError, match=rf"^action: {key} is missing, must be "):
        parse_action_metadata(json.dumps(metadata))


def test_a_sequence_has_no_containers() -> None:
    """Its description has components instead of a binary flag, and is refused."""
    with pytest.raises(InputError, match=r"^action: exec\.binary is missing, must be true or false$"):
        parse_action_metadata(json.dumps(METADATA | {"exec": {"kind": "sequence", "components": []}}))
