"""The trace format of invitro: `invocations.csv`, `durations.csv`, `memory.csv`, each with a HashFunction.

Format: github.com/vhive-serverless/invitro, docs/loader.md and sampler/preprocess.py. The columns are those of the
Azure 2019 files, with two differences: the minutes may be a window (header 480..959), and memory is given per
function, already the function's share of its app.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import csvtable
from .assemble import FunctionId, Mean, build_trace
from .azure2019 import read_durations, read_function_memory, read_invocations

if TYPE_CHECKING:
    from pathlib import Path

    from .model import Trace

INVOCATIONS_FILE, DURATIONS_FILE, MEMORY_FILE = "invocations.csv", "durations.csv", "memory.csv"


def load(invocations: Path, durations: Path | None, memory: Path | None, *, max_functions: int | None) -> Trace:
    """A trace of one file of counts, with run times and memory where their files are given."""
    wanted: dict[FunctionId, None] = {}
    counts = read_invocations(invocations, wanted=wanted, max_functions=max_functions, ids_required=False)
    run_times, counted, function_memory = Mean(), dict[FunctionId, int](), Mean()
    if durations:
        read_durations(durations, wanted, counts.id_columns, run_times, counted)
    if memory:
        read_function_memory(memory, wanted, counts.id_columns, function_memory)
    # The durations cover the day from which a window of minutes was cut: their counts only tell of whole days.
    whole_days = (counts.end_minute - counts.start_minute) % 1_440 == 0
    return build_trace(
        invocations.resolve().parent.name,
        [counts],
        durations=run_times,
        duration_count=counted if durations and whole_days else None,
        app_memory=Mean(),
        function_memory=function_memory,
        checksum=csvtable.checksum([path for path in (invocations, durations, memory) if path]),
    )
