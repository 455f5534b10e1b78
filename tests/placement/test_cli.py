"""The placement commands, in process and as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mesp.errors import InputError
from mesp_placement.cli import app

if TYPE_CHECKING:
    from pathlib import Path


def test_plan_from_a_file(tmp_path: Path) -> None:
    """A request in JSON is answered in JSON, with the configuration's price."""
    request, config = tmp_path / "request.json", tmp_path / "placement.yaml"
    request.write_text('{"nowMs": 5, "snapshot": {"nodes": [{"name": "n", "memoryMb": 0, "schedulable": true}]}}')
    config.write_text("cold_start_price_gb_s: 12\n")
    result = CliRunner().invoke(app, ["plan", str(request), "--config", str(config)])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["coldStartPriceGbS"] == 12
    assert answer["errors"] == [{"reason": "node 'n': memory_mb = 0, must be positive; the node is left out"}]


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"nowMs": "soon"}', b'{"later": 1}', None])
def test_a_bad_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing or no PlanRequest is bad input, by name."""
    request = tmp_path / "request.json"
    if content is not None:
        request.write_bytes(content)
    result = CliRunner().invoke(app, ["plan", str(request)])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(f"{request}: ")


def test_help_teaches_by_example() -> None:
    """Each command's help ends with an example."""
    for command in ("serve", "plan"):
        assert f"Example: mesp placement {command}" in CliRunner().invoke(app, [command, "--help"]).output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_on_a_signal(number: signal.Signals) -> None:
    """The process says where it serves, and a signal ends it with exit code 0 and nothing more to say."""
    command = [sys.executable, "-c", "from mesp_placement.cli import app; app()", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("placement serves on 127.0.0.1:")
        process.send_signal(number)
        assert process.stderr.read() == ""
        assert process.wait() == 0
