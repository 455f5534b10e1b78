"""The decision: a snapshot and forecasts in, prewarms and releases with their reasons out.

`plan` is pure. It reads no clock and touches no network; what it must remember goes out as `PlannerState` and comes
back in. Sizing is done for all functions at once, on arrays; only functions that have too few or too many
containers are looked at one by one.

*Prewarms* make up the difference between the wanted count and all containers there are (idle, busy, creating or
paused), the most valuable function per GB first, each container on the best node that passes every filter.
*Releases* take idle containers above the wanted count, the longest idle first: MESP's own, or any if the operator
says so. While a function is wanted at all, surplus ones are held for the break-even time (`sizing.hold_s`). Without forecasts nothing new is warmed, and what MESP holds is released `stale_after_s` after the last
fresh forecast. The wish then goes through the guards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mesp.types import MB_PER_GB, ForecastStatus
from mesp_placement import filters, guards, scores, sizing
from mesp_placement.cluster import Cluster
from mesp_placement.model import Plan, Prewarm, Release

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mesp.types import Forecasts, FunctionKey
    from mesp_placement.config import PlacementConfig
    from mesp_placement.model import FunctionProfile, PlannerState, Snapshot


def plan(
    snapshot: Snapshot, forecasts: Forecasts | None, state: PlannerState, now_ms: int, config: PlacementConfig
) -> tuple[Plan, PlannerState]:
    """Decides what to prewarm and what to release now.

    Args:
        snapshot: the platform as of now.
        forecasts: of one tick; None, or older than ``config.stale_after_s``, means there are none.
        state: from the previous decision; ``PlannerState()`` at first.
        now_ms: milliseconds since the epoch.
        config: price or budget, bounds; see `PlacementConfig`.
    """
    cluster = Cluster.of(snapshot)
    wish = None
    if forecasts is not None and now_ms - forecasts.as_of_ms < 1e3 * config.stale_after_s:
        wish = _Wish.of(forecasts, cluster, now_ms, config)
        state = replace(state, last_forecast_ms=max(state.last_forecast_ms, forecasts.as_of_ms))
    wished = Plan(
        prewarms=tuple(_prewarms(cluster, wish, config)) if wish else (),
        releases=(
            *(_surplus(cluster, wish, now_ms, config) if wish else ()),
            *_run_out(cluster, wish, state, now_ms, config),
        ),
        errors=cluster.errors,
        cold_start_price_gb_s=wish.price_gb_s if wish else config.price_gb_s or 0.0,
    )
    owned = [c for key in cluster.acting for c in cluster.of_function(key) if c.owned]
    memory_mb = {key: profile.memory_mb for key, profile in cluster.acting.items()}
    return guards.guard(wished, owned, memory_mb, state, now_ms, config)


@dataclass(frozen=True, slots=True)
class _Wish:
    """Wanted counts of F functions over S covered steps, and the numbers that decided.

    Attributes:
        memory_gb: of one container, (F,).
        active: P(N >= 1) in what is left of each step, (S, F).
        sized: what the price alone asks for in each step, (S, F).
        wanted: the largest of `sized` over the steps, within all bounds, (F,).
        have: containers there are, (F,).
    """

    profiles: Sequence[FunctionProfile]
    steps: Sequence[sizing.Demand]
    price_gb_s: float
    memory_gb: sizing.Floats
    active: sizing.Floats
    sized: sizing.Ints
    wanted: sizing.Ints
    have: sizing.Ints

    @classmethod
    def of(cls, forecasts: Forecasts, cluster: Cluster, now_ms: int, config: PlacementConfig) -> _Wish | None:
        """Sizes every enabled function that has a forecast; None when the forecasts end before now."""
        row_of = {key: row for row, key in enumerate(forecasts.functions)}
        for key, status in zip(forecasts.functions, forecasts.status, strict=True):
            if status is ForecastStatus.UNKNOWN_FUNCTION:
                del row_of[key]
        profiles = [profile for key, profile in cluster.acting.items() if key in row_of]
        steps = sizing.demands(
            forecasts,
            np.array([row_of[profile.function] for profile in profiles], np.int64),
            duration_s=np.array([profile.duration_ms for profile in profiles], np.float64) / 1e3,
            concurrency=np.array([profile.concurrency for profile in profiles], np.int64),
            cover_s=np.array([profile.lead_ms for profile in profiles], np.float64) / 1e3 + config.tick_s,
            now_ms=now_ms,
        )
        if not steps:
            return None
        memory_gb = np.array([profile.memory_mb for profile in profiles], np.float64) / MB_PER_GB
        limits = [sizing.NO_LIMIT if p.max_containers is None else p.max_containers for p in profiles]
        most = guards.bound(np.array(limits, np.int64), config)
        if (price_gb_s := config.price_gb_s) is None:
            price_gb_s = sizing.price_for_budget(steps, memory_gb, config.memory_budget_mb or 0.0, most)
        sized = np.stack([sizing.warm_count(step, memory_gb, price_gb_s) for step in steps])
        return cls(
            profiles,
            steps,
            price_gb_s,
            memory_gb,
            active=np.stack([step.active_in_rest for step in steps]),
            sized=sized,
            wanted=np.minimum(guards.bound(sized.max(axis=0), config), limits),
            have=np.array([len(cluster.of_function(profile.function)) for profile in profiles], np.int64),
        )

    def by_value(self, rows: sizing.Ints) -> sizing.Ints:
        """`rows`, ordered so that the function whose first container gains most per GB comes first."""
        held_s = np.array([[step.held_s] for step in self.steps])
        active, memory_gb = self.active[:, rows], self.memory_gb[rows]
        gain_gb_s = active * self.price_gb_s - (1.0 - active) * memory_gb * held_s
        return np.asarray(rows[np.argsort(-(gain_gb_s / memory_gb).max(axis=0), kind="stable")])

    def because(self, i: int) -> str:
        """Why function i should have `wanted` containers: a clause with the numbers of the deciding step."""
        wanted, sized = int(self.wanted[i]), int(self.sized[:, i].max())
        if wanted > sized:
            return f"the price asks for {sized} and min_containers for {wanted}"
        s = int(np.lexsort((self.active[:, i], self.sized[:, i]))[-1])
        step, price = self.steps[s], self.price_gb_s
        when = f"{step.begins_s:.3g} to {step.begins_s + step.held_s:.3g} s from now"
        if sized <= 1:
            active = float(self.active[s, i])
            idle_gb_s = (1.0 - active) * float(self.memory_gb[i]) * step.held_s
            why = (
                f"P(active {when}) = {active:.2g} and the price {price:.4g} GB·s "
                f"make a miss cost {active * price:.3g} GB·s against {idle_gb_s:.3g} GB·s idle"
            )
        else:
            row = step.rows(np.array([i]))
            level = sizing.critical_level(row, self.memory_gb[[i]], price)
            why = (
                f"the price {price:.4g} GB·s covers the {level[0]:.2g} quantile {when}, "
                f"{sizing.arrivals_at(row, level)[0]} calls a step, which at {row.duration_s[0]:.3g} s each "
                f"keep {sized} containers busy at once"
            )
        return why if wanted == sized else f"{why}, but max_containers allows {wanted}"


def _prewarms(cluster: Cluster, wish: _Wish, config: PlacementConfig) -> Iterator[Prewarm]:
    # The guards cut at these rates anyway: placing more would only take time.
    left = config.max_prewarms_per_min
    for i in wish.by_value(np.flatnonzero(wish.wanted > wish.have)).tolist():
        if left <= 0:
            return
        profile, have, wanted = wish.profiles[i], int(wish.have[i]), int(wish.wanted[i])
        missing = min(wanted - have, left, config.max_prewarms_per_function_per_min)
        placed = _place(cluster, profile, missing, config)
        left -= placed.total()
        reason = f"{wanted} wanted, {have} there: {wish.because(i)}" if placed else ""
        for node, count in placed.items():
            yield Prewarm(profile.function, cluster.fleet.names[node], count, reason, likely=float(wish.active[0, i]))


def _place(cluster: Cluster, profile: FunctionProfile, count: int, config: PlacementConfig) -> Counter[int]:
    """Takes room for up to `count` containers, one by one on the best node; how many went to each node."""
    fleet, memory_mb = cluster.fleet, profile.memory_mb
    in_order = scores.prefers_platform_order(fleet, profile.preferred_nodes)
    holders = {
        cluster.node_index[c.node] for c in cluster.of_function(profile.function) if c.node in cluster.node_index
    }
    allowed = filters.is_schedulable(fleet) & filters.is_where_calls_go(fleet, profile.preferred_nodes)
    placed: Counter[int] = Counter()
    for _ in range(count):
        fits = allowed & filters.leaves_headroom(fleet, memory_mb, config.headroom_share)
        if not fits.any():
            break
        if config.placement == "pack":
            asked = [in_order, scores.already_holds_function(fleet, holders), scores.most_allocated(fleet, memory_mb)]
        else:
            asked = [in_order, scores.least_allocated(fleet, memory_mb)]
        node = scores.best(fits, asked)
        fleet.take(node, memory_mb)
        holders.add(node)
        placed[node] += 1
    return placed


def _surplus(cluster: Cluster, wish: _Wish, now_ms: int, config: PlacementConfig) -> Iterator[Release]:
    hold_s = np.where(wish.wanted > 0, sizing.hold_s(wish.memory_gb, wish.price_gb_s), 0.0)
    for i in np.flatnonzero(wish.wanted < wish.have).tolist():
        key, have, wanted = wish.profiles[i].function, int(wish.have[i]), int(wish.wanted[i])
        idle_by_ms = now_ms - 1e3 * hold_s[i]
        idle = guards.longest_idle_first(
            c
            for c in cluster.of_function(key)
            if (c.owned or config.release == "any")
            and c.node in cluster.node_index
            and (c.idle_since_ms or 0) <= idle_by_ms
        )
        if idle:
            reason = f"{wanted} wanted, {have} there: {wish.because(i)}"
        for container in idle[: have - wanted]:
            yield Release(key, container.id, container.node, reason)


def _run_out(
    cluster: Cluster, wish: _Wish | None, state: PlannerState, now_ms: int, config: PlacementConfig
) -> Iterator[Release]:
    """MESP's own idle containers of functions without a forecast, once that has lasted `stale_after_s`.

    The time counts from the last fresh forecast; where none is remembered, or only this function has none, from
    when the container went idle.
    """
    forecast: set[FunctionKey] = {profile.function for profile in wish.profiles} if wish else set()
    since_ms = state.last_forecast_ms if wish is None and state.last_forecast_ms >= 0 else None
    for key in cluster.acting:
        if key in forecast:
            continue
        for container in guards.longest_idle_first(c for c in cluster.of_function(key) if c.owned):
            start_ms = since_ms if since_ms is not None else container.idle_since_ms
            quiet_s = (now_ms - (start_ms or 0)) / 1e3
            if quiet_s >= config.stale_after_s and container.node in cluster.node_index:
                reason = (
                    f"no fresh forecast for {quiet_s:.0f} s, stale_after_s = {config.stale_after_s:g} allows no more"
                )
                yield Release(key, container.id, container.node, reason)
