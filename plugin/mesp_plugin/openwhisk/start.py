"""From settings to a platform that can be driven: the key, the connection, what is there, the driver for it."""

from __future__ import annotations

import fcntl
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.budget import Budget
from mesp_plugin.openwhisk.classic import ClassicDriver
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.kafka import open_bus
from mesp_plugin.openwhisk.messages import Caller
from mesp_plugin.openwhisk.platform import OpenWhiskPlatform
from mesp_plugin.openwhisk.probe import probe
from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi, connect
from mesp_plugin.openwhisk.standalone import StandaloneDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from mesp_plugin.metrics import OpenWhiskMetrics
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.driver import Driver


@asynccontextmanager
async def open_platform(
    config: OpenWhiskConfig, metrics: OpenWhiskMetrics | None = None
) -> AsyncIterator[OpenWhiskPlatform]:
    """Probes, and opens the platform with the driver that is configured, or that fits.

    Raises:
        InputError: no key, a key that is not taken, a driver that this version does not have, a state file that
            another plugin uses.
        UnavailableError: the platform does not answer, or no driver fits what is there.
    """
    key, holdings = Key.read(config), Holdings(config.state_file)
    with _alone(config.state_file):
        async with connect(config) as session, AsyncExitStack() as stack:
            api = OpenWhiskApi(session, config.api_host, key, config.namespace)
            await api.namespaces()  # the plain sentence where host or key are wrong
            found = await probe(api, config)
            name = found.driver if config.driver == "auto" else config.driver
            if config.driver != "auto" and (why_not := found.drivers[config.driver]):
                raise InputError(
                    f"driver = {config.driver}: {why_not}; what could be used says mesp plugin openwhisk probe"
                )
            if name is None or found.namespace is None:
                trouble = "; ".join([*found.trouble, *(f"{key}: {why}" for key, why in found.drivers.items())])
                raise UnavailableError(f"no driver can be used at {config.api_host}: {trouble}")
            actions = Actions(api, found.namespace, config.opt_in)
            driver: Driver
            if name == "classic" and config.kafka:
                bus = await stack.enter_async_context(open_bus(config.kafka))
                owner = _owner(key, found.namespace)
                driver = ClassicDriver(bus, found.namespace, owner, actions, holdings, config, metrics)
            else:
                budget = Budget(await api.limits(), config.limits_margin_share)
                driver = StandaloneDriver(api, found.namespace, actions, holdings, config, budget)
            yield OpenWhiskPlatform(driver, holdings, mode=config.mode, expiry_ms=config.expiry_ms, metrics=metrics)


@contextmanager
def _alone(state_file: Path) -> Iterator[None]:
    """Inside, no other plugin on this machine works with the same state file; the lock ends with the process."""
    with state_file.with_name(state_file.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"state_file = {state_file}: another plugin is using it, end that one first") from None
        yield


def _owner(key: Key, namespace: str) -> Caller | None:
    """Who calls a namespace's actions, from its key: the first half of one is the namespace's own id (Identity.scala).

    The subject's name is not known. Invokers only write it into records, and want five characters.
    """
    uuid = key.value.partition(":")[0]
    return Caller(namespace, namespace, uuid, ("READ", "PUT", "DELETE", "ACTIVATE")) if len(namespace) >= 5 else None
