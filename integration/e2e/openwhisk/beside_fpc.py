"""An FPC driver on a bus of lists and keys by hand, with a clock moved by hand: the tests say what the platform says."""

from __future__ import annotations

import asyncio
import heapq
import json
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry

from e2e.openwhisk.beside_bus import BEGIN_MS, HELLO, PLAIN, UUID, FakeApi, FakeBus, call_message, invoker, record
from mesp_placement.model import Prewarm, Release
from mesp_plugin.metrics import OpenWhiskMetrics
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.cluster import Cluster
from mesp_plugin.openwhisk.config import EtcdConfig, KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.etcd import Change
from mesp_plugin.openwhisk.etcd_keys import ContainerKey, CreationKey, InvokerKey, QueueKey, ThrottlingKey
from mesp_plugin.openwhisk.fetches import Fetch
from mesp_plugin.openwhisk.fpc import FpcDriver
from mesp_plugin.openwhisk.holdings import Holdings, HoldingState
from mesp_plugin.openwhisk.holds import Holds
from mesp_plugin.openwhisk.messages import Caller
from mesp_plugin.openwhisk.names import ActionName, action_path

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FunctionKey
    from mesp_placement.model import Container
    from mesp_plugin.openwhisk.driver import Done, Observed
    from mesp_plugin.openwhisk.etcd_keys import Key
    from mesp_plugin.openwhisk.fetches import NoCall
    from mesp_plugin.openwhisk.fields import JsonObject
    from mesp_plugin.openwhisk.rest import OpenWhiskApi

Json = dict[str, Any]
LEADER = b'{"host":"127.0.0.1","pekkoPort":25520,"rpcPort":13001}'


class HandClock:
    """Moved by hand; see `mesp_plugin.loop.Clock`."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ids = count()

    def now_ms(self) -> int:
        return self._now_ms

    async def sleep_until(self, at_ms: int) -> None:
        if at_ms > self._now_ms:
            waked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._sleepers, (at_ms, next(self._ids), waked))
            await waked

    def advance(self, ms: int) -> None:
        self._now_ms += ms
        while self._sleepers and self._sleepers[0][0] <= self._now_ms:
            waked = heapq.heappop(self._sleepers)[2]
            if not waked.done():
                waked.set_result(None)


@dataclass
class Right:
    """Ours, unless a test takes it away."""

    is_ours: bool = True


@dataclass
class World:
    """The driver and what surrounds it."""

    folder: Path
    clock: HandClock
    bus: FakeBus
    api: FakeApi
    metrics: OpenWhiskMetrics
    config: OpenWhiskConfig
    cluster: Cluster
    holdings: Holdings
    holds: Holds
    driver: FpcDriver
    right: Right
    ids: Any = field(default_factory=lambda: count(1))
    tasks: list[asyncio.Task[JsonObject | NoCall]] = field(default_factory=list)

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms()

    # --- What the platform says -------------------------------------------------------------------------------------

    def put(self, key: Key, value: bytes = b"") -> None:
        self.cluster.apply(Change(key.path(), value))

    def delete(self, key: Key) -> None:
        self.cluster.apply(Change(key.path(), None))

    def invoker(self, number: int = 0, free_mb: int = 2048, busy_mb: int = 0, **members: Any) -> None:
        value = {"status": "up", "freeMemory": free_mb, "busyMemory": busy_mb, "inProgressMemory": 0}
        value |= {"tags": [], "dedicatedNamespaces": [], **members}
        self.put(InvokerKey(number), json.dumps(value).encode())

    def queue(self, function: FunctionKey) -> None:
        self.put(QueueKey(function.scope, action_path(function)), LEADER)

    def no_queue(self, function: FunctionKey) -> None:
        self.delete(QueueKey(function.scope, action_path(function)))

    def throttle(self, namespace: str, on: bool = True) -> None:
        self.put(ThrottlingKey(namespace), b"true" if on else b"false")

    def creating(self, function: FunctionKey) -> CreationKey:
        key = CreationKey(function.scope, action_path(function), "1-aa", "0", f"{next(self.ids):032x}")
        self.put(key)
        return key

    def container(self, function: FunctionKey, name: str, *, warmed: bool = False, number: int = 0) -> ContainerKey:
        key = ContainerKey(warmed, function.scope, action_path(function), "1-aa", number, name)
        self.put(key)
        return key

    def paused(self, key: ContainerKey) -> ContainerKey:
        """The container pauses: first the one key, then not the other."""
        warmed = ContainerKey(True, key.namespace, key.action, key.revision, key.invoker, key.container_id)
        self.put(warmed)
        self.delete(key)
        return warmed

    def resumed(self, key: ContainerKey) -> ContainerKey:
        up = ContainerKey(False, key.namespace, key.action, key.revision, key.invoker, key.container_id)
        self.delete(key)
        self.put(up)
        return up

    def call(self, function: FunctionKey, **members: Any) -> str:
        """A user's call is admitted now; its id."""
        activation_id = f"{next(self.ids):032x}"
        self.bus.say("scheduler0", call_message(function, activation_id, self.now_ms, **members), self.now_ms)
        return activation_id

    def done(self, function: FunctionKey, activation_id: str, *, init_ms: int = 0) -> None:
        shown = record(function, activation_id, self.now_ms, init_ms=init_ms)
        self.bus.say("completed0", {"transid": ["tid", 1], "response": shown}, self.now_ms)
        free = {"transid": ["tid", 1], "activationId": activation_id, "isSystemError": False, "instance": invoker()}
        self.bus.say("completed0", free, self.now_ms)

    async def known(self, function: FunctionKey, **members: Any) -> None:
        """A call came and went: its revision is known."""
        self.done(function, self.call(function, **members))
        await self.look(10)

    # --- What the plugin does -----------------------------------------------------------------------------------------

    async def look(self, wait_ms: int = 0) -> Observed:
        await self.wait(wait_ms)
        self.holdings.expire(self.now_ms)
        seen = await self.driver.observe(self.now_ms)
        await settle()
        return seen

    async def wait(self, ms: int) -> None:
        self.clock.advance(ms)
        await settle()

    async def prewarm(self, function: FunctionKey, count: int = 1, node: str = "invoker0", likely: float = 0.0) -> Done:
        return await self.driver.prewarm(Prewarm(function, node, count, "because", likely=likely), self.now_ms)

    async def release(self, container: Container) -> Done:
        wish = Release(container.function, container.id, container.node, "because")
        return await self.driver.release(wish, self.now_ms)

    def orders(self) -> list[Json]:
        return [message for _, message in self.bus.sent]

    async def containers(self, function: FunctionKey) -> list[Container]:
        snapshot = await self.driver.snapshot(self.now_ms)
        return [one for one in snapshot.containers if one.function == function]

    # --- What a container does ----------------------------------------------------------------------------------------

    async def asks(
        self, function: FunctionKey, name: str, *, warmed: bool = False, alive: bool = True, version: str = "0.0.1"
    ) -> asyncio.Task[JsonObject | NoCall]:
        """It fetches; the answer is there once the task is done."""
        path, _, action = action_path(function).rpartition("/")
        fetch = Fetch(function.scope, ActionName(path, action, version), "1-aa", name, warmed, None, alive)
        task = asyncio.create_task(self.holds.fetch(fetch))
        self.tasks.append(task)
        await settle()
        return task

    async def held(self, function: FunctionKey, name: str = "c1", number: int = 0) -> asyncio.Task[JsonObject | NoCall]:
        """Ordered, up, and asking for the first time."""
        assert (await self.prewarm(function, node=f"invoker{number}")).count == 1
        self.container(function, name, number=number)
        return await self.asks(function, name)

    def states(self) -> list[HoldingState]:
        """What became of each order."""
        return [item.state for item in self.holdings.all()]

    def restart(self) -> None:
        """The plugin is killed, and another one comes up."""
        self.holdings = Holdings(self.folder / "state.json")
        self.cluster.listeners.clear()
        self.holds = Holds(self.cluster, self.holdings, self.clock)
        self.driver = make_driver(self)


async def settle() -> None:
    """Whoever can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


def make_driver(world: World) -> FpcDriver:
    return FpcDriver(
        world.bus,
        world.cluster,
        world.holds,
        world.right,
        "guest",
        Caller("guest", "guest", UUID, ("READ", "ACTIVATE")),
        Actions(cast("OpenWhiskApi", world.api), "guest", world.config.opt_in),
        world.holdings,
        world.config,
        30,
        world.metrics,
        random_bits=lambda _: next(world.ids),
    )


def make_world(folder: Path, **settings: Any) -> World:
    """`hello` has opted in, `plain` has not; one invoker of 2048 MB."""
    config = OpenWhiskConfig(
        kafka=KafkaConfig(bootstrap_servers="nowhere:9092"),
        etcd=EtcdConfig(endpoints=("http://nowhere:2379",)),
        **({"mode": "on"} | settings),
    )
    clock, cluster = HandClock(BEGIN_MS), Cluster()
    cluster.fresh = True
    holdings = Holdings(folder / "state.json")
    holds = Holds(cluster, holdings, clock)
    world = World(
        folder,
        clock,
        FakeBus(BEGIN_MS),
        FakeApi(),
        OpenWhiskMetrics(CollectorRegistry()),
        config,
        cluster,
        holdings,
        holds,
        cast("FpcDriver", None),
        Right(),
    )
    world.api.put("hello", annotations={"mesp-prewarm": True})
    world.api.put("plain")
    world.driver = make_driver(world)
    world.invoker()
    return world


async def make_known_world(folder: Path) -> World:
    """Both functions were called once, by which their revision is known."""
    world = make_world(folder)
    await world.look()
    await world.known(HELLO)
    await world.known(PLAIN)
    return world
