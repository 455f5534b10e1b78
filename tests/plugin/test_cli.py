"""`mesp plugin openwhisk` as a stranger types it: one sentence for every mistake, and the right exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from e2e.openwhisk.standalone import KEY, Standalone
from e2e.openwhisk.timeline import WallTimeline
from mesp.types import FunctionKey
from mesp_plugin.cli import _run
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.holdings import Holding, Holdings

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.yaml"
    path.write_text(f"api_host: {NOWHERE}\nstate_file: {tmp_path}/state.json\n")
    return path


def mesp(*arguments: str | Path, key: str | None = KEY) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "MESP_OPENWHISK_AUTH"}
    if key:
        environment["MESP_OPENWHISK_AUTH"] = key
    done = subprocess.run(
        [sys.executable, "-m", "mesp", "plugin", "openwhisk", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def is_released(folder: Path) -> bool:
    return Holdings(folder / "state.json").released


def test_release_and_resume_change_the_flag(config: Path, tmp_path: Path) -> None:
    """`release --all` says what is left, and asks where no plugin ever was; without --all it does nothing."""
    holdings = Holdings(tmp_path / "state.json")
    holdings.add([Holding("1" * 32, FunctionKey("guest", "hello"), "n", 0, 2**50)])
    code, _, told = mesp("release", "--config", config)
    assert (code, told) == (2, "error: release needs --all: it stops all acting until mesp plugin openwhisk resume\n")
    assert not is_released(tmp_path)
    code, said, told = mesp("release", "--all", "--config", config)
    assert code == 0
    assert "1 containers that MESP added are left" in said
    assert told == f"No plugin has used state_file = {tmp_path / 'state.json'} so far: is it this one's?\n"
    assert is_released(tmp_path)
    assert mesp("resume", "--config", config)[0] == 0
    assert not is_released(tmp_path)


def test_probe_tells_as_json_and_exits_with_4_where_nothing_can_be_done(config: Path) -> None:
    """`--probe` is another way to say it."""
    code, said, told = mesp("--probe", "--json", "--config", config)
    assert (code, told) == (4, "error: no driver can be used here: see above\n")
    assert json.loads(said)["driver"] is None
    assert KEY.split(":")[1] not in said


def test_without_a_key_nothing_starts(config: Path) -> None:
    """One sentence that says where to put it."""
    code, _, told = mesp("run", "--config", config, key=None)
    assert code == 2
    assert told.startswith("error: environment variable MESP_OPENWHISK_AUTH is not set")


async def test_run_ends_on_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop ticks once beside the double, without a predictor, then is told to go and returns its tally."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", KEY)
    double = Standalone(WallTimeline(1_795_245_000_000))

    class OneTick:
        ticks = 0

        def now_ms(self) -> int:
            return 1_795_245_000_000 + 10_000 * self.ticks - 1

        async def sleep_until(self, at_ms: int) -> None:
            self.ticks += 1
            if self.ticks > 1:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()

    async with double.serve() as host:
        settings = OpenWhiskConfig.model_validate(
            {"api_host": host, "state_file": tmp_path / "s.json", "loop": {"predictor_address": "127.0.0.1:9"}}
        )
        tally = await _run(settings, OneTick())
    assert tally.calls == 0
