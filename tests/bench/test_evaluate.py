"""`mesp evaluate frontier` from a trace to its dictionary, without training: MESP from zero."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench import cli
from mesp_bench.arrivals import ArrivalMode
from mesp_bench.evaluate import EventPlan, evaluate_frontier
from mesp_bench.forecasting import cached_forecast, forecast_trace, without_functions_of
from mesp_bench.policies import BASELINES
from mesp_bench.traces.convert import Format, convert_trace
from mesp_bench.traces.model import Trace
from mesp_predictor.training import untrained_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MINUTES = 240


def made_trace() -> Trace:
    """A 5-minute timer, a busy function, a rare one, one that begins late, and one that is never called."""
    rng = np.random.default_rng(0)
    counts = np.zeros((5, MINUTES), np.uint32)
    counts[0, ::5] = 1
    counts[1] = rng.poisson(30, MINUTES)
    counts[2] = rng.random(MINUTES) < 0.03
    counts[3, 200:] = rng.poisson(1, 40)
    functions = len(counts)
    return Trace(
        name="made",
        functions=tuple(FunctionKey("o", f"a/{f}") for f in range(functions)),
        counts=counts,
        start_minute=0,
        apps=("o/a",) * functions,
        triggers=("timer", "http", "http", "queue", "http"),
        memory_mb=np.full(functions, 128.0),
        app_memory_mb=np.full(functions, 640.0),
        duration_ms=np.full(functions, 500.0),
        duration_percentiles_ms=np.full((functions, 7), np.nan),
        arrivals_s=None,
        checksum="made",
    )


def silent(_share: float) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def result() -> Mapping[str, Any]:
    trace = made_trace()
    forecasts = {"online": forecast_trace(untrained_model(), trace, silent, learn=True)}
    plan = EventPlan(modes=(ArrivalMode.UNIFORM, ArrivalMode.BUNCHED), seeds=2, workers=2)
    return evaluate_frontier(trace, forecasts, plan, ["a note"], lambda _stage, _share: None)


def test_a_minute_is_forecast_from_the_minutes_before_it_alone() -> None:
    """Changing a minute changes no forecast of it or of an earlier one, one or two steps ahead."""
    trace = made_trace()
    counts = trace.counts.copy()
    counts[:, 150] = 7
    changed = dataclasses.replace(trace, counts=counts)
    before, after = (forecast_trace(untrained_model(), each, silent, learn=True) for each in (trace, changed))
    for h in range(2):
        np.testing.assert_array_equal(before.active[h, :, : 151 + h], after.active[h, :, : 151 + h])
        assert (before.active[h, :, 151 + h] != after.active[h, :, 151 + h]).any()


def test_the_timer_is_learned_and_the_unseen_are_not_forecast() -> None:
    """After two hours the 5-minute timer is expected on its minutes and not between; a function unseen has 0."""
    active = forecast_trace(untrained_model(), made_trace(), silent, learn=True).active[0]
    assert active[0, 120::5].min() > 0.8
    assert active[0, 121::5].max() < 0.2
    assert active[4].max() == 0
    assert active[3, :200].max() == 0


def test_the_result_has_every_policy_and_slice(result: Mapping[str, Any]) -> None:
    """The dictionary of `frontier.json`: every baseline and MESP, each knob scored, slices beside the top level."""
    assert set(result["policies"]) == {*BASELINES, "mesp"}
    assert result["protocol"]["scored_minutes"] == [120, 239]
    assert result["protocol"]["compulsory"] == 1
    assert set(result["slices"]) == {"no_timers", "app_memory", "unweighted"}
    assert result["provenance"]["data"] == {"name": "made", "checksum": "made"}
    for name in result["policies"].keys() - {"hybrid_histogram_app"}:  # an app is loaded before its newest function
        assert all(point["minute"]["cold"] >= 1 for point in result["policies"][name])
    ten = next(point for point in result["policies"]["fixed"] if point["knob"] == 10)
    assert ten["minute"]["waste_pct"] == 100
    assert ten["event"]["uniform"]["waste_pct"]["mean"] == 100
    low, high = ten["event"]["uniform"]["cold"]["ci95"]
    assert low <= ten["event"]["uniform"]["cold"]["mean"] <= high


def test_a_higher_price_buys_fewer_cold_starts(result: Mapping[str, Any]) -> None:
    """Along MESP's knob cold starts fall and waste rises, in minute accounting."""
    points = [point["minute"] for point in result["policies"]["mesp"]]
    assert all(a["cold"] >= b["cold"] for a, b in itertools.pairwise(points))
    assert all(a["waste_gb_s"] <= b["waste_gb_s"] for a, b in itertools.pairwise(points))


def test_oracles_are_not_played_in_event_accounting(result: Mapping[str, Any]) -> None:
    """Their schedules know counts and not arrivals: they would bound nothing."""
    assert all(point["event"] is None for point in result["policies"]["oracle_prewarm"])


def test_functions_that_are_scored_are_not_trained_on() -> None:
    """A series that is in the scored trace is left out of the training trace, whatever it is called there."""
    trace = made_trace()
    renamed = dataclasses.replace(trace, functions=tuple(FunctionKey("x", f"{f}") for f in range(5)))
    kept, removed = without_functions_of(renamed, trace.select(np.array([0, 2])))
    assert removed == 2
    assert [key.name for key in kept.functions] == ["1", "3", "4"]


def test_a_forecast_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it comes from the cache, the same to the bit."""
    monkeypatch.setenv("MESP_CACHE", str(tmp_path))
    first = cached_forecast(untrained_model(), made_trace(), silent, learn=False)
    told: list[float] = []
    again = cached_forecast(untrained_model(), made_trace(), told.append, learn=False)
    assert told == []
    np.testing.assert_array_equal(first.quantiles, again.quantiles)
    assert len(list(tmp_path.iterdir())) == 1


def test_contradictions_and_short_traces_are_refused(tmp_path: Path) -> None:
    """--train beside --model, and a trace too short to warm up and score, are one sentence each."""
    with pytest.raises(InputError, match="--train and --model exclude each other"):
        cli.frontier(trace=tmp_path, out=tmp_path, train=tmp_path, model=tmp_path)
    trace = made_trace()
    convert_trace(dataclasses.replace(trace, counts=trace.counts[:, :60]), tmp_path / "short", Format.PARQUET, silent)
    with pytest.raises(InputError, match="covers 60 minutes, at least 120"):
        cli.frontier(trace=tmp_path / "short", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
