"""The predictor on the wire: every call goes to one worker thread, in order of arrival.

So the event loop stays responsive, a forecast sees every observation answered before it, and neither the model nor the
series store needs a lock. Observing is cheap; the model learns in the background (`PredictorService._learn`), once for
everything that came in meanwhile, then wakes the watchers and, when it is time, saves the state. A backlog is learned in
slices, between which other calls have their turn; a forecast waits for all of it.
"""
# ruff: noqa: N802, D102  names and promises of the calls stand in predictor_service.proto

from __future__ import annotations

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import grpc
import grpc.aio
import structlog

from mesp import wire
from mesp.errors import InputError
from mesp.v1 import predictor_service_pb2 as pb
from mesp.v1 import predictor_service_pb2_grpc as pb_grpc
from mesp_predictor import store as files
from mesp_predictor.journal import Entry, Journal, Kind
from mesp_predictor.series import StepWidthError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import TracebackType

    from google.protobuf.message import Message

    from mesp.v1 import types_pb2 as types_pb
    from mesp_predictor.engine import Engine, Question
    from mesp_predictor.metrics import PredictorMetrics

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger(__name__)

#: How long a backlog is learned before other calls have their turn, and how long they have for coming.
_SLICE_S, _PAUSE_S = 0.2, 0.01


class PredictorService(pb_grpc.PredictorServiceServicer):
    """The gRPC face of an `Engine`; made inside a running event loop, ended by `close`.

    Args:
        clock: now in milliseconds since the epoch; None: steps may lie anywhere in time (a replay).
        state: the file that keeps the counts over a restart, its journal beside it; None for none.
        save_every_steps: closed steps between two writes of it.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: PredictorMetrics,
        clock: Callable[[], int] | None,
        state: Path | None = None,
        save_every_steps: int = 15,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._journal = None if state is None else Journal(state)
        self._save_every_steps = save_every_steps
        self._worker = ThreadPoolExecutor(1, "predictor")
        self._stale = False
        self._ticking: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._tick_id = 0
        self._saved_tick_id = engine.store.as_of_ms // engine.store.step_ms
        self._news = asyncio.Event()
        self._closing = False
        self._learn_soon()

    async def Observe(self, request: pb.ObserveRequest, context: _Context) -> pb.ObserveResponse:
        async with self._answer(context):
            now_ms = None if self._clock is None else self._clock()
            response = await self._work(self._observe, request, now_ms)
            self._learn_soon()
            return response

    async def Forecast(self, request: pb.ForecastRequest, context: _Context) -> AsyncIterator[pb.ForecastResponse]:
        async with self._answer(context):
            question = await self._work(self._engine.question, request)
            for chunk in await self._forecast(question):
                yield pb.ForecastResponse(chunk=chunk)

    async def WatchForecasts(
        self, request: pb.WatchForecastsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchForecastsResponse]:
        async with self._answer(context):
            question = await self._work(self._engine.question, request)
            sent_tick_id = 0
            while not self._closing:
                news = self._news
                if self._tick_id <= sent_tick_id:
                    await news.wait()
                    continue
                # While a slow reader takes these, ticks may come and go; the next round asks for the newest.
                chunks = await self._forecast(question)
                sent_tick_id = chunks[0].tick_id
                for chunk in chunks:
                    yield pb.WatchForecastsResponse(chunk=chunk)

    async def DescribeModel(self, request: pb.DescribeModelRequest, context: _Context) -> pb.DescribeModelResponse:  # noqa: ARG002  the call has no arguments
        async with self._answer(context):
            return wire.description_to_pb(self._engine.describe())

    async def ListFunctions(self, request: pb.ListFunctionsRequest, context: _Context) -> pb.ListFunctionsResponse:
        async with self._answer(context):
            return await self._work(self._engine.page, request)

    async def DeleteFunctions(
        self, request: pb.DeleteFunctionsRequest, context: _Context
    ) -> pb.DeleteFunctionsResponse:
        async with self._answer(context):
            response = await self._work(self._delete, request)
            self._learn_soon()
            return response

    def end_watches(self) -> None:
        """Lets every WatchForecasts end after the tick that it is sending: the server is about to stop."""
        self._closing = True
        self._news.set()

    async def close(self) -> None:
        """Finishes what was begun, and saves the state. InputError when it cannot be saved."""
        self.end_watches()
        if self._ticking is not None:
            await self._ticking
        if self._saving is not None:  # which the last tick may have begun
            await self._saving
        try:
            if self._journal:
                await self._keep(self._journal)
        finally:
            self._worker.shutdown()

    async def _work(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Runs `work` in the worker thread; a call that is cancelled while it waits is never started."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: work(*args, **kwargs))

    async def _forecast(self, question: Question) -> list[types_pb.ForecastChunk]:
        begin_s = time.perf_counter()
        await self._caught_up()
        chunks = await self._work(self._engine.forecast, question)
        self._metrics.forecast_seconds.observe(time.perf_counter() - begin_s)
        return chunks

    async def _caught_up(self) -> None:
        """Returns once the model has learned what was observed; whatever other calls want is done in between."""
        while not await self._work(self._learn_slice):  # noqa: ASYNC110  the work itself is done in the loop's head
            await asyncio.sleep(_PAUSE_S)

    def _learn_slice(self) -> bool:
        until_s = time.perf_counter() + _SLICE_S
        return self._engine.advance(lambda: time.perf_counter() < until_s)

    def _learn_soon(self) -> None:
        """Has the model learn in the background; what comes in before it begins is learned in one go."""
        self._stale = True
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._learn())

    async def _learn(self) -> None:
        while self._stale:
            self._stale = False
            try:
                await self._caught_up()
                self._tick_id = self._engine.tick_id
            except Exception:  # noqa: BLE001  whatever the model does, the server lives
                self._note_bug("advance")
                continue
            self._news.set()
            if not self._closing:
                self._news = asyncio.Event()
            self._save_when_due()

    def _save_when_due(self) -> None:
        due = self._journal is not None and self._tick_id - self._saved_tick_id >= self._save_every_steps
        if due and (self._saving is None or self._saving.done()):
            self._saved_tick_id = self._tick_id
            self._saving = asyncio.create_task(self._save())

    async def _save(self) -> None:
        assert self._journal
        try:
            await self._keep(self._journal)
        except InputError as error:
            _log.warning("state not saved", reason=str(error), next_try_in_steps=self._save_every_steps)
        except Exception:  # noqa: BLE001  as while learning: the server lives
            self._note_bug("save")

    async def _keep(self, journal: Journal) -> None:
        """Saves the state; what the journal tells of the time before goes."""
        state, part = await self._work(lambda: (self._engine.store.state(), journal.turn()))
        await asyncio.to_thread(files.save, journal.state, state)
        await self._work(journal.forget, part)

    def _observe(self, request: pb.ObserveRequest, now_ms: int | None) -> pb.ObserveResponse:
        response = self._engine.observe(request, now_ms)
        self._note(Kind.OBSERVE, request, now_ms)
        return response

    def _delete(self, request: pb.DeleteFunctionsRequest) -> pb.DeleteFunctionsResponse:
        response = self._engine.delete(request)
        self._note(Kind.DELETE, request, None)
        return response

    def _note(self, kind: Kind, request: Message, now_ms: int | None) -> None:
        if self._journal:
            self._journal.write(Entry(kind, now_ms, request.SerializeToString()))

    def _note_bug(self, call: str) -> str:
        """Logs the exception being handled under an id that the caller can be told."""
        bug_id = uuid.uuid4().hex[:8]
        self._metrics.failures.inc()
        _log.exception("bug", call=call, id=bug_id)
        return bug_id

    def _answer(self, context: _Context) -> _Answer:
        return _Answer(context, self._note_bug)


class _Answer:
    """Turns what a call raises into the canonical status: the caller's fault with a sentence, ours with an id."""

    def __init__(self, context: _Context, note_bug: Callable[[str], str]) -> None:
        self._context = context
        self._note_bug = note_bug

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        match error:
            case StepWidthError():
                await self._context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            case InputError():
                await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            case Exception():
                bug_id = self._note_bug("answer")
                await self._context.abort(grpc.StatusCode.INTERNAL, f"internal error {bug_id}: see the server's log")
