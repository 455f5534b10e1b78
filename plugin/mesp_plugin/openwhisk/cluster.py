"""What an FPC deployment's keys in etcd add up to, kept up to date as they change.

`Cluster` holds the facts; whoever must react at once listens, and hears of each fact when it begins and when it ends.
`keep_up` feeds it: one look, then every change from there on, and a new look where changes were lost. While etcd does
not answer the facts stay as they are, and `Cluster.fresh` is False.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk.etcd import CompactedError
from mesp_plugin.openwhisk.etcd_keys import (
    ContainerKey,
    CreationKey,
    InvokerKey,
    QueueKey,
    SchedulerKey,
    ThrottlingKey,
    parse_key,
    parse_resources,
    parse_throttled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.etcd import Change, Etcd
    from mesp_plugin.openwhisk.etcd_keys import Key, Resources

_log = structlog.get_logger(__name__)

_RETRY_S: Final = 1.0


class Cluster:
    """The facts.

    Attributes:
        fresh: etcd's changes are being followed.
        existing: containers that are up (held, busy, or idle for a few seconds), by id.
        creating: containers that schedulers ordered, by the order's id.
        invokers: memory of each that lives, by number.
        throttled: namespaces, and functions by their action, that are at their limit.
        listeners: are told (fact, True) when one begins and (fact, False) when it ends.
        skipped: why keys or values could not be read, for whoever tells and clears it.
    """

    def __init__(self, name: str = "whisk") -> None:
        self.name = name
        self.fresh = False
        self.existing: dict[str, ContainerKey] = {}
        self.creating: dict[str, CreationKey] = {}
        self.invokers: dict[int, Resources] = {}
        self.throttled: set[ThrottlingKey] = set()
        self.schedulers: set[str] = set()
        self.listeners: list[Callable[[Key, bool], None]] = []
        self.skipped: list[str] = []
        self._warmed: dict[str, ContainerKey] = {}
        self._queues: set[FunctionKey] = set()
        self._there: dict[str, Key] = {}

    @property
    def warmed(self) -> dict[str, ContainerKey]:
        """Paused containers, by id. One that a call woke may keep its old key for seconds; it is up."""
        return {one: key for one, key in self._warmed.items() if one not in self.existing}

    def has_queue(self, function: FunctionKey) -> bool:
        """Whether a scheduler leads a queue of the function: its containers may go there."""
        return function in self._queues

    def is_creating(self, function: FunctionKey) -> bool:
        """Whether a scheduler waits for a container of the function."""
        return any(key.function == function for key in self.creating.values())

    def count(self, namespace: str) -> int:
        """Containers that count in the namespace's limit: those that are up, and those that schedulers ordered."""
        up = sum(key.namespace == namespace for key in self.existing.values())
        return up + sum(key.namespace == namespace for key in self.creating.values())

    def replace(self, there: Iterable[Change]) -> None:
        """All that is there now: what is not among it has ended."""
        there = list(there)
        for key in self._there.keys() - {change.key for change in there}:
            self._end(key)
        for change in there:
            self.apply(change)

    def apply(self, change: Change) -> None:
        """One key was written or deleted; one that cannot be read is noted in `skipped`."""
        if change.value is None:
            self._end(change.key)
            return
        try:
            key = parse_key(change.key, self.name)
            if key is not None:
                self._begin(change.key, key, change.value)
        except InputError as error:
            self.skipped.append(str(error))  # which quotes nothing

    def _begin(self, path: str, key: Key, value: bytes) -> None:
        match key:
            case InvokerKey():
                self.invokers[key.instance] = parse_resources(value)
            case ThrottlingKey():
                if not parse_throttled(value):
                    self._end(path)
                    return
                self.throttled.add(key)
            case ContainerKey():
                (self._warmed if key.warmed else self.existing)[key.container_id] = key
            case CreationKey():
                self.creating[key.creation_id] = key
            case QueueKey():
                self._queues.add(key.function)
            case SchedulerKey():
                self.schedulers.add(key.scheduler)
        if path not in self._there:
            self._there[path] = key
            self._tell(key, True)

    def _end(self, path: str) -> None:
        key = self._there.pop(path, None)
        match key:
            case None:
                return
            case InvokerKey():
                self.invokers.pop(key.instance, None)
            case ThrottlingKey():
                self.throttled.discard(key)
            case ContainerKey():
                (self._warmed if key.warmed else self.existing).pop(key.container_id, None)
            case CreationKey():
                self.creating.pop(key.creation_id, None)
            case QueueKey():
                self._queues.discard(key.function)
            case SchedulerKey():
                self.schedulers.discard(key.scheduler)
        self._tell(key, False)

    def _tell(self, key: Key, begins: bool) -> None:
        for listener in self.listeners:
            listener(key, begins)


async def keep_up(etcd: Etcd, cluster: Cluster) -> None:
    """Looks and follows until cancelled."""
    prefix, revision, failing = f"{cluster.name}/", -1, False
    try:
        while True:
            try:
                if revision < 0:
                    there, revision = await etcd.look(prefix)
                    cluster.replace(there)
                async for changes, last in etcd.follow(prefix, revision + 1):
                    for change in changes:
                        cluster.apply(change)
                    cluster.fresh, failing, revision = True, False, last
            except CompactedError:
                revision = -1
            except UnavailableError as error:
                cluster.fresh = False
                if not failing:
                    _log.warning("etcd fails, trying again every second", error=str(error))
                failing = True
                await asyncio.sleep(_RETRY_S)
    finally:
        cluster.fresh = False
