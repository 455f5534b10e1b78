"""A standalone OpenWhisk at wire level: its REST API, limits, metrics and records; the pool is in `standalone_pool`.

Held to the golden recordings by tests: the members of records and their types, the bodies of refusals, the names of
metrics, which containers start how. Time is a `Timeline`: moved by hand in tests, sped up for replays. One namespace
(guest), one key; actions are added by the program that runs it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import re
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from e2e.openwhisk.standalone_pool import Job, Pool, Spec, Times
from e2e.openwhisk.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from e2e.openwhisk.timeline import Timeline

#: A stand-in for a key: it opens nothing but this double.
KEY = "11111111-2222-3333-4444-555555555555:double"
AUTHORIZATION = "Basic " + base64.b64encode(KEY.encode()).decode()
NAMESPACE = "guest"
#: The controller waits so long for a blocking call.
_BLOCKING_MS = 60_000


class Standalone:
    """The double; `serve` opens it on a loopback port.

    Attributes:
        records: of every run that ended and was stored, by activation id, in the API's form.
        refused: calls answered with 429.
        fails: looked at for every request; what one raises is the answer.
        throttled: every call is refused, as if others had used the limit up.
        lose_answers: calls are taken, and then the connection breaks.
    """

    def __init__(
        self,
        timeline: Timeline,
        *,
        seed: int = 0,
        per_minute: int = 60,
        concurrent: int = 30,
        user_memory_mb: int = 1024,
        stems: tuple[tuple[str, int], ...] = (("nodejs:20", 256),),
        times: Times | None = None,
    ) -> None:
        self.pool = Pool(timeline, user_memory_mb=user_memory_mb, stems=stems, times=times)
        self.records: dict[str, dict[str, Any]] = {}
        self.refused = 0
        self.fails: list[Callable[[web.Request], None]] = []
        self.throttled = False
        self.lose_answers = False
        self._timeline = timeline
        self._rng = random.Random(seed)
        self._limits_kept = Throttle(per_minute, concurrent)
        self._actions: dict[str, Spec] = {}
        self._active: dict[str, Job] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}

    # --- As a program uses it -------------------------------------------------------------------------------------

    def put(self, action: Spec) -> None:
        """Makes or updates an action."""
        self._actions[action.name] = replace(action, updated_ms=self._timeline.now_ms())

    def call(self, name: str, **parameters: Any) -> str:
        """A user's call without HTTP and limits; its activation id."""
        return self._admit(self._actions[name], parameters).activation_id

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listens on a free loopback port; gives the API host."""
        app = web.Application(middlewares=[self._middleware])
        base = "/api/v1/namespaces"
        app.router.add_get(base, self._namespaces)
        app.router.add_get(base + "/{ns}/limits", self._limits)
        app.router.add_get(base + "/{ns}/actions", self._list_actions)
        app.router.add_get(base + "/{ns}/actions/{name:.+}", self._get_action)
        app.router.add_post(base + "/{ns}/actions/{name:.+}", self._invoke)
        app.router.add_get(base + "/{ns}/triggers", self._list_triggers)
        app.router.add_get(base + "/{ns}/activations", self._list_activations)
        app.router.add_get(base + "/{ns}/activations/{id}", self._get_activation)
        app.router.add_get("/activation", self._in_flight)
        app.router.add_get("/invokers", self._invokers)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            for future in self._waiting.values():
                future.cancel()
            await runner.cleanup()

    # --- Calls ----------------------------------------------------------------------------------------------------

    def _admit(self, action: Spec, parameters: dict[str, Any]) -> Job:
        job = Job(self._id(), action, parameters, self._timeline.now_ms(), self._finished)
        self._active[job.activation_id] = job
        self.pool.run(job)
        return job

    def _finished(self, job: Job) -> None:
        del self._active[job.activation_id]
        record = _record(job)

        def store() -> None:
            self.records[job.activation_id] = record

        self._timeline.call_at(job.end_ms + self.pool.times.stored, store)
        if waiting := self._waiting.pop(job.activation_id, None):
            waiting.set_result(None)

    def _throttle(self) -> str | None:
        """The sentence of a refusal; a refused call counts toward the rate."""
        calls = self._limits_kept.per_minute + 1 if self.throttled else 1
        return self._limits_kept.refusal(self._timeline.now_ms(), len(self._active), calls)

    async def _invoke(self, request: web.Request) -> web.Response:
        action = self._actions.get(request.match_info["name"])
        if action is None:
            return _error(request, 404, "The requested resource does not exist.")
        if sentence := self._throttle():
            self.refused += 1
            return _error(request, 429, sentence)
        body = await request.read()
        job = self._admit(action, json.loads(body) if body else {})
        if self.lose_answers and request.transport:
            request.transport.abort()
        headers = {"x-openwhisk-activation-id": job.activation_id}
        if request.query.get("blocking") == "true":
            future = self._waiting[job.activation_id] = asyncio.get_running_loop().create_future()
            give_up = self._timeline.call_at(job.arrived_ms + _BLOCKING_MS, lambda: self._give_up(job.activation_id))
            await future
            give_up()
            if job.end_ms and job.activation_id not in self._active:
                status = 200 if job.status == "success" else 502
                content = job.result if request.query.get("result") == "true" else _record(job)
                return web.json_response(content, status=status, headers=headers)
        return web.json_response({"activationId": job.activation_id}, status=202, headers=headers)

    def _give_up(self, activation_id: str) -> None:
        if waiting := self._waiting.pop(activation_id, None):
            waiting.set_result(None)

    # --- Looking --------------------------------------------------------------------------------------------------

    async def _namespaces(self, _request: web.Request) -> web.Response:
        return web.json_response([NAMESPACE])

    async def _limits(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "concurrentInvocations": self._limits_kept.concurrent, "firesPerMinute": 60, "invocationsPerMinute": self._limits_kept.per_minute,
                "maxActionConcurrency": 1, "maxActionInstances": self._limits_kept.concurrent, "maxActionLogs": 10,
                "maxActionMemory": 512, "maxActionTimeout": 300_000, "maxParameterSize": "1048576 B",
                "minActionConcurrency": 1, "minActionLogs": 0, "minActionMemory": 128, "minActionTimeout": 100,
            }
        )  # fmt: skip

    async def _list_triggers(self, request: web.Request) -> web.Response:
        return _page(request, "triggers", [])

    async def _list_actions(self, request: web.Request) -> web.Response:
        listed = sorted(self._actions.values(), key=lambda action: -action.updated_ms)
        return _page(request, "actions", [_action(action, full=False) for action in listed])

    async def _get_action(self, request: web.Request) -> web.Response:
        action = self._actions.get(request.match_info["name"])
        if action is None:
            return _error(request, 404, "The requested resource does not exist.")
        return web.json_response(_action(action, full=True))

    async def _list_activations(self, request: web.Request) -> web.Response:
        since_ms, upto_ms = int(request.query.get("since", 0)), int(request.query.get("upto", 2**62))
        found = [record for record in self.records.values() if since_ms <= record["start"] <= upto_ms]
        return _page(request, "activations", sorted(found, key=lambda record: -record["start"]))

    async def _get_activation(self, request: web.Request) -> web.Response:
        record = self.records.get(request.match_info["id"])
        if record is None:
            return _error(request, 404, "The requested resource does not exist.")
        return web.json_response(record)

    async def _in_flight(self, _request: web.Request) -> web.Response:
        return web.json_response(
            [[key, f"{NAMESPACE}/{job.action.name}@{job.action.version}"] for key, job in self._active.items()]
        )

    async def _invokers(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text="\n".join(self._metric_lines()) + "\n")

    def _metric_lines(self) -> list[str]:
        name = "counter_invoker_containerStart_counter_total"
        lines = [f"# TYPE {name} counter"] if self.pool.starts else []
        for (state, action), count in self.pool.starts.items():
            labels = f'action="{action}",initiator="{NAMESPACE}",containerState="{state}",namespace="{NAMESPACE}"'
            lines.append(f"{name}{{{labels}}} {float(count)}")
        for gauge, value in (self.pool.gauges or {}).items():
            name = f"gauge_containerPool_{gauge}_counter" + ("_bytes" if gauge.endswith("Size") else "")
            lines += [f"# TYPE {name} gauge", f"{name} {float(value)}"]
        return lines

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        for fail in self.fails:
            fail(request)
        if request.path.startswith("/api/") and request.headers.get("Authorization") != AUTHORIZATION:
            response: web.StreamResponse = _error(request, 401, "The supplied authentication is invalid.")
        else:
            response = await handler(request)
        response.headers.setdefault("X-Request-ID", request.headers.get("X-Request-ID") or self._id())
        return response

    def _id(self) -> str:
        return f"{self._rng.getrandbits(128):032x}"


def _record(job: Job) -> dict[str, Any]:
    """The activation record as the API gives it."""
    action = job.action
    annotations = [
        {"key": "path", "value": f"{NAMESPACE}/{action.name}"},
        {"key": "waitTime", "value": job.start_ms - job.arrived_ms},
        {"key": "kind", "value": action.kind},
        {"key": "timeout", "value": False},
        {"key": "limits", "value": _limits_of(action)},
    ]
    logs = [] if job.has_logs else ["There was an issue while collecting your logs. Data might be missing."]
    if job.init_ms:
        annotations.append({"key": "initTime", "value": job.init_ms})
    response = {
        "result": job.result,
        "size": len(json.dumps(job.result)),
        "status": job.status,
        "success": job.status == "success",
    }
    return {
        "activationId": job.activation_id, "annotations": annotations, "duration": job.end_ms - job.start_ms,
        "end": job.end_ms, "logs": logs, "name": action.name.rpartition("/")[2], "namespace": NAMESPACE, "publish": False,
        "response": response, "start": job.start_ms, "subject": NAMESPACE, "version": action.version,
    }  # fmt: skip


def _limits_of(action: Spec) -> dict[str, int]:
    return {"concurrency": 1, "logs": 10, "memory": action.memory_mb, "timeout": action.timeout_ms}


def _action(action: Spec, *, full: bool) -> dict[str, Any]:
    package, _, name = action.name.rpartition("/")
    said: dict[str, Any] = {
        "namespace": f"{NAMESPACE}/{package}" if package else NAMESPACE, "name": name, "version": action.version,
        "updated": action.updated_ms, "publish": False, "limits": _limits_of(action), "exec": {"binary": False},
        "annotations": [{"key": key, "value": value} for key, value in (*action.annotations, ("exec", action.kind))],
    }  # fmt: skip
    return said | {"exec": {"kind": action.kind, "binary": False}, "parameters": []} if full else said


def _page(request: web.Request, collection: str, items: list[dict[str, Any]]) -> web.Response:
    limit, skip = request.query.get("limit", "30"), int(request.query.get("skip", 0))
    if not re.fullmatch(r"\d+", limit) or int(limit) > 200:
        text = f"The query parameter 'limit' was malformed:\nThe value '{limit}' is not in the range of 0 to 200 for "
        return _error(request, 400, f"{text}{collection}.")
    return web.json_response(items[skip : skip + (int(limit) or 200)])


def _error(request: web.Request, status: int, sentence: str) -> web.Response:
    code = request.headers.get("X-Request-ID") or secrets.token_hex(16)
    return web.json_response({"code": code, "error": sentence}, status=status, headers={"X-Request-ID": code})
