"""Calls as two lists show them, each counted once: those in flight, and records of runs that ended.

A call is in flight from its admission on, and its record appears within `STORED_MS` after its run. So that none is
missed, a look must read from the oldest call whose record may still have been out at the last one (`since_ms`): one
that was seen in flight began after the look before that; one that was never seen began and ended between two looks, the
later of which was at most `STORED_MS` before the last. So that none is counted twice, ids are remembered for as long
as they may be read again.
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
        self._looks_ms: list[int] = []
        self._open: dict[str, _Open] = {}
        self._recorded: dict[str, int] = {}

    def since_ms(self, now_ms: int) -> int:
        """The start of the oldest run whose record may be new."""
        if not self._looks_ms:
            return now_ms - FIRST_LOOK_MS
        return min([self._looks_ms[0], *(call.earliest_ms for call in self._open.values())])

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
        if not self._looks_ms:  # what is in flight or has just ended may have begun long before
            self._looks_ms = [now_ms - FIRST_LOOK_MS]
            looked_ms, earliest_ms = now_ms, now_ms - FIRST_LOOK_MS
        else:
            looked_ms = earliest_ms = self._looks_ms[-1]
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
        self._looks_ms.append(now_ms)
        while self._looks_ms[1] <= now_ms - STORED_MS:
            del self._looks_ms[0]
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
