"""The runtime shim as an invoker meets it: over HTTP, in a process of its own, alone and before another proxy."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIM = Path(__file__).parents[3] / "deploy" / "openwhisk" / "shim" / "mesp_shim.py"
END = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
CODE = "def main(args):\n    print('worked')\n    return {'hello': args.get('name', 'nobody')}\n"
MARKER = {"value": {"__ow_prewarm": {"op": "warm", "hold_ms": 0}}, "activation_id": "a" * 32}


class Shim:
    """One shim; posts are retried while it starts, as the invoker does."""

    def __init__(self, port: int, *arguments: str) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, str(SHIM), *arguments],
            env={**os.environ, "PORT": str(port)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        while True:
            assert self.process.poll() is None, self.process.communicate()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                connection.request("POST", path, json.dumps(body))
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except ConnectionRefusedError:
                continue
            finally:
                connection.close()

    def end(self) -> tuple[str, str]:
        """As the engine stops a container; a proxy behind it must go too, or its open pipes would be waited for."""
        self.process.terminate()
        return self.process.communicate(timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["alone", "before another"])
def shim(request: pytest.FixtureRequest) -> Iterator[Shim]:
    port = free_port()
    behind = [] if request.param == "alone" else ["--upstream", str(free_port()), "--", sys.executable, str(SHIM)]
    running = Shim(port, *behind)
    yield running
    if running.process.poll() is None:
        running.end()


def test_a_marker_is_answered_and_no_code_runs(shim: Shim) -> None:
    """/init, marker, a real call: the code ran once, and each run ended with its marks on both streams."""
    assert shim.post("/init", {"value": {"name": "hello", "main": "main", "binary": False, "code": CODE}})[0] == 200
    assert shim.post("/run", MARKER) == (200, {})
    assert shim.post("/run", {"value": {"name": "you"}}) == (200, {"hello": "you"})
    out, err = shim.end()
    assert out.splitlines() == [END, "worked", END]
    assert err.splitlines() == [END, END]


def test_an_end_is_answered_by_a_failure(shim: Shim) -> None:
    """For which the invoker destroys the container; no code runs."""
    assert shim.post("/init", {"value": {"name": "hello", "main": "main", "binary": False, "code": CODE}})[0] == 200
    assert shim.post("/run", {"value": {"__ow_prewarm": {"op": "end"}}})[0] == 502
    assert shim.end()[0].splitlines() == [END]


def test_a_parameter_that_only_speaks_of_markers_is_none(shim: Shim) -> None:
    """The word in a value is no marker."""
    shim.post("/init", {"value": {"code": CODE}})
    assert shim.post("/run", {"value": {"name": "__ow_prewarm"}}) == (200, {"hello": "__ow_prewarm"})


def test_a_zip_environment_and_failures_are_as_an_action_proxy_must_have_them() -> None:
    """Init once; a zip with __main__.py; its environment; 502 for what throws."""
    running = Shim(free_port())
    try:
        assert running.post("/run", {"value": {}})[0] == 403
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(
                "__main__.py", "import os\ndef go(args):\n    return {'key': os.environ['KEY'], **args['of']}\n"
            )
        code = base64.b64encode(file.getvalue()).decode()
        value = {"main": "go", "binary": True, "code": code, "env": {"KEY": "v"}}
        assert running.post("/init", {"value": value}) == (200, {"OK": True})
        assert running.post("/init", {"value": value})[0] == 403
        assert running.post("/run", {"value": {"of": {"a": 1}}}) == (200, {"key": "v", "a": 1})
        assert running.post("/run", {"value": {}})[0] == 502
    finally:
        running.end()
