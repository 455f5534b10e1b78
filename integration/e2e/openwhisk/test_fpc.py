"""The FPC driver beside the double: in memory to the millisecond, and on real Kafka, etcd and gRPC."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from e2e.openwhisk import fpc_beside
from e2e.openwhisk.clocked import LoopClock
from e2e.openwhisk.foretold import Oracle, Played, calling, played
from e2e.openwhisk.fpc import running_fpc_in_memory
from e2e.openwhisk.fpc_beside import PluginClock, beside, serving_api
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.wire import annotations_of
from mesp_plugin.loop import Loop
from mesp_plugin.openwhisk.config import EtcdConfig, KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.messages import is_marker_id

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.openwhisk.fpc import Fpc
    from e2e.openwhisk.model import Json

#: A whole minute.
BEGIN_MS = 1_795_245_000_000
MINUTE_MS = 60_000
#: `f` have opted in, `h` have not; nobody foresees `plain`. What was used goes after a minute.
NAMES = ("f0", "f1", "h0", "h1", "plain")
CALLS = tuple(
    (BEGIN_MS + round((0.2 + 0.1 * place + 4 * again) * MINUTE_MS), name)
    for again in range(2)
    for place, name in enumerate(NAMES)
)
END_MS = BEGIN_MS + 6 * MINUTE_MS
POOLS = (PoolSettings(memory_mb=1024, idle_container_s=60.0),) * 2


def second(played: Played, *names: str) -> list[Json]:
    """Annotations of the second calls."""
    return [annotations_of(played.records[at_ms, name]) for at_ms, name in CALLS[len(NAMES) :] if name in names]


def waits_ms(played: Played, *names: str) -> list[int]:
    """From the second calls to the end of /init."""
    return [notes["waitTime"] + notes.get("initTime", 0) for notes in second(played, *names)]


def put_actions(double: Fpc) -> None:
    for name in NAMES:
        double.store.put(Action("guest", name, annotations={"mesp-prewarm": name.startswith("f")}))


async def in_memory(folder: Path, *, on: bool) -> Played:
    clock = LoopClock(BEGIN_MS - MINUTE_MS)
    async with AsyncExitStack() as stack:
        double = await stack.enter_async_context(running_fpc_in_memory(clock, invokers=POOLS))
        put_actions(double)
        api, ticks = await stack.enter_async_context(serving_api(double)), PluginClock(clock)
        oracle, platform, plugin, stop = Oracle(CALLS, ticks.now_ms, {"plain"}), None, None, asyncio.Event()
        if on:
            config = settings(api, folder)
            platform = await stack.enter_async_context(beside(double, config))
            plugin = asyncio.create_task(Loop(platform, oracle, config.loop).run(ticks, stop))
        records = await calling(double, CALLS)
        await clock.sleep_until(END_MS)
        stop.set()
        if plugin:
            await plugin
        return played(double, records, oracle, platform)


def settings(api: str, folder: Path, **members: object) -> OpenWhiskConfig:
    return OpenWhiskConfig.model_validate(
        {
            "api_host": api,
            "mode": "on",
            "state_file": folder / "state.json",
            "kafka": KafkaConfig(bootstrap_servers="none:9092"),
            "etcd": EtcdConfig(endpoints=("http://none:2379",)),
            **members,
        }
    )


def test_calls_meet_what_waits_and_nobody_is_harmed(tmp_path: Path) -> None:
    """The same calls without and with MESP: each succeeds and runs once; those foreseen wait for no container."""
    off = fpc_beside.run(in_memory(tmp_path, on=False))
    on = fpc_beside.run(in_memory(tmp_path, on=True))
    assert off.harmed_nobody()
    assert on.harmed_nobody()
    # From the call to the end of /init: a container has to be made, or one is held, initialised or not.
    assert min(waits_ms(off, "f0", "f1", "h0", "h1")) > 400
    assert max(waits_ms(on, "f0", "f1")) < 150
    assert max(waits_ms(on, "h0", "h1")) < 200
    assert min(waits_ms(on, "plain")) > 400
    assert not any("initTime" in notes for notes in second(on, "f0", "f1"))
    # A marker is sent to whom has opted in, and runs nobody's code; to be held needs none.
    markers = [ack for ack in on.messages if is_marker_id(str(ack.get("activationId")))]
    assert {
        one["body"]["name"] for one in on.messages if is_marker_id(one.get("body", {}).get("activationId", ""))
    } == {
        "guest/f0",
        "guest/f1",
    }
    assert markers
    assert on.tally == {"calls": 10, "cold": 6, "ordered": 4, "met": 4}
    assert on.told_the_truth()
