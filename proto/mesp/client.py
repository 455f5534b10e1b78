"""The predictor's client: deadlines, a retry budget, the last known good forecast, and no lost observation.

A prewarm scheduler must go on when its predictor is away. So the client keeps two things for its caller. Reports
that could not be sent wait, oldest first, in a backlog bounded in bytes, and go out with the next ones: a restart
of the predictor costs nothing but time. And the last forecast that arrived stays at hand with its age; `latest`
gives it until it is stale, and None from then on.

Every call of the service is idempotent, so every call may be repeated, but only when the predictor did not answer
(UNAVAILABLE, DEADLINE_EXCEEDED), with exponential backoff and jitter, and only while the retry budget lasts: an
overloaded predictor is not helped by more calls. All other failures are final and raised as `InputError` (the
request was wrong) or `MespError` (the predictor is).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar, cast

import grpc
import grpc.aio

from mesp import wire
from mesp.errors import InputError, MespError, UnavailableError
from mesp.forecast_wire import forecasts_from_chunks
from mesp.server import MAX_MESSAGE_BYTES
from mesp.types import Rejection
from mesp.v1 import predictor_service_pb2 as predictor_pb
from mesp.v1 import predictor_service_pb2_grpc as predictor_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from random import Random
    from types import TracebackType
    from typing import Self

    from mesp.types import Forecasts, FunctionKey, ModelDescription, StepCounts
    from mesp.v1 import types_pb2 as types_pb

T = TypeVar("T")
RequestT = TypeVar("RequestT")

_RETRYABLE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_CALLERS_FAULT: Final = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.NOT_FOUND,
)
_REQUEST_BYTES: Final = 3_000_000
_PAGE_SIZE: Final = 10_000

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # gRPC's own pause between connection attempts grows to two minutes: far too long after a restart.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A sidecar is not behind the HTTP proxy that the environment may name.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How patient the client is.

    Attributes:
        observe_deadline_s: one attempt to send a batch of reports; also of the small calls.
        forecast_deadline_s: one attempt to receive a whole forecast.
        max_attempts: attempts of one call, the first included.
        first_backoff_s: the wait before a retry is uniform in [0, first_backoff_s * 2^n], n from 0 ...
        max_backoff_s: ... and never longer than this.
        retry_tokens: size of the retry budget.
        stale_after_steps: a forecast is stale when its `as_of_ms` is more than this many steps ago.
        backlog_bytes: reports that wait for the predictor; about 30 bytes per function with a count.
    """

    observe_deadline_s: float = 5.0
    forecast_deadline_s: float = 10.0
    max_attempts: int = 3
    first_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    retry_tokens: float = 10.0
    stale_after_steps: int = 5
    backlog_bytes: int = 64 * 2**20


class RetryBudget:
    """gRPC's retry throttling (proposal A6): a failure takes a token, a success gives a tenth of one back.

    A retry is allowed while more than half of the tokens are there, so at most one call in ten is a retry for long.
    """

    _PER_SUCCESS = 0.1

    def __init__(self, max_tokens: float) -> None:
        self._max_tokens = self._tokens = max_tokens

    def succeeded(self) -> None:
        """Notes an answer."""
        self._tokens = min(self._max_tokens, self._tokens + self._PER_SUCCESS)

    def failed(self) -> bool:
        """Notes a failure; True when it may be retried."""
        self._tokens = max(0.0, self._tokens - 1)
        return self._tokens > self._max_tokens / 2


class Backlog:
    """Encoded reports on their way, oldest first, at most `max_bytes` of them: the oldest go first, and are counted."""

    def __init__(self, max_bytes: int) -> None:
        self.dropped = 0
        self._max_bytes = max_bytes
        self._bytes = 0
        self._reports: deque[predictor_pb.StepCounts] = deque()

    def __len__(self) -> int:
        return len(self._reports)

    def extend(self, reports: Sequence[predictor_pb.StepCounts]) -> None:
        """Appends the newest reports."""
        self._reports.extend(reports)
        self._bytes += sum(report.ByteSize() for report in reports)
        self._trim()

    def take(self) -> list[predictor_pb.StepCounts]:
        """Removes and returns the oldest reports, as many as one request should carry (at least one, if any)."""
        batch: list[predictor_pb.StepCounts] = []
        size = 0
        while self._reports and len(batch) < wire.MAX_REQUEST_STEPS:
            size += self._reports[0].ByteSize()
            if batch and size > _REQUEST_BYTES:
                break
            batch.append(self._reports.popleft())
            self._bytes -= batch[-1].ByteSize()
        return batch

    def put_back(self, batch: Sequence[predictor_pb.StepCounts]) -> None:
        """Returns what `take` gave and could not be sent."""
        self._reports.extendleft(reversed(batch))
        self._bytes += sum(report.ByteSize() for report in batch)
        self._trim()

    def _trim(self) -> None:
        while self._bytes > self._max_bytes:
            self._bytes -= self._reports.popleft().ByteSize()
            self.dropped += 1


class PredictorClient:
    """One predictor at `address` (``host:port``); to be made, used and closed inside one running event loop.

    Methods raise `UnavailableError` naming the address when the predictor does not answer in time and the retry
    budget is spent, `InputError` when it (or the wire) refuses the request or answers with what cannot be right,
    and `MespError` when it fails.
    """

    def __init__(
        self,
        address: str,
        *,
        rng: Random,
        config: ClientConfig | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.address = address
        self._config = config or ClientConfig()
        self._rng = rng
        self._sleep = sleep
        self._budget = RetryBudget(self._config.retry_tokens)
        self._backlog = Backlog(self._config.backlog_bytes)
        self._sending = asyncio.Lock()
        self._latest: Forecasts | None = None
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = cast(
            "predictor_grpc.PredictorServiceAsyncStub", predictor_grpc.PredictorServiceStub(self._channel)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends calls in flight and the connection; what is in the backlog is lost."""
        await self._channel.close(None)

    @property
    def waiting_reports(self) -> int:
        """Reports in the backlog."""
        return len(self._backlog)

    @property
    def dropped_reports(self) -> int:
        """Reports lost so far because the backlog was full."""
        return self._backlog.dropped

    def latest(self, now_ms: int) -> Forecasts | None:
        """The last forecast that arrived, by whatever call; None when there is none or it is stale."""
        forecasts = self._latest
        if forecasts is None or now_ms - forecasts.as_of_ms > self._config.stale_after_steps * forecasts.step_ms:
            return None
        return forecasts

    async def ready(self, timeout_s: float) -> None:
        """Waits until a connection stands; `UnavailableError` when none does after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise UnavailableError(
                f"predictor at {self.address} could not be reached within {timeout_s:g} s"
            ) from error

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        """Sends these reports after those that still wait; returns what was refused item by item.

        On `UnavailableError` nothing is lost: what was not sent goes with the next call (an empty one does too).
        A batch that the predictor refuses as a whole is not sent again.
        """
        rejections: list[Rejection] = []
        for step in steps:
            try:
                reports = [wire.step_counts_to_pb(part) for part in wire.split_step(step)]
            except InputError as error:
                rejections.append(Rejection(None, step.step_start_ms, str(error)))
            else:
                self._backlog.extend(reports)
        async with self._sending:
            while batch := self._backlog.take():
                request = predictor_pb.ObserveRequest(steps=batch)
                try:
                    answer = await self._unary("Observe", self._stub.Observe, request)
                except (UnavailableError, asyncio.CancelledError):
                    self._backlog.put_back(batch)
                    raise
                rejections.extend(map(wire.rejection_from_pb, answer.rejections))
        return rejections

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        """Forecasts `functions` (None: all known) over `horizon` steps (0: the model's) at `levels` (empty: its own)."""
        request = predictor_pb.ForecastRequest(functions=_asked(functions), horizon=horizon, levels=levels)

        async def receive() -> list[types_pb.ForecastChunk]:
            call = self._stub.Forecast(request, timeout=self._config.forecast_deadline_s)
            return [response.chunk async for response in call]

        chunks = await self._retrying("Forecast", receive)
        self._latest = forecasts_from_chunks(chunks)
        return self._latest

    async def watch(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> AsyncIterator[Forecasts]:
        """Yields the forecasts of each tick, never one twice, never half a one; reconnects within the budget."""
        request = predictor_pb.WatchForecastsRequest(functions=_asked(functions), horizon=horizon, levels=levels)
        seen: tuple[int, int] | None = None
        attempt = 0
        while True:
            attempt += 1
            chunks: list[types_pb.ForecastChunk] = []
            call = self._stub.WatchForecasts(request)
            try:
                async for response in call:
                    if chunks and chunks[0].tick_id != response.chunk.tick_id:
                        chunks = []  # the server gave that tick up for a newer one
                    chunks.append(response.chunk)
                    if not response.chunk.last:
                        continue
                    forecasts, chunks, attempt = forecasts_from_chunks(chunks), [], 1
                    self._budget.succeeded()
                    if (tick := (forecasts.tick_id, forecasts.as_of_ms)) != seen:
                        seen, self._latest = tick, forecasts
                        yield forecasts
            except grpc.aio.AioRpcError as error:
                if not self._may_retry(error, attempt):
                    raise self._sentence("WatchForecasts", error) from error
            else:
                if not self._budget.failed() or attempt >= self._config.max_attempts:
                    raise UnavailableError(f"predictor at {self.address} ended the stream of forecasts")
            finally:
                call.cancel()
            await self._back_off(attempt)

    async def describe(self) -> ModelDescription:
        """What the model says of itself."""
        request = predictor_pb.DescribeModelRequest()
        return wire.description_from_pb(await self._unary("DescribeModel", self._stub.DescribeModel, request))

    async def list_functions(self) -> list[FunctionKey]:
        """All functions that the predictor knows, in key order."""
        functions: list[FunctionKey] = []
        token = ""
        while True:
            request = predictor_pb.ListFunctionsRequest(page_size=_PAGE_SIZE, page_token=token)
            answer = await self._unary("ListFunctions", self._stub.ListFunctions, request)
            functions.extend(map(wire.key_from_pb, answer.functions))
            token = answer.next_page_token
            if not token:
                return functions

    async def delete_functions(self, functions: Sequence[FunctionKey]) -> int:
        """Makes the predictor forget these; returns how many it knew."""
        request = predictor_pb.DeleteFunctionsRequest(functions=map(wire.key_to_pb, functions))
        answer = await self._unary("DeleteFunctions", self._stub.DeleteFunctions, request)
        return answer.deleted

    async def _unary(self, name: str, method: grpc.aio.UnaryUnaryMultiCallable[RequestT, T], request: RequestT) -> T:
        async def call() -> T:
            return await method(request, timeout=self._config.observe_deadline_s)

        return await self._retrying(name, call)

    async def _retrying(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in itertools.count(1):
            try:
                answer = await call()
            except grpc.aio.AioRpcError as error:
                if not self._may_retry(error, attempt):
                    raise self._sentence(name, error) from error
                await self._back_off(attempt)
            else:
                self._budget.succeeded()
                return answer
        raise AssertionError

    def _may_retry(self, error: grpc.aio.AioRpcError, attempt: int) -> bool:
        if error.code() not in _RETRYABLE:
            return False
        return self._budget.failed() and attempt < self._config.max_attempts

    async def _back_off(self, attempt: int) -> None:
        longest_s = min(self._config.max_backoff_s, self._config.first_backoff_s * 2 ** (attempt - 1))
        await self._sleep(self._rng.uniform(0, longest_s))

    def _sentence(self, name: str, error: grpc.aio.AioRpcError) -> MespError:
        code, details = error.code(), " ".join((error.details() or "no details").split())
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError(f"predictor at {self.address} did not answer {name} in time")
        if code is grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(f"predictor at {self.address} is not available for {name}: {details}")
        kind = InputError if code in _CALLERS_FAULT else MespError
        return kind(f"predictor at {self.address} refused {name} ({code.name}): {details}")


def _asked(functions: Sequence[FunctionKey] | None) -> list[types_pb.FunctionKey]:
    if functions is None:
        return []
    if not functions:  # on the wire that would ask for all
        raise InputError("functions: none named, must be at least one, or None for all known ones")
    return [wire.key_to_pb(key) for key in dict.fromkeys(functions)]
