"""`mesp bench forecast`: how many series a second each forecaster answers, side by side in one run on one machine.

Every subject is measured in a process of its own (`speed_subjects`), one after the other, so that imports, memory and
threads are its own. Slow ones are timed on fewer functions, and each row says on how many; ratios are of the time per
function. Numbers are printed, never asserted: they belong to this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mesp_bench.curves import MISSING
from mesp_bench.evaluate import model_notes, model_provenance, provenance
from mesp_bench.speed_subjects import HISTORY, Job
from mesp_bench.tables import Row, Table
from mesp_bench.traces.synth import synthesize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: What others are compared with, and the most functions that each is timed on.
REFERENCES = {"naive_loop": 200, "auto_ets": 20, "chronos_bolt_tiny": 1_000}

_SHORT = {"naive_loop": "naive loop", "auto_ets": "AutoETS", "chronos_bolt_tiny": "Bolt tiny"}

#: Rows that forecast nothing: they have no series a second, and are compared with nobody.
_NO_FORECAST = frozenset({"observe"})

#: What these libraries call the number of their threads.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

#: Packages of references, which MESP itself may do without.
_OPTIONAL = ("statsforecast", "chronos-forecasting")


def bench_forecast(
    model: Path | None,
    functions: int,
    progress: Callable[[str, float], None],
    *,
    threads: int = 1,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Times every expert of a model, the mixture's tick, and the references on a synthetic fleet.

    Args:
        model: its directory; None: the model that comes with MESP.
        functions: of the fleet, at least 1.
        progress: told the subject and the share of all of them done.
        threads: that each subject may take.
        repeats: timed calls of each, after one that warms up.
        seed: of the fleet.

    Returns:
        The content of `bench.json`; what could not be measured is null, and a note says why.

    Raises:
        InputError: the directory is no model.
    """
    from mesp_predictor.checkpoint import default_model, read_manifest  # noqa: PLC0415  # needs torch

    directory = model or default_model()
    names = read_manifest(directory).experts
    answering = model_provenance(directory)
    progress("fleet", 0)
    fleet = synthesize(functions=functions, days=1, seed=seed)
    notes = [*_reading(repeats), *model_notes(answering, fleet)]
    subjects = [*names, "mixture", "observe", *REFERENCES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.npy"
        np.save(counts, fleet.counts[:, -(HISTORY + repeats + 1) :].astype(np.float32))
        for what in subjects:
            progress(what, 0)
            judged = min(functions, REFERENCES.get(what, functions))
            job = Job(what, str(counts), judged, repeats, str(directory))
            answer = _run(job, threads)
            if "why" in answer:
                notes.append(f"{what} was not measured: {answer['why']}.")
            rows.append(_row(job, answer, threads))
            progress(what, 1)
    _compare(rows)
    about = provenance(fleet, seeds=1, workers=1)
    about["packages"] |= {name: found for name in _OPTIONAL if (found := _version(name))}
    return {
        "provenance": about | {"seeds": [seed], "model": answering},
        "notes": notes,
        "protocol": {"functions": functions, "history_steps": HISTORY, "repeats": repeats, "threads": threads},
        "rows": rows,
    }


def _reading(repeats: int) -> list[str]:
    """How the rows are to be read."""
    compared = (
        "ratio_to: time per function over the other's; 0.01 is a hundredth of its time. Seconds are the median of "
        f"{repeats} calls after a warm-up; peak memory is of the subject's whole process, imports included."
    )
    subjects = (
        f"Every forecaster has seen the same {HISTORY} steps. mixture is one whole tick, which learns from the step that "
        "closed and asks all experts it needs; observe takes in a step's counts; naive_loop is the three closed-form "
        "light experts asked one function at a time; auto_ets has no season, and is fitted to each series; "
        "chronos_bolt_tiny has random weights."
    )
    return [compared, subjects]


def speed_table(result: Mapping[str, Any]) -> Table:
    """The rows of `bench.json`, the mixture strong."""
    references = [name for name in REFERENCES if any(name in row["ratio_to"] for row in result["rows"])]
    rows = [
        Row(
            (
                row["what"].replace("_", " "),
                f"{row['functions']:,}",
                _decimal(row["seconds"], 4),
                _decimal(row["series_per_s"], 0),
                _decimal(row["peak_rss_mb"], 0),
                *(_times(row["ratio_to"].get(name)) for name in references),
            ),
            strong=row["what"] == "mixture",
        )
        for row in result["rows"]
    ]
    columns = ("what", "series", "seconds", "series a second", "peak MB", *(_SHORT[name] for name in references))
    threads = result["protocol"]["threads"]
    title = f"Forecast a fleet, {threads} thread{'s' if threads > 1 else ''} (on the right: times as fast as ...)"
    return Table(title, columns, tuple(rows))


def _run(job: Job, threads: int) -> dict[str, Any]:
    """The figures of one job from its own process; `why` where there are none."""
    ended = subprocess.run(  # noqa: S603  # this very interpreter and module
        [sys.executable, "-m", "mesp_bench.speed_subjects", job.text()],
        env=os.environ | dict.fromkeys(_THREADS, str(threads)),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = ended.stderr.strip().rpartition("\n")[2]
        return {"why": f"its process ended with {ended.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(ended.stdout.strip().rpartition("\n")[2])
    if "missing" in answer:
        return {"why": f"the package {answer['missing']} is not installed"}
    return answer


def _row(job: Job, answer: Mapping[str, Any], threads: int) -> dict[str, Any]:
    seconds = answer.get("seconds")
    return {
        "what": job.what,
        "functions": job.functions,
        "seconds": seconds,
        "peak_rss_mb": answer.get("peak_rss_mb"),
        "threads": threads,
        "series_per_s": job.functions / seconds if seconds and job.what not in _NO_FORECAST else None,
        "ratio_to": {},
    }


def _compare(rows: list[dict[str, Any]]) -> None:
    """Fills in every forecaster's time per function over that of each reference."""
    speeds = {row["what"]: row["series_per_s"] for row in rows if row["series_per_s"]}
    for row in rows:
        if row["what"] in speeds:
            others = (name for name in REFERENCES if name in speeds and name != row["what"])
            row["ratio_to"] = {name: speeds[name] / speeds[row["what"]] for name in others}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _decimal(value: float | None, places: int) -> str:
    return MISSING if value is None else f"{value:,.{places}f}"


def _times(ratio: float | None) -> str:
    """A ratio of times as how many times as fast."""
    return MISSING if not ratio else f"{1 / ratio:,.0f}" if ratio < 0.1 else f"{1 / ratio:.2g}"
