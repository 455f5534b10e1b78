"""The tables of a report, as plain cells: the console and the HTML page show the same ones.

Nothing is measured here. A value that is null in the result is MISSING in a cell; a row is strong when it is MESP's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesp_bench.curves import (
    MESP,
    MISSING,
    anchor,
    as_shipped,
    cold_at,
    curves,
    event_modes,
    event_point,
    knob_text,
    knob_unit,
    label,
    minute_point,
    number,
    slice_policies,
    waste_at,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Waste, in % of the fixed ten minutes, at which the second reading compares cold starts.
FULL_WASTE_PCT = 100.0

_SLICE_TITLES = {
    "online": "Online: learns from the scored fleet up to the minute before",
    "never_seen": "Never seen: trained on other functions only, frozen",
    "from_zero": "From zero: no training set at all",
    "no_timers": "Without functions called by a timer, which flatter every predictor",
    "app_memory": "Memory of the whole app, as recorded",
    "unweighted": "Unweighted: every function's memory counts the same",
}


@dataclass(frozen=True, slots=True)
class Row:
    """Cells of one line, the first of them its name; strong rows stand out."""

    cells: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; every column but the first `text_columns` holds numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    text_columns: int = 1


def slice_title(name: str) -> str:
    """A slice's name as a sentence."""
    return _SLICE_TITLES.get(name, name.replace("_", " "))


def points_table(result: Mapping[str, Any], name: str | None = None, *, everything: bool = False) -> Table:
    """Policies and their knobs, one row each: those of interest, or `everything`.

    Args:
        result: the content of `frontier.json`.
        name: a slice; None is the top level.
        everything: every knob measured instead of the telling ones (see `telling_knobs`).
    """
    policies = slice_policies(result, name)
    modes = event_modes(policies)
    mode = modes[0] if modes else None
    event_columns = (f"cold, {mode}", "95 %", "waste %", "p99 wait s") if mode else ()
    rows = []
    for policy, points in policies.items():
        telling = None if everything else telling_knobs(result, policy, name)
        for point in points:
            knob = number(point.get("knob"))
            if telling is None or knob in telling:
                cells = (label(policy), knob_text(knob, knob_unit(result, policy)), *_minute_cells(point))
                rows.append(Row(cells + (_event_cells(point, mode) if mode else ()), strong=policy == MESP))
    return Table(
        title="Every policy and knob" if everything else "Cold starts and waste (100 % = fixed 10 minutes)",
        columns=("policy", "knob", "cold starts", "waste %", "p75 cold %", "RUM s", *event_columns),
        rows=tuple(rows),
        text_columns=2,
    )


def telling_knobs(result: Mapping[str, Any], policy: str, name: str | None = None) -> set[float]:
    """The knobs that tell a policy's story.

    As shipped; the cheapest with no more cold starts than the anchor; the fewest cold starts at 100 % waste or less.
    All of them where there are three or fewer, or none was measured in minute accounting.
    """
    policies = slice_policies(result, name)
    found = curves(policies)
    knobs = {knob for point in policies[policy] if (knob := number(point.get("knob"))) is not None}
    curve, against = found.get(policy), anchor(found)
    if len(knobs) <= 3 or not curve:
        return knobs
    telling = knobs & {as_shipped(result, policy)}
    if against and (few := [point for point in curve if point.cold <= against.point.cold]):
        telling.add(min(few, key=lambda point: (point.waste_pct, point.cold)).knob)
    if cheap := [point for point in curve if point.waste_pct <= FULL_WASTE_PCT]:
        telling.add(min(cheap, key=lambda point: (point.cold, point.waste_pct)).knob)
    return telling or {curve[0].knob, curve[-1].knob}


def readings_table(result: Mapping[str, Any], name: str | None = None, *, modes: int | None = None) -> Table | None:
    """Waste at the anchor's cold starts and cold starts at 100 % waste, per policy and accounting; None without anchor.

    `modes` limits the arrival modes shown, the best covered first.
    """
    policies = slice_policies(result, name)
    columns: list[str] = []
    cells: dict[str, list[str]] = {policy: [] for policy in policies}
    origin = ""
    for mode in (None, *event_modes(policies)[:modes]):
        found = curves(policies, mode)
        against = anchor(found)
        if against is None:
            continue
        suffix = f", {mode}" if mode else ""
        origin = (
            origin or f"{label(against.policy)}, {knob_text(against.point.knob, knob_unit(result, against.policy))}"
        )
        columns += [f"waste % at {_count(against.point.cold)} cold{suffix}", f"cold at {FULL_WASTE_PCT:.0f} %{suffix}"]
        for policy in policies:
            curve = found.get(policy, ())
            cells[policy] += [
                _decimal(waste_at(curve, against.point.cold)),
                _count(cold_at(curve, FULL_WASTE_PCT)),
            ]
    if not columns:
        return None
    return Table(
        title=f"Read off the curves, at the cold starts of: {origin}",
        columns=("policy", *columns),
        rows=tuple(Row((label(policy), *cells[policy]), strong=policy == MESP) for policy in policies),
    )


def slices_table(result: Mapping[str, Any]) -> Table | None:
    """Waste at each slice's own anchor, in minute accounting: a row per slice, a column per policy; None without slices."""
    names = [None, *(result.get("slices") or {})]
    read = {name: curves(slice_policies(result, name)) for name in names}
    policies = list(dict.fromkeys(policy for found in read.values() for policy in found))
    rows = []
    for name, found in read.items():
        if against := anchor(found):
            cold = against.point.cold
            wastes = (_decimal(waste_at(found.get(policy, ()), cold)) for policy in policies)
            title = slice_title(name or (result.get("protocol") or {}).get("table") or "online")
            rows.append(Row((title, f"{_count(cold)}", *wastes), strong=name is None))
    if len(rows) < 2:
        return None
    return Table(
        title="Every slice at a glance: waste % at the same cold starts",
        columns=("slice", "cold starts", *map(label, policies)),
        rows=tuple(rows),
    )


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Any list of rows with named values, the columns in order of appearance; None without rows."""
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return None
    return Table(
        title=title,
        columns=tuple(column.replace("_", " ").replace("gb s", "GB s") for column in columns),
        rows=tuple(
            Row(
                tuple(_any(row.get(column)) for column in columns),
                strong=str(row.get(columns[0])).lower() == MESP,
            )
            for row in rows
        ),
    )


def facts_table(title: str, facts: Mapping[str, Any]) -> Table | None:
    """Any nested mapping (protocol, provenance), one row per value, keys joined by a dot; None without facts."""
    rows = tuple(Row((key, _any(value))) for key, value in _flat(facts))
    return Table(title, ("", ""), rows, text_columns=2) if rows else None


def notes(result: Mapping[str, Any]) -> list[str]:
    """The result's own notes, in its order."""
    return [str(note) for note in result.get("notes") or ()]


def _minute_cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    minute, measured = point.get("minute") or {}, minute_point(point)
    return (
        _count(number(minute.get("cold"))),
        _decimal(number(minute.get("waste_pct"))),
        _decimal(measured.cold_rate_p75 if measured else None),
        _count(number(minute.get("rum"))),
    )


def _event_cells(point: Mapping[str, Any], mode: str) -> tuple[str, ...]:
    measured = event_point(point, mode)
    if measured is None:
        return (MISSING,) * 4
    spread = f"{_count(measured.cold_ci95[0])} to {_count(measured.cold_ci95[1])}" if measured.cold_ci95 else MISSING
    wait_s = number(point["event"][mode].get("wait_s_p99"))
    return (
        _count(measured.cold),
        spread,
        _decimal(measured.waste_pct),
        MISSING if wait_s is None else f"{wait_s:.2f}",
    )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _any(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_any, value))
    return str(value)


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f}"
