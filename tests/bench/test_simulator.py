from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.arrivals import Arrivals
from mesp_bench.fastpath import simulate
from mesp_bench.schedule import WarmSchedule
from mesp_bench.simulator import SimulatedPlatform, run_schedule
from mesp_placement.model import ContainerState, Node, Plan, Prewarm, Release
from mesp_plugin.platform import Outcomes

if TYPE_CHECKING:
    from mesp_bench.event_ledger import EventLedger


def make_arrivals(
    times: list[list[float]], durations: list[list[float]], starts: list[list[float]], first: int, end: int
) -> Arrivals:
    def flat(parts: list[list[float]]) -> np.ndarray:
        return np.array([x for part in parts for x in part], np.float64)

    def indptr(parts: list[list[float]]) -> np.ndarray:
        return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)

    return Arrivals(
        functions=tuple(FunctionKey("test", f"f{row}") for row in range(len(times))),
        first_minute=first,
        end_minute=end,
        indptr=indptr(times),
        times_s=flat(times),
        durations_s=flat(durations),
        start_indptr=indptr(starts),
        start_times_s=flat(starts),
    )


# Times on a coarse grid collide with each other and with minutes; times off it round.
def instants(longest: float) -> st.SearchStrategy[float]:
    return st.one_of(
        st.integers(0, int(longest / 10)).map(lambda n: 10.0 * n), st.floats(0, longest, allow_subnormal=False)
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Arrivals, WarmSchedule, int, float]:
    functions = draw(st.integers(1, 2))
    first = draw(st.integers(0, 1))
    end = first + draw(st.integers(1, 4))
    times, durations, starts = [], [], []
    for _ in range(functions):
        offsets = draw(st.lists(instants(60.0 * (end - first)), max_size=14))
        times.append(sorted(at for at in (60.0 * first + offset for offset in offsets) if at < 60.0 * end))
        durations.append(draw(st.lists(instants(50), min_size=len(times[-1]), max_size=len(times[-1]))))
        starts.append(draw(st.lists(instants(30), min_size=1, max_size=3)))
    shape = (functions, end)

    def grid(values: st.SearchStrategy[float]) -> np.ndarray:
        cells = functions * end
        return np.array(draw(st.lists(values, min_size=cells, max_size=cells))).reshape(shape)

    keep_alive = st.one_of(instants(200), st.just(math.inf))
    schedule = WarmSchedule(
        keep_alive_s=grid(keep_alive).astype(np.float32),
        prewarm_after_s=grid(st.one_of(st.just(0.0), instants(90))).astype(np.float32),
        floor=grid(st.integers(-1, 3)).astype(np.int16),
        early_floor=grid(st.integers(-1, 3)).astype(np.int16),
        lead_s=draw(instants(60)),
        release=draw(st.booleans()),
        hold_s=np.array([draw(instants(200)) for _ in range(functions)], np.float32) if draw(st.booleans()) else None,
    )
    score_from_s = draw(instants(60.0 * end))
    return make_arrivals(times, durations, starts, first, end), schedule, draw(st.integers(1, 3)), score_from_s


def assert_same(fast: EventLedger, slow: EventLedger) -> None:
    np.testing.assert_array_equal(fast.cold_by_function, slow.cold_by_function)
    np.testing.assert_array_equal(fast.invocations_by_function, slow.invocations_by_function)
    np.testing.assert_array_equal(fast.waited, slow.waited)
    np.testing.assert_array_equal(fast.wait_s, slow.wait_s)
    np.testing.assert_allclose(fast.waste_gb_s_by_function, slow.waste_gb_s_by_function, atol=1e-6)
    assert fast.total_gb_s == pytest.approx(slow.total_gb_s, abs=1e-6)
    assert (fast.invocations, fast.cold, fast.late_prewarms, fast.created) == (
        slow.invocations,
        slow.cold,
        slow.late_prewarms,
        slow.created,
    )


@settings(max_examples=300, deadline=None)
@given(cases())
def test_both_paths_keep_the_same_ledger(case: tuple[Arrivals, WarmSchedule, int, float]) -> None:
    """Fast and slow path agree on every cold start, every wait and the waste, for random traces and schedules."""
    arrivals, schedule, concurrency, score_from_s = case
    memory_mb = np.linspace(128.0, 512.0, len(arrivals.functions))
    fast = simulate(arrivals, schedule, memory_mb, concurrency, score_from_s=score_from_s)
    simulated = SimulatedPlatform(arrivals, memory_mb, concurrency=concurrency, score_from_s=score_from_s)
    assert_same(fast, run_schedule(simulated, schedule))


def test_release_takes_the_longest_idle_on_both_paths() -> None:
    """Idle since 13 and 15 s: the floor of 1 at 60 s removes the first; the other lives its 300 s, to 315 s."""
    arrivals = make_arrivals([[10.0, 12.0]], [[1.0, 1.0]], [[2.0]], 0, 10)
    nothing = np.full((1, 10), -1, np.int16)
    floor = nothing.copy()
    floor[0, 1] = 1
    keep_alive_s, prewarm_after_s = np.full((1, 10), 300, np.float32), np.zeros((1, 10), np.float32)
    schedule = WarmSchedule(keep_alive_s, prewarm_after_s, floor, nothing, lead_s=0.0, release=True)
    memory_mb = np.array([1024.0])
    for ledger in (
        simulate(arrivals, schedule, memory_mb),
        run_schedule(SimulatedPlatform(arrivals, memory_mb), schedule),
    ):
        assert ledger.total_gb_s == (60.0 - 10.0) + (315.0 - 12.0)


F0, F1 = FunctionKey("test", "f0"), FunctionKey("test", "f1")
MB = np.array([512.0, 512.0])


def platform(
    times: list[list[float]], *nodes: Node, keep_alive_s: float = 60.0, duration: float = 1.0
) -> SimulatedPlatform:
    """Two functions of 512 MB; every run takes `duration`, every start 2 s."""
    arrivals = make_arrivals(times, [[duration] * len(t) for t in times], [[2.0], [2.0]], 0, 10)
    return SimulatedPlatform(arrivals, MB, nodes=nodes, keep_alive_s=keep_alive_s)


async def test_observe_reports_each_closed_minute_once() -> None:
    """Counts come per minute, oldest first, once, with quiet minutes told as complete and empty."""
    simulated = platform([[10.0, 130.0], [119.0]], Node("a", 4096))
    steps = await simulated.observe(179_999)
    assert [(s.step_start_ms, s.counts, s.complete) for s in steps] == [(0, {F0: 1}, True), (60_000, {F1: 1}, True)]
    assert [s.counts for s in await simulated.observe(240_000)] == [{F0: 1}, {}]
    assert await simulated.observe(240_000) == []


async def test_snapshot_shows_the_life_of_a_container() -> None:
    """A container is shown creating, busy, idle since its run ended, and gone after the keep-alive."""
    simulated = platform([[10.0], []], Node("a", 4096))
    states = []
    for now_ms in (11_000, 12_500, 72_999):
        (container,) = (await simulated.snapshot(now_ms)).containers
        states.append((container.state, container.idle_since_ms, container.node, container.owned))
    assert states == [
        (ContainerState.CREATING, None, "a", False),
        (ContainerState.BUSY, None, "a", False),
        (ContainerState.IDLE, 13_000, "a", False),
    ]
    assert (await simulated.snapshot(73_000)).containers == ()


async def test_profiles_tell_what_was_seen_so_far() -> None:
    """Run and start times are unknown at first, and means once runs ended and containers got ready."""
    simulated = platform([[10.0], []], Node("a", 4096))
    before, after = [(await simulated.snapshot(now_ms)).profiles[0] for now_ms in (11_000, 20_000)]
    assert (before.duration_ms, before.lead_ms) == (0, 0)
    assert (after.duration_ms, after.lead_ms) == (1000, 2000)
    assert after.preferred_nodes == ("a",)


async def test_a_prewarm_takes_its_start_time_and_saves_a_cold_start() -> None:
    """A prewarm at 5 s is ready at 7 s, and serves the request of 10 s at once; it is MESP's own."""
    simulated = platform([[10.0], []], Node("a", 4096))
    outcomes = await simulated.apply(Plan(prewarms=(Prewarm(F0, "a", 1, "soon"),)), 5_000)
    assert outcomes == Outcomes(prewarmed=1)
    (container,) = (await simulated.snapshot(7_000)).containers
    assert (container.state, container.owned) == (ContainerState.IDLE, True)
    simulated.advance(600_000)
    assert simulated.ledger().cold == 0


async def test_a_release_takes_idle_containers_only() -> None:
    """A busy container is not released, an idle one is, and one that is gone is named."""
    simulated = platform([[10.0], []], Node("a", 4096))
    (container,) = (await simulated.snapshot(12_500)).containers
    plan = Plan(releases=(Release(F0, container.id, "a", "surplus"),))
    assert (await simulated.apply(plan, 12_500)).refused == ("release of test/f0#1: it is not idle",)
    assert await simulated.apply(plan, 14_000) == Outcomes(released=1)
    assert (await simulated.apply(plan, 14_000)).refused == ("release of test/f0#1: test/f0 has no such container",)


async def test_a_prewarm_evicts_nothing() -> None:
    """Where a node is full a prewarm is refused, as it is for what is unknown; the rest of the plan is carried out."""
    simulated = platform([[10.0], []], Node("a", 1024, other_memory_mb=512))
    plan = Plan(prewarms=(Prewarm(F1, "a", 1, ""), Prewarm(F1, "b", 1, ""), Prewarm(FunctionKey("x", "y"), "a", 1, "")))
    outcomes = await simulated.apply(plan, 20_000)
    assert outcomes.prewarmed == 0
    assert [sentence.split(": ")[1] for sentence in outcomes.refused] == [
        "no free memory for 512.0 MB",
        "b is unknown",
        "x/y is unknown",
    ]


def test_a_full_home_node_spills_to_the_next() -> None:
    """Two requests of one function at once: the second container stands on the other node, nothing is evicted."""
    simulated = platform([[10.0, 10.0], []], Node("a", 512), Node("b", 512))
    simulated.advance(20_000)
    assert {container.node.name for container in simulated.cluster.containers.values()} == {"a", "b"}
    assert simulated.ledger().evictions == 0


def test_a_full_cluster_evicts_the_longest_idle() -> None:
    """Where nothing is free an idle container makes room, and its function is cold again."""
    simulated = platform([[10.0, 40.0], [20.0]], Node("a", 512), keep_alive_s=math.inf)
    simulated.advance(600_000)
    ledger = simulated.ledger()
    assert (ledger.cold, ledger.evictions) == (3, 2)


def test_requests_queue_while_everything_is_busy() -> None:
    """A request at 11 s finds the node busy until 13 s: its container starts then, and it waits 2 + 2 s."""
    simulated = platform([[10.0], [11.0]], Node("a", 512))
    simulated.advance(600_000)
    ledger = simulated.ledger()
    np.testing.assert_array_equal(ledger.wait_s, [2.0, 4.0])
    assert (ledger.cold, ledger.evictions, ledger.unserved) == (2, 1, 0)


def test_the_queue_is_served_in_order() -> None:
    """A queued request takes the container of its own function that gets free, without a cold start of its own."""
    simulated = platform([[10.0, 11.0], [11.5]], Node("a", 512))
    simulated.advance(13_500)
    assert (simulated.ledger().cold, simulated.ledger().unserved) == (1, 1)
    simulated.advance(600_000)
    np.testing.assert_array_equal(simulated.ledger().wait_s, [2.0, 2.0, 14.0 - 11.5 + 2.0])


@pytest.mark.parametrize(
    ("nodes", "keep_alive_s", "message"),
    [
        ((Node("a", 256),), 60.0, "test/f0 takes 512.0 MB: no schedulable node"),
        ((Node("a", 4096, schedulable=False),), 60.0, "no schedulable node"),
        ((), 60.0, "no schedulable node"),
        ((Node("a", 4096),), math.nan, "keep_alive_s = nan"),
    ],
)
def test_what_could_never_run_is_refused(nodes: tuple[Node, ...], keep_alive_s: float, message: str) -> None:
    """A function that fits no node, no node at all, or a keep-alive that is no time: one clear error each."""
    with pytest.raises(InputError, match=message):
        platform([[1.0], []], *nodes, keep_alive_s=keep_alive_s)
