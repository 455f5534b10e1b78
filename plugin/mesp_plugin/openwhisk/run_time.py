"""How long a function runs, as its records tell one by one."""

from __future__ import annotations

from typing import Final

#: Weight of the newest run.
_NEWEST: Final = 0.2


def mean_run_ms(mean_ms: float | None, newest_ms: int) -> float:
    """The mean after one more run, older ones fading; None: it is the first. A run of less than nothing counts as none."""
    newest_ms = max(0, newest_ms)
    return newest_ms if mean_ms is None else mean_ms + _NEWEST * (newest_ms - mean_ms)
