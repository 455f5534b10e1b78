"""The classic driver: what it makes of the bus, what it adds, and what it leaves alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from e2e.openwhisk.beside_bus import (
    BEGIN_MS,
    HELLO,
    PLAIN,
    SECRET,
    UUID,
    Json,
    World,
    call_message,
    event,
    invoker,
    make_world,
    record,
)
from mesp.types import FunctionKey
from mesp_placement.model import ContainerState, Release
from mesp_plugin.openwhisk.balancer import preferred_nodes
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.openwhisk.messages import is_marker_id, parse_activation

if TYPE_CHECKING:
    from pathlib import Path

MINUTE_MS = 60_000


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """One look has been taken."""
    world = make_world(tmp_path)
    await world.look()
    return world


def states(world: World) -> list[HoldingState]:
    return [item.state for item in world.holdings.all()]


async def warm(world: World, function: FunctionKey, count: int = 1) -> None:
    """`count` calls at once, each of which has a container made."""
    ids = [world.call(function) for _ in range(count)]
    await world.look(500)
    for activation_id in ids:
        world.done(function, activation_id, init_ms=120)
    await world.look(100)


# --- Seeing -----------------------------------------------------------------------------------------------------------


async def test_a_call_counts_once_when_it_is_admitted(world: World) -> None:
    """Delivered twice it is one arrival; markers, health checks and ends are none."""
    first = world.call(HELLO)
    world.bus.say("invoker0", call_message(HELLO, first, world.now_ms), world.now_ms)
    test = FunctionKey("whisk.system", "invokerHealthTestAction0")
    world.bus.say("invoker0", call_message(test, f"{77:032x}", world.now_ms), world.now_ms)
    world.call(HELLO, content={"__ow_prewarm": {}})
    await world.look(1_000)
    world.done(HELLO, first, init_ms=100)
    seen = await world.look(MINUTE_MS)
    assert [(step.step_start_ms, step.counts) for step in seen.steps] == [(BEGIN_MS, {HELLO: 1})]
    assert (seen.calls, seen.cold) == (1, (HELLO,))


async def test_every_namespace_is_counted(world: World) -> None:
    """The bus shows all; another's function counts, and is never acted on unless the operator says so."""
    other = FunctionKey("other", "thing")
    world.call(other)
    seen = await world.look(MINUTE_MS)
    assert seen.steps[0].counts == {other: 1}
    profiles = {one.function: one.enabled for one in (await world.driver.snapshot(world.now_ms)).profiles}
    assert profiles == {HELLO: True, PLAIN: False, other: False}


async def test_the_first_step_is_not_complete(tmp_path: Path) -> None:
    """Reading began inside it."""
    world = make_world(tmp_path)
    world.bus.since_ms = BEGIN_MS + 20_000
    await world.look(30_000)
    steps = (await world.look(2 * MINUTE_MS)).steps
    assert [(step.step_start_ms, step.complete, step.source) for step in steps] == [
        (BEGIN_MS, False, "openwhisk-mesp"),
        (BEGIN_MS + MINUTE_MS, True, "openwhisk-mesp"),
    ]


async def test_an_event_tells_of_a_call_that_nobody_waited_for(world: World) -> None:
    """A non-blocking call's ack has no record: where user events are on, they say whether it was cold."""
    told, silent = world.call(HELLO, blocking=False), world.call(PLAIN, blocking=False)
    await world.look(500)
    for function, activation_id in ((HELLO, told), (PLAIN, silent)):
        world.done(function, activation_id, told=False)
    world.bus.say("events", event(HELLO, told, world.now_ms, init_ms=0), world.now_ms)
    seen = await world.look(1_000)
    assert (seen.calls, seen.cold) == (1, ())  # warm, though believed cold
    seen = await world.look(20_000)
    assert (seen.calls, seen.cold) == (1, (PLAIN,))  # of the other, belief is all there is


async def test_an_ack_may_come_before_its_call(world: World) -> None:
    """From two topics they may be read in either order."""
    early = f"{99:032x}"
    world.done(HELLO, early, init_ms=120)
    await world.look(5)
    world.bus.say("invoker0", call_message(HELLO, early, world.now_ms), world.now_ms)
    seen = await world.look(5)
    assert (seen.calls, seen.cold) == (1, (HELLO,))
    assert [one.state for one in await world.containers(HELLO)] == [ContainerState.IDLE]


async def test_a_container_is_busy_ready_paused_and_gone(world: World) -> None:
    """From its call to its ack; for 10 s after it; for 10 minutes more."""
    activation_id = world.call(HELLO)
    await world.look(100)
    assert [one.state for one in await world.containers(HELLO)] == [ContainerState.BUSY]
    world.done(HELLO, activation_id, init_ms=90)
    await world.look(100)
    found = []
    for wait_ms in (9_000, 2_000, 590_000, 9_000):
        world.now_ms += wait_ms
        world.ping()
        await world.look()
        found.append([one.state for one in await world.containers(HELLO)])
    assert found == [[ContainerState.IDLE], [ContainerState.PAUSED], [ContainerState.PAUSED], []]


async def test_a_cold_run_proves_that_nothing_was_idle(world: World) -> None:
    """Two containers were believed idle; the next call is cold: they had gone, and one is there."""
    await warm(world, HELLO, 2)
    activation_id = world.call(HELLO)
    await world.look(500)
    world.done(HELLO, activation_id, init_ms=120)
    seen = await world.look(10)
    assert seen.cold == (HELLO,)
    assert len(await world.containers(HELLO)) == 1


async def test_the_longest_unused_goes_when_room_is_short(world: World) -> None:
    """Four of 256 MB fill the invoker: a fifth function takes the oldest one's place, and one more call must wait."""
    for number in range(4):
        await warm(world, FunctionKey("guest", f"f{number}"))
    world.ping()
    ids = [world.call(PLAIN) for _ in range(5)]
    await world.look(10)
    snapshot = await world.driver.snapshot(world.now_ms)
    assert [one.function for one in snapshot.containers] == [PLAIN] * 4
    refused = (await world.prewarm(HELLO)).refused
    assert refused == "guest/hello: no call of it was seen yet" or (refused and "1 calls wait for room" in refused)
    world.done(PLAIN, ids[0], init_ms=100)
    await world.look(10)
    assert sum(one.state is ContainerState.BUSY for one in await world.containers(PLAIN)) == 4


async def test_an_invoker_without_pings_is_offline(world: World) -> None:
    """After 10 s it takes nothing, and what it held is lost; one that says so is disabled at once."""
    await warm(world, HELLO)
    world.ping(1, enabled=False)
    await world.look(9_000)
    nodes = (await world.driver.snapshot(world.now_ms)).nodes
    assert [(node.name, node.schedulable) for node in nodes] == [("invoker0", True), ("invoker1", False)]
    await world.look(3_000)
    snapshot = await world.driver.snapshot(world.now_ms)
    assert not any(node.schedulable for node in snapshot.nodes)
    assert snapshot.containers == ()
    assert "offline" in ((await world.prewarm(HELLO)).refused or "")


async def test_nodes_are_preferred_in_the_balancers_order(world: World) -> None:
    """Home and spill, of the invokers that ever registered."""
    for number in range(5):
        world.ping(number)
    await world.look(10)
    snapshot = await world.driver.snapshot(world.now_ms)
    names = [f"invoker{number}" for number in range(5)]
    assert [node.name for node in snapshot.nodes] == names
    profile = next(one for one in snapshot.profiles if one.function == HELLO)
    assert profile.preferred_nodes == preferred_nodes("guest", "guest/hello", names)


# --- Acting -----------------------------------------------------------------------------------------------------------


async def test_a_marker_is_the_last_call_without_key_and_parameters(world: World) -> None:
    """It parses as the invoker reads it, asks for no work, names our own topic and no revision, and holds no secret."""
    await warm(world, HELLO)
    assert (await world.prewarm(HELLO)).count == 1
    topics, messages = zip(*world.bus.sent, strict=True)
    assert set(topics) == {"invoker0"}
    for message in messages:
        parsed = parse_activation(json.dumps(message))
        assert parsed.is_marker
        assert is_marker_id(parsed.activation_id)
        assert (parsed.function, parsed.revision, parsed.controller) == (HELLO, None, "mesp")
        assert parsed.caller.subject == "guest-subject"
        assert SECRET not in json.dumps(message)
        assert "__ow_prewarm" in message["content"]


async def test_as_many_markers_as_are_idle_and_wanted(world: World) -> None:
    """Two are idle, two more are wanted: four go out, and the acks tell which of them made containers."""
    await warm(world, HELLO, 2)
    assert (await world.prewarm(HELLO, 2)).count == 2
    assert len(world.markers()) == 4
    creating = [one for one in await world.containers(HELLO) if one.state is ContainerState.CREATING]
    assert [one.owned for one in creating] == [True, True]
    await world.look(400)
    world.answer(cold=2)
    await world.look(10)
    assert sorted(states(world)) == [HoldingState.HELD] * 2 + [HoldingState.REUSED] * 2
    assert [one.owned for one in await world.containers(HELLO)] == [False, False, True, True]


async def test_what_a_call_meets_is_no_longer_ours(world: World) -> None:
    """The first call after a marker is warm: used, and not taken back."""
    assert (await world.prewarm(HELLO)).count == 1
    await world.look(400)
    world.answer(cold=1)
    await world.look(10)
    activation_id = world.call(HELLO)
    await world.look(50)
    world.done(HELLO, activation_id)
    seen = await world.look(10)
    assert (seen.cold, states(world)) == ((), [HoldingState.USED])
    assert [one.owned for one in await world.containers(HELLO)] == [False]


async def test_a_call_that_was_cold_has_met_nothing(world: World) -> None:
    """The container of ours that it was believed to take had gone."""
    await world.prewarm(HELLO)
    await world.look(400)
    world.answer(cold=1)
    await world.look(10)
    activation_id = world.call(HELLO)
    await world.look(500)
    world.done(HELLO, activation_id, init_ms=130)
    seen = await world.look(10)
    assert (seen.cold, states(world)) == ((HELLO,), [HoldingState.GONE])


async def test_before_any_call_the_namespace_itself_is_the_caller(world: World) -> None:
    """REST tells enough for an action of one's own, unless /init needs parameters, or the function is another's."""
    await world.look(10)
    assert (await world.prewarm(HELLO)).count == 1
    user = world.markers()[0]["user"]
    assert (user["subject"], user["namespace"]) == ("guest", {"name": "guest", "uuid": UUID})
    assert user["authkey"] == {"api_key": "none:none"}


async def test_what_init_needs_is_repeated_or_nothing_is_done(world: World) -> None:
    """Without a call: refused. With one: its content of that revision. Once the action needs more: refused again."""
    needs = [{"key": "token", "value": "x", "init": True}]
    world.api.put("hello", annotations={"mesp-prewarm": True}, parameters=needs, updated=100)
    await world.look(10)
    assert "only a call brings" in ((await world.prewarm(HELLO)).refused or "")
    world.call(HELLO, content={"token": "t0", "password": SECRET}, initArgs=["token"])
    await world.look(10)
    assert (await world.prewarm(HELLO)).count == 1
    sent = world.markers()[0]
    assert (sent["content"]["token"], sent["initArgs"], sent["revision"]) == ("t0", ["token"], "1-aa")
    assert "password" not in sent["content"]
    needs = [*needs, {"key": "url", "value": "x", "init": True}]
    world.api.put("hello", annotations={"mesp-prewarm": True}, parameters=needs, updated=101)
    await world.look(10)
    assert "its last call did not bring" in ((await world.prewarm(HELLO)).refused or "")


async def test_nobody_is_sent_a_marker_who_did_not_opt_in(world: World) -> None:
    """Neither an action without the annotation, nor another namespace's, nor one that has just opted out."""
    other = FunctionKey("other", "thing")
    world.call(other)
    await world.look(10)
    for function in (PLAIN, other, FunctionKey("guest", "unknown")):
        assert "has not opted in" in ((await world.prewarm(function)).refused or "")
    world.api.put("hello", annotations={"mesp-prewarm": False}, updated=200)
    world.now_ms += 10
    assert "has not opted in" in ((await world.prewarm(HELLO)).refused or "")
    assert world.bus.sent == []


async def test_only_with_headroom(world: World) -> None:
    """Nothing goes for ours: three idle ones and one wanted fit, two do not; what was just ordered counts."""
    await warm(world, PLAIN, 3)
    world.ping()
    assert "no headroom on invoker0, 768 of 1024 MB" in ((await world.prewarm(HELLO, 2)).refused or "")
    assert (await world.prewarm(HELLO)).count == 1
    assert "no headroom on invoker0, 1024 of 1024 MB" in ((await world.prewarm(HELLO)).refused or "")


async def test_only_where_the_balancer_looks(world: World) -> None:
    """Never on the invoker for images that are pulled; farther along the way only once all before it are full of calls."""
    for number in range(11):
        world.ping(number)
    await world.look(10)
    route = preferred_nodes("guest", "guest/hello", [f"invoker{number}" for number in range(11)])
    assert "never looks for it on invoker10" in ((await world.prewarm(HELLO, node="invoker10")).refused or "")
    refused = (await world.prewarm(HELLO, node=route[1])).refused
    assert (
        refused == f"guest/hello: the balancer would not look for it on {route[1]}, for {route[0]} has room for calls"
    )
    for _ in range(4):
        world.call(PLAIN, int(route[0].removeprefix("invoker")))
    await world.look(10)
    assert (await world.prewarm(HELLO, node=route[1])).count == 1
    assert "would not look for it" in ((await world.prewarm(HELLO, node=route[2])).refused or "")


async def test_the_standby_watches(world: World) -> None:
    """It counts as the other does, and orders nothing."""
    world.bus.leads = False
    world.call(HELLO)
    await world.look(10)
    assert "standby" in ((await world.prewarm(HELLO)).refused or "")
    assert (await world.look(MINUTE_MS)).steps[0].counts == {HELLO: 1}
    assert world.holdings.all() == ()


async def test_a_marker_without_an_answer_is_given_up(world: World) -> None:
    """After a minute it stands for nothing, and is counted."""
    await world.look(10)
    await world.prewarm(HELLO)
    for _ in range(12):
        world.ping()
        await world.look(5_000)
    assert states(world) == [HoldingState.GONE]
    assert await world.containers(HELLO) == []
    assert world.metrics.unanswered._value.get() == 1


@pytest.mark.parametrize(("init_ms", "state"), [(120, HoldingState.HELD), (0, HoldingState.REUSED)])
async def test_an_ack_that_comes_after_a_restart_is_known(world: World, init_ms: int, state: HoldingState) -> None:
    """The new plugin did not see the marker, and knows it by its id and its own file."""
    await world.look(10)
    await world.prewarm(HELLO)
    await world.look(10)
    world.restart()
    world.done(HELLO, world.markers()[0]["activationId"], init_ms=init_ms, to="mesp")
    seen = await world.look(400)
    assert (states(world), seen.calls) == ([state], 0)


async def test_an_action_that_is_not_there_leaves_nothing(world: World) -> None:
    """A marker for an action that was deleted meanwhile: its record says kind unknown."""
    await world.look(10)
    await world.prewarm(HELLO)
    shown = record(HELLO, world.markers()[0]["activationId"], world.now_ms, status=1)
    shown["annotations"][2]["value"] = "unknown"
    combined = {"transid": ["tid", 1], "response": shown, "isSystemError": False, "instance": invoker()}
    world.bus.say("completedmesp", combined, world.now_ms)
    await world.look(10)
    assert (states(world), await world.containers(HELLO)) == ([HoldingState.GONE], [])


async def test_removing_early_is_not_possible_and_said_once(world: World) -> None:
    """Once for a container, once for all of them."""
    await world.look(10)
    await world.prewarm(HELLO)
    release = Release(HELLO, "invoker0/guest/hello#1", "invoker0", "because")
    said = [(await world.driver.release(release, world.now_ms)).refused for _ in "12"]
    assert said == ["invoker0/guest/hello#1: classic cannot remove a container early, it goes by itself", None]
    said = [(await world.driver.release_all(world.now_ms)).refused for _ in "12"]
    assert said == ["classic cannot remove containers early: 1 go by themselves in 610 s", None]


# --- What is malformed, and what is secret ----------------------------------------------------------------------------


def _mangled(message: Json) -> st.SearchStrategy[Json]:
    """The message with one member, at any depth, replaced or taken away."""

    def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [found for key, item in items for found in [(*path, key), *paths(item, (*path, key))]]

    def mangle(path: tuple[Any, ...], value: object, remove: bool) -> Json:
        found: Any = json.loads(json.dumps(message))
        at: Any = found
        for key in path[:-1]:
            at = at[key]
        if remove and isinstance(at, dict):
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return dict(found)

    values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.just([]), st.just({}))
    return st.builds(mangle, st.sampled_from(paths(message)), values, st.booleans())


_SOUND: dict[str, Json] = {
    "invoker0": call_message(HELLO, f"{5:032x}", BEGIN_MS),
    "completed0": {"transid": ["t", 1], "response": record(HELLO, f"{6:032x}", BEGIN_MS, init_ms=5)},
    "completedmesp": {"transid": ["t", 1], "activationId": f"{7:032x}", "isSystemError": False, "instance": invoker()},
    "health": {"name": invoker(), "isEnabled": True},
    "events": event(HELLO, f"{8:032x}", BEGIN_MS, 3),
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_message_brings_it_down(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Anything on any topic is taken, or skipped; what comes after it is read; no log holds a secret."""
    world = make_world(tmp_path_factory.mktemp("fuzz"))
    topic = data.draw(st.sampled_from(sorted(_SOUND)))
    raw = data.draw(
        st.one_of(st.binary(max_size=50), _mangled(_SOUND[topic]).map(lambda one: json.dumps(one).encode()))
    )
    with capture_logs() as logs:
        world.bus.say(topic, raw, world.now_ms)
        world.call(PLAIN)
        await world.look(100)
        snapshot = await world.driver.snapshot(world.now_ms)
        seen = await world.look(MINUTE_MS)
    assert seen.steps[0].counts[PLAIN] >= 1
    assert PLAIN in {one.function for one in snapshot.containers}
    assert SECRET not in str(logs)


async def test_malformed_messages_are_counted_and_told_in_one_line(world: World) -> None:
    """Three on three topics: one warning with the first reason, a metric, and no content."""
    no_args = call_message(HELLO, f"{5:032x}", BEGIN_MS)
    del no_args["initArgs"]
    world.bus.say("invoker0", no_args, world.now_ms)
    world.bus.say("health", SECRET.encode(), world.now_ms)
    world.bus.say("completed0", {"transid": SECRET}, world.now_ms)
    with capture_logs() as logs:
        await world.look(10)
    assert [(line["count"], line["first"]) for line in logs] == [
        (3, "invoker0: initArgs is missing, must be a list, each item a text")
    ]
    assert SECRET not in str(logs)
    assert world.metrics.malformed._value.get() == 3


async def test_no_secret_is_kept_or_shown(world: World) -> None:
    """Neither key nor parameters nor results are in anything that could be printed, or on disk."""
    world.call(HELLO, content={"token": SECRET}, initArgs=["token"])
    await world.look(10)
    await world.prewarm(HELLO)
    assert SECRET not in repr(world.driver._seen)
    assert SECRET not in repr(await world.bus.take(world.now_ms + 1))
    assert SECRET not in world.holdings_file.read_text()
