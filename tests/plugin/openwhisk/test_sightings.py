"""Each call counts once, whatever the two lists show when."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesp.types import FunctionKey
from mesp_plugin.openwhisk.messages import ActivationRecord
from mesp_plugin.openwhisk.sightings import STORED_MS, Sightings

HELLO = FunctionKey("guest", "hello")
BEGIN_MS = 10_000_000


def record(number: int, arrived_ms: int, run_ms: int, wait_ms: int = 0) -> ActivationRecord:
    start_ms = arrived_ms + wait_ms
    return ActivationRecord(HELLO, f"{number:032x}", start_ms, start_ms + run_ms, run_ms, 0, wait_ms, 0)


@settings(max_examples=60)
@example([(777, 40_666, 814, 2_458)], [40_000])  # in flight at the first look
@example([(2, 3, 2_457, STORED_MS - 1)], [1, 12_459])  # never in flight at a look, stored as late as may be
@given(
    st.lists(
        st.tuples(st.integers(0, 200_000), st.integers(1, 300_000), st.integers(0, 20_000), st.integers(0, STORED_MS - 1)),
        max_size=12,
    ),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=40),
)  # fmt: skip
def test_no_gap_and_no_double_count(calls: list[tuple[int, int, int, int]], waits: list[int]) -> None:
    """Any calls, however long they run and however late they are stored, arrive once and end once in any looks."""
    records = [record(n, BEGIN_MS + at, run, wait) for n, (at, run, wait, _) in enumerate(calls)]
    stored_ms = [one.end_ms + late for one, (_, _, _, late) in zip(records, calls, strict=True)]
    sightings, arrived, ended, now_ms = Sightings(), [], [], BEGIN_MS
    for wait_ms in [*waits, *[20_000] * 40]:
        now_ms += wait_ms
        since_ms = sightings.since_ms(now_ms)
        in_flight = [(one.activation_id, HELLO) for one in records if one.start_ms - one.wait_ms <= now_ms < one.end_ms]
        listed = [
            one for one, at in zip(records, stored_ms, strict=True) if at <= now_ms and since_ms <= one.start_ms <= now_ms
        ]  # fmt: skip
        new, fresh = sightings.look(in_flight, listed, now_ms)
        arrived += [call.activation_id for call in new]
        ended += [one.activation_id for one in fresh]
    wanted = sorted(one.activation_id for one in records)
    assert sorted(arrived) == wanted
    assert sorted(ended) == wanted
    assert not sightings.busy()


def test_a_call_seen_in_flight_is_dated_half_way_since_the_last_look() -> None:
    """At the end of a minute it belongs to that minute, although its record comes later and says a little else."""
    sightings = Sightings()
    sightings.look([], [], BEGIN_MS)
    new, _ = sightings.look([("a" * 32, HELLO)], [], BEGIN_MS + 10_000)
    assert [call.at_ms for call in new] == [BEGIN_MS + 5_000]
    assert sightings.busy() == {HELLO: 1}


def test_a_record_is_dated_by_its_arrival() -> None:
    """`start` is when the container was there, which may be seconds after the call."""
    new, _ = Sightings().look([], [record(1, BEGIN_MS - 5_000, 10, wait_ms=4_000)], BEGIN_MS)
    assert [call.at_ms for call in new] == [BEGIN_MS - 5_000]


def test_one_that_leaves_no_record_is_given_up() -> None:
    """It counted as an arrival, and stops counting as busy."""
    sightings = Sightings()
    sightings.look([("a" * 32, HELLO)], [], BEGIN_MS)
    assert sightings.look([], [], BEGIN_MS + 2 * STORED_MS)[0] == []
    assert not sightings.busy()


def test_own_calls_are_busy_and_no_arrivals() -> None:
    """A marker that was admitted occupies a container until its record comes."""
    sightings = Sightings()
    sightings.look([], [], BEGIN_MS)
    sightings.sent("a" * 32, HELLO, BEGIN_MS)
    assert sightings.look([("a" * 32, HELLO)], [], BEGIN_MS + 10_000)[0] == []
    assert sightings.busy() == {HELLO: 1}
