"""Containers that wait: what each is answered, and when; what becomes of the orders."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.openwhisk.beside_bus import HELLO, PLAIN
from e2e.openwhisk.beside_fpc import World, make_known_world
from mesp_plugin.openwhisk.fetches import NoCall
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.openwhisk.holds import Kept, Order, Stance, stance, verdict
from mesp_plugin.openwhisk.messages import is_marker_id

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await make_known_world(tmp_path)


# --- The rules ----------------------------------------------------------------------------------------------------------


def test_held_is_for_what_is_near() -> None:
    """Who has not opted in is held, whatever the forecast; who has is held only while a call is more likely than not."""
    assert stance(opted_in=False, likely=0.0) is stance(opted_in=False, likely=1.0) is Stance.HELD
    assert stance(opted_in=True, likely=0.49) is Stance.PAUSED
    assert stance(opted_in=True, likely=0.5) is Stance.READY


@given(
    initialised=st.booleans(),
    asked=st.booleans(),
    unwanted=st.booleans(),
    pause_ms=st.none() | st.integers(0, 100),
    has_queue=st.booleans(),
    now_ms=st.integers(0, 100),
)
def test_what_a_verdict_never_does(
    initialised: bool, asked: bool, unwanted: bool, pause_ms: int | None, has_queue: bool, now_ms: int
) -> None:
    """A container that waits is moved only where there is a queue, paused only in its time, and what is unwanted goes."""
    pause_ms = pause_ms if initialised else None
    kept = Kept("c", PLAIN, "invoker0", "0.0.1", 0, Order(), "m", initialised, asked, unwanted, pause_ms)
    answer = verdict(kept, has_queue=has_queue, now_ms=now_ms)
    if unwanted:
        assert answer is (NoCall.ACTION_MISMATCH if has_queue else NoCall.NO_QUEUE)
        return
    assert answer is not NoCall.ACTION_MISMATCH
    if answer is NoCall.NO_QUEUE:
        assert has_queue
        assert asked or initialised
    if answer is NoCall.NO_ACTIVATION:
        assert initialised
        assert pause_ms is not None
        assert pause_ms <= now_ms
    if has_queue and asked:
        assert answer is NoCall.NO_QUEUE


# --- Held, as it was recorded -------------------------------------------------------------------------------------------


async def test_a_first_fetch_is_held_until_the_leader_key_appears(world: World) -> None:
    """No marker, no user code; after 75 s it still waits (recording 13, mf); a call comes: it moves, and counts as met."""
    held = await world.held(PLAIN)
    await world.look(75_000)
    assert not held.done()
    assert world.states() == [HoldingState.HELD]
    call = world.call(PLAIN)
    world.queue(PLAIN)
    await world.wait(0)
    assert held.result() is NoCall.NO_QUEUE
    await world.look(200)
    world.done(PLAIN, call, init_ms=25)  # the call itself initialises it
    seen = await world.look(10)
    assert (seen.calls, seen.cold) == (1, ())
    assert world.states() == [HoldingState.USED]


async def test_a_call_that_the_hand_over_did_not_serve_is_cold(world: World) -> None:
    """One container was handed over: of two calls that were initialised one met it."""
    await world.held(PLAIN)
    calls = [world.call(PLAIN), world.call(PLAIN)]
    world.queue(PLAIN)
    await world.look(500)
    for one in calls:
        world.done(PLAIN, one, init_ms=100)
    assert (await world.look(10)).cold == (PLAIN,)


async def test_a_call_long_before_a_hand_over_has_met_nothing(world: World) -> None:
    """It ran for half a minute, and what was handed over meanwhile was for another one."""
    long = world.call(PLAIN)
    await world.look(30_000)
    await world.held(PLAIN)
    short = world.call(PLAIN)
    world.queue(PLAIN)
    await world.look(500)
    world.done(PLAIN, long, init_ms=100)
    assert (await world.look(10)).cold == (PLAIN,)
    world.done(PLAIN, short, init_ms=100)
    assert (await world.look(10)).cold == ()


async def test_a_container_that_asks_again_is_held_on(world: World) -> None:
    """Over a new connection, and only later the old one's end is known: it still is let go when its time is over."""
    old = await world.held(PLAIN)
    new = await world.asks(PLAIN, "c1")
    old.cancel()
    await world.wait(0)
    assert not new.done()
    assert world.holds.kept.keys() == {"c1"}
    await world.look(world.config.expiry_ms)
    await world.look(10_000)
    assert new.result() is NoCall.NO_QUEUE
    assert world.holds.kept == {}


async def test_both_fetches_of_a_container_are_one_hand_over(world: World) -> None:
    """Asked twice, handed over twice, met once: of two calls that were initialised one was cold."""
    await world.held(PLAIN)
    await world.asks(PLAIN, "c1")
    calls = [world.call(PLAIN), world.call(PLAIN)]
    world.queue(PLAIN)
    await world.look(500)
    for one in calls:
        world.done(PLAIN, one, init_ms=100)
    assert (await world.look(10)).cold == (PLAIN,)


async def test_a_container_that_dies_before_its_key_came_is_forgotten(world: World) -> None:
    """It got its marker and was never heard of again: after two looks it is in no snapshot, and takes no place."""
    assert (await world.prewarm(HELLO)).count == 1
    marker = await world.asks(HELLO, "c1")
    assert isinstance(marker.result(), dict)
    assert [one.id for one in await world.containers(HELLO)] == ["c1"]
    for _ in range(3):
        await world.look(10_000)
    assert (await world.containers(HELLO), world.states()) == ([], [HoldingState.GONE])


async def test_long_after_a_hand_over_nothing_is_met(world: World) -> None:
    """What was handed over and not used is destroyed after 10 s: a later cold call is cold."""
    await world.held(PLAIN)
    world.queue(PLAIN)
    await world.look(10)
    await world.look(20_000)
    call = world.call(PLAIN)
    await world.look(500)
    world.done(PLAIN, call, init_ms=100)
    assert (await world.look(10)).cold == (PLAIN,)
    assert world.states() == [HoldingState.GONE]


async def test_all_that_are_held_move_at_once(world: World) -> None:
    """Three held, three calls at once (recording 11, te)."""
    held = [await world.held(PLAIN, name) for name in ("c1", "c2", "c3")]
    world.queue(PLAIN)
    await world.wait(0)
    assert [one.result() for one in held] == [NoCall.NO_QUEUE] * 3


async def test_another_functions_queue_moves_nothing(world: World) -> None:
    """Whose leader key it is, counts."""
    held = await world.held(PLAIN)
    world.queue(HELLO)
    world.creating(HELLO)
    await world.wait(0)
    assert not held.done()


async def test_beside_a_live_queue_it_is_held_until_the_scheduler_wants_one(world: World) -> None:
    """A queue alone is no call: moved without need it would die after 10 s. An order of the scheduler is one."""
    world.queue(PLAIN)
    held = await world.held(PLAIN)
    assert not held.done()
    world.creating(PLAIN)
    await world.wait(0)
    assert held.result() is NoCall.NO_QUEUE


async def test_a_call_may_have_come_before_the_container(world: World) -> None:
    """The scheduler waits for one of its own while ours comes up: it is handed over at its first fetch."""
    await world.prewarm(PLAIN)
    world.queue(PLAIN)
    world.creating(PLAIN)
    assert (await world.asks(PLAIN, "c1")).result() is NoCall.NO_QUEUE


async def test_a_queue_that_went_again_destroys_nothing(world: World) -> None:
    """The leader came and went while nobody was answered: the container waits for the next one."""
    await world.prewarm(PLAIN)
    world.queue(PLAIN)
    world.no_queue(PLAIN)
    held = await world.asks(PLAIN, "c1")
    assert not held.done()
    world.queue(PLAIN)
    await world.wait(0)
    assert held.result() is NoCall.NO_QUEUE


# --- With a marker --------------------------------------------------------------------------------------------------------


async def test_marker_then_pause_then_the_warmed_key(world: World) -> None:
    """Recording 01: the call that does no work; no answer for 10.5 s; NoActivationMessage; paused, and still ours."""
    marker = (await world.held(HELLO)).result()
    assert isinstance(marker, dict)
    activation_id = marker["activationId"]
    assert isinstance(activation_id, str)
    assert is_marker_id(activation_id)
    second = await world.asks(HELLO, "c1", warmed=True)
    await world.wait(10_499)
    assert not second.done()
    await world.wait(1)
    assert second.result() is NoCall.NO_ACTIVATION
    key = world.paused(world.container(HELLO, "c1"))
    await world.look(10)
    [container] = await world.containers(HELLO)
    assert (container.state.name, container.owned) == ("PAUSED", True)
    assert world.holdings.all()[0].activation_id == activation_id
    world.resumed(key)  # a scheduler takes it for a call
    await world.look(10)
    assert world.states() == [HoldingState.USED]


async def test_a_near_call_is_waited_for_with_an_initialised_container(world: World) -> None:
    """More likely than not: held for `hold_s` after the marker, then paused."""
    await world.prewarm(HELLO, likely=0.9)
    await world.asks(HELLO, "c1")
    second = await world.asks(HELLO, "c1", warmed=True)
    await world.wait(59_999)
    assert not second.done()
    await world.wait(1)
    assert second.result() is NoCall.NO_ACTIVATION


async def test_an_initialised_one_moves_when_a_call_asks(world: World) -> None:
    """Recording 04, ab: the call meets it at once, and its end tells that it did."""
    await world.held(HELLO)
    second = await world.asks(HELLO, "c1", warmed=True)
    call = world.call(HELLO)
    world.queue(HELLO)
    await world.wait(0)
    assert second.result() is NoCall.NO_QUEUE
    await world.look(200)
    world.done(HELLO, call, init_ms=0)
    seen = await world.look(10)
    assert (seen.calls, seen.cold) == (1, ())
    assert world.states() == [HoldingState.USED]


async def test_of_two_that_move_for_one_call_one_is_met(world: World) -> None:
    """Both are handed over when the queue comes; the other one is the platform's, and nobody met it."""
    for one in ("c1", "c2"):
        await world.held(HELLO, one)
        await world.asks(HELLO, one, warmed=True)
    call = world.call(HELLO)
    world.queue(HELLO)
    await world.look(200)
    world.done(HELLO, call, init_ms=0)
    await world.look(10)
    assert world.states() == [HoldingState.USED, HoldingState.GONE]


async def test_a_call_during_the_marker_run(world: World) -> None:
    """Recording 04, af: it is handed over as soon as the run ends."""
    await world.held(HELLO)
    world.queue(HELLO)
    assert (await world.asks(HELLO, "c1", warmed=True)).result() is NoCall.NO_QUEUE


async def test_a_call_that_waits_goes_before_the_marker(world: World) -> None:
    """A container that is asked for already runs the call, not the marker."""
    await world.prewarm(HELLO)
    world.queue(HELLO)
    world.creating(HELLO)
    assert (await world.asks(HELLO, "c1")).result() is NoCall.NO_QUEUE


async def test_beside_a_live_queue_an_initialised_one_waits_there(world: World) -> None:
    """Recording 09, gb: moved after its marker; it pauses there, and is ours until a call takes it."""
    world.queue(HELLO)
    await world.held(HELLO)
    assert (await world.asks(HELLO, "c1", warmed=True)).result() is NoCall.NO_QUEUE
    assert world.states() == [HoldingState.HELD]
    await world.look(10_000)
    world.resumed(world.paused(world.container(HELLO, "c1")))
    assert world.states() == [HoldingState.USED]


async def test_a_container_that_cannot_pause_yet_is_not_answered_at_once(world: World) -> None:
    """It asks again at once after NoActivationMessage: a second between answers, not a thousand a second."""
    await world.held(HELLO)
    second = await world.asks(HELLO, "c1", warmed=True)
    await world.wait(10_500)
    assert second.done()
    third = await world.asks(HELLO, "c1", warmed=True)
    await world.wait(999)
    assert not third.done()
    await world.wait(1)
    assert third.result() is NoCall.NO_ACTIVATION


# --- What goes wrong --------------------------------------------------------------------------------------------------------


async def test_a_stranger_is_told_that_there_is_no_queue(world: World) -> None:
    """Nobody ordered it here: it goes to the real queue, if there is one."""
    assert (await world.asks(PLAIN, "stranger")).result() is NoCall.NO_QUEUE


async def test_a_farewell_is_answered_at_once(world: World) -> None:
    """Its container goes, whatever it is told."""
    await world.held(PLAIN)
    assert (await world.asks(PLAIN, "c1", alive=False)).result() is NoCall.NO_ACTIVATION
    assert world.holds.kept == {}


async def test_a_container_that_dies_in_the_hold_is_gone(world: World) -> None:
    """Its caller hangs up, its key goes: two looks later the order is over."""
    held = await world.held(PLAIN)
    held.cancel()
    with suppress(asyncio.CancelledError):
        await held
    world.delete(world.container(PLAIN, "c1"))
    await world.look(10_000)
    assert world.states() == [HoldingState.HELD]
    await world.look(10_000)
    assert world.states() == [HoldingState.GONE]


async def test_a_container_that_dies_in_its_marker_run_is_gone(world: World) -> None:
    """Its key goes, and it never asks again."""
    await world.held(HELLO)
    world.delete(world.container(HELLO, "c1"))
    await world.look(10_000)
    await world.look(10_000)
    assert world.states() == [HoldingState.GONE]


async def test_a_paused_one_shows_nowhere_for_a_moment(world: World) -> None:
    """80 ms pass between its keys when a scheduler takes it: it was used, and is not gone."""
    await world.held(HELLO)
    key = world.paused(world.container(HELLO, "c1"))
    world.delete(key)
    await world.look(40)
    assert world.states() == [HoldingState.HELD]
    world.container(HELLO, "c1")
    await world.look(40)
    assert world.states() == [HoldingState.USED]


async def test_each_container_answers_one_order_on_its_node(world: World) -> None:
    """Two orders on two invokers: the container of invoker1 is not taken for that of invoker0."""
    world.invoker(1)
    await world.prewarm(PLAIN, node="invoker0")
    await world.prewarm(PLAIN, node="invoker1")
    world.container(PLAIN, "c1", number=1)
    await world.asks(PLAIN, "c1")
    assert [(item.node, item.container_id) for item in world.holdings.alive()] == [
        ("invoker0", None),
        ("invoker1", "c1"),
    ]
    await world.asks(PLAIN, "c0")  # its key is not there yet
    assert [item.container_id for item in world.holdings.alive()] == ["c0", "c1"]
    await world.asks(PLAIN, "c0")  # the same one asks again
    assert (await world.asks(PLAIN, "c2")).result() is NoCall.NO_QUEUE
