"""Servers that tests start for themselves: one process, a folder of its own, loopback only, ended by its pid.

A test that needs a server which this machine cannot run is skipped with a sentence, or fails where
``MESP_REQUIRE_SERVERS=1`` says that every server must be there (as in CI). A program gets an error that it can tell.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

from mesp.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: A loaded machine may take long.
START_LIMIT_S: Final = 300


def unavailable(why: str) -> NoReturn:
    """Skips the test, or fails it where servers are required; in a program, `UnavailableError`."""
    if "PYTEST_CURRENT_TEST" not in os.environ:
        raise UnavailableError(why)
    if os.environ.get("MESP_REQUIRE_SERVERS") == "1":
        pytest.fail(why)
    pytest.skip(why)


def installed(program: str, package: str) -> str:
    """Where the program is; where it is missing, root installs Debian's package.

    Raises:
        FileNotFoundError: it cannot be had; the sentence says why.
    """
    if found := shutil.which(program):
        return found
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise FileNotFoundError(f"{program} is not here: install Debian's {package}.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", package]
    for command in (install, ["apt-get", "update"], install):  # the lists may be missing or old
        if not shutil.which(program):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found := shutil.which(program):
        return found
    raise FileNotFoundError(f"{package} could not be installed: {done.stderr[-300:].strip()}")


def cache_dir() -> Path:
    """Where downloads are kept between runs: ``$MESP_CACHE``, else ``mesp`` in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesp"
    directory = Path(os.environ.get("MESP_CACHE") or default)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for taken in sockets:
        taken.bind(("127.0.0.1", 0))
    ports: list[int] = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def listens(port: int) -> bool:
    """Whether a connection to the port of loopback is taken."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A process that tests kill as a machine would, and start again with the same command, and so ports and data."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Not started yet; its output goes to `log`, its folder is that of the log."""
        self.log = log
        self._command, self._ready, self._environment = command, ready, environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it is ready.

        Raises:
            RuntimeError: it ended by itself or was not ready in time; the sentence ends with what it said last.
        """
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.log.parent,
                env=self._environment,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"{self._command[0]} did not start (exit code {self._process.poll()}):\n{last}")
            time.sleep(0.05)

    def end(self) -> None:
        """SIGTERM: it puts in order what lies outside its folder."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL: it puts nothing in order."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """The process, from when it is `ready` to the end of the block; raises as `Server.start`."""
    server = Server(command, log, ready, environment)
    try:
        server.start()
        yield server
    finally:
        server.kill()  # its folder goes with it: nothing to be written in order


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-made certificate for loopback and its key, as PEM files; it is its own authority."""
    chain, key = folder / "certificate.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run(
            [*request, "-addext", names, "-keyout", key, "-out", chain], check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        unavailable("openssl is not here: it makes the certificate of the servers with TLS.")
    return chain, key
