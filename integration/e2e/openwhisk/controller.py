"""One controller of the double: admits calls, chooses invokers, waits for their answers, and watches their health.

A call goes to ``invokerN`` of the invoker that `sharding` finds; its memory slot is free again when its completion
comes back on ``completed<controller>``, and a blocking caller gets the record that comes there, too. An invoker that
was heard of for the first time, or again, is tried with a test action until one succeeds; without a ping for 10 s it
is down.

Source: ShardingContainerPoolBalancer.scala, CommonLoadBalancer.scala and InvokerSupervision.scala of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import string
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from e2e.openwhisk import wire
from e2e.openwhisk.model import Action, User
from e2e.openwhisk.sharding import Sharding

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from e2e.openwhisk.bus import Bus
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.model import Json, Store
    from e2e.openwhisk.recording import Recording

OFFLINE_AFTER_S = 10.0
TEST_EVERY_S = 60.0
#: A blocking caller gets the activation's id after so long.
BLOCKING_WAIT_S = 60.0
#: Of the last `RECENT` outcomes of an invoker more than so many may be bad.
TOLERATED, RECENT = 3, 10

SYSTEM = User("whisk.system", str(uuid.UUID(int=1, version=4)), rights=())


class UnavailableError(Exception):
    """No invoker can take the call (503)."""


@dataclass
class _Health:
    """What the controller thinks of an invoker."""

    name: str
    state: str = "down"
    heard_ms: int = 0
    tested_ms: int = 0
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))


@dataclass(frozen=True)
class _Entry:
    """A call in flight."""

    invoker: int
    action: Action
    namespace: str
    deadline_ms: int


class Controller:
    """The controller of a name; `ids` gives the activation ids, random ones unless told otherwise."""

    def __init__(
        self,
        name: str,
        bus: Bus,
        clock: Clock,
        store: Store,
        recording: Recording,
        randomness: random.Random,
        ids: Callable[[], str] | None = None,
    ) -> None:
        self.name = name
        self.store = store
        self.clock = clock
        self.ids = ids or (lambda: uuid.UUID(int=randomness.getrandbits(128), version=4).hex)
        self._bus, self._recording, self._randomness = bus, recording, randomness
        self._sharding = Sharding(randomness)
        self._health: list[_Health] = []
        self._flying: dict[str, _Entry] = {}
        self._results: dict[str, asyncio.Future[Json | None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._test_began_ms = 0

    async def start(self) -> None:
        """Begins to listen; knows no invoker yet."""
        await self._bus.make(f"completed{self.name}", "health", "events")
        self._test_began_ms = self.clock.now_ms
        if self.store.get(self._test_action) is None:
            _, name = self._test_action.split("/")
            self.store.put(Action(SYSTEM.namespace, name, memory_mb=128))
        completed = f"completed{self.name}"
        self._tasks = [
            await self._bus.read(completed, completed, self._safely(self._acknowledged)),
            await self._bus.read("health", f"health{self.name}", self._safely(self._pinged)),
            asyncio.create_task(self._watch()),
        ]

    async def stop(self) -> None:
        """Ends; what is in flight is forgotten."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def invokers(self) -> dict[str, str]:
        """What ``GET /invokers`` answers."""
        return {health.name: health.state for health in self._health}

    def in_flight(self) -> list[list[str]]:
        """What ``GET /activation`` answers."""
        return [
            [activation_id, f"{entry.action.full_name}@{entry.action.version}"]
            for activation_id, entry in self._flying.items()
        ]

    # --- Calls ------------------------------------------------------------------------------------------------------

    async def invoke(self, user: User, action: Action, parameters: Json, *, blocking: bool) -> tuple[str, Json | None]:
        """The activation's id and, for a blocking call that ended in time, its record.

        Raises:
            UnavailableError: no invoker can take it.
        """
        transid, activation_id = self._transid(), self.ids()
        flying = sum(entry.namespace == user.namespace for entry in self._flying.values())
        self._event(wire.metric_event, user.to_json(), "ConcurrentInvocations", flying + 1)
        if not action.components:
            return await self._call(user, action, parameters, transid, activation_id, blocking=blocking)
        work = asyncio.create_task(self._sequence(user, action, parameters, transid, activation_id))
        if blocking:
            return await work
        self._tasks.append(asyncio.create_task(self._finish(work)))
        return activation_id, None

    async def _call(
        self,
        user: User,
        action: Action,
        parameters: Json,
        transid: list[Any],
        activation_id: str,
        *,
        blocking: bool,
        cause: str | None = None,
    ) -> tuple[str, Json | None]:
        usable = [health.state == "up" for health in self._health]
        memory_mb, concurrency = action.limits()["memory"], action.concurrency
        found = self._sharding.choose(
            user.namespace, action.full_name, memory_mb, concurrency, usable, blackbox=action.blackbox
        )
        if found is None:
            raise UnavailableError("No invokers available")
        invoker, overloaded = found
        if overloaded:
            message = f"system is overloaded. Chose invoker{invoker} by random assignment."
            self._recording.log(f"controller{self.name}", "WARN", transid[0], "ShardingContainerPoolBalancer", message)
        ack_limit_ms = max(action.timeout_ms, 60_000) * 2 + 60_000
        deadline_ms = self.clock.now_ms + ack_limit_ms
        self._flying[activation_id] = _Entry(invoker, action, user.namespace, deadline_ms)
        result = asyncio.get_running_loop().create_future()
        if blocking:
            self._results[activation_id] = result
        content = action.parameters | parameters
        self._send(invoker, user, action, transid, activation_id, content, blocking=blocking, cause=cause)
        if not blocking:
            return activation_id, None
        limit = asyncio.ensure_future(self.clock.sleep(BLOCKING_WAIT_S))
        await asyncio.wait({result, limit}, return_when=asyncio.FIRST_COMPLETED)
        limit.cancel()
        self._results.pop(activation_id, None)
        return activation_id, result.result() if result.done() else self.store.records.get(activation_id)

    def _send(
        self,
        invoker: int,
        user: User,
        action: Action,
        transid: list[Any],
        activation_id: str,
        content: Json | None,
        *,
        blocking: bool,
        cause: str | None = None,
    ) -> None:
        health_test = content is None
        message: Json = {
            "transid": transid,
            "action": {"path": action.path, "name": action.own_name, "version": action.version},
            "revision": None if health_test else action.revision,
            "user": user.to_json(),
            "activationId": activation_id,
            "rootControllerIndex": {"asString": self.name, "instanceType": "controller"},
            "blocking": blocking,
            "initArgs": list(action.init),
            "lockedArgs": {},
        }
        message |= {} if content is None else {"content": content}
        self._bus.send(f"invoker{invoker}", message | ({} if cause is None else {"cause": cause}))

    async def _sequence(
        self, user: User, action: Action, parameters: Json, transid: list[Any], activation_id: str
    ) -> tuple[str, Json | None]:
        start_ms, content = self.clock.now_ms, parameters
        done: list[Json] = []
        for name in action.components:
            component = self.store.get(name)
            assert component is not None
            own = [*self._transid(), transid]
            _, record = await self._call(user, component, content, own, self.ids(), blocking=True, cause=activation_id)
            assert record is not None
            done.append(record)
            content = record["response"]["result"]
            if record["response"]["statusCode"]:
                break
        memory_mb = max(wire.annotations_of(record)["limits"]["memory"] for record in done)
        notes: Json = {"topmost": True, "path": action.full_name}
        notes |= {"waitTime": wire.annotations_of(done[0])["waitTime"], "kind": "sequence"}
        notes["limits"] = action.limits() | {"memory": memory_mb}
        record = done[-1] | {
            "activationId": activation_id,
            "annotations": [{"key": key, "value": value} for key, value in notes.items()],
            "duration": sum(record["duration"] for record in done),
            "start": start_ms,
            "end": self.clock.now_ms,
            "logs": [record["activationId"] for record in done],
            "name": action.own_name,
            "version": action.version,
        }
        record.pop("cause")
        self.store.records[activation_id] = record
        self._event(wire.activation_event, user.to_json(), record)
        return activation_id, record

    @staticmethod
    async def _finish(work: asyncio.Task[tuple[str, Json | None]]) -> None:
        await work

    # --- Answers ----------------------------------------------------------------------------------------------------

    def _acknowledged(self, ack: Json) -> None:
        response = ack.get("response")
        activation_id = ack.get("activationId") or (
            response["activationId"] if isinstance(response, dict) else response
        )
        if "instance" in ack:
            outcome = "error" if ack["isSystemError"] else "success"
            self._completed(str(activation_id), ack["instance"]["instance"], outcome)
        if response is not None and (waiting := self._results.pop(str(activation_id), None)):
            waiting.set_result(response if isinstance(response, dict) else None)

    def _completed(self, activation_id: str, invoker: int, outcome: str) -> None:
        if entry := self._flying.pop(activation_id, None):
            action = entry.action
            self._sharding.slots[entry.invoker].give_back(action.full_name, action.memory_mb, action.concurrency)
        if invoker < len(self._health):
            self._judge(invoker, outcome)

    # --- Health -----------------------------------------------------------------------------------------------------

    def _pinged(self, message: Json) -> None:
        who = message["name"]
        number = who["instance"]
        while len(self._health) <= number:
            self._health.append(_Health(f"invoker{len(self._health)}"))
        self._sharding.learn(number, int(who["userMemory"].removesuffix(" B")) // 2**20)
        health = self._health[number]
        names = [who.get("uniqueName"), who.get("displayedName")]
        health.name = "/".join([f"invoker{number}", *filter(None, names)])
        health.heard_ms = self.clock.now_ms
        if message.get("isEnabled") is False:
            health.state = "down"
        elif health.state == "down":
            health.state = "unhealthy"
            self._test(number)

    def _judge(self, invoker: int, outcome: str) -> None:
        """InvokerActor's `handleCompletionMessage`."""
        health = self._health[invoker]
        health.recent.append(outcome)
        if outcome == "success" and health.state == "unhealthy":
            self._test(invoker)  # so that bad outcomes leave the memory soon
        if health.state == "down" or (health.state == "up" and outcome == "success"):
            return
        for bad, state in (("error", "unhealthy"), ("timeout", "unresponsive")):
            if health.recent.count(bad) > TOLERATED or (outcome == bad and len(health.recent) <= TOLERATED):
                health.state = state
                self._test(invoker)
                return
        if outcome == "success":
            health.state = "up"

    async def _watch(self) -> None:
        while True:
            now_ms = self.clock.now_ms
            for number, health in enumerate(self._health):
                if health.state != "down" and now_ms - health.heard_ms > OFFLINE_AFTER_S * 1000:
                    health.state = "down"
                elif health.state in {"unhealthy", "unresponsive"} and now_ms - health.tested_ms > TEST_EVERY_S * 1000:
                    self._test(number)
            for activation_id, entry in list(self._flying.items()):
                if now_ms > entry.deadline_ms:
                    self._completed(activation_id, entry.invoker, "timeout")
            await self.clock.sleep(0.5)

    @property
    def _test_action(self) -> str:
        return f"{SYSTEM.namespace}/invokerHealthTestAction{self.name}"

    def _test(self, invoker: int) -> None:
        self._health[invoker].tested_ms = self.clock.now_ms
        action = self.store.get(self._test_action)
        assert action is not None
        transid = ["sid_invokerHealth", self._test_began_ms]
        self._send(invoker, SYSTEM, action, transid, self._random_id(), None, blocking=False)

    # --- Small things -----------------------------------------------------------------------------------------------

    def _safely(self, handle: Callable[[Json], None]) -> Callable[[Json], None]:
        """What cannot be read is a line in the log."""

        def attempt(message: Json) -> None:
            try:
                handle(message)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                text = f"failed processing message: {error!r}"
                self._recording.log(f"controller{self.name}", "ERROR", "sid_unknown", "LoadBalancer", text)

        return attempt

    def _event(self, make: Callable[..., Json], *members: object) -> None:
        self._bus.send("events", make(f"controller{self.name}", *members, self.clock.now_ms))

    def _transid(self) -> list[Any]:
        letters = self._randomness.choices(string.ascii_letters + string.digits, k=32)
        return ["".join(letters), self.clock.now_ms]

    def _random_id(self) -> str:
        return uuid.UUID(int=self._randomness.getrandbits(128), version=4).hex
