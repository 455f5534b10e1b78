"""The mixture over a series store: what it learns when, whom it asks, and what it says when they fail."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mesp.types import DEFAULT_LEVELS, FunctionKey, StepCounts
from mesp_predictor import answers, mixture
from mesp_predictor import router as routing
from mesp_predictor.experts.base import Context, Expert, Prediction, hurdle_quantiles
from mesp_predictor.experts.light import HazardExpert, IntermittentExpert, SeasonalExpert
from mesp_predictor.kernels import LONGEST_GAP
from mesp_predictor.mixture import CATCH_UP, MixtureForecaster
from mesp_predictor.model import Model
from mesp_predictor.router import Gate, Router
from mesp_predictor.series import SeriesStore
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.forecaster import Mixed
    from mesp_predictor.training import Trained

CONTEXT, START, MINUTE = 700, 28_000_020, 60_000
A, B, C, D = (FunctionKey("scope", name) for name in "abcd")
LIGHT: tuple[Expert, ...] = (
    SeasonalExpert(),
    IntermittentExpert(),
    HazardExpert(np.full((2, LONGEST_GAP + 1), 0.02, np.float32), 2.0),
)


class Says:
    """An expert that always gives the same probability and counts of 1; it counts its calls."""

    def __init__(self, name: str, active: float) -> None:
        self.name = name
        self.active = active
        self.calls = 0

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        self.calls += 1
        return self.forecast(len(context.counts), horizon, levels)

    def forecast(self, rows: int, horizon: int, levels: tuple[float, ...]) -> Prediction:
        active = np.full((rows, horizon), self.active, np.float32)
        one, grid = np.ones((len(active), 2), np.float32), np.array([0, 1], np.float32)
        return Prediction(hurdle_quantiles(active, one, grid, levels), active)

    def save(self, directory: Path) -> None:
        raise NotImplementedError


class Fails(Says):
    """An expert that raises, or answers nonsense for functions whose last count was 9; `well` heals it."""

    well = False
    nonsense: float | None = None

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        answer = super().predict(context, horizon, levels)
        if not self.well and self.nonsense is None:
            raise RuntimeError("out of order")
        if not self.well:
            answer.active[context.counts[:, -1] == 9] = self.nonsense
        return answer


def model_of(*experts: Expert, router: Router | None = None) -> Model:
    return Model(
        version="test",
        step_ms=MINUTE,
        default_horizon=5,
        max_horizon=30,
        levels=DEFAULT_LEVELS,
        experts=experts,
        router=router or Router(),
        centroids=np.sin(np.arange(24, dtype=np.float32))[None],
        bin_steps=10,
    )


def gated(experts: int) -> Router:
    """A gate of random weights, so that learning has something to move and all it reads matters."""
    torch.manual_seed(0)
    gate = Gate(experts, 1).eval()
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Router(gate)


def new_store() -> SeriesStore:
    return SeriesStore(MINUTE, CONTEXT, 50)


def report(store: SeriesStore, step: int, counts: dict[FunctionKey, int], *, complete: bool = True) -> None:
    taken, rejections = store.report(StepCounts("test", (START + step) * MINUTE, MINUTE, counts, complete))
    assert (taken, rejections) == (len(counts), [])


def traffic(step: int) -> dict[FunctionKey, int]:
    """A timer, a steady one, and one that never is active."""
    return {A: 3 * (step % 5 == 0), B: int(np.random.default_rng(step).poisson(0.4)), C: 0}


def run(
    forecaster: MixtureForecaster, store: SeriesStore, steps: Iterable[int], *, every: int | None = 1
) -> MixtureForecaster:
    """Reports the steps' traffic and advances after `every` so many; None: once at the end."""
    for done, step in enumerate(steps, 1):
        report(store, step, traffic(step))
        if every and done % every == 0:
            forecaster.advance(store)
    forecaster.advance(store)
    return forecaster


def ask(forecaster: MixtureForecaster, *rows: int, horizon: int = 5) -> Mixed:
    return forecaster.forecast(np.array(rows, np.int64), horizon, DEFAULT_LEVELS)


def assert_same(one: Mixed, two: Mixed) -> None:
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name), field.name)


def assert_same_statistics(
    one: MixtureForecaster, two: MixtureForecaster, rows: list[int], *, but: str | None = None
) -> None:
    assert one._statistics.step == two._statistics.step
    for field in dataclasses.fields(Statistics):
        if not field.init or field.name in {"step", but}:
            continue
        first, second = (getattr(each._statistics, field.name)[rows] for each in (one, two))
        np.testing.assert_array_equal(first, second, field.name)


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_same_counts_in_the_same_order_give_the_same_forecasts() -> None:
    """Two forecasters that followed the same reports agree bit for bit, their learning gates included."""
    answers = []
    for seed in (1, 2):
        model = model_of(*LIGHT, router=gated(3))
        torch.manual_seed(seed)
        answers.append(ask(run(MixtureForecaster(model), new_store(), range(70)), 0, 1, 2))
    assert_same(*answers)
    assert not np.array_equal(answers[0].weights, ask(run(_deaf(), new_store(), range(70)), 0, 1, 2).weights)


def _deaf() -> MixtureForecaster:
    return MixtureForecaster(model_of(*LIGHT, router=gated(3)), learn=False)


def test_catching_up_a_few_steps_is_like_having_kept_up() -> None:
    """Up to CATCH_UP steps within an hour at once give the forecast, losses and gate of one step at a time."""
    model = model_of(*LIGHT, router=gated(3))
    one, many = (
        run(run(MixtureForecaster(model), store, range(70)), store, range(70, 90), every=every)
        for every, store in ((1, new_store()), (None, new_store()))
    )
    assert_same(ask(one, 0, 1, 2), ask(many, 0, 1, 2))
    np.testing.assert_array_equal(one._losses, many._losses)


@pytest.mark.parametrize("every", [7, None])
def test_catching_up_many_steps_leaves_the_same_statistics(every: int | None) -> None:
    """However many steps close at once, the statistics are the same; losses, clusters and gate may lag behind."""
    one = run(MixtureForecaster(model_of(*LIGHT)), new_store(), range(300))
    many = run(MixtureForecaster(model_of(*LIGHT)), new_store(), range(300), every=every)
    assert_same_statistics(one, many, [0, 1, 2])


def test_each_forecast_is_scored_once_on_its_own_step() -> None:
    """Of 200 steps that close at once the first is scored, and the last CATCH_UP - 1; nothing is scored in between."""
    store, expert = new_store(), Says("says", 0.9)
    forecaster = MixtureForecaster(model_of(expert))
    report(store, 0, {A: 1})
    forecaster.advance(store)
    outcomes = [True] + [True] * 140 + [False] * 59
    for step, outcome in enumerate(outcomes, 1):
        report(store, step, {A: int(outcome)})
    forecaster.advance(store)
    expected = routing.new_losses(1, 1)
    said = expert.forecast(1, 1, DEFAULT_LEVELS)
    for outcome in [outcomes[0], *outcomes[-(CATCH_UP - 1) :]]:
        levels, counts = np.array(DEFAULT_LEVELS, np.float32), np.array([outcome], np.float32)
        routing.score(expected, said, levels, counts, np.array([True]))
    np.testing.assert_array_equal(forecaster._losses, expected)


def test_a_silence_longer_than_the_context_is_caught_up_in_bounded_time() -> None:
    """After weeks the experts are asked a bounded number of times, and what is answered is what a newcomer says."""
    store, expert = new_store(), Says("says", 0.5)
    forecaster = run(MixtureForecaster(model_of(*LIGHT, expert)), store, range(100))
    expert.calls = 0
    late = range(100_000, 100_003)
    run(forecaster, store, late, every=None)
    assert expert.calls <= CATCH_UP + 1
    newcomer = MixtureForecaster(model_of(*LIGHT, Says("says", 0.5)))
    newcomer.advance(store)
    assert_same_statistics(forecaster, newcomer, [0, 1, 2])
    assert np.isfinite(ask(forecaster, 0, 1, 2).quantiles).all()


def test_missing_steps_are_not_zeros() -> None:
    """An outage within the context leaves rates and phases alone: the timer is expected where it was."""
    store = new_store()
    forecaster = run(MixtureForecaster(model_of(SeasonalExpert())), store, range(200))
    run(forecaster, store, range(250, 251), every=None)
    active = ask(forecaster, 0).active[0]
    assert active[4] > 0.9  # step 255
    assert active[:4].max() < 0.1


# -- late reports, new functions, deleted ones -------------------------------------------------------------------------


def test_a_backlog_learned_in_slices_ends_the_same() -> None:
    """However often it is interrupted, the model is what it is after learning everything at once, a row's new owner too."""
    rng = np.random.default_rng(7)
    whole, sliced = (MixtureForecaster(model_of(*LIGHT, Says("says", 0.5), router=gated(4))) for _ in range(2))
    stores = new_store(), new_store()
    for forecaster, store in zip((whole, sliced), stores, strict=True):
        run(forecaster, store, range(50), every=None)
        store.delete([C])
        for step in range(50, 150):
            report(store, step, traffic(step) | {D: step % 7})
    assert whole.advance(stores[0])
    slices = 1
    while not sliced.advance(stores[1], lambda: bool(rng.random() < 0.8)):
        slices += 1
    assert slices > 10
    assert_same_statistics(whole, sliced, [0, 1, 2, 3])
    np.testing.assert_array_equal(whole._losses, sliced._losses)
    assert_same(ask(whole, 0, 1, 2, 3), ask(sliced, 0, 1, 2, 3))


def test_a_late_report_counts_as_if_it_had_been_on_time() -> None:
    """The function's statistics are as if, the others' as they were, and what experts lost on it is remembered.

    Exactly so while its whole life is within the context, from which it is learned anew.
    """
    on_time, late = new_store(), new_store()
    punctual, patient = (MixtureForecaster(model_of(*LIGHT)) for _ in range(2))
    for step in range(100):
        counts = traffic(step)
        report(on_time, step, counts)
        report(late, step, counts if step != 90 else counts | {B: 50})
        punctual.advance(on_time)
        patient.advance(late)
    before, losses = ask(patient, 0, 1, 2), patient._losses.copy()
    assert not np.array_equal(before.quantiles[1], ask(punctual, 1).quantiles[0])
    report(late, 90, {B: traffic(90)[B]}, complete=False)
    patient.advance(late)
    after = ask(patient, 0, 1, 2)
    assert_same_statistics(
        patient, punctual, [0, 1, 2], but="related"
    )  # that the others were late is not told to their relatives
    np.testing.assert_array_equal(patient._losses, losses)
    np.testing.assert_array_equal(after.quantiles[[0, 2]], before.quantiles[[0, 2]])
    assert not np.array_equal(after.quantiles[1], before.quantiles[1])


def test_a_row_that_another_function_took_starts_clean() -> None:
    """Nothing of the deleted function is left: not its rhythm, nor what experts lost on it, nor its cluster."""
    store = new_store()
    model = model_of(*LIGHT, Says("says", 0.5), router=gated(4))
    forecaster = run(MixtureForecaster(model), store, range(130))
    untouched = routing.new_losses(1, 4)[0]
    assert (forecaster._losses[0] != untouched).any()
    store.delete([A])
    report(store, 130, {D: 1, B: 0, C: 0})
    assert store.row_of(D) == 0
    forecaster.advance(store)
    np.testing.assert_array_equal(forecaster._losses[0], untouched)
    assert forecaster._cluster[0] == -1
    assert (forecaster._distances[0] == 1).all()
    newcomer = MixtureForecaster(model)
    newcomer.advance(store)
    assert_same_statistics(
        forecaster, newcomer, [0], but="related"
    )  # what others did before it came is not its own past
    assert (forecaster._losses[1] != untouched).any()


def test_steps_without_any_function_are_a_fleet_of_none() -> None:
    """Before the first function is known time passes, and strangers are answered by the prior; then it is learned."""
    store, forecaster = new_store(), MixtureForecaster(model_of(*LIGHT, router=gated(3)))
    for step in range(3):
        report(store, step, {})
        assert forecaster.advance(store)
    assert ask(forecaster).active.shape == (0, 5)
    assert ask(forecaster, -1).prior.all()
    run(forecaster, store, range(3, 70))
    assert not ask(forecaster, 0).prior.any()


def test_a_row_that_is_free_is_nobody() -> None:
    """A deleted function whose row nobody took yet is a prior again."""
    store = new_store()
    forecaster = run(MixtureForecaster(model_of(*LIGHT)), store, range(20))
    store.delete([A])
    forecaster.advance(store)
    assert ask(forecaster, 0).prior.tolist() == [True]


def test_a_deleted_function_s_successor_does_not_teach_the_gate() -> None:
    """The forecast made for the old function is scored on nobody: the gate is as if the row had not been observed."""
    gates = []
    for count in (0, 9):
        store = new_store()
        forecaster = run(MixtureForecaster(model_of(*LIGHT, router=gated(3))), store, range(20))
        store.delete([A])
        report(store, 20, {D: count, B: 1, C: 0})
        forecaster.advance(store)
        assert forecaster._learning is not None
        gate = forecaster._learning.router.gate
        assert gate is not None
        gates.append(gate.state_dict())
    assert all(torch.equal(gates[0][key], gates[1][key]) for key in gates[0])


def test_a_new_function_does_not_stop_the_others_from_being_scored() -> None:
    """The step in which a function appears is scored for all that were active before it, and for no others."""
    store, expert = new_store(), Says("says", 0.9)
    forecaster = MixtureForecaster(model_of(expert))
    scored = []
    for step, counts in enumerate(({A: 1, B: 2, C: 0}, {A: 1, B: 0, C: 0, D: 1}, {})):
        report(store, step, counts)
        before = np.append(forecaster._losses[:, 0, 0], routing.new_losses(4, 1)[len(forecaster._losses) :, 0, 0])
        forecaster.advance(store)
        scored.append((forecaster._losses[:, 0, 0] != before[: len(store.functions)]).tolist())
    assert scored == [[False] * 3, [True, True, False, False], [True, True, False, True]]


# -- experts that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", [Router(), gated(2)], ids=["hedge", "gate"])
def test_an_expert_that_raises_has_no_say(router: Router, caplog: pytest.LogCaptureFixture) -> None:
    """The others answer, it is logged, and once it is well again it is weighed as if it had never spoken."""
    store, ill = new_store(), Fails("ill", 0.9)
    forecaster = MixtureForecaster(model_of(Says("well", 0.3), ill, router=router))
    with caplog.at_level(logging.CRITICAL, logger=answers.__name__):
        run(forecaster, store, range(5))
    answer = ask(forecaster, 0, 1, -1)
    np.testing.assert_array_equal(answer.weights, [[1, 0]] * 3)
    np.testing.assert_allclose(answer.active, 0.3, atol=1e-5)
    assert not answer.fallback.any()
    assert np.isfinite(forecaster._losses).all()
    np.testing.assert_array_equal(forecaster._losses[:, 1:], routing.new_losses(3, 1))
    with caplog.at_level(logging.ERROR, logger=answers.__name__):
        forecaster.advance(store)
    assert "expert ill failed for a batch of 3 functions" in caplog.text
    ill.well = True
    run(forecaster, store, range(5, 8))
    assert (ask(forecaster, 0).weights[0] > 0).all()


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -0.1, 1.5])
def test_nonsense_for_a_function_is_ignored_for_it_alone(nonsense: float) -> None:
    """A probability that is none costs the expert its say for that function and for no other."""
    store, ill = new_store(), Fails("ill", 0.9)
    ill.nonsense = nonsense
    forecaster = MixtureForecaster(model_of(Says("well", 0.3), ill))
    report(store, 0, {A: 9, B: 1})
    forecaster.advance(store)
    answer = ask(forecaster, 0, 1)
    np.testing.assert_allclose(answer.weights, np.array([[1, 0], [0.5, 0.5]], np.float32))
    assert answer.fallback.tolist() == [False, False]
    assert np.isfinite(answer.quantiles).all()
    for step in range(1, 4):
        report(store, step, {A: 9, B: 1})
        forecaster.advance(store)
    assert np.isfinite(forecaster._losses).all()


def test_where_no_expert_is_left_the_function_s_own_rate_answers(caplog: pytest.LogCaptureFixture) -> None:
    """Fallback is the smoothed rate with the latest counts, only where all failed; weights stay shares."""
    store, ill = new_store(), Fails("ill", 0.9)
    ill.nonsense = np.nan
    forecaster = MixtureForecaster(model_of(ill, ill))
    for step in range(40):
        report(store, step, {A: 9 * (step % 2), B: 1})
        forecaster.advance(store)
    answer = ask(forecaster, 0, 1)
    assert answer.fallback.tolist() == [True, False]
    np.testing.assert_array_equal(answer.active[0], np.full(5, forecaster._statistics.tsb[0, 0]))
    np.testing.assert_array_equal(answer.quantiles[0, :, -1], 9)
    np.testing.assert_allclose(answer.weights.sum(axis=1), 1)
    ill.nonsense = None
    with caplog.at_level(logging.CRITICAL, logger=answers.__name__):
        forecaster.advance(store)
        answer = ask(forecaster, 0, 1, -1)
    assert answer.fallback.tolist() == [True, True, True]
    assert np.isfinite(answer.quantiles).all()


# -- questions ---------------------------------------------------------------------------------------------------------


def test_nobody_known_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """An empty store is advanced over in silence; a stranger gets the prior all the same, and no rows get no answer."""
    store = new_store()
    forecaster = MixtureForecaster(model_of(*LIGHT))
    forecaster.advance(store)
    assert ask(forecaster, -1).prior.tolist() == [True]
    assert ask(forecaster).active.shape == (0, 5)
    store.delete([A])
    run(forecaster, store, range(3))
    assert ask(forecaster, 0).active.shape == (1, 5)
    assert not caplog.records


def test_an_hour_passes_before_anybody_is_known() -> None:
    """Shapes are binned for no function at all as well: an idle platform is no error."""
    assert mixture.binned(np.zeros((0, 1440), np.float32), 10).shape == (0, 144)
    np.testing.assert_array_equal(mixture.binned(np.ones((2, 20), np.float32), 10), [[10, 10], [10, 10]])


def test_strangers_and_the_never_active_are_priors() -> None:
    """Row -1 gets the prior and so does a function that was never invoked; others of the same question do not."""
    forecaster = run(MixtureForecaster(model_of(*LIGHT)), new_store(), range(50))
    for horizon in (5, 30):
        answer = ask(forecaster, -1, 0, 2, -1, 1, horizon=horizon)
        assert answer.prior.tolist() == [True, False, True, True, False]
        assert not answer.fallback.any()
        assert_same(answers.take(answer, np.array([1, 2, 4]), horizon), ask(forecaster, 0, 2, 1, horizon=horizon))
        np.testing.assert_array_equal(answer.quantiles[0], answer.quantiles[3])


def test_a_longer_forecast_begins_like_a_shorter_one() -> None:
    """Horizon slices agree, within the kept forecast and past it, for any rows in any order."""
    forecaster = run(MixtureForecaster(model_of(*LIGHT, router=gated(3))), new_store(), range(150))
    whole = ask(forecaster, 2, 0, 1, horizon=30)
    for horizon in (1, 4, 5, 6, 29):
        part = ask(forecaster, 2, 0, 1, horizon=horizon)
        np.testing.assert_allclose(part.active, whole.active[:, :horizon], atol=1e-6)
        np.testing.assert_allclose(part.quantiles, whole.quantiles[:, :horizon], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(part.weights, whole.weights, atol=1e-6)


def test_other_levels_tell_of_the_same_distribution() -> None:
    """Asked for a subset of the levels, the answer is that subset."""
    forecaster = run(MixtureForecaster(model_of(*LIGHT)), new_store(), range(60))
    levels = DEFAULT_LEVELS[3:8]
    some = forecaster.forecast(np.array([1, 0]), 5, levels)
    np.testing.assert_allclose(some.quantiles, ask(forecaster, 1, 0).quantiles[..., 3:8], rtol=1e-5)


def test_a_real_model_serves(tiny_training: tuple[Trained, list[tuple[str, float]]], tiny_fleet: FloatArray) -> None:
    """Trained experts and gate over a replay: finite, coherent, better on timers than on chance, clusters looked up."""
    model = tiny_training[0].model
    forecaster, store = MixtureForecaster(model), SeriesStore(MINUTE, 480, 50)
    keys = [FunctionKey("fleet", f"{row:02}") for row in range(len(tiny_fleet))]
    for step, column in enumerate(tiny_fleet[:, :200].T):
        report(store, step, dict(zip(keys, column.astype(int).tolist(), strict=True)))
        if step % 20 == 19:
            forecaster.advance(store)
    rows = store.rows_of(keys)
    answer = forecaster.forecast(rows, 15, DEFAULT_LEVELS)
    assert np.isfinite(answer.quantiles).all()
    assert (np.diff(answer.quantiles, axis=2) >= 0).all()
    assert ((answer.active > 0) & (answer.active < 1)).all()
    np.testing.assert_allclose(answer.weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(answer.prior, tiny_fleet[:, :200].sum(axis=1) == 0)
    assert (forecaster._cluster >= 0).any()
    happened = tiny_fleet[:, 200:215] > 0
    brier = ((answer.active - happened) ** 2).mean()
    assert brier < 0.7 * (happened.mean() * (1 - happened.mean()))
