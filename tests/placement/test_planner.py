"""The decision on small fleets, with virtual time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesp.types import ForecastStatus, FunctionKey
from mesp_placement.config import PlacementConfig
from mesp_placement.model import Container, ContainerState, FunctionProfile, Node, PlannerState, Snapshot
from mesp_placement.planner import plan

if TYPE_CHECKING:
    from tests.placement.conftest import MakeForecasts

A = FunctionKey("s", "a")
NODES = (Node("n1", 4096), Node("n2", 4096))
#: The decision itself, without delay or headroom.
BARE = PlacementConfig(release_delay_s=0, headroom_share=0)


def profile(name: str = "a", **changes: Any) -> FunctionProfile:
    """A function of 1 GB whose calls run for a minute."""
    return replace(FunctionProfile(FunctionKey("s", name), memory_mb=1024, duration_ms=60_000), **changes)


def container(container_id: str, node: str = "n1", name: str = "a", **changes: Any) -> Container:
    """An idle container that MESP ordered."""
    bare = Container(container_id, FunctionKey("s", name), node, ContainerState.IDLE, 1024, 0, owned=True)
    return replace(bare, **changes)


def fleet(*items: FunctionProfile | Container, nodes: tuple[Node, ...] = NODES) -> Snapshot:
    """A snapshot of profiles and containers on `nodes`."""
    return Snapshot(
        nodes=nodes,
        containers=tuple(item for item in items if isinstance(item, Container)),
        profiles=tuple(item for item in items if isinstance(item, FunctionProfile)),
    )


def test_a_likely_function_is_warmed_and_says_why(forecasts_of: MakeForecasts) -> None:
    """At p = 0.5, 1 GB and 60 s a price of 80.5 GB·s is worth one container: 40.2 against 30 GB·s."""
    made, _ = plan(fleet(profile()), forecasts_of({"a": 0.5}), PlannerState(), 0, BARE)
    assert [(item.function, item.node, item.count) for item in made.prewarms] == [(A, "n1", 1)]
    assert made.prewarms[0].reason == (
        "1 wanted, 0 there: P(active 0 to 60 s from now) = 0.5 and the price 80.5 GB·s "
        "make a miss cost 40.2 GB·s against 30 GB·s idle"
    )
    assert made.cold_start_price_gb_s == 80.5


def test_an_unlikely_function_is_released_and_says_why(forecasts_of: MakeForecasts) -> None:
    """At p = 0.1 a container of MESP's own goes: 8.05 against 54 GB·s."""
    made, _ = plan(fleet(profile(), container("c1")), forecasts_of({"a": 0.1}), PlannerState(), 0, BARE)
    assert [(item.function, item.container_id, item.node) for item in made.releases] == [(A, "c1", "n1")]
    assert made.releases[0].reason == (
        "0 wanted, 1 there: P(active 0 to 60 s from now) = 0.1 and the price 80.5 GB·s "
        "make a miss cost 8.05 GB·s against 54 GB·s idle"
    )


def test_several_are_wanted_for_a_busy_function(forecasts_of: MakeForecasts) -> None:
    """Three calls of a minute each keep three containers busy; those there in any state count."""
    busy = container("c1", state=ContainerState.BUSY, idle_since_ms=None)
    creating = container("c2", "n2", state=ContainerState.CREATING, idle_since_ms=None)
    forecasts = forecasts_of({"a": 1.0}, counts={"a": 3})
    made, _ = plan(fleet(profile(), busy, creating), forecasts, PlannerState(), 0, BARE)
    assert sum(item.count for item in made.prewarms) == 1
    assert made.prewarms[0].reason == (
        "3 wanted, 2 there: the price 80.5 GB·s covers the 0.57 quantile 0 to 60 s from now, 3 calls a step, "
        "which at 60 s each keep 3 containers busy at once"
    )


@pytest.mark.parametrize(("owned", "release", "gone"), [(False, "own", 0), (False, "any", 1), (True, "own", 1)])
def test_only_what_mesp_added_is_taken_away(forecasts_of: MakeForecasts, owned: bool, release: str, gone: int) -> None:
    """The platform's own containers stay unless the operator says otherwise."""
    config = BARE.model_copy(update={"release": release})
    snapshot = fleet(profile(), container("c1", owned=owned))
    made, _ = plan(snapshot, forecasts_of({"a": 0.0}), PlannerState(), 0, config)
    assert len(made.releases) == gone


#: A price at which 1 GB breaks even after 30 s.
CHEAP = {"cold_start_price_gb_s": 30.0}


def test_surplus_is_held_to_the_break_even_while_the_function_is_wanted(forecasts_of: MakeForecasts) -> None:
    """1 GB at 30 GB·s: a second container goes once idle for 30 s, not before; where no call is expected, at once."""
    there = [container("c1", idle_since_ms=0), container("c2", idle_since_ms=0)]
    config = BARE.model_copy(update=CHEAP)
    expected = forecasts_of({"a": 1.0}, counts={"a": 1})
    for now_ms, released in ((29_000, 0), (30_000, 1)):
        made, _ = plan(fleet(profile(), *there), expected, PlannerState(), now_ms, config)
        assert len(made.releases) == released
    made, _ = plan(fleet(profile(), *there), forecasts_of({"a": 0.0}), PlannerState(), 1_000, config)
    assert len(made.releases) == 2


def test_the_longest_idle_go_first_and_the_wanted_stay(forecasts_of: MakeForecasts) -> None:
    """Of three idle containers where one is wanted, the two that idle longest go."""
    there = [container("c1", idle_since_ms=5), container("c2", idle_since_ms=9), container("c3", idle_since_ms=1)]
    forecasts = forecasts_of({"a": 1.0}, counts={"a": 1})
    made, _ = plan(fleet(profile(), *there), forecasts, PlannerState(), 59_000, BARE.model_copy(update=CHEAP))
    assert [item.container_id for item in made.releases] == ["c3", "c1"]


def test_a_disabled_function_is_never_touched(forecasts_of: MakeForecasts) -> None:
    """Neither a sure call, nor none, nor staleness, nor the memory ceiling moves a disabled function."""
    config = BARE.model_copy(update={"max_own_idle_memory_mb": 0.0, "release": "any"})
    snapshot = fleet(profile(enabled=False), container("c1"))
    for forecasts in (forecasts_of({"a": 1.0}, counts={"a": 5}), forecasts_of({"a": 0.0}), None):
        made, _ = plan(snapshot, forecasts, PlannerState(), 10_000_000, config)
        assert (made.prewarms, made.releases) == ((), ())


def test_bounds_hold_and_say_so(forecasts_of: MakeForecasts) -> None:
    """The profile's bound and the configuration's hold whatever the forecast asks for."""
    many, none = forecasts_of({"a": 1.0}, counts={"a": 9}), forecasts_of({"a": 0.0})
    made, _ = plan(fleet(profile(max_containers=2)), many, PlannerState(), 0, BARE)
    assert sum(item.count for item in made.prewarms) == 2
    assert made.prewarms[0].reason.endswith("but max_containers allows 2")
    made, _ = plan(fleet(profile()), none, PlannerState(), 0, BARE.model_copy(update={"min_containers": 1}))
    assert made.prewarms[0].reason == "1 wanted, 0 there: the price asks for 0 and min_containers for 1"
    bounded = BARE.model_copy(update={"min_containers": 3})
    made, _ = plan(fleet(profile(max_containers=2)), none, PlannerState(), 0, bounded)
    assert sum(item.count for item in made.prewarms) == 2


def test_home_first_then_down_the_order(forecasts_of: MakeForecasts) -> None:
    """Containers fill the platform's first choice, then its second."""
    forecasts = forecasts_of({"a": 1.0}, counts={"a": 6})
    made, _ = plan(fleet(profile(preferred_nodes=("n2", "n1"))), forecasts, PlannerState(), 0, BARE)
    assert [(item.node, item.count) for item in made.prewarms] == [("n2", 4), ("n1", 2)]


def test_nowhere_but_in_the_order(forecasts_of: MakeForecasts) -> None:
    """What does not fit where calls go is not made elsewhere, where nobody would find it."""
    forecasts = forecasts_of({"a": 1.0}, counts={"a": 6})
    made, _ = plan(fleet(profile(preferred_nodes=("n2",))), forecasts, PlannerState(), 0, BARE)
    assert [(item.node, item.count) for item in made.prewarms] == [("n2", 4)]


@pytest.mark.parametrize(("placement", "nodes"), [("pack", [("n1", 4)]), ("spread", [("n1", 2), ("n2", 2)])])
def test_pack_or_spread(forecasts_of: MakeForecasts, placement: str, nodes: list[tuple[str, int]]) -> None:
    """Packing fills one node, spreading shares between two."""
    config = BARE.model_copy(update={"placement": placement})
    made, _ = plan(fleet(profile()), forecasts_of({"a": 1.0}, counts={"a": 4}), PlannerState(), 0, config)
    assert [(item.node, item.count) for item in made.prewarms] == nodes


def test_scarce_memory_goes_to_the_most_valuable_per_gb(forecasts_of: MakeForecasts) -> None:
    """Of two functions with room for one, the one that gains more per GB gets it."""
    snapshot = fleet(profile("a"), profile("b"), nodes=(Node("n1", 1536), Node("n2", 9000, schedulable=False)))
    made, _ = plan(snapshot, forecasts_of({"a": 0.6, "b": 0.9}), PlannerState(), 0, BARE)
    assert [item.function.name for item in made.prewarms] == ["b"]


def test_without_forecasts_what_mesp_holds_runs_out(forecasts_of: MakeForecasts) -> None:
    """The predictor dies after minute 1: nothing is warmed, and after 180 s MESP's own containers go, others stay."""
    there = (container("c1", idle_since_ms=200_000), container("c2", owned=False))
    _, state = plan(fleet(profile()), forecasts_of({"a": 1.0}, as_of_ms=60_000), PlannerState(), 65_000, BARE)
    assert state.last_forecast_ms == 60_000
    diary = []
    for now_ms in (120_000, 239_999, 240_000):
        made, state = plan(fleet(profile(), *there), None, state, now_ms, BARE)
        assert made.prewarms == ()
        diary.append([item.container_id for item in made.releases])
    assert diary == [[], [], ["c1"]]


@pytest.mark.parametrize("as_of_ms", [0, 820_000, 821_000])
def test_old_forecasts_are_none(forecasts_of: MakeForecasts, as_of_ms: int) -> None:
    """Forecasts older than 180 s warm nothing, younger ones do."""
    made, _ = plan(fleet(profile()), forecasts_of({"a": 1.0}, as_of_ms=as_of_ms), PlannerState(), 1_000_000, BARE)
    assert bool(made.prewarms) == (as_of_ms > 820_000)


def test_a_forgotten_state_still_runs_out() -> None:
    """With no memory of a forecast, the time counts from when a container went idle."""
    snapshot = fleet(profile(), container("c1", idle_since_ms=100_000))
    assert plan(snapshot, None, PlannerState(), 279_999, BARE)[0].releases == ()
    assert len(plan(snapshot, None, PlannerState(), 280_000, BARE)[0].releases) == 1


def test_a_function_without_forecast_runs_out_alone(forecasts_of: MakeForecasts) -> None:
    """Fresh forecasts that do not know a function (or refuse it) leave it to run out, and warm nothing of it."""
    snapshot = fleet(profile("a"), profile("b"), container("c1", name="b", idle_since_ms=0))
    for forecasts in (
        forecasts_of({"a": 0.0}, as_of_ms=180_000),
        forecasts_of({"b": 1.0}, as_of_ms=180_000, status=ForecastStatus.UNKNOWN_FUNCTION),
    ):
        made, _ = plan(snapshot, forecasts, PlannerState(), 180_000, BARE)
        assert [item.container_id for item in made.releases] == ["c1"]
        assert made.prewarms == ()


def test_the_memory_ceiling_holds_without_a_predictor() -> None:
    """With no forecasts at all, MESP's own idle memory is brought under the ceiling at once."""
    config = PlacementConfig(max_own_idle_memory_mb=1500)
    there = [container(f"c{i}", idle_since_ms=i) for i in range(3)]
    made, _ = plan(fleet(profile(), *there), None, PlannerState(last_forecast_ms=5), 10, config)
    assert [item.container_id for item in made.releases] == ["c0", "c1"]


def test_a_budget_sets_the_price(forecasts_of: MakeForecasts) -> None:
    """A budget of 600 MB is spent on the likelier function (0.5 GB idle), not on both (1.1 GB)."""
    config = PlacementConfig(memory_budget_mb=600)
    made, _ = plan(fleet(profile("a"), profile("b")), forecasts_of({"a": 0.5, "b": 0.4}), PlannerState(), 0, config)
    assert [item.function.name for item in made.prewarms] == ["a"]
    # b becomes worth having at 60 GB·s * 0.6 / 0.4.
    assert made.cold_start_price_gb_s == pytest.approx(90, rel=0.002)


def test_what_makes_no_sense_is_named(forecasts_of: MakeForecasts) -> None:
    """Unknown nodes and functions, doubles and zeros are errors of their item; the rest of the plan is made."""
    snapshot = Snapshot(
        nodes=(*NODES, Node("n1", 1), Node("n0", 0)),
        containers=(container("c1", "lost"), container("c2", name="ghost"), container("c3"), container("c3")),
        profiles=(profile(), profile(), profile("b", preferred_nodes=("nowhere", "n2")), profile("zero", memory_mb=0)),
    )
    made, _ = plan(snapshot, forecasts_of({"a": 0.0, "b": 1.0, "zero": 1.0}), PlannerState(), 0, BARE)
    assert made.errors == (
        "node 'n1' is listed 2 times: only the first counts",
        "function 's/a' is listed 2 times: only the first counts",
        "container 'c3' is listed 2 times: only the first counts",
        "node 'n0': memory_mb = 0, must be positive; the node is left out",
        "function 's/b' prefers unknown node 'nowhere': list it in nodes",
        "function 's/zero': memory_mb = 0 and concurrency = 1, both must be positive; the function is left out",
        "container 'c1' is on unknown node 'lost': list it in nodes",
        "container 'c2' is of unknown function 's/ghost': list it in profiles",
    )
    assert [item.function.name for item in made.prewarms] == ["b"]
    assert [item.container_id for item in made.releases] == ["c3"]


names = st.sampled_from("abc")
node_names = st.sampled_from(["n1", "n2", "n3"])
any_container = st.builds(
    Container,
    id=st.integers(0, 20).map(str),
    function=names.map(lambda name: FunctionKey("s", name)),
    node=node_names,
    state=st.sampled_from(ContainerState),
    memory_mb=st.floats(0, 2000),
    idle_since_ms=st.none() | st.integers(0, 400_000),
    owned=st.booleans(),
)
any_profile = st.builds(
    FunctionProfile,
    function=names.map(lambda name: FunctionKey("s", name)),
    memory_mb=st.floats(0, 2000),
    concurrency=st.integers(0, 3),
    duration_ms=st.floats(0, 1e6),
    lead_ms=st.floats(0, 1e6),
    max_containers=st.none() | st.integers(0, 5),
    preferred_nodes=st.lists(node_names, max_size=3).map(tuple),
    enabled=st.booleans(),
)
any_snapshot = st.builds(
    Snapshot,
    nodes=st.lists(st.builds(Node, node_names, st.floats(0, 9000), st.floats(0, 9000), st.booleans()), max_size=4).map(
        tuple
    ),
    containers=st.lists(any_container, max_size=8).map(tuple),
    profiles=st.lists(any_profile, max_size=4).map(tuple),
)
any_config = st.builds(
    PlacementConfig,
    memory_budget_mb=st.none() | st.floats(0, 1e4),
    release=st.sampled_from(["own", "any"]),
    placement=st.sampled_from(["pack", "spread"]),
    min_containers=st.integers(0, 2),
    max_containers=st.none() | st.integers(2, 4),
    max_own_idle_memory_mb=st.none() | st.floats(0, 5000),
    release_delay_s=st.sampled_from([0.0, 20.0]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    any_snapshot,
    any_config,
    st.dictionaries(names, st.floats(0, 1, width=32), max_size=3),
    st.floats(0, 50, width=32),
    st.integers(0, 400_000),
)
def test_no_plan_breaks_its_promises(
    forecasts_of: MakeForecasts,
    snapshot: Snapshot,
    config: PlacementConfig,
    active: dict[str, float],
    count: float,
    now_ms: int,
) -> None:
    """Whatever the snapshot, the plan fits its nodes, touches no disabled function and releases only what it may."""
    forecasts = forecasts_of(active, as_of_ms=100_000, counts=dict.fromkeys(active, count)) if active else None
    made, _ = plan(snapshot, forecasts, PlannerState(), now_ms, config)
    nodes = {node.name: node for node in reversed(snapshot.nodes)}
    profiles = {p.function: p for p in reversed(snapshot.profiles) if p.memory_mb > 0 and p.concurrency > 0}
    containers = {c.id: c for c in reversed(snapshot.containers)}
    added_mb = dict.fromkeys(nodes, 0.0)
    for prewarm in made.prewarms:
        assert profiles[prewarm.function].enabled
        assert nodes[prewarm.node].schedulable
        added_mb[prewarm.node] += prewarm.count * profiles[prewarm.function].memory_mb
    for name, more_mb in added_mb.items():
        there_mb = sum(c.memory_mb for c in containers.values() if c.node == name) + nodes[name].other_memory_mb
        assert more_mb == 0 or there_mb + more_mb <= nodes[name].memory_mb * 0.9 + 1e-6
    for release in made.releases:
        victim = containers[release.container_id]
        assert profiles[victim.function].enabled
        assert victim.owned or config.release == "any"
        assert victim.state in {ContainerState.IDLE, ContainerState.PAUSED}
    assert len({release.container_id for release in made.releases}) == len(made.releases)
    if config.max_own_idle_memory_mb is not None and made.prewarms:
        waiting_mb = sum(prewarm.count * profiles[prewarm.function].memory_mb for prewarm in made.prewarms)
        assert waiting_mb <= config.max_own_idle_memory_mb + 1e-6
    assert np.isfinite(made.cold_start_price_gb_s)
