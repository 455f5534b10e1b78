"""Reading a frontier: what the curves of `frontier.json` say at a given number of cold starts, or of waste.

A result is the dictionary of EVALUATION.md ("Result files"): policies are lists of points, one per knob, each scored
in minute accounting and, per arrival mode, in event accounting. Any value may be null, which means "not measured"; a
point without cold starts or waste is then no point of that curve. Reports and plots read results through here alone.

Between neighbouring knobs a curve is taken as straight in (waste, log cold starts), as the plots draw it. Policies are
compared at one *anchor*: the cold starts of the hybrid histogram with range 240, the strongest published baseline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MESP = "mesp"
ORACLES = ("oracle_keepalive", "oracle_prewarm")
MODES = ("uniform", "poisson", "bunched")

#: Slices that score the same functions with MESP trained differently: policies that learn from no other function
#: have the top level's numbers there.
TRAINING_SLICES = ("never_seen", "from_zero")
TRAINED = (MESP, "femux", "gbm_online")

DEFAULT_PRICE_GB_S = 80.5

#: How a value that was not measured is shown.
MISSING = "—"

#: The knob a policy ships with, or that its paper recommends; those with a price use the report's.
AS_SHIPPED: dict[str, float] = {
    "fixed": 10,
    "openwhisk": 10,
    "hybrid_histogram": 240,
    "hybrid_histogram_app": 240,
    "kpa": 60,
}

_LABELS = {
    "fixed": "fixed keep-alive",
    "openwhisk": "OpenWhisk",
    "hybrid_histogram_app": "hybrid, per app",
    "kpa": "Knative KPA",
    "oracle_keepalive": "oracle keep-alive",
    "oracle_prewarm": "oracle prewarm",
    "faascache": "FaasCache",
    "icebreaker": "IceBreaker",
    "femux": "FeMux",
    "spes": "SPES",
    "gbm_online": "gradient-boosted hazard",
    MESP: "MESP",
}

_SHORT_UNITS = {
    "minutes": "min",
    "idle minutes": "min",
    "minutes of range": "min",
    "stable window s": "s",
    "price of a cold start, GB s": "GB s",
    "s of lead": "s",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One knob of a policy in one accounting; waste in % of the fixed 10-minute keep-alive, rates in %.

    Intervals are 95 %, (low, high), and None in minute accounting, which has no chance in it.
    """

    knob: float
    cold: float
    waste_pct: float
    cold_rate_p75: float | None = None
    cold_ci95: tuple[float, float] | None = None
    waste_ci95: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The baseline point at whose cold starts policies are compared."""

    policy: str
    point: Point


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def interval(value: Any) -> tuple[float, float] | None:
    """``[low, high]`` as a pair of finite numbers, else None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def label(policy: str) -> str:
    """A policy's name in tables and legends."""
    return _LABELS.get(policy, policy.replace("_", " "))


def knob_text(knob: float | None, unit: str | None) -> str:
    """A knob with its unit, short enough for a plot, e.g. ``10 min``."""
    if knob is None:
        return MISSING
    return f"{knob:g} {_SHORT_UNITS.get(unit, unit)}" if unit else f"{knob:g}"


def price_gb_s(result: Mapping[str, Any]) -> float:
    """The report's price of a cold start."""
    return number(_mapping(result, "protocol").get("price_gb_s")) or DEFAULT_PRICE_GB_S


def knob_unit(result: Mapping[str, Any], policy: str) -> str | None:
    """The unit of a policy's knob, where the protocol says it."""
    return _mapping(_mapping(result, "protocol"), "knob_units").get(policy)


def as_shipped(result: Mapping[str, Any], policy: str) -> float:
    """The knob a policy is deployed with; NaN, which equals no knob, where none is known."""
    if policy in (MESP, "oracle_keepalive"):
        return price_gb_s(result)
    return AS_SHIPPED.get(policy, math.nan)


def slice_policies(result: Mapping[str, Any], name: str | None = None) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The policies of a slice (None: the top level), without those that have no point at all.

    In TRAINING_SLICES policies that are not trained come from the top level if the slice leaves them out.
    """
    top = _mapping(result, "policies")
    policies: dict[str, Any] = dict(top if name is None else _mapping(_mapping(result, "slices"), name))
    if name in TRAINING_SLICES:
        policies = {p: points for p, points in top.items() if p not in TRAINED} | policies
    return {policy: points for policy, points in policies.items() if points}


def minute_point(point: Mapping[str, Any]) -> Point | None:
    """A point in minute accounting, if it was measured."""
    minute = _mapping(point, "minute")
    return _point(point, minute.get("cold"), minute.get("waste_pct"), cold_rate_p75=number(minute.get("cold_rate_p75")))


def event_point(point: Mapping[str, Any], mode: str) -> Point | None:
    """A point in event accounting with one arrival mode, if it was measured: means with their intervals."""
    event = _mapping(_mapping(point, "event"), mode)
    cold, waste = _mapping(event, "cold"), _mapping(event, "waste_pct")
    return _point(
        point,
        cold.get("mean"),
        waste.get("mean"),
        cold_ci95=interval(cold.get("ci95")),
        waste_ci95=interval(waste.get("ci95")),
    )


def curves(
    policies: Mapping[str, Sequence[Mapping[str, Any]]], mode: str | None = None
) -> dict[str, tuple[Point, ...]]:
    """Every policy's points by rising knob, in minute accounting, or in event accounting with `mode`.

    Policies without any are left out.
    """
    found = {}
    for policy, points in policies.items():
        read = [minute_point(point) if mode is None else event_point(point, mode) for point in points]
        if curve := sorted((point for point in read if point), key=lambda point: point.knob):
            found[policy] = tuple(curve)
    return found


def event_modes(policies: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The arrival modes that were measured for any policy: the best covered first, MODES' order among equals."""
    covered: dict[str, int] = dict.fromkeys(MODES, 0)
    for point in (point for points in policies.values() for point in points):
        for mode in _mapping(point, "event"):
            covered[mode] = covered.get(mode, 0) + (event_point(point, mode) is not None)
    return sorted((mode for mode, count in covered.items() if count), key=lambda mode: -covered[mode])


def waste_at(curve: Sequence[Point], cold: float) -> float | None:
    """The least waste in % at which the curve has at most `cold` cold starts; None if it never has so few."""
    return _least(curve, _log_cold, _log(cold), lambda point: point.waste_pct)


def cold_at(curve: Sequence[Point], waste_pct: float) -> float | None:
    """The fewest cold starts that the curve has at `waste_pct` or less; None if it always wastes more."""
    least = _least(curve, lambda point: point.waste_pct, waste_pct, _log_cold)
    return None if least is None else (0.0 if least <= _log(0) else math.exp(least))


def anchor(curves: Mapping[str, Sequence[Point]]) -> Anchor | None:
    """The hybrid histogram at range 240, or at its fewest cold starts; else the fixed ten minutes; else None."""
    for policy in ("hybrid_histogram", "fixed"):
        curve = curves.get(policy)
        if not curve:
            continue
        shipped = [point for point in curve if point.knob == AS_SHIPPED[policy]]
        return Anchor(policy, shipped[0] if shipped else min(curve, key=lambda point: point.cold))
    return None


def headline(result: Mapping[str, Any], mode: str | None = None) -> str:
    """The result in one sentence: MESP's waste at the anchor's cold starts, in `curves`' accounting.

    Without a mode, and where MESP was not measured in minute accounting, as in the demo: in its best covered arrival mode.
    """
    policies = slice_policies(result)
    if mode is None and MESP not in curves(policies):
        mode = next(iter(event_modes(policies)), None)
    found = curves(policies, mode)
    against = anchor(found)
    if MESP not in found:
        return "The baselines alone: MESP was not measured."
    if against is None:
        return "MESP alone: no baseline was measured to compare it with."
    cold = against.point.cold
    baseline = f"{label(against.policy)} ({knob_text(against.point.knob, knob_unit(result, against.policy))})"
    waste = waste_at(found[MESP], cold)
    if waste is None:
        fewest = min(found[MESP], key=lambda point: point.cold)
        return (
            f"MESP does not come down to the {cold:,.0f} cold starts of the {baseline} at {against.point.waste_pct:.1f} % "
            f"waste: its fewest are {fewest.cold:,.0f} at {fewest.waste_pct:.1f} %."
        )
    most = max(point.cold for point in found[MESP])
    at = f"At {cold:,.0f} cold starts" if most >= cold else f"With no more than {most:,.0f} cold starts"
    theirs = "" if most >= cold else f" at {cold:,.0f}"
    return f"{at} MESP wastes {waste:.1f} %, the {baseline} {against.point.waste_pct:.1f} %{theirs}."


def _point(point: Mapping[str, Any], cold: Any, waste_pct: Any, **more: Any) -> Point | None:
    knob, starts, waste = number(point.get("knob")), number(cold), number(waste_pct)
    if knob is None or starts is None or waste is None:
        return None
    return Point(knob, starts, waste, **more)


def _least(
    curve: Sequence[Point], limited: Callable[[Point], float], limit: float, wanted: Callable[[Point], float]
) -> float | None:
    """The least `wanted` over the polyline's part where `limited` is at most `limit`; None where there is no such part."""
    found = [wanted(point) for point in curve if limited(point) <= limit]
    for left, right in pairwise(curve):
        start, end = limited(left), limited(right)
        if min(start, end) < limit < max(start, end):
            share = (limit - start) / (end - start)
            found.append(wanted(left) + share * (wanted(right) - wanted(left)))
    return min(found, default=None)


def _log(cold: float) -> float:
    return math.log(max(cold, 0.5))  # no cold start at all is drawn as half a one


def _log_cold(point: Point) -> float:
    return _log(point.cold)


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under `key`; empty where it is missing or null."""
    return parent.get(key) or {}
