"""The pictures of `forecasts.json`: who forecasts best and by how much, where, and whether probabilities can be believed.

Upper row: two proper scores of every model with their intervals, and by how much the mixture beats the best single
model in each slice. Lower row: the reliability diagram, the PIT histogram, and whom the router trusts by rate quartile.
The same result gives the same bytes; what was not measured is left out.
"""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mesp_bench.curves import MESP, interval, label, number
from mesp_bench.forecast_tables import ORACLE, best_single, comparison, headline, slice_names, slice_title
from mesp_bench.plots import FONT, LIGHT, Theme, frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

#: Points by which a decile of the PIT may differ from its tenth.
PIT_TOLERANCE = 2.0
#: Scores are drawn up to this many times the models' median.
SCORE_SHOWN = 2.5
#: Gains are drawn up to this far from 0, %.
GAIN_SHOWN_PCT = 50.0

_MESP_COLOUR, _OTHER_COLOUR = "#d55e00", "#0072b2"
_EXPERT_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7fb800", "#785ef0",
    "#a6761d", "#b2182b", "#4d9221", "#5c8fd6", "#c9a227", "#8c6bb1", "#636363",
)  # fmt: skip


def forecast_figure(result: Mapping[str, Any], theme: Theme = LIGHT, *, titled: bool = True) -> Figure:
    """The whole picture.

    Args:
        result: the content of `forecasts.json`; values may be null.
        theme: LIGHT or DARK.
        titled: the result's sentence stands on top.
    """
    with mpl.rc_context(FONT):
        layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=(14.5, 10), layout=layout, facecolor=theme.paper)
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3)
        if titled:
            figure.suptitle(
                fill(headline(result), 120), x=0.012, ha="left", fontsize=13, fontweight="bold", color=theme.ink
            )
        _scores(axes[0, 0], result, theme, "scaled_quantile_loss", "Scaled quantile loss")
        _scores(axes[0, 1], result, theme, "log_loss_next_step", "Log loss of the next minute, nats")
        _gains(axes[0, 2], result, theme)
        _reliability(axes[1, 0], result, theme)
        _pit(axes[1, 1], result, theme)
        _weights(axes[1, 2], result, theme)
    return figure


def _scores(axes: Axes, result: Mapping[str, Any], theme: Theme, metric: str, title: str) -> None:
    """Every model's score with its interval, the best on top."""
    frame(axes, theme, title)
    models = result.get("models") or {}
    known = {name: value for name, score in models.items() if (value := number(score.get(metric))) is not None}
    ordered = sorted(known, key=lambda name: known[name])
    limit = SCORE_SHOWN * float(np.median(list(known.values()))) if known else 1.0
    axes.set_xlim(0, min(limit, 1.3 * max(known.values(), default=1.0)))
    for row, name in enumerate(ordered):
        special = {MESP: _colour(theme, _MESP_COLOUR), ORACLE: to_rgb(theme.faint)}
        colour = special.get(name, _colour(theme, _OTHER_COLOUR))
        ends = interval((models[name].get("ci95") or {}).get(metric))
        _dot(axes, row, known[name], ends, colour, strong=name == MESP, marker="*" if name == ORACLE else "o")
    _rows(axes, [_title(name) for name in ordered], theme, bold=[name == MESP for name in ordered])
    axes.set_xlabel("lower is better; lines are 95 % intervals over functions")


def _gains(axes: Axes, result: Mapping[str, Any], theme: Theme) -> None:
    """By how much the mixture's scaled quantile loss is below the best single model's, in each slice."""
    frame(axes, theme, "Gain over the best single")
    names = slice_names(result)
    gains = {name: gain for name in names if (gain := comparison(result, "best_single", "scaled_quantile_loss", name))}
    reach = [abs(end) for gain in gains.values() for end in (gain.improvement_pct, *(gain.ci95 or ()))]
    reach_pct = min(1.1 * max(reach, default=1.0) + 1e-9, GAIN_SHOWN_PCT)
    axes.set_xlim(-reach_pct, reach_pct)
    for row, (name, gain) in enumerate(gains.items()):
        colour = _colour(theme, _MESP_COLOUR if name is None else _OTHER_COLOUR)
        _dot(axes, row, gain.improvement_pct, gain.ci95, colour, strong=name is None)
    titles = [slice_title(result, name, short=True) for name in gains]
    _rows(axes, titles, theme, bold=[name is None for name in gains])
    axes.axvline(0, color=theme.faint, linewidth=1)
    axes.set_xlabel("scaled quantile loss less by, %; right of 0 is better")


def _reliability(axes: Axes, result: Mapping[str, Any], theme: Theme) -> None:
    """How often a minute was active that was given a probability, against that probability."""
    frame(axes, theme, "Is 30 % really 30 %?")
    axes.plot((0, 1), (0, 1), color=theme.faint, linewidth=1, linestyle=":")
    for name, colour, zorder in _shown(result):
        bins = result["models"][name].get("reliability") or {}
        points = _finite(*(bins.get(column) or () for column in ("forecast", "observed", "minutes")))
        if not len(points):
            continue
        sizes = 12 + 150 * np.sqrt(points[:, 2] / points[:, 2].sum())
        tint = _colour(theme, colour)
        axes.plot(points[:, 0], points[:, 1], color=tint, linewidth=1.6, label=_title(name), zorder=zorder)
        axes.scatter(points[:, 0], points[:, 1], s=sizes, color=tint, linewidths=0, alpha=0.85, zorder=zorder)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("probability that the next minute is active")
    axes.set_ylabel("share of minutes that were")
    _legend(axes, theme)


def _pit(axes: Axes, result: Mapping[str, Any], theme: Theme) -> None:
    """Where outcomes fell in the forecast distribution: a tenth in every decile if it is true."""
    frame(axes, theme, "PIT of the next minute's count")
    axes.axhspan(10 - PIT_TOLERANCE, 10 + PIT_TOLERANCE, color=theme.faint, alpha=0.15, linewidth=0)
    for name, colour, zorder in _shown(result):
        shares = [number(share) for share in result["models"][name].get("pit") or ()]
        if len(shares) == 10 and None not in shares:
            heights = 100 * np.array(shares, np.float64)
            axes.stairs(
                heights,
                np.arange(11) / 10,
                color=_colour(theme, colour),
                linewidth=2,
                label=_title(name),
                zorder=zorder,
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("decile of the forecast distribution")
    axes.set_ylabel("outcomes in it, %")
    _legend(axes, theme)


def _weights(axes: Axes, result: Mapping[str, Any], theme: Theme) -> None:
    """Mean weight of each expert, all functions and by rate quartile."""
    frame(axes, theme, "Whom the router trusts")
    groups = result.get("weights") or {}
    names = list(dict.fromkeys(name for shares in groups.values() for name in shares))
    left = np.zeros(len(groups))
    for i, name in enumerate(names):
        widths = np.array([100 * (number(shares.get(name)) or 0) for shares in groups.values()])
        colour = _colour(theme, _EXPERT_COLOURS[i % len(_EXPERT_COLOURS)])
        axes.barh(np.arange(len(groups)), widths, left=left, color=colour, height=0.72, label=_title(name))
        left += widths
    _rows(axes, [_QUARTILES.get(group, group) for group in groups], theme)
    axes.set_xlim(0, 100)
    axes.set_xlabel("mean weight, %")
    if names:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, labelcolor=theme.ink, fontsize=8
        )


_QUARTILES = {"all": "all", "1": "rarest quarter", "2": "second", "3": "third", "4": "busiest quarter"}


def _shown(result: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """The models of the lower row with colour and order: the mixture, the best single model, even weights."""
    single = best_single(result, "log_loss_next_step")
    wanted = [("uniform", "#8a929c", 2), (single, _OTHER_COLOUR, 3), (MESP, _MESP_COLOUR, 4)]
    return [(name, colour, zorder) for name, colour, zorder in wanted if name in (result.get("models") or {})]


def _dot(
    axes: Axes,
    row: int,
    value: float,
    ends: tuple[float, float] | None,
    colour: tuple[float, float, float],
    *,
    strong: bool,
    marker: str = "o",
) -> None:
    """A value with its interval; one beyond the axis is an arrow at its edge."""
    left, right = axes.get_xlim()
    if ends:
        axes.plot(ends, (row, row), color=colour, linewidth=2.6 if strong else 1.4, alpha=0.75)
    shape = "<" if value < left else ">" if value > right else marker
    axes.plot(min(max(value, left), right), row, shape, color=colour, markersize=9 if strong else 6, clip_on=False)


def _rows(axes: Axes, names: Sequence[str], theme: Theme, bold: Sequence[bool] = ()) -> None:
    """Names at the left, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    for text, strong in zip(axes.get_yticklabels(), bold, strict=False):
        text.set_fontweight("bold" if strong else "normal")
        text.set_color(theme.ink)


def _legend(axes: Axes, theme: Theme) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False, labelcolor=theme.ink)


def _title(name: str) -> str:
    return f"{label(name)} (hindsight)" if name == ORACLE else label(name)


def _colour(theme: Theme, colour: str) -> tuple[float, float, float]:
    red, green, blue = (part + theme.lift * (1.0 - part) for part in to_rgb(colour))
    return red, green, blue


def _finite(*columns: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Columns side by side, (N, columns), without rows in which a value is missing."""
    rows = [[number(value) for value in row] for row in zip(*columns, strict=True)]
    return np.array([row for row in rows if None not in row], np.float64).reshape(-1, len(columns))
