"""What came in since the state file was written: a sidecar that is killed finds it again.

Every request that changed the counts is appended, with the clock it was taken at, before its caller is answered.
When the state is taken a new part is begun, and once it is saved the parts before are deleted: whenever the
process dies, the state file and the parts beside it (``<state>.journal-<number>``) hold all that was answered. Taking a
request in twice changes nothing, so it does no harm where both tell of it. A record is a checksum, a head and
protobuf's bytes; the half of one that a kill left ends its part.

Nothing here waits for the disk: a killed process loses nothing, a power cut what the system had not written yet.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import structlog

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = structlog.get_logger(__name__)

#: CRC-32 of all that follows; kind; now in ms, -1 for none; bytes of the request.
_CHECKSUM: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<BqI")


class Kind(enum.IntEnum):
    """Which call it was."""

    OBSERVE = 1
    DELETE = 2


class Entry(NamedTuple):
    """One request: `request` is its message's bytes, `now_ms` the clock at that time, None where time is virtual."""

    kind: Kind
    now_ms: int | None
    request: bytes


class Journal:
    """The parts beside one state file. Calls come from one thread at a time."""

    def __init__(self, state: Path) -> None:
        """Finds the parts that are there; the next one begins with the first `write`."""
        self.state = state
        self._number = max(self._parts(), default=0)
        self._file: BinaryIO | None = None
        self._broken = False

    def entries(self) -> Iterator[Entry]:
        """All that the parts hold, oldest first.

        Raises:
            InputError: a part cannot be read.
        """
        for _, part in sorted(self._parts().items()):
            try:
                data = part.read_bytes()
            except OSError as error:
                raise InputError(f"{part}: the journal cannot be read ({error.strerror})") from error
            yield from _decode(data)

    def write(self, entry: Entry) -> None:
        """Appends an entry; where that fails it is logged once, and nothing more is kept until the next `turn`."""
        if self._broken:
            return
        head = _HEAD.pack(entry.kind, -1 if entry.now_ms is None else entry.now_ms, len(entry.request))
        checksum = _CHECKSUM.pack(zlib.crc32(entry.request, zlib.crc32(head)))
        try:
            if self._file is None:
                self._number += 1
                self._file = self._part(self._number).open("ab", buffering=0)  # each record is there when it is written
            _append(self._file, checksum + head + entry.request)
        except OSError as error:
            _log.warning("journal not written", reason=str(error))
            self.turn()
            self._broken = True

    def turn(self) -> int:
        """What comes from here on goes into a part of its own, for the state was taken; the number of the last part."""
        self._broken = False
        if self._file is not None:
            self._file.close()
            self._file = None
        return self._number

    def forget(self, last: int) -> None:
        """Deletes the parts up to number `last`: the state that holds them is saved."""
        for number, part in self._parts().items():
            if number <= last:
                part.unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        return self.state.with_name(f"{self.state.name}.journal-{number}")

    def _parts(self) -> dict[int, Path]:
        name = re.compile(re.escape(self.state.name) + r"\.journal-(\d+)")
        found = ((name.fullmatch(path.name), path) for path in self.state.parent.iterdir())
        return {int(match[1]): path for match, path in found if match}


def _append(file: BinaryIO, record: bytes) -> None:
    """All of it, or `OSError`: on a disk that is nearly full a write may be short and say nothing."""
    if file.write(record) < len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _decode(data: bytes) -> Iterator[Entry]:
    """Whole records, up to the first that is not."""
    at, least = 0, _CHECKSUM.size + _HEAD.size
    while len(data) - at >= least:
        (checksum,) = _CHECKSUM.unpack_from(data, at)
        kind, now_ms, length = _HEAD.unpack_from(data, at + _CHECKSUM.size)
        end = at + least + length
        damaged = zlib.crc32(memoryview(data)[at + _CHECKSUM.size : end]) != checksum or end > len(data)
        if damaged or kind not in list(Kind):  # or of a later version
            return
        yield Entry(Kind(kind), None if now_ms < 0 else now_ms, data[at + least : end])
        at = end
