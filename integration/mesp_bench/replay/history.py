"""What came before a replay, told to a predictor as if the platform had lived through it until now.

The predictor counts in steps of the real clock, and while the replay runs somebody (the plugin) reports the calls that it
sends, minute by minute of that clock. So the trace's past is laid on the same clock, closer together by the replay's
speed, and ends where the replay begins: on a whole minute.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from mesp.client import ClientConfig, PredictorClient
from mesp.types import DEFAULT_STEP_MS, StepCounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import FunctionKey, Rejection
    from mesp_bench.replay.schedule import Schedule
    from mesp_bench.traces.model import Trace

#: The predictor learns from a day at once: it may take its time.
_PATIENT = ClientConfig(observe_deadline_s=120)

SOURCE = "replay-history"


def history(
    trace: Trace, schedule: Schedule, known_as: Mapping[FunctionKey, FunctionKey], begin_ms: int
) -> list[StepCounts]:
    """Counts of the trace's whole minutes before the replay's first call could be, oldest first.

    Args:
        trace: what was recorded.
        schedule: says where in the trace the replay begins, its warm-up included, and how fast it is.
        known_as: the key of each of the trace's functions on the platform.
        begin_ms: when that is, epoch milliseconds on a whole step.
    """
    begin_s = 60 * schedule.minutes[0] - schedule.warm_up_s
    counts: defaultdict[int, Counter[FunctionKey]] = defaultdict(Counter)
    for minute in range(int(begin_s // 60)):
        # Rounding must not put the minute just before the beginning into the step before the last.
        steps_ago = math.ceil((begin_s - 60 * minute) / (60 * schedule.speed) - 1e-9)
        step, column = counts[steps_ago], trace.counts[:, minute]
        for row in np.flatnonzero(column):
            step[known_as[trace.functions[row]]] += int(column[row])
    told = zip(trace.functions, trace.invoked_by, strict=True)
    triggers = {known_as[function]: trigger for function, trigger in told}
    return [
        StepCounts(
            SOURCE, begin_ms - steps_ago * DEFAULT_STEP_MS, DEFAULT_STEP_MS, dict(counts[steps_ago]), triggers=triggers
        )
        for steps_ago in sorted(counts, reverse=True)
    ]


async def tell(address: str, steps: list[StepCounts]) -> list[Rejection]:
    """Sends the history to the predictor at `address` (``host:port``); what it refused.

    Raises:
        UnavailableError: it does not answer.
        InputError: it refuses the whole, as a predictor of another step width does.
    """
    # The seed only spreads retries in time.
    async with PredictorClient(address, rng=random.Random(0), config=_PATIENT) as client:
        return await client.observe(steps)
