"""The containers of one function, as a few flat arrays that compiled code can work on.

A container lives in a slot (a record of `slots`), which is used again after it is gone. Four structures order them:

- `running`: a min-heap of requests that execute, by completion;
- `starting`: a min-heap of containers still being created that have room for a request, by the time they are ready;
- `expiring`: a min-heap of idle containers by deadline. Its keys are lower bounds: a container that was used again
  keeps its old entry until that surfaces, so a hot container costs no heap work at all;
- two lists, from the newest to the oldest, linked through `older` and `newer`: idle containers, and busy ones with room
  for another request (only where a container takes several at once).

`state` is a single record: how many containers there are, the ends of the lists, the window and what it was charged.
The structures are passed one by one: a tuple of them costs several times the work itself.

A compiled kernel elsewhere keeps the copy of these functions that it was cached with: whoever changes this file clears
`__pycache__`, or sees the old behaviour.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

#: A place in a heap, ordered by (key, tie).
_ENTRY = np.dtype([("key", "f8"), ("tie", "f8"), ("slot", "i8")])

#: A container. `place`: where it stands in `expiring`, -1 where it does not; `ordered_s` is inf for a free slot.
_SLOT = np.dtype(
    [
        ("ordered_s", "f8"),
        ("ready_s", "f8"),
        ("busy_since_s", "f8"),
        ("idle_since_s", "f8"),
        ("deadline_s", "f8"),
        ("in_flight", "i4"),
        ("place", "i4"),
        ("older", "i4"),
        ("newer", "i4"),
        ("prewarmed", "i4"),
    ],
    align=True,
)

#: `used`: slots ever used; `free`: the first free one of them, linked through `older`.
_STATE = np.dtype(
    [
        ("alive", "i8"),
        ("created", "i8"),
        ("used", "i8"),
        ("free", "i8"),
        ("in_flight", "i8"),
        ("running", "i8"),
        ("starting", "i8"),
        ("expiring", "i8"),
        ("idle_newest", "i8"),
        ("idle_oldest", "i8"),
        ("room_newest", "i8"),
        ("score_from_s", "f8"),
        ("end_s", "f8"),
        ("alive_s", "f8"),
        ("busy_s", "f8"),
    ]
)


def new_arrays(capacity: int, score_from_s: float, end_s: float) -> tuple[Records, Records, Records, Records, Records]:
    """running, starting, expiring, slots, state: for `capacity` containers or requests at a time.

    Memory is only touched where it gets used.
    """
    state = np.zeros(1, _STATE)
    state["score_from_s"] = score_from_s
    state["end_s"] = end_s
    running, starting, expiring = (np.empty(capacity, _ENTRY) for _ in range(3))
    return running, starting, expiring, np.empty(capacity, _SLOT), state


@numba.njit(cache=True, nogil=True)
def clear(state: Records) -> None:
    """Empties everything for the next function."""
    s = state[0]
    s.alive = s.created = s.used = s.in_flight = s.running = s.starting = s.expiring = 0
    s.free = s.idle_newest = s.idle_oldest = s.room_newest = -1
    s.alive_s = s.busy_s = 0.0


@numba.njit(cache=True, nogil=True)
def _before(heap: Records, i: int, key: float, tie: float) -> bool:
    return bool(heap[i].key < key or (heap[i].key == key and heap[i].tie < tie))


@numba.njit(cache=True, nogil=True)
def _put(heap: Records, i: int, key: float, tie: float, slot: int, slots: Records, track: bool) -> None:
    heap[i].key = key
    heap[i].tie = tie
    heap[i].slot = slot
    if track:
        slots[slot].place = i


@numba.njit(cache=True, nogil=True)
def sift_up(heap: Records, i: int, key: float, tie: float, slot: int, slots: Records, track: bool) -> None:
    """Puts an entry at i or above. With `track` its slots learn their places, here and below."""
    while i > 0:
        parent = (i - 1) >> 1
        if not (key < heap[parent].key or (key == heap[parent].key and tie < heap[parent].tie)):
            break
        _put(heap, i, heap[parent].key, heap[parent].tie, heap[parent].slot, slots, track)
        i = parent
    _put(heap, i, key, tie, slot, slots, track)


@numba.njit(cache=True, nogil=True)
def sift_down(heap: Records, size: int, i: int, key: float, tie: float, slot: int, slots: Records, track: bool) -> None:
    """Puts an entry at i or below, in a heap of `size`."""
    child = 2 * i + 1
    while child < size:
        if child + 1 < size and _before(heap, child + 1, heap[child].key, heap[child].tie):
            child += 1
        if not _before(heap, child, key, tie):
            break
        _put(heap, i, heap[child].key, heap[child].tie, heap[child].slot, slots, track)
        i = child
        child = 2 * i + 1
    _put(heap, i, key, tie, slot, slots, track)


@numba.njit(cache=True, nogil=True)
def drop_first(heap: Records, size: int, slots: Records, track: bool) -> None:
    """Takes the first entry out of a heap, which is `size` long afterwards."""
    if size > 0:
        sift_down(heap, size, 0, heap[size].key, heap[size].tie, heap[size].slot, slots, track)


@numba.njit(cache=True, nogil=True)
def expect(expiring: Records, slots: Records, state: Records, slot: int) -> None:
    """Enters an idle container that has no entry among the deadlines, unless it never expires."""
    deadline_s = slots[slot].deadline_s
    if deadline_s < np.inf:
        state[0].expiring += 1
        sift_up(expiring, state[0].expiring - 1, deadline_s, slots[slot].idle_since_s, slot, slots, True)


@numba.njit(cache=True, nogil=True)
def forget(expiring: Records, slots: Records, state: Records, slot: int) -> None:
    """Takes a container's entry from the deadlines, if it has one."""
    i = slots[slot].place
    if i < 0:
        return
    slots[slot].place = -1
    state[0].expiring -= 1
    last = state[0].expiring
    if i < last:
        key, tie, moved = expiring[last].key, expiring[last].tie, expiring[last].slot
        sift_up(expiring, i, key, tie, moved, slots, True)
        if slots[moved].place == i:
            sift_down(expiring, last, i, key, tie, moved, slots, True)


@numba.njit(cache=True, nogil=True)
def order(slots: Records, state: Records, now_s: float, prewarmed: bool) -> int:
    """A new container, charged from now; the caller says when it is ready, and puts it where it belongs."""
    s = state[0]
    slot = s.free
    if slot >= 0:
        s.free = slots[slot].older
    else:
        slot = s.used
        s.used += 1
    s.alive += 1
    s.created += 1
    slots[slot].ordered_s = now_s
    slots[slot].in_flight = 0
    slots[slot].place = -1
    slots[slot].prewarmed = prewarmed
    return int(slot)


@numba.njit(cache=True, nogil=True)
def clipped(state: Records, from_s: float, to_s: float) -> float:
    """The part of an interval inside the scored window."""
    within_s = min(to_s, state[0].end_s) - max(from_s, state[0].score_from_s)
    return float(max(0.0, within_s))


@numba.njit(cache=True, nogil=True)
def push_idle(slots: Records, state: Records, slot: int) -> None:
    """Makes a container the newest idle one."""
    newest = state[0].idle_newest
    slots[slot].older = newest
    slots[slot].newer = -1
    state[0].idle_newest = slot
    if newest >= 0:
        slots[newest].newer = slot
    else:
        state[0].idle_oldest = slot


@numba.njit(cache=True, nogil=True)
def drop_idle(slots: Records, state: Records, slot: int) -> None:
    """Takes a container out of the idle ones."""
    older, newer = slots[slot].older, slots[slot].newer
    if newer >= 0:
        slots[newer].older = older
    else:
        state[0].idle_newest = older
    if older >= 0:
        slots[older].newer = newer
    else:
        state[0].idle_oldest = newer


@numba.njit(cache=True, nogil=True)
def push_room(slots: Records, state: Records, slot: int) -> None:
    """Makes a busy container the newest with room."""
    newest = state[0].room_newest
    slots[slot].older = newest
    slots[slot].newer = -1
    state[0].room_newest = slot
    if newest >= 0:
        slots[newest].newer = slot


@numba.njit(cache=True, nogil=True)
def drop_room(slots: Records, state: Records, slot: int) -> None:
    """Takes a container out of the busy ones with room."""
    older, newer = slots[slot].older, slots[slot].newer
    if newer >= 0:
        slots[newer].older = older
    else:
        state[0].room_newest = older
    if older >= 0:
        slots[older].newer = newer


@numba.njit(cache=True, nogil=True)
def retire(slots: Records, state: Records, slot: int, now_s: float) -> None:
    """The container is gone, its memory charged, its slot free; the caller has taken it out of lists and heaps."""
    state[0].alive_s += clipped(state, slots[slot].ordered_s, now_s)
    slots[slot].ordered_s = np.inf
    slots[slot].in_flight = 0
    slots[slot].older = state[0].free
    state[0].free = slot
    state[0].alive -= 1


@numba.njit(cache=True, nogil=True)
def remove_idle(expiring: Records, slots: Records, state: Records, slot: int, now_s: float) -> None:
    """Removes an idle container."""
    drop_idle(slots, state, slot)
    forget(expiring, slots, state, slot)
    retire(slots, state, slot, now_s)


@numba.njit(cache=True, nogil=True)
def go_idle(expiring: Records, slots: Records, state: Records, slot: int, now_s: float, stay_s: float) -> None:
    """The container is the newest idle one, and expires after `stay_s`."""
    push_idle(slots, state, slot)
    slots[slot].idle_since_s = now_s
    slots[slot].deadline_s = now_s + stay_s
    place = slots[slot].place
    if place >= 0 and slots[slot].deadline_s < expiring[place].key:
        forget(expiring, slots, state, slot)
        place = -1
    if place < 0:
        expect(expiring, slots, state, slot)


@numba.njit(cache=True, nogil=True)
def surface(expiring: Records, slots: Records, state: Records, now_s: float) -> None:
    """Handles the first entry among the deadlines: the container expires, or its entry is brought up to date."""
    slot = expiring[0].slot
    idle = slots[slot].in_flight == 0
    if idle and expiring[0].key == slots[slot].deadline_s and expiring[0].tie == slots[slot].idle_since_s:
        remove_idle(expiring, slots, state, slot, now_s)
    else:
        forget(expiring, slots, state, slot)
        if idle:
            expect(expiring, slots, state, slot)


@numba.njit(cache=True, nogil=True)
def begin(
    running: Records, slots: Records, state: Records, slot: int, from_s: float, to_s: float, invocation: int
) -> None:
    """One more request executes in the container, [from_s, to_s)."""
    if slots[slot].in_flight == 0:
        slots[slot].busy_since_s = from_s
    slots[slot].in_flight += 1
    state[0].in_flight += 1
    state[0].running += 1
    sift_up(running, state[0].running - 1, to_s, np.float64(invocation), slot, slots, False)


@numba.njit(cache=True, nogil=True)
def finish(running: Records, slots: Records, state: Records) -> int:
    """The earliest completion, now: returns its container, whose busy time is charged with its last request."""
    slot = running[0].slot
    now_s = running[0].key
    state[0].running -= 1
    drop_first(running, state[0].running, slots, False)
    slots[slot].in_flight -= 1
    state[0].in_flight -= 1
    if slots[slot].in_flight == 0:
        state[0].busy_s += clipped(state, slots[slot].busy_since_s, now_s)
    return int(slot)


@numba.njit(cache=True, nogil=True)
def await_ready(starting: Records, slots: Records, state: Records, slot: int, ready_s: float) -> None:
    """The container is being created and has room."""
    slots[slot].ready_s = ready_s
    state[0].starting += 1
    sift_up(starting, state[0].starting - 1, ready_s, np.float64(state[0].created), slot, slots, False)


@numba.njit(cache=True, nogil=True)
def take_starting(starting: Records, slots: Records, state: Records) -> int:
    """Takes the earliest ready container out of those being created with room."""
    slot = starting[0].slot
    state[0].starting -= 1
    drop_first(starting, state[0].starting, slots, False)
    return int(slot)


@numba.njit(cache=True, nogil=True)
def complete(
    running: Records, expiring: Records, slots: Records, state: Records, now_s: float, stay_s: float, concurrency: int
) -> None:
    """The earliest completion: its container goes idle, or has room again."""
    slot = finish(running, slots, state)
    left = slots[slot].in_flight
    if left + 1 < concurrency:
        drop_room(slots, state, slot)
    if left == 0:
        go_idle(expiring, slots, state, slot, now_s, stay_s)
    else:
        push_room(slots, state, slot)


@numba.njit(cache=True, nogil=True)
def get_ready(
    starting: Records, expiring: Records, slots: Records, state: Records, now_s: float, stay_s: float
) -> None:
    """The earliest container with room that was being created: it is idle now, or busy with room."""
    slot = take_starting(starting, slots, state)
    if slots[slot].in_flight == 0:
        go_idle(expiring, slots, state, slot, now_s, stay_s)
    else:
        push_room(slots, state, slot)


@numba.njit(cache=True, nogil=True)
def take_warm(slots: Records, state: Records, concurrency: int) -> int:
    """The ready container that serves the next request, in the list where it belongs then; -1 when there is none."""
    slot = state[0].room_newest
    if slot >= 0:
        if slots[slot].in_flight + 1 == concurrency:
            drop_room(slots, state, slot)
        return int(slot)
    slot = state[0].idle_newest
    if slot >= 0:
        drop_idle(slots, state, slot)
        if concurrency > 1:
            push_room(slots, state, slot)
    return int(slot)


@numba.njit(cache=True, nogil=True)
def next_start_s(state: Records, starts: Floats) -> float:
    """The start time of the next container: they take the function's in turn."""
    return float(starts[state[0].created % starts.size])


@numba.njit(cache=True, nogil=True)
def prewarm(starting: Records, slots: Records, state: Records, now_s: float, starts: Floats) -> None:
    """Orders a container that nothing waits for yet."""
    ready_s = now_s + next_start_s(state, starts)
    slot = order(slots, state, now_s, True)
    await_ready(starting, slots, state, slot, ready_s)


@numba.njit(cache=True, nogil=True)
def settle(slots: Records, state: Records) -> None:
    """Charges what is still alive or busy at the end of the window."""
    end_s = state[0].end_s
    for slot in range(state[0].used):
        state[0].alive_s += clipped(state, slots[slot].ordered_s, end_s)
        if slots[slot].in_flight > 0:
            state[0].busy_s += clipped(state, slots[slot].busy_since_s, end_s)
