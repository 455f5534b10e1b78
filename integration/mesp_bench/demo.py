"""`mesp demo`: the whole loop on a trace in minutes, and MESP beside today's platforms.

A sidecar serves a model, by default the one that comes with MESP, and the loop that would run beside a platform drives a simulated cluster
through some hours of virtual time: observe, forecast over gRPC, plan, apply. The same arrivals then meet the policies of
today's platforms, and MESP at other prices, sized from the forecasts that the sidecar gave.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mesp.client import ClientConfig, PredictorClient
from mesp.errors import UnavailableError
from mesp.types import DEFAULT_LEVELS, DEFAULT_STEP_MS, StepCounts
from mesp_bench.arrivals import ArrivalMode, Arrivals, draw_arrivals
from mesp_bench.forecasting import AHEAD, TraceForecast
from mesp_bench.ledger import REFERENCE_KEEP_ALIVE_MINUTES, compulsory_cold_starts, waste_pct
from mesp_bench.play import play
from mesp_bench.policies import BASELINES
from mesp_bench.policies.fixed import Fixed
from mesp_bench.policies.mesp import LEAD_S, Mesp
from mesp_bench.sidecar import sidecar
from mesp_bench.simulator import SimulatedPlatform
from mesp_placement.config import DEFAULT_PRICE_GB_S, PlacementConfig
from mesp_placement.model import Node
from mesp_plugin.config import LoopConfig
from mesp_plugin.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mesp.types import Forecasts, FunctionKey, Rejection
    from mesp_bench.event_ledger import EventLedger
    from mesp_bench.policies.base import Policy
    from mesp_bench.traces.model import Trace

#: Invocations a minute that the loop's simulated platform plays in reasonable time.
MOST_PER_MINUTE = 600.0
#: Nodes of the simulated cluster, and their memory over what all functions need once.
NODES, MEMORY_SHARE = 4, 3.0
#: The platform's own keep-alive: what would be there without MESP.
PLATFORM_KEEP_ALIVE_S = 600.0
#: Steps of history in one Observe: of what comes at once the sidecar forecasts the last hour alone.
_BATCH = 1_440
#: Virtual time outruns the sidecar's refits, which a live one has ten minutes for: forecasts wait for them.
_PATIENT = ClientConfig(observe_deadline_s=120, forecast_deadline_s=120)
#: Policies that are drawn beside MESP.
_BESIDE = ("fixed", "openwhisk", "hybrid_histogram", "kpa")


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What the loop did.

    Attributes:
        ledger: the simulated platform's account.
        forecast: what the sidecar said of each minute, for MESP at other prices.
        prewarmed: containers ordered by MESP.
        released: containers given back by MESP.
    """

    ledger: EventLedger
    forecast: TraceForecast
    prewarmed: int
    released: int


def playable(trace: Trace) -> tuple[Trace, list[str]]:
    """The trace without its busiest functions, if need be, so that a minute has at most MOST_PER_MINUTE invocations.

    The step-by-step platform plays one invocation after the other. Every policy is shown on the same functions, and a note
    says what was left out; busy functions do have cold starts, of their second and third containers.
    """
    rate = trace.counts.mean(axis=1)
    order = np.argsort(rate, kind="stable")
    kept = np.sort(order[np.cumsum(rate[order]) <= MOST_PER_MINUTE])
    if len(kept) == len(rate):
        return trace, []
    share = rate[kept].sum() / rate.sum()
    note = (
        f"The demo plays {len(kept)} of {len(rate)} functions: the busiest, with {100 * (1 - share):.0f} % of the "
        "invocations, are left out."
    )
    return trace.select(kept.astype(np.int64)), [note]


async def run_live(address: str, trace: Trace, arrivals: Arrivals, progress: Callable[[float], None]) -> LiveRun:
    """Runs the loop against the simulated platform from the arrivals' first minute to their last.

    Raises:
        UnavailableError: the sidecar ended or did not answer.
    """
    # The seed only spreads retries in time.
    async with PredictorClient(address, rng=random.Random(0), config=_PATIENT) as client:
        await _tell_history(client, trace, arrivals.first_minute)
        return await _drive(_Recording(client, trace), trace, arrivals, progress)


async def _tell_history(client: PredictorClient, trace: Trace, until: int) -> None:
    steps, triggers = [], dict(zip(trace.functions, trace.invoked_by, strict=True))
    for minute in range(until):
        column = trace.counts[:, minute]
        counts = {trace.functions[f]: int(column[f]) for f in np.flatnonzero(column)}
        start_ms = (trace.start_minute + minute) * DEFAULT_STEP_MS
        steps.append(StepCounts("simulator", start_ms, DEFAULT_STEP_MS, counts, triggers=triggers))
        if len(steps) == _BATCH or minute == until - 1:
            await client.observe(steps)
            steps = []


async def _drive(predictor: _Recording, trace: Trace, arrivals: Arrivals, progress: Callable[[float], None]) -> LiveRun:
    epoch_ms = trace.start_minute * DEFAULT_STEP_MS
    node_mb = max(MEMORY_SHARE * trace.memory_mb.sum() / NODES, 2 * trace.memory_mb.max())
    cluster = SimulatedPlatform(
        arrivals,
        trace.memory_mb,
        nodes=[Node(f"node{i}", float(node_mb)) for i in range(NODES)],
        keep_alive_s=PLATFORM_KEEP_ALIVE_S,
        epoch_ms=epoch_ms,
    )
    # The operator of the demo lets MESP release any idle container: it replaces the platform's keep-alive.
    config = LoopConfig(placement=PlacementConfig(tick_s=LEAD_S, release="any", release_delay_s=0))
    loop = Loop(cluster, predictor, config)
    first, end = (epoch_ms + minute * DEFAULT_STEP_MS for minute in (arrivals.first_minute, arrivals.end_minute))
    prewarmed = released = 0
    for now_ms in range(first, end, config.tick_ms):
        report = await loop.tick(now_ms)
        prewarmed += report.outcomes.prewarmed
        released += report.outcomes.released
        if report.predictor_error is not None:  # a demo without its predictor would show nothing
            minute = arrivals.first_minute + (now_ms - first) // DEFAULT_STEP_MS
            raise UnavailableError(f"the demo stopped at minute {minute}: {report.predictor_error}")
        progress((now_ms - first) / (end - first))
    cluster.advance(end)
    return LiveRun(cluster.ledger(), predictor.recorded(), prewarmed, released)


class _Recording:
    """A predictor that keeps what was forecast of each minute of the trace."""

    def __init__(self, client: PredictorClient, trace: Trace) -> None:
        self._client = client
        self._row = {key: row for row, key in enumerate(trace.functions)}
        self._start_minute = trace.start_minute
        shape = (AHEAD, len(trace.functions), trace.minutes)
        self._active = np.zeros(shape, np.float32)
        self._quantiles = np.zeros((*shape, len(DEFAULT_LEVELS)), np.float32)

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        return await self._client.observe(steps)

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        forecasts = await self._client.forecast(functions, horizon, levels or DEFAULT_LEVELS)
        minute = forecasts.as_of_ms // DEFAULT_STEP_MS - self._start_minute
        rows = np.array([self._row[key] for key in forecasts.functions], np.int64)
        for h in range(min(AHEAD, forecasts.horizon, self._active.shape[2] - minute)):
            self._active[h, rows, minute + h] = forecasts.active[:, h]
            self._quantiles[h, rows, minute + h] = forecasts.quantiles[:, h]
        return forecasts

    def recorded(self) -> TraceForecast:
        return TraceForecast(self._active, self._quantiles, DEFAULT_LEVELS)


def compare(
    trace: Trace, arrivals: Arrivals, live: LiveRun, notes: list[str], progress: Callable[[float], None]
) -> dict[str, Any]:
    """The demo's result: the same arrivals under every policy, in the form of `frontier.json`, and the live run's row."""
    mode = ArrivalMode.UNIFORM.value
    policies: list[Policy] = [*(BASELINES[name] for name in _BESIDE), Mesp(live.forecast)]

    def played(policy: Policy, knob: float) -> EventLedger:
        return play(policy, knob, trace, arrivals)

    reference_gb_s = played(Fixed(), REFERENCE_KEEP_ALIVE_MINUTES).waste_gb_s

    def point(ledger: EventLedger) -> dict[str, Any]:
        percent = waste_pct(ledger.waste_gb_s, reference_gb_s)
        return {
            "cold": {"mean": ledger.cold, "ci95": None},
            "waste_pct": {"mean": percent, "ci95": None},
            "wait_s_p99": ledger.wait_p99_s,
        }

    def row(policy: str, setting: str, ledger: EventLedger) -> dict[str, Any]:
        return {
            "policy": policy,
            "setting": setting,
            "cold starts": ledger.cold,
            "wasted memory (% of 10 min)": waste_pct(ledger.waste_gb_s, reference_gb_s),
            "wasted GB s": round(ledger.waste_gb_s),
            "waited, mean s": float(ledger.wait_s.sum()) / max(ledger.invocations, 1),
        }

    table = {}
    for done, policy in enumerate(policies):
        table[policy.name] = [
            {"knob": knob, "minute": None, "event": {mode: point(played(policy, knob))}} for knob in policy.knobs
        ]
        progress((done + 1) / len(policies))
    scored = slice(arrivals.first_minute, arrivals.end_minute)
    todays = [
        ("MESP", f"the live loop, {DEFAULT_PRICE_GB_S:g} GB s a cold start", live.ledger),
        ("OpenWhisk", "keep-alive 10 min, 2 stem cells", played(BASELINES["openwhisk"], 10)),
        ("Knative", "KPA, stable window 60 s", played(BASELINES["kpa"], 60)),
        ("hybrid histogram", "range 240 min", played(BASELINES["hybrid_histogram"], 240)),
        ("keep-alive", "60 min", played(BASELINES["fixed"], 60)),
    ]
    return {
        "notes": notes,
        "protocol": {
            "scored_minutes": [scored.start, scored.stop - 1],
            "functions": len(trace.functions),
            "compulsory": compulsory_cold_starts(trace, scored),
            "table": "online",
            "knob_units": {policy.name: policy.knob_unit for policy in policies},
            "reference_gb_s": reference_gb_s,
            "price_gb_s": DEFAULT_PRICE_GB_S,
        },
        "policies": table,
        "slices": {},
        "demo": {"rows": [row(*each) for each in todays], "prewarmed": live.prewarmed, "released": live.released},
    }


def run_demo(
    trace: Trace, model: Path, minutes: int, seed: int, notes: list[str], progress: Callable[[str, float], None]
) -> dict[str, Any]:
    """The loop over `minutes` of the trace's second half, then everything else on the same arrivals."""
    played, said = playable(trace)
    first = played.minutes // 2
    window = (first, min(first + minutes, played.minutes))
    arrivals = draw_arrivals(played, ArrivalMode.UNIFORM, seed, minutes=window)
    with sidecar(model) as address:
        live = asyncio.run(run_live(address, played, arrivals, lambda share: progress("the loop, live", share)))
    return compare(played, arrivals, live, [*notes, *said], lambda share: progress("today's platforms", share))
