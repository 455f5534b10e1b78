"""Markers get what the users and a margin leave of the limits."""

from __future__ import annotations

from mesp_plugin.openwhisk.budget import Budget
from mesp_plugin.openwhisk.rest import Limits

MINUTE = 60_000


def test_room_is_what_the_busiest_minute_and_the_markers_leave() -> None:
    """Of 60 a minute 45 are for all; users called 12 times three minutes ago: 33, and 31 after two markers."""
    budget = Budget(Limits(60, 100), 0.25)
    for _ in range(12):
        budget.call(2 * MINUTE)
    budget.call(5 * MINUTE)
    assert budget.room(5 * MINUTE, 0)[0] == 33
    budget.sent(5 * MINUTE, 2)
    assert budget.room(5 * MINUTE + 1, 0)[0] == 31
    assert budget.room(6 * MINUTE, 0)[0] == 33
    assert budget.room(8 * MINUTE, 0)[0] == 44


def test_calls_in_flight_bound_it_too() -> None:
    """Of 30 at once 22 are for all."""
    budget = Budget(Limits(60, 30), 0.25)
    assert budget.room(0, 20)[0] == 2
    room, why = budget.room(0, 25)
    assert room == 0
    assert "25 calls are in flight" in why


def test_after_a_refusal_nothing_goes_out_for_the_rest_of_the_minute() -> None:
    """The platform counts by the clock's minute, refused calls too."""
    budget = Budget(Limits(60, 30), 0.25)
    budget.throttled(MINUTE + 1)
    assert budget.room(2 * MINUTE - 1, 0)[0] == 0
    assert budget.room(2 * MINUTE, 0)[0] > 0
