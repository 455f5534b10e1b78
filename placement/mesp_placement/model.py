"""What a decision reads and returns: nodes, containers, function profiles, the snapshot, the plan."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mesp.types import FunctionKey  # noqa: TC001 (dataclass fields are read at run time by tools)


class ContainerState(enum.IntEnum):
    """Life of a container (values are those of the wire)."""

    CREATING = 1
    IDLE = 2
    BUSY = 3
    PAUSED = 4


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with finite memory for containers.

    Attributes:
        memory_mb: memory for containers.
        other_memory_mb: taken by what the snapshot's containers do not list (stem cells, say).
        schedulable: False while draining: keeps what it has, takes nothing new.
    """

    name: str
    memory_mb: float
    other_memory_mb: float = 0.0
    schedulable: bool = True


@dataclass(frozen=True, slots=True)
class Container:
    """One container as the platform shows it.

    Attributes:
        idle_since_ms: when it went idle or paused; None while creating or busy.
        owned: MESP ordered it; only such may be released, unless the operator says otherwise.
    """

    id: str
    function: FunctionKey
    node: str
    state: ContainerState
    memory_mb: float
    idle_since_ms: int | None = None
    owned: bool = False


@dataclass(frozen=True, slots=True)
class FunctionProfile:
    """What is known of a function apart from its arrivals.

    Attributes:
        memory_mb: memory of one container.
        concurrency: requests that one container handles at once.
        duration_ms: mean run time of one invocation; 0 when unknown.
        lead_ms: from the order to a ready container; 0 when unknown.
        max_containers: upper bound; None for none.
        preferred_nodes: where the platform sends its calls, in order of preference (home first); empty: any node.
        enabled: False: observed, never acted on.
    """

    function: FunctionKey
    memory_mb: float
    concurrency: int = 1
    duration_ms: float = 0.0
    lead_ms: float = 0.0
    max_containers: int | None = None
    preferred_nodes: tuple[str, ...] = ()
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The consistent view that one decision reads."""

    nodes: tuple[Node, ...]
    containers: tuple[Container, ...]
    profiles: tuple[FunctionProfile, ...]


@dataclass(frozen=True, slots=True)
class Prewarm:
    """Start `count` containers of a function on a node, and why (one sentence with the deciding numbers).

    Attributes:
        likely: probability of a call in what is left of the nearest step; not on the wire, 0 there.
    """

    function: FunctionKey
    node: str
    count: int
    reason: str
    likely: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Release:
    """Remove one idle container, and why (one sentence with the deciding numbers)."""

    function: FunctionKey
    container_id: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `errors` name snapshot items that made no sense (unknown node, unknown function).

    Attributes:
        cold_start_price_gb_s: the price that decided: the given one, or the one the memory budget implies.
    """

    prewarms: tuple[Prewarm, ...] = ()
    releases: tuple[Release, ...] = ()
    errors: tuple[str, ...] = ()
    cold_start_price_gb_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PlannerState:
    """What one decision must remember for the next (opaque on the wire).

    Attributes:
        last_forecast_ms: end of the last step that the last fresh forecasts knew; -1 for never.
        prewarmed: (time, function, count) of every prewarm of the last minute, for the rates.
        surplus_since_ms: per function, since when it has had more containers than wanted, for the release delay.
    """

    last_forecast_ms: int = -1
    prewarmed: tuple[tuple[int, FunctionKey, int], ...] = ()
    surplus_since_ms: dict[FunctionKey, int] = field(default_factory=dict)
