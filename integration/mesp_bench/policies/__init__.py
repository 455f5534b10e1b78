"""The baselines that MESP is compared with, each exact to its paper or code, as curves over one knob."""

from __future__ import annotations

from mesp_bench.policies.base import Policy
from mesp_bench.policies.fixed import Fixed
from mesp_bench.policies.hybrid_histogram import HybridHistogram, HybridHistogramApp
from mesp_bench.policies.kpa import Kpa
from mesp_bench.policies.openwhisk import OpenWhisk
from mesp_bench.policies.oracles import OracleKeepAlive, OraclePrewarm

_POLICIES: tuple[Policy, ...] = (
    Fixed(),
    OpenWhisk(),
    HybridHistogram(),
    HybridHistogramApp(),
    Kpa(),
    OracleKeepAlive(),
    OraclePrewarm(),
)

#: Every baseline by its name in `frontier.json`, in the order of tables and legends.
BASELINES: dict[str, Policy] = {policy.name: policy for policy in _POLICIES}

__all__ = ["BASELINES", "Policy"]
