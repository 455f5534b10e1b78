"""Does to a double what a golden trace shows was done to the real OpenWhisk, each thing at its time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from e2e.openwhisk.classic import GUEST, Classic, running_classic
from e2e.openwhisk.clock import SteppedClock
from e2e.openwhisk.containers import Simulated
from e2e.openwhisk.controller import Controller
from e2e.openwhisk.golden import Golden, Lines, Replayed, ids_in, time_of
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings, StemCells

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from e2e.openwhisk.model import Json
    from e2e.servers.kafka import Kafka

#: Of the wall: an answer that never comes shall not keep anyone waiting.
_LIMIT_S: Final = 150

LARGE: Final = PoolSettings(memory_mb=2048, idle_container_s=60)
SMALL: Final = PoolSettings(memory_mb=512, idle_container_s=60)


@dataclass(frozen=True)
class Played:
    """A recording, the double's, and what its store, its containers and its operators saw.

    Attributes:
        stored: activations with a record.
        user_runs: activations that ran user code.
        views: ``/invokers`` whenever it changed, and when.
    """

    golden: Golden
    double: Lines
    stored: set[str]
    user_runs: set[str]
    views: list[tuple[int, dict[str, str]]]


class Player:
    """For recordings of one invoker, of which nothing was known that lies before them."""

    #: How long the platform had been up: longer than its health test's container stays, or not.
    up_before_s = 100.0
    settings: Sequence[PoolSettings] = (LARGE,)

    def __init__(self, golden: Golden, double: Classic) -> None:
        self.golden, self.double, self.controller = golden, double, double.controller
        self.views: list[tuple[int, dict[str, str]]] = []
        self._ids: deque[str] = deque()
        self._calls: list[asyncio.Task[Any]] = []
        self._more = asyncio.Event()
        self._got: Counter[str | None] = Counter()
        called = [line["value"].get("activationId", "") for line in golden.kafka("invoker")]
        self._acks = {key: acks for key in called if (acks := golden.acks(key))}

    async def play(self) -> Played:
        """All of the recording, and a little longer."""
        golden, engine = self.golden, self.double.engine
        assert isinstance(engine, Simulated)
        self.controller.ids = self._ids.popleft
        self.double.bus.watchers.append(self._sent)
        await self.double.bus.make("completedprewarm0")
        await self.before()
        todo: list[tuple[int, Any]] = list(golden.actions())
        todo += [(line["value"]["transid"][1], line) for line in golden.calls if "cause" not in line["value"]]
        todo += [(parts[0]["value"]["transid"][2][1], parts) for parts in golden.sequences.values()]
        todo += [(time_of(line), line) for line in golden.markers]
        todo += self.accidents()
        for at_ms, what in sorted(todo, key=lambda item: item[0]):
            await self.double.clock.sleep_until(at_ms)
            await self._answered(at_ms)
            await self._do(what)
        await self.double.clock.sleep_until(time_of(golden.lines[-1]) + 500)
        await asyncio.gather(*self._calls)
        recording, bus = self.double.recording, self.double.bus
        await recording.until(lambda: len(recording.of("kafka")) >= bus.delivered)
        lines = Lines([line for line in self.double.recording.lines if time_of(line) >= golden.begin_ms])
        runs = {run.activation_id for run in engine.user_runs}
        return Played(golden, lines, set(self.double.store.records), runs, self.views)

    async def before(self) -> None:
        """What had happened when the recording began."""

    def accidents(self) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        """What happens to the platform itself, and when."""
        return []

    async def _answered(self, at_ms: int) -> None:
        """Waits for what had been answered when the recording went on: its client, too, waited for that."""
        due = {key: len(acks) for key, acks in self._acks.items() if time_of(acks[-1]) < at_ms}
        while any(self._got[key] < count for key, count in due.items()):
            self._more.clear()
            await self._more.wait()

    def _sent(self, topic: str, message: Json) -> None:
        if topic.startswith("completed"):
            self._got[ids_in(message)] += 1
            self._more.set()
        view = self.controller.invokers()
        if not self.views or self.views[-1][1] != view:
            self.views.append((self.double.clock.now_ms, view))

    def call(self, name: str, content: Json, *ids: str, blocking: bool = True) -> asyncio.Task[Any]:
        """A caller calls; the activations will have these ids."""
        action = self.double.store.get(f"guest/{name}")
        assert action is not None
        self._ids.extend(ids)
        task = asyncio.create_task(self.controller.invoke(GUEST, action, content, blocking=blocking))
        self._calls.append(task)
        return task

    async def _do(self, what: Any) -> None:
        if isinstance(what, Action):
            self.double.store.put(what)
        elif isinstance(what, list):
            cause = what[0]["value"]["cause"]
            name = next(line["action"] for line in self.golden.lines if line.get("activationId") == cause)
            ids = [line["value"]["activationId"] for line in what]
            self.call(name, what[0]["value"]["content"], cause, *ids)
        elif callable(what):
            await what()
        elif what in self.golden.calls:
            value = what["value"]
            self.call(value["action"]["name"], value["content"], value["activationId"], blocking=value["blocking"])
        else:
            self.double.bus.send(what["topic"], what["value"])


class JustUp(Player):
    """The container of the health test is still there."""

    up_before_s = 30.0


class Small(Player):
    """An invoker of two containers, of which the controller counts the slots from when it had 2048 MB."""

    async def before(self) -> None:
        """The invoker shrinks, and is not missed while it does."""
        await self.shrink()

    async def shrink(self) -> None:
        """The first invoker restarts with less memory."""
        first = self.double.invokers[0]
        await first.stop()
        await first.start(SMALL)


class Two(Small):
    """The same and a second one; deaths and restarts."""

    settings = (LARGE, SMALL)

    async def before(self) -> None:
        """`h3` and `h1` leave a container each on the first invoker, the second comes up."""
        second = self.double.invokers[1]
        await second.stop()
        await self.shrink()
        for ago_s, name in ((40, "h3"), (39, "h1")):
            self.double.store.put(Action("guest", name))
            await self.double.clock.sleep_until(self.golden.begin_ms - ago_s * 1000)
            await self.call(name, {}, f"{ago_s:032x}")
        await self.double.clock.sleep_until(self.golden.begin_ms - 700)
        await second.start(SMALL)

    def accidents(self) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        """A new controller, which comes up when it tests the invokers; the second invoker dies and comes back."""
        begin_ms = self.golden.begin_ms
        pings = [time_of(line) for line in self.golden.of_invoker("health", 1)]
        gone_ms, back_ms = max(itertools.pairwise(pings), key=lambda pair: pair[1] - pair[0])
        second = self.double.invokers[1]
        return [
            (begin_ms + 94_709, self.controller.stop),
            (begin_ms + 124_200, self._new_controller),
            (gone_ms + 1, second.kill),
            (back_ms - 100, lambda: second.start(SMALL)),
        ]

    async def _new_controller(self) -> None:
        double = self.double
        self.controller = Controller("0", double.bus, double.clock, double.store, double.recording, random.Random(9))
        self.controller.ids = self._ids.popleft
        await self.controller.start()


class Stem(Player):
    """The invoker had been away, and comes back with a stem cell."""

    async def before(self) -> None:
        """It goes."""
        await self.double.invokers[0].stop()

    def accidents(self) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        """It comes back."""
        settings = PoolSettings(memory_mb=2560, stem_cells=(StemCells(),))
        back_ms = time_of(self.golden.of_invoker("health", 0)[0])
        return [(back_ms - 50, lambda: self.double.invokers[0].start(settings))]


PLAYERS: Final[dict[str, type[Player]]] = {
    "base": JustUp,
    "inject": Player,
    "headroom": Small,
    "two": Two,
    "last": JustUp,
    "stem": Stem,
}


async def play(name: str, kafka: Kafka) -> Played:
    """One recording, on topics of its own; `TimeoutError` where the double owes an answer for ever."""
    golden, kind = Golden(name), PLAYERS[name]
    clock = SteppedClock(golden.begin_ms - kind.up_before_s * 1000)
    options = {"bootstrap_servers": kafka.plain}
    program = Replayed(golden)
    async with running_classic(
        options, invokers=kind.settings, clock=clock, program=program, prefix=f"{name}-"
    ) as double:
        player = kind(golden, double)
        try:
            async with asyncio.timeout(_LIMIT_S):
                return await player.play()
        finally:
            await player.controller.stop()
