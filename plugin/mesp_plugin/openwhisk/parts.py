"""Parts that several of OpenWhisk's messages share: a transaction, an invoker, an action's description.

Read as entity/*.scala and common/TransactionId.scala of apache/openwhisk read them, with one difference: an unreadable
`transid` is refused, where the real reader calls it unknown and dates it now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mesp_plugin.openwhisk.fields import Fields, Rule, read_object
from mesp_plugin.openwhisk.names import NAME, PATH, VERSION, ActionName, tidy

MAX_INT: Final = 2**31 - 1
#: What a container takes when nobody said (`whisk.memory.std`).
STANDARD_MB: Final = 256.0
#: Annotations of an action that MESP keeps; others may hold secrets (`require-whisk-auth`).
KEPT_ANNOTATIONS: Final = ("provide-api-key", "exec", "mesp-prewarm")

_SIZE: Final = Rule(re.compile(r"\s?\d{1,18}\s?(?:[gmk]b?|b)\s?", re.ASCII | re.IGNORECASE), "a size such as 256 MB")
_BYTES_PER: Final = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a request is called in every log, and when it (or this part of a sequence) began."""

    id: str
    start_ms: int


@dataclass(frozen=True, slots=True)
class Invoker:
    """An invoker; its `instance` is the N of its topic and its place in the balancer's order."""

    instance: int
    user_memory_mb: float
    unique_name: str | None = None
    displayed_name: str | None = None
    tags: tuple[str, ...] = ()
    dedicated_namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ActionMetaData:
    """What an action is, without its code and parameters (entity/WhiskAction.scala, `WhiskActionMetaData`).

    Attributes:
        action: path, name and version.
        kind: such as ``nodejs:20``, or ``blackbox``.
        image: of a blackbox action.
        main: entry point, where the author named one.
        max_instances: the action's own limit on containers; None for none.
        annotations: those of `KEPT_ANNOTATIONS`, where they are texts or flags.
    """

    action: ActionName
    kind: str
    memory_mb: int
    timeout_ms: int
    updated_ms: int
    logs_mb: int = 10
    concurrency: int = 1
    max_instances: int | None = None
    binary: bool = False
    image: str | None = None
    main: str | None = None
    publish: bool = False
    annotations: tuple[tuple[str, str | bool], ...] = ()


def read_invoker(fields: Fields) -> Invoker:
    """The object by which an invoker names itself."""
    fields.text("instanceType", Rule(re.compile("invoker"), "invoker"))
    fields.optional(fields.text, "busyMemory", _SIZE)
    return Invoker(
        instance=fields.integer("instance", 0, MAX_INT),
        user_memory_mb=_megabytes(fields.text("userMemory", _SIZE)),
        unique_name=fields.optional(fields.text, "uniqueName"),
        displayed_name=fields.optional(fields.text, "displayedName"),
        tags=fields.texts("tags"),
        dedicated_namespaces=fields.texts("dedicatedNamespaces"),
    )


def parse_action_metadata(raw: bytes | str, what: str = "action") -> ActionMetaData:
    """An action's document as the REST API gives it (``GET .../actions/NAME?code=false``)."""
    return read_action_metadata(read_object(what, raw))


def read_action_metadata(fields: Fields) -> ActionMetaData:
    """An action's description; sequences, which have no containers, are refused for lack of `exec.binary`."""
    execution, limits, annotations = fields.object("exec"), fields.object("limits"), fields.pairs("annotations")
    fields.pairs("parameters")  # required, and left where they are
    kept = {key: annotations.any(key) for key in KEPT_ANNOTATIONS if annotations.has(key)}
    kind = execution.text("kind").strip().lower()
    logs_mb, concurrency = (limits.optional(limits.integer, key, 0, MAX_INT) for key in ("logs", "concurrency"))
    return ActionMetaData(
        action=ActionName(
            path=tidy(fields.text("namespace", PATH)),
            name=fields.text("name", NAME),
            version=fields.text("version", VERSION),
        ),
        kind=kind,
        memory_mb=limits.integer("memory", 1, MAX_INT),
        timeout_ms=limits.integer("timeout", 1, MAX_INT),
        updated_ms=fields.integer("updated"),
        logs_mb=10 if logs_mb is None else logs_mb,
        concurrency=1 if concurrency is None else concurrency,
        max_instances=limits.optional(limits.integer, "instances", 0, MAX_INT),
        binary=execution.flag("binary"),
        image=execution.text("image") if kind == "blackbox" else None,
        main=execution.optional(execution.text, "main"),
        publish=fields.flag("publish"),
        annotations=tuple((key, value) for key, value in kept.items() if isinstance(value, (str, bool))),
    )


def read_transaction(fields: Fields) -> Transaction:
    """``[id, start]``, after which may come a flag and the parent's list (common/TransactionId.scala)."""
    value = fields.any("transid", allowed := "a list of a text and a time in milliseconds")
    if not isinstance(value, list) or not 2 <= len(value) <= 4:
        fields.refuse("transid", allowed)
    parts = Fields(fields.what, {"id": value[0], "start": value[1]}, "transid.")
    return Transaction(parts.text("id"), parts.integer("start"))


def read_revision(fields: Fields) -> str | None:
    """The revision of an action's document, which must be there and may be null."""
    if fields.any("revision", "a text or null") is None:
        return None
    return fields.text("revision")


def generation(revision: str | None) -> int:
    """By what revisions of one document are ordered: the number before the dash (DocRevision.scala); 0 where there is none."""
    digits = (revision or "").partition("-")[0]
    return int(digits) if digits.isdecimal() and digits.isascii() else 0


def _megabytes(size: str) -> float:
    unit = re.sub(r"[\s\d]", "", size)[0].lower()
    return int(re.sub(r"\D", "", size)) * _BYTES_PER[unit] / 2**20
