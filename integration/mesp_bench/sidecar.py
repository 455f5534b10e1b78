"""A predictor sidecar as its own process, started and ended by whoever measures with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mesp.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Importing torch on a cold machine takes most of it.
START_LIMIT_S = 120.0
_POLL_S = 0.1
_STOP_LIMIT_S = 10.0


@contextmanager
def sidecar(model: Path) -> Iterator[str]:
    """Serves `model` in virtual time on a free loopback port; yields its address, and ends it whatever happens.

    Raises:
        UnavailableError: the process ended before or while it was needed, with the last line that it said.
    """
    with tempfile.TemporaryDirectory(prefix="mesp-sidecar-") as directory:
        ready, log = Path(directory) / "address", Path(directory) / "log"
        command = [sys.executable, "-m", "mesp", "--log-level", "warning", "predictor", "serve"]
        command += ["--model", str(model), "--port", "0", "--virtual-time", "--ready-file", str(ready)]
        process: subprocess.Popen[bytes] | None = None
        try:
            with log.open("w") as stderr, _undisturbed():
                # A session of its own: Ctrl-C reaches this process alone, which then ends the sidecar below.
                process = subprocess.Popen(command, stdout=stderr, stderr=stderr, start_new_session=True)  # noqa: S603
            yield _address(process, ready, log)
        except UnavailableError as error:
            if process is not None and process.poll() is not None:
                raise UnavailableError(f"{error} ({_ended(process, log)})") from error
            raise
        finally:
            if process is not None:
                _end(process)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the block's end: one that came while a process starts would leave it behind, known to nobody."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    for _ in range(round(START_LIMIT_S / _POLL_S)):
        if process.poll() is not None:
            raise UnavailableError(_ended(process, log))
        if ready.is_file() and (address := ready.read_text().strip()):
            return address
        time.sleep(_POLL_S)
    raise UnavailableError(f"the predictor sidecar did not answer within {START_LIMIT_S:.0f} s")


def _ended(process: subprocess.Popen[bytes], log: Path) -> str:
    said = log.read_text(errors="replace").strip().splitlines()
    last = f"; it said: {said[-1]}" if said else ""
    return f"the predictor sidecar ended with exit code {process.returncode}{last}"
