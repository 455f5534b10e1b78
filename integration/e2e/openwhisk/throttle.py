"""A namespace's limits as one controller keeps them: calls in a minute of the clock, and calls in flight.

A refused call counts toward the minute. The real one counts calls in flight while others are being admitted, and may let
one more in. Source: RateThrottler.scala and ActivationThrottler.scala of apache/openwhisk.
"""

from __future__ import annotations

from collections import Counter


class Throttle:
    """Of one namespace; the defaults are OpenWhisk's."""

    def __init__(self, per_minute: int = 60, concurrent: int = 30) -> None:
        self.per_minute = per_minute
        self.concurrent = concurrent
        self._counts: Counter[int] = Counter()

    def refusal(self, now_ms: int, in_flight: int, calls: int = 1) -> str | None:
        """The sentence with which a call is refused now, which stands for so many; None: it is admitted."""
        minute = now_ms // 60_000
        self._counts[minute] += calls
        if self._counts[minute] > self.per_minute:
            return f"Too many requests in the last minute (count: {self._counts[minute]}, allowed: {self.per_minute})."
        if in_flight >= self.concurrent:
            return f"Too many concurrent requests in flight (count: {in_flight}, allowed: {self.concurrent})."
        return None
