"""The sidecar's work without the wire's calls: reports into the series store, forecasts out of the model.

Learning (`Engine.advance`) is apart from observing, so that one round of it serves every report that came before, and can
be done in parts, so that nobody waits behind a backlog; a forecast learns first what is left to learn. The forecast that everybody asks for, all functions at the
model's own horizon and levels, is made once and kept until anything changes.

A tick is a closed step; its number is the count of steps since the epoch, so it goes on counting over a restart.
"""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import structlog

from mesp import wire
from mesp.errors import InputError, MespError
from mesp.forecast_wire import MAX_LEVELS, forecasts_to_chunks
from mesp.types import Forecasts, ForecastStatus, FunctionKey, ModelDescription, Rejection
from mesp.v1 import predictor_service_pb2 as pb
from mesp.v1 import types_pb2 as types_pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import StepCounts
    from mesp_predictor.forecaster import Forecaster, Mixed
    from mesp_predictor.metrics import PredictorMetrics
    from mesp_predictor.series import SeriesStore

_log = structlog.get_logger(__name__)

MAX_PAGE_SIZE = 10_000
DEFAULT_PAGE_SIZE = 1_000


@dataclass(frozen=True, slots=True)
class Question:
    """What a forecast is asked for: functions (None: all known), steps, quantile levels."""

    keys: tuple[FunctionKey, ...] | None
    horizon: int
    levels: tuple[float, ...]


class Engine:
    """The series store and the model behind it. Single-threaded."""

    def __init__(self, store: SeriesStore, forecaster: Forecaster, metrics: PredictorMetrics) -> None:
        self.store = store
        self._forecaster = forecaster
        self._metrics = metrics
        self._learned_version = -1
        self._kept: tuple[int, Question, list[types_pb.ForecastChunk]] | None = None

    def observe(self, request: pb.ObserveRequest, now_ms: int | None) -> pb.ObserveResponse:
        """Takes in a batch; with a clock, no step that ends more than one step after `now_ms`.

        Raises:
            StepWidthError: a step is not as wide as the model's; nothing was taken.
            InputError: the batch cannot be read; nothing was taken.
        """
        steps, rejections = wire.observe_from_pb(request)
        for step in steps:
            self.store.check_width(step)
        accepted = 0
        for step in steps:
            taken, refused = self._report(step, now_ms)
            accepted += taken
            rejections += refused
        self._metrics.observed_counts.inc(accepted)
        self._metrics.rejections.inc(len(rejections))
        return pb.ObserveResponse(
            accepted=accepted,
            rejections=[wire.rejection_to_pb(rejection) for rejection in rejections],
            as_of_ms=self.store.as_of_ms,
        )

    def _report(self, step: StepCounts, now_ms: int | None) -> tuple[int, list[Rejection]]:
        if now_ms is not None and step.step_start_ms > now_ms:  # ends later than now + step_ms
            reason = (
                f"step_start_ms = {step.step_start_ms} ends more than one step after this server's clock: "
                f"allowed up to {now_ms} (see --virtual-time for replays)"
            )
            return 0, [Rejection(None, step.step_start_ms, reason)]
        return self.store.report(step)

    @property
    def tick_id(self) -> int:
        """The newest closed step, counted from the epoch."""
        return self.store.as_of_ms // self.store.step_ms

    def advance(self, go_on: Callable[[], bool] | None = None) -> bool:
        """Lets the model learn what it has not, until `go_on` says no; whether nothing is left."""
        version = self.store.version
        if version == self._learned_version:
            return True
        try:
            with self._metrics.tick_seconds.time():
                done = self._forecaster.advance(self.store, go_on)
        except MespError as error:
            raise RuntimeError(f"the model cannot learn: {error}") from error
        for election in self._forecaster.take_elections():
            self._metrics.refits.labels(election.expert, election.elected).inc()
            losses = {name: round(loss, 4) for name, loss in election.log_loss.items()}
            _log.info("refit", expert=election.expert, elected=election.elected, log_loss_last_hour=losses)
        if not done:
            return False
        self._learned_version = version
        self._metrics.calibration_error.set(self._forecaster.calibration.error)
        self._metrics.log_loss.set(self._forecaster.calibration.log_loss)
        self._metrics.functions.set(self.store.known)
        self._metrics.as_of_seconds.set(self.store.as_of_ms / 1000)
        return True

    def question(self, request: pb.ForecastRequest | pb.WatchForecastsRequest) -> Question:
        """Reads and completes a request; InputError when it asks for what the model cannot give."""
        model = self._forecaster
        horizon = request.horizon or model.default_horizon
        if horizon > model.max_horizon:
            raise InputError(f"horizon = {horizon}, must be in [1, {model.max_horizon}], or 0 for the default")
        levels = tuple(request.levels) or model.levels
        ascending = all(low < high for low, high in itertools.pairwise((0.0, *levels, 1.0)))
        if not ascending or len(levels) > MAX_LEVELS:
            shown = ", ".join(f"{level:g}" for level in levels[:12])
            raise InputError(f"levels = [{shown}], must be at most {MAX_LEVELS}, ascending, each inside (0, 1)")
        keys = tuple(dict.fromkeys(FunctionKey(key.scope, key.name) for key in request.functions))
        return Question(keys or None, horizon, levels)

    def forecast(self, question: Question) -> list[types_pb.ForecastChunk]:
        """Forecasts one tick, chunked. Never InputError: whatever is wrong past `question` is a bug."""
        try:
            self.advance()
            if self._kept is not None and self._kept[:2] == (self.store.version, question):
                return self._kept[2]
            chunks = list(forecasts_to_chunks(self._forecasts(question)))
        except MespError as error:
            raise RuntimeError(f"the model's answer is not valid: {error}") from error
        model = self._forecaster
        if question == Question(None, model.default_horizon, model.levels):
            self._kept = (self.store.version, question, chunks)
        return chunks

    def _forecasts(self, question: Question) -> Forecasts:
        keys = question.keys
        if keys is None:
            keys = tuple(key for key in self.store.functions if key is not None)
        valid = np.array([question.keys is None or _is_valid(key) for key in keys], np.bool_)
        rows = self.store.rows_of(itertools.compress(keys, valid))
        status = np.full(len(keys), ForecastStatus.UNKNOWN_FUNCTION)
        quantiles = np.zeros((len(keys), question.horizon, len(question.levels)), np.float32)
        active = np.zeros((len(keys), question.horizon), np.float32)
        weights = np.zeros((len(keys), len(self._forecaster.experts)), np.float32)
        age_ms = np.full(len(keys), -1, np.int64)
        if len(rows):
            mixed = self._forecaster.forecast(rows, question.horizon, question.levels)
            status[valid] = _statuses(mixed)
            quantiles[valid] = mixed.quantiles
            active[valid] = mixed.active
            weights[valid] = mixed.weights
            last_seen_ms = self.store.last_seen_ms(rows)
            age_ms[valid] = np.where(last_seen_ms < 0, -1, self.store.as_of_ms - last_seen_ms)
        return Forecasts(
            tick_id=self.tick_id,
            as_of_ms=self.store.as_of_ms,
            step_ms=self.store.step_ms,
            levels=question.levels,
            functions=keys,
            status=tuple(ForecastStatus(value) for value in status.tolist()),
            quantiles=quantiles,
            active=active,
            experts=self._forecaster.experts,
            weights=weights,
            age_ms=age_ms,
            model_version=self._forecaster.model_version,
        )

    def describe(self) -> ModelDescription:
        """What the model and the store are; reads numbers only, so any thread may ask."""
        model = self._forecaster
        return ModelDescription(
            model_version=model.model_version,
            step_ms=model.step_ms,
            context_length=self.store.context,
            default_horizon=model.default_horizon,
            max_horizon=model.max_horizon,
            levels=model.levels,
            experts=model.experts,
            functions=self.store.known,
            max_functions=self.store.max_functions,
            clusters=model.clusters,
            as_of_ms=self.store.as_of_ms,
        )

    def page(self, request: pb.ListFunctionsRequest) -> pb.ListFunctionsResponse:
        """Known functions in key order, after the token's; InputError for a size or token that is none."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        if size > MAX_PAGE_SIZE:
            raise InputError(f"page_size = {size}, must be in [1, {MAX_PAGE_SIZE}], or 0 for {DEFAULT_PAGE_SIZE}")
        after = _key_of(request.page_token) if request.page_token else FunctionKey("", "")
        rest = sorted(key for key in self.store.functions if key is not None and key > after)
        return pb.ListFunctionsResponse(
            functions=[types_pb.FunctionKey(scope=key.scope, name=key.name) for key in rest[:size]],
            next_page_token=_token_of(rest[size - 1]) if len(rest) > size else "",
        )

    def delete(self, request: pb.DeleteFunctionsRequest) -> pb.DeleteFunctionsResponse:
        """Forgets functions; how many were known."""
        deleted = self.store.delete(FunctionKey(key.scope, key.name) for key in request.functions)
        return pb.DeleteFunctionsResponse(deleted=deleted)


def _is_valid(key: FunctionKey) -> bool:
    try:
        wire.check_key(key)
    except InputError:
        return False
    return True


def _statuses(mixed: Mixed) -> npt.NDArray[np.int64]:
    fallen = np.where(mixed.fallback, ForecastStatus.FALLBACK, ForecastStatus.OK)
    return np.where(mixed.prior, ForecastStatus.PRIOR, fallen)


def _token_of(key: FunctionKey) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _key_of(token: str) -> FunctionKey:
    """The key that `_token_of` hid; InputError for anything else."""
    try:
        scope, name = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
        return wire.check_key(FunctionKey(scope, name))
    except (ValueError, TypeError, AttributeError, RecursionError, InputError):
        raise InputError(f"page_token = {token[:40]!r}, must be empty or the next_page_token of an answer") from None
