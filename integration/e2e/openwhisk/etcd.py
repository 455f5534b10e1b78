"""The double's way to etcd: what a part writes lives as long as its lease, and watchers hear of every change in order.

Keys are told without the cluster's name, which stands in front of all of them (`whisk.cluster.name`). `Gateway` speaks
to a real server through its JSON gateway; `e2e.openwhisk.memory` has a store with the same face for the virtual clock.

Source: etcd's documentation, "gRPC gateway" (v3), and core/service/*.scala of apache/openwhisk for who writes when.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import aiohttp

if TYPE_CHECKING:
    from e2e.openwhisk.model import Json

#: Called with a key and its new value, None where it was deleted.
Handler: TypeAlias = Callable[[str, "str | None"], None]
#: Of a part's lease; it is renewed three times as often.
LEASE_S = 10
#: A server that does not answer is asked again after so long.
_RETRY_S = 1.0


class Session(Protocol):
    """What one part keeps in etcd. Writes are done in their order, and nobody waits for them."""

    def write(self, key: str, value: str = "") -> None:
        """Puts the key."""

    def remove(self, key: str) -> None:
        """Deletes the key, whoever wrote it."""

    async def create(self, key: str, value: str) -> bool:
        """Puts the key unless it is there; whether it was put."""

    async def close(self) -> None:
        """Ends the lease: the keys go at once."""

    async def abandon(self) -> None:
        """The part died: the keys go when the lease runs out."""


class Etcd(Protocol):
    """A store that all parts share."""

    async def open(self, owner: str) -> Session:
        """A lease for the part of that name, which shows as ``instance/<owner>/lease``."""

    async def read(self, prefix: str) -> dict[str, str]:
        """Keys that begin so, in their order."""

    async def watch(self, prefix: str, handle: Handler) -> asyncio.Task[None]:
        """Tells `handle` every change from now on of keys that begin so, until the task is cancelled."""


@dataclass(eq=False)
class _Watch:
    """A watcher, the revision of the last write that it must hear of, and of the last it heard."""

    prefix: str
    handle: Handler
    due: int = 0
    heard: int = 0


class Gateway:
    """A real server at `url`, without password."""

    def __init__(self, url: str, cluster: str = "whisk") -> None:
        self._url, self._cluster = url, cluster
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))
        self._watches: list[_Watch] = []
        self.pending = 0
        self._news = asyncio.Event()

    async def stop(self) -> None:
        """Ends all connections."""
        await self._http.close()

    async def settled(self) -> None:
        """Returns once all that was written here has been told to all who watch here."""
        while self.pending or any(watch.heard < watch.due for watch in self._watches):
            self._news.clear()
            await self._news.wait()

    async def open(self, owner: str) -> GatewaySession:
        """See `Etcd.open`."""
        lease = str((await self._ask("lease/grant", {"TTL": str(LEASE_S)}))["ID"])
        session = GatewaySession(self, lease)
        session.write(f"instance/{owner}/lease", lease)
        return session

    async def read(self, prefix: str) -> dict[str, str]:
        """See `Etcd.read`."""
        self.pending += 1
        try:
            found = (await self._ask("kv/range", self._below(prefix))).get("kvs", [])
        finally:
            self.done()
        return {self._key(pair): _text(pair.get("value", "")) for pair in found}

    async def watch(self, prefix: str, handle: Handler) -> asyncio.Task[None]:
        """See `Etcd.watch`."""
        begin = int((await self._ask("kv/range", self._below(prefix)))["header"]["revision"]) + 1
        watch = _Watch(prefix, handle)
        self._watches.append(watch)
        return asyncio.create_task(self._follow(watch, begin))

    async def put(self, key: str, value: str, lease: str) -> None:
        """Writes one key."""
        put = {"key": self._at(key), "value": _base64(value), "lease": lease}
        self._owe(key, await self._ask("kv/put", put))

    async def delete(self, key: str) -> None:
        """Deletes one key."""
        answer = await self._ask("kv/deleterange", {"key": self._at(key)})
        if "deleted" in answer:  # else nothing changes, and nobody hears of it
            self._owe(key, answer)

    async def create(self, key: str, value: str, lease: str) -> bool:
        """Writes the key unless it is there."""
        absent = {"key": self._at(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        put = {"request_put": {"key": self._at(key), "value": _base64(value), "lease": lease}}
        answer = await self._ask("kv/txn", {"compare": [absent], "success": [put]})
        if created := bool(answer.get("succeeded")):
            self._owe(key, answer)
        return created

    async def renew(self, lease: str) -> None:
        """The lease begins anew."""
        await self._ask("lease/keepalive", {"ID": lease})

    async def revoke(self, lease: str) -> None:
        """The lease ends, and its keys go."""
        await self._post("lease/revoke", {"ID": lease})

    def done(self) -> None:
        """One of the `pending` requests is over."""
        self.pending -= 1
        self._news.set()

    async def _follow(self, watch: _Watch, begin: int) -> None:
        try:
            while True:
                begin = max(begin, watch.heard + 1)
                request = {"create_request": self._below(watch.prefix) | {"start_revision": str(begin)}}
                with suppress(aiohttp.ClientError):
                    await self._listen(watch, request)
                await asyncio.sleep(_RETRY_S)
        finally:
            self._watches.remove(watch)
            self._news.set()

    async def _listen(self, watch: _Watch, request: Json) -> None:
        async with self._http.post(f"{self._url}/v3/watch", json=request) as stream:
            rest = b""
            async for chunk in stream.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._hear(watch, json.loads(line)["result"])

    def _hear(self, watch: _Watch, result: Json) -> None:
        for event in result.get("events", []):
            pair = event["kv"]
            watch.handle(self._key(pair), None if event.get("type") == "DELETE" else _text(pair.get("value", "")))
            watch.heard = max(watch.heard, int(pair["mod_revision"]))
        self._news.set()

    def _owe(self, key: str, answer: Json) -> None:
        for watch in self._watches:
            if key.startswith(watch.prefix):
                watch.due = max(watch.due, int(answer["header"]["revision"]))

    async def _ask(self, path: str, request: Json) -> Json:
        """The answer, however long the server is away."""
        while True:
            try:
                return await self._post(path, request)
            except aiohttp.ClientResponseError as error:
                if error.status < 500:
                    raise
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(_RETRY_S)

    async def _post(self, path: str, request: Json) -> Json:
        async with self._http.post(f"{self._url}/v3/{path}", json=request) as answer:
            answer.raise_for_status()
            content: Json = await answer.json()
        return content

    def _at(self, key: str) -> str:
        return _base64(f"{self._cluster}/{key}")

    def _below(self, prefix: str) -> Json:
        raw = f"{self._cluster}/{prefix}"
        return {"key": _base64(raw), "range_end": _base64(raw[:-1] + chr(ord(raw[-1]) + 1))}

    def _key(self, pair: Json) -> str:
        return _text(pair["key"]).removeprefix(f"{self._cluster}/")


class GatewaySession:
    """One part's lease, renewed by the machine's clock, whatever the double's says."""

    def __init__(self, gateway: Gateway, lease: str) -> None:
        self._gateway, self._lease = gateway, lease
        self._writes: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._renew())]

    def write(self, key: str, value: str = "") -> None:
        """See `Session.write`."""
        self._enqueue(key, value)

    def remove(self, key: str) -> None:
        """See `Session.remove`."""
        self._enqueue(key, None)

    async def create(self, key: str, value: str) -> bool:
        """See `Session.create`."""
        self._gateway.pending += 1
        try:
            return await self._gateway.create(key, value, self._lease)
        finally:
            self._gateway.done()

    async def close(self) -> None:
        """See `Session.close`."""
        await self.abandon()
        with suppress(aiohttp.ClientError):  # the server may have gone first
            await self._gateway.revoke(self._lease)

    async def abandon(self) -> None:
        """See `Session.abandon`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _enqueue(self, key: str, value: str | None) -> None:
        self._gateway.pending += 1
        self._writes.put_nowait((key, value))

    async def _work(self) -> None:
        try:
            while True:
                key, value = await self._writes.get()
                await (self._gateway.delete(key) if value is None else self._gateway.put(key, value, self._lease))
                self._gateway.done()
        finally:
            self._gateway.pending -= self._writes.qsize()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await self._gateway.renew(self._lease)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(raw: str) -> str:
    return base64.b64decode(raw).decode()
