"""The sidecar's answers, over a real loopback server."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import numpy as np
import prometheus_client
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesp import wire
from mesp.client import PredictorClient
from mesp.errors import InputError, MespError
from mesp.server import serve
from mesp.types import ForecastStatus, FunctionKey, StepCounts
from mesp.v1 import predictor_service_pb2 as pb
from mesp.v1 import types_pb2 as types_pb
from mesp.v1.predictor_service_pb2_grpc import PredictorServiceStub, add_PredictorServiceServicer_to_server
from mesp_predictor import store as files
from mesp_predictor.engine import Engine
from mesp_predictor.journal import Journal
from mesp_predictor.metrics import PredictorMetrics
from mesp_predictor.refit import Election
from mesp_predictor.series import SeriesStore
from mesp_predictor.server import recover
from mesp_predictor.service import PredictorService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.predictor.conftest import FakeForecaster

    from mesp.v1.predictor_service_pb2_grpc import PredictorServiceAsyncStub

STEP_MS = 60_000
A, B, NEW = FunctionKey("ns", "a"), FunctionKey("ns", "b"), FunctionKey("ns", "new")


def step(index: int, counts: dict[FunctionKey, int], source: str = "one", step_ms: int = STEP_MS) -> StepCounts:
    return StepCounts(source, index * step_ms, step_ms, counts)


def engine_of(forecaster: FakeForecaster, max_functions: int = 100) -> Engine:
    return Engine(SeriesStore(STEP_MS, 10, max_functions), forecaster, PredictorMetrics())


@dataclass
class Sidecar:
    client: PredictorClient
    stub: PredictorServiceAsyncStub
    service: PredictorService
    stop: asyncio.Event


@asynccontextmanager
async def running(
    engine: Engine, clock: Callable[[], int] | None = None, state: Path | None = None
) -> AsyncIterator[Sidecar]:
    """A served engine and its client; closed, with its state saved, at the end."""
    service = PredictorService(engine, PredictorMetrics(), clock, state, save_every_steps=2)
    stop = asyncio.Event()
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(
            [("mesp.v1.PredictorService", lambda server: add_PredictorServiceServicer_to_server(service, server))],
            "127.0.0.1:0",
            ready=bound.set_result,
            stop=stop,
        )
    )
    address = f"127.0.0.1:{await bound}"
    async with PredictorClient(address, rng=random.Random(0)) as client, grpc.aio.insecure_channel(address) as channel:
        yield Sidecar(client, cast("PredictorServiceAsyncStub", PredictorServiceStub(channel)), service, stop)
        service.end_watches()
        stop.set()
        await serving
    await service.close()


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call failed: status and sentence."""
    return await call.code(), await call.details()


async def test_a_forecast_sees_every_observation_answered_before(forecaster: FakeForecaster) -> None:
    """Observe, then Forecast: the answer is of the step just reported, with status, age and weights per function."""
    async with running(engine_of(forecaster)) as sidecar:
        for index in range(100, 105):
            counts = {A: index} if index > 100 else {A: index, B: 7}
            assert await sidecar.client.observe([step(index, counts)]) == []
            forecasts = await sidecar.client.forecast()
            assert (forecasts.tick_id, forecasts.as_of_ms) == (index + 1, (index + 1) * STEP_MS)
            assert forecasts.functions == (A, B)
            np.testing.assert_allclose(forecasts.quantiles[0, 0], [index * 0.5, index * 0.9], rtol=1e-6)
        assert forecasts.horizon == forecaster.default_horizon
        assert forecasts.age_ms.tolist() == [0, 4 * STEP_MS]
        assert forecasts.weights.tolist() == [[1, 0], [1, 0]]
        assert forecasts.model_version == "fake-1"
        assert (await sidecar.client.describe()).functions == 2


async def test_named_functions_are_answered_in_the_order_asked(forecaster: FakeForecaster) -> None:
    """A known one from its history, a new one from the prior, an invalid one refused with zeros; each once."""
    async with running(engine_of(forecaster)) as sidecar:
        await sidecar.client.observe([step(100, {A: 4, B: 2})])
        asked = [("ns", "new"), ("", "no scope"), ("ns", "b"), ("ns", "new")]
        request = pb.ForecastRequest(
            functions=[types_pb.FunctionKey(scope=scope, name=name) for scope, name in asked], horizon=2, levels=[0.25]
        )
        [chunk] = [response.chunk async for response in sidecar.stub.Forecast(request)]
        assert [key.name for key in chunk.functions] == ["new", "no scope", "b"]
        assert [ForecastStatus(status).name for status in chunk.statuses] == ["PRIOR", "UNKNOWN_FUNCTION", "OK"]
        assert list(chunk.quantiles) == [0.125, 0.125, 0, 0, 0.5, 0.5]
        assert list(chunk.ages_ms) == [-1, -1, 0]
        assert list(chunk.weights) == [0, 1, 0, 0, 1, 0]


async def test_an_empty_sidecar_answers(forecaster: FakeForecaster) -> None:
    """Before any report: no functions, tick 0, and a prior for whoever is named."""
    async with running(engine_of(forecaster)) as sidecar:
        forecasts = await sidecar.client.forecast()
        assert (forecasts.tick_id, forecasts.as_of_ms, forecasts.functions) == (0, 0, ())
        named = await sidecar.client.forecast([NEW])
        assert named.status == (ForecastStatus.PRIOR,)
        assert await sidecar.client.list_functions() == []


async def test_another_step_width_takes_nothing(forecaster: FakeForecaster) -> None:
    """FAILED_PRECONDITION names both widths, and the good step of the batch is not taken either."""
    async with running(engine_of(forecaster)) as sidecar:
        with pytest.raises(InputError, match=r"FAILED_PRECONDITION.*step_ms = 1000, but the model's step is 60000 ms"):
            await sidecar.client.observe([step(100, {A: 1}), step(7, {A: 1}, step_ms=1_000)])
        assert (await sidecar.client.describe()).as_of_ms == 0


async def test_steps_from_the_future_are_refused_unless_time_is_virtual(forecaster: FakeForecaster) -> None:
    """With a clock a step may end one step after now, not later; without one a replay may be anywhere."""
    now_ms = 100 * STEP_MS + 5
    async with running(engine_of(forecaster), clock=lambda: now_ms) as sidecar:
        assert await sidecar.client.observe([step(100, {A: 1})]) == []
        [rejection] = await sidecar.client.observe([step(101, {A: 1})])
        assert rejection.reason == (
            "step_start_ms = 6060000 ends more than one step after this server's clock: "
            "allowed up to 6000005 (see --virtual-time for replays)"
        )
    async with running(engine_of(forecaster)) as sidecar:
        assert await sidecar.client.observe([step(10_000_000, {A: 1})]) == []


async def test_bad_items_do_not_fail_their_batch(forecaster: FakeForecaster) -> None:
    """Too old a step and a function over the limit are refused with a sentence; the rest is counted."""
    async with running(engine_of(forecaster, max_functions=1)) as sidecar:
        rejections = await sidecar.client.observe([step(100, {A: 1, B: 1}), step(5, {A: 1}), step(101, {A: 1})])
        assert [(r.function, r.step_start_ms // STEP_MS) for r in rejections] == [(B, 100), (None, 5)]
        assert "1 functions are known, which is the limit" in rejections[0].reason
        assert "allowed from 5460000 on" in rejections[1].reason
        assert (await sidecar.client.describe()).as_of_ms == 102 * STEP_MS


@pytest.mark.parametrize(
    ("call", "request_", "sentence"),
    [
        ("Forecast", pb.ForecastRequest(horizon=61), "horizon = 61, must be in [1, 60]"),
        ("Forecast", pb.ForecastRequest(levels=[0.5, 0.5]), "levels = [0.5, 0.5], must be at most 99, ascending"),
        ("Forecast", pb.ForecastRequest(levels=[float("nan")]), "levels = [nan], must be"),
        ("WatchForecasts", pb.WatchForecastsRequest(levels=[1.0]), "levels = [1], must be"),
        ("ListFunctions", pb.ListFunctionsRequest(page_size=10_001), "page_size = 10001, must be in [1, 10000]"),
        ("ListFunctions", pb.ListFunctionsRequest(page_token="garbage"), "page_token = 'garbage', must be empty or"),
        ("ListFunctions", pb.ListFunctionsRequest(page_token="W10="), "page_token = 'W10=', must be empty or"),
        (
            "Observe",
            pb.ObserveRequest(steps=[pb.StepCounts(source="one", step_ms=STEP_MS, counts=[1])]),
            "counts: 1 values for 0 functions",
        ),
    ],
)
async def test_values_out_of_range_are_named_with_the_range(
    forecaster: FakeForecaster, call: str, request_: Any, sentence: str
) -> None:
    """INVALID_ARGUMENT with the value and what is allowed."""
    async with running(engine_of(forecaster)) as sidecar:
        code, details = await status_of(getattr(sidecar.stub, call)(request_))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in details


async def test_a_bug_in_the_model_costs_one_answer(forecaster: FakeForecaster) -> None:
    """INTERNAL with an id that the log has beside the traceback; an invalid answer is a bug too; the server lives."""
    async with running(engine_of(forecaster)) as sidecar:
        await sidecar.client.observe([step(100, {A: 1})])
        await sidecar.client.forecast([A])
        for spoil, fault in ((False, ZeroDivisionError("x")), (False, InputError("y")), (True, None)):
            forecaster.spoil, forecaster.fault = spoil, fault
            with structlog.testing.capture_logs() as logs:
                code, details = await status_of(sidecar.stub.Forecast(pb.ForecastRequest()))
            assert code is grpc.StatusCode.INTERNAL
            assert f"internal error {logs[0]['id']}" in details
            assert logs[0]["exc_info"]
        forecaster.spoil = False
        assert (await sidecar.client.forecast()).functions == (A,)


async def test_a_bug_while_learning_leaves_the_server_answering(forecaster: FakeForecaster) -> None:
    """The failed round is logged, and the next forecast learns again."""
    async with running(engine_of(forecaster)) as sidecar:
        await sidecar.client.forecast()
        forecaster.fault = ZeroDivisionError("x")
        with structlog.testing.capture_logs() as logs:
            await sidecar.client.observe([step(100, {A: 3})])
            forecasts = await sidecar.client.forecast()
        assert [entry["event"] for entry in logs] == ["bug"]
        assert forecasts.as_of_ms == 101 * STEP_MS


async def test_others_have_their_turn_while_a_backlog_is_learned(forecaster: FakeForecaster) -> None:
    """Reports are answered between the slices of a long round of learning; a forecast waits for the whole of it."""
    async with running(engine_of(forecaster)) as sidecar:
        forecaster.backlog = 10_000
        await sidecar.client.observe([step(100, {A: 1})])
        forecasting = asyncio.create_task(sidecar.client.forecast())
        for n in range(1, 4):
            await sidecar.client.observe([step(100 + n, {A: 1 + n})])
        assert forecaster.backlog > 0
        assert not forecasting.done()
        forecaster.backlog = 0
        assert (await forecasting).as_of_ms == 104 * STEP_MS


async def test_refits_and_calibration_are_told(forecaster: FakeForecaster) -> None:
    """Each election is counted and logged once, by expert and who was elected; the page shows calibration and log loss."""
    engine = engine_of(forecaster)
    losses = {"serving": 0.06, "trained": 0.07, "candidate": 0.05}
    forecaster.elections = [Election(100, "gbm", "candidate", losses, 5_000)]
    forecaster.calibration.add(np.array([0.75], np.float32), np.array([False]))
    with structlog.testing.capture_logs() as logs:
        for index in (100, 101):
            engine.store.report(step(index, {A: 1}))
            engine.advance()
    assert [(log["expert"], log["elected"]) for log in logs] == [("gbm", "candidate")]
    page = prometheus_client.generate_latest(engine._metrics.registry).decode()
    assert 'mesp_predictor_refits_total{elected="candidate",expert="gbm"} 1.0' in page
    assert "mesp_predictor_calibration_error 0.75" in page
    assert "mesp_predictor_log_loss 1.386" in page


async def test_the_common_forecast_is_made_once(forecaster: FakeForecaster) -> None:
    """All functions at the default horizon and levels are computed once, until anything changes."""
    async with running(engine_of(forecaster)) as sidecar:
        await sidecar.client.observe([step(100, {A: 1, B: 1})])
        for _ in range(3):
            await sidecar.client.forecast()
        assert forecaster.forecasts == 1
        await sidecar.client.forecast(horizon=2)
        assert forecaster.forecasts == 2
        await sidecar.client.delete_functions([B])
        assert (await sidecar.client.forecast()).functions == (A,)
        assert forecaster.forecasts == 3


async def test_the_loop_answers_while_the_model_learns(forecaster: FakeForecaster) -> None:
    """A model that is busy holds back neither DescribeModel nor, by more than its turn, what waits behind it."""
    async with running(engine_of(forecaster)) as sidecar:
        forecaster.gate.clear()
        observing = [asyncio.create_task(sidecar.client.observe([step(100 + n, {A: n})])) for n in range(20)]
        for _ in range(20):
            await sidecar.client.describe()
        forecaster.gate.set()
        await asyncio.gather(*observing)
        assert (await sidecar.client.forecast()).tick_id == 120


async def test_watchers_get_each_tick_once(forecaster: FakeForecaster) -> None:
    """The newest at once, then each as it closes; a late correction sends no tick twice; the stream ends cleanly."""
    async with running(engine_of(forecaster)) as sidecar:
        await sidecar.client.observe([step(100, {A: 1})])
        stream = sidecar.stub.WatchForecasts(pb.WatchForecastsRequest())
        ticks = []
        for index in range(101, 105):
            response = cast("pb.WatchForecastsResponse", await stream.read())
            ticks.append((response.chunk.tick_id, response.chunk.last, response.chunk.quantiles[0]))
            await sidecar.client.observe([step(index - 1, {A: 9}), step(index, {A: index})])
        assert ticks[0] == (101, True, 0.5)
        assert [tick for tick, _, _ in ticks] == [101, 102, 103, 104]
        assert cast("pb.WatchForecastsResponse", await stream.read()).chunk.tick_id == 105
        sidecar.service.end_watches()
        assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]  # grpc-stubs lacks it
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_slow_watcher_skips_ticks_and_never_halves_one(forecaster: FakeForecaster) -> None:
    """Ticks that close while a tick is being taken are skipped; what was begun is finished with `last`."""
    many = [FunctionKey("ns", f"{n:04}") for n in range(2_500)]
    service = PredictorService(engine_of(forecaster, len(many)), PredictorMetrics(), clock=None)

    async def close_step(index: int) -> None:
        request = pb.ObserveRequest(
            steps=[
                pb.StepCounts(
                    source="one",
                    step_start_ms=index * STEP_MS,
                    step_ms=STEP_MS,
                    functions=[types_pb.FunctionKey(scope=key.scope, name=key.name) for key in many],
                    counts=[index] * len(many),
                )
            ]
        )
        await service.Observe(request, cast("Any", None))

    await close_step(100)
    stream = service.WatchForecasts(pb.WatchForecastsRequest(), cast("Any", None))
    taken = [(await anext(stream)).chunk]
    for index in range(101, 110):
        await close_step(index)
    taken += [(await anext(stream)).chunk for _ in range(5)]
    assert [(chunk.tick_id, chunk.last) for chunk in taken] == [
        (101, False), (101, False), (101, True), (110, False), (110, False), (110, True)
    ]  # fmt: skip
    assert {chunk.quantiles[0] for chunk in taken} == {50, 54.5}
    await service.close()


async def test_functions_are_listed_in_key_order_page_by_page(forecaster: FakeForecaster) -> None:
    """Pages continue after the last key given, whatever was deleted in between; each function once."""
    keys = [FunctionKey(f"ns{n % 3}", f"f{n:02}") for n in range(25)]
    async with running(engine_of(forecaster)) as sidecar:
        await sidecar.client.observe([step(100, dict.fromkeys(keys, 1))])
        assert await sidecar.client.list_functions() == sorted(keys)
        first = await sidecar.stub.ListFunctions(pb.ListFunctionsRequest(page_size=10))
        assert await sidecar.client.delete_functions([sorted(keys)[9], sorted(keys)[10], NEW]) == 2
        rest = await sidecar.stub.ListFunctions(pb.ListFunctionsRequest(page_size=14, page_token=first.next_page_token))
        listed = [FunctionKey(key.scope, key.name) for key in (*first.functions, *rest.functions)]
        assert listed == sorted(keys)[:10] + sorted(keys)[11:]
        assert rest.next_page_token == ""


async def test_many_at_once_lose_nothing(forecaster: FakeForecaster) -> None:
    """Simultaneous sources, repeats and readers: every answer is one whole tick, and at the end all is summed."""
    sources = [f"source {n}" for n in range(8)]
    async with running(engine_of(forecaster)) as sidecar:

        async def report(source: str) -> None:
            for index in (100, 102, 101, 101):
                await sidecar.client.observe([step(index, {A: 1, FunctionKey("ns", source): index}, source)])

        async def read() -> None:
            for _ in range(10):
                forecasts = await sidecar.client.forecast()
                assert forecasts.as_of_ms in {0, 101 * STEP_MS, 103 * STEP_MS}
                assert (forecasts.quantiles == forecasts.quantiles[:, :1]).all()

        await asyncio.gather(*map(report, sources), *(read() for _ in range(8)))
        forecasts = await sidecar.client.forecast()
        last = dict(zip(forecasts.functions, forecasts.quantiles[:, 0, 0] * 2, strict=True))
        assert last == {A: len(sources)} | {FunctionKey("ns", source): 102 for source in sources}


async def test_the_state_is_saved_on_the_way_and_at_the_end(forecaster: FakeForecaster, tmp_path: Path) -> None:
    """Every second step here, and whatever came after it when the sidecar closes."""
    path = tmp_path / "state.npz"
    async with running(engine_of(forecaster), state=path) as sidecar:
        await sidecar.client.observe([step(100, {A: 1})])
        async with asyncio.timeout(30):
            while not path.exists():  # the write follows the answer
                await sidecar.client.describe()
        await sidecar.client.observe([step(101, {A: 5})])
    loaded, sentence = files.load(path, STEP_MS, 10, 100)
    assert sentence is None
    assert loaded.window(loaded.rows_of([A]), 2).tolist() == [[1, 5]]


async def test_what_a_killed_sidecar_answered_is_not_lost(forecaster: FakeForecaster, tmp_path: Path) -> None:
    """Reports and deletions since the last save, and what was refused as from the future stays refused."""
    (tmp_path / "live").mkdir()
    path, engine = tmp_path / "live" / "state.npz", engine_of(forecaster)
    async with running(engine, clock=lambda: 104 * STEP_MS, state=path) as sidecar:
        for index in range(100, 104):
            await sidecar.client.observe([step(index, {A: index, B: 1})])
        await sidecar.client.forecast()
        await sidecar.client.observe([step(104, {A: 7, NEW: 2}), step(106, {A: 8})])
        await sidecar.client.delete_functions([B])
        for task in (sidecar.service._ticking, sidecar.service._saving):
            if task:
                await task
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    assert [file.name for file in await asyncio.to_thread(sorted, (tmp_path / "live").glob("*"))] == ["state.npz"]
    store, _ = files.load(tmp_path / "killed" / "state.npz", STEP_MS, 10, 100)
    restarted = Engine(store, forecaster, PredictorMetrics())
    recover(restarted, Journal(tmp_path / "killed" / "state.npz"))
    assert restarted.store.as_of_ms == engine.store.as_of_ms == 105 * STEP_MS
    assert {key for key in restarted.store.functions if key} == {A, NEW}
    before, after = (one.store.window(one.store.rows_of([A, NEW]), 10) for one in (engine, restarted))
    np.testing.assert_array_equal(after, before)


async def test_the_last_save_waits_for_the_one_before(
    forecaster: FakeForecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed while a step is learned that makes a save due: one writes after the other, to the same temporary file."""
    path, writing = tmp_path / "state.npz", threading.Lock()
    save = files.save

    def alone(*args: Any) -> None:
        assert writing.acquire(blocking=False)
        time.sleep(0.05)  # whoever would come in between has time to
        save(*args)
        writing.release()

    monkeypatch.setattr(files, "save", alone)
    service = PredictorService(engine_of(forecaster), PredictorMetrics(), None, path, save_every_steps=1)
    request = pb.ObserveRequest(steps=[wire.step_counts_to_pb(step(100, {A: 1}))])
    await service.Observe(request, cast("Any", None))
    await service.close()
    loaded, _ = files.load(path, STEP_MS, 10, 100)
    assert loaded.as_of_ms == 101 * STEP_MS


async def test_a_state_that_cannot_be_saved_is_logged_and_tried_again(
    forecaster: FakeForecaster, tmp_path: Path
) -> None:
    """While serving it is a warning with the reason; at the end it is the error that the operator sees."""
    path = tmp_path / "state.npz"
    path.mkdir()

    async def serve_two_answers() -> None:
        async with running(engine_of(forecaster), state=path) as sidecar:
            await sidecar.client.observe([step(100, {A: 1})])
            assert (await sidecar.client.forecast()).functions == (A,)

    with structlog.testing.capture_logs() as logs, pytest.raises(InputError, match="the state cannot be saved"):
        await serve_two_answers()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("state not saved", "warning")]
    assert f"{path}: the state cannot be saved (Is a directory)" in logs[0]["reason"]


texts = st.text(max_size=6) | st.sampled_from(["ns", "a", "one"])
numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(95, 105).map(lambda index: index * STEP_MS)
key_messages = st.builds(types_pb.FunctionKey, scope=texts, name=texts)
step_messages = st.builds(
    pb.StepCounts,
    source=texts,
    step_start_ms=numbers,
    step_ms=st.just(STEP_MS) | numbers,
    functions=st.lists(key_messages, max_size=3),
    counts=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=3),
    complete=st.booleans(),
    arrival_offset_counts=st.lists(st.integers(0, 3), max_size=3),
    arrival_offsets_ms=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    triggers=st.lists(st.integers(0, 9), max_size=3),
)
levels = st.lists(st.floats() | st.sampled_from([0.1, 0.5, 0.9]), max_size=3)
requests = (
    st.builds(pb.ObserveRequest, steps=st.lists(step_messages, max_size=3))
    | st.builds(
        pb.ForecastRequest, functions=st.lists(key_messages, max_size=3), horizon=st.integers(0, 70), levels=levels
    )
    | st.builds(pb.ListFunctionsRequest, page_size=st.integers(0, 2**32 - 1), page_token=texts)
    | st.builds(pb.DeleteFunctionsRequest, functions=st.lists(key_messages, max_size=3))
)


@given(st.lists(requests, max_size=10))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_request_meets_a_bug(forecaster: FakeForecaster, sequence: list[Any]) -> None:
    """Whatever is asked in whatever order, the engine answers or says what is wrong with the request."""
    engine = engine_of(forecaster, max_functions=3)
    for request in sequence:
        with suppress(MespError):
            match request:
                case pb.ObserveRequest():
                    engine.observe(request, now_ms=104 * STEP_MS)
                case pb.ForecastRequest():
                    assert engine.forecast(engine.question(request))[-1].last
                case pb.ListFunctionsRequest():
                    engine.page(request)
                case _:
                    engine.delete(request)
