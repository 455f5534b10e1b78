"""What replays beside the doubles share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp_bench.sample import sample_trace
from mesp_bench.traces.synth import synthesize

if TYPE_CHECKING:
    from mesp_bench.traces.model import Trace


@pytest.fixture(scope="session")
def model() -> Path:
    """The one that ships; asking mesp_predictor for it would import torch, for ten seconds."""
    return Path(__file__).parents[3] / "predictor" / "mesp_predictor" / "default_model"


@pytest.fixture(scope="session")
def trace() -> Trace:
    """30 functions of a synthetic day; runs of at most 2 s."""
    sample, _ = sample_trace(synthesize(300, 1, seed=2), functions=30, rate_per_s=1.0, seed=2)
    percentiles_ms = np.minimum(sample.duration_percentiles_ms, 2_000)
    return replace(sample, duration_ms=np.minimum(sample.duration_ms, 2_000), duration_percentiles_ms=percentiles_ms)
