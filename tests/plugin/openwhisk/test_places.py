"""Places in a namespace's limit: strictly below it, whatever comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesp.types import FunctionKey
from mesp_plugin.openwhisk.places import room, to_let_go

FUNCTIONS = [FunctionKey("guest", name) for name in "abc"]
SMALL = st.integers(0, 40)


def test_the_recorded_case() -> None:
    """Limit 2, one container there (recording 07b): to hold another one would leave none for the surplus, so none is."""
    assert room(limit=2, margin_share=0.0, taken=1, holding=FUNCTIONS[:1]) == 0
    assert room(limit=4, margin_share=0.0, taken=1, holding=FUNCTIONS[:1]) == 1


def test_the_margin_is_a_share_of_the_limit() -> None:
    """A quarter of 30 stays free: 22 places, of which one is for the surplus."""
    assert room(limit=30, margin_share=0.25, taken=0, holding=FUNCTIONS[:1]) == 21


@given(limit=st.integers(1, 40), margin=st.floats(0, 0.9), taken=SMALL, holding=st.lists(st.sampled_from(FUNCTIONS)))
def test_what_may_be_ordered_stays_below(limit: int, margin: float, taken: int, holding: list[FunctionKey]) -> None:
    """With all that is there and a surplus for each function; and none of it would have to go again."""
    count = room(limit=limit, margin_share=margin, taken=taken, holding=holding)
    assert count >= 0
    if count:
        assert taken + count + len(set(holding)) < limit
        assert to_let_go(limit=limit, taken=taken + count, held=holding) == 0


@given(limit=st.integers(1, 40), taken=SMALL, held=st.lists(st.sampled_from(FUNCTIONS), max_size=10))
def test_no_more_goes_than_must(limit: int, taken: int, held: list[FunctionKey]) -> None:
    """After it all is below the limit, or nothing is held; with one less it would not be."""
    taken = max(taken, len(held))
    gone = to_let_go(limit=limit, taken=taken, held=held)
    left = held[gone:]
    assert not left or taken - gone + len(set(left)) < limit
    if gone:
        kept = held[gone - 1 :]
        assert taken - gone + 1 + len(set(kept)) >= limit
