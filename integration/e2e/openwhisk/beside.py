"""A driver beside the double of standalone OpenWhisk, on a clock moved by hand."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import aiohttp

from e2e.openwhisk.standalone import KEY, NAMESPACE, Standalone
from e2e.openwhisk.standalone_pool import Spec
from e2e.openwhisk.timeline import HandTimeline
from mesp.types import FunctionKey
from mesp_placement.model import Prewarm
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.budget import Budget
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi
from mesp_plugin.openwhisk.standalone import NODE, StandaloneDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mesp_plugin.openwhisk.driver import Done, Observed

#: A whole minute.
BEGIN_MS = 1_795_245_000_000
MINUTE_MS = 60_000
OPTED_IN = (("mesp-prewarm", True),)
HELLO, PLAIN = FunctionKey(NAMESPACE, "hello"), FunctionKey(NAMESPACE, "plain")


@dataclass
class Beside:
    """The double, its time, the driver, and what it was told to do."""

    double: Standalone
    time: HandTimeline
    api: OpenWhiskApi
    holdings: Holdings
    config: OpenWhiskConfig
    driver: StandaloneDriver

    @property
    def now_ms(self) -> int:
        return self.time.now_ms()

    def wait(self, ms: int) -> None:
        self.time.advance(self.now_ms + ms)

    async def look(self, wait_ms: int = 0) -> Observed:
        self.wait(wait_ms)
        return await self.driver.observe(self.now_ms)

    async def prewarm(self, function: FunctionKey, wanted: int = 1) -> Done:
        return await self.driver.prewarm(Prewarm(function, NODE, wanted, "because"), self.now_ms)

    async def restart(self) -> None:
        """The plugin is killed, and another one comes up."""
        self.holdings = Holdings(self.config.state_file)
        self.driver = await make_driver(self.api, self.holdings, self.config, first_id=1_000)


async def make_driver(
    api: OpenWhiskApi, holdings: Holdings, config: OpenWhiskConfig, first_id: int = 0
) -> StandaloneDriver:
    ids = count(first_id)
    return StandaloneDriver(
        api,
        NAMESPACE,
        Actions(api, NAMESPACE, config.opt_in),
        holdings,
        config,
        Budget(await api.limits(), config.limits_margin_share),
        random_id=lambda: f"{next(ids):032x}",
    )


@contextlib.asynccontextmanager
async def beside(folder: Path, *, double: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Beside]:
    """`hello` has opted in, `plain` has not."""
    time = HandTimeline(BEGIN_MS)
    platform = Standalone(time, **(double or {}))
    platform.put(Spec("hello", memory_mb=128, annotations=OPTED_IN, answers_marker=True))
    platform.put(Spec("plain", memory_mb=128))
    async with platform.serve() as host, aiohttp.ClientSession() as session:
        config = OpenWhiskConfig(api_host=host, state_file=folder / "state.json", **settings)
        api, holdings = OpenWhiskApi(session, host, Key(KEY)), Holdings(config.state_file)
        driver = await make_driver(api, holdings, config)
        yield Beside(platform, time, api, holdings, config, driver)
