"""What Experiments 1 and 2 leave behind: their JSON, pictures and one page each, and the tables on the console."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError
from rich.text import Text
from safetensors.numpy import save

from mesp.errors import InputError
from mesp_bench.cluster_experiment import WEAK_SILHOUETTE
from mesp_bench.cluster_plots import (
    centroids_figure,
    cluster_title,
    experts_figure,
    experts_of,
    interval_text,
    silhouette_figure,
)
from mesp_bench.pages import html_table, listed, page, picture, rich_table
from mesp_bench.plots import DARK, LIGHT, figure_bytes
from mesp_bench.report import json_text, write_files
from mesp_bench.tables import Row, Table, facts_table, notes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

    from mesp_bench.cluster_experiment import Experiment


class _Score(BaseModel):
    mean: float | None
    ci95: tuple[float, float] | None = None


class _ExpertTable(BaseModel):
    """What must stand in `experts.json`; more may."""

    scores: dict[str, dict[str, _Score]] = Field(min_length=1)
    selected: dict[str, str]


def write_cluster_report(experiment: Experiment, out: Path) -> None:
    """Writes `clusters.json`, `clusters.safetensors`, `centroids.png`, `silhouette.png` and `report.html` into `out`.

    Raises:
        InputError: `out` cannot be written.
    """
    result, sentence = experiment.result, cluster_sentence(experiment.result)
    drawn = [figure_bytes(centroids_figure(experiment, theme, titled=False), "svg") for theme in (LIGHT, DARK)]
    judged = [figure_bytes(silhouette_figure(result, theme), "svg") for theme in (LIGHT, DARK)]
    html = page(
        sentence,
        picture(drawn[0], drawn[1], "Each cluster's centroid and its members."),
        picture(judged[0], judged[1], "Silhouette of every K, and where the function-days went."),
        html_table(clusters_table(result)),
        html_table(silhouettes_table(result)),
        listed("Notes", notes(result)),
        html_table(facts_table("Protocol", result["protocol"])),
        html_table(facts_table("Provenance", result["provenance"])),
    )
    write_files(
        out,
        {
            "clusters.json": json_text(result).encode(),
            "clusters.safetensors": save({"centroids": experiment.clusters.centroids}),
            "centroids.png": figure_bytes(centroids_figure(experiment), "png"),
            "silhouette.png": figure_bytes(silhouette_figure(result), "png"),
            "report.html": html.encode(),
        },
    )


def print_clusters(result: Mapping[str, Any], console: Console) -> None:
    """The clusters, the result's sentence and the notes."""
    console.print(rich_table(clusters_table(result)))
    console.print(Text(cluster_sentence(result), style="bold"))
    for note in notes(result):
        console.print(Text(f"- {note}", style="dim"))


def cluster_sentence(result: Mapping[str, Any]) -> str:
    """The finding in one sentence."""
    best = max(result["silhouette"].values())
    shaped, away = sum(result["sizes"]), sum(result["routed_away"].values())
    verdict = "hardly separate" if best < WEAK_SILHOUETTE else "separate"
    return (
        f"{shaped:,} of {shaped + away:,} function-days have a shape; in {result['k']} clusters they {verdict} "
        f"(silhouette {best:.2f})"
    )


def clusters_table(result: Mapping[str, Any]) -> Table:
    """A row per cluster, and per reason for being in none."""
    total = sum(result["sizes"]) + sum(result["routed_away"].values())
    rows = [
        Row(
            (
                cluster_title(str(label)),
                f"{about['size']:,}",
                f"{100 * about['size'] / total:.1f}",
                f"{about['distance_median']:.2f}",
                f"{about['invocations_per_day_median']:,.0f}",
                f"{about['active_bins_pct']:.0f}",
            )
        )
        for label, about in enumerate(result["clusters"])
    ]
    rows += [
        Row((reason, f"{size:,}", f"{100 * size / total:.1f}", "—", "—", "—"))
        for reason, size in result["routed_away"].items()
    ]
    columns = ("cluster", "function days", "% of all", "median distance", "median calls a day", "active bins %")
    return Table("Clusters, and what was routed away", columns, tuple(rows))


def silhouettes_table(result: Mapping[str, Any]) -> Table:
    """Every K that was tried, the best one strong."""
    best = max(result["silhouette"].values())
    rows = (Row((f"{k}", f"{score:.3f}"), strong=score == best) for k, score in result["silhouette"].items())
    return Table("Silhouette by number of clusters", ("K", "silhouette"), tuple(rows))


def read_experts(model: Path) -> dict[str, Any]:
    """The content of `experts.json` in a model directory.

    Raises:
        InputError: it is missing, or is not as EVALUATION.md describes it; names file and key.
    """
    path = model / "experts.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; `mesp predictor train` writes it into the model directory") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    try:
        _ExpertTable.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key or 'it'} = {first['input']!r}: {first['msg']}") from error
    return dict(table)


def write_experts_report(table: Mapping[str, Any], out: Path) -> None:
    """Writes `experts.json`, `experts.png` and `report.html` into `out`.

    Raises:
        InputError: `out` cannot be written.
    """
    light, dark = (figure_bytes(experts_figure(table, theme), "svg") for theme in (LIGHT, DARK))
    html = page(
        experts_sentence(table),
        picture(light, dark, "Loss of every expert on every cluster."),
        html_table(experts_table(table)),
        listed("Notes", notes(table)),
    )
    write_files(
        out,
        {
            "experts.json": json_text(table).encode(),
            "experts.png": figure_bytes(experts_figure(table), "png"),
            "report.html": html.encode(),
        },
    )


def print_experts(table: Mapping[str, Any], console: Console) -> None:
    """The whole table, the selected experts strong."""
    console.print(rich_table(experts_table(table)))
    console.print(Text(experts_sentence(table), style="bold"))


def experts_sentence(table: Mapping[str, Any]) -> str:
    """How many experts it takes, and how often the choice is clear."""
    chosen = [
        (cluster, name) for cluster, name in table["selected"].items() if name in table["scores"].get(cluster, {})
    ]
    clear = sum(_is_clear(table["scores"][cluster], name) for cluster, name in chosen)
    return (
        f"{len({name for _, name in chosen})} of {len(experts_of(table))} experts are the best of some cluster; "
        f"for {clear} of {len(chosen)} clusters the choice is clear of its runner-up's interval"
    )


def _is_clear(scores: Mapping[str, Any], name: str) -> bool:
    """Whether the 95 % interval of a cluster's best expert lies below those of all others."""
    own = scores[name].get("ci95")
    others = [score["ci95"] for other, score in scores.items() if other != name and score.get("ci95")]
    return bool(own and others) and own[1] < min(interval[0] for interval in others)


def experts_table(table: Mapping[str, Any]) -> Table:
    """A row per cluster and expert, the best first; the selected one is strong."""
    rows = []
    for cluster, scores in table["scores"].items():
        measured = {name: score for name, score in scores.items() if score.get("mean") is not None}
        best = min((score["mean"] for score in measured.values()), default=0.0)
        for name, score in sorted(measured.items(), key=lambda item: item[1]["mean"]):
            worse = f"{100 * (score['mean'] / best - 1):+.1f}" if best > 0 else "—"
            selected = table["selected"].get(cluster) == name
            cells = (cluster_title(cluster), name, f"{score['mean']:.4f}", interval_text(score) or "—", worse)
            rows.append(Row(cells, strong=selected))
    columns = ("cluster", "expert", "loss", "95 %", "% above best")
    return Table("Every expert on every cluster (selected ones in colour)", columns, tuple(rows), text_columns=2)
