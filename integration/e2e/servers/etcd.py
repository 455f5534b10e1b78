"""A real etcd, Debian's etcd-server, spoken to through its JSON gateway: plain, or with TLS and a password."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from e2e.servers.process import Server, certificate, free_ports, installed, running, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD: Final = "mesp-secret"


@dataclass(frozen=True)
class Etcd:
    """A server that runs, at `url`; where it is secured, `authority` signs it and ``root`` has `PASSWORD`."""

    url: str
    authority: Path | None = None
    token: str | None = None
    server: Server | None = None  # None: somebody else's

    def call(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """One request to the JSON gateway, such as ``kv/range``."""
        headers = {"Authorization": self.token} if self.token else {}
        message = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(request).encode(), headers)
        context = ssl.create_default_context(cafile=str(self.authority)) if self.authority else None
        with urllib.request.urlopen(message, timeout=10, context=context) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def put(self, key: str, value: str) -> None:
        """Writes one key."""
        self.call("kv/put", {"key": _base64(key), "value": _base64(value)})

    def get(self, key: str) -> str | None:
        """The value of one key."""
        found = self.call("kv/range", {"key": _base64(key)}).get("kvs")
        return base64.b64decode(found[0]["value"]).decode() if found else None


@contextmanager
def running_etcd(folder: Path, *, secured: bool = False) -> Iterator[Etcd]:
    """A server with an empty store in `folder`, while the block runs."""
    program = _program()
    client_port, peer_port = free_ports(2)
    url, peer = f"{'https' if secured else 'http'}://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    own: list[str | Path] = ["--name", "test", "--data-dir", folder / "data", "--initial-cluster", f"test={peer}"]
    client = ["--listen-client-urls", url, "--advertise-client-urls", url]
    among = ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    chain: Path | None = None
    if secured:
        chain, key = certificate(folder)
        client += ["--cert-file", str(chain), "--key-file", str(key)]
    command: list[str | Path] = [program, *own, *client, *among]
    with running(command, folder / "etcd.log", lambda: _answers(Etcd(url, chain))) as server:
        etcd = Etcd(url, chain, server=server)
        yield _with_password(etcd) if secured else etcd


def _with_password(etcd: Etcd) -> Etcd:
    etcd.call("auth/user/add", {"name": "root", "password": PASSWORD})
    etcd.call("auth/role/add", {"name": "root"})
    etcd.call("auth/user/grant", {"user": "root", "role": "root"})
    etcd.call("auth/enable", {})
    token = etcd.call("auth/authenticate", {"name": "root", "password": PASSWORD})["token"]
    return replace(etcd, token=token)


def _answers(etcd: Etcd) -> bool:
    try:
        etcd.call("kv/range", {"key": _base64("ready")})
    except (OSError, urllib.error.URLError):
        return False
    return True


def _program() -> str:
    try:
        return installed("etcd", "etcd-server")
    except FileNotFoundError as error:
        unavailable(str(error))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
