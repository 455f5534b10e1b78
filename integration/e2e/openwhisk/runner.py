"""How an invoker of the double runs one call in a container: /init, /run, the answers, the record.

To ``completed<controller>`` of the message goes the result, where the caller waits, and, once the logs are read, the
completion; to ``events`` the user event; to the store the record, unless the message says
``storeActivations: false``. It asks nobody who wrote a message. Where the logs are not to be had within 2 s, as on a
machine without room, the caller sees nothing of it, but the container is destroyed.

Source: ContainerProxy.scala (`initializeAndRun`) and MessagingActiveAck.scala of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from e2e.openwhisk import wire
from e2e.openwhisk.containers import Answer
from e2e.openwhisk.pool import Init, Run

if TYPE_CHECKING:
    import random

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.containers import Container, Containers
    from e2e.openwhisk.model import Action, Json, Store
    from e2e.openwhisk.recording import Recording

#: Logs that nobody sees for so long count as lost (`logCollectingIdleTimeout`, DockerContainer.scala).
LOGS_S = 2.0
#: Share of results that are overtaken by their completion (8 of 210 in the golden traces).
REVERSED = 0.04


class Runner:
    """What the invokers of both kinds of deployment share."""

    def __init__(
        self,
        number: int,
        bus: Topics,
        clock: Clock,
        store: Store,
        engine: Containers,
        recording: Recording,
        randomness: random.Random,
    ) -> None:
        self.number = number
        self.name = f"invoker{number}"
        self.bus, self.clock, self.store, self.engine = bus, clock, store, engine
        self.recording, self.randomness = recording, randomness
        self.identity: Json = {}

    async def initialise(self, run: Run, container: Container) -> Init:
        """/init with the environment that the call brings."""
        call, start_ms = run.call, self.clock.now_ms
        env, _ = _arguments(call)
        env |= {f"__OW_{key.upper()}": value for key, value in _context(call, run.action, start_ms).items()}
        code = {"name": run.action.own_name, "main": "main", "binary": False, "code": run.action.code}
        answer = await container.init({"value": code | {"env": env}})
        return Init(start_ms, self.clock.now_ms, answer)

    async def finish(self, run: Run, container: Container, init: Init | None) -> tuple[str, int]:
        """/run and the answers; what becomes of the container (see `Work.serve`), and the duration in ms."""
        call, action = run.call, run.action
        start_ms = self.clock.now_ms
        if init is not None and init.answer.status != 200:
            response, end_ms = wire.response_of(502, init.answer.body), init.end_ms
        else:
            answer = await self._run(run, container, start_ms)
            if answer.status == 503:
                return "refused", 0
            response = wire.response_of(answer.status, answer.body)
            end_ms = self.clock.now_ms if answer.duration_ms is None else start_ms + answer.duration_ms
        begun_ms, init_ms = (init.start_ms, init.end_ms - init.start_ms) if init else (start_ms, None)
        record = wire.record(call, action, response, begun_ms, end_ms, init_ms)
        with_logs = action.logs_mb > 0
        overtaken = self.randomness.random() < REVERSED
        if with_logs and call["blocking"] and not overtaken:
            self._ack(call, wire.result(call["transid"], record))
        has_logs = not with_logs or await self._read_logs(record, container)
        self.complete(call, record, with_result=not with_logs and call["blocking"])
        if with_logs and call["blocking"] and overtaken:
            self._ack(call, wire.result(call["transid"], record))
        if response.keeps_container and has_logs:
            return "kept", record["duration"]
        use = "during init of cold" if init and init.answer.status != 200 else "during use of warm"
        message = f"Failed {use} container Some({container.id}), queued activations will be resent."
        self.log("ERROR", "sid_unknown", "ContainerProxy", message)
        return "broken", record["duration"]

    async def _run(self, run: Run, container: Container, start_ms: int) -> Answer:
        call = run.call
        _, value = _arguments(call)
        running = asyncio.ensure_future(container.run({"value": value} | _context(call, run.action, start_ms)))
        limit = asyncio.ensure_future(self.clock.sleep(run.action.timeout_ms / 1000))
        try:
            await asyncio.wait({running, limit}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            exceeded = f"The action exceeded its time limits of {run.action.timeout_ms} milliseconds."
            return Answer(502, {"error": exceeded})
        finally:
            running.cancel()
            limit.cancel()

    async def _read_logs(self, record: Json, container: Container) -> bool:
        """Whether they came in time; else the record says that they are missing, and the container must go."""
        reading = asyncio.ensure_future(container.logs(record["activationId"]))
        limit = asyncio.ensure_future(self.clock.sleep(LOGS_S))
        try:
            await asyncio.wait({reading, limit}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                at = datetime.fromtimestamp(self.clock.now_ms / 1000, UTC).isoformat(timespec="microseconds")
                line = f"{at.replace('+00:00', 'Z'):30} stderr: There was an issue while collecting your logs."
                record["logs"] = [f"{line} Data might be missing."]
            return reading.done()
        finally:
            reading.cancel()
            limit.cancel()

    # --- Answers ----------------------------------------------------------------------------------------------------

    def complete(self, call: Json, record: Json, *, with_result: bool, stored: bool = True) -> None:
        """The slot is free: the user event, the ack, the record."""
        system_error = record["response"]["statusCode"] == 3
        self.bus.send("events", wire.activation_event(self.name, call["user"], record, self.clock.now_ms))
        if with_result:
            told = record if call["blocking"] else record["activationId"]
            self._ack(call, wire.combined(call["transid"], told, self.identity, system_error=system_error))
        else:
            done = wire.completion(call["transid"], call["activationId"], self.identity, system_error=system_error)
            self._ack(call, done)
        if stored and call["user"]["limits"].get("storeActivations", True):
            self.store.records[record["activationId"]] = record

    def _ack(self, call: Json, message: Json) -> None:
        self.bus.send(f"completed{call['rootControllerIndex']['asString']}", message)

    def log(self, level: str, transid: str, source: str, message: str) -> None:
        """A line in the invoker's log."""
        self.recording.log(self.name, level, transid, source, message)


def _arguments(call: Json) -> tuple[Json, Json]:
    """The call's parameters: those for /init's environment, and those for /run; none at all without content."""
    content = call.get("content")
    members = content if isinstance(content, dict) else {}
    env = {key: value for key, value in members.items() if key in call["initArgs"]}
    return env, {key: value for key, value in members.items() if key not in env}


def _context(call: Json, action: Action, now_ms: int) -> Json:
    """What /run's body says beside the parameters; the key goes only to actions that want it."""
    members: Json = {
        "namespace": call["user"]["namespace"]["name"],
        "action_name": f"/{action.full_name}",
        "action_version": action.version,
        "activation_id": call["activationId"],
        "transaction_id": call["transid"][0],
        "deadline": str(now_ms + action.timeout_ms),
    }
    if action.annotations.get("provide-api-key", True):
        members |= call["user"]["authkey"]
    return members
