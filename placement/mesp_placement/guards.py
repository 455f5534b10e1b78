"""What no forecast can talk MESP into: bounds, rates, delays and a hard ceiling on memory.

Guards stand around the planner: it wishes, they cut the wish down. Each is a small function of the plan, the
snapshot, the state and now; each only ever removes prewarms, withholds releases, or (the memory ceiling) releases
more. Prewarms come most valuable first, so a guard that must cut, cuts at the end.

None of them asks the predictor: they hold when it is down, or wrong.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mesp_placement.model import ContainerState, Release

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mesp.types import FunctionKey
    from mesp_placement.config import PlacementConfig
    from mesp_placement.model import Container, Plan, PlannerState, Prewarm
    from mesp_placement.sizing import Ints

_WINDOW_MS = 60_000


def bound(wanted: Ints, config: PlacementConfig) -> Ints:
    """Wanted counts, (F,), within `min_containers` and `max_containers`."""
    return np.clip(wanted, config.min_containers, config.max_containers)


def guard(
    plan: Plan,
    owned: Sequence[Container],
    memory_mb: Mapping[FunctionKey, float],
    state: PlannerState,
    now_ms: int,
    config: PlacementConfig,
) -> tuple[Plan, PlannerState]:
    """All guards of a plan, in order.

    Args:
        plan: the planner's wish; its functions are all in `memory_mb`.
        owned: MESP's containers of functions that it may act on.
        memory_mb: of one container of a function.
        state: of the last decision.
        now_ms: the decision's time.
        config: the bounds.
    """
    plan, state = delay_releases(plan, state, now_ms, config)
    plan = limit_own_memory(plan, owned, memory_mb, config)
    return limit_rate(plan, state, now_ms, config)


def delay_releases(plan: Plan, state: PlannerState, now_ms: int, config: PlacementConfig) -> tuple[Plan, PlannerState]:
    """Lets a function's releases through once it has had some in every plan for `release_delay_s`.

    One odd forecast must not tear down what the next one asks for again.
    """
    since_ms = {item.function: state.surplus_since_ms.get(item.function, now_ms) for item in plan.releases}
    due = {key for key, start_ms in since_ms.items() if now_ms - start_ms >= 1e3 * config.release_delay_s}
    releases = tuple(item for item in plan.releases if item.function in due)
    return replace(plan, releases=releases), replace(state, surplus_since_ms=since_ms)


def limit_own_memory(
    plan: Plan, owned: Sequence[Container], memory_mb: Mapping[FunctionKey, float], config: PlacementConfig
) -> Plan:
    """Keeps the memory of MESP's own containers that run nothing within `max_own_idle_memory_mb`.

    What is there already and exceeds the ceiling is released, the longest idle first. Prewarms have what is left.
    """
    ceiling_mb = config.max_own_idle_memory_mb
    if ceiling_mb is None:
        return plan
    leaving = {item.container_id for item in plan.releases}
    waiting = [c for c in owned if c.state != ContainerState.BUSY and c.id not in leaving]
    held_mb = sum(c.memory_mb for c in waiting)
    reason = (
        f"MESP's idle containers hold {held_mb:.0f} MB, more than max_own_idle_memory_mb = {ceiling_mb:.0f}: "
        "the longest idle go first"
    )
    releases = list(plan.releases)
    for container in longest_idle_first(waiting):
        if held_mb <= ceiling_mb:
            break
        releases.append(Release(container.function, container.id, container.node, reason))
        held_mb -= container.memory_mb
    prewarms: list[Prewarm] = []
    for item in plan.prewarms:
        each_mb = memory_mb[item.function]
        count = min(item.count, max(0, int((ceiling_mb - held_mb) // each_mb)))
        held_mb += count * each_mb
        prewarms += [replace(item, count=count)] if count else []
    return replace(plan, releases=tuple(releases), prewarms=tuple(prewarms))


def limit_rate(plan: Plan, state: PlannerState, now_ms: int, config: PlacementConfig) -> tuple[Plan, PlannerState]:
    """Keeps the prewarms of any 60 s within their limits, per function and overall."""
    recent = tuple(item for item in state.prewarmed if now_ms - _WINDOW_MS < item[0] <= now_ms)
    used: Counter[FunctionKey] = Counter()
    for _, key, count in recent:
        used[key] += count
    left = config.max_prewarms_per_min - used.total()
    prewarms: list[Prewarm] = []
    for item in plan.prewarms:
        of_function = config.max_prewarms_per_function_per_min - used[item.function]
        count = max(0, min(item.count, of_function, left))
        used[item.function] += count
        left -= count
        prewarms += [replace(item, count=count)] if count else []
    ordered = tuple((now_ms, item.function, item.count) for item in prewarms)
    return replace(plan, prewarms=tuple(prewarms)), replace(state, prewarmed=recent + ordered)


def longest_idle_first(containers: Iterable[Container]) -> list[Container]:
    """Those that are idle or paused, the longest idle first; one that does not say since when comes first."""
    idle = [c for c in containers if c.state in {ContainerState.IDLE, ContainerState.PAUSED}]
    return sorted(idle, key=lambda c: (c.idle_since_ms or 0, c.id))
