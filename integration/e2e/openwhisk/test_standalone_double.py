"""The standalone double held to what was recorded on the real one (golden traces, `standalone/`), on a clock moved by hand."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from e2e.openwhisk.standalone import AUTHORIZATION, Standalone
from e2e.openwhisk.standalone_pool import Spec
from e2e.openwhisk.timeline import HandTimeline
from mesp_plugin.openwhisk.rest import parse_gauges

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOLDEN = (
    Path(os.environ.get("MESP_GOLDEN", Path(__file__).parents[3] / ".." / "shared" / "platforms" / "openwhisk-golden"))
    / "standalone"
)
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden traces are not here: MESP_GOLDEN names them")

BEGIN_MS = 1_795_245_000_000
S1, S2 = Spec("s1", memory_mb=128, answers_marker=True), Spec("s2", memory_mb=256, answers_marker=True)


def golden(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / name).read_text("utf-8").splitlines()]


class World:
    """The double, its time, and one user."""

    def __init__(self, session: aiohttp.ClientSession, host: str, double: Standalone, time: HandTimeline) -> None:
        self.session, self.host, self.double, self.time = session, host, double, time

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.host + path) as response:
            return response.status, await response.text()

    async def post(self, name: str, body: dict[str, Any], query: str = "blocking=false") -> tuple[int, str]:
        url = f"{self.host}/api/v1/namespaces/_/actions/{name}?{query}"
        async with self.session.post(url, json=body) as response:
            return response.status, await response.text()

    async def blocking(self, name: str, **body: Any) -> dict[str, Any]:
        """A blocking call, with time moved on while it runs."""
        task = asyncio.create_task(self.post(name, body, "blocking=true&result=false"))
        while not task.done():
            await asyncio.sleep(0.002)
            self.wait(10)
        record = json.loads(task.result()[1])
        assert isinstance(record, dict)
        return record

    def wait(self, ms: int) -> None:
        self.time.advance(self.time.now_ms() + ms)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    time = HandTimeline(BEGIN_MS)
    double = Standalone(time)
    double.put(S1)
    double.put(S2)
    async with (
        double.serve() as host,
        aiohttp.ClientSession(headers={"Authorization": AUTHORIZATION}) as session,
    ):
        yield World(session, host, double, time)


def shape(value: Any) -> Any:
    """Members and types; of annotations the keys with their values' types."""
    match value:
        case {"key": str(key), "value": inner}:
            return key, shape(inner)
        case dict():
            return {key: "any" if key == "result" else shape(inner) for key, inner in value.items()}
        case list():
            return [shape(item) for item in value]
        case _:
            return type(value).__name__


async def test_records_have_the_members_and_types_of_the_real_ones(world: World) -> None:
    """Cold, warm, prewarmed, failed and thrown: member by member, in the same order of annotations."""
    real = {line["kind"]: line["record"] for line in golden("activations.jsonl") if "record" in line}
    ours = {
        "cold": await world.blocking("s1"),
        "warm": await world.blocking("s1"),
        "prewarmed": await world.blocking("s2"),
        "app error": await world.blocking("s1", fail="app"),
        "throw": await world.blocking("s1", fail="throw"),
    }
    for kind, record in ours.items():
        assert shape(record) == shape(real[kind]), kind
        assert record["response"]["status"] == real[kind]["response"]["status"]


async def test_a_run_whose_logs_come_too_late_takes_its_container_with_it(world: World) -> None:
    """Seen beside the real one: the call succeeds, its record says that logs are missing, and the next call is cold."""
    world.double.pool.slow_logs.add("s1")
    records = [await world.blocking("s1") for _ in range(2)]
    assert [record["response"]["success"] for record in records] == [True] * 2
    assert {log for record in records for log in record["logs"]} == {
        "There was an issue while collecting your logs. Data might be missing."
    }
    assert [state for _, state, _, _ in world.double.pool.log] == ["cold", "cold"]
    assert world.double.pool.containers() == 0


async def test_starts_are_those_of_the_real_one_and_take_as_long(world: World) -> None:
    """cold, warmed, prewarmed, then cold again after a throw; initialisation and wait within half of the recorded."""
    scenario = [("s1", {}), ("s1", {}), ("s2", {}), ("s1", {"fail": "app"}), ("s1", {"fail": "throw"}), ("s1", {})]
    records = [await world.blocking(name, **body) for name, body in scenario]
    lines = [line for line in golden("base.jsonl") if line["src"] == "driver" and line["what"] == "invoke"]
    recorded = [line for line in lines if line["label"] != "sequence"]
    for record, line in zip(records, recorded, strict=False):
        notes = {item["key"]: item["value"] for item in record["annotations"]}
        assert (notes.get("initTime") is None) == (line["initTime"] is None), line["label"]
        assert notes["waitTime"] == pytest.approx(line["waitTime"], rel=0.5, abs=20), line["label"]
    found = re.findall(r"containerState: (\w+) container", (GOLDEN / "base.jsonl").read_text("utf-8"))
    wanted = [found[0], found[1], found[2], *found[5:8]]  # 3 and 4 are a sequence's components
    assert [state for _, state, _, _ in world.double.pool.log] == wanted


async def test_metrics_have_the_names_and_states_of_the_real_ones(world: World) -> None:
    """After cold, warm and prewarmed the counters read alike; gauges are absent at first, then have the same names."""
    for name in ("s1", "s1", "s2"):
        await world.blocking(name)
    counters = r"^counter_invoker_containerStart_counter_total\{.*?\} [\d.]+$"
    real = (GOLDEN / "metrics-3-after-prewarmed.txt").read_text()
    _, ours = await world.get("/metrics")
    assert sorted(re.findall(counters, ours, re.MULTILINE)) == sorted(re.findall(counters, real, re.MULTILINE))
    assert parse_gauges(ours) is None is parse_gauges(real)
    world.wait(40_000)
    gauges = r"^gauge_containerPool_\w+"
    real, (_, ours) = (GOLDEN / "metrics-4-after-throttle.txt").read_text(), await world.get("/metrics")
    assert sorted(re.findall(gauges, ours, re.MULTILINE)) == sorted(re.findall(gauges, real, re.MULTILINE))
    told, read = parse_gauges(ours), parse_gauges(real)
    assert told
    assert read
    assert (told.idle_mb, told.stem_mb) == (128 + 256, 256)
    assert (read.idle_mb, read.stem_mb) == (6 * 128, 256)


async def test_refusals_read_like_the_real_ones(world: World) -> None:
    """Per minute: 60 pass, the 61st and 62nd do not, and count. At once: those beyond the limit do not."""
    said = {line["what"]: line for line in golden("throttle.jsonl")}
    concurrent, rate = (json.loads(said[what]["body"])["error"] for what in ("429 concurrency", "429 rate"))
    codes = [(await world.post("s1", {"sleep_ms": 60_000})) for _ in range(31)]
    assert [status for status, _ in codes] == [202] * 30 + [429]
    # The real one counts while others are being admitted, and let a 31st in.
    assert json.loads(codes[-1][1])["error"] == concurrent.replace("31", "30", 1)
    world.wait(400_000)
    world.wait(60_000 - world.time.now_ms() % 60_000)
    for _ in range(60):
        assert (await world.post("s1", {}))[0] == 202
        world.wait(400)
    refused = [await world.post("s1", {}) for _ in range(2)]
    assert json.loads(refused[0][1])["error"] == rate
    assert json.loads(refused[1][1])["error"] == json.loads(said["marker while throttled"]["body"])["error"]
    assert shape(json.loads(refused[0][1])) == {"code": "str", "error": "str"}
    world.wait(60_000)
    assert (await world.post("s1", {}))[0] == 202
    assert (await world.get("/api/v1/namespaces/_/limits"))[1].replace(" ", "") == said["limits"]["body"].replace(
        " ", ""
    )


async def test_calls_in_flight_and_lists_read_like_the_real_ones(world: World) -> None:
    """/activation names id and action with version, /invokers is empty, a page of 201 is refused in the same words."""
    lines = {line["what"]: line for line in golden("base.jsonl") if line["src"] == "driver"}
    await world.blocking("s1")
    await world.post("s1", {"sleep_ms": 1_000})
    real, ours = json.loads(lines["GET (no auth) /activation"]["body"]), json.loads((await world.get("/activation"))[1])
    assert shape(ours) == shape(real)
    assert ours[0][1] == real[0][1]
    assert (await world.get("/invokers"))[1] == lines["GET (no auth) /invokers"]["body"]
    listed = {line["kind"]: line for line in golden("activations.jsonl")}
    status, body = await world.get("/api/v1/namespaces/_/activations?limit=201")
    assert status == listed["list limit=201"]["status"]
    assert json.loads(body)["error"] == json.loads(listed["list limit=201"]["body"])["error"]


async def test_an_answered_marker_warms_and_runs_no_user_code(world: World) -> None:
    """Of two actions the one that answers the marker does no work, the other does; both are warm then."""
    world.double.put(Spec("plain", memory_mb=128))
    marker = {"__ow_prewarm": {"op": "warm", "hold_ms": 0}}
    for name in ("s1", "plain"):
        assert (await world.post(name, marker))[0] == 202
    world.wait(2_000)
    assert world.double.pool.marker_user_runs == 1
    states = [state for _, state, _, _ in world.double.pool.log]
    await world.blocking("s1")
    await world.blocking("plain")
    assert [state for _, state, _, _ in world.double.pool.log][len(states) :] == ["warmed", "warmed"]


async def test_a_full_pool_evicts_the_longest_unused_then_queues_in_order(world: World) -> None:
    """1024 MB: a stem cell of 256 and six of 128; a seventh takes the oldest idle one's place; with all busy, calls wait for the
    first to end, take its place, and so on."""
    pool = world.double.pool
    for number in range(7):
        world.double.put(Spec(f"f{number}", memory_mb=128))
    for number in range(6):
        world.double.call(f"f{number}")
        world.wait(1_000)
    world.double.call("f6")
    world.wait(1_000)
    assert pool.log[-1][1:3] == ("recreated", "f6")
    assert (pool.containers("f0"), pool.containers("f1")) == (0, 1)
    for number in range(1, 7):
        world.double.call(f"f{number}", sleep_ms=5_000)
    world.double.call("f0")
    world.double.call("f1")
    world.wait(4_000)
    assert len(pool.log) == 13
    world.wait(4_000)
    assert [(state, name) for _, state, name, _ in pool.log[13:]] == [("recreated", "f0"), ("recreated", "f1")]


async def test_an_idle_container_is_paused_after_10_s_and_gone_after_10_min(world: World) -> None:
    """A pause costs the next call a little, the removal a cold start."""
    await world.blocking("s1")
    world.wait(10_100)
    notes = {item["key"]: item["value"] for item in (await world.blocking("s1"))["annotations"]}
    assert notes["waitTime"] > 40
    world.wait(609_000)
    assert world.double.pool.containers("s1") == 1
    world.wait(2_000)
    assert world.double.pool.containers("s1") == 0
