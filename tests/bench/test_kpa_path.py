from __future__ import annotations

import math

import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.arrivals import Arrivals
from mesp_bench.kpa_path import simulate_kpa

GB = np.array([1024.0])


def one(times: list[float], duration: float = 0.3, start: float = 2.0, minutes: int = 10) -> Arrivals:
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


def test_the_first_request_wakes_the_autoscaler_at_once() -> None:
    """At zero scale a request at 0.5 s is told as 1, asks for ceil(1 / 0.7) = 2 pods, and waits one start time."""
    ledger = simulate_kpa(one([0.5]), GB)
    assert (ledger.cold, ledger.created) == (1, 2)
    np.testing.assert_array_equal(ledger.wait_s, [2.0])


def test_the_last_pod_goes_with_the_stable_window() -> None:
    """The buckets of 1 to 3 s are empty again 60 s later: both pods go at the tick of 64 s at the latest."""
    ledger = simulate_kpa(one([0.5]), GB)
    assert 2 * 59.0 <= ledger.total_gb_s <= 2 * 63.5
    assert ledger.total_gb_s - ledger.waste_gb_s == pytest.approx(0.3)
    longer = simulate_kpa(one([0.5]), GB, 120)
    assert longer.total_gb_s - ledger.total_gb_s == pytest.approx(2 * 60.0)


def test_a_warm_pod_serves_without_waiting_and_after_zero_it_is_cold_again() -> None:
    """A second request within the window is served at once; one after the scale went to zero waits again."""
    assert simulate_kpa(one([0.5, 30.0]), GB).cold == 1
    assert simulate_kpa(one([0.5, 100.0]), GB).cold == 2


def test_a_queued_request_that_a_freed_pod_serves_is_not_cold() -> None:
    """With one pod's slot taken requests queue: those served by pods that were ready before they came are not cold."""
    # Two pods from the first request; at 30 s three requests of 1 s: two run, the third takes the first freed slot.
    ledger = simulate_kpa(one([0.5, 30.0, 30.0, 30.0], duration=1.0, start=5.0), GB)
    assert ledger.cold == 1
    np.testing.assert_array_equal(ledger.wait_s, [5.0, 1.0])


def test_a_burst_panics_and_orders_more_than_its_average_needs() -> None:
    """40 requests of 10 s in a second: the panic window sees them at once, and pods for most of them get ordered."""
    times = [float(t) for t in np.linspace(100.0, 101.0, 40, endpoint=False)]
    ledger = simulate_kpa(one(times, duration=10.0), GB)
    assert ledger.created >= 40
    assert ledger.wait_s.max() < 10.0


def test_steady_load_is_carried() -> None:
    """5 requests a second of 0.3 s need 1.5 pods: after the start nearly all are served at once, by a handful of pods."""
    times = [float(t) for t in np.arange(0.1, 590.0, 0.2)]
    ledger = simulate_kpa(one(times), GB, score_from_s=120.0)
    assert ledger.cold == 0
    assert ledger.total_gb_s / 480.0 == pytest.approx(math.ceil(1.5 / 0.7), abs=0.5)


def test_pods_without_limit_share_everything() -> None:
    """Without a limit one pod carries 70 requests: the queue of the start is served by it in one go."""
    ledger = simulate_kpa(one([0.5, 1.0, 1.5, 2.0, 2.5]), GB, container_concurrency=0)
    assert ledger.created == 1
    np.testing.assert_allclose(ledger.wait_s, [2.0, 1.5, 1.0, 0.5])


def test_requests_still_queued_at_the_end_are_told() -> None:
    """A request whose pod is not ready when the window ends is unserved, and in no wait."""
    ledger = simulate_kpa(one([50.0], start=100.0, minutes=1), GB)
    assert (ledger.invocations, ledger.unserved, ledger.wait_s.size) == (1, 1, 0)


@pytest.mark.parametrize("window", [5.0, 60.5, 3601.0])
def test_windows_out_of_range_are_refused(window: float) -> None:
    """The stable window keeps to Knative's bounds, and to whole seconds."""
    with pytest.raises(InputError, match=r"within \[6, 3600\]"):
        simulate_kpa(one([1.0]), GB, window)
