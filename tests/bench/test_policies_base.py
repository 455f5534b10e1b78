"""What holds for every baseline: the face, causality, and agreement between loops and arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.policies import BASELINES, Policy
from mesp_bench.policies.base import NEVER, loaded_by_price, mean_containers, minutes_since_active, minutes_until_active
from mesp_bench.traces.model import Trace

if TYPE_CHECKING:
    from mesp_bench.schedule import WarmSchedule

ORACLES = {"oracle_keepalive", "oracle_prewarm"}
CAUSAL = [policy for name, policy in BASELINES.items() if name not in ORACLES]

counts_arrays = hnp.arrays(
    np.uint32,
    st.tuples(st.integers(1, 3), st.integers(2, 200)),
    elements=st.integers(1, 5) | st.just(0),
    fill=st.just(0),
)


def trace_of(counts: np.ndarray) -> Trace:
    functions = len(counts)
    return Trace(
        name="test",
        functions=tuple(FunctionKey("owner", f"app/{f}") for f in range(functions)),
        counts=counts.astype(np.uint32),
        start_minute=0,
        apps=tuple(f"owner/app{f // 2}" for f in range(functions)),
        triggers=("http",) * functions,
        memory_mb=np.full(functions, 512.0),
        app_memory_mb=np.full(functions, 1024.0),
        duration_ms=np.full(functions, 1000.0),
        duration_percentiles_ms=np.full((functions, 7), 1000.0),
        arrivals_s=None,
        checksum="",
    )


def known_at(schedule: WarmSchedule, minutes: int) -> list[np.ndarray]:
    """What a schedule says of the first `minutes`."""
    arrays = (schedule.keep_alive_s, schedule.prewarm_after_s, schedule.floor, schedule.early_floor)
    return [array[:, :minutes] for array in arrays]


@pytest.mark.parametrize("policy", CAUSAL, ids=lambda p: p.name)
@settings(deadline=None)  # the first example compiles
@given(counts=counts_arrays, data=st.data())
def test_no_policy_but_an_oracle_sees_the_future(policy: Policy, counts: np.ndarray, data: st.DataObject) -> None:
    """Minutes up to m are decided from the counts before m: other counts from m on change nothing."""
    now = data.draw(st.integers(1, counts.shape[1] - 1))
    other = counts.copy()
    other[:, now:] = data.draw(hnp.arrays(np.uint32, other[:, now:].shape, elements=st.integers(0, 5)))
    knob = data.draw(st.sampled_from(policy.knobs))
    one, two = trace_of(counts), trace_of(other)
    assert np.array_equal(policy.loaded(one, knob)[:, : now + 1], policy.loaded(two, knob)[:, : now + 1])
    schedules = zip(
        known_at(policy.schedule(one, knob), now + 1), known_at(policy.schedule(two, knob), now + 1), strict=True
    )
    assert all(np.array_equal(a, b) for a, b in schedules)


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_the_causality_check_can_fail(name: str) -> None:
    """An oracle does change its mind with the future."""
    quiet, called = np.zeros((1, 10)), np.zeros((1, 10))
    quiet[0, 2] = called[0, 2] = called[0, 4] = 1
    policy = BASELINES[name]
    early = slice(0, 5)
    knob = policy.knobs[-1]
    assert not np.array_equal(
        policy.loaded(trace_of(quiet), knob)[:, early], policy.loaded(trace_of(called), knob)[:, early]
    )


@pytest.mark.parametrize("policy", BASELINES.values(), ids=lambda p: p.name)
@settings(deadline=None)  # the first example compiles
@given(counts=counts_arrays)
def test_every_policy_fits_the_trace_at_every_knob(policy: Policy, counts: np.ndarray) -> None:
    """Decisions have the trace's shape and the contract's types; nothing is loaded before a first call."""
    trace = trace_of(counts)
    app_called = np.stack([counts[np.array(trace.apps) == app].any(axis=0) for app in trace.apps])
    for knob in policy.knobs:
        loaded, schedule = policy.loaded(trace, knob), policy.schedule(trace, knob)
        assert loaded.shape == counts.shape
        assert loaded.dtype == np.bool_
        assert not (loaded[:, 1:] & ~np.maximum.accumulate(app_called, axis=1)[:, :-1]).any()
        for field, dtype in (
            ("keep_alive_s", np.float32),
            ("prewarm_after_s", np.float32),
            ("floor", np.int16),
            ("early_floor", np.int16),
        ):
            array = getattr(schedule, field)
            assert array.shape == counts.shape
            assert array.dtype == dtype
            assert (array >= (-1 if dtype == np.int16 else 0)).all()


@pytest.mark.parametrize("policy", BASELINES.values(), ids=lambda p: p.name)
def test_a_knob_out_of_range_is_one_sentence(policy: Policy) -> None:
    """A negative or undefined knob is refused by name, by every policy that reads it."""
    for knob in (-1.0, float("nan")):
        with pytest.raises(InputError, match=f"{policy.name}: knob = "):
            policy.schedule(trace_of(np.zeros((1, 3))), knob)


def test_registry_names_are_the_policies_own() -> None:
    """BASELINES holds the names of frontier.json, each policy under its own."""
    assert all(name == policy.name for name, policy in BASELINES.items())
    assert set(BASELINES) == ORACLES | {"fixed", "openwhisk", "hybrid_histogram", "hybrid_histogram_app", "kpa"}


def test_the_two_clocks_of_activity() -> None:
    """Both clocks leave the minute itself out."""
    active = np.array([[0, 1, 0, 0, 1, 1, 0]], np.bool_)
    assert minutes_since_active(active).tolist() == [[NEVER, NEVER, 1, 2, 3, 1, 1]]
    assert minutes_until_active(active).tolist() == [[1, 3, 2, 1, 1, NEVER, NEVER]]


def test_mean_containers_is_littles_law() -> None:
    """90 calls of 2 s in a minute keep 3 containers busy on average; one short call still needs one."""
    assert mean_containers(np.array([[90, 1, 0]], np.uint32), np.array([2000.0])).tolist() == [[3, 1, 1]]


def test_loaded_by_price_writes_out_the_arithmetic() -> None:
    """512 MB idle for a minute is 30 GB s: at a price of 10 GB s a minute is worth it from p = 0.75 on."""
    probability = np.array([[0.0, 0.74, 0.75, 1.0]])
    loaded = loaded_by_price(probability, np.array([512.0]), price_gb_s=10.0)
    assert loaded.tolist() == [[False, False, True, True]]


@given(
    probability=hnp.arrays(np.float64, (2, 20), elements=st.floats(0, 1)),
    price_gb_s=st.floats(0.1, 1000),
    dearer=st.floats(1, 10),
)
def test_a_dearer_cold_start_keeps_more(probability: np.ndarray, price_gb_s: float, dearer: float) -> None:
    """Raising the price never unloads a minute; a bigger function is never loaded where a smaller one is not."""
    memory_mb = np.array([128.0, 1024.0])
    loaded = loaded_by_price(probability, memory_mb, price_gb_s)
    assert not (loaded & ~loaded_by_price(probability, memory_mb, price_gb_s * dearer)).any()
    assert not (loaded & ~loaded_by_price(probability, memory_mb / 2, price_gb_s)).any()


def test_select_keeps_a_policy_per_function() -> None:
    """A per-function policy gives a function the same warmth alone as in the fleet."""
    trace = trace_of(np.random.default_rng(1).integers(0, 2, (4, 50)))
    alone = trace.select(np.array([2]))
    for name in ("fixed", "hybrid_histogram", "kpa", "oracle_keepalive"):
        policy = BASELINES[name]
        assert np.array_equal(policy.loaded(trace, 60)[2:3], policy.loaded(alone, 60))
