"""The placement messages and the domain types, both ways, and the planner's state as bytes.

What comes in is not trusted: every `*_from_pb` returns values in range or raises `InputError` with one sentence that
names the item, the value and what is allowed. Items that are in range and still make no sense together (a container
of an unknown function) are the planner's to report. Zeros that mean "none" on the wire are None here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mesp.errors import InputError
from mesp.forecast_wire import forecasts_from_chunks, forecasts_to_chunks
from mesp.types import FunctionKey
from mesp.v1 import placement_service_pb2 as pb
from mesp.v1 import types_pb2 as types_pb
from mesp.wire import check_key
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

if TYPE_CHECKING:
    from mesp.types import Forecasts

STATE_VERSION: Final = 1
#: Bounds that only nonsense exceeds: the end of year 9999, a petabyte, a month.
MAX_TIME_MS: Final = 253_402_300_799_999
MAX_MEMORY_MB: Final = 1e9
MAX_DURATION_MS: Final = 31 * 86_400_000.0
MAX_PRICE_GB_S: Final = 1e6


@dataclass(frozen=True, slots=True)
class PlanInput:
    """A decoded `PlanRequest`; price and budget are None where the request leaves the objective to the server."""

    now_ms: int
    snapshot: Snapshot
    forecasts: Forecasts | None
    state: PlannerState
    cold_start_price_gb_s: float | None = None
    memory_budget_mb: float | None = None


# --- Requests ------------------------------------------------------------------------------------------------


def plan_request_to_pb(request: PlanInput) -> pb.PlanRequest:
    """Encodes a request; at most one of price and budget may be set."""
    message = pb.PlanRequest(
        now_ms=request.now_ms,
        snapshot=pb.Snapshot(
            nodes=[
                pb.Node(
                    name=node.name,
                    memory_mb=node.memory_mb,
                    other_memory_mb=node.other_memory_mb,
                    schedulable=node.schedulable,
                )
                for node in request.snapshot.nodes
            ],
            containers=[_container_to_pb(container) for container in request.snapshot.containers],
            profiles=[_profile_to_pb(profile) for profile in request.snapshot.profiles],
        ),
        forecasts=() if request.forecasts is None else forecasts_to_chunks(request.forecasts),
        state=state_to_bytes(request.state),
    )
    if request.cold_start_price_gb_s is not None:
        message.cold_start_price_gb_s = request.cold_start_price_gb_s
    if request.memory_budget_mb is not None:
        message.memory_budget_mb = request.memory_budget_mb
    return message


def plan_request_from_pb(message: pb.PlanRequest) -> PlanInput:
    """Decodes and checks a request."""
    objective = message.WhichOneof("objective")
    price, budget = message.cold_start_price_gb_s, message.memory_budget_mb
    _check("cold_start_price_gb_s", price, 0.0, MAX_PRICE_GB_S)
    _check("memory_budget_mb", budget, 0.0, MAX_MEMORY_MB)
    _check("now_ms", message.now_ms, 0, MAX_TIME_MS)
    return PlanInput(
        now_ms=message.now_ms,
        snapshot=Snapshot(
            nodes=tuple(_node_from_pb(node) for node in message.snapshot.nodes),
            containers=tuple(_container_from_pb(container) for container in message.snapshot.containers),
            profiles=tuple(_profile_from_pb(profile) for profile in message.snapshot.profiles),
        ),
        forecasts=forecasts_from_chunks(message.forecasts) if message.forecasts else None,
        state=state_from_bytes(message.state),
        cold_start_price_gb_s=price if objective == "cold_start_price_gb_s" else None,
        memory_budget_mb=budget if objective == "memory_budget_mb" else None,
    )


def _node_from_pb(message: pb.Node) -> Node:
    if not message.name:
        raise InputError("a node has no name")
    what = f"node '{message.name}'"
    _check(f"{what}: memory_mb", message.memory_mb, 0.0, MAX_MEMORY_MB)
    _check(f"{what}: other_memory_mb", message.other_memory_mb, 0.0, MAX_MEMORY_MB)
    return Node(message.name, message.memory_mb, message.other_memory_mb, message.schedulable)


def _container_to_pb(container: Container) -> pb.Container:
    return pb.Container(
        id=container.id,
        function=_key_to_pb(container.function),
        node=container.node,
        state=pb.ContainerState.ValueType(container.state),
        memory_mb=container.memory_mb,
        idle_since_ms=container.idle_since_ms or 0,
        owned=container.owned,
    )


def _container_from_pb(message: pb.Container) -> Container:
    if not message.id:
        raise InputError("a container has no id")
    what = f"container '{message.id}'"
    try:
        state = ContainerState(message.state)
    except ValueError:
        raise InputError(f"{what}: state = {message.state}, must be one of 1 to {max(ContainerState)}") from None
    _check(f"{what}: memory_mb", message.memory_mb, 0.0, MAX_MEMORY_MB)
    _check(f"{what}: idle_since_ms", message.idle_since_ms, 0, MAX_TIME_MS)
    return Container(
        message.id,
        _key_from_pb(what, message.function),
        message.node,
        state,
        message.memory_mb,
        message.idle_since_ms or None,
        message.owned,
    )


def _profile_to_pb(profile: FunctionProfile) -> pb.FunctionProfile:
    return pb.FunctionProfile(
        function=_key_to_pb(profile.function),
        memory_mb=profile.memory_mb,
        concurrency=profile.concurrency,
        duration_ms=profile.duration_ms,
        lead_ms=profile.lead_ms,
        max_containers=profile.max_containers or 0,
        preferred_nodes=profile.preferred_nodes,
        enabled=profile.enabled,
    )


def _profile_from_pb(message: pb.FunctionProfile) -> FunctionProfile:
    key = _key_from_pb("a function profile", message.function)
    what = f"function '{key}'"
    _check(f"{what}: memory_mb", message.memory_mb, 0.0, MAX_MEMORY_MB)
    _check(f"{what}: duration_ms", message.duration_ms, 0.0, MAX_DURATION_MS)
    _check(f"{what}: lead_ms", message.lead_ms, 0.0, MAX_DURATION_MS)
    return FunctionProfile(
        key,
        message.memory_mb,
        message.concurrency or 1,
        message.duration_ms,
        message.lead_ms,
        message.max_containers or None,
        tuple(message.preferred_nodes),
        message.enabled,
    )


# --- Answers -------------------------------------------------------------------------------------------------


def plan_response_to_pb(plan: Plan, state: PlannerState) -> pb.PlanResponse:
    """Encodes a plan and the state to send back with the next request."""
    return pb.PlanResponse(
        prewarms=[
            pb.Prewarm(function=_key_to_pb(item.function), node=item.node, count=item.count, reason=item.reason)
            for item in plan.prewarms
        ],
        releases=[
            pb.Release(
                function=_key_to_pb(item.function),
                container_id=item.container_id,
                node=item.node,
                reason=item.reason,
            )
            for item in plan.releases
        ],
        state=state_to_bytes(state),
        errors=[pb.ItemError(reason=reason) for reason in plan.errors],
        cold_start_price_gb_s=plan.cold_start_price_gb_s,
    )


def plan_response_from_pb(message: pb.PlanResponse) -> tuple[Plan, PlannerState]:
    """Decodes a plan and the state to send back with the next request."""
    plan = Plan(
        prewarms=tuple(
            Prewarm(_key_from_pb("a prewarm", item.function), item.node, item.count, item.reason)
            for item in message.prewarms
        ),
        releases=tuple(
            Release(_key_from_pb("a release", item.function), item.container_id, item.node, item.reason)
            for item in message.releases
        ),
        errors=tuple(item.reason for item in message.errors),
        cold_start_price_gb_s=message.cold_start_price_gb_s,
    )
    return plan, state_from_bytes(message.state)


# --- State ---------------------------------------------------------------------------------------------------


def state_to_bytes(state: PlannerState) -> bytes:
    """The state as JSON with its version; opaque to everyone else."""
    content = {
        "version": STATE_VERSION,
        "last_forecast_ms": state.last_forecast_ms,
        "prewarmed": [[ms, *key, count] for ms, key, count in state.prewarmed],
        "surplus_since_ms": [[*key, ms] for key, ms in state.surplus_since_ms.items()],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def state_from_bytes(content: bytes) -> PlannerState:
    """The state from its bytes, the initial one from none.

    Raises:
        InputError: another version wrote it, or nobody did.
    """
    if not content:
        return PlannerState()
    try:
        raw: Any = json.loads(content)
        version = raw["version"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise InputError(
            f"state of {len(content)} bytes is not a planner's: send back the last answer's, or none to start afresh"
        ) from None
    if version != STATE_VERSION:
        raise InputError(
            f"state has version {version!r:.20}, this planner's is {STATE_VERSION}: send none to start afresh"
        )
    try:
        return PlannerState(
            last_forecast_ms=_whole(raw["last_forecast_ms"]),
            prewarmed=tuple(
                (_whole(ms), check_key(FunctionKey(scope, name)), _whole(count))
                for ms, scope, name, count in raw["prewarmed"]
            ),
            surplus_since_ms={
                check_key(FunctionKey(scope, name)): _whole(ms) for scope, name, ms in raw["surplus_since_ms"]
            },
        )
    except (ValueError, TypeError, KeyError, AttributeError, InputError):
        raise InputError(
            f"state of version {STATE_VERSION} is damaged: send back the last answer's, or none to start afresh"
        ) from None


def _whole(value: object) -> int:
    if not isinstance(value, int) or not -1 <= value <= MAX_TIME_MS:
        raise ValueError(value)
    return value


# --- Shared --------------------------------------------------------------------------------------------------


def _key_to_pb(key: FunctionKey) -> types_pb.FunctionKey:
    return types_pb.FunctionKey(scope=key.scope, name=key.name)


def _key_from_pb(what: str, message: types_pb.FunctionKey) -> FunctionKey:
    try:
        return check_key(FunctionKey(message.scope, message.name))
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def _check(what: str, value: float, low: float, high: float) -> None:
    # NaN fails the comparison.
    if not (math.isfinite(value) and low <= value <= high):
        raise InputError(f"{what} = {value:g}, must be in [{low:g}, {high:g}]")
