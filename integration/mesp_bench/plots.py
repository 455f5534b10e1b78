"""The picture that has to convince: wasted memory against cold starts, every policy a curve over its knob.

The upper row is minute accounting: the frontier with its bounds (the oracles, compulsory cold starts) and isocost lines
of the price, and beside it the cold-start rate of the unlucky quarter of functions. The lower row, where measured, is
event accounting: the frontier with its intervals, and whether the comparison holds under every arrival mode.

Down and to the left is better everywhere. MESP is the bold curve, and the arrow between it and the anchor is the memory
saved at the same cold starts. Colours are Okabe and Ito's, safe for colour-blind eyes; markers tell policies apart
without them. Figures are built without pyplot, and the same result gives the same bytes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mesp_bench.curves import (
    MESP,
    ORACLES,
    Point,
    anchor,
    as_shipped,
    curves,
    event_modes,
    headline,
    knob_text,
    knob_unit,
    label,
    number,
    price_gb_s,
    slice_policies,
    waste_at,
)
from mesp_bench.plot_labels import Labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

#: Curves are drawn up to this much waste; what lies beyond is counted in the corner.
MAX_WASTE_PCT = 320.0

#: Isocost lines, as multiples of what the fixed ten minutes cost.
ISOCOSTS = (0.25, 0.5, 1.0, 1.5)


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of paper and ink, and how far policies' colours are lifted towards white to stand out from the paper."""

    paper: str
    ink: str
    faint: str
    lift: float = 0.0


LIGHT = Theme(paper="#ffffff", ink="#1b1f24", faint="#7d8590")
DARK = Theme(paper="#14171b", ink="#e6e8eb", faint="#8a929c", lift=0.25)

_STYLES = {
    "fixed": ("#0072b2", "o"),
    "openwhisk": ("#56b4e9", "s"),
    "hybrid_histogram": ("#009e73", "D"),
    "hybrid_histogram_app": ("#7fb800", "d"),
    "kpa": ("#cc79a7", "^"),
    MESP: ("#d55e00", "o"),
}
_MORE_STYLES = tuple(zip(("#e69f00", "#785ef0", "#a6761d", "#b2182b", "#4d9221", "#5c8fd6"), "vP<X>p", strict=True))

#: What the oracles bound, in minute accounting alone; with events they are policies that foresee minutes.
_BOUNDS = {
    "oracle_keepalive": "bound of keep-alive alone (oracle)",
    "oracle_prewarm": "bound of prewarming (oracle)",
}

#: Settings of matplotlib under which every figure is built and written.
FONT: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "svg.hashsalt": "mesp",
    "svg.fonttype": "path",
    "text.parse_math": False,
}


def frontier_figure(result: Mapping[str, Any], theme: Theme = LIGHT, *, titled: bool = True) -> Figure:
    """The whole picture: a row per accounting that was measured.

    Args:
        result: the content of `frontier.json`; values may be null.
        theme: LIGHT or DARK.
        titled: the result's sentence stands on top.
    """
    policies = slice_policies(result)
    modes = event_modes(policies)
    with mpl.rc_context(FONT):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=(13, 11.4 if modes else 6.6), layout=layout, facecolor=theme.paper)
        FigureCanvasAgg(figure)
        rows = figure.subplots(2 if modes else 1, 2, squeeze=False, width_ratios=(1.75, 1))
        if titled:
            figure.suptitle(headline(result), x=0.012, ha="left", fontsize=15, fontweight="bold", color=theme.ink)

        figure.supxlabel(_caption(result), x=0.012, ha="left", fontsize=8.5, color=theme.faint)

        painter = _Painter(result, theme)
        labels = [painter.frontier(rows[0, 0], None), painter.unlucky_quarter(rows[0, 1])]
        if modes:
            labels += [painter.frontier(rows[1, 0], modes[0]), painter.by_mode(rows[1, 1], modes)]
        layout.execute(figure)  # settled once and kept: labels are placed among what is drawn
        figure.set_layout_engine("none")
        for label_set in labels:
            label_set.place()
    return figure


def figure_bytes(figure: Figure, kind: str, dpi: int = 150) -> bytes:
    """The figure as a file's bytes, ``png`` or ``svg``, without dates: the same figure gives the same bytes."""
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with mpl.rc_context(FONT), io.BytesIO() as buffer:
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
        return buffer.getvalue()


def frame(axes: Axes, theme: Theme, title: str) -> None:
    """Gives empty axes their title and the look of every panel."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=theme.ink, pad=8)
    axes.grid(visible=True, color=theme.faint, alpha=0.18, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, which="both", length=0)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(theme.faint)


@dataclass(frozen=True, slots=True)
class _Painter:
    """Draws one result's panels, each into the axes given, and says which texts the panel wants."""

    result: Mapping[str, Any]
    theme: Theme

    def frontier(self, axes: Axes, mode: str | None) -> Labels:
        """Waste against cold starts on a log scale, in minute accounting or in event accounting with `mode`."""
        found = curves(slice_policies(self.result), mode)
        bounds = () if mode else ORACLES
        frame(
            axes,
            self.theme,
            f"Event accounting, {mode} arrivals: charged by the second" if mode else "Minute accounting",
        )
        axes.set_xlabel("wasted memory, % of a fixed 10-minute keep-alive")
        axes.set_ylabel("cold starts")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        self._limits(axes, found)
        labels = Labels(axes)
        for policy, curve in sorted(found.items(), key=lambda item: item[0] == MESP):
            self._curve(axes, policy, curve, lambda point: point.cold, bound=policy in bounds)
            labels.avoid([(point.waste_pct, point.cold) for point in curve])
        self._saving(axes, labels, found)
        self._knobs(labels, found)
        if mode is None:
            self._compulsory(axes, labels)
            self._isocosts(axes, labels, found)
        axes.annotate(
            "better",
            xy=(0.085, 0.16),
            xytext=(0.145, 0.27),
            xycoords="axes fraction",
            color=self.theme.faint,
            fontsize=10,
            fontstyle="italic",
            ha="center",
            arrowprops={"arrowstyle": "-|>", "color": self.theme.faint, "linewidth": 1.2},
        )
        self._legend(axes, found)
        return labels

    def unlucky_quarter(self, axes: Axes) -> Labels:
        """Waste against the 75th percentile over functions of the cold-start rate."""
        found = curves(slice_policies(self.result))
        rated = {p: tuple(q for q in curve if q.cold_rate_p75 is not None) for p, curve in found.items()}
        frame(axes, self.theme, "The unlucky quarter of functions")
        axes.set_xlabel("wasted memory, %")
        axes.set_ylabel("cold-start rate, % (75th percentile over functions)")
        self._limits(axes, found)
        axes.set_ylim(-3, 105)
        for policy, curve in sorted(rated.items(), key=lambda item: item[0] == MESP):
            self._curve(axes, policy, curve, lambda point: point.cold_rate_p75, bound=policy in ORACLES)
        return Labels(axes)

    def by_mode(self, axes: Axes, modes: Sequence[str]) -> Labels:
        """Waste at the anchor's cold starts, a row per arrival mode: a conclusion that flips is no claim."""
        frame(axes, self.theme, "Does it hold however calls arrive?")
        axes.set_xlabel("wasted memory, %, at the same cold starts")
        axes.set_yticks(range(len(modes)))
        axes.set_ylim(len(modes) - 0.5, -0.5)
        labels = Labels(axes)
        names = []
        for row, mode in enumerate(modes):
            found = curves(slice_policies(self.result), mode)
            against = anchor(found)
            names.append(f"{mode}\n{against.point.cold:,.0f} cold" if against else mode)
            axes.axhline(row, color=self.theme.faint, linewidth=0.6, alpha=0.5)
            for policy, curve in sorted(found.items(), key=lambda item: item[0] == MESP):
                waste = waste_at(curve, against.point.cold) if against else None
                if waste is None or policy in ORACLES:
                    continue
                colour, marker = self._style(policy)
                axes.plot(waste, row, marker, color=colour, markersize=11 if policy == MESP else 7)
                if against and policy in (MESP, against.policy):
                    labels.want(f"{waste:.0f} %", (waste, row), colour, size=10, bold=policy == MESP)
        axes.set_yticklabels(names)
        axes.set_xlim(left=0)
        return labels

    def _limits(self, axes: Axes, found: Mapping[str, Sequence[Point]]) -> None:
        points = [point for curve in found.values() for point in curve]
        within = [point for point in points if point.waste_pct <= MAX_WASTE_PCT] or points
        right = max((point.waste_pct for point in within), default=0.0) or 100.0
        axes.set_xlim(-0.025 * right, 1.04 * right)
        if axes.get_yscale() == "log":
            starts = [max(point.cold, 0.5) for point in within] or [1.0, 10.0]
            axes.set_ylim(min(starts) / 2.2, max(starts) * 1.5)
        beyond = len(points) - len(within)
        if beyond:
            axes.text(
                0.99, 0.01, f"{beyond} points beyond {right:.0f} % not shown", transform=axes.transAxes,
                ha="right", va="bottom", fontsize=7.5, color=self.theme.faint,
            )  # fmt: skip

    def _style(self, policy: str) -> tuple[Any, str]:
        """A policy's colour and marker."""
        if policy in ORACLES:
            return self.theme.faint, "*" if policy == "oracle_prewarm" else "x"
        others = [name for name in slice_policies(self.result) if name not in _STYLES and name not in ORACLES]
        colour, marker = _STYLES.get(policy) or _MORE_STYLES[others.index(policy) % len(_MORE_STYLES)]
        return tuple(part + self.theme.lift * (1.0 - part) for part in to_rgb(colour)), marker

    def _curve(self, axes: Axes, policy: str, curve: Sequence[Point], height: Any, *, bound: bool) -> None:
        colour, marker = self._style(policy)
        strong = policy == MESP
        waste, heights = [point.waste_pct for point in curve], [height(point) for point in curve]
        if any(point.cold_ci95 or point.waste_ci95 for point in curve):
            axes.errorbar(
                waste, heights, yerr=_whiskers(curve, "cold"), xerr=_whiskers(curve, "waste"), fmt="none",
                ecolor=colour, elinewidth=1.0, alpha=0.7,
            )  # fmt: skip
        axes.plot(
            waste,
            heights,
            color=colour,
            marker=marker,
            markersize=7 if strong else 4.5,
            linewidth=3.4 if strong else 1.4,
            linestyle="--" if bound else "-",
            alpha=1.0 if strong else 0.9,
            zorder=5 if strong else 3,
            label=_BOUNDS[policy] if bound else label(policy),
        )

    def _legend(self, axes: Axes, found: Mapping[str, Sequence[Point]]) -> None:
        if not found:
            return
        handles, names = axes.get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda i: (names[i] != label(MESP), names[i] in _BOUNDS.values()))
        legend = axes.legend(
            [handles[i] for i in order],
            [names[i] for i in order],
            loc="upper right",
            frameon=False,
            labelcolor=self.theme.ink,
            fontsize=9.5,
        )
        for text in legend.get_texts():
            if text.get_text() == label(MESP):
                text.set_fontweight("bold")

    def _saving(self, axes: Axes, labels: Labels, found: Mapping[str, Sequence[Point]]) -> None:
        """From the anchor down to an arrow to MESP's waste at the same cold starts, with the change written on it."""
        against = anchor(found)
        waste = waste_at(found.get(MESP, ()), against.point.cold) if against else None
        if against is None or waste is None or not against.point.waste_pct:
            return
        bottom, top = axes.get_ylim()
        low = bottom * (top / bottom) ** 0.18  # where no curve is: MESP's lies above
        theirs, colour = against.point.waste_pct, self._style(MESP)[0]
        for x in (waste, theirs):
            axes.plot([x, x], [low, max(against.point.cold, 0.5)], color=colour, linewidth=0.9, alpha=0.6, zorder=2)
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(waste, low), xytext=(theirs, low), arrowprops=arrow, zorder=6)
        change = f"{100 * abs(waste / theirs - 1):.0f} % {'less' if waste < theirs else 'more'} waste"
        left, right = axes.get_xlim()
        above = abs(theirs - waste) > 0.22 * (right - left)  # wide enough for the text
        written = axes.annotate(
            change,
            ((waste + theirs) / 2, low),
            xytext=(0, 3 if above else -3),
            textcoords="offset points",
            color=colour,
            fontsize=12.5,
            fontweight="bold",
            ha="center",
            va="bottom" if above else "top",
        )
        labels.avoid([(waste, low), (theirs, low)], written)

    def _knobs(self, labels: Labels, found: Mapping[str, Sequence[Point]]) -> None:
        """A few knobs on each curve: the shipped one first, then both ends; MESP and the anchor before the others."""
        for policy in sorted(found, key=lambda p: (p != MESP, p != "hybrid_histogram", p in ORACLES)):
            curve, shipped = found[policy], as_shipped(self.result, policy)
            ends = sorted({0, len(curve) // 2, len(curve) - 1}, reverse=True)
            wanted = [point for point in curve if point.knob == shipped] + [curve[i] for i in ends]
            if policy == "oracle_prewarm":
                wanted = []
            for point in dict.fromkeys(wanted):
                text = knob_text(point.knob, knob_unit(self.result, policy))
                below = policy == MESP
                labels.want(text, (point.waste_pct, point.cold), self._style(policy)[0], below=below)

    def _compulsory(self, axes: Axes, labels: Labels) -> None:
        floor = number((self.result.get("protocol") or {}).get("compulsory"))
        if floor:
            axes.axhline(floor, color=self.theme.faint, linestyle=":", linewidth=1.3)
            right = axes.get_xlim()[1]
            labels.want(f"{floor:.0f} compulsory: a function's first call", (right, floor), self.theme.faint)

    def _isocosts(self, axes: Axes, labels: Labels, found: Mapping[str, Sequence[Point]]) -> None:
        """Lines of equal price x cold starts + wasted GB s, in multiples of the fixed ten minutes' cost."""
        reference_gb_s = number((self.result.get("protocol") or {}).get("reference_gb_s"))
        ten = next((point for point in found.get("fixed", ()) if point.knob == 10), None)
        if not reference_gb_s or ten is None:
            return
        price = price_gb_s(self.result)
        low, high = axes.get_ylim()
        cold = np.geomspace(low, high, 200)
        for multiple in ISOCOSTS:
            cost = multiple * (price * ten.cold + reference_gb_s)
            waste = 100.0 * (cost - price * cold) / reference_gb_s
            axes.plot(waste, cold, color=self.theme.faint, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
            text = f"{multiple:g} x" + (" the cost of fixed 10 min" if multiple == 1 else "")
            labels.want(text, (waste[0], low), self.theme.faint, size=7.5)


def _caption(result: Mapping[str, Any]) -> str:
    protocol = result.get("protocol") or {}
    functions, minutes = number(protocol.get("functions")), protocol.get("scored_minutes")
    reference_gb_s = number(protocol.get("reference_gb_s"))
    parts = [
        f"{functions:,.0f} functions" if functions else "",
        f"minutes {minutes[0]} to {minutes[1]} scored" if minutes else "",
        f"100 % waste = {reference_gb_s:,.0f} GB s" if reference_gb_s else "",
        f"dotted: equal cost at {price_gb_s(result):g} GB s per cold start" if reference_gb_s else "",
        "down and left is better",
    ]
    return "  ·  ".join(part for part in parts if part)


def _whiskers(curve: Sequence[Point], of: str) -> Any:
    """Distances from the mean to both ends of the interval, (2, points); 0 where there is none."""
    means = [point.cold if of == "cold" else point.waste_pct for point in curve]
    intervals = [point.cold_ci95 if of == "cold" else point.waste_ci95 for point in curve]
    pairs = [(mean - ci[0], ci[1] - mean) if ci else (0.0, 0.0) for mean, ci in zip(means, intervals, strict=True)]
    return np.maximum(np.array(pairs).T, 0.0)
