"""The target `openwhisk`: blocking invocations over the REST API, and what the activation record says of each.

``POST /api/v1/namespaces/NS/actions/NAME?blocking=true&result=false`` answers with the whole record: 200 for a success,
502 for a run that failed by itself, 202 with the activation's id alone when the run took more than the 60 s for which the
controller waits; its record is then asked for until it is there (Actions.scala of apache/openwhisk). The annotation
``initTime`` is there exactly when a container was initialised for this call; ``duration`` includes it. ``waitTime`` is
from the request's arrival to the container. A sequence's record tells only of its components, so not whether one was cold.

The API key is read from an environment variable or a file, sent to the API host alone, and kept out of every `repr`.
"""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp

from mesp.errors import InputError, UnavailableError
from mesp_bench.replay.calls import Answer, Outcome
from mesp_bench.replay.functions import fill_body, fill_name
from mesp_bench.replay.http import json_object, outcome_of, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mesp.types import FunctionKey
    from mesp_bench.replay.functions import ActionCall

#: Between two questions for a record that is not there yet.
_POLL_S = 1.0

#: A record's statuses that are not the function's own failure.
_BY_STATUS = {"success": Outcome.OK, "whisk internal error": Outcome.SERVER_ERROR}


@dataclass(frozen=True, slots=True)
class OpenWhiskTarget:
    """Invokes actions as their entries say.

    Attributes:
        api_host: scheme, host and port.
        key: ``uuid:secret``.
        entries: an action per function.
        namespace: where the actions live; ``_`` is the key's own.
    """

    api_host: str
    key: str = field(repr=False)
    entries: Mapping[FunctionKey, ActionCall]
    namespace: str = "_"
    name: str = "openwhisk"

    async def call(self, session: aiohttp.ClientSession, function: FunctionKey, run_ms: float) -> Answer:
        """One blocking invocation; see `Target.call`."""
        entry = self.entries[function]
        async with session.post(
            self._url(f"actions/{quote(fill_name(entry.action, function))}?blocking=true&result=false"),
            json=fill_body(entry.parameters, function, run_ms),
            headers=self._headers(),
            allow_redirects=False,
        ) as response:
            record = json_object(await read(response))
        if response.status == 202 and isinstance(activation_id := record.get("activationId"), str):
            return await self._resolve(session, activation_id)
        if "annotations" not in record:  # no run to show: throttled, refused, or a controller in trouble
            outcome = outcome_of(response.status)
            return Answer(Outcome.UNRESOLVED if outcome is Outcome.OK else outcome)
        return read_record(record)

    async def namespace_of_key(self, session: aiohttp.ClientSession) -> str:
        """The key's own namespace, by which plugin and predictor know it; also the proof that host and key are right.

        Raises:
            InputError: the platform does not take the key.
            UnavailableError: the platform does not answer.
        """
        url = f"{self.api_host}/api/v1/namespaces"
        try:
            async with asyncio.timeout(10), session.get(url, headers=self._headers()) as response:
                answer = await response.json(content_type=None) if response.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnavailableError(f"OpenWhisk at {self.api_host} does not answer: {type(error).__name__}") from error
        if response.status in {401, 403}:
            raise InputError(f"OpenWhisk at {self.api_host} does not take the API key (HTTP {response.status})")
        if not (isinstance(answer, list) and answer and isinstance(answer[0], str)):
            raise UnavailableError(
                f"{url} answers HTTP {response.status} without a namespace: is it OpenWhisk's API host?"
            )
        return answer[0]

    async def check_actions(self, session: aiohttp.ClientSession, functions: Iterable[FunctionKey]) -> None:
        """`InputError` naming the first function whose action is not there; call it before a replay."""
        for function in functions:
            action = fill_name(self.entries[function].action, function)
            url = self._url(f"actions/{quote(action)}?code=false")
            async with session.get(url, headers=self._headers()) as response:
                await read(response)
            if response.status == 404:
                raise InputError(
                    f"action {action} of function {function} does not exist in namespace {self.namespace} of "
                    f"{self.api_host}: create it, or name another in the map"
                )

    async def _resolve(self, session: aiohttp.ClientSession, activation_id: str) -> Answer:
        """Asks for the record until it is there; the driver's timeout ends it."""
        try:
            while True:
                async with session.get(
                    self._url(f"activations/{quote(activation_id, safe='')}"), headers=self._headers()
                ) as response:
                    record = json_object(await read(response))
                if response.status == 200 and "annotations" in record:
                    return read_record(record)
                await asyncio.sleep(_POLL_S)
        except (aiohttp.ClientError, OSError):
            return Answer(Outcome.UNRESOLVED)

    def _url(self, path: str) -> str:
        return f"{self.api_host}/api/v1/namespaces/{quote(self.namespace, safe='')}/{path}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(self.key.encode()).decode()}


def read_record(record: Mapping[str, Any]) -> Answer:
    """What an activation record says of its call."""
    listed = record.get("annotations")
    items = listed if isinstance(listed, list) else []
    annotations = {item["key"]: item.get("value") for item in items if isinstance(item, dict) and "key" in item}
    response = record.get("response")
    status = response.get("status") if isinstance(response, dict) else None
    init_ms, duration_ms = _number(annotations.get("initTime")), _number(record.get("duration"))
    return Answer(
        _BY_STATUS.get(str(status), Outcome.FUNCTION_ERROR),
        cold=None if annotations.get("kind") == "sequence" else init_ms is not None,
        init_ms=init_ms,
        wait_ms=_number(annotations.get("waitTime")),
        run_ms=None if duration_ms is None else duration_ms - (init_ms or 0.0),
    )


def read_key(variable: str, file: Path | None) -> str:
    """The API key ``uuid:secret`` from a file (alone, or a line ``AUTH=…`` as in ~/.wskprops), else from the environment.

    Raises:
        InputError: there is none, or it is none; the key itself is never told.
    """
    if file is None:
        key, where = os.environ.get(variable, ""), f"environment variable {variable}"
        if not key:
            raise InputError(
                f"{where} is not set: put the API key (uuid:secret) there, or name a file with --auth-file"
            )
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read as a file with an API key ({type(error).__name__})") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        named = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "AUTH"]
        key, where = next(iter(named or lines), ""), str(file)
    user, colon, secret = key.strip().partition(":")
    if not (user and colon and secret) or not key.isascii():
        raise InputError(f"{where} holds no API key: must be uuid:secret")
    return key.strip()


def check_api_host(url: str) -> str:
    """The API host without a path; `InputError` for anything but http(s)://host[:port]."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
        raise InputError("--api-host must be http://host:port or https://host:port, without a path and without a key")
    return f"{parts.scheme}://{parts.netloc}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
