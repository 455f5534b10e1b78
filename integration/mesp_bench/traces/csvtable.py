"""CSV files read block by block into polars frames, with faults told by file, row, column and value.

The official traces are plain CSV without quotes, up to gigabytes wide and long. A file (gzipped or not) is streamed
in blocks of whole lines; polars parses each block with explicit types, so memory is bounded and nothing is guessed.
Only when a block fails does slow Python look for the first faulty cell, to name it in one sentence.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from contextlib import contextmanager
from enum import Enum
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import polars as pl

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

#: Bytes parsed at once: some 5,000 functions of 1,440 minutes.
BLOCK_BYTES = 16 << 20

#: Most invocations of a step, and of a day.
COUNT_MAX = 2**32 - 1
TOTAL_MAX = 2**53


class Kind(Enum):
    """What a column may hold."""

    ID = "text that is not empty"
    COUNT = f"a whole number from 0 to {COUNT_MAX}"
    TOTAL = f"a whole number from 0 to {TOTAL_MAX}"
    MEASURE = "a finite number of 0 or more"
    MEASURE_OR_EMPTY = "a finite number of 0 or more, or nothing"
    IGNORED = "anything"

    @property
    def most(self) -> int | None:
        """The largest whole number that may stand in such a column; None: the column holds something else."""
        return {Kind.COUNT: COUNT_MAX, Kind.TOTAL: TOTAL_MAX}.get(self)

    @property
    def dtype(self) -> type[pl.DataType]:
        """The type that polars parses the column to."""
        if self is Kind.COUNT:
            return pl.UInt32
        if self is Kind.TOTAL:
            return pl.UInt64
        return pl.String if self in {Kind.ID, Kind.IGNORED} else pl.Float64

    def allows(self, cell: str) -> bool:
        """Whether this text may stand in such a column."""
        if self is Kind.IGNORED or (self is Kind.MEASURE_OR_EMPTY and not cell):
            return True
        if self is Kind.ID:
            return bool(cell)
        try:
            value = float(cell)
        except ValueError:
            return False
        if self.most is not None:
            return value.is_integer() and 0 <= value <= self.most
        return math.isfinite(value) and value >= 0


class Block(NamedTuple):
    """Consecutive rows of a file; `first_row` is the line number of the first (the header is row 1)."""

    frame: pl.DataFrame
    first_row: int


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    """The file's decompressed bytes; faults of disk and gzip become InputError."""
    try:
        with path.open("rb") as raw:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a complete gzip file ({error}); fetch it again.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def checksum(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of the files, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        try:
            with path.open("rb") as raw:
                while chunk := raw.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def read_header(path: Path) -> tuple[str, ...]:
    """The column names of a CSV file.

    Raises:
        InputError: unreadable, empty, not UTF-8, or a name given twice.
    """
    with _stream(path) as stream:
        line = stream.readline(BLOCK_BYTES)
    if not line.strip():
        raise InputError(f"{path} is empty: expected a header and rows.")
    columns = tuple(_text(path, 1, line).removeprefix("\ufeff").rstrip("\r\n").split(","))
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise InputError(f"{path}, row 1: column {column!r} stands twice; each is allowed once.")
        seen.add(column)
    return columns


def require(path: Path, columns: Iterable[str], required: Iterable[str]) -> None:
    """Raise InputError unless every required column is in the header."""
    present = set(columns)
    for column in required:
        if column not in present:
            raise InputError(
                f"{path}, row 1: column {column!r} is missing; the header must hold {', '.join(required)}."
            )


def read_blocks(path: Path, kinds: Mapping[str, Kind]) -> Iterator[Block]:
    """Parse a CSV file whose columns, in order, are those of `kinds`; ignored columns are left out of the frames.

    Raises:
        InputError: naming file, row, column, value and what is allowed.
    """
    row = 2
    for text in _whole_lines(path):
        frame = _parse(text, kinds)
        if frame is None:
            raise _fault(path, text, kinds, row)
        yield Block(frame, row)
        row += frame.height


def read_table(path: Path, kinds: Mapping[str, Kind]) -> pl.DataFrame:
    """A whole (small) file, as `read_blocks`; no rows is allowed."""
    schema = {name: kind.dtype for name, kind in kinds.items() if kind is not Kind.IGNORED}
    return pl.concat([pl.DataFrame(schema=schema), *(block.frame for block in read_blocks(path, kinds))])


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Blocks of whole lines, without the header."""
    with _stream(path) as stream:
        stream.readline(BLOCK_BYTES)
        rest = b""
        while chunk := stream.read(BLOCK_BYTES):
            cut = chunk.rfind(b"\n") + 1
            if not cut and len(rest) > BLOCK_BYTES:
                raise InputError(f"{path} holds a row longer than {BLOCK_BYTES >> 20} MiB; it is no trace.")
            if cut:
                yield rest + chunk[:cut]
                rest = chunk[cut:]
            else:
                rest += chunk
        if rest:
            yield rest


def _parse(text: bytes, kinds: Mapping[str, Kind]) -> pl.DataFrame | None:
    """The block as a frame without ignored columns, or None where any cell is not allowed."""
    frame = _read_csv(text, {name: kind.dtype for name, kind in kinds.items()})
    if frame is None:  # perhaps whole numbers written as 3.0: pandas does so after a join
        frame = _read_csv(text, {name: _loose(kind) for name, kind in kinds.items()})
        if frame is None:
            return None
        most = {name: kind.most for name, kind in kinds.items() if kind.most is not None}
        for name, limit in most.items():
            value = frame.get_column(name)
            if not (value.is_finite() & (value >= 0) & (value <= limit) & (value == value.floor())).all(
                ignore_nulls=False
            ):
                return None
        frame = frame.with_columns(pl.col(name).cast(kinds[name].dtype) for name in most)
    if frame.height != text.count(b"\n") + (not text.endswith(b"\n")):
        return None  # polars skipped or split a line
    if not all(_allowed(frame.get_column(name), kind) for name, kind in kinds.items()):
        return None
    return frame.select([name for name, kind in kinds.items() if kind is not Kind.IGNORED])


def _allowed(column: pl.Series, kind: Kind) -> bool:
    """Whether a column that was parsed to the kind's type holds only what the kind allows."""
    if kind not in {Kind.IGNORED, Kind.MEASURE_OR_EMPTY} and column.null_count():
        return False
    if kind is Kind.TOTAL:
        return bool((column <= TOTAL_MAX).all())
    return kind not in {Kind.MEASURE, Kind.MEASURE_OR_EMPTY} or bool((column.is_finite() & (column >= 0)).all())


def _loose(kind: Kind) -> type[pl.DataType]:
    return kind.dtype if kind.most is None else pl.Float64


def _read_csv(text: bytes, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame | None:
    try:
        return pl.read_csv(io.BytesIO(text), has_header=False, schema=dict(schema), quote_char=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None


def _text(path: Path, row: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, row {row}: byte {line[error.start]:#04x} is not UTF-8 text.") from error


def _fault(path: Path, text: bytes, kinds: Mapping[str, Kind], first_row: int) -> InputError:
    """The first faulty cell of a block that polars refused, in one sentence."""
    lines = text.removesuffix(b"\n").split(b"\n")
    for row, line in enumerate(lines, first_row):
        cells = _text(path, row, line).removesuffix("\r").split(",")
        if len(cells) != len(kinds):
            hint = "; the file may be cut off" if row == first_row + len(lines) - 1 else ""
            return InputError(f"{path}, row {row}: {len(cells)} columns where the header has {len(kinds)}{hint}.")
        for cell, (name, kind) in zip(cells, kinds.items(), strict=True):
            if not kind.allows(cell):
                shown = repr(cell if len(cell) <= 40 else cell[:37] + "...")
                return InputError(f"{path}, row {row}, column {name}: {shown} is not allowed; expected {kind.value}.")
    return InputError(f"{path}, rows {first_row} to {first_row + len(lines) - 1}: not plain comma-separated text.")
