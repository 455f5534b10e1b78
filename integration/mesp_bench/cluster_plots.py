"""The pictures of Experiments 1 and 2: centroids with their members, silhouettes, and the expert x cluster table.

A panel of a cluster shows its centroid over a sample of its members, each moved to where it fits best, and below them
the same members as rows of a heat map, the best fitting first: what lines hide, rows show. Figures are built without
pyplot, and the same result gives the same bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from mesp_bench.cluster_experiment import WEAK_SILHOUETTE
from mesp_bench.plots import FONT, LIGHT, Theme, frame
from mesp_predictor import shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from mesp_bench.cluster_experiment import Experiment

#: Members drawn as lines, and as rows of the heat map.
LINES, ROWS = 30, 120

#: Panels side by side at most, and the width of all, in inches.
_ACROSS, _WIDTH = 4, 13.0

_ACCENT = "#d55e00"
_SECOND = "#0072b2"


def centroids_figure(experiment: Experiment, theme: Theme = LIGHT, *, titled: bool = True) -> Figure:
    """A panel per cluster: its centroid, a sample of its members behind, and the members' heat map."""
    k = experiment.clusters.k
    across = min(k, _ACROSS)
    down = math.ceil(k / across)
    with mpl.rc_context(FONT):
        figure = _figure(_WIDTH, 3.3 * down + 0.9, theme)
        if titled:
            title = f"{k} shapes among {len(experiment.series):,} function-days"
            figure.suptitle(title, x=0.012, ha="left", fontsize=15, fontweight="bold", color=theme.ink)
        figure.supxlabel(
            "hours, every day moved to where it fits its centroid  ·  standard deviations from the day's mean  ·  "
            f"at most {LINES} members as lines, {ROWS} as rows, the best fitting on top",
            x=0.012, ha="left", fontsize=8.5, color=theme.faint,
        )  # fmt: skip
        grid = figure.add_gridspec(down, across)
        for cluster in range(k):
            inner = grid[divmod(cluster, across)].subgridspec(2, 1, height_ratios=(1.5, 1), hspace=0.0)
            upper, lower = inner.subplots(sharex=True, squeeze=False)[:, 0]
            _cluster(upper, lower, experiment, cluster, theme)
    return figure


def silhouette_figure(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """Left the silhouette of every K tried, the chosen one marked; right where the function-days went."""
    with mpl.rc_context(FONT):
        figure = _figure(11, 4.4, theme)
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        frame(left, theme, "How far apart the clusters stand")
        scores = {int(k): score for k, score in result["silhouette"].items()}
        chosen = max(scores, key=scores.__getitem__)
        left.axhspan(-0.02, WEAK_SILHOUETTE, color=theme.faint, alpha=0.09, linewidth=0)
        left.text(
            0.985, WEAK_SILHOUETTE - 0.008, f"below {WEAK_SILHOUETTE}: shapes hardly separate", ha="right", va="top",
            transform=left.get_yaxis_transform(), color=theme.faint, fontstyle="italic",
        )  # fmt: skip
        left.plot(list(scores), list(scores.values()), "-o", color=_lifted(_SECOND, theme), markersize=5)
        left.plot(chosen, scores[chosen], "o", color=_lifted(_ACCENT, theme), markersize=10, zorder=5)
        left.annotate(
            f"K = {chosen}: {scores[chosen]:.2f}", (chosen, scores[chosen]), xytext=(9, 5), textcoords="offset points",
            color=_lifted(_ACCENT, theme), fontweight="bold", fontsize=10.5,
        )  # fmt: skip
        left.set_xlabel("clusters, K")
        left.set_ylabel("mean silhouette under shape-based distance")
        left.set_ylim(min(0.0, *scores.values()) - 0.02, max(0.32, 1.18 * max(scores.values())))
        left.set_xlim(min(scores) - 0.6, max(scores) + 0.6)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        _destinations(right, result, theme)
    return figure


def experts_figure(table: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """The expert x cluster table as a heat map: losses with their intervals, the selected expert of a cluster framed.

    Args:
        table: the content of `experts.json`.
        theme: LIGHT or DARK.
    """
    clusters, experts = list(table["scores"]), experts_of(table)
    with mpl.rc_context(FONT):
        figure = _figure(2.4 + 1.15 * len(experts), 1.9 + 0.52 * len(clusters), theme)
        axes = figure.subplots()
        frame(axes, theme, "Loss of every expert on every cluster: the framed one is selected, less colour is better")
        axes.grid(visible=False)
        for row, cluster in enumerate(clusters):
            scores = table["scores"][cluster]
            means = {name: mean for name, score in scores.items() if (mean := score.get("mean")) is not None}
            best = min(means.values(), default=0.0)
            for column, name in enumerate(experts):
                _cell(axes, (column, row), scores.get(name), best, theme)
            if (name := table["selected"].get(cluster)) in experts:
                corner = (experts.index(name) - 0.47, row - 0.45)
                colour = _lifted(_ACCENT, theme)
                axes.add_patch(Rectangle(corner, 0.94, 0.9, fill=False, edgecolor=colour, linewidth=2.4, zorder=4))
        axes.set_xticks(range(len(experts)), [name.replace("_", "\n") for name in experts])
        axes.set_yticks(range(len(clusters)), [cluster_title(cluster) for cluster in clusters])
        axes.xaxis.tick_top()
        axes.set_xlim(-0.5, len(experts) - 0.5)
        axes.set_ylim(len(clusters) - 0.5, -0.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def experts_of(table: Mapping[str, Any]) -> list[str]:
    """Every expert of `experts.json`, in order of appearance."""
    return list(dict.fromkeys(name for scores in table["scores"].values() for name in scores))


def cluster_title(cluster: str) -> str:
    """A cluster's name in tables; functions without a shape have none."""
    return f"cluster {cluster}" if cluster.isdecimal() else "no cluster" if cluster == "none" else cluster


def _figure(width: float, height: float, theme: Theme) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height), layout=layout, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def _lifted(colour: str, theme: Theme) -> Any:
    return tuple(part + theme.lift * (1 - part) for part in to_rgb(colour))


def _cluster(upper: Axes, lower: Axes, experiment: Experiment, cluster: int, theme: Theme) -> None:
    centroid = experiment.clusters.centroids[cluster]
    members = np.flatnonzero(experiment.clusters.labels == cluster)
    nearest_first = members[np.argsort(experiment.distances[members], kind="stable")]
    rows = shapes.aligned(experiment.series[_spread(nearest_first, ROWS)], centroid)
    hours = np.arange(len(centroid)) * experiment.bin_minutes / 60

    frame(upper, theme, f"{cluster}")
    share = 100 * len(members) / len(experiment.series)
    upper.set_title(
        f"{len(members):,} days · {share:.0f} %", loc="right", fontsize=9.5, color=theme.faint, pad=8
    )  # fmt: skip
    for row in _spread(rows, LINES):
        upper.plot(hours, row, color=_lifted(_SECOND, theme), linewidth=0.6, alpha=0.22 + 0.6 * theme.lift)
    upper.plot(hours, centroid, color=_lifted(_ACCENT, theme), linewidth=2.0, zorder=5)
    low, high = float(centroid.min()), float(centroid.max())
    room = max(0.35 * (high - low), 0.8)
    upper.set_ylim(low - room, high + room)  # of the members, spikes may be cut: the centroid is what is told
    upper.set_xlim(0, hours[-1])
    upper.xaxis.set_major_locator(MultipleLocator(6))
    upper.tick_params(labelbottom=False)

    frame(lower, theme, "")
    lower.grid(visible=False)
    lower.pcolormesh(
        np.append(hours, hours[-1]), np.arange(len(rows) + 1), rows, cmap=_around_zero(theme),
        vmin=-3.0, vmax=3.0, rasterized=True,
    )  # fmt: skip
    lower.set_ylim(len(rows), 0)
    lower.set_yticks([])
    lower.xaxis.set_major_formatter(FuncFormatter(lambda hour, _: f"{hour:.0f} h"))


def _spread(rows: Any, most: int) -> Any:
    """At most so many of the rows, spread evenly over all of them."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)]


def _around_zero(theme: Theme) -> LinearSegmentedColormap:
    """The paper at zero, one colour below it and one above it that ends in the ink."""
    below, above = _lifted(_ACCENT, theme), _lifted(_SECOND, theme)
    return LinearSegmentedColormap.from_list(
        "around_zero", [(0, below), (0.5, theme.paper), (0.78, above), (1, theme.ink)]
    )


def _destinations(axes: Axes, result: Mapping[str, Any], theme: Theme) -> None:
    """Function-days by cluster, and by the reason for being in none."""
    frame(axes, theme, "Where the function-days went")
    bars = [(f"cluster {label}", int(size), _SECOND) for label, size in enumerate(result["sizes"])]
    bars += [(reason, int(size), "") for reason, size in result["routed_away"].items()]
    total = sum(size for _, size, _ in bars)
    for row, (_, size, colour) in enumerate(bars):
        axes.barh(row, size, height=0.7, color=_lifted(colour, theme) if colour else theme.faint)
        axes.annotate(
            f"{size:,}  ({100 * size / total:.0f} %)", (size, row), xytext=(5, 0), textcoords="offset points",
            va="center", color=theme.ink, fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.32 * max(size for _, size, _ in bars))
    axes.set_xlabel("function-days")
    axes.grid(visible=False, axis="y")


def _cell(axes: Axes, at: tuple[int, int], score: Mapping[str, Any] | None, best: float, theme: Theme) -> None:
    """One score: as coloured as it is worse than the cluster's best, twice the best and more in full colour."""
    mean = (score or {}).get("mean")
    if score is None or mean is None:
        axes.text(*at, "—", ha="center", va="center", color=theme.faint)
        return
    worse = min((mean - best) / best, 1.0) if best > 0 else 0.0
    colour = LinearSegmentedColormap.from_list("worse", [theme.paper, _lifted(_SECOND, theme)])(0.9 * worse)
    axes.add_patch(Rectangle((at[0] - 0.47, at[1] - 0.45), 0.94, 0.9, color=colour, linewidth=0))
    ink = theme.paper if _luminance(colour) < 0.5 and theme is LIGHT else theme.ink
    axes.text(at[0], at[1] - 0.12, f"{mean:.4f}", ha="center", va="center", color=ink, fontsize=9.5)
    axes.text(at[0], at[1] + 0.22, interval_text(score), ha="center", va="center", color=ink, fontsize=6.5, alpha=0.8)


def interval_text(score: Mapping[str, Any]) -> str:
    """The 95 % interval of a score, empty where none was measured."""
    interval: Sequence[float] | None = score.get("ci95")
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""


def _luminance(colour: Any) -> float:
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue
