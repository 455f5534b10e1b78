"""Both targets over real sockets: what an answer means, and that a key goes nowhere else."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from mesp.errors import InputError, UnavailableError
from mesp.types import FunctionKey
from mesp_bench.replay import openwhisk
from mesp_bench.replay.calls import Answer, Outcome, Run
from mesp_bench.replay.driver import Limits, replay
from mesp_bench.replay.functions import ActionCall, Cold, HttpCall
from mesp_bench.replay.http import HttpTarget
from mesp_bench.replay.openwhisk import OpenWhiskTarget, check_api_host, read_key, read_record
from mesp_bench.replay.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from mesp_bench.replay.calls import Target

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KEY = FunctionKey("owner", "f")
SECRET = "uuid-1:v3ry-s3cret"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[str, ClientSession]]:
    """A service on loopback, and a session to call it with."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server, ClientSession() as session:
        yield str(server.make_url("")).rstrip("/"), session


def answering(status: int, body: Any = None, headers: dict[str, str] | None = None) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers=headers)

    return handler


def record(*, status: str = "success", **annotations: Any) -> dict[str, Any]:
    """An activation record as the REST API gives it."""
    return {
        "activationId": "a" * 32,
        "annotations": [{"key": key, "value": value} for key, value in annotations.items()],
        "duration": 205,
        "response": {"result": {}, "status": status, "success": status == "success"},
    }


async def once(target: Target, session: ClientSession) -> tuple[Outcome, Answer]:
    """One call through the driver, which counts what a target lets through."""
    schedule = Schedule((KEY,), (0, 1), 1.0, 0.0, 0.001, np.array([0]), np.array([0.0]), np.array([40.0]))
    run: Run = await replay(schedule, target, session, stop=asyncio.Event(), limits=Limits(timeout_s=20))
    (call,) = run.calls
    return call.answer.outcome, call.answer


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.OK),
        (204, Outcome.OK),
        (302, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (429, Outcome.THROTTLED),
        (500, Outcome.SERVER_ERROR),
        (503, Outcome.SERVER_ERROR),
    ],
)
async def test_http_statuses_are_told_apart(status: int, outcome: Outcome) -> None:
    """Who is throttled is no error of the server, and a redirect is not followed."""
    async with serving(answering(status, headers={"Location": "/again"})) as (url, session):
        found, answer = await once(HttpTarget({KEY: HttpCall(url=url)}), session)
    assert found is outcome
    assert answer.cold is None


async def test_a_refused_connection_and_one_that_breaks_are_connection_errors() -> None:
    """Nobody listens; or somebody hangs up in the middle."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    async with ClientSession() as session:
        found, _ = await once(HttpTarget({KEY: HttpCall(url=f"http://127.0.0.1:{port}/")}), session)
        assert found is Outcome.CONNECTION

    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with serving(hang_up) as (url, session):
        assert (await once(HttpTarget({KEY: HttpCall(url=url)}), session))[0] is Outcome.CONNECTION


async def test_the_request_is_the_maps() -> None:
    """Method, path, headers and body, placeholders filled."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, request.headers["X-Fn"], await request.json()))
        return web.Response()

    async with serving(handler) as (url, session):
        entry = HttpCall(url=url + "/{scope}/{name}", method="PUT", headers={"X-Fn": "{name}"}, body={"ms": "{run_ms}"})
        await once(HttpTarget({KEY: entry}), session)
    assert seen == [("PUT", "/owner/f", "f", {"ms": 40})]


@pytest.mark.parametrize(
    ("cold", "headers", "body", "told"),
    [
        (Cold(header="X-Cold-Start"), {"X-Cold-Start": "true"}, None, True),
        (Cold(header="X-Cold-Start"), {"X-Cold-Start": "0"}, None, False),
        (Cold(header="X-Cold-Start"), {}, None, False),
        (Cold(field="cold"), {}, {"cold": True}, True),
        (Cold(field="cold"), {}, {"cold": False}, False),
        (Cold(field="cold"), {}, [1], False),
        (None, {"X-Cold-Start": "true"}, None, None),
    ],
)
async def test_cold_is_what_the_answer_says(
    cold: Cold | None, headers: dict[str, str], body: Any, told: bool | None
) -> None:
    """By a header or a field, and unknown where the map names neither."""
    async with serving(answering(200, body, headers)) as (url, session):
        assert (await once(HttpTarget({KEY: HttpCall(url=url)}, cold), session))[1].cold is told


def test_records_tell_cold_from_warm() -> None:
    """`initTime` is there for cold starts alone, and its time is part of `duration`; a sequence does not tell."""
    assert read_record(record(waitTime=339, kind="nodejs:20", initTime=149)) == Answer(Outcome.OK, True, 149, 339, 56)
    assert read_record(record(waitTime=7, kind="nodejs:20")) == Answer(Outcome.OK, False, None, 7, 205)
    assert read_record(record(kind="sequence")).cold is None
    for status, outcome in {
        "application error": Outcome.FUNCTION_ERROR,
        "action developer error": Outcome.FUNCTION_ERROR,
        "whisk internal error": Outcome.SERVER_ERROR,
    }.items():
        assert read_record(record(status=status)).outcome is outcome
    strange: dict[str, Any] = {"annotations": [1, {"key": "initTime", "value": "x"}], "duration": None, "response": 3}
    assert read_record(strange) == Answer(Outcome.FUNCTION_ERROR, False)


def target(url: str, action: str = "pkg/f-{name}") -> OpenWhiskTarget:
    entry = ActionCall(action=action, parameters={"ms": "{run_ms}"})
    return OpenWhiskTarget(url, SECRET, {KEY: entry}, namespace="guest")


async def test_an_invocation_is_blocking_and_carries_the_key() -> None:
    """The path, the query, the parameters and Basic authentication."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path_qs, request.headers["Authorization"], await request.json()))
        return web.json_response(record(initTime=100), status=502)

    async with serving(handler) as (url, session):
        found, answer = await once(target(url), session)
    assert seen == [
        (
            "POST",
            "/api/v1/namespaces/guest/actions/pkg/f-f?blocking=true&result=false",
            "Basic dXVpZC0xOnYzcnktczNjcmV0",
            {"ms": 40},
        )
    ]
    assert found is Outcome.OK  # the record decides, not the status
    assert answer.cold


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (502, record(status="application error", initTime=9), Outcome.FUNCTION_ERROR),
        (502, {"error": "The action did not produce a valid response", "code": "x"}, Outcome.SERVER_ERROR),
        (
            429,
            {"error": "Too many requests in the last minute (count: 61, allowed: 60).", "code": "x"},
            Outcome.THROTTLED,
        ),
        (401, {"error": "The supplied authentication is invalid."}, Outcome.REFUSED),
        (503, None, Outcome.SERVER_ERROR),
        (200, {}, Outcome.UNRESOLVED),
    ],
)
async def test_openwhisk_answers_are_told_apart(status: int, body: Any, outcome: Outcome) -> None:
    """A function's own failure is not the platform's."""
    async with serving(answering(status, body)) as (url, session):
        assert (await once(target(url), session))[0] is outcome


async def test_an_answer_that_takes_too_long_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """202: the record is asked for until it is there, and what it says is what the call was."""
    monkeypatch.setattr(openwhisk, "_POLL_S", 0.001)
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.json_response({"activationId": "abc"}, status=202)
        asked.append(request.path)
        return (
            web.json_response({"error": "not found"}, status=404)
            if len(asked) < 3
            else web.json_response(record(initTime=5))
        )

    async with serving(handler) as (url, session):
        found, answer = await once(target(url), session)
    assert asked == ["/api/v1/namespaces/guest/activations/abc"] * 3
    assert found is Outcome.OK
    assert answer.cold


async def test_before_a_replay_key_and_actions_are_proven() -> None:
    """The key's namespace is found; a key that is not taken, an action that is not there, and nobody at home are told."""

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/api/v1/namespaces":
            return web.json_response(["guest"])
        return web.json_response({}, status=404 if request.path.endswith("missing") else 200)

    async with serving(handler) as (url, session):
        assert await target(url).namespace_of_key(session) == "guest"
        await target(url).check_actions(session, [KEY])
        with pytest.raises(InputError, match="action missing of function owner/f does not exist in namespace guest"):
            await target(url, "missing").check_actions(session, [KEY])
    async with serving(answering(401)) as (url, session):
        with pytest.raises(InputError, match=r"does not take the API key \(HTTP 401\)"):
            await target(url).namespace_of_key(session)
    async with serving(answering(200, {"no": "list"})) as (url, session):
        with pytest.raises(UnavailableError, match="is it OpenWhisk's API host"):
            await target(url).namespace_of_key(session)
    async with ClientSession() as session:
        with pytest.raises(UnavailableError, match="does not answer"):
            await target(url).namespace_of_key(session)


def test_keys_are_read_and_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, from a file of its own, from a .wskprops; what is no key is told without it."""
    monkeypatch.setenv("KEY", SECRET)
    assert read_key("KEY", None) == SECRET
    assert SECRET not in repr(OpenWhiskTarget("http://h", SECRET, {}))
    path = tmp_path / "key"
    for text in (SECRET, f"{SECRET}\n", f"APIHOST=http://h\nAUTH={SECRET}\n"):
        path.write_text(text)
        assert read_key("NONE", path) == SECRET
    for text in ("", "s3cret-without-a-colon", "AUTH=:", "ü:s3cret"):
        path.write_text(text)
        with pytest.raises(InputError, match="must be uuid:secret") as told:
            read_key("NONE", path)
        assert "s3cret" not in str(told.value)
    monkeypatch.delenv("KEY")
    with pytest.raises(InputError, match="KEY is not set"):
        read_key("KEY", None)
    with pytest.raises(InputError, match="cannot be read"):
        read_key("NONE", tmp_path / "none")


@pytest.mark.parametrize("url", ["host:80", "ftp://host", "http://uuid:s3cret@host", "http://host/api/v1", "https://"])
def test_api_hosts_that_are_none_are_told_without_a_key(url: str) -> None:
    """A key in a URL is refused, and not repeated."""
    with pytest.raises(InputError, match="--api-host must be") as told:
        check_api_host(url)
    assert "s3cret" not in str(told.value)
    assert check_api_host("https://host:443/") == "https://host:443"


async def test_an_answer_is_read_to_its_end_and_kept_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer of any size only its beginning is held in memory."""
    monkeypatch.setattr("mesp_bench.replay.http._KEPT_BYTES", 4)
    body = {"cold": True}
    assert json.dumps(body)[:4] != json.dumps(body)
    async with serving(answering(200, body)) as (url, session):
        found, answer = await once(HttpTarget({KEY: HttpCall(url=url)}, Cold(field="cold")), session)
    assert found is Outcome.OK
    assert answer.cold is False  # the JSON was cut: no field to see
