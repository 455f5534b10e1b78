"""OpenWhisk as a `Platform`: one driver that sees and acts, and what is the same whichever it is.

In *shadow* mode everything is done but acting: what would have been ordered is pretended to be there, idle, until it
would have expired or a call that was cold in truth would have met it; the tally tells how many those are. What was
added expires. After ``release --all`` nothing is added, and what can be taken back is, until ``resume``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import structlog

from mesp.errors import MespError
from mesp_placement.model import Container, ContainerState
from mesp_plugin.openwhisk.driver import Done
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.platform import Outcomes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from mesp.types import StepCounts
    from mesp_placement.model import Plan, Prewarm, Snapshot
    from mesp_plugin.metrics import OpenWhiskMetrics
    from mesp_plugin.openwhisk.driver import Driver
    from mesp_plugin.openwhisk.holdings import Holdings
    from mesp_plugin.openwhisk.triggers import Triggers

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened since the start.

    Attributes:
        calls: users' calls whose runs ended.
        cold: those among them that waited for a container.
        ordered: containers that orders have made, and at the start those that an earlier life's had; in shadow mode,
            that would have been ordered. An order that met a container that was there made none.
        met: users' calls that found such a container; in shadow mode, cold calls that would have.
    """

    calls: int = 0
    cold: int = 0
    ordered: int = 0
    met: int = 0


class OpenWhiskPlatform:
    """See `Platform`."""

    def __init__(
        self,
        driver: Driver,
        holdings: Holdings,
        *,
        mode: Literal["shadow", "on"],
        expiry_ms: int,
        metrics: OpenWhiskMetrics | None = None,
        triggers: Triggers | None = None,
    ) -> None:
        held = sum(item.state is HoldingState.HELD for item in holdings.alive())
        self.tally = Tally(ordered=0 if mode == "shadow" else held)
        self._driver = driver
        self._holdings = holdings
        self._mode = mode
        self._expiry_ms = expiry_ms
        self._metrics = metrics
        self._triggers = triggers
        self._pretended: dict[str, tuple[Container, int]] = {}
        self._ids = itertools.count(1)
        self._made, self._used = _made(holdings), _used(holdings)
        self._releasing = False

    async def observe(self, now_ms: int) -> list[StepCounts]:
        """See `Platform.observe`."""
        seen = await self._driver.observe(now_ms)
        for item in self._holdings.expire(now_ms):  # after it is known what calls have met
            _log.info("expired", function=str(item.function), marker=item.marker)
        self._pretended = {key: entry for key, entry in self._pretended.items() if entry[1] > now_ms}
        made, used = _made(self._holdings), _used(self._holdings)
        ordered, met = len(made - self._made), len(used - self._used)
        # Once for each, even if what is known of it changes.
        known = {item.marker for item in self._holdings.all()}
        self._made, self._used = (self._made | made) & known, (self._used | used) & known
        for function in seen.cold:
            key = next((key for key, (one, _) in self._pretended.items() if one.function == function), None)
            met += key is not None and self._pretended.pop(key) is not None
        self._count(Tally(calls=seen.calls, cold=len(seen.cold), ordered=ordered, met=met))
        if self._triggers is None:
            return seen.steps
        await self._triggers.refresh(now_ms)
        triggers = self._triggers.known
        return [replace(step, triggers=triggers) for step in seen.steps]

    async def snapshot(self, now_ms: int) -> Snapshot:
        """See `Platform.snapshot`; in shadow mode with what is pretended to be there."""
        snapshot = await self._driver.snapshot(now_ms)
        memory_mb = {profile.function: profile.memory_mb for profile in snapshot.profiles}
        pretended = [
            replace(one, memory_mb=memory_mb[one.function])
            for one, _ in self._pretended.values()
            if one.function in memory_mb
        ]
        if self._metrics:
            self._metrics.held.set(len(self._holdings.alive()))
        return replace(snapshot, containers=(*snapshot.containers, *pretended))

    async def apply(self, plan: Plan, now_ms: int) -> Outcomes:
        """See `Platform.apply`."""
        if self._mode == "shadow":
            return self._pretend(plan, now_ms)
        if self._holdings.released:
            back = await self._try("release --all", self._driver.release_all(now_ms))
            if self._releasing:
                back = Done(back.count)  # why not all of it was said
            self._releasing = True
            idle = f"{len(plan.prewarms)} prewarms left out: released, until mesp plugin openwhisk resume"
            return _outcomes([], [back, Done(refused=idle if plan.prewarms else None)])
        self._releasing = False
        prewarmed = [await self._try(str(wish.function), self._driver.prewarm(wish, now_ms)) for wish in plan.prewarms]
        released = [await self._try(wish.container_id, self._driver.release(wish, now_ms)) for wish in plan.releases]
        return _outcomes(prewarmed, released)

    async def _try(self, what: str, item: Awaitable[Done]) -> Done:
        try:
            return await item
        except MespError as error:
            return Done(refused=f"{what}: {error}")

    def _pretend(self, plan: Plan, now_ms: int) -> Outcomes:
        for release in plan.releases:
            self._pretended.pop(release.container_id, None)
        for wish in plan.prewarms:
            _log.info("would prewarm", function=str(wish.function), count=wish.count, reason=wish.reason)
            self._pretended |= {one.id: (one, now_ms + self._expiry_ms) for one in self._containers(wish, now_ms)}
        self._count(Tally(ordered=sum(wish.count for wish in plan.prewarms)))
        return Outcomes()

    def _containers(self, wish: Prewarm, now_ms: int) -> list[Container]:
        return [
            Container(
                f"shadow#{next(self._ids)}", wish.function, wish.node, ContainerState.IDLE, 0.0, now_ms, owned=True
            )
            for _ in range(wish.count)
        ]  # fmt: skip

    def _count(self, more: Tally) -> None:
        have = self.tally
        self.tally = Tally(
            have.calls + more.calls, have.cold + more.cold, have.ordered + more.ordered, have.met + more.met
        )
        if self._metrics:
            self._metrics.note(more, shadow=self._mode == "shadow")


def _made(holdings: Holdings) -> set[str]:
    return {item.marker for item in holdings.all() if item.state in {HoldingState.HELD, HoldingState.USED}}


def _used(holdings: Holdings) -> set[str]:
    return {item.marker for item in holdings.all() if item.state is HoldingState.USED}


def _outcomes(prewarmed: Iterable[Done], released: Iterable[Done]) -> Outcomes:
    prewarmed, released = list(prewarmed), list(released)
    return Outcomes(
        prewarmed=sum(done.count for done in prewarmed),
        released=sum(done.count for done in released),
        refused=tuple(done.refused for done in (*prewarmed, *released) if done.refused),
    )
