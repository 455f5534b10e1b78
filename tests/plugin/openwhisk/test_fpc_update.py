"""The FPC driver when an action is updated: nobody will use what was made before, held or paused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from e2e.openwhisk.beside_bus import HELLO, PLAIN
from e2e.openwhisk.beside_fpc import World, make_known_world, make_world
from mesp_plugin.openwhisk.containers import ContainerDeletion, parse_container_message
from mesp_plugin.openwhisk.fetches import NoCall
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.openwhisk.parts import generation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await make_known_world(tmp_path)


async def test_after_an_update_what_is_held_goes(world: World) -> None:
    """Its revision is nobody's any more: a call would be cold after the hand-over."""
    held = await world.held(PLAIN)
    await world.look(30_000)
    assert not held.done()
    world.api.put("plain", version="0.0.2", updated=99)
    await world.look(30_000)
    assert held.result() is NoCall.NO_QUEUE
    assert world.states() == [HoldingState.GONE]


@pytest.mark.parametrize("tells", ["the API", "a call"])
async def test_after_an_update_what_is_paused_is_deleted(world: World, tells: str) -> None:
    """Up to its own revision, as soon as the API or a call tells of the update; once, and no newer one with it."""
    await world.held(HELLO)
    paused = world.paused(world.container(HELLO, "c1"))
    await world.look(30_000)
    if tells == "the API":
        world.api.put("hello", version="0.0.2", updated=99, annotations={"mesp-prewarm": True})
    else:
        world.put(replace(paused, warmed=False, revision="2-bb", container_id="new"))
        update = {"path": "guest", "name": "hello", "version": "0.0.2"}
        world.done(HELLO, world.call(HELLO, action=update, revision="2-bb"))
    sent = len(world.bus.sent)
    await world.look(30_000)
    await world.look(30_000)
    ((topic, message),) = world.bus.sent[sent:]
    order = parse_container_message(json.dumps(message))
    assert isinstance(order, ContainerDeletion)
    assert (topic, order.function, order.revision) == ("invoker0", HELLO, "1-aa")
    assert world.states() == [HoldingState.GONE]


@pytest.mark.parametrize("why", ["shadow", "standby"])
async def test_who_does_not_act_deletes_nothing(tmp_path: Path, why: str) -> None:
    """Of a former life that acted: in shadow mode, and beside another plugin that acts now."""
    world = make_world(tmp_path)
    await world.look()
    await world.known(HELLO)
    await world.held(HELLO)
    world.paused(world.container(HELLO, "c1"))
    await world.look(30_000)
    world.config = world.config.model_copy(update={"mode": "shadow" if why == "shadow" else "on"})
    world.right.is_ours = why == "shadow"
    world.restart()
    await world.look()
    await world.known(HELLO)
    world.api.put("hello", version="0.0.2", updated=99, annotations={"mesp-prewarm": True})
    sent = len(world.bus.sent)
    await world.look(30_000)
    assert world.bus.sent[sent:] == []


async def test_after_an_update_others_of_that_revision_are_left(world: World) -> None:
    """A deletion would take them, too: so ours lingers, which is told once."""
    await world.held(HELLO)
    world.paused(world.container(HELLO, "c1"))
    world.container(HELLO, "x")
    world.api.put("hello", version="0.0.2", updated=99)
    sent = len(world.bus.sent)
    with capture_logs() as logs:
        await world.look(30_000)
        await world.look(30_000)
    assert len(world.bus.sent) == sent
    (line,) = (line for line in logs if line["event"] == "an outdated container lingers")
    assert "would take 1 others" in line["reason"]


def test_revisions_are_ordered_by_their_generation() -> None:
    """As numbers; what has none comes first."""
    revisions = ["10-aa", "9-ff", "no-number", None, "2-zz"]
    assert sorted(revisions, key=generation) == ["no-number", None, "2-zz", "9-ff", "10-aa"]
