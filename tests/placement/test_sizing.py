"""Sizing against the rule written out, against brute force, and for monotonicity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mesp.types import DEFAULT_LEVELS, MB_PER_GB, Forecasts, ForecastStatus, FunctionKey
from mesp_placement.sizing import (
    MAX_PRICE_GB_S,
    Demand,
    Floats,
    Ints,
    arrivals_at,
    containers_at,
    demands,
    expected_idle,
    needed_when_active,
    peak_busy,
    price_for_budget,
    wanted_count,
    warm_count,
)

LEVELS = np.array(DEFAULT_LEVELS)
ONE_GB = np.array([1.0])

prices = st.floats(0.01, 1e4)
probabilities = st.floats(0.0, 1.0)
memories = st.floats(0.01, 10.0)


def demand(
    active: float,
    quantiles: list[float] | None = None,
    *,
    levels: Floats = LEVELS,
    duration_s: float = 60.0,
    concurrency: int = 1,
    rest_share: float = 1.0,
) -> Demand:
    """One function in a 60 s step; without quantiles it never has more than one invocation."""
    return Demand(
        active=np.array([active]),
        levels=levels,
        quantiles=np.array([quantiles if quantiles is not None else [0.0] * len(levels)]),
        duration_s=np.array([duration_s]),
        concurrency=np.array([concurrency]),
        step_s=60.0,
        rest_share=rest_share,
    )


@st.composite
def any_demand(draw: st.DrawFn) -> Demand:
    """Any one function's demand, in a whole or partly elapsed step."""
    steps = draw(st.lists(st.floats(0, 30), min_size=len(LEVELS), max_size=len(LEVELS)))
    return demand(
        draw(probabilities),
        list(np.cumsum(steps)),
        duration_s=draw(st.floats(0, 300)),
        concurrency=draw(st.integers(1, 20)),
        rest_share=draw(st.floats(0.01, 1)),
    )


@given(probabilities, memories, prices)
def test_the_first_container_follows_the_rule(p: float, memory_gb: float, price: float) -> None:
    """With at most one invocation, one is wanted iff p*price >= (1-p)*memory*60."""
    assume(p == 1 or not np.isclose(p * price, (1 - p) * memory_gb * 60))
    wanted = warm_count(demand(p), np.array([memory_gb]), price)
    assert wanted[0] == int(p * price >= (1 - p) * memory_gb * 60)


def test_the_rule_at_its_edge() -> None:
    """At 1 GB and 60 s, a probability of 0.5 is worth a price of 60 GB·s and not a hair less."""
    assert warm_count(demand(0.5), ONE_GB, 60.0)[0] == 1
    assert warm_count(demand(0.5), ONE_GB, 59.99)[0] == 0


@given(any_demand(), memories, prices, st.floats(1, 100))
def test_a_higher_price_never_wants_fewer(d: Demand, memory_gb: float, price: float, factor: float) -> None:
    """The wanted count is monotone in the price, and falls as memory grows."""
    memory = np.array([memory_gb])
    assert warm_count(d, memory, price)[0] <= warm_count(d, memory, price * factor)[0]
    assert warm_count(d, memory, price)[0] >= warm_count(d, memory * factor, price)[0]


@given(any_demand(), probabilities, memories, prices)
def test_a_higher_probability_never_wants_fewer(d: Demand, other: float, memory_gb: float, price: float) -> None:
    """The wanted count is monotone in the probability of activity, and 0 when that is 0."""
    low, high = sorted([float(d.active[0]), other])
    counts = [
        warm_count(demand(p, list(d.quantiles[0]), duration_s=float(d.duration_s[0])), np.array([memory_gb]), price)[0]
        for p in (0.0, low, high)
    ]
    assert counts[0] == 0
    assert counts[1] <= counts[2]


@given(st.lists(st.integers(1, 100), min_size=2, max_size=7), st.floats(0.1, 1000), memories)
def test_it_minimises_the_expected_cost(chances: list[int], price: float, memory_gb: float) -> None:
    """On any small distribution of N the count is the one that brute force finds cheapest."""
    mass = np.array(chances) / sum(chances)
    below = np.cumsum(mass)[:-1]
    # The distribution's jumps as pairs of levels; an invocation of 60 s in a step of 60 s is a container each.
    sharp = 1e-9
    levels = np.append(np.column_stack([below - sharp, below + sharp]), 1 - sharp)
    quantiles = np.append(np.column_stack([np.arange(len(below)), np.arange(1, len(mass))]), len(below))
    d = demand(1 - mass[0], list(quantiles.astype(float)), levels=levels)

    def cost(k: int) -> float:
        n = np.arange(len(mass))
        return float(mass @ (price * np.maximum(n - k, 0) + memory_gb * 60 * np.maximum(k - n, 0)))

    costs = [cost(k) for k in range(len(mass))]
    assume(np.diff(np.sort(costs))[0] > 1e-5 * max(costs))  # a tie has two right answers
    assert warm_count(d, np.array([memory_gb]), price)[0] == int(np.argmin(costs))


def test_a_step_and_its_two_halves_agree() -> None:
    """P' = 1-(1-P)^rho: half a step at p = 0.75 decides as a step at p = 0.5 that is held half as long."""
    half = demand(0.75, rest_share=0.5)
    assert half.active_in_rest[0] == pytest.approx(0.5)
    assert warm_count(half, ONE_GB, 30.0)[0] == 1
    assert warm_count(half, ONE_GB, 29.99)[0] == 0


def test_arrivals_between_and_beyond_the_levels() -> None:
    """Straight lines between the levels from (0, 0) on; beyond the last an exponential tail of the last slope."""
    d = demand(1.0, [10.0, 20.0], levels=np.array([0.5, 0.9]))
    assert [arrivals_at(d, np.array([level]))[0] for level in (0.0, 0.25, 0.5, 0.7, 0.9)] == [0, 5, 10, 15, 20]
    # From 0.5 to 0.9 the exceedance falls fivefold for 10 more arrivals; so it does from 0.9 to 0.98.
    assert arrivals_at(d, np.array([0.98]))[0] == 30


def test_peaks() -> None:
    """Peaks: one call is one; long calls all overlap; rare short ones hardly; unknown run times not at all."""

    def peak(arrivals: int, load: float) -> int:
        return int(peak_busy(np.array([arrivals]), np.array([load]))[0])

    assert [peak(n, 1.0) for n in (0, 1, 2, 3, 10, 100)] == [0, 1, 2, 3, 10, 100]
    assert peak(2, 0.01) == 1
    assert peak(1000, 0.0) == 1
    # 59.9 others on average and one of 600 looks higher: the Poisson quantile at 1 - 1/600 is 84.
    assert peak(600, 0.1) == 85


@given(st.integers(0, 10_000), st.floats(0, 3), st.integers(1, 200))
def test_a_peak_is_possible(arrivals: int, load: float, concurrency: int) -> None:
    """A peak is at least one per invocation at all, and within a step's run time at most all of them."""
    peak = peak_busy(np.array([arrivals]), np.array([load]))[0]
    assert min(arrivals, 1) <= peak <= np.ceil(arrivals * max(1.0, load))
    d = demand(1.0, [float(arrivals)] * len(LEVELS), duration_s=load * 60, concurrency=concurrency)
    assert containers_at(d, np.array([0.5]))[0] == -(-peak // concurrency)


def simulated_peak(arrivals: int, load: float, rng: np.random.Generator) -> int:
    """The most requests in progress at once, of `arrivals` uniform in a step after a step of the same."""
    times = rng.uniform(0, 1, arrivals)
    starts = np.concatenate([times, rng.uniform(-1, 0, arrivals)])
    run = rng.exponential(load, 2 * arrivals)
    return int(((starts[None, :] <= times[:, None]) & (starts + run > times[:, None])).sum(axis=1).max())


@pytest.mark.parametrize(("arrivals", "load"), [(5, 0.02), (20, 0.05), (60, 0.01), (200, 0.1), (400, 0.02)])
def test_peaks_against_simulation(arrivals: int, load: float) -> None:
    """The peak is within a request, or an eighth, of the median of simulated steps."""
    rng = np.random.default_rng(1)
    simulated = np.median([simulated_peak(arrivals, load, rng) for _ in range(200)])
    formula = peak_busy(np.array([arrivals]), np.array([load]))[0]
    assert abs(formula - simulated) <= max(1, simulated / 8)


@given(any_demand(), st.integers(0, 40))
def test_expected_idle_is_the_mean_over_quantiles(d: Demand, k: int) -> None:
    """E[(k-N)+] agrees with the mean over 4,000 quantiles of N, to the midpoint rule's error."""
    levels = (np.arange(4000) + 0.5) / 4000
    n = np.where(levels <= d.idle_in_rest[0], 0, np.maximum(containers_at_levels(d, levels), 1))
    coarse = expected_idle(d, np.array([k]), needed_when_active(d))[0]
    assert coarse == pytest.approx(np.maximum(k - n, 0).mean(), abs=0.05 * k + 1e-9)


def containers_at_levels(d: Demand, levels: Floats) -> Ints:
    """One function's quantiles of N at many levels."""
    return containers_at(d.rows(np.zeros(len(levels), np.int64)), levels)


@settings(max_examples=40)
@given(st.lists(st.tuples(any_demand(), memories), min_size=1, max_size=4), st.floats(0, 1e5))
def test_the_budget_is_met_from_below(fleet: list[tuple[Demand, float]], budget_mb: float) -> None:
    """At the price for a budget the expected idle memory is within it, and a bit above that price it is not."""
    ds = [d for d, _ in fleet]
    memory_gb = np.array([memory for _, memory in fleet])
    joined = Demand(
        active=np.concatenate([d.active for d in ds]),
        levels=LEVELS,
        quantiles=np.concatenate([d.quantiles for d in ds]),
        duration_s=np.concatenate([d.duration_s for d in ds]),
        concurrency=np.concatenate([d.concurrency for d in ds]),
        step_s=60.0,
    )

    def held_mb(price: float) -> float:
        count = wanted_count([joined], memory_gb, price)
        return float(expected_idle(joined, count, needed_when_active(joined)) @ memory_gb) * MB_PER_GB

    price = price_for_budget([joined], memory_gb, budget_mb, np.full(len(ds), 2**62))
    assert held_mb(price) <= budget_mb * (1 + 1e-9) + 1e-9
    if 0 < price < MAX_PRICE_GB_S:
        assert held_mb(price * 1.002) > budget_mb


def forecasts(active: list[float]) -> Forecasts:
    """One function's forecast as of 0 in steps of 60 s."""
    steps = len(active)
    return Forecasts(
        tick_id=1,
        as_of_ms=0,
        step_ms=60_000,
        levels=(0.5, 0.9),
        functions=(FunctionKey("s", "f"),),
        status=(ForecastStatus.OK,),
        quantiles=np.zeros((1, steps, 2), np.float32),
        active=np.array([active], np.float32),
        experts=("x",),
        weights=np.ones((1, 1), np.float32),
        age_ms=np.zeros(1, np.int64),
        model_version="1",
    )


@pytest.mark.parametrize(
    ("now_ms", "cover_s", "spans"),
    [
        (0, 10, [(0, 60)]),
        (15_000, 10, [(0, 45)]),
        (45_000, 15, [(0, 15)]),
        (45_000, 16, [(0, 15), (15, 60)]),
        (60_000, 10, [(0, 60)]),
        (130_000, 120, [(0, 50)]),  # the last step
        (180_000, 10, []),  # past the end
        (-5_000, 10, [(0, 60)]),  # the predictor's clock is ahead
    ],
)
def test_which_steps_are_looked_at(now_ms: int, cover_s: float, spans: list[tuple[float, float]]) -> None:
    """The steps that overlap [now, now + cover) are looked at, each from now on: (begin, length) in seconds."""
    found = demands(
        forecasts([0.1, 0.2, 0.3]), np.array([0]), np.array([1.0]), np.array([1]), np.array([cover_s]), now_ms
    )
    assert [(d.begins_s, round(d.held_s, 6)) for d in found] == spans


def test_each_function_looks_as_far_as_its_own_lead() -> None:
    """A slow starter looks into the next step, a fast one does not: the step is silent for it."""
    two = demands(
        forecasts([0.0, 1.0]),
        np.array([0, 0]),
        np.array([1.0, 1.0]),
        np.array([1, 1]),
        np.array([10.0, 40.0]),
        now_ms=30_000,
    )
    assert wanted_count(two, np.array([1.0, 1.0]), 80.5).tolist() == [0, 1]
