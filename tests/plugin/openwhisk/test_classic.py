"""What the classic driver makes of the bus: calls, containers, nodes; and of what is malformed, or secret."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
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
    Json,
    World,
    call_message,
    event,
    invoker,
    make_world,
    record,
)
from e2e.openwhisk.golden import FOLDER
from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_placement.model import ContainerState
from mesp_plugin.openwhisk.balancer import preferred_nodes
from mesp_plugin.openwhisk.invokers import Pool
from mesp_plugin.openwhisk.messages import parse_ack, parse_activation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesp_plugin.openwhisk.driver import Observed
    from mesp_plugin.openwhisk.invokers import Call
    from mesp_plugin.openwhisk.messages import ActivationMessage, ActivationRecord
    from mesp_plugin.openwhisk.user_events import ActivationEvent

MINUTE_MS = 60_000


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """One look has been taken."""
    world = make_world(tmp_path)
    await world.look()
    return world


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
    world.now_ms += 20_000
    world.ping()
    seen = await world.look()
    assert (seen.calls, seen.cold) == (1, (PLAIN,))  # of the other, belief is all there is
    again = world.call(PLAIN, blocking=False)
    await world.look(700)
    world.done(PLAIN, again, told=False)
    await world.look(20_000)
    profiles = {one.function: one.duration_ms for one in (await world.driver.snapshot(world.now_ms)).profiles}
    assert profiles[PLAIN] == 700  # from admission to ack


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
    assert "1 calls wait for room on invoker0" in ((await world.prewarm(HELLO)).refused or "")
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


async def test_silence_of_the_bus_is_nobodys_end(world: World) -> None:
    """While the bus is away, and for 10 s after, no invoker's containers count as lost; nothing is ordered either."""
    await warm(world, HELLO)
    world.bus.fails = True
    await world.look(60_000)
    assert len(await world.containers(HELLO)) == 1
    assert "offline" in ((await world.prewarm(HELLO)).refused or "")
    world.bus.fails = False
    await world.look(10_000)
    assert len(await world.containers(HELLO)) == 1
    await world.look(1)
    assert await world.containers(HELLO) == []


async def test_a_ping_that_cannot_be_is_skipped(world: World) -> None:
    """A number that would make the balancer's order endless; and one dated ahead lives no longer for it."""
    world.ping(2_000_000_000)
    world.bus.say("health", {"name": invoker(1), "isEnabled": True}, world.now_ms)
    world.bus.ahead_ms = 3_600_000
    await world.look(10)
    world.bus.ahead_ms = 0
    assert world.metrics.malformed._value.get() == 1
    await world.look(11_000)
    nodes = (await world.driver.snapshot(world.now_ms)).nodes
    assert [(node.name, node.schedulable) for node in nodes] == [("invoker0", False), ("invoker1", False)]


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


# --- Beside the real one's recordings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "headroom", "inject", "last", "stem", "two"])
async def test_recordings_of_the_real_one_are_read_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each call counts once and is cold or warm as recorded. Even before a record told, the model was right about whether
    a container was idle, in at least 85 of 100 runs (231 in all, markers, bursts and kills among them, 214 right).
    """
    if not (path := FOLDER / "classic" / f"{name}.jsonl").is_file():
        pytest.skip("the golden traces are not here: MESP_GOLDEN names their folder")
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if line.get("src") == "kafka"]
    world, believed, told = make_world(tmp_path), [], Pool.told
    world.now_ms = world.bus.since_ms = min(line["ts"] for line in lines)
    for line in lines:
        world.bus.say(line["topic"], line["value"], line["ts"])

    def noted(self: Pool, call: Call, ended: ActivationRecord | ActivationEvent) -> None:
        believed.append(call.fresh == (ended.init_ms > 0))
        told(self, call, ended)

    monkeypatch.setattr(Pool, "told", noted)
    looks = [
        await world.look(2_000) for _ in range(0, max(line["ts"] for line in lines) - world.now_ms + 80_000, 2_000)
    ]
    calls = {one.activation_id for one in map(_as_call, lines) if one and one.is_call}
    records = {one.activation_id: one for one in map(_as_record, lines) if one and one.activation_id in calls}
    assert sum(sum(counts.values()) for counts in _latest(looks).values()) == sum(look.calls for look in looks)
    assert sum(look.calls for look in looks) == len(calls)
    cold = Counter(function for look in looks for function in look.cold)
    assert cold == Counter(one.function for one in records.values() if one.init_ms)
    assert sum(believed) >= 0.85 * len(believed), (sum(believed), len(believed))


def _as_call(line: Json) -> ActivationMessage | None:
    with suppress(InputError):
        return parse_activation(json.dumps(line["value"])) if line["topic"].startswith("invoker") else None
    return None


def _as_record(line: Json) -> ActivationRecord | None:
    return parse_ack(json.dumps(line["value"])).record if line["topic"].startswith("completed") else None


def _latest(looks: list[Observed]) -> dict[int, Mapping[FunctionKey, int]]:
    return {step.step_start_ms: step.counts for look in looks for step in look.steps}


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
    assert SECRET not in repr(vars(world.driver._functions))
    assert SECRET not in repr(await world.bus.take(world.now_ms + 1))
    assert SECRET not in world.holdings_file.read_text()
