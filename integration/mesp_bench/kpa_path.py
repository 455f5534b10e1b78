"""Event accounting of Knative: its autoscaler's whole state machine per function, around `kpa_step`, compiled.

Requests meet the activator. A ready pod with a free slot takes a request at once; else it queues there, first come,
first served, until a pod gets ready or a slot frees: here requests order no pods. Each second the average number of
requests in the revision, queued or executing, is written into a bucket; every two seconds the averages over the stable
and the panic window decide how many pods there should be. The first request at zero scale is told, as one, at once, and
decides at once. (knative/serving `pkg/autoscaler`, `pkg/activator`, with the defaults of `config-autoscaler`.)

Pods go in Kubernetes' order: those being created, then idle ones (longest idle first), then busy ones once they are
through. The last one goes when the windows are empty and requests have come through the activator for the grace
already; with small pods (fewer slots in all than the target burst capacity) that is always so.

A request is cold when the pod that serves it was not ready yet when the request came.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np

from mesp.errors import InputError
from mesp_bench.containers import (
    Floats,
    Ints,
    Records,
    begin,
    clear,
    drop_room,
    finish,
    get_ready,
    go_idle,
    new_arrays,
    prewarm,
    push_room,
    remove_idle,
    retire,
    settle,
    take_warm,
)
from mesp_bench.fastpath import COLD, INVOCATIONS, ORDERED, check_containers, ledger
from mesp_bench.policies.kpa import SCALE_TO_ZERO_GRACE_S, TICK_S, KpaSettings, KpaState, kpa_step, pod_target

if TYPE_CHECKING:
    import numpy.typing as npt

    from mesp_bench.arrivals import Arrivals
    from mesp_bench.event_ledger import EventLedger

TARGET_BURST_CAPACITY = 211.0

#: Slots of a pod without a limit of its own, for the burst capacity; and what stands for "no limit".
_SOFT_SLOTS, _NO_LIMIT = 100.0, 1 << 30

#: Concurrency is kept in whole millionths, so that windows sum up exactly and an empty one is zero.
_UNIT = 1_000_000

#: Seconds from one decision to the next.
_TICK = int(TICK_S)

_READY, _COMPLETION, _SECOND, _ARRIVAL = range(4)


def simulate_kpa(
    arrivals: Arrivals,
    memory_mb: npt.NDArray[np.float64],
    stable_window_s: float = 60.0,
    container_concurrency: int = 1,
    *,
    score_from_s: float | None = None,
) -> EventLedger:
    """Plays the arrivals of F functions against Knative's autoscaler, on nodes without bounds.

    Args:
        arrivals: from `draw_arrivals`.
        memory_mb: memory of one pod, (F,), finite.
        stable_window_s: the knob, whole seconds within [6, 3600].
        container_concurrency: requests that a pod takes at once; 0 for no limit.
        score_from_s: the ledger counts from here, in seconds from the trace's first column; None scores everything.

    Raises:
        InputError: memory that does not fit the functions or is not finite, a window or concurrency out of range.
    """
    check_containers(arrivals, memory_mb, max(container_concurrency, 1))
    if container_concurrency < 0:
        raise InputError(f"container_concurrency = {container_concurrency}: must be 0 (no limit) or more.")
    if not (6 <= stable_window_s <= 3600 and float(stable_window_s).is_integer()):
        raise InputError(f"stable_window_s = {stable_window_s}: must be whole seconds within [6, 3600].")
    first, end = arrivals.first_minute, arrivals.end_minute
    settings = KpaSettings(pod_target(container_concurrency), float(stable_window_s))
    requests = int(np.diff(arrivals.indptr).max(initial=0))
    # No average exceeds all the requests there are (and one told early), which bounds the pods wanted for them.
    capacity = max(requests, math.ceil((requests + 1) / settings.target)) + 2
    account, alive_s, busy_s, waited, wait_s, unserved = _simulate_kpa(
        arrivals.indptr,
        arrivals.times_s,
        arrivals.durations_s,
        arrivals.start_indptr,
        arrivals.start_times_s,
        first,
        settings,
        container_concurrency or _NO_LIMIT,
        *new_arrays(capacity, 60.0 * first if score_from_s is None else float(score_from_s), 60.0 * end),
    )
    return ledger(account, alive_s, busy_s, waited, wait_s, memory_mb, unserved)


@numba.njit(cache=True, nogil=True)
def _record(buckets: Ints, sums: Ints, second: int, value: int, panic: int) -> None:
    """Writes a second's concurrency, and moves both windows' sums up to it."""
    size = buckets.size
    sums[0] += value - buckets[second % size]
    sums[1] += value - buckets[(second - panic) % size]
    buckets[second % size] = value


@numba.njit(cache=True, nogil=True)
def _scale(
    wanted: int, starting: Records, expiring: Records, slots: Records, state: Records, now_s: float, starts: Floats
) -> int:
    """Orders or removes pods; returns how many busy ones are still to go when they are through."""
    for _ in range(wanted - state[0].alive):
        prewarm(starting, slots, state, now_s, starts)
    while state[0].alive > wanted and state[0].starting > 0:
        state[0].starting -= 1  # the last place of a heap may go without further ado
        retire(slots, state, starting[state[0].starting].slot, now_s)
    while state[0].alive > wanted and state[0].idle_oldest >= 0:
        remove_idle(expiring, slots, state, state[0].idle_oldest, now_s)
    return int(max(0, state[0].alive - wanted))


@numba.njit(cache=True, nogil=True)
def _serve_queue(
    f: int,
    head: int,
    tail: int,
    now_s: float,
    times_s: Floats,
    durations_s: Floats,
    concurrency: int,
    running: Records,
    slots: Records,
    state: Records,
    account: Ints,
    waited: Ints,
    wait_s: Floats,
    waits: Ints,
) -> int:
    """Gives ready pods to the queued requests [head, tail) while there are any; returns the new head."""
    while head < tail:
        slot = take_warm(slots, state, concurrency)
        if slot < 0:
            break
        if times_s[head] >= state[0].score_from_s:
            account[f, INVOCATIONS] += 1
            account[f, COLD] += slots[slot].ready_s > times_s[head]
            if now_s > times_s[head]:
                waited[waits[0]] = head
                wait_s[waits[0]] = now_s - times_s[head]
                waits[0] += 1
        begin(running, slots, state, slot, now_s, now_s + durations_s[head], head)
        head += 1
    return head


@numba.njit(cache=True, nogil=True)
def _simulate_kpa(  # noqa: C901, PLR0912, PLR0915 (one kernel: its locals would have to travel through arrays)
    indptr: Ints,
    times_s: Floats,
    durations_s: Floats,
    start_indptr: Ints,
    start_times_s: Floats,
    first: int,
    settings: KpaSettings,
    concurrency: int,
    running: Records,
    starting: Records,
    expiring: Records,
    slots: Records,
    state: Records,
) -> tuple[Ints, Floats, Floats, Ints, Floats, int]:
    functions = indptr.size - 1
    score_from_s, end_s = state[0].score_from_s, state[0].end_s
    account = np.zeros((functions, 4), np.int64)
    alive_s = np.zeros(functions)
    busy_s = np.zeros(functions)
    waited = np.empty(times_s.size, np.int64)
    wait_s = np.empty(times_s.size)
    waits = np.zeros(1, np.int64)
    unserved = 0
    stable = int(settings.stable_window_s)
    panic = max(1, stable // 10)
    slots_per_pod = _SOFT_SLOTS if concurrency == _NO_LIMIT else np.float64(concurrency)
    buckets = np.zeros(stable, np.int64)
    sums = np.zeros(2, np.int64)

    for f in range(functions):
        clear(state)
        starts = start_times_s[start_indptr[f] : start_indptr[f + 1]]
        kpa = KpaState(-np.inf, 0)
        written = 60 * first - stable  # the newest bucket
        since = written  # the first bucket of an unbroken series
        second_s = np.inf  # when the next bucket is due: never, while there is neither pod nor request
        area, area_since_s = 0.0, 0.0  # requests x seconds since the last bucket
        told = 0.0  # of these, what was told ahead of it
        wanted, draining = 0, 0
        proxy_since_s, inactive_since_s = -np.inf, -np.inf
        head = indptr[f]  # the queue is [head, i)

        for i in range(indptr[f], indptr[f + 1] + 1):
            arrival = i < indptr[f + 1]
            arrival_s = times_s[i] if arrival else end_s
            arrived = False
            while not arrived:
                # At the same instant: pods get ready, requests complete, seconds end, requests arrive.
                kind, now_s = _READY, starting[0].key if state[0].starting else np.inf
                if state[0].running and running[0].key < now_s:
                    kind, now_s = _COMPLETION, running[0].key
                if second_s < now_s:
                    kind, now_s = _SECOND, second_s
                if now_s > arrival_s:
                    kind, now_s, arrived = _ARRIVAL, arrival_s, True
                    if not arrival:
                        break
                decide = False
                area += (i - head + state[0].in_flight) * (now_s - area_since_s)
                area_since_s = now_s

                if kind == _READY:
                    get_ready(starting, expiring, slots, state, now_s, np.inf)
                elif kind == _COMPLETION:
                    slot = finish(running, slots, state)
                    left = slots[slot].in_flight
                    if left + 1 < concurrency:
                        drop_room(slots, state, slot)
                    if left > 0:
                        push_room(slots, state, slot)
                    elif draining > 0:
                        draining -= 1
                        retire(slots, state, slot, now_s)
                    else:
                        go_idle(expiring, slots, state, slot, now_s, np.inf)
                elif kind == _SECOND:
                    written = int(now_s)
                    _record(buckets, sums, written, int(np.rint(_UNIT * max(0.0, area - told))), panic)
                    area, told = 0.0, 0.0
                    decide = written % _TICK == 0
                    asleep = state[0].alive == 0 and head == i
                    second_s = np.inf if asleep or now_s + 1.0 >= end_s else now_s + 1.0
                else:
                    if second_s == np.inf:
                        this = int(now_s)
                        if this - written >= stable:
                            buckets[:] = 0
                            sums[:] = 0
                            since = this
                        else:
                            for second in range(written + 1, this + 1):
                                _record(buckets, sums, second, 0, panic)
                        written = this
                        area = 0.0
                        second_s = this + 1.0 if this + 1.0 < end_s else np.inf
                    if wanted == 0:
                        told = 1.0
                        _record(buckets, sums, written, buckets[written % stable] + _UNIT, panic)
                        decide = True

                if decide:
                    span = written - since + 1
                    panic_concurrency = sums[1] / _UNIT / min(span, panic)
                    ready = state[0].alive - state[0].starting - draining
                    asked, kpa = kpa_step(
                        now_s, sums[0] / _UNIT / min(span, stable), panic_concurrency, ready, kpa, settings
                    )
                    excess = np.floor(ready * slots_per_pod - TARGET_BURST_CAPACITY - panic_concurrency)
                    if asked > 0 and excess >= 0:
                        proxy_since_s = np.inf
                    elif proxy_since_s == np.inf:
                        proxy_since_s = now_s
                    if asked > 0:
                        inactive_since_s = np.inf
                    elif inactive_since_s == np.inf:
                        inactive_since_s = now_s
                    graced = now_s - min(proxy_since_s, inactive_since_s) >= SCALE_TO_ZERO_GRACE_S
                    wanted = asked if asked > 0 or graced else min(wanted, 1)
                    created = state[0].created
                    draining = _scale(wanted, starting, expiring, slots, state, now_s, starts)
                    account[f, ORDERED] += state[0].created - created if now_s >= score_from_s else 0
                tail = i + 1 if arrived else i
                head = _serve_queue(
                    f,
                    head,
                    tail,
                    now_s,
                    times_s,
                    durations_s,
                    concurrency,
                    running,
                    slots,
                    state,
                    account,
                    waited,
                    wait_s,
                    waits,
                )

        for i in range(head, indptr[f + 1]):
            if times_s[i] >= score_from_s:
                account[f, INVOCATIONS] += 1
                unserved += 1
        settle(slots, state)
        alive_s[f] = state[0].alive_s
        busy_s[f] = state[0].busy_s
    return account, alive_s, busy_s, waited[: waits[0]].copy(), wait_s[: waits[0]].copy(), unserved
