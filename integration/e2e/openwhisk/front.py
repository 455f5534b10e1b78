"""What any controller of the double does for callers: ids, sequences, messages, and the wait for an answer.

Where a call goes is the business of `Front.place`: to an invoker's topic in a classic deployment, to a scheduler's in
one with FPC. A call's completion comes back on ``completed<controller>`` and ends it; a blocking caller gets the record
that comes there, too.

Source: PrimitiveActions.scala, SequenceActions.scala and CommonLoadBalancer.scala of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import string
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2e.openwhisk import wire

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.model import Action, Json, Store, User
    from e2e.openwhisk.recording import Recording

#: A blocking caller's record is looked for in the database so often, so many times; then it gets the id alone (60 s).
_LOOK_S, _LOOKS = 15.0, 4


class UnavailableError(Exception):
    """Nobody can take the call (503)."""


class ThrottledError(Exception):
    """The namespace is at its limit (429)."""


@dataclass(frozen=True)
class Entry:
    """A call in flight, and the number of the invoker or scheduler that has it."""

    place: int
    action: Action
    namespace: str
    deadline_ms: int


class Front:
    """The controller of a name; `ids` gives the activation ids, random ones unless told otherwise."""

    #: Whose topic calls go to.
    peer = "invoker"
    #: Whether a user event tells of each call how many are in flight.
    tells_concurrency = True

    def __init__(
        self,
        name: str,
        bus: Topics,
        clock: Clock,
        store: Store,
        recording: Recording,
        randomness: random.Random,
        ids: Callable[[], str] | None = None,
    ) -> None:
        self.name = name
        self.store = store
        self.clock = clock
        self.ids = ids or self.random_id
        self.bus, self.recording, self.randomness = bus, recording, randomness
        self.flying: dict[str, Entry] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self._results: dict[str, asyncio.Future[Json | None]] = {}

    async def start(self) -> None:
        """Begins to listen for answers."""
        completed = f"completed{self.name}"
        await self.bus.make(completed, "health", "events")
        self.tasks = [await self.bus.read(completed, completed, self.safely(self._acknowledged))]

    async def stop(self) -> None:
        """Ends; what is in flight is forgotten."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def place(self, user: User, action: Action, transid: list[Any]) -> int:
        """Who gets the call; `UnavailableError` where nobody can."""
        raise NotImplementedError

    def admit(self, user: User, action: Action) -> None:
        """`ThrottledError` where the namespace may not call."""

    def completed(self, entry: Entry, *, place: int | None, error: bool) -> None:
        """A call has ended; `place` is who says so."""

    def invokers(self) -> dict[str, str]:
        """What ``GET /invokers`` answers."""
        raise NotImplementedError

    def in_flight(self) -> list[list[str]]:
        """What ``GET /activation`` answers."""
        return [
            [activation_id, f"{entry.action.full_name}@{entry.action.version}"]
            for activation_id, entry in self.flying.items()
        ]

    # --- Calls ------------------------------------------------------------------------------------------------------

    async def invoke(self, user: User, action: Action, parameters: Json, *, blocking: bool) -> tuple[str, Json | None]:
        """The activation's id and, for a blocking call that ended in time, its record.

        Raises:
            UnavailableError: nobody can take it.
            ThrottledError: the namespace is at its limit.
        """
        self.admit(user, action)
        transid, activation_id = self.transid(), self.ids()
        if self.tells_concurrency:
            flying = sum(entry.namespace == user.namespace for entry in self.flying.values())
            self.event(wire.metric_event, user.to_json(), "ConcurrentInvocations", flying + 1)
        if not action.components:
            return await self._call(user, action, parameters, transid, activation_id, blocking=blocking)
        work = asyncio.create_task(self._sequence(user, action, parameters, transid, activation_id))
        if blocking:
            return await work
        self.tasks.append(asyncio.create_task(self._finish(work)))
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
        place = await self.place(user, action, transid)
        ack_limit_ms = max(action.timeout_ms, 60_000) * 2 + 60_000
        deadline_ms = self.clock.now_ms + ack_limit_ms
        self.flying[activation_id] = Entry(place, action, user.namespace, deadline_ms)
        result = asyncio.get_running_loop().create_future()
        if blocking:
            self._results[activation_id] = result
        content = action.parameters | parameters
        self.send(place, user, action, transid, activation_id, content, blocking=blocking, cause=cause)
        if not blocking:
            return activation_id, None
        record = await self._wait(activation_id, result)
        self._results.pop(activation_id, None)
        return activation_id, record

    async def _wait(self, activation_id: str, result: asyncio.Future[Json | None]) -> Json | None:
        """The record from the ack, else from the database, where now and then it is looked for; None where neither is."""
        for _ in range(_LOOKS):
            limit = asyncio.ensure_future(self.clock.sleep(_LOOK_S))
            either: set[asyncio.Future[Any]] = {result, limit}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            limit.cancel()
            if result.done():
                return result.result()
            if record := self.store.records.get(activation_id):
                return record
        return None

    def send(
        self,
        place: int,
        user: User,
        action: Action,
        transid: list[Any],
        activation_id: str,
        content: Json | None,
        *,
        blocking: bool,
        cause: str | None = None,
    ) -> None:
        """Puts the call on its way; one without content is a health test."""
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
        self.bus.send(f"{self.peer}{place}", message | ({} if cause is None else {"cause": cause}))

    async def _sequence(
        self, user: User, action: Action, parameters: Json, transid: list[Any], activation_id: str
    ) -> tuple[str, Json | None]:
        start_ms, content = self.clock.now_ms, parameters
        done: list[Json] = []
        for name in action.components:
            component = self.store.get(name)
            assert component is not None
            own = [*self.transid(), transid]
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
        self.event(wire.activation_event, user.to_json(), record)
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
            self.end(str(activation_id), ack["instance"]["instance"], error=bool(ack["isSystemError"]))
        if response is not None and (waiting := self._results.pop(str(activation_id), None)):
            waiting.set_result(response if isinstance(response, dict) else None)

    def end(self, activation_id: str, place: int | None, *, error: bool) -> None:
        """The call is over, as `place` says; None where nobody said anything in time."""
        if entry := self.flying.pop(activation_id, None):
            self.completed(entry, place=place, error=error)
        else:
            self.unknown(place, error=error)

    def unknown(self, place: int | None, *, error: bool) -> None:
        """Somebody ended what is no caller's call."""

    def give_up(self) -> None:
        """Ends what was not answered in time."""
        now_ms = self.clock.now_ms
        for activation_id, entry in list(self.flying.items()):
            if now_ms > entry.deadline_ms:
                self.end(activation_id, None, error=True)

    # --- Small things -----------------------------------------------------------------------------------------------

    def safely(self, handle: Callable[[Json], None]) -> Callable[[Json], None]:
        """What cannot be read is a line in the log."""

        def attempt(message: Json) -> None:
            try:
                handle(message)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                text = f"failed processing message: {error!r}"
                self.recording.log(f"controller{self.name}", "ERROR", "sid_unknown", "LoadBalancer", text)

        return attempt

    def event(self, make: Callable[..., Json], *members: object) -> None:
        """Puts a user event on the bus."""
        self.bus.send("events", make(f"controller{self.name}", *members, self.clock.now_ms))

    def transid(self) -> list[Any]:
        """A new transaction that begins now."""
        letters = self.randomness.choices(string.ascii_letters + string.digits, k=32)
        return ["".join(letters), self.clock.now_ms]

    def random_id(self) -> str:
        """A UUID without dashes."""
        return uuid.UUID(int=self.randomness.getrandbits(128), version=4).hex
