"""A snapshot made ready for one decision: indexed, its memory added up, its senseless items named and set aside.

A container of an unknown function or on an unknown node is never acted on; what it holds still counts where that
is known (the node's memory, the function's containers).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mesp_placement.filters import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mesp.types import FunctionKey
    from mesp_placement.model import Container, FunctionProfile, Snapshot

Key = TypeVar("Key")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a decision reads of the platform.

    Attributes:
        fleet: the nodes, with the memory of all containers counted; placing containers takes from it.
        node_index: a node's place in `fleet`.
        acting: profiles of the enabled functions.
        containers: by function, all states; use `of_function`.
        errors: one sentence for each item that makes no sense.
    """

    fleet: Fleet
    node_index: Mapping[str, int]
    acting: Mapping[FunctionKey, FunctionProfile]
    containers: Mapping[FunctionKey, Sequence[Container]]
    errors: tuple[str, ...]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Cluster:
        """Indexes a snapshot; the first of several items with one name counts."""
        nodes = _firsts((node.name, node) for node in snapshot.nodes if node.memory_mb > 0)
        profiles = _firsts((p.function, p) for p in snapshot.profiles if p.memory_mb > 0 and p.concurrency > 0)
        fleet = Fleet.of(tuple(nodes.values()))
        index = {name: place for place, name in enumerate(fleet.names)}
        containers: dict[FunctionKey, list[Container]] = defaultdict(list)
        for container in _firsts((c.id, c) for c in snapshot.containers).values():
            if container.node in index:
                fleet.take(index[container.node], container.memory_mb)
            if container.function in profiles:
                containers[container.function].append(container)
        return cls(
            fleet=fleet,
            node_index=index,
            acting={key: profile for key, profile in profiles.items() if profile.enabled},
            containers=containers,
            errors=tuple(_errors(snapshot, index, profiles)),
        )

    def of_function(self, key: FunctionKey) -> Sequence[Container]:
        """The containers of a function, none for one without."""
        return self.containers.get(key, ())


def _firsts(items: Iterable[tuple[Key, Item]]) -> dict[Key, Item]:
    """The first item of each key, in order."""
    found: dict[Key, Item] = {}
    for key, item in items:
        found.setdefault(key, item)
    return found


def _errors(
    snapshot: Snapshot, nodes: Mapping[str, int], profiles: Mapping[FunctionKey, FunctionProfile]
) -> Iterator[str]:
    yield from _doubles("node", (node.name for node in snapshot.nodes))
    yield from _doubles("function", (profile.function for profile in snapshot.profiles))
    yield from _doubles("container", (container.id for container in snapshot.containers))
    for node in snapshot.nodes:
        if not node.memory_mb > 0:
            yield f"node '{node.name}': memory_mb = {node.memory_mb:g}, must be positive; the node is left out"
    for profile in snapshot.profiles:
        if not (profile.memory_mb > 0 and profile.concurrency > 0):
            yield (
                f"function '{profile.function}': memory_mb = {profile.memory_mb:g} and concurrency = "
                f"{profile.concurrency}, both must be positive; the function is left out"
            )
        for name in profile.preferred_nodes:
            if name not in nodes:
                yield f"function '{profile.function}' prefers unknown node '{name}': list it in nodes"
    for container in snapshot.containers:
        if container.node not in nodes:
            yield f"container '{container.id}' is on unknown node '{container.node}': list it in nodes"
        if container.function not in profiles:
            yield f"container '{container.id}' is of unknown function '{container.function}': list it in profiles"


def _doubles(what: str, names: Iterable[object]) -> Iterator[str]:
    for name, times in Counter(names).items():
        if times > 1:
            yield f"{what} '{name}' is listed {times} times: only the first counts"
