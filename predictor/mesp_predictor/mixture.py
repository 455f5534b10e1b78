"""The mixture: follows the series store step by step, asks every expert, and gives the router's weighted answer.

`advance` takes in the steps that closed: each expert's last forecast is scored on what came, the running statistics
move on, clusters are looked up anew every hour, and all experts forecast the model's default horizon once, which
serves both the next scoring and most questions. It never raises for a bad series: an expert that fails or answers
nonsense for a function has no say for it, and when none is left the function's own rate answers (`fallback`).

Everything follows from the store's contents and the model: the same counts in the same order give the same forecasts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mesp_predictor import router as routing
from mesp_predictor import shapes
from mesp_predictor.answers import ask, choose, mix, next_step, take
from mesp_predictor.calibration import Calibration
from mesp_predictor.experts.base import Context, Expert, IntArray, Prediction
from mesp_predictor.experts.registry import costly
from mesp_predictor.learning import LearningRouter
from mesp_predictor.model import routed
from mesp_predictor.refit import Refits
from mesp_predictor.statistics import Statistics, groups_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import BoolArray, FloatArray, FunctionKey
    from mesp_predictor.forecaster import Mixed
    from mesp_predictor.model import Model, RoutingMode
    from mesp_predictor.refit import Election
    from mesp_predictor.series import SeriesStore


#: Steps between two look-ups of a function's cluster.
CLUSTER_EVERY = 60
#: Of many steps that closed at once, how many the experts are scored on; statistics learn from all of them.
CATCH_UP = 60
#: Experts of a function, in either part of its weights, of which a costly one is asked at every step; of the rest one
#: function in so many is, in turn, so that the router knows how it would have done.
COSTLY_BEST, SHADOW_TURNS = 2, 10
#: Steps that the experts see of a function's own counts.
WINDOW = 512


@dataclass(frozen=True, slots=True)
class Asked:
    """What the mixture's answer was made of, for all R rows as of the last `advance`, at the model's own horizon and levels.

    Attributes:
        predictions: of each expert; rows that an expert was not asked for are NaN.
        losses: of each expert on each function lately, (R, E, LOSSES), as `router.score` keeps them.
        cluster: index of each function's cluster, (R,); -1 for none.
        context: what the experts read; the next `advance` changes it.
    """

    predictions: tuple[Prediction, ...]
    losses: FloatArray
    cluster: IntArray
    context: Context


class MixtureForecaster:
    """A model with its online state; see `mesp_predictor.forecaster.Forecaster`."""

    def __init__(
        self, model: Model, *, learn: bool = True, routing_mode: RoutingMode = "gate", top: int | None = None
    ) -> None:
        """An empty state.

        Args:
            model: the model.
            learn: whether router and experts go on learning from what they see.
            routing_mode: `gate` (Hedge where none was trained), `hedge`, or `hard`: each cluster's best expert alone.
            top: experts per function that have a say; None: all.

        Raises:
            InputError: hard assignment of a model that knows no cluster's best expert.
        """
        self._model = model
        self._router = replace(routed(model, routing_mode), top=top)
        self._learning = LearningRouter(self._router) if learn else None
        self._costly = np.array([costly(expert.name) for expert in model.experts])
        self._wanted: BoolArray = np.zeros((0, len(model.experts)), np.bool_)
        self._refits = Refits(model.experts) if learn else None
        self._as_of_ms = 0
        self._functions: list[FunctionKey | None] = []
        self._grouped: list[FunctionKey | None] = []
        self._groups = groups_of(self._grouped)
        self._changed: IntArray = np.zeros(0, np.int64)  # rows to learn anew once everything is learned
        self._looked_up = 0  # hour of the last look-up of clusters
        self._statistics = Statistics.empty(0)
        self._losses = routing.new_losses(0, len(model.experts))
        self._cluster: IntArray = np.zeros(0, np.int64)
        self._distances = _no_distances(0, len(model.centroids))
        self._window: FloatArray = np.zeros((0, WINDOW), np.float32)
        self._next: Prediction | None = None  # each expert's forecast of the step that closes next, (F, E)
        self._ahead: Mixed | None = None  # all rows, default horizon and levels
        self.calibration = Calibration()
        self.asked: Asked | None = None

    @property
    def model_version(self) -> str:
        """Identifies the model directory's content."""
        return self._model.version

    @property
    def step_ms(self) -> int:
        """Step width that the model was trained for."""
        return self._model.step_ms

    @property
    def context_length(self) -> int:
        """Steps of history that it reads."""
        return self._model.context_length

    @property
    def default_horizon(self) -> int:
        """Steps forecast when the caller does not say."""
        return self._model.default_horizon

    @property
    def max_horizon(self) -> int:
        """Most steps it can forecast."""
        return self._model.max_horizon

    @property
    def levels(self) -> tuple[float, ...]:
        """Quantile levels given when the caller does not say."""
        return self._model.levels

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, in the order of the weights."""
        return tuple(expert.name for expert in self._model.experts)

    @property
    def clusters(self) -> int:
        """Number of clusters of similar functions."""
        return len(self._model.centroids)

    def take_elections(self) -> list[Election]:
        """How refits of experts ended since the last call, oldest first."""
        if self._refits is None:
            return []
        ended, self._refits.elections = self._refits.elections, []
        return ended

    @property
    def _experts(self) -> tuple[Expert, ...]:
        return self._model.experts if self._refits is None else self._refits.experts

    def advance(self, store: SeriesStore, go_on: Callable[[], bool] | None = None) -> bool:
        """Learns from every step closed since the last call, and anew for rows whose past changed.

        Args:
            store: the series.
            go_on: asked before every step of a backlog; where it says no, and where a refit that is due is not ready, the
                rest is left to the next call. None: everything, and refits are waited for. The outcome is the same.

        Returns:
            Whether everything is learned.
        """
        fresh = store.columns_since(self._as_of_ms)
        self._changed = np.union1d(self._changed, store.take_changed())
        newest = store.as_of_ms // self.step_ms
        steps = fresh.shape[1]
        if newest - steps != self._statistics.step:  # the first steps ever, or a silence longer than the context
            self._statistics = Statistics.empty(0, newest - steps)
            self._next = None
        self._grow(len(store.functions))
        if store.functions != self._grouped:
            self._grouped, self._groups = list(store.functions), groups_of(store.functions)
        self._statistics.identify(self._groups, store.triggers)
        taken = self._taken(store, self._changed)
        rows = np.arange(len(store.functions))
        history = store.window(rows, min(store.context, WINDOW + min(steps, CATCH_UP)))
        for i in range(steps):
            left = steps - 1 - i
            if go_on is not None and ((i and not go_on()) or (left < CATCH_UP and self._awaits_refit())):
                return False
            column = fresh[:, i]
            self._score(column, taken)
            self._statistics.update(column)
            if left < CATCH_UP:
                self._turn()
            if self._refits is not None:
                self._refits.expect(self._statistics)
            if 0 < left < CATCH_UP:
                self._window = _padded(history[:, : history.shape[1] - left])
                self._expect(next_step(self._ask(rows, 1, self.levels)))
            self._as_of_ms = store.as_of_ms - left * self.step_ms
        self._as_of_ms = store.as_of_ms
        self._rebuild(store, self._changed, taken)
        self._forget(taken)
        self._changed = np.zeros(0, np.int64)
        self._functions = list(store.functions)
        if newest // CLUSTER_EVERY != self._looked_up:
            self._looked_up = newest // CLUSTER_EVERY
            self._look_up_clusters(store, rows)
        self._window = _padded(history)
        self._ahead, predictions, weights = self._mix(rows, self.default_horizon, self.levels)
        self._wanted = weights.wanted(COSTLY_BEST)
        self.asked = Asked(tuple(predictions), self._losses.copy(), self._cluster, self._context(rows))
        self._expect(next_step(predictions))
        return True

    def forecast(self, rows: IntArray, horizon: int, levels: tuple[float, ...]) -> Mixed:
        """Forecasts rows of the store as of the last `advance`; row -1 is a function never seen."""
        known = rows >= 0
        if not known.any():
            return take(self._stranger(horizon, levels), np.zeros(len(rows), np.int64), horizon)
        if self._ahead is not None and horizon <= self.default_horizon and levels == self.levels:
            mixed = take(self._ahead, np.where(known, rows, 0), horizon)
        else:
            mixed, _, _ = self._mix(rows[known], horizon, levels)
            mixed = take(mixed, np.maximum(np.cumsum(known) - 1, 0), horizon)
        return mixed if known.all() else choose(known, mixed, self._stranger(horizon, levels))

    # -- learning --------------------------------------------------------------------------------------------------

    def _grow(self, rows: int) -> None:
        more = rows - len(self._statistics)
        if more <= 0:
            return
        model = self._model
        self._statistics.grow(rows)
        self._losses = np.concatenate([self._losses, routing.new_losses(rows - len(self._losses), len(model.experts))])
        self._cluster = np.concatenate([self._cluster, np.full(rows - len(self._cluster), -1)])
        distances = _no_distances(rows - len(self._distances), len(model.centroids))
        self._distances = np.concatenate([self._distances, distances])
        self._wanted = np.concatenate(
            [self._wanted, np.zeros((rows - len(self._wanted), len(model.experts)), np.bool_)]
        )

    def _turn(self) -> None:
        """Refits that are due; an expert that had no answer until now is taken to have done as the others did."""
        if self._refits is None:
            return
        for index in self._refits.turn(self._statistics.step):
            others = np.arange(self._losses.shape[1]) != index
            self._losses[:, index] = self._losses[:, others].mean(axis=1)

    def _awaits_refit(self) -> bool:
        return self._refits is not None and self._refits.awaits(self._statistics.step + 1)

    def _expect(self, forecast: Prediction) -> None:
        """Keeps what each expert says of the next step until that step closes."""
        self._next = forecast
        if self._learning is not None:
            features = self._statistics.features(1)[:, 0]
            said = routing.filled(forecast.active)
            self._learning.expect(features, said, self._losses, self._distances)

    def _score(self, column: FloatArray, taken: IntArray) -> None:
        """Takes in how the last forecasts did on the step that closed; functions new since then had none."""
        if self._refits is not None:
            self._refits.learn(self._statistics.step, column, taken)
        if self._next is None:
            return
        forecast, self._next = self._next, None
        judged = len(forecast.active)
        active, known = column[:judged] > 0, ~np.isnan(column[:judged])
        known[taken[taken < judged]] = False
        known &= self._statistics.gap[:judged] > 0  # silence before the first invocation says little of an expert
        if self._learning is not None:
            self._learning.learn(self._statistics.step, active, known)
        if self._ahead is not None and len(self._ahead.active) == judged:  # not while it catches up
            self.calibration.add(self._ahead.active[known, 0], active[known])
            self._ahead = None
        routing.score(self._losses[:judged], forecast, np.asarray(self.levels, np.float32), column[:judged], known)

    def _taken(self, store: SeriesStore, changed: IntArray) -> IntArray:
        """Of the changed rows those that hold another function than at the last `advance`, or none."""
        before = [*self._functions, *[None] * (len(store.functions) - len(self._functions))]
        return np.array([row for row in changed if store.functions[row] != before[row]], np.int64)

    def _forget(self, taken: IntArray) -> None:
        """A row that another function took starts with a clean slate."""
        self._losses[taken] = routing.new_losses(len(taken), self._losses.shape[1])
        if self._refits is not None:
            self._refits.forget(taken)
        self._cluster[taken] = -1
        self._distances[taken] = 1

    def _rebuild(self, store: SeriesStore, changed: IntArray, taken: IntArray) -> None:
        """Learns changed rows anew from the store's whole context, but for what others did, which did not change."""
        if not len(changed):
            return
        counts = store.window(changed, store.context)
        known = np.flatnonzero(~np.isnan(counts).all(axis=0))
        first = int(known[0]) if len(known) else counts.shape[1]
        fresh = Statistics.empty(len(changed), self._statistics.step - (counts.shape[1] - first))
        for column in counts[:, first:].T:
            fresh.update(column)
        kept = ~np.isin(changed, taken)
        fresh.identify(self._statistics.groups[changed], self._statistics.trigger[changed])
        fresh.related[kept] = self._statistics.related[changed[kept]]
        self._statistics.put(changed, fresh)

    def _look_up_clusters(self, store: SeriesStore, rows: IntArray) -> None:
        series = binned(np.nan_to_num(store.window(rows, self.context_length)), self._model.bin_steps)
        self._cluster, self._distances = look_up(series, self._model.centroids)

    # -- answering -------------------------------------------------------------------------------------------------

    def _context(self, rows: IntArray) -> Context:
        return Context(
            step=self._statistics.step,
            counts=np.nan_to_num(self._window[rows]),
            statistics=self._statistics.take(rows),
            cluster=self._cluster[rows],
        )

    def _ask(self, rows: IntArray, horizon: int, levels: tuple[float, ...]) -> list[Prediction]:
        """Every expert's answer; a costly one's where its word counts, and in turn for a share of the others."""
        asked = np.ones((len(rows), len(self._costly)), np.bool_)
        if self._costly.any():
            turn = (rows + self._statistics.step) % SHADOW_TURNS == 0
            asked = ~self._costly | self._wanted[rows] | turn[:, None]
        return ask(self._experts, self._context(rows), horizon, levels, asked)

    def _mix(
        self, rows: IntArray, horizon: int, levels: tuple[float, ...]
    ) -> tuple[Mixed, list[Prediction], routing.Weights]:
        """The weighted answer for these rows, every expert's, and what the router would give each of them."""
        predictions = self._ask(rows, horizon, levels)
        statistics = self._statistics.take(rows)
        router = self._router if self._learning is None else self._learning.router
        forecast = routing.filled(next_step(predictions).active)
        weights = router.weights(
            statistics.features(1)[:, 0], forecast, self._losses[rows], self._distances[rows], self._cluster[rows]
        )
        return mix(weights, predictions, statistics, levels), predictions, weights

    def _stranger(self, horizon: int, levels: tuple[float, ...]) -> Mixed:
        """The answer for a function never seen."""
        model = self._model
        statistics = Statistics.empty(1, self._statistics.step)
        context = Context(statistics.step, np.zeros((1, WINDOW), np.float32), statistics, np.array([-1]))
        predictions = ask(self._experts, context, horizon, levels, ~self._costly[None])
        weights = self._router.weights(
            statistics.features(1)[:, 0],
            routing.filled(next_step(predictions).active),
            routing.new_losses(1, len(model.experts)),
            _no_distances(1, len(model.centroids)),
            context.cluster,
        )
        return mix(weights, predictions, statistics, levels)


def look_up(series: FloatArray, centroids: FloatArray) -> tuple[IntArray, FloatArray]:
    """Cluster (-1 where the series has no shape of its own yet) and distances to all centroids, (R,) and (R, K)."""
    labels = np.full(len(series), -1, np.int64)
    distances = _no_distances(len(series), len(centroids))
    shaped = shapes.route_away(series) == shapes.Kind.SHAPED.value
    if shaped.any():
        distances[shaped] = shapes.sbd(shapes.znorm(series[shaped]), centroids)
        labels[shaped] = distances[shaped].argmin(axis=1)
    return labels, distances


def binned(counts: FloatArray, bin_steps: int) -> FloatArray:
    """Sums over bins of `bin_steps` steps, (R, C) -> (R, C / bin_steps)."""
    functions, steps = counts.shape
    return np.asarray(counts.reshape(functions, steps // bin_steps, bin_steps).sum(axis=2))


def _no_distances(functions: int, clusters: int) -> FloatArray:
    """Shape-based distances of functions without a shape: uncorrelated with every centroid, which is 1."""
    return np.ones((functions, clusters), np.float32)


def _padded(history: FloatArray) -> FloatArray:
    """The newest WINDOW steps, missing ones as NaN."""
    history = history[:, -WINDOW:]
    return np.pad(history, ((0, 0), (WINDOW - history.shape[1], 0)), constant_values=np.nan)
