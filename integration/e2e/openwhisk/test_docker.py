"""Real containers, under a real Docker engine, behind the doubles of classic OpenWhisk and of FPC.

Kafka, etcd, gRPC and time are real, too. The runtime image is this machine's Python with the shim that MESP ships, so an
action is Python, and whatever it prints shows what of it has run. (The double of standalone OpenWhisk has no containers, only
their times.) Skipped where no engine can be started.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pytest

from e2e.openwhisk.classic import GUEST, running_classic
from e2e.openwhisk.docker import END, docker_containers, running_runtime
from e2e.openwhisk.fpc import running_fpc
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.wire import annotations_of
from e2e.servers.process import free_ports
from mesp.types import FunctionKey
from mesp_placement.model import ContainerState, Plan, Prewarm, Release
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.start import open_platform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from e2e.openwhisk.classic import Classic
    from e2e.openwhisk.docker import DockerContainers
    from e2e.openwhisk.fpc import Fpc
    from e2e.openwhisk.model import Json
    from e2e.servers.docker import Docker
    from e2e.servers.etcd import Etcd
    from e2e.servers.kafka import Kafka
    from mesp_plugin.openwhisk.platform import OpenWhiskPlatform

HELLO = FunctionKey("guest", "hello")
#: Prints what of it runs, counts its runs, and says in which container they were.
CODE = """
import os, time
print("initialised")
runs = 0
def main(args):
    global runs
    runs += 1
    print("run", runs)
    if args.get("die"):
        os._exit(1)
    time.sleep(args.get("ms", 0) / 1000)
    return {"runs": runs, "host": os.uname().nodename}
"""
INVOKER = PoolSettings(memory_mb=1024, pause_grace_s=300)
#: A loaded machine may take long.
PATIENCE_S = 60


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with running_runtime(tmp_path_factory.mktemp("docker")) as engine:
        yield engine


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin's."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", GUEST.key)


@pytest.fixture
async def containers(docker: Docker) -> AsyncIterator[DockerContainers]:
    """Of the engine; every test must leave it as empty as it was."""
    async with docker_containers(docker) as engine:
        yield engine
        await until(lambda: none(engine))
    assert docker.containers() == []


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await true():  # noqa: ASYNC110 (an engine has to be asked)
            await asyncio.sleep(0.05)


async def none(engine: DockerContainers) -> bool:
    return not await engine.shown()


@dataclass(frozen=True)
class Scene:
    """A double with real containers, and the action `hello`, which has opted in."""

    double: Classic | Fpc
    engine: DockerContainers

    async def call(self, **parameters: object) -> Json:
        """A user's call; its record."""
        action = self.double.store.get(str(HELLO))
        assert action is not None
        _, record = await self.double.controller.invoke(GUEST, action, parameters, blocking=True)
        assert record is not None
        return record

    async def mine(self) -> dict[str, str]:
        """Containers of the action: id and state."""
        return {one["Id"]: one["State"] for one in await self.engine.shown() if "guest_hello" in one["Names"][0]}

    async def printed(self) -> list[str]:
        """By the action's one container, on stdout."""
        (container_id,) = await self.mine()
        return [line async for stream, line in self.engine.output(container_id) if stream == 1]

    async def events(self, *wanted: str) -> None:
        """Returns once the recording tells of these, of the action's containers, in this order."""

        async def told() -> bool:
            lines = [line for line in self.double.recording.of("docker") if "guest_hello" in line["name"]]
            return [line["action"] for line in lines] == list(wanted)

        await until(told)


class Warmed(NamedTuple):
    """A scene, and the plugin beside it."""

    scene: Scene
    platform: OpenWhiskPlatform


@asynccontextmanager
async def classic(kafka: Kafka, engine: DockerContainers, name: str, **how: float) -> AsyncIterator[Scene]:
    """One invoker, up."""
    pool = PoolSettings(**{**vars(INVOKER), **how})
    async with running_classic(
        {"bootstrap_servers": kafka.plain}, invokers=(pool,), engine=engine, prefix=f"{name}-"
    ) as double:
        double.store.put(hello())
        engine.tell(double.recording)
        yield Scene(double, engine)


def hello(*, opted_in: bool = True) -> Action:
    return Action("guest", "hello", 128, kind="python:3", code=CODE, annotations={"mesp-prewarm": opted_in})


def result(record: Json) -> Json:
    """What the action answered."""
    assert record["response"]["statusCode"] == 0, record
    said: Json = record["response"]["result"]
    return said


def is_cold(record: Json) -> bool:
    return "initTime" in annotations_of(record)


# --- Classic ----------------------------------------------------------------------------------------------------------


async def test_a_call_is_cold_then_warm(kafka: Kafka, containers: DockerContainers) -> None:
    """The first makes a container and initialises it, the second runs in the same; the invoker's end removes it."""
    async with classic(kafka, containers, "cold") as scene:
        first, second = await scene.call(), await scene.call()
        assert (is_cold(first), is_cold(second)) == (True, False)
        assert [result(record)["runs"] for record in (first, second)] == [1, 2]
        assert await scene.printed() == ["initialised", "run 1", END, "run 2", END]
        await scene.events("create", "start")
    await scene.events("create", "start", "kill", "die", "destroy")


async def test_two_calls_at_once_make_two_containers(kafka: Kafka, containers: DockerContainers) -> None:
    """Each is the first run of its own."""
    async with classic(kafka, containers, "twins") as scene:
        records = await asyncio.gather(scene.call(ms=1500), scene.call(ms=1500))
        assert [(is_cold(record), result(record)["runs"]) for record in records] == [(True, 1)] * 2
        assert len({result(record)["host"] for record in records}) == len(await scene.mine()) == 2


async def test_an_idle_container_is_frozen_and_resumed(kafka: Kafka, containers: DockerContainers) -> None:
    """After its grace it is paused, the next call runs in it, and once its time is over it goes by itself."""
    async with classic(kafka, containers, "pause", pause_grace_s=0.2, idle_container_s=3.0) as scene:
        await scene.call()

        async def is_paused() -> bool:
            return list((await scene.mine()).values()) == ["paused"]

        await until(is_paused)
        again = await scene.call()
        assert (is_cold(again), result(again)["runs"]) == (False, 2)
        await until(lambda: none(containers))
        life = ("create", "start", "pause", "unpause", "pause", "unpause", "kill", "die", "destroy")
        await scene.events(*life)


async def test_a_process_that_ends_takes_its_container_with_it(kafka: Kafka, containers: DockerContainers) -> None:
    """Its call fails as the action's own fault, the container is removed, and the next call gets another one."""
    async with classic(kafka, containers, "die") as scene:
        failed = await scene.call(die=True)
        assert failed["response"]["statusCode"] == 2
        assert "did not produce a valid response" in failed["response"]["result"]["error"]
        assert is_cold(await scene.call())
        assert len(await scene.mine()) == 1


def settings(api: str, folder: Path, **members: object) -> OpenWhiskConfig:
    return OpenWhiskConfig.model_validate(
        {"api_host": api, "mode": "on", "state_file": folder / "state.json", **members}
    )


async def order(platform: OpenWhiskPlatform, scene: Scene) -> None:
    """One container on the one invoker, as soon as the plugin may."""

    async def ordered() -> bool:
        now_ms = scene.double.clock.now_ms
        await platform.observe(now_ms)
        await platform.snapshot(now_ms)
        plan = Plan(prewarms=(Prewarm(HELLO, "invoker0", 1, "because"),))
        return (await platform.apply(plan, now_ms)).prewarmed == 1

    await until(ordered)


@asynccontextmanager
async def warmed(kafka: Kafka, engine: DockerContainers, name: str, folder: Path) -> AsyncIterator[Warmed]:
    """The plugin has had one container made of an action that nobody has called."""
    async with classic(kafka, engine, name) as scene:
        bus = {"bootstrap_servers": kafka.plain, "prefix": f"{name}-", "early_removal": True}
        async with open_platform(settings(scene.double.api, folder, kafka=bus)) as platform:
            await order(platform, scene)

            async def is_warm() -> bool:
                return len(await scene.mine()) == 1 and END in await scene.printed()

            await until(is_warm)
            yield Warmed(scene, platform)


async def test_a_marker_makes_a_container_and_runs_no_users_code(
    kafka: Kafka, containers: DockerContainers, tmp_path: Path
) -> None:
    """It is made and initialised, and the shim answers for the code; the user's first call is warm."""
    async with warmed(kafka, containers, "marker", tmp_path) as (scene, _):
        assert await scene.printed() == ["initialised", END]
        record = await scene.call()
        assert (is_cold(record), result(record)["runs"]) == (False, 1)
        assert await scene.printed() == ["initialised", END, "run 1", END]


async def test_what_was_added_is_ended_early(kafka: Kafka, containers: DockerContainers, tmp_path: Path) -> None:
    """The shim answers the marker for it so that the invoker destroys the container."""
    async with warmed(kafka, containers, "early", tmp_path) as (scene, platform):

        async def is_released() -> bool:
            now_ms = scene.double.clock.now_ms
            await platform.observe(now_ms)
            held = (await platform.snapshot(now_ms)).containers
            releases = tuple(Release(HELLO, one.id, one.node, "because") for one in held)
            return (await platform.apply(Plan(releases=releases), now_ms)).released == 1

        await until(is_released)
        await scene.events("create", "start", "kill", "die", "destroy")


# --- FPC --------------------------------------------------------------------------------------------------------------


async def test_a_held_container_is_up_and_empty(
    kafka: Kafka, etcd: Etcd, containers: DockerContainers, tmp_path: Path
) -> None:
    """The plugin holds its first fetch, without a marker: it is up, and nothing was sent into it until the user's call
    comes and runs there.
    """
    (port,) = free_ports(1)
    pool = PoolSettings(memory_mb=1024, pause_grace_s=1.0, idle_container_s=1.0)
    options = {"bootstrap_servers": kafka.plain}
    async with running_fpc(
        options, etcd.url, invokers=(pool,), engine=containers, prefix="held-", cluster="held"
    ) as double:
        double.store.put(hello(opted_in=False))
        containers.tell(double.recording)
        scene = Scene(double, containers)
        config = settings(
            double.api,
            tmp_path,
            kafka={"bootstrap_servers": kafka.plain, "prefix": "held-"},
            etcd={"endpoints": [etcd.url], "cluster": "held"},
            fpc={"port": port},
        )
        async with open_platform(config) as platform:

            async def sees(*states: ContainerState) -> bool:
                await platform.observe(double.clock.now_ms)
                snapshot = await platform.snapshot(double.clock.now_ms)
                return tuple(one.state for one in snapshot.containers) == states

            assert is_cold(await scene.call())  # by which the plugin learns the action's revision
            await until(lambda: none(containers))
            await until(sees)
            await order(platform, scene)
            await until(lambda: sees(ContainerState.IDLE))
            (held,) = await scene.mine()
            assert await scene.printed() == []
            record = await scene.call()
            assert (is_cold(record), result(record)) == (True, {"runs": 1, "host": held[:12]})
