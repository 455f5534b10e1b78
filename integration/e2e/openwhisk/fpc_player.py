"""Does to a double with FPC what the golden traces show was done to the real one, each thing at its time."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from e2e.openwhisk import fpc_wire
from e2e.openwhisk.clock import SteppedClock
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.fpc import running_fpc_in_memory
from e2e.openwhisk.fpc_creations import Draws
from e2e.openwhisk.fpc_golden import FpcGolden, FpcReplayed, Reply
from e2e.openwhisk.front import ThrottledError
from e2e.openwhisk.golden import Lines, time_of
from e2e.openwhisk.model import Action, User
from e2e.openwhisk.pool import PoolSettings, StemCells
from e2e.openwhisk.rpc import MemoryRpc, RpcError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from e2e.openwhisk.fpc import Fpc
    from e2e.openwhisk.model import Json
    from mesp.openwhisk.activation_service_pb2 import FetchRequest, FetchResponse, RescheduleRequest, RescheduleResponse

SETTINGS: Final = PoolSettings(memory_mb=2048, idle_container_s=60)
STEM: Final = PoolSettings(memory_mb=2048, idle_container_s=60, stem_cells=(StemCells(count=2),))
_REASONS: Final = {
    "NoActivationMessage": fpc_wire.NO_ACTIVATION,
    "NoMemoryQueue": fpc_wire.NO_QUEUE,
    "ActionMismatch": fpc_wire.MISMATCH,
}
#: So many fetches of a container were noted in any case.
_NOTED: Final = 6
#: Those who are answered at once come back 400 times a second, of which nothing is to be learnt.
_STORM_MS: Final = 50
#: The deployment's default of `concurrentInvocations`.
_LIMIT: Final = 99_999


@dataclass
class Played:
    """The recording and the double's.

    Attributes:
        fetches: from own servers, by action and container in the order of the first ones: (time, request, held until).
        answers: of calls, by activation: when each was sent and answered, and its record.
        refusals: times of calls that were refused, and of those that were to be, by their place in the recording.
    """

    golden: FpcGolden
    double: Lines
    fetches: dict[str, list[list[tuple[int, FetchRequest]]]]
    answers: dict[str, tuple[int, int, Json | None]]
    refusals: dict[int, bool] = field(default_factory=dict)
    user_runs: set[str] = field(default_factory=set)


class _Recorded(Draws):
    """What the real scheduler drew."""

    def __init__(self, golden: FpcGolden) -> None:
        super().__init__(random.Random(7))
        self._orders: dict[str, list[tuple[str, int]]] = {}
        for line in golden.scheduled:
            name = line["value"]["action"]
            order = line["value"]["creationId"], int(line["topic"].removeprefix("invoker"))
            self._orders.setdefault(f"{name['path']}/{name['name']}", []).append(order)
        self._invokers = dict(order for orders in self._orders.values() for order in orders)
        self._decisions = {action: list(times) for action, times in golden.first_decisions_s.items()}
        self._last: dict[str, list[str]] = {}

    def invoker(self, action: str, numbers: list[int]) -> int:
        ids = self._last.get(action, [])
        wanted = self._invokers[ids.pop(0)] if ids else numbers[0]
        return wanted if wanted in numbers else numbers[0]

    def creation_id(self, action: str) -> str:
        if not (orders := self._orders.get(action)):
            return super().creation_id(action)
        creation_id, _ = orders.pop(0)
        self._last.setdefault(action, []).append(creation_id)
        return creation_id

    def first_decision_s(self, action: str) -> float:
        times = self._decisions.get(action)
        return times.pop(0) if times else super().first_decision_s(action)


class _OwnServer:
    """The test client's ActivationService: answers as it did then."""

    def __init__(self, player: Player) -> None:
        self._player = player

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        return await self._player.fetched(request)

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        raise ValueError(request)


class Player:
    """Plays everything."""

    def __init__(self, golden: FpcGolden, double: Fpc) -> None:
        self.golden, self.double = golden, double
        self.answers: dict[str, tuple[int, int, Json | None]] = {}
        self.fetches: dict[str, list[list[tuple[int, FetchRequest]]]] = {}
        self.refusals: dict[int, bool] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._replies: dict[str, dict[int, Reply]] = {}
        self._leaders: dict[str, asyncio.Event] = {}
        self._calls: list[asyncio.Task[None]] = []

    async def play(self) -> Played:
        """All of it, and a little longer."""
        golden, double = self.golden, self.double
        await double.bus.make("creationAckprewarm0", "completedprewarm0")
        watching = await double.etcd.watch("queue/", self._leader_changed)
        for user in self._users():
            double.store.users[user.namespace] = user
            double.store.limits[user.namespace] = {"concurrent": _LIMIT}
        todo: list[tuple[int, Callable[[], Awaitable[None]]]] = []
        todo += [(at_ms, _later(self._put, action)) for at_ms, action in golden.actions]
        todo += [(line["value"]["transid"][1], _later(self._call, line)) for line in golden.calls]
        todo += [(line["sent"] + 4, _later(self._refused, line)) for line in golden.refused]
        todo += [(time_of(line), _later(self._publish, line)) for line in golden.own]
        todo += [(line["t"], _later(self._subject, line)) for line in golden.driver("subject")]
        todo += self._servers() + self._restarts()
        for at_ms, what in sorted(todo, key=lambda item: item[0]):
            await double.clock.sleep_until(at_ms)
            await what()
        await double.clock.sleep_until(time_of(golden.lines[-1]) + 500)
        await asyncio.gather(*self._calls)
        watching.cancel()
        assert isinstance(double.engine, Simulated)
        runs = {run.activation_id for run in double.engine.user_runs}
        lines = Lines([line for line in double.recording.lines if time_of(line) >= golden.begin_ms - 3000])
        return Played(golden, lines, self.fetches, self.answers, self.refusals, runs)

    # --- Calls ------------------------------------------------------------------------------------------------------

    def _users(self) -> list[User]:
        told = [reply["user"] for line in self.golden.driver("grpc-reply") if "user" in (reply := line["reply"])]
        told += [line["value"]["user"] for line in self.golden.calls]
        return [
            User(user["namespace"]["name"], user["namespace"]["uuid"], rights=tuple(user["rights"])) for user in told
        ]

    async def _put(self, action: Action) -> None:
        self.double.store.put(action)

    async def _call(self, line: Json) -> None:
        self._calls.append(asyncio.create_task(self._invoke(line["value"])))

    async def _invoke(self, call: Json) -> None:
        double, name = self.double, call["action"]
        action = double.store.get(f"{name['path']}/{name['name']}")
        assert action is not None
        user = double.store.users[call["user"]["namespace"]["name"]]
        double.controller.ids = lambda: str(call["activationId"])
        for wait_s in (0.5, 0.0):  # the client, too, tried again while a limit was in its way
            try:
                sent_ms = double.clock.now_ms
                _, record = await double.controller.invoke(user, action, call["content"], blocking=call["blocking"])
            except ThrottledError:
                await double.clock.sleep(wait_s)
            else:
                self.answers[call["activationId"]] = sent_ms, double.clock.now_ms, record
                return

    async def _refused(self, line: Json) -> None:
        told = [event["value"] for event in self.golden.kafka("events") if event["value"]["eventType"] == "Metric"]
        namespace = min(told, key=lambda event: abs(event["timestamp"] - line["sent"]))["namespace"]
        action = self.double.store.get(f"{namespace}/{line['action']}")
        if action is None:  # it was never ordered, so nothing is known of it but its name
            action = self.double.store.put(Action(namespace, line["action"], 128))
        try:
            self.double.controller.admit(self.double.store.users[namespace], action)
        except ThrottledError:
            self.refusals[line["sent"]] = True
        else:
            self.refusals[line["sent"]] = False

    async def _publish(self, line: Json) -> None:
        self.double.bus.send(line["topic"], line["value"])

    async def _subject(self, line: Json) -> None:
        if isinstance(doc := line["doc"], dict):
            namespace = doc["_id"].removesuffix("/limits")
            limits = {
                "concurrent": doc.get("concurrentInvocations", _LIMIT),
                "keeping_count": doc.get("warmedContainerKeepingCount", 0),
                "keeping_s": float(doc.get("warmedContainerKeepingTimeout", "0 seconds").split()[0]),
            }
            self.double.store.limits[namespace] = limits
            told = {key: value for key, value in doc.items() if key == "concurrentInvocations"}
            self.double.store.users[namespace] = replace(self.double.store.users[namespace], limits=told)

    # --- The own servers --------------------------------------------------------------------------------------------

    def _servers(self) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        """Ports, from when they are served; a few end while containers are connected."""
        golden = self.golden
        todo: list[tuple[int, Callable[[], Awaitable[None]]]] = []
        todo += [(line["t"], _later(self._serve, line["port"])) for line in golden.driver("grpc-server")]
        stops = [line["t"] for line in golden.driver("grpc-server-stop")]
        ports = {
            line["value"]["action"]["name"]: line["value"]["rpcPort"]
            for line in golden.own
            if "rpcPort" in line["value"]
        }
        for name in ("rc", "rg", "ma"):
            begun_ms = next(line["t"] for line in golden.driver("grpc-server") if line["port"] == ports[name])
            todo.append((next(at_ms for at_ms in stops if at_ms > begun_ms), _later(self._stop, ports[name])))
        todo.append((golden.driver("kill")[0]["t"], _later(self._stop, ports["x9"])))
        return todo

    async def _serve(self, port: int) -> None:
        rpc = self.double.rpc
        assert isinstance(rpc, MemoryRpc)
        if port not in rpc.servers:
            await rpc.serve(_OwnServer(self), port)

    async def _stop(self, port: int) -> None:
        rpc = self.double.rpc
        assert isinstance(rpc, MemoryRpc)
        await rpc.servers[port].stop()

    async def fetched(self, request: FetchRequest) -> FetchResponse:
        """What was answered to the same container's same fetch."""
        name = json.loads(request.fqn)
        action = f"{name['path']}/{name['name']}"
        containers = self.fetches.setdefault(action, [])
        if request.containerId not in self._places:
            self._places[request.containerId] = action, len(containers)
            containers.append([])
        _, place = self._places[request.containerId]
        count = len(containers[place])
        containers[place].append((self.double.clock.now_ms, request))
        if not request.alive:
            return fpc_wire.response(fpc_wire.NO_ACTIVATION)
        if request.containerId not in self._replies:
            recorded = place < len(self.golden.fetches.get(action, []))
            self._replies[request.containerId] = self.golden.replies(action, place) if recorded else {}
        known = self._replies[request.containerId]
        reply = known.get(count) or self._between(known, count)
        if reply is None:
            await self.double.clock.sleep_until(self._next_stop_ms())
            raise RpcError("UNAVAILABLE")
        if reply.on_leader:
            await self._leaders.setdefault(action, asyncio.Event()).wait()
        else:
            await self.double.clock.sleep(max(reply.held_ms, 0 if count <= _NOTED else _STORM_MS) / 1000)
        if "transid" in reply.message:
            reply.message["transid"][1] = min(reply.message["transid"][1], self.double.clock.now_ms)
        return fpc_wire.response(_REASONS.get(reply.message.get("type", ""), reply.message))

    @staticmethod
    def _between(known: dict[int, Reply], count: int) -> Reply | None:
        """Of many fetches not all were noted; one that nobody answered was held until its server stopped."""
        later = [number for number in known if number > count]
        return known[min(later)] if later else known.get(max(known, default=0)) if count > _NOTED else None

    def _next_stop_ms(self) -> int:
        now_ms = self.double.clock.now_ms
        return next(int(line["t"]) for line in self.golden.driver("grpc-server-stop") if line["t"] > now_ms)

    def _leader_changed(self, key: str, value: str | None) -> None:
        event = self._leaders.setdefault("/".join(key.split("/")[2:-1]), asyncio.Event())
        (event.clear if value is None else event.set)()

    # --- The platform -----------------------------------------------------------------------------------------------

    def _restarts(self) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        """A second invoker comes; before the last file all restart, with stem cells."""
        first, second = self.double.invokers
        up_ms = next(
            line["t"]
            for line in self.golden.lines
            if line["src"] == "etcd" and line["key"] == "whisk/instance/invoker1/lease"
        )
        last_ms, _ = self.golden.spans["14-stem-cells"]
        return [
            (self.golden.begin_ms - 1000, second.stop),
            (up_ms, _later(second.start, SETTINGS)),
            (last_ms - 10_000, first.stop),
            (last_ms - 9_900, second.stop),
            (last_ms - 9_500, _later(first.start, STEM)),
        ]


def _later(what: Callable[..., Awaitable[None]], *arguments: Any) -> Callable[[], Awaitable[None]]:
    return lambda: what(*arguments)


async def play() -> Played:
    """All recordings."""
    golden = FpcGolden()
    clock = SteppedClock(golden.begin_ms - 10_000)
    program, draws = FpcReplayed(golden), _Recorded(golden)
    async with running_fpc_in_memory(clock, invokers=(SETTINGS, SETTINGS), program=program, draws=draws) as double:
        return await Player(golden, double).play()
