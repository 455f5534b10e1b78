"""The predictor's messages and the domain types, both ways; forecasts, which come in chunks, are in `forecast_wire`.

What comes in is not trusted: every `*_from_pb` either returns a value that keeps the promises of `mesp.types`
and of the comments in ``predictor_service.proto``, or raises `InputError` with one sentence. What goes out is
checked by the same rules, so a fault shows where it is made and not at the far end.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mesp.errors import InputError
from mesp.types import FunctionKey, ModelDescription, Rejection, StepCounts, Trigger
from mesp.v1 import predictor_service_pb2 as predictor_pb
from mesp.v1 import types_pb2 as types_pb

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_SCOPE_BYTES: Final = 253
MAX_NAME_BYTES: Final = 512
MAX_SOURCE_BYTES: Final = 253
#: Functions in one `StepCounts` message, and steps in one `ObserveRequest`.
MAX_STEP_FUNCTIONS: Final = 10_000
MAX_REQUEST_STEPS: Final = 1_440
#: Invocations of one function in one step: what the counts' arrays hold.
MAX_COUNT: Final = 2**32 - 1
MAX_STEP_MS: Final = 86_400_000
_TRIGGERS: Final = {trigger.value: trigger for trigger in Trigger}


# --- Function keys -------------------------------------------------------------------------------------------


def check_key(key: FunctionKey) -> FunctionKey:
    """The key itself; `InputError` unless scope (1 to 253 bytes) and name (1 to 512 bytes) are printable."""
    _check_text("function scope", key.scope, MAX_SCOPE_BYTES)
    _check_text("function name", key.name, MAX_NAME_BYTES)
    return key


def key_to_pb(key: FunctionKey) -> types_pb.FunctionKey:
    """Encodes a valid key."""
    check_key(key)
    return types_pb.FunctionKey(scope=key.scope, name=key.name)


def key_from_pb(message: types_pb.FunctionKey) -> FunctionKey:
    """Decodes and checks a key."""
    return check_key(FunctionKey(message.scope, message.name))


def _check_text(what: str, text: str, max_bytes: int) -> None:
    # Printable first: what is printable can be encoded. No UTF-8 character takes more than 4 bytes.
    if not text or not text.isprintable() or (len(text) * 4 > max_bytes and len(text.encode()) > max_bytes):
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise InputError(f"{what} {shown!r}: allowed are 1 to {max_bytes} bytes of printable characters")


# --- Observations --------------------------------------------------------------------------------------------


def split_step(step: StepCounts, max_functions: int = MAX_STEP_FUNCTIONS) -> list[StepCounts]:
    """One report cut into parts of at most `max_functions`, which say the same when they are applied in order.

    Only the first part is `complete`: it zeroes whatever is not listed, and the later parts replace zeros.
    """
    if len(step.counts) <= max_functions:
        return [step]
    items = iter(step.counts.items())
    parts = iter(lambda: dict(itertools.islice(items, max_functions)), {})
    offsets, triggers = step.arrival_offsets_ms, step.triggers
    return [
        replace(
            step,
            counts=part,
            complete=step.complete and number == 0,
            arrival_offsets_ms={key: offsets[key] for key in part if key in offsets} if offsets else {},
            triggers={key: triggers[key] for key in part if key in triggers} if triggers else {},
        )
        for number, part in enumerate(parts)
    ]


def step_counts_to_pb(step: StepCounts) -> predictor_pb.StepCounts:
    """Encodes a report of at most 10,000 functions (`split_step` cuts larger ones); `InputError` when invalid.

    Triggers of functions that have no count are left out.
    """
    _check_step(step.source, step.step_start_ms, step.step_ms, len(step.counts))
    for key, count in step.counts.items():
        _check_item(key, count, step.arrival_offsets_ms.get(key, ()), step.step_ms)
    for key in step.arrival_offsets_ms:
        if key not in step.counts:
            raise InputError(f"arrival offsets of {key}: the function has no count in this step")
    message = predictor_pb.StepCounts(
        source=step.source,
        step_start_ms=step.step_start_ms,
        step_ms=step.step_ms,
        functions=[types_pb.FunctionKey(scope=key.scope, name=key.name) for key in step.counts],
        counts=step.counts.values(),
        complete=step.complete,
    )
    if step.arrival_offsets_ms:
        runs = [step.arrival_offsets_ms.get(key, ()) for key in step.counts]
        message.arrival_offset_counts.extend(map(len, runs))
        message.arrival_offsets_ms.extend(itertools.chain.from_iterable(runs))
    if step.triggers:
        told = (step.triggers.get(key, Trigger.UNKNOWN) for key in step.counts)
        message.triggers.extend(predictor_pb.Trigger.ValueType(trigger.value) for trigger in told)
    return message


def step_counts_from_pb(message: predictor_pb.StepCounts) -> StepCounts:
    """Decodes a report; `InputError` names the first thing wrong with it."""
    step, rejections = _read_step(message)
    if rejections:
        raise InputError(rejections[0].reason)
    return step


def observe_from_pb(request: predictor_pb.ObserveRequest) -> tuple[list[StepCounts], list[Rejection]]:
    """Decodes a batch, good items beside bad ones: (reports, rejections).

    One bad function does not fail its step, nor one bad step its batch. `InputError` only where the message
    itself cannot be read: arrays that disagree in length, or too many steps.
    """
    if len(request.steps) > MAX_REQUEST_STEPS:
        raise InputError(f"steps: {len(request.steps)} in one request, at most {MAX_REQUEST_STEPS} are allowed")
    steps: list[StepCounts] = []
    rejections: list[Rejection] = []
    for message in request.steps:
        _check_lengths(message)
        try:
            step, bad_items = _read_step(message)
        except InputError as error:
            rejections.append(Rejection(None, message.step_start_ms, str(error)))
        else:
            steps.append(step)
            rejections.extend(bad_items)
    return steps, rejections


def _read_step(message: predictor_pb.StepCounts) -> tuple[StepCounts, list[Rejection]]:
    """The report without its bad items, and those; `InputError` when the step as a whole is bad."""
    _check_lengths(message)
    start_ms, step_ms = message.step_start_ms, message.step_ms
    _check_step(message.source, start_ms, step_ms, len(message.functions))
    all_offsets = tuple(message.arrival_offsets_ms)
    run_lengths: Sequence[int] = message.arrival_offset_counts or [0] * len(message.functions)
    counts: dict[FunctionKey, int] = {}
    offsets: dict[FunctionKey, tuple[int, ...]] = {}
    triggers: dict[FunctionKey, Trigger] = {}
    rejections: list[Rejection] = []
    end = 0
    told: Sequence[int] = message.triggers or [0] * len(message.functions)
    for item, count, run_length, trigger in zip(message.functions, message.counts, run_lengths, told, strict=True):
        begin, end = end, end + run_length
        key = FunctionKey(item.scope, item.name)
        run = all_offsets[begin:end]
        try:
            _check_item(key, count, run, step_ms, listed=key in counts)
        except InputError as error:
            rejections.append(Rejection(key, start_ms, str(error)))
            continue
        counts[key] = count
        if run:
            offsets[key] = run
        if trigger:
            triggers[key] = _TRIGGERS.get(trigger, Trigger.OTHERS)  # one that this version does not know
    return StepCounts(message.source, start_ms, step_ms, counts, message.complete, offsets, triggers), rejections


def _check_lengths(message: predictor_pb.StepCounts) -> None:
    functions, counts = len(message.functions), len(message.counts)
    if functions != counts:
        raise InputError(f"counts: {counts} values for {functions} functions, must be as many")
    runs, offsets = len(message.arrival_offset_counts), len(message.arrival_offsets_ms)
    if runs not in (0, functions):
        raise InputError(f"arrival_offset_counts: {runs} values for {functions} functions, must be as many or none")
    if (triggers := len(message.triggers)) not in (0, functions):
        raise InputError(f"triggers: {triggers} values for {functions} functions, must be as many or none")
    if (told := sum(message.arrival_offset_counts)) != offsets:
        raise InputError(f"arrival_offsets_ms: {offsets} values, but arrival_offset_counts add up to {told}")


def _check_step(source: str, start_ms: int, step_ms: int, functions: int) -> None:
    _check_text("source", source, MAX_SOURCE_BYTES)
    if not 0 < step_ms <= MAX_STEP_MS:
        raise InputError(f"step_ms = {step_ms}, must be in [1, {MAX_STEP_MS}]")
    if start_ms < 0 or start_ms % step_ms:
        raise InputError(f"step_start_ms = {start_ms}, must be a multiple of step_ms = {step_ms}, not negative")
    if functions > MAX_STEP_FUNCTIONS:
        raise InputError(f"functions: {functions} in one step, at most {MAX_STEP_FUNCTIONS} are allowed")


def _check_item(
    key: FunctionKey, count: int, offsets_ms: tuple[int, ...], step_ms: int, *, listed: bool = False
) -> None:
    check_key(key)
    if listed:
        raise InputError(f"function {key}: listed twice in one step, allowed is once")
    if not 0 <= count <= MAX_COUNT:
        raise InputError(f"count of {key} = {count}, must be in [0, {MAX_COUNT}]")
    if len(offsets_ms) > count:
        raise InputError(f"arrival offsets of {key}: {len(offsets_ms)} for a count of {count}, at most as many")
    if offsets_ms and not 0 <= min(offsets_ms) <= max(offsets_ms) < step_ms:
        raise InputError(f"arrival offsets of {key}: must be in [0, {step_ms}) ms")


# --- The model, rejections -----------------------------------------------------------------------------------


def description_to_pb(description: ModelDescription) -> predictor_pb.DescribeModelResponse:
    """Encodes what a predictor says of itself."""
    return predictor_pb.DescribeModelResponse(
        model_version=description.model_version,
        step_ms=description.step_ms,
        context_length=description.context_length,
        default_horizon=description.default_horizon,
        max_horizon=description.max_horizon,
        levels=description.levels,
        experts=description.experts,
        functions=description.functions,
        max_functions=description.max_functions,
        clusters=description.clusters,
        as_of_ms=description.as_of_ms,
    )


def description_from_pb(message: predictor_pb.DescribeModelResponse) -> ModelDescription:
    """Decodes what a predictor says of itself; `InputError` for a step width that is none."""
    if not 0 < message.step_ms <= MAX_STEP_MS:
        raise InputError(f"model {message.model_version!r}: step_ms = {message.step_ms}, must be in [1, {MAX_STEP_MS}]")
    return ModelDescription(
        model_version=message.model_version,
        step_ms=message.step_ms,
        context_length=message.context_length,
        default_horizon=message.default_horizon,
        max_horizon=message.max_horizon,
        levels=tuple(message.levels),
        experts=tuple(message.experts),
        functions=message.functions,
        max_functions=message.max_functions,
        clusters=message.clusters,
        as_of_ms=message.as_of_ms,
    )


def rejection_to_pb(rejection: Rejection) -> predictor_pb.Rejection:
    """Encodes a refused item; its key goes back as it came, invalid or not."""
    key = rejection.function
    return predictor_pb.Rejection(
        function=None if key is None else types_pb.FunctionKey(scope=key.scope, name=key.name),
        step_start_ms=rejection.step_start_ms,
        reason=rejection.reason,
    )


def rejection_from_pb(message: predictor_pb.Rejection) -> Rejection:
    """Decodes a refused item."""
    key = FunctionKey(message.function.scope, message.function.name) if message.HasField("function") else None
    return Rejection(key, message.step_start_ms, message.reason)
