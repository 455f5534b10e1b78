"""The placement codecs: round trips of anything valid, and a sentence for anything else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp.v1 import placement_service_pb2 as pb
from mesp_placement.model import (
    Container,
    ContainerState,
    FunctionProfile,
    Node,
    Plan,
    PlannerState,
    Prewarm,
    Release,
    Snapshot,
)
from mesp_placement.wire import (
    MAX_TIME_MS,
    PlanInput,
    plan_request_from_pb,
    plan_request_to_pb,
    plan_response_from_pb,
    plan_response_to_pb,
    state_from_bytes,
    state_to_bytes,
)

if TYPE_CHECKING:
    from tests.placement.conftest import MakeForecasts

texts = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
keys = st.builds(FunctionKey, texts, texts)
times = st.integers(0, MAX_TIME_MS)
memories = st.floats(0, 1e9)
counts = st.integers(1, 2**32 - 1)
states = st.builds(
    PlannerState,
    st.integers(-1, MAX_TIME_MS),
    st.lists(st.tuples(times, keys, counts), max_size=3).map(tuple),
    st.dictionaries(keys, times, max_size=3),
)
snapshots = st.builds(
    Snapshot,
    nodes=st.lists(st.builds(Node, texts, memories, memories, st.booleans()), max_size=3).map(tuple),
    containers=st.lists(
        st.builds(
            Container,
            texts,
            keys,
            texts,
            st.sampled_from(ContainerState),
            memories,
            st.none() | st.integers(1, MAX_TIME_MS),
            st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
    profiles=st.lists(
        st.builds(
            FunctionProfile,
            keys,
            memories,
            counts,
            st.floats(0, 1e9),
            st.floats(0, 1e9),
            st.none() | counts,
            st.lists(texts, max_size=3).map(tuple),
            st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
)
objectives = st.sampled_from([{}, {"cold_start_price_gb_s": 0.0}, {"memory_budget_mb": 0.0}, {"memory_budget_mb": 9.5}])
plans = st.builds(
    Plan,
    st.lists(st.builds(Prewarm, keys, texts, counts, st.text()), max_size=3).map(tuple),
    st.lists(st.builds(Release, keys, texts, texts, st.text()), max_size=3).map(tuple),
    st.lists(st.text(), max_size=3).map(tuple),
    st.floats(0, 1e6),
)


@given(times, snapshots, states, objectives)
def test_a_request_survives_the_wire(
    now_ms: int, snapshot: Snapshot, state: PlannerState, objective: dict[str, Any]
) -> None:
    """Encoding and decoding a request gives the same request, an objective of zero included."""
    request = PlanInput(now_ms, snapshot, None, state, **objective)
    message = pb.PlanRequest.FromString(plan_request_to_pb(request).SerializeToString())
    assert plan_request_from_pb(message) == request


@given(plans, states)
def test_an_answer_survives_the_wire(plan: Plan, state: PlannerState) -> None:
    """Encoding and decoding an answer gives the same plan and state."""
    message = pb.PlanResponse.FromString(plan_response_to_pb(plan, state).SerializeToString())
    assert plan_response_from_pb(message) == (plan, state)


def test_forecasts_travel_in_chunks(forecasts_of: MakeForecasts) -> None:
    """A request's forecasts arrive as they were sent."""
    sent = forecasts_of({"a": 0.25, "b": 1.0}, counts={"b": 3})
    message = plan_request_to_pb(PlanInput(5, Snapshot((), (), ()), sent, PlannerState()))
    received = plan_request_from_pb(message).forecasts
    assert received is not None
    assert received.functions == sent.functions
    assert received.active.tolist() == sent.active.tolist()
    assert received.quantiles.tolist() == sent.quantiles.tolist()


KEY = {"scope": "s", "name": "f"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"now_ms": -1}, "now_ms = -1, must be in"),
        ({"cold_start_price_gb_s": float("nan")}, "cold_start_price_gb_s = nan, must be in [0, 1e+06]"),
        ({"memory_budget_mb": -2}, "memory_budget_mb = -2, must be in [0, 1e+09]"),
        ({"snapshot": {"nodes": [{}]}}, "a node has no name"),
        ({"snapshot": {"nodes": [{"name": "n", "memory_mb": -1}]}}, "node 'n': memory_mb = -1, must be in [0, 1e+09]"),
        ({"snapshot": {"containers": [{"id": "c"}]}}, "container 'c': state = 0, must be one of 1 to 4"),
        ({"snapshot": {"containers": [{"id": "c", "state": 2}]}}, "container 'c': function scope ''"),
        ({"snapshot": {"profiles": [{"function": {"scope": "s"}}]}}, "a function profile: function name ''"),
        (
            {"snapshot": {"profiles": [{"function": KEY, "duration_ms": float("inf")}]}},
            "function 's/f': duration_ms = inf, must be in",
        ),
        ({"forecasts": [{"tick_id": 3}]}, "forecast: the stream ended after 1 chunks"),
        ({"state": b"?"}, "state of 1 bytes is not a planner's"),
    ],
)
def test_each_bad_value_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    """A value out of range is refused by item, value and range."""
    with pytest.raises(InputError) as error:
        plan_request_from_pb(pb.PlanRequest(**changes))
    assert sentence in str(error.value)


def test_no_state_is_the_first() -> None:
    """No bytes are the state of a first request."""
    assert state_from_bytes(b"") == PlannerState()


def test_a_state_of_another_version_names_both() -> None:
    """A state that another version wrote is refused, naming its version and ours."""
    with pytest.raises(InputError, match=r"state has version 7, this planner's is 1"):
        state_from_bytes(b'{"version": 7}')


@pytest.mark.parametrize(
    "change", [{"last_forecast_ms": "x"}, {"prewarmed": [[1]]}, {"prewarmed": 3}, {"surplus_since_ms": [["s", "", 1]]}]
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    """A state of our version with wrong content is told as damaged."""
    with pytest.raises(InputError, match="is damaged"):
        state_from_bytes(json.dumps({**json.loads(state_to_bytes(PlannerState())), **change}).encode())


@given(st.binary(max_size=100) | st.text(max_size=50).map(str.encode))
def test_no_state_raises_anything_else(content: bytes) -> None:
    """Whatever the bytes, a state is read or refused."""
    with suppress(InputError):
        state_from_bytes(content)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200), snapshots, st.integers(0, 400))
def test_no_request_raises_anything_else(noise: bytes, snapshot: Snapshot, at: int) -> None:
    """Random bytes, and requests with random bytes in their middle, are decoded or refused."""
    whole = plan_request_to_pb(PlanInput(1, snapshot, None, PlannerState())).SerializeToString()
    for content in (noise, whole[:at] + noise[:3] + whole[at + 3 :]):
        # What is no message, gRPC refuses before we see it.
        with suppress(DecodeError, InputError):
            plan_request_from_pb(pb.PlanRequest.FromString(content))
