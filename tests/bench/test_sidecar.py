"""A sidecar that was started is ended, whatever comes in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mesp_bench.sidecar import sidecar

if TYPE_CHECKING:
    from collections.abc import Callable


def test_ctrl_c_while_it_starts_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt is raised once the process is known, which is ended; later interrupts are handled as before."""
    started: list[subprocess.Popen[bytes]] = []
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def interrupted(_command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(start([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), sidecar(Path("model")):
        pytest.fail("the interrupt was lost")
    assert started[0].poll() is not None
    assert signal.getsignal(signal.SIGINT) is before
