"""One controller of a classic deployment: it chooses invokers, and watches their health.

A call goes to ``invokerN`` of the invoker that `sharding` finds; its memory slot is free again when its completion
comes back (`front`). An invoker that was heard of for the first time, or again, is tried with a test action until one
succeeds; without a ping for 10 s it is down.

Source: ShardingContainerPoolBalancer.scala, CommonLoadBalancer.scala and InvokerSupervision.scala of
apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from e2e.openwhisk.front import Entry, Front, ThrottledError, UnavailableError
from e2e.openwhisk.model import Action, User
from e2e.openwhisk.sharding import Sharding

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from e2e.openwhisk.bus import Topics
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.model import Json, Store
    from e2e.openwhisk.recording import Recording
    from e2e.openwhisk.throttle import Throttle

OFFLINE_AFTER_S = 10.0
TEST_EVERY_S = 60.0
#: Of the last `RECENT` outcomes of an invoker more than so many may be bad.
TOLERATED, RECENT = 3, 10

SYSTEM = User("whisk.system", str(uuid.UUID(int=1, version=4)), rights=())


@dataclass
class _Health:
    """What the controller thinks of an invoker."""

    name: str
    state: str = "down"
    heard_ms: int = 0
    tested_ms: int = 0
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))


class Controller(Front):
    """The controller of a name; `ids` gives the activation ids, random ones unless told otherwise."""

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
        super().__init__(name, bus, clock, store, recording, randomness, ids)
        self._sharding = Sharding(randomness)
        self._health: list[_Health] = []
        self._test_began_ms = 0
        #: The limits of the one namespace whose users call; None: nobody is refused.
        self.throttle: Throttle | None = None

    async def start(self) -> None:
        """Begins to listen; knows no invoker yet."""
        self._test_began_ms = self.clock.now_ms
        if self.store.get(self._test_action) is None:
            _, name = self._test_action.split("/")
            self.store.put(Action(SYSTEM.namespace, name, memory_mb=128))
        await super().start()
        self.tasks += [
            await self.bus.read("health", f"health{self.name}", self.safely(self._pinged)),
            asyncio.create_task(self._watch()),
        ]

    def invokers(self) -> dict[str, str]:
        """What ``GET /invokers`` answers."""
        return {health.name: health.state for health in self._health}

    # --- Calls ------------------------------------------------------------------------------------------------------

    def admit(self, user: User, action: Action) -> None:  # noqa: ARG002 (limits are the namespace's)
        """Raises `ThrottledError` where its `throttle` refuses."""
        in_flight = sum(entry.namespace == user.namespace for entry in self.flying.values())
        if self.throttle and (sentence := self.throttle.refusal(self.clock.now_ms, in_flight)):
            raise ThrottledError(sentence)

    async def place(self, user: User, action: Action, transid: list[Any]) -> int:
        """The invoker that the balancer finds, of which it takes a slot."""
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
            self.recording.log(f"controller{self.name}", "WARN", transid[0], "ShardingContainerPoolBalancer", message)
        return invoker

    def completed(self, entry: Entry, *, place: int | None, error: bool) -> None:
        """The slot is free, and the invoker has shown how it is."""
        action = entry.action
        self._sharding.slots[entry.place].give_back(action.full_name, action.memory_mb, action.concurrency)
        if place is None:
            self._judge(entry.place, "timeout")
        else:
            self.unknown(place, error=error)

    def unknown(self, place: int | None, *, error: bool) -> None:
        """As of a health test: the invoker has shown how it is."""
        if place is not None and place < len(self._health):
            self._judge(place, "error" if error else "success")

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
            self.give_up()
            await self.clock.sleep(0.5)

    @property
    def _test_action(self) -> str:
        return f"{SYSTEM.namespace}/invokerHealthTestAction{self.name}"

    def _test(self, invoker: int) -> None:
        self._health[invoker].tested_ms = self.clock.now_ms
        action = self.store.get(self._test_action)
        assert action is not None
        transid = ["sid_invokerHealth", self._test_began_ms]
        self.send(invoker, SYSTEM, action, transid, self.random_id(), None, blocking=False)
