"""OpenWhisk's REST API as the plugin needs it: look, and invoke without waiting.

Every request has a deadline, and every failure a type that says whether trying again may help: `ThrottledError` (429)
and `UnavailableError` (no connection, 5xx, too late) may, `RefusedError` (any other status) will not. The API key goes
into one header and nowhere else; no exception quotes what the other side answered, which may hold users' data.

Lists come newest first and are paged by `skip`. What is added meanwhile pushes the rest down, so a page may repeat
items but never skips one; repeated ones are dropped here.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import aiohttp

from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk.fields import ANY_TEXT, HEX_ID, Fields, read_json, read_object
from mesp_plugin.openwhisk.messages import ActivationRecord
from mesp_plugin.openwhisk.names import FULL_NAME, NAME, PATH, function_key, tidy
from mesp_plugin.openwhisk.parts import MAX_INT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.fields import Json, JsonObject

_Item = TypeVar("_Item")

#: The API's largest page.
PAGE: Final = 200
_DEADLINE_S: Final = 5.0
_STATUS: Final = {"success": 0, "application error": 1, "action developer error": 2}
_GAUGE: Final = re.compile(r"^gauge_containerPool_(\w+?)_counter(?:_bytes)?(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class RefusedError(InputError):
    """The API refuses this request, and would again: a wrong key, a wrong name."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class ThrottledError(UnavailableError):
    """429: the namespace is at a limit.

    Attributes:
        per_minute: it is the one on calls a minute, which lasts until the minute ends; else that on calls in flight.
    """

    def __init__(self, sentence: str, *, per_minute: bool) -> None:
        super().__init__(sentence)
        self.per_minute = per_minute


@dataclass(frozen=True, slots=True)
class Limits:
    """The namespace's limits on activations."""

    per_minute: int
    concurrent: int


@dataclass(frozen=True, slots=True)
class PoolGauges:
    """The pool of containers as the invoker last told it (every 10 s, from 30 s after its start), MB and counts."""

    active_mb: float
    idle_mb: float
    stem_mb: float
    buffered: int


@dataclass(frozen=True, slots=True)
class ActionSummary:
    """An action in a list: `updated_ms` changes with every update of it."""

    full_name: str
    updated_ms: int


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, ``uuid:secret``, that shows itself to nobody."""

    value: str = field(repr=False)

    @classmethod
    def read(cls, config: OpenWhiskConfig) -> Key:
        """From the configured file (alone, or a line ``AUTH=...``), else from the environment.

        Raises:
            InputError: there is none, or it is none; what was found is never told.
        """
        if config.auth_file is None:
            text, where = os.environ.get(config.auth_env, ""), f"environment variable {config.auth_env}"
            if not text:
                raise InputError(f"{where} is not set: put the API key (uuid:secret) there, or set auth_file")
        else:
            where = str(config.auth_file)
            try:
                text = config.auth_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"auth_file = {where}: cannot be read ({type(error).__name__})") from None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        named = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "AUTH"]
        key = next(iter(named or lines), "")
        user, colon, secret = key.partition(":")
        if not (user and colon and secret) or not key.isascii():
            raise InputError(f"{where} holds no API key, must be uuid:secret")
        return cls(key)


class OpenWhiskApi:
    """One namespace of one API host. All methods raise `MespError`: these types, and `InputError` for what is no answer."""

    def __init__(self, session: aiohttp.ClientSession, host: str, key: Key, namespace: str = "_") -> None:
        self.host = host
        self.malformed = 0
        self._session = session
        self._base = f"/api/v1/namespaces/{quote(namespace, safe='')}"
        self._headers = {"Authorization": "Basic " + base64.b64encode(key.value.encode()).decode()}

    async def namespaces(self) -> list[str]:
        """The namespaces of the key, its own first: also the proof that host and key are right."""
        answer = await self._get("/api/v1/namespaces")
        return [name for name in _list("namespaces", answer) if isinstance(name, str)]

    async def limits(self) -> Limits:
        """What the namespace may do."""
        fields = read_object("limits", await self._get(f"{self._base}/limits"))
        return Limits(
            per_minute=fields.integer("invocationsPerMinute", 0, MAX_INT),
            concurrent=fields.integer("concurrentInvocations", 0, MAX_INT),
        )

    async def actions(self) -> list[ActionSummary]:
        """Every action of the namespace, those in packages too."""
        found = await self._pages("actions", "", _read_summary)
        return list({summary.full_name: summary for summary in reversed(found)}.values())

    async def action(self, full_name: str) -> Fields:
        """An action's document, without its code."""
        return read_object("action", await self._get(f"{self._action(full_name)}?code=false"))

    async def triggers(self) -> list[str]:
        """The names of the namespace's triggers."""
        return list(dict.fromkeys(await self._pages("triggers", "", lambda fields: fields.text("name", NAME))))

    async def trigger(self, name: str) -> Fields:
        """A trigger's document."""
        return read_object("trigger", await self._get(f"{self._base}/triggers/{quote(name, safe='')}"))

    async def activations(self, since_ms: int, upto_ms: int) -> list[ActivationRecord]:
        """Records of runs that began in [since, upto], each once; a record is there only when its run has ended.

        Those of sequences, which run in no container, are left out; malformed ones are counted in `malformed`.
        """
        query = f"&docs=true&since={since_ms}&upto={upto_ms}"
        found = await self._pages("activations", query, parse_record)
        return list({record.activation_id: record for record in found}.values())

    async def invoke(self, full_name: str, body: JsonObject, request_id: str) -> str:
        """Invokes without waiting for the run; its activation id."""
        url = f"{self._action(full_name)}?blocking=false"
        answer = await self._request("POST", url, json=body, headers={"X-Request-ID": request_id})
        return read_object("invocation", answer).text("activationId", HEX_ID)

    async def in_flight(self) -> list[tuple[str, str]]:
        """(activation id, full name of the action) of all that the controller has admitted and not seen end.

        In every namespace: the page knows none, and asks for no key.
        """
        found = []
        for item in _list("activation", await self._get("/activation")):
            match item:
                case [str(activation_id), str(name)] if HEX_ID.allows(activation_id):
                    found.append((activation_id, name.partition("@")[0]))
                case _:
                    self.malformed += 1
        return found

    async def invokers(self) -> dict[str, str]:
        """Each invoker's state; empty in standalone."""
        answer = read_json("invokers", await self._get("/invokers"))
        return {name: str(state) for name, state in answer.items()} if isinstance(answer, dict) else {}

    async def gauges(self) -> PoolGauges | None:
        """The container pool from ``/metrics``; None where the page, or as yet its gauges, are not there."""
        try:
            text = await self._get("/metrics")
        except RefusedError:
            return None
        return parse_gauges(text)

    async def _pages(self, collection: str, query: str, read: Callable[[Fields], _Item | None]) -> list[_Item]:
        found: list[_Item] = []
        for page in itertools.count():
            url = f"{self._base}/{collection}?limit={PAGE}&skip={page * PAGE}{query}"
            items = _list(collection, await self._get(url))
            for item in items:
                try:
                    value = read(Fields(collection, item if isinstance(item, dict) else {}))
                except InputError:
                    self.malformed += 1
                else:
                    found += [] if value is None else [value]
            if len(items) < PAGE:
                break
        return found

    def _action(self, full_name: str) -> str:
        return f"{self._base}/actions/{quote(full_name.partition('/')[2])}"

    async def _get(self, url: str) -> str:
        return await self._request("GET", url)

    async def _request(
        self, method: str, url: str, *, json: JsonObject | None = None, headers: Mapping[str, str] | None = None
    ) -> str:
        what = f"OpenWhisk at {self.host}"
        try:
            async with self._session.request(
                method,
                self.host + url,
                json=json,
                headers={**self._headers, **(headers or {})},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=_DEADLINE_S),
            ) as response:
                status, text = response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
            raise UnavailableError(f"{what} does not answer: {type(error).__name__}") from None
        if status < 300:
            return text
        path = url.partition("?")[0]
        if status == 429:
            per_minute = "in the last minute" in text
            limit = "calls a minute" if per_minute else "calls in flight"
            raise ThrottledError(f"{what}: the namespace is at its limit on {limit} (HTTP 429)", per_minute=per_minute)
        if status >= 500:
            raise UnavailableError(f"{what}: {method} {path} failed with HTTP {status}")
        hint = "it does not take the API key" if status in {401, 403} else f"{method} {path} is refused"
        raise RefusedError(f"{what}: {hint} (HTTP {status})", status)


def connect(config: OpenWhiskConfig) -> aiohttp.ClientSession:
    """A session that checks certificates as configured; the caller closes it.

    Raises:
        InputError: `ca_file` holds no certificates.
    """
    tls: ssl.SSLContext | bool = not config.insecure
    if config.ca_file:
        try:
            tls = ssl.create_default_context(cafile=config.ca_file)
        except OSError:  # ssl.SSLError is one
            raise InputError(f"ca_file = {config.ca_file}: cannot be read as certificates in PEM form") from None
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit_per_host=32))


def parse_record(fields: Fields) -> ActivationRecord | None:
    """An activation as the API lists it (``docs=true``); None for a sequence and for a call that never ran.

    The API names how a run ended (`response.status`) where messages and the database have `response.statusCode`.
    """
    annotations = fields.pairs("annotations")
    kind = annotations.optional(annotations.text, "kind")
    if kind in {None, "sequence", "unknown"}:
        return None
    namespace, name = tidy(fields.text("namespace", PATH)), fields.text("name", NAME)
    path = annotations.optional(annotations.text, "path", FULL_NAME)
    limits = annotations.optional(annotations.object, "limits")
    start_ms = fields.integer("start")
    duration_ms = fields.optional(fields.span, "duration") or 0
    return ActivationRecord(
        function=function_key(namespace, tidy(path) if path else f"{namespace}/{name}"),
        activation_id=fields.text("activationId", HEX_ID),
        start_ms=start_ms,
        end_ms=fields.optional(fields.integer, "end") or start_ms + duration_ms,
        duration_ms=duration_ms,
        init_ms=annotations.optional(annotations.span, "initTime") or 0,
        wait_ms=annotations.optional(annotations.span, "waitTime") or 0,
        status_code=_STATUS.get(fields.object("response").text("status", ANY_TEXT), 3),
        kind=kind,
        memory_mb=limits.optional(limits.integer, "memory", 0, MAX_INT) if limits else None,
        cause=fields.optional(fields.text, "cause", HEX_ID),
    )


def parse_gauges(text: str) -> PoolGauges | None:
    """The pool's gauges in a Prometheus page; None where they are not all there."""
    found = {name: float(value) for name, value in _GAUGE.findall(text)}
    try:
        return PoolGauges(
            active_mb=found["activeSize"] / 2**20,
            idle_mb=found["idlesSize"] / 2**20,
            stem_mb=found["prewarmSize"] / 2**20,
            buffered=int(found["runBufferCount"]),
        )
    except KeyError:
        return None


def _read_summary(fields: Fields) -> ActionSummary:
    path, name = tidy(fields.text("namespace", PATH)), fields.text("name", NAME)
    return ActionSummary(f"{path}/{name}", fields.integer("updated"))


def _list(what: str, text: str) -> list[Json]:
    items = read_json(what, text)
    if not isinstance(items, list):
        raise InputError(f"{what}: must be a list")
    return items
