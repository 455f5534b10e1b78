"""Containers to order: what schedulers (FPC) and invokers say to one another on Kafka.

| topic | written by | message |
| --- | --- | --- |
| ``invokerN`` | schedulers | `ContainerCreation`, `ContainerDeletion` |
| ``creationAckS`` | invokers | `CreationAck`: the container is up, or why not |

Each `parse_*` takes the record's value and raises `InputError`, and nothing else, for what the real reader refuses
(connector/Message.scala of apache/openwhisk; members that are not known are ignored there and here).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesp_plugin.openwhisk.fields import ANY_TEXT, HEX_ID, Fields, read_object
from mesp_plugin.openwhisk.names import INSTANCE, NAME, ActionName, function_key, read_action_name
from mesp_plugin.openwhisk.parts import (
    MAX_INT,
    ActionMetaData,
    Invoker,
    Transaction,
    read_action_metadata,
    read_invoker,
    read_revision,
    read_transaction,
)

if TYPE_CHECKING:
    from mesp.types import FunctionKey


@dataclass(frozen=True, slots=True)
class ContainerCreation:
    """A scheduler asks an invoker for a container, which will fetch its calls at `host:rpc_port`."""

    transaction: Transaction
    namespace: str
    action: ActionName
    revision: str | None
    metadata: ActionMetaData
    scheduler: str
    host: str
    rpc_port: int
    retry_count: int
    creation_id: str

    @property
    def function(self) -> FunctionKey:
        """Whose container it will be."""
        return function_key(self.namespace, self.action.full_name)


@dataclass(frozen=True, slots=True)
class ContainerDeletion:
    """A scheduler asks an invoker to stop the function's containers up to a revision, each after its run."""

    transaction: Transaction
    namespace: str
    action: ActionName
    revision: str | None
    metadata: ActionMetaData

    @property
    def function(self) -> FunctionKey:
        """Whose containers go."""
        return function_key(self.namespace, self.action.full_name)


@dataclass(frozen=True, slots=True)
class CreationAck:
    """What became of a `ContainerCreation`: the container is up (not: initialised), or `error` names why not."""

    transaction: Transaction
    namespace: str
    action: ActionName
    revision: str | None
    metadata: ActionMetaData
    invoker: Invoker
    host: str
    rpc_port: int
    retry_count: int
    creation_id: str
    error: str | None = None
    reason: str | None = None

    @property
    def function(self) -> FunctionKey:
        """Whose container it is."""
        return function_key(self.namespace, self.action.full_name)


def parse_container_message(raw: bytes | str, what: str = "container message") -> ContainerCreation | ContainerDeletion:
    """A creation (it has a creationId) or a deletion from ``invokerN``."""
    fields = read_object(what, raw)
    if not fields.has("creationId"):
        return ContainerDeletion(*_container(fields, "whiskActionMetaData"))
    return ContainerCreation(
        *_container(fields, "whiskActionMetaData"),
        fields.object("rootSchedulerIndex").text("asString", INSTANCE),
        *_attempt(fields),
    )


def parse_creation_ack(raw: bytes | str, what: str = "creation ack") -> CreationAck:
    """A creation's ack from ``creationAck<scheduler>``."""
    fields = read_object(what, raw)
    return CreationAck(
        *_container(fields, "actionMetaData"),
        read_invoker(fields.object("rootInvokerIndex")),
        *_attempt(fields),
        error=fields.optional(fields.text, "error"),
        reason=fields.optional(fields.text, "reason", ANY_TEXT),
    )


def _container(fields: Fields, metadata: str) -> tuple[Transaction, str, ActionName, str | None, ActionMetaData]:
    return (
        read_transaction(fields),
        fields.text("invocationNamespace", NAME),
        read_action_name(fields.object("action")),
        read_revision(fields),
        read_action_metadata(fields.object(metadata)),
    )


def _attempt(fields: Fields) -> tuple[str, int, int, str]:
    return (
        fields.text("schedulerHost", ANY_TEXT),  # empty in the one by which an invoker tests its connection
        fields.integer("rpcPort", 0, 65_535),
        fields.integer("retryCount", 0, MAX_INT),
        fields.text("creationId", HEX_ID),
    )
