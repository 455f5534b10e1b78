"""One process at a time for a file that it keeps: a lock beside it, which ends with the process, however that ends."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def alone(file: Path, who: str) -> Iterator[None]:
    """Inside, nobody else on this machine keeps `file`.

    Args:
        file: need not exist; its lock is ``<file>.lock`` and stays there.
        who: who else could, for the sentence: ``another plugin``.

    Raises:
        InputError: another process keeps it, or its folder cannot be written to.
    """
    path = file.with_name(file.name + ".lock")
    try:
        lock = path.open("w")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{file}: {who} is using it, end that one first") from None
        yield
