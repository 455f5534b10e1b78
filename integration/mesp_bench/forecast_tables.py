"""Reading `forecasts.json`: its comparisons, its sentence, and its tables as plain cells for the console and the page.

Nothing is measured here. Any value may be null, which means "not measured", and is MISSING in a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesp_bench.curves import MESP, MISSING, interval, label, number
from mesp_bench.tables import Row, Table
from mesp_bench.tables import slice_title as table_title

if TYPE_CHECKING:
    from collections.abc import Mapping

ORACLE, BEST_SINGLE = "oracle", "best_single"

#: What models are compared by, with its name in tables.
COMPARED = {"scaled_quantile_loss": "scaled quantile loss", "log_loss_next_step": "log loss", "wql": "WQL"}

#: A model's scores in tables: key, column, decimals.
_SCORES = (
    ("wql", "WQL", 4),
    ("brier_next_step", "Brier", 4),
    ("log_loss_horizon", "log loss, horizon", 4),
    ("calibration_error", "calibration error", 4),
    ("pit_deviation", "PIT, points off", 2),
)

_GROUPS = {
    "by_trigger": "trigger",
    "by_rate_quartile": "rate quartile",
    "by_cluster": "cluster",
}
_TITLES = {
    "never_seen_no_timers": "Never seen, without functions called by a timer",
    "behaviour_change": "Functions that changed their rate or rhythm between the halves",
    "active_and_varying": "Functions active nearly always, with varying counts",
}
_SHORT_TITLES = {
    None: "all functions",
    "never_seen": "never seen",
    "never_seen_no_timers": "never seen, no timers",
    "from_zero": "from zero",
    "no_timers": "no timers",
    "behaviour_change": "behaviour change",
    "active_and_varying": "active, varying",
}


@dataclass(frozen=True, slots=True)
class Gain:
    """By how many percent the mixture's loss is below another model's, its 95 % interval, and who `best_single` is."""

    improvement_pct: float
    ci95: tuple[float, float] | None
    expert: str | None = None


def comparison(result: Mapping[str, Any], against: str, metric: str, name: str | None = None) -> Gain | None:
    """The mixture against a model in a slice (None: the top level), if it was measured."""
    found = (result.get("comparisons") if name is None else (result.get("slice_comparisons") or {}).get(name)) or ()
    for entry in found:
        if entry.get("model") == MESP and entry.get("against") == against and entry.get("metric") == metric:
            gain = number(entry.get("improvement_pct"))
            return None if gain is None else Gain(gain, interval(entry.get("ci95")), entry.get("expert"))
    return None


def best_single(result: Mapping[str, Any], metric: str) -> str:
    """The best single expert's name by a metric; empty where nothing was compared."""
    gain = comparison(result, BEST_SINGLE, metric)
    return (gain.expert if gain else None) or ""


def slice_names(result: Mapping[str, Any]) -> list[str | None]:
    """Every slice that was compared, the top level (None) first; parts of a group as ``group/part``."""
    return [None, *(result.get("slice_comparisons") or {})]


def slice_title(result: Mapping[str, Any], name: str | None, *, short: bool = False) -> str:
    """A slice's name for people, with its number of functions where `short`."""
    group, _, part = (name or "").partition("/")
    if part:
        title = f"{_GROUPS.get(group, group)} {part}"
    elif short:
        title = _SHORT_TITLES.get(name, name or "")
    else:
        title = _TITLES.get(group, table_title(name or (result.get("protocol") or {}).get("table") or "online"))
    functions = ((result.get("protocol") or {}).get("slice_functions") or {}).get(name)
    return f"{title} ({functions})" if short and functions is not None else title


def slice_models(result: Mapping[str, Any], name: str | None) -> Mapping[str, Mapping[str, Any]]:
    """The models' scores in a slice; None is the top level."""
    if name is None:
        return result.get("models") or {}
    group, _, part = name.partition("/")
    found = (result.get("slices") or {}).get(group) or {}
    return (found.get(part) or {}) if part else found


def headline(result: Mapping[str, Any]) -> str:
    """The result in one sentence: the mixture against the best single model."""
    quantile, logarithmic = (
        comparison(result, BEST_SINGLE, metric) for metric in ("scaled_quantile_loss", "log_loss_next_step")
    )
    if quantile is None or logarithmic is None:
        return "The models alone: nothing was there to compare MESP with."
    return (
        f"MESP's quantile loss is {_gain(quantile)} than that of the best single model ({label(quantile.expert or '')}), "
        f"its next-minute log loss {_gain(logarithmic)} ({label(logarithmic.expert or '')})."
    )


def brief_table(result: Mapping[str, Any]) -> Table:
    """Every model's main scores at the top level, narrow enough for a console."""
    keys = ("scaled_quantile_loss", "log_loss_next_step", "wql", "calibration_error", "pit_deviation")
    rows = (
        Row(
            (label(model), *(_decimal(score.get(key), 2 if key == "pit_deviation" else 4) for key in keys)),
            model == MESP,
        )
        for model, score in slice_models(result, None).items()
    )
    columns = ("model", "quantile loss", "log loss", "WQL", "calibration", "PIT, points off")
    return Table("Every model's scores: scaled quantile loss, next minute's log loss", columns, tuple(rows))


def models_table(result: Mapping[str, Any], name: str | None = None) -> Table:
    """Every model's scores in a slice, all of them; None is the top level."""
    models = slice_models(result, name)
    timed = any(number(score.get("series_per_s")) is not None for score in models.values())
    rows = []
    for model, score in models.items():
        cells = [label(model)]
        for metric in ("scaled_quantile_loss", "log_loss_next_step"):
            cells += [_decimal(score.get(metric), 4), _range((score.get("ci95") or {}).get(metric), 3)]
        cells += [_decimal(score.get(key), digits) for key, _, digits in _SCORES]
        coverage = score.get("coverage_active") or {}
        cells += [_decimal(coverage.get(level), 1) for level in ("0.9", "0.99")]
        cells += [_decimal(score.get("series_per_s"), 0)] if timed else []
        rows.append(Row(tuple(cells), strong=model == MESP))
    return Table(
        title="Every model's scores (lower is better; coverage of active functions in %)",
        columns=(
            "model", "scaled quantile loss", "95 %", "log loss, next minute", "95 %",
            *(column for _, column, _ in _SCORES), "cover .9", "cover .99", *(("series/s",) if timed else ()),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def comparisons_table(result: Mapping[str, Any], name: str | None = None) -> Table:
    """By how much the mixture beats each other model in a slice."""
    found = (result.get("comparisons") if name is None else (result.get("slice_comparisons") or {}).get(name)) or ()
    rows = []
    for against in dict.fromkeys(entry["against"] for entry in found):
        gains = [comparison(result, against, metric, name) for metric in COMPARED]
        rows.append(Row((label(against), *map(_gain_cell, gains)), strong=against == BEST_SINGLE))
    return Table(
        title="MESP's loss is less by, % (95 % interval; negative: MESP is worse)",
        columns=("against", *COMPARED.values()),
        rows=tuple(rows),
    )


def slices_table(result: Mapping[str, Any]) -> Table:
    """Every slice at a glance: the mixture's scores, and its gain over the best single model and the hard assignment."""
    metrics = ("scaled_quantile_loss", "log_loss_next_step")
    rows = []
    for name in slice_names(result):
        score = slice_models(result, name).get(MESP) or {}
        scores = (_decimal(score.get(metric), 4) for metric in metrics)
        gains = (_gain_cell(comparison(result, BEST_SINGLE, metric, name)) for metric in metrics)
        hard = _gain_cell(comparison(result, "hard", metrics[0], name))
        rows.append(Row((slice_title(result, name, short=True), *scores, *gains, hard), strong=name is None))
    return Table(
        title="Every slice at a glance: MESP, and by how many % its loss is below others'",
        columns=(
            "slice (functions)", "quantile loss", "log loss",
            "below best single: quantile loss", "log loss", "below hard: quantile loss",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def floors_table(result: Mapping[str, Any]) -> Table | None:
    """The scaled quantile loss by the way it is scaled; None where that was not measured."""
    ways = (result.get("slices") or {}).get("floor_sensitivity") or {}
    models = list(dict.fromkeys(model for scores in ways.values() for model in scores))
    if not models:
        return None
    titles = {"first_half": "first half's naive error"}
    return Table(
        title="Scaled quantile loss by the floor of the naive error, invocations",
        columns=("model", *(titles.get(way, way) for way in ways)),
        rows=tuple(
            Row(
                (
                    label(model),
                    *(_decimal((ways[way].get(model) or {}).get("scaled_quantile_loss"), 4) for way in ways),
                ),
                strong=model == MESP,
            )
            for model in models
        ),
    )


def _gain_cell(gain: Gain | None) -> str:
    if gain is None:
        return MISSING
    return f"{gain.improvement_pct:.1f}" + (f" ({gain.ci95[0]:.1f} to {gain.ci95[1]:.1f})" if gain.ci95 else "")


def _gain(gain: Gain) -> str:
    ends = sorted(map(abs, gain.ci95)) if gain.ci95 else []
    if gain.ci95 and min(gain.ci95) <= 0 <= max(gain.ci95):
        spread = " (95 % interval holds 0)"
    else:
        spread = f" ({ends[0]:.1f} to {ends[1]:.1f})" if ends else ""
    return f"{abs(gain.improvement_pct):.1f} %{spread} {'lower' if gain.improvement_pct >= 0 else 'higher'}"


def _decimal(value: Any, digits: int) -> str:
    measured = number(value)
    return MISSING if measured is None else f"{measured:,.{digits}f}"


def _range(value: Any, digits: int) -> str:
    ends = interval(value)
    return MISSING if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
