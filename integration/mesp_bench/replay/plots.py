"""The picture of replays: how long calls took from when they were due, and when the cold starts came.

Left, for each latency the share of calls that took longer, both axes logarithmic, for the tail is where cold starts live.
Right, cold starts added up over the trace's minutes. One colour per replay, Okabe and Ito's as in every other figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mesp_bench.plots import FONT, LIGHT, Theme, frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def replay_figure(results: Mapping[str, Mapping[str, Any]], theme: Theme = LIGHT) -> Figure:
    """Replays by name, each the content of a `replay-….json`, in one figure of two panels."""
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(13, 5.2), layout="constrained", facecolor=theme.paper)
        FigureCanvasAgg(figure)
        tail, starts = figure.subplots(1, 2)
        frame(tail, theme, "Latency from the intended start")
        tail.set_xlabel("seconds")
        tail.set_ylabel("share of calls that took longer, %")
        tail.set_xscale("log")
        tail.set_yscale("log")
        for axis in (tail.xaxis, tail.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        frame(starts, theme, "Cold starts so far")
        starts.set_xlabel("minute of the trace")
        for at, (name, result) in enumerate(results.items()):
            style = {"color": _COLOURS[at % len(_COLOURS)], "label": name, "linewidth": 1.8}
            latency_s = result["latency_quantiles_s"]["latency_s"]
            if latency_s:
                longer = 100.0 - np.asarray(result["latency_quantiles_s"]["levels_pct"])
                tail.plot(latency_s[:-1], longer[:-1], drawstyle="steps-post", **style)
            if result["cold"] is not None:
                first, end = result["protocol"]["minutes"]
                total: Sequence[int] = np.cumsum([0, *result["per_minute"]["cold"]]).tolist()
                starts.plot(range(first, end + 1), total, **style)
        for axes in (tail, starts):
            if axes.lines:
                axes.legend(frameon=False, labelcolor=theme.ink)
        return figure
