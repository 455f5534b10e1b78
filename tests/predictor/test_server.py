"""The sidecar as a process: its one line, its signals, its exit codes, its state and metrics."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio
import pytest
from typer.testing import CliRunner

from mesp.client import PredictorClient
from mesp.errors import UnavailableError
from mesp.types import FunctionKey, StepCounts
from mesp.v1 import predictor_service_pb2 as pb
from mesp.v1.predictor_service_pb2_grpc import PredictorServiceStub
from mesp_predictor import config as configs
from mesp_predictor.cli import app
from mesp_predictor.metrics import PredictorMetrics
from mesp_predictor.server import serve_predictor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.predictor.conftest import FakeForecaster

    from mesp.v1.predictor_service_pb2_grpc import PredictorServiceAsyncStub

A = FunctionKey("ns", "a")
#: A loaded machine may take long to start a process.
PATIENCE_S = 300

#: The real command with the fake model in the checkpoint's place.
COMMAND = """
import runpy, sys, types
checkpoint = types.ModuleType("mesp_predictor.checkpoint")
fake = runpy.run_path(sys.argv.pop(1))["FakeForecaster"]
checkpoint.load_forecaster = lambda directory, **_options: fake()
checkpoint.default_model = lambda: "shipped"
sys.modules["mesp_predictor.checkpoint"] = checkpoint
from mesp.errors import MespError
from mesp_predictor.cli import app
try:
    app(["serve", *sys.argv[1:]], standalone_mode=False)
except MespError as error:
    sys.exit(f"error: {error}" if error.exit_code == 1 else print(f"error: {error}", file=sys.stderr) or error.exit_code)
"""


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which does not outlive the test."""
    fake = str(Path(__file__).with_name("conftest.py"))
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, fake, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as sidecar:
        try:
            yield sidecar
        finally:
            sidecar.kill()


def address_in(line: str) -> str:
    return line.removeprefix("predictor ready on ").split(": ")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_gracefully_and_the_counts_stay(tmp_path: Path, number: signal.Signals) -> None:
    """One line when ready; on a signal exit 0, the state saved, the ready file gone; the next start knows it all."""
    state, ready = tmp_path / "state.npz", tmp_path / "ready"
    arguments = ("--port", "0", "--state", str(state), "--ready-file", str(ready), "--virtual-time")
    with process(*arguments) as sidecar:
        assert sidecar.stdout is not None
        line = sidecar.stdout.readline()
        assert line.endswith(": model fake-1, 0 functions known\n")
        assert ready.read_text() == address_in(line) + "\n"
        async with PredictorClient(address_in(line), rng=random.Random(0)) as client:
            assert await client.observe([StepCounts("one", 6_000_000, 60_000, {A: 3})]) == []
        sidecar.send_signal(number)
        out, err = sidecar.communicate(timeout=PATIENCE_S)
        assert (sidecar.returncode, out, err) == (0, "", "")
    assert state.exists()
    assert not ready.exists()
    with process(*arguments) as sidecar:
        assert sidecar.stdout is not None
        assert sidecar.stdout.readline().endswith(", 1 functions known\n")


def test_a_taken_port_is_one_sentence_and_exit_code_4() -> None:
    """The sentence names the address; nothing is printed on stdout."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process("--port", str(port)) as sidecar:
            out, err = sidecar.communicate(timeout=PATIENCE_S)
    assert (sidecar.returncode, out) == (4, "")
    assert err.startswith(f"error: cannot listen on 127.0.0.1:{port}: address already in use")
    assert err.count("\n") == 1


def test_an_unusable_state_is_said_on_stderr_and_kept(tmp_path: Path) -> None:
    """The sidecar starts empty, and the damaged file is beside its old name."""
    state = tmp_path / "state.npz"
    state.write_text("not an archive")
    with process("--port", "0", "--state", str(state)) as sidecar:
        assert sidecar.stdout is not None
        assert sidecar.stdout.readline().endswith(", 0 functions known\n")
        sidecar.send_signal(signal.SIGTERM)
        _, err = sidecar.communicate(timeout=PATIENCE_S)
    assert "it is damaged" in err
    assert (tmp_path / "state.npz.aside-1").read_text() == "not an archive"


def test_a_second_predictor_leaves_the_firsts_state_alone(tmp_path: Path) -> None:
    """It ends at once, with one sentence and exit code 2, before it has read or written anything of it."""
    state = tmp_path / "state.npz"
    with (
        process("--port", "0", "--state", str(state)) as first,
        process("--port", "0", "--state", str(state)) as second,
    ):
        for sidecar, other in ((first, second), (second, first)):
            assert sidecar.stdout is not None
            if not sidecar.stdout.readline():  # whichever came second
                _, err = sidecar.communicate(timeout=PATIENCE_S)
                assert (sidecar.returncode, err) == (
                    2,
                    f"error: {state}: another predictor is using it, end that one first\n",
                )
                assert other.poll() is None
                return
    pytest.fail("both serve")


async def test_metrics_and_watchers_until_the_end(forecaster: FakeForecaster) -> None:
    """The page shows every metric by its name; at the end the metrics page is gone and a watch ends cleanly."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    stop = asyncio.Event()
    config = configs.PredictorConfig(model=Path("nowhere"), port=0, metrics_port=0, virtual_time=True)
    serving = asyncio.create_task(serve_predictor(config, forecaster, say=lines.put_nowait, stop=stop))
    line = await lines.get()
    page = f"http://127.0.0.1:{line.rsplit(' ', 1)[1]}/metrics"

    def read_page() -> str:
        with urllib.request.urlopen(page) as response:
            return cast("str", response.read().decode())

    async with grpc.aio.insecure_channel(address_in(line)) as channel:
        stub = cast("PredictorServiceAsyncStub", PredictorServiceStub(channel))
        async with PredictorClient(address_in(line), rng=random.Random(0)) as client:
            await client.observe([StepCounts("one", 6_000_000, 60_000, {A: 3}), StepCounts("one", 0, 60_000, {A: 3})])
            await client.forecast()
        text = await asyncio.to_thread(read_page)
        stream = stub.WatchForecasts(pb.WatchForecastsRequest())
        await stream.read()
        stop.set()
        assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]  # grpc-stubs lacks it
        assert await stream.code() is grpc.StatusCode.OK
    await serving
    for metric in PredictorMetrics().registry.collect():
        assert f"# HELP {metric.name}" in text
    assert "mesp_predictor_observed_counts_total 2.0" in text
    assert "mesp_predictor_functions 1.0" in text
    assert "mesp_predictor_as_of_timestamp_seconds 6060.0" in text
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(read_page)


async def test_a_taken_metrics_port_is_an_error_before_anything_is_served(forecaster: FakeForecaster) -> None:
    """The sentence names the address, and no line says ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = configs.PredictorConfig(model=Path("nowhere"), port=0, metrics_port=port)
        with pytest.raises(UnavailableError, match=f"metrics cannot listen on 127.0.0.1:{port}"):
            await serve_predictor(config, forecaster, say=pytest.fail, stop=asyncio.Event())


def test_the_command_and_the_config_have_the_same_defaults() -> None:
    """What --help promises is what the configuration holds, and the help has an example."""
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    shown = runner.invoke(app, ["serve", "--help"]).output
    for name in ("host", "port", "max_functions"):
        assert str(configs.PredictorConfig.model_fields[name].default) in shown
    assert "mesp predictor serve --port" in shown
