"""KPA's decision, tick by tick, and its life in minutes."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.policies import BASELINES
from mesp_bench.policies.kpa import CALM, KpaSettings, KpaState, kpa_step, pod_target
from mesp_bench.traces.model import Trace

KPA = BASELINES["kpa"]

#: A pod is meant to carry ten requests.
TEN = KpaSettings(target=10.0)
PANIC = KpaState(panic_since_s=100.0, panic_pods=8)


def step(
    now_s: float, stable: float, panic: float, ready: int, state: KpaState, settings: KpaSettings = TEN
) -> tuple[int, KpaState]:
    wanted, after = kpa_step(now_s, stable, panic, ready, state, settings)
    return wanted, KpaState(*after)


def test_target_is_seventy_percent_of_what_a_pod_may_carry() -> None:
    """A limit of 1 gives 0.7, no limit counts as 100, and nothing falls below 0.01."""
    assert pod_target(1) == pytest.approx(0.7)
    assert pod_target(0) == pytest.approx(70.0)
    assert pod_target(1, utilisation=0.001) == 0.01


def test_a_steady_load_gets_its_pods() -> None:
    """35 requests at 10 a pod: four pods, and no panic."""
    assert step(2, stable=35, panic=35, ready=4, state=KpaState()) == (4, KpaState())


def test_no_load_wants_no_pods() -> None:
    """A stable window without requests wants zero of the one pod that is left; the grace is the caller's."""
    assert step(90, stable=0, panic=0, ready=1, state=KpaState()) == (0, KpaState())


def test_it_halves_at_most() -> None:
    """From nine pods a quiet window goes to floor(9 / 2) = 4."""
    assert step(2, stable=1, panic=1, ready=9, state=KpaState())[0] == 4


def test_an_unreachable_revision_falls_at_once() -> None:
    """Without a route there is no floor to the fall: nine pods to the one that is asked for."""
    settings = TEN._replace(reachable=False)
    assert step(2, stable=1, panic=1, ready=9, state=KpaState(), settings=settings)[0] == 1


def test_it_multiplies_at_most() -> None:
    """With max-scale-up 2, two ready pods become four, whatever is asked."""
    settings = TEN._replace(max_scale_up=2.0)
    assert step(2, stable=900, panic=900, ready=2, state=KpaState(), settings=settings) == (4, KpaState(2.0, 4))


def test_activation_scale_is_the_least_above_zero() -> None:
    """With activation-scale 3 one request brings three pods, and none brings none."""
    settings = TEN._replace(activation_scale=3)
    assert step(2, stable=1, panic=0, ready=1, state=KpaState(), settings=settings)[0] == 3
    assert step(2, stable=0, panic=0, ready=1, state=KpaState(), settings=settings)[0] == 0


def test_twice_the_ready_pods_is_a_panic() -> None:
    """The threshold is met, not passed: 2 pods ready, 4 asked by the panic window."""
    assert step(50, stable=5, panic=40, ready=2, state=KpaState()) == (4, KpaState(50.0, 4))
    assert step(50, stable=5, panic=30, ready=2, state=KpaState()) == (1, KpaState(CALM, 0))


def test_diary_of_a_burst() -> None:
    """A burst from zero: panic, growth, a hold against every fall, and calm a stable window after the last excess."""
    # 0 s: eighty requests hit an empty revision; the short window sees them all.
    wanted, state = step(0, stable=80, panic=80, ready=0, state=KpaState())
    assert (wanted, state) == (8, KpaState(0.0, 8))
    # 2 s: two pods are up and more requests came: still over the threshold, so the panic is renewed.
    wanted, state = step(2, stable=90, panic=120, ready=2, state=state)
    assert (wanted, state) == (12, KpaState(2.0, 12))
    # 10 s: twelve pods are up and the load falls; in a panic the scale does not.
    wanted, state = step(10, stable=60, panic=20, ready=12, state=state)
    assert (wanted, state) == (12, KpaState(2.0, 12))
    # 62 s: a whole stable window since the renewal has passed, but not more than that.
    wanted, state = step(62, stable=30, panic=30, ready=12, state=state)
    assert (wanted, state) == (12, KpaState(2.0, 12))
    # 64 s: now it has. Calm again, and down by half at most.
    wanted, state = step(64, stable=30, panic=30, ready=12, state=state)
    assert (wanted, state) == (6, KpaState(CALM, 0))
    # 66 s: three pods are enough.
    wanted, state = step(66, stable=30, panic=30, ready=6, state=state)
    assert (wanted, state) == (3, KpaState(CALM, 0))


def test_the_stable_window_counts_in_a_panic_too() -> None:
    """Where the stable window asks for more than the panic window, it is heard."""
    assert step(110, stable=100, panic=20, ready=8, state=PANIC) == (10, KpaState(100.0, 10))


def test_it_is_callable_from_compiled_code() -> None:
    """A compiled simulator carries state and settings through ticks without Python."""

    @numba.njit()
    def ticks(count: int, settings: KpaSettings) -> int:
        state = KpaState(-np.inf, 0)
        wanted = 0
        for tick in range(count):
            wanted, state = kpa_step(2.0 * tick, 0.5 * tick, 1.0 * tick, wanted, state, settings)
        return wanted

    wanted, state = 0, KpaState()
    for tick in range(40):
        wanted, state = kpa_step(2.0 * tick, 0.5 * tick, 1.0 * tick, wanted, state, TEN)
    assert ticks(40, TEN) == wanted > 0


def test_minutes_are_window_plus_grace_rounded_up() -> None:
    """A window of 60 s and 30 s of grace keep a pod into the second minute after a call, 30 s into the first."""
    counts = np.array([[1, 0, 0, 0]], np.uint32)
    unknown = np.full(1, np.nan)
    trace = Trace(
        name="test",
        functions=(FunctionKey("owner", "app/f"),),
        counts=counts,
        start_minute=0,
        apps=("owner/app",),
        triggers=("http",),
        memory_mb=unknown,
        app_memory_mb=unknown,
        duration_ms=unknown,
        duration_percentiles_ms=np.full((1, 7), np.nan),
        arrivals_s=None,
        checksum="",
    )
    assert KPA.loaded(trace, 60).tolist() == [[False, True, True, False]]
    assert KPA.loaded(trace, 30).tolist() == [[False, True, False, False]]
    assert KPA.schedule(trace, 60).keep_alive_s.tolist() == [[90.0] * 4]
    with pytest.raises(InputError, match="kpa: knob = 5 s, the stable window must be within 6 s and 3600 s"):
        KPA.loaded(trace, 5)
