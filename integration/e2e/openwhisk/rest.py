"""The part of a controller's REST API that the double serves: calls, records, actions, limits, and two views for operators."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from e2e.openwhisk.front import ThrottledError, UnavailableError

if TYPE_CHECKING:
    from e2e.openwhisk.front import Front
    from e2e.openwhisk.model import Action, Json, User

#: By status code of the record.
STATUS = ("success", "application error", "action developer error", "whisk internal error")
_NAMESPACES = "/api/v1/namespaces"
_ACTIONS = _NAMESPACES + "/{namespace}/actions"
_ACTIVATIONS = _NAMESPACES + "/{namespace}/activations"


def shown(record: Json) -> Json:
    """A record as REST shows it: ``status`` and ``success`` where bus and database have ``statusCode``."""
    response = dict(record["response"])
    code = response.pop("statusCode")
    return record | {"response": response | {"status": STATUS[code], "success": code == 0}}


def application(controller: Front) -> web.Application:
    """The routes; everything below ``/api`` wants a user's key."""
    routes = _Routes(controller)
    app = web.Application()
    app.add_routes(
        [
            web.get("/ping", routes.ping),
            web.get("/invokers", routes.invokers),
            web.get("/activation", routes.in_flight),
            web.get(_NAMESPACES, routes.namespaces),
            web.get(_NAMESPACES + "/{namespace}/limits", routes.limits),
            web.get(_ACTIONS, routes.actions),
            web.get(_ACTIONS + "/{name:.+}", routes.action),
            web.post(_ACTIONS + "/{name:.+}", routes.invoke),
            web.get(_NAMESPACES + "/{namespace}/triggers", routes.triggers),
            web.get(_ACTIVATIONS, routes.activations),
            web.get(_ACTIVATIONS + "/{id}", routes.activation),
        ]
    )
    return app


class _Routes:
    def __init__(self, controller: Front) -> None:
        self._controller = controller
        self._store = controller.store

    async def ping(self, _: web.Request) -> web.Response:
        return web.Response(text="pong")

    async def invokers(self, _: web.Request) -> web.Response:
        return web.json_response(self._controller.invokers())

    async def in_flight(self, _: web.Request) -> web.Response:
        return web.json_response(self._controller.in_flight())

    async def namespaces(self, request: web.Request) -> web.Response:
        return web.json_response([self._user(request).namespace])

    async def limits(self, request: web.Request) -> web.Response:
        """OpenWhisk's defaults; nobody is refused for them unless the controller has a `Throttle`."""
        self._user(request)
        return web.json_response({"invocationsPerMinute": 60, "concurrentInvocations": 30})

    async def triggers(self, request: web.Request) -> web.Response:
        """Nobody made any."""
        self._user(request)
        return web.json_response([])

    async def actions(self, request: web.Request) -> web.Response:
        """Without ``parameters``, as the real one lists them."""
        mine = self._store.actions(self._user(request).namespace)
        newest = sorted((one.document() for one in mine), key=lambda document: -document["updated"])
        for document in newest:
            del document["parameters"]
        return web.json_response(_page(request, newest))

    async def action(self, request: web.Request) -> web.Response:
        _, action = self._wanted(request)
        return web.json_response(action.document())

    async def invoke(self, request: web.Request) -> web.Response:
        user, action = self._wanted(request)
        blocking = request.query.get("blocking") == "true"
        body = await request.read()
        parameters = json.loads(body) if body else {}
        try:
            activation_id, record = await self._controller.invoke(user, action, parameters, blocking=blocking)
        except UnavailableError as error:
            raise _refusal(web.HTTPServiceUnavailable, str(error)) from error
        except ThrottledError as error:
            raise _refusal(web.HTTPTooManyRequests, str(error)) from error
        if record is None:
            return web.json_response({"activationId": activation_id}, status=202)
        answer = record["response"]["result"] if request.query.get("result") == "true" else shown(record)
        return web.json_response(answer, status=502 if record["response"]["statusCode"] else 200)

    async def activations(self, request: web.Request) -> web.Response:
        user, query = self._user(request), request.query
        since, upto = int(query.get("since", 0)), int(query.get("upto", 2**62))
        found = [
            record
            for record in self._store.records.values()
            if record["namespace"] == user.namespace
            and query.get("name", record["name"]) == record["name"]
            and since <= record["start"] <= upto
        ]
        newest = sorted(found, key=lambda record: -record["start"])
        return web.json_response([shown(record) for record in _page(request, newest)])

    async def activation(self, request: web.Request) -> web.Response:
        user = self._user(request)
        record = self._store.records.get(request.match_info["id"])
        if record is None or record["namespace"] != user.namespace:
            raise _refusal(web.HTTPNotFound, "The requested resource does not exist.")
        return web.json_response(shown(record))

    def _wanted(self, request: web.Request) -> tuple[User, Action]:
        user = self._user(request)
        namespace = request.match_info["namespace"]
        if namespace == "_":
            namespace = user.namespace
        action = self._store.get(f"{namespace}/{request.match_info['name']}")
        if action is None:
            raise _refusal(web.HTTPNotFound, "The requested resource does not exist.")
        return user, action

    def _user(self, request: web.Request) -> User:
        _, _, login = request.headers.get("Authorization", "").partition("Basic ")
        with suppress(ValueError):
            if user := self._store.user_of(base64.b64decode(login).decode()):
                return user
        raise _refusal(web.HTTPUnauthorized, "The supplied authentication is invalid.")


def _page(request: web.Request, items: list[Json]) -> list[Json]:
    limit, skip = int(request.query.get("limit", 30)), int(request.query.get("skip", 0))
    if not 0 <= limit <= 200:
        raise _refusal(web.HTTPBadRequest, f"The value '{limit}' is not in the range of 0 to 200 for limit.")
    return items[skip : skip + (limit or 200)]


def _refusal(kind: type[web.HTTPException], message: str) -> web.HTTPException:
    return kind(text=json.dumps({"error": message, "code": "double"}), content_type="application/json")
