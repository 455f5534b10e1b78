"""From settings to a platform that can be driven: the key, the connection, what is there, the driver for it.

Who starts everything at once starts the plugin before OpenWhisk answers. So a run waits, and says for what, as long as
nothing is wrong: no answer, or none in time, is a reason to wait; a refused key or a configuration that does not fit is
not, nor is it one for whoever only asks (`probe`).
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from mesp.alone import alone
from mesp.errors import InputError, UnavailableError
from mesp_plugin.loop import WallClock
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.budget import Budget
from mesp_plugin.openwhisk.classic import ClassicDriver
from mesp_plugin.openwhisk.cluster import Cluster, keep_up
from mesp_plugin.openwhisk.etcd import open_etcd
from mesp_plugin.openwhisk.fpc import FpcDriver
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.holds import Holds
from mesp_plugin.openwhisk.kafka import FPC_TOPICS, open_bus
from mesp_plugin.openwhisk.lease import Lease
from mesp_plugin.openwhisk.messages import Caller
from mesp_plugin.openwhisk.platform import OpenWhiskPlatform
from mesp_plugin.openwhisk.probe import probe
from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi, connect
from mesp_plugin.openwhisk.standalone import StandaloneDriver
from mesp_plugin.openwhisk.triggers import Triggers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesp_plugin.loop import Clock
    from mesp_plugin.metrics import OpenWhiskMetrics
    from mesp_plugin.openwhisk.config import EtcdConfig, OpenWhiskConfig
    from mesp_plugin.openwhisk.driver import Driver
    from mesp_plugin.openwhisk.probe import Probe


_log = structlog.get_logger(__name__)

#: From one look whether OpenWhisk is there to the next; the last one again and again.
_WAITS_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0)


@asynccontextmanager
async def open_platform(
    config: OpenWhiskConfig, metrics: OpenWhiskMetrics | None = None, clock: Clock | None = None
) -> AsyncIterator[OpenWhiskPlatform]:
    """Probes, and opens the platform with the driver that is configured, or that fits.

    Args:
        config: the settings.
        metrics: where they are counted.
        clock: by which containers are held (FPC); None: the machine's.

    Raises:
        InputError: no key, a key that is not taken, no driver that fits what is there, a state file that another
            plugin uses.
        UnavailableError: the platform does not answer, or as yet nothing is there that a driver fits.
    """
    key, holdings = Key.read(config), Holdings(config.state_file)
    with alone(config.state_file, "another plugin"):
        async with connect(config) as session, AsyncExitStack() as stack:
            api = OpenWhiskApi(session, config.api_host, key, config.namespace)
            await api.namespaces()  # the plain sentence where host or key are wrong
            found = await probe(api, config)
            name = _choose(found, config)
            assert found.namespace is not None  # where a driver can be used it is known
            actions = Actions(api, found.namespace, config.opt_in)
            driver: Driver
            owner = _owner(key, found.namespace)
            if name == "classic" and config.kafka:
                bus = await stack.enter_async_context(open_bus(config.kafka))
                driver = ClassicDriver(bus, found.namespace, owner, actions, holdings, config, metrics)
            elif name == "fpc" and config.kafka and config.etcd:
                bus = await stack.enter_async_context(open_bus(config.kafka, FPC_TOPICS))
                limit = (await api.limits()).concurrent
                waits = await stack.enter_async_context(_waiting(config, config.etcd, holdings, clock, metrics))
                driver = FpcDriver(bus, *waits, found.namespace, owner, actions, holdings, config, limit, metrics)
            else:
                budget = Budget(await api.limits(), config.limits_margin_share)
                driver = StandaloneDriver(api, found.namespace, actions, holdings, config, budget)
            triggers = Triggers(api, found.namespace, actions)
            yield OpenWhiskPlatform(
                driver, holdings, mode=config.mode, expiry_ms=config.expiry_ms, metrics=metrics, triggers=triggers
            )


def _choose(found: Probe, config: OpenWhiskConfig) -> str:
    """The driver that is configured, or that fits; `UnavailableError` where there may be one in a moment."""
    if config.driver == "auto":
        name, may_pass = found.driver, bool(found.may_pass)
        reasons = [f"{key}: {why_not}" for key, why_not in found.drivers.items() if why_not]
        sentence = f"no driver can be used at {config.api_host}: {'; '.join([*found.trouble, *reasons])}"
    else:
        why_not, may_pass = found.drivers[config.driver], config.driver in found.may_pass
        name = None if why_not else config.driver
        sentence = f"driver = {config.driver}: {why_not}; what could be used says mesp plugin openwhisk probe"
    if name is None:
        raise UnavailableError(sentence) if may_pass else InputError(sentence)
    return name


@asynccontextmanager
async def open_when_there(
    config: OpenWhiskConfig, metrics: OpenWhiskMetrics | None, clock: Clock | None, stop: asyncio.Event
) -> AsyncIterator[OpenWhiskPlatform | None]:
    """As `open_platform`, but what does not answer is waited for; None where `stop` came first.

    Raises:
        InputError: as there, at once.
    """
    told = ""
    for wait_s in itertools.chain(_WAITS_S, itertools.repeat(_WAITS_S[-1])):
        async with AsyncExitStack() as stack:
            try:
                platform = await stack.enter_async_context(open_platform(config, metrics, clock))
            except UnavailableError as error:
                if told != (told := str(error)):
                    _log.warning("waiting for OpenWhisk", error=told)
            else:
                yield platform
                return
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait_s)
        if stop.is_set():
            yield None
            return


@asynccontextmanager
async def _waiting(
    config: OpenWhiskConfig,
    etcd_config: EtcdConfig,
    holdings: Holdings,
    clock: Clock | None,
    metrics: OpenWhiskMetrics | None,
) -> AsyncIterator[tuple[Cluster, Holds, Lease]]:
    """Follows etcd, asks for the lease, and answers fetches while the block runs.

    Should one of the first two break, nothing more is ordered: facts are stale then, or the lease runs out.
    """
    from mesp_plugin.openwhisk.service import serving  # noqa: PLC0415 (grpc is needed by this driver alone)

    cluster = Cluster(etcd_config.cluster)
    holds = Holds(cluster, holdings, clock or WallClock())
    async with open_etcd(etcd_config) as etcd:
        there, _ = await etcd.look(f"{cluster.name}/")  # the plain sentence where etcd is not there, or not for us
        cluster.replace(there)
        lease = Lease(etcd, config.kafka.group if config.kafka else "mesp")
        await lease.renew()
        async with serving(holds, f"{config.fpc.listen}:{config.fpc.port}", metrics):
            running = [asyncio.create_task(keep_up(etcd, cluster)), asyncio.create_task(lease.keep())]
            try:
                yield cluster, holds, lease
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                await lease.give_up()


def _owner(key: Key, namespace: str) -> Caller | None:
    """Who calls a namespace's actions, from its key: the first half of one is the namespace's own id (Identity.scala).

    The subject's name is not known. Invokers only write it into records, and want five characters.
    """
    uuid = key.value.partition(":")[0]
    return Caller(namespace, namespace, uuid, ("READ", "PUT", "DELETE", "ACTIVATE")) if len(namespace) >= 5 else None
