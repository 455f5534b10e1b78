"""etcd is killed as a machine would kill it, and comes back: what the FPC driver knows, and the right to act, recover."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from e2e.servers.etcd import running_etcd
from mesp.errors import UnavailableError
from mesp_plugin.openwhisk.cluster import Cluster, keep_up
from mesp_plugin.openwhisk.config import EtcdConfig
from mesp_plugin.openwhisk.etcd import open_etcd
from mesp_plugin.openwhisk.etcd_keys import SchedulerKey
from mesp_plugin.openwhisk.lease import TTL_S, Lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mesp_plugin.openwhisk.etcd_keys import Key

#: A loaded machine may take long.
PATIENCE_S = 60


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 (nobody tells when etcd is noticed to be away or back)
            await asyncio.sleep(0.05)


async def test_etcd_is_killed_and_comes_back(tmp_path: Path) -> None:
    """While it is away facts count as stale and the right to act runs out; then no fact is told twice, none that came
    meanwhile is missed, and whoever acted acts again, alone.
    """
    told: list[tuple[Key, bool]] = []
    now_s = [100.0]
    with running_etcd(tmp_path) as server:
        assert server.server
        async with open_etcd(EtcdConfig.model_validate({"endpoints": (server.url,)})) as etcd:
            cluster, acting, other = Cluster(), *(Lease(etcd, "kill", lambda: now_s[0]) for _ in "ab")
            cluster.listeners.append(lambda key, begins: told.append((key, begins)))
            server.put("whisk/scheduler/0", "{}")
            following = asyncio.create_task(keep_up(etcd, cluster))
            try:
                await until(lambda: cluster.fresh and cluster.schedulers == {"0"})
                await acting.renew()
                rights = [acting.is_ours]
                server.server.kill()
                await until(lambda: not cluster.fresh)
                with pytest.raises(UnavailableError):
                    await acting.renew()
                rights.append(acting.is_ours)  # as long as nobody else can have it
                now_s[0] += TTL_S
                rights.append(acting.is_ours)
                assert rights == [True, True, False]
                assert cluster.schedulers == {"0"}
                await asyncio.to_thread(server.server.start)
                server.put("whisk/scheduler/1", "{}")
                await until(lambda: cluster.fresh and cluster.schedulers == {"0", "1"})
                assert told == [(SchedulerKey("0"), True), (SchedulerKey("1"), True)]
                await acting.renew()
                await other.renew()
                assert [acting.is_ours, other.is_ours] == [True, False]
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
