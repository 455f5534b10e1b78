"""The plugin as a process of its own, which tests kill; its clock runs with a double's, as many times as fast as the wall's.

    python -m e2e.openwhisk.plugin_process CONFIG NOW_MS MONOTONIC_S SPEED

It was NOW_MS on the double's clock at MONOTONIC_S of the machine's monotonic one, which all processes share. All else is
what ``mesp plugin openwhisk run`` does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from e2e.servers.process import Server, free_ports
from mesp.config import load_config
from mesp_plugin.cli import _run
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.holdings import Holdings

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from mesp_plugin.openwhisk.holdings import Holding

#: A loaded machine may take long.
PATIENCE_S = 60
TICKS = "mesp_loop_tick_seconds_count"


@dataclass(frozen=True)
class SharedClock:
    """See `mesp_plugin.loop.Clock`."""

    begin_ms: float
    begin_s: float
    speed: float

    def now_ms(self) -> int:
        """The double's time."""
        return int(self.begin_ms + (time.monotonic() - self.begin_s) * 1e3 * self.speed)

    async def sleep_until(self, at_ms: int) -> None:
        """Returns at that time."""
        await asyncio.sleep(max(0, at_ms - self.now_ms()) / 1e3 / self.speed)


class PluginProcess:
    """One plugin with a state file of its own, which runs while a block does; `kill` it inside, `start` it again."""

    def __init__(self, folder: Path, clock: SharedClock, key: str, config: dict[str, Any]) -> None:
        folder.mkdir()
        (self._port,) = free_ports(1)
        self._state = folder / "state.json"
        loop = {"metrics_port": self._port, **config.pop("loop")}
        settings = folder / "plugin.yaml"
        settings.write_text(yaml.safe_dump({"state_file": str(self._state), **config, "loop": loop}))
        command = [sys.executable, "-m", __name__, str(settings)]
        command += [str(part) for part in (clock.begin_ms, clock.begin_s, clock.speed)]
        self._ready = False
        self._server = Server(
            command, folder / "log", self._said_ready, {**os.environ, "MESP_OPENWHISK_AUTH": key}
        )  # fmt: skip
        self._lives = 0

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self._server.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Returns once it has connected; its first tick comes after."""
        self._lives += 1
        await asyncio.to_thread(self._server.start)

    async def kill(self) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self._server.kill)

    @property
    def holdings(self) -> dict[str, Holding]:
        """What its state file says, by marker."""
        return {item.marker: item for item in Holdings(self._state).all()}

    @property
    def log(self) -> str:
        """What it said in all its lives."""
        return self._server.log.read_text(errors="replace")

    async def metric(self, name: str) -> float:
        """A sample of its metrics page."""
        page = f"http://127.0.0.1:{self._port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(page) as answer:
            families = text_string_to_metric_families(await answer.text())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    async def ticks(self, more: int = 0) -> int:
        """How many ticks it has done, after `more` others."""
        wanted = await self.metric(TICKS) + more
        return int(await self.reaches(TICKS, wanted))

    async def reaches(self, name: str, value: float) -> float:
        """The sample, once it is that high."""

        async def reached() -> bool:
            return await self.metric(name) >= value

        await until(reached)
        return await self.metric(name)

    def _said_ready(self) -> bool:
        return self.log.count("beside OpenWhisk at") == self._lives


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    """Returns once it is true; `TimeoutError` after `PATIENCE_S` of the wall."""
    async with asyncio.timeout(PATIENCE_S):
        while not (await found if isinstance(found := true(), Awaitable) else found):  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.05)


def main() -> None:
    """Runs until it is told to end."""
    path, *when = sys.argv[1:]
    asyncio.run(_run(load_config(Path(path), OpenWhiskConfig), SharedClock(*map(float, when))))


if __name__ == "__main__":
    main()
