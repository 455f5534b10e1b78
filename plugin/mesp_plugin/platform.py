"""The one face of every platform: three calls, and what they carry.

A platform observes arrivals, shows a consistent snapshot, and applies a plan. It is advisory: it adds warmth and
takes away only what was added, and a floor it sets expires by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mesp.types import StepCounts
    from mesp_placement.model import Plan, Snapshot


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of a plan's items.

    Attributes:
        prewarmed: containers ordered.
        released: containers removed.
        refused: one sentence for each item that the platform declined, with the reason.
    """

    prewarmed: int = 0
    released: int = 0
    refused: tuple[str, ...] = ()


class Platform(Protocol):
    """A serverless platform as MESP sees it. All times are milliseconds since the epoch, injected."""

    async def observe(self, now_ms: int) -> list[StepCounts]:
        """Counts of steps that closed since the last call (late corrections included), oldest first."""
        ...

    async def snapshot(self, now_ms: int) -> Snapshot:
        """Nodes, containers and profiles as of now."""
        ...

    async def apply(self, plan: Plan, now_ms: int) -> Outcomes:
        """Carries the plan out; never raises for a single item, which is reported as refused instead."""
        ...
