"""What the golden traces do not show of the classic double: its REST API, its balancer's arithmetic, rarer turns."""

from __future__ import annotations

import asyncio
import base64
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e.openwhisk.classic import GUEST, Classic, running_classic
from e2e.openwhisk.clock import Clock, SteppedClock
from e2e.openwhisk.containers import Reply, Sleeper
from e2e.openwhisk.golden import Lines
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.sharding import Sharding, Slots
from mesp_plugin.openwhisk.balancer import preferred_nodes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from e2e.openwhisk.model import Json
    from e2e.servers.kafka import Kafka

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


class Busy(Sleeper):
    """Answers 503 to its second call."""

    def __init__(self) -> None:
        self.calls = 0

    def reply(self, action_code: str, env: Json, body: Json) -> Reply:
        self.calls += 1
        return Reply(5, 503) if self.calls == 2 else super().reply(action_code, env, body)


@asynccontextmanager
async def stepped(kafka: Kafka, prefix: str, **options: Any) -> AsyncIterator[Classic]:
    """A double without a wall clock."""
    clock = SteppedClock(1_795_244_000_000)
    async with running_classic({"bootstrap_servers": kafka.plain}, clock=clock, prefix=prefix, **options) as double:
        yield double


async def call(double: Classic, name: str, **parameters: object) -> Json:
    action = double.store.get(f"guest/{name}")
    assert action is not None
    _, record = await double.controller.invoke(GUEST, action, parameters, blocking=True)
    assert record is not None
    return record


def starts(double: Classic) -> list[str]:
    """How the calls so far got their containers."""
    return [state for state, _ in Lines(list(double.recording.lines)).starts.values()]


@settings(deadline=None)
@given(NAMES, NAMES, st.integers(1, 40), st.booleans())
def test_balancer_goes_the_way_that_the_plugin_computes(namespace: str, name: str, count: int, blackbox: bool) -> None:
    """Invokers fill up in the plugin's order of preference, home first, for managed and for pulled images."""
    balancer = Sharding(random.Random(0))
    balancer.learn(count - 1, 128)
    action = f"{namespace}/{name}"
    order = preferred_nodes(namespace, action, range(count), blackbox=blackbox)
    for wanted in order:
        assert balancer.choose(namespace, action, 128, 1, [True] * count, blackbox=blackbox) == (wanted, False)
    chosen = balancer.choose(namespace, action, 128, 1, [True] * count, blackbox=blackbox)
    assert chosen is not None
    assert chosen[0] in order
    assert chosen[1]


def test_overload_is_seeded() -> None:
    """With one seed, calls that find no room go to the same invokers, and not always to one."""

    def overloaded() -> list[tuple[int, bool] | None]:
        balancer = Sharding(random.Random(7))
        balancer.learn(9, 0)
        return [balancer.choose("guest", "guest/a", 128, 1, [True] * 10, blackbox=False) for _ in range(20)]

    assert overloaded() == overloaded()
    assert len(set(overloaded())) > 1


def test_offline_invokers_keep_their_place() -> None:
    """A call passes over an invoker that is down; where none lives, there is no answer."""
    balancer = Sharding(random.Random(0))
    balancer.learn(1, 512)
    assert balancer.choose("guest", "guest/w1", 128, 1, [True, True], blackbox=False) == (1, False)
    assert balancer.choose("guest", "guest/w1", 128, 1, [True, False], blackbox=False) == (0, False)
    assert balancer.choose("guest", "guest/w1", 128, 1, [False, False], blackbox=False) is None


def test_slots_of_an_action_that_takes_several_calls() -> None:
    """Three calls of a container that takes three cost its memory once, and give it back with the last."""
    slots = Slots(256)
    assert [slots.take("a", 256, 3) for _ in range(4)] == [True, True, True, False]
    for _ in range(2):
        slots.give_back("a", 256, 3)
        assert slots.free_mb == 0
    slots.give_back("a", 256, 3)
    assert slots.free_mb == 256


async def test_one_container_takes_several_calls(kafka: Kafka) -> None:
    """Calls of an action with concurrency 3 share the container that is being made; a fourth gets another."""
    async with stepped(kafka, "concurrency-") as double:
        double.store.put(Action("guest", "many", concurrency=3))
        await asyncio.gather(*(call(double, "many", ms=500) for _ in range(4)))
        assert sorted(starts(double)) == ["cold", "cold", "warmingCold", "warmingCold"]
        await call(double, "many")
        assert starts(double)[-1] == "warmed"


async def test_unavailable_container_is_replaced(kafka: Kafka) -> None:
    """503 to /run: the container goes, and the same call is answered by another one, once."""
    async with stepped(kafka, "refused-", program=Busy()) as double:
        double.store.put(Action("guest", "busy"))
        await call(double, "busy")
        record = await call(double, "busy")
        assert record["response"]["statusCode"] == 0
        assert any(note["key"] == "initTime" for note in record["annotations"])
        await double.clock.sleep(1)
        assert double.recording.of("docker", action="kill")


async def test_action_that_takes_too_long_loses_its_container(kafka: Kafka) -> None:
    """After its time limit an action is answered with a developer's error, and the next call is cold."""
    async with stepped(kafka, "timeout-") as double:
        double.store.put(Action("guest", "slow", timeout_ms=1000))
        record = await call(double, "slow", ms=5000)
        assert record["response"]["statusCode"] == 2
        assert record["duration"] >= 1000
        await call(double, "slow")
        assert starts(double) == ["cold", "cold"]


async def test_idle_containers_go_after_ten_minutes(kafka: Kafka) -> None:
    """By default a container is paused after 10 s and removed 10 min after that."""
    async with stepped(kafka, "idle-", invokers=[PoolSettings()]) as double:
        double.store.put(Action("guest", "hello"))
        began_ms = (await call(double, "hello"))["end"]
        await double.clock.sleep(620)
        times = {action: double.recording.of("docker", action=action)[-1]["t"] for action in ("pause", "kill")}
        assert 10_000 <= times["pause"] - began_ms < 10_200
        assert 600_000 <= times["kill"] - times["pause"] < 600_200


async def test_rest_api(kafka: Kafka) -> None:
    """Calls wait or do not, errors have their status, records can be read and listed, strangers get nothing."""
    options = {"bootstrap_servers": kafka.plain}
    key = {"Authorization": f"Basic {base64.b64encode(GUEST.key.encode()).decode()}"}
    async with (
        running_classic(options, clock=Clock(speed=5), prefix="rest-") as double,
        aiohttp.ClientSession(double.api + "/api/v1/namespaces/_/", headers=key) as client,
    ):
        double.store.put(Action("guest", "hello", annotations={"mesp-prewarm": True}))

        async def post(query: str, **parameters: object) -> tuple[int, Json]:
            async with client.post(f"actions/hello?{query}", json=parameters) as answer:
                return answer.status, await answer.json()

        async def get(path: str) -> tuple[int, Any]:
            async with client.get(path) as answer:
                return answer.status, await answer.json()

        status, record = await post("blocking=true", ms=20)
        assert (status, record["response"]["status"]) == (200, "success")
        assert {note["key"] for note in record["annotations"]} >= {"path", "waitTime", "initTime", "limits"}
        assert await post("blocking=true&result=true", n=3) == (200, {"n": 3, "pid": 7, "v": "1"})
        status, failed = await post("blocking=true", fail=True)
        assert (status, failed["response"]["status"]) == (502, "application error")

        status, accepted = await post("blocking=false", ms=2000)
        assert (status, list(accepted)) == (202, ["activationId"])
        assert (await get(f"activations/{accepted['activationId']}"))[0] == 404
        status, in_flight = await get(f"{double.api}/activation")  # the one before may not be acknowledged yet
        assert status == 200
        assert [accepted["activationId"], "guest/hello@0.0.1"] in in_flight
        assert await get(f"{double.api}/invokers") == (200, {"invoker0": "up"})
        await double.recording.until(lambda: accepted["activationId"] in double.store.records)
        assert (await get(f"activations/{accepted['activationId']}"))[0] == 200
        _, listed = await get("activations?limit=2&name=hello")
        assert [found["activationId"] for found in listed] == [accepted["activationId"], failed["activationId"]]
        assert (await get("activations?limit=201"))[0] == 400

        _, document = await get("actions/hello?code=false")
        assert {"key": "mesp-prewarm", "value": True} in document["annotations"]
        assert (await get("actions/absent"))[0] == 404
        client.headers["Authorization"] = "Basic " + base64.b64encode(b"nobody:nothing").decode()
        assert (await get("activations"))[0] == 401


async def test_garbage_stops_nobody(kafka: Kafka) -> None:
    """What is no message, on any topic, is a line in a log; calls go on."""
    async with stepped(kafka, "garbage-") as double:
        double.store.put(Action("guest", "hello"))
        garbage: list[Json] = [{}, {"response": 7}, {"name": []}, {"transid": [], "instance": None, "user": "x"}]
        for topic in ("invoker0", "completed0", "health"):
            for message in garbage:
                double.bus.send(topic, message)
        await double.clock.sleep(1)
        assert len(Lines(list(double.recording.lines)).log("ERROR")) >= 8  # the invoker's, and of pings
        assert (await call(double, "hello"))["response"]["statusCode"] == 0


async def test_nothing_is_sent_while_no_invoker_lives(kafka: Kafka) -> None:
    """When the only invoker is down, a call is refused at once."""
    async with stepped(kafka, "alone-") as double:
        double.store.put(Action("guest", "hello"))
        await double.invokers[0].kill()
        await double.clock.sleep(11)
        assert double.controller.invokers() == {"invoker0": "down"}
        with pytest.raises(Exception, match="No invokers available"):
            await call(double, "hello")
