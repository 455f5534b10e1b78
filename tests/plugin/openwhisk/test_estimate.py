"""Containers told from runs: made by cold ones, used by warm ones, gone after 10 s and 10 min, or evicted."""

from __future__ import annotations

from mesp.types import FunctionKey
from mesp_placement.model import ContainerState
from mesp_plugin.openwhisk.estimate import GAUGE_AGE_MS, KEPT_MS, PoolEstimate
from mesp_plugin.openwhisk.messages import ActivationRecord

HELLO, OTHER = FunctionKey("guest", "hello"), FunctionKey("guest", "other")
MEMORY = {HELLO: 256.0, OTHER: 128.0}


def run(function: FunctionKey, at_ms: int, *, init_ms: int = 0, run_ms: int = 100, status: int = 0) -> ActivationRecord:
    return ActivationRecord(function, "a" * 32, at_ms, at_ms + run_ms, run_ms, init_ms, 0, status)


def states(pool: PoolEstimate, now_ms: int, **in_flight: int) -> list[ContainerState]:
    counts = {FunctionKey("guest", name): count for name, count in in_flight.items()}
    return [container.state for container in pool.containers(now_ms, counts, MEMORY)]


def test_a_cold_run_leaves_a_container_for_ten_seconds_and_ten_minutes() -> None:
    """Ready, then paused, then gone."""
    pool = PoolEstimate("n")
    pool.ran(run(HELLO, 0, init_ms=50), 256)
    assert states(pool, 100 + 9_999) == [ContainerState.IDLE]
    assert states(pool, 100 + 10_000) == [ContainerState.PAUSED]
    assert states(pool, 100 + KEPT_MS) == []


def test_a_warm_run_uses_one_and_calls_in_flight_occupy_them() -> None:
    """Three calls in flight on two warm containers need a third."""
    pool = PoolEstimate("n")
    pool.ran(run(HELLO, 0, init_ms=50), 256)
    pool.ran(run(HELLO, 10, init_ms=50), 256)
    pool.ran(run(HELLO, 5_000), 256)
    assert pool.idle(5_200, HELLO) == 2
    assert states(pool, 5_200, hello=1) == [ContainerState.BUSY, ContainerState.IDLE]
    assert states(pool, 5_200, hello=3) == [ContainerState.BUSY] * 3


def test_a_cold_run_beside_an_idle_container_proves_an_eviction() -> None:
    """What was believed idle was not there; one that was busy was."""
    pool = PoolEstimate("n")
    pool.ran(run(HELLO, 0, init_ms=50), 256)
    pool.ran(run(HELLO, 30_000, init_ms=50), 256)
    assert pool.idle(31_000, HELLO) == 1
    pool.ran(run(HELLO, 40_000, run_ms=10_000), 256)
    pool.ran(run(HELLO, 45_000, init_ms=50), 256)
    assert pool.idle(51_000, HELLO) == 2


def test_a_run_that_throws_takes_its_container_with_it() -> None:
    """An application error does not."""
    pool = PoolEstimate("n")
    pool.ran(run(HELLO, 0, init_ms=50, status=1), 256)
    assert pool.idle(200, HELLO) == 1
    pool.ran(run(HELLO, 300, status=2), 256)
    assert pool.idle(500, HELLO) == 0


def test_the_gauge_bounds_what_has_been_idle_for_longer_than_it_is_old() -> None:
    """The longest idle goes first; what is newer than the gauge is believed."""
    pool = PoolEstimate("n")
    pool.ran(run(HELLO, 0, init_ms=50), 256)
    pool.ran(run(OTHER, 1_000, init_ms=50), 128)
    now_ms = 1_100 + GAUGE_AGE_MS
    pool.ran(run(HELLO, now_ms - 200, init_ms=50), 256)
    pool.bound(128, now_ms)
    assert (pool.idle(now_ms, HELLO), pool.idle(now_ms, OTHER)) == (1, 1)
    pool.bound(127, now_ms)
    assert (pool.idle(now_ms, HELLO), pool.idle(now_ms, OTHER)) == (1, 0)


def test_a_container_is_owned_until_a_call_meets_it() -> None:
    """A marker made it, a second marker changes nothing, the first user takes it over, once."""
    pool = PoolEstimate("n")
    assert pool.ran(run(HELLO, 0, init_ms=50), 256, "m1") is None
    assert pool.ran(run(HELLO, 1_000), 256, "m2") is None
    assert [one.owned for one in pool.containers(2_000, {}, MEMORY)] == [True]
    assert pool.markers() == {"m1"}
    assert pool.ran(run(HELLO, 3_000), 256) == "m1"
    assert pool.ran(run(HELLO, 4_000), 256) is None
    assert [one.owned for one in pool.containers(5_000, {}, MEMORY)] == [False]
