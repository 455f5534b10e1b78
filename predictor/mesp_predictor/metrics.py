"""Every metric of the predictor sidecar: its name, unit and description, here and nowhere else."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: From a warm handful of functions to 50,000 on a slow core.
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class PredictorMetrics:
    """One sidecar's metrics, in a registry of their own.

    The age of the forecasts is ``time() - mesp_predictor_as_of_timestamp_seconds``, as Prometheus advises for ages.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tick_seconds = Histogram(
            "mesp_predictor_tick_seconds",
            "Time the model takes to learn what was observed since it last did",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.forecast_seconds = Histogram(
            "mesp_predictor_forecast_seconds",
            "Time from a forecast request to its first chunk, waiting included",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.functions = Gauge("mesp_predictor_functions", "Functions known", registry=self.registry)
        self.as_of_seconds = Gauge(
            "mesp_predictor_as_of_timestamp_seconds",
            "End of the newest closed step, seconds since the epoch; 0 when none was seen",
            registry=self.registry,
        )
        self.observed_counts = Counter(
            "mesp_predictor_observed_counts", "Function-step counts taken in", registry=self.registry
        )
        self.rejections = Counter(
            "mesp_predictor_rejections", "Observed items that were refused", registry=self.registry
        )
        self.calibration_error = Gauge(
            "mesp_predictor_calibration_error",
            "Mean distance of probability and frequency of activity in the next step, half-life 720 steps",
            registry=self.registry,
        )
        self.log_loss = Gauge(
            "mesp_predictor_log_loss",
            "Log loss of activity in the next step, half-life 720 steps",
            registry=self.registry,
        )
        self.refits = Counter(
            "mesp_predictor_refits",
            "Refits of experts, by who was elected: candidate, serving, or the one as it was trained",
            ("expert", "elected"),
            registry=self.registry,
        )
        self.failures = Counter(
            "mesp_predictor_failures", "Bugs met while answering or learning; the log has each", registry=self.registry
        )
