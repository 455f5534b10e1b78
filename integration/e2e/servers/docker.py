"""A real Docker engine of our own, Debian's docker.io: its data, sockets and image are in one folder, and go with it.

It listens on a unix socket alone, and leaves the machine's firewall, routes and other engines as they are: its
containers are on a bridge of its own, from which nothing is translated to the world outside. Its one image is made
from an archive, for no registry is asked.

Unlike the other servers it needs what a machine may not give: root, and a kernel that lets it make namespaces, cgroups
and bridges. Where it cannot be had, tests that want it are skipped with the reason, also where servers are required.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import pytest

from e2e.servers.process import Server, installed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The only image.
IMAGE: Final = "mesp"
#: A loaded machine may take long to import an image, or to start a container.
_ANSWER_LIMIT_S: Final = 120
#: Nothing of the machine's own is changed, and nothing of another engine's, with which it may share a containerd. (Without
#: any bridge, as `none`, it would remove the other one's.)
_APART: Final = (
    "--iptables=false",
    "--ip-forward=false",
    "--userland-proxy=false",
    "--containerd-namespace=mesp",
    "--containerd-plugins-namespace=mesp-plugins",
)


class DockerError(Exception):
    """The engine refused, in its own words."""


@dataclass(frozen=True)
class Docker:
    """An engine that listens on `path`."""

    path: Path

    def call(self, method: str, what: str, body: object = None) -> Any:
        """One request to the engine's API, such as ``containers/json``; its JSON, None where it says nothing.

        Args:
            method: of HTTP.
            what: path and query.
            body: an archive (bytes), or what becomes JSON.

        Raises:
            DockerError: it refused.
        """
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/x-tar" if isinstance(body, bytes) else "application/json"}
        connection = _Connection(self.path)
        try:
            connection.request(method, f"/{what}", content, headers)
            response = connection.getresponse()
            said = [json.loads(line) for line in response.read().splitlines()]  # images/create tells stage by stage
        finally:
            connection.close()
        last = said[-1] if said else None
        if response.status >= 400 or (isinstance(last, dict) and "error" in last):
            raise DockerError(f"{method} /{what}: {last}")
        return last

    def containers(self) -> list[str]:
        """Names of all that there are, in whatever state."""
        return [container["Names"][0].removeprefix("/") for container in self.call("GET", "containers/json?all=1")]


class _Connection(http.client.HTTPConnection):
    """HTTP through a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_LIMIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def running_docker(folder: Path, archive: bytes, *instructions: str) -> Iterator[Docker]:
    """An engine with `IMAGE` while the block runs; a container of it was started, so it can.

    Args:
        folder: of all its data.
        archive: the image's files, a tar.
        instructions: as of a Dockerfile, such as ``CMD ["/hello"]``.
    """
    with ExitStack() as ending:
        try:
            docker = _start(folder, ending)
            changes = urlencode([("changes", instruction) for instruction in instructions])
            docker.call("POST", f"images/create?fromSrc=-&repo={IMAGE}&{changes}", archive)
            docker.call("POST", "containers/create?name=first", {"Image": IMAGE})
            docker.call("POST", "containers/first/start")
            docker.call("DELETE", "containers/first?force=1")
        except (RuntimeError, OSError, DockerError) as error:
            pytest.skip(f"no Docker engine can be started here: {error}")
        yield docker


def _start(folder: Path, ending: ExitStack) -> Docker:
    program = installed("dockerd", "docker.io")
    if os.geteuid() != 0:
        raise PermissionError("only root may")
    bridge = ending.enter_context(_bridge())
    docker = Docker(folder / "docker.sock")
    places = [f"--data-root={folder / 'data'}", f"--exec-root={folder / 'exec'}", f"--pidfile={folder / 'pid'}"]
    command = [program, f"--host=unix://{docker.path}", f"--bridge={bridge}", *places, *_APART]
    server = Server(command, folder / "docker.log", docker.path.exists)
    ending.callback(shutil.rmtree, folder / "data", ignore_errors=True)
    ending.callback(server.end)
    server.start()
    return docker


@contextmanager
def _bridge() -> Iterator[str]:
    ip, name = installed("ip", "iproute2"), f"mesp{os.getpid()}"
    steps = (
        f"link add {name} type bridge",
        f"address add 10.213.{os.getpid() % 256}.1/24 dev {name}",
        f"link set {name} up",
    )
    try:
        for step in steps:
            done = subprocess.run([ip, *step.split()], capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"ip {step}: {done.stderr.strip()}")
        yield name
    finally:
        subprocess.run([ip, "link", "delete", name], capture_output=True, check=False)
