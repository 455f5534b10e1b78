"""How many markers a namespace's limits leave room for, beside the calls of its users.

OpenWhisk counts a namespace's calls by the minute of the clock, refused ones too, and the calls in flight
(RateThrottler.scala, ActivationThrottler.scala of apache/openwhisk). Markers are calls like any other. So they get
what is left of a limit after a margin, after the most that users called in one of the last minutes, and after the
markers of this minute; and none for the rest of a minute in which anybody's marker was refused.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mesp_plugin.openwhisk.rest import Limits

_MINUTE_MS: Final = 60_000
_MINUTES: Final = 5


class Budget:
    """Room for markers; all times are injected, milliseconds since the epoch."""

    def __init__(self, limits: Limits, margin_share: float) -> None:
        self._per_minute = math.floor(limits.per_minute * (1 - margin_share))
        self._concurrent = math.floor(limits.concurrent * (1 - margin_share))
        self._calls: Counter[int] = Counter()
        self._markers: Counter[int] = Counter()
        self._closed_minute = -1

    def call(self, at_ms: int) -> None:
        """A user's call arrived."""
        self._calls[at_ms // _MINUTE_MS] += 1

    def sent(self, now_ms: int, count: int) -> None:
        """Markers went out, whatever became of them."""
        self._markers[now_ms // _MINUTE_MS] += count

    def throttled(self, now_ms: int) -> None:
        """A marker was answered with 429: no more in this minute."""
        self._closed_minute = now_ms // _MINUTE_MS

    def room(self, now_ms: int, in_flight: int) -> tuple[int, str]:
        """(markers that may go out now, the limit that allows no more as a clause)."""
        minute = now_ms // _MINUTE_MS
        for counts in (self._calls, self._markers):
            for old in [key for key in counts if key < minute - _MINUTES]:
                del counts[old]
        if minute == self._closed_minute:
            return 0, "the namespace was throttled in this minute"
        busiest = max((self._calls[minute - ago] for ago in range(_MINUTES + 1)), default=0)
        rate = self._per_minute - busiest - self._markers[minute]
        concurrent = self._concurrent - in_flight
        if concurrent < rate:
            return max(
                0, concurrent
            ), f"{in_flight} calls are in flight, and markers may bring them to {self._concurrent}"
        return max(0, rate), (
            f"of {self._per_minute} calls a minute users may need {busiest} and markers took {self._markers[minute]}"
        )
