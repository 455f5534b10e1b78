"""`mesp predictor cluster` and `mesp predictor experts`: Experiment 1, and Experiment 2's table as a picture."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003  # typer reads annotations when it runs
from typing import Annotated

import typer
from rich.console import Console

from mesp.errors import InputError
from mesp_bench.progress import stages
from mesp_predictor.cli import app

#: Most clusters that can be asked for.
_MOST = 64


class Engine(StrEnum):
    """Who computes K-Shape: tslearn, our batched FFTs, or whichever suits the size."""

    AUTO = "auto"
    TSLEARN = "tslearn"
    BATCHED = "batched"


@app.command()
def cluster(
    *,
    trace: Annotated[Path, typer.Option(help="The trace: a folder in the Azure, invitro or Parquet form.")],
    out: Annotated[Path, typer.Option(help="Folder for clusters.json, the centroids, pictures and report.html.")],
    clusters: Annotated[
        int | None, typer.Option(min=2, max=_MOST, help="Number of clusters; without it the best of --k.")
    ] = None,
    k: Annotated[
        str, typer.Option("--k", help="Numbers of clusters to choose from by silhouette, FIRST:LAST.")
    ] = "2:16",
    engine: Annotated[
        Engine, typer.Option(help="tslearn is the reference, batched is for large traces.")
    ] = Engine.AUTO,
    bin_minutes: Annotated[int, typer.Option(min=1, max=720, help="Width of a shape's bins; must divide a day.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same clusters.")] = 0,
) -> None:
    """Cluster a trace's function-days by shape, and show how well the shapes separate.

    Example: mesp predictor cluster --trace azure2019-d01-pool --out out/clusters
    """
    from mesp_bench.cluster_experiment import cluster_experiment  # noqa: PLC0415
    from mesp_bench.cluster_report import print_clusters, write_cluster_report  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415

    ks = _between(k) if clusters is None else range(clusters, clusters + 1)
    fleet = load_trace(trace)
    with stages() as progress:
        found = cluster_experiment(
            fleet,
            ks,
            lambda share: progress("clusters", share),
            engine=engine.value,
            bin_minutes=bin_minutes,
            seed=seed,
        )
        progress("pictures", 0)
        write_cluster_report(found, out)
    print_clusters(found.result, Console())
    typer.echo(f"Report: {out / 'report.html'}")


@app.command()
def experts(
    *,
    model: Annotated[Path, typer.Option(help="Directory of a trained model.")],
    out: Annotated[Path, typer.Option(help="Folder for experts.json, experts.png and report.html.")],
) -> None:
    """Show how every expert of a model did on every cluster, and which were selected.

    Example: mesp predictor experts --model models/small --out out/experts
    """
    from mesp_bench.cluster_report import print_experts, read_experts, write_experts_report  # noqa: PLC0415

    table = read_experts(model)
    write_experts_report(table, out)
    print_experts(table, Console())
    typer.echo(f"Report: {out / 'report.html'}")


def _between(text: str) -> range:
    """The numbers of ``FIRST:LAST``, both included."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 2 <= int(first) <= int(last) <= _MOST):
        raise InputError(f"--k {text}: must be FIRST:LAST with 2 <= FIRST <= LAST <= {_MOST}, as 2:16")
    return range(int(first), int(last) + 1)
