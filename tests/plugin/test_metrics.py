"""The plugin's metrics: what a tick did, under names that say their unit, on a loopback page."""

from __future__ import annotations

import urllib.request

import pytest

from mesp.errors import UnavailableError
from mesp.types import Rejection
from mesp_placement.model import Plan
from mesp_plugin.loop import TickReport
from mesp_plugin.metrics import LoopMetrics, metrics_page
from mesp_plugin.platform import Outcomes

REPORT = TickReport(
    now_ms=90_000,
    steps=1,
    rejections=(Rejection(None, 0, "too old"),),
    predictor_error="away",
    fresh_forecast=True,
    forecast_as_of_ms=60_000,
    plan=Plan(errors=("unknown node",), cold_start_price_gb_s=80.5),
    outcomes=Outcomes(prewarmed=3, released=2, refused=("full",)),
)


def test_a_tick_is_counted_once_in_each_metric() -> None:
    """Every number of a report arrives in the metric of its name."""
    metrics = LoopMetrics()
    metrics.note(REPORT)
    expected = {
        "rejections_total": 1,
        "predictor_failures_total": 1,
        "forecasts_total": 1,
        "ticks_without_forecast_total": 0,
        "forecast_as_of_timestamp_seconds": 60,
        "prewarms_total": 3,
        "releases_total": 2,
        "refused_total": 1,
        "plan_errors_total": 1,
        "cold_start_price_gb_s": 80.5,
    }
    for name, value in expected.items():
        assert metrics.registry.get_sample_value(f"mesp_loop_{name}") == value, name


def test_two_loops_do_not_share_metrics() -> None:
    """Each loop has a registry of its own."""
    first, second = LoopMetrics(), LoopMetrics()
    first.note(REPORT)
    assert second.registry.get_sample_value("mesp_loop_prewarms_total") == 0


def test_the_page_shows_every_metric_and_ends_with_its_context() -> None:
    """A page on a free loopback port lists the metrics; afterwards the port is free again."""
    with metrics_page(LoopMetrics(), 0) as port:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert "mesp_loop_prewarms_total 0.0" in page
    with metrics_page(LoopMetrics(), port) as again:
        assert again == port


def test_a_taken_port_is_one_sentence() -> None:
    """A second page on the same port is refused, naming the setting and the port."""
    with (
        metrics_page(LoopMetrics(), 0) as port,
        pytest.raises(UnavailableError, match=f"metrics_port = {port}: cannot listen on"),
        metrics_page(LoopMetrics(), port),
    ):
        pass


def test_without_a_port_there_is_no_page() -> None:
    """None means no page."""
    with metrics_page(LoopMetrics(), None) as port:
        assert port is None
