"""The demo as a stranger runs it: real processes, real gRPC, and no trace of them afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A loaded machine may take long.
LIMIT_S = 900


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(cache: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `mesp` with arguments; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "mesp", *arguments],
            env={**os.environ, "MESP_CACHE": str(cache), "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts,  # noqa: PLW1509 (this process has no other threads)
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def heed_interrupts() -> None:
    """A test run in the background hands on that interrupts are ignored; a stranger's shell does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sidecars(tmp_path: Path) -> list[int]:
    """Pids of predictors that serve out of the run's own temporary folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "predictor\0serve" in command and str(tmp_path) in command:
            found.append(int(process.name))
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Returns once the condition holds; fails when the process ended before, or after LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_demo_ends_with_a_table_and_a_report(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """`mesp demo` runs the loop, prints MESP beside today's platforms, writes the report, and leaves nothing running.

    Long enough for the sidecar's trees to be refitted on the history and once more while the loop goes on.
    """
    out = tmp_path / "report"
    process = start("demo", "--functions", "100", "--minutes", "75", "--out", str(out))
    said, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    for name in ("MESP", "OpenWhisk", "Knative", "hybrid histogram"):
        assert name in said
    assert "MESP wastes" in said or "MESP does not come down" in said
    result = json.loads((out / "frontier.json").read_text())
    assert result["demo"]["rows"][0]["policy"] == "MESP"
    assert result["demo"]["prewarmed"] > 0
    assert (out / "frontier.png").stat().st_size > 10_000
    assert "<html" in (out / "report.html").read_text()
    assert sidecars(tmp_path) == []


def test_ctrl_c_leaves_nothing_running(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """An interrupt while the loop runs ends the demo with 130, its sidecar too, and no report is written."""
    out = tmp_path / "report"
    process = start("demo", "--functions", "40", "--minutes", "720", "--out", str(out))
    wait_for(lambda: sidecars(tmp_path), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert sidecars(tmp_path) == []
    assert not out.exists()


def test_a_predictor_that_dies_ends_the_demo_in_one_sentence(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """When the sidecar is killed in the middle the demo says so, exits with 4, and writes nothing."""
    out = tmp_path / "report"
    process = start("demo", "--functions", "40", "--minutes", "720", "--out", str(out))
    wait_for(lambda: sidecars(tmp_path), process)
    time.sleep(0.5)  # anywhere in its life will do: before it listens, or in the middle of the loop
    for pid in sidecars(tmp_path):
        os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 4
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert "exit code -9" in errors
    assert not out.exists()


def test_a_taken_port_is_one_sentence(start: Callable[..., subprocess.Popen[str]]) -> None:
    """`mesp predictor serve` on a port in use exits with 4 and names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start("predictor", "serve", "--port", str(port))
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 4
    assert f"127.0.0.1:{port}" in errors.strip().splitlines()[-1]


def test_a_model_of_another_version_is_one_sentence(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A model directory of another format is refused with 2, naming the file and both formats."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text('{"format": 99}')
    process = start("predictor", "serve", "--model", str(tmp_path / "model"), "--port", "0")
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert "manifest.json" in last
    assert "99" in last
