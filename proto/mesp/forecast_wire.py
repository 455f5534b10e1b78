"""Forecasts as chunks of the wire, both ways: a tick of any size, never half of one taken for the whole.

What comes in is not trusted, and what goes out is checked by the same rules, as in `mesp.wire`.

Big arrays never pass through Python numbers on the way out: a packed field of floats *is* its little-endian
bytes behind a tag and a length (protobuf's encoding guide), so they are merged as bytes.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from mesp.errors import InputError
from mesp.types import Forecasts, ForecastStatus, FunctionKey
from mesp.v1 import types_pb2 as types_pb
from mesp.wire import MAX_NAME_BYTES, MAX_REQUEST_STEPS, MAX_SCOPE_BYTES, MAX_STEP_MS, check_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

MAX_LEVELS: Final = 99
#: Functions in one forecast chunk; fewer where rows are long, so that a chunk stays below gRPC's usual 4 MiB.
MAX_CHUNK_FUNCTIONS: Final = 1_000
_CHUNK_BYTES: Final = 3_000_000
_KEY_BYTES: Final = MAX_SCOPE_BYTES + MAX_NAME_BYTES + 16


def forecasts_to_chunks(
    forecasts: Forecasts, max_functions: int = MAX_CHUNK_FUNCTIONS
) -> Iterator[types_pb.ForecastChunk]:
    """Cuts forecasts into chunks of at most `max_functions`; the last one, alone or not, has `last` set."""
    _check_forecasts(forecasts)
    total = len(forecasts.functions)
    levels, experts = len(forecasts.levels), len(forecasts.experts)
    row_bytes = 4 * (forecasts.horizon * (levels + 1) + experts) + _KEY_BYTES
    size = max(1, min(max_functions, _CHUNK_BYTES // row_bytes))
    for begin in range(0, max(total, 1), size):
        rows = slice(begin, begin + size)
        chunk = types_pb.ForecastChunk(
            tick_id=forecasts.tick_id,
            as_of_ms=forecasts.as_of_ms,
            step_ms=forecasts.step_ms,
            horizon=forecasts.horizon,
            levels=forecasts.levels,
            last=begin + size >= total,
            model_version=forecasts.model_version,
            functions=[types_pb.FunctionKey(scope=key.scope, name=key.name) for key in forecasts.functions[rows]],
            statuses=[types_pb.ForecastStatus.ValueType(status) for status in forecasts.status[rows]],
            experts=forecasts.experts,
            ages_ms=forecasts.age_ms[rows].tolist(),
        )
        chunk.MergeFromString(
            _packed(types_pb.ForecastChunk.QUANTILES_FIELD_NUMBER, forecasts.quantiles[rows])
            + _packed(types_pb.ForecastChunk.ACTIVE_PROBABILITIES_FIELD_NUMBER, forecasts.active[rows])
            + _packed(types_pb.ForecastChunk.WEIGHTS_FIELD_NUMBER, forecasts.weights[rows])
        )
        yield chunk


def forecasts_from_chunks(chunks: Iterable[types_pb.ForecastChunk]) -> Forecasts:
    """Joins the chunks of one tick; `InputError` when one is missing, follows the last, or breaks a promise."""
    parts: list[Forecasts] = []
    complete = False
    for chunk in chunks:
        if complete:
            raise InputError(f"forecast of tick {chunk.tick_id}: a chunk follows the last one")
        part = _read_chunk(chunk)
        if parts and (odd := _differing(parts[0], part)):
            raise InputError(f"forecast of tick {parts[0].tick_id}: {odd} differs between its chunks")
        parts.append(part)
        complete = chunk.last
    if not complete:
        raise InputError(f"forecast: the stream ended after {len(parts)} chunks and before the last one")
    joined = replace(
        parts[0],
        functions=tuple(itertools.chain.from_iterable(part.functions for part in parts)),
        status=tuple(itertools.chain.from_iterable(part.status for part in parts)),
        quantiles=np.concatenate([part.quantiles for part in parts]),
        active=np.concatenate([part.active for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        age_ms=np.concatenate([part.age_ms for part in parts]),
    )
    _check_forecasts(joined)
    return joined


def _read_chunk(chunk: types_pb.ForecastChunk) -> Forecasts:
    rows, levels, experts = len(chunk.functions), len(chunk.levels), len(chunk.experts)
    for name, values, expected in (
        ("statuses", len(chunk.statuses), rows),
        ("quantiles", len(chunk.quantiles), rows * chunk.horizon * levels),
        ("active_probabilities", len(chunk.active_probabilities), rows * chunk.horizon),
        ("weights", len(chunk.weights), rows * experts),
        ("ages_ms", len(chunk.ages_ms), rows),
    ):
        if values != expected:
            raise InputError(
                f"forecast of tick {chunk.tick_id}: {values} {name}, must be {expected} for {rows} functions, "
                f"{chunk.horizon} steps, {levels} levels and {experts} experts"
            )
    try:
        status = tuple(map(ForecastStatus, chunk.statuses))
    except ValueError:
        raise InputError(f"forecast of tick {chunk.tick_id}: a status is none of 1 to 4") from None
    # An empty message may claim any horizon: arrays are made of what is there.
    horizon = chunk.horizon if rows else min(chunk.horizon, MAX_REQUEST_STEPS)
    return Forecasts(
        tick_id=chunk.tick_id,
        as_of_ms=chunk.as_of_ms,
        step_ms=chunk.step_ms,
        levels=tuple(chunk.levels),
        functions=tuple(FunctionKey(key.scope, key.name) for key in chunk.functions),
        status=status,
        quantiles=_floats(chunk.quantiles).reshape(rows, horizon, levels),
        active=_floats(chunk.active_probabilities).reshape(rows, horizon),
        experts=tuple(chunk.experts),
        weights=_floats(chunk.weights).reshape(rows, experts),
        age_ms=np.fromiter(chunk.ages_ms, np.int64, rows),
        model_version=chunk.model_version,
    )


def _differing(first: Forecasts, other: Forecasts) -> str | None:
    names = ("tick_id", "as_of_ms", "step_ms", "horizon", "levels", "experts", "model_version")
    return next((name for name in names if getattr(first, name) != getattr(other, name)), None)


def _check_forecasts(forecasts: Forecasts) -> None:
    _check_grid(forecasts)
    _check_rows(forecasts)


def _check_grid(forecasts: Forecasts) -> None:
    tick, levels = f"forecast of tick {forecasts.tick_id}", forecasts.levels
    if not 0 < forecasts.step_ms <= MAX_STEP_MS or forecasts.as_of_ms < 0:
        raise InputError(
            f"{tick}: step_ms = {forecasts.step_ms} must be in [1, {MAX_STEP_MS}], "
            f"and as_of_ms = {forecasts.as_of_ms} not negative"
        )
    if forecasts.horizon < 1:
        raise InputError(f"{tick}: horizon = {forecasts.horizon}, must be at least 1")
    if not 1 <= len(levels) <= MAX_LEVELS or not all(a < b for a, b in itertools.pairwise((0.0, *levels, 1.0))):
        raise InputError(f"{tick}: levels must be 1 to {MAX_LEVELS}, ascending, inside (0, 1)")


def _check_rows(forecasts: Forecasts) -> None:
    tick = f"forecast of tick {forecasts.tick_id}"
    rows, horizon, levels = len(forecasts.functions), forecasts.horizon, len(forecasts.levels)
    for name, array, shape in (
        ("quantiles", forecasts.quantiles, (rows, horizon, levels)),
        ("active", forecasts.active, (rows, horizon)),
        ("weights", forecasts.weights, (rows, len(forecasts.experts))),
    ):
        if array.shape != shape:
            raise InputError(f"{tick}: {name} of shape {array.shape}, must be {shape}")
        # NaN fails both comparisons.
        if array.size and not (array.min() >= 0 and array.max() < np.inf):
            raise InputError(f"{tick}: {name} hold a value that is negative or not finite")
    if forecasts.active.size and forecasts.active.max() > 1:
        raise InputError(f"{tick}: active holds {forecasts.active.max():g}, a probability must be in [0, 1]")
    if forecasts.age_ms.shape != (rows,) or len(forecasts.status) != rows or (forecasts.age_ms < -1).any():
        raise InputError(f"{tick}: ages and statuses must be one per function, ages -1 or more")
    if len(set(forecasts.functions)) != rows:
        raise InputError(f"{tick}: a function is listed twice")
    for key, status in zip(forecasts.functions, forecasts.status, strict=True):
        # A refused name comes back as it was asked for, invalid or not.
        if status is not ForecastStatus.UNKNOWN_FUNCTION:
            check_key(key)


def _packed(field_number: int, array: npt.NDArray[np.float32]) -> bytes:
    """A packed repeated float field in protobuf's wire format: tag (wire type 2), length, little-endian values."""
    return b"".join((_varint(field_number << 3 | 2), _varint(4 * array.size), array.astype("<f4").tobytes()))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _floats(values: Sequence[float]) -> npt.NDArray[np.float32]:
    return np.fromiter(values, np.float32, len(values))
