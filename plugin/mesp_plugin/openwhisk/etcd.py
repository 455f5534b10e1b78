"""etcd as the plugin needs it: look, follow changes without a gap, and a lease; through etcd's own JSON gateway.

etcd answers HTTP beside gRPC (``/v3/...``; keys and values in base64, 64-bit numbers as texts), so aiohttp is enough.
A look tells its revision; changes are followed from the one after it, and after any failure from where they ended. What
was compacted away meanwhile cannot be followed: `CompactedError` says to look anew.

Of several endpoints the next one is tried when one does not answer. The token that a password buys is bought again
when etcd no longer takes it. Failures are told by their kind, never in etcd's words and never with a password.

Source: etcd's documentation, "gRPC gateway" and "API reference" (v3).
"""

from __future__ import annotations

import base64
import re
import ssl
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp

from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk.fields import Fields, Rule, read_object
from mesp_plugin.openwhisk.passwords import read_password

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from mesp_plugin.openwhisk.config import EtcdConfig
    from mesp_plugin.openwhisk.fields import JsonObject

_DEADLINE_S: Final = 5.0
#: Where nothing happens nothing is written: a stream that is silent for so long may be broken, and is opened anew.
_SILENCE_S: Final = 30.0
#: Of gRPC, UNAUTHENTICATED: the token is not taken (any more).
_BAD_TOKEN: Final = 16
_NUMBER: Final = Rule(re.compile(r"[0-9]{1,19}"), "a number as a text")
_BASE64: Final = Rule(re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"), "base64")


class CompactedError(UnavailableError):
    """The changes from the wanted revision on are gone: look anew."""


class _TokenError(UnavailableError):
    """etcd does not take the token."""


class Change(NamedTuple):
    """A key was written, or deleted (`value` None)."""

    key: str
    value: bytes | None


class Etcd:
    """See the module; made by `open_etcd`. Every method raises `UnavailableError` where etcd does not answer as it must."""

    def __init__(self, session: aiohttp.ClientSession, config: EtcdConfig, password: str | None) -> None:
        self._session = session
        self._endpoints = list(config.endpoints)
        self._user = config.username
        self._password = password
        self._headers: dict[str, str] = {}

    async def look(self, prefix: str) -> tuple[list[Change], int]:
        """(what is there below `prefix`, the revision at which it was)."""
        answer = await self._ask("kv/range", {"key": _base64(prefix), "range_end": _base64(_end(prefix))})
        with _told_by_kind():
            return [_written(kv) for kv in _items(answer, "kvs")], _revision(answer)

    async def follow(self, prefix: str, revision: int) -> AsyncGenerator[tuple[list[Change], int], None]:
        """(changes below `prefix` in their order, the revision of the last) from `revision` on, as they come.

        The first are none: the stream is open. It ends where nothing came for half a minute, which is no failure: go on
        from the revision after the last.

        Raises:
            CompactedError: `revision` is too old.
            UnavailableError: the stream broke; go on likewise.
        """
        where: JsonObject = {"key": _base64(prefix), "range_end": _base64(_end(prefix))}
        request: JsonObject = {"create_request": where | {"start_revision": str(revision)}}
        timeout = aiohttp.ClientTimeout(sock_connect=_DEADLINE_S, sock_read=_SILENCE_S)
        async with await self._post("watch", request, timeout) as response, _aborted(response):
            with _told_by_kind():
                async for line in _lines(response):
                    if line is None:
                        return
                    answer = read_object("etcd", line)
                    told = answer.object("result") if answer.has("result") else answer
                    if told.has("compact_revision"):
                        raise CompactedError("etcd: the changes to follow were compacted away")
                    if told.has("canceled") or told.has("error"):
                        self._headers = {}  # the token may be what it did not like
                        raise UnavailableError("etcd: it ended the watch")
                    events = _items(told, "events")
                    if events:  # the header's revision may be ahead of what was sent
                        revision = int(events[-1].object("kv").text("mod_revision", _NUMBER))
                    yield [_change(event) for event in events], revision
        raise UnavailableError("etcd: the watch ended")

    async def grant(self, ttl_s: int) -> str:
        """A lease of so many seconds; its id."""
        answer = await self._ask("lease/grant", {"TTL": str(ttl_s)})
        with _told_by_kind():
            return answer.text("ID", _NUMBER)

    async def keep_alive(self, lease: str) -> bool:
        """The lease begins anew; False where it has run out."""
        answer = await self._ask("lease/keepalive", {"ID": lease})
        with _told_by_kind():
            told = answer.object("result")
            return told.optional(told.text, "TTL", _NUMBER) not in {None, "0"}

    async def revoke(self, lease: str) -> None:
        """The lease ends, and its keys go."""
        await self._ask("lease/revoke", {"ID": lease})

    async def create(self, key: str, value: str, lease: str) -> bool:
        """Writes the key unless it is there; whether it was written. It lives as long as the lease."""
        absent: JsonObject = {"key": _base64(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        put: JsonObject = {"request_put": {"key": _base64(key), "value": _base64(value), "lease": lease}}
        answer = await self._ask("kv/txn", {"compare": [absent], "success": [put]})
        return answer.has("succeeded")  # what is false is left out

    async def _ask(self, path: str, request: JsonObject) -> Fields:
        async with await self._post(path, request, aiohttp.ClientTimeout(total=_DEADLINE_S)) as response:
            with _told_by_kind():
                return read_object("etcd", await response.read())

    async def _post(self, path: str, request: JsonObject, within: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """The first answer with status 200; each endpoint is asked once, and one again with a new token."""
        renewed, silent = False, 0
        while True:
            try:
                if self._password is not None and not self._headers:
                    renewed = True
                    await self._authenticate()
                return await self._try(path, request, within)
            except _TokenError:
                self._headers = {}
                if renewed:
                    raise
            except UnavailableError:
                silent += 1
                self._endpoints.append(self._endpoints.pop(0))
                if silent == len(self._endpoints):
                    raise

    async def _try(self, path: str, request: JsonObject, within: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        url = f"{self._endpoints[0]}/v3/{path}"
        with _told_by_kind():
            response = await self._session.post(url, json=request, headers=self._headers, timeout=within)
            if response.status == 200:
                return response
            async with response:
                refusal = await response.read()
        with _told_by_kind(f"etcd: {path} failed with HTTP {response.status}"):
            if read_object("etcd", refusal).integer("code") == _BAD_TOKEN:
                raise _TokenError("etcd: it does not take this user's token")
        raise UnavailableError(f"etcd: {path} failed with HTTP {response.status}")

    async def _authenticate(self) -> None:
        request: JsonObject = {"name": self._user, "password": self._password}
        response = await self._try("auth/authenticate", request, aiohttp.ClientTimeout(total=_DEADLINE_S))
        async with response:
            with _told_by_kind():
                token = read_object("etcd", await response.read()).text("token")
        self._headers = {"Authorization": token}


@asynccontextmanager
async def open_etcd(config: EtcdConfig) -> AsyncIterator[Etcd]:
    """A client; nothing is asked yet.

    Raises:
        InputError: the password or the certificates cannot be read.
    """
    password = None
    if config.username is not None:
        password = read_password("etcd", config.password_env, config.password_file)
    try:
        trusted = ssl.create_default_context(cafile=config.ca_file)
    except OSError:  # ssl.SSLError is one
        raise InputError(f"etcd.ca_file = {config.ca_file}: cannot be read as certificates in PEM form") from None
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session:
        yield Etcd(session, config, password)


@asynccontextmanager
async def _aborted(response: aiohttp.ClientResponse) -> AsyncIterator[None]:
    """Ends the connection with the block: a stream without an end has none to wait for, least of all inside TLS."""
    try:
        yield
    finally:
        if response.connection and response.connection.transport:
            response.connection.transport.abort()


@contextmanager
def _told_by_kind(sentence: str = "etcd does not answer as it must") -> Iterator[None]:
    """What fails on the way becomes one sentence that quotes nothing."""
    try:
        yield
    except (aiohttp.ClientError, OSError, InputError) as error:  # a timeout is an OSError
        raise UnavailableError(f"{sentence}: {type(error).__name__}") from None


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes | None]:
    """The stream's lines, however long; None where it is silent for too long, and ends for that."""
    rest = b""
    try:
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line
    except aiohttp.SocketTimeoutError:
        yield None


def _items(fields: Fields, key: str) -> list[Fields]:
    """The objects of a list, which is left out where it is empty."""
    items = fields.any(key) if fields.has(key) else []
    if not isinstance(items, list):
        fields.refuse(key, "a list")
    return [Fields(fields.what, item if isinstance(item, dict) else {}, f"{key}.") for item in items]


def _revision(fields: Fields) -> int:
    return int(fields.object("header").text("revision", _NUMBER))


def _change(event: Fields) -> Change:
    written = _written(event.object("kv"))
    return written._replace(value=None) if event.optional(event.text, "type") == "DELETE" else written


def _written(kv: Fields) -> Change:
    value = kv.text("value", _BASE64) if kv.has("value") else ""
    return Change(base64.b64decode(kv.text("key", _BASE64)).decode(errors="replace"), base64.b64decode(value))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _end(prefix: str) -> str:
    """The first key after all that begin with `prefix`, whose last character is ASCII."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
