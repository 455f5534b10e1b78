"""What schedulers and invokers keep in etcd (FPC): keys that are facts by being there, and a few values.

All keys begin with the cluster's name (`whisk.cluster.name`, by default ``whisk``) and vanish with their owner's
lease. `parse_key` makes a dataclass of a key, each dataclass makes its key again by `path`:

| key | says |
| --- | --- |
| ``invokers/0[/unique[/displayed]]`` | `InvokerKey`; its value (`parse_resources`) is written when it changes |
| ``namespace/NS/ACTION/REV/invoker0/container/ID`` | `ContainerKey`, existing: up, held or busy |
| ``warmed/NS/ACTION/REV/invoker/0/container/ID`` | `ContainerKey`, warmed: paused, free of the namespace's limit |
| ``in-progress/NS/ACTION/REV/scheduler/0/creationId/ID`` | `CreationKey`: a scheduler waits for it |
| ``queue/NS/ACTION/leader`` | `QueueKey`; its value (`parse_endpoints`) is where calls are fetched |
| ``throttling/NS[/ACTION]`` | `ThrottlingKey`; its value (`parse_throttled`) is true at the limit |
| ``scheduler/0`` | `SchedulerKey`; its value (`parse_scheduler`) holds its endpoints |

NS is the invoking namespace and ACTION the action's full name without version, two or three parts. A container's
``warmed`` key goes some 60 ms before its ``namespace`` key comes: for so long it shows nowhere. On a busy machine it may go
seconds after it instead: a container with both is up.

Source: etcd/EtcdUtils.scala, Scheduler.scala and connector/Message.scala (`InvokerResourceMessage`) of
apache/openwhisk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mesp.errors import InputError
from mesp_plugin.openwhisk.fields import HEX_ID, TEXT, Fields, Rule, read_object
from mesp_plugin.openwhisk.names import FULL_NAME, INSTANCE, NAME, function_key
from mesp_plugin.openwhisk.parts import MAX_INT

if TYPE_CHECKING:
    from mesp.types import FunctionKey

_NUMBER = Rule(re.compile(r"0|[1-9][0-9]{0,8}"), "a number of at most 9 digits")
_PART = Rule(re.compile(r"[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]+"), "printable characters without /")


# --- Keys -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InvokerKey:
    """An invoker that lives."""

    instance: int
    unique_name: str | None = None
    displayed_name: str | None = None

    def path(self, cluster: str = "whisk") -> str:
        """The key in etcd."""
        # As there: a displayed name alone is left out, it would read as the unique one.
        names = [name for name in (self.unique_name, self.displayed_name) if name and self.unique_name]
        return "/".join([cluster, "invokers", str(self.instance), *names])


@dataclass(frozen=True, slots=True)
class ContainerKey:
    """A container of a function on an invoker: paused and free (`warmed`), or up (held or busy).

    Attributes:
        action: full name of the action.
        revision: None where the container was made without one: no real call will find it.
    """

    warmed: bool
    namespace: str
    action: str
    revision: str | None
    invoker: int
    container_id: str

    @property
    def function(self) -> FunctionKey:
        """Whose container."""
        return function_key(self.namespace, self.action)

    def path(self, cluster: str = "whisk") -> str:
        """The key in etcd."""
        kind, place = ("warmed", f"invoker/{self.invoker}") if self.warmed else ("namespace", f"invoker{self.invoker}")
        revision = self.revision or "null"
        return f"{cluster}/{kind}/{self.namespace}/{self.action}/{revision}/{place}/container/{self.container_id}"


@dataclass(frozen=True, slots=True)
class CreationKey:
    """A container that a scheduler ordered and that is not up yet."""

    namespace: str
    action: str
    revision: str | None
    scheduler: str
    creation_id: str

    @property
    def function(self) -> FunctionKey:
        """Whose container it will be."""
        return function_key(self.namespace, self.action)

    def path(self, cluster: str = "whisk") -> str:
        """The key in etcd."""
        owner = f"{self.namespace}/{self.action}/{self.revision or 'null'}"
        return f"{cluster}/in-progress/{owner}/scheduler/{self.scheduler}/creationId/{self.creation_id}"


@dataclass(frozen=True, slots=True)
class QueueKey:
    """The function has a queue, and a scheduler that leads it."""

    namespace: str
    action: str

    @property
    def function(self) -> FunctionKey:
        """Whose queue."""
        return function_key(self.namespace, self.action)

    def path(self, cluster: str = "whisk") -> str:
        """The key in etcd."""
        return f"{cluster}/queue/{self.namespace}/{self.action}/leader"


@dataclass(frozen=True, slots=True)
class ThrottlingKey:
    """Whether a namespace (`action` None) or one of its functions is throttled."""

    namespace: str
    action: str | None = None

    def path(self, cluster: str = "whisk") -> str:
        """The key in etcd."""
        return f"{cluster}/throttling/{self.namespace}" + (f"/{self.action}" if self.action else "")


@dataclass(frozen=True, slots=True)
class SchedulerKey:
    """A scheduler that lives."""

    scheduler: str

    def path(self, cluster: str = "whisk") -> str:
        """The key in etcd."""
        return f"{cluster}/scheduler/{self.scheduler}"


Key: TypeAlias = InvokerKey | ContainerKey | CreationKey | QueueKey | ThrottlingKey | SchedulerKey


def parse_key(key: str, cluster: str = "whisk") -> Key | None:  # noqa: PLR0911 (one line a kind reads best)
    """The fact that a key states; None for one that is none of these (followers, leases, queues in the making).

    Raises:
        InputError: it is of such a kind and not well formed, or not below the cluster's name.
    """
    if not key.startswith(f"{cluster}/"):
        raise InputError(f"etcd key: must begin with the cluster's name, {cluster}/")
    match key.removeprefix(f"{cluster}/").split("/"):
        case ["invokers", instance, *names] if len(names) <= 2:
            unique_name, displayed_name, *_ = [_check("invokers", _PART, name) for name in names] + [None, None]
            return InvokerKey(_number("invokers", instance), unique_name, displayed_name)
        case ["namespace", namespace, *action, revision, place, "container", container]:
            instance = place.removeprefix("invoker") if place.startswith("invoker") else ""
            return _container("namespace", namespace, action, revision, instance, container)
        case ["warmed", namespace, *action, revision, "invoker", instance, "container", container]:
            return _container("warmed", namespace, action, revision, instance, container)
        case ["in-progress", namespace, *action, revision, "scheduler", scheduler, "creationId", creation]:
            return CreationKey(
                *_owner("in-progress", namespace, action),
                _revision("in-progress", revision),
                _check("in-progress", INSTANCE, scheduler),
                _check("in-progress", HEX_ID, creation),
            )
        case ["queue", namespace, *action, "leader"]:
            return QueueKey(*_owner("queue", namespace, action))
        case ["throttling", namespace]:
            return ThrottlingKey(_check("throttling", NAME, namespace))
        case ["throttling", namespace, *action]:
            return ThrottlingKey(*_owner("throttling", namespace, action))
        case ["scheduler", scheduler]:
            return SchedulerKey(_check("scheduler", INSTANCE, scheduler))
        case _:
            return None


def _owner(kind: str, namespace: str, action: list[str]) -> tuple[str, str]:
    if not 2 <= len(action) <= 3 or "" in action:
        raise InputError(f"etcd key {kind}/...: the action must be namespace/[package/]name")
    return _check(kind, NAME, namespace), _check(kind, FULL_NAME, "/".join(action))


def _check(kind: str, rule: Rule, part: str) -> str:
    if not rule.allows(part):
        raise InputError(f"etcd key {kind}/...: a part must be {rule.allowed}")
    return part


def _number(kind: str, digits: str) -> int:
    return int(_check(kind, _NUMBER, digits))


def _revision(kind: str, part: str) -> str | None:
    return None if part == "null" else _check(kind, _PART, part)


def _container(
    kind: str, namespace: str, action: list[str], revision: str, instance: str, container: str
) -> ContainerKey:
    return ContainerKey(
        kind == "warmed",
        *_owner(kind, namespace, action),
        _revision(kind, revision),
        _number(kind, instance),
        _check(kind, _PART, container),
    )


# --- Values -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resources:
    """An invoker's memory, MB: what paused containers hold counts as free.

    Attributes:
        status: ``up``, ``unhealthy``, ...
    """

    status: str
    free_mb: int
    busy_mb: int
    in_progress_mb: int
    tags: tuple[str, ...] = ()
    dedicated_namespaces: tuple[str, ...] = ()

    @property
    def memory_mb(self) -> int:
        """All memory for containers."""
        return self.free_mb + self.busy_mb + self.in_progress_mb


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a scheduler listens; `rpc_port` is its ActivationService."""

    host: str
    rpc_port: int
    pekko_port: int


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A scheduler and how many queues it leads."""

    scheduler: str
    queues: int
    endpoints: Endpoints


def parse_resources(value: bytes | str) -> Resources:
    """The value of an `InvokerKey`."""
    fields = read_object("etcd value of invokers/...", value)
    return Resources(
        status=fields.text("status"),
        free_mb=fields.integer("freeMemory", -MAX_INT, MAX_INT),
        busy_mb=fields.integer("busyMemory", 0, MAX_INT),
        in_progress_mb=fields.integer("inProgressMemory", 0, MAX_INT),
        tags=fields.texts("tags"),
        dedicated_namespaces=fields.texts("dedicatedNamespaces"),
    )


def parse_endpoints(value: bytes | str) -> Endpoints:
    """The value of a `QueueKey`."""
    return _endpoints(read_object("etcd value of queue/...", value))


def parse_scheduler(value: bytes | str) -> Scheduler:
    """The value of a `SchedulerKey`."""
    fields = read_object("etcd value of scheduler/...", value)
    return Scheduler(
        scheduler=fields.object("sid").text("asString", INSTANCE),
        queues=fields.integer("queueSize", 0, MAX_INT),
        endpoints=_endpoints(fields.object("endpoints")),
    )


def parse_throttled(value: bytes | str) -> bool:
    """The value of a `ThrottlingKey`."""
    text = value if isinstance(value, str) else value.decode("ascii", "replace")
    if text not in {"true", "false"}:
        raise InputError("etcd value of throttling/...: must be true or false")
    return text == "true"


def _endpoints(fields: Fields) -> Endpoints:
    return Endpoints(
        host=fields.text("host", TEXT),
        rpc_port=fields.integer("rpcPort", 0, 65_535),
        pekko_port=fields.integer("pekkoPort", 0, 65_535),
    )
