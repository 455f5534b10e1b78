"""A classic driver on a bus of lists, with a clock moved by hand: the tests say what the platform says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry

from mesp.types import FunctionKey
from mesp_placement.model import Prewarm
from mesp_plugin.metrics import OpenWhiskMetrics
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.classic import ClassicDriver
from mesp_plugin.openwhisk.config import KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.fields import Fields
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.kafka import Message
from mesp_plugin.openwhisk.messages import Caller
from mesp_plugin.openwhisk.rest import ActionSummary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mesp_placement.model import Container
    from mesp_plugin.openwhisk.driver import Done, Observed
    from mesp_plugin.openwhisk.rest import OpenWhiskApi

Json = dict[str, Any]

#: A whole minute.
BEGIN_MS = 1_795_245_000_000
SECRET = "topsecret"
UUID = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502"
HELLO, PLAIN = FunctionKey("guest", "hello"), FunctionKey("guest", "plain")


class FakeBus:
    """What is sent is also read, as by any reader of all topics; nothing is while it `fails`."""

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.unbroken_ms = (since_ms, since_ms)
        self.fails = False
        self.leads = True
        self.ahead_ms = 0
        self.sent: list[tuple[str, Json]] = []
        self._waiting: list[Message] = []

    def say(self, topic: str, value: Json | bytes, at_ms: int) -> None:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        self._waiting.append(Message(topic, at_ms, raw))

    async def take(self, now_ms: int) -> list[Message]:
        self.unbroken_ms = (now_ms if self.fails else self.unbroken_ms[0], now_ms)
        if self.fails:
            return []
        taken = sorted((one for one in self._waiting if one.at_ms <= now_ms), key=lambda one: one.at_ms)
        self._waiting = [one for one in self._waiting if one.at_ms > now_ms]
        return [one._replace(at_ms=one.at_ms + self.ahead_ms) for one in taken]

    async def send(self, topic: str, values: Sequence[bytes], now_ms: int) -> None:
        for value in values:
            self.sent.append((topic, json.loads(value)))
            self.say(topic, value, now_ms)


@dataclass
class FakeApi:
    """Documents by full name."""

    documents: dict[str, Json] = field(default_factory=dict)

    def put(self, name: str, *, annotations: Json | None = None, memory_mb: int = 256, **members: Any) -> None:
        self.documents[f"guest/{name}"] = {
            "namespace": "guest",
            "name": name,
            "version": "0.0.1",
            "publish": False,
            "exec": {"kind": "nodejs:20", "binary": False},
            "limits": {"memory": memory_mb, "timeout": 60_000, "logs": 10, "concurrency": 1},
            "annotations": [{"key": key, "value": value} for key, value in (annotations or {}).items()],
            "parameters": [],
            "updated": len(self.documents),
            **members,
        }

    async def actions(self) -> list[ActionSummary]:
        return [ActionSummary(name, document["updated"]) for name, document in self.documents.items()]

    async def action(self, full_name: str) -> Fields:
        return Fields("action", self.documents[full_name])


def call_message(function: FunctionKey, activation_id: str, at_ms: int, **members: Any) -> Json:
    """As a controller sends it, a key and a secret parameter inside."""
    return {
        "transid": ["tid", at_ms],
        "action": {"path": function.scope, "name": function.name, "version": "0.0.1"},
        "revision": "1-aa",
        "user": {
            "subject": "guest-subject",
            "namespace": {"name": function.scope, "uuid": UUID},
            "authkey": {"api_key": f"{UUID}:{SECRET}"},
            "rights": ["READ", "ACTIVATE"],
            "limits": {},
        },
        "activationId": activation_id,
        "rootControllerIndex": {"asString": "0", "instanceType": "controller"},
        "blocking": True,
        "content": {"password": SECRET},
        "initArgs": [],
        "lockedArgs": {},
        **members,
    }


def invoker(number: int = 0, memory_mb: int = 1024) -> Json:
    return {
        "instance": number,
        "userMemory": f"{memory_mb} MB",
        "instanceType": "invoker",
        "tags": [],
        "dedicatedNamespaces": [],
    }


def record(function: FunctionKey, activation_id: str, at_ms: int, *, init_ms: int = 0, status: int = 0) -> Json:
    notes: Json = {"path": f"{function.scope}/{function.name}", "waitTime": 3, "kind": "nodejs:20"}
    notes |= {"limits": {"memory": 256}} | ({"initTime": init_ms} if init_ms else {})
    return {
        "activationId": activation_id,
        "annotations": [{"key": key, "value": value} for key, value in notes.items()],
        "duration": 20 + init_ms,
        "start": at_ms - 20 - init_ms,
        "end": at_ms,
        "logs": [],
        "name": function.name,
        "namespace": function.scope,
        "publish": False,
        "response": {"statusCode": status, "result": {"answer": SECRET}},
        "subject": "guest-subject",
        "version": "0.0.1",
    }


def event(function: FunctionKey, activation_id: str, at_ms: int, init_ms: int) -> Json:
    body = {
        "name": f"{function.scope}/{function.name}",
        "activationId": activation_id,
        "statusCode": 0,
        "duration": 20,
        "waitTime": 3,
        "initTime": init_ms,
        "kind": "nodejs:20",
        "conductor": False,
        "memory": 256,
    }
    who = {"subject": "guest", "namespace": function.scope, "userId": UUID}
    return who | {"source": "invoker0", "eventType": "Activation", "timestamp": at_ms, "body": body}


@dataclass
class World:
    """The driver and what surrounds it."""

    folder: Path
    bus: FakeBus
    api: FakeApi
    holdings: Holdings
    driver: ClassicDriver
    metrics: OpenWhiskMetrics
    now_ms: int = BEGIN_MS
    ids: Any = field(default_factory=lambda: count(1))

    def ping(self, number: int = 0, memory_mb: int = 1024, *, enabled: bool = True) -> None:
        self.bus.say("health", {"name": invoker(number, memory_mb), "isEnabled": enabled}, self.now_ms)

    def call(self, function: FunctionKey, number: int = 0, **members: Any) -> str:
        """A user's call arrives now; its id."""
        activation_id = f"{next(self.ids):032x}"
        self.bus.say(f"invoker{number}", call_message(function, activation_id, self.now_ms, **members), self.now_ms)
        return activation_id

    def done(
        self,
        function: FunctionKey,
        activation_id: str,
        *,
        init_ms: int = 0,
        status: int = 0,
        to: str = "0",
        **how: bool,
    ) -> None:
        """Its run ends now: the result, and the slot is free; `told=False`: no result (non-blocking)."""
        if how.get("told", True):
            shown = record(function, activation_id, self.now_ms, init_ms=init_ms, status=status)
            self.bus.say(f"completed{to}", {"transid": ["tid", 1], "response": shown}, self.now_ms)
        free = {"transid": ["tid", 1], "activationId": activation_id, "isSystemError": False, "instance": invoker()}
        self.bus.say(f"completed{to}", free, self.now_ms)

    def markers(self) -> list[Json]:
        """All that the driver sent."""
        return [message for _, message in self.bus.sent]

    def answer(self, *, cold: int, since: int = 0) -> None:
        """The invoker runs the markers sent from the one at `since` on: the last `cold` make containers."""
        sent = self.markers()[since:]
        for place, message in enumerate(sent):
            made = place >= len(sent) - cold
            key = FunctionKey(message["user"]["namespace"]["name"], message["action"]["name"])
            self.done(key, message["activationId"], init_ms=120 if made else 0, to="mesp")

    async def look(self, wait_ms: int = 0) -> Observed:
        self.now_ms += wait_ms
        return await self.driver.observe(self.now_ms)

    async def prewarm(self, function: FunctionKey, count: int = 1, node: str = "invoker0") -> Done:
        return await self.driver.prewarm(Prewarm(function, node, count, "because"), self.now_ms)

    async def containers(self, function: FunctionKey) -> list[Container]:
        snapshot = await self.driver.snapshot(self.now_ms)
        return [one for one in snapshot.containers if one.function == function]

    def restart(self) -> None:
        """The plugin is killed, and another one comes up, which reads from now on."""
        self.holdings = Holdings(self.holdings_file)
        self.driver = make_driver(self.bus, self.api, self.holdings, self.metrics, first_id=1_000)

    @property
    def holdings_file(self) -> Path:
        return self.folder / "state.json"


def make_driver(
    bus: FakeBus,
    api: FakeApi,
    holdings: Holdings,
    metrics: OpenWhiskMetrics,
    first_id: int = 1,
    *,
    early_removal: bool = False,
    **how: Any,
) -> ClassicDriver:
    kafka = KafkaConfig(bootstrap_servers="nowhere:9092", early_removal=early_removal)
    config = OpenWhiskConfig(kafka=kafka, **how)
    ids = count(first_id)
    return ClassicDriver(
        bus,
        "guest",
        Caller("guest", "guest", UUID, ("READ", "ACTIVATE")),
        Actions(cast("OpenWhiskApi", api), "guest", config.opt_in),
        holdings,
        config,
        metrics,
        random_bits=lambda _: next(ids),
    )


def make_world(folder: Path, **how: Any) -> World:
    """`hello` has opted in, `plain` has not; one invoker of 1024 MB pings."""
    bus, api, metrics = FakeBus(BEGIN_MS), FakeApi(), OpenWhiskMetrics(CollectorRegistry())
    api.put("hello", annotations={"mesp-prewarm": True})
    api.put("plain")
    holdings = Holdings(folder / "state.json")
    world = World(folder, bus, api, holdings, make_driver(bus, api, holdings, metrics, **how), metrics)
    world.ping()
    return world
