"""The fast path of event accounting: a whole trace under a `WarmSchedule`, exact to the event, compiled.

Functions are independent here, because nodes are unbounded; `mesp_bench.simulator` is the slow path with finite nodes,
and where the two overlap they agree to the invocation (a property test says so).

How a request is served: by the most recently used ready container with room (a busy one before an idle one, so that
surplus ages out); else by the container that is earliest ready among those still being created with room, if that is
no later than a container of its own would be; else it orders one of its own. The latter two are cold starts.

How a container goes: it expires when it was idle for the keep-alive of the minute in which it went idle, at once where
that minute has a `prewarm_after_s`. The floor in force protects: nothing expires while no more containers than the
floor exist. After a `prewarm_after_s` without an invocation since the function's last one ended, a container is ordered,
unless one exists. Minute m's schedule is in force from its start (after what ends at that instant) to the next.

At one instant things happen in this order: containers get ready, requests complete, containers expire, prewarm timers
run out, the decisions of a minute's start or of a lead before it, arrivals (ties within a kind: see `mesp_bench.cluster`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numba
import numpy as np

from mesp.errors import InputError
from mesp.types import MB_PER_GB, FunctionKey
from mesp_bench.arrivals import ArrivalMode, Arrivals, draw_arrivals
from mesp_bench.containers import (
    Floats,
    Ints,
    Records,
    await_ready,
    begin,
    clear,
    complete,
    get_ready,
    new_arrays,
    next_start_s,
    order,
    prewarm,
    remove_idle,
    settle,
    surface,
    take_starting,
    take_warm,
)
from mesp_bench.event_ledger import EventLedger
from mesp_bench.schedule import WarmSchedule
from mesp_bench.traces.model import Trace

if TYPE_CHECKING:
    import numpy.typing as npt

#: Schedules come in one memory layout, so that a single compiled kernel serves all of them.
_LAYOUT: Final = ("C", "W")

_READY, _COMPLETION, _EXPIRY, _TIMER, _DECISION = range(5)

#: Columns of the kernel's integer account, one row per function.
INVOCATIONS, COLD, LATE, ORDERED = range(4)


def simulate(
    arrivals: Arrivals,
    schedule: WarmSchedule,
    memory_mb: npt.NDArray[np.float64],
    concurrency: int = 1,
    *,
    score_from_s: float | None = None,
) -> EventLedger:
    """Plays the arrivals of F functions against a schedule, on nodes without bounds.

    Args:
        arrivals: from `draw_arrivals`.
        schedule: arrays (F, M), columns from the trace's first minute.
        memory_mb: memory of one container, (F,), finite.
        concurrency: requests that one container executes at once.
        score_from_s: the ledger counts from here, in seconds from the trace's first column, to the end of the arrivals'
            minutes; what came before is played to warm up. None scores everything.

    Raises:
        InputError: shapes that do not fit, memory that is not finite, or a lead outside [0, 60] s.
    """
    check_inputs(arrivals, schedule, memory_mb, concurrency)
    first, end = arrivals.first_minute, arrivals.end_minute
    # Requests under way at once, and the containers that floors and timers add to theirs.
    floor = max(int(schedule.floor.max(initial=0)), int(schedule.early_floor.max(initial=0)))
    capacity = int(np.diff(arrivals.indptr).max(initial=0)) + floor + 2
    account, alive_s, busy_s, waited, wait_s = _simulate(
        arrivals.indptr,
        arrivals.times_s,
        arrivals.durations_s,
        arrivals.start_indptr,
        arrivals.start_times_s,
        first,
        end,
        np.require(schedule.keep_alive_s, np.float32, _LAYOUT),
        np.require(schedule.prewarm_after_s, np.float32, _LAYOUT),
        np.require(schedule.floor, np.int16, _LAYOUT),
        np.require(schedule.early_floor, np.int16, _LAYOUT),
        float(schedule.lead_s),
        schedule.release,
        hold_s(schedule),
        concurrency,
        *new_arrays(capacity, 60.0 * first if score_from_s is None else float(score_from_s), 60.0 * end),
    )
    return ledger(account, alive_s, busy_s, waited, wait_s, memory_mb)


def hold_s(schedule: WarmSchedule) -> npt.NDArray[np.float32]:
    """How long a surplus container is held, (F,); see `WarmSchedule`."""
    if schedule.hold_s is None:
        return np.zeros(len(schedule.floor), np.float32)
    return np.require(schedule.hold_s, np.float32, _LAYOUT)


def check_inputs(
    arrivals: Arrivals, schedule: WarmSchedule, memory_mb: npt.NDArray[np.float64], concurrency: int
) -> None:
    """Raises InputError unless arrivals, schedule and memory speak of the same functions and minutes."""
    functions = len(arrivals.functions)
    for name in ("keep_alive_s", "prewarm_after_s", "floor", "early_floor"):
        shape = getattr(schedule, name).shape
        if len(shape) != 2 or shape[0] != functions or shape[1] < arrivals.end_minute:
            raise InputError(
                f"schedule {name} has shape {shape}: must be ({functions}, at least {arrivals.end_minute} minutes)."
            )
    if (held := hold_s(schedule)).shape != (functions,) or not (held >= 0).all():
        raise InputError(f"schedule hold_s has shape {held.shape}: must be ({functions},), none negative.")
    if not 0 <= schedule.lead_s <= 60:
        raise InputError(f"schedule lead_s = {schedule.lead_s}: must lie in [0, 60].")
    check_containers(arrivals, memory_mb, concurrency)


def check_containers(arrivals: Arrivals, memory_mb: npt.NDArray[np.float64], concurrency: int) -> None:
    """Raises InputError unless every function has finite memory and containers take at least one request."""
    if memory_mb.shape != (len(arrivals.functions),) or not np.isfinite(memory_mb).all():
        raise InputError(f"memory_mb has shape {memory_mb.shape}: must be ({len(arrivals.functions)},), all finite.")
    if concurrency < 1:
        raise InputError(f"concurrency = {concurrency}: must be at least 1.")


def ledger(
    account: Ints,
    alive_s: Floats,
    busy_s: Floats,
    waited: Ints,
    wait_s: Floats,
    memory_mb: npt.NDArray[np.float64],
    unserved: int = 0,
) -> EventLedger:
    """The ledger of a kernel's account: (F, 4) integers as named above, seconds alive and busy (F,), and the waits."""
    memory_gb = memory_mb / MB_PER_GB
    waste_gb_s = memory_gb * (alive_s - busy_s)
    return EventLedger(
        invocations=int(account[:, INVOCATIONS].sum()),
        cold=int(account[:, COLD].sum()),
        late_prewarms=int(account[:, LATE].sum()),
        created=int(account[:, ORDERED].sum()),
        waste_gb_s=float(waste_gb_s.sum()),
        total_gb_s=float((memory_gb * alive_s).sum()),
        invocations_by_function=account[:, INVOCATIONS].copy(),
        cold_by_function=account[:, COLD].copy(),
        waste_gb_s_by_function=waste_gb_s,
        waited=waited,
        wait_s=wait_s,
        unserved=unserved,
    )


@numba.njit(cache=True, nogil=True)
def minute_before(now_s: float) -> int:
    """The minute that what ends now belongs to: the last to begin before this instant."""
    minute = int(now_s / 60.0)
    return minute - 1 if minute > 0 and 60.0 * minute >= now_s else minute


@numba.njit(cache=True, nogil=True)
def minute_at(now_s: float) -> int:
    """The minute that what begins now belongs to."""
    minute = int(now_s / 60.0)
    return minute - 1 if 60.0 * minute > now_s else minute


@numba.njit(cache=True, nogil=True)
def _simulate(  # noqa: C901, PLR0912, PLR0915 (one kernel: in parts, its locals would have to travel through arrays)
    indptr: Ints,
    times_s: Floats,
    durations_s: Floats,
    start_indptr: Ints,
    start_times_s: Floats,
    first: int,
    end: int,
    keep_alive_s: npt.NDArray[np.float32],
    prewarm_after_s: npt.NDArray[np.float32],
    floors: npt.NDArray[np.int16],
    early_floors: npt.NDArray[np.int16],
    lead_s: float,
    release: bool,
    hold_s: npt.NDArray[np.float32],
    concurrency: int,
    running: Records,
    starting: Records,
    expiring: Records,
    slots: Records,
    state: Records,
) -> tuple[Ints, Floats, Floats, Ints, Floats]:
    functions = indptr.size - 1
    score_from_s, end_s = state[0].score_from_s, state[0].end_s
    account = np.zeros((functions, 4), np.int64)
    alive_s = np.zeros(functions)
    busy_s = np.zeros(functions)
    waited = np.empty(times_s.size, np.int64)
    wait_s = np.empty(times_s.size)
    waits = 0
    for f in range(functions):
        clear(state)
        starts = start_times_s[start_indptr[f] : start_indptr[f + 1]]
        directed = floors[f, first:end].max() >= 0 or early_floors[f, first:end].max() >= 0
        current = first  # at least; what ends at an instant after its decisions and arrivals belongs to its minute
        minute = first  # whose start is the next decision
        early = False  # the next decision is the one a lead before that start
        decision_s = 60.0 * first if directed else np.inf
        timer_s = np.inf
        floor = 0
        now_s = 60.0 * first

        for i in range(indptr[f], indptr[f + 1] + 1):
            arrival = i < indptr[f + 1]
            arrival_s = times_s[i] if arrival else end_s
            while True:  # everything until the arrival, itself excluded; the earlier kind first at the same instant
                kind, at_s = _READY, starting[0].key if state[0].starting else np.inf
                completion_s = running[0].key if state[0].running else np.inf
                if completion_s < at_s:
                    kind, at_s = _COMPLETION, completion_s
                if state[0].alive > floor and state[0].expiring:
                    expiry_s = max(now_s, expiring[0].key)  # a container that the floor protected may be overdue
                    if expiry_s < at_s:
                        kind, at_s = _EXPIRY, expiry_s
                if timer_s < at_s:
                    kind, at_s = _TIMER, timer_s
                if decision_s < at_s:
                    kind, at_s = _DECISION, decision_s
                if at_s > arrival_s or at_s == np.inf:
                    break
                now_s = at_s

                if kind == _COMPLETION:
                    m = max(current, minute_before(now_s))
                    after_s = prewarm_after_s[f, m]
                    stay_s = 0.0 if after_s > 0 else np.float64(keep_alive_s[f, m])
                    complete(running, expiring, slots, state, now_s, stay_s, concurrency)
                    if after_s > 0 and state[0].in_flight == 0:
                        timer_s = now_s + after_s
                elif kind == _READY:
                    m = max(current, minute_before(now_s))
                    get_ready(starting, expiring, slots, state, now_s, np.float64(keep_alive_s[f, m]))
                elif kind == _EXPIRY:
                    surface(expiring, slots, state, now_s)
                elif kind == _TIMER:
                    timer_s = np.inf
                    if state[0].alive == 0:
                        prewarm(starting, slots, state, now_s, starts)
                        account[f, ORDERED] += now_s >= score_from_s
                else:
                    if early:
                        floor = max(floor, early_floors[f, minute])
                        early = False
                    else:
                        current = minute
                        minute += 1
                        floor = max(floors[f, current], 0)
                        if lead_s == 60.0 and minute < end:
                            floor = max(floor, early_floors[f, minute])
                        if release and floors[f, current] >= 0:
                            idle_by_s = now_s - (hold_s[f] if floors[f, current] > 0 else 0.0)
                            while state[0].alive > floor and state[0].idle_oldest >= 0:
                                if slots[state[0].idle_oldest].idle_since_s > idle_by_s:
                                    break
                                remove_idle(expiring, slots, state, state[0].idle_oldest, now_s)
                        early = 0.0 < lead_s < 60.0
                    decision_s = np.inf if minute >= end else 60.0 * minute - (lead_s if early else 0.0)
                    while state[0].alive < floor:
                        prewarm(starting, slots, state, now_s, starts)
                        account[f, ORDERED] += now_s >= score_from_s

            if not arrival:
                break
            now_s = arrival_s
            current = minute_at(now_s)
            timer_s = np.inf
            scored = now_s >= score_from_s
            account[f, INVOCATIONS] += scored
            begin_s = now_s
            slot = take_warm(slots, state, concurrency)
            if slot < 0:
                begin_s = now_s + next_start_s(state, starts)
                if state[0].starting and starting[0].key <= begin_s:
                    begin_s = starting[0].key
                    slot = starting[0].slot
                    account[f, LATE] += scored and slots[slot].prewarmed
                    if slots[slot].in_flight + 1 == concurrency:
                        take_starting(starting, slots, state)
                else:
                    slot = order(slots, state, now_s, False)
                    account[f, ORDERED] += scored
                    if concurrency > 1:
                        await_ready(starting, slots, state, slot, begin_s)
                account[f, COLD] += scored
                if scored:
                    waited[waits] = i
                    wait_s[waits] = begin_s - now_s
                    waits += 1
            begin(running, slots, state, slot, begin_s, begin_s + durations_s[i], i)

        settle(slots, state)
        alive_s[f] = state[0].alive_s
        busy_s[f] = state[0].busy_s
    return account, alive_s, busy_s, waited[:waits].copy(), wait_s[:waits].copy()


def main() -> None:
    """Prints simulated invocations per second on one core for a few mixes of functions."""
    rng = np.random.default_rng(0)
    minutes = 1440
    mixes = {
        "sparse (10,000 functions, 100 a day)": np.full(10_000, 100.0),
        "realistic (500 functions, log-normal rates)": rng.lognormal(7.0, 2.5, 500),
        "heavy (4 functions, 2 million a day)": np.full(4, 2e6),
    }
    for name, daily in mixes.items():
        counts = rng.poisson(np.repeat(np.minimum(daily, 2e6)[:, None] / minutes, minutes, axis=1))
        for mode in ArrivalMode:
            arrivals = draw_arrivals(_trace(counts.astype(np.uint32)), mode, seed=0)
            schedule = _keep_alive(counts.shape, 600.0)
            memory_mb = np.full(len(daily), 170.0)
            simulate(arrivals, schedule, memory_mb)
            began = time.process_time()
            account = simulate(arrivals, schedule, memory_mb)
            rate = account.invocations / (time.process_time() - began)
            print(f"{name}, {mode}: {account.invocations:,} invocations, {account.cold:,} cold, {rate / 1e6:.1f} M/s")  # noqa: T201 (a benchmark's output)


def _trace(counts: npt.NDArray[np.uint32]) -> Trace:
    """A trace of counts and nothing else."""
    functions = counts.shape[0]
    unknown = np.full(functions, np.nan)
    return Trace(
        name="benchmark",
        functions=tuple(FunctionKey("benchmark", str(f)) for f in range(functions)),
        counts=counts,
        start_minute=0,
        apps=("benchmark/app",) * functions,
        triggers=("unknown",) * functions,
        memory_mb=unknown,
        app_memory_mb=unknown,
        duration_ms=unknown,
        duration_percentiles_ms=np.full((functions, 7), np.nan),
        arrivals_s=None,
        checksum="",
    )


def _keep_alive(shape: tuple[int, ...], keep_alive_s: float) -> WarmSchedule:
    none = np.full(shape, -1, np.int16)
    return WarmSchedule(
        keep_alive_s=np.full(shape, keep_alive_s, np.float32),
        prewarm_after_s=np.zeros(shape, np.float32),
        floor=none,
        early_floor=none,
        lead_s=0.0,
        release=False,
    )


if __name__ == "__main__":
    main()
