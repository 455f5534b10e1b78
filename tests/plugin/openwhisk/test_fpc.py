"""The FPC driver: what it sees, orders, and takes back; what it does where something goes wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from e2e.openwhisk.beside_bus import BEGIN_MS, HELLO, PLAIN, SECRET, UUID, invoker
from e2e.openwhisk.beside_fpc import World, make_known_world, make_world
from mesp.types import FunctionKey
from mesp_placement.model import ContainerState
from mesp_plugin.openwhisk.containers import ContainerCreation, ContainerDeletion, parse_container_message
from mesp_plugin.openwhisk.etcd import Change
from mesp_plugin.openwhisk.fetches import NoCall
from mesp_plugin.openwhisk.holdings import Holding, HoldingState
from mesp_plugin.openwhisk.messages import parse_activation

if TYPE_CHECKING:
    from pathlib import Path

MINUTE_MS = 60_000


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await make_known_world(tmp_path)


# --- Seeing -----------------------------------------------------------------------------------------------------------


async def test_a_call_counts_once_when_it_is_admitted(tmp_path: Path) -> None:
    """Told twice, or moved to another scheduler, it is one arrival; its end is told once."""
    world = make_world(tmp_path)
    await world.look()
    first = world.call(HELLO)
    message = world.bus._waiting[-1]
    world.bus.say("scheduler1", message.value, world.now_ms)
    await world.look(500)
    world.done(HELLO, first, init_ms=100)
    world.done(HELLO, first, init_ms=100)
    seen = await world.look(MINUTE_MS)
    assert [(step.step_start_ms, step.counts) for step in seen.steps] == [(BEGIN_MS, {HELLO: 1})]
    assert (seen.calls, seen.cold) == (1, (HELLO,))
    assert (await world.look(MINUTE_MS)).calls == 0


async def test_an_end_may_be_read_before_its_call(tmp_path: Path) -> None:
    """From two topics they may come in either order."""
    world = make_world(tmp_path)
    await world.look()
    world.done(HELLO, f"{1:032x}")
    assert (await world.look(10)).calls == 0
    world.call(HELLO)
    assert (await world.look(10)).calls == 1


async def test_a_call_that_nobody_tells_of_is_over_in_the_end(tmp_path: Path) -> None:
    """Non-blocking and without user events: nothing says that it was cold, and it does not stay open."""
    world = make_world(tmp_path)
    await world.look()
    one = world.call(HELLO)
    free = {"transid": ["tid", 1], "activationId": one, "isSystemError": False, "instance": invoker()}
    world.bus.say("completed0", free, world.now_ms)
    assert (await world.look(10)).calls == 0
    seen = await world.look(16_000)
    assert (seen.calls, seen.cold) == (1, ())


async def test_containers_are_as_their_keys_say(world: World) -> None:
    """Busy by the calls that run; paused; held; ordered; nodes with the memory that their keys tell."""
    world.invoker(0, free_mb=1024, busy_mb=512)
    world.invoker(1, status="unhealthy")
    world.container(PLAIN, "a")
    world.container(PLAIN, "b")
    world.container(PLAIN, "c", warmed=True, number=1)
    world.call(PLAIN)
    await world.look(10)
    await world.held(HELLO, "h")
    await world.prewarm(HELLO)
    snapshot = await world.driver.snapshot(world.now_ms)
    found = {one.id: (one.state, one.node, one.owned) for one in snapshot.containers}
    ordered = next(one for one in found if one not in "abch")
    assert found == {
        "a": (ContainerState.BUSY, "invoker0", False),
        "b": (ContainerState.IDLE, "invoker0", False),
        "c": (ContainerState.PAUSED, "invoker1", False),
        "h": (ContainerState.IDLE, "invoker0", True),
        ordered: (ContainerState.CREATING, "invoker0", True),
    }
    assert [(node.name, node.memory_mb, node.schedulable) for node in snapshot.nodes] == [
        ("invoker0", 1536, True),
        ("invoker1", 2048, False),
    ]


async def test_a_container_that_waits_is_there_before_its_key(world: World) -> None:
    """It asks for a call, and its key comes late: listed once all the same, or it would be ordered a second time."""
    await world.prewarm(HELLO)
    await world.asks(HELLO, "h")
    for _ in range(2):
        [container] = await world.containers(HELLO)
        assert (container.id, container.state, container.node, container.owned) == (
            "h",
            ContainerState.IDLE,
            "invoker0",
            True,
        )
        world.container(HELLO, "h")


# --- Ordering ---------------------------------------------------------------------------------------------------------


async def test_an_order_is_a_creation_that_the_real_reader_takes(world: World) -> None:
    """With the revision of the last call, our own address, and no secret."""
    assert (await world.prewarm(PLAIN)).count == 1
    [(topic, message)] = world.bus.sent
    order = parse_container_message(json.dumps(message))
    assert isinstance(order, ContainerCreation)
    assert (topic, order.function, order.revision, order.scheduler) == ("invoker0", PLAIN, "1-aa", "mesp")
    assert (order.host, order.rpc_port, order.metadata.memory_mb) == ("127.0.0.1", 50_161, 256)
    assert SECRET not in json.dumps(message)
    assert SECRET not in (world.folder / "state.json").read_text()


async def test_nothing_is_ordered_without_a_revision(tmp_path: Path) -> None:
    """Only calls tell it; and after an update only the next call does."""
    world = make_world(tmp_path)
    await world.look()
    assert "no call of it was seen" in ((await world.prewarm(PLAIN)).refused or "")
    await world.known(PLAIN)
    assert (await world.prewarm(PLAIN)).count == 1
    world.api.put("plain", version="0.0.2", updated=99)
    await world.wait(1)
    assert "it was updated" in ((await world.prewarm(PLAIN)).refused or "")
    await world.known(PLAIN, action={"path": "guest", "name": "plain", "version": "0.0.2"}, revision="2-bb")
    assert (await world.prewarm(PLAIN)).count == 1
    assert world.orders()[-1]["revision"] == "2-bb"


async def test_actions_of_others_are_described_by_their_schedulers(world: World) -> None:
    """The API does not show them; an order of a scheduler does, and no opt-in is needed to hold."""
    other = FunctionKey("other", "thing")
    await world.known(other)
    assert "nothing described" in ((await world.prewarm(other)).refused or "")
    await world.prewarm(PLAIN)
    message = world.orders()[-1] | {
        "invocationNamespace": "other",
        "action": {"path": "other", "name": "thing", "version": "0.0.1"},
        "rootSchedulerIndex": {"asString": "0"},
    }
    message["whiskActionMetaData"] = message["whiskActionMetaData"] | {"namespace": "other", "name": "thing"}
    world.bus.say("invoker0", message, world.now_ms)
    await world.look(10)
    assert (await world.prewarm(other)).count == 1


async def test_a_standby_orders_nothing(world: World) -> None:
    """Nor does anybody while etcd does not answer."""
    world.right.is_ours = False
    assert "standby" in ((await world.prewarm(PLAIN)).refused or "")
    world.right.is_ours, world.cluster.fresh = True, False
    assert "etcd does not answer" in ((await world.prewarm(PLAIN)).refused or "")
    assert world.orders() == []


async def test_paused_ones_take_the_first_orders(world: World) -> None:
    """Two are paused there: three orders add one; each that resumes one counts for nothing added."""
    for name in "ab":
        world.container(PLAIN, name, warmed=True)
    world.container(PLAIN, "elsewhere", warmed=True, number=1)
    assert (await world.prewarm(PLAIN)).count == 1
    assert len(world.orders()) == 3
    answers = [await world.asks(PLAIN, name, warmed=True) for name in "ab"]
    assert world.states() == [HoldingState.REUSED, HoldingState.REUSED, HoldingState.ORDERED]
    await world.wait(11_000)
    assert [one.result() for one in answers] == [NoCall.NO_ACTIVATION] * 2  # they pause again


async def test_what_was_handed_over_is_not_woken_again(world: World) -> None:
    """It would not ask us, but the queue that it went to, and without one it would die; neither after a restart."""
    await world.held(PLAIN, "c1")
    world.queue(PLAIN)
    await world.look(10)
    world.paused(world.container(PLAIN, "c1"))
    for _ in range(2):
        assert "only wake a paused container" in ((await world.prewarm(PLAIN)).refused or "")
        world.restart()
        await world.look(10)
        await world.known(PLAIN)
    world.invoker(1)
    assert (await world.prewarm(PLAIN, node="invoker1")).count == 1


async def test_a_node_without_room_gets_nothing(world: World) -> None:
    """What was ordered and is not up yet takes room; so does a node that is dedicated, or gone."""
    world.invoker(0, free_mb=600)
    assert (await world.prewarm(PLAIN)).count == 1
    assert (await world.prewarm(PLAIN)).count == 1
    assert "no room on invoker0, 88 MB are free" in ((await world.prewarm(PLAIN)).refused or "")
    assert "invoker7 is not up" in ((await world.prewarm(PLAIN, node="invoker7")).refused or "")
    world.invoker(1, dedicatedNamespaces=["other"])
    assert "dedicated" in ((await world.prewarm(PLAIN, node="invoker1")).refused or "")


# --- The namespace's limit ----------------------------------------------------------------------------------------------


async def test_orders_stay_strictly_below_the_limit(tmp_path: Path) -> None:
    """Of 5 containers one stays free, and one place is kept for a surplus one of the function: 3, and no more."""
    world = make_world(tmp_path, limits_margin_share=0.0)
    await world.look()
    user = {"user": {**caller(), "limits": {"concurrentInvocations": 5}}}
    await world.known(PLAIN, **user)
    done = await world.prewarm(PLAIN, 9)
    assert done.count == 3
    assert "namespace guest may have 5 containers" in (done.refused or "")
    assert (await world.prewarm(PLAIN)).count == 0
    assert len(world.orders()) == 3


def caller() -> dict[str, object]:
    return {
        "subject": "guest-subject",
        "namespace": {"name": "guest", "uuid": UUID},
        "authkey": {"api_key": f"{UUID}:{SECRET}"},
        "rights": ["READ", "ACTIVATE"],
    }


async def test_what_is_held_goes_when_the_limit_comes_near(tmp_path: Path) -> None:
    """Other calls' containers fill the namespace: the longest held goes first, until all is strictly below again."""
    world = make_world(tmp_path, limits_margin_share=0.0)
    await world.look()
    await world.known(PLAIN, user={**caller(), "limits": {"concurrentInvocations": 5}})
    first, second = await world.held(PLAIN, "c1"), await world.held(PLAIN, "c2")
    world.container(HELLO, "x1")
    await world.wait(0)
    assert not first.done()
    world.container(HELLO, "x2")
    await world.wait(0)
    assert first.result() is NoCall.NO_QUEUE  # no queue: that destroys it
    assert not second.done()


async def test_what_is_held_goes_when_a_scheduler_throttles(world: World) -> None:
    """A queue or not: it is destroyed, and nothing is ordered as long as it lasts."""
    held = await world.held(PLAIN)
    world.throttle("other")
    await world.wait(0)
    assert not held.done()
    world.throttle("guest")
    await world.wait(0)
    assert held.result() is NoCall.NO_QUEUE
    assert "namespace guest is throttled" in ((await world.prewarm(PLAIN)).refused or "")
    world.throttle("guest", on=False)
    assert (await world.prewarm(PLAIN)).count == 1


# --- What goes wrong --------------------------------------------------------------------------------------------------


async def test_an_order_whose_container_never_asks_is_given_up(world: World) -> None:
    """After a minute, counted; it takes no room any more."""
    await world.prewarm(PLAIN)
    await world.look(59_000)
    assert world.states() == [HoldingState.ORDERED]
    await world.look(1_000)
    assert world.states() == [HoldingState.GONE]
    assert world.metrics.unanswered._value.get() == 1


async def test_a_refused_order_is_over_at_once(world: World) -> None:
    """No memory there: the ack says so, and names nothing else."""
    await world.prewarm(PLAIN)
    order = world.orders()[-1]
    ack = {
        key: order[key] for key in ("transid", "invocationNamespace", "action", "revision", "schedulerHost", "rpcPort", "retryCount", "creationId")
    }  # fmt: skip
    ack |= {
        "actionMetaData": order["whiskActionMetaData"],
        "rootInvokerIndex": invoker(),
        "error": "ResourceNotEnoughError",
    }
    world.bus.say("creationAckmesp", ack, world.now_ms)
    with capture_logs() as logs:
        await world.look(10)
    assert world.states() == [HoldingState.GONE]
    assert [line["first"] for line in logs if line["event"] == "containers refused"] == ["ResourceNotEnoughError"]


async def test_after_a_restart_what_was_held_is_the_platforms(world: World) -> None:
    """Killed in the hold: the container moved or died; one that was paused is still ours; an order finds its container."""
    await world.held(PLAIN, "c1")
    await world.prewarm(HELLO)
    await world.asks(HELLO, "c2")
    world.paused(world.container(HELLO, "c2"))
    await world.prewarm(PLAIN)
    world.restart()
    await world.look(100)
    assert world.states() == [HoldingState.GONE, HoldingState.HELD, HoldingState.ORDERED]
    late = await world.asks(PLAIN, "c3")
    assert not late.done()
    assert world.states() == [HoldingState.GONE, HoldingState.HELD, HoldingState.HELD]
    owned = {one.id for one in (await world.driver.snapshot(world.now_ms)).containers if one.owned}
    assert owned == {"c2", "c3"}
    world.container(PLAIN, "c3")
    owned = {one.id for one in (await world.driver.snapshot(world.now_ms)).containers if one.owned}
    assert owned == {"c2", "c3"}
    world.queue(PLAIN)
    await world.wait(0)
    assert late.result() is NoCall.NO_QUEUE


async def test_malformed_messages_and_keys_are_counted_and_told_in_one_line(world: World) -> None:
    """One on each topic, one key: one warning with the first reason, a metric, and no content."""
    for topic in ("scheduler0", "completed0", "creationAckmesp", "invoker0", "events"):
        world.bus.say(topic, SECRET.encode(), world.now_ms)
    world.cluster.apply(Change(f"whisk/invokers/{SECRET}", b"{}"))
    with capture_logs() as logs:
        await world.look(10)
    assert [line["count"] for line in logs] == [6]
    assert SECRET not in str(logs)
    assert world.metrics.malformed._value.get() == 6


# --- Taking back ------------------------------------------------------------------------------------------------------


async def test_a_release_ends_the_hold(world: World) -> None:
    """Without a queue the container is destroyed by that."""
    held = await world.held(PLAIN)
    [container] = await world.containers(PLAIN)
    assert (await world.release(container)).count == 1
    await world.wait(0)
    assert held.result() is NoCall.NO_QUEUE


async def test_a_paused_one_is_deleted_where_it_is_alone(world: World) -> None:
    """The deletion takes all of the function's containers on that invoker: beside another's, none is sent."""
    await world.held(HELLO)
    key = world.paused(world.container(HELLO, "c1"))
    beside = world.container(HELLO, "x")
    own = next(one for one in await world.containers(HELLO) if one.owned)
    assert "would take 1 others" in ((await world.release(own)).refused or "")
    world.delete(beside)
    assert (await world.release(own)).count == 1
    topic, message = world.bus.sent[-1]
    order = parse_container_message(json.dumps(message))
    assert isinstance(order, ContainerDeletion)
    assert (topic, order.function, order.revision) == ("invoker0", HELLO, "1-aa")
    world.delete(key)
    assert world.states() == [HoldingState.GONE]


async def test_release_all_takes_everything_back(world: World) -> None:
    """What is held, what is paused, and what is only ordered: its container is let go when it asks."""
    held = await world.held(PLAIN, "c1")
    await world.held(HELLO, "c2")
    world.paused(world.container(HELLO, "c2"))
    await world.prewarm(PLAIN)
    done = await world.driver.release_all(world.now_ms)
    assert (done.count, done.refused) == (2, None)
    await world.wait(0)
    assert held.result() is NoCall.NO_QUEUE
    assert (await world.asks(PLAIN, "c3")).result() is NoCall.NO_QUEUE
    assert not world.holdings.alive()


async def test_what_expires_is_let_go(tmp_path: Path) -> None:
    """Held for longer than `expiry_s` it is not."""
    world = make_world(tmp_path, expiry_s=120)
    await world.look()
    await world.known(PLAIN)
    held = await world.held(PLAIN)
    await world.look(119_000)
    assert not held.done()
    await world.look(1_000)
    assert held.result() is NoCall.NO_QUEUE


async def test_a_marker_is_a_call_without_a_secret(world: World) -> None:
    """As the real reader takes it: same revision, acks to us, no record; the parameters of /init, and no key."""
    await world.known(HELLO, content={"token": SECRET, "password": SECRET}, initArgs=["token"])
    await world.prewarm(HELLO)
    answer = (await world.asks(HELLO, "c1")).result()
    assert isinstance(answer, dict)
    message = parse_activation(json.dumps(answer))
    assert (message.is_marker, message.revision, message.controller) == (True, "1-aa", "mesp")
    assert message.init_content == {"token": SECRET}
    assert json.dumps(answer).count(SECRET) == 1
    assert SECRET not in repr(world.holds.kept)


async def test_an_order_of_a_life_beside_something_else_is_on_no_node(world: World) -> None:
    """Restarted as FPC with the state file of a standalone one: its last order shows nowhere, and stops nothing."""
    world.holdings.add([Holding("ab" * 16, HELLO, "standalone", world.now_ms, world.now_ms + 600_000)])
    await world.look(10)
    assert await world.containers(HELLO) == []
