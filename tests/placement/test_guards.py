"""Guards one by one: what each lets through, with time moved by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mesp.types import FunctionKey
from mesp_placement.config import PlacementConfig
from mesp_placement.guards import bound, delay_releases, limit_own_memory, limit_rate, longest_idle_first
from mesp_placement.model import Container, ContainerState, Plan, PlannerState, Prewarm, Release

A, B = FunctionKey("s", "a"), FunctionKey("s", "b")
MEMORY_MB = {A: 256.0, B: 512.0}


def prewarm(key: FunctionKey, count: int) -> Prewarm:
    """Some containers on a node, for a reason."""
    return Prewarm(key, "n", count, "because")


def release(key: FunctionKey, container_id: str = "c") -> Release:
    """One container off a node, for a reason."""
    return Release(key, container_id, "n", "because")


def idle(container_id: str, since_ms: int, state: ContainerState = ContainerState.IDLE) -> Container:
    """A container of 256 MB of function a that MESP ordered."""
    return Container(container_id, A, "n", state, 256.0, since_ms, owned=True)


def test_bounds() -> None:
    """Counts are clipped to the least and the most, and left alone where there is no bound."""
    wanted = np.array([0, 2, 9])
    assert bound(wanted, PlacementConfig(min_containers=1, max_containers=5)).tolist() == [1, 2, 5]
    assert bound(wanted, PlacementConfig()).tolist() == [0, 2, 9]


def test_release_delay_reads_like_a_diary() -> None:
    """A surplus is released once it has lasted 20 s; when it goes away in between, the time starts anew."""
    config = PlacementConfig(release_delay_s=20)
    surplus, none = Plan(releases=(release(A),)), Plan()
    state, passed = PlannerState(), []
    for now_ms, plan in [(0, surplus), (10_000, surplus), (15_000, none), (20_000, surplus), (39_999, surplus)]:
        guarded, state = delay_releases(plan, state, now_ms, config)
        passed.append(guarded.releases)
    assert passed == [(), (), (), (), ()]
    guarded, _ = delay_releases(surplus, state, 40_000, config)
    assert guarded.releases == surplus.releases


def test_without_a_delay_releases_pass_at_once() -> None:
    """A delay of 0 s withholds nothing."""
    plan = Plan(releases=(release(A), release(B)))
    assert delay_releases(plan, PlannerState(), 0, PlacementConfig(release_delay_s=0))[0] == plan


def test_the_rate_of_a_function() -> None:
    """Three a minute: two now and four a second later make two and one; 60 s after the first two are free again."""
    config = PlacementConfig(max_prewarms_per_function_per_min=3)
    state, passed = PlannerState(), []
    for now_ms, count in [(0, 2), (1_000, 4), (59_999, 4), (60_000, 4)]:
        plan, state = limit_rate(Plan(prewarms=(prewarm(A, count),)), state, now_ms, config)
        passed.append([item.count for item in plan.prewarms])
    assert passed == [[2], [1], [], [2]]


def test_the_overall_rate_cuts_at_the_end() -> None:
    """Prewarms come most valuable first: the last are cut."""
    config = PlacementConfig(max_prewarms_per_min=5)
    plan, state = limit_rate(Plan(prewarms=(prewarm(A, 4), prewarm(B, 4))), PlannerState(), 0, config)
    assert plan.prewarms == (prewarm(A, 4), prewarm(B, 1))
    assert limit_rate(Plan(prewarms=(prewarm(A, 1),)), state, 30_000, config)[0].prewarms == ()


ticks = st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(ticks, st.integers(0, 12), st.integers(0, 12))
def test_no_minute_exceeds_the_rates(steps: list[tuple[int, int, int]], most: int, most_each: int) -> None:
    """Whatever is wished, no window of 60 s holds more prewarms than allowed, overall or of a function."""
    config = PlacementConfig(max_prewarms_per_min=most, max_prewarms_per_function_per_min=most_each)
    now_ms, state = 0, PlannerState()
    ordered: list[tuple[int, FunctionKey, int]] = []
    for wait_ms, a, b in steps:
        now_ms += wait_ms
        plan, state = limit_rate(Plan(prewarms=(prewarm(A, a), prewarm(B, b))), state, now_ms, config)
        ordered += [(now_ms, item.function, item.count) for item in plan.prewarms]
        window = [item for item in ordered if item[0] > now_ms - 60_000]
        assert sum(count for _, _, count in window) <= most
        for key in (A, B):
            assert sum(count for _, function, count in window if function == key) <= most_each


def test_the_memory_ceiling_cuts_prewarms() -> None:
    """With 256 of 1,024 MB held, a prewarm of 256 MB and one of 512 MB fit, and no more."""
    config = PlacementConfig(max_own_idle_memory_mb=1024)
    plan = Plan(prewarms=(prewarm(A, 1), prewarm(B, 3)))
    assert limit_own_memory(plan, [idle("c1", 0)], MEMORY_MB, config).prewarms == (prewarm(A, 1), prewarm(B, 1))


def test_the_memory_ceiling_releases_what_exceeds_it() -> None:
    """Three idle containers of 256 MB over a ceiling of 600 MB: the longest idle one goes, and says why."""
    config = PlacementConfig(max_own_idle_memory_mb=600)
    owned = [idle("c1", 300), idle("c2", 100), idle("c3", 200, ContainerState.PAUSED)]
    plan = limit_own_memory(Plan(prewarms=(prewarm(A, 1),)), owned, MEMORY_MB, config)
    assert [item.container_id for item in plan.releases] == ["c2"]
    assert "768 MB" in plan.releases[0].reason
    assert plan.prewarms == ()


def test_the_memory_ceiling_counts_what_already_leaves() -> None:
    """A container that the plan releases anyway is not counted, and is not released twice."""
    config = PlacementConfig(max_own_idle_memory_mb=256)
    plan = Plan(releases=(release(A, "c1"),))
    assert limit_own_memory(plan, [idle("c1", 0), idle("c2", 1)], MEMORY_MB, config) == plan


def test_a_container_on_its_way_counts_but_stays() -> None:
    """Creating containers count against the ceiling and are never released; busy ones do not count."""
    config = PlacementConfig(max_own_idle_memory_mb=256)
    creating = Container("c1", A, "n", ContainerState.CREATING, 512.0, owned=True)
    busy = Container("c2", A, "n", ContainerState.BUSY, 512.0, owned=True)
    plan = limit_own_memory(Plan(prewarms=(prewarm(A, 1),)), [creating, busy], MEMORY_MB, config)
    assert plan == Plan()
    assert limit_own_memory(Plan(prewarms=(prewarm(A, 1),)), [busy], MEMORY_MB, config).prewarms == (prewarm(A, 1),)


def test_longest_idle_first() -> None:
    """Idle and paused ones by the time they went idle, one that says no time first; busy ones are not among them."""
    busy = Container("c0", A, "n", ContainerState.BUSY, 256.0)
    silent = Container("c9", A, "n", ContainerState.IDLE, 256.0)
    ordered = longest_idle_first([busy, idle("c1", 20), idle("c2", 10), silent])
    assert [container.id for container in ordered] == ["c9", "c2", "c1"]
