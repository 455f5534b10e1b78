"""The predictor's client against a scripted predictor on loopback: what it repeats, keeps, and gives up."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp import wire
from mesp.client import Backlog, ClientConfig, PredictorClient, RetryBudget
from mesp.errors import InputError, MespError, UnavailableError
from mesp.forecast_wire import forecasts_to_chunks
from mesp.server import serve
from mesp.types import Forecasts, ForecastStatus, FunctionKey, ModelDescription, StepCounts
from mesp.v1 import predictor_service_pb2 as predictor_pb
from mesp.v1 import predictor_service_pb2_grpc as predictor_grpc
from mesp.v1 import types_pb2 as types_pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

A, B = FunctionKey("guest", "a"), FunctionKey("guest", "b")
MINUTE_MS = 60_000
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def forecast(tick: int = 1, functions: tuple[FunctionKey, ...] = (A, B)) -> Forecasts:
    rows = len(functions)
    return Forecasts(
        tick_id=tick,
        as_of_ms=tick * MINUTE_MS,
        step_ms=MINUTE_MS,
        levels=(0.5,),
        functions=functions,
        status=(ForecastStatus.OK,) * rows,
        quantiles=np.ones((rows, 2, 1), np.float32),
        active=np.ones((rows, 2), np.float32),
        experts=(),
        weights=np.ones((rows, 0), np.float32),
        age_ms=np.zeros(rows, np.int64),
        model_version="m1",
    )


def step(minute: int, count: int = 1) -> StepCounts:
    return StepCounts("controller-0", minute * MINUTE_MS, MINUTE_MS, {A: count})


class ScriptedPredictor(predictor_grpc.PredictorServiceServicer):
    """Fails with the codes in `failures` first, one a call, then answers; notes every report it takes."""

    def __init__(self) -> None:
        self.failures: deque[grpc.StatusCode] = deque()
        self.calls = 0
        self.taken: list[StepCounts] = []
        self.watches: deque[list[Forecasts | types_pb.ForecastChunk | grpc.StatusCode]] = deque()

    async def _answer_or_fail(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.calls += 1
        if self.failures:
            await context.abort(self.failures.popleft(), "as the script says")

    async def Observe(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 (gRPC's names)
        await self._answer_or_fail(context)
        steps, rejections = wire.observe_from_pb(request)
        self.taken.extend(steps)
        return predictor_pb.ObserveResponse(rejections=map(wire.rejection_to_pb, rejections))

    async def Forecast(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 (gRPC's names)
        await self._answer_or_fail(context)
        asked = tuple(map(wire.key_from_pb, request.functions)) or (A, B)
        for chunk in forecasts_to_chunks(forecast(functions=asked), max_functions=1):
            yield predictor_pb.ForecastResponse(chunk=chunk)

    async def WatchForecasts(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 (gRPC's names)
        for item in self.watches.popleft():
            if isinstance(item, types_pb.ForecastChunk):
                yield predictor_pb.WatchForecastsResponse(chunk=item)
            elif not isinstance(item, Forecasts):
                # Half a tick, then the connection breaks.
                yield predictor_pb.WatchForecastsResponse(chunk=next(forecasts_to_chunks(forecast(99), 1)))
                await context.abort(item, "as the script says")
            else:
                for chunk in forecasts_to_chunks(item, max_functions=1):
                    yield predictor_pb.WatchForecastsResponse(chunk=chunk)

    async def DescribeModel(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 (gRPC's names)
        await self._answer_or_fail(context)
        return wire.description_to_pb(ModelDescription("m1", MINUTE_MS, 512, 15, 60, (0.5,), (), 2, 10, 1, 0))

    async def ListFunctions(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 (gRPC's names)
        await self._answer_or_fail(context)
        key, token = (B, "") if request.page_token else (A, "more")
        return predictor_pb.ListFunctionsResponse(functions=[wire.key_to_pb(key)], next_page_token=token)

    async def DeleteFunctions(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 (gRPC's names)
        await self._answer_or_fail(context)
        return predictor_pb.DeleteFunctionsResponse(deleted=len(request.functions))


@asynccontextmanager
async def serving(predictor: ScriptedPredictor, port: int = 0) -> AsyncIterator[int]:
    stop = asyncio.Event()
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    service = (
        "mesp.v1.PredictorService",
        lambda server: predictor_grpc.add_PredictorServiceServicer_to_server(predictor, server),
    )
    task = asyncio.create_task(serve([service], f"127.0.0.1:{port}", ready=bound.set_result, stop=stop))
    try:
        yield await bound
    finally:
        stop.set()
        await task


class Sleeps(list[float]):
    """A sleep that notes the seconds and returns at once."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@asynccontextmanager
async def connected(
    predictor: ScriptedPredictor, config: ClientConfig | None = None
) -> AsyncIterator[tuple[PredictorClient, Sleeps]]:
    sleeps = Sleeps()
    async with (
        serving(predictor) as port,
        PredictorClient(f"127.0.0.1:{port}", rng=Random(0), config=config, sleep=sleeps) as client,
    ):
        yield client, sleeps


async def test_calls_reach_the_predictor_and_come_back() -> None:
    """Each method carries its request over and its answer back."""
    predictor = ScriptedPredictor()
    async with connected(predictor) as (client, _):
        assert await client.observe([step(1), step(2)]) == []
        assert predictor.taken == [step(1), step(2)]
        assert (await client.forecast()).functions == (A, B)
        assert (await client.forecast([B, B])).functions == (B,)
        assert (await client.describe()).context_length == 512
        assert await client.list_functions() == [A, B]
        assert await client.delete_functions([A, B]) == 2
        with pytest.raises(InputError, match="none named"):
            await client.forecast([])


async def test_a_call_is_repeated_when_the_predictor_did_not_answer() -> None:
    """Two failures of the retryable kind cost two backoffs inside their bounds, and the caller sees only the answer."""
    predictor = ScriptedPredictor()
    predictor.failures.extend([UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
    async with connected(predictor) as (client, sleeps):
        assert (await client.forecast()).tick_id == 1
    assert predictor.calls == 3
    assert len(sleeps) == 2
    assert 0 <= sleeps[0] <= 0.1
    assert 0 <= sleeps[1] <= 0.2


async def test_a_silent_predictor_is_unavailable() -> None:
    """Deadlines missed on every attempt end in a sentence with the address and the call."""
    predictor = ScriptedPredictor()
    predictor.failures.extend([grpc.StatusCode.DEADLINE_EXCEEDED] * 3)
    async with connected(predictor) as (client, _):
        with pytest.raises(UnavailableError) as raised:
            await client.list_functions()
        assert str(raised.value) == f"predictor at {client.address} did not answer ListFunctions in time"


async def test_backoff_grows_to_its_ceiling() -> None:
    """The longest possible wait doubles with every attempt up to the ceiling."""

    class Longest(Random):
        def uniform(self, a: float, b: float) -> float:
            return max(a, b)

    sleeps = Sleeps()
    config = ClientConfig(max_attempts=7, first_backoff_s=0.5, max_backoff_s=4, retry_tokens=100)
    async with PredictorClient("127.0.0.1:1", rng=Longest(0), config=config, sleep=sleeps) as client:
        with pytest.raises(UnavailableError):
            await client.describe()
    assert sleeps == [0.5, 1, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, InputError),
        (grpc.StatusCode.INVALID_ARGUMENT, InputError),
        (grpc.StatusCode.INTERNAL, MespError),
    ],
)
async def test_final_failures_are_not_repeated(code: grpc.StatusCode, error: type[MespError]) -> None:
    """A refusal is raised after one attempt, in a sentence with the address, the call and the reason."""
    predictor = ScriptedPredictor()
    predictor.failures.append(code)
    async with connected(predictor) as (client, sleeps):
        with pytest.raises(error) as raised:
            await client.describe()
        assert str(raised.value) == (
            f"predictor at {client.address} refused DescribeModel ({code.name}): as the script says"
        )
    assert type(raised.value) is error
    assert (predictor.calls, sleeps) == (1, [])


async def test_the_budget_ends_retries() -> None:
    """Against a predictor that stays away, calls stop being repeated: fewer than 5 retries from 10 tokens."""
    async with PredictorClient("127.0.0.1:1", rng=Random(0), sleep=(sleeps := Sleeps())) as client:
        for _ in range(20):
            with pytest.raises(UnavailableError, match="is not available for DescribeModel"):
                await client.describe()
    assert len(sleeps) < 5


@given(st.lists(st.booleans(), max_size=300), st.floats(1, 20))
def test_retries_never_exceed_the_budget(answers: list[bool], tokens: float) -> None:
    """Whatever the sequence of answers, retries are at most half the tokens plus a tenth of the successes."""
    budget = RetryBudget(tokens)
    retries = 0
    for number, answered in enumerate(answers):
        if answered:
            budget.succeeded()
        else:
            retries += budget.failed()
        assert retries <= tokens / 2 + 0.1 * sum(answers[: number + 1]) + 1e-6


async def test_a_restart_of_the_predictor_loses_no_report() -> None:
    """Reports made while the predictor is away arrive, in order, after it came back."""
    before, after = ScriptedPredictor(), ScriptedPredictor()
    async with PredictorClient("127.0.0.1:1", rng=Random(0)) as probe:
        with pytest.raises(UnavailableError, match="could not be reached within"):
            await probe.ready(0.01)
    async with serving(before) as port:
        client = PredictorClient(f"127.0.0.1:{port}", rng=Random(0), sleep=Sleeps())
        await client.observe([step(1)])
    for minute in (2, 3):
        with pytest.raises(UnavailableError):
            await client.observe([step(minute)])
    assert client.waiting_reports == 2
    async with serving(after, port):
        await client.ready(30)
        await client.observe([step(4)])
        await client.close()
    assert (before.taken, after.taken) == ([step(1)], [step(2), step(3), step(4)])
    assert (client.waiting_reports, client.dropped_reports) == (0, 0)


async def test_a_full_backlog_drops_the_oldest_and_counts_it() -> None:
    """Beyond its bytes the backlog keeps the newest reports, and says how many are gone."""
    size = wire.step_counts_to_pb(step(1)).ByteSize()
    predictor = ScriptedPredictor()
    predictor.failures.extend([UNAVAILABLE] * 3)
    async with connected(predictor, ClientConfig(backlog_bytes=3 * size)) as (client, _):
        with pytest.raises(UnavailableError):
            await client.observe([step(minute) for minute in (1, 2, 3, 4, 5)])
        assert (client.waiting_reports, client.dropped_reports) == (3, 2)
        await client.observe([])
    assert predictor.taken == [step(3), step(4), step(5)]


async def test_a_bad_report_neither_stops_nor_blocks_the_others() -> None:
    """What cannot be encoded is rejected on the spot; what the predictor refuses as a whole is not sent again."""
    predictor = ScriptedPredictor()
    async with connected(predictor) as (client, _):
        rejections = await client.observe([step(1, count=-1), step(2)])
        assert [(bad.function, bad.step_start_ms) for bad in rejections] == [(None, MINUTE_MS)]
        predictor.failures.append(grpc.StatusCode.FAILED_PRECONDITION)
        with pytest.raises(InputError):
            await client.observe([step(3)])
        await client.observe([step(4)])
    assert predictor.taken == [step(2), step(4)]


@given(st.lists(st.integers(1, 9), max_size=40), st.data())
def test_the_backlog_is_a_queue_within_its_bytes(sizes: list[int], data: st.DataObject) -> None:
    """Taken and put back at will, reports keep their order and their bound, and each is sent, waiting or dropped."""
    backlog = Backlog(max_bytes=120)
    sent: list[int] = []
    for number, size in enumerate(sizes):
        report = predictor_pb.StepCounts(source="s" * size, step_start_ms=number + 1)
        backlog.extend([report])
        batch = backlog.take() if data.draw(st.booleans()) else []
        if data.draw(st.booleans()):
            backlog.put_back(batch)
        else:
            sent.extend(one.step_start_ms for one in batch)
    waiting = backlog.take()
    assert sum(report.ByteSize() for report in waiting) <= 120
    sent.extend(report.step_start_ms for report in waiting)
    assert sent == sorted(set(sent))
    assert len(sent) + backlog.dropped == len(sizes)


async def test_the_last_forecast_stays_until_it_is_stale() -> None:
    """`latest` gives the last forecast, over failures too, until it is older than the steps allowed."""
    predictor = ScriptedPredictor()
    async with connected(predictor, ClientConfig(stale_after_steps=3)) as (client, _):
        assert client.latest(0) is None
        received = await client.forecast()
        predictor.failures.extend([UNAVAILABLE] * 3)
        with pytest.raises(UnavailableError):
            await client.forecast()
        assert client.latest(received.as_of_ms + 3 * MINUTE_MS) is received
        assert client.latest(received.as_of_ms + 3 * MINUTE_MS + 1) is None


async def test_watching_sees_each_tick_once_over_reconnects() -> None:
    """A broken stream costs its half tick only: the watch reconnects and skips what it has already seen."""
    predictor = ScriptedPredictor()
    predictor.watches.extend(
        [
            [forecast(1), UNAVAILABLE],
            [forecast(1), forecast(2)],
            [forecast(2), forecast(4), grpc.StatusCode.INTERNAL],
        ]
    )
    ticks: list[int] = []
    async with connected(predictor) as (client, sleeps):

        async def follow() -> None:
            async for received in client.watch():
                ticks.append(received.tick_id)  # noqa: PERF401 (those before the error count)

        with pytest.raises(MespError, match="refused WatchForecasts"):
            await follow()
        assert client.latest(4 * MINUTE_MS) is not None
    assert ticks == [1, 2, 4]
    assert len(sleeps) == 2


async def test_watching_never_sees_half_a_tick() -> None:
    """A tick that the predictor gives up for a newer one is left out; the newer one arrives whole."""
    predictor = ScriptedPredictor()
    predictor.watches.append([next(forecasts_to_chunks(forecast(1), 1)), forecast(2)])
    async with connected(predictor) as (client, _):
        received = await anext(client.watch())
    assert (received.tick_id, received.functions) == (2, (A, B))


async def test_watching_gives_up_when_the_predictor_stays_away() -> None:
    """Streams that end without a tick are reopened as often as any call is repeated, then it is an error."""
    predictor = ScriptedPredictor()
    predictor.watches.extend([[], [], []])
    async with connected(predictor) as (client, _):
        with pytest.raises(UnavailableError, match="ended the stream"):
            await anext(client.watch())
    assert not predictor.watches
