"""How far a double's messages and times may be from those of a golden trace."""

from __future__ import annotations

from typing import Any

#: What belongs to the moment or to chance, wherever it stands in a message.
_OWN = {"transid", "api_key", "start", "end", "duration", "waitTime", "initTime", "timestamp"}


def near(real_ms: float, double_ms: float, slack_ms: float = 100) -> bool:
    """Within 100 ms and a fifth."""
    return abs(real_ms - double_ms) <= slack_ms + 0.2 * abs(real_ms)


def same(real: Any, double: Any, path: str = "") -> list[str]:
    """Where two messages differ: in members, types, or values other than those of the moment."""
    if isinstance(real, dict) and isinstance(double, dict) and real.keys() == double.keys():
        named = f"{path}.{real['key']}" if set(real) == {"key", "value"} else path
        return [found for key in real for found in same(real[key], double[key], f"{named}.{key}")]
    if isinstance(real, list) and isinstance(double, list) and len(real) == len(double):
        return [found for ours, theirs in zip(real, double, strict=True) for found in same(ours, theirs, path)]
    own = _OWN & set(path.split("."))
    return [] if type(real) is type(double) and (own or real == double) else [f"{path}: {real!r} is not {double!r}"]
