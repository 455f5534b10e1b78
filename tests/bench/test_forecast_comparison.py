"""The mixture against single models: who knows the truth wins, equals draw, and the result holds what it promises."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesp.types import FunctionKey
from mesp_bench.forecast_comparison import (
    Bootstrap,
    active_and_varying,
    behaviour_changed,
    evaluate_forecasts,
    improvements,
    rate_quartile,
    ratios,
)
from mesp_bench.forecast_replay import hard, replay, replay_tables, series_per_s
from mesp_bench.forecasting import forecast_trace
from mesp_bench.report import json_text
from mesp_bench.traces.model import Trace
from mesp_predictor.experts.base import Context, Prediction
from mesp_predictor.losses import log_loss
from mesp_predictor.training import untrained_model

if TYPE_CHECKING:
    from pathlib import Path

    from mesp_bench.forecast_replay import Replay
    from mesp_predictor.model import Model

FUNCTIONS, MINUTES = 12, 120
QUICK = Bootstrap(resamples=200)


def made_trace() -> Trace:
    """Timers, Poisson functions, one that is never called; every one is known by its first active minute."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.geomspace(0.1, 20, FUNCTIONS)[:, None], (FUNCTIONS, MINUTES)).astype(np.uint32)
    counts[0] = 0
    counts[1], counts[1, ::4] = 0, 1
    counts[2:, 0] = 1
    return Trace(
        name="made",
        functions=tuple(FunctionKey("o", f"a/{f}") for f in range(FUNCTIONS)),
        counts=counts,
        start_minute=0,
        apps=("o/a",) * FUNCTIONS,
        triggers=("timer", "timer", *["http", "queue"] * 5),
        memory_mb=np.full(FUNCTIONS, 128.0),
        app_memory_mb=np.full(FUNCTIONS, 640.0),
        duration_ms=np.full(FUNCTIONS, 500.0),
        duration_percentiles_ms=np.full((FUNCTIONS, 7), np.nan),
        arrivals_s=None,
        checksum="made",
    )


@dataclasses.dataclass(frozen=True)
class Seer:
    """Says what is in `counts`, with some certainty; rows in the trace's order."""

    name: str
    counts: np.ndarray
    certainty: float
    silent: bool = False

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        rows = len(context.counts)
        coming = np.zeros((rows, horizon), np.float32)
        found = self.counts[:rows, context.step : context.step + horizon]
        coming[: len(found), : found.shape[1]] = found
        active = np.where(coming > 0, self.certainty, 1 - self.certainty).astype(np.float32)
        quantiles = np.repeat(coming[..., None], len(levels), axis=2)
        return Prediction(np.full_like(quantiles, np.nan) if self.silent else quantiles, active)

    def save(self, directory: Path) -> None:
        raise AssertionError


def model_of(*experts: Any, selected: tuple[int, ...] = ()) -> Model:
    return dataclasses.replace(untrained_model(), experts=experts, selected=selected)


def told(_share: float) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def trace() -> Trace:
    return made_trace()


@pytest.fixture(scope="module")
def seen(trace: Trace) -> Replay:
    """One expert that knows, one that says the opposite of what comes, one that says nothing."""
    truth = trace.counts.astype(np.float32)
    opposite = 5 * ((truth == 0) & (truth.sum(axis=1, keepdims=True) > 0)).astype(np.float32)
    knowing, wrong = Seer("knowing", truth, 0.99), Seer("wrong", opposite, 0.9)
    model = model_of(knowing, wrong, Seer("mute", truth, 0.9, silent=True), selected=(1, 1))
    return replay(model, trace, told, learn=True)


@pytest.fixture(scope="module")
def replays(trace: Trace) -> dict[str, Replay]:
    return replay_tables(untrained_model(), trace, 0, lambda _stage, _share: None)


@pytest.fixture(scope="module")
def result(trace: Trace, replays: dict[str, Replay]) -> dict[str, Any]:
    return evaluate_forecasts(trace, replays, series_per_s(untrained_model(), trace), ["a note"], QUICK)


def test_the_hard_assignment_picks_among_experts_as_trained_and_as_they_serve() -> None:
    """Each function is answered by its cluster's expert, once as it was trained and once as refits made it."""

    def says(count: float) -> Prediction:
        return Prediction(np.full((3, 1, 1), count, np.float32), np.full((3, 1), 0.5, np.float32))

    model = model_of(Seer("one", np.zeros(0), 0.9), Seer("two", np.zeros(0), 0.9), selected=(0, 1, 1))
    said = hard({"one": says(1), "two": says(2)}, {"two": says(3)}, model, np.array([0, 1, -1]))
    assert {name: each.quantiles.ravel().tolist() for name, each in said.items()} == {
        "hard": [1, 3, 3],
        "hard_refitted": [1, 2, 2],
    }
    assert hard({"one": says(1), "two": says(2)}, {}, model_of(), np.array([0, 1, -1])) == {}
    assert list(hard({"one": says(1), "two": says(2)}, {}, model, np.array([0, 1, -1]))) == ["hard"]


def entry(result: dict[str, Any], against: str, metric: str) -> dict[str, Any]:
    (found,) = (e for e in result["comparisons"] if e["against"] == against and e["metric"] == metric)
    return dict(found)


def test_a_model_that_knows_beats_one_that_does_not(trace: Trace, seen: Replay) -> None:
    """Hedge finds the expert that knows: better than the hard choice of the wrong one, the interval excludes 0."""
    result = evaluate_forecasts(trace, {"online": seen}, {}, [], QUICK)
    for metric in ("scaled_quantile_loss", "log_loss_next_step", "wql"):
        for against in ("wrong", "hard", "moving_average"):
            found = entry(result, against, metric)
            assert found["improvement_pct"] > 50, (metric, against)
            assert 0 < found["ci95"][0] <= found["improvement_pct"] <= found["ci95"][1] <= 100
        best = entry(result, "best_single", metric)
        assert best["expert"] == "knowing"
    assert entry(result, "best_single", "log_loss_next_step")["ci95"][1] <= 1e-3  # nobody beats the truth
    assert result["models"]["oracle"]["log_loss_next_step"] == result["models"]["knowing"]["log_loss_next_step"]
    assert result["models"]["hard"]["wql"] == result["models"]["wrong"]["wql"]


def test_an_expert_that_says_nothing_is_named_and_not_scored(trace: Trace, seen: Replay) -> None:
    """No score, no comparison, no say in the combinations, and a note with the number of function-minutes."""
    result = evaluate_forecasts(trace, {"online": seen}, {}, [], QUICK)
    assert np.isnan(result["models"]["mute"]["scaled_quantile_loss"])
    assert np.isnan(entry(result, "mute", "wql")["improvement_pct"])
    assert json.loads(json_text(result))["models"]["mute"]["wql"] is None
    assert f"mute gave no forecast in {FUNCTIONS * 60} of the scored function-minutes" in " ".join(result["notes"])
    assert seen.tallies["uniform"].steps.min() == 60


def test_equal_models_compare_to_nothing(trace: Trace) -> None:
    """Two experts that say the same: all ways to weigh them score the same, to the last bit, and the interval is 0."""
    truth = trace.counts.astype(np.float32)
    replayed = replay(
        model_of(Seer("one", truth, 0.7), Seer("two", truth, 0.7), selected=(0, 1)), trace, told, learn=True
    )
    result = evaluate_forecasts(trace, {"online": replayed}, {}, [], QUICK)
    for against in ("one", "two", "hard", "uniform", "hedge", "oracle", "best_single"):
        found = entry(result, against, "log_loss_next_step")
        assert found["improvement_pct"] == pytest.approx(0, abs=1e-3)
        assert found["ci95"] == pytest.approx([0, 0], abs=1e-3)
    np.testing.assert_array_equal(replayed.tallies["one"].deciles, replayed.tallies["two"].deciles)


def test_equally_good_models_draw() -> None:
    """Losses of the same distribution: the interval holds 0; shifted by a fifth it excludes 0."""
    rng = np.random.default_rng(5)
    common = rng.gamma(2, 1, 300)
    ours, theirs = (common * rng.uniform(0.8, 1.2, 300) for _ in range(2))
    (_, draw), (gain, win) = improvements(
        np.stack([ours, ours], axis=1), np.stack([theirs, 1.25 * theirs], axis=1), Bootstrap()
    )
    assert draw[0] < 0 < draw[1]
    assert 0 < win[0] < gain < win[1]
    assert gain == pytest.approx(20, abs=3)


def test_improvements_and_ratios_by_hand() -> None:
    """1 - 3 / 4 is 25 %, a function without a value on one side leaves its pair, and one function has no interval."""
    ours = np.array([[1.0, 1.0], [2.0, np.nan]])
    theirs = np.array([[2.0, 4.0], [2.0, 1.0]])
    (first, interval), (second, _) = improvements(ours, theirs, QUICK)
    assert first == pytest.approx(25)
    assert interval == pytest.approx((0, 50))
    assert second == pytest.approx(75)
    estimate, low, high = ratios(np.array([[3.0]]), np.array([[4.0]]), QUICK)
    assert estimate[0] == 0.75
    assert np.isnan([low[0], high[0]]).all()
    assert np.isnan(ratios(np.ones((3, 1)), np.zeros((3, 1)), QUICK)).all()


def test_the_bootstrap_interval_covers_as_it_says() -> None:
    """Of 100 samples of 60 functions about 95 intervals hold the true ratio of means."""
    rng = np.random.default_rng(8)
    above, below = rng.gamma(4, 1, (60, 100)), rng.gamma(4, 2, (60, 100))
    _, low, high = ratios(above, below, Bootstrap(500, 1))
    assert 88 <= ((low < 0.5) & (high > 0.5)).sum() <= 99


def test_mesp_is_scored_as_it_serves(trace: Trace, replays: dict[str, Replay]) -> None:
    """The tally of `mesp` has the log loss of the forecasts that a plain replay makes, function by function."""
    active = forecast_trace(untrained_model(), trace, told, learn=True).active[0]
    tally = replays["online"].tallies["mesp"]
    half = slice(MINUTES // 2, None)
    known = np.arange(2, FUNCTIONS)  # invoked in the first minute, so known to both from there on
    expected = log_loss(trace.counts[known, half] > 0, active[known, half])
    np.testing.assert_allclose(tally.step_log_loss[known] / tally.steps[known], expected, rtol=1e-5)
    assert tally.windows[0] == len(range(MINUTES // 2, MINUTES - 15 + 1, 5))
    assert tally.seen_steps[0] == 0


def test_the_future_is_not_read(trace: Trace) -> None:
    """What is said of the last minute is the same whatever comes in it; only what it scores differs."""
    counts = trace.counts[:, :61].copy()
    cut = dataclasses.replace(trace, counts=np.where(np.arange(61) < 60, counts, 0).astype(np.uint32))
    one, two = (
        replay(untrained_model(), each, told, learn=True).tallies["mesp"]
        for each in (cut, dataclasses.replace(trace, counts=counts))
    )
    np.testing.assert_array_equal(one.reliability[..., :2], two.reliability[..., :2])
    assert (one.step_log_loss != two.step_log_loss).any()


def test_the_result_holds_what_is_promised(result: dict[str, Any]) -> None:
    """The form of `forecasts.json`: models with their scores, comparisons with intervals, every slice, a protocol."""
    assert set(result["models"]) == {
        "mesp", "hedge", "uniform", "oracle", "seasonal", "intermittent", "hazard", "context_mixing", "gbm", "gbm_refitted",
        "moving_average", "seasonal_naive",
    }  # fmt: skip
    silent = [note for note in result["notes"] if "gave no forecast" in note]
    assert {note.split()[0] for note in silent} == {"gbm", "gbm_refitted"}  # two hours are too little to refit on
    promised = {
        "scaled_quantile_loss",
        "wql",
        "log_loss_next_step",
        "calibration_error",
        "pit_deviation",
        "series_per_s",
    }
    assert all(promised <= set(score) for score in result["models"].values())
    assert result["models"]["mesp"]["series_per_s"] > 0
    assert result["models"]["oracle"]["series_per_s"] is None
    assert {
        "never_seen",
        "from_zero",
        "no_timers",
        "by_trigger",
        "by_rate_quartile",
        "by_cluster",
        "floor_sensitivity",
    } <= set(result["slices"])
    assert set(result["slices"]["by_rate_quartile"]) == {"1", "2", "3", "4"}
    assert set(result["slices"]["by_trigger"]) == {"timer", "http", "queue"}
    assert set(result["slices"]["floor_sensitivity"]) == {"0.01", "0.1", "1", "first_half"}
    assert result["slices"]["never_seen"]["mesp"] != result["models"]["mesp"] or result["slices"]["from_zero"]
    assert result["protocol"]["scored_minutes"] == [60, 119]
    assert result["protocol"]["table"] == "online"
    assert result["protocol"]["slice_functions"]["no_timers"] == 10
    assert result["notes"][0] == "a note"
    assert any(note.startswith("hard was not scored") for note in result["notes"])
    assert all(sum(shares.values()) == pytest.approx(1, abs=1e-3) for shares in result["weights"].values())
    for found in (result["comparisons"], *result["slice_comparisons"].values()):
        assert {"model", "against", "metric", "improvement_pct", "ci95"} <= set(found[0])
        assert [e["metric"] for e in found if e["against"] == "best_single"] == [
            "scaled_quantile_loss",
            "log_loss_next_step",
            "wql",
        ]


def test_the_oracle_bounds_every_expert(result: dict[str, Any]) -> None:
    """In hindsight no expert is better, in any slice and in both scores that it chooses by."""
    for models in (result["models"], *result["slices"]["by_rate_quartile"].values()):
        for metric in ("scaled_quantile_loss", "log_loss_next_step"):
            best = min(models[name][metric] for name in ("seasonal", "intermittent", "hazard", "context_mixing"))
            assert models["oracle"][metric] <= best + 1e-12


def test_a_higher_floor_makes_rare_functions_matter_less(result: dict[str, Any]) -> None:
    """The scaled loss falls as the floor rises."""
    ways = result["slices"]["floor_sensitivity"]
    losses = [ways[floor]["mesp"]["scaled_quantile_loss"] for floor in ("0.01", "0.1", "1")]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(result["models"]["mesp"]["scaled_quantile_loss"])


def test_changed_behaviour_is_a_rule() -> None:
    """Twice the rate, a slower timer, and one that falls silent have changed; the same Poisson and the same timer have not."""
    rng = np.random.default_rng(2)
    counts = np.zeros((6, 1440))
    counts[0] = rng.random(1440) < np.repeat([0.1, 0.25], 720)
    counts[1, :720:5] = counts[1, 720::15] = 1
    counts[2, :720:30] = 1
    counts[3] = rng.random(1440) < 0.2
    counts[4, ::10] = 1
    np.testing.assert_array_equal(behaviour_changed(counts), [True, True, True, False, False, False])


def test_active_and_varying_is_a_rule() -> None:
    """Nine minutes of ten with an invocation, and no count in nine of ten."""
    counts = np.tile(np.array([3.0, 5.0]), (4, 10))
    counts[0, 0] = counts[1, :4] = 0
    counts[2] = 3
    counts[3, 1:] = 3
    np.testing.assert_array_equal(active_and_varying(counts), [True, False, False, False])


def test_quartiles_hold_a_quarter_each(trace: Trace) -> None:
    """By invocations, the rarest first; numbers that four does not divide are off by one at most."""
    quartile = rate_quartile(trace)
    np.testing.assert_array_equal(np.bincount(quartile)[1:], [3, 3, 3, 3])
    totals = trace.counts.sum(axis=1)
    assert totals[quartile == 1].max() <= totals[quartile == 2].min()
    sizes = np.bincount(rate_quartile(trace.select(np.arange(10))))[1:]
    assert sizes.max() - sizes.min() <= 1


def test_the_same_seed_gives_the_same_result(trace: Trace, replays: dict[str, Replay], result: dict[str, Any]) -> None:
    """Everything but the speeds is the same to the bit."""
    again = {**replays, "online": replay(untrained_model(), trace, told, learn=True)}
    speeds = {name: score["series_per_s"] for name, score in result["models"].items()}
    assert json_text(evaluate_forecasts(trace, again, speeds, ["a note"], QUICK)) == json_text(result)
