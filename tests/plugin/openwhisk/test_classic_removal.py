"""What the classic driver takes back before its time, where the operator wants it: by markers whose runs fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e.openwhisk.beside_bus import HELLO, PLAIN, World, make_world
from mesp_placement.model import Release
from mesp_plugin.openwhisk.driver import Done
from mesp_plugin.openwhisk.holdings import HoldingState

if TYPE_CHECKING:
    from pathlib import Path

#: How a run ends that the invoker destroys the container for: the action's own fault.
FAILED = 2


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """MESP has made a container of HELLO, which is idle."""
    world = make_world(tmp_path, early_removal=True)
    await world.look()
    await add(world)
    return world


async def add(world: World, count: int = 1) -> None:
    """Prewarms `count` more."""
    sent = len(world.markers())
    assert (await world.prewarm(HELLO, count)).count == count
    await world.look(400)
    world.answer(cold=count, since=sent)
    await world.look(100)


async def owned(world: World) -> list[str]:
    return [one.id for one in await world.containers(HELLO) if one.owned]


async def release(world: World, container_id: str) -> Done:
    return await world.driver.release(Release(HELLO, container_id, "invoker0", "because"), world.now_ms)


def held(world: World) -> int:
    return sum(item.state is HoldingState.HELD for item in world.holdings.all())


async def test_one_marker_ends_one_container(world: World) -> None:
    """It asks for an end, the run fails, and the container is gone; the order stands for nothing any more."""
    [container_id] = await owned(world)
    assert (await release(world, container_id)).count == 1
    said = world.markers()[-1]
    assert said["content"]["__ow_prewarm"]["op"] == "end"
    assert held(world) == 1  # until it is known
    world.done(HELLO, said["activationId"], status=FAILED, to="mesp")
    await world.look(50)
    assert (held(world), await world.containers(HELLO)) == (0, [])
    assert world.holdings.alive() == ()


async def test_as_many_go_as_were_added_and_no_more(world: World) -> None:
    """Beside a container that a call has used the last, that one is taken, and MESP's is the platform's then."""
    ids = [world.call(HELLO) for _ in "12"]  # one meets MESP's, the other has one made
    await world.look(50)
    world.done(HELLO, ids[0])
    world.done(HELLO, ids[1], init_ms=120)
    await world.look(50)
    await add(world)
    again = world.call(HELLO)
    await world.look(500)
    world.done(HELLO, again)
    await world.look(50)
    before = {one.id: one for one in await world.containers(HELLO)}
    [mesps] = await owned(world)
    newest = max(before.values(), key=lambda one: one.idle_since_ms or 0)
    assert newest.id != mesps
    assert (await release(world, mesps)).count == 1
    world.done(HELLO, world.markers()[-1]["activationId"], status=FAILED, to="mesp")
    await world.look(50)
    assert {one.id for one in await world.containers(HELLO)} == before.keys() - {newest.id}
    assert (await owned(world), held(world)) == ([], 0)


async def test_what_a_call_uses_stays(world: World) -> None:
    """While it runs, and after: it is not MESP's any more."""
    [container_id] = await owned(world)
    world.call(HELLO)
    await world.look(10)
    assert (await release(world, container_id)).refused == f"{container_id}: a call uses it, or it is gone"
    assert len(world.markers()) == 1


async def test_code_that_does_not_end_is_asked_once(world: World) -> None:
    """Its author answers every marker alike: the container stays MESP's, and nobody asks again."""
    [container_id] = await owned(world)
    assert (await release(world, container_id)).count == 1
    world.done(HELLO, world.markers()[-1]["activationId"], to="mesp")
    await world.look(50)
    assert await owned(world) == [container_id]
    assert "does not end its container" in ((await release(world, container_id)).refused or "")
    assert len(world.markers()) == 2


async def test_who_has_just_opted_out_is_asked_nothing(world: World) -> None:
    """The marker would run the new version's code."""
    [container_id] = await owned(world)
    world.api.put("hello", version="0.0.2", updated=99)
    assert "has not opted in" in ((await release(world, container_id)).refused or "")
    assert len(world.markers()) == 1


async def test_after_an_update_it_is_asked_again(world: World) -> None:
    """The new version may end its containers."""
    [container_id] = await owned(world)
    await release(world, container_id)
    world.done(HELLO, world.markers()[-1]["activationId"], to="mesp")
    await world.look(50)
    world.api.put("hello", version="0.0.2", updated=99, annotations={"mesp-prewarm": True})
    await world.look(50)
    assert (await release(world, container_id)).count == 1


async def test_nothing_goes_for_the_sake_of_an_end(world: World) -> None:
    """In a full pool a marker that met no idle container would make another's go: it is not sent."""
    for _ in range(3):
        world.call(PLAIN)
    await world.look(10)
    [container_id] = await owned(world)
    assert "invoker0 is full" in ((await release(world, container_id)).refused or "")


async def test_the_standby_ends_nothing(world: World) -> None:
    """As it orders nothing."""
    [container_id] = await owned(world)
    world.bus.leads = False
    assert "standby" in ((await release(world, container_id)).refused or "")


async def test_release_all_ends_everything(world: World) -> None:
    """All that no call has met, at once; what still is on its way at the next tick."""
    await add(world, 2)
    sent = len(world.markers())
    assert (await world.driver.release_all(world.now_ms)).count == 3
    for message in world.markers()[sent:]:
        world.done(HELLO, message["activationId"], status=FAILED, to="mesp")
    await world.look(50)
    assert (held(world), await world.containers(HELLO)) == (0, [])
    assert await world.driver.release_all(world.now_ms) == Done()
