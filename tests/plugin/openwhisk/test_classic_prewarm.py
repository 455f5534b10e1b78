"""What the classic driver adds: markers, to whom, where and how many; and what becomes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from e2e.openwhisk.beside_bus import (
    HELLO,
    PLAIN,
    SECRET,
    UUID,
    World,
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


async def test_the_operators_rule_reaches_other_namespaces(tmp_path: Path) -> None:
    """Where the API shows nothing to this key, the operator's pattern counts, once a call told who calls it."""
    world, other = make_world(tmp_path, opt_in={"functions": ["other/*"]}), FunctionKey("other", "thing")
    await world.look(10)
    assert "no call of it was seen yet" in ((await world.prewarm(other)).refused or "")
    activation_id = world.call(other)
    await world.look(100)
    world.done(other, activation_id, init_ms=50)
    await world.look(100)
    assert (await world.prewarm(other)).count == 1
    assert {message["user"]["namespace"]["name"] for message in world.markers()} == {"other"}


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


async def test_unless_wanted_nothing_is_removed_early_which_is_said(world: World) -> None:
    """Once for a container; and how many are left."""
    await world.look(10)
    await world.prewarm(HELLO)
    release = Release(HELLO, "invoker0/guest/hello#1", "invoker0", "because")
    said = [(await world.driver.release(release, world.now_ms)).refused for _ in "12"]
    assert said == ["invoker0/guest/hello#1: classic cannot remove a container early, it goes by itself", None]
    left = (await world.driver.release_all(world.now_ms)).refused
    assert left == "classic cannot remove containers early: 1 go by themselves in 610 s"
