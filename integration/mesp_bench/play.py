"""A policy in event accounting: the machine that plays it, and the memory it holds idle all the time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mesp.types import MB_PER_GB
from mesp_bench.fastpath import simulate
from mesp_bench.kpa_path import simulate_kpa
from mesp_bench.policies.base import MINUTE_S

if TYPE_CHECKING:
    from mesp_bench.arrivals import Arrivals
    from mesp_bench.event_ledger import EventLedger
    from mesp_bench.policies.base import Policy
    from mesp_bench.traces.model import Trace


def play(
    policy: Policy, knob: float, trace: Trace, arrivals: Arrivals, score_from_s: float | None = None
) -> EventLedger:
    """The ledger of a policy over drawn arrivals, its `constant_idle_mb` charged as waste; scored as in `simulate`.

    Raises:
        InputError: as the policy for its knob, and `simulate`.
    """
    if policy.name == "kpa":  # a state machine of its own: no schedule of minutes tells it
        ledger = simulate_kpa(arrivals, trace.memory_mb, knob, score_from_s=score_from_s)
    else:
        ledger = simulate(arrivals, policy.schedule(trace, knob), trace.memory_mb, score_from_s=score_from_s)
    begin_s = MINUTE_S * arrivals.first_minute if score_from_s is None else score_from_s
    idle_gb_s = policy.constant_idle_mb / MB_PER_GB * (MINUTE_S * arrivals.end_minute - begin_s)
    return replace(ledger, waste_gb_s=ledger.waste_gb_s + idle_gb_s, total_gb_s=ledger.total_gb_s + idle_gb_s)
