"""An FPC deployment as a decision reads it: the keys in etcd, and by the calls that run which containers are busy.

A container with a ``namespace`` key is held by us, or runs a call, or has run one within 10 s; which of the latter two, no
key tells, so as many are taken for busy as calls of the function run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from mesp_placement.model import Container, ContainerState, FunctionProfile, Node, Snapshot
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.openwhisk.invokers import node_name
from mesp_plugin.openwhisk.parts import STANDARD_MB

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.calls import Calls
    from mesp_plugin.openwhisk.cluster import Cluster
    from mesp_plugin.openwhisk.etcd_keys import ContainerKey
    from mesp_plugin.openwhisk.holdings import Holdings
    from mesp_plugin.openwhisk.holds import Holds
    from mesp_plugin.openwhisk.parts import ActionMetaData


class View:
    """Makes snapshots; remembers since when containers are paused."""

    def __init__(self, cluster: Cluster, calls: Calls, holds: Holds, holdings: Holdings, lead_ms: float) -> None:
        self._cluster = cluster
        self._calls = calls
        self._holds = holds
        self._holdings = holdings
        self._lead_ms = lead_ms
        self._paused_since_ms: dict[str, int] = {}

    def snapshot(
        self, described: Mapping[FunctionKey, ActionMetaData | None], enabled: Collection[FunctionKey], now_ms: int
    ) -> Snapshot:
        """See `Driver.snapshot`.

        Args:
            described: every function that is known, with its action where that is known.
            enabled: those of which containers can be ordered.
            now_ms: the time.
        """
        self._paused_since_ms = {one: self._paused_since_ms.get(one, now_ms) for one in self._cluster.warmed}
        profiles = {key: self._profile(key, metadata, key in enabled) for key, metadata in described.items()}
        known = set(map(node_name, self._cluster.invokers))  # an order may be of a former life beside something else
        containers = [one for one in self._containers(profiles, now_ms) if one.node in known]
        for one in containers:  # made before anything that was read
            if one.function not in profiles:
                profiles[one.function] = self._profile(one.function, None, False)
        nodes = [
            Node(node_name(number), one.memory_mb, schedulable=one.status == "up" and not one.dedicated_namespaces)
            for number, one in sorted(self._cluster.invokers.items())
        ]
        return Snapshot(tuple(nodes), tuple(containers), tuple(profiles.values()))

    def _profile(self, key: FunctionKey, metadata: ActionMetaData | None, enabled: bool) -> FunctionProfile:
        seen = self._calls.seen.get(key)
        duration_ms = (seen.duration_ms if seen else None) or 0.0
        if metadata is None:
            return FunctionProfile(key, STANDARD_MB, duration_ms=duration_ms, lead_ms=self._lead_ms, enabled=False)
        return FunctionProfile(
            key,
            float(metadata.memory_mb),
            concurrency=max(1, metadata.concurrency),
            duration_ms=duration_ms,
            lead_ms=self._lead_ms,
            max_containers=metadata.max_instances,
            enabled=enabled,
        )

    def _containers(self, profiles: Mapping[FunctionKey, FunctionProfile], now_ms: int) -> Iterator[Container]:
        def made(
            one: str, key: FunctionKey, node: str, state: ContainerState, since_ms: int | None, owned: bool
        ) -> Container:
            memory_mb = profiles[key].memory_mb if key in profiles else STANDARD_MB
            return Container(one, key, node, state, memory_mb, since_ms, owned)

        alive = self._holdings.alive()
        ours = {item.container_id for item in alive}
        warmed = self._cluster.warmed
        for kept in self._holds.kept.values():  # whether its key has come yet or not
            if kept.container_id not in warmed:
                owned = kept.container_id in ours
                yield made(kept.container_id, kept.function, kept.node, ContainerState.IDLE, kept.since_ms, owned)
        running = self._calls.running()
        for key, keys in self._up().items():
            concurrency = profiles[key].concurrency if key in profiles else 1
            busy = math.ceil(running.get(key, 0) / concurrency)
            ended_ms = (seen.ended_ms if (seen := self._calls.seen.get(key)) else None) or now_ms
            for place, one in enumerate(sorted(keys, key=lambda one: (one.container_id in ours, one.container_id))):
                node, owned = node_name(one.invoker), one.container_id in ours
                if place < busy:
                    yield made(one.container_id, key, node, ContainerState.BUSY, None, owned=False)
                else:
                    yield made(one.container_id, key, node, ContainerState.IDLE, ended_ms, owned)
        for one in warmed.values():
            since_ms, owned = self._paused_since_ms[one.container_id], one.container_id in ours
            yield made(one.container_id, one.function, node_name(one.invoker), ContainerState.PAUSED, since_ms, owned)
        for item in alive:
            if item.state is HoldingState.ORDERED:
                yield made(item.marker, item.function, item.node, ContainerState.CREATING, None, owned=True)

    def _up(self) -> dict[FunctionKey, list[ContainerKey]]:
        """Containers that are up and do not wait here, by function."""
        up: defaultdict[FunctionKey, list[ContainerKey]] = defaultdict(list)
        for one in self._cluster.existing.values():
            if one.container_id not in self._holds.kept:
                up[one.function].append(one)
        return up
