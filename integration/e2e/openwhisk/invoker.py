"""One invoker of the double: calls from ``invokerN``, answers to whichever controller asked, a ping every second.

It asks nobody who wrote a message. What lacks a required member is dropped with a line in the log and never answered;
all else is answered: to ``completed<controller>`` of the message, with the user event on ``events``, and the record in
the store unless the message says ``storeActivations: false``.

Source: InvokerReactive.scala, ContainerProxy.scala (`initializeAndRun`) and MessagingActiveAck.scala of
apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from e2e.openwhisk import wire
from e2e.openwhisk.containers import Answer
from e2e.openwhisk.pool import Init, Pool, Run

if TYPE_CHECKING:
    import random

    from e2e.openwhisk.bus import Bus
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.containers import Container, Containers
    from e2e.openwhisk.model import Action, Json, Store
    from e2e.openwhisk.pool import PoolSettings
    from e2e.openwhisk.recording import Recording

#: Share of results that are overtaken by their completion (8 of 210 in the golden traces).
REVERSED = 0.04


class Invoker:
    """The invoker of a number; `start` it again after `stop` or `kill`, with other settings if need be."""

    def __init__(
        self,
        number: int,
        bus: Bus,
        clock: Clock,
        store: Store,
        engine: Containers,
        recording: Recording,
        randomness: random.Random,
    ) -> None:
        self.number = number
        self.name = f"invoker{number}"
        self._bus, self._clock, self._store, self._engine = bus, clock, store, engine
        self._recording, self._randomness = recording, randomness
        self._pool: Pool | None = None
        self._identity: Json = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, settings: PoolSettings) -> None:
        """Removes what a predecessor left, reads its topic from where that one stopped, and begins to ping."""
        self._identity = wire.instance(self.number, settings.memory_mb)
        await self._engine.clear(f"wsk{self.number}_")
        await self._bus.make(self.name, "health", "events")
        self._pool = Pool(self.number, settings, self._engine, self._clock, self)
        reading = await self._bus.read(self.name, self.name, self._take)
        self._tasks = [reading, asyncio.create_task(self._ping())]

    async def kill(self) -> None:
        """Dies in the middle: no more pings and answers, its containers stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.stop()

    async def stop(self) -> None:
        """Ends in order: its containers go."""
        await self.kill()
        await self._engine.clear(f"wsk{self.number}_")

    def idle_mb(self) -> int:
        """Memory of initialised containers that run nothing; 0 while it is not started."""
        return self._pool.sizes()["free"][1] if self._pool else 0

    async def _ping(self) -> None:
        for at_ms in itertools.count(self._clock.now_ms, 1000):
            await self._clock.sleep_until(at_ms)
            self._bus.send("health", wire.ping(self._identity))

    # --- Calls ------------------------------------------------------------------------------------------------------

    def _take(self, call: Json) -> None:
        assert self._pool is not None
        try:
            wire.check_call(call)
        except wire.DroppedError as dropped:
            failure = f"terminal failure while processing message: spray.json.DeserializationException: {dropped}"
            self._log("ERROR", "sid_unknown", "InvokerReactive", failure)
            return
        full_name = f"{call['action']['path']}/{call['action']['name']}"
        if not call["revision"]:
            self._log("WARN", call["transid"][0], "InvokerReactive", f"revision was not provided for {full_name}")
        if action := self._store.get(full_name, call["revision"] or None):
            self._pool.submit(Run(call, action))
        else:
            now_ms = self._clock.now_ms
            response = wire.Response(1, {"error": wire.NOT_FOUND})
            self._complete(call, wire.record(call, None, response, now_ms, now_ms), None, with_result=True)

    async def initialise(self, run: Run, container: Container) -> Init:
        """/init with the environment that the call brings."""
        call, start_ms = run.call, self._clock.now_ms
        env, _ = _arguments(call)
        env |= {f"__OW_{key.upper()}": value for key, value in _context(call, run.action, start_ms).items()}
        code = {"name": run.action.own_name, "main": "main", "binary": False, "code": run.action.code}
        answer = await container.init({"value": code | {"env": env}})
        return Init(start_ms, self._clock.now_ms, answer)

    async def serve(self, run: Run, container: Container, init: Init | None) -> str:
        """/run, the answers, and what becomes of the container."""
        call, action = run.call, run.action
        start_ms = self._clock.now_ms
        if init is not None and init.answer.status != 200:
            response, end_ms = wire.response_of(502, init.answer.body), init.end_ms
        else:
            answer = await self._run(run, container, start_ms)
            if answer.status == 503:
                return "refused"
            response = wire.response_of(answer.status, answer.body)
            end_ms = self._clock.now_ms if answer.duration_ms is None else start_ms + answer.duration_ms
        begun_ms, init_ms = (init.start_ms, init.end_ms - init.start_ms) if init else (start_ms, None)
        record = wire.record(call, action, response, begun_ms, end_ms, init_ms)
        with_logs = action.logs_mb > 0
        overtaken = self._randomness.random() < REVERSED
        if with_logs and call["blocking"] and not overtaken:
            self._ack(call, wire.result(call["transid"], record))
        if with_logs:
            await container.logs(record["activationId"])
        self._complete(call, record, action, with_result=not with_logs and call["blocking"])
        if with_logs and call["blocking"] and overtaken:
            self._ack(call, wire.result(call["transid"], record))
        if response.keeps_container:
            return "kept"
        use = "during init of cold" if init and init.answer.status != 200 else "during use of warm"
        message = f"Failed {use} container Some({container.id}), queued activations will be resent."
        self._log("ERROR", "sid_unknown", "ContainerProxy", message)
        return "broken"

    async def _run(self, run: Run, container: Container, start_ms: int) -> Answer:
        call = run.call
        _, value = _arguments(call)
        running = asyncio.ensure_future(container.run({"value": value} | _context(call, run.action, start_ms)))
        limit = asyncio.ensure_future(self._clock.sleep(run.action.timeout_ms / 1000))
        try:
            await asyncio.wait({running, limit}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            exceeded = f"The action exceeded its time limits of {run.action.timeout_ms} milliseconds."
            return Answer(502, {"error": exceeded})
        finally:
            running.cancel()
            limit.cancel()

    # --- Answers ----------------------------------------------------------------------------------------------------

    def _complete(self, call: Json, record: Json, action: Action | None, *, with_result: bool) -> None:
        """The slot is free: the user event, the ack, the record."""
        system_error = record["response"]["statusCode"] == 3
        self._bus.send("events", wire.activation_event(self.name, call["user"], record, self._clock.now_ms))
        if with_result:
            told = record if call["blocking"] else record["activationId"]
            self._ack(call, wire.combined(call["transid"], told, self._identity, system_error=system_error))
        else:
            done = wire.completion(call["transid"], call["activationId"], self._identity, system_error=system_error)
            self._ack(call, done)
        if action is not None and call["user"]["limits"].get("storeActivations", True):
            self._store.records[record["activationId"]] = record

    def _ack(self, call: Json, message: Json) -> None:
        self._bus.send(f"completed{call['rootControllerIndex']['asString']}", message)

    # --- The log ----------------------------------------------------------------------------------------------------

    def started(self, run: Run, state: str, container: Container | None, active: int) -> None:
        """The line by which a dispatch is known."""
        call, action = run.call, run.action
        where = f"Some(ContainerId({container.id}))" if container else "None"
        message = (
            f"containerStart containerState: {state} container: {where} activations: {active} of max "
            f"{action.concurrency} action: {action.own_name} namespace: {call['user']['namespace']['name']} "
            f"activationId: {call['activationId']}"
        )
        self._log("INFO", call["transid"][0], "ContainerPool", message)

    def waits(self, run: Run, pool: Pool) -> None:
        """The line that tells of a full pool."""
        sizes = pool.sizes()
        told = ", ".join(f"{name}PoolSize: {count} containers and {mb} MB" for name, (count, mb) in sizes.items())
        message = (
            f"Rescheduling Run message, too many message in the pool, {told}, maxContainersMemory "
            f"{pool.settings.memory_mb} MB, userNamespace: {run.call['user']['namespace']['name']}, "
            f"action: {run.action.full_name}, needed memory: {run.action.memory_mb} MB, "
            f"waiting messages: {len(pool.buffer)}"
        )
        self._log("WARN", run.call["transid"][0], "ContainerPool", message)

    def _log(self, level: str, transid: str, source: str, message: str) -> None:
        self._recording.log(self.name, level, transid, source, message)


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
