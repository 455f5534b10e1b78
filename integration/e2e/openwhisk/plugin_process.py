"""The plugin as a process of its own, which tests kill; its time is what a file says, and moves when the test says so.

    python -m e2e.openwhisk.plugin_process CONFIG CLOCK
    python -m e2e.openwhisk.plugin_process CONFIG MET_MS SPEED

The second is for a double whose time runs by itself: see `clock.Clock`.

All else is what ``mesp plugin openwhisk run`` does. A machine that is busy makes such a test slow, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from e2e.openwhisk.clock import Clock
from e2e.openwhisk.fpc_beside import PluginClock
from e2e.servers.process import Server
from mesp.config import load_config
from mesp_plugin.cli import _run
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.holdings import Holdings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Self

    from mesp_plugin.openwhisk.holdings import Holding

#: A loaded machine may take long.
PATIENCE_S = 300
_PAGE = re.compile(r"metrics on (http://\S+)")


@dataclass(frozen=True)
class FileClock:
    """See `mesp_plugin.loop.Clock`."""

    path: Path

    def now_ms(self) -> int:
        """What the file says."""
        return int(self.path.read_text())

    async def sleep_until(self, at_ms: int) -> None:
        """Returns when it says so."""
        while self.now_ms() < at_ms:  # noqa: ASYNC110 (it is another process that writes)
            await asyncio.sleep(0.02)

    def set(self, now_ms: int) -> None:
        """Says so to all who read."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(str(now_ms))
        fresh.replace(self.path)


class PluginProcess:
    """One plugin with a state file of its own, which runs while a block does; `kill` it inside, `start` it again."""

    def __init__(self, folder: Path, key: str, config: dict[str, Any], live: Clock | None = None) -> None:
        """`live`: a clock that runs by itself; None: it stands still but for `start` and `tick`."""
        folder.mkdir()
        self._clock = FileClock(folder / "clock")
        self._state = folder / "state.json"
        loop = {"metrics_port": 0, **config.pop("loop")}
        settings = folder / "plugin.yaml"
        settings.write_text(yaml.safe_dump({"state_file": str(self._state), **config, "loop": loop}))
        clock = [str(live.met_ms), str(live.speed)] if live else [self._clock.path]
        command: list[str | Path] = [sys.executable, "-m", __name__, settings, *clock]
        environment = {**os.environ, "MESP_OPENWHISK_AUTH": key}
        self._server = Server(command, folder / "log", self._said_ready, environment)
        self._lives = 0

    @asynccontextmanager
    async def running(self, now_ms: int = 0) -> AsyncIterator[Self]:
        """`start`ed, and killed after the block."""
        try:
            await self.start(now_ms)
            yield self
        finally:
            await self.kill()

    async def start(self, now_ms: int = 0) -> None:
        """Returns after its first tick, if `now_ms` is a time for one."""
        self._lives += 1
        self._clock.set(now_ms)
        await asyncio.to_thread(self._server.start)
        await self._ticked(1)

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
        async with aiohttp.ClientSession() as session, session.get(_PAGE.findall(self.log)[-1]) as answer:
            families = text_string_to_metric_families(await answer.text())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    async def tick(self, now_ms: int = 0) -> None:
        """Returns when it has done what there is to do at that time, its next; by a clock that runs, whenever that is."""
        wanted = await self._ticks() + 1
        self._clock.set(now_ms)
        await self._ticked(wanted)

    async def _ticks(self) -> float:
        return await self.metric("mesp_loop_tick_seconds_count") + await self.metric("mesp_loop_ticks_failed_total")

    async def _ticked(self, wanted: float) -> None:
        async def reached() -> bool:
            return await self._ticks() >= wanted

        await until(reached)

    def _said_ready(self) -> bool:
        return self.log.count("beside OpenWhisk at") == self._lives


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    """Returns once it is true; `TimeoutError` after `PATIENCE_S` of the wall."""
    async with asyncio.timeout(PATIENCE_S):
        while not (await found if isinstance(found := true(), Awaitable) else found):  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.05)


def main() -> None:
    """Runs until it is told to end."""
    config, clock, *speed = sys.argv[1:]
    live = PluginClock(Clock(float(speed[0]), float(clock))) if speed else FileClock(Path(clock))
    asyncio.run(_run(load_config(Path(config), OpenWhiskConfig), live))


if __name__ == "__main__":
    main()
