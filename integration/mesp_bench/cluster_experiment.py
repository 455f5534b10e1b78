"""Experiment 1: which functions share a shape? K-Shape over a trace's function-days, and how well it separates them.

A trace flows in and is cut into function-days; those that are dead, young or constant are routed away by rule, the rest
is clustered with the K of the best silhouette, or with the K given. What flows out is the content of `clusters.json`
and what the pictures show. Clusters are numbered by size, the largest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mesp.errors import InputError
from mesp_bench.evaluate import provenance
from mesp_predictor import shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesp.types import FloatArray
    from mesp_bench.traces.model import Trace

#: Below this mean silhouette groups hardly stand apart (Kaufman & Rousseeuw, 1990: "no substantial structure").
WEAK_SILHOUETTE = 0.25

#: Steps in a day of a trace, which counts per minute.
DAY_MINUTES = 1_440


@dataclass(frozen=True, slots=True)
class Experiment:
    """What was found.

    Attributes:
        result: the content of `clusters.json`.
        clusters: the shapes, numbered by size.
        series: the units that were clustered, in bins, (N, B).
        distances: shape-based distance of each to its centroid, (N,).
        bin_minutes: width of a bin.
    """

    result: dict[str, Any]
    clusters: shapes.Clusters
    series: FloatArray
    distances: FloatArray
    bin_minutes: int


def cluster_experiment(
    trace: Trace,
    ks: Sequence[int],
    progress: Callable[[float], None],
    *,
    engine: shapes.Engine = "auto",
    bin_minutes: int = 10,
    seed: int = 0,
) -> Experiment:
    """Clusters a trace's function-days.

    Args:
        trace: at least a day; what follows the last whole day is left out.
        ks: numbers of clusters to choose from by silhouette; a single one is taken as it is.
        progress: told the share done.
        engine: of K-Shape, see `shapes.kshape`.
        bin_minutes: width of a bin, a divisor of a day.
        seed: of the first centroids and the silhouette's sample.

    Raises:
        InputError: the trace is shorter than a day, `bin_minutes` does not divide a day, or there are fewer units
            with a shape than clusters.
    """
    series, function = shapes.bin_days(trace.counts, bin_minutes, DAY_MINUTES)
    kinds = shapes.route_away(series, function)
    shaped = kinds == shapes.Kind.SHAPED.value
    if shaped.sum() < max(ks):
        raise InputError(
            f"{trace.name}: {int(shaped.sum())} of {len(series)} function-days have a shape, "
            f"too few for {max(ks)} clusters: choose fewer"
        )
    units = series[shaped]
    found, silhouettes = shapes.choose_k(units, ks, seed, engine=engine, progress=progress)
    clusters = _by_size(found)
    _, distances = shapes.assign(units, clusters.centroids)
    told = np.array(kinds, dtype=object)
    told[shaped] = clusters.labels.tolist()
    sizes = np.bincount(clusters.labels, minlength=clusters.k)
    result = {
        "provenance": provenance(trace, seeds=1, workers=1) | {"seeds": [seed]},
        "notes": _notes(silhouettes, len(units), clusters.k, trace.minutes),
        "protocol": {
            "bin_minutes": bin_minutes,
            "engine": engine,
            "functions": len(trace.functions),
            "function_days": len(series),
            "silhouette_sample": min(len(units), shapes.SILHOUETTE_SAMPLE),
        },
        "k": clusters.k,
        "silhouette": silhouettes,
        "sizes": sizes,
        "routed_away": {
            kind.value: int((kinds == kind.value).sum()) for kind in shapes.Kind if kind is not shapes.Kind.SHAPED
        },
        "inertia": clusters.inertia,
        "clusters": [_about(units, distances, clusters.labels == label) for label in range(clusters.k)],
        # of each function its days, in order: the cluster, or why there is none
        "functions": {str(key): list(told[function == row]) for row, key in enumerate(trace.functions)},
    }
    return Experiment(result, clusters, units, distances, bin_minutes)


def _by_size(found: shapes.Clusters) -> shapes.Clusters:
    """The same clusters, the largest first."""
    order = np.argsort(-np.bincount(found.labels, minlength=found.k), kind="stable")
    rank = np.empty(found.k, np.int64)
    rank[order] = np.arange(found.k)
    return shapes.Clusters(found.centroids[order], rank[found.labels], found.inertia)


def _about(units: FloatArray, distances: FloatArray, member: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float]:
    """How alike a cluster's members are, and how busy."""
    return {
        "size": int(member.sum()),
        "distance_median": float(np.median(distances[member])),
        "invocations_per_day_median": float(np.median(units[member].sum(axis=1))),
        "active_bins_pct": 100 * float((units[member] > 0).mean()),
    }


def _notes(silhouettes: dict[int, float], units: int, k: int, minutes: int) -> list[str]:
    """What a reader must know before believing the clusters."""
    asked = max(silhouettes, key=silhouettes.__getitem__)
    best = silhouettes[asked]
    notes = []
    if best < WEAK_SILHOUETTE:
        notes.append(
            f"The silhouette is {best:.2f}{' at best' if len(silhouettes) > 1 else ''}, below {WEAK_SILHOUETTE}: shapes hardly separate, and the clusters "
            "are a way to divide the fleet rather than groups that stand apart."
        )
    if k < asked:
        notes.append(f"{asked} clusters were asked for, {k} were found: the units have no more shapes.")
    if len(silhouettes) > 1 and asked == max(silhouettes):
        notes.append(f"The best K is the largest that was tried, {asked}: more clusters may separate better.")
    if units > shapes.SILHOUETTE_SAMPLE:
        notes.append(f"Silhouettes are those of a sample of {shapes.SILHOUETTE_SAMPLE:,} of {units:,} function-days.")
    if minutes < 2 * DAY_MINUTES:
        notes.append(
            "One day is one unit per function: that a function keeps its cluster from day to day is not shown."
        )
    return notes
