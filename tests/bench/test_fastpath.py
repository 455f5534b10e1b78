from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.arrivals import Arrivals
from mesp_bench.fastpath import simulate
from mesp_bench.schedule import WarmSchedule

GB = np.array([1024.0])


def one(times: list[float], duration: float = 1.0, start: float = 2.0, minutes: int = 10) -> Arrivals:
    """One function, every invocation and start alike."""
    return Arrivals(
        functions=(FunctionKey("test", "f"),),
        first_minute=0,
        end_minute=minutes,
        indptr=np.array([0, len(times)]),
        times_s=np.array(times, np.float64),
        durations_s=np.full(len(times), duration),
        start_indptr=np.array([0, 1]),
        start_times_s=np.array([start]),
    )


def keep(seconds: float, minutes: int = 10, **changes: object) -> WarmSchedule:
    shape = (1, minutes)
    schedule = WarmSchedule(
        keep_alive_s=np.full(shape, seconds, np.float32),
        prewarm_after_s=np.zeros(shape, np.float32),
        floor=np.full(shape, -1, np.int16),
        early_floor=np.full(shape, -1, np.int16),
        lead_s=0.0,
        release=False,
    )
    return dataclasses.replace(schedule, **changes)  # type: ignore[arg-type]


def floors(at: dict[int, int], minutes: int = 10) -> np.ndarray:
    row = np.full((1, minutes), -1, np.int16)
    for minute, floor in at.items():
        row[0, minute] = floor
    return row


def test_a_cold_start_and_its_keep_alive() -> None:
    """One invocation: waits 2 s, runs 1 s, stays 60 s; of 63 s x 1 GB all but 1 s is waste."""
    ledger = simulate(one([10.0]), keep(60), GB)
    assert (ledger.invocations, ledger.cold, ledger.created) == (1, 1, 1)
    np.testing.assert_array_equal(ledger.wait_s, [2.0])
    assert (ledger.total_gb_s, ledger.waste_gb_s) == (63.0, 62.0)


def test_surplus_is_held_while_some_are_wanted() -> None:
    """A floor of 1, a hold of 150 s: the second container, idle since 13 s, goes at minute 3; where none is wanted, at 1."""
    arrivals = one([10.0, 10.0])
    wanted = keep(1e6, floor=floors(dict.fromkeys(range(10), 1)), release=True, hold_s=np.array([150.0], np.float32))
    assert simulate(arrivals, wanted, GB).total_gb_s == 600.0 + 170.0
    unwanted = dataclasses.replace(wanted, floor=floors(dict.fromkeys(range(10), 0)))
    assert simulate(arrivals, unwanted, GB).total_gb_s == 2 * 50.0


def test_concurrent_requests_start_containers_of_their_own() -> None:
    """A request does not wait for a busy container, nor for one ordered by another request: both are cold."""
    assert simulate(one([10.0, 11.0, 12.5]), keep(60), GB).cold == 3
    assert simulate(one([10.0, 11.0, 14.5]), keep(60), GB).cold == 2


def test_the_most_recently_used_container_serves_so_that_surplus_expires() -> None:
    """Two containers, then one request at a time: the older one goes after its keep-alive, the newer one stays."""
    times = [10.0, 10.5, *np.arange(30.0, 300.0, 30.0)]
    ledger = simulate(one(times), keep(60), GB)
    assert ledger.cold == 2
    assert ledger.total_gb_s == pytest.approx((13 - 10 + 60) + (270 + 1 + 60 - 10.5))


def test_an_expiry_comes_before_an_arrival_at_the_same_instant() -> None:
    """Idle at 13, kept for 60 s: an arrival at 73 is cold, one just before is not."""
    assert simulate(one([10.0, 73.0]), keep(60), GB).cold == 2
    assert simulate(one([10.0, math.nextafter(73.0, 0)]), keep(60), GB).cold == 1


def test_a_completion_comes_before_an_arrival_at_the_same_instant() -> None:
    """A container that gets free at 13 serves the arrival at 13, and then expires at once with no keep-alive at all."""
    assert simulate(one([10.0, 13.0]), keep(60), GB).cold == 1
    assert simulate(one([10.0, 13.0]), keep(0), GB).cold == 2


def test_what_ends_at_a_minute_belongs_to_the_minute_before() -> None:
    """A run that ends at 60 s takes the keep-alive of minute 0, not of minute 1."""
    keep_alive = np.array([[100, 5] + [5] * 8], np.float32)
    assert simulate(one([57.0, 150.0]), keep(0, keep_alive_s=keep_alive), GB).cold == 1
    assert simulate(one([57.1, 150.0]), keep(0, keep_alive_s=keep_alive), GB).cold == 2


def test_a_floor_is_ready_one_start_time_into_its_minute() -> None:
    """A floor known at 60 s is ready at 62 s: a request at 61 s claims it and waits 1 s, one at 62 s waits not."""
    late = simulate(one([61.0]), keep(60, floor=floors({1: 1})), GB)
    assert (late.cold, late.late_prewarms, late.created) == (1, 1, 1)
    np.testing.assert_array_equal(late.wait_s, [1.0])
    assert simulate(one([62.0]), keep(60, floor=floors({1: 1})), GB).cold == 0


def test_a_claimed_prewarm_serves_one_request_only() -> None:
    """Two requests at a prewarm under way: one claims it, the other starts a container of its own."""
    ledger = simulate(one([61.0, 61.0]), keep(60, floor=floors({1: 1})), GB)
    assert (ledger.cold, ledger.late_prewarms, ledger.created) == (2, 1, 2)
    np.testing.assert_array_equal(ledger.wait_s, [1.0, 2.0])


def test_an_early_floor_is_ready_when_its_minute_begins() -> None:
    """With a lead of 5 s the container is ordered at 55 s, ready at 57 s, and charged from the order."""
    schedule = keep(10, early_floor=floors({1: 1}), floor=floors({1: 1, 2: 0}), lead_s=5.0)
    ledger = simulate(one([60.0]), schedule, GB)
    assert (ledger.cold, ledger.created) == (0, 1)
    assert ledger.total_gb_s == 120.0 - 55.0  # inside the floor it outlives its keep-alive, until minute 2 drops it


def test_release_removes_idle_surplus_at_the_start_of_the_minute() -> None:
    """With `release` a floor of 0 ends a keep-alive of 10 minutes at 60 s; without, the container stays."""
    assert simulate(one([10.0]), keep(600, floor=floors({1: 0}), release=True), GB).total_gb_s == 50.0
    assert simulate(one([10.0]), keep(600, floor=floors({1: 0})), GB).total_gb_s == 590.0
    assert simulate(one([10.0]), keep(600, release=True), GB).total_gb_s == 590.0


def test_prewarm_after_drops_the_container_and_brings_another() -> None:
    """Idle at 13 s: gone at once, another ordered at 113 s, ready at 115 s, kept 60 s; an arrival before cancels it."""
    schedule = keep(60, prewarm_after_s=np.full((1, 10), 100, np.float32))
    ledger = simulate(one([10.0]), schedule, GB)
    assert (ledger.created, ledger.total_gb_s) == (2, 3.0 + 62.0)
    assert simulate(one([10.0, 120.0]), schedule, GB).cold == 1
    assert simulate(one([10.0, 112.0]), schedule, GB).cold == 2


def test_concurrency_shares_a_container() -> None:
    """With room for two, a request joins the busy container, and its busy time is counted once."""
    ledger = simulate(one([10.0, 11.0, 12.5]), keep(60), GB, concurrency=2)
    assert (ledger.cold, ledger.created) == (3, 2)  # the third finds both slots taken
    ledger = simulate(one([10.0, 12.5]), keep(60), GB, concurrency=2)
    assert (ledger.cold, ledger.created) == (1, 1)
    assert ledger.total_gb_s - ledger.waste_gb_s == 1.5


def test_only_the_scored_window_counts() -> None:
    """Warm-up is played but not counted, and intervals over the edge are clipped to it."""
    ledger = simulate(one([10.0, 100.0], minutes=2), keep(600, 2), GB, score_from_s=60.0)
    assert (ledger.invocations, ledger.cold, ledger.created) == (1, 0, 0)
    assert (ledger.total_gb_s, ledger.waste_gb_s) == (60.0, 59.0)


def test_wait_quantiles_count_those_who_did_not_wait() -> None:
    """Of four invocations one waits 2 s: the median wait is 0, the 95th percentile 2 s."""
    ledger = simulate(one([10.0, 20.0, 30.0, 40.0]), keep(60), GB)
    assert (ledger.wait_p50_s, ledger.wait_p95_s, ledger.wait_p99_s) == (0.0, 2.0, 2.0)
    assert simulate(one([]), keep(60), GB).wait_p99_s == 0.0


def test_functions_are_independent() -> None:
    """A function's account is the same alone and among others."""
    rng = np.random.default_rng(3)
    times = [np.sort(rng.random(200) * 600) for _ in range(3)]
    many = Arrivals(
        functions=tuple(FunctionKey("test", str(row)) for row in range(3)),
        first_minute=0,
        end_minute=10,
        indptr=np.array([0, 200, 400, 600]),
        times_s=np.concatenate(times),
        durations_s=np.full(600, 1.0),
        start_indptr=np.array([0, 1, 2, 3]),
        start_times_s=np.full(3, 2.0),
    )
    narrow = keep(7)
    wide = dataclasses.replace(
        narrow,
        keep_alive_s=narrow.keep_alive_s.repeat(3, axis=0),
        prewarm_after_s=narrow.prewarm_after_s.repeat(3, axis=0),
        floor=narrow.floor.repeat(3, axis=0),
        early_floor=narrow.early_floor.repeat(3, axis=0),
    )
    together = simulate(many, wide, np.full(3, 1024.0))
    alone = [simulate(one(list(t)), keep(7), GB) for t in times]
    np.testing.assert_array_equal(together.cold_by_function, [ledger.cold for ledger in alone])
    np.testing.assert_array_equal(together.waste_gb_s_by_function, [ledger.waste_gb_s for ledger in alone])
    assert together.cold == sum(ledger.cold for ledger in alone)


@pytest.mark.parametrize(
    ("schedule", "memory_mb", "concurrency", "message"),
    [
        (keep(60, minutes=9), GB, 1, r"keep_alive_s has shape \(1, 9\)"),
        (keep(60, lead_s=61.0), GB, 1, "lead_s = 61"),
        (keep(60), np.array([math.nan]), 1, "all finite"),
        (keep(60), np.array([1.0, 2.0]), 1, r"memory_mb has shape \(2,\)"),
        (keep(60), GB, 0, "concurrency = 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    schedule: WarmSchedule, memory_mb: np.ndarray, concurrency: int, message: str
) -> None:
    """Schedules, memory and concurrency that do not fit the arrivals are one clear error each."""
    with pytest.raises(InputError, match=message):
        simulate(one([1.0]), schedule, memory_mb, concurrency)
