"""Calls as two lists show them, each counted once: those in flight, and records of runs that ended.

A call is in flight from its admission on, and its record appears some time after its run. So that no record is
missed, the next look must read from the oldest call whose record is still out (`since_ms`); so that none is counted
twice, ids are remembered for as long as they may be read again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.messages import ActivationRecord

#: A record is stored within so long after its run.
STORED_MS: Final = 30_000
#: What one look back at the start covers: warm containers were used within it, and runs last 5 minutes at most.
FIRST_LOOK_MS: Final = 930_000


class Arrival(NamedTuple):
    """A call that was not known before."""

    activation_id: str
    function: FunctionKey
    at_ms: int


@dataclass(slots=True)
class _Open:
    function: FunctionKey
    earliest_ms: int
    seen_ms: int


class Sightings:
    """The ids of calls that were seen; times are milliseconds since the epoch."""

    def __init__(self) -> None:
        self._looked_ms: int | None = None
        self._open: dict[str, _Open] = {}
        self._recorded: dict[str, int] = {}

    def since_ms(self, now_ms: int) -> int:
        """The start of the oldest run whose record may be new."""
        if self._looked_ms is None:
            return now_ms - FIRST_LOOK_MS
        return min([self._looked_ms, *(call.earliest_ms for call in self._open.values())]) - STORED_MS

    def sent(self, activation_id: str, function: FunctionKey, now_ms: int) -> None:
        """A call of our own was admitted: no arrival will be told of it."""
        self._open.setdefault(activation_id, _Open(function, now_ms, now_ms))

    def look(
        self, in_flight: Iterable[tuple[str, FunctionKey]], records: Iterable[ActivationRecord], now_ms: int
    ) -> tuple[list[Arrival], list[ActivationRecord]]:
        """Takes in both lists, the records read from `since_ms` on, and after those in flight.

        Returns:
            calls that are new, at the time of their records, else half-way between the last look and this one;
            records that are new. Both in order of arrival.
        """
        looked_ms = now_ms if self._looked_ms is None else self._looked_ms
        # What is in flight at the first look may have begun long before.
        earliest_ms = now_ms - FIRST_LOOK_MS if self._looked_ms is None else looked_ms
        arrivals: list[Arrival] = []
        fresh: list[ActivationRecord] = []
        for record in sorted(records, key=lambda one: (arrived_ms(one), one.activation_id)):
            if record.activation_id in self._recorded:
                continue
            fresh.append(record)
            self._recorded[record.activation_id] = record.start_ms
            if self._open.pop(record.activation_id, None) is None:
                arrivals.append(Arrival(record.activation_id, record.function, arrived_ms(record)))
        for activation_id, function in in_flight:
            if activation_id in self._recorded:
                continue
            if activation_id not in self._open:
                arrivals.append(Arrival(activation_id, function, (looked_ms + now_ms) // 2))
            call = self._open.setdefault(activation_id, _Open(function, earliest_ms, now_ms))
            call.seen_ms = now_ms
        self._looked_ms = now_ms
        # What ended and left no record within a while will leave none; what cannot be read again need not be known.
        self._open = {key: call for key, call in self._open.items() if now_ms - call.seen_ms < 2 * STORED_MS}
        oldest_ms = self.since_ms(now_ms)
        self._recorded = {key: start_ms for key, start_ms in self._recorded.items() if start_ms >= oldest_ms}
        return sorted(arrivals, key=lambda call: (call.at_ms, call.activation_id)), fresh

    def busy(self) -> Counter[FunctionKey]:
        """Calls without a record, by function."""
        return Counter(call.function for call in self._open.values())


def arrived_ms(record: ActivationRecord) -> int:
    """When the call came; `start` is when its container was there."""
    return record.start_ms - record.wait_ms
