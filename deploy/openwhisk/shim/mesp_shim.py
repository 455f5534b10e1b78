#!/usr/bin/env python3
"""Answers MESP's marker for an OpenWhisk runtime image, so that no user's code runs when a container is warmed.

One file, Python 3 and its standard library. It listens on port 8080 (PORT), where the invoker expects the action proxy:

    mesp_shim.py                                  is an action proxy for Python actions (source, or a zip with __main__.py)
    mesp_shim.py --upstream 8081 -- COMMAND ...   stands before another one, which it starts and which listens there

A POST /run whose parameters hold ``__ow_prewarm`` is answered with ``{}`` after at most `hold_ms` (1 s at most) and
the two marks of an activation's end; with ``op`` ``end`` by a failure, which makes the invoker destroy the container
(sent only where MESP's operator wants it); everything else passes. The proxy behind gets PORT in its environment; its own
output goes straight to the container's.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MARKER = "__ow_prewarm"
END = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
MOST_HOLD_MS = 1_000

Answer = tuple[int, bytes]


def answer(status: int, content: object) -> Answer:
    """A status and JSON."""
    return status, json.dumps(content).encode()


def is_marker(path: str, body: bytes) -> bool:
    """Whether a request is MESP's marker."""
    if path != "/run" or MARKER.encode() not in body:
        return False
    with contextlib.suppress(ValueError, AttributeError):
        return MARKER in json.loads(body).get("value", {})
    return False


def answer_marker(body: bytes) -> Answer:
    """Nothing done, in as long as asked for."""
    said = json.loads(body)["value"][MARKER]
    marker = said if isinstance(said, dict) else {}
    hold_ms = marker.get("hold_ms", 0)
    time.sleep(min(MOST_HOLD_MS, max(0, hold_ms if isinstance(hold_ms, (int, float)) else 0)) / 1e3)
    end_of_activation()
    return (
        answer(502, {"error": "MESP needs this container no longer."}) if marker.get("op") == "end" else answer(200, {})
    )


def end_of_activation() -> None:
    """By these marks the invoker knows that a run's logs are complete."""
    for stream in (sys.stdout, sys.stderr):
        stream.write(END + "\n")
        stream.flush()


class PythonActions:
    """An action proxy: /init once, then /run."""

    def __init__(self) -> None:
        self._main: Callable[[Any], Any] | None = None
        self._lock = threading.Lock()

    def __call__(self, path: str, body: bytes) -> Answer:
        """What to answer to a POST."""
        with self._lock:  # one run at a time
            message = json.loads(body)
            return self._init(message) if path == "/init" else self._run(message)

    def _init(self, message: dict[str, Any]) -> Answer:
        if self._main:
            return answer(403, {"error": "Cannot initialize the action more than once."})
        value = message.get("value", {})
        try:
            self._main = self._load(value)
        except BaseException as error:  # noqa: BLE001 (users' code)
            traceback.print_exc()
            end_of_activation()
            return answer(502, {"error": f"Initialization has failed due to: {error!r}"})
        return answer(200, {"OK": True})

    def _load(self, value: dict[str, Any]) -> Callable[[Any], Any]:
        for name, setting in (value.get("env") or {}).items():
            os.environ[name] = setting if isinstance(setting, str) else json.dumps(setting)
        source, name = value["code"], value.get("main") or "main"
        if value.get("binary"):
            folder = tempfile.mkdtemp()
            zipfile.ZipFile(io.BytesIO(base64.b64decode(source))).extractall(folder)
            os.chdir(folder)
            sys.path.insert(0, folder)
            source = Path("__main__.py").read_text(encoding="utf-8")
        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, "__main__.py", "exec"), scope)  # noqa: S102 (what an action proxy is for)
        found: Callable[[Any], Any] | None = scope.get(name)
        if not callable(found):
            raise TypeError(f"{name} is not a function")
        return found

    def _run(self, message: dict[str, Any]) -> Answer:
        if not self._main:
            return answer(403, {"error": "System not initialized."})
        os.environ.update({f"__OW_{key.upper()}": value for key, value in message.items() if isinstance(value, str)})
        try:
            result = self._main(message.get("value", {}))
            said = answer(200, result if result is not None else {})
            if not isinstance(result, (dict, list, type(None))):
                said = answer(502, {"error": "The action did not return a dictionary or array."})
        except BaseException as error:  # noqa: BLE001 (users' code)
            traceback.print_exc()
            said = answer(502, {"error": f"An error has occurred: {error!r}"})
        end_of_activation()
        return said


class Upstream:
    """Passes requests on to the action proxy on another port."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __call__(self, path: str, body: bytes) -> Answer:
        """What the proxy answers; refused connections are tried again while it starts, as the invoker would."""
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", self._port)
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, response.read()
            except ConnectionRefusedError:
                time.sleep(0.05)
            finally:
                connection.close()
        return answer(502, {"error": "The action proxy does not listen."})


def handler(behind: Callable[[str, bytes], Answer]) -> type[BaseHTTPRequestHandler]:
    """Marker or not: that is all."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            try:
                status, content = answer_marker(body) if is_marker(self.path, body) else behind(self.path, body)
            except Exception as error:  # noqa: BLE001 (whatever it is, the invoker gets an answer)
                traceback.print_exc()
                status, content = answer(500, {"error": f"Bad request: {error!r}"})
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_args: object) -> None:
            """Output belongs to the action."""

    return Handler


def main() -> None:
    """Serves until told to end, or until the proxy behind ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--upstream", type=int, metavar="PORT", help="where the action proxy behind listens")
    parser.add_argument("command", nargs="*", help="the action proxy behind, with its arguments")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    behind = Upstream(options.upstream) if options.upstream else PythonActions()
    server = ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT", "8080"))), handler(behind))  # noqa: S104
    server.daemon_threads = True
    if not options.command:
        server.serve_forever()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    process = subprocess.Popen(options.command, env={**os.environ, "PORT": str(options.upstream)})  # noqa: S603
    try:
        sys.exit(process.wait())
    finally:
        process.kill()


if __name__ == "__main__":
    main()
