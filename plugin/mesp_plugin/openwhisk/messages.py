"""Calls and their answers: what OpenWhisk's parts say to one another on Kafka about invocations.

| topic | written by | message |
| --- | --- | --- |
| ``invokerN`` (classic), ``schedulerN`` (FPC) | controllers | `ActivationMessage`: a call was admitted |
| ``completedC`` | invokers, schedulers | `Ack`: a result is there, a slot is free, or both |
| ``health`` | invokers (classic) | `Ping`, every second |

Each `parse_*` takes the record's value and refuses, with `InputError` and nothing else, what the real reader refuses:
a required member that is absent or of another type (connector/Message.scala and entity/*.scala of apache/openwhisk;
members that are not known are ignored there and here).

**Secrets stop here.** A call carries its caller's API key and parameters, an answer its result: none of these has a
place in the dataclasses. The one exception are the parameters that /init turns into the container's environment,
without which a prewarmed container would lack them (`ActivationMessage.init_content`, shown by no `repr`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mesp_plugin.openwhisk.fields import ANY_TEXT, HEX_ID, Fields, JsonObject, Rule, read_object
from mesp_plugin.openwhisk.names import (
    FULL_NAME,
    INSTANCE,
    NAME,
    PATH,
    VERSION,
    ActionName,
    function_key,
    is_platform_action,
    read_action_name,
    tidy,
)
from mesp_plugin.openwhisk.parts import MAX_INT, Invoker, Transaction, read_invoker, read_revision, read_transaction

if TYPE_CHECKING:
    from mesp.types import FunctionKey

#: The parameter by which an action or a runtime image knows a marker: answer at once, do no work.
MARKER: Final = "__ow_prewarm"

_MARKER_PREFIX: Final = "6d657370"  # "mesp" in ASCII
_MARKER_ID: Final = re.compile(rf"{_MARKER_PREFIX}[0-9a-f]{{4}}8[0-9a-f]{{3}}8[0-9a-f]{{15}}")
_RIGHTS: Final = Rule(re.compile("READ|PUT|DELETE|ACTIVATE|REJECT"), "READ, PUT, DELETE, ACTIVATE or REJECT")
_SUBJECT: Final = Rule(re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{5,}"), "5 or more printable characters")


# --- Calls ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Caller:
    """Who invokes, without the key.

    Attributes:
        concurrent_invocations: the namespace's own limit; None where the platform's default holds.
    """

    subject: str
    namespace: str
    namespace_uuid: str
    rights: tuple[str, ...]
    concurrent_invocations: int | None = None


@dataclass(frozen=True, slots=True)
class ActivationMessage:
    """A call on its way to an invoker (classic) or a scheduler (FPC).

    Attributes:
        revision: of the action's document; None for "the newest".
        controller: whose topic ``completed<controller>`` the acks go to.
        blocking: the caller waits, so that the ack carries a record.
        init_content: parameters that /init makes environment variables, by name: secrets of the action's author.
        locked_init: of those, the encrypted ones and the cipher of each.
        has_marker: the parameters hold `MARKER`.
        cause: activation of the sequence or composition that made this call.
    """

    transaction: Transaction
    action: ActionName
    revision: str | None
    caller: Caller
    activation_id: str
    controller: str
    blocking: bool
    init_content: JsonObject = field(default_factory=dict, repr=False)
    locked_init: dict[str, str] = field(default_factory=dict, repr=False)
    has_marker: bool = False
    cause: str | None = None

    @property
    def function(self) -> FunctionKey:
        """Who calls what."""
        return function_key(self.caller.namespace, self.action.full_name)

    @property
    def is_platform_made(self) -> bool:
        """The platform tests an invoker or a connection."""
        return is_platform_action(self.action.full_name)

    @property
    def is_marker(self) -> bool:
        """MESP, or someone by its rules, makes a container."""
        return self.has_marker or is_marker_id(self.activation_id)

    @property
    def is_call(self) -> bool:
        """A user's call: what forecasts are made of."""
        return not (self.is_platform_made or self.is_marker)


def marker_id(random_bits: int) -> str:
    """An activation id that every MESP knows for a marker's, from 88 random bits.

    Ids of OpenWhisk are UUIDs of version 4. This is one of version 8, free for own use (RFC 9562, section 5.8), so
    acks and user events of markers are told apart without remembering which ones were sent.
    """
    digits = f"{random_bits % 2**88:022x}"
    return f"{_MARKER_PREFIX}{digits[:4]}8{digits[4:7]}8{digits[7:]}"


def is_marker_id(activation_id: str) -> bool:
    """Whether `marker_id` made the id."""
    return _MARKER_ID.fullmatch(activation_id) is not None


def parse_activation(raw: bytes | str, what: str = "activation message") -> ActivationMessage:
    """A call from ``invokerN`` or ``schedulerN``."""
    fields = read_object(what, raw)
    user = fields.object("user")
    namespace, limits = user.object("namespace"), user.object("limits")
    user.object("authkey")  # required, and left where it is
    limits.optional(limits.flag, "storeActivations")
    controller = fields.object("rootControllerIndex")
    if controller.has("instanceType"):
        controller.text("instanceType", Rule(re.compile("controller"), "controller"))
    content = fields.any("content") if fields.has("content") else None
    parameters = content if isinstance(content, dict) else {}
    init = [name for name in fields.texts("initArgs", ANY_TEXT) if name in parameters]
    locked = _ciphers(fields, "lockedArgs")
    return ActivationMessage(
        transaction=read_transaction(fields),
        action=read_action_name(fields.object("action")),
        revision=read_revision(fields),
        caller=Caller(
            subject=user.text("subject", _SUBJECT),
            namespace=namespace.text("name", NAME),
            namespace_uuid=namespace.text("uuid"),
            rights=user.texts("rights", _RIGHTS),
            concurrent_invocations=limits.optional(limits.integer, "concurrentInvocations", 0, MAX_INT),
        ),
        activation_id=fields.text("activationId", HEX_ID),
        controller=controller.text("asString", INSTANCE),
        blocking=fields.flag("blocking"),
        init_content={name: parameters[name] for name in init},
        locked_init={name: locked[name] for name in init if name in locked},
        has_marker=MARKER in parameters,
        cause=fields.optional(fields.text, "cause", HEX_ID),
    )


# --- Answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ActivationRecord:
    """How one activation went; `init_ms` above 0 is a cold start. Neither result nor logs are kept.

    Attributes:
        duration_ms: of the run, initialisation included.
        wait_ms: from the beginning of the transaction to the run.
        memory_mb: of the container; None where the record does not say.
        status_code: 0 success, 1 application error, 2 action developer error, 3 internal error.
    """

    function: FunctionKey
    activation_id: str
    start_ms: int
    end_ms: int
    duration_ms: int
    init_ms: int
    wait_ms: int
    status_code: int
    kind: str | None = None
    memory_mb: int | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """An invoker's answer to a controller: the record, a free slot, or both at once; either may come first.

    Attributes:
        system_error: the platform failed; None where only the result came.
        invoker: whose slot is free; None where the slot is still taken (the logs are being collected). A scheduler
            that gave a call up says invoker 0 of 0 MB; one that found no queue for it names itself, and is read so, too.
        record: None for a non-blocking call, and where it was too large for the bus.
    """

    transaction: Transaction
    activation_id: str
    system_error: bool | None
    invoker: Invoker | None
    record: ActivationRecord | None

    @property
    def frees_slot(self) -> bool:
        """The call is over as far as the balancer counts."""
        return self.invoker is not None


def parse_ack(raw: bytes | str, what: str = "ack") -> Ack:
    """An ack from ``completed<controller>``; which kind it is, its members tell."""
    fields = read_object(what, raw)
    invoker = _acker(fields.object("instance")) if fields.has("instance") else None
    record: ActivationRecord | None = None
    if invoker is not None and not fields.has("response"):
        activation_id = fields.text("activationId", HEX_ID)
    elif isinstance(fields.any("response", "an activation or its id"), str):
        activation_id = fields.text("response", HEX_ID)
    else:
        record = _record(fields.object("response"))
        activation_id = record.activation_id
    return Ack(
        transaction=read_transaction(fields),
        activation_id=activation_id,
        system_error=fields.optional(fields.flag, "isSystemError"),
        invoker=invoker,
        record=record,
    )


@dataclass(frozen=True, slots=True)
class Ping:
    """An invoker is alive; after 10 s without one its controllers take it for offline."""

    invoker: Invoker
    enabled: bool


def parse_ping(raw: bytes | str, what: str = "health ping") -> Ping:
    """A ping from ``health``."""
    fields = read_object(what, raw)
    enabled = fields.optional(fields.flag, "isEnabled")
    return Ping(read_invoker(fields.object("name")), enabled is not False)


# --- Reading ------------------------------------------------------------------------------------------------------


def _acker(fields: Fields) -> Invoker:
    """Who acks: an invoker, or a scheduler by its name alone (QueueManager.scala), which has no slot to free."""
    if fields.has("asString") and not fields.has("instanceType"):
        fields.text("asString")
        return Invoker(instance=0, user_memory_mb=0.0)
    return read_invoker(fields)


def _record(fields: Fields) -> ActivationRecord:
    annotations, answer = fields.pairs("annotations"), fields.object("response")
    start_ms, end_ms = fields.integer("start"), fields.integer("end")
    namespace, name = tidy(fields.text("namespace", PATH)), fields.text("name", NAME)
    path = annotations.optional(annotations.text, "path", FULL_NAME)
    limits = annotations.optional(annotations.object, "limits")
    duration_ms = fields.optional(fields.span, "duration")
    fields.text("subject", _SUBJECT)
    fields.text("version", VERSION)
    fields.flag("publish")
    fields.any("logs")
    return ActivationRecord(
        function=function_key(namespace, tidy(path) if path else f"{namespace}/{name}"),
        activation_id=fields.text("activationId", HEX_ID),
        start_ms=start_ms,
        end_ms=end_ms,
        duration_ms=max(0, end_ms - start_ms) if duration_ms is None else duration_ms,
        init_ms=annotations.optional(annotations.span, "initTime") or 0,
        wait_ms=annotations.optional(annotations.span, "waitTime") or 0,
        status_code=answer.integer("statusCode", 0, 3),
        kind=annotations.optional(annotations.text, "kind"),
        memory_mb=limits.integer("memory", 0, MAX_INT) if limits else None,
        cause=fields.optional(fields.text, "cause", HEX_ID),
    )


def _ciphers(fields: Fields, key: str) -> dict[str, str]:
    """An object of texts; its keys, which are names of parameters, may be anything and are told to nobody."""
    value = fields.any(key, "an object of texts")
    if not isinstance(value, dict):
        fields.refuse(key, "an object of texts")
    ciphers = {name: cipher for name, cipher in value.items() if isinstance(cipher, str)}
    if len(ciphers) != len(value):
        fields.refuse(key, "an object of texts")
    return ciphers
