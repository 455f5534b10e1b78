"""Where the double's action containers come from: a narrow seam, and simulated ones behind it.

An invoker orders a container and then talks to it as to the real one's HTTP server: /init once, /run after /run, each
with the bodies of the runtime's protocol. `Simulated` containers take their times from the double's clock and do what
a `Program` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random

    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.model import Action, Json
    from e2e.openwhisk.recording import Recording

#: The parameter that asks for no work.
MARKER = "__ow_prewarm"


@dataclass(frozen=True)
class Answer:
    """What came back: an HTTP status and a JSON object, None where the connection was lost.

    `duration_ms` where the run was over before its end was noticed.
    """

    status: int
    body: Json | None
    duration_ms: int | None = None


@dataclass(frozen=True)
class Order:
    """A container to be made: for an action, or of a kind (a stem cell, `action` and `activation_id` None)."""

    name: str
    kind: str
    memory_mb: int
    action: Action | None = None
    activation_id: str | None = None


class Container(Protocol):
    """One action container."""

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""

    async def init(self, body: Json) -> Answer:
        """POST /init."""

    async def run(self, body: Json) -> Answer:
        """POST /run."""

    async def logs(self, activation_id: str) -> None:
        """Reads what the run printed, up to its end; until then the container takes no other call."""

    async def pause(self) -> None:
        """Stops its processes where they are."""

    async def unpause(self) -> None:
        """Lets them go on."""

    async def destroy(self) -> None:
        """Removes it, whatever it does."""


class Containers(Protocol):
    """An engine."""

    async def create(self, order: Order) -> Container:
        """A container whose server will answer."""

    async def clear(self, prefix: str) -> None:
        """Destroys every container whose name begins so."""


# --- Simulated ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What a program does with one call: an answer after `run_ms`, which is noticed after `noticed_ms`."""

    run_ms: int
    status: int = 200
    body: Json | None = None
    noticed_ms: int = 0


class Program(Protocol):
    """How long simulated containers take, in milliseconds, and what they answer."""

    def create_ms(self, order: Order) -> int:
        """From the order to a container that is up."""

    def init_ms(self, activation_id: str) -> int:
        """Of /init."""

    def reply(self, action_code: str, env: Json, body: Json) -> Reply:
        """To /run's body, in a container whose /init brought `env`."""

    def logs_ms(self, activation_id: str) -> int:
        """To read a run's logs."""


class Sleeper:
    """An action that sleeps for its parameter `ms` and honours the marker, in containers as fast as the real ones were.

    Like the golden traces' action it can answer an error, throw, or end its process.
    """

    def create_ms(self, order: Order) -> int:
        """What the golden traces took when nothing else ran."""
        return 250 if order.action else 200

    def init_ms(self, activation_id: str) -> int:
        """As `create_ms`."""
        return 120 if activation_id else 0

    def reply(self, action_code: str, env: Json, body: Json) -> Reply:  # noqa: ARG002 (others look at the environment)
        """To what the parameters ask for, a marker before all else (as the shim in deploy/openwhisk)."""
        value = body["value"]
        if isinstance(marker := value.get(MARKER), dict):
            if marker.get("op") == "end":
                return Reply(5, 502, {"error": "ended"})
            return Reply(5 + marker.get("hold_ms", 0), body={"prewarm": True, "tid": body["transaction_id"]})
        if value.get("die"):
            return Reply(50, status=0, noticed_ms=12_000)
        if value.get("throw"):
            return Reply(6, 502, {"error": "An error has occurred: Error: boom"})
        if value.get("fail"):
            return Reply(6, body={"error": "told to fail"})
        return Reply(5 + value.get("ms", 50), body={"n": value.get("n", 0), "pid": 7, "v": action_code or "1"})

    def logs_ms(self, activation_id: str) -> int:
        """As `create_ms`."""
        return 5 if activation_id else 0


@dataclass(frozen=True)
class UserRun:
    """User code ran: a call without a marker."""

    activation_id: str
    action: str
    env: Json
    value: Json


class Simulated:
    """Containers that cost nothing but time; `user_runs` lists every run that was no marker's."""

    def __init__(self, clock: Clock, recording: Recording, randomness: random.Random, program: Program) -> None:
        self.clock = clock
        self.recording = recording
        self.program = program
        self.user_runs: list[UserRun] = []
        self.alive: dict[str, SimulatedContainer] = {}
        self._randomness = randomness

    async def create(self, order: Order) -> SimulatedContainer:
        """Up after the program's `create_ms`."""
        container = SimulatedContainer(self, order, f"{self._randomness.getrandbits(256):064x}")
        self.alive[container.id] = container
        took_ms = self.program.create_ms(order)
        for part, event in ((0.2, "create"), (0.7, "start")):
            await self.clock.sleep(took_ms * part / 1000)
            container.note(event)
        await self.clock.sleep(took_ms * 0.1 / 1000)
        return container

    async def clear(self, prefix: str) -> None:
        """Destroys what a dead invoker left."""
        for container in list(self.alive.values()):
            if container.name.startswith(prefix):
                await container.destroy()


class SimulatedContainer:
    """One of `Simulated`; it refuses a second /init, as real runtimes do."""

    def __init__(self, engine: Simulated, order: Order, container_id: str) -> None:
        self.id = container_id
        self.name = order.name
        self._engine = engine
        self._init: Json | None = None
        self._dead = False

    def note(self, event: str) -> None:
        """Records what an engine's event stream would say."""
        self._engine.recording.docker(event, self.id, self.name)

    async def init(self, body: Json) -> Answer:
        """POST /init."""
        if self._init is not None:
            return Answer(403, {"error": "Cannot initialize the action more than once."})
        self._init = body["value"]
        await self._sleep(self._engine.program.init_ms(body["value"]["env"]["__OW_ACTIVATION_ID"]))
        return Answer(200, {"ok": True})

    async def run(self, body: Json) -> Answer:
        """POST /run."""
        assert self._init is not None
        env = {key: value for key, value in self._init["env"].items() if not key.startswith("__OW_")}
        if MARKER not in body["value"]:
            call = UserRun(body["activation_id"], body["action_name"], env, body["value"])
            self._engine.user_runs.append(call)
        reply = self._engine.program.reply(self._init["code"], env, body)
        await self._sleep(reply.run_ms)
        if not reply.noticed_ms:
            return Answer(reply.status, reply.body)
        self.note("die")
        self._dead = True
        await self._sleep(reply.noticed_ms)
        return Answer(reply.status, reply.body, reply.run_ms)

    async def logs(self, activation_id: str) -> None:
        """Reads what the run printed."""
        await self._sleep(self._engine.program.logs_ms(activation_id))

    async def pause(self) -> None:
        """Stops its processes where they are."""
        await self._sleep(30)
        self.note("pause")

    async def unpause(self) -> None:
        """Lets them go on."""
        await self._sleep(30)
        self.note("unpause")

    async def destroy(self) -> None:
        """Removes it, whatever it does."""
        if self._engine.alive.pop(self.id, None) is not None:
            for event in ("destroy",) if self._dead else ("kill", "die", "destroy"):
                await self._sleep(30)
                self.note(event)

    async def _sleep(self, milliseconds: float) -> None:
        await self._engine.clock.sleep(milliseconds / 1000)


def container_name(invoker: int, number: int, first: str, second: str) -> str:
    """``wsk0_1_guest_hello``; of the rest only letters and digits stay (ContainerProxy.containerName)."""
    first, second = ("".join(filter(str.isalnum, part)) for part in (first, second))
    return f"wsk{invoker}_{number}_{first}_{second}"
