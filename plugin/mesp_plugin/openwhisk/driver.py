"""What a driver is: one way to see and to act beside OpenWhisk (standalone; classic; FPC).

A driver turns what it sees into counts and a snapshot, and carries out single items of a plan. It remembers what it
orders in the `Holdings` that it is given. Modes, expiry, the release of everything and the tally are the same for all
and live in `platform`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesp.types import FunctionKey, StepCounts
    from mesp_placement.model import Prewarm, Release, Snapshot
    from mesp_plugin.openwhisk.holdings import Holdings


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen since the last look.

    Attributes:
        steps: reports of steps that closed or were corrected, oldest first.
        calls: users' calls whose runs ended.
        cold: the functions of those among them that waited for a container, one entry a call.
    """

    steps: list[StepCounts]
    calls: int = 0
    cold: tuple[FunctionKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one item: containers ordered or removed, and why not all of them (one sentence)."""

    count: int = 0
    refused: str | None = None


def together(items: Sequence[Done]) -> Done:
    """Several as one: of the reasons the first, and how many more there are."""
    refused = [one.refused for one in items if one.refused]
    more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
    return Done(sum(one.count for one in items), refused[0] + more if refused else None)


class Driver(Protocol):
    """One way to act. Times are milliseconds since the epoch; failures of the platform are raised as `MespError`."""

    @property
    def name(self) -> str:
        """``standalone``, ``classic`` or ``fpc``."""
        ...

    async def observe(self, now_ms: int) -> Observed:
        """What was seen since the last call; the snapshot after it speaks of the same moment."""
        ...

    async def snapshot(self, now_ms: int) -> Snapshot:
        """Nodes, containers and profiles; containers that MESP added and nobody used are `owned`."""
        ...

    async def prewarm(self, wish: Prewarm, now_ms: int) -> Done:
        """Orders containers, within the platform's limits and room."""
        ...

    async def release(self, wish: Release, now_ms: int) -> Done:
        """Removes a container that MESP added."""
        ...

    async def release_all(self, now_ms: int) -> Done:
        """Removes all that MESP added and nobody used, as far as this way of acting can; asked again at every tick."""
        ...


class NothingEarly:
    """The half of a driver that takes back, where the platform offers no way to remove a container early."""

    name: str

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._told: set[str] = set()

    async def release(self, wish: Release, now_ms: int) -> Done:  # noqa: ARG002 (the driver's interface)
        """Not possible here, which is said once for each container."""
        if wish.container_id in self._told:
            return Done()
        self._told.add(wish.container_id)
        return Done(refused=f"{wish.container_id}: {self.name} cannot remove a container early, it goes by itself")

    async def release_all(self, now_ms: int) -> Done:
        """Not possible here: how many are left until when."""
        left = self._holdings.alive()
        if not left:
            return Done()
        wait_s = max(item.until_ms for item in left) / 1e3 - now_ms / 1e3
        return Done(
            refused=f"{self.name} cannot remove containers early: {len(left)} go by themselves in {wait_s:.0f} s"
        )
