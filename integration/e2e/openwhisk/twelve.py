"""The trace "twelve", one day of twelve functions, which two cores carry beside a real OpenWhisk.

    python -m e2e.openwhisk.twelve DIR

Eight timers of 11 to 18 minutes, just longer than OpenWhisk keeps an idle container; a timer of 4 minutes; one that fires
three calls at once every 12 minutes; and two at random, every 9 and every 25 minutes on average. Always the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from mesp.errors import MespError
from mesp_bench.traces.assemble import FunctionId
from mesp_bench.traces.convert import new_folder
from mesp_bench.traces.official import DayWriter
from mesp_bench.traces.population import MINUTES_PER_DAY

TIMERS = (11, 12, 13, 14, 15, 16, 17, 18, 4)


def write_twelve(out: Path) -> None:
    """Writes the trace's three files into a new folder.

    Raises:
        InputError: the folder is not empty or cannot be written.
    """
    rng = np.random.default_rng(0)
    minutes = np.arange(MINUTES_PER_DAY)
    timers = [minutes % period == rng.integers(period) for period in TIMERS]
    bursts = 3 * (minutes % 12 == 5)
    random = [rng.poisson(1 / mean, MINUTES_PER_DAY) for mean in (9, 25)]
    counts = np.array([*timers, bursts, *random], dtype=np.uint32)
    durations_ms = np.array([rng.integers(100, 1500) for _ in counts], dtype=float)

    ids = [FunctionId(_digest("o"), _digest("a", row), _digest("f", row)) for row in range(len(counts))]
    count = counts.sum(axis=1, dtype=np.int64)
    with new_folder(out) as folder, DayWriter(folder, 1) as writer:
        writer.invocations(ids, ["timer"] * 10 + ["http"] * 2, counts)
        writer.durations(ids, count, np.repeat(durations_ms[:, None], 8, axis=1))
        apps = len(ids)
        writer.memory([one[:2] for one in ids], np.full(apps, 100), np.full(apps, 100.0), np.full((apps, 8), 100.0))


def _digest(*name: object) -> str:
    """An id as the official files have them."""
    return hashlib.sha256(repr(name).encode()).hexdigest()


if __name__ == "__main__":
    try:
        write_twelve(Path(sys.argv[1]))
    except MespError as error:
        sys.exit(str(error))
