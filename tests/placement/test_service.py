"""The placement service over a real loopback connection."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, cast

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp.v1 import placement_service_pb2 as pb
from mesp.v1.placement_service_pb2_grpc import PlacementServiceStub
from mesp_placement import service
from mesp_placement.config import PlacementConfig
from mesp_placement.model import FunctionProfile, Node, PlannerState, Snapshot
from mesp_placement.server import SERVICE_NAME, serve
from mesp_placement.wire import PlanInput, plan_request_to_pb, plan_response_from_pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.placement.conftest import MakeForecasts

    from mesp.v1.placement_service_pb2_grpc import PlacementServiceAsyncStub

FLEET = Snapshot((Node("n1", 4000),), (), (FunctionProfile(FunctionKey("s", "a"), 1024),))


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A running server with the default configuration."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve(PlacementConfig(), "127.0.0.1:0", ready=port.set_result, stop=stop))
    yield f"127.0.0.1:{await port}"
    stop.set()
    await task


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to the server."""
    async with grpc.aio.insecure_channel(address) as opened:
        yield opened


async def ask(channel: grpc.aio.Channel, request: pb.PlanRequest) -> pb.PlanResponse:
    """One call of Plan."""
    stub = cast("PlacementServiceAsyncStub", PlacementServiceStub(channel))
    return await stub.Plan(request)


async def test_a_plan_over_the_wire(channel: grpc.aio.Channel, forecasts_of: MakeForecasts) -> None:
    """A request is answered with the plan, its price, and the state for the next one."""
    request = PlanInput(1_000, FLEET, forecasts_of({"a": 0.6}), PlannerState())
    plan, state = plan_response_from_pb(await ask(channel, plan_request_to_pb(request)))
    assert [(item.function.name, item.node, item.count) for item in plan.prewarms] == [("a", "n1", 1)]
    assert plan.cold_start_price_gb_s == 80.5
    assert state.last_forecast_ms == 0
    assert state.prewarmed == ((1_000, FunctionKey("s", "a"), 1),)


async def test_the_request_sets_the_objective(channel: grpc.aio.Channel, forecasts_of: MakeForecasts) -> None:
    """A price or a budget in the request goes before the server's own."""
    forecasts = forecasts_of({"a": 0.6})
    cheap = PlanInput(0, FLEET, forecasts, PlannerState(), cold_start_price_gb_s=1.5)
    answer = await ask(channel, plan_request_to_pb(cheap))
    assert (answer.cold_start_price_gb_s, len(answer.prewarms)) == (1.5, 0)
    nothing = PlanInput(0, FLEET, forecasts, PlannerState(), memory_budget_mb=10.0)
    answer = await ask(channel, plan_request_to_pb(nothing))
    assert answer.cold_start_price_gb_s == pytest.approx(40, rel=0.002)
    assert len(answer.prewarms) == 0


async def test_a_bad_request_is_invalid_argument(channel: grpc.aio.Channel) -> None:
    """A value out of range is INVALID_ARGUMENT with the sentence that names it."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await ask(channel, pb.PlanRequest(now_ms=-1))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "now_ms = -1, must be in" in (error.value.details() or "")


async def test_an_unknown_function_is_an_item_error(channel: grpc.aio.Channel) -> None:
    """A senseless item does not fail the call."""
    message = plan_request_to_pb(PlanInput(0, FLEET, None, PlannerState()))
    message.snapshot.containers.add(
        id="c", node="n1", state=pb.CONTAINER_STATE_IDLE, function={"scope": "s", "name": "x"}
    )
    answer = await ask(channel, message)
    assert [item.reason for item in answer.errors] == [
        "container 'c' is of unknown function 's/x': list it in profiles"
    ]


async def test_a_bug_fails_one_call_only(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen exception is INTERNAL, and the next call is answered."""
    request = plan_request_to_pb(PlanInput(0, FLEET, None, PlannerState()))
    with monkeypatch.context() as patched:
        patched.setattr(service, "plan", lambda *_: 1 / 0)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ask(channel, request)
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert "ZeroDivisionError" in (error.value.details() or "")
    assert (await ask(channel, request)).cold_start_price_gb_s == 80.5


async def test_it_survives_any_request(channel: grpc.aio.Channel, forecasts_of: MakeForecasts) -> None:
    """300 damaged requests end in a plan or a status that blames the request, and health stays SERVING."""
    rng = random.Random(1)
    whole = plan_request_to_pb(PlanInput(0, FLEET, forecasts_of({"a": 0.6}), PlannerState())).SerializeToString()
    plan = channel.unary_unary(f"/{SERVICE_NAME}/Plan", bytes, pb.PlanResponse.FromString)
    blamed = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            await plan(bytes(damaged))
        except grpc.aio.AioRpcError as error:
            blamed.append((error.code(), error.details() or ""))
    # gRPC itself answers bytes that are no message, in its own words.
    assert [details for _, details in blamed if "by a bug" in details] == []
    assert grpc.StatusCode.INVALID_ARGUMENT in {code for code, _ in blamed}
    health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_taken_port_is_one_sentence(address: str) -> None:
    """A second server on the port is refused by a sentence with the address."""
    with pytest.raises(UnavailableError, match=f"cannot listen on {address}: address already in use"):
        await serve(PlacementConfig(), address, stop=asyncio.Event())
