"""One call of a replay: what a target says of it, what the driver adds, and the run that they make up."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from mesp.types import FunctionKey


class Outcome(enum.StrEnum):
    """How a call ended."""

    OK = "ok"
    FUNCTION_ERROR = "function error"  # it ran, and failed by itself
    THROTTLED = "throttled"  # HTTP 429
    SERVER_ERROR = "server error"  # HTTP 5xx without a run to show for it
    REFUSED = "refused"  # any other status: a wrong name, a wrong key
    CONNECTION = "connection error"
    TIMEOUT = "timeout"
    UNRESOLVED = "unresolved"  # taken, but what became of it could not be learned
    SHED = "shed"  # never sent: too many were in flight
    INTERRUPTED = "interrupted"  # in flight when the replay was stopped


#: The call was sent, and the platform had its say.
ANSWERED = frozenset(Outcome) - {Outcome.SHED, Outcome.INTERRUPTED}
#: Outcomes whose time is a latency. Who is turned away at once did not wait, and must not flatter those who did; who gave
#: up did wait, at least as long as they waited.
WAITED = frozenset({Outcome.OK, Outcome.FUNCTION_ERROR, Outcome.TIMEOUT, Outcome.UNRESOLVED})
#: The function did not run, as far as the caller knows, or failed.
FAILED = ANSWERED - {Outcome.OK}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a target learned from one answer; None where the answer does not tell.

    Attributes:
        cold: it waited for a container to be initialised.
        init_ms: the initialisation.
        wait_ms: inside the platform, before anything ran for it.
        run_ms: the function's own run, without the initialisation.
    """

    outcome: Outcome
    cold: bool | None = None
    init_ms: float | None = None
    wait_ms: float | None = None
    run_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call; times in milliseconds from the beginning of minute A, negative in the warm-up.

    Attributes:
        intended_ms: when it was due: latency counts from here, whatever kept the generator.
        started_ms: when it was sent; when it was dropped, for one that was shed.
        done_ms: when its outcome was known.
    """

    function: FunctionKey
    intended_ms: float
    started_ms: float
    done_ms: float
    answer: Answer

    @property
    def latency_ms(self) -> float:
        """From the intended start to the outcome: free of coordinated omission (Tene, "How NOT to Measure Latency")."""
        return self.done_ms - self.intended_ms

    @property
    def lateness_ms(self) -> float:
        """How late the generator itself was."""
        return self.started_ms - self.intended_ms


@dataclass(frozen=True, slots=True)
class Run:
    """A replay as it went.

    Attributes:
        calls: by intended time, the warm-up's included.
        played_s: seconds from minute A's beginning that were played: all of the schedule's, unless interrupted.
        interrupted: it was stopped before its end.
        idle_gb_s: warm idle memory over the counted part, in seconds of the replay; None when it was not sampled.
        missed_samples: samples of idle memory that failed; the integral bridges them.
    """

    calls: tuple[Call, ...]
    played_s: float
    interrupted: bool
    idle_gb_s: float | None = None
    missed_samples: int = 0


class Target(Protocol):
    """A platform, or anything else, that functions are called on."""

    @property
    def name(self) -> str:
        """For reports: ``openwhisk`` or ``http``."""
        ...

    async def call(self, session: ClientSession, function: FunctionKey, run_ms: float) -> Answer:
        """Calls the function once; `run_ms` is how long the trace says it runs.

        May raise what aiohttp raises for a connection that fails (the driver counts it); `TimeoutError` likewise.
        """
        ...
