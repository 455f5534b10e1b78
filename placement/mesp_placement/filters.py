"""Which nodes may take a container at all.

A filter looks at the whole fleet at once and answers with a mask over its nodes; a node must pass every one. What
a filter may read is `Fleet`: the nodes of a snapshot as arrays, with the memory that this plan has already spoken
for counted as used. The planner owns it and takes memory as it places containers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesp_placement.model import Node

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fleet:
    """M nodes as arrays of shape (M,); `used_mb` grows as containers are placed."""

    names: tuple[str, ...]
    memory_mb: Floats
    used_mb: Floats
    schedulable: Mask

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Fleet:
        """The nodes with only their other memory in use; add the containers' with `take`."""
        return cls(
            names=tuple(node.name for node in nodes),
            memory_mb=np.array([node.memory_mb for node in nodes], np.float64),
            used_mb=np.array([node.other_memory_mb for node in nodes], np.float64),
            schedulable=np.array([node.schedulable for node in nodes], np.bool_),
        )

    def take(self, node: int, memory_mb: float) -> None:
        """Counts `memory_mb` as used on the node at that index."""
        self.used_mb[node] += memory_mb


def is_schedulable(fleet: Fleet) -> Mask:
    """Nodes that are not draining, (M,)."""
    return fleet.schedulable


def is_where_calls_go(fleet: Fleet, preferred_nodes: Sequence[str]) -> Mask:
    """Nodes that the platform sends the function's calls to, (M,): those it prefers, or all where it has no order.

    A container anywhere else is never found by OpenWhisk's balancer.
    """
    if not preferred_nodes:
        return np.ones(len(fleet.names), np.bool_)
    return np.isin(fleet.names, preferred_nodes)


def leaves_headroom(fleet: Fleet, memory_mb: float, headroom_share: float) -> Mask:
    """Nodes where the container fits and `headroom_share` of their memory stays free for the platform, (M,).

    The headroom is the platform's to fill with containers that requests ask for; a prewarm must never push one out.
    """
    return fleet.used_mb + memory_mb <= fleet.memory_mb * (1.0 - headroom_share)
