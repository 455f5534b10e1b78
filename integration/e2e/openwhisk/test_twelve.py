"""The trace of the runs beside a real OpenWhisk can be had again, as docs/openwhisk.md says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from e2e.openwhisk.twelve import TIMERS, write_twelve
from mesp_bench.traces.load import load_trace

if TYPE_CHECKING:
    from pathlib import Path


def test_twelve(tmp_path: Path) -> None:
    """Nine timers fire at their periods, three calls come every 12 minutes, two are random; and always the same."""
    for name in ("once", "again"):
        write_twelve(tmp_path / name)
    once, again = load_trace(tmp_path / "once"), load_trace(tmp_path / "again")
    assert once.checksum == again.checksum
    assert once.counts.shape == (12, 1440)
    for period, counts in zip(TIMERS, once.counts, strict=False):
        assert set(np.diff(np.flatnonzero(counts))) == {period}
    assert set(once.counts[9]) == {0, 3}
    np.testing.assert_allclose(once.counts[10:].mean(axis=1), [1 / 9, 1 / 25], rtol=0.2)
