"""The FPC driver on real servers: etcd plain and secured, and the double's Kafka, etcd and gRPC all at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.fpc import running_fpc
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.servers.etcd import PASSWORD
from e2e.servers.process import free_ports
from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp_placement.model import ContainerState, Plan, Prewarm
from mesp_plugin.openwhisk.config import EtcdConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.etcd import Change, CompactedError, open_etcd
from mesp_plugin.openwhisk.lease import Lease
from mesp_plugin.openwhisk.start import open_platform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from e2e.openwhisk.fpc import Fpc
    from e2e.servers.etcd import Etcd as Server
    from e2e.servers.kafka import Kafka
    from mesp_placement.model import Snapshot
    from mesp_plugin.openwhisk.etcd import Etcd
    from mesp_plugin.openwhisk.platform import OpenWhiskPlatform
    from mesp_plugin.platform import Outcomes

PLAIN = FunctionKey("guest", "plain")
#: A loaded machine may take long.
PATIENCE_S = 60


# --- etcd -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "secured"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue("etcd" if request.param == "plain" else "etcd_secured")
    return found


@asynccontextmanager
async def client(server: Server, monkeypatch: pytest.MonkeyPatch, password: str = PASSWORD) -> AsyncIterator[Etcd]:
    monkeypatch.setenv("MESP_ETCD_PASSWORD", password)
    user = {"ca_file": server.authority, "username": "root"} if server.authority else {}
    async with open_etcd(EtcdConfig.model_validate({"endpoints": (server.url,), **user})) as etcd:
        yield etcd


async def test_changes_are_followed_from_a_look_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost between the two, nor after a break; what was compacted away says so."""
    async with client(server, monkeypatch) as etcd, asyncio.timeout(PATIENCE_S):
        lease = await etcd.grant(60)
        assert await etcd.create("look/a", "1", lease)
        there, revision = await etcd.look("look/")
        assert there == [Change("look/a", b"1")]
        await etcd.create("look/b", "2", lease)
        await etcd.create("other", "2", lease)
        await etcd.revoke(lease)  # a and b go
        seen: list[Change] = []
        async for changes, _ in etcd.follow("look/", revision + 1):
            seen += changes
            if len(seen) == 3:
                break
        _, last = await etcd.look("look/")
        assert seen[0] == Change("look/b", b"2")
        assert set(seen[1:]) == {Change("look/a", None), Change("look/b", None)}
        assert last > revision
        server.call("kv/compaction", {"revision": str(last)})
        with pytest.raises(CompactedError):
            async for _ in etcd.follow("look/", revision + 1):
                pass


async def test_one_of_two_has_the_lease(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, once the first gives it up."""
    async with client(server, monkeypatch) as etcd, asyncio.timeout(PATIENCE_S):
        first, second = (Lease(etcd, "real") for _ in "ab")
        for one in (first, second, first):
            await one.renew()
        assert [first.is_ours, second.is_ours] == [True, False]
        await first.give_up()
        await second.renew()
        assert [first.is_ours, second.is_ours] == [False, True]
        await second.give_up()


async def test_another_password_opens_nothing(etcd_secured: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told to nobody."""
    async with client(etcd_secured, monkeypatch, "another-secret") as etcd:
        with pytest.raises(UnavailableError, match="auth/authenticate failed with HTTP 400") as caught:
            await etcd.look("a")
    assert "secret" not in str(caught.value)


# --- All of it ------------------------------------------------------------------------------------------------------------


def settings(kafka: Kafka, etcd: Server, api: str, folder: Path, name: str) -> OpenWhiskConfig:
    (port,) = free_ports(1)
    return OpenWhiskConfig.model_validate(
        {
            "api_host": api,
            "mode": "on",
            "state_file": folder / f"{name}.json",
            "kafka": {"bootstrap_servers": kafka.plain, "prefix": "wire-"},
            "etcd": {"endpoints": [etcd.url], "cluster": "wire"},
            "fpc": {"port": port},
        }
    )


@dataclass(frozen=True)
class Side:
    """One plugin beside the double."""

    double: Fpc
    platform: OpenWhiskPlatform

    async def look(self) -> Snapshot:
        """What it sees now."""
        await self.platform.observe(self.double.clock.now_ms)
        return await self.platform.snapshot(self.double.clock.now_ms)

    async def order(self) -> Outcomes:
        """One container on the second invoker."""
        plan = Plan(prewarms=(Prewarm(PLAIN, "invoker1", 1, "because"),))
        return await self.platform.apply(plan, self.double.clock.now_ms)

    async def until(self, true: Callable[[Snapshot], bool]) -> None:
        """Looks until it is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not true(await self.look()):  # noqa: ASYNC110 (nobody tells when a look would show it)
                await asyncio.sleep(0.1)

    async def until_ordered(self) -> None:
        """Tries until it may."""
        async with asyncio.timeout(PATIENCE_S):
            while (outcomes := await self.order()).prewarmed == 0:
                assert "standby" in outcomes.refused[0]
                await asyncio.sleep(0.1)

    async def call(self) -> int:
        """A user's call; its status code."""
        action = self.double.store.get("guest/plain")
        assert action is not None
        _, record = await self.double.controller.invoke(GUEST, action, {"ms": 100}, blocking=True)
        assert record is not None
        code: int = record["response"]["statusCode"]
        return code


def is_held(snapshot: Snapshot) -> bool:
    """One container, on the second invoker, ours, waits."""
    return [(one.node, one.state, one.owned) for one in snapshot.containers] == [
        ("invoker1", ContainerState.IDLE, True)
    ]


async def test_a_container_is_held_and_met(
    kafka: Kafka, etcd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordered on the invoker of the plan it asks us, waits without a marker, and runs the next call; a second plugin
    stands by, and acts when the first has ended.
    """
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", GUEST.key)
    pools = (PoolSettings(memory_mb=1024, pause_grace_s=1.0, idle_container_s=1.0),) * 2
    async with AsyncExitStack() as stack:
        options = {"bootstrap_servers": kafka.plain}
        double = await stack.enter_async_context(
            running_fpc(options, etcd.url, invokers=pools, prefix="wire-", cluster="wire")
        )
        double.store.put(Action("guest", "plain"))

        async def plugin(name: str, stack: AsyncExitStack) -> Side:
            config = settings(kafka, etcd, double.api, tmp_path, name)
            return Side(double, await stack.enter_async_context(open_platform(config)))

        first_life = await stack.enter_async_context(AsyncExitStack())
        first, second = await plugin("first", first_life), await plugin("second", stack)
        nodes = [(node.name, node.memory_mb) for node in (await first.look()).nodes]
        assert nodes == [("invoker0", 1024), ("invoker1", 1024)]
        await second.look()
        assert await first.call() == 0
        await first.until(lambda seen: first.platform.tally.cold == 1 and not seen.containers)
        assert (await second.order()).refused[0].startswith("standby")
        for side in (first, second):
            await side.until(lambda seen: not seen.containers)
            await side.until_ordered()
            await side.until(is_held)
            assert await side.call() == 0
            await side.until(lambda _, tally=side.platform: tally.tally.met == 1)  # type: ignore[misc]
            assert side.platform.tally.ordered == 1
            # The very first call; who stands by does not know what the other one's containers meet.
            assert side.platform.tally.cold == (1 if side is first else 2)
            await first_life.aclose()
