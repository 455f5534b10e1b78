"""Every metric of the plugin: its name, unit and description, here and nowhere else."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from mesp.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesp_plugin.loop import TickReport
    from mesp_plugin.openwhisk.platform import Tally

#: From a handful of functions to a slow predictor of 50,000.
_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class LoopMetrics:
    """One loop's metrics, and its process's own (``process_*``), in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.tick_seconds = Histogram(
            "mesp_loop_tick_seconds",
            "Time one tick takes, from observing to what became of the plan",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.ticks_failed = self._counter("ticks_failed", "Ticks that the platform failed: nothing was done in them")
        self.ticks_skipped = self._counter("ticks_skipped", "Ticks left out because an earlier one took too long")
        self.predictor_failures = self._counter("predictor_failures", "Ticks in which a call to the predictor failed")
        self.rejections = self._counter("rejections", "Observed items that the predictor or the wire refused")
        self.forecasts = self._counter("forecasts", "Forecasts received")
        self.forecast_as_of_seconds = Gauge(
            "mesp_loop_forecast_as_of_timestamp_seconds",
            "End of the last step that the forecast which decided last knows, seconds since the epoch; 0 for none yet",
            registry=self.registry,
        )
        self.ticks_without_forecast = self._counter(
            "ticks_without_forecast", "Ticks decided without a forecast, for none came or it was too old"
        )
        self.prewarms = self._counter("prewarms", "Containers ordered")
        self.releases = self._counter("releases", "Containers removed")
        self.refused = self._counter("refused", "Items of a plan that the platform declined")
        self.plan_errors = self._counter("plan_errors", "Items of a snapshot that made no sense")
        self.price_gb_s = Gauge(
            "mesp_loop_cold_start_price_gb_s", "Price of a cold start that decided last, GB s", registry=self.registry
        )

    def _counter(self, name: str, description: str) -> Counter:
        return Counter(f"mesp_loop_{name}", description, registry=self.registry)

    def note(self, report: TickReport) -> None:
        """Takes in what one tick did."""
        self.rejections.inc(len(report.rejections))
        self.predictor_failures.inc(report.predictor_error is not None)
        self.forecasts.inc(report.fresh_forecast)
        if report.forecast_as_of_ms is None:
            self.ticks_without_forecast.inc()
        else:
            self.forecast_as_of_seconds.set(report.forecast_as_of_ms / 1e3)
        self.prewarms.inc(report.outcomes.prewarmed)
        self.releases.inc(report.outcomes.released)
        self.refused.inc(len(report.outcomes.refused))
        self.plan_errors.inc(len(report.plan.errors))
        self.price_gb_s.set(report.plan.cold_start_price_gb_s)


class OpenWhiskMetrics:
    """What the plugin beside OpenWhisk adds to the page, in the loop's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, description: str) -> Counter:
            return Counter(f"mesp_openwhisk_{name}", description, registry=registry)

        self.calls = counter("calls", "Users' calls whose runs ended")
        self.cold_starts = counter("cold_starts", "Users' calls that waited for a container to be initialised")
        self.prewarmed = counter("prewarmed", "Containers that MESP's orders made")
        self.prewarmed_met = counter("prewarmed_met", "Users' calls that found a container of MESP's waiting")
        self.shadow_prewarmed = counter("shadow_prewarmed", "Containers that would have been ordered (mode shadow)")
        self.shadow_met = counter("shadow_met", "Cold calls that would have found such a container (mode shadow)")
        self.malformed = counter("malformed_messages", "Messages on the platform's bus that could not be read")
        self.unanswered = counter("unanswered_markers", "Markers that no invoker answered")
        self.held = Gauge(
            "mesp_openwhisk_held_containers", "Containers that MESP added and nobody has used", registry=registry
        )

    def note(self, more: Tally, *, shadow: bool) -> None:
        """Adds to the counters."""
        self.calls.inc(more.calls)
        self.cold_starts.inc(more.cold)
        (self.shadow_prewarmed if shadow else self.prewarmed).inc(more.ordered)
        (self.shadow_met if shadow else self.prewarmed_met).inc(more.met)


@contextmanager
def metrics_page(metrics: LoopMetrics, port: int | None) -> Iterator[int | None]:
    """Serves the metrics at ``http://127.0.0.1:port/metrics`` inside the context; gives the port, None without one.

    Raises:
        UnavailableError: the port is taken.
    """
    if port is None:
        yield None
        return
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=metrics.registry)
    except OSError as error:
        raise UnavailableError(
            f"metrics_port = {port}: cannot listen on 127.0.0.1:{port}: {error.strerror or error}; choose a free port"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
